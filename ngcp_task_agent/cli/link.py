"""
How the client reaches the agents: options, environment, files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from .. import yamlfile
from ..client import CONTROL_CHANNEL, Client, ClientError, Outcome
from ..config import CONFIG_DIR, LOCAL_SOCKET

EXIT = {
    Outcome.DONE: 0,
    Outcome.ERROR: 1,
    Outcome.NO_ANSWER: 3,
    Outcome.REJECTED: 4,
    Outcome.UNFINISHED: 5,
}
EXIT_UNREACHABLE = 6
EXIT_INTERRUPTED = 130  # as shells say it of SIGINT
KEYS = ("redis", "socket", "config_dir", "channel", "src")

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
            help=f"Where backends/redis.yml is looked for (default {CONFIG_DIR}).",
        ),
        click.option("--socket", metavar="PATH", help="Socket of the agent on this host."),
        click.option("--redis", metavar="URL", help="redis://…, rediss://… or unix://PATH."),
    ):
        function = option(function)
    return function


def remember_link(context: click.Context, link: Mapping[str, str | None]) -> None:
    """Keep what was said before the verb."""
    context.obj = dict(link)


def open_client(link: Mapping[str, Any], task: str = "") -> Client:
    """The client for what was said, before and after the verb.

    Args:
        link: The options after the verb; those before it are in click's context.
        task: Looked up for its control channel.
    """
    before = click.get_current_context().obj or {}
    said = {key: link.get(key) or before.get(key) for key in KEYS}
    directory = said["config_dir"] or CONFIG_DIR
    if said["config_dir"] and not os.path.isdir(directory):
        raise click.BadParameter(f"no directory {directory}", param_hint="--config-dir")
    channel = said["channel"] or _channel(directory, task) or CONTROL_CHANNEL
    kwargs = {"channel": channel, "src": said["src"] or ""}
    path, server = _way(said, directory)
    try:
        return Client.local(path, **kwargs) if path else Client.redis(server, **kwargs)
    except ClientError as exc:
        fail(exc)


def fail(exc: ClientError) -> NoReturn:
    """Say that the agents are not reached, and leave."""
    click.echo(f"ngcp-task: {exc}", err=True)
    sys.exit(EXIT_UNREACHABLE)


def _way(said: Mapping[str, str | None], directory: str) -> tuple[str, Any]:
    """A socket's path, or else a Redis server."""
    if said["socket"] or said["redis"]:
        return said["socket"] or "", said["redis"]
    path, url = os.environ.get("NGCP_TASK_SOCKET", ""), os.environ.get("NGCP_TASK_REDIS", "")
    if path or url:
        return path, url
    fields = _read(Path(directory, "backends", "redis.yml"))
    if fields is not None:
        return "", _server(fields, directory)
    agent = _read(Path(directory, "agent.yml")) or {}
    path = os.path.join(directory, str(agent.get("local_socket") or LOCAL_SOCKET))
    return (path, None) if os.path.exists(path) else ("", "redis://localhost:6379")


def _server(fields: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """The agent's server, as a client reaches it."""
    inner = fields.get("backend_options") or fields.get("options") or {}
    server = {k: v for k, v in {**fields, **inner}.items() if k != "client_name"}
    for key in ("password_file", "sentinel_password_file",
                "tls_ca_file", "tls_cert_file", "tls_key_file"):  # fmt: skip
        if isinstance(server.get(key), str) and not server[key].startswith("$"):
            server[key] = os.path.join(os.path.abspath(directory), server[key])
    return server


def _channel(directory: str, task: str) -> str:
    if not task or "/" in task:
        return ""
    fields = _read(Path(directory, "tasks", f"{task}.yml")) or {}
    options = fields.get("backend_options")
    channel = options.get("control_channel") if isinstance(options, dict) else None
    return channel if isinstance(channel, str) else ""


def _read(path: Path) -> dict[str, Any] | None:
    # A file that only root may read is no reason to fail: there are other ways.
    try:
        fields = yamlfile.load(path.read_bytes())
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None
