"""
Whether and when a durable request that has failed is tried again.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from .options import Options

CAUSES = ("error", "timeout", "lost", "stopped")
ATTEMPTS = 3  # where a task says `retry:` and not how often
MOST = 1000  # attempts
BASE = 1.0  # seconds
LONGEST = 60.0  # seconds
JITTER = 0.5  # of the delay


class Retry(NamedTuple):
    """A task's ``retry``.

    Attributes:
        attempts: How often a request is tried in all; 1 for never again.
        base: Seconds until the second attempt; doubled for each further one.
        longest: The most seconds between two attempts.
        jitter: The part of the delay that is left to chance, 0 to 1, so that what has
            failed together does not come back together.
        on: The causes after which it is tried again: ``error`` (it failed), ``timeout``,
            ``lost`` (the agent died, or was cut off for long), ``stopped`` (the agent
            was stopped while it ran).
    """

    attempts: int = 1
    base: float = BASE
    longest: float = LONGEST
    jitter: float = JITTER
    on: frozenset[str] = frozenset(CAUSES)

    def wanted(self, attempt: int, cause: str) -> bool:
        """Whether there is another attempt after number *attempt*, which ended for *cause*."""
        return attempt < self.attempts and cause in self.on

    def delay(self, attempt: int, chance: float | None = None) -> float:
        """Seconds from the end of number *attempt* to the next.

        Args:
            attempt: From 1.
            chance: 0 to 1, by default drawn.
        """
        chance = random.random() if chance is None else chance
        whole = min(self.longest, self.base * 2.0 ** min(attempt - 1, 64))
        return whole * (1 - self.jitter * chance)


NEVER = Retry()


def read_retry(options: Options, key: str) -> Retry:
    """The section *key* of a task file; mistakes are noted there."""
    if key not in options:
        options.mark(key)
        return NEVER
    section = options.section(key)
    backoff = section.section("backoff")
    base = backoff.seconds("base", BASE)
    retry = Retry(
        section.integer("attempts", ATTEMPTS, minimum=1, maximum=MOST),
        base,
        backoff.seconds("max", max(LONGEST, base)),
        backoff.number("jitter", JITTER, maximum=1),
        frozenset(section.names("on", CAUSES)),
    )
    for cause in sorted(retry.on - set(CAUSES)):
        section.problem("on", repr(cause), "some of " + ", ".join(CAUSES))
    if retry.longest < retry.base:
        backoff.problem("max", f"{retry.longest:g}", f"at least base, {retry.base:g}")
    backoff.close()
    section.close()
    return retry
