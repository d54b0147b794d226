"""Tasks with `arguments`: what fits runs, what does not is refused as the protocol has it."""

import json
import subprocess
import sys

import pytest

from .harness import COMMANDS, World, command

pytestmark = pytest.mark.redis

SCHEMA = {
    "type": "object",
    "properties": {
        "host": {"type": "string", "minLength": 1, "title": "Whom to ask"},
        "count": {"type": "integer", "minimum": 1, "default": 1},
    },
    "required": ["host", "count"],
}
DUMP = f"""\
#!{sys.executable} -I
import os, sys
print(*(os.fsencode(word).hex() for word in sys.argv[1:]))
"""
WORDS = ("-c", "{data.count}", "--host={data.host}", "{data.host}")
HOSTS = [
    "sp1", "a b\tc\nd\r", "$(id)`id`;id|id&", "'\"\\", "{data.count}", "{{data.host}}", "%s%n",
    "\u202e\u2066abc", "a\u200b\u00a0", "\U0001f600e\u0301", "x" * 100_000,
]  # fmt: skip
MISFITS = [
    ({"count": 1}, "data.host: found nothing; "),
    ({"host": 7, "count": 1}, "data.host: found 7; "),
    ('{"host": "a", "count": "1"}', "data.count: found '1'; "),
    ({"host": "a", "count": 0}, "data.count: found 0; "),
    ("sp1", "data: found a string that is not JSON; "),
    (None, "data."),
]


@pytest.fixture(scope="module")
def node():
    with World() as world:
        dump = world.file("dump", DUMP, 0o755)
        tasks = {
            "typed": command(dump, *WORDS, arguments=SCHEMA, description="Asks a host"),
            "free": command(dump, *WORDS, allow_options=True),
        }
        world.daemon("sp1", tasks=tasks)
        yield world


@pytest.fixture
def listener(node):
    with node.listener() as listener:
        yield listener


def argv(body):
    return [bytes.fromhex(word).decode() for word in body["data"].split()]


@pytest.mark.parametrize(("data", "reason"), MISFITS, ids=str)
def test_a_misfit_is_rejected_where_the_node_is_named(listener, data, reason):
    """One message, and nothing has run."""
    (body,) = listener.ask("typed", "sp1", data=data)

    assert body["status"] == "rejected"
    assert body["reason"].startswith(reason)


@pytest.mark.parametrize(("data", "reason"), MISFITS, ids=str)
def test_a_misfit_on_a_wildcard_is_accepted_and_an_error(listener, data, reason):
    """A `rejected` would make a client fail the whole call."""
    accepted, error = listener.ask("typed", "*", data=data)

    assert (accepted["status"], error["status"]) == ("accepted", "error")
    assert error["reason"].startswith(reason)


@pytest.mark.parametrize("form", [lambda data: data, json.dumps], ids=["object", "text"])
@pytest.mark.parametrize("dst", ["sp1", "*"])
def test_what_fits_runs_with_exactly_these_words(listener, dst, form):
    """Whatever they hold."""
    for host in HOSTS:
        accepted, done = listener.ask("typed", dst, data=form({"host": host, "count": 2}))

        assert (accepted["status"], done["status"]) == ("accepted", "done")
        assert argv(done) == ["-c", "2", f"--host={host}", host]


def test_extra_args_are_no_way_around_a_schema(listener):
    """A typed task takes what its schema names; any other goes on as it always has."""
    data = {"host": "a", "count": 1, "extra_args": "-x y"}

    assert argv(listener.ask("typed", "*", data=data)[-1])[4:] == []
    assert argv(listener.ask("free", "*", data=data)[-1])[4:] == ["-x", "y"]


@pytest.mark.parametrize(("task", "status"), [("typed", "error"), ("free", "done")])
def test_a_value_like_an_option_needs_leave(listener, task, status):
    """`allow_options` at the top of the file."""
    body = listener.ask(task, "*", data={"host": "-rf", "count": 1})[-1]

    assert body["status"] == status
    if status == "error":
        assert body["reason"].startswith("data.host: found '-rf', which starts with '-'; ")
    else:
        assert argv(body) == ["-c", "1", "--host=-rf", "-rf"]


def test_tasks_tells_what_a_form_needs(node, listener):
    """By the bus and by the command, as it stands in the file."""
    printed = subprocess.run(
        [COMMANDS / "ngcp-task", "tasks", "--json", "--redis", node.server.url],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    told = {task["name"]: task for task in listener.ask("agent.tasks", "sp1")[-1]["data"]}

    assert (told["typed"]["arguments"], told["free"]["arguments"]) == (SCHEMA, None)
    assert told["typed"]["description"] == "Asks a host"
    (sp1,) = json.loads(printed)["nodes"]
    assert SCHEMA in [task["arguments"] for task in sp1["data"]]
