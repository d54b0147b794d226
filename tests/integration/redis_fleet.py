"""Several servers that belong together: a master with sentinels, a cluster's nodes."""

import asyncio
import shutil
import subprocess
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import redis.asyncio
import redis.exceptions

from ngcp_task_agent.backends.redis_topology import slot_of

from .redis_server import START, STOP, free_port, missing
from .waiting import until

SLOTS = 16384
NODE_TIMEOUT = 1500  # milliseconds until nodes of a cluster take one for failed
DOWN_AFTER = 700  # milliseconds until sentinels take a master for down
# What may be lost in the tests' own connections while servers come and go.
AWAY = (redis.exceptions.RedisError, OSError, TimeoutError)


def program(name):
    """The path of a server's program: only Redis has to be installed everywhere."""
    path = shutil.which(name)
    if path is None and name != "redis-server":
        pytest.skip(f"{name} is missing")
    return path or missing(name)


class Server:
    """A server process on a loopback port; it stores nothing.

    Args:
        binary: For example ``"redis-server"``.
        place: A directory for its files.
        settings: More of its command line.
        kwargs: Of redis-py, for the tests' own connections.
    """

    def __init__(self, binary, place, *settings, **kwargs):
        self.port = free_port()
        self.place = place / f"s{self.port}"
        self.place.mkdir()
        self.kwargs = {"host": "127.0.0.1", "port": self.port, "protocol": 2, **kwargs}
        self._words = [program(binary), *settings]
        self._process = None

    def __str__(self):
        return f"127.0.0.1:{self.port}"

    def start(self, *words):
        port = ("--port", "0", "--tls-port") if "ssl" in self.kwargs else ("--port",)
        if "--sentinel" not in words:
            words = (*port, self.port, "--save", "", *words)
        first, *settings = self._words
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                list(map(str, [first, *words, "--bind", "127.0.0.1", "--dir", self.place,
                               *settings])),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def ready(self):
        await until(self._answers, START, f"{self} answers")

    async def _answers(self):
        assert self._process.poll() is None, (self.place / "log").read_text()
        try:
            return await self.call("PING")
        except AWAY:
            return False

    async def call(self, *words):
        async with redis.asyncio.Redis(**self.kwargs) as client:
            return await client.execute_command(*words)

    def kill(self):
        """Gone without a word."""
        self._process.kill()
        self._process.wait(STOP)

    def stop(self):
        if self._process is not None and self._process.poll() is None:
            self.kill()  # nothing to be kept, and a cluster's nodes would wait for each other


class Watched:
    """A master, its replica and three sentinels.

    Attributes:
        options: Of a backend that uses them.
    """

    NAME = "bus"

    def __init__(self, binary, place, *settings, kwargs=None):
        own = kwargs or {}
        pairs = zip(settings[::2], settings[1::2], strict=True)
        self.master = Server(binary, place, *settings, **own)
        self.replica = Server(binary, place, *settings, **own)
        self.sentinels = [Server(binary, place, **own) for _ in range(3)]
        tls = [f"{key[2:]} {value}" for key, value in pairs if key.startswith("--tls-")]
        self._tls = bool(tls)
        self._sentinel_settings = tls
        if "password" in own:
            word = own["password"]
            lines = ("requirepass", f"sentinel auth-pass {self.NAME}", "sentinel sentinel-pass")
            self._sentinel_settings += [f"{line} {word}" for line in lines]
        self.options = {"sentinels": list(map(str, self.sentinels)), "master": self.NAME}

    async def start(self):
        self.master.start()
        self.replica.start("--replicaof", "127.0.0.1", self.master.port,
                           "--repl-diskless-sync-delay", "0")  # fmt: skip
        for server in (self.master, self.replica):
            await server.ready()
        # Sentinels ask for replicas every 10 s: the first time it has to be there.
        await until(self._followed, START, "the replica follows")
        for sentinel in self.sentinels:
            path = sentinel.place / "sentinel.conf"
            path.write_text("\n".join((
                f"tls-port {sentinel.port}\nport 0" if self._tls else f"port {sentinel.port}",
                f"sentinel monitor {self.NAME} 127.0.0.1 {self.master.port} 2",
                f"sentinel down-after-milliseconds {self.NAME} {DOWN_AFTER}",
                f"sentinel failover-timeout {self.NAME} 4000",
                *self._sentinel_settings,
            )) + "\n")  # fmt: skip
            sentinel.start(path, "--sentinel")
        for sentinel in self.sentinels:
            await sentinel.ready()
            await until(lambda s=sentinel: self._complete(s), START, "sentinels know each other")

    async def _followed(self):
        info = await self.master.call("INFO", "replication")
        return info["connected_slaves"] == 1 and info["slave0"]["state"] == "online"

    async def _complete(self, sentinel):
        [master] = await sentinel.call("SENTINEL", "MASTERS")
        fields = master if isinstance(master, dict) else _pairs(master)
        state = {str(key): str(value) for key, value in fields.items()}
        return state["num-slaves"] == "1" and state["num-other-sentinels"] == "2"

    async def named(self):
        """The port that all sentinels name now, or 0 where they differ."""
        ports = {
            int((await one.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME))[1])
            for one in self.sentinels
        }
        return ports.pop() if len(ports) == 1 else 0

    def stop(self):
        for server in (*self.sentinels, self.master, self.replica):
            server.stop()


def _pairs(words):
    texts = [word.decode() if isinstance(word, bytes) else word for word in words]
    return dict(zip(texts[::2], texts[1::2], strict=True))


class Nodes:
    """Three masters with a third of the slots each, and a replica of each.

    Attributes:
        options: Of a backend that uses them; two seeds, the others are to be learned.
    """

    def __init__(self, binary, place, *settings, kwargs=None):
        words = ("--cluster-enabled", "yes", "--cluster-node-timeout", NODE_TIMEOUT,
                 "--repl-diskless-sync-delay", "0", *settings)  # fmt: skip
        self.servers = [Server(binary, place, *words, **(kwargs or {})) for _ in range(6)]
        self.masters, self.replicas = self.servers[:3], self.servers[3:]
        self.options = {"cluster": [str(self.masters[0]), str(self.masters[1])]}
        self.ids = {}

    async def start(self):
        for server in self.servers:
            server.start("--cluster-port", free_port())
        for number, server in enumerate(self.servers):
            await server.ready()
            self.ids[server] = (await server.call("CLUSTER", "MYID")).decode()
            await server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, master in enumerate(self.masters):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            await master.call("CLUSTER", "ADDSLOTSRANGE", first, last)
        await self._introduce()
        for master, replica in zip(self.masters, self.replicas, strict=True):
            await until(lambda m=master, r=replica: self._follows(r, m), START, "replicas")
        # A replica that has never got a byte is not yet told to clients.
        for key in "abcdef":
            await until(lambda k=key: self._written(k), START, "the slots are served")
        for server in self.servers:
            await until(lambda s=server: self._whole(s), START, "the cluster is whole")

    async def _introduce(self):
        first, *others = self.servers
        bus = {s: s._process.args[s._process.args.index("--cluster-port") + 1] for s in others}
        for server in others:
            await first.call("CLUSTER", "MEET", "127.0.0.1", server.port, bus[server])
        for server in self.servers:
            await until(lambda s=server: self._knows_all(s), START, "nodes know each other")

    async def _knows_all(self, server):
        info = await server.call("CLUSTER", "INFO")
        return int(_info(info)["cluster_known_nodes"]) == len(self.servers)

    async def _follows(self, replica, master):
        try:
            return await replica.call("CLUSTER", "REPLICATE", self.ids[master])
        except redis.exceptions.ResponseError:  # does not know it as a master yet
            return False

    async def _written(self, key):
        try:
            return await self.owner(slot_of(key)).call("SET", key, "x")
        except redis.exceptions.ClusterDownError:
            return False

    async def _whole(self, server):
        info = _info(await server.call("CLUSTER", "INFO"))
        async with redis.asyncio.Redis(**server.kwargs) as client:
            client.response_callbacks.clear()
            ranges = await client.execute_command("CLUSTER", "SLOTS")
        return info["cluster_state"] == "ok" and sum(len(one) - 2 for one in ranges) == 6

    def owner(self, slot):
        """The master that was given *slot* at the start."""
        return next(
            m for n, m in enumerate(self.masters) if n * SLOTS // 3 <= slot < (n + 1) * SLOTS // 3
        )

    async def move(self, slot, source, target):
        """Resharding, as redis-cli does it with a slot that has no keys."""
        await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
        await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])
        for server in (target, source, *self.masters):
            await server.call("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])

    def stop(self):
        for server in self.servers:
            server.stop()


def _info(reply):
    if isinstance(reply, dict):
        return reply
    text = reply.decode() if isinstance(reply, bytes) else reply
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


@asynccontextmanager
async def running(fleet):
    """*fleet*, started, and gone at the end however that went."""
    try:
        await fleet.start()
        yield fleet
    finally:
        fleet.stop()


class Load:
    """Publishes numbers from one end, for as long as it is asked to.

    Attributes:
        sent: Number to the loop time when it was posted.
    """

    EVERY = 0.02  # seconds

    def __init__(self, client, channel, command="PUBLISH"):
        self._client = client
        self._words = (command, channel)
        self.sent = {}

    async def run(self):
        number = 0
        while True:
            with suppress(*AWAY):
                await self._client.execute_command(*self._words, str(number).encode())
                self.sent[number] = time.monotonic()
            number += 1
            await asyncio.sleep(self.EVERY)

    def since(self, moment):
        """What was posted after *moment*."""
        return {number for number, at in self.sent.items() if at > moment}


@asynccontextmanager
async def load(client, channel, command="PUBLISH"):
    """A `Load` that runs."""
    one = Load(client, channel, command)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        task = asyncio.create_task(one.run())
        try:
            yield one
        finally:
            task.cancel()
            await asyncio.wait((task,))
