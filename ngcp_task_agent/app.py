"""
The composition root: configuration in, objects out.

The only file that names concrete things together. What has not changed on disk
stays the same object; what is broken keeps its last good version.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import registry
from .backends.redis_stream_keys import SUBSCRIPTION
from .config import (
    Document,
    Files,
    Settings,
    TaskFile,
    read_directory,
    read_settings,
    read_task,
)
from .dispatch import LOCAL, Gate, Task
from .errors import ConfigError, PluginError, Problem
from .facts import Facts
from .interfaces import Backend, Broker, FactSource
from .listening import missing_library
from .nodes.ngcp import is_ngcp
from .options import Options
from .retry import NEVER

DIGEST = 16  # hexadecimal digits of a task file's digest
# What says where a task listens. One that its backend does not know would be passed over,
# and the task would listen on the default of all.
LISTENING = frozenset(("control_channel", *SUBSCRIPTION))

log = logging.getLogger(__name__)


@dataclass
class Setup:
    """What the files describe, as objects.

    Attributes:
        settings: agent.yml.
        facts: Made of the settings; not started yet.
        backends: By name; the local one is always there unless its file says no.
        tasks: By name.
        problems: Every mistake; what it concerns is missing here, or an older version.
        warnings: What does no harm, but was hardly meant.
    """

    settings: Settings
    facts: Facts
    backends: dict[str, Backend] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


@dataclass
class _Built:
    """An object and the text it was made of."""

    text: bytes
    made: Any
    warnings: list[Problem] = field(default_factory=list)


class Loader:
    """Reads a configuration directory again and again.

    Args:
        directory: For example ``/etc/ngcp-task-agent``.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._built: dict[str, _Built] = {}  # by file
        self._asked: set[str] = set()  # files, or stand-ins for them, of the present reading
        self._gates: dict[str, Gate] = {}  # by file: what runs counts, whatever it says now

    def load(self) -> Setup:
        """Read all files.

        Raises:
            ConfigError: There is no directory, or agent.yml is broken and never
                was good: without it, the node's very name is in doubt.
        """
        files = read_directory(self.directory)
        self._asked.clear()
        made = self._settings(files)
        settings, facts = made or (Settings(), _make_facts(Settings()))
        setup = Setup(settings, facts, problems=files.problems)
        if settings.metrics is not None:
            setup.problems.extend(missing_library("agent.yml"))
        self._load_backends(files, setup)
        self._load_tasks(files, setup)
        self._built = {
            file: built
            for file, built in self._built.items()
            if file in self._asked or file in files.broken or file == "agent.yml"
        }
        for built in self._built.values():
            setup.warnings.extend(built.warnings)
        if made is None:  # the other files have been looked at all the same, for `check`
            raise ConfigError(setup.problems)
        return setup

    def _settings(self, files: Files) -> tuple[Settings, Facts] | None:
        document = files.agent or Document("agent.yml", "agent", b"", {}, self.directory)
        if "agent.yml" not in files.broken:
            made: tuple[Settings, Facts] | None = self._reuse(document)
            if made is not None:
                return made
            options = document.options()
            settings = read_settings(options)
            made = settings, _make_facts(settings)
            if not options.problems:
                self._built["agent.yml"] = _Built(document.text, made)
                return made
            files.problems.extend(options.problems)
        return self._last_good("agent.yml")  # type: ignore[no-any-return]

    def _load_backends(self, files: Files, setup: Setup) -> None:
        documents = dict(files.backends)
        if LOCAL not in documents and f"backends/{LOCAL}.yml" not in files.broken:
            documents[LOCAL] = Document(f"backends/{LOCAL}.yml", LOCAL, b"", {}, self.directory)
        for name, document in documents.items():
            backend = self._reuse(document)
            if backend is None:
                backend = self._make_backend(document, setup)
            if backend is not None:
                setup.backends[name] = backend
        for file in files.broken:
            name = file.removeprefix("backends/").rpartition(".")[0]
            if file.startswith("backends/") and file in self._built:
                setup.backends[name] = self._built[file].made

    def _make_backend(self, document: Document, setup: Setup) -> Backend | None:
        options = _flattened(document.options())
        options.text("name")
        kind = options.text("type", document.stem)
        enabled = options.flag("enabled", True)
        if kind == LOCAL and "path" not in options:
            options.fields = {**options.fields, "path": setup.settings.local_socket}
        backend: Backend | None = _make("backends", kind, options, "type")
        if options.problems or backend is None:
            setup.problems.extend(options.problems)
            return self._last_good(document.file) if enabled else None
        if not enabled:
            self._built.pop(document.file, None)
            return None
        # Files of earlier releases may hold keys that no longer mean anything.
        self._built[document.file] = _Built(document.text, backend, options.unknown())
        return backend

    def _load_tasks(self, files: Files, setup: Setup) -> None:
        tasks: list[tuple[str, Task | None]] = []
        for document in files.tasks.values():
            task = self._reuse(document)
            tasks.append((document.file, task or self._make_task(document, setup)))
        tasks.extend((file, self._last_good(file)) for file in files.broken)
        for file, task in sorted(tasks, key=lambda item: item[0]):
            if not isinstance(task, Task):
                continue
            if task.name in setup.tasks:
                expected = "a name that no other file has"
                setup.problems.append(Problem(file, "name", f"{task.name!r} again", expected))
            else:
                setup.tasks[task.name] = task
                self._check_backend(task, file, setup)

    def _make_task(self, document: Document, setup: Setup) -> Task | None:
        options = document.options()
        parsed = read_task(options, document.stem)
        channel = self._channel(parsed, options, setup)
        broker: Broker | None = None
        if parsed.broker:
            broker = _make("brokers", parsed.broker, parsed.broker_options, "", options)
        if broker is not None:
            parsed.broker_options.close()
        self._check_listening(parsed, channel, options, setup)
        if options.problems or broker is None or channel is None:
            setup.problems.extend(options.problems)
            if parsed.enabled:
                return self._last_good(document.file)  # type: ignore[no-any-return]
        if not parsed.enabled or broker is None or channel is None:
            self._built.pop(document.file, None)
            return None
        gate = self._gates.setdefault(document.file, Gate(parsed.max_running, parsed.max_queued))
        task = Task(
            parsed.name,
            broker,
            parsed.backend,
            channel,
            parsed.description,
            parsed.timeout,
            parsed.run_timeout,
            parsed.max_running,
            parsed.max_queued,
            parsed.mask,
            gate,
            parsed.arguments,
            parsed.retry,
            parsed.journal_required,
            parsed.audit_required,
            hashlib.sha256(document.text).hexdigest()[:DIGEST],
        )  # fmt: skip
        notes = [*options.notes, *parsed.backend_options.unknown()]
        self._built[document.file] = _Built(document.text, task, notes)
        return task

    def _channel(self, parsed: TaskFile, options: Options, setup: Setup) -> str | None:
        backend = self._backend(parsed.backend, setup)
        if backend is not None:
            return backend.subscription(parsed.backend_options)
        if not self._is_broken(parsed.backend, setup):
            options.problem("backend", repr(parsed.backend), _known_backends(setup))
        return None

    def _check_listening(
        self, parsed: TaskFile, channel: str | None, options: Options, setup: Setup
    ) -> None:
        """Keys of another backend: a mistake where they would have said where it listens."""
        if channel:
            options.problems.extend(
                problem
                for problem in parsed.backend_options.unknown()
                if problem.key.rpartition(".")[2] in LISTENING
            )
        backend = self._backend(parsed.backend, setup)
        if parsed.retry != NEVER and getattr(backend, "forgets", False):
            found = f"it, and the backend {parsed.backend}, so it has no effect"
            options.note("retry", found, "backend: redis_stream, whose requests can be tried again")

    def _check_backend(self, task: Task, file: str, setup: Setup) -> None:
        """A task that has not changed may have lost its backend."""
        known = any(problem.file == file for problem in setup.problems)
        missing = self._backend(task.backend, setup) is None
        if missing and not known and not self._is_broken(task.backend, setup):
            problem = Problem(file, "backend", repr(task.backend), _known_backends(setup))
            setup.problems.append(problem)

    def _backend(self, name: str, setup: Setup) -> Backend | None:
        """The backend *name*; where it has no file, one with its defaults, as documented."""
        backend = setup.backends.get(name)
        builtin = name in registry.BUILTIN["backends"]
        if backend is None and builtin and not self._is_broken(name, setup):
            document = Document(f"backends/{name}.yml", name, b"", {}, self.directory)
            backend = self._reuse(document) or self._make_backend(document, setup)
            if backend is not None:
                setup.backends[name] = backend
        return backend

    def _is_broken(self, name: str, setup: Setup) -> bool:
        """Whether its file has been complained about: one complaint is enough."""
        files = (f"backends/{name}.yml", f"backends/{name}.yaml")
        return any(problem.file in files for problem in setup.problems)

    def _reuse(self, document: Document) -> Any:
        self._asked.add(document.file)
        built = self._built.get(document.file)
        return built.made if built is not None and built.text == document.text else None

    def _last_good(self, file: str) -> Any:
        built = self._built.get(file)
        if built is not None:
            built.warnings = []
        return built.made if built is not None else None


def _known_backends(setup: Setup) -> str:
    return "one of " + ", ".join(sorted({*setup.backends, *registry.BUILTIN["backends"]}))


def _flattened(options: Options) -> Options:
    """Connection keys may stand at the top of the file or one level deeper."""
    fields: dict[str, Any] = {}
    for key, value in options.fields.items():
        if key in ("options", "backend_options") and isinstance(value, Mapping):
            fields.update({str(inner): item for inner, item in value.items()})
        else:
            fields[key] = value
    return Options(fields, options.file, "", options.problems, options.base)


def _make_facts(settings: Settings) -> Facts:
    wanted = settings.fact_sources
    if wanted is None:
        wanted = (Options({"type": "ngcp"}, "agent.yml"),) if is_ngcp() else ()
    sources = [source for one in wanted if (source := _make_fact_source(one)) is not None]
    return Facts(settings.name, settings.aliases, settings.facts, sources, socket.gethostname())


def _make_fact_source(options: Options) -> FactSource | None:
    kind = options.text("type", required="the fact source's type, such as ngcp")
    source: FactSource | None = _make("fact_sources", kind, options, "type") if kind else None
    if source is not None:
        options.close()
    return source


def _make(kind: str, name: str, options: Options, key: str, parent: Options | None = None) -> Any:
    """Build a plug-in; None and a problem if there is no such thing, or it cannot be."""
    where = parent or options
    try:
        return registry.find(kind, name)(options)
    except PluginError as exc:
        known = ", ".join(sorted(registry.BUILTIN[kind]))
        where.problem(
            key or kind[:-1], f"{name!r} ({exc})", f"one of {known}, or an installed plug-in"
        )
    except ConfigError as exc:
        options.problems.extend(exc.problems)
    except Exception as exc:
        # Somebody else's plug-in; it must not take the other files down.
        log.exception("%s %r failed", kind, name)
        where.problem(key or kind[:-1], f"{name!r}, which fails ({exc})", "a plug-in that works")
    return None


def close_later(old: Mapping[str, Task], new: Mapping[str, Task]) -> list[Task]:
    """The tasks whose broker nobody needs any more."""
    alive = {id(task.broker) for task in new.values()}
    return [task for task in old.values() if id(task.broker) not in alive]


async def close_brokers(tasks: list[Task]) -> None:
    """Tell each broker that it is not needed any more."""
    await asyncio.gather(*(task.broker.close() for task in tasks))
