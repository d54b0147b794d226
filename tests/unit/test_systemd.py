import os
import socket

import pytest

from ngcp_task_agent.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket that listens as the service manager does, and its address."""
    address = f"@{tmp_path}/n" if request.param == "abstract" else f"{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(1)
        yield manager, address


def test_a_state_is_one_datagram_of_lines(manager):
    """sd_notify(3)."""
    manager, address = manager

    Notifier({"NOTIFY_SOCKET": address}).notify(READY=1, STATUS="zwölf tasks")

    assert manager.recv(1000).decode() == "READY=1\nSTATUS=zwölf tasks"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent"}])
def test_without_a_manager_nothing_happens(environ):
    """In the foreground, or where the manager has gone away."""
    Notifier(environ).notify(READY=1)


def test_a_manager_that_does_not_read_holds_nothing_up(manager):
    """The loop must never wait for it."""
    notifier = Notifier({"NOTIFY_SOCKET": manager[1]})

    for _ in range(5000):
        notifier.notify(STATUS="x" * 100)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
    ],
)
def test_the_watchdog_is_for_this_process_or_not(environ, seconds):
    """The environment may have been inherited from somebody else's service."""
    assert Notifier(environ).watchdog == seconds
