"""The local backend: one JSON message a line on a UNIX socket, with Redis and without."""

import json
import socket

import pytest

from .harness import command, free_port
from .processes import until
from .wire import decode, request

pytestmark = pytest.mark.redis

TASKS = {"hello": command("/bin/echo", "hello"), "slow": command("/bin/sleep", "0.5")}


class Connection:
    """A client on the daemon's socket; it reads only what is sent to this connection."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()

    def send(self, task, dst="local", **fields):
        body = request(task, dst, feedback="mine", **fields)
        self.socket.sendall(json.dumps(body).encode() + b"\n")
        return body["uuid"]

    def end_of(self, ref):
        """Read up to the terminal message of *ref*; return all that was read."""
        bodies = []
        while not bodies or bodies[-1]["ref"] != ref or bodies[-1]["status"] == "accepted":
            bodies.append(decode(self.lines.readline()))
        return bodies

    def end_of_progress(self, ref):
        """Read over the live output of *ref* to its terminal message, and return that."""
        while True:
            body = decode(self.lines.readline())
            if body["ref"] == ref and body["status"] not in ("accepted", "progress"):
                return body


@pytest.fixture
def node(world):
    """A daemon whose Redis is not there."""
    daemon = world.daemon(port=free_port(), tasks=TASKS, ready=False)
    until(daemon.socket.exists, 10, "the socket")
    return daemon


def statuses(bodies):
    return [(body["ref"], body["status"]) for body in bodies]


@pytest.mark.parametrize("dst", ["local", "localhost", "sp1", "*"])
def test_requests_are_answered_without_redis(node, dst):
    """The same request, the same answers."""
    with Connection(node.socket) as client:
        ref = client.send("hello", dst)
        bodies = client.end_of(ref)

    assert statuses(bodies) == [(ref, "accepted"), (ref, "done")]
    assert bodies[1]["data"] == "hello\n"


def test_rejected_and_silence_are_as_on_the_bus(node):
    """The rules of part 5 hold here too."""
    with Connection(node.socket) as client:
        client.send("hello", "web99")
        client.send("no_such_task", "*")
        named = client.send("no_such_task", "sp1")
        last = client.send("agent.ping")
        bodies = client.end_of(last)

    assert statuses(bodies) == [(named, "rejected"), (last, "accepted"), (last, "done")]


def test_answers_go_to_the_connection_that_asked_alone(node):
    """Two clients with the same feedback channel; a request waits for nobody else's job."""
    with Connection(node.socket) as one, Connection(node.socket) as other:
        slow = one.send("slow")
        quick = other.send("hello")
        other_bodies = other.end_of(quick)
        one_bodies = one.end_of(slow)
        ping = other.send("agent.ping")
        other_bodies += other.end_of(ping)

    assert {ref for ref, _ in statuses(one_bodies)} == {slow}
    assert {ref for ref, _ in statuses(other_bodies)} == {quick, ping}


def test_a_client_that_goes_away_harms_nobody(node):
    """Its job runs on, junk is passed over, and the next client is served."""
    with Connection(node.socket) as client:
        client.send("slow")
    with Connection(node.socket) as client:
        client.socket.sendall(b"junk\n\n[]\n\xff\xfe\n{\n")
    with Connection(node.socket) as client:
        client.socket.sendall(b'{"half a line')
    with Connection(node.socket) as client:
        bodies = client.end_of(client.send("hello"))

    assert bodies[-1]["data"] == "hello\n"
    assert node.alive


def test_the_socket_is_not_for_everybody(node):
    """Access is by file mode: nobody else may write to it."""
    assert node.socket.stat().st_mode & 0o002 == 0
