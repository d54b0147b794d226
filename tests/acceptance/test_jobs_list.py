"""``agent.jobs``: what waits and runs on a node, and what has ended there."""

import json
import os
import pwd
import subprocess
import sys
import time
import uuid

import pytest

from .harness import COMMANDS, World, command, redis_task
from .processes import kill_marked, until
from .test_local import Connection
from .test_trees import new_marker
from .wire import FIELDS

pytestmark = pytest.mark.redis

MIB = 1024 * 1024
KEPT = 1000  # jobs remembered after their end
GROWTH_LIMIT = 16 * MIB  # resident bytes for a thousand of them, whatever the client sent
KEYS = {
    "uuid", "task", "src", "state", "reason", "queued", "started", "ended", "user", "pid",
    "exit_code", "signal", "cpu_seconds", "memory", "peak_memory", "output_bytes",
}  # fmt: skip
# It grows to about 80 MiB and back to 20, starts a child with 30 more, and both work on.
WORKER = """
import os, sys
block = bytearray(60 * 1024 * 1024)
block[::4096] = b"x" * len(block[::4096])
del block
if os.fork() == 0:
    kept = bytearray(30 * 1024 * 1024)
    kept[::4096] = b"x" * len(kept[::4096])
os.write(1, b"ready" * 200)
while True:
    pass
"""


@pytest.fixture
def node(world):
    world.marker = new_marker()
    worker = world.file("worker.py", WORKER)
    wordy = world.script("wordy", 'head -c 300000 /dev/zero | tr "\\0" x >&2', "exit 1")
    module = world.file("raising.py", 'def run(**_):\n    raise ValueError("x" * 1_000_000)\n')
    tasks = {
        "noop": command("/bin/true", max_running=8, max_queued=5000),
        "fails": command(world.script("fails", "echo why not >&2", "exit 3")),
        "dies": command(world.script("dies", "kill -USR1 $$")),
        "sleeps": command("/bin/sleep", world.marker, timeout=300),
        "narrow": command("/bin/sleep", world.marker, timeout=300, max_running=1),
        "works": command(sys.executable, "-S", worker, timeout=300),
        "lines": command("/usr/bin/head", "-c", 300_000, "/dev/zero"),
        "raises": redis_task("python", {"callable": "raising:run", "path": str(module.parent)}),
        "missing": command("/no/such/program"),
        "wordy": command(wordy),
    }  # fmt: skip
    try:
        world.daemon(tasks=tasks, agent={"grace": 0.1})
        yield world
    finally:
        kill_marked(world.marker)


@pytest.fixture
def ear(node):
    return node.listen()


def jobs(listener, **data):
    answer = listener.ask("agent.jobs", "sp1", data=data or None)
    whole = "".join(b["data"] for b in answer[1:]) if answer[-1]["chunks"] > 1 else None
    assert {body["status"] for body in answer[1:]} == {"done"}
    return answer[-1]["data"] if whole is None else json.loads(whole)


def job(listener, ref):
    (found,) = [job for job in jobs(listener) if job["uuid"] == ref]
    return found


def begin(listener, task, **fields):
    ref = listener.send(task, "sp1", **fields)
    listener.hear_until(lambda: listener.statuses(ref)[:1] == ["accepted"])
    return ref


def test_a_node_that_has_done_nothing_has_no_jobs(ear):
    """The agent's own tasks are not among them."""
    assert jobs(ear) == []
    assert jobs(ear) == []


def test_each_state_has_its_times(node, ear):
    """Queued, running, done, error: when it came, when it was started, when it ended."""
    begun = time.time()
    running, queued = begin(ear, "narrow"), begin(ear, "narrow")
    done, failed, died, missing = (
        ear.talk(ear.send(task, "sp1", src="web02a"))[-1]["ref"]
        for task in ("noop", "fails", "dies", "missing")
    )
    listed = jobs(ear)
    found = {job["uuid"]: job for job in listed}

    assert len(listed) == 6
    assert all(set(job) == KEYS for job in listed)
    states = {ref: found[ref]["state"] for ref in found}
    assert states == {running: "running", queued: "queued", done: "done",
                      **dict.fromkeys((failed, died, missing), "error")}  # fmt: skip
    for item in listed:
        times = [item[key] for key in ("queued", "started", "ended") if item[key] is not None]
        assert times == sorted(times)
        assert begun - 1 <= times[0] <= times[-1] <= time.time() + 1
    assert (found[queued]["started"], found[queued]["pid"]) == (None, None)
    assert found[running]["ended"] is None
    assert (found[done]["exit_code"], found[failed]["exit_code"]) == (0, 3)
    assert (found[died]["exit_code"], found[died]["signal"]) == (None, 10)
    assert "why not" in found[failed]["reason"]
    assert (found[done]["task"], found[done]["src"]) == ("noop", "web02a")
    assert found[running]["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert found[running]["pid"] in node.daemons[0].descendants


def test_those_that_have_not_ended_come_first(ear):
    """As they came; then the others, the last one first."""
    ended = [ear.talk(ear.send("noop", "sp1"))[-1]["ref"] for _ in range(3)]
    running = [begin(ear, "sleeps") for _ in range(2)]

    assert [job["uuid"] for job in jobs(ear)] == [*running, *reversed(ended)]


def test_what_a_running_tree_uses_is_plausible(ear):
    """Two busy processes of 20 and 50 MiB, the first of which has had 80 before."""
    ref = begin(ear, "works", options={"stream": True})
    ear.hear_until(lambda: len(ear.of(ref)) >= 2, 10)
    begun = time.monotonic()
    first = job(ear, ref)
    until(lambda: time.monotonic() - begun > 1, 3, "a second of work")
    second = job(ear, ref)
    seconds = time.monotonic() - begun
    used = second["cpu_seconds"] - first["cpu_seconds"]
    ear.ask("agent.cancel", "sp1", data={"ref": ref})

    now, peak = second["memory"] / MIB, second["peak_memory"] / MIB
    print(f"{used:.2f} CPU seconds in {seconds:.2f} s; {now:.0f} and at most {peak:.0f} MiB")
    assert 0.05 * seconds < used < 2.2 * seconds
    assert 35 * MIB < second["memory"] < 120 * MIB
    assert 90 * MIB < second["peak_memory"] < 200 * MIB
    assert second["memory"] <= second["peak_memory"]
    assert second["output_bytes"] in (1000, 2000)


def test_what_a_command_has_used_is_known_after_its_end(ear):
    """The night's most expensive job is looked for in the morning."""
    ref = begin(ear, "lines")
    ear.talk(ref)
    found = job(ear, ref)

    assert found["output_bytes"] == 300_000
    assert found["cpu_seconds"] is not None
    assert found["peak_memory"] is not None


def test_bytes_of_output_are_counted_while_it_runs_and_after_its_end(ear):
    """Those of stdout."""
    ref = begin(ear, "lines")
    ear.talk(ref)

    assert job(ear, ref)["output_bytes"] == 300_000


def test_exactly_the_last_thousand_are_kept(node, ear):
    """Of 1,100 jobs the first hundred are forgotten, and the list is quick."""
    refs = []
    for _ in range(11):
        burst = ear.send_all([ear.make("noop", "sp1") for _ in range(100)])
        ear.talk_all(burst, seconds=30)
        refs += burst
    running = begin(ear, "sleeps")
    begun = time.monotonic()
    listed = jobs(ear)
    seconds = time.monotonic() - begun

    print(f"listed in {seconds:.3f} s, {len(json.dumps(listed))} bytes")
    assert len(listed) == KEPT + 1
    assert listed[0]["uuid"] == running
    assert {job["state"] for job in listed[1:]} == {"done"}
    kept = {job["uuid"] for job in listed[1:]}
    assert len(kept & set(refs)) == KEPT
    assert kept >= set(refs[200:])
    assert kept.isdisjoint(refs[:50])
    assert seconds < 1


def test_names_of_half_a_megabyte_do_not_blow_it_up(node, ear):
    """`uuid` and `src` are the client's; a thousand of 500 kB each would be a gigabyte."""
    daemon = node.daemons[0]
    ear.talk_all([ear.send("noop", "sp1") for _ in range(60)])
    jobs(ear)
    before = daemon.rss
    for turn in range(30):
        letter = "x\0ö"[turn % 3]
        size = 500_000 // len(json.dumps(letter)[1:-1])
        names = [f"{turn}-{n}" + letter * size for n in range(8)]
        bodies = [ear.make("noop", "sp1", uuid=name, src="y" * 200_000) for name in names]
        ear.talk_all(ear.send_all(bodies), seconds=20)
        ear.heard.clear()
    listed = jobs(ear)

    print(f"{len(json.dumps(listed))} bytes listed, {(daemon.rss - before) / MIB:.1f} MiB more")
    assert len(listed) == 300
    assert all(len(job["uuid"]) <= 500 and len(job["src"]) <= 500 for job in listed)
    assert len(json.dumps(listed)) < 2 * MIB
    until(lambda: daemon.rss - before < GROWTH_LIMIT, 10, "less memory")


def test_a_long_line_of_stderr_is_cut_in_the_list(ear):
    """A reason is something to read."""
    ref = begin(ear, "wordy")
    ear.talk(ref)

    assert len(job(ear, ref)["reason"]) < 1000


def test_a_long_exception_is_cut_in_the_list(node, ear):
    """A thousand of one megabyte each would be a gigabyte."""
    before = node.daemons[0].rss
    ear.talk_all([ear.send("raises", "sp1") for _ in range(20)], seconds=20)
    ear.heard.clear()
    listed = jobs(ear)

    print(f"{len(json.dumps(listed))} bytes, {(node.daemons[0].rss - before) / MIB:.0f} MiB more")
    assert len(json.dumps(listed)) < MIB


@pytest.mark.parametrize("bad", ["", 1, None, [], {}, True], ids=repr)
def test_a_ref_that_is_none_is_an_error(ear, bad):
    """It says what would be right."""
    answer = ear.ask("agent.jobs", "sp1", data={"ref": bad})

    assert [body["status"] for body in answer] == ["accepted", "error"]
    assert "ref" in answer[-1]["reason"]
    assert set(answer[-1]) == FIELDS


def test_one_job_alone_can_be_asked_for(ear):
    """By its uuid, running or ended; an unknown one is no error but an empty list."""
    ended = ear.talk(ear.send("noop", "sp1"))[-1]["ref"]
    running = begin(ear, "sleeps")

    assert [job["uuid"] for job in jobs(ear, ref=ended)] == [ended]
    assert [job["uuid"] for job in jobs(ear, ref=running)] == [running]
    assert jobs(ear, ref=str(uuid.uuid4())) == []


def test_a_job_with_a_long_uuid_can_be_asked_for_after_its_end(ear):
    """Any text is a uuid; the list may cut it, and who asks has the whole."""
    long = "x" * 300
    ear.talk(ear.send("noop", "sp1", uuid=long))

    assert len(jobs(ear, ref=long)) == 1


@pytest.mark.concurrency
def test_while_jobs_come_and_go(ear):
    """Asked in the middle of bursts: each job stands in the list once, in one state."""
    for _ in range(5):
        refs = ear.send_all([ear.make("noop", "sp1") for _ in range(60)])
        asked = [ear.send("agent.jobs", "sp1") for _ in range(10)]
        ear.talk_all([*refs, *asked])
        for answer in asked:
            uuids = [job["uuid"] for job in ear.of(answer)[-1]["data"]]
            assert len(uuids) == len(set(uuids))
            assert set(refs) <= set(uuids)


def test_by_the_local_socket(node, ear):
    """The same list, also of jobs that came by the bus."""
    ref = begin(ear, "sleeps")
    with Connection(node.daemons[0].socket) as client:
        bodies = client.end_of(client.send("agent.jobs"))

    assert [job["uuid"] for job in bodies[-1]["data"]] == [ref]


def ngcp_task(*arguments):
    return subprocess.run(
        [COMMANDS / "ngcp-task", *arguments], capture_output=True, text=True, timeout=30
    )


def test_the_command_ngcp_task_jobs(node, ear):
    """A line for each; ``--running`` and ``--ref`` choose; ``--json`` is one document."""
    link = ["--redis", node.server.url]
    running, ended = begin(ear, "sleeps"), ear.talk(ear.send("fails", "sp1"))[-1]["ref"]

    everything = ngcp_task("jobs", *link)
    only = ngcp_task("jobs", "--running", *link)
    one = ngcp_task("jobs", "--ref", ended, "--socket", str(node.daemons[0].socket))
    document = ngcp_task("jobs", "--json", *link)

    for done in (everything, only, one, document):
        assert done.returncode == 0, done.stderr
    assert running in everything.stdout
    assert ended in everything.stdout
    assert "why not" in everything.stdout
    assert running in only.stdout
    assert ended not in only.stdout
    assert ended in one.stdout
    assert running not in one.stdout
    listed = json.loads(document.stdout)["nodes"][0]["data"]
    assert [job["uuid"] for job in listed] == [running, ended]


def test_the_command_on_a_full_list_and_odd_names():
    """Names with control characters and four hundred jobs: no traceback."""
    with World() as world:
        world.daemon(tasks={"noop": command("/bin/true", max_queued=2000)})
        listener = world.listen()
        odd = "\x1b[31m\n" * 40
        bodies = [listener.make("noop", "sp1", src=odd) for _ in range(400)]
        listener.talk_all(listener.send_all(bodies), seconds=30)
        done = ngcp_task("jobs", "--redis", world.server.url)

        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout.count("noop") == 400
