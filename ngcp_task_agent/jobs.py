"""
One job from its acceptance to its outcome: waiting, running, the time limit.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NamedTuple

from .dispatch import Admission, Gate
from .errors import BrokerError
from .interfaces import Broker, Job
from .messages import Status
from .output import Collector

LONGEST_REASON = 4096  # characters; more is no reason but a text
LONGEST_RECORDED = 500  # characters of it kept once the job is over
LONGEST_NAME = 200  # characters of a client's texts kept once the job is over
NOT_STARTED = "before it was started"
CANCELLED = "cancelled"
SETTLE = 0.25  # seconds a broker that is told to end may delay the answer

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """What is known of a job; its fields are those of `agent.jobs`.

    Times are in unix seconds, sizes in bytes; None stands for unknown or not yet.
    `state` is queued, running, ending (answered, and something of it is still being
    ended), done or error.
    """

    uuid: str
    task: str
    src: str
    state: str
    reason: str
    queued: float
    started: float | None
    ended: float | None
    user: str
    pid: int | None
    exit_code: int | None
    signal: int | None
    cpu_seconds: float | None
    memory: int | None
    peak_memory: int | None
    output_bytes: int


class Run:
    """A job while it waits and runs.

    Args:
        admission: The dispatcher's decision; the task's gate is joined at once.
        house: Limits the jobs of all tasks together.
        output: Where the broker writes.

    Attributes:
        claimed: Whether its request is durable, and goes on if this job does not.
        work: The broker's work, once it has begun; it may outlive the answer.
        status: done or error, once that is known.
        reason: Why, for an error.
        cause: The kind of error: error, timeout, cancelled, stopped, lost, expired.
    """

    def __init__(self, admission: Admission, house: Gate, output: Collector) -> None:
        self._loop = asyncio.get_running_loop()
        self.admission = admission
        self.task = admission.task
        self.job = admission.job
        self.output = output
        self.accepted_at = self._loop.time()
        self.settled = asyncio.Event()  # set once `status` and `reason` stand
        self.status: Status | None = None
        self.reason = self.cause = ""
        self.queued = time.time()
        self.started: float | None = None
        self._began: float | None = None  # the same by the loop's clock, which nobody sets
        self.ended: float | None = None
        self._over_at: float | None = None  # the same by the loop's clock
        self.work: asyncio.Task[None] | None = None
        # The agent's own tasks answer also where the house is full.
        self.own = not admission.task.backend
        self.claimed = admission.claimed
        self._gates = (admission.task.gate,) if self.own else (admission.task.gate, house)
        self._place = admission.task.gate.join()
        self._over: asyncio.Future[tuple[str, str]] = self._loop.create_future()
        self._timer = self._limit(admission.wishes.timeout, "time limit of {:g} s reached")

    def cancel(self, by: str) -> None:
        """Let it end because *by* wishes it; see `end`."""
        self.end(f"cancelled by {by[:LONGEST_NAME] or 'a client without a name'}", CANCELLED)

    def end(self, reason: str, cause: str = "error") -> None:
        """Let it end with an error as soon as possible; only the first call counts."""
        if not self._over.done():
            self._over.set_result((reason, cause))

    def withdraw(self) -> None:
        """Give its place up instead of asking for an `outcome`: it is not to run."""
        if self._timer is not None:
            self._timer.cancel()
        self._withdraw(self._gates[0], self._place)
        self.settled.set()

    async def outcome(
        self,
        refused: Callable[[], Awaitable[str]] | None = None,
        starting: Callable[[], str] = lambda: "",
    ) -> tuple[Status, str]:
        """Wait, run, and tell how it ended.

        The answer never waits for a broker that does not heed its cancellation;
        the job's place does.

        Args:
            refused: Asked when everything is ready: why it must not start any more,
                or nothing.
            starting: Told at the last moment that it begins: why it must not, or nothing.

        Returns:
            done and an empty reason, or error and why.
        """
        self.status, reason = await self._outcome(refused, starting)
        try:
            await self.output.finish()
        except BrokerError as exc:  # the disk is full
            self.status, self.cause, reason = Status.ERROR, "error", str(exc)
        self.reason = _cut(self.output.masked(reason), LONGEST_REASON)
        self.ended, self._over_at = time.time(), self._loop.time()
        self.settled.set()
        return self.status, self.reason

    @property
    def cancelled(self) -> bool:
        """Whether it has ended for that, and not by itself in the same moment."""
        return self.cause == CANCELLED

    @property
    def seconds(self) -> float | None:
        """How long it has run so far, or altogether; None if it was never started."""
        if self._began is None:
            return None
        return (self._loop.time() if self._over_at is None else self._over_at) - self._began

    def fail(self, reason: str) -> tuple[Status, str]:
        """It turned out to be an error after all."""
        self.status, self.cause = Status.ERROR, "error"
        self.reason = _cut(self.output.masked(reason), LONGEST_REASON)
        return self.status, self.reason

    def result(self) -> dict[str, Any]:
        """How it went, for `options.result` (protocol.md 6)."""
        output, duration = self.output, None
        if self._began is not None:
            duration = round(self._loop.time() - self._began, 6)
        return {
            "exit_code": _exit_code(output.code),
            "signal": _signal(output.code),
            "stderr": output.stderr.decode("utf-8", "replace"),
            "started": self.started,
            "duration": duration,
            "truncated": output.truncated,
        }

    def record(self) -> Record:
        """What is known of it at the moment."""
        output, job = self.output, self.job
        return Record(
            job.uuid[:LONGEST_NAME], job.task, job.src[:LONGEST_NAME], self._state(),
            _cut(self.reason, LONGEST_RECORDED),
            self.queued, self.started, self.ended, output.user, output.pid,
            _exit_code(output.code), _signal(output.code), output.cpu_seconds, None,
            output.peak_memory, output.text.taken,
        )  # fmt: skip

    def _state(self) -> str:
        if self.status is not None:
            ending = self.work is not None and not self.work.done()
            return "ending" if ending else self.status.value
        return "queued" if self.started is None else "running"

    async def _outcome(
        self, refused: Callable[[], Awaitable[str]] | None, starting: Callable[[], str]
    ) -> tuple[Status, str]:
        run_timer = None
        try:
            if self.admission.fault:
                self.end(self.admission.fault, "fault")
            if not await self._has_place():
                status, reason = self._ended()
                plain = self.cause in (CANCELLED, "lost", "refused")
                return status, reason if plain else f"{reason}, {NOT_STARTED}"
            if refused is not None:
                await self._ask(refused)
            if not self._over.done() and (why := starting()):
                self.end(why, "refused")
            if self._over.done():
                self._leave_gates()
                return self._ended()
            self.started, self._began = time.time(), self._loop.time()
            run_timer = self._limit(self.task.run_timeout, "run time limit of {:g} s reached")
            if self.task.run_timeout is not None:
                ends = (self.started + self.task.run_timeout, self.job.deadline or math.inf)
                self.job = replace(self.job, deadline=min(ends))
            return await self._run()
        finally:
            self.output.closed = True
            for one in (self._timer, run_timer):
                if one is not None:
                    one.cancel()

    def _limit(self, seconds: float | None, reason: str) -> asyncio.TimerHandle | None:
        if seconds is None:
            return None
        return self._loop.call_later(seconds, self.end, reason.format(seconds), "timeout")

    async def _ask(self, refused: Callable[[], Awaitable[str]]) -> None:
        """End it if it must not start any more; the time limit holds meanwhile, too."""
        asking = asyncio.ensure_future(refused())
        await asyncio.wait((asking, self._over), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
        elif asking.exception() is not None:
            self.end(f"not run: {asking.exception()}", "error")
        elif why := asking.result():
            self.end(why, "expired")

    def _ended(self) -> tuple[Status, str]:
        reason, self.cause = self._over.result()
        return Status.ERROR, reason

    async def _has_place(self) -> bool:
        """Pass the task's gate and then the house's; False once the job is over."""
        for number, gate in enumerate(self._gates):
            place = self._place if number == 0 else gate.join()
            if place is not None:
                await asyncio.wait((place, self._over), return_when=asyncio.FIRST_COMPLETED)
            if self._over.done():
                self._withdraw(gate, place)
                for passed in self._gates[:number]:
                    passed.leave()
                return False
        return True

    @staticmethod
    def _withdraw(gate: Gate, place: asyncio.Future[None] | None) -> None:
        if place is None:
            gate.leave()
        else:
            gate.withdraw(place)

    async def _run(self) -> tuple[Status, str]:
        work = self._loop.create_task(_call(self.task.broker, self.job, self.output))
        self.work = work
        work.add_done_callback(self._leave)
        await asyncio.wait((work, self._over), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait((work,), timeout=SETTLE)
            return self._ended()
        self.cause = "error"
        if work.cancelled():
            return Status.ERROR, "cancelled"
        problem = work.exception()
        if problem is None:
            self.cause = ""
            return Status.DONE, ""
        if isinstance(problem, BrokerError):
            # Somebody else's text; the wire takes no lone surrogates.
            reason = str(problem).encode("utf-8", "replace").decode()
            return Status.ERROR, reason or "failed"
        # A bug in a broker: the client gets an answer, the log the traceback.
        log.error("task %s failed on request %.80r", self.job.task, self.job.uuid, exc_info=problem)
        return Status.ERROR, f"internal error in task {self.job.task}, see the node's log"

    def _leave(self, work: asyncio.Task[None]) -> None:
        self._leave_gates()
        if not work.cancelled():
            work.exception()  # seen; what it means is decided above

    def _leave_gates(self) -> None:
        for gate in self._gates:
            gate.leave()


async def _call(broker: Broker, job: Job, output: Collector) -> None:
    await broker.run(job, output)  # in here even a `run` that is no coroutine is only a bug


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _exit_code(code: int | None) -> int | None:
    return code if code is not None and code >= 0 else None


def _signal(code: int | None) -> int | None:
    return -code if code is not None and code < 0 else None
