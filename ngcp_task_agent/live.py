"""
What a job says while it runs, for a client that reads along (`options.stream`).

A job that says more than may be sent waits: its program blocks on its pipe, and nobody
else notices.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from .messages import encode

INTERVAL = 0.05  # seconds a message takes of its job's time: at most 20 a second
LONGEST = 63 * 1024  # bytes of encoded data in one message; with the rest of it 64 KiB
ROOM = 64 * 1024  # bytes said and not yet sent; then the job waits

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """One message's worth.

    Attributes:
        stream: ``stdout`` or ``stderr``.
        seq: 1, 2, 3, … over both streams.
        offset: Bytes of this stream before it.
        text: Decoded as UTF-8; a character is never torn between two pieces.
    """

    stream: str
    seq: int
    offset: int
    text: str


class Live:
    """Sends pieces as they come, coalesced and paced.

    Args:
        send: Hands over one piece; never waits.
        sent: Waits until what was handed over has left this host.
    """

    def __init__(self, send: Callable[[Piece], None], sent: Callable[[], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._sent = sent
        self._streams = {name: _Stream() for name in ("stdout", "stderr")}
        self._seq = 0
        self._due = 0.0  # loop time of the next message
        self._closed = False
        self._wakeup = asyncio.Event()
        self._room = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def write(self, stream: str, data: bytes) -> None:
        """Send *data* soon; waits while `ROOM` bytes are waiting already."""
        view = memoryview(data)
        while view and not self._closed:
            room = ROOM - self._waiting
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._streams[stream].held += view[:room]
            view = view[room:]
            if self._pump is None:
                self._pump = self._loop.create_task(self._run())
                self._pump.add_done_callback(self._pump_ended)
            self._wakeup.set()

    async def finish(self, last: Mapping[str, bytes]) -> None:
        """Send what is left, and *last* by stream, waiting for nothing but the clock."""
        self._close()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait((self._pump,))
        for name, data in last.items():
            self._streams[name].held += data
        for name, stream in self._streams.items():
            stream.last = True
            while stream.ready:
                await self._pace()
                self._send_piece(name)

    @property
    def _waiting(self) -> int:
        return sum(len(stream.held) for stream in self._streams.values())

    async def _run(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while ready := [name for name, stream in self._streams.items() if stream.ready]:
                await self._pace()
                for name in ready:
                    self._send_piece(name)
                self._room.set()
                # While the bus is away, or slow, it is this job that waits, and no
                # answer of another's that is pushed out of the queue.
                await self._sent()

    async def _pace(self) -> None:
        wait = self._due - self._loop.time()
        if wait > 0:
            await asyncio.sleep(wait)

    def _send_piece(self, name: str) -> None:
        offset, text = self._streams[name].take()
        self._seq += 1
        self._due = max(self._due, self._loop.time()) + INTERVAL
        self._send(Piece(name, self._seq, offset, text))

    def _close(self) -> None:
        self._closed = True
        self._room.set()

    def _pump_ended(self, pump: asyncio.Task[None]) -> None:
        self._close()
        if not pump.cancelled():
            log.critical("live output failed: this is a bug", exc_info=pump.exception())


class _Stream:
    """Bytes on their way; `last` once no more are to come."""

    def __init__(self) -> None:
        self.held = bytearray()
        self.last = False
        self._offset = 0

    @property
    def ready(self) -> bool:
        """Whether there is a whole character, or nothing to wait for."""
        return bool(self.held) and (self.last or _whole(self.held) > 0)

    def take(self) -> tuple[int, str]:
        """The offset and the text of the next piece."""
        size = min(len(self.held), LONGEST)
        while True:
            head = bytes(self.held[:size])
            if size < len(self.held) or not self.last:
                head = head[: _whole(head)] or head
            text = head.decode("utf-8", "replace")
            length = len(encode(text))
            if length <= LONGEST:
                break
            size = min(size - 1, size * LONGEST // length)
        offset = self._offset
        self._offset += len(head)
        del self.held[: len(head)]
        return offset, text


def _whole(data: bytes | bytearray) -> int:
    """Bytes of *data* without an unfinished character at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(bytes(data[-4:]))
    return len(data) - len(decoder.getstate()[0])
