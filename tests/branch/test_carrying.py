"""Requests that are carried between branches: what gets there, in whose name, and how the answer comes back."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from branchd.branch.mesh import carrying
from branchd.branch.mesh.carrying import Carrier
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.neighbours import LONGEST_BODY
from branchd.branch.ports import Served
from branchd.core.access import Principal, Scope
from branchd.core.errors import Denied, Invalid, NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.wire.mesh import CHUNK, Carried, HangUp, Piece, Pull, Unserved
from branchd.wire.portions import LONGEST_MESSAGE
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal
from tests.waiting import until

ADMIN = Principal("token:ci", Scope.ADMIN)

#: what no answer of the tests is longer than
LONG = 3 * CHUNK + 17


@dataclass
class Asked:
    principal: Principal
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class FakeDoor:
    """Answers all with what `pieces` gives; `finite`: it says how long that is."""

    pieces: list[bytes] = field(default_factory=lambda: [b"{}"])
    status: int = 200
    finite: bool = True
    hold: asyncio.Event = field(default_factory=asyncio.Event)  #: unless it is set nothing comes after the pieces
    failure: Exception | None = None  #: instead of the end
    refusal: Exception | None = None  #: instead of an answer
    asked: list[Asked] = field(default_factory=list)
    open: int = 0
    given: int = 0  #: bytes that were taken

    @asynccontextmanager
    async def serve(
        self, principal: Principal, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[Served]:
        self.asked.append(Asked(principal, method, target, headers, body))
        if self.refusal is not None:
            raise self.refusal
        self.open += 1
        told = {"content-type": "text/plain", "etag": '"x.1"', "set-cookie": "no", "server": "branchd"}
        if self.finite:
            told["content-length"] = str(sum(map(len, self.pieces)))
        try:
            async with aclosing(self._body()) as pieces:
                yield Served(self.status, told, pieces)
        finally:
            self.open -= 1

    async def _body(self) -> AsyncGenerator[bytes, None]:
        for piece in self.pieces:
            self.given += len(piece)
            yield piece
        if not self.finite:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure


@dataclass
class Side:
    me: Address
    link: Link
    door: FakeDoor
    carrier: Carrier


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def side(broker: MemoryBroker, name: str, peer_scope: Scope = Scope.OPERATE) -> Side:
    me = Address(name, "boot")
    link = Link(broker.bus(name), ClearSeal(me), me)
    door = FakeDoor()
    return Side(me, link, door, Carrier(link, door, peer_scope, lambda id: f"branch-{id}"))


@asynccontextmanager
async def connected(*sides: Side) -> AsyncIterator[None]:
    for one in sides:
        await one.link.open()
    await until(lambda: all(one.link.connected for one in sides))
    yield
    for one in sides:
        one.carrier.close()
        await one.link.close()


@pytest.fixture
async def two(broker: MemoryBroker) -> AsyncIterator[tuple[Side, Side]]:
    one, other = side(broker, "a"), side(broker, "b")
    async with connected(one, other):
        yield one, other


async def body(served: Served) -> bytes:
    return b"".join([piece async for piece in served.body])


async def test_a_request_gets_there_with_what_may_travel_and_so_does_its_answer(two: tuple[Side, Side]) -> None:
    here, there = two
    sent = {"Content-Type": "application/json", "If-Match": "*", "Authorization": "Bearer x", "Host": "z"}
    async with here.carrier.carry(there.me, ADMIN, "PUT", "/v1/x?a=b", sent, b'{"c":1}') as served:
        assert (served.status, await body(served)) == (200, b"{}")
        assert served.headers == {"content-type": "text/plain", "etag": '"x.1"'}
    (asked,) = there.door.asked
    assert (asked.method, asked.target, asked.body) == ("PUT", "/v1/x?a=b", b'{"c":1}')
    assert asked.headers == {"content-type": "application/json", "if-match": "*"}
    await until(lambda: there.door.open == 0)


@pytest.mark.parametrize("peer_scope", Scope)
@pytest.mark.parametrize("scope", Scope)
async def test_nobody_may_more_than_there_and_here(broker: MemoryBroker, scope: Scope, peer_scope: Scope) -> None:
    here, there = side(broker, "a"), side(broker, "b", peer_scope)
    async with (
        connected(here, there),
        here.carrier.carry(there.me, Principal("token:ci", scope), "GET", "/", {}) as served,
    ):
        await body(served)
    least = min(scope, peer_scope, key=list(Scope).index)
    assert there.door.asked[0].principal == Principal("token:ci", least, via="branch-a", via_id="a", asked=scope)


async def test_what_was_carried_here_is_not_carried_further(two: tuple[Side, Side]) -> None:
    here, there = two
    principal = Principal("token:ci", Scope.ADMIN, via="web3", asked=Scope.ADMIN)
    with pytest.raises(Denied, match="not carried further"):
        async with here.carrier.carry(there.me, principal, "GET", "/", {}):
            pass
    with pytest.raises(Denied, match="not carried further"):
        async with here.carrier.carry_key("i.shop:web", principal, "GET", "/", {}):
            pass
    assert there.door.asked == []


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, LONG])
async def test_an_answer_of_any_length_comes_whole(two: tuple[Side, Side], size: int, finite: bool) -> None:
    here, there = two
    data = bytes(range(251)) * (size // 251 + 1)
    there.door.pieces = [data[:size][start : start + 60_000] for start in range(0, size, 60_000)]
    there.door.finite = finite
    there.door.hold.set()
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        assert await body(served) == data[:size]
    await until(lambda: there.door.open == 0)


async def test_what_happens_is_told_while_it_happens(two: tuple[Side, Side]) -> None:
    here, there = two
    there.door.pieces, there.door.finite = [b"one", b"two"], False
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        seen = b""
        async for piece in served.body:
            seen += piece
            if seen == b"onetwo":
                there.door.hold.set()
    assert seen == b"onetwo"


async def test_a_reader_that_leaves_ends_what_is_made_for_him(two: tuple[Side, Side]) -> None:
    here, there = two
    there.door.finite = False
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        async for _ in served.body:
            break
        assert there.door.open == 1
    await until(lambda: there.door.open == 0)


async def test_nothing_more_is_made_than_is_pulled(two: tuple[Side, Side]) -> None:
    here, there = two
    there.door.pieces, there.door.finite = [b"x" * 60_000] * 100, False
    there.door.hold.set()
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        taken = len(await anext(aiter(served.body)))
        await until(lambda: there.door.given > taken)
        assert there.door.given <= taken + 2 * CHUNK
        assert taken + len(await body(served)) == 6_000_000


async def test_a_silence_is_no_end_and_one_who_does_not_pull_is_hung_up(
    two: tuple[Side, Side], broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    monkeypatch.setattr(carrying, "PATIENCE", 0.05)
    there.door.pieces, there.door.finite = [], False
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        reading = asyncio.create_task(body(served))
        await until(lambda: broker.delivered["b"] > 3, what="several pulls in vain")
        there.door.hold.set()
        assert await reading == b""
    monkeypatch.setattr(carrying, "IDLE", 0.05)
    there.door.hold.clear()
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        await until(lambda: there.door.open == 0)
        with pytest.raises(NoAnswer, match="the rest of the answer is lost"):
            await body(served)


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(two: tuple[Side, Side]) -> None:
    here, there = two
    there.door.pieces, there.door.finite, there.door.failure = [b"half"], False, Unavailable("cut")
    there.door.hold.set()
    async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        with pytest.raises(NoAnswer, match="broke off"):
            await body(served)


async def test_what_was_not_begun_is_told_at_once(two: tuple[Side, Side]) -> None:
    here, there = two
    there.door.refusal = Unavailable("its API is not open")
    with pytest.raises(Unavailable, match="branch-b: its API is not open") as told:
        async with here.carrier.carry(there.me, ADMIN, "DELETE", "/", {}):
            pass
    assert not isinstance(told.value, NoAnswer)


async def test_what_was_begun_and_lost_is_never_told_to_be_undone(two: tuple[Side, Side]) -> None:
    here, there = two
    there.door.refusal = NoAnswer("the connection broke after the request")
    with pytest.raises(NoAnswer, match="branch-b does not answer"):
        async with here.carrier.carry(there.me, ADMIN, "DELETE", "/", {}, timeout=0.2):
            pass
    there.door.refusal = None
    there.door.pieces, there.door.failure = [b"half"], NoAnswer("it broke in the first piece")
    with pytest.raises(NoAnswer, match="branch-b does not answer"):
        async with here.carrier.carry(there.me, ADMIN, "DELETE", "/", {}, timeout=0.2):
            pass
    assert len(there.door.asked) == 2


async def test_what_takes_too_long_to_begin_is_given_up_and_not_told_to_be_undone(
    two: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    monkeypatch.setattr(carrying, "BEGIN_WITHIN", 0.05)
    monkeypatch.setattr(FakeDoor, "_body", lambda door: _never(door.hold))
    with pytest.raises(NoAnswer):
        async with here.carrier.carry(there.me, ADMIN, "DELETE", "/", {}, timeout=0.5):
            pass
    assert (len(there.door.asked), there.door.open) == (1, 0)


async def _never(hold: asyncio.Event) -> AsyncGenerator[bytes, None]:
    await hold.wait()
    yield b""


async def test_a_branch_that_is_not_there_was_not_asked(two: tuple[Side, Side]) -> None:
    here, _ = two
    with pytest.raises(NoRoute):
        async with here.carrier.carry(Address("c", "boot"), ADMIN, "GET", "/", {}):
            pass


async def test_a_branch_that_does_not_answer_is_told_apart(two: tuple[Side, Side], broker: MemoryBroker) -> None:
    here, there = two
    broker.partition("b")
    with pytest.raises(NoAnswer):
        async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}, timeout=0.1):
            pass
    broker.partition("a", at_once=True)
    await until(lambda: not here.link.connected)
    with pytest.raises(Unavailable, match="no connection") as caught:
        async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}):
            pass
    assert not isinstance(caught.value, NoAnswer)


async def test_a_key_is_asked_in_one_hop_and_tells_who_holds_it(two: tuple[Side, Side]) -> None:
    here, there = two
    await there.link.bind("i.shop:web")
    async with here.carrier.carry_key("i.shop:web", ADMIN, "GET", "/v1/x", {}) as (owner, served):
        assert (owner, await body(served)) == (there.me, b"{}")
    with pytest.raises(NoRoute):
        async with here.carrier.carry_key("i.shop:none", ADMIN, "GET", "/v1/x", {}):
            pass


async def test_where_nobody_tells_who_holds_a_key_it_is_not_asked() -> None:
    broker = MemoryBroker(definite=False)
    here, there = side(broker, "a"), side(broker, "b")
    async with connected(here, there):
        await there.link.bind("i.shop:web")
        with pytest.raises(NoRoute):
            async with here.carrier.carry_key("i.shop:web", ADMIN, "GET", "/v1/x", {}):
                pass
    assert there.door.asked == []


async def test_what_others_follow_is_bounded_told_in_words_and_leaves_room_for_requests(
    two: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    there.door.finite = False
    monkeypatch.setattr(carrying, "MOST_FOLLOWED_OF_ONE", 2)

    @asynccontextmanager
    async def stream() -> AsyncIterator[None]:
        async with here.carrier.carry(there.me, ADMIN, "GET", "/", {}):
            yield

    async with stream(), stream():
        with pytest.raises(Unavailable, match=r"branch-b: too much is being followed"):
            async with stream():
                pass
        there.door.finite = True
        async with stream():  # what is asked is answered
            pass
        there.door.finite = False
    await until(lambda: there.door.open == 0)
    async with stream():
        monkeypatch.setattr(carrying, "MOST_FOLLOWED", 1)
        with pytest.raises(Unavailable, match="too much is being followed"):
            async with stream():
                pass
        monkeypatch.setattr(carrying, "MOST", 0)
        with pytest.raises(Unavailable, match="too many requests"):
            async with stream():
                pass


async def test_one_does_not_pull_or_end_what_another_has_asked_for(broker: MemoryBroker) -> None:
    here, there, thief = side(broker, "a"), side(broker, "b"), side(broker, "c")
    there.door.finite = False
    async with connected(here, there, thief), here.carrier.carry(there.me, ADMIN, "GET", "/", {}) as served:
        (stream,) = there.carrier._open
        assert await thief.link.ask(there.me, Pull(stream), 5) == Piece("", end=True, broken=True)
        await thief.link.tell(there.me, HangUp(stream))
        assert await thief.link.ask(there.me, Pull("none"), 5) == Piece("", end=True, broken=True)
        assert there.door.open == 1
        there.door.hold.set()
        assert await body(served) == b"{}"


@pytest.mark.parametrize("target", ["", "http://x/v1", "*", "v1/tokens"])
async def test_what_is_no_request_is_not_begun(two: tuple[Side, Side], target: str) -> None:
    here, there = two
    carried = Carried("GET", target, {}, "", "token:ci", Scope.ADMIN)
    assert isinstance(await here.link.ask(there.me, carried, 5), Unserved)
    assert there.door.asked == []


async def test_a_body_that_is_not_encoded_gets_no_answer(two: tuple[Side, Side]) -> None:
    here, there = two
    with pytest.raises(NoAnswer):
        await here.link.ask(there.me, Carried("GET", "/", {}, "%%%", "token:ci", Scope.ADMIN), 0.2)
    assert there.door.asked == []


async def test_the_longest_body_fits_a_message(two: tuple[Side, Side], broker: MemoryBroker) -> None:
    here, there = two
    sizes = []
    broker.listeners.append(lambda _, __, message: sizes.append(len(message)))
    data = b"x" * LONGEST_BODY
    sent = dict.fromkeys(carrying.SENT, "y" * 8190)
    async with here.carrier.carry(there.me, ADMIN, "PUT", "/" + "z" * 8189, sent, data) as served:
        await body(served)
    assert there.door.asked[0].body == data
    assert max(sizes) <= LONGEST_MESSAGE


@pytest.mark.parametrize("text", ["\xe9", "\udcff", "a\nb"])
async def test_headers_that_cannot_travel_are_refused_before_they_are_sent(two: tuple[Side, Side], text: str) -> None:
    here, there = two
    with pytest.raises(Invalid) as refused:
        async with here.carrier.carry(there.me, ADMIN, "POST", "/v1/x", {"Idempotency-Key": text}):
            pass
    assert [fault.pointer for fault in refused.value.faults] == ["idempotency-key:"]
    assert there.door.asked == []
