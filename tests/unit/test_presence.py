"""The record of an agent: what it holds, what it may take, and how it is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent import __version__
from ngcp_task_agent.agent import Agent
from ngcp_task_agent.client_nodes import present
from ngcp_task_agent.config import Limits
from ngcp_task_agent.destination import Destination
from ngcp_task_agent.dispatch import Dispatcher
from ngcp_task_agent.errors import MessageError
from ngcp_task_agent.fleet import odd_tasks, task_digests
from ngcp_task_agent.matching import match_record, read_match
from ngcp_task_agent.messages import decode, encode
from ngcp_task_agent.own_record import OwnRecord
from ngcp_task_agent.presence import (
    LIMIT,
    Fact,
    NodeRecord,
    TaskMark,
    decode_record,
    encode_record,
)

from ..helpers import NODE, Clock, MemoryBackend, Says, Waits, request, task, until
from .test_destination import destinations

texts = st.text(max_size=8)
facts = st.builds(
    Fact,
    st.frozensets(texts, max_size=3),
    st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
    st.booleans(),
)
records = st.builds(
    NodeRecord,
    st.text(min_size=1, max_size=8),
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.lists(texts, max_size=3).map(tuple),
    texts,
    st.integers(0, 10**9).map(lambda ms: ms / 1000),
    st.dictionaries(texts, facts, max_size=4),
    st.dictionaries(texts, st.builds(TaskMark, texts, texts, texts), max_size=4),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.just({"facts": 0, "tasks": 0, "aliases": 0}),
)
fleet_facts = st.dictionaries(
    st.sampled_from(["state", "role", "status"]),
    st.builds(
        Fact,
        st.frozensets(st.sampled_from(["active", "standby", "proxy", "lb"])),
        st.none() | st.floats(0, 100),
        st.booleans(),
    ),
)
dsts = destinations.map(str).map(Destination.parse)


@given(records)
def test_a_record_is_read_as_it_was_written(record):
    """Read at once, it says what its writer knew."""
    payload, left_out = encode_record(record)
    read = decode_record(payload, now=record.uptime)

    assert (read, left_out) == (record, 0)


@given(records, st.integers(600, 2000))
def test_a_record_takes_no_more_than_it_may(record, limit):
    """What has to go is counted, and nothing else has changed."""
    payload, left_out = encode_record(record, limit)
    read = decode_record(payload)

    assert len(payload) <= limit
    missing = record.facts.keys() - read.facts.keys(), record.tasks.keys() - read.tasks.keys()
    assert [len(each) for each in missing] == [read.left_out["facts"], read.left_out["tasks"]]
    assert left_out == sum(map(len, missing))
    assert all(read.facts[key] == record.facts[key] for key in read.facts)


def test_the_largest_go_first():
    """A fact that a dst asks for is a word or two, and no listing."""
    small = {f"f{number}": Fact(frozenset({"x"})) for number in range(500)}
    large = {f"big{number}": Fact(frozenset({"y" * 20_000})) for number in range(4)}
    payload, left_out = encode_record(NodeRecord("sp1", "m1", facts={**small, **large}))
    read = decode_record(payload)

    assert len(payload) <= LIMIT
    assert left_out == read.left_out["facts"] == 2
    assert small.keys() <= read.facts.keys()


@given(st.integers(2, 5000), st.integers(500, 20_000), st.integers(0, 3))
def test_as_much_as_fits_is_kept(number, limit, size):
    """However many have to go: no byte too many, and not much room unused."""
    facts = {f"f{n}": Fact(frozenset({"x" * size})) for n in range(number)}
    payload, left_out = encode_record(NodeRecord("sp1", "m1", facts=facts), limit)

    assert len(payload) <= limit
    assert not left_out or len(payload) > limit - 100
    assert decode_record(payload).left_out["facts"] == left_out


def test_the_longest_names_fit():
    """A name of 255 characters may take 1020 bytes, and so may each alias."""
    name = "\N{MUSICAL SYMBOL G CLEF}" * 255
    record = NodeRecord(name, "m1", (name,) * 500, "1.0")

    payload, left_out = encode_record(record)

    assert len(payload) <= LIMIT
    assert left_out == decode_record(payload).left_out["aliases"] == 480


def test_what_was_written_long_ago_is_older_now():
    """Facts and the start are told in seconds before the record, so no node's clock counts."""
    facts = {"state": Fact(frozenset({"a"}), 2.0), "site": Fact(frozenset({"b"}))}
    record = NodeRecord("sp1", "m1", uptime=100.0, facts=facts)
    read = decode_record(encode_record(record)[0], seen=7.0, now=5000.0)

    assert (read.started, read.uptime, read.seen) == (4893.0, 107.0, 7.0)
    assert (read.facts["state"].age, read.facts["site"].age) == (9.0, None)


@given(st.binary(max_size=40) | records.map(lambda r: encode_record(r)[0][:-5]))
def test_what_is_no_record_is_a_message_error(payload):
    """Whoever may write there chooses every byte."""
    with pytest.raises(MessageError):
        decode_record(payload)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", None), ("name", 7), ("facts", []), ("facts", {"a": [1]}), ("facts", {"a": "xyz"}),
     ("tasks", {"a": ["b"]}), ("uptime", "soon"), ("aliases", 3), ("left_out", None),
     ("running", None)],
)  # fmt: skip
def test_a_field_of_the_wrong_kind_is_a_message_error(field, value):
    """Nothing else comes out of what is read."""
    fields = decode(encode_record(NodeRecord("sp1", "m1"))[0]) | {field: value}

    with pytest.raises(MessageError, match="no record of an agent"):
        decode_record(encode(fields))


def test_a_later_release_may_tell_more():
    """The older client shows what it knows."""
    fields = decode(encode_record(NodeRecord("sp1", "m1"))[0]) | {"v": 2, "mood": "good"}

    assert decode_record(encode(fields)).name == "sp1"


class Kept:
    """A record as it lies in the server."""

    def __init__(self, record, seen=1.0):
        self.instance = record.instance
        self.record = encode_record(record)[0]
        self.near = False
        self.seen = seen
        self.now = 1000.0


def test_nodes_come_by_name_and_instance():
    """However they lie in the server."""
    found = [Kept(NodeRecord(*words)) for words in (("b", "1"), ("a", "2"), ("a", "1"))]

    assert [(r.name, r.instance) for r in present(found)] == [("a", "1"), ("a", "2"), ("b", "1")]


@given(dsts, fleet_facts, st.booleans(), st.sampled_from(["web01", "prx01a"]))
def test_a_record_matches_as_its_node_does(dst, facts, near, src):
    """One matcher: what is stale is not there for either."""
    record = NodeRecord("prx01a", "m1", facts=facts, near=near)
    local = near or src == "prx01a"

    found = match_record(dst, record, src)

    assert found.selected is dst.selects(record.node, local)
    assert [e.selected for e in found.elements] == [e.selects(record.node, local)
                                                    for e in dst.elements]  # fmt: skip
    assert all(e.selected is not bool(e.reasons) for e in found.elements)
    assert read_match(decode(encode(found.as_json()))) == found
    assert not any(record.facts[key].stale for key in record.node.facts)


def test_a_stale_fact_is_told_as_stale():
    """It was active, and that is worth nothing now."""
    record = NodeRecord("sp1", "m1", facts={"state": Fact(frozenset({"active"}), 42.0, True)})

    [element] = match_record(Destination.parse("*|state=active"), record, "").elements

    assert element.reasons == ("state is stale (it was active 42 s ago), not active",)


@pytest.mark.parametrize(
    ("dst", "uncertain"),
    [("*|colour=red", True), ("db*|colour=red", False), ("db*,*|colour=red", True),
     ("*|state=standby;colour=red", False), ("*|state=active,*|colour=red", False)],
)  # fmt: skip
def test_what_has_no_room_in_the_record_is_not_denied(dst, uncertain):
    """Only the node can tell, unless something else stands against it."""
    state = {"state": Fact(frozenset({"active"}))}
    record = NodeRecord("sp1", "m1", facts=state, left_out={"facts": 3})

    assert match_record(Destination.parse(dst), record, "").uncertain is uncertain
    whole = NodeRecord("sp1", "m1", facts=state)
    assert not match_record(Destination.parse(dst), whole, "").uncertain


@pytest.mark.parametrize(
    ("task", "left_out", "selected", "uncertain"),
    [("ping", 0, True, False), ("disk", 0, False, False), ("disk", 2, False, True),
     ("agent.ping", 0, True, False), ("", 0, True, False)],
)  # fmt: skip
def test_a_node_without_the_task_does_not_take_it(task, left_out, selected, uncertain):
    """On a wildcard it would keep silent; what had no room in the record is not denied."""
    record = NodeRecord("sp1", "m1", tasks={"ping": TaskMark("d", "redis", "c")},
                        left_out={"facts": 0, "tasks": left_out})  # fmt: skip

    found = match_record(Destination.parse("*"), record, "", task)

    assert (found.selected, found.uncertain) == (selected, uncertain)
    assert found.refusal == ("" if selected else "no task 'disk'")
    assert read_match(decode(encode(found.as_json()))) == found


@pytest.mark.parametrize("fields", [None, "x", {}, {"name": "a"}, {"elements": [1]}])
def test_what_is_no_match_is_a_message_error(fields):
    """An agent of somebody else's answers as it likes."""
    with pytest.raises(MessageError, match=r"agent\.match"):
        read_match(fields)


def fleet(*digests):
    marks = [{"ping": TaskMark(digest, "redis", "c")} for digest in digests]
    return [NodeRecord(f"n{number}", f"m{number}", tasks=tasks)
            for number, tasks in enumerate(marks)]  # fmt: skip


def test_the_odd_one_out_is_named():
    """Who has another file than most; without a majority nobody knows who is right."""
    assert odd_tasks(fleet("a", "b", "a")) == {"m0": [], "m1": ["ping"], "m2": []}
    assert odd_tasks(fleet("a", "b")) == {"m0": ["ping"], "m1": ["ping"]}
    assert odd_tasks(fleet("a", "a")) == {"m0": [], "m1": []}
    assert {d: [r.name for r in those] for d, those in task_digests(fleet("a", "b", "a"))
            ["ping"].items()} == {"a": ["n0", "n2"], "b": ["n1"]}  # fmt: skip


async def test_an_agent_tells_what_it_does():
    """Its tasks, without those that every agent has, and how busy it is."""
    waits = Waits()
    dispatcher = Dispatcher(lambda: NODE)
    own = task(Says(b""), name="agent.ping", backend="", control_channel="")
    dispatcher.tasks = {"ping": task(waits, max_running=1, digest="d1"), "agent.ping": own}
    for one in dispatcher.tasks.values():
        one.adjust_gate()
    agent, clock = Agent(dispatcher, Limits()), Clock(100.0)
    record = OwnRecord("m1", agent, dispatcher, lambda: NODE, lambda: {"state": FACT}, clock)
    backend = MemoryBackend()
    for _ in range(3):
        backend.publish(request(task="ping"))
    for delivery in backend.arrived():
        agent.take(delivery, "memory", backend)
    await until(lambda: waits.running)
    clock.now += 50

    read = decode_record(record())

    assert (read.name, read.instance, read.version) == (NODE.name, "m1", __version__)
    assert (read.running, read.queued, read.uptime) == (1, 2, 50.0)
    assert read.tasks == {"ping": TaskMark("d1", "memory", "control")}
    assert read.facts == {"state": FACT}
    waits.free.set()
    await until(lambda: not agent.runs)


FACT = Fact(frozenset({"active"}), 1.5)


def test_what_is_left_out_is_told_once(caplog):
    """And again once it has changed."""
    many = {f"f{number}": Fact(frozenset({"x" * 1000})) for number in range(100)}
    dispatcher = Dispatcher(lambda: NODE)
    record = OwnRecord("m1", Agent(dispatcher, Limits()), dispatcher, lambda: NODE, lambda: many)

    assert {len(record()) <= LIMIT for _ in range(3)} == {True}
    assert len(caplog.records) == 1
    assert "facts, tasks and aliases are left out" in caplog.text
    many.popitem()
    record()
    assert len(caplog.records) == 2
