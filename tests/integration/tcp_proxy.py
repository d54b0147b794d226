"""A TCP proxy that can turn into a black hole, as a network does that drops packets."""

import asyncio
from contextlib import asynccontextmanager

BUFFER = 65536  # bytes read at once


class Proxy:
    """Passes connections on to 127.0.0.1:*target*.

    Attributes:
        port: Where to connect instead.
    """

    def __init__(self, target):
        self.target = target
        self.port = 0
        self._links = []
        self._tasks = set()

    async def open(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            for writer in link.writers:
                writer.close()

    def swallow(self):
        """From now on nothing passes the present connections, nor does their end."""
        for link in self._links:
            link.swallows = True

    def deafen(self):
        """From now on nothing comes back by the present connections."""
        for link in self._links:
            link.deaf = True

    async def _serve(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        link = _Link((writer, there_writer))
        self._links.append(link)
        for ends in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(link.carry(*ends)))


class _Link:
    def __init__(self, writers):
        self.writers = writers
        self.swallows = False
        self.deaf = False

    async def carry(self, reader, writer):
        try:
            while data := await reader.read(BUFFER):
                if not self.swallows and not (self.deaf and writer is self.writers[0]):
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if not self.swallows:
            writer.close()


@asynccontextmanager
async def proxied(target):
    """A proxy for the port *target*, closed at the end."""
    proxy = Proxy(target)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
