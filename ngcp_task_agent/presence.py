"""
The record that an agent keeps where clients can find it: what it says, and how it is read.

Pure: no clock, no network. What is relative to the moment of writing, such as a fact's
age, is told in seconds before it, so that no node's clock matters; the reader knows by
the bus's clock how long ago that was.

The record is a JSON object: ``v`` (1), ``name``, ``aliases``, ``instance``, ``version``,
``uptime`` (s), ``facts`` (key to values, age in s or null, stale), ``tasks`` (name to
digest, backend, control channel), ``running``, ``queued``, and ``left_out``, how many
``facts``, ``tasks`` and ``aliases`` there was no room for. Unknown fields are no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .destination import Node
from .errors import MessageError
from .messages import decode, encode

VERSION = 1
LIMIT = 64 * 1024  # bytes of a record
MAX_ALIASES = 20  # of 255 characters each, of 4 bytes at most
COUNTS = 16  # bytes that the counts of what is left out take at most, beside two zeros


class Fact(NamedTuple):
    """Something true of a node, or that was.

    Attributes:
        values: All of them.
        age: Seconds since it was found out; None for what the administrator has fixed.
        stale: Whether that is too long ago, so that it matches nothing.
    """

    values: frozenset[str]
    age: float | None = None
    stale: bool = False


class TaskMark(NamedTuple):
    """What tells one version of a task from another, and where it listens.

    Attributes:
        digest: Of the task's file, hexadecimal; two files that differ have two.
        backend: The backend's name on that node.
        channel: What it calls the place where requests come in.
    """

    digest: str
    backend: str
    channel: str


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What one agent tells of itself.

    Attributes:
        name: What it signs with; two nodes may have the same.
        instance: Tells them apart: 16 hexadecimal digits, the same from start to start.
        aliases: Further names it answers to.
        version: Of the agent.
        uptime: Seconds since it was started.
        facts: The stale ones, too.
        tasks: By name, without the agent's own.
        running, queued: Jobs that run, and that wait.
        left_out: How many facts, tasks and aliases the record had no room for.
        near: Whether the bus is on its host, so that it answers to ``local``.
        seen: Seconds since it has written that.
        started: When it was started, in unix seconds by the bus's clock.
    """

    name: str
    instance: str
    aliases: tuple[str, ...] = ()
    version: str = ""
    uptime: float = 0.0
    facts: Mapping[str, Fact] = field(default_factory=dict)
    tasks: Mapping[str, TaskMark] = field(default_factory=dict)
    running: int = 0
    queued: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    near: bool = False
    seen: float = 0.0
    started: float = 0.0

    @property
    def node(self) -> Node:
        """As `dst` sees it: what is stale is not there."""
        facts = {key: fact.values for key, fact in self.facts.items() if not fact.stale}
        return Node(self.name, self.aliases, facts)

    def as_json(self) -> dict[str, Any]:
        """For people's programs; facts and tasks as mappings, times in seconds."""
        return {
            "name": self.name,
            "instance": self.instance,
            "aliases": list(self.aliases),
            "version": self.version,
            "started": round(self.started, 3),
            "seen": round(self.seen, 3),
            "running": self.running,
            "queued": self.queued,
            "facts": {
                key: {"values": sorted(values), "age": _rounded(age), "stale": stale}
                for key, (values, age, stale) in sorted(self.facts.items())
            },
            "tasks": {name: mark._asdict() for name, mark in sorted(self.tasks.items())},
            "left_out": dict(self.left_out),
        }


def encode_record(record: NodeRecord, limit: int = LIMIT) -> tuple[bytes, int]:
    """Write a record; the largest facts and tasks are left out where it would be too large.

    Args:
        limit: Bytes, at least some 24 KiB, which names of the longest kind may take.

    Returns:
        JSON of at most *limit* bytes, and how many facts, tasks and aliases are missing.
    """
    facts = {
        # Somebody else's source may give values that are no texts.
        str(key): [sorted(map(str, values)), _rounded(age), stale]
        for key, (values, age, stale) in record.facts.items()
    }
    whole: dict[str, Any] = {
        "v": VERSION,
        "name": record.name,
        "aliases": record.aliases[:MAX_ALIASES],
        "instance": record.instance,
        "version": record.version,
        "uptime": _rounded(record.uptime),
        "facts": facts,
        "tasks": {name: list(mark) for name, mark in record.tasks.items()},
        "running": record.running,
        "queued": record.queued,
        "left_out": {"facts": 0, "tasks": 0, "aliases": len(record.aliases[MAX_ALIASES:])},
    }
    payload = encode(whole)
    if len(payload) > limit:
        _shorten(whole, len(payload) - limit)
        payload = encode(whole)
    return payload, sum(whole["left_out"].values())


def _shorten(whole: dict[str, Any], excess: int) -> None:
    """Leave out as few items as will do: the largest are hardly what a `dst` asks for."""
    items = [
        (len(encode([key, value])) - 1, kind, key)  # [k,v] is one longer than k:v and a comma
        for kind in ("facts", "tasks")
        for key, value in whole[kind].items()
    ]
    excess += COUNTS
    for size, kind, key in sorted(items, reverse=True):
        if excess <= 0:
            return
        del whole[kind][key]
        whole["left_out"][kind] += 1
        excess -= size


def decode_record(
    payload: bytes, seen: float = 0.0, now: float = 0.0, *, near: bool = False
) -> NodeRecord:
    """Read a record.

    Args:
        payload: What `encode_record` gave, of this version or a later one.
        seen: Seconds since it was written; facts have aged by as much.
        now: Unix seconds by the bus's clock.
        near: See `NodeRecord`.

    Raises:
        MessageError: It is none.
    """
    fields = decode(payload)
    try:
        uptime = float(fields["uptime"])
        return NodeRecord(
            name=_text(fields["name"]),
            instance=_text(fields["instance"]),
            aliases=tuple(map(_text, fields["aliases"])),
            version=_text(fields["version"]),
            uptime=uptime + seen,
            facts={key: _fact(value, seen) for key, value in fields["facts"].items()},
            tasks={name: TaskMark(*map(_text, mark)) for name, mark in fields["tasks"].items()},
            running=int(fields["running"]),
            queued=int(fields["queued"]),
            left_out={kind: int(count) for kind, count in fields["left_out"].items()},
            near=near,
            seen=seen,
            started=now - seen - uptime,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise MessageError(f"no record of an agent: {type(exc).__name__}: {exc}") from None


def _fact(value: Any, seen: float) -> Fact:
    values, age, stale = value
    return Fact(
        frozenset(map(_text, values)), None if age is None else float(age) + seen, stale is True
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r:.40}; expected a string")
    return value


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
