"""Samples in, medians and ratios out. Knows neither processes nor how a report looks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

P99_NEEDS = 100  # samples, below which a 99th percentile is just the highest


@dataclass(frozen=True)
class Spread:
    """Median and range of samples; *p99* only where there are enough of them."""

    median: float
    low: float
    high: float
    p99: float | None
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Describe *samples*, at least one.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0, p99=None, samples=3)
        """
        enough = len(samples) >= P99_NEEDS
        p99 = statistics.quantiles(samples, n=100)[98] if enough else None
        median = statistics.median(samples)
        return cls(median, min(samples), max(samples), p99, len(samples))


@dataclass(frozen=True)
class Target:
    """A promise about the median of *of*: at most, or at least, *limit*."""

    of: Literal["ratio", "agent"]
    limit: float
    at_least: bool = False


@dataclass(frozen=True)
class Measure:
    """One line of a report.

    Attributes:
        name: What was measured, for example ``published to done``.
        unit: Of *floor* and *agent*, for example ``µs``.
        agent: The agent's samples.
        against: What the floor is, for example ``redis-py echo``; empty without one.
        floor: The floor's samples.
        ratio: Agent to floor, one ratio a round.
        target: What is promised, if anything is.
        note: What else has to be known, in few words.
    """

    name: str
    unit: str
    agent: Spread
    against: str = ""
    floor: Spread | None = None
    ratio: Spread | None = None
    target: Target | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one, or without a ratio to judge."""
        if self.target is None:
            return None
        judged = self.ratio if self.target.of == "ratio" else self.agent
        if judged is None:
            return None
        if self.target.at_least:
            return judged.median >= self.target.limit
        return judged.median <= self.target.limit

    def as_dict(self) -> dict[str, Any]:
        """The measure as JSON takes it."""
        target = vars(self.target) if self.target else None
        spreads = {"floor": self.floor, "agent": self.agent, "ratio": self.ratio}
        return {
            "name": self.name,
            "unit": self.unit,
            "against": self.against or None,
            **{key: vars(spread) if spread else None for key, spread in spreads.items()},
            "target": target,
            "met": self.met,
            "note": self.note or None,
        }


Rounds = Sequence[Sequence[float]]


def compare(
    name: str,
    unit: str,
    agent: Rounds,
    floor: Rounds,
    against: str,
    target: Target | None = None,
) -> Measure:
    """Set the rounds of the agent beside those of a floor.

    The ratio is taken within each round, of the medians, so that what slowed
    down the machine for a while slowed down both sides of it.
    """
    ratios = [
        statistics.median(ours) / statistics.median(least)
        for ours, least in zip(agent, floor, strict=True)
        if statistics.median(least) > 0
    ]
    ratio = Spread.of(ratios) if ratios else None
    return Measure(name, unit, _spread(agent), against, _spread(floor), ratio, target)


def alone(
    name: str,
    unit: str,
    samples: Sequence[float],
    target: Target | None = None,
    note: str = "",
) -> Measure:
    """A measure that has no floor."""
    return Measure(name, unit, Spread.of(samples), target=target, note=note)


def above(name: str, unit: str, agent: Rounds, floor: Rounds) -> Measure:
    """What the agent takes on top of the floor, by the medians of each round."""
    differences = [
        statistics.median(ours) - statistics.median(least)
        for ours, least in zip(agent, floor, strict=True)
    ]
    return alone(name, unit, differences)


def _spread(rounds: Rounds) -> Spread:
    return Spread.of([sample for samples in rounds for sample in samples])
