"""Where a figure is taken: a temporary directory, a redis-server, a client, and agents on request.

The agent is a program with a configuration directory here, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .client import Client, connected, request
from .processes import BenchmarkError, Process
from .redis_server import redis_server

CONTROL = "ngcp-task-agent-redis"
NODE = "bench01a"
START_WITHIN = 15.0  # seconds until an agent, or a floor, has to answer
ANSWER_WITHIN = 1.0  # seconds until an unanswered first request is sent again
ASK_EVERY = 0.001  # seconds between attempts to reach a subscriber that starts
AT_ONCE = 16  # jobs side by side
QUICK = 5  # by what `--quick` divides counts and waits

NOOP = "async def noop():\n    return None\n"  # the python task's module


@dataclass(frozen=True)
class Settings:
    """What the command line says: the agent's program, rounds, and whether to be quick."""

    agent: Path
    rounds: int
    quick: bool

    def scaled(self, amount: int) -> int:
        """*amount*, or a part of it when being quick."""
        return max(1, amount // QUICK) if self.quick else amount


@dataclass(frozen=True)
class Place:
    """What a figure works with; everything in it ends with the figure."""

    settings: Settings
    directory: Path
    port: int
    client: Client

    @property
    def config(self) -> Path:
        """The agent's configuration directory."""
        return self.directory / "config"

    def start_agent(self, env: Mapping[str, str] | None = None) -> Process:
        """Start an agent, which is not ready yet; to be used as a context."""
        argv = [str(self.settings.agent), "--config-dir", str(self.config)]
        return Process(argv, self.directory / "agent.log", cwd=self.directory, env=env)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Process]:
        """An agent that has answered its first `agent.ping`, for the length of the block."""
        with self.start_agent() as process:
            await self.first_answer(process, CONTROL, lambda: request("agent.ping", NODE))
            yield process
            process.check_alive()

    async def call(self, task: str) -> None:
        """Have the agent run *task* once, and wait for `done`."""
        await self.client.call(CONTROL, *request(task, NODE))

    async def first_answer(
        self, process: Process, channel: str, ask: Callable[[], tuple[str, bytes]]
    ) -> float:
        """When *process*, which is starting, first answered a message on *channel*.

        Published again and again until it reaches a subscriber, which PUBLISH tells:
        so the answer is not late by more than a millisecond, and no message is lost.

        Args:
            process: The one that will subscribe.
            channel: Where it will listen.
            ask: Gives a new message, with the name that the answer will carry.

        Raises:
            BenchmarkError: It ended, did not answer within `START_WITHIN`, or refused.
        """
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            process.check_alive()
            ref, payload = ask()
            expected = self.client.expect(ref)
            if await self.client.publish(channel, [payload]):
                try:
                    async with asyncio.timeout(ANSWER_WITHIN):
                        answer = await expected
                except TimeoutError:
                    continue
                if answer.message.get("status", "done") != "done":  # a floor's has none
                    raise BenchmarkError(f"not done: {answer.message}")
                return answer.at
            self.client.forget(ref)
            await asyncio.sleep(ASK_EVERY)
        raise BenchmarkError(
            f"{process.name} did not answer within {START_WITHIN:g} s: {process.output()}"
        )


@asynccontextmanager
async def place(settings: Settings) -> AsyncIterator[Place]:
    """Set up a `Place` with a configuration, and clear it away afterwards."""
    with TemporaryDirectory(prefix="ngcp-task-agent-bench-") as name:
        directory = Path(name)
        with redis_server(directory) as port:
            async with connected(port) as client:
                _configure(directory, port)
                yield Place(settings, directory, port, client)


def can_change_user() -> bool:
    """Whether the tasks and floors that run as `nobody` can."""
    return os.geteuid() == 0 and shutil.which("setpriv") is not None


def _configure(directory: Path, port: int) -> None:
    config, modules = directory / "config", directory / "modules"
    for folder in (config / "backends", config / "tasks", modules, directory / "state"):
        folder.mkdir(parents=True)
    _write(modules / "bench_tasks.py", NOOP)
    socket = str(directory / "agent.sock")
    state = str(directory / "state")
    _yaml(config / "agent.yml", {"name": NODE, "state_dir": state, "local_socket": socket})
    _yaml(config / "backends" / "redis.yml", {"host": "127.0.0.1", "port": port})
    tasks: dict[str, tuple[str, dict[str, str]]] = {
        "noop": ("python", {"callable": "bench_tasks:noop", "path": str(modules)}),
        "true": ("command", {"run": "/bin/true"}),
    }
    if can_change_user():
        tasks["true_as_nobody"] = ("command", {"run": "/bin/true", "as_user": "nobody"})
    for task, (broker, options) in tasks.items():
        fields = {
            "name": task,
            "backend": "redis",
            "backend_options": {"control_channel": CONTROL},
            "broker": broker,
            "broker_options": options,
            "max_running": AT_ONCE,
        }
        _yaml(config / "tasks" / f"{task}.yml", fields)


def _yaml(path: Path, fields: Mapping[str, Any]) -> None:
    _write(path, json.dumps(fields, indent=2))  # JSON is YAML, quoted where it has to be


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)  # whatever the umask: the agent refuses what others can write
