"""The bus's clock, when the bus answers and when it does not."""

import asyncio

import pytest

from ngcp_task_agent.backends import redis_clock
from ngcp_task_agent.backends.redis_clock import BusClock
from ngcp_task_agent.errors import BackendError

from ..helpers import Clock


class Bus:
    """Answers with `time`, or raises `error`; `took` seconds pass before it does."""

    def __init__(self, elapsed):
        self.elapsed = elapsed
        self.time = (2_000_000, 500_000)
        self.error = None
        self.took = 0.0
        self.asked = 0

    async def __call__(self):
        self.asked += 1
        await asyncio.sleep(0)
        self.elapsed.now += self.took
        if self.error is not None:
            raise self.error
        return self.time


@pytest.fixture
def elapsed():
    return Clock(50.0)


@pytest.fixture
def bus(elapsed):
    return Bus(elapsed)


async def test_it_is_what_the_server_says(bus, elapsed):
    """This host's own clock has no part in it."""
    assert await BusClock(bus, elapsed).now() == 2_000_000.5


async def test_it_is_asked_each_time(bus, elapsed):
    """A server that takes over has another clock."""
    clock = BusClock(bus, elapsed)
    await clock.now()
    bus.time = (3_000_000, 0)

    assert await clock.now() == 3_000_000


async def test_while_the_server_is_away_it_goes_on(bus, elapsed):
    """By seconds that pass evenly."""
    clock = BusClock(bus, elapsed)
    await clock.now()
    bus.error = BackendError("away")
    elapsed.now += 3600

    assert await clock.now() == 2_003_600.5


async def test_nothing_is_made_up(bus, elapsed):
    """A wall clock may be an hour off."""
    bus.error = BackendError("away")

    with pytest.raises(BackendError):
        await BusClock(bus, elapsed).now()


async def test_a_broken_connection_is_tried_again(bus, elapsed):
    """It may have been closed long ago, and the server be there."""

    async def ask():
        bus.asked += 1
        if bus.asked == 1:
            raise BackendError("connection closed")
        return (7, 0)

    assert await BusClock(ask, elapsed).now() == 7


async def test_an_answer_read_late_is_not_the_present(bus, elapsed):
    """Stopped for an hour between question and answer, a node would start what has expired."""
    bus.took = 3600.0

    assert await BusClock(bus, elapsed).now() == 2_003_600.5


async def test_those_who_ask_at_once_share_the_question(bus, elapsed):
    """A hundred requests in a burst are one round trip."""
    clock = BusClock(bus, elapsed)

    assert set(await asyncio.gather(*(clock.now() for _ in range(100)))) == {2_000_000.5}
    assert bus.asked == 1


async def test_who_gives_up_does_not_take_the_answer_from_others(bus, elapsed):
    """A job that is cancelled meanwhile."""
    clock = BusClock(bus, elapsed)
    first, second = (asyncio.ensure_future(clock.now()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()

    assert await second == 2_000_000.5


async def test_a_server_that_hangs_is_not_waited_for(elapsed, monkeypatch):
    """The last that is known has to do."""
    monkeypatch.setattr(redis_clock, "ASK_TIMEOUT", 0.02)
    hangs = asyncio.Event()

    async def ask():
        if hangs.is_set():
            await asyncio.Event().wait()
        return (1000, 0)

    clock = BusClock(ask, elapsed)
    await clock.now()
    hangs.set()
    elapsed.now += 5

    assert await clock.now() == 1005
