"""
The journal's file: which requests were begun, and how they ended. SQLite, one process.

`Ledger` is used by one thread at a time; it waits for the disk. A statement is one step
of SQLite for as many rows as there are, since a thread lets go of the interpreter around
each step and has to queue for it afterwards. `Reader` looks one request up, beside it.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import JournalError
from .records import RUNNING, Key, Record, Row, Unfinished, from_row
from .seen import Seen

BUSY = 1.0  # seconds to wait for somebody who reads the file with other tools
BROKEN = 3  # damaged files that are kept beside the new one
WAL = 8 * 1024 * 1024  # bytes of write-ahead log that stay on disk when it is not in use
CACHE = 8 * 1024  # KiB of pages kept in memory
ROWS = 128  # rows of a statement; for less it is a half, a quarter... of that
STEP = 500  # old rows deleted at a time: about 5 ms

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

_COLUMNS = (
    "src, uuid, task, backend, address, stream, node, attempt, durable, accepted, "
    "status, reason, payload, owed, touched"
)
_WIDTH = 15
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PASSING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}

log = logging.getLogger(__name__)


class Ledger:
    """The file at *path*, its directory and its lock.

    Args:
        path: The file, for example ``/var/lib/ngcp-task-agent/journal.db``.
        sync: ``normal``: what is recorded survives this process; ``full``: also the
            machine's sudden end, at the price of one fsync for each `write`.

    Attributes:
        entries: Rows in the file.
        opened: How often a file was opened; another one may have begun since.
    """

    def __init__(self, path: str, sync: str) -> None:
        self.entries = 0
        self.opened = 0
        self._path = path
        self._sync = sync
        self._lock = -1
        self._db: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def open(self) -> None:
        """Make or take over the file.

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
        except (sqlite3.Error, OSError) as exc:
            self._disconnect()
            raise JournalError(_text(exc)) from exc
        except JournalError:
            self._disconnect()
            raise

    def left(self) -> list[Unfinished]:
        """What is to be answered yet, oldest first.

        Raises:
            JournalError: It cannot be read.
        """
        rows = self._guarded(
            lambda: self._rows(f"SELECT {_COLUMNS} FROM jobs WHERE owed ORDER BY id")
        )
        return [
            Unfinished(record.entry, None if record.outcome is RUNNING else record.outcome)
            for record in map(from_row, rows)
        ]

    def seen(self) -> Seen:
        """The keys of all rows.

        Raises:
            JournalError: They cannot be read.
        """
        seen = Seen()

        def look() -> None:
            assert self._db is not None
            for key in self._db.execute("SELECT src, uuid FROM jobs"):
                seen.add(key)

        self._guarded(look)
        return seen

    def write(self, rows: Sequence[Row], gone: Sequence[Key] = ()) -> None:
        """Store *rows*, each in place of what there was of its request, and forget what is *gone*.

        Raises:
            JournalError: Nothing of it is stored.
        """
        self._guarded(lambda: self._write(rows, gone))

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

        def step() -> int:
            gone = self._delete_older(time.time() - max_age)
            return gone + (self._delete_oldest() if self.size() > max_size else 0)

        return bool(self._guarded(step))

    def size(self) -> int:
        """Bytes of the file that hold something."""
        pages, free, each = (
            self._value(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * each)

    def replace(self, why: str) -> None:
        """A reader has found the file damaged: move it aside; `open` begins a new one."""
        if self._db is not None:
            self._put_aside(sqlite3.DatabaseError(why))

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
            self._path, timeout=BUSY, isolation_level=None, cached_statements=64,
            check_same_thread=False,  # the journal sees to it that there is one at a time
        )  # fmt: skip
        version = self._value("PRAGMA user_version")
        if version > len(SCHEMA):
            raise JournalError(
                f"{self._path} is of a newer release (schema {version}; this one knows "
                f"{len(SCHEMA)}): install that release, or move the file away"
            )
        for pragma in ("journal_mode = WAL", f"synchronous = {self._sync}",
                       f"journal_size_limit = {WAL}", f"cache_size = -{CACHE}"):  # fmt: skip
            db.execute(f"PRAGMA {pragma}").fetchall()
        if version < len(SCHEMA):
            steps = "".join(SCHEMA[version:])
            db.executescript(f"BEGIN; {steps} PRAGMA user_version = {len(SCHEMA)}; COMMIT")
        self.entries = self._value("SELECT count(*) FROM jobs")
        self.opened += 1

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

    def _guarded(self, step: Callable[[], Any]) -> Any:
        if self._db is None:
            raise JournalError("not open")
        try:
            return step()
        except (sqlite3.Error, OverflowError) as exc:
            self._failed(exc)
            raise JournalError(_text(exc)) from exc

    def _failed(self, error: Exception) -> None:
        """Roll back; what may be the file's fault is opened anew before the next write."""
        assert self._db is not None
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            error = error if _code(error) in _DAMAGED else sqlite3.OperationalError("no rollback")
        if _code(error) in _DAMAGED:
            self._put_aside(error)
        elif _code(error) not in _PASSING:
            self._disconnect()

    def _put_aside(self, error: Exception) -> None:
        try:
            self._move_aside(error)
        except OSError as exc:
            log.error("journal: %s cannot be moved aside: %s", self._path, exc.strerror)
            self._disconnect()

    def _move_aside(self, error: Exception) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()
        aside = f"{self._path}.broken-{int(time.time())}"
        log.error("journal: %s is damaged (%s): moved to %s, a new one is begun; what was "
                  "recorded there is not known any more", self._path, error, aside)  # fmt: skip
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

    def _write(self, rows: Sequence[Row], gone: Sequence[Key]) -> None:
        before = self.entries
        self._execute("BEGIN IMMEDIATE")
        try:
            for key in gone:
                self._delete("src = ? AND uuid = ?", key)
            highest = self._highest()
            for piece in _pieces(rows):
                values: list[Any] = []
                for row in piece:
                    values += row
                self._execute(_upsert(len(piece)), values)
            self.entries += self._highest() - highest  # ids are given one by one
            self._execute("COMMIT")
        except Exception:
            self.entries = before
            raise

    def _highest(self) -> int:
        return int(self._value("SELECT coalesce(max(id), 0) FROM jobs"))

    def _delete_older(self, since: float) -> int:
        # Also what a claim holds and never came back: somebody else has long had it.
        rows = self._rows("SELECT id, touched, status, durable FROM jobs ORDER BY id LIMIT ?",
                          (STEP,))  # fmt: skip
        return self._delete_numbers(
            [row[0] for row in rows if row[1] < since and (row[2] or row[3])]
        )

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

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        assert self._db is not None
        return self._db.execute(sql, values).rowcount

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        assert self._db is not None
        return self._db.execute(sql, values).fetchall()

    def _value(self, sql: str) -> Any:
        return self._rows(sql)[0][0]


class Reader:
    """Looks into the file at *path* while a `Ledger` writes it; waits for nobody.

    Raises:
        JournalError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.is_damaged = False
        try:
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
            self._db.execute("PRAGMA query_only = 1")
            self.find(("", ""))  # from now on all that it needs is open
        except sqlite3.Error as exc:
            raise JournalError(_text(exc)) from exc
        except JournalError:
            if not self.is_damaged:
                self._db.close()
                raise

    def find(self, key: Key) -> Record | None:
        """What is stored of the request; None if it was never here.

        Raises:
            JournalError: Nobody knows; see `is_damaged`.
        """
        try:
            row = self._db.execute(_FIND, key).fetchone()
        except sqlite3.Error as exc:
            self.is_damaged = _code(exc) in _DAMAGED
            raise JournalError(_text(exc)) from exc
        return None if row is None else from_row(row)

    def close(self) -> None:
        self._db.close()


_FIND = f"SELECT {_COLUMNS} FROM jobs WHERE src = ? AND uuid = ?"


@functools.cache
def _upsert(count: int) -> str:
    row = f"({', '.join('?' * _WIDTH)})"
    kept = ("owed", "attempt", "durable", "accepted", "status", "touched", "reason", "payload",
            "task", "backend", "address", "stream", "node")  # fmt: skip
    return (
        f"INSERT INTO jobs ({_COLUMNS}) VALUES {', '.join([row] * count)} "
        "ON CONFLICT (src, uuid) DO UPDATE SET "
        + ", ".join(f"{column} = excluded.{column}" for column in kept)
    )


def _pieces(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """*rows* in pieces of few different lengths, for each of which a statement is kept."""
    start, length = 0, ROWS
    while start < len(rows):
        while length > len(rows) - start:
            length //= 2
        yield rows[start : start + length]
        start += length


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
