"""Real daemons with durable tasks, on several servers; and what their clients find."""

import asyncio
import json
import time
import uuid
from contextlib import contextmanager

import redis.exceptions

from ngcp_task_agent.backends.redis_server import RedisServer
from ngcp_task_agent.client import AsyncClient, ClientError
from ngcp_task_agent.options import Options

from .harness import Daemon, write_file

STREAM = "ngcp-task-agent-stream"
AWAY = (redis.exceptions.RedisError, OSError, TimeoutError)
RETRY = {"attempts": 5, "backoff": {"base": 0.2, "max": 1, "jitter": 0},
         "on": ["error", "timeout", "lost", "stopped"]}  # fmt: skip


def durable(run, *args, stream=STREAM, pool="", **task):
    """A task file's content; one member of *pool* runs each request."""
    one = {"delivery": "anycast", "pool": pool} if pool else {}
    return {
        "backend": "redis_stream",
        "backend_options": {"control_stream": stream, **one},
        "broker": "command",
        "broker_options": {"run": run, "args": list(map(str, args))},
        **task,
    }


@contextmanager
def daemons(place, backend, tasks, count=2, **stream_backend):
    """Daemons n0, n1, … with both backends; shown with their logs, and gone, at the end."""
    made = []
    try:
        for number in range(count):
            folder = place / f"n{number}"
            folder.mkdir(mode=0o755)
            daemon = Daemon(folder, f"n{number}", backend, tasks=tasks)
            write_file(daemon.config / "backends" / "redis_stream.yml",
                       {**backend, **stream_backend})  # fmt: skip
            daemon.start()
            made.append(daemon)
        yield made
    finally:
        for daemon in made:
            daemon.clear_away()


def server_of(backend):
    """The tests' own way to the servers that *backend* names."""
    return RedisServer(Options(dict(backend), "test"))


async def connected(daemon, seconds=10.0):
    """Wait until both of its backends are, by what it says itself; seconds that took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            async with AsyncClient.local(str(daemon.socket)) as client:
                result = await client.send("agent.ping", dst="localhost", timeout=2)
            states = result.runs[0].data["backends"].values()
        except (ClientError, IndexError):  # it has only begun
            states = ()
        if states and all(state["connected"] for state in states):
            return time.monotonic() - began
        await asyncio.sleep(0.1)
    raise AssertionError(f"{daemon.name} is not connected within {seconds} s")


def request(task, feedback, dst="*", **fields):
    """A request as any client may put it together."""
    ref = str(uuid.uuid4())
    return ref, {"uuid": ref, "task": task, "src": "web01a", "dst": dst,
                 "options": {"feedback_stream": feedback, **fields.pop("options", {})},
                 **fields}  # fmt: skip


async def post(client, ref_and_body, stream=STREAM):
    """XADD; its uuid."""
    ref, body = ref_and_body
    await client.execute_command("XADD", stream, "*", "request", json.dumps(body))
    return ref


async def statuses(client, feedback):
    """What stands in a feedback stream: uuid of a request to its statuses in order, each
    response once, as its reader has it."""
    found, seen = {}, set()
    for _, fields in await client.xrange(feedback):
        response = json.loads(fields[b"response"])
        if response["uuid"] not in seen:
            seen.add(response["uuid"])
            found.setdefault(response["ref"], []).append(response["status"])
    return found


async def all_ended(client, feedback, refs, seconds, nodes=1):
    """Wait until each request has *nodes* ends; what is there then."""
    end = time.monotonic() + seconds
    found = {}
    while time.monotonic() < end:
        try:
            found = await statuses(client, feedback)
        except AWAY:
            pass
        if all(ends(found.get(ref, ())) >= nodes for ref in refs):
            return found
        await asyncio.sleep(0.1)
    missing = [ref for ref in refs if ends(found.get(ref, ())) < nodes]
    raise AssertionError(f"{len(missing)} of {len(refs)} without an end: {missing[:3]}")


def ends(said):
    """How many of these statuses are terminal."""
    return sum(status in ("done", "error", "rejected") for status in said)
