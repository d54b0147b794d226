"""The rules shipped for Redis: enough for a daemon and its clients, and for nothing else."""

import json
import subprocess
from pathlib import Path

import pytest
import redis

from .harness import COMMANDS, World, command
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
FEEDBACK = "ngcp-rest-api-ban-ips-dump-b5347ea9"  # as a client in the field names it


REFUSED = "(?i)permission|ACL failure|can't access"  # by the server, or inside a script


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
        ("EVAL", "return 1", "0"),
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


def test_a_durable_request_and_its_answer(world, login):
    """The client adds it; the agent reads, renews, hands over by a script that touches the
    client's stream, and acknowledges; the client reads the answer."""
    client, agent = login(DURABLE_CLIENT), login(DURABLE_AGENT)
    client.xadd(STREAM, {"request": "{}"})
    agent.xgroup_create(STREAM, "node:sp1", "0", mkstream=True)
    [[_, [(entry, _)]]] = agent.xreadgroup("node:sp1", "me", {STREAM: ">"}, count=1)
    agent.xclaim(STREAM, "node:sp1", "me", 0, [entry], justid=True)
    agent.xpending_range(STREAM, "node:sp1", "-", "+", 10)
    agent.hset(OWN_KEY, "node:sp1", "now")
    agent.time()
    settle = """
        redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100, '*', 'response', ARGV[1])
        redis.call('EXPIRE', KEYS[2], 60)
        redis.call('PUBLISH', KEYS[2], ARGV[1])
        redis.call('ZADD', KEYS[3], 1, ARGV[2])
        return redis.call('XACK', KEYS[1], 'node:sp1', ARGV[2])
    """
    settled = OWN_KEY.replace("groups", "settled")
    script = agent.register_script(settle)

    assert script(keys=[STREAM, FEEDBACK, settled], args=["done", entry]) == 1
    [[_, [(_, fields)]]] = client.xread({FEEDBACK: "0"})
    assert fields == {b"response": b"done"}
    agent.xtrim(STREAM, minid=entry)
    with pytest.raises(redis.exceptions.ResponseError, match=REFUSED):
        agent.eval("return redis.call('GET', 'secret')", 0)
