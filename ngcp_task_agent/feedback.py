"""
Which Redis keys may be a feedback stream: what a client names there is trimmed and expires.
"""

from __future__ import annotations

from collections.abc import Collection

CONTROL_STREAM = "ngcp-task-agent-stream"  # requests, where a task names no other
OWN_KEYS = "ngcp-task-agent:"  # what the agents keep for themselves begins with it
FEEDBACK_KEYS = "ngcp-task-agent-feedback:"  # what our own client makes begins with it


def is_feedback_key(key: str, control_streams: Collection[str] = ()) -> bool:
    """Whether responses may be appended at *key*.

    Args:
        key: `options.feedback_stream`, which whoever may send a request has chosen.
        control_streams: Where requests come in.

    >>> is_feedback_key("ngcp-task-agent-feedback:18d0f568")
    True
    >>> is_feedback_key("ngcp-task-agent:{ngcp-task-agent-stream}:dead")
    False
    """
    return bool(key) and not (
        key.startswith(OWN_KEYS) or key == CONTROL_STREAM or key in control_streams
    )
