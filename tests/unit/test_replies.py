import asyncio
import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ngcp_task_agent.errors import MessageError
from ngcp_task_agent.messages import Status, decode_request, encode, encode_response
from ngcp_task_agent.output import Collector
from ngcp_task_agent.replies import Replies, encoded_size, split_text

from ..helpers import request

# What JSON writes in one byte, two, six and several, and many line ends.
texts = st.text('ab\n\n"\\\t\0\x7fé€😀', max_size=300) | st.text(max_size=100)
limits = st.integers(16, 120)


@st.composite
def blocks(draw):
    """A text in parts of any size."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def replies(**kwargs):
    numbers = itertools.count(1)
    return Replies(
        decode_request(request(uuid="THE-ref")), "prx01a",
        now=lambda: 1.5, new_uuid=lambda: f"new-{next(numbers)}", **kwargs,
    )  # fmt: skip


async def ended(*pieces, result=..., chunk_size=4096, status=Status.DONE, reason=""):
    output = Collector()
    for piece in pieces:
        await output.write(piece)
    if result is not ...:
        output.result(result)
    return [r async for r in replies().ended(status, reason, output, chunk_size)]


@given(blocks(), limits)
@example(["\0" * 40 + "\n", "x" * 30], 16)
@example(["x" * 13, "\n"], 16)
def test_pieces_join_to_the_whole(parts, limit):
    """No character is lost, none torn, none twice, wherever text and parts are cut."""
    pieces = list(split_text(parts, limit))

    assert "".join(pieces) == "".join(parts)
    assert all(pieces) or pieces == [""]


@given(blocks(), limits)
@example(["\0" * 40], 16)
@example(["😀" * 40], 16)
def test_no_piece_is_too_large(parts, limit):
    """In the form it has on the wire, quotes included."""
    assert all(len(encode(piece)) <= limit for piece in split_text(parts, limit))


@given(blocks(), limits)
@example(["ab\nc", "d\n" * 8], 16)
def test_only_a_line_too_long_for_one_piece_is_cut_inside(parts, limit):
    """Clients that print each piece as it comes print whole lines."""
    whole, end = "".join(parts), 0
    for piece in list(split_text(parts, limit))[:-1]:
        end += len(piece)
        start = whole.rfind("\n", 0, end - 1) + 1
        line = whole[start : whole.find("\n", end - 1) + 1 or len(whole)]

        assert piece.endswith("\n") or encoded_size(line) > limit - 2


@given(blocks(), st.integers(0, 50))
def test_what_fits_is_one_piece(parts, room):
    """Clients in the field reassemble nothing."""
    limit = max(16, encoded_size("".join(parts)) + 2 + room)

    assert len(list(split_text(parts, limit))) == 1


@given(st.lists(st.text('ab"é', max_size=10).map(lambda line: line + "\n")), st.integers(40, 120))
def test_pieces_are_filled(lines, limit):
    """Every piece is as full as whole lines can make it."""
    pieces = list(split_text(lines, limit))

    for one, two in itertools.pairwise(pieces):
        assert encoded_size(one + two[: two.index("\n") + 1]) > limit - 2


@pytest.mark.parametrize("block", ["x" * 1000, "line\n" * 200, "\0" * 1000])
def test_a_text_without_end_gives_its_first_piece(block):
    """Memory stays flat: a piece is cut before the end is known."""
    first = next(split_text(itertools.repeat(block), 4096))

    assert len(encode(first)) > 4096 * 3 // 4


def test_accepted_and_rejected_on_the_wire():
    """The request's uuid comes back as it was, the reason only where there is one."""
    accepted = json.loads(encode_response(replies().accepted()))
    rejected = json.loads(encode_response(replies().rejected("unknown task 'x'")))

    assert (accepted["status"], accepted["reason"], accepted["data"]) == ("accepted", "", "")
    assert (rejected["status"], rejected["reason"]) == ("rejected", "unknown task 'x'")
    for response in (accepted, rejected):
        assert response["ref"] == "THE-ref"
        assert (response["src"], response["dst"]) == ("prx01a", "web01a")
        assert (response["chunk"], response["chunks"]) == (1, 1)


async def test_every_message_has_a_uuid_of_its_own():
    """And all else that tells whose it is stays the same."""
    responses = await ended(b"x" * 5000, chunk_size=1024)

    assert len({r.uuid for r in responses}) == len(responses) > 4
    assert {(r.ref, r.src, r.dst, r.task) for r in responses} == {
        ("THE-ref", "prx01a", "web01a", "ping")
    }


@pytest.mark.parametrize("text", ["", "pong\n", "no line end", " \n\n", 'quotes " and \\'])
async def test_a_command_is_answered_with_its_output_unchanged(text):
    """Never null, never stripped, one message."""
    (response,) = await ended(text.encode())

    assert (response.data, response.encoding, response.chunks) == (text, "", 1)


async def test_an_error_carries_the_output_too():
    """What a program printed before it failed is half of the explanation."""
    (response,) = await ended(b"half", status=Status.ERROR, reason="exit code 3")

    assert (response.status, response.reason, response.data) == ("error", "exit code 3", "half")


@pytest.mark.parametrize("value", [None, False, 0, "", "text", [1, 2], {"a": {"b": None}}])
async def test_a_result_is_sent_as_the_value_it_is(value):
    """A result that fits needs no encoding."""
    (response,) = await ended(result=value)

    assert (response.data, response.encoding) == (value, "")


async def test_a_result_that_has_no_json_form_is_a_message_error():
    """Told before anything is sent."""
    with pytest.raises(MessageError, match="not JSON"):
        await ended(result=object())


async def test_a_result_too_large_goes_in_pieces_of_json():
    """They are marked as such, and joined they are the value again."""
    value = {"rows": [{"name": f"smörgås {number}"} for number in range(300)]}

    responses = await ended(result=value, chunk_size=1024)

    assert len(responses) > 5
    assert {r.encoding for r in responses} == {"json"}
    assert json.loads("".join(r.data for r in responses)) == value


async def test_a_text_result_too_large_goes_in_pieces_of_json():
    """The encoding tells it from a command's text."""
    responses = await ended(result="x" * 3000, chunk_size=1024)

    assert {r.encoding for r in responses} == {"json"}
    assert json.loads("".join(r.data for r in responses)) == "x" * 3000


@settings(max_examples=40)
@given(texts, limits)
def test_chunks_are_numbered_and_join_to_the_whole(text, chunk_size):
    """Each carries its number and how many there are, and none is too large."""
    responses = asyncio.run(ended(text.encode(), chunk_size=chunk_size))

    assert "".join(r.data for r in responses) == text
    assert [r.chunk for r in responses] == list(range(1, len(responses) + 1))
    assert {r.chunks for r in responses} == {len(responses)}
    assert all(len(encode(r.data)) <= chunk_size for r in responses)
    assert len(responses) == 1 or len(encode(text)) > chunk_size


@settings(max_examples=40)
@given(st.lists(texts, max_size=4), limits)
def test_chunks_of_a_result_join_to_its_json(value, chunk_size):
    """At any size; one message when it fits."""
    responses = asyncio.run(ended(result=value, chunk_size=chunk_size))

    if len(encode(value)) <= chunk_size:
        assert [(r.data, r.encoding) for r in responses] == [(value, "")]
    else:
        assert json.loads("".join(r.data for r in responses)) == value
        assert all(len(encode(r.data)) <= chunk_size for r in responses)
