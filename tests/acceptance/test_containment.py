"""What one task does to a node, the others do not feel."""

import os
import time

import pytest

from .harness import World, command
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
