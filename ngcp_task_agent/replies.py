"""
From a job's outcome to numbered responses.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from .live import Piece
from .messages import Encoded, Request, Response, Status, decode, encode
from .output import Collector

CHUNK_SIZE = 4 * 1024 * 1024  # bytes of encoded data in one response
WORST_CHARACTER = 6  # bytes of JSON for one character or byte at most: \u0000
IN_ONE_GO = 1024 * 1024  # bytes; more is looked at outside the event loop


class Replies:
    """Writes the responses to one request.

    Args:
        request: The request being answered.
        node: Name of this host, the same in every response.
        now: Clock, unix seconds; replaced in tests.
        new_uuid: Source of response ids; replaced in tests.
    """

    __slots__ = ("_new_uuid", "_node", "_now", "_request")

    def __init__(
        self,
        request: Request,
        node: str,
        *,
        now: Callable[[], float] = time.time,
        new_uuid: Callable[[], object] = uuid.uuid4,
    ) -> None:
        self._request = request
        self._node = node
        self._now = now
        self._new_uuid = new_uuid

    @property
    def node(self) -> str:
        """The name the responses are signed with."""
        return self._node

    def accepted(self) -> Response:
        """The job will be run."""
        return self._response(Status.ACCEPTED)

    def rejected(self, reason: str) -> Response:
        """The job will not be run."""
        return self._response(Status.REJECTED, reason=reason)

    def failed(self, reason: str) -> Response:
        """The job has ended, and nothing but *reason* is known."""
        return self._response(Status.ERROR, reason=reason)

    def progress(self, piece: Piece) -> Response:
        """The job says something, and the client reads along."""
        extra = {"stream": piece.stream, "seq": piece.seq, "offset": piece.offset}
        return self._response(Status.PROGRESS, data=piece.text, extra=extra)

    async def ended(
        self,
        status: Status,
        reason: str,
        output: Collector,
        chunk_size: int = CHUNK_SIZE,
        extra: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Response]:
        """The job is over: one response, or as many as its data needs.

        Args:
            status: done or error.
            reason: Empty for done, never empty for error.
            output: What the broker had to say.
            chunk_size: Most bytes of encoded data in one response.
            extra: Further fields, for the last response.

        Raises:
            MessageError: The result has no form in JSON.
        """
        if output.has_result:
            ready = isinstance(output.value, Encoded)
            encoded = output.value.text if ready else encode(output.value)
            if len(encoded) <= chunk_size:
                data = decode(encoded) if ready else output.value
                yield self._response(status, reason=reason, data=data, extra=extra)
                return
            whole = encoded.decode("utf-8", "replace")
            blocks: Callable[[], Iterator[str]] = lambda: iter([whole])  # noqa: E731
            encoding = "json"
        else:
            spool = output.text
            if spool.size <= IN_ONE_GO:
                text = spool.text()
                if spool.size * WORST_CHARACTER + 2 <= chunk_size or (
                    encoded_size(text) + 2 <= chunk_size
                ):
                    yield self._response(status, reason=reason, data=text, extra=extra)
                    return
            blocks, encoding = spool.blocks, ""
        # Two passes over the data: the first response has to say how many there are.
        count = await asyncio.to_thread(_count, split_text(blocks(), chunk_size))
        pieces = split_text(blocks(), chunk_size)
        for number in range(1, count + 1):
            piece = await asyncio.to_thread(next, pieces)
            yield self._response(
                status, reason=reason, data=piece, chunk=number, chunks=count, encoding=encoding,
                extra=extra if number == count else None,
            )  # fmt: skip

    def _response(self, status: Status, **fields: Any) -> Response:
        request = self._request
        return Response(
            str(self._new_uuid()),
            request.uuid,
            request.task,
            self._node,
            request.src,
            self._now(),
            status,
            **fields,
        )


def split_text(blocks: Iterable[str], limit: int) -> Iterator[str]:
    """Cut a text into pieces whose JSON form takes at most *limit* bytes each.

    Pieces end at line ends; only a line too long for one piece is cut inside.

    Args:
        blocks: The text, in parts of any size.
        limit: Bytes, at least 16, the quotes included.

    Yields:
        Pieces in order; joined they are the text. At least one, even if empty.

    >>> list(split_text(["one\\ntw", "o\\nthree\\n"], 16))
    ['one\\ntwo\\n', 'three\\n']
    """
    piece: list[str] = []
    room = limit - 2
    count = 0
    for part in _parts(blocks, limit):
        size = encoded_size(part)
        if size > room and piece:
            yield "".join(piece)
            count += 1
            piece, room = [], limit - 2
        piece.append(part)
        room -= size
    if piece or not count:
        yield "".join(piece)


def _parts(blocks: Iterable[str], limit: int) -> Iterator[str]:
    """Cut into whole lines, many at a time, and into parts of a line too long for a piece."""
    step = max(1, (limit - 2) // WORST_CHARACTER // 8)  # characters handled as one
    rest, torn = "", False  # the line at hand; whether its beginning is gone already
    for block in blocks:
        text = rest + block
        end = text.rfind("\n") + 1
        torn = torn and not end
        yield from _lines(text[:end], step, limit)
        rest = text[end:]
        if torn or len(rest) > limit:  # never kept until its end comes
            yield from _slices(rest, step)
            rest, torn = "", True
    yield from _lines(rest, step, limit)


def _lines(text: str, step: int, limit: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + step) + 1
        if end <= start:  # a long line: whole if a piece can hold it, else in parts
            end = text.find("\n", start) + 1 or len(text)
            if encoded_size(text[start:end]) > limit - 2:
                yield from _slices(text[start:end], step)
                start = end
                continue
        yield text[start:end]
        start = end


def _slices(line: str, step: int) -> Iterator[str]:
    for start in range(0, len(line), step):
        yield line[start : start + step]


def encoded_size(text: str) -> int:
    """Bytes *text* takes inside a JSON string, without the quotes."""
    return len(encode(text)) - 2


def _count(pieces: Iterator[str]) -> int:
    return sum(1 for _ in pieces)
