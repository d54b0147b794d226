"""``agent.cancel``: whatever a job is doing, it is answered and nothing of it is left."""

import json
import random
import statistics
import subprocess
import sys
import time

import pytest

from .harness import COMMANDS, World, command, redis_task
from .processes import PATIENCE, kill_marked, marked, until
from .test_local import Connection
from .test_trees import new_marker, survivors
from .wire import FIELDS

pytestmark = pytest.mark.redis

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
QUICK = 1.0 * PATIENCE  # seconds for the answer to a cancel, on a busy machine
PYTHON = """
import asyncio, time

def sync(**_):
    time.sleep(60)

async def coroutine(**_):
    await asyncio.sleep(60)
"""
# Three levels; the lowest has a session of its own, and none of them heeds SIGTERM.
DEAF = ["trap '' TERM HUP INT",
        '''sh -c 'trap "" TERM; setsid sh -c "trap \\"\\" TERM; sleep $0; sleep $0" $0 & '''
        '''sleep $0; sleep $0' "$1" &''',
        'sleep "$1"; sleep "$1"']  # fmt: skip
DEAF_SIZE = 6  # processes of such a tree: three shells, three sleeps


def cancel_tasks(world, marker):
    module = world.file("cancelled_tasks.py", PYTHON)
    deaf = world.script("deaf", *DEAF)
    quick = world.script("quick", 'sleep "0.0$(($$ % 9))"', "echo ok")
    talks = world.script("talks", "echo begun", "echo trouble >&2", 'exec sleep "$1"')
    options = {"path": str(module.parent)}
    return {
        "noop": command("/bin/true"),
        "sleeps": command("/bin/sleep", marker, timeout=300, max_running=64),
        "narrow": command("/bin/sleep", marker, timeout=300, max_running=1),
        "deaf": command(deaf, marker, timeout=300, max_running=64),
        "limited": command(deaf, marker, timeout=0.5),
        "quick": command(quick, max_running=8),
        "talks": command(talks, marker, timeout=300),
        "large": command("/usr/bin/head", "-c", 8_000_000, "/dev/zero"),
        "floods": command("/usr/bin/yes", marker, timeout=300),
        "sync": redis_task("python", {"callable": "cancelled_tasks:sync", **options}, timeout=90),
        "coroutine": redis_task(
            "python", {"callable": "cancelled_tasks:coroutine", **options}, timeout=90
        ),
    }


@pytest.fixture(scope="module")
def node():
    """Two daemons with the same tasks; what is left alive in the end is cleared away."""
    with World() as world:
        world.marker = new_marker()
        tasks = cancel_tasks(world, world.marker)
        try:
            world.daemon("sp1", tasks=tasks, agent={"limits": {"max_running": 200}}, ready=False)
            world.daemon("sp2", tasks=tasks, ready=False)
            world.wait_ready(*world.daemons)
            yield world
        finally:
            kill_marked(world.marker)


@pytest.fixture
def ear(node):
    with node.listener() as listener:
        yield listener
    kill_marked(node.marker)


def cancel(listener, ref, dst="sp1", **fields):
    fields = {"src": "admin01", "data": {"ref": ref}, **fields}
    return listener.ask("agent.cancel", dst, **fields)


def begin(listener, task, **fields):
    """Send a request and return its uuid once it is accepted."""
    ref = listener.send(task, "sp1", **fields)
    listener.hear_until(lambda: listener.statuses(ref)[:1] == ["accepted"])
    return ref


def check_cancelled(listener, ref, answer):
    """The job is answered with one error, its canceller with one done."""
    bodies = listener.talk(ref)
    assert bodies[0]["status"] == "accepted"
    # A large output comes with its error in several parts.
    assert {body["status"] for body in bodies[1:]} <= {"progress", "error"}
    assert listener.ended(ref) == 1
    assert bodies[-1]["reason"] == "cancelled by admin01"
    assert [body["status"] for body in answer] == ["accepted", "done"], answer
    assert all(set(body) == FIELDS for body in answer)
    assert answer[-1]["data"]["ref"] == ref


def refused(answer):
    """The cancel itself is what failed; return why."""
    assert [body["status"] for body in answer] == ["accepted", "error"], answer
    assert answer[-1]["reason"]
    return answer[-1]["reason"]


@pytest.mark.parametrize("as_text", [False, True], ids=["object", "text"])
@pytest.mark.parametrize("task", ["sleeps", "talks", "floods", "sync", "coroutine"])
def test_a_running_job_is_cancelled(node, ear, task, as_text):
    """Command or python, worker or coroutine: an error for it, done for who has cancelled it."""
    ref = begin(ear, task)
    if task not in ("sync", "coroutine"):
        until(lambda: marked(node.marker), 5, "the program")
    data = {"ref": ref}

    begun = time.monotonic()
    answer = cancel(ear, ref, data=json.dumps(data) if as_text else data)

    assert time.monotonic() - begun < QUICK
    check_cancelled(ear, ref, answer)
    assert survivors(node.marker) == set()
    if task == "talks":
        assert ear.of(ref)[-1]["data"] == "begun\n"


def test_a_job_that_waits_is_cancelled_without_being_started(node, ear):
    """Its place in the queue is free again, and those behind it move up."""
    running = begin(ear, "narrow")
    waiting = [begin(ear, "narrow") for _ in range(3)]
    until(lambda: marked(node.marker), 5, "the program")

    check_cancelled(ear, waiting[1], cancel(ear, waiting[1]))
    assert not ear.ended(running)
    check_cancelled(ear, running, cancel(ear, running))
    until(lambda: marked(node.marker), 5, "the next in the queue")
    check_cancelled(ear, waiting[0], cancel(ear, waiting[0]))
    check_cancelled(ear, waiting[2], cancel(ear, waiting[2]))
    assert survivors(node.marker) == set()


def test_a_job_that_waits_and_is_cancelled_twice_has_the_same_reason(ear):
    """`cancelled by <src>` is what clients look for."""
    begin(ear, "narrow")
    waiting = begin(ear, "narrow")
    both = ear.send_all(
        [ear.make("agent.cancel", "sp1", data={"ref": waiting}, src="admin01") for _ in range(2)]
    )
    ear.talk_all([waiting, *both])
    cancel_rest(ear)

    assert ear.of(waiting)[-1]["reason"] == "cancelled by admin01"


def cancel_rest(listener):
    for job in listener.ask("agent.jobs", "sp1")[-1]["data"]:
        if job["state"] in ("queued", "running"):
            cancel(listener, job["uuid"])


@pytest.mark.parametrize(
    ("count", "loops"),
    [
        (1, 2),
        (20, 2),
    ],
)
def test_a_deaf_tree_is_gone_within_grace_and_a_second(node, ear, count, loops):
    """TERM, five seconds, KILL: three levels, one in a session of its own, none heeds TERM."""
    refs, cancels, seconds = cancel_trees(node, ear, count, loops)

    for ref, answer in zip(refs, cancels, strict=True):
        check_cancelled(ear, ref, ear.of(answer))
    assert GRACE - 0.1 < seconds < GRACE + 1


@pytest.mark.concurrency
def test_twenty_deaf_trees_leave_nobody_and_hold_nobody_up(node, ear):
    """However long it takes: no survivor, prompt errors, and others are accepted meanwhile."""
    refs, cancels, seconds = cancel_trees(node, ear, 20, 0, ping=True)

    for ref, answer in zip(refs, cancels, strict=True):
        check_cancelled(ear, ref, ear.of(answer))
        assert ear.at(ref, "error") - ear.sent[answer] < 2 * QUICK
    assert seconds < GRACE + 4 * PATIENCE


def cancel_trees(node, listener, count, loops, ping=False):
    """Plant and cancel *count* trees beside *loops* busy loops; return when all was answered."""
    busy = [sys.executable, "-S", "-c", "while True: pass"]
    beside = [subprocess.Popen(busy) for _ in range(loops)]
    pings = [0.0]
    try:
        refs = listener.send_all([listener.make("deaf", "sp1") for _ in range(count)])
        until(lambda: len(marked(node.marker)) >= count * DEAF_SIZE, 15, "the trees")
        begun = time.monotonic()
        cancels = listener.send_all(
            [listener.make("agent.cancel", "sp1", data={"ref": ref}, src="admin01") for ref in refs]
        )
        while ping and not all(listener.ended(ref) for ref in cancels):
            asked = listener.send("agent.ping", "sp1")
            listener.talk(asked)
            pings.append(listener.at(asked, "accepted") - listener.sent[asked])
            listener.hear(0.02)
        listener.talk_all([*refs, *cancels], seconds=15)
        seconds = max(listener.at(ref, "done", "error") for ref in cancels) - begun
        alive = survivors(node.marker)
    finally:
        for process in beside:
            process.kill()
            process.wait(5)
    print(f"{count} trees beside {loops} loops: all gone after {seconds:.2f} s; pings: median "
          f"{statistics.median(pings):.4f} s, slowest {max(pings):.4f} s")  # fmt: skip
    assert alive == set()
    assert statistics.median(pings) < 0.1 * PATIENCE
    assert max(pings) < QUICK
    return refs, cancels, seconds


@pytest.mark.concurrency
def test_a_cancel_of_a_job_that_is_held_back(node):
    """Its client does not read, its program blocks on its pipe: it ends all the same."""
    daemon = node.daemons[0]
    with Connection(daemon.socket) as deaf, Connection(daemon.socket) as admin:
        ref = deaf.send("floods", options={"stream": True})
        until(lambda: marked(node.marker), 5, "the program")
        time.sleep(0.5)  # until the socket's buffers are full: nothing tells
        begun = time.monotonic()
        bodies = admin.end_of(admin.send("agent.cancel", data={"ref": ref}, src="admin01"))

        assert time.monotonic() - begun < 3 * PATIENCE
        assert bodies[-1]["status"] == "done", bodies
        assert survivors(node.marker) == set()
        assert deaf.end_of_progress(ref)["reason"] == "cancelled by admin01"


def test_a_job_whose_answer_is_not_taken(node):
    """A client that reads nothing of a large result: the job is listed, and so it is known."""
    daemon = node.daemons[0]
    with Connection(daemon.socket) as deaf, Connection(daemon.socket) as admin:
        ref = deaf.send("large")
        until(lambda: state_of(admin, ref) == "done", 5, "the end of the program")
        bodies = admin.end_of(admin.send("agent.cancel", data={"ref": ref}))

        assert bodies[-1]["status"] == "error"
        assert "not known" not in bodies[-1]["reason"]


def state_of(client, ref):
    bodies = client.end_of(client.send("agent.jobs", data={"ref": ref}))
    return next((job["state"] for job in bodies[-1]["data"]), "")


@pytest.mark.parametrize("ref", [
    "18d0f568-4a6c-4775-a8a9-6beb2e0372a8", "x", " ", "*", "\0", "../..", "ö" * 1000, "x" * 500_000,
], ids=lambda ref: f"{ref[:10]!r} {len(ref)}")  # fmt: skip
def test_a_job_that_nobody_knows(ear, ref):
    """An error that says so, and is no longer than an error should be."""
    reason = refused(cancel(ear, ref))

    assert "not known" in reason
    assert len(reason) < 500


BAD_DATA = [None, "", "x", "[]", "{}", "{", {}, [], {"ref": None}, {"ref": ""}, {"ref": 1},
            {"ref": True}, {"ref": ["x"]}, {"ref": {"ref": "x"}}, {"REF": "x"}, '{"ref": 1e999}',
            {"uuid": "x"}]  # fmt: skip


@pytest.mark.parametrize("data", BAD_DATA, ids=repr)
def test_a_ref_that_is_none(ear, data):
    """It says what would be right, and harms nobody."""
    assert "ref" in refused(cancel(ear, "", data=data))


def test_a_job_that_has_ended(ear):
    """An error, and not a second answer to the job's own client."""
    ref = begin(ear, "noop")
    ear.talk(ref)

    assert "ended" in refused(cancel(ear, ref))
    ear.fence()
    assert ear.statuses(ref) == ["accepted", "done"]


def test_a_job_that_is_answered_and_whose_tree_is_being_ended(node, ear):
    """agent.jobs lists it, so it is known; it has ended for its client."""
    ref = begin(ear, "limited")
    ear.talk(ref)
    states = {job["uuid"]: job["state"] for job in ear.ask("agent.jobs", "sp1")[-1]["data"]}
    reason = refused(cancel(ear, ref))

    assert states[ref] == "ending"
    assert "not known" not in reason


def test_a_cancel_cannot_cancel_itself(ear):
    """Its own uuid is no job's."""
    ref = "0c6e9b5d-cancel-itself"
    refused(cancel(ear, ref, uuid=ref))

    assert ear.statuses(ref) == ["accepted", "error"]


def test_a_job_of_another_node_is_left_alone(node, ear):
    """The node that is asked does not have it; with `*` the one that has it ends it."""
    ref = ear.send("sleeps", "sp2")
    ear.hear_until(lambda: ear.statuses(ref) == ["accepted"])

    refused(cancel(ear, ref))
    assert ear.statuses(ref) == ["accepted"]

    both = ear.send("agent.cancel", "*", data={"ref": ref}, src="admin01")
    ear.talk(both, ends=2)
    assert sorted(ear.statuses(both)) == ["accepted", "accepted", "done", "error"]
    assert ear.talk(ref)[-1]["reason"] == "cancelled by admin01"
    assert {body["src"] for body in ear.of(ref)} == {"sp2"}


def test_a_request_that_two_nodes_run_is_cancelled_on_both(node, ear):
    """Both have it, both say done."""
    ref = ear.send("sleeps", "*")
    ear.hear_until(lambda: ear.statuses(ref) == ["accepted"] * 2)
    answer = ear.send("agent.cancel", "*", data={"ref": ref}, src="admin01")
    ear.talk(answer, ends=2)
    ear.talk(ref, ends=2)

    assert sorted(ear.statuses(answer)) == ["accepted", "accepted", "done", "done"]
    assert sorted(ear.statuses(ref)) == ["accepted", "accepted", "error", "error"]


@pytest.mark.parametrize("task", ["sleeps", "talks"])
def test_twice_at_once(node, ear, task):
    """One error for the job; each of the two gets one answer, and none before its end."""
    ref = begin(ear, task)
    until(lambda: marked(node.marker), 5, "the program")
    both = ear.send_all(
        [ear.make("agent.cancel", "sp1", data={"ref": ref}, src="admin01") for _ in range(2)]
    )
    ear.talk_all([ref, *both])

    assert ear.statuses(ref) == ["accepted", "error"]
    assert ear.of(ref)[-1]["reason"] == "cancelled by admin01"
    for answer in both:
        assert ear.statuses(answer) == ["accepted", "done"]
    assert survivors(node.marker) == set()


def test_who_has_cancelled_may_have_any_name(ear):
    """The reason is never empty, and does not grow with the name."""
    for src in ("", "ö" * 40, "a\nb\0c"):
        ref = begin(ear, "sleeps")
        cancel(ear, ref, src=src)

        assert ear.talk(ref)[-1]["reason"].startswith("cancelled by ")
        assert ear.statuses(ref) == ["accepted", "error"]


def test_a_cancellers_name_of_500_kb_is_cut(node, ear):
    """A thousand of them would be half a gigabyte in agent.jobs."""
    ref = begin(ear, "sleeps")
    before = len(node.daemons[0].log)
    cancel(ear, ref, src="x" * 500_000)
    jobs = ear.ask("agent.jobs", "sp1", data={"ref": ref})[-1]["data"]
    grown = len(node.daemons[0].log) - before

    assert len(ear.talk(ref)[-1]["reason"]) < 1000
    assert len(json.dumps(jobs)) < 5000
    assert grown < 5000


def test_who_reads_along_gets_it_all_before_the_error(ear):
    """Live output ends like any other job: the pieces, then one terminal message."""
    ref = begin(ear, "talks", options={"stream": True, "result": True})
    ear.hear_until(lambda: ear.statuses(ref).count("progress") >= 2)
    answer = cancel(ear, ref)

    check_cancelled(ear, ref, answer)
    assert ear.statuses(ref)[0] == "accepted"
    assert ear.statuses(ref)[-1] == "error"
    result = ear.of(ref)[-1]["result"]
    assert (result["exit_code"], result["signal"]) == (None, 15)
    assert result["stderr"] == "trouble\n"


@pytest.mark.concurrency
@pytest.mark.parametrize("task", ["quick", "noop"])
def test_in_the_very_moment_of_its_end(node, ear, task):
    """200 quick jobs, each cancelled at a random moment: one end each, one answer each."""
    dice = random.Random(5)
    pairs = {}
    spread = 0.12 if task == "quick" else 0.006
    for _ in range(25):
        refs = ear.send_all([ear.make(task, "sp1") for _ in range(8)])
        due = sorted((time.monotonic() + dice.random() * spread, ref) for ref in refs)
        for moment, ref in due:
            while time.monotonic() < moment:
                ear.hear(0.001)
            pairs[ref] = ear.send("agent.cancel", "sp1", data={"ref": ref}, src="admin01")
        ear.talk_all([*refs, *(pairs[ref] for ref in refs)])
    ear.fence()

    kinds = {}
    for ref, answer in pairs.items():
        kind = (*ear.statuses(ref), *ear.statuses(answer))
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind[1] == "error":
            assert ear.of(ref)[-1]["reason"] == "cancelled by admin01"
        if kind[-1] == "error":
            assert "not known" not in ear.of(answer)[-1]["reason"], ear.of(answer)
    print(kinds)
    assert set(kinds) <= {
        ("accepted", "error", "accepted", "done"), ("accepted", "done", "accepted", "error"),
    }  # fmt: skip


@pytest.mark.concurrency
def test_in_the_middle_of_starts(node, ear):
    """Sixty started and cancelled in one burst leave nothing running."""
    for turn in range(3):
        bodies = [ear.make("sleeps", "sp1") for _ in range(60)]
        cancels = [
            ear.make("agent.cancel", "sp1", data={"ref": body["uuid"]}, src="admin01")
            for body in bodies
        ]
        order = [body for pair in zip(bodies, cancels, strict=True) for body in pair]
        refs = ear.send_all(order if turn == 0 else bodies + cancels)
        ear.talk_all(refs)

        assert {tuple(ear.statuses(body["uuid"])) for body in bodies} == {("accepted", "error")}
        assert {tuple(ear.statuses(body["uuid"])) for body in cancels} == {("accepted", "done")}
        assert survivors(node.marker) == set()


def test_by_the_local_socket(node):
    """The way in when redis is away; a job that came by the bus as well."""
    daemon = node.daemons[0]
    with node.listener() as listener, Connection(daemon.socket) as client:
        ref = begin(listener, "sleeps")
        bodies = client.end_of(client.send("agent.cancel", data={"ref": ref}, src="admin01"))

        assert [body["status"] for body in bodies] == ["accepted", "done"]
        assert listener.talk(ref)[-1]["reason"] == "cancelled by admin01"

        own = client.send("sleeps")
        bodies = client.end_of(client.send("agent.cancel", data={"ref": own}, src="admin01"))
        ends = {body["ref"]: body["status"] for body in bodies}
        assert ends == {own: "error", bodies[-1]["ref"]: "done"}


def ngcp_task(*arguments):
    return subprocess.run(
        [COMMANDS / "ngcp-task", *arguments], capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("way", ["--redis", "--socket"])
def test_the_command_ngcp_task_cancel(node, ear, way):
    """Exit 0 and a line where it was cancelled; 1 and a reason where it was not."""
    link = [way, node.server.url if way == "--redis" else str(node.daemons[0].socket)]
    ref = begin(ear, "sleeps")

    done = ngcp_task("cancel", ref, *link)
    again = ngcp_task("cancel", ref, *link)
    usage = ngcp_task("cancel", *link)

    assert done.returncode == 0, done.stderr
    assert ref in done.stdout
    assert "sp1" in done.stdout
    assert ear.talk(ref)[-1]["reason"].startswith("cancelled by ")
    assert again.returncode == 1
    assert "ended" in again.stderr
    assert usage.returncode == 2
    assert "Traceback" not in done.stderr + again.stderr + usage.stderr


def test_the_command_cancels_several_and_prints_json(node, ear):
    """One document a line for each."""
    refs = [begin(ear, "sleeps") for _ in range(2)]
    done = ngcp_task("cancel", *refs, "--json", "--dst", "sp1", "--redis", node.server.url)

    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [d["nodes"][0]["data"]["ref"] for d in documents] == refs
