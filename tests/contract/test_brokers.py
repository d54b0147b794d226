"""What every broker must do; add yours to `KINDS` and it is held to it."""

import asyncio
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from ngcp_task_agent import processes, registry
from ngcp_task_agent.brokers.builtin import AnswerBroker
from ngcp_task_agent.brokers.command import CommandBroker
from ngcp_task_agent.brokers.http import HttpBroker
from ngcp_task_agent.brokers.python import PythonBroker
from ngcp_task_agent.errors import BrokerError
from ngcp_task_agent.messages import encode
from ngcp_task_agent.options import Options
from ngcp_task_agent.output import Collector

from ..helpers import alive, job, until

pytestmark = pytest.mark.usefixtures("subreaper")

MODULE = """
import asyncio, os, subprocess, time

def answer(**arguments):
    return "pong"

def echo(word):
    return word

def wait(pid_file):
    child = subprocess.Popen(["sleep", "600"])
    with open(pid_file, "w") as file:
        file.write(f"{os.getpid()} {child.pid}\\n")
    time.sleep(600)

def fail(**arguments):
    raise ValueError("no such user")

async def answer_async(**arguments):
    return "pong"

async def echo_async(word):
    await asyncio.sleep(0.01)
    return word

async def wait_async(pid_file):
    child = subprocess.Popen(["sleep", "600"])
    with open(pid_file, "w") as file:
        file.write(f"{child.pid}\\n")
    try:
        await asyncio.sleep(600)
    finally:
        child.kill()
        child.wait()

async def fail_async(**arguments):
    raise ValueError("no such user")
"""
WAIT = 'sleep 600 & setsid sleep 600 & echo $$ $! > "$1"; wait'
COMMANDS = {
    "answer": {"run": "printf", "args": ["pong"]},
    "echo": {"run": "printf", "args": ["%s"]},
    "wait": {"run": "sh", "args": ["-c", WAIT, "sh"]},
    "fail": {"run": "sh", "args": ["-c", "echo half; echo no such user >&2; exit 3"]},
}


class Kind:
    """One kind of broker.

    Attributes:
        name: In the registry.
    """

    name = ""

    def __init__(self, place):
        self.place = place

    def build(self, what):
        """A broker that does *what*: answer (with "pong"), echo (the argument "word"), wait
        (once its processes stand in `pid_file`), or fail."""
        raise NotImplementedError

    def job(self, **arguments):
        return job(data=json.dumps(arguments), arguments=arguments)

    def end(self):
        """Give back what the test has used."""


class Command(Kind):
    name = "command"

    def build(self, what):
        return checked(CommandBroker, COMMANDS[what])

    def job(self, **arguments):
        return job(arguments={"extra_args": " ".join(arguments.values())})


class Python(Kind):
    name = "python"
    suffix = ""

    def build(self, what):
        module = self.place / "contract_tasks.py"
        module.write_text(MODULE)
        module.chmod(0o644)
        where = f"contract_tasks:{what}{self.suffix}"
        return checked(PythonBroker, {"callable": where, "path": str(self.place)})


class PythonInLoop(Python):
    suffix = "_async"


class Answer(Kind):
    def build(self, what):
        def answer(job):
            if what == "fail":
                raise BrokerError("no such user")
            return "pong"

        return AnswerBroker(answer)


class Http(Kind):
    name = "http"

    def __init__(self, place):
        super().__init__(place)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()

    def build(self, what):
        query = "?word={data.word}" if what == "echo" else ""
        port = self.server.server_port
        return checked(HttpBroker, {"url": f"http://127.0.0.1:{port}/{what}{query}"})

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """/answer, /echo?word=… and /fail."""

    def do_GET(self):
        what, _, query = self.path.partition("?")
        texts = {"/answer": "pong", "/fail": "no such user"}
        text = texts.get(what) or parse_qs(query, True)["word"][0]
        self.send_response(500 if what == "/fail" else 200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words):
        pass


def checked(factory, fields):
    options = Options(fields, "tasks/ping.yml", "broker_options.")
    broker = factory(options)
    assert options.problems == []
    return broker


KINDS = [Command, Python, PythonInLoop, Http, Answer]


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch):
    """The module of one test is another one in the next."""
    monkeypatch.delitem(sys.modules, "contract_tasks", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request, tmp_path):
    kind = request.param(tmp_path)
    yield kind
    kind.end()


@pytest.fixture(params=[Command, Python, PythonInLoop], ids=lambda kind: kind.__name__)
def working(request, tmp_path):
    """The kinds that can be given something long or different to do."""
    return request.param(tmp_path)


async def outcome(broker, job):
    output = Collector()
    await broker.run(job, output)
    return output.value if output.has_result else output.text.text()


async def closed(broker):
    """Close *broker*, and wait until nothing of it is left."""
    await broker.close()
    await until(lambda: not processes._running)


def test_each_of_our_own_is_held_to_this():
    """A broker in the table of the registry has a kind here."""
    assert set(registry.BUILTIN["brokers"]) <= {kind.name for kind in KINDS}


async def test_returning_means_done(kind):
    """The answer is complete when `run` returns."""
    broker = kind.build("answer")

    assert await outcome(broker, kind.job()) == "pong"
    await closed(broker)


async def test_a_failure_is_a_broker_error_with_a_text(kind):
    """The client sees it; anything else would be called a bug."""
    broker = kind.build("fail")

    with pytest.raises(BrokerError, match="no such user"):
        await outcome(broker, kind.job())
    await closed(broker)


async def test_a_broker_fails_and_goes_on(kind):
    """One bad job harms no other."""
    broker = kind.build("fail")
    for _ in range(3):
        with pytest.raises(BrokerError):
            await outcome(broker, kind.job())

    await closed(broker)
    assert alive() == set()


@pytest.mark.concurrency
async def test_jobs_side_by_side_do_not_mix(working):
    """Each output belongs to its own job."""
    broker = working.build("echo")
    words = [f"word-{number}" for number in range(8)]

    answers = await asyncio.gather(*(outcome(broker, working.job(word=word)) for word in words))

    assert answers == words
    await closed(broker)


async def started(kind, broker):
    """A job that runs, and the processes it says it has started."""
    pid_file = kind.place / "pids"
    running = asyncio.ensure_future(outcome(broker, kind.job(pid_file=str(pid_file))))
    await until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    return running, list(map(int, pid_file.read_text().split()))


@pytest.mark.concurrency
async def test_cancellation_ends_everything(working):
    """The cancel comes out again, and by then nothing that was started is alive."""
    broker = working.build("wait")
    running, pids = await started(working, broker)
    assert alive(*pids) == set(pids)

    running.cancel()
    (problem,) = await asyncio.gather(running, return_exceptions=True)

    assert isinstance(problem, asyncio.CancelledError)
    assert alive(*pids) == set()
    await closed(broker)
    assert alive() == set()


@pytest.mark.concurrency
async def test_cancelled_before_it_begins_nothing_is_left(working):
    """Wherever in the start it lands."""
    broker = working.build("wait")
    before = open_files()
    for turns in range(12):
        arguments = {"pid_file": os.devnull}
        running = asyncio.ensure_future(outcome(broker, working.job(**arguments)))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        (problem,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(problem, asyncio.CancelledError)

    await closed(broker)
    await until(lambda: alive() == set())
    await until(lambda: open_files() <= before + 1)


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.concurrency
async def test_after_a_cancelled_job_the_next_one_runs(working):
    """A worker that was ended is replaced."""
    waiting, answering = working.build("wait"), working.build("answer")
    running, _ = await started(working, waiting)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert await outcome(answering, working.job()) == "pong"
    await waiting.close()
    await closed(answering)


async def test_close_may_be_called_again(kind):
    """And before anything has run."""
    broker = kind.build("answer")
    await broker.close()
    await outcome(broker, kind.job())
    await broker.close()
    await broker.close()

    await until(lambda: alive() == set())


async def test_a_job_outlives_the_close_of_its_broker(working):
    """The task was replaced; who runs may end."""
    broker = working.build("wait")
    running, pids = await started(working, broker)

    await broker.close()
    await asyncio.sleep(0.05)

    assert not running.done()
    assert alive(*pids) == set(pids)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: alive() == set())


DEEP = "x"
for _ in range(300):  # what JSON libraries read, and do not write again
    DEEP = [DEEP]
HOSTILE = {
    "nul in the uuid": {"uuid": "a\0b"},
    "nul in the src": {"src": "\0"},
    "nul in an argument": {"arguments": {"extra_args": "a\0b", "word": "a\0b"}},
    "equals signs": {"uuid": "=", "src": "A=B"},
    "long uuid": {"uuid": "x" * 1_000_000},
    "long argument": {"arguments": {"extra_args": "x" * 1_000_000, "word": "x" * 1_000_000}},
    "unwanted arguments": {"arguments": {"self": 1, "job": 2, "": 3, "a b": 4}},
    "argument of a wrong type": {"arguments": {"extra_args": {"a": []}, "word": {"a": []}}},
    "deep data": {"data": DEEP, "arguments": {"word": DEEP}},
    "deep arguments": {"data": {"word": DEEP}, "arguments": {"word": DEEP}},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_whatever_a_stranger_sends_is_done_or_a_broker_error(kind, name):
    """Every byte of it was chosen by whoever may publish; none of it is a bug of ours."""
    broker = kind.build("echo")

    try:
        answer = await outcome(broker, job(**HOSTILE[name]))
    except BrokerError as error:
        answer = str(error)

    assert answer is not None
    await closed(broker)


async def test_a_job_that_cannot_be_handed_over_leaves_nothing(working):
    """Else a stranger collects processes of ours, one for each request."""
    broker = working.build("echo")

    await asyncio.gather(
        *(outcome(broker, job(arguments={"word": DEEP})) for _ in range(3)), return_exceptions=True
    )
    await broker.close()

    await until(lambda: alive() == set(), 2)


@pytest.mark.parametrize(
    "data", [None, "", "plain", {"a": 1}, [1], 7, DEEP], ids=lambda d: str(d)[:9]
)
async def test_a_program_reads_the_data_from_stdin(data):
    """A string as it is, anything else as JSON, nothing as nothing."""
    broker = checked(CommandBroker, {"run": "cat", "stdin": "data"})
    expected = "" if data is None else data if isinstance(data, str) else None

    try:
        answer = await outcome(broker, job(data=data))
    except BrokerError:
        assert data is DEEP
    else:
        assert answer == (encode(data).decode() if expected is None else expected)
