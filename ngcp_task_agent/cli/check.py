"""
``ngcp-task-agent check``: validates every file and runs nothing.
"""

from __future__ import annotations

import sys

from ..app import Loader, Setup
from ..errors import ConfigError

EXIT_OK = 0
EXIT_CONFIG = 78  # EX_CONFIG, sysexits.h


def check(directory: str) -> int:
    """Print every mistake below *directory* on stderr, a summary on stdout.

    Returns:
        `EXIT_OK` or `EXIT_CONFIG`.
    """
    try:
        setup = Loader(directory).load()
    except ConfigError as exc:
        for problem in exc.problems:
            print(problem, file=sys.stderr)
        return EXIT_CONFIG
    for problem in setup.problems:
        print(problem, file=sys.stderr)
    for problem in setup.warnings:
        print(f"warning: {problem}", file=sys.stderr)
    if setup.problems:
        return EXIT_CONFIG
    print(summary(setup))
    return EXIT_OK


def summary(setup: Setup) -> str:
    """What a good configuration holds, for people."""
    lines = [f"backends: {', '.join(sorted(setup.backends)) or 'none'}"]
    lines += [f"tasks: {len(setup.tasks)}"]
    for name, task in sorted(setup.tasks.items()):
        where = f"{task.backend} {task.control_channel}".strip()
        lines.append(f"  {name} ({where}){': ' + task.description if task.description else ''}")
    return "\n".join(lines)
