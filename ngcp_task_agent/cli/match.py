"""
``ngcp-task match``: who would take a request, and why the others would not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ..client import ClientError, Match, Outcome
from ..messages import encode
from .columns import table, terminal_width
from .link import EXIT, EXIT_NONE, link_options, open_client, reading
from .nodes import SHORT
from .show import printable

HEADS = ["NODE", "INSTANCE", "TAKES", "WHY"]
EXIT_SILENT = EXIT[Outcome.UNFINISHED]
NOBODY = (
    "ngcp-task: no node keeps presence here (presence: yes, in its backends/redis.yml); "
    "--ask asks the nodes"
)


@click.command()
@click.argument("dst")
@click.option("--task", default="", metavar="NAME", help="A node has to have this task, too.")
@click.option("--ask", is_flag=True, help="Ask the nodes, instead of looking into their records.")
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="With --ask: for all of them.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="One JSON document.")
@link_options
def match(dst: str, task: str, ask: bool, timeout: float, json_: bool, **link: str | None) -> None:
    """Show which nodes would take a request for DST, and why the others would not.

    For each node, the elements of DST, and what of each does not hold. It is told by the
    records that nodes keep in Redis (presence: yes), some seconds old; with --ask by the
    nodes themselves.

    Exit status: 0 somebody takes it, 2 DST is malformed, 3 nobody does, 5 with --ask a
    node that keeps a record has not answered, 6 Redis or the agent is not reached.

    \b
    ngcp-task match '*|state=active;role=proxy'
    ngcp-task match 'prx*,db01?|state=active' --task backup --ask --json
    """
    silent: list[str] = []
    with open_client(link) as client, reading():
        found = client.match(dst, task=task, ask=ask, timeout=timeout)
        if ask:
            heard = {one.instance for one in found}
            try:
                silent = [n.name for n in client.nodes() if n.instance not in heard]
            except ClientError:
                pass  # nobody keeps a record there: it is not known who is missing
    if json_:
        document = {"dst": dst, "task": task, "source": "nodes" if ask else "presence",
                    "nodes": [one.as_json() for one in found], "silent": silent}  # fmt: skip
        click.echo(encode(document).decode())
    elif found:
        for line in lines(found, terminal_width()):
            click.echo(printable(line))
    if not found:
        click.echo("ngcp-task: no node has answered" if ask else NOBODY, err=True)
    for name in silent:
        click.echo(printable(f"ngcp-task: {name} has not answered"), err=True)
    if silent:
        sys.exit(EXIT_SILENT)
    sys.exit(0 if any(one.selected for one in found) else EXIT_NONE)


def lines(found: Sequence[Match], width: int | None = None) -> list[str]:
    """The table: those that take it first.

    Args:
        width: Of the terminal; None for long lines.
    """
    rows = [
        [one.name, one.instance[:SHORT], _word(one), _why(one)]
        for one in sorted(found, key=lambda one: not one.selected)
    ]
    return table(HEADS, rows, width)


def _word(one: Match) -> str:
    return "yes" if one.selected else "perhaps" if one.uncertain else "no"


def _why(one: Match) -> str:
    if one.refusal and any(element.selected for element in one.elements):
        return one.refusal
    if one.selected:
        return "\n".join(element.element for element in one.elements if element.selected)
    return "\n".join(f"{element}: {'; '.join(reasons)}" for element, _, reasons in one.elements)
