"""Rule 7: one message wherever possible, and parts that give the whole where it is not."""

import json

import pytest

from .harness import World, command, redis_task

pytestmark = pytest.mark.redis

CHUNK_SIZE = 4 * 1024 * 1024  # bytes of encoded data
ENVELOPE = 4096  # bytes, more than all the other fields of a response take
CALLABLES = """\
def wide(rows, text="x"):
    return {"rows": [{"id": n, "text": text * 50} for n in range(rows)]}
"""


@pytest.fixture(scope="module")
def node():
    with World() as world:
        world.file("acceptance_chunks.py", CALLABLES)
        folder = str(world.place / "files")
        callable_options = {"callable": "acceptance_chunks:wide", "path": folder}
        world.daemon(
            tasks={
                "cat": command("/bin/cat", timeout=60),
                "wide": redis_task("python", callable_options, timeout=60),
            }
        )
        yield world


def cat(node, name, content):
    """Return the terminal messages of a command that prints *content*, with their size."""
    path = node.file(name, content)
    with node.listener() as listener:
        ref = listener.send("cat", data={"extra_args": str(path)})
        listener.talk(ref, seconds=60)
        listener.fence()
        assert listener.statuses(ref)[0] == "accepted"
        return [m for m in listener.heard if m.body["ref"] == ref][1:]


def assert_parts(parts):
    """Parts are numbered, back to back, of one request, and small enough."""
    bodies = [part.body for part in parts]
    assert [body["chunk"] for body in bodies] == list(range(1, len(parts) + 1))
    assert {body["chunks"] for body in bodies} == {len(parts)}
    assert {(body["status"], body["reason"]) for body in bodies} == {("done", "")}
    assert {type(body["data"]) for body in bodies} == {str}
    assert len({body["uuid"] for body in bodies}) == len(parts)
    assert max(len(part.raw) for part in parts) <= CHUNK_SIZE + ENVELOPE


def lines(size):
    line = "CallID:[{:08d}] unknown, with a tab\there\n"
    length = len(line.format(0))
    return "".join(line.format(number) for number in range(size // length))


def test_below_the_limit_it_is_one_message(node):
    """Clients in the field reassemble nothing, so 3.9 MB stay whole."""
    text = lines(3_800_000)

    parts = cat(node, "below", text)

    assert len(parts) == 1
    assert_parts(parts)
    assert parts[0].body["data"] == text


def test_above_the_limit_it_is_cut_at_line_ends(node):
    """Each part but the last ends with a line; joined they are the whole."""
    text = lines(9_500_000)

    parts = cat(node, "above", text)

    assert len(parts) in (3, 4)
    assert_parts(parts)
    assert all(part.body["data"].endswith("\n") for part in parts[:-1])
    assert "".join(part.body["data"] for part in parts) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one long line", "x" * 9_000_000),
        ("long line of wide characters", "smörgås\U0001f600" * 600_000),
        ("controls that grow when encoded", "\x01\x02" * 1_000_000),
        ("quotes that grow when encoded", '"\\' * 1_500_000),
        ("a short line after a long one", "y" * 5_000_000 + "\nend"),
    ],
)
def test_text_without_line_ends_is_cut_all_the_same(node, name, text):
    """No part is beyond the limit on the wire, and no character is torn."""
    parts = cat(node, name.replace(" ", "-"), text)

    assert len(parts) > 1
    assert_parts(parts)
    assert "".join(part.body["data"] for part in parts) == text


def test_a_result_beyond_the_subscribers_buffer_arrives(node):
    """Redis drops a subscriber with more than 32 MiB pending; the sender paces itself."""
    text = lines(48_000_000)

    parts = cat(node, "huge", text)

    assert_parts(parts)
    assert "".join(part.body["data"] for part in parts) == text


@pytest.mark.parametrize(("rows", "text"), [(80_000, "x"), (12_000, 'ö\U0001f600\n"')])
def test_parts_of_other_data_are_pieces_of_its_json(node, rows, text):
    """They say so with encoding, and give the value when joined."""
    with node.listener() as listener:
        ref = listener.send("wide", data={"rows": rows, "text": text})
        listener.talk(ref, seconds=60)
        parts = [m for m in listener.heard if m.body["ref"] == ref][1:]

    assert len(parts) > 1
    assert_parts(parts)
    assert {part.body["encoding"] for part in parts} == {"json"}
    whole = json.loads("".join(part.body["data"] for part in parts))
    assert whole == {"rows": [{"id": n, "text": text * 50} for n in range(rows)]}


def test_other_data_below_the_limit_is_itself(node):
    """No pieces and no encoding where one message is enough."""
    with node.listener() as listener:
        done = listener.ask("wide", data={"rows": 2})[-1]

    assert done["data"]["rows"][1] == {"id": 1, "text": "x" * 50}
    assert "encoding" not in done
