"""A small world for each test: a private redis-server and real daemons around it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from .processes import descendants, memory, open_files, until
from .wire import CONTROL_CHANNEL, Listener, answered

COMMANDS = Path(sys.executable).parent
START_LIMIT = 20.0  # seconds for a daemon to answer its first ping
STOP_LIMIT = 25.0  # seconds for a daemon to end after SIGTERM: grace, TERM, 5 s, KILL
LOG_TAIL = 3000  # characters of a daemon's log shown when its test fails


def redis_program():
    """Return the path of redis-server; where it is missing, skip at home and fail in CI."""
    path = shutil.which("redis-server")
    if path is None and os.environ.get("CI") == "true":
        pytest.fail("redis-server is missing; CI has to install it")
    if path is None:
        pytest.skip("redis-server is not in PATH")
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_file(path, content, mode=0o644):
    """Put *content* (text, or data for YAML) at *path* in one step, as a package would."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    # The new file gets its name by rename, and no reader ever sees half of it.
    fresh = path.parent / f".{path.name}.new"
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.rename(path)
    return path


def command(run, *args, broker_options=None, **task):
    """Return a task file's content which runs *run* with *args* as a list."""
    options = {"run": str(run), "args": [str(arg) for arg in args], **(broker_options or {})}
    return redis_task("command", options, **task)


def redis_task(broker, broker_options, **task):
    return {
        "backend": "redis",
        "backend_options": {"control_channel": CONTROL_CHANNEL},
        "broker": broker,
        "broker_options": broker_options,
        **task,
    }


class RedisServer:
    """A redis-server of our own on a loopback port and a UNIX socket; it stores nothing."""

    def __init__(self, place, *settings, password=None):
        self.place = place
        self.settings = settings if password is None else (*settings, "--requirepass", password)
        self.password = password
        self.port = free_port()
        self.socket = place / "redis.sock"
        self.process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def client(self):
        # No second try: a subscriber that redis drops must not subscribe again unnoticed.
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            password=self.password,
            socket_timeout=30,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self):
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        arguments += ["--unixsocket", str(self.socket), "--appendonly", "no"]
        self.process = subprocess.Popen(
            [redis_program(), *arguments, "--dir", str(self.place), *self.settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._answers, 10, "redis-server")

    def _answers(self):
        client = self.client()
        try:
            return client.ping()
        except redis.ConnectionError:
            return False
        finally:
            client.close()

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None


class Daemon:
    """One ngcp-task-agent in the foreground, with a configuration directory of its own.

    Args:
        place: An empty directory for all of its files.
        name: The node's name, e.g. ``"prx01a"``.
        backend: Content of ``backends/redis.yml``.
        facts: Static facts; ``test_id`` is added and names this one daemon.
        tasks: Task name → content of its file, without ``name``.
        agent: More of ``agent.yml``.
        env: More of the environment.
    """

    def __init__(self, place, name, backend, facts=None, tasks=None, agent=None, env=None):
        self.place = place
        self.name = name
        self.id = uuid.uuid4().hex
        self.config = place / "config"
        self.socket = place / "agent.sock"
        self.log_path = place / "log"
        self.env = env or {}
        self.process = None
        self._write_config(backend, facts or {}, tasks or {}, agent or {})

    def _write_config(self, backend, facts, tasks, agent):
        for folder in ("", "backends", "tasks"):
            (self.config / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        settings = {
            "name": self.name,
            "facts": {**facts, "test_id": self.id},
            "state_dir": str(self.place / "state"),
            "local_socket": str(self.socket),
            "grace": 1,
            **agent,
        }
        (self.place / "state").mkdir(mode=0o755, exist_ok=True)
        write_file(self.config / "agent.yml", settings)
        write_file(self.config / "backends" / "redis.yml", backend)
        for name, content in tasks.items():
            self.write_task(name, content)

    def task_path(self, name):
        return self.config / "tasks" / f"{name}.yml"

    def write_task(self, name, content):
        """Put the file of task *name* in place: its options, or text as it is."""
        if not isinstance(content, str):
            content = {"name": name, **content}
        return write_file(self.task_path(name), content)

    @property
    def dst(self):
        """The destination which selects this daemon and no other, also of the same name."""
        return f"*|test_id={self.id}"

    def start(self):
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM")
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [COMMANDS / "ngcp-task-agent", "--config-dir", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**inherited, **self.env},
            )

    def wait_ready(self, listener, seconds=START_LIMIT):
        try:
            return answered(listener, self.dst, seconds)
        except AssertionError:
            status = self.process.poll()
            raise AssertionError(f"{self.name} not ready, exit {status}:\n{self.log}") from None

    @property
    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    @property
    def rss(self):
        """Resident bytes now."""
        return memory(self.pid)

    @property
    def peak(self):
        """The most resident bytes there have been."""
        return memory(self.pid, "VmHWM")

    @property
    def fds(self):
        return open_files(self.pid)

    @property
    def descendants(self):
        return descendants(self.pid)

    @property
    def zombies(self):
        return [pid for pid, state in self.descendants.items() if state == "Z"]

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self, seconds=STOP_LIMIT):
        """Send SIGTERM and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def clear_away(self):
        """End it, whatever happened, and show the last of its log in a failed test's report."""
        if self.alive:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        print(f"--- log of {self.name}\n{self.log[-LOG_TAIL:]}")


class World:
    """A redis-server, the daemons on it and the listeners of a test, gone together."""

    def __init__(self, *settings, password=None):
        redis_program()
        # Short, because a UNIX socket's path may have 107 bytes.
        self.place = Path(tempfile.mkdtemp(prefix="nta-"))
        self.place.chmod(0o755)
        self.server = RedisServer(self.place, *settings, password=password)
        self.daemons = []
        self.listeners = []

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        for listener in self.listeners:
            listener.close()
        for daemon in self.daemons:
            if daemon.alive:
                daemon.signal(signal.SIGTERM)
        for daemon in self.daemons:
            daemon.clear_away()
        self.server.stop()
        shutil.rmtree(self.place, ignore_errors=True)

    def daemon(self, name="sp1", *, port=None, backend=None, start=True, ready=True, **parts):
        """Make a daemon; start it, and wait for it, unless told not to.

        Args:
            name: The node's name.
            port: The bus, when it is not this world's own redis-server.
            backend: Content of ``backends/redis.yml``, host, port and db by default.
            start: Whether to start it at all.
            ready: Whether to wait until it answers a ping.
            parts: ``facts``, ``tasks``, ``agent``, ``env`` of Daemon.
        """
        place = self.place / f"n{len(self.daemons)}"
        place.mkdir(mode=0o755)
        backend = backend or {"host": "127.0.0.1", "port": port or self.server.port, "db": 0}
        daemon = Daemon(place, name, backend, **parts)
        self.daemons.append(daemon)
        if start:
            daemon.start()
            if ready:
                self.wait_ready(daemon)
        return daemon

    def wait_ready(self, *daemons):
        with self.listener() as listener:
            for daemon in daemons:
                daemon.wait_ready(listener)

    def listener(self, channel=None):
        """Return a listener which the caller closes."""
        return Listener(self.server.client(), self.count, channel)

    def listen(self, channel=None):
        """Return a listener that lives as long as this world."""
        listener = self.listener(channel)
        self.listeners.append(listener)
        return listener

    def count(self):
        return sum(daemon.alive for daemon in self.daemons)

    def file(self, name, content, mode=0o644):
        """Write a file for the tasks of this world, e.g. a script with mode 0o755."""
        path = self.place / "files" / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def script(self, name, *lines):
        return self.file(name, "\n".join(("#!/bin/sh", *lines, "")), 0o755)
