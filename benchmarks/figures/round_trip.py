"""Round trip: a request is published, its last answer is received.

The floor is a process of redis-py that sends back what it gets. Both sides have the
same client, on redis-py and uvloop, one request at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import redis.asyncio

from ..client import request
from ..place import CONTROL, NODE, START_WITHIN, Place
from ..proc import own_time
from ..processes import BenchmarkError, Process, floor
from ..results import Measure, Target, compare

EXCHANGES = 600  # in each round
WARM_UP = 200  # exchanges before the first round
FEEDBACK = "benchmark-round-trip"
ONCE, TWICE = "echo-once", "echo-twice"
TARGET = Target("ratio", 2.0)
MICRO = 1e6  # microseconds in a second


class Side:
    """One side of the comparison, and its samples in microseconds, round by round."""

    def __init__(self, process: Process, channel: str, answers: int) -> None:
        self._process = process
        self._channel = channel
        self._answers = answers
        self.first: list[list[float]] = []
        self.last: list[list[float]] = []
        self.processor: list[list[float]] = []

    async def round(self, client: Any, messages: AsyncIterator[Any], count: int) -> None:
        """Do *count* exchanges and keep the times of the first and the last answer."""
        first, last = [], []
        used = own_time(self._process.pid)
        for _ in range(count):
            payload = request("noop", NODE, FEEDBACK)[1]
            began = time.perf_counter()
            await client.publish(self._channel, payload)
            answer = (await anext(messages))["data"]
            first.append((time.perf_counter() - began) * MICRO)
            for _ in range(self._answers - 1):
                self._check(answer, "accepted")
                answer = (await anext(messages))["data"]
            last.append((time.perf_counter() - began) * MICRO)
            self._check(answer, "done")
        self.first.append(first)
        self.last.append(last)
        self.processor.append([(own_time(self._process.pid) - used) / count * MICRO])

    def forget(self) -> None:
        """Drop all samples: it was the warm-up."""
        for samples in (self.first, self.last, self.processor):
            samples.clear()

    def _check(self, answer: bytes, status: str) -> None:
        if self._channel == CONTROL and orjson.loads(answer)["status"] != status:
            raise BenchmarkError(f"expected {status}, got {answer!r}")


@asynccontextmanager
async def subscribed(port: int) -> AsyncIterator[tuple[Any, AsyncIterator[Any]]]:
    """A redis-py client, and the messages that come in on `FEEDBACK`."""
    async with (
        redis.asyncio.Redis(port=port) as client,
        client.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe(FEEDBACK)
        yield client, pubsub.listen()


async def take(place: Place) -> list[Measure]:
    """Take the figure."""
    with _echo(place, ONCE, 1) as once, _echo(place, TWICE, 2) as twice:
        async with place.agent() as agent, subscribed(place.port) as (client, messages):
            await _listening(client, {ONCE: once, TWICE: twice})
            sides = Side(once, ONCE, 1), Side(twice, TWICE, 2), Side(agent, CONTROL, 2)
            for side in sides:
                await side.round(client, messages, WARM_UP)
                side.forget()
            for _ in range(place.settings.rounds):
                for side in sides:
                    await side.round(client, messages, place.settings.scaled(EXCHANGES))
    return _measures(*sides)


def _echo(place: Place, channel: str, answers: int) -> Process:
    log = place.directory / f"{channel}.log"
    return floor("echo", log, str(place.port), channel, FEEDBACK, str(answers))


async def _listening(client: Any, floors: Mapping[str, Process]) -> None:
    async with asyncio.timeout(START_WITHIN):
        while not all(count for _, count in await client.pubsub_numsub(*floors)):
            for process in floors.values():
                process.check_alive()
            await asyncio.sleep(0.01)


def _measures(once: Side, twice: Side, agent: Side) -> list[Measure]:
    echo, two = "redis-py echo", "redis-py echo, two answers"
    return [
        compare("published to done", "µs", agent.last, once.last, echo, TARGET),
        compare("published to accepted", "µs", agent.first, once.first, echo),
        compare("published to done", "µs", agent.last, twice.last, two),
        compare("processor time a request", "µs", agent.processor, once.processor, echo),
        compare("processor time a request", "µs", agent.processor, twice.processor, two),
    ]
