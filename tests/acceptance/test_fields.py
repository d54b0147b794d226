"""Parts 2 and 4 of the protocol: the fields of requests and responses."""

import json
import time
import uuid
from datetime import datetime

import pytest

from .fleet import STUCK_CALLS
from .wire import ABSENT, FIELDS

pytestmark = pytest.mark.redis


@pytest.mark.parametrize(
    "ref",
    [
        "18d0f568-4a6c-4775-a8a9-6beb2e0372a8",
        "18D0F568-4A6C-4775-A8A9-6BEB2E0372A8",
        "{18d0f5684a6c4775a8a96beb2e0372a8}",
        "urn:uuid:18d0f568-4a6c-4775-a8a9-6beb2e0372a8",
        "no UUID at all",
        "  17 ",
        'quote " back \\ slash / smörgås \u2028 \U0001f600 \t',
        "x" * 4000,
    ],
)
def test_ref_is_the_uuid_byte_for_byte(listener, ref):
    """A client compares strings; it is not ours to tidy them up."""
    listener.send("whoami", "sp1", uuid=ref)
    listener.hear_until(lambda: len(listener.heard) == 2)

    assert [message.body["ref"] for message in listener.heard] == [ref, ref]


def test_one_uuid_from_two_clients_is_two_requests(fleet):
    """Only src and uuid together name a request."""
    ref = str(uuid.uuid4())
    with fleet.listener() as one, fleet.listener() as other:
        one.send("whoami", "sp1", uuid=ref, src="web01a")
        other.send("whoami", "sp1", uuid=ref, src="web01b")

        assert [body["dst"] for body in one.talk(ref)] == ["web01a", "web01a"]
        assert [body["dst"] for body in other.talk(ref)] == ["web01b", "web01b"]


@pytest.mark.parametrize("task", ["whoami", "exits_with_3", "no_such_task", "agent.ping"])
def test_response_fields_have_their_types(listener, task):
    """Exactly the fields of part 4 go to a client that asked for nothing else."""
    before = time.time()
    bodies = listener.ask(task, "sp1", src="web01a")

    for body in bodies:
        assert set(body) == FIELDS
        assert (body["task"], body["src"], body["dst"]) == (task, "sp1", "web01a")
        assert type(body["uuid"]) is str
        assert type(body["timestamp"]) is float
        assert before - 2 < body["timestamp"] < time.time() + 2
        when = datetime.fromisoformat(body["datetime"])
        assert when.tzinfo is not None
        assert abs(when.timestamp() - body["timestamp"]) < 1.1
        assert (type(body["chunk"]), type(body["chunks"])) == (int, int)
        assert (body["chunk"], body["chunks"]) == (1, 1)
        assert (body["reason"] == "") is (body["status"] in ("accepted", "done"))
        if task == "whoami":
            assert type(body["data"]) is str


def test_every_message_has_a_new_uuid(listener):
    """Messages are told apart by it; those of twins as well."""
    refs = listener.send_all([listener.make("whoami", "*") for _ in range(10)])
    listener.talk_all(refs, ends=3)

    ids = [message.body["uuid"] for message in listener.heard]
    assert len(set(ids)) == len(ids) == 60
    assert not set(ids) & set(refs)


@pytest.mark.parametrize(
    "data",
    [
        ABSENT,
        None,
        {},
        "{}",
        "",
        "null",
        "[]",
        "17",
        "no JSON {",
        '{"extra_args":',
        '"a string in a string"',
        17,
        -0.5,
        True,
        [],
        [{"extra_args": "x"}],
        {"extra_args": None},
        {"extra_args": 17},
        {"extra_args": ["x", "y"]},
        {"extra_args": {"x": 1}},
        {"user": "alice", "nested": {"a": [1, 2, {"b": None}]}},
    ],
    ids=lambda data: "absent" if data is ABSENT else json.dumps(data),
)
def test_data_that_is_unexpected_is_ignored(listener, data):
    """Absent, null, junk: the task runs with its own arguments."""
    bodies = listener.ask("print_words", "sp1", data=data)

    assert [body["status"] for body in bodies] == ["accepted", "done"]
    assert bodies[1]["data"] == "[own]\n"


@pytest.mark.parametrize("data", [{"extra_args": "a b"}, '{"extra_args": "a b"}'])
def test_data_is_an_object_or_a_string_holding_one(listener, data):
    """Both occur in the field and mean the same."""
    _, done = listener.ask("print_words", "sp1", data=data)

    assert done["data"] == "[own]\n[a]\n[b]\n"


def test_unknown_options_and_fields_are_never_an_error(listener):
    """Clients send path and headers, and will send what we do not know yet."""
    options = {"path": "/x/", "headers": '"A": 7', "zz": {"a": [None]}, "": 0, "é": 1.5}

    bodies = listener.ask(
        "get_stuck_calls", "sp1", options=options, extra=[1], timestamp=None, datetime="yesterday"
    )

    assert [body["status"] for body in bodies] == ["accepted", "done"]
    assert bodies[1]["data"] == STUCK_CALLS


@pytest.mark.parametrize("name", ["with blanks", "*", "a[b]?", "smörgås", 'q"uote\\', "x" * 1000])
def test_the_feedback_channel_is_taken_verbatim(fleet, name):
    """Whatever its name is, it is no pattern and nothing is cut off."""
    channel = f"{name}-{uuid.uuid4()}"
    with fleet.listener(channel) as listener:
        bodies = listener.ask("whoami", "sp1")

    assert [body["status"] for body in bodies] == ["accepted", "done"]


UNREADABLE = {
    "no uuid": {"uuid": ABSENT},
    "uuid is a number": {"uuid": 17},
    "uuid is null": {"uuid": None},
    "no task": {"task": ABSENT},
    "task is a list": {"task": ["whoami"]},
    "no options": {"options": ABSENT},
    "options is a string": {"options": "x"},
    "no feedback channel": {"options": {}},
    "feedback channel is a number": {"options": {"feedback_channel": 5}},
    "dst is a number": {"dst": 5},
    "dst is an object": {"dst": {"sp1": 1}},
    "dst is null": {"dst": None},
    "no dst": {"dst": ABSENT},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_requests_get_no_answer(listener, name):
    """Logged and counted, and nothing else happens."""
    body = {**listener.make("whoami", "sp1"), **UNREADABLE[name]}
    body = {key: value for key, value in body.items() if value is not ABSENT}
    listener.send_all([body])
    listener.fence()

    assert [m.body["task"] for m in listener.heard if m.body["task"] != "agent.ping"] == []
