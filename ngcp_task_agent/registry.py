"""
Plug-ins by name: our own from a table, other people's from entry points.

Tables hold import strings, not classes, so that naming a plug-in in a file is what
imports it: the daemon is root, and nobody's code runs unasked.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from .errors import PluginError

BUILTIN: Mapping[str, Mapping[str, str]] = {
    "backends": {
        "redis": "ngcp_task_agent.backends.redis:RedisBackend",
        "redis_stream": "ngcp_task_agent.backends.redis_stream:RedisStreamBackend",
        "local": "ngcp_task_agent.backends.local:LocalBackend",
    },
    "brokers": {
        "command": "ngcp_task_agent.brokers.command:CommandBroker",
        "python": "ngcp_task_agent.brokers.python:PythonBroker",
        "http": "ngcp_task_agent.brokers.http:HttpBroker",
    },
    "fact_sources": {
        "static": "ngcp_task_agent.nodes.static:StaticSource",
        "ngcp": "ngcp_task_agent.nodes.ngcp:NgcpSource",
        "command": "ngcp_task_agent.nodes.command:CommandSource",
        "file": "ngcp_task_agent.nodes.file:FileSource",
    },
}


def find(kind: str, name: str) -> Any:
    """Import the plug-in called *name*.

    Args:
        kind: A key of `BUILTIN`, and the last part of the entry point group
            ``ngcp_task_agent.<kind>``.
        name: As written in the YAML file.

    Returns:
        The factory, most often a class.

    Raises:
        PluginError: Unknown name, a name claimed twice, or a failed import.
    """
    # Our own need no look at every installed package's entry points.
    target = BUILTIN[kind].get(name) or known(kind).get(name)
    what = kind[:-1].replace("_", " ")
    if target is None:
        raise PluginError(f"no {what} called {name!r}; known are {', '.join(sorted(known(kind)))}")
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as exc:
        raise PluginError(f"{what} {name!r} cannot be loaded: {exc}") from exc


def known(kind: str) -> dict[str, str]:
    """Every name of *kind* and its import string, without importing any.

    Raises:
        PluginError: Two packages claim one name.
    """
    table = dict(BUILTIN[kind])
    for point in entry_points(group=f"ngcp_task_agent.{kind}"):
        if table.setdefault(point.name, point.value) != point.value:
            raise PluginError(
                f"{kind[:-1].replace('_', ' ')} {point.name!r} is claimed by "
                f"{table[point.name]} and {point.value}"
            )
    return table
