"""
``ngcp-task cancel``: end jobs that wait or run.
"""

from __future__ import annotations

import sys

import click

from ..client import Outcome, Result
from .link import EXIT, ask, link_options
from .show import as_json, printable, show_missing

TASK = "agent.cancel"
TIMEOUT = 15.0  # seconds; processes get SIGTERM, and 5 seconds later SIGKILL


@click.command()
@click.argument("ref", nargs=-1, required=True)
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option("--timeout", default=TIMEOUT, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For each of them.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="One JSON document for each, a line each.")
@link_options
def cancel(ref: tuple[str, ...], dst: str, timeout: float, json_: bool, **link: str | None) -> None:
    """End the jobs of the requests whose uuid is REF, on every node that DST selects.

    It says done once nothing of them is left. Their clients get an error, "cancelled by"
    this host. Exit status 1 means that no node has such a job, or not any more.

    \b
    ngcp-task jobs --running
    ngcp-task cancel 18d0f568-4a6c-4775-a8a9-6beb2e0372a8
    """
    worst = 0
    for uuid in ref:
        result = ask(link, TASK, dst=dst, data={"ref": uuid}, timeout=timeout)
        if json_:
            click.echo(as_json(result, TASK, dst))
        else:
            _show(result, uuid)
        worst = max(worst, _status(result))
    sys.exit(worst)


def _show(result: Result, uuid: str) -> None:
    ended = [run for run in result.runs if run.status == "done"]
    for run in ended:
        for job in run.data["cancelled"]:
            click.echo(printable(f"{run.src}: cancelled {job['task']} {uuid}"))
    if not ended:
        for run in result.runs:
            if run.ended:
                click.echo(printable(f"ngcp-task: {run.src}: {run.reason}"), err=True)
    show_missing(result, reasons=False)


def _status(result: Result) -> int:
    """Nodes that do not have the job are no failure where one has."""
    states = {run.status for run in result.runs}
    if "done" in states and "accepted" not in states:
        return 0
    return EXIT[result.outcome] if states else EXIT[Outcome.NO_ANSWER]
