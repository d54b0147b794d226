"""
Who could change a file that the daemon, often root, believes.
"""

from __future__ import annotations

import os


def stranger(status: os.stat_result) -> str:
    """Who could change it besides root and the daemon's user; empty if nobody.

    Args:
        status: Of a file or a directory.

    Returns:
        For people: ``a file of user 1000``, ``mode 0666, which others can write``.
    """
    if status.st_uid not in (0, os.geteuid()):
        return f"a file of user {status.st_uid}"
    shared = status.st_mode & 0o020 and status.st_gid not in (0, os.getegid())
    if shared or status.st_mode & 0o002:
        return f"mode {status.st_mode & 0o7777:04o}, which others can write"
    return ""
