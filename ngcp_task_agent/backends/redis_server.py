"""
How a Redis server is reached: from options to connections, for daemon and client.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import FullJitterBackoff, NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from ..options import Options
from .redis_connection import sound
from .redis_topology import (
    NODE_TIMEOUT,
    Address,
    Cluster,
    Sentinels,
    addresses,
    hang_up,
    slot_of,
)

CLIENT_NAME = "ngcp-task-agent"
URL_FORMS = "redis://[USER:PASSWORD@]HOST[:PORT], rediss://… or unix://PATH"
CONNECT_TIMEOUT = 4.0  # seconds for the connection and the greeting
REPLY_TIMEOUT = 10.0  # seconds for the answer to a command
# Replies that say: not here, not now. Another server is to be asked.
ELSEWHERE = (MovedError, AskError, ClusterDownError, ReadOnlyError, TryAgainError)
_SENTINEL_LOGIN = ("sentinel_username", "sentinel_password", "sentinel_password_file")
_TLS_FILES = {
    "ssl_ca_certs": "tls_ca_file",
    "ssl_certfile": "tls_cert_file",
    "ssl_keyfile": "tls_key_file",
}
# What a server says, or does, that does not like our certificate or misses one.
_UNWELCOME = re.compile("ALERT_.*(CERT|UNKNOWN_CA)|closed by server|reset by peer|roken pipe")
_BACKOFF = FullJitterBackoff(cap=3.0, base=0.1)  # seconds
_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 30,  # seconds
    socket.TCP_KEEPINTVL: 10,  # seconds
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,  # milliseconds that sent bytes may stay unacknowledged
}
_UNWANTED = ("db", "decode_responses", "health_check_interval", "retry_on_timeout", "protocol",
             "socket_timeout", "socket_connect_timeout", "max_connections", "timeout")  # fmt: skip


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row: jittered, 3 at the most."""
    return _BACKOFF.compute(min(failures, 10))  # it raises 2 to this power


class RedisServer:
    """One server and how to log in.

    Options, all optional: ``host`` (default localhost), ``port`` (6379), or ``url``
    (``redis://``, ``rediss://``, ``unix://``), or ``unix_socket`` (a path);
    ``username``, ``password`` or ``password_file`` (may begin with
    ``$CREDENTIALS_DIRECTORY/``); ``tls`` (yes or no), ``tls_ca_file``,
    ``tls_cert_file``, ``tls_key_file``, ``tls_verify`` (default yes);
    ``client_name``. A ``db`` is read and not used: pub/sub has no databases.

    Instead of one address: ``sentinels`` (a list of ``HOST:PORT``) and ``master``, the
    name they know it by, with ``sentinel_username`` and ``sentinel_password`` or
    ``sentinel_password_file`` where the sentinels want a login of their own; or
    ``cluster``, a list of some of its nodes, and ``sharded``, see `RedisBackend`. TLS is
    the same for all of them.

    Attributes:
        sharded: Whether channels live where their slot is; only a cluster's do.
    """

    def __init__(self, options: Options) -> None:
        host = options.text("host", "localhost")
        port = options.integer("port", 6379, minimum=1, maximum=65535)
        url = options.text("url")
        path = options.text("unix_socket") or options.text("unix_socket_path")
        options.integer("db", 0)
        self._kind: type[AbstractConnection] = Connection
        self._kwargs: dict[str, Any] = {"host": host, "port": port}
        if path:
            self._use_path(path)
        if url:
            self._use_url(url, options)
        self._read_login(options)
        self._read_tls(options)
        self._several = self._read_topology(options)
        self.sharded = options.flag("sharded")
        if self.sharded and not self.is_cluster:
            options.problem("sharded", "it without cluster", "cluster: a list of HOST:PORT")
        self._kwargs["client_name"] = options.text("client_name", CLIENT_NAME)
        if re.search(r"\s", self._kwargs["client_name"]):
            options.problem("client_name", repr(self._kwargs["client_name"]), "no blanks")
        if not options.problems:
            self._try_to_build(options)

    def __str__(self) -> str:
        if self._several is not None:
            return str(self._several)
        if "path" in self._kwargs:
            return f"unix:{self._kwargs['path']}"
        return f"{self._kwargs['host']}:{self._kwargs['port']}"

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on different nodes, so that `commands` has to find them."""
        return isinstance(self._several, Cluster)

    @property
    def local(self) -> bool:
        """Whether it is reached by loopback or a UNIX socket; several servers never are."""
        if self._several is not None:
            return False
        if "path" in self._kwargs:
            return True
        host = self._kwargs["host"].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host in ("localhost", "localhost.localdomain", "ip6-localhost")

    async def connect(self, channel: str = "") -> AbstractConnection:
        """A new connection, open and logged in; it neither retries nor waits by itself.

        Args:
            channel: Of a cluster, the node that has this channel's slot; empty for any node.

        Raises:
            RedisError, OSError, TimeoutError: Not now.
        """
        if isinstance(self._several, Sentinels):
            return await self._several.connect(self._dial)
        if isinstance(self._several, Cluster):
            return await self._several.connect(self._dial, slot_of(channel) if channel else None)
        return await _opened(self._connection())

    def commands(self, reply_timeout: float | None = REPLY_TIMEOUT) -> Redis | RedisCluster:
        """A client with connections of its own, for commands with keys; the caller closes it.

        It finds the master or the shard by itself, tries a command twice at most, and raises
        nothing but the library's errors.

        Args:
            reply_timeout: Seconds for an answer; None for a client whose reads block.
        """
        kwargs = {**self._common(), "socket_timeout": reply_timeout}
        if isinstance(self._several, Sentinels):
            kwargs = self._without_address(kwargs)
            manager = self._several.manager(**kwargs)
            client: Redis = manager.master_for(self._several.master)
            return client
        if isinstance(self._several, Cluster):
            kwargs = self._without_address(kwargs) | {"retry": Retry(_BACKOFF, 2)}
            del kwargs["db"]
            nodes = [ClusterNode(*seed) for seed in self._several.seeds]
            # A shard that waits for its replica must not hold up the others.
            return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **kwargs)
        kwargs["retry"] = Retry(NoBackoff(), 1)  # an idle connection may have been closed
        return Redis.from_pool(ConnectionPool(connection_class=sound(self._kind), **kwargs))

    def follow(self, exc: Exception, connection: AbstractConnection) -> None:
        """Keep in mind whom to ask next: *exc* came from *connection*, or about it."""
        if isinstance(self._several, Cluster):
            moved = isinstance(exc, MovedError | AskError)
            there = exc if moved else connection
            self._several.ask_first(Address(there.host, there.port))  # type: ignore[union-attr]

    def at(self, connection: AbstractConnection) -> str:
        """The server, and which of several it is."""
        if self._several is None:
            return str(self)
        there = Address(connection.host, connection.port)  # type: ignore[attr-defined]
        return f"{self} at {there}"

    def _connection(self, **address: Any) -> AbstractConnection:
        return sound(self._kind)(**(self._common() | address), socket_timeout=None)

    async def _dial(self, address: Address) -> AbstractConnection:
        return await _opened(self._connection(**address._asdict()))

    def _common(self) -> dict[str, Any]:
        """Arguments that every connection to a server takes."""
        kwargs = dict(self._kwargs)
        if self._password_file:
            kwargs.pop("password", None)
            kwargs["credential_provider"] = _Login(kwargs.pop("username", ""), self._password_file)
        if self._kind is not UnixDomainSocketConnection:
            kwargs |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
        return kwargs | {
            "protocol": 2,
            "db": 0,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }

    def _without_address(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The same for clients that find the address, and the kind, by themselves."""
        kept = {key: value for key, value in kwargs.items() if key not in ("host", "port")}
        return kept | {"ssl": True} if self._kind is SSLConnection else kept

    def _try_to_build(self, options: Options) -> None:
        """A URL may hold parameters that the library does not take."""
        try:
            self._connection()
        except (TypeError, ValueError, RedisError):
            options.problem("url", "parameters that are not understood", URL_FORMS)

    def _use_path(self, path: str) -> None:
        self._kind = UnixDomainSocketConnection
        self._kwargs = {"path": path}

    def _use_url(self, url: str, options: Options) -> None:
        try:
            parsed: dict[str, Any] = {**parse_url(url)}
        except (ValueError, AttributeError):
            # Neither the text nor the library's complaint: a password may be in them.
            options.problem("url", "a text that is no such URL", URL_FORMS)
            return
        self._kind = parsed.pop("connection_class", Connection)
        if "path" not in parsed:
            parsed = {"host": "localhost", "port": 6379, **parsed}
        self._kwargs = {key: value for key, value in parsed.items() if key not in _UNWANTED}

    def _read_login(self, options: Options) -> None:
        username, password = options.text("username"), options.text("password")
        if username:
            self._kwargs["username"] = username
        if password:
            self._kwargs["password"] = password
        self._password_file = _password_file(options, "password_file")

    def _read_topology(self, options: Options) -> Sentinels | Cluster | None:
        sentinels, cluster = addresses(options, "sentinels"), addresses(options, "cluster")
        master, login = options.text("master"), self._sentinel_login(options)
        for key in ("host", "port", "url", "unix_socket", "unix_socket_path"):
            if ("sentinels" in options or "cluster" in options) and key in options:
                options.problem(key, "it beside a list of servers", "one of the two")
        if "sentinels" in options and "cluster" in options:
            options.problem("cluster", "it beside sentinels", "one of the two")
        if "sentinels" in options and not master:
            options.problem("master", "nothing", "the name by which the sentinels know it")
        if "sentinels" not in options:
            for key in ("master", *_SENTINEL_LOGIN):
                if key in options:
                    options.problem(key, "it without sentinels", "sentinels: a list of HOST:PORT")
        if sentinels:
            wanted = ("ssl_", "protocol", "retry", "socket_keepalive")
            kwargs = self._without_address(self._common()).items()
            kept = {key: value for key, value in kwargs if key.startswith(wanted) or key == "ssl"}
            limits = {"socket_timeout": NODE_TIMEOUT, "socket_connect_timeout": NODE_TIMEOUT}
            return Sentinels(sentinels, master, kept | limits | login)
        return Cluster(cluster) if cluster else None

    def _sentinel_login(self, options: Options) -> dict[str, Any]:
        username, password = map(options.text, _SENTINEL_LOGIN[:2])
        path = _password_file(options, _SENTINEL_LOGIN[2])
        if path:
            return {"credential_provider": _Login(username, path)}
        return {"username": username, "password": password} if password else {}

    def _read_tls(self, options: Options) -> None:
        wanted = options.flag("tls") or options.flag("ssl")
        files = {key: options.text(name) for key, name in _TLS_FILES.items()}
        verify = options.flag("tls_verify", True)
        if wanted and self._kind is Connection:
            self._kind = SSLConnection
        if self._kind is not SSLConnection:
            return
        for key, path in files.items():
            if path:
                self._kwargs[key] = os.path.join(options.base, path)
                if not os.access(self._kwargs[key], os.R_OK):
                    options.problem(_TLS_FILES[key], f"no readable {path}", "a PEM file")
        if files["ssl_keyfile"] and not files["ssl_certfile"]:
            options.problem("tls_cert_file", "nothing", "the certificate of tls_key_file")
        if not verify:
            self._kwargs |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        elif "ssl_cert_reqs" not in self._kwargs:
            self._kwargs |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        self._kwargs.setdefault("ssl_min_version", ssl.TLSVersion.TLSv1_2)


class _Login(CredentialProvider):
    """Reads the file for each connection: a password that has been changed is picked up."""

    def __init__(self, username: str, path: str) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = Path(self._path).read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as exc:
            # Of the library's kind: it passes through the library.
            raise AuthenticationError(f"{self._path}: {exc}") from exc
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _password_file(options: Options, key: str) -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = options.text(key).replace("$CREDENTIALS_DIRECTORY", credentials)
    path = os.path.join(options.base, path) if path else ""
    if path and not os.access(path, os.R_OK):
        options.problem(key, f"no readable {path}", "a file")
    return path


async def _opened(connection: AbstractConnection) -> AbstractConnection:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException as exc:  # cancelled in the middle of a greeting, too
        await hang_up(connection)
        if isinstance(exc.__cause__, AuthenticationError):
            raise exc.__cause__ from None  # on a UNIX socket the library hides what it is
        if isinstance(connection, SSLConnection) and _UNWELCOME.search(str(exc)):
            raise RedisConnectionError(f"{exc}; does the server know our tls_cert_file?") from exc
        raise
    return connection
