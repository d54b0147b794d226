"""
Which answers belong to a request, and when nothing more is to be expected.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .client_result import Result
from .errors import MessageError
from .messages import decode_response

ACCEPT_TIMEOUT = 2.0  # seconds for the first node to accept
SETTLE = 0.5  # seconds after the first answer in which further nodes are expected to accept
SEEN = 20_000  # responses remembered, so that none is shown twice; a stream keeps fewer
LONGEST_WAIT = 3600.0  # seconds; a wait without an end is one of many


async def answers(
    receive: Callable[[float], Awaitable[tuple[str, bytes] | None]],
    result: Result,
    timeout: float | None,
    lasting: bool = False,
    endless: bool = False,
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """File responses under *result* until nothing more is to be expected.

    Args:
        lasting: Whether the request stays until somebody takes it.
        endless: Whether only the time limit is the end; nothing is filed then.
    """
    now = asyncio.get_running_loop().time
    began = latest = now()
    first = math.inf
    seen: dict[Any, None] = {}
    while endless or not result.complete:
        limit = math.inf if timeout is None else timeout
        end = began + limit
        if not endless:
            end = _end(result, began, latest if lasting else first, limit, lasting)
        received = await receive(min(max(0.0, end - now()), LONGEST_WAIT))
        if received is None:
            if now() >= end:
                return
            continue
        cursor, payload = received
        try:
            response = decode_response(payload)
        except MessageError:
            result.unreadable += 1
            continue
        if not result.uuid and not endless:
            result.uuid = response["ref"]
        if response["ref"] != (result.uuid or response["ref"]) or response.get("uuid") in seen:
            continue
        seen[response.get("uuid", cursor)] = None
        if len(seen) > SEEN:
            del seen[next(iter(seen))]
        latest = now()
        first = min(first, latest)
        if not endless:
            result.add(response)
        yield cursor, response


def _end(result: Result, began: float, heard: float, limit: float, lasting: bool) -> float:
    """When nothing more is waited for, as things stand."""
    if not result.runs:
        return began + (limit if lasting else min(limit, ACCEPT_TIMEOUT))
    return min(began + limit, heard + SETTLE if result.ended else math.inf)
