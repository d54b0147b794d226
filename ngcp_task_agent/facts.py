"""
What is true of this node now: collects the fact sources' readings, knows their age.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .destination import Node
from .interfaces import FactSource, Reading
from .presence import Fact

FIRST_READING = 2.0  # seconds the start waits for slow sources

log = logging.getLogger(__name__)


class Age(NamedTuple):
    """How old a source's last reading is.

    Attributes:
        source: Its name for people; two of one kind may have the same.
        age: Seconds; infinite if there was none.
        max_age: Seconds from which it matches nothing.
    """

    source: str
    age: float
    max_age: float


class Facts:
    """The node as `dst` sees it.

    Args:
        name: Name given by configuration; empty to ask the sources.
        aliases: Further names.
        fixed: Facts given by configuration; they win over the sources'.
        sources: Asked in the background; the first that knows a key wins.
        host_name: The name if nobody knows better.
        clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        name: str,
        aliases: Sequence[str],
        fixed: Mapping[str, frozenset[str]],
        sources: Sequence[FactSource],
        host_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._aliases = tuple(aliases)
        self._fixed = fixed
        self._sources = tuple(sources)
        self._host_name = host_name
        self._clock = clock
        self._readings: dict[FactSource, tuple[float, Reading]] = {}
        self._failing: set[FactSource] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._node = self._build()
        self._valid_until = self._expiry()

    def node(self) -> Node:
        """Names and present facts; stale ones are left out. Cheap."""
        if self._clock() >= self._valid_until:
            self._rebuild()
        return self._node

    def known(self) -> dict[str, Fact]:
        """All facts with their age, and the stale ones that nobody else knows any better."""
        now = self._clock()
        known: dict[str, Fact] = {}
        for source in self._sources:
            if source in self._readings:
                taken, reading = self._readings[source]
                stale = now >= taken + source.max_age
                for key, values in reading.facts.items():
                    if key not in known or (known[key].stale and not stale):
                        known[key] = Fact(values, now - taken, stale)
        return known | {key: Fact(values) for key, values in self._fixed.items()}

    def ages(self) -> list[Age]:
        """How old the readings are, by source, in the order of the configuration."""
        now = self._clock()
        return [
            Age(_label(source), now - self._readings[source][0], source.max_age)
            if source in self._readings
            else Age(_label(source), math.inf, source.max_age)
            for source in self._sources
        ]

    async def start(self) -> None:
        """Read every source once, for at most `FIRST_READING` seconds, and go on reading."""
        if self._sources:
            first = [asyncio.ensure_future(self._read(source)) for source in self._sources]
            self._tasks = first
            await asyncio.wait(first, timeout=FIRST_READING)
            self._tasks = first + [
                asyncio.ensure_future(self._refresh(source, reading))
                for source, reading in zip(self._sources, first, strict=True)
            ]

    async def stop(self) -> None:
        """Read no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refresh(self, source: FactSource, reading: asyncio.Task[None]) -> None:
        await reading
        while source.interval > 0:
            await asyncio.sleep(source.interval)
            await self._read(source)

    async def _read(self, source: FactSource) -> None:
        try:
            reading = await source.read()
        except (OSError, ValueError) as exc:
            if source not in self._failing:
                self._failing.add(source)
                log.warning("fact source %s: %s; its facts will go stale", source, exc)
            return
        except Exception:
            # A bug in somebody's source: stale facts match nothing, and the next
            # reading may go better.
            if source not in self._failing:
                self._failing.add(source)
                log.exception("fact source %s failed; its facts will go stale", source)
            return
        if source in self._failing:
            self._failing.discard(source)
            log.info("fact source %s: readable again", source)
        self._readings[source] = (self._clock(), reading)
        self._rebuild()

    def _rebuild(self) -> None:
        before = self._node
        self._node = self._build()
        self._valid_until = self._expiry()
        if self._node != before:
            log.info("node %s: %s", self._node.name, describe(self._node.facts) or "no facts")

    def _build(self) -> Node:
        now = self._clock()
        facts: dict[str, frozenset[str]] = {}
        name = self._name
        for source in self._sources:
            taken, reading = self._readings.get(source, (-math.inf, Reading({})))
            name = name or reading.name  # a name does not go stale
            if now < taken + source.max_age:
                facts = {**reading.facts, **facts}
        facts.update(self._fixed)
        return Node(name or self._host_name, self._aliases, facts)

    def _expiry(self) -> float:
        now = self._clock()
        ends = (taken + source.max_age for source, (taken, _) in self._readings.items())
        return min((end for end in ends if end > now), default=math.inf)


def _label(source: FactSource) -> str:
    kind = type(source)
    return kind.__name__ if kind.__str__ is object.__str__ else str(source)


def describe(facts: Mapping[str, frozenset[str]]) -> str:
    """Facts in the form of a `dst` filter.

    >>> describe({"state": frozenset({"active"}), "role": frozenset({"proxy", "lb"})})
    'role=lb+proxy;state=active'
    """
    return ";".join(f"{key}={'+'.join(sorted(facts[key]))}" for key in sorted(facts))
