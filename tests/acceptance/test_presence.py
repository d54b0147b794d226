"""``ngcp-task nodes``, ``tasks`` and ``match`` on real daemons that keep presence, or do not."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
import redis

from ngcp_task_agent.client import Client

from .harness import COMMANDS, World, command, write_file
from .processes import until

pytestmark = pytest.mark.redis

RULES = Path(__file__).parents[2] / "etc" / "redis"
INDEX = "ngcp-task-agent:presence:{fleet}"
TASKS = {"hello": command("/bin/echo", "hello"), "disk": command("/bin/df")}
OTHER_DISK = {**TASKS, "disk": command("/bin/df", "-h")}
FACTS = {
    "prx01a": {"state": "active", "role": ["proxy", "lb"], "status": "online"},
    "prx01b": {"state": "standby", "role": ["proxy"], "status": "online"},
    "db01": {"state": "active", "role": ["db"]},
}
WIDTH = 80  # columns of the terminal


def keeping(world, on=True, **more):
    return {"host": "127.0.0.1", "port": world.server.port, "presence": on, **more}


@pytest.fixture(scope="module")
def nodes():
    """Three nodes that keep presence, one that does not, and two of one name."""
    with World() as world:
        for name, facts in FACTS.items():
            tasks = OTHER_DISK if name == "prx01b" else TASKS
            world.daemon(name, backend=keeping(world), facts=facts, tasks=tasks, ready=False)
        world.daemon("hidden", tasks=TASKS, facts={"state": "active"}, ready=False)
        for _ in range(2):
            world.daemon("twin", backend=keeping(world), ready=False)
        world.wait_ready(*world.daemons)
        until(lambda: len(present(world)) == 5, 10, "five records")
        yield world


@pytest.fixture
def world():
    with World() as world:
        yield world


def present(world, dst="*", **kwargs):
    with Client.redis(world.server.url, **kwargs) as client:
        return client.nodes(dst)


def ngcp_task(world, *words, code=0):
    """Run the command; what it has printed on both."""
    done = subprocess.run(
        [COMMANDS / "ngcp-task", *words, "--redis", world.server.url],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def document(world, *words, code=0):
    return json.loads(ngcp_task(world, *words, "--json", code=code)[0])


def keys(world):
    client = world.server.client()
    try:
        return [key.decode() for key in client.keys("*")]
    finally:
        client.close()


def test_nodes_lists_those_who_keep_presence(nodes):
    """By name, with all that the record holds; two of one name are two."""
    lines = ngcp_task(nodes, "nodes")[0].splitlines()
    told = document(nodes, "nodes")["nodes"]

    assert [line.split()[0] for line in lines[1:6]] == ["db01", "prx01a", "prx01b", "twin", "twin"]
    assert "role=lb+proxy" in lines[2]
    assert [node["name"] for node in told] == ["db01", "prx01a", "prx01b", "twin", "twin"]
    assert len({node["instance"] for node in told}) == 5
    assert told[1]["facts"]["role"] == {"values": ["lb", "proxy"], "age": None, "stale": False}
    assert [node["tasks_differ"] for node in told] == [[], [], ["disk"], [], []]
    assert all(abs(node["started"] - time.time()) < 60 and node["seen"] < 15 for node in told)


def test_nodes_by_dst(nodes):
    """The same dst as everywhere; none is 3, and why is told."""
    told = document(nodes, "nodes", "*|state=active;role=proxy+db")["nodes"]
    none, why = ngcp_task(nodes, "nodes", "web*", code=3)

    assert [node["name"] for node in told] == ["db01", "prx01a"]
    assert (none, why) == (
        "", "ngcp-task: web* selects none of 5 nodes; see ngcp-task match\n"
    )  # fmt: skip
    assert "bad element" in ngcp_task(nodes, "nodes", "x|", code=2)[1]
    assert "bad element" in ngcp_task(nodes, "match", "x|", code=2)[1]


def test_the_library_gives_the_nodes_of_a_dst(nodes):
    """With name, instance and facts: those of whom a run expects an answer."""
    [node] = present(nodes, "prx*|state=standby")

    assert (node.name, len(node.instance)) == ("prx01b", 16)
    assert node.node.facts["role"] == {"proxy"}
    assert set(node.tasks) == {"hello", "disk"}


def test_tasks_of_presence(nodes):
    """Files of one name that differ are two lines; an own task is no news."""
    told = {task["name"]: task for task in document(nodes, "tasks")["tasks"]}
    lines = ngcp_task(nodes, "tasks", "--node", "prx01a", "--node", "prx01b")[0].splitlines()

    assert told.keys() == {"hello", "disk"}
    assert [told[name]["differs"] for name in ("hello", "disk")] == [False, True]
    files = told["disk"]["files"]
    assert [[n["name"] for n in one["nodes"]] for one in files] == [["db01", "prx01a"], ["prx01b"]]
    assert [line.split()[0] for line in lines] == ["TASK", "disk", "disk", "hello", "*"]


def test_tasks_asks_where_it_is_told_to(nodes):
    """Then those who keep no presence answer as well."""
    assert "hidden" in ngcp_task(nodes, "tasks", "--ask")[0]
    assert "hidden" not in ngcp_task(nodes, "tasks")[0]
    assert "agent.ping" in ngcp_task(nodes, "tasks", "--dst", "hidden")[0]  # nobody else can tell
    assert "--ask asks" in ngcp_task(nodes, "tasks", "--dst", "hidden", "--presence", code=3)[1]
    ngcp_task(nodes, "tasks", "--dst", "a", "--node", "b", code=2)


@pytest.mark.parametrize("ask", [[], ["--ask"]])
@pytest.mark.parametrize(
    "dst",
    ["prx*|state=active,*|role=db", "*|colour=red", "local", "prx01[ab]", "twin", "*|state=active",
     "twin,*|status=online;role=lb"],
)  # fmt: skip
def test_match_says_who_takes_it(nodes, dst, ask):
    """Exactly those who answer a request, asked in the same way."""
    heard = ngcp_task(nodes, "ping", "--dst", dst, code=3 if dst == "*|colour=red" else 0)[0]
    took = sorted(line.split()[0] for line in heard.splitlines())
    told = document(nodes, "match", dst, *ask, code=0 if took else 3)

    selected = [node["name"] for node in told["nodes"] if node["selected"]]
    assert selected == (took if ask else [name for name in took if name != "hidden"])
    assert len(told["nodes"]) == (6 if ask else 5)
    assert told["source"] == ("nodes" if ask else "presence")


@pytest.mark.parametrize("ask", [[], ["--ask"]])
def test_match_says_why_not(nodes, ask):
    """Element by element, all of it."""
    told = document(nodes, "match", "prx*|state=active;status=offline,twin", *ask)

    why = {node["name"]: [e["reasons"] for e in node["elements"]] for node in told["nodes"]}
    assert why["prx01b"] == [
        ["state is standby, not active", "status is online, not offline"],
        ["name is prx01b, not twin"],
    ]
    assert why["db01"][0] == ["name is db01, not prx*", "status is unknown, not offline"]
    assert why["twin"][1] == []


@pytest.mark.parametrize("ask", [[], ["--ask"]])
def test_match_with_a_task(nodes, ask):
    """A node that has no such task keeps silent on a wildcard: it is not to be waited for."""
    told = document(nodes, "match", "prx*,twin", "--task", "disk", *ask)

    refusals = {node["name"]: (node["selected"], node["refusal"]) for node in told["nodes"]}
    assert refusals["prx01a"] == (True, "")
    assert refusals["twin"] == (False, "no task 'disk'")
    with Client.redis(nodes.server.url) as client:
        assert [node.name for node in client.nodes("prx*,twin", "disk")] == ["prx01a", "prx01b"]


def test_a_client_is_known_by_its_name(nodes):
    """`local` is also the node that asks; here all are, because the bus is."""
    for record in present(nodes):
        assert record.near
    with Client.redis(nodes.server.url, src="db01") as client:
        assert all(one.selected for one in client.match("local"))


def test_match_ask_names_who_is_silent(world):
    """A node that keeps a record and does not answer is no success."""
    for name in ("sp1", "sp2"):
        world.daemon(name, backend=keeping(world))
    until(lambda: len(present(world)) == 2, 10)
    world.daemons[1].signal(signal.SIGSTOP)
    try:
        told, why = ngcp_task(world, "match", "*", "--ask", "--timeout", "1.5", code=5)
    finally:
        world.daemons[1].signal(signal.SIGCONT)

    assert "sp1" in told
    assert "ngcp-task: sp2 has not answered" in why


def test_off_by_configuration(world):
    """No key is made, and the client says what to do."""
    world.daemon("sp1", tasks=TASKS)
    world.daemon("sp2", tasks=TASKS, backend=keeping(world, False))

    assert "ngcp-task ping asks" in ngcp_task(world, "nodes", code=3)[1]
    assert "--ask asks" in ngcp_task(world, "match", "*", code=3)[1]
    assert "hello" in ngcp_task(world, "tasks")[0]
    assert [key for key in keys(world) if "presence" in key] == []


def test_turned_on_and_off_without_a_restart(world):
    """The file says so, and a moment later it is so."""
    daemon = world.daemon("sp1")
    backend = daemon.config / "backends" / "redis.yml"

    write_file(backend, keeping(world))
    until(lambda: present(world), 10, "a record")
    write_file(backend, keeping(world, False))
    until(lambda: keys(world) == [], 10, "no record")


def test_the_stream_backend_keeps_it_as_well(world):
    """On a fleet without pub/sub."""
    daemon = world.daemon("sp1", tasks=TASKS, start=False)
    write_file(daemon.config / "backends" / "redis_stream.yml", keeping(world))
    daemon.start()
    world.wait_ready(daemon)

    until(lambda: [r.name for r in present(world)] == ["sp1"], 10)
    assert daemon.stop() == 0
    assert [key for key in keys(world) if "presence" in key] == []


def test_a_server_that_is_away_holds_up_no_stop(world):
    """The record expires by itself."""
    daemon = world.daemon("sp1", backend=keeping(world))
    until(lambda: present(world), 10)
    world.server.stop()
    until(lambda: "connection lost" in daemon.log, 10)

    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 8
    assert "Traceback" not in daemon.log


def test_at_a_stop_the_record_goes_first(world):
    """While jobs get their grace time, nobody counts on the node any more."""
    daemon = world.daemon("sp1", backend=keeping(world), agent={"grace": 20},
                          tasks={"sleeps": command("/bin/sleep", "4")})  # fmt: skip
    until(lambda: present(world), 10)
    sending = subprocess.Popen(
        [COMMANDS / "ngcp-task", "send", "sleeps", "--redis", world.server.url],
        stdout=subprocess.DEVNULL,
    )
    until(lambda: "sleeps" in ngcp_task(world, "jobs", "--running")[0], 10)
    daemon.signal(signal.SIGTERM)

    until(lambda: keys(world) == [], 3, "no record")
    assert daemon.alive
    assert sending.wait(15) == 0  # the job has ended by itself
    assert daemon.process.wait(10) == 0
    assert keys(world) == []


def test_who_is_killed_is_there_again_after_a_restart(world):
    """As the same one: a crash makes no second node."""
    daemon = world.daemon("sp1", backend=keeping(world))
    until(lambda: present(world), 10)
    [before] = present(world)
    daemon.process.kill()
    daemon.process.wait(10)
    assert len(present(world)) == 1  # nobody has told it

    daemon.start()
    until(lambda: [r.started > before.started for r in present(world)] == [True], 15, "again")

    [after] = present(world)
    assert after.instance == before.instance


def test_who_is_killed_is_gone_when_the_record_expires(world):
    """Half a minute, by Redis's own clock."""
    daemon = world.daemon("sp1", backend=keeping(world))
    until(lambda: present(world), 10)
    client = world.server.client()
    left = client.pttl(f"{INDEX}:{present(world)[0].instance}")
    daemon.process.kill()
    daemon.process.wait(10)
    client.close()

    assert 0 < left <= 30_000
    until(lambda: not present(world), 35, "gone")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_makes_no_difference(world, hours):
    """An hour, on a node: its record is as old as it is, and so are its facts."""
    lines = ("import time", "right = time.time", f"time.time = lambda: right() + {3600 * hours}")
    world.file("clock/sitecustomize.py", "\n".join(lines))
    paths = [str(world.place / "files" / "clock"), os.environ.get("PYTHONPATH", "")]
    facts = world.script("facts", "echo colour=red")
    agent = {"fact_sources": [{"type": "command", "run": str(facts), "interval": 1}]}
    daemon = world.daemon("sp1", backend=keeping(world), agent=agent, tasks=TASKS,
                          env={"PYTHONPATH": ":".join(filter(None, paths))})  # fmt: skip
    until(lambda: present(world), 10)
    [record] = present(world, "*|colour=red")
    jobs = json.loads(ngcp_task(world, "send", "hello", "--json")[0])["nodes"][0]["responses"]

    assert abs(jobs[0]["timestamp"] - time.time() - 3600 * hours) < 60  # it is wrong indeed
    assert 0 <= record.seen < 10
    assert abs(record.started - time.time()) < 30
    assert 0 <= record.facts["colour"].age < 15
    assert not record.facts["colour"].stale
    assert daemon.alive


def test_a_fact_that_goes_stale_is_marked(world):
    """It was true, and nobody knows whether it is: it matches nothing, and is shown."""
    flag = world.file("flag", "")
    facts = world.script("facts", f"test -e {flag} && echo colour=red")
    source = {"type": "command", "run": str(facts), "interval": 0.2, "max_age": 0.6}
    world.daemon("sp1", backend=keeping(world), agent={"fact_sources": [source]})
    until(lambda: present(world, "*|colour=red"), 10)

    flag.unlink()
    until(lambda: present(world)[0].facts["colour"].stale, 15, "stale")

    assert "colour=red?(" in ngcp_task(world, "nodes")[0]
    for ask in ([], ["--ask"]):
        told = document(world, "match", "*|colour=red", *ask, code=3)
        [[reason]] = [e["reasons"] for e in told["nodes"][0]["elements"]]
        assert reason.startswith("colour is stale (it was red ")


def test_versions_that_differ_are_marked(world):
    """A node that was forgotten at the last upgrade."""
    site = "import ngcp_task_agent\nngcp_task_agent.__version__ = '1.9.0'\n"
    world.file("old/sitecustomize.py", site)
    paths = [str(world.place / "files" / "old"), os.environ.get("PYTHONPATH", "")]
    for name in ("sp1", "sp2"):
        world.daemon(name, backend=keeping(world))
    world.daemon("sp3", backend=keeping(world),
                 env={"PYTHONPATH": ":".join(filter(None, paths))})  # fmt: skip
    until(lambda: len(present(world)) == 3, 10)

    lines = ngcp_task(world, "nodes")[0].splitlines()
    told = document(world, "nodes")

    assert ["*" in line for line in lines[1:4]] == [False, False, True]
    assert lines[4].endswith("on 2, 1.9.0 on 1")
    assert [node["version_differs"] for node in told["nodes"]] == [False, False, True]


@pytest.mark.parametrize("words", [["nodes"], ["tasks"], ["match", "db*|role=proxy;state=standby"]])
def test_it_reads_well_at_80_columns(nodes, words):
    """In a real terminal, which would break what is too long, in the middle of a word."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [COMMANDS / "ngcp-task", *words, "--redis", nodes.server.url],
        stdin=child, stdout=child, stderr=child, env=environment,
    )  # fmt: skip
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(parent)
    assert process.wait(20) in (0, 3)

    lines = shown.decode().replace("\r\n", "\n").splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) > 3
    at = lines[0].index(lines[0].split()[-1])
    assert all(line[at - 1 : at].strip() == "" for line in lines if line[:1] != "*")


def test_with_the_shipped_rules(tmp_path):
    """A daemon and a client with a login each may keep and read presence, and no more."""
    rules = tmp_path / "users.acl"
    rules.write_text("".join((RULES / name).read_text() for name in ("agent.acl", "client.acl")))
    with World("--aclfile", str(rules)) as world:
        for user in ("ngcp-task-agent", "ngcp-task-agent-durable"):
            login = keeping(world, username=user, password="CHANGE-ME")
            daemon = world.daemon(user, backend=login)
        for user in ("ngcp-task-client", "ngcp-task-client-durable"):
            url = f"redis://{user}:CHANGE-ME@127.0.0.1:{world.server.port}"
            with Client.redis(url) as client:
                until(lambda c=client: len(c.nodes()) == 2, 10, "both")
            key = f"{INDEX}:forged"
            with redis.Redis.from_url(url) as forger:
                for words in (
                    ("HSET", key, "record", "{}"), ("DEL", INDEX), ("ZADD", INDEX, "1", "x"),
                    ("HGETALL", "other"), ("HMGET", "secret", "record"), ("ZREM", INDEX, "x"),
                ):  # fmt: skip
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        forger.execute_command(*words)
        assert "presence" not in daemon.log
        for one in world.daemons:
            assert one.stop() == 0
        assert keys(world) == []


def test_the_socket_of_an_agent_keeps_no_presence(nodes):
    """Who asks there is told where it is; the agent itself can be asked."""
    socket = ["--socket", str(nodes.daemons[0].socket)]
    done = [
        subprocess.run([COMMANDS / "ngcp-task", *words, *socket],
                       capture_output=True, text=True, timeout=30)
        for words in (["nodes"], ["match", "prx*"], ["match", "prx*", "--ask"], ["tasks"])
    ]  # fmt: skip

    assert [one.returncode for one in done] == [6, 6, 0, 0]
    assert all("say --redis URL" in one.stderr for one in done[:2])
    assert "prx01a" in done[2].stdout
    assert "hello" in done[3].stdout
