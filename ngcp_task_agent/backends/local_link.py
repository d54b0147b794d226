"""
A client's way to the agent on its own host: a UNIX socket, one JSON message a line.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import NoReturn

from ..errors import BackendError

LONGEST_LINE = 256 * 1024 * 1024  # bytes of one response


class LocalLink:
    """Connects when opened.

    Args:
        path: The agent's socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            BackendError: Nobody listens there, or it is not allowed.
        """
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(
                self._path, limit=LONGEST_LINE
            )
        except OSError as exc:
            raise BackendError(f"{self._path}: {exc.strerror or exc}") from exc

    async def subscribe(self, channel: str) -> None:
        """Answers come to this connection anyway."""

    async def unsubscribe(self, channel: str) -> None:
        """Answers to earlier requests are passed over by their `ref`."""

    async def publish(self, channel: str, payload: bytes) -> int | None:
        """Send; there is one agent at the other end."""
        if self._writer is None:
            raise BackendError(f"{self._path}: not connected")
        try:
            self._writer.write(payload + b"\n")
            await self._writer.drain()
        except OSError as exc:
            raise BackendError(f"{self._path}: {exc.strerror or exc}") from exc
        return 1

    async def time(self) -> float:
        """The agent is on this host: both have one clock."""
        return time.time()

    async def append(self, stream: str, payload: bytes) -> None:
        """There are no streams here."""
        raise self._no_streams()

    async def last(self, stream: str) -> str:
        """There are no streams here."""
        raise self._no_streams()

    def follow(self, stream: str, cursor: str) -> NoReturn:
        """There are no streams here."""
        raise self._no_streams()

    async def present(self) -> NoReturn:
        """Nobody keeps a record here."""
        raise BackendError(f"{self._path}: an agent's socket keeps no presence; say --redis URL")

    async def clustered(self) -> bool:
        """One agent."""
        return False

    def _no_streams(self) -> BackendError:
        return BackendError(f"{self._path}: an agent's socket keeps nothing; streams need Redis")

    async def receive(self) -> bytes:
        """The next message."""
        if self._reader is None:
            raise BackendError(f"{self._path}: not connected")
        try:
            line = await self._reader.readline()
        except (OSError, ValueError) as exc:
            raise BackendError(f"{self._path}: {exc}") from exc
        if not line:
            raise BackendError(f"{self._path}: the agent closed the connection")
        return line

    async def close(self) -> None:
        """Disconnect."""
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None
