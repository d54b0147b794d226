import json
import math
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.destination import Destination
from ngcp_task_agent.errors import MessageError
from ngcp_task_agent.messages import (
    Request,
    Response,
    Status,
    decode,
    decode_request,
    decode_response,
    encode,
    encode_response,
)

from ..helpers import request

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )


json_values = trees(st.none() | st.booleans() | numbers | st.text())
RESPONSE = Response("new", "ref", "ping", "prx01a", "web01a", 1.5, Status.DONE)


def test_a_request_of_the_field_is_read():
    """The real example of the protocol, with its unknown keys."""
    payload = request(
        uuid="NO-UUID", src="web01a", dst="*|state=active", data='{"extra_args":"ipban"}',
        options={"feedback_channel": "fb-1", "path": "/x/", "headers": '"A": 7'},
    )  # fmt: skip

    assert decode_request(payload) == Request(
        "NO-UUID", "ping", "web01a", Destination.parse("*|state=active"),
        {"feedback_channel": "fb-1", "path": "/x/", "headers": '"A": 7'},
        '{"extra_args":"ipban"}',
    )  # fmt: skip


@pytest.mark.parametrize("name", ["uuid", "task", "dst"])
@pytest.mark.parametrize("value", [None, "", 7, True, [], {}])
def test_a_field_that_must_be_a_text_is_named(name, value):
    """Whoever writes a client reads the agent's log."""
    with pytest.raises(MessageError, match=f"^{name}: found .*; expected a non-empty string$"):
        decode_request(request(**{name: value}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"src": 7}, "src: found a number"),
        ({"src": {}}, "src: found an object"),
        ({"options": []}, "options: found an array; expected an object"),
        ({"options": "x"}, "options: found a string; expected an object"),
        ({"dst": "a|"}, "dst: bad element"),
    ],
)
def test_a_wrong_field_is_named(fields, says):
    """And what stands there instead."""
    with pytest.raises(MessageError, match=f"^{says}"):
        decode_request(request(**fields))


@pytest.mark.parametrize("src", [None, ""])
def test_src_may_be_missing(src):
    """Nothing depends on what a client says of itself."""
    assert decode_request(request(src=src)).src == ""


@pytest.mark.parametrize("options", [None, {}, {"feedback_channel": None}, {"feedback_channel": 7}])
def test_a_feedback_channel_that_is_none_is_empty(options):
    """Who needs one finds out; the local backend does not."""
    assert decode_request(request(options=options)).feedback_channel == ""


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"uuid": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "an array; expected a JSON object"),
        (b"7", "a number; expected a JSON object"),
        (b"null", "nothing; expected a JSON object"),
        (b'"a"', "a string; expected a JSON object"),
        (b"{}", "uuid: found nothing"),
    ],
)
def test_bytes_that_are_no_request_are_a_message_error(payload, says):
    """The only exception that a stranger's bytes may raise."""
    with pytest.raises(MessageError, match=says):
        decode_request(payload)


@given(st.binary() | json_values.map(encode) | st.text().map(str.encode))
def test_any_bytes_are_a_request_or_a_message_error(payload):
    """Anyone may publish anything."""
    with pytest.raises(MessageError):
        decode_request(payload)


def test_a_request_that_is_too_large_is_refused_unread():
    """A message of 64 MiB must not become objects."""
    payload = request()

    assert decode_request(payload, len(payload)).task == "ping"
    with pytest.raises(MessageError, match=f"^request of {len(payload)} bytes; at most 10 are"):
        decode_request(payload, 10)


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        (None, {}),
        ("", {}),
        ("{", {}),
        ("[1]", {}),
        ("null", {}),
        ("plain", {}),
        ('{"user": "anna"}', {"user": "anna"}),
        ({"user": "anna"}, {"user": "anna"}),
        ([1], {}),
        (7, {}),
        (True, {}),
    ],
)
def test_arguments_are_an_object_however_it_came(data, arguments):
    """All forms occur in the field; anything unexpected is ignored."""
    assert decode_request(request(data=data)).arguments() == arguments


@given(json_values)
def test_any_data_survives_the_way_in(data):
    """Byte for byte where it is text, value for value where it is not."""
    assert decode_request(request(data=data)).data == json.loads(json.dumps(data))


@given(json_values)
def test_any_result_survives_the_way_out(value):
    """Decoded, a response holds what was put into it."""
    payload = encode_response(RESPONSE._replace(data=value))

    assert decode_response(payload)["data"] == value
    assert decode(encode(value)) == value


@given(trees(st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])))
def test_nan_and_infinity_are_never_sent(value):
    """One message that cannot be parsed kills existing clients."""
    payload = encode_response(RESPONSE._replace(data=value))

    json.loads(payload, parse_constant=pytest.fail)


@given(json_values)
def test_a_message_is_one_line(value):
    """The local backend sends one message a line."""
    assert b"\n" not in encode(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, b"bytes", 2**70, "\ud800", {"a": {1, 2}}])
def test_what_has_no_form_in_json_is_a_message_error(value):
    """A function may return anything."""
    with pytest.raises(MessageError, match="not JSON"):
        encode(value)


def test_a_response_on_the_wire():
    """The exact fields that clients parse; no encoding where the data is as it is."""
    fields = json.loads(encode_response(RESPONSE))

    assert datetime.fromisoformat(fields.pop("datetime")).timestamp() == 1.5
    assert fields == {
        "uuid": "new",
        "ref": "ref",
        "task": "ping",
        "src": "prx01a",
        "dst": "web01a",
        "timestamp": 1.5,
        "status": "done",
        "chunk": 1,
        "chunks": 1,
        "reason": "",
        "data": "",
    }


@given(st.floats(0, 2**33))
def test_datetime_is_timestamp_with_a_zone(timestamp):
    """ISO 8601, and not in whatever zone the node is in."""
    fields = json.loads(encode_response(RESPONSE._replace(timestamp=timestamp)))
    moment = datetime.fromisoformat(fields["datetime"])

    assert moment.tzinfo is not None
    assert moment.timestamp() == pytest.approx(fields["timestamp"], abs=1e-6)


def test_the_words_of_the_wire():
    """Clients compare them as text."""
    assert [str(status) for status in Status] == [
        "accepted", "progress", "rejected", "done", "error",
    ]  # fmt: skip


def test_decode_takes_json_only():
    """What a worker or a program says is as little to be trusted as a request."""
    assert decode('{"a": [1]}') == {"a": [1]}
    with pytest.raises(MessageError, match="not JSON"):
        decode("{")


GOOD = {"ref": "r", "status": "done"}


def test_a_response_without_the_lesser_fields_has_their_defaults():
    """Older agents leave some out; a client need not look for each."""
    assert decode_response(encode(GOOD)) == {
        **GOOD, "src": "", "reason": "", "data": "", "chunk": 1, "chunks": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [{"ref": 1}, {"status": None}, {"src": []}, {"reason": {}}, {"chunk": 0}, {"chunk": "1"},
     {"chunks": 1.5}, {"chunks": True}, {"chunks": 2, "data": {}}],
)  # fmt: skip
def test_a_field_of_a_response_has_its_type(fields):
    """A client adds and joins them without looking."""
    with pytest.raises(MessageError, match=r"^response: "):
        decode_response(encode({**GOOD, **fields}))


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"ref": "x"}', b'{"status": "done"}'])
def test_a_client_does_not_take_everything_for_a_response(payload):
    """Anyone may publish on a feedback channel, too."""
    with pytest.raises(MessageError, match="response"):
        decode_response(payload)
