"""
Who a program runs as: names to numbers, and the words that switch to them.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import shutil
import time
from typing import NamedTuple

from .errors import BrokerError

REMEMBER = 10.0  # seconds a user is remembered; a directory service may be slow


class User(NamedTuple):
    """A user to run as.

    Attributes:
        name: Login name.
        home: Home directory.
        uid: Number.
        switch: Argument vector to put before a program, empty for the daemon's own
            user. `subprocess`'s way of switching forks, which costs more the
            larger the daemon is; setpriv(1) switches after a vfork.
    """

    name: str
    home: str
    uid: int
    switch: tuple[str, ...] = ()


_remembered: dict[tuple[str, str], tuple[float, User]] = {}


async def find_user(name: str, group: str) -> User:
    """Look up whom to run as.

    Args:
        name: Login name or number; empty for the daemon's user.
        group: Group name or number; empty for the user's own.

    Raises:
        BrokerError: No such user or group, or switching needs root.
    """
    expires, user = _remembered.get((name, group), (0.0, None))
    if user is None or expires < time.monotonic():
        user = await asyncio.to_thread(_look_up, name, group)
        _remembered[name, group] = (time.monotonic() + REMEMBER, user)
    return user


def _look_up(name: str, group: str) -> User:
    entry = _passwd(name)
    gid = _gid(group) if group else entry.pw_gid
    groups = sorted({gid, *os.getgrouplist(entry.pw_name, gid)})
    if not (name or group):
        return User(entry.pw_name, entry.pw_dir, entry.pw_uid)
    if os.geteuid() != 0:
        if entry.pw_uid == os.geteuid() and gid == os.getegid():
            return User(entry.pw_name, entry.pw_dir, entry.pw_uid)
        raise BrokerError(f"cannot run as {name or group}: the agent itself does not run as root")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise BrokerError(f"cannot run as {name or group}: setpriv (util-linux) is not installed")
    switch = (
        setpriv,
        f"--reuid={entry.pw_uid}",
        f"--regid={gid}",
        "--groups=" + ",".join(map(str, groups)),
        "--inh-caps=-all",
        "--",
    )
    return User(entry.pw_name, entry.pw_dir, entry.pw_uid, switch)


def _passwd(name: str) -> pwd.struct_passwd:
    try:
        if not name:
            return pwd.getpwuid(os.geteuid())
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name:
            raise BrokerError(f"cannot run as {name}: there is no such user") from None
        # The daemon's own number need not be in the password file.
        uid = os.geteuid()
        return pwd.struct_passwd((str(uid), "x", uid, os.getegid(), "", "/", "/bin/sh"))


def _gid(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise BrokerError(f"cannot run as group {group}: there is no such group") from None
