"""Fixtures of the fault suite: a fleet on a redis-server that writes down what it is told."""

import pytest

from .fleet import REPORT, SOAK, Fleet


@pytest.fixture
def fleet():
    """A redis-server that has on disk what it has confirmed, with no daemon yet."""
    with Fleet("--appendonly", "yes", "--appendfsync", "always") as fleet:
        yield fleet


def pytest_terminal_summary(terminalreporter):
    """What was counted, once more, free of the daemons' logs."""
    if SOAK and REPORT:
        terminalreporter.section("what was counted")
        for line in REPORT:
            terminalreporter.write_line(line)
