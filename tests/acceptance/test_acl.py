"""The rules shipped for Redis: enough for a daemon and its clients, and for nothing else."""

import json
import subprocess
from pathlib import Path

import pytest
import redis

from .durable import durable
from .harness import COMMANDS, World, command, write_file
from .processes import until
from .wire import CONTROL_CHANNEL

pytestmark = pytest.mark.redis

RULES = Path(__file__).parents[2] / "etc" / "redis"
PASSWORD = "CHANGE-ME"
AGENT, DURABLE_AGENT = "ngcp-task-agent", "ngcp-task-agent-durable"
CLIENT, DURABLE_CLIENT = "ngcp-task-client", "ngcp-task-client-durable"
EVERYBODY = (AGENT, DURABLE_AGENT, CLIENT, DURABLE_CLIENT)
STREAM = "ngcp-task-agent-stream"
OWN_KEY = "ngcp-task-agent:{ngcp-task-agent-stream}:groups"
DEAD = "ngcp-task-agent:{ngcp-task-agent-stream}:dead"
KEPT = "ngcp-task-agent-feedback:18d0f568"  # as our own client names it
FEEDBACK = "ngcp-rest-api-ban-ips-dump-b5347ea9"  # as a client in the field names it


REFUSED = "(?i)permission|ACL failure|can't (access|run)"  # by the server, or inside a script


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    path.write_text("".join((RULES / name).read_text() for name in ("agent.acl", "client.acl")))
    with World("--aclfile", str(path)) as world:
        yield world


@pytest.fixture
def login(world):
    """Makes connections of a user."""
    clients = []

    def make(user):
        clients.append(redis.Redis(port=world.server.port, username=user, password=PASSWORD,
                                   protocol=2, socket_timeout=5))  # fmt: skip
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize("agent", [AGENT, DURABLE_AGENT])
@pytest.mark.parametrize("client", [CLIENT, DURABLE_CLIENT])
def test_a_daemon_answers_a_client(world, agent, client, tmp_path):
    """Both with their own login: `ngcp-task` reads its user from a file like the agent's."""
    address = {"host": "127.0.0.1", "port": world.server.port, "password": PASSWORD}
    tasks = {"hello": command("/bin/echo", "hello", "there")}
    daemon = world.daemon(backend={**address, "username": agent}, tasks=tasks)
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "redis.yml").write_text(json.dumps({**address, "username": client}))

    said = subprocess.run(
        [COMMANDS / "ngcp-task", "--config-dir", tmp_path, "send", "hello", "--dst", daemon.dst],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip

    assert (said.returncode, said.stderr) == (0, "")
    assert "hello there" in said.stdout
    assert "NOPERM" not in daemon.log
    assert "refused" not in daemon.log


def test_a_client_of_the_field_hears_the_answer(world, login):
    """It names its feedback channel itself."""
    address = {"host": "127.0.0.1", "port": world.server.port, "password": PASSWORD}
    daemon = world.daemon(backend={**address, "username": AGENT},
                          tasks={"ping": command("/bin/true")})  # fmt: skip
    client = login(CLIENT)
    request = {"uuid": "u", "task": "ping", "src": "web01a", "dst": daemon.dst,
               "options": {"feedback_channel": FEEDBACK}, "data": None}  # fmt: skip
    with client.pubsub() as pubsub:
        pubsub.subscribe(FEEDBACK)
        until(lambda: (pubsub.get_message(timeout=0.1) or {}).get("type") == "subscribe")
        client.publish(CONTROL_CHANNEL, json.dumps(request))
        heard = []
        until(lambda: _statuses(pubsub, heard)[-1:] == ["done"], 10, "the answer")

    assert heard == ["accepted", "done"]


def _statuses(pubsub, heard):
    message = pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1)
    if message:
        heard.append(json.loads(message["data"])["status"])
    return heard


@pytest.mark.parametrize("user", EVERYBODY)
@pytest.mark.parametrize(
    "words",
    [
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("CONFIG", "GET", "*"),
        ("ACL", "LIST"), ("SHUTDOWN", "NOSAVE"), ("MONITOR",),
        ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", "1"), ("SCRIPT", "FLUSH"), ("SAVE",),
        ("REPLICAOF", "NO", "ONE"), ("GET", "secret"), ("SET", "secret", "x"), ("DEL", "secret"),
        ("XADD", "secret", "*", "a", "b"), ("XRANGE", "secret", "-", "+"),
        ("EVAL", "return redis.call('GET', 'secret')", "0"), ("PSUBSCRIBE", "*"),
        ("SUBSCRIBE", "secret"), ("PUBSUB", "CHANNELS"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_nobody_may_do_more(world, login, user, words):
    """Neither what is an administrator's, nor with keys and channels of others."""
    with pytest.raises(redis.exceptions.ResponseError, match=REFUSED):
        login(user).execute_command(*words)


@pytest.mark.parametrize("user", [CLIENT, DURABLE_CLIENT])
@pytest.mark.parametrize(
    "words",
    [
        ("SUBSCRIBE", CONTROL_CHANNEL), ("SSUBSCRIBE", CONTROL_CHANNEL),
        ("PUBLISH", FEEDBACK, "forged"), ("XRANGE", STREAM, "-", "+"), ("HGETALL", OWN_KEY),
        ("XREAD", "STREAMS", STREAM, "0"), ("XADD", OWN_KEY, "*", "a", "b"),
        ("XADD", FEEDBACK, "*", "response", "forged"), ("XTRIM", STREAM, "MAXLEN", "0"),
        ("XGROUP", "CREATE", STREAM, "g", "0", "MKSTREAM"), ("DEL", STREAM),
        ("EVAL", "return 1", "0"), ("XREVRANGE", STREAM, "+", "-"), ("XINFO", "STREAM", STREAM),
        ("XRANGE", DEAD, "-", "+"), ("XREADGROUP", "GROUP", "g", "c", "STREAMS", STREAM, ">"),
        ("XADD", KEPT, "*", "response", "forged"), ("DEL", KEPT), ("EXPIRE", KEPT, "1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_client_is_no_agent(world, login, user, words):
    """It reads no requests, forges no answers, and leaves the agents' keys alone."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        login(user).execute_command(*words)


@pytest.mark.parametrize("user", [AGENT, CLIENT])
def test_pub_sub_needs_no_keys(world, login, user):
    """Not even those of the streams."""
    with pytest.raises(redis.exceptions.NoPermissionError):
        login(user).xadd(STREAM, {"request": "{}"})


@pytest.mark.parametrize("user", [AGENT, DURABLE_AGENT])
def test_an_agent_hears_no_answers_of_others(world, login, user):
    """It publishes anywhere, and listens where requests are."""
    agent = login(user)

    assert agent.publish(FEEDBACK, "x") == 0
    with pytest.raises(redis.exceptions.NoPermissionError):
        agent.execute_command("SUBSCRIBE", FEEDBACK)


@pytest.fixture
def durable_daemon(world):
    """It takes durable requests, and may do no more than its rules say."""
    address = {"host": "127.0.0.1", "port": world.server.port, "password": PASSWORD,
               "username": DURABLE_AGENT}  # fmt: skip
    tasks = {"work": durable("/bin/echo", "worked", pool="p"),
             "fail": durable("/bin/false", pool="p"),
             "plain": command("/bin/echo", "plain")}  # fmt: skip
    daemon = world.daemon(backend=address, tasks=tasks, start=False)
    write_file(daemon.config / "backends" / "redis_stream.yml", address)
    daemon.start()
    world.wait_ready(daemon)
    yield daemon
    daemon.stop()


@pytest.fixture
def ngcp_task(world, tmp_path):
    """Runs the command with the login of *user*; what it printed."""

    def run(user, *words, code=0):
        address = {"host": "127.0.0.1", "port": world.server.port, "password": PASSWORD}
        write_file(tmp_path / user / "backends" / "redis.yml", {**address, "username": user})
        done = subprocess.run(
            [COMMANDS / "ngcp-task", *words, "--config-dir", tmp_path / user],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_durable_requests_feedback_streams_and_dead_letters(durable_daemon, ngcp_task):
    """All that `docs/durable.md` tells, by real programs: nothing is refused on the way."""
    to_pool = ("--control-stream", STREAM, "--dst", "p", "--timeout", "10")

    assert "worked" in ngcp_task(DURABLE_CLIENT, "send", "work", *to_pool, "--ttl", "60")
    named = ("--feedback-stream", "ngcp-rest-api-answers")
    assert "worked" in ngcp_task(DURABLE_CLIENT, "send", "work", *to_pool, *named)
    _, key = ngcp_task(DURABLE_CLIENT, "send", "work", *to_pool, "--no-wait").split()
    assert "worked" in ngcp_task(DURABLE_CLIENT, "collect", key, "--pool")
    assert "plain" in ngcp_task(DURABLE_CLIENT, "send", "plain", "--durable")
    ngcp_task(DURABLE_CLIENT, "send", "fail", *to_pool, code=1)
    letters = ("--control-stream", STREAM)
    letter = json.loads(ngcp_task(DURABLE_AGENT, "dead", "list", "--json", *letters))
    ngcp_task(DURABLE_AGENT, "dead", "replay", letter["id"], *letters)
    until(lambda: ngcp_task(DURABLE_AGENT, "dead", "purge", "--all", *letters), 5, "failed anew")

    ngcp_task(DURABLE_CLIENT, "dead", "list", *letters, code=6)
    for word in ("NOPERM", "refused", "ACL"):
        assert word not in durable_daemon.log


@pytest.mark.parametrize("agent", [AGENT, DURABLE_AGENT])
def test_a_ttl_needs_no_more(world, ngcp_task, agent):
    """Agent and client ask what time it is."""
    address = {"host": "127.0.0.1", "port": world.server.port, "password": PASSWORD}
    daemon = world.daemon(backend={**address, "username": agent},
                          tasks={"hello": command("/bin/echo", "hello")})  # fmt: skip

    assert "hello" in ngcp_task(CLIENT, "send", "hello", "--dst", daemon.dst, "--ttl", "60")
    assert "NOPERM" not in daemon.log


def test_an_answer_that_may_not_be_kept_holds_up_nothing(world, login, durable_daemon, ngcp_task):
    """A client names a key that is not the agents': else a few such requests would take
    every place there is."""
    client, agent = login(DURABLE_CLIENT), login(DURABLE_AGENT)
    for number in range(3):
        request = {"uuid": f"stray{number}", "task": "work", "src": "web01a", "dst": "p",
                   "options": {"feedback_stream": "secret"}}  # fmt: skip
        client.xadd(STREAM, {"request": json.dumps(request)})

    until(lambda: durable_daemon.log.count("task work for 'stray") == 3, 10, "they have run")
    until(lambda: agent.xpending(STREAM, "pool:p")["pending"] == 0, 5, "they are settled")
    assert "feedback stream 'secret'" in durable_daemon.log
