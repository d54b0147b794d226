"""Brokers as a task file makes them, and the jobs they are given."""

from ngcp_task_agent.brokers.command import CommandBroker
from ngcp_task_agent.brokers.python import PythonBroker
from ngcp_task_agent.interfaces import Job
from ngcp_task_agent.messages import Encoded, decode
from ngcp_task_agent.options import Options


class Kept:
    """An `Output` that keeps everything."""

    def __init__(self):
        self.pieces = []
        self.value = None
        self.followed = self.masks = False
        self.errors = b""
        self.user = self.pid = self.code = self.cpu_seconds = self.peak_memory = None

    async def write(self, piece):
        self.pieces.append(piece)

    async def write_error(self, piece):
        self.errors += piece

    async def progress(self, piece):
        pass

    def hide(self, variables):
        pass

    def masked(self, text):
        return text

    def cut(self, size):
        self.pieces = [self.text[:size]]

    def result(self, value):
        self.value = decode(value.text) if isinstance(value, Encoded) else value

    def runs_as(self, user, pid=None):
        self.user, self.pid = user, pid

    def exited(self, code, *, cpu_seconds=None, peak_memory=None):
        self.code, self.cpu_seconds, self.peak_memory = code, cpu_seconds, peak_memory

    @property
    def text(self):
        return b"".join(self.pieces)


def job(**fields):
    """An accepted request for the task "ping"."""
    return Job(**{"task": "ping", "uuid": "u-1", "src": "web01a", **fields})


def made(kind, fields, base=""):
    """An object of *kind* from the options *fields*, none of which may be wrong or unknown."""
    options = Options(fields, "tasks/ping.yml", base=str(base))
    thing = kind(options)
    options.close()
    assert options.problems == []
    return thing


def command_broker(**fields):
    return made(CommandBroker, fields)


def python_broker(base="", **fields):
    return made(PythonBroker, fields, base)


def http_broker(base="", **fields):
    from ngcp_task_agent.brokers.http import HttpBroker  # its library is not needed elsewhere

    return made(HttpBroker, fields, base)
