"""
Facts from a file that something else on this host keeps up to date.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..interfaces import Reading
from ..options import Options
from .text import parse_facts


class FileSource:
    """Options: ``path`` (a JSON object, or lines ``key=value+value``), ``interval``
    (seconds, default 10) and ``max_age`` (seconds, default three intervals)."""

    def __init__(self, options: Options) -> None:
        self._path = options.text("path", required="the path of the file")
        self.interval = options.seconds("interval", 10.0, minimum=0.1)
        self.max_age = options.seconds("max_age", 3 * self.interval)

    def __str__(self) -> str:
        return f"file {self._path}"

    async def read(self) -> Reading:
        text = await asyncio.to_thread(Path(self._path).read_text, "utf-8")
        return Reading(parse_facts(text))
