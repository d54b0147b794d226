"""The figures, each a module that takes one in a `Place`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..place import Place
from ..results import Measure
from . import commands, idle, passed_over, round_trip, start


@dataclass(frozen=True)
class Figure:
    """One thing to find out.

    Attributes:
        title: For people.
        take: Takes it.
        timed: Whether somebody else's work on the machine would falsify it.
    """

    title: str
    take: Callable[[Place], Awaitable[list[Measure]]]
    timed: bool = True


FIGURES = {
    "round-trip": Figure("round trip of a python task that does nothing", round_trip.take),
    "commands": Figure("/bin/true as a command, 16 at a time", commands.take),
    "start": Figure("from exec to ready", start.take),
    "idle": Figure("doing nothing", idle.take, timed=False),
    "passed-over": Figure("messages that are not for this node", passed_over.take),
}
