"""Processes that the benchmark starts, each of them stopped by the one who started it.

Knows no Redis, no agent and no measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

CHECKOUT = Path(__file__).resolve().parent.parent
STOP_WITHIN = 15.0  # seconds between SIGTERM and SIGKILL; the agent's own grace is 10
LOG_TAIL = 1500  # characters of a dead process's output that an error quotes
# Descriptors and variables of a supervisor are not for our children: the daemon
# would tell the wrong one that it is ready, and wake up to feed its watchdog.
SUPERVISOR = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class BenchmarkError(Exception):
    """A figure cannot be taken; the text says why."""


class Process:
    """A child process that ends with its ``with`` block.

    Args:
        argv: The program and its arguments.
        log: File that takes what it prints, quoted when it dies early.
        cwd: Its directory, for example the temporary one.
        env: Variables to add to the benchmark's own.
        pipes: Whether standard input and output are pipes to the benchmark.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        cwd: Path = CHECKOUT,
        env: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> None:
        self.name = Path(argv[0]).name if argv[0] != sys.executable else argv[2]
        self._log = log
        inherited = {key: value for key, value in os.environ.items() if key not in SUPERVISOR}
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**inherited, **(env or {})},
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                # Ctrl-C is for the benchmark, which then stops its children itself.
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def ask(self, line: str) -> str:
        """Write *line* to the process and return the line that it answers.

        Raises:
            BenchmarkError: It has ended instead.
        """
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
            answer = self._popen.stdout.readline()
        except OSError:
            answer = b""
        if not answer:
            self._popen.wait(STOP_WITHIN)
            self.check_alive()
        return answer.decode()

    def check_alive(self) -> None:
        """Raise `BenchmarkError`, with the end of its output, when the process has ended."""
        status = self._popen.poll()
        if status is not None:
            raise BenchmarkError(f"{self.name} ended with status {status}: {self.output()}")

    def output(self) -> str:
        """The end of what it has printed."""
        return self._log.read_text(errors="replace")[-LOG_TAIL:].strip() or "it printed nothing"

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL after `STOP_WITHIN` seconds."""
        self._popen.terminate()
        try:
            self._popen.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            _close(pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def floor(name: str, log: Path, *args: str, pipes: bool = False) -> Process:
    """Start the module *name* of `benchmarks.floors` in a process of its own."""
    return Process([sys.executable, "-m", f"benchmarks.floors.{name}", *args], log, pipes=pipes)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except OSError:  # it died with a line unread
            pass
