"""
Where monitoring listens: ``metrics`` of agent.yml.
"""

from __future__ import annotations

import grp
import ipaddress
import re
from dataclasses import dataclass
from importlib.util import find_spec

from .errors import Problem
from .options import Options

LIBRARY = "prometheus_client"
MODE = 0o600
EXPECTED = "an address and a port, such as 127.0.0.1:9127, or a socket's path"


@dataclass(frozen=True)
class Listening:
    """A TCP address or a UNIX socket.

    Attributes:
        host: An IP address or localhost; empty for a socket.
        port: From 1 to 65535.
        path: Of the socket, absolute; empty for none.
        mode: Its file mode.
        group: Id of its group; -1 for the daemon's own.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    mode: int = MODE
    group: int = -1

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"


def read_listening(options: Options) -> Listening | None:
    """The section's keys; None where it is not configured. Mistakes are noted in *options*."""
    mode, group = options.octal("mode"), _group(options)
    if not options.fields:
        return None
    address = options.text("address", required=EXPECTED)
    if not address:
        return None
    if address.startswith("/"):
        return Listening(path=address, mode=MODE if mode is None else mode, group=group)
    for key in ("mode", "group"):
        if key in options:
            options.problem(key, "it with an address", "no such key, or a socket's path")
    host, colon, digits = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else 0
    if not colon or not _is_host(host) or not 1 <= number <= 65535:
        options.problem("address", repr(address), EXPECTED)
        return None
    return Listening(host, number)


def missing_library(file: str) -> list[Problem]:
    """What to say of *file* where the library is not installed, which is an optional one.

    No mistake in the file itself: the daemon starts, and works without metrics.
    """
    if find_spec(LIBRARY) is not None:
        return []
    expected = "python3-prometheus-client installed, or pip's ngcp-task-agent[metrics]"
    return [Problem(file, "metrics", f"no Python module {LIBRARY}", expected)]


def _is_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _group(options: Options) -> int:
    name = options.text("group")
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        options.problem("group", repr(name), "a group this host knows")
        return -1
