"""Builders with defaults, so that a test names only what it is about; and the fakes."""

import asyncio
import json
import time
import uuid

import psutil

from ngcp_task_agent.destination import Node
from ngcp_task_agent.dispatch import Task
from ngcp_task_agent.interfaces import BackendState, Delivery, Job

NODE = Node("prx01a", (), {"state": frozenset({"active"}), "role": frozenset({"proxy", "lb"})})


def request(**fields):
    """The bytes of a valid request for task "ping" on any node, with *fields* replaced."""
    default = {
        "uuid": str(uuid.uuid4()),
        "task": "ping",
        "src": "web01a",
        "dst": "*",
        "options": {"feedback_channel": "fb"},
        "data": None,
    }
    return json.dumps({**default, **fields}).encode()


def job(**fields):
    """An accepted request for task "ping"."""
    return Job(**{"task": "ping", "uuid": "u", "src": "web01a", **fields})


def task(broker=None, **fields):
    """The task "ping" on the in-memory backend "memory"."""
    default = {"name": "ping", "backend": "memory", "control_channel": "control"}
    return Task(broker=broker or Says(b"pong"), **{**default, **fields})


async def until(condition, seconds=5.0):
    """Poll *condition* every 5 ms; fails after *seconds* instead of hanging."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (a condition is anything)
            await asyncio.sleep(0.005)


def alive(*pids):
    """Those of *pids* that run; without any, all descendants of this process that do."""
    mine = psutil.Process().children(recursive=True)
    found = [p for p in psutil.process_iter() if p.pid in pids] if pids else mine
    return {process.pid for process in found if _runs(process)}


def _runs(process):
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class Says:
    """A broker that writes the given pieces, and then raises *error* or sets *result*."""

    def __init__(self, *pieces, error=None, result=...):
        self.pieces = pieces
        self.error = error
        self.value = result
        self.jobs = []

    async def run(self, job, output):
        self.jobs.append(job)
        for piece in self.pieces:
            await output.write(piece)
        if self.value is not ...:
            output.result(self.value)
        if self.error is not None:
            raise self.error

    async def close(self):
        pass


class Waits(Says):
    """A broker whose jobs go on until `free` is set, or they are cancelled."""

    def __init__(self):
        super().__init__()
        self.free = asyncio.Event()
        self.running = 0

    async def run(self, job, output):
        self.running += 1
        self.jobs.append(job)
        try:
            await self.free.wait()
        finally:
            self.running -= 1


class Stubborn(Waits):
    """A broker that does not heed its cancellation and ends only once `free` is set."""

    async def run(self, job, output):
        self.running += 1
        self.jobs.append(job)
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                continue
        await output.write(b"too late")
        self.running -= 1


class MemoryBackend:
    """A backend without a transport: what is published here is received here.

    Attributes:
        sent: Responses as bytes, by address.
    """

    shared = True

    def __init__(self):
        self.on_change = lambda: None
        self.host = None
        self.sent = {}
        self._inbox = asyncio.Queue()
        self._channels = {"control"}

    def publish(self, payload, channel="control", **fields):
        """What a client does."""
        if channel in self._channels:
            self._inbox.put_nowait(Delivery(payload, channel, **fields))

    def arrived(self):
        """Take all that would be received now."""
        return [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]

    def responses(self, address="fb"):
        """What a client hears."""
        return [json.loads(payload) for payload in self.sent.get(address, [])]

    def statuses(self, address="fb"):
        """The `status` of each response to *address*."""
        return [response["status"] for response in self.responses(address)]

    def subscription(self, options):
        return options.text("control_channel", "control")

    async def open(self):
        pass

    def listen(self, channels):
        self._channels = set(channels)

    async def receive(self):
        while (delivery := await self._inbox.get()) is not None:
            yield delivery

    def deliver(self, address, payload, stream=""):
        for place in filter(None, (address, stream)):
            self.sent.setdefault(place, []).append(payload)

    async def now(self):
        return time.time()

    async def flush(self, address):
        pass

    async def stop(self):
        self._inbox.put_nowait(None)

    async def close(self):
        pass

    def state(self):
        return BackendState(True, True, "memory")


class HeldRequest:
    """A claim in memory; what becomes of it is written down.

    Attributes:
        done: What was done with it, as tuples that begin with the method's name.
        held: Whether it is still ours; False makes each method refuse.
    """

    def __init__(self, attempt=1, taken_over=False, pool="", posted=0.0):
        self.attempt = attempt
        self.taken_over = taken_over
        self.pool = pool
        self.posted = posted
        self.on_lost = lambda: None
        self.done = []
        self.held = True

    async def settle(self, address, payload, stream="", failure=""):
        return self._note("settle", json.loads(payload)["status"], failure, stream)

    async def retry(self, delay):
        return self._note("retry", delay)

    async def release(self, delay=0.0):
        return self._note("release", delay)

    async def drop(self, failure=""):
        return self._note("drop", failure)

    def lose(self):
        """Somebody else takes it over."""
        self.held = False
        self.on_lost()

    def _note(self, *words):
        if self.held:
            self.done.append(words)
        return self.held
