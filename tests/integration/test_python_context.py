"""What a Python function knows of its job, and says while it runs."""

import asyncio
import os
import sys
import time

import pytest

from ngcp_task_agent import processes
from ngcp_task_agent.brokers import python_loop
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.output import Collector

from .jobs import job, python_broker
from .waiting import until

SOURCE = """
import asyncio, contextlib, os, threading, time
from ngcp_task_agent.context import Context, current, progress

def told(context):
    request = context.request
    return [request.task, request.uuid, request.src, request.data, request.options,
            context.deadline, context.cancelled, os.getpid()]

async def told_async(context):
    return told(context)

def left(*, context: Context):
    return context.remaining()

def by_current():
    return current().request.uuid

async def by_current_async():
    await asyncio.sleep(0.01)
    return current().request.uuid

def takes(**everything):
    return everything

def logs(context):
    context.log.warning("disk %s is at %d %%", "sda", 91)
    context.log.info("token=%s", "s3cret")
    context.log.info("100% sure")

async def logs_async(context):
    logs(context)

def lines():
    yield "first\\n"
    yield b"second\\n"
    yield {"third": 3}
    yield "sm\\u00f6rg\\u00e5s"

async def lines_async():
    for piece in lines():
        await asyncio.sleep(0)
        yield piece

def counts():
    yield "half"
    return {"count": 2}

def breaks():
    yield "half"
    raise ValueError("no more")

async def breaks_async():
    yield "half"
    raise ValueError("no more")

def wrong():
    yield object()

async def wrong_async():
    yield object()

def silent():
    return
    yield

async def silent_async():
    return
    yield

def endless(path):
    count = 0
    while True:
        yield "x" * 65536
        count += 1
        with open(path, "w") as file:
            file.write(str(count))

async def endless_async(path):
    for piece in endless(path):
        yield piece

def shows():
    progress("one ")
    progress({"done": 50})
    return "the result"

async def shows_async():
    progress("one ")
    await progress({"done": 50})
    return "the result"

def ends_itself(context, path):
    open(path, "w").close()
    while not context.cancelled:
        time.sleep(0.01)
    with open(path, "w") as file:
        file.write("tidy")

def pours_until_cancelled(context, path):
    try:
        while True:
            yield "x"
            time.sleep(0.01)
            with open(path, "a"):
                pass
    finally:
        with open(path, "w") as file:
            file.write("tidy")

async def ends_itself_async(path):
    open(path, "w").close()
    try:
        await asyncio.sleep(60)
    finally:
        with open(path, "w") as file:
            file.write("tidy")

async def stubborn(path, seconds=60):
    open(path, "w").close()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
    return os.getpid()

async def stubborn_below(path, seconds=60):
    await asyncio.gather(stubborn(path, seconds))

async def worse(path):
    open(path, "w").close()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            await asyncio.sleep(0.05)
        except BaseException:
            pass

async def where():
    return os.getpid()
"""
EXPECTED = 'first\nsecond\n{"third":3}\nsmörgås'
both = pytest.mark.parametrize("suffix", ["", "_async"], ids=["worker", "loop"])


class Reader:
    """A `Live` that keeps what it is told, as slowly as one wishes."""

    def __init__(self):
        self.text = b""
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, stream, data):
        await self.open.wait()
        self.text += data

    async def finish(self, last):
        for data in last.values():
            self.text += data


@pytest.fixture
def module(place, monkeypatch):
    """The directory of the module; a new one for each test, like the loop's import."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "context_functions", raising=False)
    place.joinpath("context_functions.py").write_text(SOURCE)
    return place


def broker(module, function, **fields):
    return python_broker(callable=f"context_functions:{function}", path=str(module), **fields)


async def done(module, function, output=None, fields=None, **of_job):
    """Run one job to its end; its output."""
    output = output or Collector()
    made = broker(module, function, **fields or {})
    try:
        await made.run(job(**of_job), output)
    finally:
        await closed(made)
    return output


async def closed(made):
    """Leave no process, and none that is being ended."""
    await made.close()
    await processes.all_ended()


async def started(made, output=None, **arguments):
    """A job that has begun to run and says so in the file *path*."""
    running = asyncio.ensure_future(made.run(job(arguments=arguments), output or Collector()))
    await until(lambda: os.path.exists(arguments["path"]) or running.done())
    return running


@both
async def test_a_function_with_a_parameter_context_knows_its_request(module, suffix):
    """And when it is ended."""
    options = {"stream": True}
    output = await done(
        module, "told" + suffix, data=[7], options=options, deadline=4_000_000_000.5
    )

    *told, pid = output.value
    assert told == ["ping", "u-1", "web01a", [7], options, 4_000_000_000.5, False]
    assert (pid == os.getpid()) == bool(suffix)
    assert output.user
    assert output.pid == (None if suffix else pid)


async def test_the_remaining_time_is_that_until_the_deadline(module):
    """Never less than nothing; None where there is no end."""
    for deadline, expected in ((time.time() + 60, 60), (1.0, 0)):
        output = await done(module, "left", deadline=deadline)
        assert output.value == pytest.approx(expected, abs=2)
    assert (await done(module, "left")).value is None


@both
async def test_current_finds_the_context_further_down(module, suffix):
    """For code that does not get it handed in."""
    assert (await done(module, "by_current" + suffix)).value == "u-1"


@both
async def test_a_client_cannot_set_the_context(module, suffix):
    """It would be taken for the agent's."""
    with pytest.raises(BrokerError, match=r"^data\.context: "):
        await done(module, "told" + suffix, arguments={"context": {}})


async def test_an_argument_called_context_reaches_a_function_without_that_parameter(module):
    """It is a name like any other there."""
    output = await done(module, "takes", arguments={"context": 1})

    assert output.value == {"context": 1}


@both
async def test_what_a_function_logs_is_in_the_agent_s_log_masked(module, suffix, caplog):
    """With its level and the task's name."""
    caplog.set_level("INFO")
    output = Collector(mask=["TOKEN"])
    output.hide({"TOKEN": "s3cret"})
    await done(module, "logs" + suffix, output)

    lines = [
        (r.levelname, r.getMessage()) for r in caplog.records if "task ping: " in r.msg % r.args
    ]
    assert lines == [
        ("WARNING", "task ping: disk sda is at 91 %"),
        ("INFO", "task ping: token=***"),
        ("INFO", "task ping: 100% sure"),
    ]


@both
async def test_what_a_generator_yields_is_the_text_of_the_answer(module, suffix):
    """Text and bytes as they are, anything else as a line of JSON."""
    reader = Reader()
    output = await done(module, "lines" + suffix, Collector(live=reader))

    assert not output.has_result
    assert output.text.text() == EXPECTED
    assert reader.text.decode() == EXPECTED


async def test_what_a_generator_returns_is_the_result(module):
    """Then its text was for those who read along."""
    reader = Reader()
    output = await done(module, "counts", Collector(live=reader))

    assert output.value == {"count": 2}
    assert reader.text == b"half"


@both
async def test_a_generator_that_yields_nothing_says_nothing(module, suffix):
    """Which is a text."""
    output = await done(module, "silent" + suffix)

    assert not output.has_result
    assert output.text.text() == ""


@both
async def test_a_generator_that_fails_keeps_what_it_has_said(module, suffix):
    """The error carries it."""
    output = Collector()
    with pytest.raises(BrokerError, match=r"^ValueError: no more$"):
        await done(module, "breaks" + suffix, output)

    assert output.text.text() == "half"


@both
async def test_a_piece_without_a_form_in_json_is_an_error(module, suffix):
    """As a result without one is."""
    with pytest.raises(BrokerError, match=r"^TypeError: the piece is not JSON"):
        await done(module, "wrong" + suffix)


@both
async def test_a_generator_waits_for_a_slow_client(module, place, suffix):
    """It must not run ahead without bound."""
    reader, path = Reader(), place / "count"
    reader.open.clear()
    made = broker(module, "endless" + suffix)
    output = Collector(live=reader)
    running = asyncio.ensure_future(made.run(job(arguments={"path": str(path)}), output))
    await asyncio.sleep(0.7)
    count = int(path.read_text()) if path.exists() else 0
    assert count <= 16

    reader.open.set()
    await until(lambda: path.exists() and int(path.read_text() or 0) > count + 16)
    running.cancel()
    await asyncio.wait((running,))
    output.discard()
    await closed(made)


@both
async def test_too_much_text_is_an_error(module, place, suffix):
    """The disk is for others as well; the beginning is kept."""
    output = Collector()
    with pytest.raises(BrokerError, match=r"more than 1048576 bytes of output \(max_output\)"):
        await done(
            module, "endless" + suffix, output, {"max_output": "1MiB"},
            arguments={"path": str(place / "count")},
        )  # fmt: skip

    assert output.text.size == 256 * 1024
    output.discard()


@both
async def test_progress_reaches_only_a_client_that_reads_along(module, suffix):
    """It is no part of the answer."""
    reader = Reader()
    output = await done(module, "shows" + suffix, Collector(live=reader))
    assert (output.value, reader.text) == ("the result", b'one {"done":50}\n')

    output = await done(module, "shows" + suffix)
    assert (output.value, output.text.text()) == ("the result", "")


@pytest.mark.parametrize("function", ["ends_itself", "pours_until_cancelled", "ends_itself_async"])
async def test_a_function_that_attends_ends_by_itself(module, place, function):
    """In a worker SIGTERM sets `cancelled`, and cancels an `async def`."""
    path = place / "state"
    made = broker(module, function, worker=True)
    running = await started(made, path=str(path))

    running.cancel()
    await asyncio.wait((running,), timeout=processes.KILL_AFTER - 1)

    assert running.cancelled()
    assert path.read_text() == "tidy"
    await closed(made)


@pytest.mark.parametrize("function", ["stubborn", "stubborn_below"])
async def test_a_function_that_ignores_its_cancellation_moves_to_a_worker(
    module, place, function, monkeypatch, caplog
):
    """Where it can be killed; the place in the queue is free again soon."""
    monkeypatch.setattr(processes, "KILL_AFTER", 0.6)
    monkeypatch.setattr(python_loop, "PATIENCE", 0.2)
    made = broker(module, function)
    running = await started(made, path=str(place / "one"), seconds=2)

    began = time.monotonic()
    running.cancel()
    await asyncio.wait((running,), timeout=5)

    assert running.cancelled()
    assert time.monotonic() - began < 1.5
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    assert "task ping: context_functions:" in caplog.text

    output = Collector()
    running = await started(made, output, path=str(place / "two"))
    assert output.pid not in (None, os.getpid())
    running.cancel()
    await asyncio.wait((running,), timeout=5)
    assert running.cancelled()
    await closed(made)
    await asyncio.sleep(2)  # what was left behind in the loop ends


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_function_that_ignores_everything_is_left_alone(module, place, monkeypatch, caplog):
    """The job ends all the same, and the log says so."""
    monkeypatch.setattr(processes, "KILL_AFTER", 0.4)
    monkeypatch.setattr(python_loop, "PATIENCE", 0.2)
    made = broker(module, "worse")
    running = await started(made, path=str(place / "one"))

    running.cancel()
    await asyncio.wait((running,), timeout=5)

    assert running.cancelled()
    assert "is given up" in caplog.text
    await asyncio.sleep(2)


async def test_a_function_that_ends_in_time_stays_in_the_loop(module, place):
    """To tidy up is no crime."""
    made = broker(module, "ends_itself_async")
    running = await started(made, path=str(place / "one"))

    running.cancel()
    await asyncio.wait((running,))

    assert place.joinpath("one").read_text() == "tidy"
    assert not made._loop.stubborn


@pytest.mark.parametrize("fields", [{"worker": True}, {"env": {"A": "b"}}], ids=str)
async def test_an_async_function_runs_in_a_worker_where_it_has_to(module, fields):
    """By wish, or because the loop has no environment of its own to give."""
    assert (await done(module, "where", fields=fields)).value != os.getpid()
    assert (await done(module, "where")).value == os.getpid()
