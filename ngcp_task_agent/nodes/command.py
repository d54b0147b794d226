"""
Facts that a program prints.
"""

from __future__ import annotations

from ..interfaces import Reading
from ..options import Options
from .probe import probe
from .text import parse_facts


class CommandSource:
    """Options: ``run`` and ``args`` (as in a command task; it prints a JSON object,
    or lines ``key=value+value``), ``interval`` (seconds, default 10), ``max_age``
    (seconds, default three intervals) and ``timeout`` (seconds, default 5)."""

    def __init__(self, options: Options) -> None:
        self._argv = [options.text("run", required="the program to run"), *options.words("args")]
        self.interval = options.seconds("interval", 10.0, minimum=0.1)
        self.max_age = options.seconds("max_age", 3 * self.interval)
        self._timeout = options.seconds("timeout", 5.0)

    def __str__(self) -> str:
        return f"command {self._argv[0]}"

    async def read(self) -> Reading:
        code, output = await probe(self._argv, self._timeout)
        if code:
            raise ValueError(f"{self._argv[0]} ended with exit code {code}")
        return Reading(parse_facts(output))
