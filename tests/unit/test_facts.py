import asyncio
import logging
import math

import pytest

from ngcp_task_agent import facts
from ngcp_task_agent.facts import Facts, describe
from ngcp_task_agent.interfaces import Reading
from ngcp_task_agent.presence import Fact

from ..helpers import Clock, until


def values(**facts):
    return {key: frozenset(text.split()) for key, text in facts.items()}


class Source:
    """Gives the same reading again and again, or raises *error*."""

    def __init__(self, name="", *, interval=0.0, max_age=10.0, **facts):
        self.reading = Reading(values(**facts), name)
        self.interval = interval
        self.max_age = max_age
        self.error = None
        self.reads = 0

    def __str__(self):
        return "test"

    async def read(self):
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.reading


def build(*sources, name="", fixed=None, clock=None, aliases=()):
    return Facts(name, aliases, fixed or {}, sources, "host", clock or Clock())


async def started(*sources, **kwargs):
    facts = build(*sources, **kwargs)
    await facts.start()
    return facts


async def test_a_node_is_what_its_sources_say():
    """Names and facts, ready when the start is over."""
    node = (await started(Source("prx01a", state="active"), aliases=["proxy"])).node()

    assert (node.name, node.aliases) == ("prx01a", ("proxy",))
    assert node.facts == values(state="active")


async def test_the_first_source_that_knows_a_fact_wins():
    """The order in the file is the order of trust; values are not mixed."""
    node = (await started(Source(role="lb"), Source(role="proxy", state="active"))).node()

    assert node.facts == values(role="lb", state="active")


async def test_fixed_facts_win_over_every_source():
    """The administrator has the last word."""
    node = (await started(Source(role="lb", state="active"), fixed=values(role="web"))).node()

    assert node.facts == values(role="web", state="active")


@pytest.mark.parametrize(
    ("configured", "sources", "name"),
    [
        ("sp1", ["prx01a"], "sp1"),
        ("", ["", "prx01a", "prx01b"], "prx01a"),
        ("", [""], "host"),
        ("", [], "host"),
    ],
)
async def test_the_name_is_configured_or_known_or_the_hosts(configured, sources, name):
    """In this order."""
    facts = await started(*map(Source, sources), name=configured)

    assert facts.node().name == name


async def test_a_stale_fact_is_left_out():
    """It fails closed: what nobody has looked at lately selects nothing."""
    clock = Clock()
    one = await started(
        Source("prx01a", state="active", max_age=10), Source(role="lb", max_age=20),
        fixed=values(site="vienna"), clock=clock,
    )  # fmt: skip

    clock.now += 9.9
    assert one.node().facts == values(state="active", role="lb", site="vienna")
    clock.now += 0.1
    assert one.node().facts == values(role="lb", site="vienna")
    clock.now += 10
    assert one.node().facts == values(site="vienna")
    assert one.node().name == "prx01a"  # a name does not go stale


async def test_a_stale_source_gives_way_to_the_next():
    """Second-best knowledge is better than none."""
    clock = Clock()
    one = await started(Source(state="active", max_age=10), Source(state="old", max_age=99),
                        clock=clock)  # fmt: skip

    assert one.node().facts == values(state="active")
    clock.now += 10
    assert one.node().facts == values(state="old")


async def test_a_fact_without_a_limit_stays():
    """What is written in a file of the agent's own does not age."""
    clock = Clock()
    one = await started(Source(site="vienna", max_age=math.inf), clock=clock)

    clock.now += 1e9

    assert one.node().facts == values(site="vienna")


async def test_sources_are_read_again_and_again():
    """A failover is seen in the background; a request never waits for it."""
    source = Source(state="active", interval=0.01)
    one = await started(source)
    assert one.node().facts == values(state="active")

    source.reading = Reading(values(state="standby"))

    await until(lambda: one.node().facts == values(state="standby"))
    await one.stop()


async def test_a_source_that_never_changes_is_read_once():
    """Nothing polls without a reason."""
    once, often = Source(interval=0), Source(interval=0.01)
    one = await started(once, often)

    await until(lambda: often.reads > 3)
    await one.stop()

    assert once.reads == 1


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("line 3"), TimeoutError("slow")])
async def test_a_source_that_fails_is_logged_once_and_asked_again(error, caplog):
    """What it said before counts until it is stale."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    source = Source(state="active", interval=0.01)
    one = await started(source, clock=clock)
    source.error = error
    await until(lambda: source.reads > 5)

    assert one.node().facts == values(state="active")
    clock.now += 11
    assert one.node().facts == {}
    assert caplog.text.count("its facts will go stale") == 1
    source.error = None
    await until(lambda: one.node().facts == values(state="active"))
    assert caplog.text.count("readable again") == 1
    await one.stop()


async def test_a_source_with_a_bug_is_asked_again(caplog):
    """Somebody else's plug-in; the log has the traceback, once."""
    source = Source(state="active", interval=0.01)
    source.error = KeyError("role")
    one = await started(source)
    await until(lambda: source.reads > 3)

    source.error = None

    await until(lambda: one.node().facts == values(state="active"))
    assert caplog.text.count("KeyError: 'role'") == 1
    await one.stop()


async def test_a_slow_source_does_not_hold_up_the_start(monkeypatch):
    """The agent serves without it, and learns its facts when they come."""
    monkeypatch.setattr(facts, "FIRST_READING", 0.02)
    ready = asyncio.Event()

    class Slow(Source):
        async def read(self):
            await ready.wait()
            return await super().read()

    one = await started(Slow(state="active"), Source(role="lb"))
    assert one.node().facts == values(role="lb")

    ready.set()

    await until(lambda: one.node().facts == values(role="lb", state="active"))
    await one.stop()


class Hangs(Source):
    cancelled = False

    async def read(self):
        self.reads += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_after_stop_nothing_is_read(monkeypatch):
    """Not even by a source that was being read."""
    monkeypatch.setattr(facts, "FIRST_READING", 0.02)
    source, hanging = Source(interval=0.01), Hangs()
    one = await started(source, hanging)
    await until(lambda: source.reads > 2)

    await one.stop()
    reads = source.reads
    await asyncio.sleep(0.03)

    assert source.reads == reads
    assert hanging.cancelled


async def test_a_stop_right_after_the_start_leaves_no_reading_behind(monkeypatch):
    """A file that changes twice in a moment does that."""
    monkeypatch.setattr(facts, "FIRST_READING", 0.02)
    hanging = Hangs()
    one = await started(hanging)

    await one.stop()

    await until(lambda: hanging.cancelled, 1)


async def test_a_change_is_logged_in_one_line(caplog):
    """Who asks why a node took a request finds the answer in the log."""
    caplog.set_level(logging.INFO)

    await started(Source("prx01a", state="active", role="proxy lb"))

    assert caplog.messages == ["node prx01a: role=lb+proxy;state=active"]


def test_facts_are_described_as_a_filter():
    """What the log shows can be pasted behind a bar in a `dst`."""
    assert describe(values(state="active", role="b a")) == "role=a+b;state=active"
    assert describe({}) == ""


async def test_what_is_known_has_an_age():
    """What is stale is told as well; what is fixed does not age."""
    clock = Clock()
    facts = await started(Source(state="active", role="lb"), fixed=values(site="vienna"),
                          clock=clock)  # fmt: skip
    clock.now += 3

    assert facts.known() == {
        "state": Fact(frozenset({"active"}), 3.0),
        "role": Fact(frozenset({"lb"}), 3.0),
        "site": Fact(frozenset({"vienna"})),
    }
    clock.now += 1e6
    assert facts.known()["state"] == Fact(frozenset({"active"}), 1e6 + 3, True)
    assert facts.known().keys() - facts.node().facts.keys() == {"state", "role"}


@pytest.mark.parametrize("order", [1, -1])
async def test_of_two_sources_the_one_that_is_not_stale_is_known(order):
    """As it is for a dst."""
    sources = [Source(state="old", max_age=5.0), Source(state="new", max_age=50.0)][::order]
    clock = Clock()
    facts = await started(*sources, clock=clock)
    clock.now += 10

    assert facts.known()["state"] == Fact(frozenset({"new"}), 10.0)
    assert facts.node().facts == values(state="new")
