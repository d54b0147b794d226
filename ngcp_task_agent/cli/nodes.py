"""
``ngcp-task nodes``: which nodes are there, as they tell it themselves.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from ..client import Client, NodeRecord
from ..fleet import odd_tasks, usual
from ..messages import encode
from .columns import span, table, terminal_width
from .link import EXIT_NONE, link_options, open_client, reading
from .show import printable

HEADS = ["NODE", "INSTANCE", "VERSION", "UP", "RUN", "WAIT", "TASKS", "SEEN", "FACTS"]
SHORT = 8  # digits of an instance that are shown
NOBODY = (
    "ngcp-task: no node keeps presence here (presence: yes, in its backends/redis.yml); "
    "ngcp-task ping asks the nodes"
)


@click.command()
@click.argument("dst", default="*")
@click.option("--json", "json_", is_flag=True, help="One JSON document.")
@link_options
def nodes(dst: str, json_: bool, **link: str | None) -> None:
    """List the nodes that DST selects, from the records that they keep in Redis.

    Shown are the node's name, what tells it from others of that name, the agent's
    version, how long it runs, jobs that run and that wait, tasks, how long ago all this
    was true, and facts. Marked are versions (*) and tasks (*) that are not what most of
    these nodes have, and facts that are stale (?), which match nothing.

    Exit status: 0 there is one, 2 DST is malformed, 3 there is none, 6 Redis is not reached.

    \b
    ngcp-task nodes
    ngcp-task nodes '*|role=proxy' --json
    """
    with open_client(link) as client, reading():
        records = client.nodes(dst)
        if not records:
            _tell_none(client, dst)
    if json_:
        click.echo(encode(_document(records)).decode())
    elif records:
        for line in lines(records, terminal_width()):
            click.echo(printable(line))
    sys.exit(0 if records else EXIT_NONE)


def _tell_none(client: Client, dst: str) -> None:
    there = len(client.nodes())
    none = f"ngcp-task: {dst} selects none of {there} nodes; see ngcp-task match"
    click.echo(printable(none if there else NOBODY), err=True)


def lines(records: Sequence[NodeRecord], width: int | None = None) -> list[str]:
    """The table, and below it what its marks mean.

    Args:
        width: Of the terminal; None for long lines.
    """
    versions = Counter(record.version for record in records)
    common, odd = usual(versions.elements()), odd_tasks(records)
    rows = [
        [
            record.name,
            record.instance[:SHORT],
            record.version + "*" * (len(versions) > 1 and record.version != common),
            span(record.uptime),
            str(record.running),
            str(record.queued),
            str(len(record.tasks)) + "*" * bool(odd[record.instance]),
            span(record.seen),
            _facts(record),
        ]
        for record in records
    ]
    return table(HEADS, rows, width, "UP RUN WAIT SEEN") + _notes(records, versions, odd)


def _facts(record: NodeRecord) -> str:
    words = [
        f"{key}={'+'.join(sorted(values))}" + (f"?({span(age or 0)})" if stale else "")
        for key, (values, age, stale) in sorted(record.facts.items())
    ]
    words += [f"({count} {kind} left out)" for kind, count in record.left_out.items() if count]
    return " ".join(words)


def _notes(records: Sequence[NodeRecord], versions: Counter[str], odd: Any) -> list[str]:
    notes = []
    if len(versions) > 1:
        each = ", ".join(f"{version} on {count}" for version, count in versions.most_common())
        notes.append(f"* VERSION: they differ: {each}")
    if any(odd.values()):
        notes.append("* TASKS: files that differ from those of most nodes; see ngcp-task tasks")
    if any(fact.stale for record in records for fact in record.facts.values()):
        notes.append("? FACTS: stale, and therefore nobody's to match")
    return notes


def _document(records: Sequence[NodeRecord]) -> dict[str, Any]:
    versions = Counter(record.version for record in records)
    common, odd = usual(versions.elements()), odd_tasks(records)
    return {
        "nodes": [
            {
                **record.as_json(),
                "version_differs": len(versions) > 1 and record.version != common,
                "tasks_differ": odd[record.instance],
            }
            for record in records
        ],
        "versions": dict(versions),
    }
