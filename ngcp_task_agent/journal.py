"""
What was begun and how it ended, on disk: so that no request runs twice or is forgotten.

What arrives in one turn of the event loop, or in a few, makes one transaction, which the
loop writes itself as long as that is quick: it goes into the page cache, and handing it
to a thread costs several times as much. A thread does all that waits for the disk: opening,
checkpoints, deleting what is old, records that are to survive the machine's sudden end,
and everything for a while once a transaction has taken long. Knows nothing of requests
beyond their `Entry`, and nothing of who answers them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from .errors import JournalError
from .ledger import PAYLOAD, Ended, Entry, Key, Ledger, Outcome, Unfinished

__all__ = ["PAYLOAD", "Entry", "Journal", "JournalState", "Outcome", "Unfinished"]

SENTS = 64  # of `sent` that are worth a statement
LINGER = 0.05  # seconds that fewer wait for company
TURNS = 4  # of the event loop that a transaction waits at most, while each brings more
SLOW = 0.05  # seconds; a transaction that takes longer in the loop is the last for a while
RECOVERY = 10.0  # seconds until the loop tries again
KEPT = 10_000  # ends kept in memory while the disk takes none
CATCH_UP = 128  # of them written with one transaction, once it takes them again
CHECK = 60.0  # seconds between two looks at age and size, while there is something to write
CHECK_BYTES = 1024 * 1024  # or so much written
ROW = 300  # bytes of a row besides its payload, about
HOLD = 0.05  # seconds that deleting what is old may hold up a commit

_OPEN, _SENT, _CLOSE, _CARE = "open", "sent", "close", "care"

T = TypeVar("T")
_Done = asyncio.Future[None]
_Answer = tuple[asyncio.Future[Any], Any]

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
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is open
        self._writer = _Writer(Ledger(path, sync), max_age, max_size, self._tell, sync == "full")
        self._seen = self._turns = 0  # records of the next transaction; turns they have waited
        self._scheduled = False  # whether this turn's transaction is to come
        self._due: asyncio.TimerHandle | None = None  # rings for `sent`

    async def open(self) -> list[Unfinished]:
        """Start; what an earlier run of the agent has left behind, oldest first.

        Never raises: where the file cannot be had, `state` tells why, `begin` raises, and
        it is tried again with all that is to be recorded.
        """
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[list[Unfinished]] = self._loop.create_future()
        self._writer.bell.put((_OPEN, opened))
        threading.Thread(target=self._writer.run, name="journal", daemon=True).start()
        return await opened

    async def begin(self, entry: Entry) -> Outcome | None:
        """Record *entry*; returns once that is committed.

        Returns:
            None: run it. An outcome: the same `src` and `uuid` was here before, and this is
            what it is answered with.

        Raises:
            JournalError: It cannot be recorded.
        """
        if self._loop is None:
            raise JournalError("the journal is closed")
        asked = _Asked(entry, self._loop.create_future())
        self._writer.begins.append(asked)
        self._ring()
        try:
            return await asked.answer
        except asyncio.CancelledError:
            # Nobody will run it: recorded as running, it would never end.
            self._writer.forgets.append(asked)
            self._ring()
            raise

    async def end(self, entry: Entry, outcome: Outcome) -> None:
        """Record how *entry* has ended; returns once that is committed, or counted as failed.

        A payload longer than `PAYLOAD` is left out.
        """
        if self._loop is None:
            return
        if len(outcome.payload) > PAYLOAD:
            outcome = outcome._replace(payload=b"")
        recorded: asyncio.Future[None] = self._loop.create_future()
        self._writer.ends.append((Ended(entry, outcome), recorded))
        self._ring()
        await recorded

    def sent(self, entry: Entry) -> None:
        """The answer to *entry*, which has ended, was handed over; waits for nothing."""
        if self._loop is None or entry.durable:
            return
        self._writer.sents.append(entry)
        if self._due is None:
            self._due = self._loop.call_later(LINGER, self._hurry)

    async def close(self) -> None:
        """Commit what waits, and let go of the file."""
        if self._loop is None:
            return
        closed: asyncio.Future[None] = self._loop.create_future()
        self._loop = None
        self._stop_waiting()
        self._writer.bell.put((_CLOSE, closed))
        await closed

    def state(self) -> JournalState:
        """How it is now."""
        writer = self._writer
        entries, failures = writer.ledger.entries, writer.failures
        text = f"journal: {entries} {'entry' if entries == 1 else 'entries'}"
        if writer.trouble:
            text = f"journal: not writable: {writer.trouble}"
        if self._loop is None:
            text = "journal: closed"
        if failures:
            text += f"; {failures} {'record' if failures == 1 else 'records'} lost"
        ok = self._loop is not None and not writer.trouble
        return JournalState(ok, text, failures, entries)

    def _ring(self) -> None:
        """Something is to be written: at the end of this turn of the loop, or by the thread."""
        if self._scheduled:
            return
        if self._writer.is_quick and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._write)
        elif self._writer.quiet:
            self._writer.quiet = False
            self._writer.bell.put(None)

    def _write(self) -> None:
        if self._loop is not None and self._may_grow():
            self._loop.call_soon(self._write)
            return
        self._seen = self._turns = 0
        self._scheduled = False
        if not self._writer.write_here():
            self._writer.bell.put(None)
        elif self._writer.wants_care:
            self._writer.bell.put((_CARE, None))

    def _may_grow(self) -> bool:
        """Whether the next turn may bring more, as this one has: they share what one costs."""
        writer, seen = self._writer, self._seen
        self._seen = len(writer.begins) + len(writer.ends)
        self._turns += 1
        others = writer.ledger.running > len(writer.ends)
        return others and self._seen > seen and self._turns <= TURNS

    def _hurry(self) -> None:
        self._due = None
        if self._writer.is_quick:
            self._ring()
        else:
            self._writer.bell.put((_SENT, None))

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _tell(self, news: _News) -> None:
        for future, value in news.answers:
            if future.done():
                continue
            if isinstance(value, JournalError):
                future.set_exception(value)
            else:
                future.set_result(value)
        if news.changed:
            self.on_change()
        if news.found:
            self.on_unfinished(news.found)


@dataclass(slots=True)
class _Asked:
    """A begin, and whether it was recorded as running."""

    entry: Entry
    answer: asyncio.Future[Outcome | None]
    recorded: bool = False


class _News(NamedTuple):
    """What the thread has for the loop."""

    answers: list[_Answer]
    changed: bool = False
    found: list[Unfinished] = []  # noqa: RUF012 (nobody adds to it)


class _Writer:
    """Writes batches, in the loop or in a thread, one at a time.

    The loop appends to the deques. It writes them itself, or rings the bell if it finds
    the thread `quiet`; the thread says that it is before it looks, so that nothing is
    overlooked.

    Args:
        tell: Called in the loop, once for each batch.
        waits: Whether each transaction waits for the disk, and is none for the loop.

    Attributes:
        trouble: Why nothing can be recorded; empty if it can.
        failures: Begins and ends that could not be written when they were due.
    """

    def __init__(
        self,
        ledger: Ledger,
        max_age: float,
        max_size: int,
        tell: Callable[[_News], None],
        waits: bool,
    ) -> None:
        self.ledger = ledger
        self._waits = waits
        self._lock = threading.Lock()  # whoever uses the ledger has it
        self._here = False  # whether that is the loop
        self._slow_until = 0.0  # monotonic seconds
        self.begins: deque[_Asked] = deque()
        self.ends: deque[tuple[Ended, _Done]] = deque()
        self.sents: deque[Entry] = deque()
        self.forgets: deque[_Asked] = deque()
        self.bell: SimpleQueue[tuple[str, asyncio.Future[Any] | None] | None] = SimpleQueue()
        self.quiet = True
        self.trouble = ""
        self.failures = 0
        self._max_age, self._max_size = max_age, max_size
        self._tell = tell
        self._kept: dict[Key, Ended] = {}
        self._kept_sents: deque[Entry] = deque(maxlen=KEPT)
        self._loop: asyncio.AbstractEventLoop
        self._news = _News([])
        self._hurry = False  # write what is `sent`, however little
        self._written = 0  # bytes since `_checked`
        self._checked = 0.0

    @property
    def is_quick(self) -> bool:
        """Whether the loop may write by itself."""
        return (
            self.ledger.is_open
            and not (self._waits or self.trouble)
            and time.monotonic() >= self._slow_until
        )

    @property
    def wants_care(self) -> bool:
        """Whether it is time to look after the file."""
        return self._is_time_to_shrink() or self.ledger.wants_checkpoint

    def write_here(self) -> bool:
        """Write what there is, in the loop; False if the thread has the file."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if not self.is_quick:
                return False
            began = time.monotonic()
            self._here = True
            self._batch()
            took = time.monotonic() - began
            if took > SLOW:
                self._slow_until = began + RECOVERY
                log.debug("journal: a record took %.3f s", took)
        finally:
            self._here = False
            self._lock.release()
        return True

    def run(self) -> None:
        """Write until told to close."""
        while True:
            call = self.bell.get()
            self.quiet = True
            verb, future = call or ("", None)
            with self._lock:
                if verb == _OPEN and future:
                    self._loop = future.get_loop()
                    self._answer([(future, self._open())])
                self._hurry = verb in (_SENT, _CLOSE)
                while self.begins or self.ends or self.forgets or self._due_sents():
                    self._batch()
                    self._tidy()
                if verb == _CLOSE and future:
                    self._close()
                    self._answer([(future, None)])
                    return
                if verb == _CARE:
                    self._tidy()
                truncate = self.ledger.must_truncate
                if truncate:
                    self.ledger.checkpoint(truncate)
            if verb == _CARE and self._is_time_to_shrink() and not self.trouble:
                self.bell.put((_CARE, None))  # the rest, once others have had their turn
            if self.ledger.wants_checkpoint:  # nobody waits for it
                self.ledger.checkpoint()

    def _due_sents(self) -> int:
        waiting = len(self.sents)
        return waiting if self._hurry or self._here or waiting >= SENTS else 0

    def _open(self) -> list[Unfinished]:
        try:
            found = self.ledger.open()
        except JournalError as exc:
            self._went(str(exc))
            return []
        self._went("")
        self._shrink()
        return found

    def _close(self) -> None:
        if self._kept:
            log.error("journal: %d ends could not be recorded: %s", len(self._kept), self.trouble)
        self.ledger.close()

    def _batch(self) -> None:
        # In this order: an earlier step of whoever is found in one queue is in a later one.
        forgets, begins = _taken(self.forgets), _taken(self.begins)
        ends = _taken(self.ends)
        sents = _taken(self.sents) if self._due_sents() else []
        try:
            found = self._record([asked.entry for asked in begins], [end for end, _ in ends], sents)
        except JournalError as exc:
            found = self._refuse(str(exc), begins, ends, sents)
        except Exception:
            log.critical("the journal has failed: this is a bug", exc_info=True)
            found = self._refuse("internal error", begins, ends, sents)
        answers: list[_Answer] = []
        for asked, value in zip(begins, found, strict=True):
            asked.recorded = value is None
            answers.append((asked.answer, value))
        answers += [(future, None) for _, future in ends]
        self._answer(answers)
        try:
            self._forget(forgets)
        except Exception:
            log.critical("the journal has failed: this is a bug", exc_info=True)

    def _record(
        self, begins: list[Entry], ends: list[Ended], sents: list[Entry]
    ) -> list[Outcome | JournalError | None]:
        """Write it; what the begins are told."""
        if not self.ledger.is_open:
            self._news = self._news._replace(found=self.ledger.open())
        late = dict(islice(self._kept.items(), CATCH_UP))
        late |= {key: self._kept[key] for entry in begins if (key := entry[:2]) in self._kept}
        found: list[Outcome | JournalError | None] = []
        found += self.ledger.write(begins, [*late.values(), *ends], [*self._kept_sents, *sents])
        for key in late:
            del self._kept[key]
        self._kept_sents.clear()
        self._went("")
        self._written += ROW * len(begins) + sum(len(end.outcome.payload) for end in ends)
        return found

    def _refuse(
        self,
        reason: str,
        begins: list[_Asked],
        ends: list[tuple[Ended, _Done]],
        sents: list[Entry],
    ) -> list[Outcome | JournalError | None]:
        """Nothing could be written: remember the ends, and refuse what is new."""
        self._went(reason)
        for end, _ in ends:
            self._kept[end.entry[:2]] = end
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        for entry in sents:
            if kept := self._kept.get(entry[:2]):
                self._kept[entry[:2]] = kept._replace(sent=True)
            else:
                self._kept_sents.append(entry)
        found: list[Outcome | JournalError | None] = []
        found += [self._known(asked.entry) or JournalError(reason) for asked in begins]
        self.failures += len(ends) + sum(isinstance(value, JournalError) for value in found)
        return found

    def _known(self, entry: Entry) -> Outcome | None:
        kept = self._kept.get(entry[:2])
        if kept and kept.outcome.status != "again":
            return kept.outcome
        return self.ledger.find(entry)

    def _forget(self, forgets: list[_Asked]) -> None:
        for entry in [asked.entry for asked in forgets if asked.recorded]:
            try:
                self.ledger.forget(entry)
            except JournalError as exc:
                self._went(str(exc))

    def _tidy(self) -> None:
        try:
            self._shrink()
        except Exception:
            log.critical("the journal has failed: this is a bug", exc_info=True)

    def _shrink(self) -> None:
        """Make room in small steps; what is not done now is done after a later batch."""
        if not self._is_time_to_shrink():
            return
        now = time.monotonic()
        try:
            while more := self.ledger.shrink(self._max_age, self._max_size):
                if time.monotonic() - now > HOLD:
                    break
        except JournalError as exc:
            self._went(str(exc))
            return
        if not more:
            self._checked, self._written = now, 0

    def _is_time_to_shrink(self) -> bool:
        return time.monotonic() - self._checked >= CHECK or self._written >= CHECK_BYTES

    def _went(self, trouble: str) -> None:
        if bool(trouble) != bool(self.trouble):
            self._news = self._news._replace(changed=True)
            if trouble:
                log.error("journal: nothing can be recorded: %s", trouble)
            else:
                log.info("journal: requests are recorded")
        self.trouble = trouble

    def _answer(self, answers: list[_Answer]) -> None:
        news, self._news = self._news._replace(answers=answers), _News([])
        if news == self._news:
            return
        if self._here:
            self._tell(news)
            return
        try:
            self._loop.call_soon_threadsafe(self._tell, news)
        except RuntimeError:
            log.debug("journal: the event loop has gone")


def _taken(queue: deque[T]) -> list[T]:
    """What is in *queue*; the other side may go on appending."""
    return [queue.popleft() for _ in range(len(queue))]
