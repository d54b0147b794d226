"""
The ends of a program's output that the daemon reads.
"""

from __future__ import annotations

import asyncio
import math
import os
from contextlib import ExitStack, suppress

READ_SIZE = 256 * 1024  # bytes
DRAIN = 0.25  # seconds for the output of children to end after the program itself has


class Pipe:
    """stdout, read by whoever waits for it: a slow reader slows the program down."""

    def __init__(self, loop: asyncio.AbstractEventLoop, undo: ExitStack, theirs: ExitStack) -> None:
        self._loop = loop
        self._fd, self.theirs = _pipe(undo, theirs)
        self.inode = os.fstat(self._fd).st_ino
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = math.inf  # loop time; then only what is in the pipe is read

    async def read(self) -> bytes:
        while self._fd >= 0:
            last = self._loop.time() >= self._deadline
            try:
                piece = os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                if last:
                    break
                await self._readable()
                continue
            if last:  # a pipe that is always full would otherwise never end
                self.close()
            return piece
        return b""

    async def _readable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_reader(self._fd, self._wake)
        timer = (
            self._loop.call_at(self._deadline, self._wake) if self._deadline < math.inf else None
        )
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def program_ended(self) -> None:
        self._deadline = self._loop.time() + DRAIN
        self._wake()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._wake()


class Tail:
    """stderr, read as it comes; the last `KEEP` bytes are kept."""

    KEEP = 64 * 1024 + 1  # bytes; one more than is shown tells that there was more

    def __init__(self, loop: asyncio.AbstractEventLoop, undo: ExitStack, theirs: ExitStack) -> None:
        self._loop = loop
        self._fd, self.theirs = _pipe(undo, theirs)
        undo.callback(loop.remove_reader, self._fd)
        self._data = b""
        loop.add_reader(self._fd, self._read)

    @property
    def data(self) -> bytes:
        """What has been written so far, the end of it."""
        self._read()
        return self._data

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while self._fd >= 0:
                piece = os.read(self._fd, READ_SIZE)
                if not piece:
                    self.close()
                self._data = (self._data + piece)[-self.KEEP :]
                if len(piece) < READ_SIZE:
                    break

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _pipe(undo: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """A pipe: our end does not block; the other is for the program alone."""
    ours, other = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, ours)
    theirs.callback(os.close, other)
    os.set_blocking(ours, False)
    return ours, other
