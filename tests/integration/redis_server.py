"""Real redis-server processes, and what a client of the fleet does with them."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
import redis.exceptions

from .waiting import until

START = 10.0  # seconds for a server to listen
STOP = 10.0  # seconds for a server to end after SIGTERM
CLIENT = "ngcp-task-agent"  # the agent's name in CLIENT LIST


def missing(what):
    """Skip the test at home; fail it in CI, where everything has to be installed."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing; CI has to install it")
    pytest.skip(f"{what} is missing")


def redis_program():
    """The path of redis-server."""
    return shutil.which("redis-server") or missing("redis-server")


def free_port():
    """A TCP port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisServer:
    """A redis-server on a UNIX socket and a loopback port. It stores nothing.

    Args:
        place: A directory for its socket.
        settings: More of its command line, for example ``"--requirepass", "secret"``.

    Attributes:
        path: Where its socket is once it is shown.
        port: Its port; none is opened before it is started with ``tcp=True``.
        login: Keyword arguments of redis-py for the tests' own connections.
    """

    def __init__(self, place, *settings):
        self.place = place
        self.settings = settings
        self.path = place / "redis.sock"
        self.port = free_port()
        self.login = {}
        self._hidden = place / "hidden.sock"
        self._process = None

    def start(self, tcp=False, hidden=False):
        """Start it and wait until it listens.

        Args:
            tcp: Whether it listens on its port, too.
            hidden: Whether its socket stays where nobody looks until `show`, so that
                a test can subscribe before anything is sent.
        """
        words = [redis_program(), "--port", str(self.port if tcp else 0), "--bind", "127.0.0.1"]
        words += ["--unixsocket", str(self._hidden), "--unixsocketperm", "777"]
        words += ["--save", "", "--appendonly", "no", "--maxmemory", "64mb", "--dir", self.place]
        self._process = subprocess.Popen(
            [*words, *self.settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + START
        while not self._listens():
            assert self._process.poll() is None, "redis-server ended at once"
            assert time.monotonic() < end, f"redis-server does not listen within {START:g} s"
            time.sleep(0.005)
        if not hidden:
            self.show()

    def show(self):
        """Be reachable at `path`; a bound socket may be renamed."""
        self._hidden.rename(self.path)

    def stop(self):
        """End it; its socket is gone."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # a stopped process hears nothing else
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP)
        self._process = None
        self.path.unlink(missing_ok=True)

    def signal(self, number):
        """Send it a signal, for example SIGSTOP: it accepts, and says nothing."""
        self._process.send_signal(number)

    def _listens(self):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._hidden))
            except OSError:
                return False
            return True

    @asynccontextmanager
    async def client(self):
        """A connection for orders and for publishing."""
        path = self.path if self.path.exists() else self._hidden
        async with redis.asyncio.Redis(
            unix_socket_path=str(path), client_name="test", protocol=2, **self.login
        ) as client:
            yield client

    async def call(self, *words):
        """One command, for example ``"ACL", "SETUSER", "agent"``; its reply as it came."""
        async with self.client() as client:
            return await client.execute_command(*words)

    async def publish(self, channel, payload):
        """How many heard it."""
        return await self.call("PUBLISH", channel, payload)

    async def subscribers(self, channel):
        """How many connections listen on *channel*; 0 while there is no server."""
        try:
            async with self.client() as client:
                [(_, count)] = await client.pubsub_numsub(channel)
        except redis.exceptions.ConnectionError:
            return 0
        return count

    async def clients(self, name=CLIENT):
        """The connections of this name, each as the fields of CLIENT LIST."""
        async with self.client() as client:
            return [one for one in await client.client_list() if one["name"] == name]

    async def subscriber(self):
        """The one connection of the agent's that listens."""
        [found] = [client for client in await self.clients() if int(client["sub"])]
        return found

    async def publisher(self):
        """The one connection of the agent's that does not."""
        [found] = [client for client in await self.clients() if not int(client["sub"])]
        return found

    async def kill(self, client):
        """Close a connection from the server's side."""
        await self.call("CLIENT", "KILL", "ID", client["id"])

    async def kill_subscriber(self, seconds=8.0):
        """Close the agent's connection that listens, and wait for the next one."""
        before = await self.subscriber()
        await self.kill(before)
        await until(lambda: self._has_subscriber_other_than(before), seconds, "subscribed again")

    async def _has_subscriber_other_than(self, before):
        found = [client["id"] for client in await self.clients() if int(client["sub"])]
        return len(found) == 1 and found != [before["id"]]

    @asynccontextmanager
    async def listener(self, channel):
        """What arrives on *channel* from now on, as a list that grows."""
        heard = []
        async with self.client() as client, client.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
            listening = asyncio.create_task(_listen(pubsub, heard))
            try:
                yield heard
            finally:
                listening.cancel()
                await asyncio.wait((listening,))


async def _listen(pubsub, heard):
    async for message in pubsub.listen():
        heard.append(message["data"])
