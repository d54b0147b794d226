"""
The daemon's numbers as Prometheus' families, read when they are asked for.

Every label has few values: names of configured tasks, backends and fact sources, and
words of our own. What a client has chosen is never one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .. import __version__
from ..config import RESERVED
from ..tally import BOUNDS, Durations
from .view import View

CONTENT_TYPE = CONTENT_TYPE_LATEST
# No task can be called so: names have no blanks. It stands for all that have no file, or
# no longer.
NOT_CONFIGURED = "not configured"
FROM_THE_START = ("done", "error", "rejected")  # a rate needs a zero to begin with
PREFIX = "ngcp_task_agent_"

Labelled = Iterable[tuple[tuple[str, ...], float]]


class AgentCollector(Collector):
    """Everything but the process itself, which the library reads from /proc.

    Args:
        view: Of whom.
        troubles: What is wrong with each backend, as of the last look; see `Readiness`.
    """

    def __init__(self, view: View, troubles: Mapping[str, str]) -> None:
        self._view = view
        self._troubles = troubles

    def collect(self) -> Iterator[Metric]:
        yield from self._about()
        yield from self._requests()
        yield from self._totals()
        yield from self._jobs()
        yield from self._bus()
        yield from self._journal()
        yield from self._facts()

    def _about(self) -> Iterator[Metric]:
        yield _gauge("build_info", "The agent's version; always 1.", ("version",),
                     [((__version__,), 1)])  # fmt: skip
        ready = self._view.phase() == "serving" and not any(self._troubles.values())
        yield _one("ready", "Whether the agent serves and reaches every backend.", ready)
        yield _one("config_problems", "Mistakes in the configuration files.", self._view.problems())

    def _requests(self) -> Iterator[Metric]:
        tally = self._view.agent.tally
        outcomes: Counter[tuple[str, ...]] = Counter()
        for name in self._view.tasks():
            if not name.startswith(RESERVED):
                outcomes.update({(name, outcome): 0 for outcome in FROM_THE_START})
        retries: Counter[tuple[str, ...]] = Counter()
        for (task, outcome), count in (tally.outcomes if tally else {}).items():
            if outcome == "retried":
                retries[self._name(task),] += count
            else:
                outcomes[self._name(task), outcome] += count
        failures: Counter[tuple[str, ...]] = Counter()
        for (task, cause), count in (tally.failures if tally else {}).items():
            failures[self._name(task), cause] += count
        yield _counter("requests", "Requests, by task and what became of them.",
                       ("task", "outcome"), outcomes.items())  # fmt: skip
        yield _counter("retries", "Attempts of durable requests that were given back "
                       "to be tried again.", ("task",), retries.items())  # fmt: skip
        yield _counter("job_failures", "Jobs and attempts that ended with an error, by its kind.",
                       ("task", "cause"), failures.items())  # fmt: skip

    def _totals(self) -> Iterator[Metric]:
        counts = self._view.agent.counts
        for name, text, count in (
            ("requests_accepted", "Requests accepted.", counts["accepted"]),
            ("requests_passed_over", "Requests passed over in silence: for other nodes, "
             "unknown here, or no room.", counts["passed_over"]),
            ("requests_crowded", "Those of them that found no room.", counts["crowded"]),
            ("requests_recovered", "Requests left by an earlier run and answered "
             "at the start.", counts["recovered"]),
            ("bad_input", "Messages that are no request.", counts["bad"]),
        ):  # fmt: skip
            yield CounterMetricFamily(PREFIX + name, text, value=count)

    def _jobs(self) -> Iterator[Metric]:
        agent, tasks = self._view.agent, self._view.tasks()
        queued: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in tasks})
        running = Counter(queued)
        for run in agent.runs:
            if run.status is None:
                (queued if run.started is None else running)[self._name(run.job.task),] += 1
        limits = [((name,), task.gate.max_running) for name, task in tasks.items()]
        rooms = [((name,), task.gate.max_queued) for name, task in tasks.items()]
        label = ("task",)
        yield _gauge("jobs_queued", "Jobs that wait.", label, queued.items())
        yield _gauge("jobs_queued_limit", "Jobs of a task that may wait.", label, rooms)
        yield _gauge("jobs_running", "Jobs that run.", label, running.items())
        yield _gauge("jobs_running_limit", "Jobs of a task that may run at once.", label, limits)
        yield _one("jobs_ending", "Jobs that are answered and not yet ended.", len(agent.ending))
        tally = agent.tally
        yield _durations(
            "job_duration_seconds", "From a job's start to its outcome.",
            self._by_name(tally.durations if tally else {}),
        )  # fmt: skip
        output: Counter[tuple[str, ...]] = Counter()
        for task, size in (tally.output if tally else {}).items():
            output[self._name(task),] += size
        yield _counter("job_output_bytes", "Text that jobs have written.", label, output.items())

    def _bus(self) -> Iterator[Metric]:
        states = {name: backend.state() for name, backend in self._view.backends().items()}
        reached = [((name,), float(not why)) for name, why in self._troubles.items()]
        label = ("backend",)
        yield _gauge("bus_reached", "Whether the bus has answered when it was asked just now.",
                     label, reached)  # fmt: skip
        for name, text, values in (
            ("bus_connected", "Whether there is a connection.",
             {n: state.connected for n, state in states.items()}),
            ("response_queue_messages", "Responses that wait to be sent.",
             {n: state.waiting for n, state in states.items()}),
            ("response_queue_bytes", "Their size together.",
             {n: state.waiting_bytes for n, state in states.items()}),
            ("leases_held", "Durable requests held.",
             {n: state.held for n, state in states.items()}),
        ):  # fmt: skip
            yield _gauge(name, text, label, (((n,), value) for n, value in values.items()))
        for name, text, values in (
            ("bus_reconnects", "Connections after the first.",
             {n: max(0, state.connections - 1) for n, state in states.items()}),
            ("responses_dropped", "Responses lost.",
             {n: state.dropped for n, state in states.items()}),
            ("dead_letters", "Durable requests put among the dead letters.",
             {n: state.buried for n, state in states.items()}),
        ):  # fmt: skip
            yield _counter(name, text, label, (((n,), value) for n, value in values.items()))

    def _journal(self) -> Iterator[Metric]:
        if self._view.journal is None:
            return
        state = self._view.journal.state()
        yield _one("journal_ok", "Whether the journal can be written.", state.ok)
        yield _one("journal_entries", "Requests that the journal remembers.", state.entries)
        yield CounterMetricFamily(
            PREFIX + "journal_failures", "Records lost.", value=state.failures
        )

    def _facts(self) -> Iterator[Metric]:
        ages, seen = [], Counter[str]()
        for source, age, limit in self._view.ages():
            seen[source] += 1
            label = source if seen[source] == 1 else f"{source} ({seen[source]})"
            ages.append(((label,), age, limit))
        yield _gauge("fact_age_seconds", "Age of a fact source's last reading; +Inf for none.",
                     ("source",), ((label, age) for label, age, _ in ages))  # fmt: skip
        yield _gauge("fact_max_age_seconds", "Age from which its facts match nothing.",
                     ("source",), ((label, limit) for label, _, limit in ages))  # fmt: skip

    def _name(self, task: str) -> str:
        return task if task in self._view.tasks() else NOT_CONFIGURED

    def _by_name(self, durations: Mapping[str, Durations]) -> dict[str, Durations]:
        """Together what is shown under one name."""
        named: dict[str, Durations] = {}
        for task, one in durations.items():
            whole = named.setdefault(self._name(task), Durations())
            whole.buckets = [a + b for a, b in zip(whole.buckets, one.buckets, strict=True)]
            whole.total += one.total
        return named


class Exposition:
    """The text that is scraped."""

    def __init__(self, view: View) -> None:
        self.troubles: dict[str, str] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(AgentCollector(view, self.troubles))
        ProcessCollector(registry=self._registry)

    def text(self, troubles: Mapping[str, str]) -> bytes:
        """All families in Prometheus' text format 0.0.4.

        Args:
            troubles: What is wrong with each backend just now.
        """
        self.troubles.clear()
        self.troubles.update(troubles)
        return generate_latest(self._registry)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=float(value))


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for at, value in values:
        family.add_metric(at, float(value))
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for at, value in values:
        family.add_metric(at, float(value))
    return family


def _durations(name: str, text: str, values: Mapping[str, Durations]) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=("task",))
    ends = [*map(str, BOUNDS), "+Inf"]
    for task, durations in values.items():
        sums = [sum(durations.buckets[: at + 1]) for at in range(len(ends))]
        buckets = [(end, float(count)) for end, count in zip(ends, sums, strict=True)]
        family.add_metric((task,), buckets, durations.total)
    return family
