"""
The files under the configuration directory: read, checked for safety, taken apart.

Knows files and keys, no plug-ins and no running daemon.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import yamlfile
from .dispatch import MAX_QUEUED, MAX_RUNNING, TIMEOUT
from .errors import ConfigError, Problem
from .listening import Listening, read_listening
from .logs import FORMATS, LEVELS
from .messages import MAX_REQUEST
from .options import Options
from .ownership import stranger
from .replies import CHUNK_SIZE
from .retry import Retry, read_retry
from .schemas import Schema, read_schema

CONFIG_DIR = "/etc/ngcp-task-agent"
STATE_DIR = "/var/lib/ngcp-task-agent"
LOCAL_SOCKET = "/run/ngcp-task-agent/agent.sock"
GRACE = 10.0  # seconds
HOUSE_RUNNING = 256  # jobs of all tasks side by side
FOLDERS = ("backends", "tasks")
LARGEST = 1024 * 1024  # bytes of one file
# What a broker reads may stand at the top of a task file as well.
FOR_BROKERS = (
    "limits", "private_tmp", "no_new_privileges", "read_only_paths", "env", "env_files",
    "allow_options",
)  # fmt: skip
RESERVED = "agent."  # the agent's own tasks begin with this
_SUFFIXES = (".yml", ".yaml")
_NAME = re.compile(r"[^\s,|;=+*?\[\]]{1,255}")
_MASKED = re.compile(r"[A-Za-z_]\w*|data(\.[\w-]+)+")
_TASK_NAME = re.compile(r"[^\s/\x00-\x1f]{1,255}")


@dataclass(frozen=True)
class Document:
    """One YAML file.

    Attributes:
        file: Path below the configuration directory, for example ``tasks/ping.yml``.
        stem: The file's name without its ending.
        text: The bytes as read; equal bytes are the same configuration.
        fields: The mapping it holds.
        base: The directory that relative paths in it are relative to.
    """

    file: str
    stem: str
    text: bytes
    fields: dict[str, Any]
    base: str

    def options(self) -> Options:
        """Getters on a fresh list of problems."""
        return Options(self.fields, self.file, base=self.base)


@dataclass
class Files:
    """What the configuration directory holds; broken files are in `problems` only."""

    agent: Document | None = None
    backends: dict[str, Document] = field(default_factory=dict)
    tasks: dict[str, Document] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Limits:
    """``limits`` of agent.yml."""

    max_running: int = HOUSE_RUNNING
    max_request: int = MAX_REQUEST
    chunk_size: int = CHUNK_SIZE


@dataclass(frozen=True)
class JournalSettings:
    """``journal`` of agent.yml."""

    enabled: bool = True
    max_age: float = 7.0  # days
    max_size: int = 256 * 1024 * 1024  # bytes
    sync: str = "process"


@dataclass(frozen=True)
class AuditSettings:
    """``audit`` of agent.yml."""

    enabled: bool = False
    path: str = ""  # by default audit.jsonl in state_dir
    max_size: int = 64 * 1024 * 1024  # bytes of a file
    keep: int = 10  # older files; 0 for all


@dataclass(frozen=True)
class Settings:
    """agent.yml, all of it optional; `fact_sources` are mappings with a ``type``."""

    name: str = ""
    aliases: tuple[str, ...] = ()
    facts: dict[str, frozenset[str]] = field(default_factory=dict)
    fact_sources: tuple[Options, ...] | None = None
    state_dir: str = STATE_DIR
    local_socket: str = LOCAL_SOCKET
    grace: float = GRACE
    log_level: str = "info"
    log_format: str = "auto"
    limits: Limits = field(default_factory=Limits)
    journal: JournalSettings = field(default_factory=JournalSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    metrics: Listening | None = None


@dataclass(frozen=True)
class TaskFile:
    """A file under ``tasks/``, before its plug-ins have seen their options."""

    name: str
    description: str
    enabled: bool
    backend: str
    backend_options: Options
    broker: str
    broker_options: Options
    timeout: float | None
    run_timeout: float | None
    max_running: int
    max_queued: int
    mask: tuple[str, ...]
    arguments: Schema | None
    retry: Retry
    journal_required: bool
    audit_required: bool


def read_directory(directory: str) -> Files:
    """Read agent.yml, ``backends/*.yml`` and ``tasks/*.yml``.

    Raises:
        ConfigError: The directory is not there, or others can write in it.
    """
    if not os.path.isdir(directory):
        raise ConfigError([Problem(directory, "", "no directory", "the configuration directory")])
    found = stranger(os.stat(directory))
    if found:
        expected = "a directory that only root can write (chmod go-w, chown root)"
        raise ConfigError([Problem(directory, "", found, expected)])
    files = Files()
    for path, file in _paths(directory, files):
        document = _read(path, file, directory, files)
        if document is None:
            files.broken.add(file)
        elif "/" not in file:
            files.agent = document
        else:
            folder = files.backends if file.startswith("backends/") else files.tasks
            if document.stem in folder:
                found = f"the same name as {folder[document.stem].file}"
                files.problems.append(Problem(file, "", found, "one file for each name"))
            else:
                folder[document.stem] = document
    return files


def read_settings(options: Options) -> Settings:
    """agent.yml; mistakes are noted in *options*."""
    log, limits, facts = options.section("log"), options.section("limits"), options.section("facts")
    journal, audit = options.section("journal"), options.section("audit")
    metrics = options.section("metrics")
    settings = Settings(
        name=_host_name(options, "name", options.text("name")),
        aliases=tuple(_host_name(options, "aliases", a) for a in options.names("aliases")),
        facts={str(key): frozenset(facts.names(key)) for key in facts.fields},
        fact_sources=_fact_sources(options),
        state_dir=_absolute(options, "state_dir", STATE_DIR),
        local_socket=_absolute(options, "local_socket", LOCAL_SOCKET),
        grace=options.number("grace", GRACE, maximum=86_400, unit="seconds"),
        log_level=log.text("level", "info", choices=LEVELS),
        log_format=log.text("format", "auto", choices=FORMATS),
        limits=Limits(
            limits.integer("max_running", HOUSE_RUNNING, minimum=1),
            limits.size("max_request", MAX_REQUEST, minimum=1024),
            limits.size("chunk_size", CHUNK_SIZE, minimum=1024),
        ),
        journal=JournalSettings(
            journal.flag("enabled", True),
            journal.number("max_age", JournalSettings.max_age, minimum=0.01, unit="days"),
            journal.size("max_size", JournalSettings.max_size, minimum=1024 * 1024),
            journal.text("sync", JournalSettings.sync, choices=("process", "machine")),
        ),
        audit=AuditSettings(
            audit.flag("enabled", bool(audit.fields)),
            _absolute(audit, "path", "") if "path" in audit else "",
            audit.size("max_size", AuditSettings.max_size, minimum=64 * 1024),
            audit.integer("keep", AuditSettings.keep),
        ),
        metrics=read_listening(metrics),
    )
    for section in (log, limits, journal, audit, metrics, options):
        section.close()
    return settings


def audit_path(settings: Settings) -> str:
    """Where the audit log is, or would be."""
    return settings.audit.path or os.path.join(settings.state_dir, "audit.jsonl")


def read_task(options: Options, stem: str) -> TaskFile:
    """A file under ``tasks/``; mistakes are noted in *options*."""
    name = options.text("name", stem)
    if not _TASK_NAME.fullmatch(name) or name.startswith(RESERVED):
        options.problem("name", repr(name), f"no blanks and slashes, not {RESERVED}…")
    broker_options = options.section("broker_options")
    for key in FOR_BROKERS:
        broker_options.adopt(key, options)
    timeout = _limit(options, broker_options, "timeout")
    run_timeout = _limit(options, broker_options, "run_timeout")
    task = TaskFile(
        name=name,
        description=options.text("description"),
        enabled=options.flag("enabled", True),
        backend=options.text("backend", "redis"),
        backend_options=options.section("backend_options"),
        broker=options.text("broker", required="the broker's name, such as command"),
        broker_options=broker_options,
        timeout=TIMEOUT if timeout is None and run_timeout is None else timeout,
        run_timeout=run_timeout,
        max_running=options.integer("max_running", MAX_RUNNING, minimum=1),
        max_queued=options.integer("max_queued", MAX_QUEUED),
        mask=_mask(options, broker_options),
        arguments=read_schema(options, "arguments"),
        retry=read_retry(options, "retry"),
        journal_required=options.text("journal", choices=("required", "wanted")) == "required",
        audit_required=options.text("audit", choices=("required", "wanted")) == "required",
    )
    options.close()
    return task


def _limit(options: Options, broker_options: Options, key: str) -> float | None:
    """A time limit, at the top of the file or inside ``broker_options``."""
    if key in options and key in broker_options:
        broker_options.problem(key, "it here and at the top", "one of the two")
    # Both are asked, so that both know the key.
    above, below = options.seconds(key, 0.0), broker_options.seconds(key, 0.0)
    return above or below or None


def _mask(options: Options, broker_options: Options) -> tuple[str, ...]:
    """What must not get out, named at the top of the file or inside ``broker_options``."""
    names = (*options.names("mask"), *broker_options.names("mask"))
    for name in names:
        if not _MASKED.fullmatch(name) or name == "data":
            expected = "a variable's name, or a part of the request, such as data.password"
            options.problem("mask", repr(name), expected)
        elif name == "data.extra_args":
            options.problem("mask", repr(name), "one value; extra_args is split into words")
        elif not name.startswith("data.") and not _is_variable(name, broker_options):
            # A name that is misspelt would leave the secret open, and nobody would know.
            options.problem("mask", repr(name), "a variable of env, or of env_files")
    return names


def _is_variable(name: str, broker_options: Options) -> bool:
    fixed = broker_options.fields.get("env")
    return "env_files" in broker_options or (isinstance(fixed, dict) and name in fixed)


def _fact_sources(options: Options) -> tuple[Options, ...] | None:
    """A name, or a list of names and of mappings with a ``type``."""
    options.mark("fact_sources")
    value = options.fields.get("fact_sources")
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    named = [{"type": item} if isinstance(item, str) else item for item in items]
    view = Options({"fact_sources": named}, options.file, "", options.problems, options.base)
    return tuple(view.sections("fact_sources"))


def _absolute(options: Options, key: str, default: str) -> str:
    path = options.text(key, default)
    return os.path.join(options.base, path)


def _host_name(options: Options, key: str, name: str) -> str:
    if name and not _NAME.fullmatch(name):
        options.problem(key, repr(name), "a name without blanks and , | ; = + * ? [ ]")
    return name


def _paths(directory: str, files: Files) -> Iterator[tuple[Path, str]]:
    agent = Path(directory, "agent.yml")
    if agent.exists():
        yield agent, "agent.yml"
    for folder in FOLDERS:
        place = Path(directory, folder)
        if not place.is_dir():
            continue
        if not os.access(place, os.R_OK | os.X_OK):
            files.problems.append(Problem(folder, "", "no permission", "a readable directory"))
            continue
        found = stranger(place.stat())
        if found:
            expected = "a directory that only root can write"
            files.problems.append(Problem(folder, "", found, expected))
            files.broken.update(f"{folder}/{path.name}" for path in _yaml_files(place))
            continue
        for path in _yaml_files(place):
            yield path, f"{folder}/{path.name}"


def _yaml_files(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if is_yaml(path.name))


def is_yaml(name: str) -> bool:
    """Whether a file of this name is read: ``*.yml`` and ``*.yaml``, not hidden."""
    return name.endswith(_SUFFIXES) and not name.startswith(".")


def _read(path: Path, file: str, directory: str, files: Files) -> Document | None:
    def broken(found: str, expected: str) -> Document | None:
        files.problems.append(Problem(file, "", found, expected))
        return None

    try:
        if not path.is_file():
            return broken("no regular file", "a readable file")
        found = stranger(path.stat())
        if found:
            return broken(found, "a file that only root can write (chmod go-w, chown root)")
        if path.stat().st_size > LARGEST:
            return broken(f"{path.stat().st_size} bytes", f"at most {LARGEST}")
        text = path.read_bytes()
        fields = yamlfile.load(text)
    except OSError as exc:
        return broken(f"{exc.strerror}", "a readable file")
    except ValueError as exc:
        return broken(str(exc), "valid YAML")
    if fields is None and not file.startswith("tasks/"):
        fields = {}  # all of it may be left at its default
    if not isinstance(fields, dict) or (not fields and file.startswith("tasks/")):
        return broken("nothing" if not fields else "no mapping", "a mapping (key: value)")
    plain = {str(key): value for key, value in fields.items()}
    return Document(file, path.stem, text, plain, os.path.abspath(directory))
