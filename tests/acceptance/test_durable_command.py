"""The installed command ``ngcp-task`` and durable requests: post, collect, dead letters."""

import json
import subprocess
import time
import uuid

import pytest

from ngcp_task_agent.backends.redis_keys import dead_key

from .harness import COMMANDS, RedisServer, write_file
from .processes import until

pytestmark = pytest.mark.redis

DEAD = dead_key("requests")


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bus(server):
    with server.client() as client:
        yield client


@pytest.fixture
def start(server):
    """Start the command; its words, and then where Redis is."""

    def start(*words):
        return subprocess.Popen(
            [COMMANDS / "ngcp-task", *words, "--redis", server.url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.fixture
def ngcp_task(start):
    """Run the command to its end."""

    def run(*words):
        process = start(*words)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


def keep(bus, key, ref, status, **fields):
    """What an agent appends."""
    body = {"uuid": str(uuid.uuid4()), "ref": ref, "src": "sp1", "status": status, **fields}
    bus.xadd(key, {"response": json.dumps(body)})


def requests_in(bus, stream="requests"):
    return [json.loads(fields[b"request"]) for _, fields in bus.xrange(stream)]


def bury(bus, failed=None, group="pool:p", **fields):
    """Put a dead letter there, as the stream backend does; its id."""
    request = {"uuid": str(uuid.uuid4()), "task": "backup", "src": "web01a", "dst": "*",
               "timestamp": 1.0, "options": {"ttl": 5}, **fields}  # fmt: skip
    letter = {"request": json.dumps(request), "reason": "exit code 3", "attempts": "2",
              "group": group, "node": "sp1", "stream": "requests", "entry": "1-0",
              "failed": str(failed or time.time())}  # fmt: skip
    return bus.xadd(DEAD, letter).decode()


def test_post_now_and_collect_later(bus, ngcp_task):
    """Two words tell another host all it needs."""
    sent = ngcp_task("send", "backup", "--control-stream", "requests", "--ttl", "60", "--no-wait")
    ref, key = sent.stdout.split()
    [request] = requests_in(bus)
    assert (request["uuid"], request["options"]["feedback_stream"]) == (ref, key)
    assert (request["options"]["ttl"], abs(request["timestamp"] - time.time()) < 10) == (60, True)

    keep(bus, key, ref, "accepted")
    keep(bus, key, ref, "done", data="all of it\n")
    found = ngcp_task("collect", key, "--ref", ref)

    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "sp1: accepted\nsp1: done\nall of it\n"


def test_a_json_line_holds_uuid_stream_and_cursor(bus, ngcp_task):
    """For scripts."""
    done = ngcp_task("send", "x", "--control-stream", "requests", "--no-wait", "--json")

    posted = json.loads(done.stdout)
    assert posted["uuid"] == requests_in(bus)[0]["uuid"]
    assert posted["cursor"] == "0"
    assert posted["feedback_stream"]


@pytest.mark.parametrize("option", ["--feedback-stream", "--control-stream"])
def test_a_key_does_not_begin_with_a_dash(bus, ngcp_task, option):
    """Whoever forgets the key does not keep answers, or post, in one called --no-wait."""
    sent = ngcp_task("send", "backup", option, "--no-wait")

    assert (sent.returncode, sent.stdout) == (2, "")
    assert f"{option}" in sent.stderr
    assert "'--no-wait' is no key" in sent.stderr
    assert bus.keys() == []


def test_what_is_gone_is_said(bus, ngcp_task):
    """Exit 3, and why."""
    for number in range(5):
        keep(bus, "fb", "r", "progress", seq=number)
    bus.xtrim("fb", maxlen=1, approximate=False)

    trimmed = ngcp_task("collect", "fb", "--timeout", "2")
    expired = ngcp_task("collect", "none", "--cursor", "1700000000000-0", "--timeout", "2")

    assert (trimmed.returncode, expired.returncode) == (3, 3)
    assert "trimmed" in trimmed.stderr
    assert "expired" in expired.stderr


def test_the_tasks_file_says_where_it_is_posted(bus, start, tmp_path):
    """As it says the channel; and that the end of one member of the pool is the end."""
    write_file(tmp_path / "etc" / "tasks" / "backup.yml", {
        "name": "backup", "backend": "redis_stream",
        "backend_options": {"control_stream": "requests", "delivery": "anycast", "pool": "p"},
    })  # fmt: skip
    process = start("send", "backup", "--config-dir", str(tmp_path / "etc"), "--timeout", "20")
    until(lambda: bus.xlen("requests"), 10, "posted")
    [request] = requests_in(bus)
    key = request["options"]["feedback_stream"]
    keep(bus, key, request["uuid"], "accepted")
    keep(bus, key, request["uuid"], "accepted", src="prx01a")
    keep(bus, key, request["uuid"], "done", src="prx01a")
    out, err = process.communicate(timeout=10)

    assert (process.returncode, err) == (0, "")
    assert out == "sp1: accepted\nprx01a: accepted\nprx01a: done\n"


@pytest.fixture
def by_file(tmp_path, server):
    """Run the command; its words, and only files say where Redis is: redis.yml says it wrong."""

    def run(*words, where="", **defaults):
        write_file(tmp_path / "etc" / "backends" / "redis.yml", {"url": "redis://127.0.0.1:1"})
        fields = {**defaults, "url": server.url}
        write_file(
            tmp_path / "etc" / "backends" / "redis_stream.yml", {where: fields} if where else fields
        )
        write_file(tmp_path / "etc" / "tasks" / "backup.yml", {"backend": "redis_stream"})
        return subprocess.run(
            [COMMANDS / "ngcp-task", *words, "--config-dir", tmp_path / "etc"],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("where", ["", "options", "backend_options"])
def test_what_the_streams_file_says_holds_for_a_task_that_says_nothing(bus, by_file, where):
    """As for the agent: its server, its stream, and that one of a pool runs it."""
    defaults = {"control_stream": "requests", "delivery": "anycast", "pool": "p"}
    letter = bury(bus)

    sent = by_file("send", "backup", "--no-wait", "--json", where=where, **defaults)
    listed = by_file("dead", "list", "--task", "backup", "--json", where=where, **defaults)

    assert (sent.returncode, listed.returncode) == (0, 0), sent.stderr + listed.stderr
    assert json.loads(sent.stdout)["pool"] is True
    assert [request["task"] for request in requests_in(bus)] == ["backup"]
    assert json.loads(listed.stdout)["id"] == letter


def test_streams_are_on_the_server_of_the_streams(bus, by_file):
    """Also where the command names the stream; what is no stream goes by redis.yml."""
    bury(bus)

    sent = by_file("send", "x", "--control-stream", "requests", "--no-wait", "--json")
    listed = by_file("dead", "list", "--control-stream", "requests")
    plain = by_file("send", "x")

    assert (sent.returncode, listed.returncode, plain.returncode) == (0, 0, 6), sent.stderr
    assert json.loads(sent.stdout)["pool"] is False
    assert bus.xlen("requests") == 1


def test_the_end_of_one_of_a_pool_is_the_end(bus, start):
    """Where no file is at hand to tell of the pool; the one that died never ends."""
    process = start("send", "backup", "--control-stream", "requests", "--pool", "--timeout", "20")
    until(lambda: bus.xlen("requests"), 10, "posted")
    [request] = requests_in(bus)
    key = request["options"]["feedback_stream"]
    keep(bus, key, request["uuid"], "accepted")
    keep(bus, key, request["uuid"], "done", src="prx01a")
    _, err = process.communicate(timeout=10)

    assert (process.returncode, err) == (0, "")


def test_dead_letters_are_listed_and_shown(bus, ngcp_task):
    """A table for people, JSON for scripts; exit 3 where there are none."""
    assert ngcp_task("dead", "list", "--control-stream", "requests").returncode == 3
    one, other = bury(bus), bury(bus)

    table = ngcp_task("dead", "list", "--control-stream", "requests")
    lines = ngcp_task("dead", "list", "--control-stream", "requests", "--json")
    shown = ngcp_task("dead", "show", one, "--control-stream", "requests")
    nobody = ngcp_task("dead", "show", "1-1", "--control-stream", "requests")

    assert table.returncode == lines.returncode == shown.returncode == 0, table.stderr
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["ID", one, other]
    for word in ("backup", "web01a", "exit code 3"):
        assert word in table.stdout
    assert [json.loads(line)["id"] for line in lines.stdout.splitlines()] == [one, other]
    assert json.loads(shown.stdout)["request"]["options"] == {"ttl": 5}
    assert (nobody.returncode, nobody.stdout) == (3, "")


def test_a_replay_is_a_new_request(bus, ngcp_task):
    """With a uuid of its own, and its time begins again; the letter is gone."""
    letter = bury(bus, uuid="old")

    done = ngcp_task("dead", "replay", letter, "--control-stream", "requests")

    [request] = requests_in(bus)
    assert (done.returncode, done.stdout) == (0, f"old {request['uuid']}\n")
    assert request["uuid"] != "old"
    assert "timestamp" not in request
    assert bus.xlen(DEAD) == 0


@pytest.mark.parametrize(("group", "dst"), [("node:sp1:0a1b", "sp1"), ("pool:p", "*")])
def test_a_replay_is_for_the_node_that_failed(bus, ngcp_task, group, dst):
    """The others have done it; of a pool anybody may."""
    letter = bury(bus, group=group)

    done = ngcp_task("dead", "replay", letter, "--control-stream", "requests")

    assert (done.returncode, done.stderr) == (0, "")
    assert [request["dst"] for request in requests_in(bus)] == [dst]


def test_two_who_replay_at_once_post_each_once(bus, start):
    """Two administrators, one night."""
    for _ in range(200):
        bury(bus)

    both = [start("dead", "replay", "--all", "--control-stream", "requests") for _ in "ab"]
    outs = [process.communicate(timeout=30)[0] for process in both]

    assert bus.xlen("requests") == 200
    assert len("".join(outs).splitlines()) == 200
    assert bus.xlen(DEAD) == 0


def test_purge_by_age(bus, ngcp_task):
    """Only what has failed before."""
    old, young = bury(bus, failed=time.time() - 10 * 86400), bury(bus)

    done = ngcp_task("dead", "purge", "--all", "--older-than", "7", "--control-stream", "requests")

    assert (done.returncode, done.stdout) == (0, f"{old}\n")
    assert [entry.decode() for entry, _ in bus.xrange(DEAD)] == [young]
    assert bus.exists("requests") == 0


@pytest.mark.parametrize(
    "words",
    [
        ("dead", "show", "xx"),
        ("dead", "replay", "1700000000000-0", "xx"),
        ("dead", "purge", "1700000000000"),
        ("collect", "fb", "--cursor", "abc"),
        ("dead", "list", "--task", "backup", "--control-stream", "requests"),
    ],
)
def test_what_cannot_be_an_id_is_wrong_usage(bus, ngcp_task, words):
    """Not a bus that is away. Half an id could be of two letters, and two streams are too many."""
    done = ngcp_task(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


def test_usage_and_a_bus_that_is_away(ngcp_task):
    """2 and 6, as elsewhere."""
    usage = ngcp_task("dead", "purge")
    away = subprocess.run(
        [COMMANDS / "ngcp-task", "dead", "list", "--redis", "redis://127.0.0.1:1"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert (usage.returncode, away.returncode) == (2, 6)
    assert "Traceback" not in usage.stderr + away.stderr
