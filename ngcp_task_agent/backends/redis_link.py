"""
A client's way to the agents by Redis: one connection listens, another publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from ..errors import BackendError
from ..options import Options
from .redis_server import RedisServer
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
        """Publish; how many received it."""
        try:
            self._publishing = await self._at_home(self._publishing, channel)
            receivers: int = await ask(
                self._publishing, self._sharded + "PUBLISH", channel, payload
            )
        except (RedisError, OSError, TimeoutError) as exc:
            raise self._error(exc) from exc
        return receivers

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
        if not self._sharded:
            return connection
        await hang_up(connection)
        return await self._server.connect(channel)

    def _connected(self, connection: AbstractConnection | None) -> AbstractConnection:
        if connection is None:
            raise BackendError(f"redis {self._server}: not connected")
        return connection

    def _error(self, exc: Exception) -> BackendError:
        return BackendError(f"redis {self._server}: {' '.join(str(exc).split()) or 'timed out'}")
