"""
Who would take a request, and why the others would not: what `agent.match` answers, and
what a client makes of the agents' records. The matcher is that of `destination`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .destination import Destination, Node, Obstacle
from .errors import MessageError
from .presence import Fact, NodeRecord

OWN_TASKS = "agent."  # so begin the names of the tasks that agents have by themselves


class ElementMatch(NamedTuple):
    """What one element of a `dst` says of a node.

    Attributes:
        element: For example ``"prx*|state=active"``.
        selected: Whether it selects the node.
        reasons: Why not, each a text such as ``"state is standby, not active"``.
    """

    element: str
    selected: bool
    reasons: tuple[str, ...] = ()


class Match(NamedTuple):
    """What a `dst` says of one node.

    Attributes:
        name: The node's.
        instance: Tells nodes of one name apart.
        selected: Whether it would take a request with this `dst`.
        elements: One for each element, in order; one that selects is enough.
        uncertain: Whether it is not selected for what its record had no room for: only
            the node itself can tell.
        refusal: What stands against it beside the `dst`: it has no such task.
    """

    name: str
    instance: str
    selected: bool
    elements: tuple[ElementMatch, ...]
    uncertain: bool = False
    refusal: str = ""

    def as_json(self) -> dict[str, Any]:
        """A form for JSON; `read_match` reads it."""
        elements = [
            {**element._asdict(), "reasons": list(element.reasons)} for element in self.elements
        ]
        return {**self._asdict(), "elements": elements}


def match(
    dst: Destination,
    node: Node,
    instance: str,
    facts: Mapping[str, Fact],
    *,
    local: bool,
    missing: int = 0,
    task: str = "",
    tasks: Collection[str] = (),
) -> Match:
    """What *dst* says of *node*.

    Args:
        facts: Those of *node*, and the stale ones, of which it knows nothing.
        local: Whether the request is local to it.
        missing: How many more facts it has, of which nothing is known here.
        task: What it is to run, too; empty for whatever it is.
        tasks: Those it has.
    """
    verdicts = dst.explain(node, local)
    refusal = f"no task {task!r:.80}" if task and task not in tasks else ""
    selected = not refusal and any(verdict.selected for verdict in verdicts)
    uncertain = False
    elements = []
    for element, obstacles in verdicts:
        unknown = [one for one in obstacles if one.found is None and one.key not in facts]
        uncertain |= bool(missing and unknown) and len(unknown) == len(obstacles)
        reasons = tuple(_reason(one, facts, missing) for one in obstacles)
        elements.append(ElementMatch(element, not obstacles, reasons))
    uncertain = uncertain and not refusal and not selected
    return Match(node.name, instance, selected, tuple(elements), uncertain, refusal)


def match_record(dst: Destination, record: NodeRecord, src: str, task: str = "") -> Match:
    """What *dst* says of the node of *record*, for a request from *src* for *task*."""
    node = record.node
    found = match(
        dst,
        node,
        record.instance,
        record.facts,
        local=node.is_local_to(src, record.near),
        missing=record.left_out.get("facts", 0),
        task="" if task.startswith(OWN_TASKS) else task,  # those every agent has
        tasks=record.tasks,
    )
    if found.refusal and record.left_out.get("tasks"):
        return found._replace(uncertain=True)
    return found


def read_match(fields: Any) -> Match:
    """Read what `Match.as_json` has written.

    Raises:
        MessageError: It is something else.
    """
    try:
        elements = tuple(
            ElementMatch(
                str(one["element"]), one["selected"] is True, tuple(map(str, one["reasons"]))
            )
            for one in fields["elements"]
        )
        return Match(
            str(fields["name"]), str(fields["instance"]), fields["selected"] is True, elements,
            fields["uncertain"] is True, str(fields["refusal"]),
        )  # fmt: skip
    except (KeyError, TypeError) as exc:
        raise MessageError(f"no answer of agent.match: {type(exc).__name__}: {exc}") from None


def _reason(obstacle: Obstacle, facts: Mapping[str, Fact], missing: int) -> str:
    stale = facts.get(obstacle.key) if obstacle.found is None else None
    if stale is not None:
        wanted = " or ".join(obstacle.wanted)
        was = "+".join(sorted(stale.values)) or "empty"
        return f"{obstacle.key} is stale (it was {was} {stale.age or 0:.0f} s ago), not {wanted}"
    if obstacle.found is None and missing:
        return f"{obstacle} (its record has no room for {missing} facts)"
    return str(obstacle)
