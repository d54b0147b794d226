"""
The agent's own tasks: addressed by `dst` like any other, and answered like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import __version__
from .agent import Agent
from .audit import AuditLog
from .brokers.builtin import AnswerBroker
from .destination import Destination, Node
from .dispatch import Dispatcher, Gate, Task
from .errors import BrokerError, MessageError
from .interfaces import Backend, Job
from .jobs import LONGEST_NAME, Record, Run
from .journal import Journal
from .matching import match
from .presence import Fact
from .usage import measure

AT_ONCE = 256  # of each own task side by side: a cancel must not wait behind others
CANCEL_TIMEOUT = 30.0  # seconds; processes get TERM, 5 s, KILL, 5 s


class OwnTasks:
    """Makes them.

    Args:
        agent: Whose jobs are told and cancelled.
        dispatcher: Whose tasks are told.
        node: What this host is now.
        backends: Those that are served now, by name.
        journal: Where requests are recorded.
        identity: Tells this agent from others of the same name.
        facts: What is known of this host, stale facts included.
        audit: Where decisions are written down.
    """

    def __init__(
        self,
        agent: Agent,
        dispatcher: Dispatcher,
        node: Callable[[], Node],
        backends: Callable[[], Mapping[str, Backend]],
        journal: Journal | None = None,
        identity: str = "",
        facts: Callable[[], Mapping[str, Fact]] = dict,
        audit: AuditLog | None = None,
    ) -> None:
        self._agent = agent
        self._dispatcher = dispatcher
        self._node = node
        self._backends = backends
        self._journal = journal
        self._identity = identity
        self._facts = facts
        self._audit = audit
        self._began = time.monotonic()
        self.tasks = {
            task.name: task
            for task in (
                _task("agent.ping", self._about, "this agent's name, version, facts and uptime"),
                _task("agent.tasks", self._about_tasks, "the tasks this agent has"),
                _task("agent.match", self._match, "whether a dst selects this node, and why not"),
                _task("agent.jobs", self._about_jobs, "the jobs that wait, run, and have ended"),
                _task(
                    "agent.cancel", self._cancel, "ends the job whose uuid is ref", CANCEL_TIMEOUT
                ),
            )
        }

    def _about(self, job: Job) -> dict[str, Any]:
        node = self._node()
        return {
            "name": node.name,
            "instance": self._identity,
            "aliases": list(node.aliases),
            "version": __version__,
            "facts": {key: sorted(values) for key, values in node.facts.items()},
            "uptime": round(time.monotonic() - self._began, 3),
            "jobs": len(self._agent.runs),
            "counts": dict(self._agent.counts),
            "backends": {
                name: {"connected": (state := backend.state()).connected, "dropped": state.dropped}
                for name, backend in self._backends().items()
            },
            "journal": self._journal.state()._asdict() if self._journal is not None else None,
            "audit": self._audit.state()._asdict() if self._audit is not None else None,
        }

    def _about_tasks(self, job: Job) -> list[dict[str, Any]]:
        return [
            {
                "name": task.name,
                "description": task.description,
                "digest": task.digest,
                "arguments": task.arguments.given if task.arguments else None,
                "timeout": task.timeout,
                "run_timeout": task.run_timeout,
                "max_running": task.gate.max_running,
                "running": task.gate.running,
                "queued": task.gate.queued,
            }
            for _, task in sorted(self._dispatcher.tasks.items())
        ]

    def _match(self, job: Job) -> dict[str, Any]:
        dst = job.arguments.get("dst")
        if not isinstance(dst, str):
            raise BrokerError('data.dst: expected which nodes, as in {"dst": "*|state=active"}')
        try:
            destination = Destination.parse(dst)
        except MessageError as exc:
            raise BrokerError(f"data.{exc}") from exc
        task = job.arguments.get("task", "")
        return match(
            destination, self._node(), self._identity, self._facts(), local=job.local,
            task=task if isinstance(task, str) else "", tasks=self._dispatcher.tasks,
        ).as_json()  # fmt: skip

    async def _about_jobs(self, job: Job) -> list[dict[str, Any]]:
        """First those that have not ended, as they came; then the others, the last first."""
        ref = _ref(job) if "ref" in job.arguments else None
        pids = [pid for run in self._present(ref) if (pid := run.output.pid)]
        usages = await asyncio.to_thread(measure, pids) if pids else {}
        found = []
        for run in self._present(ref):  # again: in the meantime some have ended
            usage = usages.get(run.output.pid or 0)
            found.append(run.record()._asdict() | (usage._asdict() if usage else {}))
        return found + [record._asdict() for record in reversed(self._past(ref))]

    def _present(self, ref: str | None) -> list[Run]:
        """Those that have not ended altogether, as they came."""
        runs = [*self._agent.runs, *self._agent.ending]
        chosen = [run for run in runs if not run.own and ref in (None, run.job.uuid)]
        return sorted(chosen, key=lambda run: run.queued)

    def _past(self, ref: str | None) -> list[Record]:
        short = ref and ref[:LONGEST_NAME]
        return [record for record in self._agent.recent if short in (None, record.uuid)]

    async def _cancel(self, job: Job) -> dict[str, Any]:
        ref = _ref(job)
        records = await self._agent.cancel(ref, job.src)
        if not records:
            known = [*self._past(ref), *(run.record() for run in self._present(ref))]
            what = f"has already ended ({known[-1].state})" if known else "is not known here"
            raise BrokerError(f"job {ref[:LONGEST_NAME]} {what}")
        return {"ref": ref, "cancelled": [record._asdict() for record in records]}


def _task(name: str, answer: Callable[[Job], Any], text: str, timeout: float = 9.5) -> Task:
    gate = Gate(AT_ONCE)
    return Task(
        name, AnswerBroker(answer), description=text, timeout=timeout, max_running=AT_ONCE,
        gate=gate,
    )  # fmt: skip


def _ref(job: Job) -> str:
    ref = job.arguments.get("ref")
    if not isinstance(ref, str) or not ref:
        raise BrokerError('data.ref: expected the uuid of a request, as in {"ref": "18d0f568-…"}')
    return ref
