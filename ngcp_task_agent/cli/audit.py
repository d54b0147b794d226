"""
``ngcp-task-agent audit verify``: follows the chain of an audit log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..app import Loader
from ..audit import Verdict, files_of, verify
from ..config import audit_path
from ..errors import ConfigError

EXIT_OK = 0
EXIT_BROKEN = 1
EXIT_NO_INPUT = 66  # EX_NOINPUT, sysexits.h
EXIT_CONFIG = 78  # EX_CONFIG


def verify_audit(paths: Sequence[str], head: str, directory: str) -> int:
    """Say whether nobody has changed what was written down.

    Args:
        paths: The files, the oldest first; by default those of the configuration.
        head: The hash that the chain has to end with; empty for any.
        directory: The configuration's.

    Returns:
        `EXIT_OK`, `EXIT_BROKEN`, `EXIT_NO_INPUT` or `EXIT_CONFIG`.
    """
    if not paths:
        try:
            paths = files_of(audit_path(Loader(directory).load().settings))
        except ConfigError as exc:
            for problem in exc.problems:
                print(problem, file=sys.stderr)
            return EXIT_CONFIG
    try:
        found = verify(paths)
    except OSError as exc:
        print(f"{exc.filename}: {exc.strerror}", file=sys.stderr)
        return EXIT_NO_INPUT
    return _tell(found, head, os.path.basename(paths[-1]))


def _tell(found: Verdict, head: str, last: str) -> int:
    if found.fault is not None:
        print(found.fault, file=sys.stderr)
        return EXIT_BROKEN
    if found.torn:
        print(f"{last}: {found.torn} bytes at its end are no whole line: cut off while it was "
              "written (the agent takes them away at its start)", file=sys.stderr)  # fmt: skip
    if head and head != found.hash:
        print(f"{last}: found hash {found.hash} at its end; expected {head}: lines are missing, "
              "or were added since", file=sys.stderr)  # fmt: skip
        return EXIT_BROKEN
    print(f"{found.lines} lines are whole: {found.first} to {found.last}, hash {found.hash}")
    return EXIT_OK
