"""
The main job, shown: request in, `accepted` and `done` out.

Run it by script/demo, which provides what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ngcp_task_agent.backends.local_link import LocalLink
from ngcp_task_agent.backends.redis_link import RedisLink
from ngcp_task_agent.client import CONTROL_CHANNEL, Link

PATIENCE = 20.0  # seconds for a program to start or to stop, and for the answer

AGENT = """\
name: demo1
facts: {state: active, role: [proxy, lb]}
state_dir: {directory}/state
local_socket: {directory}/agent.sock
log: {level: warning}
"""
TASK = """\
name: disk_usage
description: How full the root file system is
backend: {backend}
backend_options:
  control_channel: ngcp-task-agent-redis
broker: command
broker_options:
  run: df
  args: -h /
"""


def main() -> int:
    """Show it; 0 if the last response says done."""
    with tempfile.TemporaryDirectory(prefix="ngcp-task-agent-demo-") as name:
        directory = Path(name)
        with contextlib.ExitStack() as stack:
            server = shutil.which("redis-server")
            if server:
                stack.enter_context(redis(server, directory))
            write_configuration(directory, bool(server))
            stack.enter_context(agent(directory))
            link: Link
            if server:
                link = RedisLink({"unix_socket": str(directory / "redis.sock")})
            else:
                link = LocalLink(str(directory / "agent.sock"))
            status = asyncio.run(ask(link))
        say("agent and redis-server are stopped" if server else "the agent is stopped")
    return 0 if status == "done" else 1


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def write_configuration(directory: Path, with_redis: bool) -> None:
    files = {
        "agent.yml": AGENT.replace("{directory}", str(directory)),
        "tasks/disk_usage.yml": TASK.replace("{backend}", "redis" if with_redis else "local"),
    }
    if with_redis:
        files["backends/redis.yml"] = f"unix_socket: {directory}/redis.sock\n"
    for file, text in files.items():
        path = directory / file
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)


@contextlib.contextmanager
def redis(server: str, directory: Path) -> Iterator[None]:
    """A private server: a UNIX socket, no port, nothing saved."""
    path = directory / "redis.sock"
    argv = [server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    say("starting a private redis-server")
    with program(argv, subprocess.DEVNULL):
        wait_for(path)
        yield


@contextlib.contextmanager
def agent(directory: Path) -> Iterator[None]:
    """The daemon; it tells by sd_notify when it is ready."""
    argv = [str(Path(sys.executable).parent / "ngcp-task-agent"), "--config-dir", str(directory)]
    say("starting an agent: ngcp-task-agent --config-dir …")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(directory / "notify"))
        ready.settimeout(PATIENCE)
        with program(argv, None, {"NOTIFY_SOCKET": str(directory / "notify")}):
            while b"READY=1" not in ready.recv(4096):
                pass
            yield


@contextlib.contextmanager
def program(
    argv: list[str], output: int | None, env: dict[str, str] | None = None
) -> Iterator[None]:
    """Start it; at the end SIGTERM, and SIGKILL if that does not help."""
    process = subprocess.Popen(argv, stdout=output, env={**os.environ, **(env or {})})
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(f"error: {path} did not appear within {PATIENCE:g} s")
        time.sleep(0.02)


async def ask(link: Link) -> str:
    """Send the request and show every response; the last one's status."""
    channel = f"demo-{uuid.uuid4()}"
    request = {
        "uuid": str(uuid.uuid4()),
        "task": "disk_usage",
        "src": socket.gethostname(),
        "dst": "*|state=active;role=proxy",
        "options": {"feedback_channel": channel},
        "data": None,
    }
    async with asyncio.timeout(PATIENCE):
        await link.open()
        await link.subscribe(channel)
        say(f"request, published on {CONTROL_CHANNEL}:")
        print(json.dumps(request, indent=2))
        await link.publish(CONTROL_CHANNEL, json.dumps(request).encode())
        status = "accepted"
        while status == "accepted":
            response = json.loads(await link.receive())
            status = response["status"]
            say(f"response, {status}:")
            print(json.dumps(response, indent=2), flush=True)
        if status == "done":
            say("its data, as the program printed it:")
            print(response["data"], end="", flush=True)
        await link.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
