"""
What a backend may know of the daemon that it serves; see `interfaces.Host`.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .destination import Node

MACHINE_ID = "/etc/machine-id"  # machine-id(5)


class AgentHost:
    """One for each backend.

    Args:
        identity: See `identify`.
        node: What this host is now.
        room: How many more requests from a control channel could be started at once.
        record: What this agent tells of itself.
    """

    def __init__(
        self,
        identity: str,
        node: Callable[[], Node],
        room: Callable[[str], int],
        record: Callable[[], bytes],
    ) -> None:
        self.identity = identity
        self.node = node
        self.room = room
        self.record = record


def identify(state_dir: str, machine_id: str = MACHINE_ID) -> str:
    """What tells an agent from all others, also of the same name: 16 hexadecimal digits.

    The same at each start with the same *state_dir* on the same machine.

    Args:
        state_dir: Two agents on one machine have two of them.
        machine_id: The file that holds the machine's id; without it, its name serves.
    """
    machine = socket.gethostname()
    with suppress(OSError):
        machine = Path(machine_id).read_text("ascii", "replace").strip() or machine
    whole = f"{machine}\0{os.path.realpath(state_dir)}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
