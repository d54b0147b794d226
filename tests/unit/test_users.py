import grp
import os
import pwd

import pytest

from ngcp_task_agent import users
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.users import User, find_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
ME = pwd.getpwuid(os.geteuid())
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture(autouse=True)
def forgotten():
    """No user is remembered from another test."""
    users._remembered.clear()
    yield
    users._remembered.clear()


async def test_no_user_is_the_daemons_own():
    """Nothing to switch, so nothing is put before the program."""
    assert await find_user("", "") == User(ME.pw_name, ME.pw_dir, ME.pw_uid, ())


async def test_a_daemons_user_need_not_have_a_name(monkeypatch):
    """A container may run it under any number."""
    monkeypatch.setattr(users.os, "geteuid", lambda: 4_000_000_000)

    assert await find_user("", "") == User("4000000000", "/", 4000000000, ())


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("name", ["nobody", str(NOBODY.pw_uid)])
async def test_a_user_is_switched_to_by_setpriv(name):
    """User, group and supplementary groups, no capability left, and then the program."""
    user = await find_user(name, "")

    setpriv, *words = user.switch
    assert (user.name, user.home) == ("nobody", NOBODY.pw_dir)
    assert os.path.basename(setpriv) == "setpriv"
    assert os.path.isabs(setpriv)
    assert words == [
        f"--reuid={NOBODY.pw_uid}",
        f"--regid={NOBODY.pw_gid}",
        f"--groups={','.join(map(str, os.getgrouplist('nobody', NOBODY.pw_gid)))}",
        "--inh-caps=-all",
        "--",
    ]


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("group", ["daemon", str(grp.getgrnam("daemon").gr_gid)])
async def test_a_group_takes_the_place_of_the_users_own(group):
    """And is among the supplementary ones."""
    gid = grp.getgrnam("daemon").gr_gid

    switch = (await find_user("nobody", group)).switch

    assert f"--regid={gid}" in switch
    groups = next(word for word in switch if word.startswith("--groups=")).partition("=")[2]
    assert str(gid) in groups.split(",")


@pytest.mark.root
@needs_root
async def test_a_group_alone_leaves_the_user():
    """The daemon's user with another group."""
    user = await find_user("", "daemon")

    assert user.name == ME.pw_name
    assert f"--reuid={ME.pw_uid}" in user.switch


@pytest.mark.parametrize("name", ["no-such-user", "4294967294", "99999999999999999999"])
async def test_an_unknown_user_is_a_broker_error(name):
    """At the request: a directory service may know it tomorrow."""
    with pytest.raises(BrokerError, match=f"^cannot run as {name}: there is no such user$"):
        await find_user(name, "")


async def test_an_unknown_group_is_a_broker_error():
    """As with users."""
    with pytest.raises(BrokerError, match=r"^cannot run as group no-such-group: there is no such"):
        await find_user("", "no-such-group")


@pytest.fixture
def not_root(monkeypatch):
    """A daemon that runs as nobody."""
    monkeypatch.setattr(users.os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(users.os, "getegid", lambda: NOBODY.pw_gid)


@pytest.mark.parametrize(("name", "group"), [("root", ""), ("", "root"), ("nobody", "root")])
async def test_switching_needs_root(not_root, name, group):
    """An error, and never the daemon's own user instead."""
    with pytest.raises(BrokerError, match="the agent itself does not run as root"):
        await find_user(name, group)


@pytest.mark.parametrize("name", ["", "nobody"])
async def test_to_stay_who_one_is_needs_nothing(not_root, name):
    """A task that names the daemon's own user works without root."""
    assert await find_user(name, "") == User("nobody", NOBODY.pw_dir, NOBODY.pw_uid, ())


@pytest.mark.root
@needs_root
async def test_without_setpriv_nobody_is_switched_to(monkeypatch):
    """And the text names the package."""
    monkeypatch.setattr(users.shutil, "which", lambda name: None)

    with pytest.raises(BrokerError, match=r"setpriv \(util-linux\) is not installed"):
        await find_user("nobody", "")


async def test_a_user_is_remembered_for_a_while(monkeypatch):
    """A directory service may be slow; what it says does change."""
    asked = []

    def look_up(name, group):
        asked.append(name)
        return User(name, "/", 0)

    monkeypatch.setattr(users, "_look_up", look_up)
    await find_user("anna", "")
    await find_user("anna", "")
    assert asked == ["anna"]

    monkeypatch.setattr(users, "REMEMBER", -1.0)
    users._remembered.clear()
    await find_user("anna", "")
    await find_user("anna", "")
    assert asked == ["anna"] * 3


async def test_a_failure_is_not_remembered():
    """Who is created now can be run as now."""
    with pytest.raises(BrokerError):
        await find_user("no-such-user", "")

    assert users._remembered == {}
