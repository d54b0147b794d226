"""
Answers on the screen, and as JSON.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from ..client import NodeRun, Result
from ..messages import encode

# What a node sends must not move the cursor or rename the window of who reads it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""On a terminal, control characters made visible; elsewhere as it is.

    >>> printable("plain\ttext")
    'plain\ttext'
    """
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        return text
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def show_response(response: dict[str, Any]) -> None:
    """One line for a response as it arrives, and its data below."""
    line = f"{response.get('src', '')}: {response['status']}"
    if response.get("reason"):
        line += f" ({response['reason']})"
    if response.get("chunks", 1) > 1:
        line += f" [{response.get('chunk')}/{response['chunks']}]"
    click.echo(printable(line))
    show_data(response.get("data"))


def show_data(data: Any) -> None:
    """A result: text as it is, anything else as JSON."""
    if data in (None, ""):
        return
    text = data if isinstance(data, str) else encode(data).decode()
    click.echo(printable(text), nl=not text.endswith("\n"))


def as_json(result: Result, task: str, dst: str) -> str:
    """The whole as one JSON document."""
    return encode(
        {
            "uuid": result.uuid,
            "task": task,
            "dst": dst,
            "outcome": str(result.outcome),
            "receivers": result.receivers,
            "nodes": [_node(run) for run in result.runs],
        }
    ).decode()


def show_missing(result: Result) -> None:
    """On stderr, why the whole is not done where no response has said it."""
    if not result.runs:
        heard = result.receivers
        if heard == 0:
            click.echo("ngcp-task: no agent listens on that channel", err=True)
        elif heard is None:
            click.echo("ngcp-task: no node accepted", err=True)
        else:
            click.echo(f"ngcp-task: no node accepted; agents listening: {heard}", err=True)
    for run in result.runs:
        if not run.ended:
            click.echo(
                printable(f"ngcp-task: {run.src} accepted and did not end in time"), err=True
            )


def _node(run: NodeRun) -> dict[str, Any]:
    return {
        "src": run.src,
        "status": run.status,
        "reason": run.reason,
        "data": run.data,
        "responses": run.responses,
    }
