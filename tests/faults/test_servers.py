"""Redis killed and restarted, with what it had and without, and failed over."""

import asyncio
import time

import pytest

from ..acceptance.processes import PATIENCE, until
from ..acceptance.wire import answered
from ..integration.redis_fleet import Watched
from .fleet import SOAK, STREAM, Fleet, amount, dice, durable, report, retried

pytestmark = pytest.mark.redis

BACK = 10.0  # seconds after a restart until every node answers
NAMES = ("a", "b", "c")


def all_answer(fleet, since):
    """Wait until every daemon answers a ping; seconds after *since*."""
    with fleet.listener() as listener:
        for daemon in fleet.daemons:
            answered(listener, daemon.dst, BACK * PATIENCE)
    return time.monotonic() - since


def test_a_restart_under_200_jobs(fleet):
    """Every node is back within 10 s, and what has not expired is handled."""
    tasks = {
        "work": {"seconds": 3, "max_running": 40, "retry": retried(), **durable("p")},
        "short": {"seconds": 0.1, "max_running": 40, "retry": retried(), **durable("p")},
    }
    for name in NAMES:
        fleet.node(name, tasks)
    refs = fleet.post(200, "work")
    until(lambda: len(fleet.begun()) >= 110, 15, "as many as there is room for")

    fleet.kill_server()
    time.sleep(1)
    fleet.server.start()
    back = time.monotonic()
    hurried = fleet.post(20, "short", options={"ttl": 1})
    later = fleet.post(20, "short", options={"ttl": 60})
    seconds = all_answer(fleet, back)
    fleet.wait(40)

    report(f"every node was back {seconds:.1f} s after the restart")
    assert seconds < BACK
    counts = fleet.judge("Redis killed under 200 jobs")
    assert fleet.counts(refs + later).done == 220
    assert fleet.counts(refs).begun == 200
    expired = fleet.counts(hurried)
    assert expired.done + expired.error == 20
    assert counts.error == expired.error
    until(lambda: not fleet.held(), 5, "nothing held any more")


@pytest.mark.parametrize("fsync", ["always", "everysec"] if SOAK else ["everysec"])
def test_kills_of_a_server_that_writes_to_disk(fsync):
    """What it has confirmed is there again after each; jobs run on meanwhile."""
    chance = dice(f"kills of redis, {fsync}")
    kills = amount(3, 50)
    with Fleet("--appendonly", "yes", "--appendfsync", fsync) as fleet:
        tasks = {"work": {"seconds": 0.1, "max_running": 8, "retry": retried(), **durable("p")}}
        for name in NAMES:
            fleet.node(name, tasks)
        for _ in range(kills):
            fleet.post(60, "work")
            time.sleep(chance.uniform(0, 0.5))
            fleet.kill_server()
            time.sleep(chance.uniform(0, 0.5))
            fleet.server.start()
        fleet.wait(30 + kills)

        counts = fleet.judge(f"Redis killed {kills} times, appendfsync {fsync}")
        assert counts.done == 60 * kills
        until(lambda: not fleet.held(), 5, "nothing held any more")


def test_a_server_that_comes_back_empty():
    """Jobs that run go on and are answered once; what comes later is run; one warning each."""
    with Fleet() as fleet:
        tasks = {"work": {"seconds": 3, "max_running": 8, **durable("p")}}
        each = {"each": {"seconds": 2, **durable(control_stream="other")}}
        for name in NAMES:
            fleet.node(name, {**tasks, "each": {**each["each"], "once": name}})
        running = fleet.post(20, "work")
        running += fleet.post(5, "each", stream="other", nodes=NAMES)
        until(lambda: len(fleet.begun()) == 35, 10, "all begun")
        fleet.read()

        fleet.kill_server()
        fleet.server.start()
        fleet.begin_anew()
        fleet.wait(20)
        counts = fleet.judge("Redis came back empty under 35 jobs", running)
        assert (counts.done, counts.begun) == (35, 35)
        until(lambda: fleet.bus.exists(STREAM), 10, "the group is made again")
        later = fleet.post(20, "work") + fleet.post(5, "each", stream="other", nodes=NAMES)
        fleet.wait(20)

        assert fleet.judge("and later", later).done == 35
        logs = [daemon.log for daemon in fleet.daemons]
        assert sum(log.count("pool:p was gone; made again") for log in logs) >= 1
        assert all(log.count(f"node:{n}:") >= 1 for n, log in zip(NAMES, logs, strict=True))


def test_a_failover_by_sentinels(tmp_path):
    """The master is killed under jobs; the replica had what was waited for."""
    count = amount(40, 2000)
    with Fleet() as fleet:
        watched = Watched("redis-server", tmp_path)
        try:
            asyncio.run(watched.start())
            _fail_over(fleet, watched, count)
        finally:
            watched.stop()


def _fail_over(fleet, watched, count):
    fleet.move(watched.master.port, watched.options)
    tasks = {"work": {"seconds": 0.3, "max_running": 4, "retry": retried(), **durable("p")}}
    nodes = [fleet.node(name, tasks, start=False) for name in NAMES]
    for node in nodes:
        node.start()
    until(lambda: all("ready:" in node.log for node in nodes), 20, "all are ready")
    fleet.post(count, "work")
    fleet.bus.wait(1, 5000)
    until(lambda: len(fleet.begun()) >= count // 4, 20 + count / 10, "a part has begun")

    watched.master.kill()
    killed = time.monotonic()
    until(lambda: asyncio.run(watched.named()) == watched.replica.port, 20, "a new master")
    fleet.move(watched.replica.port, watched.options)
    report(f"the sentinels had a new master after {time.monotonic() - killed:.1f} s")
    fleet.wait(40 + count / 10)

    counts = fleet.judge("the master killed, failed over")
    assert counts.done == count
