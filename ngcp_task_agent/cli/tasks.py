"""
``ngcp-task tasks``: what the agents can be asked to do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ..client import ClientError, NodeRecord, Result
from ..fleet import task_digests
from ..messages import encode
from .columns import table, terminal_width
from .link import EXIT, EXIT_NONE, ask, link_options, open_client, reading
from .show import as_json, printable, show_missing

TASK = "agent.tasks"
HEADS = ["TASK", "FILE", "NODES", "WHERE"]
SHORT = 8  # digits of a digest that are shown


@click.command()
@click.option("--node", multiple=True, metavar="NAME", help="Only of this node; may be repeated.")
@click.option("--dst", default="*", show_default=True, metavar="DST", help="Which nodes.")
@click.option("--ask/--presence", "asked", default=None,
              help="Ask the nodes, or look into their records only.")  # fmt: skip
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.01),
              metavar="SECONDS", help="For everything, where the nodes are asked.")  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="One JSON document at the end.")
@link_options
def tasks(
    node: tuple[str, ...], dst: str, asked: bool | None, timeout: float, json_: bool,
    **link: str | None,
) -> None:  # fmt: skip
    """List the tasks and the nodes that have them.

    From the records that nodes keep in Redis (presence: yes), with the digest of the
    task's file; where files of one name differ, each is a line, marked with *. Where no
    node keeps a record, and with --ask, the nodes are asked, and tell descriptions and
    (with --json) arguments as well.

    Exit status: 0 there are nodes, 2 wrong usage, 3 there are none, 6 Redis is not reached;
    where the nodes are asked, as for ngcp-task send.

    \b
    ngcp-task tasks --node prx01a
    ngcp-task tasks --dst '*|role=proxy' --ask
    """
    if node and dst != "*":
        raise click.UsageError("--node or --dst, not both")
    dst = ",".join(node) or dst
    if not asked:
        records = _present(link, dst, asked is False)
        if records or asked is False:
            _show_present(records, json_)
    result = ask(link, TASK, dst=dst, timeout=timeout)
    if json_:
        click.echo(as_json(result, TASK, dst))
    else:
        _show(result)
        show_missing(result)
    sys.exit(EXIT[result.outcome])


def _present(link: dict[str, str | None], dst: str, only: bool) -> list[NodeRecord]:
    with open_client(link) as client, reading():
        try:
            return client.nodes(dst)
        except ClientError:
            # A socket, or a login without the right to it: those who are asked can tell.
            if only:
                raise
            return []


def _show_present(records: Sequence[NodeRecord], json_: bool) -> NoReturn:
    if json_:
        click.echo(encode(_document(records)).decode())
    elif records:
        for line in lines(records, terminal_width()):
            click.echo(printable(line))
    else:
        click.echo("ngcp-task: no such node keeps presence; --ask asks the nodes", err=True)
    sys.exit(0 if records else EXIT_NONE)


def lines(records: Sequence[NodeRecord], width: int | None = None) -> list[str]:
    """The table, and below it what its marks mean.

    Args:
        width: Of the terminal; None for long lines.
    """
    rows, differ = [], False
    for name, versions in task_digests(records).items():
        mark = "*" * (len(versions) > 1)
        differ = differ or bool(mark)
        for digest, those in sorted(versions.items(), key=lambda item: -len(item[1])):
            names = ", ".join(record.name for record in those)
            rows.append([name, digest[:SHORT] + mark, str(len(those)), names])
    notes = ["* FILE: the task's files differ between these nodes"] if differ else []
    left_out = [r.name for r in records if r.left_out.get("tasks")]
    if left_out:
        notes.append(f"more tasks than a record has room for: {', '.join(left_out)}; see --ask")
    return table(HEADS, rows, width, "NODES") + notes


def _document(records: Sequence[NodeRecord]) -> dict[str, Any]:
    return {
        "source": "presence",
        "tasks": [
            {
                "name": name,
                "differs": len(versions) > 1,
                "files": [
                    {
                        "digest": digest,
                        "nodes": [{"name": r.name, "instance": r.instance} for r in those],
                    }
                    for digest, those in versions.items()
                ],
            }
            for name, versions in task_digests(records).items()
        ],
        "left_out": {r.instance: n for r in records if (n := r.left_out.get("tasks"))},
    }


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
