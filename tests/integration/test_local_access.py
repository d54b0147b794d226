"""Who may use the local backend's socket: its mode, and the peer's credentials."""

import asyncio
import grp
import os
import pwd
import subprocess
import sys

import pytest

from .backends import answering, local_backend, receiving

SOMEBODY = "nobody"

# Started as root, it becomes somebody before it connects: that user need not be able
# to read this Python.
CONNECT = """
import os, socket, sys
path, user, group, *groups = sys.argv[1:]
os.setgroups([int(number) for number in groups])
os.setresgid(*3 * [int(group)])
os.setresuid(*3 * [int(user)])
with socket.socket(socket.AF_UNIX) as client:
    try:
        client.connect(path)
        client.sendall(b"request\\n")
        print("heard", client.recv(100).decode(), end="")
    except OSError as exc:
        print(type(exc).__name__, end="")
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
]


@pytest.fixture
def path(place):
    return place / "agent.sock"


async def heard(path, groups=(), **fields):
    """What `SOMEBODY` hears of an agent with these options."""
    entry = pwd.getpwnam(SOMEBODY)
    words = [path, entry.pw_uid, entry.pw_gid, *groups]
    backend = local_backend(path, **fields)
    async with answering(backend):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONNECT, *map(str, words), stdout=subprocess.PIPE
        )
        said, _ = await child.communicate()
    return said.decode()


async def test_nobody_but_root_by_default(path):
    """The kernel says no."""
    assert await heard(path) == "PermissionError"


async def test_a_wide_mode_alone_lets_nobody_in(path, caplog):
    """Credentials are looked at as well; the log says whose they were."""
    assert "request" not in await heard(path, mode="0666")
    assert str(pwd.getpwnam(SOMEBODY).pw_uid) in caplog.text


async def test_a_named_user(path):
    """Beside root."""
    assert await heard(path, mode="0666", users=[SOMEBODY]) == "heard request\n"


async def test_a_member_of_the_group(path):
    """By a supplementary group, as it is with most users."""
    group = grp.getgrnam("daemon")

    said = await heard(path, [group.gr_gid], mode="0660", group="daemon")

    assert said == "heard request\n"


async def test_a_user_outside_the_group(path):
    """The kernel says no, and so would we."""
    assert await heard(path, mode="0660", group="daemon") == "PermissionError"
    assert "request" not in await heard(path, mode="0666", group="daemon")


async def test_the_socket_belongs_to_the_group(path):
    """Else its mode would mean somebody else."""
    backend = local_backend(path, mode="0660", group="daemon")

    async with receiving(backend):
        assert path.stat().st_gid == grp.getgrnam("daemon").gr_gid
        assert path.stat().st_uid == 0
