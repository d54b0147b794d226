"""The command broker with real programs: every option, and what a program prints."""

import asyncio
import json
import os
import pwd
import resource
import signal

import pytest

from ngcp_task_agent.brokers.command import FLOOD_SHOWN
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.output import Collector
from ngcp_task_agent.processes import MARK, all_ended

from .alone import descendants, in_own_process
from .jobs import Kept, command_broker, job

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIB = 1024 * 1024


async def said(arguments=None, data=None, **options):
    """What a program run with these broker options prints."""
    output = Kept()
    await command_broker(**options).run(job(arguments=arguments or {}, data=data), output)
    return output.text


async def words(arguments=None, **options):
    """The arguments a program gets, behind its name."""
    options = {"run": "/usr/bin/printf", **options}
    options["args"] = _before("%s\\0", options.get("args", []))
    return (await said(arguments, **options)).decode().split("\0")[:-1]


def _before(word, args):
    return f"'{word}' {args}" if isinstance(args, str) else [word, *args]


@pytest.mark.parametrize("run", ["/bin/echo", "echo"])
async def test_a_program_is_named_by_path_or_found_in_path(run):
    """The agent's own PATH plays no part."""
    assert await said(run=run, args=["one"]) == b"one\n"


async def test_path_of_env_finds_the_program(tmp_path):
    """A task's own PATH counts for its program, too."""
    script(tmp_path / "mine", "echo found")

    assert await said(run="mine", env={"PATH": str(tmp_path)}) == b"found\n"


async def test_args_as_a_list_are_taken_as_they_are():
    """The administrator's list is argument vector already."""
    args = ["a b", "'c'", "$HOME", "*", "", ";", "-x"]

    assert await words(args=args) == args


async def test_args_as_one_text_are_split_as_a_shell_splits_them():
    """Quotes hold together, nothing is expanded."""
    assert await words(args="a 'b c' \"d\" $HOME *") == ["a", "b c", "d", "$HOME", "*"]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("auth user@dom::auth_count", ["auth", "user@dom::auth_count"]),
        ("  a\t b\n", ["a", "b"]),
        ("'a b' \"c", ["'a", "b'", '"c']),
        ("$(id) `id` ; | & > < * ~ \\", ["$(id)", "`id`", ";", "|", "&", ">", "<", "*", "~", "\\"]),
        ("a\u00a0b\u3000c", ["a\u00a0b\u3000c"]),
        ("", []),
        (["a"], []),
        (7, []),
        (None, []),
    ],
)
async def test_extra_args_follow_word_by_word(extra, expected):
    """Every character but an ASCII blank is an ordinary one."""
    assert await words({"extra_args": extra}, args=["own"]) == ["own", *expected]


async def test_the_environment_is_clean(monkeypatch):
    """Exactly what is documented, and the mark by which a process is found again."""
    monkeypatch.setenv("AGENT_SECRET", "x")
    entry = pwd.getpwuid(os.geteuid())
    printed = await said(run="/usr/bin/env", args=["-0"], env={"COLOUR": "blue = 1"})

    found = dict(line.split("=", 1) for line in printed.decode().split("\0")[:-1])

    assert found.pop(MARK)
    assert found == {
        "PATH": PATH,
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "LANG": "C.UTF-8",
        "COLOUR": "blue = 1",
        "NGCP_TASK_UUID": "u-1",
        "NGCP_TASK_NAME": "ping",
        "NGCP_TASK_SRC": "web01a",
        "NGCP_TASK_ATTEMPT": "1",
    }


async def test_env_may_replace_what_is_there_but_not_who_asked():
    """`NGCP_TASK_SRC` is a statement of the agent's."""
    env = {"LANG": "de_DE.UTF-8", "NGCP_TASK_SRC": "somebody"}

    printed = await said(run="/bin/sh", args=["-c", "echo $LANG $NGCP_TASK_SRC"], env=env)

    assert printed == b"de_DE.UTF-8 web01a\n"


async def test_nul_characters_of_a_client_do_not_reach_the_environment():
    """A request's uuid may be any text."""
    output = Kept()
    broker = command_broker(run="/bin/sh", args=["-c", 'echo "$NGCP_TASK_UUID|$NGCP_TASK_SRC"'])

    await broker.run(job(uuid="a\0b", src="c\0d"), output)

    assert output.text == b"ab|cd\n"


async def test_no_descriptor_of_the_agent_s_is_inherited():
    """Neither sockets nor the memory that holds stdin."""
    options = {"run": "/bin/ls", "args": ["/proc/self/fd"], "stdin": "data"}

    # The fourth is the directory that is being listed.
    assert (await said(data="x", **options)).split() == [b"0", b"1", b"2", b"3"]


async def test_signals_are_as_a_program_expects_them():
    """Python ignores SIGPIPE; a program that inherits this never ends in a pipeline."""
    printed = await said(run="/bin/grep", args=["-E", "Sig(Ign|Blk)", "/proc/self/status"])

    inherited = {
        n
        for n in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
        if signal.getsignal(n) is signal.SIG_IGN
    }
    expected = sum(1 << n - 1 for n in inherited)  # of a shell that runs this in the background
    blocked, ignored = (int(line.split()[1], 16) for line in printed.splitlines())
    assert (blocked, ignored) == (0, expected)


@pytest.mark.parametrize(("cwd", "expected"), [({}, "/"), ({"cwd": "/proc"}, "/proc")])
async def test_cwd(cwd, expected):
    """The root directory, unless the task says otherwise."""
    assert await said(run="/bin/pwd", **cwd) == f"{expected}\n".encode()


@pytest.mark.parametrize(
    ("umask", "expected"), [({}, 0o022), ({"umask": "0027"}, 0o027), ({"umask": "0"}, 0)]
)
async def test_umask(umask, expected):
    """0022, unless the task says otherwise, and whatever the agent's is."""
    printed = await said(run="/bin/sh", args=["-c", "umask"], **umask)

    assert int(printed, 8) == expected


@pytest.mark.parametrize("size", [0, 100_000, 1_000_000])
async def test_stdin_is_the_request_s_data(size):
    """As it came, whatever its size, without anybody feeding a pipe."""
    assert await said(data="ä" * (size // 2), run="/bin/cat", stdin="data") == b"\xc3\xa4" * (
        size // 2
    )


async def test_an_object_on_stdin_is_json():
    """A client that sent an object and not a string that holds one."""
    printed = await said(data={"user": "anna"}, run="/bin/cat", stdin="data")

    assert json.loads(printed) == {"user": "anna"}


@pytest.mark.parametrize(
    ("data", "stdin"), [(None, {"stdin": "data"}), ("unwanted", {"stdin": "none"}), ("x", {})]
)
async def test_stdin_is_empty_without_data(data, stdin):
    """A program that reads must never wait for input."""
    assert await said(data=data, run="/bin/cat", **stdin) == b""


async def test_data_on_stdin_need_not_be_read():
    """A program that ends early is no failure of the agent's."""
    assert await said(data="x" * MIB, run="/bin/true", stdin="data") == b""


@pytest.mark.parametrize("code", [0, 3])
async def test_ok_exit_codes_are_done(code):
    """grep's 1 for instance means that nothing was found."""
    options = {"run": "/bin/sh", "ok_exit_codes": [0, 3]}

    assert await said(**options, args=["-c", f"echo out; exit {code}"]) == b"out\n"


async def test_zero_is_an_error_where_only_others_are_ok():
    """The list is all there is."""
    with pytest.raises(BrokerError, match=r"^exit code 0$"):
        await said(run="/bin/true", ok_exit_codes=[3])


async def test_what_was_printed_before_a_failure_is_kept():
    """stdout goes into `data` also where the status is error."""
    output = Kept()

    with pytest.raises(BrokerError, match=r"^exit code 4: last$"):
        await command_broker(
            run="/bin/sh", args=["-c", "echo out; echo first >&2; echo last >&2; exit 4"]
        ).run(job(), output)

    assert output.text == b"out\n"


async def test_max_output_itself_is_allowed():
    """The limit is the first byte too many."""
    printed = await said(run="/usr/bin/head", args="-c 1024 /dev/zero", max_output="1KiB")

    assert len(printed) == 1024


@in_own_process
async def test_more_than_max_output_ends_the_tree():
    """At once, with a text that names the option and a part of the output to look at."""
    script = "setsid sleep 60 & exec cat /dev/zero"
    broker = command_broker(run="/bin/sh", args=["-c", script], max_output="3MiB")
    output = Collector()

    with pytest.raises(BrokerError, match="more than 3145728 bytes of output"):
        async with asyncio.timeout(5):
            await broker.run(job(), output)
    await all_ended()

    assert output.text.text() == "\0" * FLOOD_SHOWN
    assert descendants() == []


async def test_output_that_is_no_utf_8_is_replaced():
    """A client gets JSON, whatever the program prints."""
    output = Collector()

    await command_broker(run="/usr/bin/printf", args=[r"a\377\303(\360\237\230\n"]).run(
        job(), output
    )

    assert output.text.text() == "a\ufffd\ufffd(\ufffd\n"


@in_own_process
async def test_memory_stays_flat_whatever_is_printed(tmp_path):
    """200 MB of output go to the disk."""
    output = Collector(str(tmp_path))
    broker = command_broker(
        run="/usr/bin/head", args=["-c", str(200 * MIB), "/dev/zero"], max_output="256MiB"
    )
    before = peak()

    await broker.run(job(), output)

    assert output.text.size == 200 * MIB
    assert sum(map(len, output.text.blocks())) == 200 * MIB
    assert peak() - before < 16 * MIB
    output.discard()


@in_own_process
async def test_memory_stays_flat_whatever_goes_to_stderr():
    """Only the end of it is kept, and the last line is still the reason."""
    script = "head -c 200M /dev/zero >&2; echo >&2; echo last >&2; exit 1"
    before = peak()

    with pytest.raises(BrokerError, match=r"^exit code 1: last$"):
        await command_broker(run="/bin/sh", args=["-c", script]).run(job(), Kept())

    assert peak() - before < 16 * MIB


def peak():
    """The most bytes that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def script(path, *lines, mode=0o755):
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(mode)
    return path
