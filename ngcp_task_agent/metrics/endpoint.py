"""
HTTP, as little of it as monitoring needs: one GET, one answer, and the connection ends.

Written by hand on asyncio's streams, because what matters here is what is refused, and
no library has those limits together: a time for the whole of a connection, bytes for the
whole of a request, a number of connections. aiohttp's server part, which is at hand, has
none of the first and the last, costs 16 MiB, and a traceback in the log for each bad
request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

from ..listening import Listening

LARGEST = 8192  # bytes of a request, its headers included
LONGEST = 10.0  # seconds from a connection to its end, whatever it does
MOST = 32  # connections at once; one more ends the oldest
PROBE = 1.0  # seconds for the owner of a socket to be there
TEXT = "text/plain; charset=utf-8"
REASONS = {status.value: status.phrase for status in HTTPStatus}

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What is sent back.

    Attributes:
        status: HTTP's, for example 200.
        body: All of it.
        kind: The content type.
    """

    status: int
    body: bytes
    kind: str = TEXT


class Endpoint:
    """Listens at one place.

    Args:
        answers: What is asked for each path, for example ``/livez``.
    """

    def __init__(self, answers: dict[str, Callable[[], Awaitable[Answer]]]) -> None:
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first
        self._path = ""
        self._inode = 0

    async def open(self, where: Listening) -> None:
        """Listen.

        Raises:
            OSError: The place is taken, or may not be had.
        """
        if where.path:
            await self._open_path(where)
        else:
            self._server = await asyncio.start_server(
                self._serve, where.host, where.port, limit=LARGEST
            )

    async def close(self) -> None:
        """Listen no more; who is being answered is cut off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._remove_path()
        serving = list(self._open)
        for task in serving:
            self._cut(task)
        if serving:
            await asyncio.wait(serving)

    async def _open_path(self, where: Listening) -> None:
        os.makedirs(os.path.dirname(where.path), mode=0o755, exist_ok=True)
        await asyncio.to_thread(_check_free, where.path)
        before = os.umask(0o777)  # nobody gets in before the mode is right
        try:
            self._server = await asyncio.start_unix_server(self._serve, where.path, limit=LARGEST)
        finally:
            os.umask(before)
        self._path, self._inode = where.path, os.lstat(where.path).st_ino
        try:
            os.chown(where.path, -1, where.group)
            os.chmod(where.path, where.mode)
        except OSError:
            await self.close()
            raise

    def _remove_path(self) -> None:
        """Somebody else may have taken the path over: that one stays."""
        with suppress(OSError):
            if self._path and os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self._path = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MOST:
            self._cut(next(iter(self._open)))
        self._open[task] = writer
        try:
            async with asyncio.timeout(LONGEST):
                await self._exchange(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # what it has not read by now it never gets
        except Exception:
            log.exception("monitoring: a request could not be answered")
            writer.transport.abort()
        finally:
            self._open.pop(task, None)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Only then `drain` waits until all has left, and a timeout can end it.
        writer.transport.set_write_buffer_limits(0)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            writer.write(_encode(_error(431), True))
        else:
            method, path, fault = _request_line(head)
            answer = _error(fault) if fault else await self._answer(path)
            writer.write(_encode(answer, method != b"HEAD"))
        await writer.drain()

    async def _answer(self, path: str) -> Answer:
        answer = self._answers.get(path)
        if answer is None:
            return Answer(404, f"known are {', '.join(self._answers)}\n".encode())
        try:
            return await answer()
        except Exception:
            # A bug, and one answer; whoever asks again and again does not fill the log.
            log.exception("monitoring: %s could not be answered", path)
            return _error(500)

    def _cut(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task).transport.abort()
        task.cancel()


def _request_line(head: bytes) -> tuple[bytes, str, int]:
    """Method, path without a query, and the status of what is wrong with it, or 0."""
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return b"", "", 400
    method, target, _ = words
    if method not in (b"GET", b"HEAD"):
        return method, "", 405
    return method, target.partition(b"?")[0].decode("latin-1"), 0


def _error(status: int) -> Answer:
    return Answer(status, f"{REASONS[status]}\n".encode())


def _encode(answer: Answer, with_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {REASONS[answer.status]}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if answer.status == 405:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head + answer.body if with_body else head


def _check_free(path: str) -> None:
    """Whether *path* may be taken: asyncio itself replaces any socket, also of one who lives.

    Raises:
        OSError: Somebody listens there, or it is no socket.
    """
    try:
        found = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise FileExistsError(f"{path} is there, and no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # its owner has died
        except TimeoutError:
            raise OSError(f"{path} is in use") from None
        else:
            raise OSError(f"{path} is in use")
