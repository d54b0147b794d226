"""A network between the nodes and Redis that is slow, cuts, half-closes and swallows."""

import time

import pytest

from ..acceptance.processes import until
from ..acceptance.proxy import Proxy
from .fleet import SOAK, amount, dice, durable, report, retried

pytestmark = pytest.mark.redis

TASKS = {"work": {"seconds": 0.1, "max_running": 8, "retry": retried(), **durable("p")}}
FAULTS = ("cut", "half_close", "mute", "swallow")


@pytest.fixture
def proxy(fleet):
    """In front of the world's redis-server."""
    with Proxy(fleet.server.port) as proxy:
        yield proxy


def far(fleet, proxy, name="far", tasks=TASKS):
    """A node that reaches Redis by the proxy alone."""
    return fleet.node(name, tasks, port=proxy.port)


# In the fast part the others come with `test_faults_at_random`: to notice them takes long.
@pytest.mark.parametrize("fault", FAULTS if SOAK else FAULTS[:1])
def test_a_fault_amid_jobs(fleet, proxy, fault):
    """The only node is cut off in the middle; it comes back and answers each once."""
    tasks = {"work": {**TASKS["work"], "seconds": 1, "max_running": 20}}
    far(fleet, proxy, tasks=tasks)
    count = 60
    fleet.post(count, "work")
    until(lambda: len(fleet.begun()) >= 20, 10, "a part has begun")

    began = time.monotonic()
    getattr(proxy, fault)()
    fleet.wait(60)

    report(f"{fault}: all was answered {time.monotonic() - began:.1f} s later")
    counts = fleet.judge(f"{fault} amid {count} jobs")
    assert counts.done == count
    until(lambda: not fleet.held(), 15, "nothing held any more")


def test_a_slow_network_costs_time_only(fleet, proxy):
    """A quarter of a second each way: all is done, once, and nobody takes over."""
    count = amount(16, 1000)
    far(fleet, proxy)
    proxy.slow(0.25)
    fleet.post(count, "work")
    fleet.wait(30 + count)

    counts = fleet.judge("0.25 s each way")
    assert (counts.done, counts.begun) == (count, count)


def test_faults_at_random(fleet, proxy):
    """Two nodes beyond the proxy and one before it share a pool through all of it."""
    chance = dice("faults of the network")
    rounds = amount(6, 100)
    far(fleet, proxy, "far1")
    far(fleet, proxy, "far2")
    fleet.node("near", TASKS)
    for _ in range(rounds):
        fleet.post(40, "work")
        time.sleep(chance.uniform(0, 0.6))
        proxy.slow(chance.choice((0, 0, 0.05)))
        getattr(proxy, chance.choice(FAULTS))()
    proxy.slow(0)
    fleet.wait(60 + rounds)

    counts = fleet.judge(f"{rounds} faults of the network")
    assert counts.done == 40 * rounds
    until(lambda: not fleet.held(), 15, "nothing held any more")
