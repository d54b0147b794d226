"""Passed over: processor time for a message that this node has nothing to do with.

Requests for a node of another name, and messages that are no request at all. The floor
is a redis-py subscriber that receives the same bytes and does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..client import ANSWER_WITHIN, FEEDBACK, request
from ..place import CONTROL, NODE, Place
from ..proc import own_time
from ..processes import BenchmarkError, Process, floor
from ..results import Measure, Target, above, compare

MESSAGES = 50_000  # over all rounds
OTHER_NODE = "prx99b"
RECEIVER = "receiver"
END = "end"  # what the floor sends back
COSTS = Target("agent", 10.0)
MICRO = 1e6  # microseconds in a second
INVALID = (
    b'{"uuid":"18d0f568-4a6c-4775-a8a9-6beb2e0372a8","task":"noop","src":"benchmark","dst":',
    b'["uuid","18d0f568-4a6c-4775-a8a9-6beb2e0372a8","task","noop","src","benchmark"]',
    b'{"uuid":"\xff\xfe","task":"noop","src":"benchmark","dst":"*","options":{}}',
    b'{"task":"noop","src":"benchmark","dst":"*","options":{"feedback_channel":"benchmark-feedback"}}',
    b'{"uuid":"18d0f568-4a6c-4775-a8a9-6beb2e0372a8","task":"noop","src":"benchmark","dst":"*"}',
)


async def take(place: Place) -> list[Measure]:
    """Take the figure."""
    count = max(1, place.settings.scaled(MESSAGES) // place.settings.rounds)
    foreign = [request("noop", OTHER_NODE)[1] for _ in range(count)]
    invalid = [INVALID[number % len(INVALID)] for number in range(count)]
    log = place.directory / "floor.log"
    with floor("receiver", log, str(place.port), RECEIVER, FEEDBACK) as least:
        await place.first_answer(least, RECEIVER, lambda: (END, END.encode()))
        async with place.agent() as agent:
            strays = place.client.strays
            measures = await _compare(
                place, least, agent, "request for another node", foreign, COSTS
            )
            measures += await _compare(place, least, agent, "invalid message", invalid)
    if place.client.strays != strays:
        raise BenchmarkError("the agent answered a message that wants no answer")
    return measures


async def _compare(
    place: Place,
    least: Process,
    agent: Process,
    name: str,
    payloads: Sequence[bytes],
    target: Target | None = None,
) -> list[Measure]:
    theirs, ours = [], []
    warm_up = payloads[: len(payloads) // 10 or 1]
    await _floor(place, least, warm_up)
    await _agent(place, agent, warm_up)
    for _ in range(place.settings.rounds):
        theirs.append([await _floor(place, least, payloads)])
        ours.append([await _agent(place, agent, payloads)])
    processor, against = f"{name}, processor time", "redis-py subscriber"
    return [
        compare(processor, "µs", ours, theirs, against, target),
        above(f"{name}, on top of the floor", "µs", ours, theirs),
    ]


async def _floor(place: Place, process: Process, payloads: Sequence[bytes]) -> float:
    """Microseconds of the floor's processor time for each of *payloads*."""
    before = own_time(process.pid)
    ended = place.client.expect(END)
    await place.client.publish(RECEIVER, [*payloads, END.encode()])
    async with asyncio.timeout(ANSWER_WITHIN):
        await ended
    return (own_time(process.pid) - before) / len(payloads) * MICRO


async def _agent(place: Place, process: Process, payloads: Sequence[bytes]) -> float:
    """Microseconds of the agent's processor time for each of *payloads*.

    A channel keeps its order: when a request behind them is done, they have been read.
    """
    before = own_time(process.pid)
    await place.client.publish(CONTROL, payloads)
    await place.client.call(CONTROL, *request("agent.ping", NODE))
    return (own_time(process.pid) - before) / len(payloads) * MICRO
