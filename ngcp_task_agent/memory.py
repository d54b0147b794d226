"""
Keeps the daemon small after something large has passed through it.
"""

from __future__ import annotations

import ctypes

LARGE = 256 * 1024  # bytes; blocks of this size go back to the system when they are freed
ARENAS = 2  # heaps for the threads that handle large output
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h


def return_large_blocks() -> bool:
    """Tell the C library not to keep large blocks for later, see mallopt(3).

    Left alone, glibc raises its threshold to the largest block it has seen freed, up
    to 32 MiB, and then grows such blocks inside its heap, where a small one above
    them keeps all of it.

    Returns:
        Whether the C library knows of this; musl does not, and does not need it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_M_ARENA_MAX, ARENAS))
