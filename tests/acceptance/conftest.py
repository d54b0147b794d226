"""Fixtures of the acceptance tests: the installed commands and a real redis-server."""

import pytest

from .fleet import three_nodes
from .harness import World


@pytest.fixture
def world():
    """A redis-server of the test's own, with no daemon yet."""
    with World() as world:
        yield world


@pytest.fixture(scope="session")
def fleet():
    """Three daemons that stay for the whole session: sp1 and twice prx01a."""
    with World() as world:
        three_nodes(world)
        yield world


@pytest.fixture
def listener(fleet):
    """A new feedback channel beside the three daemons."""
    with fleet.listener() as listener:
        yield listener
