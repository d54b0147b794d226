"""Rules 3, 9 and 11: accepted at once, side by side, and an end before clients go away."""

import statistics
import time

import pytest

pytestmark = pytest.mark.redis

BURST = 60
ACCEPT_LIMIT = 1.0  # seconds for the slowest accepted of a burst; 2 s is when clients give up


def latencies(listener, refs):
    return [listener.at(ref, "accepted") - listener.sent[ref] for ref in refs]


def test_rule_3_accepted_is_prompt_and_never_behind_a_running_task(listener):
    """With one job running and others waiting, the next is accepted at once all the same."""
    refs = []
    for _ in range(5):
        refs.append(listener.send("one_at_a_time", "sp1"))
        listener.hear_until(lambda: listener.statuses(refs[-1]) == ["accepted"], 2)
    waiting = sum(not listener.ended(ref) for ref in refs)
    seconds = latencies(listener, refs)
    print(f"accepted: median {statistics.median(seconds):.4f} s, slowest {max(seconds):.4f} s")

    assert waiting >= 3
    assert max(seconds) < ACCEPT_LIMIT
    listener.talk_all(refs)
    assert {tuple(listener.statuses(ref)) for ref in refs} == {("accepted", "done")}


def test_rule_3_median_of_accepted(listener):
    """One request at a time, the median of 50: generous here, 5 ms by the protocol."""
    seconds = []
    for _ in range(50):
        ref = listener.send("noop", "sp1")
        listener.talk(ref)
        seconds += latencies(listener, [ref])
    print(f"accepted: median {statistics.median(seconds):.4f} s, slowest {max(seconds):.4f} s")

    assert statistics.median(seconds) < 0.1


def test_rule_3_twins_are_accepted_before_the_first_done(listener):
    """A node whose accepted comes after another's done is missed by clients."""
    refs = [listener.send("side_by_side", "*") for _ in range(5)]
    listener.talk_all(refs, ends=3)

    for ref in refs:
        assert listener.statuses(ref) == ["accepted"] * 3 + ["done"] * 3


@pytest.mark.parametrize(("dst", "nodes"), [("sp1", 1), ("*", 3)])
def test_rule_11_a_burst_is_accepted_at_once_and_runs_side_by_side(listener, dst, nodes):
    """Sixty in one pipeline: none lost, none slow; one by one they would take 15 s a node."""
    refs = listener.send_all([listener.make("side_by_side", dst) for _ in range(BURST)])
    start = time.monotonic()
    listener.talk_all(refs, ends=nodes, seconds=12)
    seconds = [
        m.at - listener.sent[m.body["ref"]]
        for m in listener.heard
        if m.body["status"] == "accepted"
    ]
    print(f"burst of {BURST} to {nodes}: slowest accepted {max(seconds):.4f} s")

    assert len(seconds) == BURST * nodes
    assert max(seconds) < ACCEPT_LIMIT
    assert time.monotonic() - start < 8
    for ref in refs:
        assert sorted(listener.statuses(ref)) == ["accepted"] * nodes + ["done"] * nodes


def test_rule_9_default_limit_counts_from_accepted_with_the_wait(listener):
    """Running or still waiting in the queue, each has its error 9.5 s after accepted."""
    refs = [listener.send("default_limit", "sp1") for _ in range(3)]
    listener.talk_all(refs, seconds=12)

    for ref in refs:
        assert listener.statuses(ref) == ["accepted", "error"]
        assert 9.2 < listener.at(ref, "error") - listener.at(ref, "accepted") < 10
