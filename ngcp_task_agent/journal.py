"""
What was begun and how it ended, on disk: so that no request runs twice or is forgotten.

    begin, end ──→ redo log (at once) ──→ ledger (a little later, many at a time)

A record is a line of the redo log first: written before a job starts or is answered, it
outlives this process, and costs the event loop some microseconds. A thread puts what has
changed into the ledger, one transaction for all of it, whereupon the lines are dropped;
most requests have ended by then, and are written once. Where records are to survive the
machine's sudden end as well, there is no redo log: each waits for its transaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, ParamSpec, TypeVar

from .errors import JournalError
from .ledger import Ledger, Reader
from .records import (
    PAYLOAD_AT,
    RUNNING,
    Entry,
    Key,
    Outcome,
    Record,
    Row,
    Unfinished,
    cleaned,
    clipped,
    to_row,
    told,
)
from .redo import RedoLog
from .seen import FULL, Seen

__all__ = ["Entry", "Journal", "JournalState", "Outcome", "Unfinished"]

LINGER = 0.1  # seconds that a record waits for company on its way into the ledger
MANY = 4000  # records that need not wait
MUCH = 1024 * 1024  # bytes of their payloads likewise
MOST = 10_000  # records that may wait at all; who brings more waits as well
HEAVIEST = 16 * 1024 * 1024  # bytes of payloads likewise
KEPT = 1000  # ends kept in memory alone, while the disk takes none
RETRY = 1.0  # seconds until what could not be stored is tried again
CHECK = 60.0  # seconds between two looks at age and size, while there is something to write
CHECK_BYTES = 1024 * 1024  # or so much written
ROW = 300  # bytes of a row besides its payload, about
HOLD = 0.05  # seconds that deleting what is old may hold up a transaction

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)


class JournalState(NamedTuple):
    """How the journal is.

    Attributes:
        ok: Whether the last attempt to record something went well.
        text: One line for people.
        failures: Begins and ends that could not be written when they were due.
        entries: Requests on record.
    """

    ok: bool
    text: str
    failures: int
    entries: int


class Journal:
    """The record of requests.

    Args:
        path: The file; its directory is made if need be.
        max_age: Seconds after its end that an entry is kept.
        max_size: Bytes on disk, about; the oldest ended entries make room.
        sync: ``normal``: what is recorded survives the death of this process; ``full``:
            also that of the machine, with one fsync a transaction.

    Attributes:
        on_change: Called in the loop when `state().ok` has changed.
        on_unfinished: Called in the loop with what `open` could not return, because
            the file could only be had later.
    """

    def __init__(
        self,
        path: str,
        *,
        max_age: float = 7 * 86400.0,
        max_size: int = 256 * 1024 * 1024,
        sync: str = "normal",
    ) -> None:
        if sync not in ("normal", "full"):
            raise ValueError(f"sync: found {sync}; expected normal or full")
        self.on_change: Callable[[], None] = lambda: None
        self.on_unfinished: Callable[[list[Unfinished]], None] = lambda found: None
        self._path, self._max_age, self._max_size = path, max_age, max_size
        self._ledger = Ledger(path, sync)
        self._redo = None if sync == "full" else RedoLog(path + ".redo")
        self._reader: Reader | None = None  # there is none until the ledger was opened
        self._read = 0  # which opening of the ledger it belongs to
        self._replayed = False  # whether the redo log of an earlier run is in the ledger
        self._thread = ThreadPoolExecutor(1, "journal")  # all use of the ledger
        self._closed = True
        self._poster: asyncio.Task[None] | None = None
        self._bell = asyncio.Event()  # there is something to store
        self._full = asyncio.Event()  # and it is much
        self._seen = Seen()  # keys that the ledger may have
        self._live: dict[Key, Record] = {}  # what runs, or is not stored yet
        self._dirty: dict[Key, Row | None] = {}  # to be stored; None: to be forgotten
        self._waiting: list[asyncio.Future[None]] = []  # for that
        self._told: set[Key] = set()  # of earlier runs, given out
        self._failures = 0
        self._trouble = ""  # why nothing can be stored in the ledger
        self._refusal = ""  # why nothing can be added to the redo log
        self._written = self._bytes = 0  # since the last look at the size; of what is dirty
        self._checked = 0.0  # monotonic seconds

    async def open(self) -> list[Unfinished]:
        """Start; what an earlier run of the agent has left behind, oldest first.

        Never raises: where the file cannot be had, `state` tells why, `begin` raises, and
        it is tried again with all that is to be recorded.
        """
        self._closed = False
        found: list[Unfinished] = []
        with suppress(JournalError):
            found = await self._take()
        self._poster = asyncio.create_task(self._post_all())
        return found

    async def begin(self, entry: Entry) -> Outcome | None:
        """Record *entry*; returns once that outlives us.

        Returns:
            None: run it. An outcome: the same `src` and `uuid` was here before, and this is
            what it is answered with.

        Raises:
            JournalError: It cannot be recorded.
        """
        if self._closed:
            raise JournalError("the journal is closed")
        try:
            entry = cleaned(entry)
            if not self._is_ready:
                self._late(await self._take())
            if len(self._dirty) >= MOST or self._bytes >= HEAVIEST:
                await self._stored()
            mine = self._live.get(entry.key)
            known = mine or self._find(entry.key)
            answer = None if known is None else told(known, entry, mine is not None)
            if answer is None:
                await self._begin(Record(entry, RUNNING, not entry.durable, time.time()))
        except JournalError:
            self._failures += 1
            raise
        return answer

    async def end(self, entry: Entry, outcome: Outcome) -> None:
        """Record how *entry* has ended; returns once that outlives us, or is counted as failed.

        A payload longer than `PAYLOAD` is left out. The end of an earlier attempt than the
        one on record changes nothing.
        """
        if self._closed:
            return
        entry, outcome = cleaned(entry), clipped(outcome)
        known = self._known(entry)
        if known is not None and known.entry.attempt > entry.attempt:
            return
        kept = entry if known is None else known.entry
        if known is None:
            self._seen.add(entry.key)
        record = Record(kept, outcome, not entry.durable, time.time())
        row = to_row(record)
        try:
            if self._redo is not None:
                self._append(self._redo, row)
        except JournalError:
            self._failures += 1
            self._make_room()
        self._note(record, row)
        if self._redo is None:
            try:
                await self._stored()
            except JournalError:
                self._failures += 1

    def sent(self, entry: Entry) -> None:
        """The answer to *entry*, which has ended, was handed over; waits for nothing."""
        if self._closed or entry.durable:
            return
        record = self._known(cleaned(entry))
        if record is not None and record.outcome is not RUNNING:
            record = record._replace(owed=False)
            self._note(record, to_row(record))

    async def close(self) -> None:
        """Store what waits, and let go of the file."""
        if self._closed:
            return
        self._closed = True
        self._bell.set()
        self._full.set()
        if self._poster is not None:
            await self._poster
        if self._dirty:
            log.error("journal: %d records could not be stored: %s",
                      len(self._dirty), self._trouble)  # fmt: skip
        if self._redo is not None:
            self._redo.close()
            if not self._dirty:
                self._redo.drop()
        await self._in_thread(self._ledger.close)  # from then on another agent may have it
        if self._reader is not None:
            self._reader.close()
        self._thread.shutdown(wait=False)

    def state(self) -> JournalState:
        """How it is now."""
        entries, failures = self._ledger.entries, self._failures
        text = f"journal: {entries} {'entry' if entries == 1 else 'entries'}"
        trouble = self._refusal or self._trouble
        if trouble:
            text = f"journal: not writable: {trouble}"
        if self._closed:
            text = "journal: closed"
        if failures:
            text += f"; {failures} {'record' if failures == 1 else 'records'} lost"
        return JournalState(not self._closed and not trouble, text, failures, entries)

    # What is known, and what is added to it

    @property
    def _is_ready(self) -> bool:
        """Whether a request can be looked up, and recorded."""
        if self._reader is None or self._reader.is_damaged:
            return False
        return self._redo is None or self._redo.is_open

    def _find(self, key: Key) -> Record | None:
        """What the ledger has of a request.

        Raises:
            JournalError: Nobody knows; a damaged ledger is replaced before the next look.
        """
        if key not in self._seen or self._reader is None:
            return None
        try:
            return self._reader.find(key)
        except JournalError as exc:
            if self._reader.is_damaged:
                self._went(str(exc), self._refusal)
                self._bell.set()
            raise

    def _known(self, entry: Entry) -> Record | None:
        if mine := self._live.get(entry.key):
            return mine
        with suppress(JournalError):
            return self._find(entry.key)
        return None

    async def _begin(self, record: Record) -> None:
        self._seen.add(record.entry.key)
        row = to_row(record)
        if self._redo is not None:
            self._append(self._redo, row)
            self._note(record, row)
            return
        self._note(record, row)
        try:
            await self._stored()
        except (JournalError, asyncio.CancelledError):
            # Nobody will run it: recorded as running, it would never end.
            if self._live.get(record.entry.key) is record:
                del self._live[record.entry.key]
                self._dirty[record.entry.key] = None
                self._bell.set()
            raise

    def _append(self, redo: RedoLog, row: Row) -> None:
        try:
            redo.append(row)
        except JournalError as exc:
            self._went(self._trouble, str(exc))
            raise
        if self._refusal:
            self._went(self._trouble, "")

    def _note(self, record: Record, row: Row) -> None:
        """*record* is what stands now, also as *row*."""
        key = record.entry.key
        self._live[key], self._dirty[key] = record, row
        self._bytes += len(record.outcome.payload)
        if self._bytes >= MUCH or len(self._dirty) >= MANY:
            self._full.set()
        self._bell.set()

    def _make_room(self) -> None:
        """Forget an end that is in memory alone, if there are many."""
        if len(self._dirty) < KEPT:
            return
        for key in self._dirty:
            record = self._live.get(key)
            if record is not None and record.outcome is not RUNNING:
                del self._dirty[key], self._live[key]
                return

    async def _stored(self) -> None:
        """Wait until what is dirty now is in the ledger."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(stored)
        self._bell.set()
        await stored

    # The way into the ledger

    async def _post_all(self) -> None:
        while not self._closed:
            await self._bell.wait()
            if self._redo is not None:  # nobody waits
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        await self._full.wait()
            await self._post()
        if self._dirty:
            await self._post()

    async def _post(self) -> None:
        """Store what is dirty; what cannot be stored stays so."""
        self._bell.clear()
        self._full.clear()
        waiting, self._waiting = self._waiting, []
        error: JournalError | None = None
        try:
            if not (self._is_ready and self._ledger.is_open):
                self._late(await self._take())
            await self._store()
            await self._tidy()
        except JournalError as exc:
            error = exc
        except Exception as exc:
            log.critical("the journal has failed: this is a bug", exc_info=True)
            error = JournalError(f"a bug: {exc}")
        self._went(str(error or ""), self._refusal)
        if error is not None:
            asyncio.get_running_loop().call_later(RETRY, self._bell.set)
        for stored in waiting:
            if stored.done():
                continue
            if error is None:
                stored.set_result(None)
            else:
                stored.set_exception(error)

    async def _store(self) -> None:
        if not self._dirty:
            return
        # In one step: what is recorded from now on is in the next batch, and in the next file.
        batch, self._dirty, self._bytes = self._dirty, {}, 0
        if self._redo is not None:
            with suppress(JournalError):  # what stands there is stored once more
                self._redo.switch()
        rows = [row for row in batch.values() if row is not None]
        gone = [key for key, row in batch.items() if row is None]
        try:
            await self._in_thread(self._ledger.write, rows, gone)
        except BaseException:
            self._dirty = batch | self._dirty
            raise
        if self._redo is not None:
            self._redo.drop()
        self._let_go(batch)
        self._written += sum(ROW + len(row[PAYLOAD_AT]) for row in rows)

    async def _tidy(self) -> None:
        if await self._in_thread(self._shrink):
            self._bell.set()
        if self._seen.count > max(FULL, self._ledger.entries):
            self._seen.turn()  # the ledger has forgotten what came before the turn before

    def _let_go(self, stored: dict[Key, Row | None]) -> None:
        """What has ended is to be found in the ledger from now on."""
        for key in stored.keys() - self._dirty.keys():
            record = self._live.get(key)
            if record is not None and record.outcome is not RUNNING:
                del self._live[key]

    async def _take(self) -> list[Unfinished]:
        """Have the ledger; what an earlier run has left, as far as it was not told.

        Raises:
            JournalError: It cannot be had now.
        """
        try:
            if self._reader is not None and self._reader.is_damaged:
                await self._in_thread(self._replace, self._read)
            found = await self._in_thread(self._open)
            if self._read != self._ledger.opened:
                await self._turn_to_file()
            if self._redo is not None and not self._redo.is_open:
                self._redo.switch()
        except JournalError as exc:
            self._went(str(exc), self._refusal)
            raise
        self._went("", self._refusal)
        found = [
            left
            for left in found
            if left.entry.key not in self._live and left.entry.key not in self._told
        ]
        self._told.update(left.entry.key for left in found)
        return found

    async def _turn_to_file(self) -> None:
        """It was opened, and may be another one than before."""
        opened = self._ledger.opened
        before, self._reader = self._reader, Reader(self._path)
        self._read = opened
        if before is not None:
            before.close()
            rows = {key: to_row(record) for key, record in self._live.items()}
            self._dirty = {**rows, **self._dirty}
            self._bell.set()
        seen = await self._in_thread(self._ledger.seen)
        for key in [*self._live, *self._dirty]:
            seen.add(key)
        self._seen = seen

    def _late(self, found: list[Unfinished]) -> None:
        if found:
            self.on_unfinished(found)

    def _went(self, trouble: str, refusal: str) -> None:
        before, after = self._trouble or self._refusal, trouble or refusal
        self._trouble, self._refusal = trouble, refusal
        if bool(before) == bool(after):
            return
        if after:
            log.error("journal: nothing can be recorded: %s", after)
        else:
            log.info("journal: requests are recorded")
        self.on_change()

    # In the thread

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        future = self._thread.submit(function, *args, **kwargs)
        return await asyncio.shield(asyncio.wrap_future(future))

    def _open(self) -> list[Unfinished]:
        if not self._ledger.is_open:
            self._ledger.open()
        if self._redo is not None and not self._replayed:
            self._replay(self._redo)
        self._replayed = True
        self._shrink()
        return self._ledger.left()

    def _replay(self, redo: RedoLog) -> None:
        """Store what an earlier run had no time to."""
        latest = {tuple(row[:2]): row for row in redo.read()}
        if latest:
            self._ledger.write(list(latest.values()))
        redo.drop()

    def _replace(self, damaged: int) -> None:
        if self._ledger.opened == damaged:
            self._ledger.replace("as a reader found")

    def _shrink(self) -> bool:
        """Make room in small steps; whether there is more to do."""
        now = time.monotonic()
        if now - self._checked < CHECK and self._written < CHECK_BYTES:
            return False
        while self._ledger.shrink(self._max_age, self._max_size):
            if time.monotonic() - now > HOLD:
                return True
        self._checked, self._written = now, 0
        return False
