"""
Reading one control stream as a member of one group.

Requests are read, and taken over, as far as there is room for them at once: what
waits in this process could not be run by another.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from ..destination import Destination
from ..errors import BackendError
from ..feedback import is_feedback_key
from ..interfaces import Delivery, Host
from .redis_publisher import Feedback
from .redis_server import pause
from .redis_stream_calls import REPLY_TIMEOUT, TROUBLES, Calls, Entry, entry_of
from .redis_stream_claim import Place, StreamClaim
from .redis_stream_keys import Keys, Subscription
from .redis_stream_scripts import JOIN, RENEW, SWEEP, TAKE, TRIM

LEASE = 10.0  # seconds without a sign of life until others take over
BATCH = 64  # requests read at once
BLOCK = 3.0  # seconds to wait for an entry; as often it is looked what can be taken over
BLOCK_BUSY = 1.0  # the same while something is held, which may be due again
NO_ROOM = 0.5  # seconds until it is asked again
SOON = 20  # looks, a millisecond apart, after a claim was given up
NO_MEMBER = 1.0  # seconds until it is asked again
JOIN_EVERY = 30.0  # seconds between two signs of life of the group
TRIM_EVERY = 10.0  # seconds
REST = 60.0  # seconds without a command after which a consumer without entries is removed
RENEW_AT_ONCE = 500  # claims in one script
PROCESS = secrets.token_hex(4)  # tells this process from earlier ones of the same agent

log = logging.getLogger(__name__)


class Terms(NamedTuple):
    """What holds for every stream.

    Attributes:
        retention: Seconds that broadcast entries are kept for nodes that are away or new.
        expiry: Seconds after which the group of a node that was not seen is removed.
        before_the_last: Waits until earlier responses have left.
        hand_over: Gives a delivery to the agent, and calls back once that has looked at it.
        local: Whether the server is on this host.
        feedback: How much is kept in a feedback stream.
        may_keep: Whether a key may be one.
    """

    retention: float
    expiry: float
    before_the_last: Callable[[], Awaitable[None]]
    hand_over: Callable[[Delivery, Callable[[], None]], None]
    local: bool = False
    feedback: Feedback = Feedback()
    may_keep: Callable[[str], bool] = is_feedback_key


class Group:
    """One stream, one group, one reader.

    Attributes:
        turned: Loop time of the reader's last turn.
        missing: How often the group was found gone.
        trouble: Why nothing could be read last time; empty if it could, or was not tried.
    """

    def __init__(self, subscription: Subscription, calls: Calls, host: Host, terms: Terms) -> None:
        self.subscription = subscription
        self.terms = terms
        self.turned = asyncio.get_running_loop().time()
        self.missing = 0
        self.trouble = ""
        self._calls = calls
        self._host = host
        name = host.node().name
        pool = subscription.pool
        group = f"pool:{pool}" if pool else f"node:{name}:{host.identity}"
        # A name for each reader: two in one process must not take each other's for lost.
        consumer = f"{host.identity}.{PROCESS}.{secrets.token_hex(4)}"
        self.place = Place(calls, Keys.of(subscription.stream), group, consumer, terms.feedback)
        self._members = Destination.parse(subscription.members) if subscription.members else None
        self._numbers = itertools.count()
        self._waiting = 0  # handed over and not yet looked at
        self._looked_at = asyncio.Event()
        self._known = False  # whether the group has been there
        self._unheard = False  # whether something may have been read without our knowing
        self._next_join = self._next_take = self._next_trim = 0.0  # loop time
        self._malformed = 0
        self._refusals: set[asyncio.Task[None]] = set()

    @cached_property
    def text(self) -> str:
        """The control channel."""
        return str(self.subscription)

    async def read(self) -> None:
        """Read until cancelled."""
        failures = 0
        while True:
            self.turned = asyncio.get_running_loop().time()
            try:
                await self._turn()
                failures = 0
            except TROUBLES as exc:
                self._unheard = True
                self._next_join = 0.0
                if str(exc).startswith(("NOGROUP", "UNBLOCKED")) and not failures:
                    failures = 1
                    continue  # made again at the next turn
                self._calls.failed(exc)
                self.trouble = " ".join(str(exc).split()) or "no answer in time"
                failures += 1
                await asyncio.sleep(pause(failures))

    async def before_the_last(self) -> None:
        """Wait until what was delivered earlier has left."""
        await self.terms.before_the_last()

    def look(self, delay: float) -> None:
        """Something is due in *delay* seconds."""
        due = asyncio.get_running_loop().time() + delay
        self._next_take = min(self._next_take, due)

    def again(self, claim: StreamClaim, delay: float, attempt: int) -> None:
        """Nobody has *claim*'s entry any more, and every node is to run it: we still do."""
        entry = Entry(claim.id, {b"request": claim.request})
        asyncio.get_running_loop().call_later(
            delay, self._give, entry, attempt, claim.taken_over and attempt == claim.attempt
        )

    async def renew(self) -> bool:
        """Tell that we live; claims that somebody else has now are told so.

        Returns:
            Whether any of it has worked; False as well where nothing is held.
        """
        claims, worked = list(self.place.held.values()), False
        for start in range(0, len(claims), RENEW_AT_ONCE):
            try:
                await self._renew(claims[start : start + RENEW_AT_ONCE])
                worked = True
            except TROUBLES as exc:
                self._calls.failed(exc)
        return worked

    async def _renew(self, claims: list[StreamClaim]) -> None:
        keys = (self.place.keys.stream, self.place.keys.epoch, self.place.keys.settled)
        words = [word for claim in claims for word in (claim.id, claim.epoch)]
        lost = await self._calls.call(RENEW, keys, self.place.group, self.place.consumer, *words)
        known = {claim.id: claim for claim in claims}
        for id in lost:
            self._lose(known[id.decode()])

    def _lose(self, claim: StreamClaim) -> None:
        # One that is just given up hears of it there; its id may be held anew by now.
        if claim.ending or self.place.held.get(claim.id) is not claim:
            return
        del self.place.held[claim.id]
        log.warning("redis: %s: %s is somebody else's now", self.text, claim.id)
        claim.on_lost()

    async def sweep(self, leaves: bool = False) -> None:
        """Give back what was read without our knowing; go if nothing is held."""
        place, keys = self.place, self.place.keys
        count, deleted = await self._calls.call(
            SWEEP, (keys.stream, keys.delayed(place.group), keys.dead, keys.settled),
            place.group, place.consumer, int(leaves), place.node,
            int(LEASE * 1000), *place.held,
        )  # fmt: skip
        self._tell_deleted(deleted)
        if count:
            log.info("redis: %s: %d unheard requests go back", self.text, count)

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._is_member():
            self.trouble = ""
            await asyncio.sleep(NO_MEMBER)
            return
        if now >= self._next_join:
            await self._join()
        if self._unheard:
            await self.sweep()
            self._unheard, self._next_take = False, 0.0
        if now >= self._next_trim:
            await self._trim()
        room = min(self._host.room(self.text), BATCH)
        if room <= 0:
            self.trouble = ""
            await self._some_room()
            return
        if now >= self._next_take:
            await self._take(room)
            return
        block = BLOCK_BUSY if self.place.held else BLOCK
        await self._read(room, min(block, self._next_take - now))

    async def _some_room(self) -> None:
        """Wait until there is room, or until it should be looked whether we still belong."""
        given_up = self.place.given_up
        given_up.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(given_up.wait(), NO_ROOM)
            for _ in range(SOON):  # the agent counts a job a little longer than its claim
                if self._host.room(self.text) > 0:
                    return
                await asyncio.sleep(0.001)

    async def _read(self, room: int, block: float) -> None:
        place = self.place
        entries = await self._calls.read(
            place.keys.stream, place.group, place.consumer, room, block
        )
        self._calls.worked()
        self.trouble = ""  # not at the end of any turn: what may be joined need not be readable
        for entry in entries:
            self._give(entry, 1, False)
        await self._all_looked_at()

    async def _take(self, room: int) -> None:
        """Take what is due, and what somebody has let down."""
        place, host = self.place, self._host
        kin = f"{host.identity}."
        keys = place.keys
        due, taken, deleted = await self._calls.call(
            TAKE, (keys.stream, keys.delayed(place.group), keys.settled, keys.dead),
            place.group, place.consumer, kin, f"{kin}{PROCESS}.",
            int(LEASE * 1000), room, int(REST * 1000), place.node,
        )  # fmt: skip
        self._calls.worked()
        self._tell_deleted(deleted)
        full = len(taken) >= room
        wait = 0.0 if full else min(BLOCK, due / 1000 if due >= 0 else BLOCK)
        self._next_take = asyncio.get_running_loop().time() + wait
        for id, down, attempt, fields in taken:
            self._give(entry_of((id, fields)), attempt, bool(down))
        await self._all_looked_at()

    def _tell_deleted(self, ids: list[bytes]) -> None:
        self._calls.buried += len(ids)
        if ids:
            log.warning("redis: %s: %d requests were deleted from the stream before they were "
                        "handled, the first is %s; see the dead letters",
                        self.text, len(ids), ids[0].decode())  # fmt: skip

    def _give(self, entry: Entry, attempt: int, down: bool) -> None:
        held = self.place.held.get(entry.id)
        if held is not None:  # the group was made again, and we have it already
            held.epoch = self.place.epoch
            return
        request = entry.fields.get(b"request")
        token = f"{self.place.consumer}.{next(self._numbers)}"
        claim = StreamClaim(self, entry.id, request or b"", token, max(attempt, 1), down)
        self.place.held[entry.id] = claim
        if request is None:
            self._refuse(claim)
        else:
            self._waiting += 1
            self.terms.hand_over(
                Delivery(request, self.text, self.terms.local, claim=claim), self._note_look
            )

    def _refuse(self, claim: StreamClaim) -> None:
        self._malformed += 1
        if self._malformed & (self._malformed - 1) == 0:  # 1, 2, 4, 8, … lines in a flood
            log.warning("redis: %s: entry %s has no field 'request'; %d such so far",
                        self.text, claim.id, self._malformed)  # fmt: skip
        task = asyncio.create_task(self._bury(claim), name="redis stream refusal")
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _bury(self, claim: StreamClaim) -> None:
        with suppress(BackendError):
            await claim.drop("no field 'request'")

    def _note_look(self) -> None:
        self._waiting -= 1
        self._looked_at.set()

    async def _all_looked_at(self) -> None:
        """What the agent has not seen yet takes room that it does not know of."""
        while self._waiting > 0:
            self._looked_at.clear()
            await self._looked_at.wait()
            self.turned = asyncio.get_running_loop().time()

    def _is_member(self) -> bool:
        node = self._host.node()
        self.place.node = node.name
        return self._members is None or self._members.selects(node)

    async def _join(self) -> None:
        place, terms = self.place, self.terms
        retention = "" if self.subscription.pool else str(int(terms.retention * 1000))
        made, known, epoch = await self._calls.call(
            JOIN, (place.keys.stream, place.keys.groups, place.keys.epoch),
            place.group, retention, int(terms.expiry * 1000), secrets.token_hex(8),
        )  # fmt: skip
        if made and (known or self._known):
            self.missing += 1
            log.warning("redis: %s: group %s was gone; made again", self.text, place.group)
            self._calls.on_change()
        self._known = True
        place.epoch = epoch.decode()
        self._next_join = asyncio.get_running_loop().time() + JOIN_EVERY

    async def _trim(self) -> None:
        keys = (self.place.keys.stream, self.place.keys.groups, self.place.keys.epoch)
        self._next_trim = asyncio.get_running_loop().time() + TRIM_EVERY
        expired = await self._calls.call(
            TRIM, keys, self.place.keys.delayed(""), int(TRIM_EVERY * 900)
        )
        for name in expired:
            log.info("redis: %s: group %s was not seen for long; removed",
                     self.subscription.stream, name.decode("utf-8", "replace"))  # fmt: skip


LATE = BLOCK + 1.5  # seconds after which a reader waits for an answer that is overdue
STUCK = 2 * (BLOCK + REPLY_TIMEOUT) + LEASE  # seconds after which a reader has no excuse
