"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .figures import FIGURES

BUSY_LIMIT = 10.0  # percent of all processors
ROUNDS = 5
QUICK_ROUNDS = 2
HELP = {
    "only": f"take this figure; can be repeated: {', '.join(FIGURES)}",
    "rounds": f"how often floor and agent take turns; default {ROUNDS}",
    "quick": f"{QUICK_ROUNDS} short rounds: to see that it works, not to quote",
    "json": "for machines",
    "busy_limit": "refuse to report when others used more of the processors; default %(default)g",
    "force": "report all the same, with a warning",
    "agent": "the command to measure; default the one beside this Python",
}


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        only: Names of `FIGURES`.
        rounds: How often floor and agent take turns.
        quick: Whether to be quick about it.
        json: Whether the report is for machines.
        busy_limit: Percent of all processors that others may use.
        force: Whether to report whatever they use.
        agent: The command to measure.
    """

    only: Sequence[str]
    rounds: int
    quick: bool
    json: bool
    busy_limit: float
    force: bool
    agent: Path


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read *arguments*, or those of this process; exits with status 2 when they are wrong."""
    description = "Measure the agent beside the least that could do its work."
    parser = argparse.ArgumentParser(prog="script/bench", description=description)
    add, command = parser.add_argument, Path(sys.executable).parent / "ngcp-task-agent"
    add("--only", action="append", choices=FIGURES, metavar="NAME", help=HELP["only"])
    add("--rounds", type=_positive, metavar="N", help=HELP["rounds"])
    add("--quick", action="store_true", help=HELP["quick"])
    add("--json", action="store_true", help=HELP["json"])
    number = parser.add_argument("--busy-limit", type=float, default=BUSY_LIMIT)
    number.metavar, number.help = "PERCENT", HELP["busy_limit"]
    add("--force", action="store_true", help=HELP["force"])
    add("--agent", type=Path, default=command, metavar="PROGRAM", help=HELP["agent"])
    given = vars(parser.parse_args(arguments))
    given["only"] = given["only"] or list(FIGURES)
    given["rounds"] = given["rounds"] or (QUICK_ROUNDS if given["quick"] else ROUNDS)
    given["agent"] = given["agent"].absolute()
    if not given["agent"].exists():
        parser.error(f"--agent: {given['agent']}: no such program; install it, or name another")
    return Options(**given)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1")
    return int(text)
