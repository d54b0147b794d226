"""A report as people read it: plain text, one line a measure."""

from __future__ import annotations

from collections.abc import Sequence

from .machine import Load
from .results import Measure, Spread, Target

TIMES, NONE = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
HEADER = ("", "unit", "floor", "agent", "agent / floor", "target", "")


def machine_line(machine: dict[str, str | int]) -> str:
    """The machine in one line."""
    return (
        f"{machine['processors']} {TIMES} {machine['processor']}, {machine['memory_mib']} MiB,"
        f" Linux {machine['kernel']}, Python {machine['python']}, redis-py {machine['redis']},"
        f" hiredis {machine['hiredis']}, uvloop {machine['uvloop']}"
    )


def load_line(load: Load) -> str:
    """How the machine was used, in percent of all its processors."""
    return (
        f"{load.wall:.0f} s; processors used by the benchmark {load.own:.1%},"
        f" by others {load.others:.1%}, stolen {load.stolen:.1%}"
    )


def table(measures: Sequence[Measure]) -> str:
    """The measures below each other, in columns as wide as they need; no newline at the end."""
    against = list(dict.fromkeys(measure.against for measure in measures if measure.against))
    rows = [HEADER, *(_row(measure, against) for measure in measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    notes = [f"[{index}] floor: {name}" for index, name in enumerate(against, 1)]
    return "\n".join([*lines, *notes])


def number(value: float) -> str:
    """*value* with three digits that count.

    >>> [number(value) for value in (0.01234, 1.5, 3, 311.6, 1912.3)]
    ['0.0123', '1.50', '3', '312', '1,912']
    """
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}"


def _row(measure: Measure, against: Sequence[str]) -> tuple[str, ...]:
    note = f"[{against.index(measure.against) + 1}] " if measure.against else ""
    verdict = {True: "met", False: "MISSED", None: ""}[measure.met]
    return (
        measure.name,
        measure.unit,
        note + _spread(measure.floor),
        _spread(measure.agent),
        _spread(measure.ratio),
        _target(measure.target, measure.unit),
        f"{verdict} {measure.note}".strip(),
    )


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    if spread.samples == 1:
        return number(spread.median)
    p99 = f", p99 {number(spread.p99)}" if spread.p99 is not None else ""
    return f"{number(spread.median)} ({number(spread.low)}…{number(spread.high)}{p99})"


def _target(target: Target | None, unit: str) -> str:
    if target is None:
        return ""
    sign = "≥" if target.at_least else "≤"
    if target.of == "ratio":
        return f"{sign} {target.limit:g} {TIMES}"
    # A rate's unit, 1/s, begins with the number that stands there already.
    return f"{sign} {target.limit:g}{unit[1:] if unit.startswith('1/') else ' ' + unit}"
