"""Responses are filed under the node they came from, as far as that can be told."""

from itertools import combinations

import pytest

from ngcp_task_agent.client_result import Result


def pieces(status, *texts):
    """What one node sends at its end."""
    for number, text in enumerate(texts, 1):
        yield {"src": "prx01a", "status": status, "data": text,
               "chunk": number, "chunks": len(texts)}  # fmt: skip


def merged(one, other):
    """Every order in which two nodes may be heard."""
    size = len(one) + len(other)
    for places in combinations(range(size), len(one)):
        left, right = iter(one), iter(other)
        yield [next(left) if place in places else next(right) for place in range(size)]


@pytest.mark.parametrize("status", ["done", "error"])
def test_pieces_of_two_nodes_of_one_name_do_not_mix(status):
    """Another number of pieces, or another status, is another node's."""
    one = list(pieces("done", "a", "b", "c"))
    other = list(pieces(status, *("xyz" if status == "error" else "xy")))

    for order in merged(one, other):
        result = Result("r")
        for _ in range(2):
            result.add({"src": "prx01a", "status": "accepted"})
        for response in order:
            result.add(dict(response))

        assert len(result.runs) == 2
        assert {run.data for run in result.runs} == {"abc", "xyz"[: len(other)]}
