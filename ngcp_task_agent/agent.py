"""
The corridor: takes each delivery through every room, in order, and stops cleanly.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from .config import RESERVED, Limits
from .confirmations import Confirmations
from .course import UNKNOWN, Course
from .decisions import Decisions
from .destination import Destination
from .dispatch import Crowded, Dispatcher, Gate, refusal
from .errors import MessageError, NotForThisNode, Rejected
from .interfaces import Backend, Delivery
from .jobs import Record, Run
from .journal import Journal, Outcome, Unfinished
from .live import Live
from .logs import Throttle
from .messages import Request, decode_request, encode_response
from .output import Collector
from .processes import GIVE_UP_AFTER, KILL_AFTER
from .replies import Replies
from .route import Route
from .tally import Tally

RECENT = 1000  # jobs remembered after their end
CROWDED = 1.0  # seconds until a durable request for which there was no room comes again
STOPPING = "the agent is stopping"
LAST_ANSWERS = 2.0  # seconds for the last answers to leave when the agent stops
LAST_NOTES = 0.5  # seconds for what has left to be noted
LAST_WORKS = KILL_AFTER + GIVE_UP_AFTER + 1.0  # seconds for what they belong to, to end

log = logging.getLogger(__name__)


class Agent:
    """Serves any number of backends.

    Args:
        dispatcher: Decides which requests are run.
        limits: Sizes and numbers; replaced when the files are read again.
        spool_dir: Where large output waits; empty for the system's default.
        journal: Where requests and their outcomes are recorded; None for nowhere.
        decisions: Writes down what is decided; None for nowhere.

    Attributes:
        runs: The jobs that wait or run.
        ending: Those that are answered, and something of them is still being ended.
        recent: The last jobs that have ended; the agent's own are not among them.
        counts: What has happened since the start, by kind: accepted, done, error,
            rejected, passed_over, bad, crowded, repeated, and of durable requests
            retried, released, lost.
        tally: Where it is counted by task as well; None for nowhere.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: Limits,
        spool_dir: str = "",
        journal: Journal | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        self.runs: set[Run] = set()
        self.ending: set[Run] = set()
        self.recent: deque[Record] = deque(maxlen=RECENT)
        self.counts: Counter[str] = Counter()
        self.tally: Tally | None = None
        self._dispatcher = dispatcher
        self._spool_dir = spool_dir
        self._journal = journal
        self._decisions = decisions or Decisions()
        self._confirmations = Confirmations(journal) if journal is not None else None
        self._house = Gate(limits.max_running)
        self.limits = limits
        self._courses: dict[tuple[str, str], Course] = {}  # by src and uuid
        self._answering: dict[asyncio.Task[None], tuple[Run, Backend]] = {}
        self._claims: set[asyncio.Task[Any]] = set()  # being given up without a job
        self._turns: WeakKeyDictionary[Backend, asyncio.Lock] = WeakKeyDictionary()
        self._bad = Throttle(log)
        self._crowded = Throttle(log)

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._house.max_running = limits.max_running

    def room(self, backend: str, control_channel: str) -> int:
        """How many more requests from there could be started at once."""
        if self._dispatcher.stopping:
            return 0
        return min(self._house.room, self._dispatcher.room(backend, control_channel))

    async def serve(self, name: str, backend: Backend) -> None:
        """Take what *backend*, called *name* in task files, receives, until it stops."""
        async for delivery in backend.receive():
            try:
                self.take(delivery, name, backend)
            except Exception:
                # A bug, and never a reason to become deaf: the next one is taken.
                self.counts["bad"] += 1
                log.exception("a message on %s could not be handled", name)
                if delivery.claim is not None:
                    self._give_up(delivery.claim.drop("internal error, see the node's log"))
            del delivery  # it may be large, and the next may be long in coming

    def take(self, delivery: Delivery, name: str, backend: Backend) -> None:
        """Decide on one delivery, answer at once, and start the job.

        Never waits: `accepted` leaves before anything is started.
        """
        claim = delivery.claim
        try:
            request = decode_request(delivery.payload, self._limits.max_request)
            route = Route.of(request, delivery, backend, name)
            course = self._courses.get((request.src, request.uuid))
            if course is not None and not request.task.startswith(RESERVED):
                self._take_again(request, delivery, route, course)
                return
            admission = self._dispatcher.admit(request, delivery, name)
        except NotForThisNode as exc:
            self.counts["passed_over"] += 1
            if isinstance(exc, Crowded):
                self._audit_refusal("passed over", request, delivery, name, exc)
                self._note_crowded(request, exc)
                if claim is not None:
                    self._give_up(claim.release(CROWDED))
            elif claim is not None:
                self._give_up(claim.drop())
            return
        except MessageError as exc:
            self.counts["bad"] += 1
            self._bad.warning("%s: not a request: %s", delivery.control_channel or name, exc)
            if claim is not None:
                self._give_up(claim.drop(f"not a request: {exc}"))
            return
        except Rejected as exc:
            self._count_refusal("rejected", request.task)
            self._bad.warning(
                "request %.80r from %.80r: rejected: %s", request.uuid, request.src, exc
            )
            self._audit_refusal("rejected", request, delivery, name, exc)
            rejected = Replies(request, self._dispatcher.node_name).rejected(str(exc))
            if claim is not None:
                self._give_up(route.settle(encode_response(rejected), str(exc)))
            else:
                route.send(rejected)
            return
        why = self._decisions.allowed(request, delivery, name, admission)
        self.counts["accepted"] += 1
        replies = Replies(request, admission.node)
        if claim is None or claim.attempt == 1:  # it is accepted once, and ended once
            route.send(replies.accepted())
        live = None
        if admission.wishes.stream:
            live = Live(lambda piece: route.send(replies.progress(piece)), route.flush)
        output = Collector(self._spool_dir, live, admission.task.mask, admission.secrets)
        run = Run(admission, self._house, output)
        if why:
            run.end(why, "refused")
        self._start(run, replies, route)

    def _start(self, run: Run, replies: Replies, route: Route) -> None:
        course = Course(
            run, replies, route, self._limits.chunk_size, self._turn, self._journal,
            self._confirmations, lambda: self._decisions.started(run),
        )  # fmt: skip
        if route.claim is not None:
            route.claim.on_lost = course.lose
        self.runs.add(run)
        if not run.own:
            self._courses[run.job.src, run.job.uuid] = course
        task = asyncio.ensure_future(self._work(course))
        self._answering[task] = (run, route.backend)
        task.add_done_callback(self._answered)

    def _take_again(
        self, request: Request, delivery: Delivery, route: Route, course: Course
    ) -> None:
        """The same request, while its job is at work: it is not run twice.

        Raises:
            NotForThisNode, Rejected: It is for others, or is not the same.
        """
        _, named = self._dispatcher.check_destination(request, delivery)
        task = course.run.task
        if task.name != request.task or not task.hears(route.name, delivery.control_channel):
            raise refusal(named, "its uuid is that of another request")
        if not course.join(route):
            if route.claim is None:
                raise refusal(named, "the same request has come too often")
            self._give_up(route.claim.release(CROWDED))
            return
        self._count_refusal("repeated", request.task)
        if route.claim is None or route.claim.attempt == 1:
            route.send(Replies(request, self._dispatcher.node_name).accepted())

    async def recover(
        self, unfinished: Collection[Unfinished], backends: Mapping[str, Backend]
    ) -> None:
        """Answer what an earlier run of the agent has left unanswered.

        Args:
            unfinished: What the journal knows of it.
            backends: Those that are served now, by name.
        """
        assert self._journal is not None
        for entry, outcome in unfinished:
            if outcome is None or not outcome.payload:
                reason = UNKNOWN
                if outcome is not None:
                    reason = f"{outcome.status}, but the answer was lost when the agent stopped"
                request = Request(entry.uuid, entry.task, entry.src, Destination.parse("*"), {})
                payload = encode_response(Replies(request, entry.node).failed(reason))
                outcome = Outcome("error", reason, payload)
                await self._journal.end(entry, outcome)
            backend = backends.get(entry.backend)
            if backend is not None and (entry.address or entry.stream):
                route = Route(backend, entry.backend, entry.address, entry.stream)
                route.post(outcome.payload)
                assert self._confirmations is not None
                self._confirmations.add(route, entry)
            elif not entry.address and not entry.stream:
                self._journal.sent(entry)
            self._decisions.left(
                entry.src, entry.uuid, entry.task, outcome.reason or outcome.status
            )
            self.counts["recovered"] += 1
            log.warning(
                "task %s for %.80r from %.80r, left by an earlier run: %s",
                entry.task, entry.uuid, entry.src, outcome.reason or outcome.status,
            )  # fmt: skip

    async def cancel(self, ref: str, by: str) -> list[Record]:
        """End the jobs that *ref* names, and wait until nothing of them is left.

        Args:
            ref: The request's `uuid`.
            by: Who wishes it; the jobs' clients are told.

        Returns:
            Those that were cancelled, as they ended. One that ended by itself in that
            moment is not among them.
        """
        runs = [r for r in self.runs if r.job.uuid == ref and not r.own and r.status is None]
        for run in runs:
            run.cancel(by)
        for run in runs:
            await run.settled.wait()  # not for the answer: its client may not read it
        works = [run.work for run in runs if run.work is not None]
        if works:
            await asyncio.wait(works)
        return [run.record() for run in runs if run.cancelled]

    async def answered(self, backend: Backend) -> None:
        """Wait until the jobs that have come by *backend* are answered."""
        waiting = [task for task, (_, way) in self._answering.items() if way is backend]
        if waiting:
            await asyncio.wait(waiting)

    async def drain(self, grace: float) -> None:
        """Refuse what is new, let jobs end for *grace* seconds, then end and answer them.

        Durable requests whose jobs have not begun go back at once: others may run them.
        """
        self._dispatcher.stopping = True
        for run in self.runs:
            if run.claimed and run.started is None:
                run.end(STOPPING, "stopped")
        if self._answering:
            log.info("waiting up to %g s for %d jobs", grace, len(self.runs))
            await _wait(list(self._answering), grace)
        self._dispatcher.stopped = True
        for run in self.runs:
            run.end(STOPPING, "stopped")
        if self.runs:
            log.warning("ending %d jobs that outlived the grace time", len(self.runs))
        works = [run.work for run in self.runs if run.work is not None]
        late = await _wait([*self._answering, *self._claims], LAST_ANSWERS)
        for answer in late:  # large ones, and a bus that is away
            answer.cancel()
        if late:
            log.warning("%d answers could not be delivered before the stop", len(late))
        await _wait(works, LAST_WORKS)

    async def confirmed(self) -> None:
        """Wait a moment until it is noted which answers have left."""
        if self._confirmations is not None:
            await self._confirmations.settle(LAST_NOTES)

    async def _work(self, course: Course) -> None:
        run = course.run
        try:
            await course.follow()
        finally:
            self._dispatcher.release(run.admission)
            run.output.discard()
            self.runs.discard(run)
            if not run.own:
                self._courses.pop((run.job.src, run.job.uuid), None)
            if run.work is None or run.work.done():
                self._forget(run)
            else:
                self.ending.add(run)
                run.work.add_done_callback(lambda _: self._forget(run))
        self.counts[course.ending] += 1
        self._decisions.ended(run, course.ending)
        if self.tally is not None:
            self.tally.ended(run.job.task, course.ending, run.cause, run.seconds, run.output.taken)
        log.info(
            "task %s for %.80r from %.80r: %s%s, %.3f s",
            run.job.task, run.job.uuid, run.job.src, course.ending,
            f" ({run.reason})" if run.reason else "",
            asyncio.get_running_loop().time() - run.accepted_at,
        )  # fmt: skip

    def _audit_refusal(
        self, event: str, request: Request, delivery: Delivery, name: str, why: Exception
    ) -> None:
        task = self._dispatcher.tasks.get(request.task)
        self._decisions.refused(event, request, delivery, name, str(why), task)

    def _turn(self, route: Route) -> AbstractAsyncContextManager[object]:
        if not route.backend.shared:
            return nullcontext()
        return self._turns.setdefault(route.backend, asyncio.Lock())

    def _give_up(self, giving: Coroutine[Any, Any, bool]) -> None:
        task = asyncio.ensure_future(giving)
        self._claims.add(task)
        task.add_done_callback(self._claims.discard)

    def _forget(self, run: Run) -> None:
        self.ending.discard(run)
        if not run.own and run.status is not None:  # else it had ended before
            self.recent.append(run.record())

    def _answered(self, task: asyncio.Task[None]) -> None:
        del self._answering[task]
        if not task.cancelled() and task.exception() is not None:
            log.critical("a job was not answered: this is a bug", exc_info=task.exception())

    def _count_refusal(self, outcome: str, task: str) -> None:
        self.counts[outcome] += 1
        if self.tally is not None:
            # The name is the client's: one that is not configured must not become a key.
            self.tally.refused(task if task in self._dispatcher.tasks else "", outcome)

    def _note_crowded(self, request: Request, exc: Crowded) -> None:
        self._count_refusal("crowded", request.task)
        self._crowded.warning(
            "request %.80r for %.80r not taken: %s", request.uuid, request.task, exc
        )


async def _wait(
    tasks: Collection[asyncio.Task[Any]], seconds: float
) -> Collection[asyncio.Task[Any]]:
    """Wait for all of them; those that are late."""
    return (await asyncio.wait(tasks, timeout=seconds))[1] if tasks else ()
