"""
One accepted request from its record in the journal to its last answer.

    record → run → (again later | answer) → record → hand over

A request's outcome is recorded before it is handed over: an agent that dies between
the two sends it at its next start, and one that dies before says that it does not know.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

from .confirmations import Confirmations
from .errors import BackendError, JournalError, MessageError
from .jobs import Run
from .journal import Entry, Journal, Outcome
from .messages import Status, encode_response
from .output import Collector
from .replies import Replies
from .route import Route

PACE = 32 * 1024 * 1024  # bytes a second sent to one client, once it has got `BURST`
BURST = 16 * 1024 * 1024  # bytes; Redis drops a subscriber with more than 32 MiB unread
LARGE = 256 * 1024  # bytes of a response that waits until there is room for it
KEPT = 64 * 1024  # bytes of an answer that the journal keeps
LONGEST = 1000  # characters of a name that is recorded as it is
AGAIN = "again"  # the outcome of an attempt that is not the last
UNKNOWN = "outcome unknown: the agent stopped while it ran"
ELSEWHERE = "the same request goes on later, or elsewhere"
RELEASED = 1.0  # seconds until a request that was joined to such a one comes again
MOST_ROUTES = 16  # places to which one answer goes
NOT_KEPT = "it has ended before ({}); its answer is too large to be kept"

log = logging.getLogger(__name__)


class Course:
    """What happens to one accepted request.

    Args:
        run: Its job.
        replies: Writes its responses.
        route: Where they go.
        chunk_size: Most bytes of encoded data in one response.
        turn: Held while a large answer leaves on a backend that others share.
        journal: Where it is recorded; None for nowhere.
        confirmations: Where it is noted that the answer has left.
        starting: Told that the job begins now; why it must not, or nothing.

    Attributes:
        ending: What has become of it: done, error; repeated (it had ended before);
            retried, released or lost (a claim that goes on elsewhere or later);
            unanswered (the agent has stopped first).
    """

    def __init__(
        self,
        run: Run,
        replies: Replies,
        route: Route,
        chunk_size: int,
        turn: Callable[[Route], AbstractAsyncContextManager[object]],
        journal: Journal | None = None,
        confirmations: Confirmations | None = None,
        starting: Callable[[], str] = lambda: "",
    ) -> None:
        self.run = run
        self.route = route
        self.ending = ""
        self._routes = [route]
        self._hearing = 0  # ways on which the first of several pieces has left
        self._lost = False
        self._replies = replies
        self._chunk_size = chunk_size
        self._turn = turn
        self._journal = None if run.own else journal
        self._confirmations = confirmations
        self._starting = starting
        self._entry = _entry(run, route, replies.node)
        self._arrived: float | None = None  # by the bus's clock

    def join(self, route: Route) -> bool:
        """The same request has come again: its answer goes *route* as well.

        Returns:
            Whether it does; if not, nothing was done.
        """
        if route.claim is None:
            if any(route.same_place(one) for one in self._routes):
                return True
        elif self._lost:  # this may be the very claim by which it was lost
            return False
        if len(self._routes) >= MOST_ROUTES:
            return False
        self._routes.append(route)
        return True

    def lose(self) -> None:
        """Somebody else has taken the request over."""
        self._lost = True
        self.run.end("taken over by somebody else", "lost")

    async def follow(self) -> None:
        """Record it, run it, answer it."""
        try:
            await self._follow()
        except BackendError as exc:  # it was closed: the journal knows, and the next start
            self.ending = "unanswered"
            log.warning("request %.80r is not answered: %s", self.run.job.uuid, exc)
        except Exception:
            # A bug, or a spool that cannot be read: the client gets an answer all the same.
            log.exception("request %.80r for %s failed", self.run.job.uuid, self.run.job.task)
            if not self.run.settled.is_set():
                self.run.withdraw()
            self.run.fail(f"internal error in task {self.run.job.task}, see the node's log")
            await self._finish(encode_response(self._replies.failed(self.run.reason)))

    async def _follow(self) -> None:
        run, ttl = self.run, self.run.admission.wishes.ttl
        if ttl is not None:
            await self._note_arrival()
        earlier = await self._record()
        if earlier is not None:
            run.withdraw()
            self.ending = "repeated"
            failure = earlier.reason if earlier.status == Status.ERROR else ""
            await self._hand_over(self._repeated(earlier), failure)
        elif self._is_lost():
            run.withdraw()
            run.status, run.reason = Status.ERROR, UNKNOWN
            await self._finish(encode_response(self._replies.failed(UNKNOWN)))
        else:
            await run.outcome(self._expired if ttl is not None else None, self._starting)
            if await self._goes_on_elsewhere():
                await self._let_others_go()
            else:
                await self._answer()

    async def _record(self) -> Outcome | None:
        if self._journal is None:
            if self.run.task.journal_required and not self.run.own:
                self._refuse("there is no journal")
            return None
        try:
            return await self._journal.begin(self._entry)
        except JournalError as exc:
            if self.run.task.journal_required:
                self._refuse(str(exc))
            return None

    def _refuse(self, why: str) -> None:
        self.run.end(f"not run, for it cannot be recorded: {why}", "refused")

    def _is_lost(self) -> bool:
        """Whether somebody else may have run it, and nobody may run it again."""
        claim, retry = self.route.claim, self.run.task.retry
        return (
            claim is not None and claim.taken_over and not retry.wanted(claim.attempt - 1, "lost")
        )

    async def _goes_on_elsewhere(self) -> bool:
        """Give a claim back, if this was not its end."""
        run, claim = self.run, self.route.claim
        if claim is None or run.status is Status.DONE:
            return False
        if run.cause == "lost":
            self.ending = "lost"
            await self._note(AGAIN, run.reason)
            return True
        if run.cause == "stopped" and run.started is None:
            await self._note(AGAIN, run.reason)
            self.ending = "released" if await claim.release() else "lost"
            return True
        if run.task.retry.wanted(claim.attempt, run.cause):
            await self._note(AGAIN, run.reason)
            delay = 0.0 if run.cause == "stopped" else run.task.retry.delay(claim.attempt)
            self.ending = "retried" if await claim.retry(delay) else "lost"
            return True
        return False

    async def _let_others_go(self) -> None:
        """Whoever has asked for the same meanwhile is not left waiting."""
        for at, other in enumerate(self._all()):
            if at and other.claim is not None:
                await other.claim.release(RELEASED)
            elif at:
                other.send(self._replies.failed(f"{ELSEWHERE}: {self.run.reason}"))

    async def _answer(self) -> None:
        run = self.run
        assert run.status is not None
        extra = {"result": run.result()} if run.admission.wishes.result else None
        began, sent = time.monotonic(), 0
        try:
            async for response in self._replies.ended(
                run.status, run.reason, run.output, self._chunk_size, extra
            ):
                payload = encode_response(response)
                if self._lost and response.chunks > 1:
                    self.ending = "lost"
                    await self._note(AGAIN, "taken over by somebody else")
                    return await self._let_others_go()
                if response.chunk == response.chunks:
                    await self._finish(payload, response.chunks == 1)
                    break
                if response.chunk == 1:
                    self._hearing = len(self._routes)
                for route in self._routes[: self._hearing]:
                    await self._deliver_in_turn(payload, route)
                sent += len(payload)
                ahead = (sent - BURST) / PACE - (time.monotonic() - began)
                if ahead > 0:
                    await asyncio.sleep(ahead)
        except MessageError as exc:  # a python task's result
            status, reason = run.fail(f"the result is {exc}")
            async for response in self._replies.ended(status, reason, Collector(), extra=extra):
                await self._finish(encode_response(response))

    async def _finish(self, payload: bytes, whole: bool = True) -> None:
        """Record the outcome and hand over the last response."""
        run = self.run
        assert run.status is not None
        kept = payload if whole and len(payload) <= KEPT else b""
        await self._note(run.status.value, run.reason, kept)
        self.ending = run.status.value
        failure = run.reason if run.status is Status.ERROR else ""
        await self._hand_over(payload, failure, whole)

    async def _note(self, status: str, reason: str, payload: bytes = b"") -> None:
        if self._journal is not None:
            await self._journal.end(self._entry, Outcome(status, reason, payload))

    async def _hand_over(self, payload: bytes, failure: str, whole: bool = True) -> None:
        """Send the last response on all ways; who has lost the request sends nothing."""
        served: list[Route] = []
        for at, route in enumerate(self._all()):
            if route.claim is not None and any(route.same_place(one) for one in served):
                await route.claim.drop()
            elif whole or at < self._hearing:
                await self._last(route, payload, failure, whole)
            else:  # it has come between two pieces
                late = self._replies.failed(NOT_KEPT.format(self.ending))
                await self._last(route, encode_response(late), failure, True)
            served.append(route)

    def _all(self) -> Iterator[Route]:
        """Every way, those that come meanwhile as well."""
        at = 0
        while at < len(self._routes):
            yield self._routes[at]
            at += 1

    async def _last(self, route: Route, payload: bytes, failure: str, whole: bool) -> None:
        if route.claim is None:
            if not whole or (route.backend.shared and len(payload) > LARGE):
                await self._deliver_in_turn(payload, route)
            else:
                route.post(payload)
            if self._confirmations is not None:
                self._confirmations.add(route, self._entry)
            return
        held = await route.settle(payload, failure)
        if self._journal is not None:
            self._journal.sent(self._entry)
        if not held and route is self.route:
            self.ending = "lost"

    async def _deliver_in_turn(self, payload: bytes, route: Route) -> None:
        """One after the other: together they would push other answers out of the queue."""
        async with self._turn(route):
            route.post(payload)
            await route.flush()

    async def _note_arrival(self) -> None:
        try:
            self._arrived = await self.route.backend.now()
        except BackendError:
            self._arrived = None

    async def _expired(self) -> str:
        """Why it must not start any more, judged by the bus's clock; empty if it may."""
        ttl, claim = self.run.admission.wishes.ttl, self.route.claim
        if ttl is None:
            return ""
        began = self.run.admission.timestamp
        if began is None:
            began = claim.posted if claim is not None else self._arrived
        try:
            now = await self.route.backend.now()
        except BackendError as exc:
            return f"not run, for nobody knows whether it has expired: {exc}"
        if began is None:
            return "not run, for nobody knows whether it has expired: it came without a timestamp"
        if now > began + ttl:
            return f"expired: not started within its time to live of {ttl:g} s"
        return ""

    def _repeated(self, earlier: Outcome) -> bytes:
        if earlier.payload:
            return earlier.payload
        done = earlier.status == Status.DONE or not earlier.reason
        reason = NOT_KEPT.format(earlier.status) if done else earlier.reason
        return encode_response(self._replies.failed(reason))


def _entry(run: Run, route: Route, node: str) -> Entry:
    job, claim = run.job, route.claim
    address = "" if route.connection or len(route.address) > LONGEST else route.address
    return Entry(
        _short(job.src), _short(job.uuid), job.task, route.name,
        address, route.stream if len(route.stream) <= LONGEST else "", node,
        job.attempt, claim is not None, run.queued,
    )  # fmt: skip


def _short(name: str) -> str:
    """A client may call itself and its request anything; what is no name is told apart only."""
    if len(name) <= LONGEST:
        return name
    return "sha256:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
