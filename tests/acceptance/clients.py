"""The four generations of clients in the field (protocol 5.12), as faithful as they are short.

Each subscribes first, then publishes, and reassembles nothing: of a chunked result it has what
came last.
"""

import json
import time
from dataclasses import dataclass, field

from .processes import until
from .wire import decode


@dataclass
class Outcome:
    """What a client tells its caller.

    Attributes:
        finished: False when it gave up at a time limit.
        failed: Why the whole call counts as failed, ``""`` when it does not.
        messages: All that was read, in order.
        results: The last message of each ``src``.
        seconds: From the request to the end.
    """

    finished: bool = False
    failed: str = ""
    messages: list = field(default_factory=list)
    results: dict = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def data(self):
        return {src: body["data"] for src, body in self.results.items()}

    def count(self, *statuses):
        return sum(body["status"] in statuses for body in self.messages)


class Call:
    """One request under way: a subscription, and the time since it was published."""

    def __init__(self, redis, control, body):
        self.outcome = Outcome()
        self.pubsub = redis.pubsub()
        channel = body["options"]["feedback_channel"]
        self.pubsub.subscribe(channel)
        until(lambda: (self.pubsub.get_message(timeout=0.1) or {}).get("type") == "subscribe")
        self.start = time.monotonic()
        redis.publish(control, json.dumps(body))

    @property
    def seconds(self):
        return time.monotonic() - self.start

    def read(self, seconds):
        """Return the next response, or None when none comes within *seconds*."""
        seconds = max(seconds, 0.001)
        message = self.pubsub.get_message(ignore_subscribe_messages=True, timeout=seconds)
        if not message:
            return None
        body = decode(message["data"])
        self.outcome.messages.append(body)
        self.outcome.results[body["src"]] = body
        return body

    def end(self, finished, failed=""):
        self.outcome.finished = finished
        self.outcome.failed = failed
        self.outcome.seconds = self.seconds
        self.pubsub.close()
        return self.outcome


def generation_a(redis, control, body):
    """The first message that is not accepted ends it, the last one wins, 2 s."""
    call = Call(redis, control, body)
    last = None
    while call.seconds < 2:
        message = call.read(2 - call.seconds)
        last = message or last
        if message and message["status"] != "accepted":
            return call.end(True, "" if message["status"] == "done" else message["reason"])
    return call.end(False, "no end within 2 s" if last else "no answer within 2 s")


def generation_b(redis, control, body):
    """A map by src; 500 ms after every src is done; 2 s for the first, 5 s in all.

    The first error ends it, and a single rejected fails the whole call.
    """
    call = Call(redis, control, body)
    states = {}
    settled = None
    while call.seconds < (5 if states else 2):
        message = call.read(0.02)
        if message:
            states[message["src"]] = message["status"]
            if message["status"] in ("error", "rejected"):
                return call.end(True, message["reason"])
        if not states or set(states.values()) != {"done"}:
            settled = None
        elif settled is None:
            settled = call.seconds
        elif call.seconds - settled >= 0.5:
            return call.end(True)
    return call.end(False, "time limit")


def generation_c(redis, control, body):
    """The same map, finished when each src is done or error, 10 s."""
    call = Call(redis, control, body)
    states = {}
    while call.seconds < 10:
        message = call.read(10 - call.seconds)
        if message:
            states[message["src"]] = message["status"]
        if states and set(states.values()) <= {"done", "error"}:
            errors = [m["reason"] for m in call.outcome.results.values() if m["status"] == "error"]
            return call.end(True, "; ".join(errors))
    return call.end(False, "time limit")


def generation_d(redis, control, body):
    """Counts: accepted > 0 and done + error ≥ accepted, 2 s for the first accepted, 10 s in all.

    It looks every 100 ms only, so several messages are read at one look.
    """
    call = Call(redis, control, body)
    while call.seconds < 10:
        while call.read(0.001):
            pass
        accepted = call.outcome.count("accepted")
        if accepted and call.outcome.count("done", "error") >= accepted:
            errors = [m["reason"] for m in call.outcome.messages if m["status"] == "error"]
            return call.end(True, "; ".join(errors))
        if not accepted and call.seconds >= 2:
            break
        time.sleep(0.1)
    return call.end(False, "time limit")


GENERATIONS = {
    "a": generation_a,
    "b": generation_b,
    "c": generation_c,
    "d": generation_d,
}
