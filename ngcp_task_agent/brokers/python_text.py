"""
What a function says, on its way to the client and to the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from ..errors import BrokerError
from ..interfaces import Job, Output

MAX_OUTPUT = 64 * 1024 * 1024  # bytes of text
FLOOD_SHOWN = 256 * 1024  # bytes of more than that which are sent with the error
LINE_SHOWN = 2000  # characters of a line in the log
QUOTED = 500  # characters of a line in a reason
EVERY = 0.05  # seconds between two reads of what is printed
READ_SIZE = 64 * 1024  # bytes at a time: what prints more has to wait
BURST = 200  # lines a worker may print at once; what is more is counted
LINES = 100  # lines a second

log = logging.getLogger(__name__)


class Answer:
    """The text of an answer that grows piece by piece.

    Args:
        output: Where it goes.
        most: Bytes; beyond, the job fails.
    """

    def __init__(self, output: Output, most: int) -> None:
        self._output = output
        self._most = most
        self._size = 0

    async def write(self, piece: bytes) -> None:
        """Add *piece*; waits for a client that reads along.

        Raises:
            BrokerError: It is too much.
        """
        self._size += len(piece)
        if self._size > self._most:
            self._output.cut(FLOOD_SHOWN)
            raise BrokerError(f"more than {self._most} bytes of output (max_output)")
        await self._output.write(piece)


def log_failure(job: Job, output: Output, callable_: str, traceback: str) -> None:
    """The log gets all of it, the client only a reason."""
    log.error("task %s, request %.80r: %s failed", job.task, job.uuid, callable_)
    for line in output.masked(traceback).splitlines():
        log.error("  %s", line)


def log_text(job: Job, output: Output, level: int, text: str) -> None:
    """What a function says by `context.log`."""
    if log.isEnabledFor(level):
        for line in output.masked(text).splitlines():
            log.log(level, "task %s: %s", job.task, line[:LINE_SHOWN])


class Budget:
    """How much a worker may log, or print: `BURST` lines at once, `LINES` a second."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left, self._since, self._refused = float(BURST), self._loop.time(), 0

    @property
    def spent(self) -> bool:
        """Whether nothing may be logged at the moment, as things stood at the last line."""
        return self._left < 1

    def allows(self, task: str) -> bool:
        """Whether *task* may log one more; how many it might not is logged before the next."""
        now = self._loop.time()
        self._left = min(BURST, self._left + (now - self._since) * LINES)
        self._since = now
        if self._left < 1:
            self._refused += 1
            return False
        self._left -= 1
        if self._refused:
            log.warning("task %s: %d lines are left out", task, self._refused)
            self._refused = 0
        return True


class Prints:
    """What a worker process prints, in the log line by line.

    It is read in blocks, each of which is masked before it is cut into lines, and no
    faster than a journal can bear: a flood blocks on its pipe.

    Args:
        budget: How much of it.

    Attributes:
        theirs: The end that the process writes to; to be closed here once it has it.
        last: The last line of this job, to be quoted in a reason; empty if there is none.
    """

    def __init__(self, budget: Budget) -> None:
        self._loop = asyncio.get_running_loop()
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._held = b""  # a line that has not ended yet
        self._too_long = False  # and of which nothing is held any more
        self._timer: asyncio.TimerHandle | None = None
        self._budget = budget
        self._task = ""
        self._masked: Callable[[str], str] = str
        self.last = ""
        self._loop.add_reader(self._ours, self._on_readable)

    def belong_to(self, job: Job, output: Output) -> None:
        """From now on it is *job* that prints."""
        self.drain()
        self._task, self._masked, self.last = job.task, output.masked, ""

    def drain(self) -> None:
        """Log what has been printed so far."""
        while self._read() == READ_SIZE and not self._budget.spent:
            pass
        self._say(self._held)
        self._held, self._too_long = b"", False

    def close(self) -> None:
        """Read no more."""
        if self._ours < 0:
            return
        self.drain()
        self._loop.remove_reader(self._ours)
        if self._timer is not None:
            self._timer.cancel()
        os.close(self._ours)
        self._ours = -1

    def _on_readable(self) -> None:
        self._loop.remove_reader(self._ours)
        self._timer = self._loop.call_later(EVERY, self._read_on)

    def _read_on(self) -> None:
        self._timer = None
        if self._read() != 0:
            self._loop.add_reader(self._ours, self._on_readable)

    def _read(self) -> int:
        """Read one block, log its lines; its size, 0 at the end, -1 if there is none."""
        if self._ours < 0:
            return 0
        try:
            piece = os.read(self._ours, READ_SIZE)
        except BlockingIOError:
            return -1
        lines, newline, rest = (self._held + piece).rpartition(b"\n")
        if newline:
            self._say(lines)
            self._too_long = False
        if self._too_long or len(rest) > READ_SIZE:
            # Half of what is to be hidden could stand at its end.
            rest, self._too_long = b"(a very long line)", True
        self._held = rest
        return len(piece)

    def _say(self, block: bytes) -> None:
        for line in self._masked(block.decode("utf-8", "replace")).splitlines():
            if line.strip():
                if self._budget.allows(self._task):
                    log.info("task %s: %s", self._task, line[:LINE_SHOWN])
                self.last = line.strip()[:QUOTED]
