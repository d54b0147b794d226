"""From acceptance to the last answer: records, repeats, claims, times to live."""

import asyncio
import time

import pytest

from ngcp_task_agent.agent import Agent
from ngcp_task_agent.config import Limits
from ngcp_task_agent.dispatch import Dispatcher, Gate
from ngcp_task_agent.errors import BackendError, BrokerError
from ngcp_task_agent.journal import Journal
from ngcp_task_agent.replies import Replies
from ngcp_task_agent.retry import Retry

from ..helpers import NODE, HeldRequest, MemoryBackend, Says, Waits, request, task, until

THREE = Retry(3, 4.0, 60.0, 0.0)
UNKNOWN = "outcome unknown: the agent stopped while it ran"


class Corridor:
    """An agent with the task "ping" and a journal, on a backend in memory."""

    def __init__(self, broker=None, journal=None, **fields):
        self.backend = MemoryBackend()
        self.dispatcher = Dispatcher(lambda: NODE)
        self.broker = broker or Says(b"pong")
        self.dispatcher.tasks = {"ping": task(self.broker, **fields)}
        self.journal = journal
        self.agent = Agent(self.dispatcher, Limits(), "", journal)

    def take(self, payload=None, claim=None, **fields):
        payload = payload or request(**{"uuid": "U", **fields})
        self.backend.publish(payload, claim=claim)
        for delivery in self.backend.arrived():
            self.agent.take(delivery, "memory", self.backend)

    async def run(self, payload=None, claim=None, **fields):
        self.take(payload, claim, **fields)
        await self.idle()

    async def idle(self):
        await until(lambda: not self.agent.runs and not self.agent._claims)

    def heard(self, address="fb"):
        return [(r["status"], r["reason"] or r["data"]) for r in self.backend.responses(address)]


@pytest.fixture
def journal(tmp_path):
    journal = Journal(str(tmp_path / "state" / "journal.db"))
    journal.aclose = journal.close
    return journal


async def recording(broker, journal, **fields):
    """A corridor whose journal is open."""
    assert await journal.open() == []
    return Corridor(broker, journal, **fields)


async def reopened(journal, tmp_path):
    await journal.close()
    again = Journal(str(tmp_path / "state" / "journal.db"))
    return again, await again.open()


# The same request again


async def test_a_repeat_while_it_runs_is_accepted_and_not_run(journal):
    """One job, one end, however often the client asks."""
    corridor = await recording(Waits(), journal)
    corridor.take()
    await until(lambda: corridor.broker.running)

    corridor.take()
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.backend.statuses() == ["accepted", "accepted", "done"]
    assert len(corridor.broker.jobs) == 1
    assert corridor.agent.counts["repeated"] == 1


async def test_a_repeat_from_elsewhere_hears_the_end_too(journal):
    """The client has come back with another channel."""
    corridor = await recording(Waits(), journal)
    corridor.take()
    corridor.take(options={"feedback_channel": "other"})
    await until(lambda: corridor.broker.running)
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.backend.statuses() == corridor.backend.statuses("other") == ["accepted", "done"]


async def test_a_repeat_after_the_end_gets_the_stored_outcome(journal, tmp_path):
    """The very same message, also from the next start on."""
    corridor = await recording(None, journal)
    await corridor.run()
    await corridor.run()
    again, unfinished = await reopened(journal, tmp_path)
    later = Corridor(None, again)
    await later.run()
    await again.close()

    first, second = (m for m in corridor.backend.responses() if m["status"] == "done")
    assert first == second == later.backend.responses()[1]
    assert corridor.backend.statuses() == ["accepted", "done"] * 2
    assert len(corridor.broker.jobs) == 1
    assert not later.broker.jobs
    assert not unfinished


async def test_an_answer_too_large_to_be_kept_is_told_so(journal):
    """Run again it is not, all the same."""
    corridor = await recording(Says(b"x" * 100_000), journal)
    await corridor.run()
    await corridor.run()

    status, said = corridor.heard()[-1]
    assert status == "error"
    assert "too large to be kept" in said
    assert len(corridor.broker.jobs) == 1


async def test_another_src_is_another_request(journal):
    """A uuid is the client's own matter."""
    corridor = await recording(None, journal)
    await corridor.run()
    await corridor.run(src="web02a")

    assert len(corridor.broker.jobs) == 2


async def test_a_repeat_for_others_is_passed_over(journal):
    """It is not this node that is asked."""
    corridor = await recording(Waits(), journal)
    corridor.take()
    corridor.take(dst="db*")
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.backend.statuses() == ["accepted", "done"]


# Where nothing can be recorded


@pytest.mark.parametrize("required", [True, False])
async def test_without_a_journal_a_task_that_requires_it_is_refused(required, tmp_path):
    """Others go on."""
    (tmp_path / "file").write_text("")
    broken = Journal(str(tmp_path / "file" / "journal.db"))
    await broken.open()
    corridor = Corridor(None, broken, journal_required=required)
    await corridor.run()
    await broken.close()

    status, said = corridor.heard()[-1]
    assert (status, len(corridor.broker.jobs)) == (("error", 0) if required else ("done", 1))
    assert not required or said.startswith("not run, for it cannot be recorded: ")
    assert broken.state().failures > 0


# After a crash


async def test_what_was_left_unfinished_is_answered_at_the_next_start(journal, tmp_path):
    """Nobody waits for an answer that never comes; once."""
    corridor = await recording(Waits(), journal)
    corridor.take()
    await until(lambda: corridor.broker.running)
    again, unfinished = await reopened(journal, tmp_path)
    later = Corridor(None, again)

    await later.agent.recover(unfinished, {"memory": later.backend})
    await later.run()
    await later.agent.confirmed()
    third, left = await reopened(again, tmp_path)
    await third.close()

    assert later.heard()[0] == ("error", UNKNOWN)
    assert later.heard()[2] == ("error", UNKNOWN)  # a repeat is told the same
    assert later.backend.responses()[0]["dst"] == "web01a"
    assert not later.broker.jobs
    assert not left
    corridor.broker.free.set()


async def test_an_answer_that_had_not_left_is_sent_at_the_next_start(journal, tmp_path):
    """The bus was away, and the agent was stopped."""
    corridor = await recording(None, journal)
    stuck = asyncio.Event()
    corridor.backend.flush = lambda address: stuck.wait()
    await corridor.run()
    again, unfinished = await reopened(journal, tmp_path)
    later = Corridor(None, again)

    await later.agent.recover(unfinished, {"memory": later.backend})
    await later.agent.confirmed()
    await again.close()

    assert later.backend.responses() == [corridor.backend.responses()[1]]
    stuck.set()


# Time to live


@pytest.mark.parametrize(
    ("age", "status"), [(0.0, "done"), (4.0, "done"), (6.0, "error"), (-3600.0, "done")]
)
async def test_a_request_beyond_its_time_to_live_is_not_started(age, status):
    """By the bus's clock; this host's may show anything."""
    corridor = Corridor()
    bus = time.time() + 7200

    async def now():
        return bus

    corridor.backend.now = now
    await corridor.run(timestamp=bus - age, options={"feedback_channel": "fb", "ttl": 5})

    assert corridor.backend.statuses() == ["accepted", status]
    assert len(corridor.broker.jobs) == (status == "done")


async def test_time_spent_waiting_for_a_place_counts(monkeypatch):
    """It is the start that must not come too late."""
    corridor = Corridor(Waits(), gate=Gate(1))
    times = [100.0]

    async def now():
        return times[0]

    corridor.backend.now = now
    corridor.take(uuid="first")
    corridor.take(uuid="second", options={"feedback_channel": "fb", "ttl": 5})
    await until(lambda: corridor.broker.running)
    times[0] = 106.0
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.heard()[-1] == (
        "error", "expired: not started within its time to live of 5 s",
    )  # fmt: skip
    assert [job.uuid for job in corridor.broker.jobs] == ["first"]


async def test_a_clock_that_cannot_be_asked_starts_nothing():
    """It fails closed."""
    corridor = Corridor()

    async def now():
        raise BackendError("redis is away")

    corridor.backend.now = now
    await corridor.run(timestamp=1.0, options={"feedback_channel": "fb", "ttl": 5})

    assert corridor.heard()[-1][1].endswith("nobody knows whether it has expired: redis is away")


@pytest.mark.parametrize(
    "wrong", [{"options": {"ttl": -1}}, {"options": {"ttl": "1"}}, {"timestamp": "now"}]
)
async def test_a_wrong_time_to_live_is_told(wrong):
    """Where, what was found, what would be right."""
    corridor = Corridor()
    options = {"feedback_channel": "fb", "ttl": 5, **wrong.pop("options", {})}
    await corridor.run(options=options, **wrong)

    status, said = corridor.heard()[-1]
    assert status == "error"
    assert "ttl" in said
    assert not corridor.broker.jobs


# A feedback stream


async def test_answers_go_to_the_stream_as_well():
    """And to the stream alone, if no channel is given."""
    corridor = Corridor()
    await corridor.run(options={"feedback_channel": "fb", "feedback_stream": "kept"})
    await corridor.run(uuid="2", options={"feedback_stream": "alone"})

    assert corridor.backend.statuses() == corridor.backend.statuses("kept") == ["accepted", "done"]
    assert corridor.backend.statuses("alone") == ["accepted", "done"]


# Claims: requests that are held


async def test_a_durable_request_is_settled_with_its_answer(journal):
    """In one step; `accepted` is an ordinary message."""
    claim, corridor = HeldRequest(), await recording(None, journal)
    await corridor.run(claim=claim)

    assert corridor.backend.statuses() == ["accepted"]
    assert claim.done == [("settle", "done", "", "")]


async def test_what_fails_for_good_says_why():
    """It goes among the dead letters."""
    claim, corridor = HeldRequest(), Corridor(Says(error=BrokerError("disk full")))
    await corridor.run(claim=claim)

    assert claim.done == [("settle", "error", "disk full", "")]


async def test_a_failed_attempt_is_followed_by_another(journal):
    """No answer before the last of them; each is told which it is."""
    corridor = await recording(Says(error=BrokerError("busy")), journal, retry=THREE)
    claims = [HeldRequest(attempt) for attempt in (1, 2, 3)]
    for claim in claims:
        await corridor.run(claim=claim)

    assert [claim.done for claim in claims] == [
        [("retry", 4.0)], [("retry", 8.0)], [("settle", "error", "busy", "")],
    ]  # fmt: skip
    assert [job.attempt for job in corridor.broker.jobs] == [1, 2, 3]
    assert corridor.backend.statuses() == ["accepted"]
    assert corridor.agent.counts["retried"] == 2


async def test_only_the_causes_that_the_task_names_are_tried_again():
    """A time limit is not an error."""
    retry = Retry(3, on=frozenset({"error"}))
    claim, corridor = HeldRequest(), Corridor(Waits(), timeout=0.02, retry=retry)
    await corridor.run(claim=claim)

    assert claim.done == [("settle", "error", "time limit of 0.02 s reached", "")]


async def test_a_cancelled_request_is_not_tried_again():
    """Somebody has wished its end."""
    claim, corridor = HeldRequest(), Corridor(Waits(), retry=THREE)
    corridor.take(claim=claim, uuid="U-1")
    await until(lambda: corridor.broker.running)
    await corridor.agent.cancel("U-1", "web01a")
    await corridor.idle()

    assert claim.done == [("settle", "error", "cancelled by web01a", "")]


async def test_who_has_lost_a_request_says_nothing(journal):
    """Somebody else answers; the job is ended."""
    claim, corridor = HeldRequest(), await recording(Waits(), journal)
    corridor.take(claim=claim)
    await until(lambda: corridor.broker.running)
    claim.lose()
    await corridor.idle()

    assert claim.done == []
    assert corridor.broker.running == 0
    assert corridor.agent.counts["lost"] == 1


async def test_a_late_result_is_refused(journal):
    """The loss is only seen when the answer is handed over."""
    claim, corridor = HeldRequest(), await recording(Waits(), journal)
    corridor.take(claim=claim)
    await until(lambda: corridor.broker.running)
    claim.held = False
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.agent.counts["lost"] == 1
    assert corridor.backend.statuses() == ["accepted"]


async def test_a_dead_workers_request_is_not_run_again_unasked():
    """At most once is what a task gets that does not ask for more."""
    claim, corridor = HeldRequest(2, taken_over=True), Corridor()
    await corridor.run(claim=claim)

    assert claim.done == [("settle", "error", UNKNOWN, "")]
    assert not corridor.broker.jobs


async def test_a_dead_workers_request_is_run_again_where_the_task_allows():
    """With the number of the attempt, as a fencing token."""
    claim, corridor = HeldRequest(2, taken_over=True), Corridor(retry=THREE)
    await corridor.run(claim=claim)

    assert claim.done == [("settle", "done", "", "")]
    assert corridor.broker.jobs[0].attempt == 2
    assert corridor.backend.statuses() == []  # accepted once, by the first


async def test_what_has_ended_here_is_answered_from_the_journal(journal):
    """The agent died between the record and the answer, and took its own request over."""
    first, second = HeldRequest(), HeldRequest(2, taken_over=True)
    corridor = await recording(None, journal, retry=THREE)
    await corridor.run(claim=first)
    await corridor.run(claim=second)

    assert second.done == [("settle", "done", "", "")]
    assert len(corridor.broker.jobs) == 1


async def test_a_pass_over_is_acknowledged():
    """Every node decides by itself what is for it."""
    claim, corridor = HeldRequest(), Corridor()
    await corridor.run(claim=claim, dst="db*")

    assert claim.done == [("drop", "")]


async def test_what_is_no_request_is_dropped_with_its_reason():
    """It can be looked at among the dead letters."""
    claim, corridor = HeldRequest(), Corridor()
    await corridor.run(b"{", claim)

    ((name, reason),) = claim.done
    assert name == "drop"
    assert reason.startswith("not a request: ")


async def test_a_durable_request_without_room_goes_back():
    """Rejected it is not: others may have room, or this node later."""
    claim, corridor = HeldRequest(), Corridor(Waits(), gate=Gate(1, 0))
    corridor.take(uuid="first")
    corridor.take(claim=claim, dst="prx01a")
    corridor.broker.free.set()
    await corridor.idle()

    assert claim.done == [("release", 1.0)]


@pytest.mark.parametrize("dst", ["*", "workers", " * "])
async def test_a_pools_request_is_for_the_pool(dst):
    """By its name, or by a star."""
    claim, corridor = HeldRequest(pool="workers"), Corridor()
    await corridor.run(claim=claim, dst=dst)

    assert claim.done == [("settle", "done", "", "")]


@pytest.mark.parametrize("dst", ["prx01a", "other", "*|state=active", "local", "*,workers"])
async def test_anything_else_is_rejected_in_a_pool(dst):
    """Nobody could tell which member is meant."""
    claim, corridor = HeldRequest(pool="workers"), Corridor()
    await corridor.run(claim=claim, dst=dst)

    ((name, status, failure, _),) = claim.done
    assert (name, status) == ("settle", "rejected")
    assert failure == f"dst: found {dst!r}; expected '*' or 'workers'"


async def test_an_unknown_task_is_rejected_in_a_pool():
    """One member answers for all."""
    claim, corridor = HeldRequest(pool="workers"), Corridor()
    await corridor.run(claim=claim, task="nonsense")

    assert claim.done == [("settle", "rejected", "unknown task 'nonsense'", "")]


# Stopping


@pytest.mark.parametrize(("retry", "what"), [(THREE, "retry"), (Retry(), "settle")])
async def test_a_stop_gives_back_what_has_not_begun(retry, what, journal):
    """What is cut off is tried again where the task allows, and answered where not."""
    corridor = await recording(Waits(), journal, gate=Gate(1), retry=retry)
    running, waiting = HeldRequest(), HeldRequest()
    corridor.take(claim=running, uuid="1")
    corridor.take(claim=waiting, uuid="2")
    await until(lambda: corridor.broker.running)

    draining = asyncio.ensure_future(corridor.agent.drain(0.3))
    await until(lambda: waiting.done)
    assert not running.done
    assert corridor.agent.room("memory", "control") == 0
    await draining

    assert waiting.done == [("release", 0.0)]
    assert running.done[0][0] == what


async def test_a_repeated_durable_request_is_acknowledged_once_its_twin_has_ended(journal):
    """Two entries of a stream with the same uuid: one job, one answer."""
    corridor = await recording(Waits(), journal)
    one, two = HeldRequest(), HeldRequest()
    corridor.take(claim=one)
    corridor.take(claim=two)
    await until(lambda: corridor.broker.running)
    assert not two.done
    corridor.broker.free.set()
    await corridor.idle()

    assert one.done == [("settle", "done", "", "")]
    assert two.done == [("drop", "")]


async def test_room_is_what_could_be_started():
    """A backend reads no more than that."""
    corridor = Corridor(Waits(), gate=Gate(3))
    assert corridor.agent.room("memory", "control") == 3

    corridor.take(uuid="1")

    assert corridor.agent.room("memory", "control") == 2
    assert corridor.agent.room("memory", "another") == 0
    corridor.broker.free.set()
    await corridor.idle()


# What readers with fresh eyes have found


@pytest.mark.parametrize("how", ["retried", "lost", "released"])
async def test_who_has_joined_a_request_that_goes_on_elsewhere_is_not_forgotten(how):
    """A claim goes back, a client is told."""
    broker = Waits()
    corridor = Corridor(broker, retry=THREE, timeout=0.1 if how == "retried" else 5, gate=Gate(1))
    if how == "released":
        corridor.take(uuid="before")
    first, second = HeldRequest(), HeldRequest()
    corridor.take(claim=first)
    corridor.take(claim=second, options={"feedback_channel": "fb2"})
    corridor.take(options={"feedback_channel": "fb3"})
    await until(lambda: broker.running)

    if how == "lost":
        first.lose()
    elif how == "released":
        await corridor.agent.drain(0.05)
    await corridor.idle()

    assert second.done == [("release", 1.0)]
    assert corridor.backend.statuses("fb3") == ["accepted", "error"]
    assert [done[0] for done in first.done] == {
        "retried": ["retry"], "lost": [], "released": ["release"],
    }[how]  # fmt: skip


async def test_a_claim_does_not_join_the_course_that_it_was_lost_to():
    """This node has taken its own request over; the old job is being ended."""
    corridor = Corridor(Waits(), retry=THREE)
    first, second = HeldRequest(), HeldRequest(2, taken_over=True)
    corridor.take(claim=first)
    await until(lambda: corridor.broker.running)
    first.lose()

    corridor.take(claim=second)
    await corridor.idle()

    assert second.done == [("release", 1.0)]


async def test_a_place_hears_one_end():
    """However many repeats have named it."""
    corridor = Corridor(Waits())
    corridor.take()
    for _ in range(3):
        corridor.take(options={"feedback_channel": "fb2"})
    await until(lambda: corridor.broker.running)
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.backend.statuses("fb2") == ["accepted"] * 3 + ["done"]


async def test_a_repeat_of_a_large_answer_hears_each_piece_once():
    """The same place is not served twice."""
    corridor = Corridor(Says(b"line\n" * 2000))
    corridor.agent.limits = Limits(chunk_size=4096)
    corridor.take()
    corridor.take()
    await corridor.idle()

    numbers = [r["chunk"] for r in corridor.backend.responses() if r["status"] == "done"]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_places_for_one_answer_are_limited():
    """One client and one long job must not fill the memory."""
    corridor = Corridor(Waits())
    corridor.take(dst="prx01a")
    for number in range(20):
        corridor.take(dst="prx01a", options={"feedback_channel": str(number)})
    await until(lambda: corridor.broker.running)
    corridor.broker.free.set()
    await corridor.idle()

    assert corridor.backend.statuses("14") == ["accepted", "done"]
    assert corridor.backend.statuses("15") == ["rejected"]


@pytest.mark.parametrize("ended", [False, True])
async def test_the_uuid_of_another_task_is_refused(ended, journal):
    """Its answer is not for who asks for something else."""
    corridor = await recording(Waits(), journal)
    corridor.dispatcher.tasks["b"] = task(Says(b"b"), name="b")
    corridor.take()
    await until(lambda: corridor.broker.running)
    if ended:
        corridor.broker.free.set()
        await corridor.idle()

    corridor.take(task="b", dst="prx01a", options={"feedback_channel": "other"})
    corridor.broker.free.set()
    await corridor.idle()

    last = corridor.heard("other")[-1]
    assert last == ("error" if ended else "rejected", "its uuid is that of another request")


async def test_a_bug_after_the_acceptance_is_answered(caplog, monkeypatch):
    """And the places are free again."""
    corridor = Corridor(gate=Gate(1))

    def fails(*_):
        raise OSError("the spool is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Replies, "ended", fails)
        await corridor.run()
    await corridor.run(uuid="another")

    assert corridor.backend.statuses() == ["accepted", "error", "accepted", "done"]
    assert "the spool is gone" in caplog.text


async def test_a_bug_before_the_acceptance_gives_the_claim_up():
    """It would be renewed for ever."""
    corridor = Corridor()
    claim = HeldRequest()

    def admit(*_):
        raise ZeroDivisionError

    corridor.dispatcher.admit = admit
    serving = asyncio.ensure_future(corridor.agent.serve("memory", corridor.backend))
    corridor.backend.publish(request(), claim=claim)
    await until(lambda: claim.done)
    await corridor.backend.stop()
    await serving

    assert claim.done == [("drop", "internal error, see the node's log")]


async def test_the_time_limit_counts_from_the_acceptance():
    """Also while the bus is asked what time it is."""
    corridor = Corridor(timeout=0.1)

    async def now():
        await asyncio.sleep(1)
        return 0.0

    corridor.backend.now = now
    began = time.monotonic()
    await corridor.run(timestamp=0.0, options={"feedback_channel": "fb", "ttl": 5})

    assert corridor.heard()[-1][1].startswith("time limit of 0.1 s reached")
    assert not corridor.dispatcher.tasks["ping"].gate.running
    assert time.monotonic() - began < 1.9
