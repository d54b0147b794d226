"""
``ngcp-task ping``: which agents are there, and what is true of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from .link import EXIT, ask, link_options
from .show import as_json, printable, show_missing

TASK = "agent.ping"


@click.command()
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="One JSON document at the end.")
@link_options
def ping(dst: str, timeout: float, json_: bool, **link: str | None) -> None:
    """Show the agents that answer: name, version, uptime, facts, time to the answer.

    \b
    ngcp-task ping --dst '*|role=proxy'
    """
    began = time.monotonic()
    taken: dict[object, float] = {}  # by response

    def note_time(response: dict[str, object]) -> None:
        taken[response.get("uuid")] = time.monotonic() - began

    result = ask(link, TASK, dst=dst, timeout=timeout, on_response=note_time)
    if json_:
        click.echo(as_json(result, TASK, dst))
    else:
        for run in result.runs:
            if run.status != "done":
                continue
            about, seconds = run.data, taken[run.responses[-1].get("uuid")]
            facts = " ".join(f"{key}={'+'.join(vs)}" for key, vs in sorted(about["facts"].items()))
            line = f"{run.src:<16} {about['version']:<8} {about['uptime']:>10.0f} s  {facts}"
            click.echo(printable(f"{line}  ({seconds * 1000:.0f} ms)"))
            for trouble in _troubles(about):
                click.echo(printable(f"{'':<16} {trouble}"))
        show_missing(result)
    sys.exit(EXIT[result.outcome])


def _troubles(about: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be; an older agent tells less."""
    for name, state in sorted(about.get("backends", {}).items()):
        if not state["connected"]:
            yield f"backend {name}: not connected"
    for name in ("journal", "audit"):
        record = about.get(name)
        if record and not record["ok"]:
            yield str(record["text"])
