"""
What is counted by task while it happens, for whoever asks later.

Plain numbers, no library: a job costs microseconds here, and what the numbers look
like outside is decided where they are shown (`metrics.collector`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

# Upper ends of the buckets that durations are counted in, in seconds. Clients stop
# listening after 10; longer ones are tasks with limits of their own.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)


class Durations:
    """How long things took.

    Attributes:
        buckets: How many ended in each of `BOUNDS`, and at the end those beyond.
        total: Seconds, of all together.
    """

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one; a bucket holds its upper end.

        >>> durations = Durations()
        >>> durations.add(0.005)
        >>> durations.buckets[0]
        1
        """
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Tally:
    """Counts by task; the caller sees to it that only names of configured tasks come in.

    Attributes:
        outcomes: By task and what has become of a request: `course.Course.ending`,
            rejected, crowded, repeated.
        failures: Jobs that ended with an error, by task and `jobs.Run.cause`.
        durations: By task, from a job's start to its outcome.
        output: Bytes of text that jobs have written, by task.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.durations: dict[str, Durations] = {}
        self.output: Counter[str] = Counter()

    def refused(self, task: str, outcome: str) -> None:
        """A request has come to nothing.

        Args:
            task: Its name; empty for one that is not configured.
            outcome: rejected, crowded or repeated.
        """
        self.outcomes[task, outcome] += 1

    def ended(
        self, task: str, outcome: str, cause: str, seconds: float | None, output: int
    ) -> None:
        """A job has ended.

        Args:
            task: Its name.
            outcome: See `course.Course.ending`.
            cause: See `jobs.Run.cause`; empty for none.
            seconds: How long it ran; None if it never did.
            output: Bytes of text that it wrote.
        """
        self.outcomes[task, outcome] += 1
        if cause:
            self.failures[task, cause] += 1
        if seconds is None:
            return
        durations = self.durations.get(task)
        if durations is None:
            durations = self.durations[task] = Durations()
        durations.add(seconds)
        self.output[task] += output
