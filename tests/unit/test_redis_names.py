"""Keys on Redis: which are ours, and which a client may name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.backends.redis_keys import dead_key, key_of, tag_of
from ngcp_task_agent.feedback import CONTROL_STREAM, is_feedback_key


@pytest.mark.parametrize("key", ["ngcp-task-agent-feedback:1", "orders", "{lb}:feedback:1", "a b"])
def test_a_client_may_name_what_is_not_ours(key):
    """Clients of other makes have names of their own."""
    assert is_feedback_key(key)


@pytest.mark.parametrize(
    "key", ["", CONTROL_STREAM, "mine", "ngcp-task-agent:", dead_key(CONTROL_STREAM), dead_key("x")]
)
def test_a_client_may_not_name_what_is_ours(key):
    """Trimmed and expired, requests and dead letters would be lost."""
    assert not is_feedback_key(key, {"mine"})


@given(st.text(), st.text(min_size=1))
def test_no_key_of_ours_is_a_feedback_stream(stream, kind):
    """Whatever the control stream is called."""
    assert not is_feedback_key(key_of(stream, kind))


@given(st.from_regex(r"[a-z:]+|[a-z:]*\{[a-z:]+\}[a-z:{}]*", fullmatch=True))
def test_what_belongs_to_a_stream_is_on_the_same_server(stream):
    """In a cluster a script changes both at once."""
    assert tag_of(dead_key(stream)) == tag_of(stream)


@given(st.text("ab:{}"), st.text("ab:{}"))
def test_two_streams_share_no_dead_letters(one, other):
    """Else a replay would be posted to the wrong one."""
    assert (dead_key(one) == dead_key(other)) == (one == other)
