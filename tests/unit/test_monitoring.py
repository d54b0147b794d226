"""What monitoring is told, on fakes: readiness and the numbers."""

import asyncio
import math

import pytest

from ngcp_task_agent.agent import Agent
from ngcp_task_agent.config import Limits
from ngcp_task_agent.dispatch import Dispatcher
from ngcp_task_agent.errors import BackendError, BrokerError
from ngcp_task_agent.facts import Age, Facts
from ngcp_task_agent.interfaces import BackendState, Reading
from ngcp_task_agent.metrics.readiness import Readiness
from ngcp_task_agent.metrics.view import View
from ngcp_task_agent.tally import Tally

from ..acceptance.scrape import library
from ..helpers import NODE, Clock, MemoryBackend, Says, Waits, request, task, until


class Asked(MemoryBackend):
    """A backend that can be asked; it raises *error*, or never answers."""

    def __init__(self, error=None, silent=False):
        super().__init__()
        self.error = error
        self.silent = silent
        self.asked = 0

    async def reach(self):
        self.asked += 1
        await asyncio.sleep(0)
        if self.silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


class Away(MemoryBackend):
    """Not connected, and it says so itself."""

    def state(self):
        return BackendState(False, True, "no memory")


def view(agent=None, *, ages=(), phase="serving", missing=(), **backends):
    """A daemon with these backends."""
    return View(
        agent or Agent(Dispatcher(lambda: NODE), Limits()),
        lambda: agent._dispatcher.tasks if agent else {},
        lambda: backends,
        lambda: (*backends, *missing),
        lambda: list(ages),
        None,
        lambda: 0,
        lambda: phase,
    )


async def test_each_backend_says_what_is_wrong_with_it():
    """The line names the one, and does not hide the other."""
    readiness = Readiness(view(
        good=Asked(), plain=MemoryBackend(), away=Away(), bad=Asked(BackendError("it is deaf")),
        broken=Asked(ZeroDivisionError()), missing=("absent",),
    ))  # fmt: skip

    found = await readiness.look()

    assert found == {
        "good": "",
        "plain": "",
        "away": "is not reached: no memory",
        "bad": "is not reached: it is deaf",
        "broken": "is not reached: ZeroDivisionError",
        "absent": "is not to be had, see the node's log",
    }


async def test_a_silent_bus_is_not_waited_for(monkeypatch):
    """Whoever asks wants to know within seconds; the others are looked at meanwhile."""
    monkeypatch.setattr("ngcp_task_agent.metrics.readiness.ANSWER", 0.05)

    async with asyncio.timeout(2):
        found = await Readiness(view(a=Asked(silent=True), b=Asked(silent=True), c=Asked())).look()

    assert found["a"].startswith("does not answer within 0.05 s")
    assert (found["b"][:8], found["c"]) == ("does not", "")


async def test_the_bus_is_asked_once_however_many_want_to_know():
    """A flood of questions here must not become one on the bus."""
    backend = Asked()
    readiness = Readiness(view(a=backend))

    await asyncio.gather(*(readiness.look() for _ in range(100)))
    await readiness.look()

    assert backend.asked == 1


async def test_a_finding_is_not_kept_for_long(monkeypatch):
    """Recovery is seen, too."""
    monkeypatch.setattr("ngcp_task_agent.metrics.readiness.FRESH", 0.0)
    backend = Asked(BackendError("away"))
    readiness = Readiness(view(a=backend))
    assert (await readiness.look())["a"]

    backend.error = None

    assert await readiness.look() == {"a": ""}


async def test_who_goes_while_asking_spoils_nothing_for_others(monkeypatch):
    """A client that hangs up must not leave the next one without an answer."""
    monkeypatch.setattr("ngcp_task_agent.metrics.readiness.ANSWER", 5.0)
    backend = Asked(silent=True)
    readiness = Readiness(view(a=backend))
    first = asyncio.create_task(readiness.look())
    await until(lambda: backend.asked == 1)

    first.cancel()
    backend.silent = False

    assert await readiness.look() == {"a": ""}


async def serving(*tasks):
    """An agent with these tasks that counts."""
    dispatcher = Dispatcher(lambda: NODE)
    dispatcher.tasks = {one.name: one for one in tasks}
    agent, backend = Agent(dispatcher, Limits()), MemoryBackend()
    agent.tally = Tally()
    return agent, backend, dispatcher


async def take(agent, backend, *payloads):
    """Let these be handled to the end."""
    for payload in payloads:
        backend.publish(payload)
    for delivery in backend.arrived():
        agent.take(delivery, "memory", backend)
    await until(lambda: not agent.runs)


def shown(agent, **parts):
    """What would be scraped: name and labels to value."""
    library()
    from prometheus_client.parser import text_string_to_metric_families

    from ngcp_task_agent.metrics.collector import Exposition

    text = Exposition(view(agent, **parts)).text({"memory": ""}).decode()
    return {
        (sample.name.removeprefix("ngcp_task_agent_"), *sorted(sample.labels.values())): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_jobs_are_counted_by_task_outcome_and_cause():
    """The numbers are those of what was asked."""
    agent, backend, _ = await serving(task(), task(Says(error=BrokerError("no")), name="wrong"))

    await take(
        agent, backend, request(), request(), request(task="wrong"),
        request(task="unknown", dst="prx01a"), request(dst="other"), b"{}",
    )  # fmt: skip

    numbers = shown(agent)
    assert numbers["requests_total", "done", "ping"] == 2
    assert numbers["requests_total", "error", "wrong"] == 1
    assert numbers["requests_total", "not configured", "rejected"] == 1
    assert numbers["job_failures_total", "error", "wrong"] == 1
    assert numbers["job_output_bytes_total", "ping"] == 2 * len(b"pong")
    assert numbers["job_duration_seconds_bucket", "+Inf", "ping"] == 2
    assert numbers["job_duration_seconds_count", "ping"] == 2
    assert numbers["requests_passed_over_total",] == 1
    assert numbers["bad_input_total",] == 1
    assert numbers["requests_accepted_total",] == 3


async def test_a_task_that_is_gone_is_shown_without_its_name():
    """Files come and go for years; a name that is shown for ever would never go."""
    agent, backend, dispatcher = await serving(task(), task(name="old"), task(name="older"))
    await take(agent, backend, request(task="old"), request(task="older"))

    dispatcher.tasks = {"ping": dispatcher.tasks["ping"]}

    numbers = shown(agent)
    assert numbers["requests_total", "done", "not configured"] == 2
    assert numbers["job_duration_seconds_count", "not configured"] == 2
    assert not any({"old", "older"} & set(key) for key in numbers)


async def test_rates_begin_with_a_zero():
    """A first error is an increase only if there was a 0 before."""
    agent, _, _ = await serving(task())

    numbers = shown(agent)

    for outcome in ("done", "error", "rejected"):
        assert numbers["requests_total", *sorted((outcome, "ping"))] == 0


async def test_what_waits_is_not_what_runs():
    """Both are seen while they last."""
    broker = Waits()
    one = task(broker, max_running=1)
    one.gate.max_running = 1
    agent, backend, _ = await serving(one)
    for _ in range(3):
        backend.publish(request())
    for delivery in backend.arrived():
        agent.take(delivery, "memory", backend)
    await until(lambda: broker.running == 1)

    numbers = shown(agent)

    assert (numbers["jobs_running", "ping"], numbers["jobs_queued", "ping"]) == (1, 2)
    broker.free.set()
    await until(lambda: not agent.runs)


async def test_a_job_that_is_being_answered_runs_no_more():
    """A client that reads slowly is no busy task."""

    class Slow(MemoryBackend):
        def __init__(self):
            super().__init__()
            self.read = asyncio.Event()

        async def flush(self, address):
            await self.read.wait()

    agent, _, _ = await serving(task(Says(b"x" * 5000)))
    agent.limits = Limits(chunk_size=1024)
    backend = Slow()
    backend.publish(request())
    for delivery in backend.arrived():
        agent.take(delivery, "memory", backend)
    await until(lambda: len(backend.statuses()) == 2)

    assert len(agent.runs) == 1
    assert shown(agent)["jobs_running", "ping"] == 0
    backend.read.set()
    await until(lambda: not agent.runs)


async def test_names_that_clients_choose_are_not_kept():
    """Not only are they not shown: whoever may publish must not fill the memory."""
    agent, backend, _ = await serving(task())

    await take(agent, backend, *(request(task=f"t{n}", dst="prx01a") for n in range(20)))

    assert agent.tally.outcomes == {("", "rejected"): 20}


async def test_without_a_tally_nothing_is_counted_by_task():
    """Off costs nothing and keeps nothing; what is counted anyway is still shown."""
    agent, backend, _ = await serving(task())
    agent.tally = None

    await take(agent, backend, request())

    numbers = shown(agent)
    assert numbers["requests_total", "done", "ping"] == 0
    assert numbers["requests_accepted_total",] == 1


async def test_backends_show_their_queues_and_losses():
    """By name, and reconnects are what came after the first."""

    class Busy(MemoryBackend):
        def state(self):
            return BackendState(True, True, "", 3, 5, 7, 11, 13, 17)

    agent, _, _ = await serving()

    numbers = shown(agent, memory=Busy())

    assert {key[0]: value for key, value in numbers.items() if key[1:] == ("memory",)} == {
        "bus_reached": 1,
        "bus_connected": 1,
        "bus_reconnects_total": 4,
        "responses_dropped_total": 3,
        "response_queue_messages": 7,
        "response_queue_bytes": 11,
        "leases_held": 13,
        "dead_letters_total": 17,
    }


async def test_two_sources_of_one_name_are_told_apart():
    """The same labels twice, and Prometheus takes none of the whole text."""
    agent, _, _ = await serving()

    numbers = shown(agent, ages=[Age("file f", 1, 10), Age("file f", math.inf, 20)])

    assert numbers["fact_age_seconds", "file f"] == 1
    assert numbers["fact_age_seconds", "file f (2)"] == math.inf
    assert numbers["fact_max_age_seconds", "file f (2)"] == 20


async def test_ages_are_those_of_the_last_readings():
    """A source that was never read is infinitely old, and nothing else."""

    class Source:
        interval, max_age = 0.0, 10.0

        def __init__(self, error=None):
            self.error = error

        async def read(self):
            if self.error:
                raise self.error
            return Reading({})

    class Named(Source):
        def __str__(self):
            return "named"

    clock = Clock()
    facts = Facts("n", (), {}, [Named(), Source(OSError("no"))], "h", clock)
    await facts.start()

    clock.now += 4

    assert facts.ages() == [Age("named", 4, 10.0), Age("Source", math.inf, 10.0)]
    await facts.stop()


@pytest.mark.parametrize("phase", ["starting", "stopping"])
async def test_an_agent_that_does_not_serve_is_not_ready(phase):
    """However well its bus is."""
    agent, _, _ = await serving()

    assert shown(agent, phase=phase)["ready",] == 0
    assert shown(agent)["ready",] == 1
