"""
A job's text until the job is over: in memory, then on disk.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from .errors import BrokerError

MEMORY = 1024 * 1024  # bytes of one job's output kept in memory; more goes to disk
BLOCK = 256 * 1024  # bytes read back at a time


class Spool:
    """A text of any length, as bytes of UTF-8.

    Args:
        spool_dir: Where the unlinked temporary file is made that takes more than
            `MEMORY` bytes; empty for the system's default. It is no place in
            memory, unlike /tmp on many systems.

    Attributes:
        size: Bytes so far.
        taken: Bytes ever taken, also what was cut or discarded since.
        closed: Whether nothing more is taken.
    """

    __slots__ = (
        "_file", "_guard", "_held", "_pieces", "_spool_dir", "_spooled", "_turn", "closed",
        "taken",
    )  # fmt: skip

    def __init__(self, spool_dir: str = "") -> None:
        self.closed = False
        self.taken = 0
        self._spool_dir = spool_dir
        self._pieces: list[bytes] = []
        self._held = 0  # bytes in _pieces
        self._spooled = 0  # bytes in _file
        self._file: IO[bytes] | None = None
        self._turn = asyncio.Lock()
        self._guard = threading.Lock()

    @property
    def size(self) -> int:
        return self._spooled + self._held

    async def write(self, piece: bytes) -> None:
        """Add *piece*; ignored once `closed`.

        Raises:
            BrokerError: The disk is full.
        """
        if self.closed:
            return
        self._pieces.append(piece)
        self.taken += len(piece)
        self._held += len(piece)
        if self._held > MEMORY:
            await self._spool()

    def cut(self, size: int) -> None:
        """Keep the first *size* bytes only, at most `MEMORY`."""
        if self._file is not None:
            first = os.pread(self._file.fileno(), size, 0)
            self._file.close()
            self._file, self._spooled = None, 0
        else:
            first = b"".join(self._pieces)
        self._pieces = [first[:size]]
        self._held = len(self._pieces[0])

    def text(self) -> str:
        """All text at once."""
        if self._file is None:
            return b"".join(self._pieces).decode("utf-8", "replace")
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        """All text, about `BLOCK` characters at a time; may be called again."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for start in range(0, self._spooled, BLOCK):
            assert self._file is not None
            length = min(BLOCK, self._spooled - start)
            yield decoder.decode(os.pread(self._file.fileno(), length, start))
        yield decoder.decode(b"".join(self._pieces), final=True)

    def discard(self) -> None:
        """Give back memory and disk."""
        self.closed = True
        self._pieces = []
        self._held = self._spooled = 0
        with self._guard:
            if self._file is not None:
                self._file.close()
                self._file = None

    async def _spool(self) -> None:
        async with self._turn:
            count = len(self._pieces)
            data = b"".join(self._pieces)
            try:
                written = await asyncio.to_thread(self._append, data)
            except OSError as exc:
                raise BrokerError(f"the output cannot be kept: {exc.strerror or exc}") from exc
            if written:  # until here a reader sees the pieces; from here the file
                self._spooled += len(data)
                self._held -= len(data)
                del self._pieces[:count]

    def _append(self, data: bytes) -> bool:
        # In a thread: the job may be answered and discarded meanwhile, and the
        # number of a closed file soon belongs to another.
        with self._guard:
            if not self.closed:
                self._write(data)
            return not self.closed

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 (closed by discard)
                dir=self._spool_dir or None, buffering=0
            )
        view = memoryview(data)
        offset = self._spooled
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written
