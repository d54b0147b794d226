"""
One job from its acceptance to its outcome: waiting, running, the time limit.
"""

from __future__ import annotations

import asyncio
import logging

from .dispatch import Admission, Gate
from .errors import BrokerError
from .interfaces import Broker, Job
from .messages import Status
from .output import Collector

SETTLE = 0.25  # seconds a broker that is told to end may delay the answer

log = logging.getLogger(__name__)


class Run:
    """A job while it waits and runs.

    Args:
        admission: The dispatcher's decision; the task's gate is joined at once.
        house: Limits the jobs of all tasks together.
        output: Where the broker writes.
    """

    def __init__(self, admission: Admission, house: Gate, output: Collector) -> None:
        self._loop = asyncio.get_running_loop()
        self.admission = admission
        self.task = admission.task
        self.job = admission.job
        self.output = output
        self.accepted_at = self._loop.time()
        self.work: asyncio.Task[None] | None = None
        # The agent's own tasks answer also where the house is full.
        own = not admission.task.backend
        self._gates = (admission.task.gate,) if own else (admission.task.gate, house)
        self._place = admission.task.gate.join()
        self._over: asyncio.Future[str] = self._loop.create_future()

    def end(self, reason: str) -> None:
        """Let it end with an error as soon as possible; only the first call counts."""
        if not self._over.done():
            self._over.set_result(reason)

    async def outcome(self) -> tuple[Status, str]:
        """Wait, run, and tell how it ended.

        The answer never waits for a broker that does not heed its cancellation;
        the job's place does.

        Returns:
            done and an empty reason, or error and why.
        """
        timer = self._limit(self.admission.timeout, "time limit of {:g} s reached")
        try:
            if self.admission.fault:
                self.end(self.admission.fault)
            if not await self._has_place():
                return Status.ERROR, f"{self._over.result()}, before it was started"
            run_timer = self._limit(self.task.run_timeout, "run time limit of {:g} s reached")
            try:
                return await self._run()
            finally:
                if run_timer is not None:
                    run_timer.cancel()
        finally:
            self.output.closed = True
            if timer is not None:
                timer.cancel()

    def _limit(self, seconds: float | None, reason: str) -> asyncio.TimerHandle | None:
        if seconds is None:
            return None
        return self._loop.call_later(seconds, self.end, reason.format(seconds))

    async def _has_place(self) -> bool:
        """Pass the task's gate and then the house's; False once the job is over."""
        for number, gate in enumerate(self._gates):
            place = self._place if number == 0 else gate.join()
            if place is not None:
                await asyncio.wait((place, self._over), return_when=asyncio.FIRST_COMPLETED)
            if self._over.done():
                if place is None:
                    gate.leave()
                else:
                    gate.withdraw(place)
                for passed in self._gates[:number]:
                    passed.leave()
                return False
        return True

    async def _run(self) -> tuple[Status, str]:
        work = self._loop.create_task(_call(self.task.broker, self.job, self.output))
        self.work = work
        work.add_done_callback(self._leave)
        await asyncio.wait((work, self._over), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait((work,), timeout=SETTLE)
            return Status.ERROR, self._over.result()
        if work.cancelled():
            return Status.ERROR, "cancelled"
        problem = work.exception()
        if problem is None:
            return Status.DONE, ""
        if isinstance(problem, BrokerError):
            # Somebody else's text; the wire takes no lone surrogates.
            reason = str(problem).encode("utf-8", "replace").decode()
            return Status.ERROR, reason or "failed"
        # A bug in a broker: the client gets an answer, the log the traceback.
        log.error("task %s failed on request %.80r", self.job.task, self.job.uuid, exc_info=problem)
        return Status.ERROR, f"internal error in task {self.job.task}, see the node's log"

    def _leave(self, work: asyncio.Task[None]) -> None:
        for gate in self._gates:
            gate.leave()
        if not work.cancelled():
            work.exception()  # seen; what it means is decided above


async def _call(broker: Broker, job: Job, output: Collector) -> None:
    await broker.run(job, output)  # in here even a `run` that is no coroutine is only a bug
