"""What a command and a Python function see, and what becomes of what they give back."""

import json
import os
import pwd

import pytest

from .harness import World, command, redis_task
from .processes import marked, until

pytestmark = pytest.mark.redis

FUNCTIONS = """\
import asyncio
import os
import sys
import time


def add(a=0, b=0):
    return {"sum": a + b}


async def later(text=""):
    await asyncio.sleep(0.05)
    return [text, None, 1.5, True]


def nothing():
    return None


def raises():
    raise ValueError("no such thing: smörgås")


async def raises_later():
    raise LookupError("not here")


def not_a_number():
    return {"x": float("nan"), "y": [float("inf"), -float("inf")]}


def no_json():
    return object()


def exits():
    sys.exit(3)


def dies():
    os._exit(9)


def sleeps():
    time.sleep(600)


def prints():
    print("not a result")
    sys.stderr.write("nor this\\n")
    return "the result"
"""
ERRORS = {
    "raises": ["ValueError", "no such thing: smörgås"],
    "raises_later": ["LookupError", "not here"],
    "no_json": [],
    "exits": [],
    "dies": [],
    "sleeps": [],
}
CALLABLES = ["add", "later", "nothing", "not_a_number", "prints", *ERRORS]


def python_task(world, name):
    folder = str(world.place / "files")
    options = {"callable": f"acceptance_functions:{name}", "path": folder}
    return redis_task("python", options, **({"timeout": 1} if name == "sleeps" else {}))


def command_tasks(world):
    return {
        "env": command("/usr/bin/env", broker_options={"env": {"COLOUR": "dark red"}}),
        "where": command("/bin/pwd", broker_options={"cwd": "/usr"}),
        "by_name": command("echo", "found in PATH"),
        "umask": command(world.script("umask", "umask"), broker_options={"umask": "0027"}),
        "stdin": command("/bin/cat", broker_options={"stdin": "data"}),
        "no_stdin": command("/bin/cat"),
        "ok_codes": command(
            world.script("two", "echo two", "exit 2"), broker_options={"ok_exit_codes": [0, 2]}
        ),
        "little": command("/usr/bin/yes", broker_options={"max_output": 10_000}),
        "as_nobody": command("/usr/bin/id", "-nu", broker_options={"as_user": "nobody"}),
        "groups": command("/usr/bin/id", "-G", broker_options={"as_user": "nobody"}),
        "limit_inside": command("/bin/sleep", "600", broker_options={"timeout": 0.5}),
        "run_timeout": command("/bin/sleep", "0.6", max_running=1, run_timeout=1),
    }


@pytest.fixture(scope="module")
def node():
    with World() as world:
        world.file("acceptance_functions.py", FUNCTIONS)
        tasks = {name: python_task(world, name) for name in CALLABLES}
        # Not a word of the daemon's own environment is for its programs.
        world.daemon(tasks={**tasks, **command_tasks(world)}, env={"LEAKED": "s3cret"})
        yield world


@pytest.fixture
def ask(node):
    """Send one request; return its terminal message."""
    with node.listener() as listener:

        def last(task, **fields):
            ref = listener.send(task, "sp1", **fields)
            listener.talk(ref)
            listener.fence()
            assert listener.statuses(ref) in (["accepted", "done"], ["accepted", "error"])
            return listener.of(ref)[1]

        yield last


def test_a_program_has_a_clean_environment(ask):
    """PATH, HOME, USER, LANG, what the task says, who asks for what; nothing of the daemon's."""
    end = ask("env", uuid="my-uuid", src="web01a")

    env = dict(line.split("=", 1) for line in end["data"].splitlines())
    assert {"PATH", "HOME", "USER", "LANG"} <= set(env)
    more = set(env) - {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "COLOUR"}
    assert {name for name in more if not name.startswith("NGCP_TASK_")} == set()
    assert env["COLOUR"] == "dark red"
    assert (env["NGCP_TASK_UUID"], env["NGCP_TASK_NAME"], env["NGCP_TASK_SRC"]) == (
        "my-uuid",
        "env",
        "web01a",
    )


@pytest.mark.parametrize(
    ("task", "stdout"),
    [
        ("where", "/usr\n"),
        ("by_name", "found in PATH\n"),
        ("umask", "0027\n"),
        ("no_stdin", ""),
        ("ok_codes", "two\n"),
    ],
)
def test_command_options(ask, task, stdout):
    """Each does what its name says."""
    end = ask(task)

    assert (end["status"], end["data"]) == ("done", stdout)


def test_stdin_is_data_where_the_task_says_so(ask):
    """An object reaches the program as JSON."""
    end = ask("stdin", data={"a": [1, "smörgås"]})

    assert end["status"] == "done"
    assert json.loads(end["data"]) == {"a": [1, "smörgås"]}


def test_max_output_ends_the_tree(ask):
    """A program without end is ended, and the error names the limit."""
    end = ask("little")

    assert end["status"] == "error"
    assert "max_output" in end["reason"]
    assert len(end["data"]) <= 10_000


def test_a_time_limit_inside_broker_options(ask):
    """The two timeouts may stand there as well."""
    end = ask("limit_inside")

    assert end["status"] == "error"


def test_run_timeout_counts_from_the_start_of_the_job(node):
    """Given alone it replaces timeout: four in a row of 0.6 s, each below its 1 s."""
    with node.listener() as listener:
        refs = [listener.send("run_timeout") for _ in range(4)]
        listener.talk_all(refs)

        assert {tuple(listener.statuses(ref)) for ref in refs} == {("accepted", "done")}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_user_with_its_own_groups(ask):
    """The program is that user, with its groups and none of root's."""
    nobody = pwd.getpwnam("nobody")
    groups = os.getgrouplist("nobody", nobody.pw_gid)

    assert ask("as_nobody")["data"] == "nobody\n"
    assert sorted(ask("groups")["data"].split()) == sorted(map(str, groups))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become anybody")
def test_as_user_without_root_is_an_error(ask):
    """Never the program as somebody else than the task says."""
    assert ask("as_nobody")["status"] == "error"


@pytest.mark.parametrize(
    ("task", "data", "result"),
    [
        ("add", {"a": 2, "b": 3}, {"sum": 5}),
        ("add", '{"a": 2}', {"sum": 2}),
        ("later", {"text": "ö"}, ["ö", None, 1.5, True]),
        ("nothing", {}, None),
        ("prints", {}, "the result"),
    ],
)
def test_a_functions_json_result_is_data(ask, task, data, result):
    """Keyword arguments come from data, plain and async functions alike."""
    end = ask(task, data=data)

    assert (end["status"], end["reason"], end["data"]) == ("done", "", result)


@pytest.mark.parametrize("task", ERRORS)
def test_a_function_that_fails_is_one_error(node, ask, task):
    """Type and text of an exception are the reason; a worker that dies harms no other job."""
    end = ask(task)

    assert end["status"] == "error"
    assert end["reason"]
    assert "Traceback" not in end["reason"]
    for word in ERRORS[task]:
        assert word in end["reason"]
    assert ask("add", data={"a": 1})["data"] == {"sum": 1}


def test_arguments_that_do_not_fit_are_no_crash(ask):
    """A keyword the function does not have is an error, as in Python."""
    end = ask("add", data={"colour": "red"})

    assert end["status"] == "error"
    assert end["reason"]


def test_never_nan_on_the_wire(ask):
    """It is null or an error; the listener refuses to read anything else."""
    end = ask("not_a_number")

    assert end["status"] in ("done", "error")


def test_a_function_at_its_time_limit_leaves_no_worker_behind(node, ask):
    """Its worker process is ended, and zombies are collected."""
    daemon = node.daemons[0]
    ask("sleeps")

    until(lambda: not daemon.zombies, 7, "no zombies")
    assert not marked("acceptance_functions:sleeps")
    assert ask("add", data={"a": 1})["data"] == {"sum": 1}
