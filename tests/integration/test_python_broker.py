"""The python broker with real modules and real worker processes."""

import asyncio
import os
import signal
import sys

import psutil
import pytest

from ngcp_task_agent import processes
from ngcp_task_agent.cli.check import check
from ngcp_task_agent.errors import BrokerError, MessageError
from ngcp_task_agent.messages import encode

from .alone import ROOT, open_files
from .functions import functions, workers
from .jobs import Kept, job, python_broker
from .waiting import until

SIDE_BY_SIDE = 30
kinds = pytest.mark.parametrize("kind", ["def", "async def"], ids=["worker", "loop"])


async def test_an_async_function_runs_in_the_agent_itself(place):
    """No process is started for it."""
    async with functions(place) as f:
        assert await f.call("hello_async", name="anna") == {"hello": "anna"}
        assert await f.call("pid_async") == os.getpid()


async def test_a_plain_function_runs_in_a_worker(place):
    """And may take all the time it wants, or crash."""
    async with functions(place) as f:
        assert await f.call("hello", name="anna") == {"hello": "anna"}
        assert await f.call("pid") != os.getpid()


async def test_a_worker_is_used_again(place):
    """One job after the other needs one process."""
    async with functions(place) as f:
        broker = f.broker("pid")
        first, second = Kept(), Kept()
        await broker.run(job(), first)
        await broker.run(job(), second)

    assert first.value == second.value


@kinds
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("fails", "ValueError: no such user"),
        ("fails_silently", "KeyError"),
        ("exits", "SystemExit: 3"),
        ("interrupted", "KeyboardInterrupt"),
        ("surrogate_error", "ValueError: a?b"),
    ],
)
async def test_an_exception_is_an_error_with_its_type_and_text(place, kind, function, expected):
    """On one line, in characters that can be sent, whatever the exception is."""
    async with functions(place, kind) as f:
        assert await f.reason(function) == expected


@kinds
async def test_a_wrong_argument_is_an_error(place, kind):
    """The client chose it; the text says which."""
    async with functions(place, kind) as f:
        assert "needed" in await f.reason("keyword")
        assert "other" in await f.reason("keyword", needed=1, other=2)
        assert await f.call("keyword", needed=[1]) == [1]


async def test_a_traceback_is_for_the_log_only(place, caplog):
    """It names files and holds data that are nobody else's business."""
    async with functions(place) as f:
        reason = await f.reason("fails")

    assert "Traceback" not in reason
    assert "Traceback" in caplog.text
    assert f.module in caplog.text


@kinds
@pytest.mark.parametrize("function", ["no_json", "surrogate", "huge"])
async def test_a_result_that_is_no_json_is_an_error(place, kind, function):
    """From a worker at once; from the loop when it is to be sent."""
    async with functions(place, kind) as f:
        if kind == "def":
            assert (await f.reason(function)).startswith("TypeError: the result is not JSON")
        else:
            result = await f.call(function)
            with pytest.raises(MessageError, match="not JSON"):
                encode(result)


@kinds
async def test_no_nan_leaves_the_agent(place, kind):
    """JSON has none, and one such message ends existing clients."""
    async with functions(place, kind) as f:
        assert encode(await f.call("not_a_number")) == b"[null,null,1.5]"


@kinds
async def test_results_of_every_size(place, kind):
    """None, and more than any pipe or socket holds."""
    async with functions(place, kind) as f:
        assert await f.call("nothing") is None
        assert await f.call("large", size=3_000_000) == "ä" * 3_000_000


async def test_large_arguments_reach_the_worker(place):
    """More than a socket holds."""
    async with functions(place) as f:
        assert await f.call("hello", name="ä" * 900_000) == {"hello": "ä" * 900_000}


async def test_prints_do_not_disturb(place, capfd, caplog):
    """What a worker prints is the log, its answers go another way."""
    caplog.set_level("INFO")
    async with functions(place) as f:
        assert await f.call("prints") == "quiet"

    captured = capfd.readouterr()
    assert captured.out == ""
    assert "task ping: not to be taken for an answer" in caplog.messages


@pytest.mark.parametrize(
    ("function", "expected"),
    [("killed", "was killed by signal SIGKILL"), ("leaves", "ended with exit code 5")],
)
async def test_a_worker_that_dies_is_an_error_and_the_next_job_runs(place, function, expected):
    """In words that name the function."""
    before = open_files()
    async with functions(place) as f:
        reason = await f.reason(function)
        assert reason == f"the worker process of {f.module}:{function} {expected}"
        assert await f.call("hello") == {"hello": "you"}

    await until(lambda: not workers(f))
    assert open_files() == before


async def test_a_worker_killed_while_it_was_idle_costs_no_job(place):
    """The next job gets another one."""
    async with functions(place) as f:
        broker = f.broker("pid")
        first, second = Kept(), Kept()
        await broker.run(job(), first)
        os.kill(first.value, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(first.value))

        await broker.run(job(), second)

    assert second.value != first.value


async def test_the_time_limit_ends_a_worker_that_ignores_sigterm(place, monkeypatch):
    """Cancelled as at the time limit: nobody is left, and the next job runs."""
    monkeypatch.setattr(processes, "KILL_AFTER", 0.3)
    before = open_files()
    async with functions(place) as f:
        running = asyncio.create_task(f.call("ignores_term", path=str(place / "ready")))
        await until((place / "ready").exists)
        [worker] = workers(f)

        running.cancel()
        await asyncio.wait((running,), timeout=5)

        assert running.cancelled()
        assert not worker.is_running()
        assert await f.call("hello") == {"hello": "you"}
    await until(lambda: not workers(f))
    assert open_files() == before


@pytest.mark.parametrize("function", ["sleeps", "sleeps_async"])
async def test_cancelling_ends_the_call(place, function):
    """At whatever moment, the first included."""
    async with functions(place) as f:
        for seconds in (0, 0.01, 0.3):
            running = asyncio.create_task(f.call(function))
            await asyncio.sleep(seconds)
            running.cancel()
            await asyncio.wait((running,), timeout=8)
            assert running.cancelled()
    await until(lambda: not workers(f))


async def test_many_jobs_run_side_by_side(place):
    """Each in a worker of its own, each with its own answer."""
    before = open_files()
    async with functions(place) as f:
        broker = f.broker("waits_a_moment")
        outputs = [Kept() for _ in range(SIDE_BY_SIDE)]
        async with asyncio.TaskGroup() as group:
            for number, output in enumerate(outputs):
                group.create_task(broker.run(job(arguments={"number": number}), output))
        assert [output.value for output in outputs] == list(range(SIDE_BY_SIDE))
    await until(lambda: not workers(f))
    assert open_files() == before


async def test_close_ends_idle_workers_and_lets_a_busy_one_finish(place):
    """A task file that is replaced does not harm a job that runs."""
    async with functions(place) as f:
        broker = f.broker("waits_a_moment")
        await broker.run(job(arguments={"number": 1}), Kept())
        output = Kept()
        running = asyncio.create_task(broker.run(job(arguments={"number": 2}), output))
        idle = asyncio.create_task(broker.run(job(arguments={"number": 3}), Kept()))
        await until(lambda: len(workers(f)) == 2)

        await broker.close()
        await running
        await idle

        assert output.value == 2
        await until(lambda: not workers(f))


async def test_path_may_be_relative_to_the_configuration(place):
    """So that a directory with a task and its module can be moved."""
    place.joinpath("python").mkdir()
    async with functions(place / "python") as f:
        for function in ("hello", "hello_async"):
            broker = python_broker(base=place, callable=f"{f.module}:{function}", path="python")
            output = Kept()
            await broker.run(job(), output)
            await broker.close()

            assert output.value == {"hello": "you"}


@kinds
@pytest.mark.parametrize("name", ["colorsys", "this_module", "package.inner"])
async def test_a_module_of_the_same_name_elsewhere_is_not_taken(place, kind, name, monkeypatch):
    """The standard library, another path, or an installed one: wrong code never runs.
    Where the loop cannot have the right one, the reason says so."""
    for folder in ("other", "own"):
        path = place.joinpath(folder, *name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True)
        path.write_text(f"{kind} where():\n    return {folder!r}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(place / "other")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(place / "other"), str(ROOT))))
    broker = python_broker(callable=f"{name}:where", path=str(place / "own"))

    try:
        answer = await answer_of(broker)
    finally:
        await broker.close()
        await processes.all_ended()
        for module in ("colorsys", "this_module", "package", "package.inner"):
            sys.modules.pop(module, None)

    refused = kind == "async def" and str(place / "own") in answer
    assert answer == "own" or refused


async def answer_of(broker):
    """The result, or the reason why there is none."""
    output = Kept()
    try:
        await broker.run(job(), output)
    except BrokerError as exc:
        return str(exc)
    return output.value


@kinds
@pytest.mark.parametrize("through", ["path", "import path"])
def test_check_never_imports_user_code(place, kind, through, monkeypatch, capsys):
    """It is run by hand, perhaps by root, on files that are not trusted yet."""
    trap = f"open({str(place / 'imported')!r}, 'w').close()\n"
    package = place / "python" / "trapped"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text(trap)
    package.joinpath("inner.py").write_text(f"{trap}{kind} run():\n    pass\n")
    tasks = place / "config" / "tasks"
    tasks.mkdir(parents=True)
    task = "broker: python\nbroker_options:\n  callable: trapped.inner:run\n"
    if through == "path":
        task += f"  path: {place / 'python'}\n"
    else:
        monkeypatch.setattr(sys, "path", [*sys.path, str(place / "python")])
    tasks.joinpath("trap.yml").write_text(task)

    status = check(str(place / "config"))

    assert (status, capsys.readouterr().err) == (0, "")
    assert not place.joinpath("imported").exists()
    assert not {"trapped", "trapped.inner"} & set(sys.modules)
