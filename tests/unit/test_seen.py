"""The filter before the ledger: a request that was here is never taken for a new one."""

from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.seen import FULL, Seen

keys = st.tuples(st.text(max_size=8), st.uuids().map(str))


@given(st.lists(keys), st.lists(keys), st.lists(keys))
def test_what_was_added_since_the_turn_before_is_there(long_ago, before, since):
    seen = Seen()
    for key in long_ago:
        seen.add(key)
    seen.turn()
    for key in before:
        seen.add(key)
    seen.turn()
    for key in since:
        seen.add(key)

    assert all(key in seen for key in before + since)
    assert seen.count <= len(set(since) - set(before))


def test_what_is_new_is_seldom_taken_for_old():
    """Else it would be of no use; and what was given up does not count for ever."""
    seen = Seen()
    for number in range(FULL // 8):
        seen.add(("web01a", number))
    wrong = sum(("web01b", number) in seen for number in range(10_000))
    assert wrong < 100

    seen.turn()
    seen.turn()
    assert sum(("web01a", number) in seen for number in range(10_000)) == 0
