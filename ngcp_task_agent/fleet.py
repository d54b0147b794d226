"""
What differs between nodes that should be alike: versions of the agent, and of tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .presence import NodeRecord


def usual(found: Iterable[str]) -> str:
    """What more have than anything else; empty where there is no such thing.

    >>> usual(["1.0", "1.1", "1.1"]), usual(["1.0", "1.1"]), usual([])
    ('1.1', '', '')
    """
    (first, most), (_, next_most) = [*Counter(found).most_common(2), ("", 0), ("", 0)][:2]
    return first if most > next_most else ""


def task_digests(records: Sequence[NodeRecord]) -> dict[str, dict[str, list[NodeRecord]]]:
    """Who has which version of each task, by the task's name and the file's digest."""
    found: dict[str, dict[str, list[NodeRecord]]] = {}
    for record in records:
        for name, mark in sorted(record.tasks.items()):
            found.setdefault(name, {}).setdefault(mark.digest, []).append(record)
    return {name: found[name] for name in sorted(found)}


def odd_tasks(records: Sequence[NodeRecord]) -> Mapping[str, list[str]]:
    """Tasks of each instance whose file is not what most nodes have; without a majority, all."""
    odd: dict[str, list[str]] = {record.instance: [] for record in records}
    for name, versions in task_digests(records).items():
        common = usual(digest for digest, those in versions.items() for _ in those)
        for digest, those in versions.items():
            if digest != common:
                for record in those:
                    odd[record.instance].append(name)
    return odd
