"""
Answers on the screen, and as JSON.
"""

from __future__ import annotations

import re
import sys
import zlib
from typing import Any

import click

from ..client import NodeRun, Result
from ..messages import encode

LONGEST_LINE = 64 * 1024  # characters kept of a line whose end has not come
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


class Follower:
    """Shows live output line by line, the node's name in front."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], str] = {}  # lines without their end yet
        self._shown: dict[str, tuple[int, int]] = {}  # by node: characters, and a checksum

    def show(self, response: dict[str, Any]) -> None:
        """Print the whole lines of one piece; what is no live output is shown as ever."""
        src = str(response.get("src", ""))
        if response["status"] != "progress":
            self._flush(src)
            data = response.get("data")
            if isinstance(data, str) and self._shown.get(src) == _sum((0, 0), data):
                response = {**response, "data": ""}  # all of it has been shown already
            show_response(response)
            return
        key = (src, str(response.get("stream", "stdout")))
        if key[1] == "stdout":
            self._shown[src] = _sum(self._shown.get(src, (0, 0)), str(response.get("data", "")))
        *lines, rest = (self._begun.pop(key, "") + str(response.get("data", ""))).split("\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], ""
        self._begun[key] = rest
        for line in lines:
            self._print(key, line)

    def _flush(self, src: str) -> None:
        for key in [key for key in self._begun if key[0] == src]:
            line = self._begun.pop(key)
            if line:
                self._print(key, line)

    def _print(self, key: tuple[str, str], line: str) -> None:
        click.echo(printable(f"{key[0]}: {line}"), err=key[1] == "stderr")


def _sum(before: tuple[int, int], text: str) -> tuple[int, int]:
    return before[0] + len(text), zlib.crc32(text.encode("utf-8", "replace"), before[1])


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


def show_missing(result: Result, reasons: bool = True) -> None:
    """On stderr, why the whole is not done where no response has said it.

    Args:
        reasons: Whether those of nodes that failed or refused have not been shown.
    """
    if not result.runs:
        heard = result.receivers
        if heard == 0:
            click.echo("ngcp-task: no agent listens on that channel", err=True)
        elif heard is None:
            click.echo("ngcp-task: no node accepted", err=True)
        else:
            click.echo(f"ngcp-task: no node accepted; agents listening: {heard}", err=True)
    for run in result.runs:
        if run in result.unfinished:
            click.echo(
                printable(
                    f"ngcp-task: {run.src} accepted and did not end in time; it goes on, "
                    f"see ngcp-task cancel {result.uuid}"
                ),
                err=True,
            )
        elif reasons and run.reason:
            click.echo(printable(f"ngcp-task: {run.src}: {run.status}: {run.reason}"), err=True)


def _node(run: NodeRun) -> dict[str, Any]:
    return {
        "src": run.src,
        "status": run.status,
        "reason": run.reason,
        "data": run.data,
        **({"result": run.result} if run.result is not None else {}),
        "responses": run.responses,
    }
