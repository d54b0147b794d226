"""
``ngcp-task-agent``: the daemon, and ``ngcp-task-agent check``.
"""

from __future__ import annotations

import argparse
import sys

from .. import __version__
from ..config import CONFIG_DIR

EXIT_CONFIG = 78  # EX_CONFIG, sysexits.h


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Read the command line and do what it says; the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "check":
        from .check import check

        return check(arguments.config_dir)
    from .serve import serve

    return serve(arguments.config_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ngcp-task-agent",
        description="Runs the tasks configured under --config-dir on request. Without a command "
        "it serves in the foreground until SIGTERM; SIGHUP makes it read its files again.",
        epilog="Exit status: 0 stopped as told, 2 wrong usage, 78 wrong configuration.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    about_dir = f"holds agent.yml, backends/ and tasks/ (default {CONFIG_DIR})"
    parser.add_argument("--config-dir", metavar="DIR", default=CONFIG_DIR, help=about_dir)
    commands = parser.add_subparsers(dest="command", metavar="check")
    check = commands.add_parser(
        "check",
        help="validate every file and run nothing",
        description="Validates every file and runs nothing. Prints each mistake as "
        "'FILE: KEY: found …; expected …'. Exit status: 0 all is well, 78 mistakes.",
    )
    check.add_argument("--config-dir", metavar="DIR", default=argparse.SUPPRESS, help=about_dir)
    return parser
