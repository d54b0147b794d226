"""
Aligned columns that fit a terminal: what is too long for a line goes on below it.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

GAP = "  "
NARROWEST = 16  # characters of the last column; below, lines are longer than the terminal


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output goes somewhere else."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None, numbers: str = ""
) -> list[str]:
    """Lines of a table whose last column takes what is left, broken where it has to be.

    Args:
        heads: Of the columns.
        rows: One text for each column; a line break in the last one is kept.
        width: Of a line; None for lines as long as they get.
        numbers: Heads of the columns that are aligned at the right, separated by blanks.

    >>> rows = [["prx01a", "2", "role=lb site=vienna state=active"], ["db1", "10", "role=db"]]
    >>> print(*table(["NODE", "RUN", "FACTS"], rows, 40, "RUN"), sep="\\n")
    NODE    RUN  FACTS
    prx01a    2  role=lb site=vienna
                 state=active
    db1      10  role=db
    """
    body = [list(row) for row in rows]
    sizes = [max(len(row[at]) for row in [list(heads), *body]) for at in range(len(heads) - 1)]
    right = [head in numbers.split() for head in heads]
    before = sum(sizes) + len(GAP) * len(sizes)
    left = None if width is None else max(NARROWEST, width - before)
    lines = []
    for row in [list(heads), *body]:
        first = GAP.join(
            text.rjust(size) if at_right else text.ljust(size)
            for text, size, at_right in zip(row, sizes, right, strict=False)
        )
        for piece in _pieces(row[-1], left):
            lines.append(f"{first}{GAP if first else ''}{piece}".rstrip())
            first = " " * (before - len(GAP))
    return lines


def _pieces(text: str, width: int | None) -> list[str]:
    """The lines of *text*, none longer than *width*."""
    if width is None:
        return text.split("\n")
    return [
        piece
        for line in text.split("\n")
        for piece in textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    ]


def span(seconds: float) -> str:
    """A length of time in a few characters.

    >>> span(5.2), span(185), span(7300), span(400000)
    ('5s', '3m', '2h', '4d')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"
