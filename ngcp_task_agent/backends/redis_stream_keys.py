"""
What is kept in Redis for a control stream, and how a task names its stream.

The key map, for a control stream S. All keys of one stream are in one slot of a cluster:
TAG is the hash tag that S has, as in ``dns{eu}``, or else S itself. PREFIX is
``ngcp-task-agent:{TAG}:``, followed by ``S:`` where S has a tag of its own.

| key | holds | limit | expiry |
|---|---|---|---|
| S | requests, one field ``request`` each; clients make it | what every group has handled, and no group keeps any longer, is trimmed | none |
| PREFIX``groups`` | hash: our groups, each with when it was last seen (ms), its retention (ms), its expiry (ms), and the last id up to which it has handled everything | one field a group; a node's is removed when it expires | `KEEP` after the last agent |
| PREFIX``epoch`` | hash: ``id``, random, changes when what was in S is gone; ``since``, ms, nothing in S is older; ``added``, how many entries S has had; ``trimmed``, when it last was (ms) | four fields | `KEEP` |
| PREFIX``delayed:``GROUP | sorted set: ids that wait, by when they are due (ms); ``!`` behind the id of one that somebody has let down | one member a pending entry | `KEEP` |
| PREFIX``settled`` | sorted set: which claims were given up, by when (ms), for those who have not heard the reply; ``dead:``ID, what has its letter for all nodes; ``held:``GROUP``:``ID, who holds what was deleted from S lives | `REMEMBER` | `REMEMBER` |
| PREFIX``dead`` | stream: what has failed for good; fields ``request``, ``reason``, ``attempts``, ``group``, ``node``, ``stream``, ``entry``, ``failed`` (unix seconds) | `DEAD_ENTRIES` | none |
| `options.feedback_stream` | stream of the client's: one field ``response`` each | ``feedback_length`` | ``feedback_expiry`` |

Groups of S are ``node:NAME:IDENTITY`` (every node for itself) and ``pool:POOL`` (one member
runs it). Consumers are ``IDENTITY.PROCESS.RANDOM``, one for each start of an agent, the same
with ``!`` behind it, who holds what it has taken over from somebody who let it down, and
`PARKED`, who holds what waits in ``delayed:``: nobody runs it, and nobody is its owner.
"""  # noqa: E501

from __future__ import annotations

import re
from typing import NamedTuple

from ..destination import Destination
from ..errors import MessageError
from ..feedback import FEEDBACK_KEYS, OWN_KEYS
from ..options import Options
from .redis_keys import key_of

SUBSCRIPTION = ("control_stream", "delivery", "pool", "members")  # a task's keys
CONTROL_STREAM = "ngcp-task-agent-stream"
PARKED = "-delayed"  # a consumer's name that no agent has
KEEP = 30 * 86400  # seconds, more than any group is expected to rest
REMEMBER = 600  # seconds; who has lost a reply asks again as soon as Redis answers
DEAD_ENTRIES = 10_000  # about

_STREAM = re.compile(r"[^\s{}]+|[^\s{}]*\{[^\s{}]+\}[^\s{}]*")
_POOL = re.compile(r"[A-Za-z0-9_.:-]+")


class Keys(NamedTuple):
    """The keys of one control stream.

    >>> Keys.of("work").dead
    'ngcp-task-agent:{work}:dead'
    >>> Keys.of("work{eu}").delayed("pool:dns")
    'ngcp-task-agent:{eu}:work{eu}:delayed:pool:dns'
    """

    stream: str
    prefix: str

    @classmethod
    def of(cls, stream: str) -> Keys:
        return cls(stream, key_of(stream, ""))

    @property
    def groups(self) -> str:
        return self.prefix + "groups"

    @property
    def epoch(self) -> str:
        return self.prefix + "epoch"

    @property
    def settled(self) -> str:
        return self.prefix + "settled"

    @property
    def dead(self) -> str:
        return self.prefix + "dead"

    def delayed(self, group: str) -> str:
        return f"{self.prefix}delayed:{group}"


class Subscription(NamedTuple):
    """Where a task's requests come from.

    Attributes:
        stream: Key of the control stream.
        pool: Of which one member runs each request; empty where every node decides.
        members: Which nodes join the pool, as a `dst`; empty for all that have the task.
    """

    stream: str
    pool: str = ""
    members: str = ""

    def __str__(self) -> str:
        """One text, for example ``work`` or ``pool:dns work db*|state=active``."""
        if not self.pool:
            return self.stream
        return " ".join(filter(None, (f"pool:{self.pool}", self.stream, self.members)))

    @classmethod
    def parse(cls, text: str) -> Subscription:
        """Read what `str` gives.

        >>> Subscription.parse("pool:dns work db*")
        Subscription(stream='work', pool='dns', members='db*')
        >>> Subscription.parse("work")
        Subscription(stream='work', pool='', members='')
        """
        if " " not in text:
            return cls(text)
        pool, stream, *members = text.split(" ", 2)
        return cls(stream, pool.removeprefix("pool:"), *members)

    @classmethod
    def read(cls, options: Options) -> Subscription:
        """Read a task's ``backend_options``; mistakes are noted there."""
        stream = options.text("control_stream", CONTROL_STREAM)
        if not _STREAM.fullmatch(stream):
            options.problem(
                "control_stream", repr(stream), "a key without blanks, with one {tag} at most"
            )
        elif stream.startswith((OWN_KEYS, FEEDBACK_KEYS)):
            options.problem(
                "control_stream", repr(stream), f"a key that begins neither with {OWN_KEYS!r} "
                f"nor with {FEEDBACK_KEYS!r}: what is there is not for requests"
            )  # fmt: skip
        delivery = options.text("delivery", "broadcast", choices=("broadcast", "anycast"))
        pool, members = options.text("pool"), options.text("members")
        if delivery != "anycast":
            for key in ("pool", "members"):
                if key in options:
                    options.problem(key, "it without 'delivery: anycast'", "both or neither")
            return cls(stream)
        if not _POOL.fullmatch(pool):
            options.problem(
                "pool", repr(pool) if pool else "nothing", "the pool's name: letters, digits, _.:-"
            )
        return cls(stream, pool, _canonical(members, options))


def _canonical(members: str, options: Options) -> str:
    try:
        return str(Destination.parse(members)) if members else ""
    except MessageError as exc:
        options.problem("members", str(exc).removeprefix("dst: "), "which nodes join, as in dst")
        return ""
