"""
Sends one HTTP request and reads what comes back; the only place that knows aiohttp.

Every exchange has a session and a connection of its own, gone when it ends: nothing is
kept that a later request could find stale, cookies least of all, and neither the
environment's proxies nor ~/.netrc have a say.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from ..errors import BrokerError
from .http_request import Call
from .http_url import origin

MAX_REDIRECTS = 5
MAX_LINE = 8190  # bytes of the status line, and of one header
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
# Debian 13's aiohttp does not count headers while it reads them, newer ones do.
_COUNTS_HEADERS = "max_headers" in inspect.signature(aiohttp.ClientSession).parameters


class Reach(NamedTuple):
    """How servers are reached.

    Attributes:
        unix_socket: Path of the socket, whatever the URL's host; empty for TCP.
        tls: Who is trusted; None for the authorities of the system.
        connect_timeout: Seconds for name, connection and TLS together.
        max_headers: Lines in a response.
        redirects: Whether they are followed.
    """

    unix_socket: str = ""
    tls: ssl.SSLContext | None = None
    connect_timeout: float = 5.0
    max_headers: int = 128
    redirects: bool = False


class Answer:
    """A response whose body has not been read yet.

    Attributes:
        status: For example 200.
        reason: The server's word for it; may be anything.
        location: Where it redirects to; empty for nowhere.
    """

    def __init__(self, response: aiohttp.ClientResponse, host: str) -> None:
        self.status = response.status
        self.reason = response.reason or ""
        self.location = response.headers.get("Location", "")
        self._response = response
        self._host = host

    async def read(self) -> bytes:
        """The next piece of the body, some 128 KiB at most; empty at its end.

        Raises:
            BrokerError: It broke off.
        """
        with _translated(self._host):
            return await self._response.content.readany()


@asynccontextmanager
async def exchange(call: Call, reach: Reach) -> AsyncIterator[Answer]:
    """Send *call* and follow where it leads; the connection is gone on the way out.

    Raises:
        BrokerError: No answer, or none that may be used; says which and whose.
    """
    ending = ExitStack()
    async with _session(reach, ending) as session:
        try:
            yield await _answered(session, call, reach, ending)
        finally:
            # Before the session waits until its connections are closed: one with a
            # server that does not read would stay as it is for ever.
            ending.close()


async def _answered(
    session: aiohttp.ClientSession, call: Call, reach: Reach, ending: ExitStack
) -> Answer:
    for _ in range(MAX_REDIRECTS + 1):
        if reach.unix_socket and call.url.startswith("https:"):
            raise BrokerError("redirected to https, which a UNIX socket has not")
        answer = await _asked(session, call, reach, ending)
        if not (reach.redirects and answer.status in _REDIRECTS and answer.location):
            return answer
        call = call.redirected(answer.status, answer.location)
    raise BrokerError(f"more than {MAX_REDIRECTS} redirects")


async def _asked(
    session: aiohttp.ClientSession, call: Call, reach: Reach, ending: ExitStack
) -> Answer:
    _, host, port = origin(call.url)
    where = reach.unix_socket or f"{host}:{port}"
    with _translated(where, reach.connect_timeout):
        response = await session.request(
            call.method,
            URL(call.url, encoded=True),
            headers=call.headers,
            data=call.body,
            allow_redirects=False,
        )
    ending.callback(response.close)
    if len(response.headers) > reach.max_headers:
        raise BrokerError(f"{where}: more than {reach.max_headers} headers (max_headers)")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BrokerError(f"{where}: an answer in the encoding {encoding[:40]!r}, not asked for")
    return Answer(response, where)


@asynccontextmanager
async def _session(reach: Reach, ending: ExitStack) -> AsyncIterator[aiohttp.ClientSession]:
    limits: dict[str, Any] = {"max_line_size": MAX_LINE, "max_field_size": MAX_LINE}
    if _COUNTS_HEADERS:
        limits["max_headers"] = reach.max_headers
    connector: _Ended
    if reach.unix_socket:
        connector = _Unix(reach.unix_socket, force_close=True, limit=0)
    else:
        connector = _Tcp(
            ssl=reach.tls or True,
            # The system's own way: another one would not know /etc/hosts and nsswitch.conf.
            resolver=aiohttp.ThreadedResolver(),
            use_dns_cache=False,
            force_close=True,
            limit=0,
        )
    connector.ending = ending
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=reach.connect_timeout),
        auto_decompress=False,
        trust_env=False,
        **limits,
    ) as session:
        yield session


class _Ended(aiohttp.BaseConnector):
    """Its connections are cut off, unsent bytes and all, when `ending` is closed."""

    ending: ExitStack

    async def connect(self, *words: Any, **options: Any) -> Connection:
        connection = await super().connect(*words, **options)
        protocol, transport = connection.protocol, connection.transport
        if protocol is not None and transport is not None:
            self.ending.callback(_cut, protocol, transport)
        return connection


def _cut(protocol: ResponseHandler, transport: asyncio.Transport) -> None:
    if protocol.writing_paused:
        # Else somebody is told that the connection is lost who no longer listens, and
        # asyncio makes a complaint of that in the log.
        protocol.resume_writing()
    transport.abort()


class _Tcp(_Ended, aiohttp.TCPConnector):
    pass


class _Unix(_Ended, aiohttp.UnixConnector):
    pass


@contextmanager
def _translated(where: str, limit: float = 0) -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        why = getattr(exc.certificate_error, "verify_message", "") or exc.certificate_error
        raise BrokerError(f"{where}: its certificate is not accepted: {why}") from exc
    except aiohttp.ClientConnectorDNSError as exc:
        why = exc.os_error.strerror or exc.os_error
        raise BrokerError(f"{where}: no address for this name: {why}") from exc
    except aiohttp.ClientConnectorSSLError as exc:
        raise BrokerError(f"{where}: no TLS connection: {_reason(exc.os_error)}") from exc
    except aiohttp.ClientConnectorError as exc:
        raise BrokerError(f"{where}: no connection: {_reason(exc.os_error)}") from exc
    except aiohttp.ServerTimeoutError as exc:
        raise BrokerError(f"{where}: no connection within {limit:g} s (connect_timeout)") from exc
    except aiohttp.ServerDisconnectedError as exc:
        raise BrokerError(f"{where}: it closed the connection without an answer") from exc
    except aiohttp.ClientPayloadError as exc:
        raise BrokerError(f"{where}: the answer broke off before its end") from exc
    except aiohttp.ClientResponseError as exc:
        raise BrokerError(f"{where}: an answer that is no HTTP: {_line(exc.message)}") from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise BrokerError(f"{where}: {type(exc).__name__}: {_line(str(exc))}") from exc


def _reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return _line(exc.reason or str(exc))
    if isinstance(exc, socket.gaierror) or not exc.errno:
        return _line(exc.strerror or str(exc))
    return os.strerror(exc.errno)  # asyncio's own text repeats the address


def _line(text: str) -> str:
    """The first 200 characters on one line."""
    return " ".join(text.split())[:200]
