"""
What the kernel lets a single thread change for itself and for the programs it starts.

A thread may leave the daemon's mount namespace and renounce new privileges; a program
inherits both from the thread that starts it, and the other threads never notice. The C
library's functions are called as they are: unshare(2), mount(2), mount_setattr(2), prctl(2).
Knows nothing of tasks.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV = 0x2, 0x4
_MS_BIND, _MS_REC = 0x1000, 0x4000
_MS_PRIVATE, _MS_SLAVE = 1 << 18, 1 << 19
_MOUNT_ATTR_RDONLY = 0x1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
# Linux 5.12. The C library has no name for it before glibc 2.36; the number is the
# same on every architecture that Debian has but alpha.
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def become_subreaper() -> None:
    """Become the parent of all orphans among the descendants of this process.

    Raises:
        OSError: The kernel refuses (Linux 3.4).
    """
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "cannot become a child subreaper")


def renounce_privileges() -> None:
    """From now on no exec in this thread, or below it, gives privileges (set-user-ID
    bits, file capabilities). There is no way back.

    Raises:
        OSError: The kernel refuses (Linux 3.5).
    """
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "")


def has_renounced() -> bool:
    """Whether this thread has renounced new privileges, or who started it had."""
    return bool(_libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def leave_mounts() -> None:
    """Give this thread a mount namespace of its own.

    What is mounted outside later still comes in, nothing goes out.

    Raises:
        OSError: It needs CAP_SYS_ADMIN.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "")
    _mount(None, "/", None, _MS_SLAVE | _MS_REC)


def mount_private_tmp(size: int) -> None:
    """Lay one empty directory in memory, of *size* bytes, over /tmp and over /var/tmp.

    Only after `leave_mounts`.

    Raises:
        OSError: It cannot be mounted.
    """
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size},mode=1777")
    if os.path.isdir("/var/tmp") and not os.path.samefile("/tmp", "/var/tmp"):
        _mount("/tmp", "/var/tmp", None, _MS_BIND)


def make_read_only(paths: Sequence[str]) -> None:
    """Let nothing be written at *paths* and below, whatever is mounted there.

    Only after `leave_mounts`.

    Raises:
        OSError: A path is not there, or the kernel is older than 5.12.
    """
    for path in paths:
        _mount(path, path, None, _MS_BIND | _MS_REC)
        # Private: a file system that is mounted below it later would come in writable.
        attr = _MountAttr(set=_MOUNT_ATTR_RDONLY, propagation=_MS_PRIVATE)
        _check(
            _libc.syscall(
                ctypes.c_long(_SYS_MOUNT_SETATTR),
                ctypes.c_int(_AT_FDCWD),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.c_uint(_AT_RECURSIVE),
                ctypes.byref(attr),
                ctypes.c_size_t(ctypes.sizeof(attr)),
            ),
            path,
        )


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    code = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(code, target)


def _check(code: int, where: str) -> None:
    if code:
        number = ctypes.get_errno()
        text = os.strerror(number)
        raise OSError(number, f"{where}: {text}" if where else text)
