"""Branches that find, watch, lose and believe each other, over a broker in memory and in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from branchd.branch.mesh import presence as presence_module
from branchd.branch.mesh.gossip import Gossip
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.presence import SWEEP_EVERY, Presence, Self
from branchd.core import roster as roster_module
from branchd.core.digests import BUCKETS, Digests, bucket
from branchd.core.errors import Conflict, StorageFailed
from branchd.core.peers import Address, BranchState, Down
from branchd.core.presence import DOUBTED_FOR, MISSED_FOR, SETTLED_AFTER
from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.wire.mesh import Announce, Compare, Differences, Gone, Wrote
from branchd.wire.portions import LONGEST_MESSAGE, PORTION
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal
from tests.simulation.loop import WallClock, run, simulate

SELF = Self("", BranchState.UP, 4, 0, "1", {}, None)


class Definitions:
    """The shared definitions of one branch, in memory."""

    def __init__(self) -> None:
        self.known: dict[str, Entry] = {}
        self._buckets: list[dict[str, Entry]] = [{} for _ in range(BUCKETS)]
        self._digests = Digests()

    def write(self, entry: Entry) -> None:
        before = self.known.get(entry.app)
        if before is None or before.stamp < entry.stamp:
            self._digests = self._digests.replace(entry.app, before and str(before.stamp), str(entry.stamp))
            self.known[entry.app] = self._buckets[bucket(entry.app)][entry.app] = entry

    def digests(self) -> tuple[str, ...]:
        return self._digests.texts()

    def entries(self, buckets: Iterable[int]) -> list[Entry]:
        return [entry for number in buckets for entry in self._buckets[number].values()]

    async def merge(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.write(entry)


@dataclass
class Branch:
    bus: Any
    link: Link
    presence: Presence
    gossip: Gossip
    definitions: Definitions
    wall: WallClock
    remembered: list[int]
    events: list[tuple[str, Mapping[str, Any]]]
    says: list[Self]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def names(self) -> set[str]:
        return {member.name for member in self.presence.others()}

    def missing(self) -> set[str]:
        return {member.name for member in self.presence.missing()}

    async def end(self) -> None:
        await self.gossip.tasks.end()
        await self.presence.end()
        await self.link.close()

    async def die(self, *, power: bool = False) -> None:
        self.bus.crash(power=power)
        await self.gossip.tasks.end()
        await self.presence.end()
        await self.link.close()


@dataclass
class Neighbourhood:
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    chance: Random = field(default_factory=lambda: Random(1))

    async def branch(
        self,
        name: str,
        *,
        id: str = "",
        boot: str = "boot",
        incarnation: int = 0,
        store: Callable[[int], Awaitable[None]] | None = None,
        offset: float = 0.0,
    ) -> Branch:
        me = Address(id or f"id-{name}", boot)
        bus = self.broker.bus(me.id)
        link = Link(bus, ClearSeal(me), me)
        remembered: list[int] = []
        events: list[tuple[str, Mapping[str, Any]]] = []
        wall, says = WallClock(offset), [replace(SELF, name=name)]

        async def remember(number: int) -> None:
            remembered.append(number)

        presence = Presence(
            link,
            asyncio.get_running_loop().time,
            wall,
            self.chance.random,
            lambda: says[-1],
            incarnation,
            store or remember,
            lambda kind, data: events.append((kind, data)),
        )
        definitions = Definitions()
        gossip = Gossip(link, presence, definitions, self.chance.random)
        link.hear(Wrote, lambda _, wrote: [definitions.write(entry) for entry in wrote.entries])
        await link.open()
        presence.begin(gossip.exchange)
        gossip.begin()
        return Branch(bus, link, presence, gossip, definitions, wall, remembered, events, says)

    async def branches(self, count: int) -> list[Branch]:
        made = [await self.branch(f"b{number}") for number in range(count)]
        await until(lambda: all(len(one.presence.others()) == count - 1 for one in made))
        return made


async def until(condition: Callable[[], object], seconds: float = 60.0) -> float:
    """Seconds of virtual time that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() < began + seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return loop.time() - began


def tapped(broker: MemoryBroker, branch: str = "") -> list[str]:
    """The kinds of all messages that are delivered to that branch, or to any."""
    kinds: list[str] = []

    def listen(to: str, _: str, body: bytes) -> None:
        if branch in ("", to):
            kinds.append(body.partition(b'"kind":"')[2].partition(b'"')[0].decode())

    broker.listeners.append(listen)
    return kinds


@simulate
async def test_branches_that_begin_at_once_know_each_other():
    branches = await Neighbourhood().branches(5)
    assert all(one.presence.roster.digests == branches[0].presence.roster.digests for one in branches)
    assert all(one.presence.joined and not one.presence.absence_doubted for one in branches)


@simulate
async def test_a_joiner_learns_all_from_one_peer_and_disturbs_few():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(20)
    branches[3].definitions.write(entry("shop", 1))
    await until(lambda: all("shop" in one.definitions.known for one in branches), 200)
    kinds = tapped(neighbourhood.broker)
    joiner = await neighbourhood.branch("late")
    await until(lambda: joiner.presence.joined)
    assert len(joiner.names()) == 20
    assert "shop" in joiner.definitions.known
    assert "branch.joined" not in joiner.kinds()  # they were there before
    assert kinds.count("Announce") == 0
    await until(lambda: all("late" in one.names() for one in branches))
    assert all(one.events[-1] == ("branch.joined", {"branch": "late", "id": "id-late"}) for one in branches)


@simulate
async def test_the_incarnation_is_above_what_was_stored_and_what_others_know_and_on_disk_before_it_is_told():
    neighbourhood = Neighbourhood()
    (witness,) = await neighbourhood.branches(1)
    first = await neighbourhood.branch("a", incarnation=6)
    await until(lambda: "a" in witness.names())
    assert first.remembered == [7]
    await first.die()
    await until(lambda: "a" not in witness.names())
    restored = await neighbourhood.branch("a", boot="other", incarnation=2)
    await until(lambda: "a" in witness.names())
    assert restored.remembered == [8]

    async def full(_: int) -> None:
        raise StorageFailed("no space left")

    broken = await neighbourhood.branch("broken", store=full)
    await asyncio.sleep(60)
    assert not broken.presence.joined
    assert "broken" not in witness.names()


@simulate
async def test_who_ends_is_gone_at_once_and_operators_are_told():
    branches = await Neighbourhood().branches(4)
    await branches[0].end()
    assert await until(lambda: not any("b0" in one.names() for one in branches[1:])) < 0.1
    assert all(one.kinds()[-1] == "branch.left" for one in branches[1:])


@simulate
async def test_a_crashed_branch_is_closed_within_five_seconds_and_one_without_power_silent_within_eleven():
    branches = await Neighbourhood().branches(8)
    await branches[0].die()
    assert await until(lambda: not any("b0" in one.names() for one in branches[1:])) <= 5
    assert branches[1].presence.roster.get("id-b0").state is BranchState.CLOSED
    await branches[1].die(power=True)
    assert await until(lambda: not any("b1" in one.names() for one in branches[2:])) <= 11
    assert branches[2].missing() == {"b0", "b1"}
    assert branches[2].presence.find("b1").state is BranchState.SILENT
    assert branches[2].kinds()[-2:] == ["branch.left", "branch.silent"]
    # The broker misses its heartbeats, and then it is closed for good.
    await until(lambda: branches[2].presence.find("b1") is None)
    assert branches[2].kinds()[-1] == "branch.left"


@simulate
async def test_the_background_is_at_most_two_deliveries_a_second():
    neighbourhood = Neighbourhood()
    await neighbourhood.branches(8)
    kinds = tapped(neighbourhood.broker, "id-b3")
    await asyncio.sleep(300)
    assert 0 < len(kinds) / 300 <= 2


@simulate
async def test_the_falsely_accused_refutes():
    branches = await Neighbourhood().branches(4)
    accused, accuser = branches[:2]
    accuser.link.broadcast(Gone((Down("id-b0", accused.presence.incarnation, BranchState.SILENT),)))
    await until(lambda: "branch.silent" in branches[2].kinds())
    await until(lambda: all("b0" in one.names() for one in branches[1:]))
    assert accused.remembered == [1, 2]
    assert branches[2].kinds()[-1] == "branch.returned"
    accuser.link.broadcast(Gone((Down("id-b0", 1, BranchState.CLOSED),)))
    await asyncio.sleep(20)
    assert accused.remembered == [1, 2]
    assert "b0" in branches[2].names()


@simulate
async def test_what_an_earlier_life_left_unanswered_is_not_held_against_the_next():
    neighbourhood = Neighbourhood(MemoryBroker(definite=False))
    branches = await neighbourhood.branches(4)
    await branches[0].die()
    await asyncio.sleep(5)
    again = await neighbourhood.branch("b0", boot="other")
    await asyncio.sleep(30)
    assert again.remembered == [2]
    assert all("b0" in one.names() for one in branches[1:])


@simulate
async def test_a_branch_that_did_not_hear_that_it_was_accused_returns_by_the_digests():
    branches = await Neighbourhood().branches(4)
    for other in branches[1:]:
        other.presence.believe([Down("id-b0", 1, BranchState.SILENT)])
    await until(lambda: all("b0" in one.names() for one in branches[1:]), 120)


@simulate
async def test_a_branch_that_hears_nothing_any_more_accuses_nobody():
    branches = await Neighbourhood().branches(5)
    branches[0].bus.take = lambda _, __: None
    await until(lambda: not any("b0" in one.names() for one in branches[1:]))
    await asyncio.sleep(30)
    assert len(branches[0].names()) == 4
    assert all(one.remembered == [1] for one in branches)


@simulate
async def test_a_branch_that_is_cut_off_accuses_nobody_and_concludes_nothing_when_it_returns():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(4)
    neighbourhood.broker.partition("id-b0")
    await until(lambda: not any("b0" in one.names() for one in branches[1:]))
    await until(lambda: not branches[0].link.connected)
    assert branches[0].presence.absence_doubted
    assert len(branches[0].names()) == 3
    neighbourhood.broker.heal()
    await until(lambda: all("b0" in one.names() for one in branches[1:]))
    assert "lost its connection" in branches[0].presence.absence_doubted
    assert branches[1].presence.absence_doubted == ""
    await until(lambda: not branches[0].presence.absence_doubted, SETTLED_AFTER + 1)
    await until(lambda: branches[0].kinds()[-2:] == ["mesh.doubt", "mesh.certain"])


@simulate
async def test_after_a_restart_of_the_broker_nobody_is_accused():
    neighbourhood = Neighbourhood(MemoryBroker(retry=10.0))
    branches = await neighbourhood.branches(10)
    kinds = tapped(neighbourhood.broker)
    neighbourhood.broker.stop()
    await asyncio.sleep(20)
    neighbourhood.broker.start()
    await until(lambda: all(one.link.connected for one in branches))
    await asyncio.sleep(120)
    assert "Gone" not in kinds
    assert all(len(one.presence.others()) == 9 for one in branches)
    assert all(one.remembered == [1] for one in branches)


@simulate
async def test_mass_disappearance_concludes_nothing_until_they_return_or_time_passes_or_an_operator_confirms():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(12)
    rest, lost = branches[:4], branches[4:]
    neighbourhood.broker.partition(*(one.link.me.id for one in lost), at_once=True)
    await until(lambda: all("vanished" in one.presence.absence_doubted for one in rest))
    assert all("mesh.doubt" in one.kinds() for one in rest)
    left = len(rest[0].names())
    assert left > 3
    await asyncio.sleep(60)
    assert len(rest[0].names()) == left  # nobody is accused meanwhile
    rest[0].presence.confirm()
    assert rest[0].presence.absence_doubted == ""
    neighbourhood.broker.heal()
    await until(lambda: all(len(one.presence.others()) == 11 for one in branches))
    await until(lambda: all(one.presence.absence_doubted == "" for one in rest))
    assert "mesh.certain" in rest[1].kinds()

    neighbourhood.broker.partition(*(one.link.me.id for one in lost), at_once=True)
    await until(lambda: all("vanished" in one.presence.absence_doubted for one in rest), 120)
    await until(lambda: rest[0].presence.absence_doubted == "", DOUBTED_FOR + 1)


@pytest.mark.parametrize("confirmed", [True, False])
def test_when_doubt_has_ended_once_all_that_are_lost_are_found(confirmed):
    async def main():
        neighbourhood = Neighbourhood()
        branches = await neighbourhood.branches(40)
        rest, lost = branches[:4], branches[4:]
        neighbourhood.broker.partition(*(one.link.me.id for one in lost), at_once=True)
        await until(lambda: all("vanished" in one.presence.absence_doubted for one in rest))
        assert all(DOUBTED_FOR - 60 < one.presence.doubt_lasts <= DOUBTED_FOR for one in rest)
        if confirmed:
            for one in rest:
                one.presence.confirm()
        await until(lambda: all(len(one.names()) == 3 for one in rest), 120 if confirmed else DOUBTED_FOR + 120)
        assert all(one.presence.absence_doubted == "" for one in rest)

    run(main())


@simulate
async def test_who_ended_without_a_goodbye_is_missed_for_a_while_or_until_it_returns_or_an_operator_confirms():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(6)
    rest = branches[3:]
    await branches[0].end()
    await branches[1].die()
    await until(lambda: not any({"b0", "b1"} & one.names() for one in rest))
    assert all(one.missing() == {"b1"} for one in rest)
    rest[0].presence.confirm()
    assert [one.missing() for one in rest] == [set(), {"b1"}, {"b1"}]
    await neighbourhood.branch("b1", boot="other")
    await until(lambda: all("b1" in one.names() for one in rest))
    assert not any(one.missing() for one in rest)

    await branches[2].die(power=True)
    await until(lambda: all(one.missing() == {"b2"} for one in rest))
    await until(lambda: all(one.presence.find("b2") is None for one in rest))
    assert all(one.missing() == {"b2"} for one in rest)
    joiner = await neighbourhood.branch("late")
    await asyncio.sleep(MISSED_FOR / 2)
    last = await neighbourhood.branch("last")
    await until(lambda: last.presence.joined)
    assert joiner.missing() == last.missing() == {"b2"}
    seconds = await until(lambda: not any(one.missing() for one in (*rest, joiner, last)), MISSED_FOR)
    assert seconds < MISSED_FOR / 2, "it is not missed anew by those that learn of it late"


@simulate
async def test_a_branch_that_ended_long_ago_is_forgotten_by_all_whoever_joins_meanwhile(monkeypatch):
    for module in (roster_module, presence_module):
        monkeypatch.setattr(module, "LINGER", 6 * SWEEP_EVERY)
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(3)
    await branches[0].die()
    await until(lambda: not any("b0" in one.names() for one in branches[1:]))
    await asyncio.sleep(5 * SWEEP_EVERY)
    joiner = await neighbourhood.branch("late")
    await until(lambda: joiner.presence.joined)
    assert joiner.presence.roster.get("id-b0") is not None
    await asyncio.sleep(3 * SWEEP_EVERY)
    assert all(one.presence.roster.get("id-b0") is None for one in (*branches[1:], joiner))
    assert len({one.presence.roster.digests for one in (*branches[1:], joiner)}) == 1


@simulate
async def test_a_branch_whose_earlier_life_is_missed_does_not_wait_with_its_first_word(monkeypatch):
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(4)
    monkeypatch.setattr(presence_module, "joining_wait", lambda *_: 500.0)
    await branches[0].die()
    again = await neighbourhood.branch("b0", boot="other")
    await until(lambda: any("branch.silent" in one.kinds() for one in branches[1:]), 15)
    assert await until(lambda: all("b0" in one.names() for one in branches[1:])) < 1
    assert again.remembered == [2]


@simulate
async def test_what_a_peer_tells_that_cannot_be_taken_in_keeps_nobody_from_joining(monkeypatch):
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(2)
    branches[0].definitions.write(entry("shop", 1))
    await until(lambda: "shop" in branches[1].definitions.known)

    async def contradict(_: Definitions, __: Iterable[Entry]) -> None:
        raise Conflict("it contradicts what the store holds")

    with monkeypatch.context() as patch:
        patch.setattr(Definitions, "merge", contradict)
        joiner = await neighbourhood.branch("late")
        await until(lambda: all("late" in one.names() for one in branches))
    assert joiner.names() == {"b0", "b1"}
    assert joiner.presence.tasks.failures.last == "Conflict: it contradicts what the store holds"
    await until(lambda: "shop" in joiner.definitions.known)


@simulate
async def test_presence_goes_on_after_a_turn_that_fails():
    branches = await Neighbourhood().branches(3)
    says = branches[0].says
    says.clear()
    await until(lambda: branches[0].presence.tasks.failures.count >= 2)
    says.append(replace(SELF, name="b0", version="2"))
    await until(lambda: branches[1].presence.find("b0").announcement.version == "2")


@simulate
async def test_an_old_announcement_tells_no_time():
    branches = await Neighbourhood().branches(3)
    mine, others = branches[0], branches[1:]
    old = {one.link.me.id: one.presence.roster.get(one.link.me.id).announcement for one in others}
    for one in others:
        await until(lambda id=one.link.me.id: mine.presence.find(id).announcement.sequence > old[id].sequence)
        one.link.broadcast(Announce(replace(old[one.link.me.id], at=one.wall() - 3600)))
    await asyncio.sleep(0.1)
    assert abs(mine.presence.offset) < 1


@simulate
async def test_of_a_branch_that_was_heard_of_only_after_its_end_operators_are_not_told_that_it_joined():
    first, second = await Neighbourhood().branches(2)
    said = replace(first.presence.roster.get("id-b1").announcement, id="id-x", name="x")
    first.presence.believe([Down("id-x", said.incarnation, BranchState.CLOSED), said])
    told = len(second.events)
    await first.gossip.exchange(second.link.me, False)
    await until(lambda: second.presence.roster.get("id-x"))
    assert second.events[told:] == []


@simulate
async def test_a_raised_incarnation_is_on_disk_before_it_is_told():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(3)
    written: list[int] = []

    async def slowly(number: int) -> None:
        await asyncio.sleep(3)
        written.append(number)

    slow = await neighbourhood.branch("slow", store=slowly)
    await until(lambda: "slow" in branches[0].names())
    for _ in range(2):
        branches[0].link.broadcast(Gone((Down("id-slow", 1, BranchState.SILENT),)))
        await asyncio.sleep(1)
        slow.presence._announce()
    assert branches[1].presence.roster.get("id-slow").announcement.incarnation == 1
    await until(lambda: "slow" in branches[1].names())
    assert written == [1, 2]


@simulate
async def test_what_was_written_while_cut_off_is_known_everywhere_soon_after_the_return():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(6)
    neighbourhood.broker.partition("id-b0", at_once=True)
    branches[0].definitions.write(entry("shop", 1))
    branches[1].definitions.write(entry("crawl", 1))
    await until(lambda: all("crawl" in one.definitions.known for one in branches[1:]), 120)
    neighbourhood.broker.heal()
    await until(lambda: branches[0].link.connected)
    await until(lambda: all(len(one.definitions.known) == 2 for one in branches), 1)


@simulate
async def test_a_large_difference_comes_in_portions(monkeypatch):
    neighbourhood = Neighbourhood()
    longest = []
    neighbourhood.broker.listeners.append(lambda _, __, body: longest.append(len(body)))
    (first,) = await neighbourhood.branches(1)
    for number in range(9000):
        first.definitions.write(entry(f"app-{number}", 1, None))
    crowded = [app for number in range(99999) if bucket(app := f"fat-{number}") == 7]
    for app in crowded[:100]:
        first.definitions.write(entry(app, 1, {"command": "x" * 4000}))  # one bucket that is too large alone
    joiner = await neighbourhood.branch("late")
    await until(lambda: len(joiner.definitions.known) == 9100, 300)
    assert PORTION / 2 < max(longest) < 2 * PORTION < LONGEST_MESSAGE

    empty = await neighbourhood.branch("empty")
    await until(lambda: empty.presence.joined)
    for number in range(3000):
        empty.definitions.write(entry(f"more-{number}", 1, None))
    await empty.gossip.exchange(first.link.me, False)
    await until(lambda: "more-2999" in first.definitions.known)
    assert max(longest) < 2 * PORTION


@simulate
async def test_a_material_change_is_told_early_and_a_small_one_is_not():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(10)
    await asyncio.sleep(30)
    kinds = tapped(neighbourhood.broker, "id-b1")
    branches[0].says.append(replace(branches[0].says[-1], state=BranchState.DRAINING, reserved=4))
    branches[0].presence.changed()
    seconds = await until(lambda: branches[1].presence.find("b0").state is BranchState.DRAINING)
    assert seconds < 20 / 4 + 0.1
    assert branches[1].presence.find("b0").announcement.reserved == 4
    assert kinds.count("Announce") <= 5


@simulate
async def test_a_second_branch_with_one_id_is_told():
    neighbourhood = Neighbourhood(MemoryBroker(definite=False))
    first = await neighbourhood.branch("a")
    await until(lambda: first.presence.joined)
    await neighbourhood.branch("a", boot="copy")
    await until(lambda: first.presence.twin is not None)
    assert first.presence.twin.boot == "copy"
    assert first.kinds().count("branch.twin") == 1


@simulate
async def test_two_branches_with_one_name_are_told_and_found_by_their_ids_only():
    neighbourhood = Neighbourhood()
    (first,) = await neighbourhood.branches(1)
    await neighbourhood.branch("web", id="one")
    await neighbourhood.branch("web", id="two")
    await until(lambda: first.presence.namesakes)
    assert first.presence.namesakes == {"web": ("one", "two")}
    assert first.kinds().count("branch.namesakes") == 1
    with pytest.raises(Conflict, match="one, two"):
        first.presence.find("web")
    assert first.presence.find("two").id == "two"
    assert first.presence.find("nobody") is None


@simulate
async def test_where_the_bus_is_not_definite_the_dead_are_silent():
    neighbourhood = Neighbourhood(MemoryBroker(definite=False))
    branches = await neighbourhood.branches(3)
    await branches[0].die()
    assert await until(lambda: not any("b0" in one.names() for one in branches[1:])) <= 11
    assert branches[1].missing() == {"b0"}


@simulate
async def test_a_clock_that_is_off_is_seen_by_its_owner():
    neighbourhood = Neighbourhood()
    branches = await neighbourhood.branches(5)
    wrong = await neighbourhood.branch("wrong", offset=600.0)
    await until(lambda: wrong.presence.offset > 590, 120)
    assert all(abs(one.presence.offset) < 1 for one in branches)
    wrong.wall.offset = 0.0
    assert abs(wrong.presence.offset) < 1
    branches[0].wall.offset = -3600.0
    assert branches[0].presence.offset < -3590


@simulate
async def test_nobody_announces_for_another():
    branches = await Neighbourhood().branches(3)
    forged = replace(branches[0].presence.roster.get("id-b1").announcement, sequence=999, reserved=4)
    branches[0].link.broadcast(Announce(forged))
    await until(lambda: branches[2].link.dropped["impostor"])
    assert branches[2].presence.find("b1").announcement.reserved == 0


@simulate
async def test_a_peer_that_always_answers_the_same_is_not_asked_for_ever():
    first, second = await Neighbourhood().branches(2)
    asked = []

    async def nonsense(_: Address, __: Compare) -> Differences:
        asked.append(1)
        return Differences((), (Down("stranger", 3, BranchState.CLOSED),), (), (7, 7, -1, 999), (5,))

    second.link.serve(Compare, nonsense)
    await first.gossip.exchange(second.link.me, False)
    assert len(asked) == 2
    assert "stranger" in first.presence.roster.ended


@simulate
async def test_with_a_percent_of_loss_all_know_each_other_in_the_end():
    neighbourhood = Neighbourhood(MemoryBroker(3))
    neighbourhood.broker.faults.loss = 0.01
    neighbourhood.broker.faults.duplication = 0.05
    neighbourhood.broker.faults.reordering = 0.05
    branches = await neighbourhood.branches(10)
    await branches[0].die()
    await until(lambda: not any("b0" in one.names() for one in branches[1:]), 60)
    await until(lambda: len({one.presence.roster.digests for one in branches[1:]}) == 1, 600)


def entry(app: str, time: int, value: Mapping[str, Any] | None = None) -> Entry:
    return Entry(EntryKind.APP, app, "", Stamp(time, "id-b0"), value)
