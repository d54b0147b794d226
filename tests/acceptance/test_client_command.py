"""The installed command ``ngcp-task`` against real daemons: what it prints, how it exits."""

import json
import subprocess

import pytest

from .harness import COMMANDS, World, command
from .processes import until

pytestmark = pytest.mark.redis

LINES = "".join(f"line {n:07d}\n" for n in range(450_000))


@pytest.fixture(scope="module")
def nodes():
    with World() as world:
        lines = world.file("lines", LINES)
        shared = {
            "hello": command("/bin/echo", "hello", "there"),
            "words": command("/usr/bin/printf", "[%s]\\n"),
            "fails": command(world.script("fails", "echo why not >&2", "exit 3")),
            "sleeps": command("/bin/sleep", "5"),
            "lines": command("/bin/cat", lines),
            "talks": command(
                world.script(
                    "talks",
                    "echo one",
                    "echo oops >&2",
                    "sleep 0.2",
                    "printf half; sleep 0.2; echo ' two'; exit 3",
                )
            ),
            "far": {**command("/bin/echo", "far"), "backend_options": {"control_channel": "far"}},
        }
        for name in ("sp1", "prx01a"):
            half = command("/bin/true" if name == "sp1" else "/bin/false")
            world.daemon(name, tasks={**shared, "half": half}, ready=False)
        world.wait_ready(*world.daemons)
        yield world


@pytest.fixture
def ngcp_task(nodes):
    """Run the client on the world's redis; return the finished process."""

    def run(*arguments, where=None):
        where = where or ["--redis", nodes.server.url]
        return subprocess.run(
            [COMMANDS / "ngcp-task", *arguments, *where],
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


def documents(text):
    """Return what ``--json`` printed: one document, or one a line."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def strings_in(value):
    """Return every string in *value*, wherever the client has put it."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings_in(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return [value] if isinstance(value, str) else []


def test_send_shows_the_output_of_every_node(ngcp_task):
    """Exit 0: all that accepted are done."""
    done = ngcp_task("send", "hello", "--dst", "*", "--timeout", "5")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("hello there") == 2
    assert "sp1" in done.stdout
    assert "prx01a" in done.stdout


def test_send_as_json(ngcp_task):
    """Nothing but JSON on stdout, with the data of the node that was asked."""
    done = ngcp_task("send", "hello", "--dst", "sp1", "--json", "--timeout", "5")

    assert done.returncode == 0, done.stderr
    assert "hello there\n" in strings_in(documents(done.stdout))
    assert "sp1" in strings_in(documents(done.stdout))


def test_options_stand_before_the_verb_as_well(nodes):
    """``ngcp-task --redis URL send …`` is the same."""
    done = subprocess.run(
        [COMMANDS / "ngcp-task", "--redis", nodes.server.url, "send", "hello", "--dst", "sp1"],
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.returncode == 0, done.stderr
    assert "hello there" in done.stdout


def test_another_control_channel(ngcp_task):
    """``--channel`` says where the request is published."""
    done = ngcp_task("send", "far", "--channel", "far", "--dst", "sp1", "--timeout", "5")

    assert done.returncode == 0, done.stderr
    assert "far" in done.stdout


def test_data_reaches_the_task(ngcp_task):
    """Words from data, none of them syntax."""
    data = json.dumps({"extra_args": "a $(id) 'b c'"})
    done = ngcp_task("send", "words", "--dst", "sp1", "--data", data, "--json")

    assert done.returncode == 0, done.stderr
    assert "[a]\n[$(id)]\n['b]\n[c']\n" in strings_in(documents(done.stdout))


def test_chunks_are_joined(ngcp_task):
    """A result of several parts is one whole."""
    done = ngcp_task("send", "lines", "--dst", "sp1", "--json")

    assert done.returncode == 0, done.stderr
    assert LINES in strings_in(documents(done.stdout))


def test_other_outcomes_have_their_own_exit_codes(ngcp_task):
    """Failed, refused, nobody there: not 0, and not the same."""
    failed = ngcp_task("send", "fails", "--dst", "sp1", "--timeout", "3")
    nobody = ngcp_task("send", "hello", "--dst", "web99", "--timeout", "1")
    refused = ngcp_task("send", "no_such_task", "--dst", "sp1", "--timeout", "3")
    unfinished = ngcp_task("send", "sleeps", "--dst", "sp1", "--timeout", "1")

    codes = [done.returncode for done in (failed, nobody, refused, unfinished)]
    assert 0 not in codes
    assert failed.returncode != nobody.returncode
    assert "why not" in failed.stdout + failed.stderr


@pytest.mark.parametrize("arguments", [["half", "--dst", "*"], ["no_such_task", "--dst", "*"]])
def test_exit_0_only_when_all_that_accepted_are_done(ngcp_task, arguments):
    """One of two failed, or none accepted."""
    done = ngcp_task("send", *arguments, "--timeout", "3")

    assert done.returncode != 0


def test_wrong_usage_is_no_traceback(ngcp_task):
    """Bad data, an unknown verb, a bus that is not there."""
    bad_data = ngcp_task("send", "hello", "--dst", "sp1", "--data", "{no json")
    bad_verb = ngcp_task("sned", "hello")
    no_bus = ngcp_task("send", "hello", "--dst", "sp1", where=["--redis", "redis://127.0.0.1:1"])

    for done in (bad_data, bad_verb, no_bus):
        assert done.returncode != 0
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_ping_names_the_nodes(ngcp_task):
    """Who is there."""
    done = ngcp_task("ping", "--timeout", "3")
    as_json = ngcp_task("ping", "--timeout", "3", "--json")

    assert (done.returncode, as_json.returncode) == (0, 0), done.stderr + as_json.stderr
    for name in ("sp1", "prx01a"):
        assert name in done.stdout
        assert name in strings_in(documents(as_json.stdout))


def test_tasks_lists_their_names(ngcp_task):
    """What can be asked for."""
    done = ngcp_task("tasks", "--timeout", "3")
    as_json = ngcp_task("tasks", "--timeout", "3", "--json")

    assert (done.returncode, as_json.returncode) == (0, 0), done.stderr + as_json.stderr
    for name in ("hello", "words", "fails", "half"):
        assert name in done.stdout
        assert name in as_json.stdout
    assert documents(as_json.stdout)


@pytest.mark.parametrize("verb", [["send", "hello", "--dst", "local"], ["ping"], ["tasks"]])
def test_by_the_local_socket(nodes, ngcp_task, verb):
    """One node, no bus: only the daemon behind the socket answers."""
    done = ngcp_task(*verb, "--timeout", "3", where=["--socket", str(nodes.daemons[0].socket)])

    assert done.returncode == 0, done.stderr
    assert "prx01a" not in done.stdout


def test_send_follows_live_output(ngcp_task):
    """Whole lines with the node's name, each stream on its own, and nothing twice."""
    done = ngcp_task("send", "talks", "--dst", "sp1", "--follow")

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "sp1: accepted", "sp1: one", "sp1: half two", "sp1: error (exit code 3: oops)",
    ]  # fmt: skip
    assert done.stderr.splitlines() == ["sp1: oops"]


def test_send_tells_how_the_process_ended(ngcp_task):
    """For those who have asked."""
    done = ngcp_task("send", "talks", "--dst", "sp1", "--result", "--json")

    (node,) = json.loads(done.stdout)["nodes"]
    assert (node["result"]["exit_code"], node["result"]["stderr"]) == (3, "oops\n")
    assert "progress" not in done.stdout


def test_jobs_and_cancel(nodes, ngcp_task):
    """What an operator does at night: look, and end it."""
    where = ["--redis", nodes.server.url]
    sending = subprocess.Popen(
        [COMMANDS / "ngcp-task", "send", "sleeps", "--dst", "sp1", *where],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: "sleeps" in ngcp_task("jobs", "--running").stdout, 10, "the job runs")
    nodes_of = json.loads(ngcp_task("jobs", "--running", "--json").stdout)["nodes"]
    (uuid,) = [job["uuid"] for node in nodes_of for job in node["data"]]

    done = ngcp_task("cancel", uuid)
    again = ngcp_task("cancel", uuid)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"sp1: cancelled sleeps {uuid}\n"
    assert "error (cancelled by " in sending.communicate(timeout=10)[0]
    assert (again.returncode, again.stdout) == (1, "")
    assert "sp1: job" in again.stderr
    assert "has already ended" in again.stderr
    assert "prx01a: job" in again.stderr
    assert "sleeps" not in ngcp_task("jobs", "--running").stdout
