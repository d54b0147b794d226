import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent import jobs
from ngcp_task_agent.dispatch import Admission, Gate, Wishes
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.jobs import Run
from ngcp_task_agent.messages import Status
from ngcp_task_agent.output import Collector

from ..helpers import Says, Stubborn, Waits, job, task, until

pytestmark = pytest.mark.concurrency

SHORT = 0.02  # seconds; a time limit that is meant to be reached


def run(broker, timeout=9.5, *, gate=None, house=None, fault="", **fields):
    """A job that has just been accepted."""
    one = task(broker, gate=gate or Gate(), **fields)
    admission = Admission(one, job(), "prx01a", Wishes(timeout), fault)
    return Run(admission, house or Gate(), Collector())


async def test_a_broker_that_returns_is_done():
    """And has no reason to give."""
    one = run(Says(b"po", b"ng"))

    assert await one.outcome() == (Status.DONE, "")
    assert one.output.text.text() == "pong"


@pytest.mark.parametrize(("text", "reason"), [("disk full", "disk full"), ("", "failed")])
async def test_a_broker_error_is_the_reason(text, reason):
    """A reason is never empty."""
    assert await run(Says(error=BrokerError(text))).outcome() == (Status.ERROR, reason)


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), TimeoutError(), KeyError("x")])
async def test_a_bug_in_a_broker_is_told_and_logged(error, caplog):
    """The client learns where to look; the traceback stays on the node."""
    status, reason = await run(Says(error=error)).outcome()

    assert (status, reason) == (Status.ERROR, "internal error in task ping, see the node's log")
    assert type(error).__name__ in caplog.text


async def test_a_broker_that_is_no_coroutine_is_a_bug_like_any_other():
    """Somebody forgot `async`; after accepted there is an end all the same."""

    class Forgetful:
        def run(self, job, output):
            return None

    gate, house = Gate(), Gate()

    status, reason = await run(Forgetful(), gate=gate, house=house).outcome()

    assert (status, reason[:14]) == (Status.ERROR, "internal error")
    assert gate.running == house.running == 0


async def test_a_broker_that_cancels_itself_is_an_error():
    """It did not return, so it is not done."""
    assert await run(Says(error=asyncio.CancelledError())).outcome() == (Status.ERROR, "cancelled")


async def test_the_time_limit_ends_a_job_that_runs():
    """Its broker is told to end, and has ended before the client hears."""
    broker = Waits()

    outcome = await run(broker, SHORT).outcome()

    assert outcome == (Status.ERROR, "time limit of 0.02 s reached")
    assert (len(broker.jobs), broker.running) == (1, 0)


@pytest.mark.parametrize("crowded", ["gate", "house"])
async def test_the_time_limit_ends_a_job_that_waits(crowded):
    """It counts from accepted; the broker never hears of it, and the queue forgets it."""
    gates = {"gate": Gate(), "house": Gate(), crowded: Gate(1)}
    gates[crowded].join()
    broker = Waits()

    outcome = await run(broker, SHORT, **gates).outcome()

    reason = "time limit of 0.02 s reached, before it was started"
    assert outcome == (Status.ERROR, reason)
    assert broker.jobs == []
    assert {name: (g.running, g.queued) for name, g in gates.items()} == {
        "gate": (0, 0), "house": (0, 0), crowded: (1, 0),
    }  # fmt: skip


async def test_a_run_time_limit_counts_from_the_start():
    """Waiting does not use it up."""
    gate, broker = Gate(1), Waits()
    gate.join()
    one = asyncio.ensure_future(run(broker, None, gate=gate, run_timeout=SHORT).outcome())
    await asyncio.sleep(5 * SHORT)

    gate.leave()

    assert await one == (Status.ERROR, "run time limit of 0.02 s reached")
    assert len(broker.jobs) == 1


async def test_the_shorter_of_two_limits_ends_it():
    """Both may be set."""
    assert (await run(Waits(), SHORT, run_timeout=5).outcome())[1].startswith("time limit")
    assert (await run(Waits(), 5, run_timeout=SHORT).outcome())[1].startswith("run time limit")


async def test_a_run_time_limit_shortens_the_deadline_from_the_start():
    """What the broker sees is when it is ended; it never gets later."""
    for run_timeout, deadline, expected in ((60, None, 60), (60, 10, 10), (None, 10, 10)):
        broker = Says(b"x")
        one = run(broker, run_timeout=run_timeout)
        now = time.time()
        one.job = job(deadline=deadline and now + deadline)

        await one.outcome()

        assert broker.jobs[0].deadline == pytest.approx(now + expected, abs=2)


async def test_no_limit_is_no_limit():
    """A task may go on for a day."""
    broker = Waits()
    one = asyncio.ensure_future(run(broker, None).outcome())
    await until(lambda: broker.running)

    broker.free.set()

    assert await one == (Status.DONE, "")


async def test_the_answer_does_not_wait_for_a_broker_that_ignores_its_end(monkeypatch):
    """The place does: what still runs still counts, and its output does not."""
    monkeypatch.setattr(jobs, "SETTLE", SHORT)
    broker, gate, house = Stubborn(), Gate(), Gate()
    one = run(broker, SHORT, gate=gate, house=house)

    assert await one.outcome() == (Status.ERROR, "time limit of 0.02 s reached")
    assert (gate.running, house.running, broker.running) == (1, 1, 1)
    broker.free.set()
    await until(lambda: not broker.running and gate.running == house.running == 0)
    assert one.output.text.text() == ""


async def test_a_broker_gets_a_moment_to_end(monkeypatch):
    """What it says while it ends is part of the answer."""

    class Polite(Waits):
        async def run(self, job, output):
            try:
                await super().run(job, output)
            except asyncio.CancelledError:
                await output.write(b"rolled back")
                raise

    one = run(Polite(), SHORT)

    assert (await one.outcome())[0] is Status.ERROR
    assert one.output.text.text() == "rolled back"


async def test_who_is_done_in_time_is_not_late():
    """Done before the limit is done, whatever the clock says when it is looked at."""

    class Busy(Says):
        async def run(self, job, output):
            time.sleep(2 * SHORT)  # noqa: ASYNC251 (blocks the loop on purpose)

    assert await run(Busy(), SHORT).outcome() == (Status.DONE, "")


async def test_the_first_reason_to_end_is_the_reason():
    """A stop while the time limit's end is under way does not change the answer."""
    one = run(Waits())

    one.end("cancelled by anna")
    one.end("the agent is stopping")

    assert await one.outcome() == (Status.ERROR, "cancelled by anna, before it was started")


async def test_a_fault_of_the_request_ends_it_before_it_is_started():
    """Accepted because it may not be rejected."""
    broker = Waits()

    status, reason = await run(broker, fault="options.timeout: found 0").outcome()

    assert (status, broker.jobs) == (Status.ERROR, [])
    assert reason.startswith("options.timeout: found 0")


async def test_jobs_start_in_the_order_they_were_accepted():
    """One at a time, nobody overtakes."""
    started = []

    class Notes(Says):
        def __init__(self, number):
            super().__init__()
            self.number = number

        async def run(self, job, output):
            started.append(self.number)
            await asyncio.sleep(0)

    gate, house = Gate(1), Gate(1)
    runs = [run(Notes(number), gate=gate, house=house) for number in range(20)]

    await asyncio.gather(*(one.outcome() for one in runs))

    assert started == list(range(20))


async def test_the_agents_own_tasks_run_where_the_house_is_full():
    """`agent.ping` has to answer just when everything is busy."""
    house = Gate(1)
    house.join()

    assert await run(Says(b"pong"), house=house, backend="").outcome() == (Status.DONE, "")
    assert (house.running, house.queued) == (1, 0)


BROKERS = {
    "says": Says,
    "fails": lambda: Says(error=BrokerError("no")),
    "bug": lambda: Says(error=ZeroDivisionError()),
    "waits": Waits,
    "stubborn": Stubborn,
}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(BROKERS)), st.booleans()), max_size=12),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_place_is_given_back_exactly_once(kinds, max_running, max_house):
    """However jobs end, and whenever: the gates are empty afterwards and were never overfull."""
    asyncio.run(crowd(kinds, Gate(max_running), Gate(max_house)))


async def crowd(kinds, gate, house):
    brokers = [BROKERS[kind]() for kind, _ in kinds]
    runs = [run(broker, None, gate=gate, house=house) for broker in brokers]
    ends = [asyncio.ensure_future(one.outcome()) for one in runs]
    for one, (_, early) in zip(runs, kinds, strict=True):
        assert gate.running <= gate.max_running
        assert house.running <= house.max_running
        assert sum(getattr(broker, "running", 0) for broker in brokers) <= house.running
        if early:
            one.end("stopped")
        await asyncio.sleep(0)
    for broker in brokers:
        if isinstance(broker, Waits):
            broker.free.set()
    outcomes = await asyncio.gather(*ends)
    await asyncio.gather(*(one.work for one in runs if one.work), return_exceptions=True)
    await asyncio.sleep(0)

    assert {(g.running, g.queued) for g in (gate, house)} == {(0, 0)}
    assert all((status is Status.DONE) is (reason == "") for status, reason in outcomes)
