"""
Facts of a node in an NGCP installation: its name, `role`, `status`, `type` and `state`.

Where they stand there: the name in /etc/ngcp_hostname; the roles in
/etc/default/ngcp-roles; roles and status of every host in
/etc/ngcp-config/network.yml; the state is the exit code of ngcp-check-active.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import yamlfile
from ..interfaces import Reading
from ..options import Options
from .probe import probe
from .text import parse_assignments

NAME_FILE = "etc/ngcp_hostname"
ROLES_FILE = "etc/default/ngcp-roles"
NETWORK_FILE = "etc/ngcp-config/network.yml"
NAME_PROGRAM = "usr/sbin/ngcp-hostname"
STATE_PROGRAM = "usr/sbin/ngcp-check-active"
_ROLE = "NGCP_IS_"

log = logging.getLogger(__name__)


def is_ngcp(root: str = "/") -> bool:
    """Whether this host is part of an NGCP installation."""
    return any(Path(root, name).exists() for name in (NAME_FILE, ROLES_FILE, NETWORK_FILE))


class NgcpSource:
    """Options: ``interval`` (seconds, default 2: how late a failover is noticed),
    ``max_age`` (seconds, default 10), ``timeout`` (seconds for ngcp-check-active,
    default 5) and ``root`` (default ``/``)."""

    def __init__(self, options: Options) -> None:
        self._root = Path(options.text("root", "/"))
        self.interval = options.seconds("interval", 2.0, minimum=0.1)
        self.max_age = options.seconds("max_age", 10.0)
        self._timeout = options.seconds("timeout", 5.0)
        self._name = ""
        self._troubles: list[str] = []
        self._parsed: dict[Path, tuple[int, Any]] = {}  # by file: change time, content

    def __str__(self) -> str:
        return "ngcp"

    async def read(self) -> Reading:
        """Each part by itself: one that cannot be read leaves the others alone."""
        facts: dict[str, frozenset[str]] = {}
        troubles = []
        try:
            self._name = self._name or await self._read_name()
        except (OSError, ValueError) as exc:
            troubles.append(str(exc))
        for part in (self._read_roles, self._read_network):
            try:
                facts = {**await asyncio.to_thread(part), **facts}
            except (OSError, ValueError) as exc:
                troubles.append(str(exc))
        try:
            state = await self._read_state()
            facts.update({"state": frozenset((state,))} if state else {})
        except OSError as exc:
            troubles.append(str(exc))
        if troubles != self._troubles:
            self._troubles = troubles
            log.warning("ngcp facts: %s", "; ".join(troubles) or "all readable again")
        return Reading(facts, self._name)

    async def _read_name(self) -> str:
        try:
            name = self._root.joinpath(NAME_FILE).read_text("utf-8").strip()
        except FileNotFoundError:
            name = ""
        program = self._root / NAME_PROGRAM
        if not name and program.exists():
            code, output = await probe([str(program)], self._timeout)
            name = "" if code else output.strip()
        return name

    async def _read_state(self) -> str:
        try:
            code, _ = await probe([str(self._root / STATE_PROGRAM), "-q"], self._timeout)
        except FileNotFoundError:
            return ""
        return "active" if code == 0 else "standby"

    def _read_roles(self) -> dict[str, frozenset[str]]:
        own = self._content(self._root / ROLES_FILE, parse_assignments)
        roles = frozenset(
            key[len(_ROLE) :].lower()
            for key, value in own.items()
            if key.startswith(_ROLE) and value == "yes"
        )
        return _present(role=roles, type=_texts(own.get("NGCP_TYPE")))

    def _read_network(self) -> dict[str, frozenset[str]]:
        host = _host(self._content(self._root / NETWORK_FILE, yamlfile.load), self._name)
        return _present(role=_texts(host.get("role")), status=_texts(host.get("status")))

    def _content(self, path: Path, parse: Any) -> Mapping[str, Any]:
        """The parsed file, read again only when it has changed; empty if there is none."""
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        known, content = self._parsed.get(path, (0, {}))
        if known != changed:
            try:
                content = parse(path.read_text("utf-8"))
            except ValueError as exc:
                raise ValueError(f"{path}: {exc}") from None
            self._parsed[path] = (changed, content)
        return content if isinstance(content, dict) else {}


def _host(network: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """This host's entry; a single-node system calls it ``self``."""
    hosts = network.get("hosts")
    if not isinstance(hosts, dict):
        return {}
    entry = hosts.get(name, hosts.get("self"))
    return entry if isinstance(entry, dict) else {}


def _present(**facts: frozenset[str]) -> dict[str, frozenset[str]]:
    return {key: values for key, values in facts.items() if values}


def _texts(value: Any) -> frozenset[str]:
    values = value if isinstance(value, list) else [value]
    return frozenset(item for item in values if isinstance(item, str) and item)
