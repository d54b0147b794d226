"""
How the client reaches the agents: options, environment, files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import click

from .. import yamlfile
from ..backends.redis_dead import DeadLetters
from ..backends.redis_stream_keys import SUBSCRIPTION, Subscription
from ..client import CONTROL_CHANNEL, Client, ClientError, FeedbackLost, Outcome, Result
from ..config import CONFIG_DIR, LOCAL_SOCKET
from ..errors import BackendError, MessageError, TaskAgentError
from ..feedback import CONTROL_STREAM
from ..options import Options

EXIT = {
    Outcome.DONE: 0,
    Outcome.ERROR: 1,
    Outcome.NO_ANSWER: 3,
    Outcome.REJECTED: 4,
    Outcome.UNFINISHED: 5,
}
EXIT_NONE = EXIT[Outcome.NO_ANSWER]
EXIT_UNREACHABLE = 6
EXIT_INTERRUPTED = 130  # as shells say it of SIGINT
KEYS = ("redis", "socket", "config_dir", "channel", "src")
STREAMS = "redis_stream"  # the backend of durable tasks
BACKENDS = ("redis", STREAMS)
DURABLE = (STREAMS, "redis")  # the other way round: a stream may be on a server of its own
DEEPER = ("options", "backend_options")

F = TypeVar("F", bound=Callable[..., Any])


def link_options(function: F) -> F:
    """Add the options that say where the agents are; before the verb or after it."""
    for option in (
        click.option("--src", metavar="NAME", help="This host's name, as the agents shall see it."),
        click.option(
            "--channel",
            metavar="NAME",
            help=f"Control channel; default the task's in --config-dir, else {CONTROL_CHANNEL}.",
        ),
        click.option(
            "--config-dir",
            metavar="DIR",
            help="Where backends/redis.yml and redis_stream.yml are looked for "
            f"(default {CONFIG_DIR}).",
        ),
        click.option("--socket", metavar="PATH", help="Socket of the agent on this host."),
        click.option("--redis", metavar="URL", help="redis://…, rediss://… or unix://PATH."),
    ):
        function = option(function)
    return function


def remember_link(context: click.Context, link: Mapping[str, str | None]) -> None:
    """Keep what was said before the verb."""
    context.obj = dict(link)


def open_client(link: Mapping[str, Any], task: str = "", control_stream: str = "") -> Client:
    """The client for what was said, before and after the verb.

    Args:
        link: The options after the verb; those before it are in click's context.
        task: Looked up for its control channel.
        control_stream: Where requests are posted, if they are: on the server of the streams.
    """
    said, directory = _said(link)
    channel = said["channel"] or _file(directory, task).channel or CONTROL_CHANNEL
    kwargs = {"channel": channel, "src": said["src"] or ""}
    path, server = _way(said, directory, DURABLE if control_stream else BACKENDS)
    with failing():
        return Client.local(path, **kwargs) if path else Client.redis(server, **kwargs)


def posting(link: Mapping[str, Any], task: str) -> tuple[str, bool]:
    """Where requests for *task* are posted, as its file says.

    Returns:
        The control stream, empty for a task that has none, or where another way was
        said; and whether one node of a pool runs each request.
    """
    said, directory = _said(link)
    if said["channel"] or _way(said, directory, DURABLE)[0]:
        return "", False
    found = _file(directory, task)
    return found.stream, found.pool


def open_dead(link: Mapping[str, Any]) -> DeadLetters:
    """The dead letters of ``--control-stream``, or of ``--task``."""
    said, directory = _said(link)
    stream, task = link.get("control_stream"), link.get("task")
    if task and stream:
        raise click.UsageError("--task or --control-stream, not both")
    if task:
        stream = _file(directory, task).stream
        if not stream:
            raise click.BadParameter(f"{task} has no control stream here", param_hint="--task")
    path, server = _way(said, directory, DURABLE)
    if path:
        raise click.UsageError("dead letters are kept by Redis: say --redis URL")
    fields = {"url": server} if isinstance(server, str) else server
    return DeadLetters(fields, stream or CONTROL_STREAM)


def ask(link: Mapping[str, Any], task: str, **request: Any) -> Result:
    """Send one request and wait; leaves where the agents are not reached.

    Args:
        link: As for `open_client`.
        request: As for `Client.send`.
    """
    with open_client(link) as client, failing():
        return client.send(task, **request)


@contextmanager
def failing() -> Iterator[None]:
    """Say that the agents are not reached, or what they have said is gone, and leave."""
    try:
        yield
    except (BackendError, ClientError) as exc:
        fail(exc)


@contextmanager
def reading() -> Iterator[None]:
    """The same; a DST that cannot be read is wrong usage."""
    try:
        with failing():
            yield
    except MessageError as exc:
        raise click.BadParameter(str(exc), param_hint="DST") from None


def fail(exc: TaskAgentError) -> NoReturn:
    """Say it, and leave."""
    click.echo(f"ngcp-task: {exc}", err=True)
    sys.exit(EXIT_NONE if isinstance(exc, FeedbackLost) else EXIT_UNREACHABLE)


def _said(link: Mapping[str, Any]) -> tuple[dict[str, str | None], str]:
    """What was said before and after the verb, and the directory of files."""
    context = click.get_current_context(silent=True)
    before = (context.obj if context is not None else None) or {}
    said = {key: link.get(key) or before.get(key) for key in KEYS}
    directory = said["config_dir"] or CONFIG_DIR
    if said["config_dir"] and not os.path.isdir(directory):
        raise click.BadParameter(f"no directory {directory}", param_hint="--config-dir")
    return said, directory


def _way(
    said: Mapping[str, str | None], directory: str, backends: tuple[str, ...] = BACKENDS
) -> tuple[str, Any]:
    """A socket's path, or else a Redis server.

    Args:
        backends: Whose file is asked for the server, the first that there is.
    """
    if said["socket"] or said["redis"]:
        return said["socket"] or "", said["redis"]
    path, url = os.environ.get("NGCP_TASK_SOCKET", ""), os.environ.get("NGCP_TASK_REDIS", "")
    if path or url:
        return path, url
    for name in backends:
        fields = _backend(directory, name)
        if fields is not None:
            return "", _server(fields, directory)
    agent = _read(Path(directory, "agent.yml")) or {}
    path = os.path.join(directory, str(agent.get("local_socket") or LOCAL_SOCKET))
    return (path, None) if os.path.exists(path) else ("", "redis://localhost:6379")


def _server(fields: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """The agent's server, as a client reaches it."""
    server = {key: value for key, value in fields.items() if key != "client_name"}
    for key in ("password_file", "sentinel_password_file",
                "tls_ca_file", "tls_cert_file", "tls_key_file"):  # fmt: skip
        if isinstance(server.get(key), str) and not server[key].startswith("$"):
            server[key] = os.path.join(os.path.abspath(directory), server[key])
    return server


class _Task(NamedTuple):
    channel: str = ""
    stream: str = ""
    pool: bool = False


def _file(directory: str, task: str) -> _Task:
    """What the task's file says of the way to it."""
    if not task or "/" in task:
        return _Task()
    fields = _read(Path(directory, "tasks", f"{task}.yml")) or {}
    options = fields.get("backend_options")
    options = options if isinstance(options, dict) else {}
    if fields.get("backend") == STREAMS:
        if all(options.get(key) is None for key in SUBSCRIPTION):
            options = _backend(directory, STREAMS) or {}  # its defaults, as for the agent
        found = Subscription.read(Options(options, task))
        return _Task("", found.stream, bool(found.pool))
    channel = options.get("control_channel")
    return _Task(channel if isinstance(channel, str) else "")


def _backend(directory: str, name: str) -> dict[str, Any] | None:
    """The keys of a backend's file, which may stand one level deeper as well."""
    fields = _read(Path(directory, "backends", f"{name}.yml"))
    if fields is None:
        return None
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat.update(value if key in DEEPER and isinstance(value, dict) else {key: value})
    return flat


def _read(path: Path) -> dict[str, Any] | None:
    # A file that only root may read is no reason to fail: there are other ways.
    try:
        fields = yamlfile.load(path.read_bytes())
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None
