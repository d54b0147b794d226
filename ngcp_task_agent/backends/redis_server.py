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
from redis.exceptions import RedisError

from ..errors import BackendError
from ..options import Options

CLIENT_NAME = "ngcp-task-agent"
URL_FORMS = "redis://[USER:PASSWORD@]HOST[:PORT], rediss://… or unix://PATH"
CONNECT_TIMEOUT = 4.0  # seconds for the connection and the greeting
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
        self._kwargs["client_name"] = options.text("client_name", CLIENT_NAME)
        if re.search(r"\s", self._kwargs["client_name"]):
            options.problem("client_name", repr(self._kwargs["client_name"]), "no blanks")
        if not options.problems:
            self._try_to_build(options)

    def __str__(self) -> str:
        if "path" in self._kwargs:
            return f"unix:{self._kwargs['path']}"
        return f"{self._kwargs['host']}:{self._kwargs['port']}"

    @property
    def local(self) -> bool:
        """Whether it is reached by loopback or a UNIX socket."""
        if "path" in self._kwargs:
            return True
        host = self._kwargs["host"].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host in ("localhost", "localhost.localdomain", "ip6-localhost")

    def connection(self) -> AbstractConnection:
        """A new connection, not yet connected; it neither retries nor waits by itself.

        Raises:
            BackendError: The password file cannot be read.
        """
        return self._kind(**self._connection_kwargs())

    def commands(self) -> Redis:
        """A new client with a pool, not yet connected; it does not retry by itself.

        Raises:
            BackendError: The password file cannot be read.
        """
        pool = ConnectionPool(connection_class=self._kind, **self._connection_kwargs())
        return Redis.from_pool(pool)

    def _connection_kwargs(self) -> dict[str, Any]:
        kwargs = dict(self._kwargs)
        if self._password_file:
            kwargs["password"] = self._read_password()
        if self._kind is not UnixDomainSocketConnection:
            kwargs |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
        return kwargs | {
            "protocol": 2,
            "db": 0,
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }

    def _try_to_build(self, options: Options) -> None:
        """A URL may hold parameters that the library does not take."""
        try:
            self.connection()
        except (TypeError, ValueError):
            options.problem("url", "parameters that are not understood", URL_FORMS)
        except (BackendError, RedisError):
            pass  # told when it is needed: a password file may come later

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
        path = options.text("password_file")
        credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
        path = path.replace("$CREDENTIALS_DIRECTORY", credentials)
        self._password_file = os.path.join(options.base, path) if path else ""
        if self._password_file and not os.access(self._password_file, os.R_OK):
            options.problem("password_file", f"no readable {self._password_file}", "a file")

    def _read_password(self) -> str:
        # Read for each connection: a password that has been changed is picked up.
        try:
            return Path(self._password_file).read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as exc:
            raise BackendError(f"{self._password_file}: {exc}") from exc

    def _read_tls(self, options: Options) -> None:
        wanted = options.flag("tls") or options.flag("ssl")
        files = {
            "ssl_ca_certs": options.text("tls_ca_file"),
            "ssl_certfile": options.text("tls_cert_file"),
            "ssl_keyfile": options.text("tls_key_file"),
        }
        verify = options.flag("tls_verify", True)
        if wanted and self._kind is Connection:
            self._kind = SSLConnection
        if self._kind is not SSLConnection:
            return
        for key, path in files.items():
            if path:
                self._kwargs[key] = os.path.join(options.base, path)
                if not os.access(self._kwargs[key], os.R_OK):
                    where = key.replace("ssl_", "tls_").replace("certs", "file")
                    options.problem(where, f"no readable {path}", "a PEM file")
        if not verify:
            self._kwargs |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        elif "ssl_cert_reqs" not in self._kwargs:
            self._kwargs |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        self._kwargs.setdefault("ssl_min_version", ssl.TLSVersion.TLSv1_2)
