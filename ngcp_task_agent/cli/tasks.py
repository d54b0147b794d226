"""
``ngcp-task tasks``: what the agents can be asked to do.
"""

from __future__ import annotations

import sys

import click

from ..client import Result
from .link import EXIT, ask, link_options
from .show import as_json, printable, show_missing

TASK = "agent.tasks"


@click.command()
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="One JSON document at the end.")
@link_options
def tasks(dst: str, timeout: float, json_: bool, **link: str | None) -> None:
    """List the tasks and the nodes that have them.

    \b
    ngcp-task tasks --dst prx01a
    """
    result = ask(link, TASK, dst=dst, timeout=timeout)
    if json_:
        click.echo(as_json(result, TASK, dst))
    else:
        _show(result)
        show_missing(result)
    sys.exit(EXIT[result.outcome])


def _show(result: Result) -> None:
    where: dict[str, list[str]] = {}
    about: dict[str, str] = {}
    for run in result.runs:
        for task in run.data or ():
            where.setdefault(task["name"], []).append(run.src)
            about.setdefault(task["name"], task["description"])
    for name in sorted(where):
        nodes = ", ".join(sorted(where[name]))
        click.echo(printable(f"{name:<32} {nodes:<24} {about[name]}".rstrip()))
