"""
Facts that an administrator has written down.
"""

from __future__ import annotations

import math

from ..interfaces import Reading
from ..options import Options


class StaticSource:
    """Options: ``facts``, a mapping; each value a text or a list of texts."""

    interval = 0.0
    max_age = math.inf

    def __init__(self, options: Options) -> None:
        section = options.section("facts")
        self._facts = {key: frozenset(section.names(key)) for key in section.fields}

    def __str__(self) -> str:
        return "static"

    async def read(self) -> Reading:
        return Reading(self._facts)
