"""
What is recorded of a request, and what a repeat of it is told.

The journal decides by it, the redo log and the ledger keep it; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

PAYLOAD = 64 * 1024  # bytes of an answer that are kept; of a longer one nothing is


class Entry(NamedTuple):
    """A request as it is recorded before its job starts.

    Attributes:
        src: The client's host name; with *uuid* it tells one request from another.
        uuid: The request's uuid.
        task: Name of the task.
        backend: Name of the backend it came by; empty for none.
        address: Where answers go.
        stream: `options.feedback_stream`, or empty.
        node: The name that answers are signed with.
        attempt: Which try this is, from 1.
        durable: Whether a claim holds it: then whoever holds the claim answers, and
            never the journal at start.
        accepted: When it was accepted, in unix seconds.
    """

    src: str
    uuid: str
    task: str
    backend: str
    address: str
    stream: str
    node: str
    attempt: int = 1
    durable: bool = False
    accepted: float = 0.0

    @property
    def key(self) -> Key:
        return self[:2]


class Outcome(NamedTuple):
    """How a job has ended.

    Attributes:
        status: ``done``, ``error``, or ``again`` where a claim's next attempt is due.
        reason: As in the response; empty for none.
        payload: The encoded last response; empty where it is longer than `PAYLOAD`
            or went in pieces.
    """

    status: str
    reason: str
    payload: bytes


class Unfinished(NamedTuple):
    """What an earlier run of the agent has left behind.

    Attributes:
        outcome: None if it was running; else it has ended, and nobody knows whether
            the answer has left.
    """

    entry: Entry
    outcome: Outcome | None


class Record(NamedTuple):
    """One request as it stands.

    Attributes:
        entry: What it is.
        outcome: How it has ended; `RUNNING` until then.
        owed: Whether it is answered at the next start, unless it is before.
        touched: When it was begun, then when it ended, in unix seconds.
    """

    entry: Entry
    outcome: Outcome
    owed: bool
    touched: float


Key = tuple[str, str]  # src, uuid
Row = list[Any]  # a record as one flat list: src and uuid first, the payload at `PAYLOAD_AT`
PAYLOAD_AT = 12

RUNNING = Outcome("", "", b"")
RUNS = Outcome("error", "it runs already", b"")
ANOTHER = Outcome("error", "its uuid is that of another request", b"")
UNKNOWN = Outcome("error", "outcome unknown: the agent stopped while it ran", b"")


def told(record: Record, entry: Entry, mine: bool) -> Outcome | None:
    """What *entry* is answered with where *record* was here before; None: run it.

    Args:
        mine: Whether *record* was begun in this run of the agent.
    """
    before, outcome = record.entry, record.outcome
    if before.task != entry.task:
        return ANOTHER
    if outcome.status in ("done", "error"):
        return outcome
    if outcome.status == "" and mine:
        return None if entry.durable and entry.attempt > before.attempt else RUNS
    if entry.durable:
        return None
    return UNKNOWN if outcome.status == "" else RUNS


def cleaned(entry: Entry) -> Entry:
    """*entry* such that it can be stored: half a character is spelt out."""
    if "".join(entry[:7]).isascii():
        return entry
    return Entry(*map(_clean, entry))


def clipped(outcome: Outcome) -> Outcome:
    """*outcome* such that it can be stored; a payload that is too long is left out."""
    if len(outcome.payload) > PAYLOAD:
        outcome = outcome._replace(payload=b"")
    if not outcome.reason.isascii():
        outcome = outcome._replace(reason=_clean(outcome.reason))
    return outcome


def to_row(record: Record) -> Row:
    """The fields of its entry and outcome, owed, touched."""
    entry, outcome, owed, touched = record
    return [*entry, *outcome, owed, touched]


def from_row(row: Sequence[Any]) -> Record:
    """The record of `to_row`.

    Raises:
        TypeError, ValueError: *row* is none.
    """
    src, uuid, task, backend, address, stream, node, attempt, durable, accepted = row[:10]
    status, reason, payload, owed, touched = row[10:]
    entry = Entry(src, uuid, task, backend, address, stream, node, attempt, bool(durable), accepted)
    outcome = Outcome(status, reason, payload) if status else RUNNING
    return Record(entry, outcome, bool(owed), touched)


def _clean(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
