"""
What a client knows of the nodes: from their records, or because they were asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from .client_result import Result
from .errors import MessageError
from .matching import Match, read_match
from .presence import NodeRecord, decode_record

log = logging.getLogger(__name__)


class Kept(Protocol):
    """A record as it was found on the bus; times are seconds by the bus's clock."""

    @property
    def instance(self) -> str: ...
    @property
    def record(self) -> bytes: ...
    @property
    def near(self) -> bool: ...
    @property
    def seen(self) -> float: ...
    @property
    def now(self) -> float: ...


def present(found: Iterable[Kept]) -> list[NodeRecord]:
    """The nodes, by name and instance; what is no record is logged and passed over."""
    records = []
    for kept in found:
        try:
            record = decode_record(kept.record, kept.seen, kept.now, near=kept.near)
        except MessageError as exc:
            log.warning("presence of %.80r: %s", kept.instance, exc)
            continue
        records.append(record)
    return sorted(records, key=lambda record: (record.name, record.instance))


def answered(result: Result) -> list[Match]:
    """What the nodes have said to ``agent.match``, by name and instance."""
    matches = []
    for run in result.runs:
        if run.status == "done":
            try:
                matches.append(read_match(run.data))
            except MessageError as exc:
                log.warning("%.80r: %s", run.src, exc)
    return sorted(matches, key=lambda match: (match.name, match.instance))
