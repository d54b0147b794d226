"""Receive and do nothing: `receiver PORT CHANNEL ANSWERS_CHANNEL`.

Only the one message that is too short to be a request is sent back, which
tells the benchmark that everything before it has been received.
"""

from __future__ import annotations

import sys

import redis.asyncio
import uvloop

END = b"end"


async def receive(port: int, channel: str, answers_channel: str) -> None:
    """Receive until the process is ended."""
    client = redis.asyncio.Redis(port=port)
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(channel)
    async for message in pubsub.listen():
        if message["data"] == END:
            await client.publish(answers_channel, END)


if __name__ == "__main__":
    uvloop.run(receive(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
