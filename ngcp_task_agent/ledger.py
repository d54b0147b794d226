"""
The journal's file: which requests were begun, and how they ended. SQLite, one process.

Knows nothing of threads and event loops: `journal` calls everything here from one thread.
A statement is one step of SQLite for as many rows as there are, since the thread lets
go of the interpreter around each step and has to queue for it afterwards.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .errors import JournalError

PAYLOAD = 64 * 1024  # bytes of an answer that are kept; of a longer one nothing is
BUSY = 1.0  # seconds to wait for somebody who reads the file with other tools
BROKEN = 3  # damaged files that are kept beside the new one
WAL = 8 * 1024 * 1024  # bytes of write-ahead log that stay on disk when it is not in use
LONGEST_WAL = 64 * 1024 * 1024  # bytes of it with which nobody writes until it is emptied
CHECKPOINT = 500  # transactions, of some pages each, after which it is put into the file
CACHE = 8 * 1024  # KiB of pages kept in memory
ROWS = 16  # rows of a statement; of each number up to this one statement is kept prepared
STEP = 500  # old rows deleted at a time: about 5 ms
ANSWERS = 10_000  # ended rows remembered by number until they are `sent`

# The first is version 1 of PRAGMA user_version; a change is a further one.
SCHEMA = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,     -- in the order of their begin
        owed INTEGER NOT NULL,      -- 1: answered at the next start, unless it is sent before
        durable INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        status TEXT NOT NULL DEFAULT '', -- "" while it runs
        touched REAL NOT NULL,      -- unix seconds of its begin, then of its end
        accepted REAL NOT NULL,
        src TEXT NOT NULL, uuid TEXT NOT NULL, task TEXT NOT NULL, backend TEXT NOT NULL,
        address TEXT NOT NULL, stream TEXT NOT NULL, node TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        payload BLOB NOT NULL DEFAULT x'',
        UNIQUE (src, uuid)
    );
    CREATE INDEX owed ON jobs (id) WHERE owed;
    """,
)

_ENTRY = "src, uuid, task, backend, address, stream, node, attempt, durable, accepted"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PASSING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}

log = logging.getLogger(__name__)


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


class Ended(NamedTuple):
    """An end to be recorded; *sent* if the answer has left already."""

    entry: Entry
    outcome: Outcome
    sent: bool = False


Key = tuple[str, str]  # src, uuid
Row = tuple[int, int]  # id, attempt
_Begun = tuple[dict[Key, Row], list[Outcome | None]]
_NOTHING: Mapping[Key, Row] = MappingProxyType({})

RUNS = Outcome("error", "it runs already", b"")
ANOTHER = Outcome("error", "its uuid is that of another request", b"")
UNKNOWN = Outcome("error", "outcome unknown: the agent stopped while it ran", b"")


class Ledger:
    """The file at *path*, its directory and its lock.

    Args:
        path: The file, for example ``/var/lib/ngcp-task-agent/journal.db``.
        sync: ``normal``: what is recorded survives this process; ``full``: also the
            machine's sudden end, at the price of one fsync for each `write`.

    Attributes:
        entries: Rows in the file.
    """

    def __init__(self, path: str, sync: str) -> None:
        self.entries = 0
        self._path = path
        self._sync = sync
        self._lock = -1
        self._db: sqlite3.Connection | None = None
        self._next = 1  # id of the next row
        self._commits = 0  # since the last checkpoint
        self._running: dict[Key, Row] = {}  # of this run: id and attempt
        self._owed: dict[Key, int] = {}  # ended and not yet sent: id
        self._told: set[Key] = set()  # of earlier runs, given out by `open`

    @property
    def is_open(self) -> bool:
        return self._db is not None

    @property
    def running(self) -> int:
        """How many were begun in this run and have not ended."""
        return len(self._running)

    def open(self) -> list[Unfinished]:
        """Make or take over the file; what an earlier run has left, oldest first.

        Raises:
            JournalError: It cannot be had, for the time being.
        """
        try:
            self._claim()
            try:
                self._connect()
            except sqlite3.DatabaseError as exc:
                if _code(exc) not in _DAMAGED:
                    raise
                self._move_aside(exc)
                self._connect()
            return self._left()
        except (sqlite3.Error, OSError) as exc:
            self._disconnect()
            raise JournalError(_text(exc)) from exc
        except JournalError:
            self._disconnect()
            raise

    def write(
        self, begins: Sequence[Entry], ends: Sequence[Ended], sents: Sequence[Entry]
    ) -> list[Outcome | None]:
        """Record all of it, in the order *ends*, *sents*, *begins*.

        Returns:
            For each of *begins* None if it is recorded, or how it has ended before.

        Raises:
            JournalError: None of *begins* is recorded, and perhaps nothing of the others.
        """
        try:
            try:
                return self._write(begins, ends, sents)
            except (sqlite3.IntegrityError, UnicodeError):
                # Somebody repeats himself, or sends what is no text.
                over = [
                    Ended(_cleaned(entry), Outcome(*map(_clean, outcome)), sent)
                    for entry, outcome, sent in ends
                ]
                gone = [_cleaned(entry) for entry in sents]
                return self._write([_cleaned(entry) for entry in begins], over, gone, each=True)
        except (sqlite3.Error, OverflowError) as exc:
            self._failed(exc)
            raise JournalError(_text(exc)) from exc

    def find(self, entry: Entry) -> Outcome | None:
        """How *entry* has ended before, if that can be read now; None if it has not."""
        if self._db is None:
            return None
        try:
            return self._decide(_cleaned(entry))
        except sqlite3.Error:
            return None

    def forget(self, entry: Entry) -> None:
        """Nobody has waited for the begin of *entry*: its job was not started.

        Raises:
            JournalError: It stays recorded as running.
        """
        if self._db is None:
            return
        entry = _cleaned(entry)
        try:
            if self._delete(
                "src = ? AND uuid = ? AND status = '' AND attempt = ?",
                (entry.src, entry.uuid, entry.attempt),
            ):
                self._running.pop(entry[:2], None)
        except sqlite3.Error as exc:
            self._failed(exc)
            raise JournalError(_text(exc)) from exc

    def shrink(self, max_age: float, max_size: int) -> bool:
        """Delete some of the oldest that have ended, if they are too old or too much.

        Args:
            max_age: Seconds since their end.
            max_size: Bytes of the file without its free pages.

        Returns:
            Whether there was something, so that there may be more.

        Raises:
            JournalError: It cannot be written.
        """
        if self._db is None:
            return False
        try:
            gone = self._delete_older(time.time() - max_age)
            if self.size() > max_size:
                gone += self._delete_oldest()
        except sqlite3.Error as exc:
            self._failed(exc)
            raise JournalError(_text(exc)) from exc
        return gone > 0

    def size(self) -> int:
        """Bytes of the file that hold something."""
        pages, free, each = (
            self._value(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * each)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the write-ahead log is worth being put into the file."""
        return self._db is not None and self._commits > CHECKPOINT

    @property
    def must_truncate(self) -> bool:
        """Whether it has grown all the same."""
        with suppress(OSError):
            return self._db is not None and os.path.getsize(self._path + "-wal") > LONGEST_WAL
        return False

    def checkpoint(self, truncate: bool = False) -> None:
        """Put the write-ahead log into the file; waits for the disk.

        By a connection of its own, so that others may write meanwhile; not so with
        *truncate*.
        """
        self._commits = 0
        mode = "TRUNCATE" if truncate else "PASSIVE"
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY)) as db:
                db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as exc:
            log.debug("journal: no checkpoint: %s", exc)

    def close(self) -> None:
        """Let go of the file; what is recorded stays."""
        self._disconnect()

    # The file

    def _claim(self) -> None:
        """Make the directory, and be the only agent there."""
        place = os.path.dirname(self._path)
        if place and not os.path.isdir(place):
            os.makedirs(place, 0o700, exist_ok=True)
            os.chmod(place, 0o700)
        if self._lock < 0:
            self._lock = _private(self._path + ".lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError("in use by another agent") from None

    def _connect(self) -> None:
        os.close(_private(self._path))
        db = self._db = sqlite3.connect(
            self._path, timeout=BUSY, isolation_level=None, cached_statements=256,
            check_same_thread=False,  # the journal sees to it that there is one at a time
        )  # fmt: skip
        version = self._value("PRAGMA user_version")
        if version > len(SCHEMA):
            raise JournalError(
                f"{self._path} is of a newer release (schema {version}; this one knows "
                f"{len(SCHEMA)}): install that release, or move the file away"
            )
        for pragma in ("journal_mode = WAL", f"synchronous = {self._sync}",
                       f"journal_size_limit = {WAL}", f"cache_size = -{CACHE}",
                       "wal_autocheckpoint = 0"):  # fmt: skip
            db.execute(f"PRAGMA {pragma}").fetchall()
        if version < len(SCHEMA):
            steps = "".join(SCHEMA[version:])
            db.executescript(f"BEGIN; {steps} PRAGMA user_version = {len(SCHEMA)}; COMMIT")
        self._next = self._value("SELECT coalesce(max(id), 0) + 1 FROM jobs")
        self.entries = self._value("SELECT count(*) FROM jobs")

    def _left(self) -> list[Unfinished]:
        rows = self._rows(
            f"SELECT status, reason, payload, {_ENTRY} FROM jobs WHERE owed ORDER BY id"
        )
        mine = self._running.keys() | self._owed.keys() | self._told
        found = [
            Unfinished(entry, Outcome(*row[:3]) if row[0] else None)
            for row in rows
            if (entry := _entry(row[3:]))[:2] not in mine
        ]
        self._told.update(left.entry[:2] for left in found)
        return found

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error as exc:
                log.warning("journal: %s: not closed cleanly: %s", self._path, exc)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _failed(self, error: Exception) -> None:
        """Roll back; what may be the file's fault is opened anew before the next write."""
        assert self._db is not None
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            error = error if _code(error) in _DAMAGED else sqlite3.OperationalError("no rollback")
        if _code(error) in _DAMAGED:
            try:
                self._move_aside(error)
            except OSError as exc:
                log.error("journal: %s cannot be moved aside: %s", self._path, exc.strerror)
                self._disconnect()
        elif _code(error) not in _PASSING:
            self._disconnect()

    def _move_aside(self, error: Exception) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()
        aside = f"{self._path}.broken-{int(time.time())}"
        log.error("journal: %s is damaged (%s): moved to %s, a new one is begun; what was "
                  "recorded there is not known any more", self._path, error, aside)  # fmt: skip
        self._running.clear()
        self._owed.clear()
        os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            try:
                os.replace(self._path + suffix, aside + suffix)
            except FileNotFoundError:
                pass
        old = {str(path)[: len(aside)] for path in Path(aside).parent.glob(
            Path(self._path).name + ".broken-*")}  # fmt: skip
        for name in sorted(old)[:-BROKEN]:
            for suffix in ("", "-wal", "-shm"):
                Path(name + suffix).unlink(missing_ok=True)

    # Its rows

    def _write(
        self,
        begins: Sequence[Entry],
        ends: Sequence[Ended],
        sents: Sequence[Entry],
        each: bool = False,
    ) -> list[Outcome | None]:
        if self._db is None:
            raise JournalError("not open")
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        before = self.entries
        # One statement is a transaction by itself, and needs no BEGIN and COMMIT.
        parts = (begins, ends, sents)
        several = each or sum(map(bool, parts)) > 1 or max(map(len, parts)) > ROWS
        try:
            if several:
                self._db.execute("BEGIN IMMEDIATE")
            self._end(ends, each)
            self._sent(sents)
            new, found = self._begin_each(begins) if each else self._begin(begins)
            if several:
                self._db.execute("COMMIT")
        except Exception:
            self.entries = before
            raise
        self._commits += 1
        self._remember(new, ends, sents)
        return found

    def _remember(
        self, new: Mapping[Key, Row], ends: Sequence[Ended], sents: Sequence[Entry]
    ) -> None:
        for entry, _, sent in ends:
            key = entry[:2]
            number, attempt = self._running.get(key, (0, 0))
            if attempt == entry.attempt:
                del self._running[key]
                if not (sent or entry.durable):
                    self._owed[key] = number
        self._running.update(new)
        for entry in sents:
            self._owed.pop(entry[:2], None)
        while len(self._owed) > ANSWERS:
            del self._owed[next(iter(self._owed))]

    def _begin(self, begins: Sequence[Entry]) -> _Begun:
        """Insert rows that nobody has heard of; IntegrityError if somebody has."""
        now = time.time()
        values: list[Any] = []
        new: dict[Key, Row] = {}
        number = self._next
        for src, uuid, task, backend, address, stream, node, attempt, durable, accepted in begins:
            values += (number, not durable, durable, attempt, now, accepted,
                       src, uuid, task, backend, address, stream, node)  # fmt: skip
            new[src, uuid] = (number, attempt)
            number += 1
        self._next = number  # a number that is not used in the end is no loss
        self._many(_insert, 13, values)
        self.entries += len(begins)
        return new, [None] * len(begins)

    def _begin_each(self, begins: Sequence[Entry]) -> _Begun:
        new: dict[Key, Row] = {}
        found: list[Outcome | None] = []
        for entry in begins:
            before = self._decide(entry, new)
            if before is None:
                self._delete("src = ? AND uuid = ?", entry[:2])
                new |= self._begin([entry])[0]
            found.append(before)
        return new, found

    def _decide(self, entry: Entry, new: Mapping[Key, Row] = _NOTHING) -> Outcome | None:
        """None if *entry* is to be recorded and run; else how it has ended."""
        key = entry[:2]
        rows = self._rows(
            "SELECT status, reason, payload, attempt, task FROM jobs WHERE src = ? AND uuid = ?",
            key,
        )
        if not rows:
            return None
        status, reason, payload, attempt, task = rows[0]
        if task != entry.task:
            return ANOTHER
        if status in ("done", "error"):
            return Outcome(status, reason, payload)
        if status == "" and (key in new or key in self._running):
            return None if entry.durable and entry.attempt > attempt else RUNS
        if entry.durable:
            return None
        return UNKNOWN if status == "" else RUNS

    def _end(self, ends: Sequence[Ended], each: bool) -> None:
        now = time.time()
        values: list[Any] = []
        for end in ends:
            entry, (status, reason, payload), sent = end
            number, attempt = self._running.get(entry[:2], (0, 0))
            if each or attempt != entry.attempt:
                self._end_other(end, now)
            else:
                owed = not (entry.durable or sent)
                values += (number, entry.uuid, owed, status, now, reason, payload)
        if self._many(_update, 7, values) < len(values) // 7:
            raise sqlite3.IntegrityError("rows are gone or given twice")

    def _end_other(self, end: Ended, now: float) -> None:
        """Record an end also where its begin could not be; a later attempt's row stays."""
        entry, outcome, sent = end
        key = entry[:2]
        if not self._rows("SELECT 1 FROM jobs WHERE src = ? AND uuid = ?", key):
            self._begin([entry])
        self._execute(
            "UPDATE jobs SET owed = ?, status = ?, reason = ?, payload = ?, touched = ? "
            "WHERE src = ? AND uuid = ? AND attempt <= ?",
            (not (entry.durable or sent), *outcome, now, *key, entry.attempt),
        )

    def _sent(self, sents: Sequence[Entry]) -> None:
        values: list[Any] = []
        for entry in sents:
            number = self._owed.get(entry[:2], 0)
            if number:
                values += (number, entry.uuid)
            else:
                self._execute(
                    "UPDATE jobs SET owed = 0 WHERE src = ? AND uuid = ? AND status <> ''",
                    entry[:2],
                )
        self._many(_answer, 2, values)

    def _delete_older(self, since: float) -> int:
        # Also what a claim holds and never came back: somebody else has long had it.
        rows = self._rows("SELECT id, touched, status, durable, src, uuid FROM jobs "
                          "ORDER BY id LIMIT ?", (STEP,))  # fmt: skip
        old = [row[0] for row in rows if row[1] < since and (row[2] or row[3])
               and row[4:] not in self._running]  # fmt: skip
        return self._delete_numbers(old)

    def _delete_oldest(self) -> int:
        rows = self._rows("SELECT id FROM jobs WHERE status <> '' ORDER BY id LIMIT ?", (STEP,))
        return self._delete_numbers([row[0] for row in rows])

    def _delete_numbers(self, numbers: Sequence[int]) -> int:
        places = ",".join(map(str, numbers))
        return self._delete(f"id IN ({places})") if numbers else 0

    def _delete(self, where: str, values: Sequence[Any] = ()) -> int:
        gone = self._execute(f"DELETE FROM jobs WHERE {where}", values)
        self.entries -= gone
        return gone

    def _many(self, statement: Callable[[int], str], width: int, values: Sequence[Any]) -> int:
        """Run *statement* on rows of *width* values, `ROWS` at a time; how many it met."""
        met, piece = 0, ROWS * width
        for start in range(0, len(values), piece):
            some = values[start : start + piece]
            met += self._execute(statement(len(some) // width), some)
        return met

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        assert self._db is not None
        return self._db.execute(sql, values).rowcount

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        assert self._db is not None
        return self._db.execute(sql, values).fetchall()

    def _value(self, sql: str) -> Any:
        return self._rows(sql)[0][0]


@functools.cache
def _insert(count: int) -> str:
    return (
        "INSERT INTO jobs (id, owed, durable, attempt, touched, accepted, "
        "src, uuid, task, backend, address, stream, node) VALUES " + _values(count, 13)
    )


@functools.cache
def _update(count: int) -> str:
    return (
        "UPDATE jobs SET owed = column3, status = column4, touched = column5, reason = column6, "
        f"payload = column7 FROM (VALUES {_values(count, 7)}) "
        "WHERE id = column1 AND uuid = column2"
    )


@functools.cache
def _answer(count: int) -> str:
    return (
        f"UPDATE jobs SET owed = 0 FROM (VALUES {_values(count, 2)}) "
        "WHERE id = column1 AND uuid = column2"
    )


def _values(count: int, width: int) -> str:
    row = f"({', '.join('?' * width)})"
    return ", ".join([row] * count)


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(*row)._replace(durable=bool(row[8]))


def _clean(value: Any) -> Any:
    """*value* such that it can be stored: half a character is spelt out."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _cleaned(entry: Entry) -> Entry:
    return Entry(*map(_clean, entry))


def _code(error: Exception) -> int:
    # The low byte; the rest says in more detail where it happened.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
    return str(error)


def _private(path: str) -> int:
    """Open a file that only its owner reads and writes, whatever the umask."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(number, 0o600)
    return number
