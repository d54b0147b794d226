"""
What the service manager wants to know: sd_notify(3) without a library.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Talks to whoever started the daemon; silent where nobody listens.

    Args:
        environ: Where ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` are looked up.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1e6 if usec.isdecimal() and meant_for_us else 0.0
        """Seconds the manager waits for a sign of life; 0 if it does not wait."""

    def notify(self, **fields: object) -> None:
        """Send a state, for example ``notify(READY=1, STATUS="two tasks")``."""
        if not self._address:
            return
        text = "\n".join(f"{key}={value}" for key, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(text.encode(), self._address)
            except OSError:
                pass  # a manager that does not listen is no reason to stop working
