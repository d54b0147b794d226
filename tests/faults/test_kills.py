"""Daemons that are killed at any moment: nothing is lost, nothing is answered twice."""

import time

import pytest

from ..acceptance.processes import until
from .fleet import amount, dice, durable, report, retried

pytestmark = pytest.mark.redis

KILLS = amount(5, 50)  # at random points


def killed_at_random(fleet, daemons, chance, kills, pause=0.4, more=lambda: None):
    """Kill one after the other, and start each again at once."""
    for _ in range(kills):
        more()
        time.sleep(chance.uniform(0, pause))
        victim = chance.choice(daemons)
        fleet.kill(victim)
        victim.start()


def test_a_pool_loses_nothing_by_kills(fleet):
    """Three members, each killed again and again in the middle of its work."""
    chance = dice("kills in a pool")
    tasks = {"work": {"seconds": 0.05, "max_running": 4, "retry": retried(), **durable("p")}}
    nodes = [fleet.node(name, tasks) for name in ("a", "b", "c")]
    fleet.post(40 * KILLS, "work")

    killed_at_random(fleet, nodes, chance, KILLS)
    fleet.wait(30 + KILLS)

    counts = fleet.judge(f"pool of 3, {KILLS} kills")
    assert counts.done == 40 * KILLS
    until(lambda: not fleet.held(), 5, "nothing held any more")
    assert fleet.dead == 0


def test_without_retry_what_was_begun_is_unknown_and_runs_once(fleet):
    """On each of two nodes that run everything; one attempt and one answer for each."""
    chance = dice("kills of two nodes")
    kinds = ("a", "b")
    nodes = [
        fleet.node(name, {"work": {"seconds": 0.2, "max_running": 8, "once": name, **durable()}})
        for name in kinds
    ]

    killed_at_random(fleet, nodes, chance, KILLS, 0.6, lambda: fleet.post(12, "work", nodes=kinds))
    fleet.wait(30 + KILLS)

    counts = fleet.judge(f"broadcast on 2, {KILLS} kills")
    assert counts.asked == 2 * 12 * KILLS
    assert max(times for times in fleet.begun().values()) == 1
    assert all(attempt == "1" for _, attempt, _ in fleet.begun())
    unknown = [r for one in fleet.ends().values() for s, r in one if s == "error"]
    assert all(reason.startswith("outcome unknown") for reason in unknown)
    assert fleet.dead == len(unknown)


def test_what_was_accepted_by_pubsub_is_answered_after_the_restart(fleet):
    """The journal knows it: *outcome unknown*, or the end that had not left yet."""
    chance = dice("kills with a journal")
    node = fleet.node("a", {"work": {"seconds": 0.1, "max_running": 8, "once": "a"}})
    for _ in range(KILLS):
        fleet.publish(20, "work", nodes=("a",))
        time.sleep(chance.uniform(0, 0.4))
        fleet.kill(node)
        node.start()
        fleet.wait_ready(node)

    # What was lost on its way to the daemon is what pub/sub forgets: nobody has heard it.
    begun = {ref for ref, _, _ in fleet.begun()}
    heard = begun | {body["ref"] for body in fleet.read().values()} & fleet.asked.keys()
    fleet.wait(10, heard)

    counts = fleet.judge(f"pub/sub with a journal, {KILLS} kills", heard)
    report(f"  {len(fleet.asked) - len(heard)} of {len(fleet.asked)} were never heard")
    assert counts.done
    assert counts.error
    assert all(attempt == "1" for _, attempt, _ in fleet.begun())
