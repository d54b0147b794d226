"""What one task does to a node, the others do not feel."""

import contextlib
import os
import random
import signal
import time

import pytest

from .harness import World, command, redis_task
from .processes import until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
]

MIB = 1024 * 1024
GROWTH = 20 * MIB  # of the daemon
PING_EVERY, PING_LIMIT = 0.1, 1.0  # seconds

HOG = """
held = []
while True:
    held.append(bytearray(8 << 20))
    for place in range(0, 8 << 20, 4096):
        held[-1][place] = 1
"""


@pytest.fixture
def world():
    with World() as world:
        hog = world.file("hog.py", HOG)
        bomb = world.script("bomb", "bomb() { bomb | bomb & }", "bomb", "sleep 30")
        nobody = {"as_user": "nobody"}
        tasks = {
            "hog": command("/usr/bin/python3", hog, limits={"memory": "256MiB"}, timeout=30),
            "bomb": command(bomb, broker_options=nobody, limits={"pids": 40}, timeout=3),
            "flood": command("/usr/bin/head", "-c", "10G", "/dev/zero", timeout=30),
            "live": command("/usr/bin/head", "-c", "10G", "/dev/zero", timeout=4),
            "quick": command("/bin/echo", "fine"),
        }
        world.daemon("sp1", tasks=tasks)
        yield world


def test_a_hog_a_fork_bomb_and_a_flood_side_by_side(world):
    """Pings are answered within a second, the other jobs end well, the daemon stays small."""
    (daemon,), listener = world.daemons, world.listen()
    for ref in [listener.send("quick") for _ in range(20)]:
        listener.talk(ref)
    before = daemon.rss
    bad = [listener.send(name) for name in ("hog", "bomb", "flood", "live", "hog", "flood")]
    bad.append(listener.send("live", options={"stream": True}))

    pings, quick, due = [], [], time.monotonic()
    while not all(map(listener.ended, bad)):
        assert time.monotonic() < due + 40
        pings.append(listener.send("agent.ping"))
        quick.append(listener.send("quick"))
        end = time.monotonic() + PING_EVERY
        while time.monotonic() < end:
            listener.hear(0.02)
    listener.talk_all([*pings, *quick])
    slowest = max(listener.at(ref, "done") - listener.sent[ref] for ref in pings)
    print(f"{len(pings)} pings, slowest {slowest:.3f} s, grown by {daemon.peak - before} bytes")

    assert slowest < PING_LIMIT
    assert {tuple(listener.statuses(ref)) for ref in quick} == {("accepted", "done")}
    assert {listener.of(ref)[-1]["status"] for ref in bad} == {"error"}
    assert daemon.peak - before < GROWTH
    until(lambda: not daemon.descendants, 15, "nobody is left")


def test_a_hog_is_told_from_a_crash_or_fails_by_itself(world):
    """With a control group the kernel ends it; without, it gets no more memory."""
    listener = world.listen()

    last = listener.talk(listener.send("hog", options={"result": True}), seconds=30)[-1]

    assert last["status"] == "error"
    assert "out of memory" in last["reason"] or "MemoryError" in last["reason"]


def test_thousands_of_short_jobs_leave_nothing_behind(world):
    """Sixteen at a time: no zombie, no descriptor, no memory."""
    (daemon,), listener = world.daemons, world.listen()

    def burst(number):
        for _ in range(number):
            refs = listener.send_all([listener.make("quick") for _ in range(16)])
            listener.talk_all(refs, seconds=30)
            assert {listener.of(ref)[-1]["status"] for ref in refs} == {"done"}
            listener.heard.clear()

    burst(70)  # the thousand jobs that are remembered are in memory by now
    before, files = daemon.rss, len(daemon.fds)
    burst(120)

    assert daemon.rss - before < 4 * MIB
    # SQLite keeps what its first checkpoint has opened, for the next one.
    most = files + 3
    until(lambda: len(daemon.fds) <= most and not daemon.descendants, 5, "nothing is left")


PYTHON = """
import time

def nap(seconds):
    time.sleep(seconds)
    return "rested"
"""


def test_workers_killed_at_any_moment(world):
    """A hundred times kill -9: every job has one end, and the task goes on."""
    world.file("naps.py", PYTHON)
    options = {"callable": "naps:nap", "path": str(world.place / "files")}
    (daemon,), listener, chance = world.daemons, world.listen(), random.Random(4711)
    daemon.write_task("nap", redis_task("python", options))
    until(lambda: listener.ask("nap", "sp1", data={"seconds": 0})[-1]["status"] == "done", 5, "it")

    refs = []
    for _ in range(100):
        refs += [listener.send("nap", data={"seconds": 0.02}) for _ in range(2)]
        end = time.monotonic() + chance.uniform(0, 0.1)
        while time.monotonic() < end:
            listener.hear(0.01)
        for pid in daemon.descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    listener.talk_all(refs)
    listener.fence()

    assert {listener.ended(ref) for ref in refs} == {1}
    assert {tuple(listener.statuses(ref)) for ref in refs} <= {
        ("accepted", "done"), ("accepted", "error"),
    }  # fmt: skip
    assert listener.ask("nap", data={"seconds": 0})[-1]["data"] == "rested"


TASKS = """
import asyncio, sys

async def leaves():
    sys.exit(3)

async def exits():
    await asyncio.gather(leaves())
"""


def test_a_task_that_a_function_makes_cannot_end_the_agent(world):
    """asyncio lets its SystemExit through to the very top."""
    world.file("leaves.py", TASKS)
    options = {"callable": "leaves:exits", "path": str(world.place / "files")}
    (daemon,), listener = world.daemons, world.listen()
    daemon.write_task("exits", redis_task("python", options, timeout=2))
    until(lambda: listener.ask("exits", "sp1")[-1]["status"] == "error", 5, "the task")

    assert listener.ask("quick")[-1]["data"] == "fine\n"
    assert daemon.stop() == 0


def test_large_answers_push_no_others_out_of_the_queue():
    """Forty of them together are more than it holds; every job has its end, and every ping."""
    with World("--client-output-buffer-limit", "pubsub 0 0 0") as world:
        lines = world.file("lines", ("x" * 79 + "\n") * 48_000)
        large = command("/bin/cat", lines, max_running=64, timeout=30)
        world.daemon(tasks={"large": large})
        listener = world.listen()

        refs = listener.send_all([listener.make("large", "sp1") for _ in range(40)])
        pings = [listener.send("agent.ping") for _ in range(20)]
        listener.talk_all([*refs, *pings], seconds=40)

        assert {tuple(listener.statuses(ref)) for ref in refs} == {("accepted", "done")}
        assert "lost" not in world.daemons[0].log
