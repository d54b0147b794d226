"""
The hold on one entry of a control stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BackendError
from .redis_publisher import Feedback
from .redis_stream_calls import Calls, Refused, Word
from .redis_stream_keys import Keys
from .redis_stream_scripts import DROP, KEEP_RESPONSE, PARK, RENEW, SETTLE

if TYPE_CHECKING:
    from .redis_stream_group import Group

DROP_AT_ONCE = 500  # claims in one script

log = logging.getLogger(__name__)


class _Drop(NamedTuple):
    claim: StreamClaim
    failure: str
    stood: asyncio.Future[str]


class Place:
    """Where claims are given up: one group of one stream, and who reads there.

    Attributes:
        keys: Of the stream.
        group: Name of the group.
        consumer: Our name in it.
        node: This host's name, as of now.
        epoch: Of the stream, as of the last look.
        held: Claims not yet given up, by id.
        given_up: Set when one was.
    """

    def __init__(
        self, calls: Calls, keys: Keys, group: str, consumer: str, feedback: Feedback
    ) -> None:
        self.calls = calls
        self._feedback = feedback
        self.keys = keys
        self.group = group
        self.consumer = consumer
        self.node = ""
        self.epoch = ""
        self.held: dict[str, StreamClaim] = {}
        self.given_up = asyncio.Event()
        self._troubles = 0
        self._drops: list[_Drop] = []
        self._dropping: set[asyncio.Task[None]] = set()

    async def settle(
        self, claim: StreamClaim, address: str, payload: bytes, stream: str, failure: str
    ) -> str:
        """Answer and acknowledge; how the claim stood."""
        keys = [self.keys.stream, self.keys.epoch, self.keys.settled, self.keys.dead]
        if stream and self.calls.elsewhere(stream, self.keys.stream):
            # Of a cluster, and not in one step: rather kept twice, in a narrow moment,
            # than not at all. A key with the control stream's hash tag is kept once.
            stands = (self.keys.stream, self.keys.epoch, self.keys.settled)
            if await self.calls.insist(RENEW, stands, self.group, self.consumer, claim.id,
                                       claim.epoch):  # fmt: skip
                return "lost"
            try:
                wrong = await self.calls.insist(
                    KEEP_RESPONSE, [stream], payload, *self._feedback, tries=1
                )
                self._tell(f"feedback stream {stream!r:.80}", wrong.decode())
            except Refused as exc:
                self._tell(f"feedback stream {stream!r:.80}", str(exc))
            stream = ""
        words: tuple[Word, ...] = (
            self.group, self.consumer, claim.epoch, claim.id, claim.token, address,
            payload, failure, claim.request if failure else b"", claim.attempt, self.node,
            *self._feedback,
        )  # fmt: skip
        if stream:
            try:
                return self._settled(
                    stream, address, failure,
                    await self.calls.insist(SETTLE, [*keys, stream], *words, tries=1),
                )  # fmt: skip
            except Refused as exc:  # most likely the client's key is none of ours
                self._tell(f"feedback stream {stream!r:.80}", str(exc))
        reply = await self.calls.insist(SETTLE, keys, *words)
        return self._settled(stream, address, failure, reply)

    def _settled(self, stream: str, address: str, failure: str, reply: Any) -> str:
        how, unkept, unheard, unburied = (word.decode() for word in reply)
        self.calls.buried += bool(failure) and not unburied and how != "lost"
        self._tell(f"feedback stream {stream!r:.80}", unkept)
        self._tell(f"feedback channel {address!r:.80}", unheard)
        self._tell(f"dead letters {self.keys.dead}", unburied)
        return str(how)

    def _tell(self, what: str, trouble: str) -> None:
        if not trouble:
            return
        self._troubles += 1
        if self._troubles & (self._troubles - 1) == 0:  # 1, 2, 4, 8, … lines in a flood
            log.warning("redis: %s: %s; %d such so far", what, trouble, self._troubles)

    async def park(self, claim: StreamClaim, delay: float, released: bool, request: bytes) -> str:
        """Let it wait for *delay* seconds; how the claim stood."""
        keys = (self.keys.stream, self.keys.epoch, self.keys.settled,
                self.keys.delayed(self.group))  # fmt: skip
        how = await self.calls.insist(
            PARK, keys, self.group, self.consumer, claim.epoch, claim.id, claim.token,
            int(delay * 1000), int(released), request,
        )  # fmt: skip
        return str(how.decode())

    async def drop(self, claim: StreamClaim, failure: str) -> str:
        """Acknowledge, together with what else is dropped now; how the claim stood."""
        # On a broadcast stream most requests are for others, and a burst of them is
        # passed over in one turn of the loop: one script, not hundreds.
        stood: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._drops.append(_Drop(claim, failure, stood))
        if len(self._drops) == 1:
            task = asyncio.create_task(self._drop_all(), name="redis stream drops")
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)
        return await stood

    async def _drop_all(self) -> None:
        drops, self._drops = self._drops, []
        try:
            for start in range(0, len(drops), DROP_AT_ONCE):
                await self._drop_these(drops[start : start + DROP_AT_ONCE])
        except BackendError as exc:
            for _, _, stood in drops:
                if not stood.done():
                    stood.set_exception(exc)

    async def _drop_these(self, drops: list[_Drop]) -> None:
        words: list[Word] = []
        for claim, failure, _ in drops:
            request = claim.request if failure else b""
            words += [claim.id, claim.epoch, claim.token, failure, request, claim.attempt]
        keys = (self.keys.stream, self.keys.epoch, self.keys.settled, self.keys.dead)
        reply, unburied = await self.calls.insist(
            DROP, keys, self.group, self.consumer, self.node, *words
        )
        self._tell(f"dead letters {self.keys.dead}", unburied.decode())
        for (_, failure, stood), how in zip(drops, reply, strict=True):
            self.calls.buried += bool(failure) and not unburied and how != b"lost"
            if not stood.done():
                stood.set_result(how.decode())


class StreamClaim:
    """See `interfaces.Claim`.

    Attributes:
        id: Of the entry.
        request: Its field ``request``.
        token: Tells this claim from every other.
        epoch: Of the stream when it was read.
        ending: Whether it is being given up.
    """

    def __init__(
        self, group: Group, id: str, request: bytes, token: str, attempt: int, taken_over: bool
    ) -> None:
        self.id = id
        self.request = request
        self.token = token
        self.epoch = group.place.epoch
        self.ending = False
        self.attempt = attempt
        self.taken_over = taken_over
        self.pool = group.subscription.pool
        self.posted = int(id.partition("-")[0]) / 1000
        self.on_lost: Callable[[], None] = lambda: None
        self._group = group

    async def settle(
        self, address: str, payload: bytes, stream: str = "", failure: str = ""
    ) -> bool:
        place = self._group.place
        if stream and not self._group.terms.may_keep(stream):
            stream = ""  # the publisher has said so with the first response
        async with _Ending(self, place) as ending:
            await self._group.before_the_last()
            ending.how = await place.settle(self, address, payload, stream, failure)
        return ending.held

    async def retry(self, delay: float) -> bool:
        return await self._park(delay, False)

    async def release(self, delay: float = 0.0) -> bool:
        return await self._park(delay, True)

    async def drop(self, failure: str = "") -> bool:
        place = self._group.place
        async with _Ending(self, place) as ending:
            ending.how = await place.drop(self, failure)
        return ending.held

    async def _park(self, delay: float, released: bool) -> bool:
        place = self._group.place
        async with _Ending(self, place) as ending:
            request = self.request if self.pool else b""
            ending.how = await place.park(self, delay, released, request)
        if ending.how == "free":
            self._group.again(self, delay, self.attempt + (not released))
        elif ending.held:
            self._group.look(delay)
        return ending.held


class _Ending:
    """While a claim is given up; if that is cut short it is held as before.

    One whose end the server refuses stays held, too: nobody runs it again before the
    administrator has put that right and this agent was started anew.
    """

    def __init__(self, claim: StreamClaim, place: Place) -> None:
        self._claim = claim
        self._place = place
        self.how = ""

    @property
    def held(self) -> bool:
        return self.how not in ("", "lost")

    async def __aenter__(self) -> _Ending:
        self._claim.ending = True
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        self._claim.ending = False
        if self.how and self._place.held.get(self._claim.id) is self._claim:
            del self._place.held[self._claim.id]
            self._place.given_up.set()
        if isinstance(exc, Refused):
            self._place.calls.give_up(f"request {self._claim.id}", exc)
            return True
        return False
