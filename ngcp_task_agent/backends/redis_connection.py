"""
Connections that raise nothing but the library's errors, whatever loop they run on.

uvloop answers who writes to a transport that is gone with `RuntimeError`, where asyncio
has `ConnectionResetError`. The library passes that on; nobody here would take it for a
connection that is lost, and what has to go on after one would end.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError


class _Told(AbstractConnection):
    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as exc:
            raise gone(exc) from exc


class _Tcp(_Told, Connection):
    pass


class _Tls(_Told, SSLConnection):
    pass


class _Unix(_Told, UnixDomainSocketConnection):
    pass


_KINDS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def sound(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """A class like *kind*, one of the library's three, that keeps to the library's errors."""
    return _KINDS[kind]


def gone(exc: RuntimeError) -> RedisConnectionError:
    """What *exc*, raised by a loop, means."""
    return RedisConnectionError(f"connection lost: {exc}")
