"""The bus as a client sees it: requests out, responses in, nothing assumed about the daemon."""

import json
import time
import uuid
from dataclasses import dataclass

from .processes import PATIENCE, until

CONTROL_CHANNEL = "ngcp-task-agent-redis"
ABSENT = object()  # a field which is left out of the request
ENDS = ("done", "error", "rejected")
# Of a response to a client that asked for no extension.
FIELDS = {
    "uuid", "ref", "task", "src", "dst", "timestamp", "datetime", "chunk", "chunks", "status",
    "reason", "data",
}  # fmt: skip
ACTIVE_PROXIES = "*|state=active;role=proxy"


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON; one such message kills a Node client")


def decode(raw):
    """Return the object in *raw*, as strictly as the strictest client reads it."""
    body = json.loads(raw.decode("utf-8"), parse_constant=refuse_constant)
    assert isinstance(body, dict), body
    return body


def request(task, dst="*", *, feedback="nobody", data=ABSENT, options=None, **fields):
    """Return a request of protocol part 2; a field given as ABSENT is left out."""
    body = {
        "uuid": str(uuid.uuid4()),
        "task": task,
        "src": "web01a",
        "dst": dst,
        "options": {"feedback_channel": feedback, **(options or {})},
        "data": data,
        **fields,
    }
    return {key: value for key, value in body.items() if value is not ABSENT}


@dataclass(frozen=True)
class Message:
    """One response; *at* is the monotonic time when it was read, in seconds."""

    at: float
    raw: bytes
    body: dict


class Listener:
    """A feedback channel that is subscribed before anything is published.

    Args:
        redis: A redis-py client without decoding; the listener closes it.
        nodes: Called for the number of daemons which answer a ping to ``*``.
        channel: The feedback channel; a new one by default.
        control: Where requests are published.
    """

    def __init__(self, redis, nodes=lambda: 1, channel=None, control=CONTROL_CHANNEL):
        self.redis = redis
        self.nodes = nodes
        self.control = control
        self.channel = channel or f"test-{uuid.uuid4()}"
        self.heard = []
        self.sent = {}
        self.pubsub = redis.pubsub()
        self.pubsub.subscribe(self.channel)
        until(self._subscribed, 5, "the confirmation of SUBSCRIBE")

    def _subscribed(self):
        message = self.pubsub.get_message(timeout=0.1)
        return message and message["type"] == "subscribe"

    def close(self):
        self.pubsub.close()
        self.redis.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def make(self, task, dst="*", **fields):
        return request(task, dst, feedback=self.channel, **fields)

    def send(self, task, dst="*", **fields):
        """Publish one request and return its uuid."""
        return self.send_all([self.make(task, dst, **fields)])[0]

    def send_all(self, bodies):
        """Publish *bodies* in one burst and return their uuids."""
        pipe = self.redis.pipeline(transaction=False)
        for body in bodies:
            pipe.publish(self.control, json.dumps(body))
        refs = [body.get("uuid") for body in bodies]
        now = time.monotonic()
        self.sent.update((str(ref), now) for ref in refs)
        pipe.execute()
        return refs

    def hear(self, seconds=0.05):
        """Read one message if it comes within *seconds*."""
        message = self.pubsub.get_message(ignore_subscribe_messages=True, timeout=seconds)
        if not message:
            return None
        raw = message["data"]
        heard = Message(time.monotonic(), raw, decode(raw))
        self.heard.append(heard)
        return heard

    def hear_until(self, condition, seconds=5.0, what="the awaited response"):
        """Read messages until *condition* is true, for *seconds* at most."""
        end = time.monotonic() + seconds * PATIENCE
        while not condition():
            if time.monotonic() >= end:
                seen = [(m.body["src"], m.body["task"], m.body["status"]) for m in self.heard]
                raise AssertionError(f"{what} did not come within {seconds} s; heard {seen[-40:]}")
            self.hear()

    def of(self, ref):
        """Return the bodies which answer *ref*, in the order in which they came."""
        return [message.body for message in self.heard if message.body.get("ref") == ref]

    def statuses(self, ref):
        return [body["status"] for body in self.of(ref)]

    def ended(self, ref):
        """Count the complete last answers to *ref*; of a chunked one the last part counts."""
        return sum(b["status"] in ENDS and b["chunk"] == b["chunks"] for b in self.of(ref))

    def talk(self, ref, ends=1, seconds=12.0):
        """Read until *ref* has been answered by *ends* nodes; return all of its messages."""
        self.hear_until(lambda: self.ended(ref) >= ends, seconds, f"the end of {ref}")
        return self.of(ref)

    def talk_all(self, refs, ends=1, seconds=12.0):
        for ref in refs:
            self.talk(ref, ends, seconds)
        return [self.of(ref) for ref in refs]

    def ask(self, task, dst="*", *, ends=1, seconds=12.0, **fields):
        """Send one request and return the messages that answer it."""
        return self.talk(self.send(task, dst, **fields), ends, seconds)

    def fence(self, seconds=10.0):
        """Return once every node has handled all that was published before.

        A node reads the bus in order and answers on one connection, so the answer to a ping
        comes after whatever it has to say at once about an earlier request.
        """
        ref = self.send("agent.ping")
        self.talk(ref, self.nodes(), seconds)

    def at(self, ref, *statuses):
        """Return when the first answer to *ref* with one of *statuses* was read."""
        return next(
            m.at for m in self.heard if m.body.get("ref") == ref and m.body["status"] in statuses
        )


def answered(listener, dst, seconds):
    """Ping *dst* until it answers, for *seconds* at most; return the last answer's body."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ref = listener.send("agent.ping", dst)
        turn = min(time.monotonic() + 0.2, end)
        while time.monotonic() < turn and not listener.ended(ref):
            listener.hear()
        if listener.ended(ref):
            return listener.of(ref)[-1]
    raise AssertionError(f"no answer from {dst} within {seconds} s")
