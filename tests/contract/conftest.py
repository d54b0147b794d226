"""What the contracts are tried on: a real redis-server, and orphans that come home."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

from ngcp_task_agent import processes

from ..helpers import alive

PR_SET_CHILD_SUBREAPER = 36
START_LIMIT = 10.0  # seconds; it takes 30 ms


@pytest.fixture(scope="session")
def redis_socket():
    """Path of the UNIX socket of a redis-server that stores nothing and listens nowhere else."""
    program = shutil.which("redis-server")
    if program is None and os.environ.get("CI") == "true":
        pytest.fail("redis-server is missing; CI has to install it")
    if program is None:
        pytest.skip("redis-server is not in PATH")
    # Not below tmp_path: the path of a socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="redis-") as place:
        path = os.path.join(place, "s")
        arguments = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        with subprocess.Popen(
            [program, *arguments, "--dir", place],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server:
            try:
                _wait_for(path)
                yield path
            finally:
                server.terminate()


@pytest.fixture
def subreaper():
    """Orphans become children of this process, as in the daemon; nobody else may reap them."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    # What a failed test has left behind must not fail the next one.
    for pid in alive():
        os.kill(pid, signal.SIGKILL)
    for program in processes._running.values():
        program._popen.wait()
    processes._running.clear()


def _wait_for(path):
    end = time.monotonic() + START_LIMIT
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        if time.monotonic() > end:
            pytest.fail(f"redis-server did not come up within {START_LIMIT:g} s")
        time.sleep(0.005)
