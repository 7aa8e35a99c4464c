"""What every Bus does, over RabbitMQ, over files and in memory: suites to inherit from.

`new_bus` is the fixture to give: it makes the bus of a branch in a neighbourhood of the test's own. A definite bus
(Bus.definite) also gives `break_connection`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from branchd.branch.ports import Bus, BusState
from branchd.core.errors import Conflict, Unavailable
from tests.waiting import until

#: seconds for what should happen at once
SOON = 60.0

#: ids of three branches
ONE, TWO, THREE = (digit * 32 for digit in "123")

KEY = "i.web:one"


class Member:
    """A bus and what it reported."""

    def __init__(self, branch: str, bus: Bus) -> None:
        self.inbox = f"b.{branch}"
        self.bus = bus
        self.heard: list[tuple[str, bytes | None]] = []
        self.states: list[BusState] = []

    async def open(self) -> None:
        await self.bus.open(lambda key, body: self.heard.append((key, body)), self.states.append)

    async def connected(self) -> "Member":
        await until(lambda: self.bus.state.connected, SOON, "the bus to be connected")
        return self

    async def has_heard(self, *messages: tuple[str, bytes]) -> None:
        """These and no others, in this order; what was heard before is forgotten after it."""
        await until(lambda: len(self.heard) >= len(messages), SOON, f"{len(messages)} messages")
        assert self.heard == list(messages)
        self.heard.clear()


Join = Callable[[str], Awaitable[Member]]
NewBus = Callable[[str], Bus]
BreakConnection = Callable[[Bus], Awaitable[None]]


class BusConformance:
    @pytest.fixture
    def new_bus(self) -> NewBus:
        raise NotImplementedError("the suite's heir gives it")

    @pytest.fixture
    async def enter(self, new_bus: NewBus) -> AsyncIterator[Join]:
        """A member that was opened, connected or not."""
        members = []

        async def enter(branch: str) -> Member:
            members.append(member := Member(branch, new_bus(branch)))
            await member.open()
            return member

        yield enter
        for member in members:
            await member.bus.close()

    @pytest.fixture
    def join(self, enter: Join) -> Join:
        async def join(branch: str) -> Member:
            return await (await enter(branch)).connected()

        return join

    @pytest.fixture
    async def one(self, join: Join) -> Member:
        return await join(ONE)

    @pytest.fixture
    async def two(self, join: Join) -> Member:
        return await join(TWO)

    # Connection

    async def test_it_tells_that_it_is_connected_and_where(self, one: Member) -> None:
        await until(lambda: one.states, SOON)
        assert one.states[-1] == one.bus.state
        assert one.bus.state.connected
        assert one.bus.state.where
        assert not one.bus.state.why

    async def test_it_is_not_connected_before_it_is_opened(self, new_bus: NewBus) -> None:
        bus = new_bus(ONE)
        assert not bus.state.connected
        await self._nothing_works(bus)

    async def test_it_is_not_connected_after_it_is_closed(self, one: Member) -> None:
        await one.bus.close()
        assert not one.bus.state.connected
        await self._nothing_works(one.bus)

    async def _nothing_works(self, bus: Bus) -> None:
        bus.broadcast(b"lost")
        await bus.unbind([KEY])  # nothing is bound, so that is what was asked for
        with pytest.raises(Unavailable):
            await bus.send(KEY, b"")
        with pytest.raises(Unavailable):
            await bus.bind([KEY])
        with pytest.raises(Unavailable):
            await bus.claim("web:one")

    async def test_closing_twice_is_closing(self, one: Member) -> None:
        await one.bus.close()
        await one.bus.close()

    async def test_a_closed_bus_hears_nothing(self, one: Member, two: Member) -> None:
        await one.bus.close()
        states = list(one.states)
        two.bus.broadcast(b"all")
        await two.has_heard(("", b"all"))
        assert (one.heard, one.states) == ([], states)

    async def test_what_was_sent_before_closing_arrives(self, one: Member, two: Member) -> None:
        one.bus.broadcast(b"bye")
        await one.bus.close()
        await two.has_heard(("", b"bye"))

    # Messages

    async def test_a_broadcast_reaches_all_and_its_sender(self, one: Member, two: Member) -> None:
        one.bus.broadcast(b"all")
        await one.has_heard(("", b"all"))
        await two.has_heard(("", b"all"))

    async def test_an_inbox_is_one_branchs_own(self, one: Member, two: Member) -> None:
        assert await one.bus.send(two.inbox, b"you")
        assert await one.bus.send(one.inbox, b"me")
        await two.has_heard((two.inbox, b"you"))
        await one.has_heard((one.inbox, b"me"))

    async def test_a_key_reaches_who_bound_it(self, one: Member, two: Member) -> None:
        await two.bus.bind([KEY])
        assert await one.bus.send(KEY, b"first")
        await two.has_heard((KEY, b"first"))
        await two.bus.bind([KEY])
        assert await one.bus.send(KEY, b"once")
        assert await one.bus.send(two.inbox, b"last")
        await two.has_heard((KEY, b"once"), (two.inbox, b"last"))
        assert one.heard == []

    async def test_a_key_reaches_all_who_bound_it(self, one: Member, two: Member, join: Join) -> None:
        three = await join(THREE)
        for member in (two, three):
            await member.bus.bind([KEY])
        assert await one.bus.send(KEY, b"both")
        await two.has_heard((KEY, b"both"))
        await three.has_heard((KEY, b"both"))

    async def test_an_unbound_key_reaches_nobody(self, one: Member, two: Member) -> None:
        await two.bus.bind([KEY, "i.web:other"])
        await two.bus.unbind([KEY, "i.web:never"])
        await one.bus.send(KEY, b"nobody")
        assert await one.bus.send("i.web:other", b"other")
        await two.has_heard(("i.web:other", b"other"))

    async def test_many_keys_are_bound_at_once(self, one: Member, two: Member) -> None:
        keys = [f"i.web:{number}" for number in range(300)]
        await two.bus.bind(keys)
        assert all(await asyncio.gather(*(one.bus.send(key, b"") for key in keys)))
        await until(lambda: len(two.heard) == len(keys), SOON)
        await two.bus.unbind(keys)
        assert await one.bus.send(two.inbox, b"last")
        await until(lambda: two.heard[-1] == (two.inbox, b"last"), SOON)

    async def test_each_path_keeps_its_order(self, one: Member, two: Member) -> None:
        numbers = [str(number).encode() for number in range(300)]
        sending = []
        for number in numbers:
            one.bus.broadcast(number)
            sending.append(asyncio.create_task(one.bus.send(two.inbox, number)))
        assert all(await asyncio.gather(*sending))
        await until(lambda: len(two.heard) == 600, SOON)
        assert [body for key, body in two.heard if key == ""] == numbers
        assert [body for key, body in two.heard if key == two.inbox] == numbers

    @pytest.mark.parametrize("body", [b"", bytes(range(256)), bytes(4 << 20)], ids=["empty", "any byte", "4 MiB"])
    async def test_bodies_arrive_as_they_are(self, one: Member, two: Member, body: bytes) -> None:
        assert await one.bus.send(two.inbox, body)
        one.bus.broadcast(body)
        await until(lambda: len(two.heard) == 2, SOON)
        assert {key: heard == body for key, heard in two.heard} == {two.inbox: True, "": True}

    async def test_who_gives_up_waiting_harms_nobody(self, one: Member, two: Member) -> None:
        waiting = [asyncio.create_task(one.bus.send(two.inbox, b"")) for _ in range(20)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        for task in waiting:
            with suppress(asyncio.CancelledError):
                await task
        two.bus.broadcast(b"all")
        await until(lambda: ("", b"all") in one.heard, SOON)
        assert await one.bus.send(two.inbox, b"last")
        await until(lambda: (two.inbox, b"last") in two.heard, SOON)

    # Claims

    async def test_a_claim_sends_and_is_released(self, one: Member, two: Member) -> None:
        await two.bus.bind([KEY])
        claim = await one.bus.claim("web:one")
        assert await claim.send(KEY, b"who")
        await two.has_heard((KEY, b"who"))
        await claim.release()
        await (await two.bus.claim("web:one")).release()


class DefiniteBusConformance(BusConformance):
    """Of a bus whose broker tells for sure that nobody holds a key."""

    @pytest.fixture
    def break_connection(self) -> BreakConnection:
        """Ends the bus's connections as suddenly as a network does, the claims' too; it may connect again at once."""
        raise NotImplementedError("the suite's heir gives it")

    async def test_it_says_that_it_is_definite(self, one: Member) -> None:
        assert one.bus.definite

    async def test_nobody_there_is_told(self, one: Member, two: Member) -> None:
        await two.bus.bind([KEY])
        keys = [KEY, "i.web:nobody", two.inbox, f"b.{THREE}"] * 20
        assert await asyncio.gather(*(one.bus.send(key, b"") for key in keys)) == [True, False] * 40
        await two.bus.unbind([KEY])
        assert not await one.bus.send(KEY, b"")

    async def test_what_a_branch_held_is_gone_when_it_closed(self, one: Member, two: Member) -> None:
        await two.bus.bind([KEY])
        await two.bus.claim("web:one")
        await two.bus.close()
        await until(lambda: self._free(one, two), SOON)

    async def _free(self, one: Member, two: Member) -> bool:
        try:
            await (await one.bus.claim("web:one")).release()
        except Conflict:
            return False
        return not await one.bus.send(KEY, b"") and not await one.bus.send(two.inbox, b"")

    async def test_a_lost_connection_takes_bindings_and_claims_with_it_and_comes_back(
        self, one: Member, two: Member, break_connection: BreakConnection
    ) -> None:
        await two.bus.bind([KEY])
        claim = await two.bus.claim("web:one")
        await break_connection(two.bus)
        await until(lambda: not all(state.connected for state in two.states), SOON, "the loss to be told")
        with pytest.raises(Unavailable):
            await claim.release()
        lost = next(state for state in two.states if not state.connected)
        assert lost.why
        await until(lambda: two.states[-1].connected, SOON, "the connection to be back")
        assert await one.bus.send(two.inbox, b"back")
        assert not await one.bus.send(KEY, b"")
        await (await one.bus.claim("web:one")).release()
        await until(lambda: (two.inbox, b"back") in two.heard, SOON)
        two.bus.broadcast(b"all")
        await until(lambda: ("", b"all") in one.heard, SOON)

    async def test_a_second_branch_of_one_id_stays_outside_until_the_first_has_gone(
        self, one: Member, two: Member, enter: Join
    ) -> None:
        second = await enter(ONE)
        await until(lambda: second.states, SOON, "a word on why it is not connected")
        assert not second.bus.state.connected
        assert "id" in second.bus.state.why
        assert await two.bus.send(one.inbox, b"first")
        await one.has_heard((one.inbox, b"first"))
        assert one.bus.state.connected
        await one.bus.close()
        await until(lambda: second.bus.state.connected, 3 * SOON, "its turn")
        assert await two.bus.send(one.inbox, b"second")
        await until(lambda: (one.inbox, b"second") in second.heard, SOON)

    async def test_a_name_is_claimed_by_one(self, one: Member, two: Member) -> None:
        claim = await one.bus.claim("web:one")
        with pytest.raises(Conflict):
            await two.bus.claim("web:one")
        other = await two.bus.claim("web:two")
        await claim.release()
        again = await two.bus.claim("web:one")
        await again.release()
        await other.release()

    async def test_of_many_who_claim_at_once_one_has_it(self, one: Member, two: Member, join: Join) -> None:
        three = await join(THREE)
        buses = [member.bus for member in (one, two, three)]
        for number in range(5):
            claims = await asyncio.gather(*(bus.claim(f"web:{number}") for bus in buses), return_exceptions=True)
            won = [claim for claim in claims if not isinstance(claim, BaseException)]
            assert len(won) == 1
            assert sum(isinstance(claim, Conflict) for claim in claims) == 2
            await won[0].release()

    async def test_a_claim_tells_that_nobody_is_there(self, one: Member, two: Member) -> None:
        claim = await one.bus.claim("web:one")
        assert not await claim.send(KEY, b"")
        await two.bus.bind([KEY])
        assert await claim.send(KEY, b"")
        await claim.release()
