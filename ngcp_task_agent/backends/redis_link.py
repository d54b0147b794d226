"""
A client's way to the agents by Redis: one connection listens, another publishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from ..errors import BackendError
from ..options import Options
from .redis_feedback import FeedbackReader
from .redis_presence import INDEX, Kept, read_present
from .redis_server import REPLY_TIMEOUT, RedisServer
from .redis_topology import ask, hang_up

CLIENT_NAME = "ngcp-task"


class RedisLink:
    """Connects when opened.

    Args:
        fields: The keys of ``backends/redis.yml``.

    Raises:
        BackendError: A key is wrong.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        options = Options({"client_name": CLIENT_NAME, **fields}, "redis")
        self._server = RedisServer(options)
        if options.problems:
            raise BackendError("; ".join(map(str, options.problems)))
        self._sharded = "S" if self._server.sharded else ""
        self._listening: AbstractConnection | None = None
        self._publishing: AbstractConnection | None = None
        self._clustered: bool | None = None  # not asked yet

    async def open(self) -> None:
        """Connect.

        Raises:
            BackendError: The server is not reached.
        """
        try:
            self._listening = await self._server.connect()
            self._publishing = await self._server.connect()
        except (RedisError, OSError, TimeoutError) as exc:
            await self.close()
            raise self._error(exc) from exc

    async def subscribe(self, channel: str) -> None:
        """Listen on *channel*; returns when the server has confirmed it.

        Sharded, on this one only: the next may be at home on another node.
        """
        try:
            self._listening = await self._at_home(self._listening, channel)
            await self._listening.send_command(
                self._sharded + "SUBSCRIBE", channel, check_health=False
            )
            await self._listening.read_response()
        except (RedisError, OSError, TimeoutError) as exc:
            raise self._error(exc) from exc

    async def unsubscribe(self, channel: str) -> None:
        """Listen no more; what still arrives on it is passed over."""
        connection = self._connected(self._listening)
        with suppress(RedisError, OSError):
            await connection.send_command(
                self._sharded + "UNSUBSCRIBE", channel, check_health=False
            )

    async def publish(self, channel: str, payload: bytes) -> int | None:
        """Publish; how many received it.

        None where no server knows: in a cluster each counts those that listen on itself.
        """
        counted = bool(self._sharded) or not await self._is_one_of_many()
        try:
            self._publishing = await self._at_home(self._publishing, channel)
            receivers: int = await ask(
                self._publishing, self._sharded + "PUBLISH", channel, payload
            )
        except (RedisError, OSError, TimeoutError) as exc:
            raise self._error(exc) from exc
        return receivers if counted else None

    async def append(self, stream: str, payload: bytes) -> None:
        """Post a durable request to a control stream."""
        await self._ask(stream, "XADD", stream, "*", "request", payload)

    async def time(self) -> float:
        """What time it is for all on the bus, in unix seconds."""
        seconds, microseconds = await self._ask("", "TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def clustered(self) -> bool:
        """Whether the server is one of a cluster."""
        if self._server.is_cluster:
            return True
        about = await self._ask("", "HELLO")
        return dict(zip(about[::2], about[1::2], strict=False)).get(b"mode") == b"cluster"

    async def last(self, stream: str) -> str:
        """The id of the last entry in *stream*; "0" if there is none."""
        found = await self._ask(stream, "XREVRANGE", stream, "+", "-", "COUNT", "1")
        return found[0][0].decode() if found else "0"

    def follow(self, stream: str, cursor: str) -> FeedbackReader:
        """Read *stream* from *cursor* on, by a connection of its own."""
        return FeedbackReader(lambda: self._server.connect(stream), stream, cursor)

    async def _ask(self, key: str, *words: str | bytes) -> Any:
        """Ask the server, of a cluster the one that has *key*."""
        try:
            if key and self._server.is_cluster:
                self._publishing = await self._moved(self._publishing, key)
            return await ask(self._connected(self._publishing), *words)
        except (RedisError, OSError, TimeoutError) as exc:
            raise self._error(exc) from exc

    async def present(self) -> list[Kept]:
        """The records that agents keep of themselves."""
        try:
            if self._server.is_cluster:
                self._publishing = await self._moved(self._publishing, INDEX)
            async with asyncio.timeout(REPLY_TIMEOUT):
                return await read_present(self._connected(self._publishing))
        except (RedisError, OSError, TimeoutError) as exc:
            raise self._error(exc) from exc

    async def _is_one_of_many(self) -> bool:
        """Whether the server is one of a cluster, as far as it tells."""
        if self._clustered is None:
            try:
                self._clustered = await self.clustered()
            except BackendError as exc:
                if not isinstance(exc.__cause__, ResponseError):
                    raise
                self._clustered = False
        return self._clustered

    async def receive(self) -> bytes:
        """The next message."""
        connection = self._connected(self._listening)
        try:
            while True:
                message = await connection.read_response(disconnect_on_error=False)
                if message[0] in (b"message", b"smessage"):
                    payload: bytes = message[2]
                    return payload
        except (RedisError, OSError) as exc:
            raise self._error(exc) from exc

    async def close(self) -> None:
        """Disconnect."""
        for connection in (self._listening, self._publishing):
            if connection is not None:
                with suppress(RedisError, OSError, TimeoutError):
                    await connection.disconnect()
        self._listening = self._publishing = None

    async def _at_home(
        self, connection: AbstractConnection | None, channel: str
    ) -> AbstractConnection:
        """*connection*, or a new one to the node that has the slot of *channel*."""
        connection = self._connected(connection)
        return await self._moved(connection, channel) if self._sharded else connection

    async def _moved(self, connection: AbstractConnection | None, key: str) -> AbstractConnection:
        await hang_up(self._connected(connection))
        return await self._server.connect(key)

    def _connected(self, connection: AbstractConnection | None) -> AbstractConnection:
        if connection is None:
            raise BackendError(f"redis {self._server}: not connected")
        return connection

    def _error(self, exc: Exception) -> BackendError:
        return BackendError(f"redis {self._server}: {' '.join(str(exc).split()) or 'timed out'}")
