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
        """Listen on *channel*; returns when the server has confirmed it."""
        connection = self._connected(self._listening)
        try:
            await connection.send_command("SUBSCRIBE", channel, check_health=False)
            await connection.read_response()
        except (RedisError, OSError) as exc:
            raise self._error(exc) from exc

    async def unsubscribe(self, channel: str) -> None:
        """Listen no more; what still arrives on it is passed over."""
        connection = self._connected(self._listening)
        with suppress(RedisError, OSError):
            await connection.send_command("UNSUBSCRIBE", channel, check_health=False)

    async def publish(self, channel: str, payload: bytes) -> int | None:
        """Publish; how many received it."""
        connection = self._connected(self._publishing)
        try:
            await connection.send_command("PUBLISH", channel, payload, check_health=False)
            receivers: int = await connection.read_response()
        except (RedisError, OSError) as exc:
            raise self._error(exc) from exc
        return receivers

    async def receive(self) -> bytes:
        """The next message."""
        connection = self._connected(self._listening)
        try:
            while True:
                message = await connection.read_response(disconnect_on_error=False)
                if message[0] == b"message":
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

    def _connected(self, connection: AbstractConnection | None) -> AbstractConnection:
        if connection is None:
            raise BackendError(f"redis {self._server}: not connected")
        return connection

    def _error(self, exc: Exception) -> BackendError:
        return BackendError(f"redis {self._server}: {' '.join(str(exc).split()) or 'timed out'}")
