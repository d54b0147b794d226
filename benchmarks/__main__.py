"""`python -m benchmarks`: take figures and report them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from .figures import FIGURES
from .machine import Load, Watch, describe
from .options import Options, parse
from .place import Settings, place
from .processes import BenchmarkError
from .results import Measure
from .table import load_line, machine_line, table

OK, FAILED, BUSY = 0, 1, 3  # exit status; 2 is argparse's own


@dataclass(frozen=True)
class Outcome:
    """What became of one figure: measures, unless it failed or was refused."""

    name: str
    load: Load
    measures: Sequence[Measure] = ()
    failed: str = ""
    busy: bool = False
    refused: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON takes it."""
        return {
            "name": self.name,
            "title": FIGURES[self.name].title,
            "load": vars(self.load),
            "busy": self.busy,
            "refused": self.refused,
            "failed": self.failed or None,
            "measures": [measure.as_dict() for measure in self.measures],
        }


async def take(name: str, settings: Settings, limit: float, force: bool) -> Outcome:
    """Take one figure and judge whether it can be reported.

    Args:
        name: One of `FIGURES`.
        settings: How to take it.
        limit: The share of all processors that others may use, 0 to 1.
        force: Whether to report it whatever they used.
    """
    figure, failed = FIGURES[name], ""
    measures: Sequence[Measure] = ()
    with Watch() as watch:
        try:
            async with place(settings) as here:
                measures = await figure.take(here)
        except BenchmarkError as error:
            failed = str(error)
    load = watch.load
    busy = figure.timed and load.others + load.stolen > limit
    refused = busy and not force and not failed
    return Outcome(name, load, () if refused else measures, failed, busy, refused)


def show(outcome: Outcome, limit: float) -> None:
    """Print one figure for people."""
    print(f"\n{outcome.name}: {FIGURES[outcome.name].title}")
    print(f"  {load_line(outcome.load)}")
    if outcome.failed:
        print(f"  failed: {outcome.failed}")
    elif outcome.refused:
        print(f"  refused: others used more than {limit:g} % of the processors; again, or --force")
    else:
        if outcome.busy:
            print(
                f"  WARNING: others used more than {limit:g} % of the processors: do not quote this"
            )
        print("\n".join(f"  {line}" for line in table(outcome.measures).splitlines()))
    sys.stdout.flush()


async def run(options: Options) -> int:
    """Take what *options* ask for, and report; gives the exit status."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    settings = Settings(options.agent, options.rounds, options.quick)
    machine, outcomes = describe(), []
    if not options.json:
        print(machine_line(machine) + (", quick" if options.quick else ""))
    for name in options.only:
        outcome = await take(name, settings, options.busy_limit / 100, options.force)
        outcomes.append(outcome)
        if not options.json:
            show(outcome, options.busy_limit)
    if options.json:
        report = {"machine": machine, "rounds": options.rounds, "quick": options.quick}
        print(json.dumps({**report, "figures": [outcome.as_dict() for outcome in outcomes]}))
    if any(outcome.failed for outcome in outcomes):
        return FAILED
    return BUSY if any(outcome.refused for outcome in outcomes) else OK


def main() -> int:
    """The command."""
    options = parse()
    try:
        return uvloop.run(run(options))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main())
