"""A redis-server of our own: a loopback port, nothing written to disk, stopped by its pid."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .processes import BenchmarkError, Process

START_WITHIN = 5.0  # seconds until it accepts connections
# A subscriber that is slower than the publisher is what some figures measure: the
# default of 32 MiB would cut it off and the figure would be of something else.
SUBSCRIBER_BUFFER = "pubsub 256mb 256mb 0"


@contextmanager
def redis_server(directory: Path) -> Iterator[int]:
    """Run a redis-server for the length of the block; gives its port.

    Raises:
        BenchmarkError: There is no redis-server in PATH, or it does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise BenchmarkError("no redis-server in PATH: install the package redis-server")
    port = _free_port()
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    argv += ["--client-output-buffer-limit", SUBSCRIBER_BUFFER, "--dir", str(directory)]
    with Process(argv, directory / "redis.log", cwd=directory) as server:
        _wait(server, port)
        yield port


def _wait(server: Process, port: int) -> None:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        server.check_alive()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise BenchmarkError(f"redis-server does not accept connections: {server.output()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
