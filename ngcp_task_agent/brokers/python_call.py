"""
A task's function, as the event loop and a worker process both see it; and the frames
in which a worker and the daemon talk.
"""

from __future__ import annotations

import importlib
import inspect
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

from ..context import Context
from ..errors import BrokerError

# One letter, then the number of bytes that follow.
HEADER = struct.Struct("!cI")
CALL = b"C"  # to the worker: JSON of arguments, request, deadline, followed
PIECE = b"P"  # text of the answer
PROGRESS = b"G"  # text beside it, for a client that reads along
LOG = b"L"  # JSON of level and text
USAGE = b"U"  # JSON of cpu, memory, peak; before each of the three that end a job:
RESULT = b"R"  # JSON
TEXT = b"T"  # nothing: the pieces are the answer
FAILED = b"E"  # JSON of reason and traceback
SMALL = 256 * 1024  # bytes of a piece, a log text, a reason, a traceback, about
# The function shares the worker's process, so it could send anything.
LARGEST = {
    PIECE: SMALL, PROGRESS: SMALL, LOG: 2 * SMALL, USAGE: 1024,
    RESULT: 64 * 1024 * 1024, TEXT: 0, FAILED: 16 * SMALL,
}  # fmt: skip


class Function:
    """What ``package.module:function`` names.

    Args:
        callable_: That name; the module is imported.
        inside: Directory that the module must come from; empty for anywhere.
    """

    def __init__(self, callable_: str, inside: str = "") -> None:
        module_name, _, name = callable_.partition(":")
        module = importlib.import_module(module_name)
        where = getattr(module, "__file__", None) or ""
        if inside and not _is_below(where, inside):
            raise BrokerError(f"module {module_name} is loaded from {where}, not {inside}")
        self._function: Callable[..., Any] = getattr(module, name)
        self.wants_context = _has_parameter(self._function, "context")

    def __call__(self, arguments: Mapping[str, Any], context: Context) -> Any:
        """Call it with what the client sent.

        Raises:
            BrokerError: The client sent a `context` of its own.
        """
        if not self.wants_context:
            return self._function(**arguments)
        if "context" in arguments:
            raise BrokerError("data.context: found; expected no such key, the agent sets it")
        return self._function(**arguments, context=context)


def describe_exception(exc: BaseException) -> str:
    """Type and text, on one line.

    >>> describe_exception(ValueError("no such user"))
    'ValueError: no such user'
    """
    try:
        text = str(exc)
    except BaseException:
        text = "an exception without a text"
    # Not cut where it is too long: what is hidden could be in two halves then.
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if len(text) > SMALL:
        text = f"a text of {len(text)} characters"
    if isinstance(exc, BrokerError):
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):  # a function in C may not tell
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _is_below(path: str, directory: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(directory) + "/")
