"""What monitoring sees of a daemon: HTTP by hand, and the numbers in what comes back."""

import importlib.util
import os
import socket

import pytest

from .harness import free_port
from .processes import until

LIBRARY = "prometheus_client"
ANSWER = 10.0  # seconds for one answer


def library():
    """Skip at home where the optional library is missing; fail in CI, which installs it."""
    if importlib.util.find_spec(LIBRARY) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{LIBRARY} is missing; CI has to install it")
        pytest.skip(f"{LIBRARY} is missing")


class Monitor:
    """Asks one daemon.

    Args:
        address: What its agent.yml says, ``127.0.0.1:9127`` or a socket's path.
    """

    def __init__(self, address=None):
        self.address = address or f"127.0.0.1:{free_port()}"

    def connect(self):
        if self.address.startswith("/"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(ANSWER)
            try:
                sock.connect(self.address)
            except OSError:
                sock.close()
                raise
            return sock
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), ANSWER)

    def send(self, request):
        """What comes back until the other side hangs up."""
        with self.connect() as sock:
            sock.sendall(request)
            received = b""
            while piece := sock.recv(65536):
                received += piece
        return received

    def get(self, path):
        """Status and body; (0, "") where nobody listens, or nobody answers."""
        try:
            head, _, body = self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(
                b"\r\n\r\n"
            )
        except OSError:
            return 0, ""
        return (int(head.split()[1]), body.decode()) if head else (0, "")

    def numbers(self):
        """All samples: (name, labels as sorted pairs) → value."""
        from prometheus_client.parser import text_string_to_metric_families

        status, text = self.get("/metrics")
        assert status == 200, text
        return {
            (sample.name.removeprefix("ngcp_task_agent_"), tuple(sorted(sample.labels.items()))):
                sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }  # fmt: skip

    def number(self, name, **labels):
        """One sample; None where there is none."""
        return self.numbers().get((name, tuple(sorted(labels.items()))))

    def wait(self, path, status, seconds=10.0):
        """Wait until *path* is answered by *status*; the body."""
        return until(lambda: self._has(path, status), seconds, f"{path} {status}")[0]

    def wait_number(self, value, name, seconds=5.0, **labels):
        """Wait until a sample has this value; what was shown may be a second old."""
        what = f"{name} {labels} = {value}"
        until(lambda: self.number(name, **labels) == value, seconds, what)

    def _has(self, path, status):
        found, body = self.get(path)
        return (body,) if found == status else None
