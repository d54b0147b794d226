"""
Reads a feedback stream, entry by entry, for a client that may have been away.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from ..errors import BackendError
from .redis_server import ELSEWHERE, pause

COUNT = 16  # entries read at once; each may be of some MiB
BLOCK = 5.0  # seconds that the server waits for an entry, at most
READ_TIMEOUT = 10.0  # seconds for the server to answer
_CURSOR = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")


class Lost(BackendError):
    """What stood after the cursor is not there any more."""


class FeedbackReader:
    """Goes on from its cursor, over lost connections.

    Args:
        connect: Makes an open connection.
        stream: The key.
        cursor: The entry after which it begins, such as ``1700000000000-0``; "0" for all.

    Raises:
        BackendError: *cursor* is none.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[AbstractConnection]], stream: str, cursor: str = "0"
    ) -> None:
        if not _CURSOR.fullmatch(cursor):
            raise BackendError(f"cursor {cursor!r}; expected an entry's id, such as 1700000000-0")
        self._connect = connect
        self._stream = stream
        self._cursor = cursor
        self._connection: AbstractConnection | None = None
        self._entries: deque[tuple[str, bytes]] = deque()
        self._failures = 0
        self._begun = False

    async def next(self, seconds: float) -> tuple[str, bytes] | None:
        """The next response.

        Args:
            seconds: How long it may be waited for.

        Returns:
            The entry's id, which is the cursor to go on from, and the response; None where
            none came in time.

        Raises:
            Lost: There were entries after the cursor that are gone.
            BackendError: The server refuses.
        """
        now = asyncio.get_running_loop().time
        end = now() + seconds
        while not self._entries:
            try:
                async with asyncio.timeout(READ_TIMEOUT):
                    await self._read()
                self._failures = 0
                if not self._entries and now() < end:
                    await self._wait(min(BLOCK, end - now()))
            except (RedisError, OSError, TimeoutError, BackendError) as exc:
                await self._recover(exc, end - now())
            if not self._entries and now() >= end:
                return None
        return self._entries.popleft()

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await connection.disconnect(nowait=True)

    async def _recover(self, exc: Exception, left: float) -> None:
        await self.close()
        if isinstance(exc, BackendError):
            raise exc
        passing = isinstance(exc, (RedisConnectionError, *ELSEWHERE))
        passing = passing or str(exc).startswith("UNBLOCKED")
        refused = isinstance(exc, ResponseError) and not passing
        if isinstance(exc, AuthenticationError) or refused:
            raise BackendError(f"{self._stream}: {exc}") from exc
        self._failures += 1
        await asyncio.sleep(max(0.0, min(left, pause(self._failures))))

    async def _ask(self, *commands: tuple[Any, ...]) -> Any:
        """The reply to the last of *commands*."""
        if self._connection is None:
            self._connection = await self._connect()
        connection = self._connection
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands[:-1]:
            await connection.read_response()
        return await connection.read_response()

    async def _read(self) -> None:
        # In one step with what has been trimmed: between two, more could be.
        info, found = await self._ask(
            ("MULTI",),
            ("XINFO", "STREAM", self._stream),
            ("XREAD", "COUNT", COUNT, "STREAMS", self._stream, self._cursor),
            ("EXEC",),
        )
        if isinstance(found, ResponseError):
            raise found
        self._check(info)
        for entry, fields in found[0][1] if found else ():
            self._cursor = entry.decode()
            pairs = dict(zip(fields[::2], fields[1::2], strict=False))
            self._entries.append((self._cursor, pairs.get(b"response", b"")))

    async def _wait(self, seconds: float) -> None:
        """Until there is an entry to read; it is not taken from here."""
        milliseconds = max(1, int(seconds * 1000))
        words = ("COUNT", 1, "BLOCK", milliseconds, "STREAMS", self._stream, self._cursor)
        async with asyncio.timeout(seconds + READ_TIMEOUT):
            await self._ask(("XREAD", *words))

    def _check(self, info: Any) -> None:
        began, self._begun = self._begun, True
        if isinstance(info, ResponseError):  # there is no such key
            if self._cursor != "0" and not began:
                raise Lost(f"{self._stream}: it has expired, or has never been")
            return
        about = dict(zip(info[::2], info[1::2], strict=False))
        first = about.get(b"recorded-first-entry-id")  # from Redis 7.0 on
        if first is None or about[b"entries-added"] == about[b"length"]:
            return
        if _number(self._cursor) < _number(first.decode()):
            raise Lost(f"{self._stream}: responses after {self._cursor} have been trimmed")


def _number(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number or 0)
