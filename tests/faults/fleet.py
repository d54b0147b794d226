"""
Daemons that are meant to fail, durable requests for them, and who counts what became of those.

What a request has done is told by two traces: a line for each attempt that began, and a
file that can be made once, the work of an idempotent task. What was answered is read from
feedback streams.
"""

import json
import os
import random
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass

import redis

from ..acceptance.harness import World, redis_task, write_file
from ..acceptance.processes import PATIENCE
from ..acceptance.wire import CONTROL_CHANNEL, ENDS, decode

# The share of the long run, 1 for the whole of it: script/soak. Nothing gives the fast one.
SOAK = float(os.environ.get("SOAK") or 0)
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
REPORT = []  # lines for people
STREAM = "work"  # the control stream
ANSWERS = "answers"  # the feedback stream
PAGE = 1000  # entries read or written at once
LEASE = 10.0  # seconds; who is silent for longer has lost what it held
TAKE_OVER = 15.0  # seconds after a worker's death
# One write for a line: lines of several programs do not mix.
PROGRAM = """#!/bin/sh
exec 2>/dev/null
printf '%s %s %s\\n' "$NGCP_TASK_UUID" "$NGCP_TASK_ATTEMPT" "$1" >>"$0.begun"
[ "$2" = 0 ] || sleep "$2"
set -C  # O_EXCL
true >"$0.done/$NGCP_TASK_UUID.$3"
exit 0
"""


def report(line):
    """Say *line* now, with ``-s``, and at the end of a soak."""
    REPORT.append(line)
    print(line)


def amount(fast, long):
    """How many: *fast* in the ordinary suite, up to *long* in a soak."""
    return max(fast, int(long * SOAK))


def dice(name):
    """What a test does at random; the seed is printed, and SEED=… repeats it."""
    report(f"{name}: SEED={SEED}")
    return random.Random(f"{SEED} {name}")


def durable(pool="", **options):
    """``backend`` and ``backend_options`` of a task that reads `STREAM`, or *options*' own."""
    delivery = {"delivery": "anycast", "pool": pool} if pool else {}
    return {"backend": "redis_stream",
            "backend_options": {"control_stream": STREAM, **delivery, **options}}  # fmt: skip


def retried(attempts=50, **more):
    """A task's ``retry`` that outlasts the test."""
    return {"attempts": attempts, "backoff": {"base": 0.1, "max": 1}, **more}


@dataclass(frozen=True)
class Counts:
    """What became of requests; each request counts once for each node that has to answer.

    Attributes:
        asked: How many ends there should be.
        done, error: How many ended so.
        endless: How many have no end.
        twofold: How many have two or more that differ.
        begun: Attempts that began.
        doubled: Attempts that began more than once.
        worked: How many times the work of an idempotent task was done.
        idle: Requests told ``done`` without that work, or twice.
        unaccepted: Ended without ``accepted``: who took it died before it could say so.
    """

    asked: int
    done: int
    error: int
    endless: int
    twofold: int
    begun: int
    doubled: int
    worked: int
    idle: int
    unaccepted: int

    def __str__(self):
        return (
            f"{self.asked} ends awaited: {self.done} done, {self.error} error, "
            f"{self.endless} without end, {self.twofold} with two; {self.begun} attempts, "
            f"{self.doubled} of them twice; {self.worked} works, {self.idle} done without; "
            f"{self.unaccepted} without 'accepted'"
        )


class Fleet(World):
    """A world with durable requests in it.

    Args:
        settings: Of redis-server.

    Attributes:
        asked: uuid of a request to the names of the nodes that have to answer; None
            for one of them, whichever.
        answers: uuid of a response to the response.
    """

    def __init__(self, *settings):
        super().__init__(*settings)
        self.asked = {}
        self.answers = {}
        self.bus = self.server.client()
        self.backend = {"host": "127.0.0.1", "port": self.server.port}
        self.program = self.file("work", PROGRAM, 0o755)
        self._begun = self.file("work.begun", "", 0o666)
        self._done = self.program.with_name("work.done")
        self._done.mkdir()
        self._cursor = "-"

    def __exit__(self, *args):
        self.bus.close()
        super().__exit__(*args)

    def node(self, name, tasks, *, port=None, start=True, **parts):
        """A daemon with both Redis backends, reached by *port* if not directly.

        Args:
            name: The node's.
            tasks: Name of a task to its file's content without ``broker``; ``seconds`` tells
                how long a job takes, ``once`` what its work is called beside the request's
                uuid: the node's name where each node has to do it.
            parts: Of `Daemon`.
        """
        backend = {**self.backend, **({"port": port} if port else {})}
        files = {task: self._task(name, dict(content)) for task, content in tasks.items()}
        daemon = self.daemon(name, backend=backend, tasks=files, start=False, **parts)
        content = {**backend, "feedback_length": 10_000_000}
        write_file(daemon.config / "backends" / "redis_stream.yml", content)
        write_file(daemon.config / "backends" / "redis.yml", content)
        if start:
            daemon.start()
            self.wait_ready(daemon)
        return daemon

    def _task(self, node, content):
        words = [node, f"{content.pop('seconds', 0):g}", content.pop("once", "x")]
        options = {"run": str(self.program), "args": words}
        return {**redis_task("command", options), "timeout": 600, **content}

    def post(self, count, task, *, stream=STREAM, nodes=None, options=None, **fields):
        """Put *count* durable requests on *stream*; their uuids."""
        refs = []
        for start in range(0, count, PAGE):
            pipe = self.bus.pipeline(transaction=False)
            for body in self._requests(min(PAGE, count - start), task, options, fields):
                refs.append(body["uuid"])
                pipe.xadd(stream, {"request": json.dumps(body)})
            pipe.execute()
        self.asked.update((ref, nodes) for ref in refs)
        return refs

    def publish(self, count, task, *, nodes, options=None, **fields):
        """The same by pub/sub, for those who listen now."""
        pipe = self.bus.pipeline(transaction=False)
        bodies = self._requests(count, task, options, fields)
        for body in bodies:
            pipe.publish(CONTROL_CHANNEL, json.dumps(body))
        pipe.execute()
        self.asked.update((body["uuid"], nodes) for body in bodies)
        return [body["uuid"] for body in bodies]

    def _requests(self, count, task, options, fields):
        common = {"task": task, "src": "web01a", "dst": "*", **fields}
        options = {"feedback_stream": ANSWERS, **(options or {})}
        return [{"uuid": str(uuid.uuid4()), **common, "options": options} for _ in range(count)]

    def read(self):
        """Read what has come since the last time; all answers so far."""
        while page := self.bus.xrange(ANSWERS, self._cursor, count=PAGE):
            self._cursor = b"(" + page[-1][0]
            for _, fields in page:
                body = self.body(fields)
                self.answers[body["uuid"]] = body
        return self.answers

    def move(self, port, backend):
        """The bus is another server, which the daemons reach by *backend*."""
        self.bus.close()
        self.bus = redis.Redis(host="127.0.0.1", port=port, socket_timeout=30)
        self.backend = backend

    def begin_anew(self):
        """The feedback stream is a new one: its ids may be lower than those of the last."""
        self._cursor = "-"

    @staticmethod
    def body(fields):
        """The response that an entry of a feedback stream holds."""
        return decode(fields[b"response"])

    def of(self, ref):
        """The answers to *ref* so far."""
        return [body for body in self.read().values() if body["ref"] == ref]

    def ends(self):
        """``(uuid of a request, node or None)`` to its ends, ``(status, reason)`` each."""
        found = defaultdict(list)
        for body in self.read().values():
            if body["status"] in ENDS and body["ref"] in self.asked:
                node = None if self.asked[body["ref"]] is None else body["src"]
                found[body["ref"], node].append((body["status"], body["reason"]))
        return found

    def due(self, refs=None):
        """What has to end, as the keys of `ends`."""
        chosen = self.asked if refs is None else refs
        return {(ref, node) for ref in chosen for node in self.asked[ref] or (None,)}

    def missing(self, refs=None):
        """What has not ended yet."""
        return self.due(refs) - self.ends().keys()

    def wait(self, seconds, refs=None):
        """Until all has ended, or *seconds* long; how long it took."""
        start = time.monotonic()
        looked = start
        while self.missing(refs) and time.monotonic() < start + seconds * PATIENCE:
            time.sleep(max(0.1, time.monotonic() - looked))  # to count takes its time, too
            looked = time.monotonic()
        return time.monotonic() - start

    def begun(self, ref=None):
        """Attempts as ``(uuid, attempt, node)``, each with how often it began."""
        lines = (tuple(line.split()) for line in self._begun.read_text().splitlines())
        return Counter(line for line in lines if ref in (None, line[0]))

    def worked(self):
        """What has been worked: ``UUID.x``, or ``UUID.NODE`` where each node does it."""
        return {path.name for path in self._done.iterdir()}

    def counts(self, refs=None):
        """What became of *refs*, by default of all requests."""
        ends, due = self.ends(), self.due(refs)
        asked = {ref for ref, _ in due}
        last = [ends[one] for one in due if one in ends]
        accepted = {b["ref"] for b in self.answers.values() if b["status"] == "accepted"}
        attempts = Counter(
            (ref, attempt, node if self.asked[ref] else None)
            for ref, attempt, node in self.begun().elements()
            if ref in asked
        )
        worked = {name for name in self.worked() if name.partition(".")[0] in asked}
        done = {one for one in due if one in ends and ends[one][0][0] == "done"}
        return Counts(
            len(due), len(done), len(last) - len(done), len(due) - len(last),
            sum(len(one) > 1 for one in last), len(attempts),
            sum(times > 1 for times in attempts.values()), len(worked),
            len({f"{ref}.{node or 'x'}" for ref, node in done} - worked),
            len(asked - accepted),
        )  # fmt: skip

    def judge(self, what, refs=None):
        """Report the counts, and see that nothing is lost, told twice or done twice."""
        self.wait(0, refs)
        time.sleep(0.5)  # for what should not come
        counts = self.counts(refs)
        report(f"{what}: {counts}")
        due = self.due(refs)
        reasons = Counter(
            reason
            for one, ends in self.ends().items()
            for status, reason in ends
            if status != "done" and one in due
        )
        for reason, times in reasons.most_common(5):
            report(f"  {times} x {reason}")
        assert (counts.endless, counts.twofold, counts.doubled, counts.idle) == (0, 0, 0, 0), (
            f"{what}: {counts}; {[self.of(ref) for ref, _ in list(self.missing(refs))[:3]]}"
        )
        return counts

    def held(self):
        """Requests that some group of `STREAM` has taken and not given up."""
        return sum(group["pending"] for group in self.bus.xinfo_groups(STREAM))

    @property
    def dead(self):
        """How many dead letters there are."""
        return self.bus.xlen(f"ngcp-task-agent:{{{STREAM}}}:dead")

    def kill(self, daemon):
        """End it without a word."""
        daemon.process.kill()
        daemon.process.wait(10)

    def kill_server(self):
        self.server.process.kill()
        self.server.process.wait(10)
