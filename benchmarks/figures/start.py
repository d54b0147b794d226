"""Start: from exec to the first answered `agent.ping`, and to `READY=1`.

The floor is the exec of an interpreter that imports redis-py and uvloop, subscribes and
answers. Both start with their files in the page cache and their byte code compiled.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..client import FEEDBACK, request
from ..place import CONTROL, NODE, START_WITHIN, Place
from ..proc import tree_time
from ..processes import BenchmarkError, floor
from ..results import Measure, Target, alone, compare

STARTS = 2  # in each round
TARGET = Target("agent", 500.0)
MILLI = 1e3  # milliseconds in a second
ECHO = "echo-start"


class Side:
    """Milliseconds of one side, round by round: until it answered, and of processor time."""

    def __init__(self) -> None:
        self.answered: list[list[float]] = []
        self.processor: list[list[float]] = []

    def add(self, answered: float, processor: float) -> None:
        """Keep one start, given in seconds."""
        self.answered.append([answered * MILLI])
        self.processor.append([processor * MILLI])


@contextmanager
def notify_socket(path: Path) -> Iterator[asyncio.Future[float]]:
    """A socket as a supervisor has one at *path*; gives when `READY=1` came: sd_notify(3)."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[float] = loop.create_future()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))

        def heard() -> None:
            if b"READY=1" in listener.recv(4096).split(b"\n") and not ready.done():
                ready.set_result(time.perf_counter())

        loop.add_reader(listener, heard)
        try:
            yield ready
        finally:
            loop.remove_reader(listener)
            path.unlink()


async def take(place: Place) -> list[Measure]:
    """Take the figure."""
    least, agent, ready = Side(), Side(), []
    # The first start of each compiles byte code and fills the page cache.
    await _start_floor(place, Side())
    await _start_agent(place, Side())
    for _ in range(place.settings.rounds * STARTS):
        await _start_floor(place, least)
        ready.append(await _start_agent(place, agent))
    against = "redis-py echo"
    return [
        compare("to the first answer", "ms", agent.answered, least.answered, against, TARGET),
        alone("to READY=1", "ms", ready, TARGET),
        compare("processor time until then", "ms", agent.processor, least.processor, against),
    ]


async def _start_floor(place: Place, side: Side) -> None:
    began = time.perf_counter()
    log = place.directory / "floor.log"
    with floor("echo", log, str(place.port), ECHO, FEEDBACK, "1") as process:
        answered = await place.first_answer(process, ECHO, lambda: ("echo", b"echo"))
        side.add(answered - began, tree_time(process.pid))


async def _start_agent(place: Place, side: Side) -> float:
    """Start and stop an agent; gives the milliseconds until `READY=1`."""
    path = place.directory / "notify"
    with notify_socket(path) as ready:
        began = time.perf_counter()
        with place.start_agent({"NOTIFY_SOCKET": str(path)}) as process:
            ping = await place.first_answer(process, CONTROL, lambda: request("agent.ping", NODE))
            side.add(ping - began, tree_time(process.pid))
            try:
                async with asyncio.timeout(START_WITHIN):
                    return (await ready - began) * MILLI
            except TimeoutError:
                raise BenchmarkError(f"no READY=1 within {START_WITHIN:g} s") from None
