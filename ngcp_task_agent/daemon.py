"""
The daemon's life: start, serve, read the files again, stop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from . import __version__, processes
from .agent import Agent
from .app import Loader, Setup, close_brokers, close_later
from .audit import AuditLog
from .config import Settings, audit_path, is_yaml
from .decisions import Decisions
from .destination import Node
from .dispatch import Dispatcher
from .errors import BackendError, ConfigError, Problem
from .host import AgentHost, identify
from .interfaces import Backend
from .journal import Journal, Unfinished
from .logs import configure
from .metrics.service import Monitoring
from .metrics.view import View
from .own_record import OwnRecord
from .own_tasks import OwnTasks
from .presence import Fact
from .systemd import Notifier
from .watch import Watch

FIRST_CONNECTION = 0.4  # seconds the start waits for the backends to be reached
DAY = 86_400.0  # seconds
END_TIMEOUT = processes.KILL_AFTER + processes.GIVE_UP_AFTER + 1.0  # seconds

log = logging.getLogger(__name__)


class Daemon:
    """One run of the program.

    Args:
        directory: The configuration directory.
        notifier: Where readiness, status and signs of life go.
    """

    def __init__(self, directory: str, notifier: Notifier) -> None:
        self._loader = Loader(directory)
        self._notifier = notifier
        self._setup = self._loader.load()
        self._reported: list[Problem] = []
        self._dispatcher = Dispatcher(self._node)
        self._serving: dict[str, tuple[Backend, asyncio.Task[None]]] = {}
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()  # backends that were replaced
        self._agent: Agent
        self._journal: Journal | None
        self._audit: AuditLog | None
        self._identity: str
        self._own_tasks: OwnTasks
        self._record: OwnRecord
        self._monitoring: Monitoring
        self._phase = "starting"  # then serving, then stopping
        self._watch: Watch

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            OSError: The kernel lacks something this cannot work without.
        """
        settings = self._setup.settings
        configure(settings.log_level, settings.log_format)
        log.info(
            "ngcp-task-agent %s starting, configuration in %s", __version__, self._loader.directory
        )
        loop = asyncio.get_running_loop()
        processes.adopt_orphans(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        self._identity = identify(settings.state_dir)
        self._journal = _journal(settings)
        self._audit = _audit(settings, lambda: self._node().name)
        self._agent = Agent(
            self._dispatcher, settings.limits, _spool_dir(settings.state_dir), self._journal,
            Decisions(self._audit),
        )  # fmt: skip
        self._own_tasks = OwnTasks(
            self._agent, self._dispatcher, self._node, self._backends, self._journal,
            self._identity, self._facts, self._audit,
        )  # fmt: skip
        self._record = OwnRecord(
            self._identity, self._agent, self._dispatcher, self._node, self._facts
        )
        self._monitoring = Monitoring(self._view())
        self._watch = Watch(self._reload_soon, lambda name: not name or is_yaml(name))
        async with self._reloading:  # a change of a file meanwhile waits its turn
            self._watch_directories()
            self._setup = self._loader.load()  # what has changed before it was watched
            await self._setup.facts.start()
            if self._audit is not None:
                self._audit.on_change = self._tell_status
                self._audit.open()
            unfinished = await self._open_journal()
            await self._apply(self._setup)
            if unfinished:
                await self._agent.recover(unfinished, self._backends())
            await self._connected()
        self._phase = "serving"
        self._notifier.notify(READY=1, STATUS=self._status())
        log.info("ready: %s", self._status())
        if self._notifier.watchdog:
            self._spawn(self._feed_watchdog())
        await self._stop.wait()
        self._watch.close()
        await self._shut_down()

    async def _open_journal(self) -> list[Unfinished]:
        if self._journal is None:
            return []
        self._journal.on_change = self._tell_status
        self._journal.on_unfinished = lambda found: self._recover_soon(found)
        return await self._journal.open()

    def _recover_soon(self, unfinished: list[Unfinished]) -> None:
        self._spawn(self._recover(unfinished))

    async def _recover(self, unfinished: list[Unfinished]) -> None:
        async with self._reloading:  # only then it is certain what is served
            await self._agent.recover(unfinished, self._backends())

    def _backends(self) -> dict[str, Backend]:
        return {name: backend for name, (backend, _) in self._serving.items()}

    def _node(self) -> Node:
        return self._setup.facts.node()

    def _facts(self) -> dict[str, Fact]:
        return self._setup.facts.known()

    def _view(self) -> View:
        return View(
            self._agent,
            lambda: self._dispatcher.tasks,
            self._backends,
            lambda: self._setup.backends,
            lambda: self._setup.facts.ages(),
            self._journal,
            lambda: len(self._setup.problems),
            lambda: self._phase,
        )

    async def _apply(self, setup: Setup) -> None:
        """Make *setup* what is served, in one step; jobs that run keep what they have."""
        before, self._setup = self._setup, setup
        old_tasks = self._dispatcher.tasks
        tasks = {**setup.tasks, **self._own_tasks.tasks}
        self._report(setup, old_tasks)
        self._agent.limits = setup.settings.limits
        for task in tasks.values():
            task.adjust_gate()
        self._dispatcher.tasks = tasks
        await self._monitoring.apply(setup.settings.metrics)
        await self._serve(setup)
        await close_brokers(close_later(old_tasks, tasks))
        if before.facts is not setup.facts:
            await before.facts.stop()

    async def _serve(self, setup: Setup) -> None:
        """Start the backends that are new, stop those that are gone."""
        for name, backend in setup.backends.items():
            backend.listen({t.control_channel for t in setup.tasks.values() if t.backend == name})
        for name, (backend, serving) in list(self._serving.items()):
            if setup.backends.get(name) is not backend:
                del self._serving[name]
                await _stop_backend(backend, serving)
                retiring = self._spawn(self._retire(backend))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)
        for name, backend in setup.backends.items():
            if name not in self._serving:
                backend.on_change = self._tell_status
                backend.host = AgentHost(
                    self._identity, self._node, partial(self._agent.room, name), self._record
                )
                try:
                    await backend.open()
                except BackendError as exc:
                    log.error("backend %s is not to be had: %s", name, exc)
                    continue
                serving = asyncio.create_task(self._agent.serve(name, backend), name=name)
                serving.add_done_callback(_must_not_fail)
                self._serving[name] = (backend, serving)

    async def _retire(self, backend: Backend) -> None:
        """Close a backend that was replaced once the jobs that came by it are answered."""
        await self._agent.answered(backend)
        await backend.close()

    def _reload_soon(self) -> None:
        self._spawn(self._reload())

    async def _reload(self) -> None:
        async with self._reloading:
            if self._stop.is_set():
                return
            self._notifier.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            try:
                setup = await asyncio.to_thread(self._loader.load)
            except ConfigError as exc:
                self._complain(list(exc.problems), [])
            else:
                before, now = self._setup.settings, setup.settings
                if _fixed(before) != _fixed(now):
                    log.warning(
                        "agent.yml: state_dir, local_socket, journal and audit change at the "
                        "next start"
                    )
                configure(now.log_level, now.log_format)
                if setup.facts is not self._setup.facts:
                    await setup.facts.start()
                await self._apply(setup)
                self._watch_directories()
            self._notifier.notify(READY=1, STATUS=self._status())

    def _watch_directories(self) -> None:
        directory = self._loader.directory
        self._watch.add(
            [directory, *(os.path.join(directory, name) for name in ("backends", "tasks"))]
        )

    def _report(self, setup: Setup, old: Any) -> None:
        changes = []
        for word, names in (
            ("new", setup.tasks.keys() - old.keys()),
            ("gone", {n for n in old if not n.startswith("agent.")} - setup.tasks.keys()),
            ("changed", {n for n, t in setup.tasks.items() if n in old and old[n] is not t}),
        ):
            if names:
                changes.append(f"{word}: {', '.join(sorted(names))}")
        if changes:
            log.info("tasks %s", "; ".join(changes))
        self._complain(setup.problems, setup.warnings)

    def _complain(self, problems: list[Problem], warnings: list[Problem]) -> None:
        """Log what is wrong, each mistake once for as long as it stays."""
        for problem in problems:
            if problem not in self._reported:
                log.error("%s; the last good version, if any, goes on", problem)
        for problem in warnings:
            if problem not in self._reported:
                log.warning("%s", problem)
        self._reported = [*problems, *warnings]

    async def _connected(self) -> None:
        """Wait a moment for the backends, so that ready means reachable where it can."""
        end = time.monotonic() + FIRST_CONNECTION
        while time.monotonic() < end:
            if all(backend.state().connected for backend, _ in self._serving.values()):
                return
            await asyncio.sleep(0.005)

    def _tell_status(self) -> None:
        if not self._stop.is_set():
            self._notifier.notify(STATUS=self._status())

    def _status(self) -> str:
        states = [backend.state().text for backend, _ in self._serving.values()]
        if self._journal is not None and not self._journal.state().ok:
            states.append(self._journal.state().text)
        if self._audit is not None and not self._audit.state().ok:
            states.append(self._audit.state().text)
        return f"{self._node().name}: {len(self._setup.tasks)} tasks; " + "; ".join(states)

    async def _feed_watchdog(self) -> None:
        """Fed by the loop itself, and only while every backend is sound."""
        while True:
            unsound = [n for n, (b, _) in self._serving.items() if not b.state().sound]
            if unsound:
                log.error("backend %s is stuck; the watchdog is not fed", ", ".join(unsound))
            else:
                self._notifier.notify(WATCHDOG=1)
            await asyncio.sleep(self._notifier.watchdog / 2)

    async def _shut_down(self) -> None:
        log.info("stopping")
        self._phase = "stopping"
        self._notifier.notify(STOPPING=1, STATUS="stopping")
        # Who looks for nodes from now on must not count on this one.
        leaving = (getattr(backend, "withdraw", None) for backend, _ in self._serving.values())
        await asyncio.gather(*(withdraw() for withdraw in leaving if withdraw is not None))
        await self._agent.drain(self._setup.settings.grace)
        async with self._reloading:
            for backend, serving in self._serving.values():
                await _stop_backend(backend, serving)
            await self._setup.facts.stop()
            await close_brokers(list(self._dispatcher.tasks.values()))
            closing = [backend.close() for backend, _ in self._serving.values()]
            await asyncio.gather(*closing, *self._retiring)
            if self._journal is not None:
                await self._agent.confirmed()
                await self._journal.close()
            if self._audit is not None:
                self._audit.close()
        try:
            await asyncio.wait_for(processes.all_ended(), END_TIMEOUT)
        except TimeoutError:
            log.error("processes are left that could not be ended")
        await self._monitoring.close()
        for task in self._tasks:
            task.cancel()
        log.info("stopped")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_must_not_fail)
        return task


async def _stop_backend(backend: Backend, serving: asyncio.Task[None]) -> None:
    await backend.stop()
    serving.cancel()
    await asyncio.wait((serving,))


def _must_not_fail(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s failed: this is a bug", task.get_name(), exc_info=task.exception())


def _fixed(settings: Settings) -> tuple[object, ...]:
    """What is the same from start to stop."""
    return settings.state_dir, settings.local_socket, settings.journal, settings.audit


def _journal(settings: Settings) -> Journal | None:
    wanted = settings.journal
    if not wanted.enabled:
        return None
    return Journal(
        os.path.join(settings.state_dir, "journal.db"),
        max_age=wanted.max_age * DAY,
        max_size=wanted.max_size,
        sync="full" if wanted.sync == "machine" else "normal",
    )


def _audit(settings: Settings, node: Callable[[], str]) -> AuditLog | None:
    wanted = settings.audit
    if not wanted.enabled:
        return None
    return AuditLog(audit_path(settings), wanted.max_size, wanted.keep, node)


def _spool_dir(state_dir: str) -> str:
    """Where large output waits: below the state directory if it can be written."""
    path = os.path.join(state_dir, "spool")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as exc:
        log.warning("%s cannot be made (%s); large output goes to the system's temporary files",
                    path, exc.strerror)  # fmt: skip
        return ""
    return path
