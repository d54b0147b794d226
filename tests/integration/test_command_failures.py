"""The command broker where something is missing, wrong or forbidden; and other users."""

import asyncio
import grp
import os
import pwd

import pytest

from ngcp_task_agent import users
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.messages import encode

from .alone import descendants, in_own_process, open_files
from .jobs import Kept, command_broker, job

AS_ROOT = os.geteuid() == 0
USER = "nobody"

as_root = [
    pytest.mark.root,
    pytest.mark.skipif(not AS_ROOT, reason="needs to run as root"),
]


@pytest.fixture(autouse=True)
def _forget_users():
    """What one test has looked up must not answer another one."""
    users._remembered.clear()


async def reason(arguments=None, **options):
    """Why a job with these broker options fails; it does, and leaves no descriptor."""
    before = open_files()
    with pytest.raises(BrokerError) as caught:
        await command_broker(**options).run(job(arguments=arguments or {}), Kept())
    assert open_files() == before
    encode(str(caught.value))
    return str(caught.value)


async def lines(*args, **options):
    output = Kept()
    await command_broker(args=list(args), **options).run(job(), output)
    return output.text.decode().splitlines()


def shell(text):
    return {"run": "/bin/sh", "args": ["-c", text]}


users_or_none = pytest.mark.parametrize(
    "who", [{}, pytest.param({"as_user": USER}, marks=as_root)], ids=["self", "as_user"]
)


@users_or_none
@pytest.mark.parametrize("run", ["/nonexistent/program", "no-such-program"])
async def test_a_missing_program_is_named(run, who):
    """With another user, too, where setpriv would be the one to say it."""
    text = await reason(run=run, **who)

    assert text.startswith(f"cannot start {run}: ")


@users_or_none
async def test_a_file_that_is_not_executable_is_named(place, who):
    """As above."""
    path = place / "data"
    path.write_text("#!/bin/sh\n")

    text = await reason(run=str(path), **who)

    assert text.startswith(f"cannot start {path}: ")


@users_or_none
async def test_a_directory_is_no_program(place, who):
    """It has the executable bits."""
    text = await reason(run=str(place), **who)

    assert text.startswith(f"cannot start {place}: ")


@users_or_none
async def test_a_text_without_interpreter_line_is_not_given_to_a_shell(place, who):
    """No shell anywhere: not even by execvp(3) and its fallback."""
    path = place / "text"
    path.write_text("echo a shell was here\n")
    path.chmod(0o755)

    text = await reason(run=str(path), **who)

    assert "a shell was here" not in text


@users_or_none
async def test_a_working_directory_that_is_missing_is_named(who):
    """And not the program, which is there."""
    text = await reason(run="/bin/true", cwd="/nonexistent", **who)

    assert text == "cannot start /nonexistent: No such file or directory"


@users_or_none
async def test_an_argument_list_too_long_is_an_error(who):
    """The kernel takes 128 KiB an argument."""
    text = await reason({"extra_args": "x" * 200_000}, run="/bin/true", **who)

    assert text == "cannot start /bin/true: Argument list too long"


@users_or_none
async def test_a_nul_character_in_extra_args_is_an_error(who):
    """JSON can hold one, an argument vector cannot."""
    text = await reason({"extra_args": "a\0b"}, run="/bin/true", **who)

    assert text.startswith("cannot start /bin/true: ")


@pytest.mark.parametrize("user", ["no-such-user", "4000000000", "99999999999999999999"])
async def test_an_unknown_user_is_named(user):
    """Wherever the tests run: no user is no reason to need root."""
    assert await reason(run="/bin/true", as_user=user) == (
        f"cannot run as {user}: there is no such user"
    )


@pytest.mark.parametrize("group", ["no-such-group"])
async def test_an_unknown_group_is_named(group):
    """As above."""
    assert await reason(run="/bin/true", as_group=group) == (
        f"cannot run as group {group}: there is no such group"
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 9", "exit code 9"),
        ("echo one >&2; echo ' two ' >&2; echo >&2; exit 1", "exit code 1: two"),
        (r"printf 'a\377b\n' >&2; exit 1", "exit code 1: a\ufffdb"),
        (r"printf 'no newline' >&2; exit 1", "exit code 1: no newline"),
        ("printf '%0600d' 0 >&2; exit 1", "exit code 1: " + "0" * 500),
        ("kill -KILL $$", "killed by signal SIGKILL"),
        ("echo dying >&2; kill -SEGV $$", "killed by signal SIGSEGV: dying"),
        ("kill -40 $$", "killed by signal 40"),
    ],
)
async def test_the_reason_is_the_exit_and_the_last_line_of_stderr(script, expected):
    """In words; a line is cut at 500 characters."""
    assert await reason(**shell(script)) == expected


@in_own_process
async def test_nobody_but_root_changes_the_user():
    """The agent as an ordinary user says so, instead of running the program as itself."""
    await become_somebody()

    assert await reason(run="/bin/true", as_user="daemon") == (
        "cannot run as daemon: the agent itself does not run as root"
    )
    assert await reason(run="/bin/true", as_group="daemon") == (
        "cannot run as daemon: the agent itself does not run as root"
    )
    assert descendants() == []


@in_own_process
async def test_ones_own_name_needs_no_root():
    """The same task file on a developer's machine."""
    await become_somebody()
    own = pwd.getpwuid(os.geteuid()).pw_name

    assert await lines("-un", run="/usr/bin/id", as_user=own) == [own]


async def become_somebody():
    """Be an ordinary user from now on."""
    # Threads need modules which that user may not be able to read.
    await asyncio.to_thread(os.getpid)
    if AS_ROOT:
        entry = pwd.getpwnam(USER)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


class TestAsRoot:
    """What only root can do."""

    pytestmark = as_root

    async def test_another_user_with_the_groups_and_the_environment_of_it(self):
        """All four user and group numbers, no capabilities, no group of root's."""
        entry = pwd.getpwnam(USER)
        status = dict(
            line.split(":\t", 1)
            for line in await lines("/proc/self/status", run="/bin/cat", as_user=USER)
            if ":\t" in line
        )
        env = await lines(run="/usr/bin/env", as_user=USER)

        assert status["Uid"].split() == [str(entry.pw_uid)] * 4
        assert status["Gid"].split() == [str(entry.pw_gid)] * 4
        expected = sorted(os.getgrouplist(USER, entry.pw_gid))
        assert sorted(map(int, status["Groups"].split())) == expected
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert {f"USER={USER}", f"LOGNAME={USER}", f"HOME={entry.pw_dir}"} <= set(env)

    async def test_supplementary_groups_are_the_user_s(self, monkeypatch):
        """Those of the group database, also where this machine's has none."""
        monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 12, 20])

        found = await lines("-G", run="/usr/bin/id", as_user=USER)

        own = pwd.getpwnam(USER).pw_gid
        assert set(found[0].split()) == {str(own), "12", "20"}

    async def test_as_group_replaces_the_user_s_own_group(self):
        """By name or number."""
        group = grp.getgrnam("daemon")

        by_name = await lines("-g", run="/usr/bin/id", as_user=USER, as_group="daemon")
        by_number = await lines("-g", run="/usr/bin/id", as_user=USER, as_group=group.gr_gid)

        assert by_name == by_number == [str(group.gr_gid)]

    async def test_as_group_alone_keeps_the_user(self):
        """root with another group."""
        options = {"run": "/usr/bin/id", "as_group": "daemon"}

        assert await lines("-un", **options) == ["root"]
        assert await lines("-gn", **options) == ["daemon"]

    async def test_a_user_by_number(self):
        """As in a container, where numbers are all there is."""
        number = pwd.getpwnam(USER).pw_uid

        assert await lines("-un", run="/usr/bin/id", as_user=number) == [USER]

    async def test_another_user_reads_stdin(self):
        """It is inherited open: no permission of a file stands in the way."""
        output = Kept()

        await command_broker(run="/bin/cat", as_user=USER, stdin="data").run(
            job(data="text"), output
        )

        assert output.text == b"text"

    async def test_a_program_the_other_user_may_not_run_is_an_error(self, place):
        """Root may, and finds it; that is not the question."""
        path = place / "roots"
        path.write_text("#!/bin/sh\necho ran\n")
        path.chmod(0o700)

        text = await reason(run=str(path), as_user=USER)

        assert "Permission denied" in text

    async def test_the_exit_status_is_the_program_s_own(self):
        """setpriv is not in between any more."""
        assert await reason(**shell("exit 7"), as_user=USER) == "exit code 7"
        assert await reason(**shell("kill -9 $$"), as_user=USER) == "killed by signal SIGKILL"
