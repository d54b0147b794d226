"""Commands: how many programs that end at once are run in a second, 16 side by side.

The floor is a process that starts them with `subprocess.Popen` and waits on pidfds, with
no request coming in and no answer going out. It has both processors to itself, while the
agent shares them with Redis and the client.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

from ..place import AT_ONCE, Place, can_change_user
from ..proc import own_time, tree_time
from ..processes import Process, floor
from ..results import Measure, Target, compare

JOBS = 600  # in each round
JOBS_AS_USER = 300
WARM_UP = 64
TARGET = Target("ratio", 0.5, at_least=True)
MICRO = 1e6  # microseconds in a second
TRUE = ("/bin/true",)
TRUE_AS_NOBODY = (
    *("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--init-groups"),
    *TRUE,
)


class Side:
    """Samples of one side, one a round: jobs a second, microseconds a job."""

    def __init__(self) -> None:
        self.rate: list[list[float]] = []
        self.own: list[list[float]] = []
        self.all: list[list[float]] = []

    def add(self, count: int, seconds: float, own: float, everything: float) -> None:
        """Keep a round of *count* jobs, with the seconds that it took."""
        self.rate.append([count / seconds])
        self.own.append([own / count * MICRO])
        self.all.append([everything / count * MICRO])


class Spawner:
    """The floor; *pipes* says whether it reads what the programs print."""

    def __init__(self, process: Process, argv: Sequence[str], pipes: bool) -> None:
        self._process = process
        self._task = {"argv": argv, "at_once": AT_ONCE, "pipes": pipes}
        self.side = Side()

    async def round(self, count: int, keep: bool = True) -> None:
        """Run *count* programs; this process sleeps meanwhile."""
        line = json.dumps({**self._task, "count": count})
        answer = json.loads(await asyncio.to_thread(self._process.ask, line))
        if keep:
            self.side.add(count, answer["seconds"], answer["own"], answer["all"])


class Agent:
    """The agent, asked for *task*."""

    def __init__(self, place: Place, process: Process, task: str) -> None:
        self._place = place
        self._pid = process.pid
        self._task = task
        self.side = Side()

    async def round(self, count: int, keep: bool = True) -> None:
        """Have *count* jobs done, `AT_ONCE` in flight."""
        left = iter(range(count))

        async def keep_one_in_flight() -> None:
            for _ in left:
                await self._place.call(self._task)

        own, everything = own_time(self._pid), tree_time(self._pid)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(keep_one_in_flight())
        seconds = time.perf_counter() - began
        own, everything = own_time(self._pid) - own, tree_time(self._pid) - everything
        if keep:
            self.side.add(count, seconds, own, everything)


async def take(place: Place) -> list[Measure]:
    """Take the figure."""
    with floor("spawner", place.directory / "floor.log", pipes=True) as process:
        async with place.agent() as agent:
            pipes = Spawner(process, TRUE, pipes=True)
            null = Spawner(process, TRUE, pipes=False)
            ours = Agent(place, agent, "true")
            await _interleave(place, [null, pipes, ours], JOBS)
            measures = _measures("", ours.side, pipes.side, "Popen, pidfd")
            measures.append(
                compare("jobs", "1/s", ours.side.rate, null.side.rate, "the same, output unread")
            )
            if can_change_user():
                other = Spawner(process, TRUE_AS_NOBODY, pipes=True)
                theirs = Agent(place, agent, "true_as_nobody")
                await _interleave(place, [other, theirs], JOBS_AS_USER)
                measures += _measures(" as nobody", theirs.side, other.side, "the same, setpriv")
    return measures


async def _interleave(place: Place, sides: Sequence[Spawner | Agent], count: int) -> None:
    for side in sides:
        await side.round(WARM_UP, keep=False)
    for _ in range(place.settings.rounds):
        for side in sides:
            await side.round(place.settings.scaled(count))


def _measures(suffix: str, agent: Side, least: Side, against: str) -> list[Measure]:
    own, everything = "processor time a job", "with the program's own"
    return [
        compare(f"jobs{suffix}", "1/s", agent.rate, least.rate, against, TARGET),
        compare(f"{own}{suffix}", "µs", agent.own, least.own, against),
        compare(f"{own}{suffix}, {everything}", "µs", agent.all, least.all, against),
    ]
