"""Bounds of programs, with real ones: what each holds, and that the agent itself is free of it."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ngcp_task_agent import namespaces, processes
from ngcp_task_agent.confinement import Confinement
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.nodes.probe import probe
from ngcp_task_agent.processes import Program, all_ended

from .alone import descendants, in_own_process, open_files
from .jobs import Kept, command_broker, job
from .trees import ENV, read_all, start
from .waiting import until

MIB = 1024 * 1024
IS_ROOT = os.geteuid() == 0


def as_root(test):
    """For a test that has to run as root."""
    return pytest.mark.root(pytest.mark.skipif(not IS_ROOT, reason="needs to run as root")(test))


def seen():
    """What of this process a program's bounds must not touch."""
    starters = [thread for thread in threading.enumerate() if "starter" in thread.name]
    return Path("/proc/self/mountinfo").read_text(), open_files(), len(starters)


def set_user_id(place):
    """A set-user-ID program of root's that everybody can reach."""
    program = place / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    return program


def exists(path):
    return os.path.exists(path)


@contextlib.contextmanager
def mounted(place):
    """A directory where everybody may write, with something mounted in it; what is mounted
    there shows in other namespaces, too, as everywhere on a host with systemd."""
    inner = place / "inner"
    for path in (place, inner):
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid", "tmpfs", path], check=True)
        subprocess.run(["mount", "--make-shared", path], check=True)
    try:
        for path in (place.parent, place, inner):
            path.chmod(0o777)
        yield inner
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)


async def said(script, **options):
    """What a shell prints that is run by the command broker."""
    output = Kept()
    await command_broker(run="/bin/sh", args=["-c", script], **options).run(job(), output)
    return output.text.decode().split()


async def fails(script, **options):
    """The reason why such a shell fails."""
    with pytest.raises(BrokerError) as failure:
        await said(script, **options)
    return str(failure.value)


def python(text):
    return f"exec {sys.executable} -S -c '{text}'"


async def test_memory_is_bounded():
    """A program that takes more is refused it."""
    limits = {"memory": "64MiB"}

    assert await said(python("print(len(bytes(20 << 20)))"), limits=limits) == [str(20 * MIB)]
    assert "MemoryError" in await fails(python("bytes(100 << 20)"), limits=limits)


async def test_open_files_are_bounded():
    """Soft and hard limit: a program cannot raise it."""
    assert await said("ulimit -Sn; ulimit -Hn", limits={"open_files": 99}) == ["99", "99"]


async def test_file_size_is_bounded(tmp_path):
    """Who writes more is ended, and the reason names the limit, not a signal."""
    script = f"exec dd if=/dev/zero of={tmp_path}/file bs=65536 count=32 status=none"

    assert await said(script, limits={"file_size": "2MiB"}) == []
    assert await fails(script, limits={"file_size": "1MiB"}) == (
        "a file of more than 1 MiB (limits.file_size)"
    )
    assert (tmp_path / "file").stat().st_size == MIB


async def test_niceness_and_io_priority_are_the_program_s_alone():
    """The agent answers as promptly as before."""
    limits = {"nice": 7, "io_priority": "best-effort/6"}

    assert await said("nice; ionice", limits=limits) == ["7", "best-effort:", "prio", "6"]
    assert await said("ionice", limits={"io_priority": "idle"}) == ["idle"]
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0


@as_root
async def test_processes_of_another_user_are_bounded():
    """Where no control group is delegated: all processes of that user together."""
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 2 & done; wait"
    # A number that nobody else runs as.
    options = {"as_user": "nobody", "limits": {"pids": 4}}

    reason = await fails(script, **options)

    assert "fork" in reason.lower()


@as_root
@in_own_process
async def test_a_fork_bomb_of_root_s_is_ended():
    """The kernel limits nothing there; the agent looks, and has little patience."""
    processes.HUNT = 0.05
    bomb = "while :; do (trap '' TERM; sleep 30) & sleep 0.01; done"

    reason = await fails(bomb, limits={"pids": 20})

    assert reason == "more than 20 processes (limits.pids)"
    began = time.monotonic()
    await all_ended()
    await until(lambda: not descendants(), what="everybody gone")
    assert time.monotonic() - began < processes.KILL_AFTER - 1


@in_own_process
async def test_new_privileges_are_renounced_by_default():
    """Of all programs, and at no cost: the agent's own thread has renounced them."""
    look = "grep NoNewPrivs /proc/self/status"
    before = seen()

    assert namespaces.has_renounced()
    assert await said(look) == ["NoNewPrivs:", "1"]
    assert await said(look, no_new_privileges=False) == ["NoNewPrivs:", "0"]
    assert await said(look, no_new_privileges=False, limits={"nice": 3}) == ["NoNewPrivs:", "0"]
    assert seen() == before


@in_own_process
async def test_fact_commands_keep_their_privileges():
    """They are the administrator's, and no client has a say in them."""
    _, text = await probe(["/bin/grep", "NoNewPrivs", "/proc/self/status"], 5.0)

    assert text.split() == ["NoNewPrivs:", "0"]


async def test_privileges_are_renounced_in_a_process_that_has_not():
    """Whoever uses a `Program` outside of the agent gets what it says."""
    program = start("grep NoNewPrivs /proc/self/status")

    assert (await read_all(program)).split() == [b"NoNewPrivs:", b"1"]
    assert await program.wait() == 0
    program.finish()


@as_root
@in_own_process
async def test_set_user_id_programs_have_no_effect(place):
    """What the renunciation is for."""
    program = set_user_id(place)
    options = {"as_user": "nobody"}

    assert await said(f"{program} -u", **options) != ["0"]
    assert await said(f"{program} -u", **options, no_new_privileges=False) == ["0"]


@as_root
@in_own_process
async def test_a_private_tmp_is_the_program_s_alone():
    """Empty at the start, unseen outside, gone at the end; of the size it is said to be."""
    mark = f"/tmp/ngcp-outside-{os.getpid()}"
    before = seen()
    script = f"ls -A /tmp; touch {mark}; ls /tmp /var/tmp; stat -fc %b*%S /tmp; stat -c %a /tmp"

    words = await said(script, private_tmp="1MiB", as_user="nobody")

    inside = os.path.basename(mark)
    assert words == ["/tmp:", inside, "/var/tmp:", inside, "256*4096", "1777"]
    assert not exists(mark)
    assert seen() == before


@as_root
@pytest.mark.parametrize("user", ["", "nobody"])
@in_own_process
async def test_nothing_is_written_where_it_is_read_only(place, user):
    """Below the path as well, and on what is mounted there."""
    closed = place / "closed"
    with mounted(closed) as inner:
        before = seen()
        script = (
            f"for d in {closed} {inner} {place}; do touch $d/f 2>/dev/null && echo $d; done;"
            f"grep '{inner} ' /proc/self/mountinfo | grep -vc nosuid; true"
        )

        words = await said(script, read_only_paths=[str(closed)], as_user=user)

        assert words == [str(place), "0"]
        assert seen() == before
        (inner / "ours").touch()


@as_root
@in_own_process
async def test_everything_may_be_read_only_but_a_private_tmp():
    """The tightest there is: a program that can leave nothing behind."""
    script = "touch /tmp/a && echo tmp; touch /var/a /etc/a /a 2>/dev/null || echo refused"

    assert await said(script, read_only_paths="/", private_tmp=True) == ["tmp", "refused"]
    assert not exists("/tmp/a")


@as_root
@in_own_process
async def test_descriptors_and_directory_reach_a_program_with_mounts_of_its_own():
    """It is started by another thread, and notices nothing of it."""
    read_end, write_end = os.pipe()
    confinement = Confinement(private_tmp=MIB, nice=2)

    program = Program(
        ["/bin/sh", "-c", f"pwd; echo hello >/proc/self/fd/{write_end}"],
        ENV,
        cwd="/usr",
        pass_fds=(write_end,),
        confinement=confinement,
    )
    os.close(write_end)

    assert await read_all(program) == b"/usr\n"
    assert os.read(read_end, 99) == b"hello\n"
    await program.end()
    os.close(read_end)


async def test_a_program_never_runs_without_what_it_was_promised():
    """It is not started at all, and the reason names what is missing."""
    if IS_ROOT:
        reason = await fails("echo ran", read_only_paths=["/nonexistent"])
        assert reason == (
            "cannot start /bin/sh: read_only_paths cannot hold here: "
            "/nonexistent: No such file or directory"
        )
    else:
        reason = await fails("echo ran", private_tmp=True)
        assert "private_tmp cannot hold here: Operation not permitted" in reason


async def test_a_missing_program_is_told_from_a_tool_s_failure():
    """prlimit would look for it, too, and report it in its own words."""
    with pytest.raises(BrokerError, match="cannot start nowhere: not found"):
        await command_broker(run="nowhere", limits={"open_files": 64}).run(job(), Kept())


@in_own_process
async def test_what_a_program_has_used_is_told():
    """Processor time of its children included; memory also of one that is short of our own peak."""
    ours = bytearray(200 * MIB)  # the kernel counts it as the program's, after vfork
    del ours
    output = Kept()
    text = (
        "import time; x = bytearray(60 << 20)\n"
        "while time.process_time() < 0.3: pass\n"
        "time.sleep(0.7)"
    )

    await command_broker(run=sys.executable, args=["-S", "-c", text]).run(job(), output)

    assert output.user
    assert output.pid
    assert output.code == 0
    assert 0.3 <= output.cpu_seconds < 3
    assert 60 * MIB <= output.peak_memory < 120 * MIB


@in_own_process
async def test_what_a_program_has_used_is_told_where_it_was_cancelled():
    """Then it is asked for most of all."""
    output = Kept()
    broker = command_broker(run="/bin/sleep", args=["60"])
    running = asyncio.create_task(broker.run(job(), output))
    await until(lambda: output.pid)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert output.code == -15
    assert output.cpu_seconds is not None


@in_own_process
async def test_peak_memory_of_a_short_program_is_not_guessed():
    """The kernel's figure would be our own."""
    ours = bytearray(200 * MIB)
    del ours
    output = Kept()

    await command_broker(run="/bin/true").run(job(), output)

    assert output.peak_memory is None
    assert output.cpu_seconds < 1
