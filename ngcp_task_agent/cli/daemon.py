"""
``ngcp-task-agent``: the daemon, ``ngcp-task-agent check`` and ``audit verify``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

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
    if arguments.command == "audit":
        from .audit import verify_audit

        return verify_audit(arguments.files, arguments.head, arguments.config_dir)
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
    commands = parser.add_subparsers(dest="command", metavar="check | audit")
    check = commands.add_parser(
        "check",
        help="validate every file and run nothing",
        description="Validates every file and runs nothing. Prints each mistake as "
        "'FILE: KEY: found …; expected …'. Exit status: 0 all is well, 78 mistakes.",
    )
    check.add_argument("--config-dir", metavar="DIR", default=argparse.SUPPRESS, help=about_dir)
    _add_audit(commands, about_dir)
    return parser


def _add_audit(commands: Any, about_dir: str) -> None:
    audit = commands.add_parser("audit", help="look at the audit log")
    verbs = audit.add_subparsers(dest="verb", metavar="verify", required=True)
    verify = verbs.add_parser(
        "verify",
        help="follow its chain",
        description="Follows the chain of the audit log through FILE…, the oldest first, or "
        "through the files that the configuration names. Prints the first place where it is "
        "broken as 'FILE:LINE: found …; expected …'.",
        epilog="Example: ngcp-task-agent audit verify --head HASH, with a hash that the daemon has "
        "logged. Exit status: 0 it is whole, 1 it is broken, 2 wrong usage, 66 a file cannot be "
        "read, 78 wrong configuration.",
    )
    verify.add_argument("files", nargs="*", metavar="FILE")
    verify.add_argument("--head", metavar="HASH", default="", help="what the last line's hash has "
                        "to be: without it, lines cut off the end are not noticed")  # fmt: skip
    verify.add_argument("--config-dir", metavar="DIR", default=argparse.SUPPRESS, help=about_dir)
