"""What durable requests promise, with numbers."""

import hashlib
import time

import pytest

from ..acceptance.harness import redis_task
from ..acceptance.processes import until
from .fleet import ANSWERS, PAGE, STREAM, amount, dice, durable, report, retried

pytestmark = pytest.mark.redis

NAMES = ("a", "b", "c")
TRIMMED = 25.0  # seconds in which an agent trims more than once
PIECE = 65536  # bytes of an answer
# 64 KiB that nobody can guess; what was sent is known by its hash.
ANSWER = """#!/bin/sh
text=$(head -c 49152 /dev/urandom | base64 -w0)
printf %s "$text" | sha256sum >"$0.sums/$NGCP_TASK_UUID"
printf %s "$text"
"""


def test_requests_under_kills(fleet):
    """100,000 in a soak, with workers killed at random: none lost, none with two ends."""
    chance = dice("requests under kills")
    count = amount(1000, 100_000)
    tasks = {"work": {"max_running": 16, "retry": retried(), **durable("p")}}
    nodes = [fleet.node(name, tasks) for name in NAMES]
    began, kills = time.monotonic(), 0
    refs = fleet.post(count, "work")
    end = began + 60 + count / 20

    # While much is left: what comes after the last kill shows that all end well.
    while len(fleet.missing(refs)) > count // 5 and time.monotonic() < end:
        time.sleep(chance.uniform(0.1, 1))
        victim = chance.choice(nodes)
        fleet.kill(victim)
        victim.start()
        kills += 1
    fleet.wait(end - time.monotonic())

    seconds = time.monotonic() - began
    counts = fleet.judge(f"{count} requests, {kills} kills, {seconds:.0f} s")
    assert counts.done == count
    assert kills
    until(lambda: not fleet.held(), 5, "nothing held any more")
    assert fleet.dead == 0


def test_what_is_delivered_and_not_acknowledged_survives_trimming(fleet):
    """50 jobs run while what was before and after them is trimmed away; then a kill."""
    tasks = {
        "quick": {"max_running": 16, **durable("p")},
        "long": {"seconds": TRIMMED, "max_running": 50, "retry": retried(), **durable("p")},
    }
    node = fleet.node("a", tasks)
    earlier = fleet.post(200, "quick")
    fleet.wait(20, earlier)
    long = fleet.post(50, "long")
    until(lambda: len(fleet.begun()) == 250, 10, "50 delivered")
    later = fleet.post(200, "quick")
    fleet.wait(20, later)

    until(lambda: fleet.bus.xlen(STREAM) < 450, TRIMMED, "what was before is trimmed")
    there = fleet.bus.xlen(STREAM)
    assert fleet.held() == 50
    fleet.kill(node)
    node.start()
    until(lambda: len(fleet.begun()) == 500, 15, "all 50 begun again")

    report(f"450 requests, 50 of them at work: trimmed to {there}")
    assert {fleet.begun(ref).total() for ref in long} == {2}
    assert fleet.judge("quick ones around 50 at work", earlier + later).done == 400


def test_what_was_posted_before_the_first_start_is_run(fleet):
    """There was no group yet, and nobody who knew the stream."""
    refs = fleet.post(20, "each", stream="other", nodes=NAMES[:2]) + fleet.post(20, "one")
    for name in NAMES[:2]:
        each = {"once": name, **durable(control_stream="other")}
        fleet.node(name, {"one": durable("p"), "each": each})
    fleet.wait(15)

    assert fleet.judge("posted before the first start", refs).done == 60


def test_a_client_that_sleeps_gets_every_byte(fleet):
    """1,000 answers of 64 KiB wait for it, whole and in order."""
    count = amount(100, 1000)
    program = fleet.file("answer", ANSWER, 0o755)
    sums = program.with_name("answer.sums")
    sums.mkdir()
    task = {**redis_task("command", {"run": str(program)}), "timeout": 600, "max_running": 8}
    node = fleet.node("a", {})
    node.write_task("answer", {**task, **durable("p")})
    refs = fleet.post(count, "answer")

    time.sleep(10 if count == 1000 else 3)
    done = until(lambda: fleet.bus.xlen(ANSWERS) >= 2 * count, 60 + count / 5, "all is there")
    assert done

    told, order, cursor = {}, [], "-"
    while page := fleet.bus.xrange(ANSWERS, cursor, count=PAGE // 20):
        cursor = b"(" + page[-1][0]
        order += [fleet.body(fields) for _, fields in page]
    for body in order:
        if body["status"] == "done":
            assert body["ref"] not in told
            told[body["ref"]] = hashlib.sha256(body["data"].encode()).hexdigest()
            assert len(body["data"]) == PIECE
    statuses = {ref: [b["status"] for b in order if b["ref"] == ref] for ref in refs[:100]}
    report(f"{len(told)} answers of {PIECE} bytes to a client that slept")
    assert told == {path.name: path.read_text().split()[0] for path in sums.iterdir()}
    assert told.keys() == set(refs)
    assert all(one == ["accepted", "done"] for one in statuses.values())
