"""Idle: memory, wake-ups and Redis commands of an agent that nobody asks anything.

The floor, a bare subscriber, is idle in the same seconds on the same server: it sends
nothing, so every Redis command that is counted is the agent's.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from ..client import FEEDBACK
from ..place import Place
from ..proc import Memory, memory, own_time, threads, tree_memory, wakeups
from ..processes import Process, floor
from ..results import Measure, Target, alone, compare

SETTLE = 10  # seconds of quiet before anything is read
WINDOW = 30  # seconds that are watched
JOBS = 1000  # no-op jobs before memory is read once more
MEMORY = Target("agent", 45.0)
# A heartbeat is a timer, a PING and its PONG, on a connection or two, every few seconds.
ONCE_A_SECOND = Target("agent", 1.0)


@dataclass(frozen=True)
class Reading:
    """Counters of one process: wake-ups, and seconds of processor time."""

    wakeups: int
    processor: float


def read(process: Process) -> Reading:
    """The counters as they stand."""
    return Reading(wakeups(process.pid), own_time(process.pid))


async def take(place: Place) -> list[Measure]:
    """Take the figure."""
    log = place.directory / "floor.log"
    with floor("receiver", log, str(place.port), "receiver", FEEDBACK) as least:
        async with place.agent() as agent:
            await asyncio.sleep(place.settings.scaled(SETTLE))
            measures = _memory("", agent, memory(least.pid))
            measures += await _watch(place, agent, least)
            for _ in range(place.settings.scaled(JOBS)):
                await place.call("noop")
            await asyncio.sleep(place.settings.scaled(SETTLE))
            after = f" after {place.settings.scaled(JOBS)} jobs"
            measures += _memory(after, agent, memory(least.pid))
    return measures


def _memory(suffix: str, agent: Process, least: Memory) -> list[Measure]:
    ours, against = memory(agent.pid), "redis-py subscriber"
    resident, share = f"resident memory{suffix}", f"proportional memory{suffix}"
    return [
        compare(resident, "MiB", [[ours.resident]], [[least.resident]], against, MEMORY),
        compare(share, "MiB", [[ours.proportional]], [[least.proportional]], against),
        alone(f"{share}, with its children", "MiB", [tree_memory(agent.pid)]),
    ]


async def _watch(place: Place, agent: Process, least: Process) -> list[Measure]:
    sides = agent, least
    commands, before, began = await _commands(place), [read(s) for s in sides], time.monotonic()
    await asyncio.sleep(place.settings.scaled(WINDOW))
    seconds, after = time.monotonic() - began, [read(s) for s in sides]
    sent = {
        name: calls - commands.get(name, 0)
        for name, calls in (await _commands(place)).items()
        if calls > commands.get(name, 0)
    }
    rates = [(b.wakeups - a.wakeups) / seconds for a, b in zip(before, after, strict=True)]
    used = [(b.processor - a.processor) / seconds * 1e6 for a, b in zip(before, after, strict=True)]
    names = ", ".join(sorted(sent))
    against, calls = "redis-py subscriber", sum(sent.values()) / seconds
    return [
        compare("wake-ups", "1/s", [[rates[0]]], [[rates[1]]], against, ONCE_A_SECOND),
        alone("Redis commands", "1/s", [calls], ONCE_A_SECOND, names),
        compare("processor time", "µs/s", [[used[0]]], [[used[1]]], against),
        alone("threads", "", [threads(agent.pid)]),
    ]


async def _commands(place: Place) -> dict[str, int]:
    """Calls of each Redis command so far, but for our own INFO."""
    found = {}
    for line in (await place.client.info("commandstats")).splitlines():
        name, _, fields = line.partition(":")
        if name.startswith("cmdstat_") and name != "cmdstat_info":
            found[name.removeprefix("cmdstat_")] = int(fields.split(",")[0].removeprefix("calls="))
    return found
