"""How worker processes are started, replaced, killed, and kept from saying too much."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys

import psutil
import pytest

from ngcp_task_agent import processes
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.messages import Encoded
from ngcp_task_agent.output import Collector

from .alone import descendants, open_files
from .jobs import job, python_broker
from .waiting import until

KILLS = 100
SOURCE = """
import os, re, socket, struct, subprocess, sys, threading, time
from ngcp_task_agent.context import current

def pid(hold=0):
    time.sleep(hold)
    return os.getpid()

async def pid_async():
    return os.getpid()

def grows(size):
    grows.kept = b"x" * size
    return os.getpid()

def works():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    subprocess.run([sys.executable, "-c", "x = b'x' * 30_000_000"])
    b"x" * 60_000_000

def prints(word):
    print("out", word)
    print("err", word, file=sys.stderr)
    print("a", word.replace(":", "\\n"))
    os.write(1, b"unfinished " + word.encode())

def fails(word):
    raise ValueError(f"not {word}")

def crashes(word):
    print("about to", word, file=sys.stderr)
    os.kill(os.getpid(), 9)

def crashes_long(word):
    os.write(2, b"x" * 200_000 + word.encode())
    os.kill(os.getpid(), 9)

def floods():
    threading.Timer(1, lambda: os._exit(0)).start()
    while True:
        os.write(1, b"y\\n" * 32768)

def who():
    return [os.getuid(), os.getgid(), os.getgroups(), sorted(os.environ), os.environ.get("HOME")]

def variable(name):
    return [os.environ.get(name), os.getpid()]

def late():
    context = current()
    def say():
        time.sleep(0.1)
        context.progress("late")
    threading.Thread(target=say).start()
    return os.getpid()

def says(frame):
    [daemon] = [int(fd) for fd in os.listdir("/proc/self/fd")
                if is_socket(f"/proc/self/fd/{fd}")]
    os.write(daemon, bytes.fromhex(frame))
    time.sleep(0.2)
    return "the result"

def is_socket(path):
    try:
        return os.readlink(path).startswith("socket:")
    except OSError:
        return False

def large(size):
    return "x" * size

def forks():
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    return "parent"

def leaves_a_child():
    subprocess.Popen(["sleep", "600"])
    return os.getpid()

def holds_its_socket_on():
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), 9)

def bounds():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return [os.getppid(), os.nice(0), status["NoNewPrivs"].strip()]

async def bounds_async():
    return bounds()
"""
HOSTILE = {
    "no letter of ours": b"Z\0\0\0\0",
    "too large a result": b"R\xff\xff\xff\xff",
    "too large a piece": b"P\x7f\xff\xff\xff",
    "a result that is no JSON": b"R\0\0\0\3{{{",
    "a failure without a reason": b"E\0\0\0\2[]",
    "a log record of another form": b"L\0\0\0\2{}",
    "a use of another form": b"U\0\0\0\2[]",
    "a text with something in it": b"T\0\0\0\1x",
    "a call": b"C\0\0\0\2{}",
}

as_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
]


@pytest.fixture
def module(place):
    place.joinpath("worker_functions.py").write_text(SOURCE)
    return place


class Task:
    """A broker and its jobs; nothing of it outlives the block."""

    def __init__(self, module, function, **fields):
        self.broker = python_broker(
            callable=f"worker_functions:{function}", path=str(module), **fields
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.broker.close()
        await processes.all_ended()

    async def output(self, output=None, **arguments):
        output = output or Collector()
        await self.broker.run(job(arguments=arguments), output)
        return output

    async def value(self, **arguments):
        return (await self.output(**arguments)).value

    async def reason(self, output=None, **arguments):
        with pytest.raises(BrokerError) as caught:
            await self.output(output, **arguments)
        return str(caught.value)


class Reader:
    """A `Live` that keeps what it is told."""

    text = b""

    async def write(self, stream, data):
        self.text += data


def secretive():
    """An output that hides ``s3cret``, and a text of two lines."""
    output = Collector(mask=["A", "B"])
    output.hide({"A": "s3cret", "B": "one:two"})
    return output


async def test_a_worker_is_replaced_after_so_many_jobs(module):
    """What leaks, leaks for a while only."""
    async with Task(module, "pid", recycle_jobs=3) as task:
        pids = [await task.value() for _ in range(7)]

    assert pids == [pids[0]] * 3 + [pids[3]] * 3 + [pids[6]]
    assert len(set(pids)) == 3


async def test_a_worker_that_has_grown_is_replaced(module):
    """Its memory goes back to the system."""
    async with Task(module, "grows", recycle_memory="64MiB") as task:
        small = [await task.value(size=1) for _ in range(3)]
        large = await task.value(size=100_000_000)
        after = await task.value(size=1)

    assert len({*small, large}) == 1
    assert after != large


async def test_a_job_s_use_is_told(module):
    """Processor time of this job; the most memory that the worker has ever had."""
    async with Task(module, "works") as task:
        output = await task.output()
        assert 0.1 <= output.cpu_seconds < 5
        assert output.peak_memory > 60_000_000


@pytest.mark.concurrency
async def test_killed_at_any_moment_each_job_ends_once(module):
    """A hundred times kill -9, idle or at work; nobody is left, and no file open."""
    others, before = set(descendants()), open_files()
    chance, ends = random.Random(4711), []
    async with Task(module, "pid") as task:
        await task.value()
        for number in range(KILLS):
            running = asyncio.ensure_future(task.output(hold=0.01))
            await asyncio.sleep(chance.random() * 0.12)
            for worker in descendants():
                with contextlib.suppress(psutil.Error):  # one that has just been reaped
                    if "worker_functions:pid" in worker.cmdline():
                        worker.kill()
            try:
                ends.append((await asyncio.wait_for(running, 5)).has_result)
            except BrokerError as exc:
                assert "was killed by signal SIGKILL" in str(exc)  # noqa: PT017
                ends.append(False)
            assert len(ends) == number + 1
        assert isinstance(await task.value(), int)

    assert len(ends) == KILLS
    assert {True, False} == set(ends)
    await until(lambda: set(descendants()) <= others)
    assert open_files() == before


async def test_killed_while_idle_no_job_is_lost(module):
    """Not even one that comes before the end has been noticed: it cannot have begun."""
    async with Task(module, "pid") as task:
        for _ in range(20):
            pid = await task.value()
            os.kill(pid, signal.SIGKILL)

            assert await task.value() != pid


async def test_the_last_line_a_worker_printed_helps_the_reason(module):
    """Without what is to be hidden, and without what was cut."""
    async with Task(module, "crashes") as task:
        reason = await task.reason(secretive(), word="use s3cret")
        assert reason.endswith("was killed by signal SIGKILL: about to use ***")
    async with Task(module, "crashes_long") as task:
        reason = await task.reason(secretive(), word="s3cret")
        assert "cret" not in reason


async def test_what_is_printed_is_logged_masked(module, caplog):
    """Line by line with the task's name; a secret of two lines as well."""
    caplog.set_level("INFO")
    async with Task(module, "prints") as task:
        await task.output(secretive(), word="s3cret")
        await task.output(secretive(), word="one:two")

    lines = [text for text in caplog.messages if text.startswith("task ping: ")]
    expected = ["out ***", "err ***", "a ***", "unfinished ***"]
    assert lines[:4] == [f"task ping: {line}" for line in expected]
    assert "s3cret" not in caplog.text
    assert "one:two" not in caplog.text


async def test_a_traceback_is_masked(module, caplog):
    """And so is the reason."""
    async with Task(module, "fails") as task:
        output = secretive()
        reason = await task.reason(output, word="s3cret")

    assert output.masked(reason) == "ValueError: not ***"
    assert "ValueError: not ***" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_flood_on_stdout_is_held_back(module, caplog):
    """It blocks on its pipe; the log gets some of it, and a number."""
    caplog.set_level("INFO")
    async with Task(module, "floods") as task:
        before = psutil.Process().memory_info().rss
        await task.reason()

    assert psutil.Process().memory_info().rss - before < 32 * 1024 * 1024
    assert 100 < len(caplog.messages) < 1000


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_worker_that_says_something_else_is_replaced(module, name):
    """Its function shares the process, and could send anything."""
    async with Task(module, "says") as task:
        reason = await task.reason(frame=HOSTILE[name].hex())
        assert reason.endswith("worker_functions:says said what no worker says")
        assert await task.reason(frame=HOSTILE[name].hex()) == reason


async def test_too_large_a_result_is_an_error(module):
    """64 MiB are allowed, as for a command's output."""
    async with Task(module, "large") as task:
        assert "at most 67108864 are sent" in await task.reason(size=67_108_864)
        value = await task.value(size=20_000_000)
        assert value == Encoded(b'"' + b"x" * 20_000_000 + b'"')  # not looked into again


async def test_a_thread_that_was_left_behind_says_nothing_in_the_next_job(module):
    """It is another client's."""
    readers = Reader(), Reader()
    async with Task(module, "late") as task:
        for reader in readers:
            await task.output(Collector(live=reader))
            await asyncio.sleep(0.3)

    assert [reader.text for reader in readers] == [b"", b""]


async def test_a_changed_secret_reaches_the_next_job(module):
    """By a new worker; while nothing changes, it is the same one."""
    file = module / "secrets"
    file.write_text("PASSWORD=one\n")
    async with Task(module, "variable", env={"COLOUR": "red"}, env_files=[str(file)]) as task:
        first, second = await task.value(name="PASSWORD"), await task.value(name="PASSWORD")
        file.write_text("PASSWORD=two\n")
        third = await task.value(name="PASSWORD")
        assert (await task.value(name="COLOUR"))[0] == "red"

    assert first == second
    assert first[0] == "one"
    assert third[0] == "two"
    assert third[1] != first[1]


class TestAsAnotherUser:
    """As root only, and where that user can read this Python."""

    pytestmark = as_root

    @pytest.fixture(autouse=True)
    def readable(self):
        words = [
            "setpriv",
            "--reuid=nobody",
            "--clear-groups",
            sys.executable,
            "-c",
            "import orjson",
        ]
        if subprocess.run(words, check=False, cwd="/", stderr=subprocess.DEVNULL).returncode:
            pytest.skip("nobody cannot read this Python")

    async def test_the_worker_is_that_user(self, module, monkeypatch):
        """With his groups and home, and nothing else of the daemon's environment."""
        monkeypatch.setenv("LEAKED", "s3cret")
        async with Task(module, "who", as_user="nobody") as task:
            output = await task.output()
            uid, gid, groups, names, home = output.value

        assert 0 not in (uid, gid, *groups)
        assert output.user == "nobody"
        assert "LEAKED" not in names
        assert {"HOME", "USER", "LOGNAME", "PATH"} <= set(names)
        assert home != os.environ.get("HOME")

    async def test_an_async_function_runs_as_that_user_as_well(self, module):
        """In a worker: the loop has one user only."""
        async with Task(module, "pid_async", as_user="nobody") as task:
            assert await task.value() != os.getpid()

    async def test_a_path_that_user_cannot_read_is_named(self, module):
        """Python alone would say that there is no such module."""
        module.chmod(0o700)
        async with Task(module, "pid", as_user="nobody") as task:
            reason = await task.reason()

        assert reason == f"path: {module}: Permission denied for the user nobody"

    async def test_an_unknown_user_is_an_error(self, module):
        """Before anything is started."""
        async with Task(module, "pid", as_user="nonesuch") as task:
            assert "no such user" in await task.reason()


async def test_a_worker_is_confined(module):
    """An `async def` too: within the daemon itself it could not be."""
    bounds = {"limits": {"nice": 5, "memory": "200MiB"}}
    for function in ("bounds", "bounds_async"):
        async with Task(module, function, **bounds) as task:
            assert await task.value() == [os.getpid(), 5, "1"]


async def test_a_worker_gets_no_more_memory_than_its_limit(module):
    """The job fails, and the next one finds a worker."""
    async with Task(module, "large", limits={"memory": "200MiB"}) as task:
        assert "MemoryError" in await task.reason(size=400 << 20)
        assert await task.value(size=3) == "xxx"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root")
@pytest.mark.skipif(sys.prefix.startswith("/tmp/"), reason="this Python itself is in /tmp")
async def test_a_worker_may_have_a_tmp_of_its_own():
    """What one task leaves there, no other sees."""
    broker = python_broker(callable="glob:glob", private_tmp=True)
    output = Collector()

    await broker.run(job(arguments={"pathname": "/tmp/*"}), output)
    await broker.close()
    await processes.all_ended()

    assert output.value == []


async def test_a_child_that_a_function_forks_answers_nothing(module):
    """It ends where it comes back; its parent's answers stay its parent's."""
    async with Task(module, "forks") as task:
        assert [await task.value() for _ in range(3)] == ["parent"] * 3


async def test_what_a_job_leaves_running_ends_with_its_worker(module):
    """And the next job gets another worker: as with commands, nothing goes on unseen."""
    others = set(descendants())
    async with Task(module, "leaves_a_child") as task:
        pids = [await task.value() for _ in range(2)]
        assert len(set(pids)) == 2
    await until(lambda: set(descendants()) <= others)


async def test_a_crash_is_noticed_whoever_holds_the_socket(module):
    """A forked child that goes on must not keep the client waiting."""
    async with Task(module, "holds_its_socket_on") as task:
        async with asyncio.timeout(8):
            assert "was killed by signal SIGKILL" in await task.reason()


async def test_a_figure_of_another_kind_harms_nobody(module):
    """It comes from a process of another user's."""
    told = b'{"memory":1e12,"peak":-1}'
    frame = b"U" + len(told).to_bytes(4, "big") + told + b"R" + (4).to_bytes(4, "big") + b"null"
    async with Task(module, "says") as task:
        output = await task.output(frame=frame.hex())

    assert output.peak_memory is None
