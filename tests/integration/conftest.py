"""Fixtures of the integration tests; `async def` tests with a time limit of their own."""

import inspect
import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from . import loops
from .groups import remove_group
from .redis_server import RedisServer

TEST_TIMEOUT = 40.0  # seconds; some wait for the agent's own limits, of up to 15 s


# Comes before the hook of the folder above, whose limit is shorter.
@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a coroutine function to its end; what fails unseen in the loop fails the test.

    An argument called ``loop`` chooses the event loop; without it, it is the agent's.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    loops.run(pyfuncitem.obj(**arguments), TEST_TIMEOUT, arguments.get("loop", loops.OURS))
    return True


@pytest.fixture
def place():
    """A directory with a short name, because a UNIX socket's path may have 107 bytes;
    other users may look into it."""
    path = Path(tempfile.mkdtemp(prefix="nta-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def control_group():
    """A control group that is delegated as the service manager does it."""
    mounts = [Path(part.mountpoint) for part in psutil.disk_partitions(all=True)
              if part.fstype == "cgroup2"]  # fmt: skip
    if not mounts:
        pytest.skip("no control groups of version 2")
    path = mounts[0] / f"ngcp-task-agent-test-{os.getpid()}"
    try:
        path.mkdir()
        os.setxattr(path, "trusted.delegate", b"1")
    except OSError as exc:
        pytest.skip(f"no control groups to be made here: {exc}")
    yield path
    remove_group(path)


@pytest.fixture
def server(place):
    """A redis-server that listens on a UNIX socket, without a password."""
    server = RedisServer(place)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def make_server(place):
    """Makes redis-servers with settings of their own, not yet started."""
    servers = []

    def make(*settings):
        servers.append(RedisServer(place, *settings))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
