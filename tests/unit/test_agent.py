import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngcp_task_agent import agent as agent_module
from ngcp_task_agent import jobs
from ngcp_task_agent.agent import Agent
from ngcp_task_agent.config import Limits
from ngcp_task_agent.dispatch import Dispatcher, Gate
from ngcp_task_agent.errors import BrokerError

from ..helpers import NODE, MemoryBackend, Says, Stubborn, Waits, request, task, until

pytestmark = pytest.mark.concurrency

ENDS = ("done", "error")


class Corridor:
    """An agent with the task "ping", on a backend in memory."""

    def __init__(self, broker=None, *, limits=None, backend=None, spool_dir="", **fields):
        self.backend = backend or MemoryBackend()
        self.dispatcher = Dispatcher(lambda: NODE)
        self.broker = broker or Says(b"pong")
        self.dispatcher.tasks = {"ping": task(self.broker, **fields)}
        self.agent = Agent(self.dispatcher, limits or Limits(), spool_dir)

    def take(self, *payloads, **fields):
        """Let the agent decide on *payloads*, as `serve` does, and at once."""
        for payload in payloads:
            self.backend.publish(payload, **fields)
        for delivery in self.backend.arrived():
            self.agent.take(delivery, "memory", self.backend)

    async def idle(self):
        """Wait until every job has been answered."""
        await until(lambda: not self.agent.runs)


# Accepted before anything, and one end


async def test_a_request_is_accepted_and_done():
    """From bytes to bytes, through every room."""
    corridor = Corridor()

    corridor.take(request(uuid="U-1"))
    await corridor.idle()

    accepted, done = corridor.backend.responses()
    assert (accepted["status"], done["status"], done["data"]) == ("accepted", "done", "pong")
    assert accepted["ref"] == done["ref"] == "U-1"
    assert accepted["uuid"] != done["uuid"]
    assert accepted["src"] == done["src"] == "prx01a"


async def test_accepted_leaves_before_anything_is_started():
    """Clients give up after two seconds without it, however busy the node is."""
    broker = Waits()
    corridor = Corridor(broker, gate=Gate(1), limits=Limits(max_running=1))

    corridor.take(*[request(uuid=str(number)) for number in range(60)])

    assert corridor.backend.statuses() == ["accepted"] * 60
    assert broker.jobs == []
    broker.free.set()
    await corridor.idle()
    assert corridor.backend.statuses()[60:] == ["done"] * 60


async def test_serve_takes_what_a_backend_receives_until_it_stops():
    """The only place that waits for requests."""
    corridor = Corridor()
    serving = asyncio.ensure_future(corridor.agent.serve("memory", corridor.backend))
    corridor.backend.publish(request())
    corridor.backend.publish(request(dst="local"), local=True)
    await until(lambda: corridor.backend.statuses().count("done") == 2)

    await corridor.backend.stop()

    await asyncio.wait_for(serving, 1)


async def test_a_bug_in_a_room_does_not_make_the_agent_deaf(caplog):
    """It is logged with its traceback, counted, and the next request is taken."""
    corridor = Corridor()
    admit = corridor.dispatcher.admit

    def admit_the_second(*args):
        corridor.dispatcher.admit = admit
        raise ZeroDivisionError

    corridor.dispatcher.admit = admit_the_second
    serving = asyncio.ensure_future(corridor.agent.serve("memory", corridor.backend))
    corridor.backend.publish(request())
    corridor.backend.publish(request())
    await corridor.backend.stop()
    await serving
    await corridor.idle()

    assert corridor.backend.statuses() == ["accepted", "done"]
    assert corridor.agent.counts["bad"] == 1
    assert "ZeroDivisionError" in caplog.text


ENDINGS = {
    "done": (Says(b"pong"), {}, "done"),
    "result": (Says(result={"a": 1}), {}, "done"),
    "broker error": (Says(error=BrokerError("disk full")), {}, "error"),
    "bug": (Says(error=ZeroDivisionError()), {}, "error"),
    "no json": (Says(result=object()), {}, "error"),
    "surrogate in the reason": (Says(error=BrokerError("\udc80")), {}, "error"),
    "time limit": (Waits, {"timeout": 0.02}, "error"),
    "run time limit": (Waits, {"timeout": None, "run_timeout": 0.02}, "error"),
    "ignores its end": (Stubborn, {"timeout": 0.02}, "error"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_after_accepted_there_is_exactly_one_end(ending, monkeypatch):
    """Whatever happens; an error says why, and done does not."""
    monkeypatch.setattr(jobs, "SETTLE", 0.02)
    broker, fields, status = ENDINGS[ending]
    broker = broker() if callable(broker) else broker
    corridor = Corridor(broker, **fields)

    corridor.take(request())
    await corridor.idle()

    _, end = corridor.backend.responses()
    assert corridor.backend.statuses() == ["accepted", status]
    assert bool(end["reason"]) is (status == "error")
    assert corridor.agent.counts[status] == 1
    if isinstance(broker, Waits):
        broker.free.set()


async def test_a_broker_without_async_is_answered(caplog):
    """A plug-in's mistake is an error of the task, never silence."""

    class Forgetful(Says):
        def run(self, job, output):
            return None

    corridor = Corridor(Forgetful())

    corridor.take(request())
    await corridor.idle()

    assert corridor.backend.statuses() == ["accepted", "error"]


async def test_a_time_limit_asked_for_counts():
    """`options.timeout`, up to the task's own."""
    corridor = Corridor(Waits())

    corridor.take(request(options={"feedback_channel": "fb", "timeout": 0.02}))
    await corridor.idle()

    assert corridor.backend.responses()[-1]["reason"] == "time limit of 0.02 s reached"


async def test_a_bad_option_on_a_wildcard_is_accepted_and_ends_in_error():
    """Never `rejected` where the request does not name this node."""
    broker = Says(b"pong")
    corridor = Corridor(broker)

    corridor.take(request(options={"feedback_channel": "fb", "timeout": "soon"}))
    await corridor.idle()

    assert corridor.backend.statuses() == ["accepted", "error"]
    assert "options.timeout" in corridor.backend.responses()[-1]["reason"]
    assert broker.jobs == []


# Silence and refusal


@pytest.mark.parametrize("fields", [{"dst": "db*"}, {"task": "pnig"}, {"dst": "db*", "task": "x"}])
async def test_other_peoples_requests_are_passed_over(fields, caplog):
    """No answer, no line in the log; only counted."""
    corridor = Corridor()

    corridor.take(request(**fields))

    assert corridor.backend.sent == {}
    assert corridor.agent.counts == {"passed_over": 1}
    assert caplog.text == ""


async def test_a_refusal_is_the_only_answer():
    """`rejected` comes instead of `accepted`."""
    corridor = Corridor()

    corridor.take(request(dst="prx01a", task="pnig"))

    (answer,) = corridor.backend.responses()
    assert (answer["status"], answer["reason"]) == ("rejected", "unknown task 'pnig'")
    assert (answer["src"], answer["task"]) == ("prx01a", "pnig")
    assert corridor.agent.counts == {"rejected": 1}
    assert not corridor.agent.runs


async def test_what_is_not_taken_for_lack_of_room_is_counted():
    """Silence on the wire, a line in the log, a number in the counts."""
    corridor = Corridor(Waits(), gate=Gate(1, 1))

    corridor.take(*[request(uuid=str(number)) for number in range(5)])

    assert corridor.backend.statuses() == ["accepted"] * 2
    assert corridor.agent.counts == {"accepted": 2, "passed_over": 3, "crowded": 3}
    corridor.dispatcher.tasks["ping"].broker.free.set()
    await corridor.idle()


JUNK = [b"", b"{", b"[]", b"\xff", b'{"uuid": 1}', request(dst="a|"), request(uuid=""),
        request(options={}), request(options={"feedback_channel": 7}),
        b"x" * 2_000_000]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_junk_is_counted_and_not_answered(junk, caplog):
    """It is logged, and the next request is served."""
    corridor = Corridor()

    corridor.take(junk, request())
    await corridor.idle()

    assert corridor.backend.statuses() == ["accepted", "done"]
    assert corridor.agent.counts["bad"] == 1
    assert "control: not a request: " in caplog.text
    assert len(caplog.text) < 2000


async def test_a_flood_of_junk_does_not_flood_the_log(caplog):
    """Anyone may publish."""
    corridor = Corridor()

    corridor.take(*[b"{"] * 1000)

    assert corridor.agent.counts["bad"] == 1000
    assert len(caplog.records) < 20


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), max_size=5))
def test_no_bytes_stop_the_agent(payloads):
    """Whatever is published, the request behind it is answered."""

    async def scenario():
        corridor = Corridor()
        corridor.take(*payloads, request())
        await corridor.idle()
        assert corridor.backend.statuses() == ["accepted", "done"]

    asyncio.run(scenario())


# Where answers go


async def test_the_delivery_knows_better_than_the_request():
    """An answer to a local client goes to its connection, whatever channel it named."""
    corridor = Corridor()

    corridor.take(request(), request(options={}), local=True, address="local-1")
    await corridor.idle()

    assert sorted(corridor.backend.statuses("local-1")) == ["accepted"] * 2 + ["done"] * 2
    assert list(corridor.backend.sent) == ["local-1"]


async def test_a_large_result_goes_in_pieces_that_join():
    """Paced: each piece has left before the next is made."""

    class Counts(MemoryBackend):
        flushed = 0

        async def flush(self, address):
            assert len(self.sent[address]) == self.flushed + 2
            self.flushed += 1

    backend = Counts()
    corridor = Corridor(Says(b"line\n" * 2000), backend=backend, limits=Limits(chunk_size=1024))

    corridor.take(request())
    await corridor.idle()

    accepted, *pieces = backend.responses()
    assert accepted["status"] == "accepted"
    assert "".join(piece["data"] for piece in pieces) == "line\n" * 2000
    assert [piece["chunk"] for piece in pieces] == list(range(1, pieces[0]["chunks"] + 1))
    assert backend.flushed == len(pieces) > 5


async def test_what_is_sent_to_one_client_is_paced(monkeypatch):
    """Redis drops a subscriber that cannot keep up; a small answer goes at once."""
    monkeypatch.setattr("ngcp_task_agent.course.BURST", 6000)
    monkeypatch.setattr("ngcp_task_agent.course.PACE", 50_000)
    corridor, now = Corridor(Says(b"x" * 10_000), limits=Limits(chunk_size=1024)), time.monotonic

    began = now()
    corridor.take(request())
    await corridor.idle()
    seconds = now() - began

    assert len(corridor.backend.responses()) > 10
    assert seconds >= 4000 / 50_000


async def test_an_output_is_given_back_after_the_answer(tmp_path):
    """No file, no memory: a daemon lives for years."""
    corridor = Corridor(Says(b"x" * 600_000, b"y" * 600_000), spool_dir=str(tmp_path))

    corridor.take(request())
    (run,) = corridor.agent.runs
    await corridor.idle()

    assert run.output.text.size == 0
    assert len(corridor.backend.responses()[-1]["data"]) == 1_200_000


# Limits and stopping


async def test_all_tasks_together_have_a_limit_too():
    """And a new one counts at once."""
    brokers = [Waits() for _ in range(4)]
    corridor = Corridor(limits=Limits(max_running=2))
    corridor.dispatcher.tasks = {f"t{n}": task(b, name=f"t{n}") for n, b in enumerate(brokers)}
    corridor.take(*[request(task=f"t{number}") for number in range(3)])
    await until(lambda: sum(broker.running for broker in brokers) == 2)

    corridor.agent.limits = Limits(max_running=4)
    corridor.take(request(task="t3"))

    await until(lambda: sum(broker.running for broker in brokers) >= 3)
    for broker in brokers:
        broker.free.set()
    await corridor.idle()


async def test_a_backend_is_told_when_its_jobs_are_answered():
    """A backend that was replaced goes once nobody needs it for an answer."""
    broker, other = Waits(), MemoryBackend()
    corridor = Corridor(broker)
    corridor.take(request())

    await asyncio.wait_for(corridor.agent.answered(other), 1)
    waiting = asyncio.ensure_future(corridor.agent.answered(corridor.backend))
    await until(lambda: broker.running)
    assert not waiting.done()
    broker.free.set()
    await asyncio.wait_for(waiting, 1)

    assert corridor.backend.statuses() == ["accepted", "done"]


async def test_what_requests_take_is_free_when_they_are_answered(monkeypatch):
    """However they end; else the node refuses everything after a while."""
    monkeypatch.setattr("ngcp_task_agent.dispatch.MAX_HELD", 2 * len(request()))
    corridor = Corridor(Says(error=ZeroDivisionError()))

    for _ in range(10):
        corridor.take(request())
        await corridor.idle()

    assert corridor.agent.counts["error"] == 10


async def test_draining_lets_jobs_end():
    """Those that end within the grace time are done."""
    broker = Waits()
    corridor = Corridor(broker)
    corridor.take(request())
    await until(lambda: broker.running)

    draining = asyncio.ensure_future(corridor.agent.drain(5))
    await until(lambda: corridor.dispatcher.stopping)
    broker.free.set()
    await draining

    assert corridor.backend.statuses() == ["accepted", "done"]


async def test_draining_ends_and_answers_everybody(monkeypatch):
    """Who runs, who waits, and who does not listen: each gets one error, in time."""
    monkeypatch.setattr(jobs, "SETTLE", 0.02)
    waits, stubborn = Waits(), Stubborn()
    corridor = Corridor(waits, gate=Gate(2))
    corridor.dispatcher.tasks["stubborn"] = task(stubborn, name="stubborn")
    corridor.take(*[request(uuid=str(n)) for n in range(5)], request(task="stubborn", uuid="5"))
    await until(lambda: waits.running == 2 and stubborn.running)

    draining = asyncio.ensure_future(corridor.agent.drain(0.02))
    await until(lambda: not corridor.agent.runs)
    stubborn.free.set()
    await draining

    ends = {r["ref"]: r for r in corridor.backend.responses() if r["status"] in ENDS}
    assert sorted(ends) == list("012345")
    assert len(corridor.backend.responses()) == 12
    assert {end["status"] for end in ends.values()} == {"error"}
    assert all(end["reason"].startswith("the agent is stopping") for end in ends.values())


async def test_draining_waits_for_the_work_and_not_only_for_the_answer(monkeypatch):
    """What still runs when the daemon ends would be left behind."""
    monkeypatch.setattr(jobs, "SETTLE", 0.02)
    broker = Stubborn()
    corridor = Corridor(broker)
    corridor.take(request())
    await until(lambda: broker.running)

    draining = asyncio.ensure_future(corridor.agent.drain(0.02))
    await until(lambda: not corridor.agent.runs)
    await asyncio.sleep(0.05)

    assert not draining.done()
    broker.free.set()
    await draining


async def test_draining_refuses_what_is_new():
    """With a reason where the node is named, in silence elsewhere."""
    corridor = Corridor()
    await corridor.agent.drain(0)

    corridor.take(request(dst="prx01a"), request(dst="*"))

    (answer,) = corridor.backend.responses()
    assert (answer["status"], answer["reason"]) == ("rejected", "the agent is stopping")


async def test_draining_does_not_wait_for_a_bus_that_is_away(monkeypatch):
    """An answer in pieces waits for the bus, which may never come back; the stop has a limit."""
    monkeypatch.setattr("ngcp_task_agent.agent.LAST_ANSWERS", 0.05)

    class Away(MemoryBackend):
        async def flush(self, address):
            await asyncio.Event().wait()

    corridor = Corridor(Says(b"line\n" * 2000), backend=Away(), limits=Limits(chunk_size=1024))
    corridor.take(request())
    await until(lambda: len(corridor.backend.responses()) == 2)

    async with asyncio.timeout(5):
        await corridor.agent.drain(0.02)


# Cancelling, and what is known of jobs


async def test_a_cancelled_job_says_by_whom():
    """Its client did not ask for it."""
    corridor = Corridor(Waits())
    corridor.take(request(uuid="one"))
    await until(lambda: corridor.broker.running == 1)

    (record,) = await corridor.agent.cancel("one", "web02b")

    assert (record.state, record.reason) == ("error", "cancelled by web02b")
    assert corridor.backend.statuses() == ["accepted", "error"]
    assert corridor.backend.responses()[-1]["reason"] == "cancelled by web02b"


async def test_a_cancelled_job_that_waits_is_never_started():
    """And the next in the queue has its place."""
    corridor = Corridor(Waits(), gate=Gate(1))
    for uuid in ("one", "two", "three"):
        corridor.take(request(uuid=uuid))
    await until(lambda: corridor.broker.running == 1)

    (record,) = await corridor.agent.cancel("two", "web02b")
    corridor.broker.free.set()
    await corridor.idle()

    assert record.reason == "cancelled by web02b"
    assert record.started is None
    assert [job.uuid for job in corridor.broker.jobs] == ["one", "three"]


async def test_a_cancel_waits_until_nothing_is_left():
    """Done means ended, and not only told to end."""
    corridor = Corridor(Stubborn())
    corridor.take(request(uuid="one"))
    await until(lambda: corridor.broker.running == 1)

    cancelling = asyncio.ensure_future(corridor.agent.cancel("one", "web02b"))
    await until(lambda: corridor.backend.statuses() == ["accepted", "error"])
    await asyncio.sleep(0.05)
    (run,) = corridor.agent.ending
    assert run.record().state == "ending"
    assert not cancelling.done()
    corridor.broker.free.set()

    assert [record.state for record in await cancelling] == ["error"]
    assert corridor.agent.ending == set()


async def test_what_has_ended_cannot_be_cancelled():
    """Not even in the moment of its end."""
    corridor = Corridor(Says(b"pong"))
    corridor.take(request(uuid="one"))

    await corridor.idle()

    assert await corridor.agent.cancel("one", "web02b") == []
    assert await corridor.agent.cancel("two", "web02b") == []


async def test_the_last_jobs_are_remembered(monkeypatch):
    """As many as there is room for, without what their clients may have made large."""
    monkeypatch.setattr(agent_module, "RECENT", 3)
    corridor = Corridor(Says(b"pong"))
    for number in range(5):
        corridor.take(request(uuid=f"{number}" * 1000, src="s" * 5000))
        await corridor.idle()

    records = list(corridor.agent.recent)

    assert [record.uuid[0] for record in records] == ["2", "3", "4"]
    assert all(len(record.uuid) == len(record.src) == 200 for record in records)
    assert [(record.state, record.output_bytes) for record in records] == [("done", 4)] * 3
    assert all(r.queued <= r.started <= r.ended for r in records)


# Live output and results, for those who have asked


def wish(**options):
    return request(options={"feedback_channel": "fb", **options})


async def test_live_output_comes_between_accepted_and_the_end():
    """And the last answer has all of it once more."""
    corridor = Corridor(Says(b"one\n", b"two\n"))

    corridor.take(wish(stream=True))
    await corridor.idle()

    first, *pieces, last = corridor.backend.responses()
    assert (first["status"], last["status"], last["data"]) == ("accepted", "done", "one\ntwo\n")
    assert {piece["status"] for piece in pieces} == {"progress"}
    assert "".join(piece["data"] for piece in pieces) == last["data"]
    assert (pieces[0]["stream"], pieces[0]["seq"], pieces[0]["offset"]) == ("stdout", 1, 0)


async def test_a_client_that_did_not_ask_sees_nothing_of_it():
    """Older clients take any message that is not accepted for the end."""
    corridor = Corridor(Says(b"one\n"))

    corridor.take(wish(), wish(stream=False, result=None))
    await corridor.idle()

    assert sorted(corridor.backend.statuses()) == ["accepted", "accepted", "done", "done"]
    known = {"uuid", "ref", "task", "src", "dst", "timestamp", "datetime", "chunk", "chunks",
             "status", "reason", "data"}  # fmt: skip
    assert all(set(response) == known for response in corridor.backend.responses())


async def test_how_it_ended_is_told_in_the_last_message():
    """In the last of many, too."""
    corridor = Corridor(Says(b"x\n" * 3000), limits=Limits(chunk_size=1024))

    corridor.take(wish(result=True))
    await corridor.idle()

    *others, last = corridor.backend.responses()
    assert last["chunk"] == last["chunks"] > 1
    assert set(last["result"]) == {
        "exit_code", "signal", "stderr", "started", "duration", "truncated",
    }  # fmt: skip
    assert not any("result" in other for other in others)


@pytest.mark.parametrize("wrong", ["yes", 1, {}, []])
@pytest.mark.parametrize("name", ["stream", "result"])
async def test_a_wish_is_true_or_false(name, wrong):
    """Bad options are refused where the request names the node, and fail elsewhere."""
    corridor = Corridor()

    options = {"feedback_channel": "fb", name: wrong}
    corridor.take(request(options=options), request(options=options, dst="prx01a"))
    await corridor.idle()

    assert sorted(corridor.backend.statuses()) == ["accepted", "error", "rejected"]
    reasons = {response["reason"] for response in corridor.backend.responses()[1:]}
    assert all(reason.startswith(f"options.{name}: found ") for reason in reasons)


async def test_what_the_task_masks_is_in_no_message():
    """Nor in the record of the job."""
    error = BrokerError("wrong pin 4711")
    corridor = Corridor(Says(b"47", b"11\n", error=error), mask=("data.pin",))

    corridor.take(request(data={"pin": "4711"}, options=wish_options))
    await corridor.idle()

    last = corridor.backend.responses()[-1]
    assert (last["data"], last["reason"]) == ("***\n", "wrong pin ***")
    assert "4711" not in str(corridor.backend.sent)
    assert corridor.agent.recent[-1].reason == "wrong pin ***"


wish_options = {"feedback_channel": "fb", "stream": True, "result": True}
