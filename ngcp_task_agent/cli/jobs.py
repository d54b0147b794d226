"""
``ngcp-task jobs``: what waits and runs on the nodes, and what has ended.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from ..client import Result
from .link import EXIT, ask, link_options
from .show import as_json, printable, show_missing

TASK = "agent.jobs"
PRESENT = ("queued", "running", "ending")
LINE = "{node:<16} {state:<8} {task:<24} {age:>7} {cpu:>8} {memory:>8}  {uuid}  {src}{reason}"


@click.command()
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option("--running", is_flag=True, help="Only those that have not ended.")
@click.option("--ref", metavar="UUID", help="Only those of this request.")
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="One JSON document at the end.")
@link_options
def jobs(
    dst: str, running: bool, ref: str | None, timeout: float, json_: bool, **link: str | None
) -> None:
    """List jobs: those that wait or run, then the last thousand that have ended.

    Shown are node, state, task, seconds since the request (or, once it has ended, that it
    took), processor seconds, resident memory (once ended, the highest), uuid and client.

    \b
    ngcp-task jobs --running --dst 'prx*'
    """
    data = {"ref": ref} if ref else None
    result = ask(link, TASK, dst=dst, data=data, timeout=timeout)
    if running:
        for run in result.runs:
            run.data = [job for job in run.data or () if job["state"] in PRESENT]
    if json_:
        click.echo(as_json(result, TASK, dst))
    else:
        _show(result)
        show_missing(result)
    sys.exit(EXIT[result.outcome])


def _show(result: Result) -> None:
    click.echo(LINE.format(node="NODE", state="STATE", task="TASK", age="SECONDS", cpu="CPU",
                           memory="MEMORY", uuid="UUID", src="CLIENT", reason=""))  # fmt: skip
    for run in result.runs:
        for job in run.data or ():
            click.echo(printable(_line(run.src, job)))


def _line(node: str, job: dict[str, Any]) -> str:
    memory = job["memory"] or job["peak_memory"]
    return LINE.format(
        node=node, state=job["state"], task=job["task"], uuid=job["uuid"], src=job["src"],
        age=f"{(job['ended'] or time.time()) - job['queued']:.1f}",
        cpu="-" if job["cpu_seconds"] is None else f"{job['cpu_seconds']:.2f}",
        memory="-" if memory is None else f"{memory / 1024 / 1024:.1f}M",
        reason=f"  ({job['reason']})" if job["reason"] else "",
    )  # fmt: skip
