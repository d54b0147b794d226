"""Publish on one channel what comes in on another: `echo PORT CHANNEL ANSWERS_CHANNEL ANSWERS`.

The documented interface of redis-py on uvloop, and nothing around it.
ANSWERS is how often each message goes back; the protocol wants two, `accepted` and `done`.
"""

from __future__ import annotations

import sys

import redis.asyncio
import uvloop


async def echo(port: int, channel: str, answers_channel: str, answers: int) -> None:
    """Answer until the process is ended."""
    client = redis.asyncio.Redis(port=port)
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(channel)
    async for message in pubsub.listen():
        for _ in range(answers):
            await client.publish(answers_channel, message["data"])


if __name__ == "__main__":
    uvloop.run(echo(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
