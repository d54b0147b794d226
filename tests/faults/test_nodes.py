"""Nodes that stand still, are stopped, have no room on the disk or another idea of the time."""

import os
import signal
import subprocess
import time

import pytest

from ..acceptance.harness import write_file
from ..acceptance.processes import until
from .fleet import LEASE, TAKE_OVER, amount, dice, durable, report, retried

pytestmark = pytest.mark.redis

HOUR = 3600  # seconds
# Python imports this before anything else; a shift is read anew each time, so it may jump.
OTHER_CLOCK = """
import time
true, true_ns = time.time, time.time_ns
def shift():
    with open({path!r}) as file:
        return int(file.read())
time.time = lambda: true() + shift()
time.time_ns = lambda: true_ns() + shift() * 10**9
"""


@pytest.fixture
def clocks(fleet):
    """``clocks(name, seconds)`` puts a node's clock ahead; what its environment needs."""

    def put(name, seconds):
        site = fleet.place / f"clock-{name}"
        site.mkdir(exist_ok=True)
        write_file(site / "shift", str(seconds))
        write_file(site / "sitecustomize.py", OTHER_CLOCK.format(path=str(site / "shift")))
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": ":".join(filter(None, paths))}

    return put


def test_a_lease_is_lost_by_the_dead_and_the_still_and_by_nobody_else(fleet, clocks):
    """One member is killed, one stopped and continued; two have clocks that jump for hours.

    What was at work on the first two is taken over within 15 s, and the late results of the
    stopped one are refused. What the others do for longer than a lease stays theirs.
    """
    tasks = {
        "work": {"seconds": 3, "max_running": 8, "retry": retried(), **durable("p")},
        "once": {"seconds": 3, "max_running": 16, **durable("p")},
        "long": {"seconds": LEASE + 2, "max_running": 16, **durable("p")},
    }
    dying, still = (fleet.node(name, tasks) for name in ("dying", "still"))
    work, once = [], []
    for part in range(1, 5):  # whoever has waited longest takes a part as a whole
        work += fleet.post(2, "work")
        once += fleet.post(2, "once")
        until(lambda part=part: len(fleet.begun()) == 4 * part, 10, "begun")

    still.signal(signal.SIGSTOP)
    fleet.kill(dying)
    ended = still.log.count("task work") + still.log.count("task once")
    refused = sum(node == "still" for _, _, node in fleet.begun()) - ended
    began = time.monotonic()
    for name in ("early", "late"):
        fleet.node(name, tasks, env=clocks(name, 0))
    long = fleet.post(16, "long")
    for shift in (HOUR, -HOUR, 0, HOUR):
        clocks("early", -shift)
        clocks("late", shift)
        time.sleep(0.5)
    fleet.wait(TAKE_OVER + 8 - (time.monotonic() - began), work + once)
    seconds = time.monotonic() - began
    still.signal(signal.SIGCONT)
    until(lambda: still.log.count(": lost") == refused, 10, "its late results are refused")
    fleet.wait(LEASE)

    report(f"what two had begun was ended elsewhere {seconds:.1f} s later, {refused} refused")
    fleet.judge("one member dead, one still, two with jumping clocks")
    assert refused
    assert seconds < TAKE_OVER + 4
    assert (fleet.counts(work).done, fleet.counts(once).error) == (8, 8)
    assert {fleet.begun(ref).total() for ref in work} == {2}
    # What Redis had handed to the stopped one before its lease was over, never began: nobody
    # can tell that from what did, and it must not run twice.
    only_taken = [ref for ref in long if not fleet.begun(ref)]
    assert fleet.counts(only_taken).error == len(only_taken) < 16
    assert fleet.counts(long).done == 16 - len(only_taken)
    assert fleet.dead == 8 + len(only_taken)
    assert {fleet.begun(ref).total() for ref in once} <= {0, 1}  # 0: likewise
    assert {fleet.begun(ref).total() for ref in long} <= {0, 1}


def test_a_stopped_member_leaves_its_queue_to_the_others(fleet):
    """What has not begun is somebody else's at once; what is cut off is retried, or answered."""
    tasks = {
        "quick": {"seconds": 0.1, "max_running": 1, "retry": retried(), **durable("p")},
        "long": {"seconds": 4, "max_running": 2, "retry": retried(), **durable("p")},
        "once": {"seconds": 4, "max_running": 2, **durable("p")},
    }
    leaving = fleet.node("a", tasks, agent={"grace": 1})
    long, once = fleet.post(2, "long"), fleet.post(2, "once")
    until(lambda: len(fleet.begun()) == 4, 10, "begun")
    fleet.node("b", tasks)
    quick = fleet.post(40, "quick")
    time.sleep(0.3)  # they share it

    began = time.monotonic()
    leaving.signal(signal.SIGTERM)
    fleet.wait(20, quick)
    seconds = time.monotonic() - began
    fleet.wait(20)

    report(f"a stopped member's queue was done {seconds:.1f} s after SIGTERM")
    counts = fleet.judge("SIGTERM with a queue")
    assert seconds < 8
    assert fleet.counts(quick).done == 40
    assert (fleet.counts(long).done, fleet.counts(once).error) == (2, 2)
    assert {fleet.begun(ref).total() for ref in quick + once} == {1}
    assert counts.error == 2
    assert leaving.process.wait(10) == 0


def test_members_that_are_replaced_one_by_one_lose_nothing(fleet):
    """An upgrade: each is stopped in the middle of its work and started again."""
    chance = dice("upgrades")
    tasks = {"work": {"seconds": 0.1, "max_running": 4, "retry": retried(), **durable("p")}}
    nodes = [fleet.node(name, tasks, agent={"grace": 0.05}) for name in ("a", "b")]
    rounds = amount(2, 50)
    for _ in range(rounds):
        for node in nodes:
            fleet.post(30, "work")
            time.sleep(chance.uniform(0, 0.3))
            node.stop()
            node.start()
            fleet.wait_ready(node)
    fleet.wait(20 + rounds)

    assert fleet.judge(f"{2 * rounds} restarts by SIGTERM").done == 60 * rounds


@pytest.fixture
def small_disk(fleet):
    """A file system of 2 MiB, for one node's ``state_dir``."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    place = fleet.place / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        for daemon in fleet.daemons:
            daemon.clear_away()
        subprocess.run(["umount", str(place)], check=True)


def fill(path):
    """Leave not a byte."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError:
            pass


@pytest.mark.root
def test_a_full_disk_refuses_what_must_be_recorded_and_nothing_else(fleet, small_disk):
    """`journal: required` is told why; others run; a ping shows it; room makes it good."""
    kinds = {
        "must": {"journal": "required", "once": "a", **durable()},
        "may": {"once": "a", **durable()},
        "heard": {"once": "a"},
    }
    node = fleet.node("a", kinds, agent={"state_dir": str(small_disk)})
    count = amount(20, 500)

    def journal():
        with fleet.listener() as listener:
            return listener.ask("agent.ping", node.dst)[-1]["data"]["journal"]

    assert journal()["ok"]
    fill(small_disk / "filler")
    must = fleet.post(count, "must", nodes=("a",))
    may = fleet.post(count, "may", nodes=("a",))
    heard = fleet.publish(count, "heard", nodes=("a",))
    fleet.wait(20)
    state = journal()
    report(f"journal on a full disk: {state}")
    assert not state["ok"]
    assert state["failures"]
    refused = fleet.judge("disk full, journal: required", must)
    # What the journal's file had room for may still have been recorded.
    assert refused.error
    reasons = {r for ref in must for s, r in fleet.ends()[ref, "a"] if s == "error"}
    assert all(reason.startswith("not run, for it cannot be recorded") for reason in reasons)
    assert refused.begun == refused.done
    assert fleet.judge("disk full, others", may + heard).done == 2 * count

    (small_disk / "filler").unlink()
    again = fleet.post(count, "must", nodes=("a",)) + fleet.publish(count, "heard", nodes=("a",))
    fleet.wait(20)

    assert fleet.judge("room again", again).done == 2 * count
    assert journal()["ok"]


def test_time_to_live_goes_by_the_clock_of_redis(fleet, clocks):
    """Of three nodes one is an hour ahead, one behind: they agree on what is stale."""
    names = ("a", "b", "c")
    for name, shift in zip(names, (0, HOUR, -HOUR), strict=True):
        fleet.node(name, {"all": {"once": name, **durable()}}, env=clocks(name, shift))
    now = int(fleet.bus.time()[0])
    everywhere = {"nodes": names, "options": {"ttl": 60}}

    # Without a timestamp an entry's own time counts: it comes from the same clock.
    fresh = fleet.post(5, "all", **everywhere)
    fresh += fleet.post(5, "all", timestamp=now - 20, **everywhere)
    stale = fleet.post(5, "all", timestamp=now - 90, **everywhere)
    fleet.wait(15)

    assert fleet.judge("fresh, clocks an hour off", fresh).done == 30
    expired = fleet.judge("stale, clocks an hour off", stale)
    assert (expired.error, expired.begun) == (15, 0)
    for ref in stale:
        for name in names:
            [(_, reason)] = fleet.ends()[ref, name]
            assert reason.startswith("expired")
