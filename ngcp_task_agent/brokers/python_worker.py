"""
The program of a worker process: calls one function again and again.

Started as ``python -P -m ngcp_task_agent.brokers.python_worker FD CALLABLE PATH``
by `python_pool`; what it prints goes to the daemon's log.
"""

from __future__ import annotations

import importlib
import inspect
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..errors import MessageError
from ..messages import decode, encode

HEADER = struct.Struct("!cI")  # C (call), R (result) or E (error); bytes of JSON that follow


def main() -> None:
    """Serve until the daemon closes its end."""
    fd, callable_, path = sys.argv[1:]
    with socket.socket(fileno=int(fd)) as connection, connection.makefile("rb") as stream:
        function: Callable[..., Any] | None = None
        while header := stream.read(HEADER.size):
            _, length = HEADER.unpack(header)
            payload = stream.read(length)
            try:
                function = function or _load(callable_, path)
                kind, answer = b"R", _call(function, decode(payload))
            except BaseException as exc:  # SystemExit too: the worker goes on
                kind, answer = b"E", _describe(exc)
            connection.sendall(HEADER.pack(kind, len(answer)))
            connection.sendall(answer)


def _load(callable_: str, path: str) -> Callable[..., Any]:
    if path and path not in sys.path:
        sys.path.insert(0, path)
    module, _, name = callable_.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> bytes:
    result = function(**arguments)
    if inspect.iscoroutine(result):
        import asyncio  # a third of a worker's start time, and seldom needed

        result = asyncio.run(result)
    try:
        return encode(result)
    except MessageError as exc:
        raise TypeError(f"the result is {exc}") from exc


def _describe(exc: BaseException) -> bytes:
    text = " ".join(str(exc).split())
    reason = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    return encode(
        {
            "reason": reason.encode("utf-8", "replace").decode(),
            "traceback": traceback.format_exc().encode("utf-8", "replace").decode(),
        }
    )


if __name__ == "__main__":
    main()
