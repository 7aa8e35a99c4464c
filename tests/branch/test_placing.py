"""The asking side of placement over a bus in memory, with a target of a few lines at each branch."""

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from branchd.branch.mesh import placing
from branchd.branch.mesh.link import Link
from branchd.branch.mesh.neighbours import Made
from branchd.branch.mesh.placing import AT_ONCE, BLOCK, EXPLAINED, Placing
from branchd.core.admission import Probe, Reason, Refusal, Room, Standing, admit, judge_room
from branchd.core.capacity import Capacity
from branchd.core.errors import BranchdError, Conflict, NoCapacity, OutcomeUnknown, Unavailable
from branchd.core.peers import Address, Announcement, BranchState
from branchd.core.placement import PATIENCE, PROBE_TIMEOUT
from branchd.core.roster import Member
from branchd.wire.mesh import Accepted, Cancel, Cancelled, Offer
from tests.fakes.bus import MemoryBroker
from tests.fakes.seal import ClearSeal
from tests.simulation.loop import WallClock, simulate
from tests.waiting import until

PROBE = Probe("shop", 1)


@dataclass
class Target:
    """One branch's hosting: remembers what it accepted and cancelled, and can be told to misbehave."""

    name: str
    slots: int
    standing: dict[str, Any] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)  #: name by request
    cancelled: set[str] = field(default_factory=set)
    refusal: Reason | None = None
    slow: float = 0.0  #: seconds until it works on anything
    mute: set[type] = field(default_factory=set)  #: kinds of questions that it does not answer, though it does them
    deaf: set[type] = field(default_factory=set)  #: kinds that it never hears
    unavailable: int = 0  #: so many offers it cannot tell the outcome of
    elsewhere: Address | None = None  #: who has what was made by an earlier try
    strange: bool = False  #: answers a probe with something else
    asked: Counter[type] = field(default_factory=Counter)
    most_at_once: int = 0
    _at_work: int = 0

    def room(self, probe: Probe) -> Room:
        return judge_room(probe, self._standing())

    async def offer(self, offer: Offer) -> Accepted | Refusal:
        self.asked[Offer] += 1
        self._at_work += 1
        self.most_at_once = max(self.most_at_once, self._at_work)
        await asyncio.sleep(0.005)  # a commit
        self._at_work -= 1
        if offer.request in self.cancelled:
            return Refusal(Reason.CANCELLED, "it was cancelled")
        if offer.request in self.made:
            return Accepted(self._resource(offer.request), made=False, owner=self.elsewhere)
        if self.unavailable:
            self.unavailable -= 1
            raise Unavailable("the disk is slow")
        if self.refusal is not None:
            return Refusal(self.refusal, "as it was told to")
        refused = admit(PROBE, self._standing())
        if refused is None:
            self.made[offer.request] = offer.name
            return Accepted(self._resource(offer.request), made=True)
        return refused

    def _resource(self, request: str) -> dict[str, str]:
        return {"name": self.made[request], "branch": self.name}

    async def cancel(self, cancel: Cancel) -> Cancelled:
        self.cancelled.add(cancel.request)
        self.made.pop(cancel.request, None)
        return Cancelled()

    async def probed(self, probe: Probe) -> Room | Cancelled:
        self.asked[Probe] += 1
        return Cancelled() if self.strange else self.room(probe)

    def _standing(self) -> Standing:
        return replace(Standing(Capacity(self.slots, len(self.made)), 0, {}), **self.standing)


class Neighbourhood:
    """Branches b0, b1, ...; creates come to b0."""

    def __init__(self, *slots: int) -> None:
        self.broker = MemoryBroker()
        self.targets = [Target(f"host{number}", size) for number, size in enumerate(slots)]
        self.links = []
        for number, target in enumerate(self.targets):
            me = Address(f"b{number}", "boot")
            link = Link(self.broker.bus(me.id), ClearSeal(me), me)
            self._serve(link, Probe, target, target.probed)
            self._serve(link, Offer, target, target.offer)
            self._serve(link, Cancel, target, target.cancel)
            self.links.append(link)
        announced = [
            Announcement(f"b{number}", "boot", f"host{number}", 1, 1, BranchState.UP, 0.0, size, 0, "1")
            for number, size in enumerate(slots)
        ]
        self.members = tuple(Member(announcement, 0.0, 0.0) for announcement in announced[1:])
        self.wall = WallClock()
        self.placing = Placing(
            self.links[0], self.targets[0], announced[0], lambda: self.members, Random(1).random, self.wall
        )

    async def __aenter__(self) -> "Neighbourhood":
        for link in self.links:
            await link.open()
        await until(lambda: all(link.connected for link in self.links))
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self.links:
            await link.close()

    def held(self) -> list[int]:
        return [len(target.made) for target in self.targets]

    @staticmethod
    def _serve(link: Link, kind: type, target: Target, answer: Any) -> None:
        async def served(_: Address, question: Any) -> Any:
            await asyncio.sleep(target.slow)
            if kind in target.deaf:
                return None
            reply = await answer(question)
            return None if kind in target.mute else reply

        link.serve(kind, served)


def offer(name: str = "web", request: str | None = None) -> Offer:
    return Offer(request or f"request-{name}", "digest", "shop", name, True, {"kind": "command"}, "uid:0")


def offers(count: int) -> list[Offer]:
    return [offer(f"web-{number}") for number in range(count)]


def names(answers: Collection[Made | BranchdError]) -> list[str]:
    assert all(isinstance(answer, Made) for answer in answers)
    return [answer.instance["name"] for answer in answers if isinstance(answer, Made)]


@simulate
async def test_an_instance_lands_on_the_branch_with_the_most_spare_capacity() -> None:
    async with Neighbourhood(2, 8, 4) as mesh:
        made = await mesh.placing.place(offer(), PROBE)
        assert made == Made({"name": "web", "branch": "host1"}, True, Address("b1", "boot"))
        assert mesh.held() == [0, 1, 0]


@simulate
async def test_it_may_be_this_branch_itself_and_then_no_message_is_sent_for_it() -> None:
    async with Neighbourhood(8, 2) as mesh:
        made = await mesh.placing.place(offer(), PROBE)
        assert made.owner == Address("b0", "boot")
        assert mesh.targets[1].asked == {Probe: 1}
        assert mesh.broker.delivered["b0"] == 1  # the answer to the probe


@simulate
async def test_alone_it_takes_everything_itself() -> None:
    async with Neighbourhood(1) as mesh:
        await mesh.placing.place(offer("one"), PROBE)
        with pytest.raises(NoCapacity, match="host0: no-room: 1 of 1 slots are reserved"):
            await mesh.placing.place(offer("two"), PROBE)


@simulate
async def test_creates_at_one_time_do_not_herd_and_fill_nobody_above_its_slots() -> None:
    async with Neighbourhood(10, 20, 30, 40) as mesh:
        made = await asyncio.gather(*(mesh.placing.place(one, PROBE) for one in offers(50)))
        assert len(names(made)) == 50
        assert mesh.held() == [5, 10, 15, 20]
        assert sum(target.asked[Offer] for target in mesh.targets) == 50


@simulate
async def test_with_many_branches_three_are_asked_for_each_create() -> None:
    async with Neighbourhood(*[4] * 40) as mesh:
        for one in offers(100):
            await mesh.placing.place(one, PROBE)
        probes = sum(target.asked[Probe] for target in mesh.targets)
        assert 200 < probes <= 300  # this branch asks itself without a message
        assert max(mesh.held()) <= 4


@simulate
async def test_who_does_not_answer_in_time_is_not_waited_for() -> None:
    async with Neighbourhood(2, 4, 100) as mesh:
        mesh.targets[2].slow = 0.5
        begun = asyncio.get_running_loop().time()
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b1"
        assert asyncio.get_running_loop().time() - begun < 2 * PATIENCE


@simulate
async def test_but_it_is_where_nobody_else_has_room() -> None:
    async with Neighbourhood(0, 0, 100) as mesh:
        mesh.targets[2].slow = 0.5
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b2"


@simulate
async def test_where_nobody_takes_it_the_reason_of_each_is_told() -> None:
    async with Neighbourhood(0, 4, 4, 4) as mesh:
        mesh.targets[1].standing = {"draining": True}
        mesh.targets[2].refusal = Reason.POLICY
        mesh.targets[3].mute = {Probe}
        begun = asyncio.get_running_loop().time()
        with pytest.raises(NoCapacity) as error:
            await mesh.placing.place(offer(), PROBE)
        for told in ("host0: no-room", "host1: draining", "host2: policy", "host3: branch b3 does not answer"):
            assert told in error.value.detail
        assert asyncio.get_running_loop().time() - begun < PROBE_TIMEOUT + 0.1


@simulate
async def test_a_branch_that_went_away_is_passed_over() -> None:
    async with Neighbourhood(2, 4, 8) as mesh:
        await mesh.links[2].close()
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b1"


@simulate
async def test_a_taken_name_is_a_conflict_and_no_other_branch_is_tried() -> None:
    async with Neighbourhood(2, 8, 4) as mesh:
        mesh.targets[1].refusal = Reason.NAME_TAKEN
        with pytest.raises(Conflict):
            await mesh.placing.place(offer(), PROBE)
        assert mesh.held() == [0, 0, 0]


@simulate
async def test_an_unsure_branch_ends_it_with_try_again() -> None:
    async with Neighbourhood(2, 8, 4) as mesh:
        mesh.targets[1].refusal = Reason.UNSURE
        with pytest.raises(Unavailable):
            await mesh.placing.place(offer(), PROBE)
        assert mesh.held() == [0, 0, 0]
        mesh.targets[1].refusal = None
        assert (await mesh.placing.place(offer(), PROBE)).made


@simulate
async def test_an_offer_without_an_answer_is_repeated_and_makes_one_instance() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.targets[1].mute = {Offer}
        create = asyncio.create_task(mesh.placing.place(offer(), PROBE))
        await asyncio.sleep(placing.OFFER_TIMEOUT / 2)
        mesh.targets[1].mute = set()
        assert await create == Made({"name": "web", "branch": "host1"}, False, Address("b1", "boot"))
        assert mesh.held() == [0, 1]


@simulate
async def test_then_it_is_cancelled_and_placed_elsewhere() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.targets[1].mute = {Offer}
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b0"
        assert mesh.held() == [1, 0]
        assert mesh.targets[1].cancelled == {"request-web"}


@simulate
async def test_where_even_that_is_not_acknowledged_the_outcome_is_unknown_and_a_retry_finds_it() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.targets[1].mute, mesh.targets[1].deaf = {Offer}, {Cancel}
        with pytest.raises(OutcomeUnknown):
            await mesh.placing.place(offer(), PROBE)
        assert mesh.held() == [0, 1]
        mesh.targets[1].mute = set()
        mesh.targets[1].standing = {"draining": True}  # nobody would choose it now
        assert await mesh.placing.place(offer(), PROBE) == Made(
            {"name": "web", "branch": "host1"}, False, Address("b1", "boot")
        )
        assert mesh.held() == [0, 1]


@simulate
async def test_a_retry_of_what_was_cancelled_in_the_end_is_placed_elsewhere() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.targets[1].mute = {Offer, Cancel}
        with pytest.raises(OutcomeUnknown):
            await mesh.placing.place(offer(), PROBE)
        mesh.targets[1].mute = set()
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b0"
        assert mesh.held() == [1, 0]


@simulate
async def test_a_retry_of_what_was_accepted_asks_nobody_but_its_owner() -> None:
    async with Neighbourhood(2, 8, 4) as mesh:
        await mesh.placing.place(offer(), PROBE)
        mesh.targets[2].slots = 100
        again = await mesh.placing.place(offer(), PROBE)
        assert (again.made, again.owner.id) == (False, "b1")
        assert mesh.targets[2].asked == {Probe: 1}


@simulate
async def test_a_retry_that_is_not_answered_takes_nothing_back_that_was_accepted_before() -> None:
    async with Neighbourhood(2, 8) as mesh:
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b1"
        mesh.targets[1].mute = {Offer}
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                await mesh.placing.place(offer(), PROBE)
        assert mesh.held() == [0, 1]
        assert not mesh.targets[1].cancelled
        mesh.targets[1].mute = set()
        assert not (await mesh.placing.place(offer(), PROBE)).made


@simulate
async def test_where_the_target_finds_that_an_earlier_try_made_it_elsewhere_that_branch_is_the_owner() -> None:
    async with Neighbourhood(2, 16, 4) as mesh:
        mesh.targets[1].made["request-web"] = "web"
        mesh.targets[1].elsewhere = Address("b2", "boot")
        made = await mesh.placing.place(offer(), PROBE)
        assert (made.made, made.owner.id) == (False, "b2")


@simulate
async def test_where_this_branch_itself_cannot_tell_it_is_asked_again_and_then_cancelled() -> None:
    async with Neighbourhood(8, 2) as mesh:
        mesh.targets[0].unavailable = 1
        assert (await mesh.placing.place(offer("one"), PROBE)).owner.id == "b0"
        mesh.targets[0].unavailable = 2
        assert (await mesh.placing.place(offer("two"), PROBE)).owner.id == "b1"
        assert mesh.targets[0].cancelled == {"request-two"}


@simulate
async def test_after_an_hour_the_first_target_is_forgotten() -> None:
    async with Neighbourhood(2, 8, 4) as mesh:
        await mesh.placing.place(offer(), PROBE)
        mesh.wall.offset += placing.REMEMBERED_FOR
        mesh.targets[2].slots = 100
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b2"  # where taking the name tells, in earnest


@simulate
async def test_a_refused_request_may_go_elsewhere_when_it_comes_again() -> None:
    async with Neighbourhood(0, 8) as mesh:
        mesh.targets[1].refusal = Reason.STORAGE
        with pytest.raises(NoCapacity):
            await mesh.placing.place(offer(), PROBE)
        mesh.targets[0].slots = 4
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b0"


@simulate
async def test_a_branch_that_refused_and_went_away_stands_in_nobodys_way() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.targets[1].refusal = Reason.UNSURE
        with pytest.raises(Unavailable):
            await mesh.placing.place(offer(), PROBE)
        await mesh.links[1].close()
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b0"


@simulate
async def test_without_a_connection_this_branch_takes_what_it_can() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.broker.partition("b0", at_once=True)
        assert not mesh.links[0].connected
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b0"


@simulate
async def test_an_answer_of_another_kind_is_none() -> None:
    async with Neighbourhood(2, 8) as mesh:
        mesh.targets[1].strange = True
        assert (await mesh.placing.place(offer(), PROBE)).owner.id == "b0"
        explained = mesh.placing.explain("shop", "web")
        assert explained is not None
        assert [asked.answer for asked in explained.asked if asked.branch == "host1"] == ["answers Cancelled"]


# Many in one request


@simulate
async def test_many_are_spread_by_capacity_with_one_probe_and_one_offer_each() -> None:
    async with Neighbourhood(10, 20, 30, 40) as mesh:
        answers = await mesh.placing.place_all(offers(50), PROBE)
        assert names(answers) == [f"web-{number}" for number in range(50)]
        assert mesh.held() == [5, 10, 15, 20]
        assert mesh.targets[3].asked == {Probe: 1, Offer: 20}


@simulate
async def test_many_among_many_branches_are_spread_too() -> None:
    async with Neighbourhood(*[10] * 30) as mesh:
        answers = await mesh.placing.place_all(offers(BLOCK + 50), PROBE)
        assert len(names(answers)) == BLOCK + 50
        assert max(mesh.held()) - min(mesh.held()) <= 1


@simulate
async def test_of_many_each_has_its_own_answer() -> None:
    async with Neighbourhood(2, 3) as mesh:
        answers = await mesh.placing.place_all(offers(8), PROBE)
        assert mesh.held() == [2, 3]
        assert [type(answer) for answer in answers].count(Made) == 5
        assert [type(answer) for answer in answers].count(NoCapacity) == 3


@simulate
async def test_of_many_only_so_many_are_under_way_at_one_time() -> None:
    async with Neighbourhood(0, 500) as mesh:
        assert len(names(await mesh.placing.place_all(offers(BLOCK), PROBE))) == BLOCK
        assert 1 < mesh.targets[1].most_at_once <= AT_ONCE


@simulate
async def test_many_asked_for_again_make_nothing_new() -> None:
    async with Neighbourhood(10, 20, 30) as mesh:
        await mesh.placing.place_all(offers(10), PROBE)
        held = mesh.held()
        again = await mesh.placing.place_all(offers(12), PROBE)
        assert [answer.made for answer in again if isinstance(answer, Made)] == [False] * 10 + [True] * 2
        assert sum(mesh.held()) == sum(held) + 2


# What follows


@simulate
async def test_one_that_nobody_waits_for_any_more_leaves_no_work_behind() -> None:
    async with Neighbourhood(2, 8, 8) as mesh:
        mesh.targets[1].slow = mesh.targets[2].slow = 0.5
        create = asyncio.create_task(mesh.placing.place(offer(), PROBE))
        await until(lambda: mesh.broker.delivered["b2"])
        before = asyncio.all_tasks()
        create.cancel()
        await asyncio.wait([create])
        await asyncio.sleep(0)
        assert len(before - asyncio.all_tasks()) == 3  # the create and its two probes


@simulate
async def test_nor_is_its_offer_counted_for_ever() -> None:
    async with Neighbourhood(2, 16, 9) as mesh:
        mesh.targets[1].deaf = {Offer}
        create = asyncio.create_task(mesh.placing.place(offer("one"), PROBE))
        await until(lambda: mesh.broker.delivered["b1"] == 2)
        create.cancel()
        await asyncio.wait([create])
        mesh.targets[1].deaf = set()
        assert (await mesh.placing.place(offer("two"), PROBE)).owner.id == "b1"


@simulate
async def test_what_was_asked_and_answered_can_be_explained() -> None:
    async with Neighbourhood(0, 4, 8) as mesh:
        mesh.targets[2].refusal = Reason.GUARD
        await mesh.placing.place(offer(), PROBE)
        explained = mesh.placing.explain("shop", "web")
        assert explained is not None
        assert (explained.app, explained.name, explained.by, explained.outcome) == ("shop", "web", "host0", "accepted")
        assert {(asked.branch, asked.slots, asked.reserved, asked.answer) for asked in explained.asked} == {
            ("host0", 0, 0, "no-room: 0 of 0 slots are reserved, 1 more are asked for"),
            ("host1", 4, 0, ""),
            ("host2", 8, 0, ""),
        }
        assert [(made.branch, made.result) for made in explained.offers] == [
            ("host2", "guard: as it was told to"),
            ("host1", "accepted"),
        ]
        assert mesh.placing.explain("shop", "other") is None


@simulate
async def test_what_failed_can_be_explained_too() -> None:
    async with Neighbourhood(0, 0) as mesh:
        with pytest.raises(NoCapacity) as error:
            await mesh.placing.place(offer(), PROBE)
        explained = mesh.placing.explain("shop", "web")
        assert explained is not None
        assert explained.outcome == error.value.detail


@simulate
async def test_only_the_last_explanations_are_kept() -> None:
    async with Neighbourhood(2 * EXPLAINED) as mesh:
        for one in offers(EXPLAINED + 1):
            await mesh.placing.place(one, PROBE)
        assert mesh.placing.explain("shop", "web-0") is None
        assert mesh.placing.explain("shop", "web-1") is not None
        assert mesh.placing.explain("shop", f"web-{EXPLAINED}") is not None


@simulate
async def test_a_branch_that_joins_is_asked_from_then_on() -> None:
    async with Neighbourhood(2, 4, 8) as mesh:
        whole, mesh.members = mesh.members, mesh.members[:1]
        assert (await mesh.placing.place(offer("one"), PROBE)).owner.id == "b1"
        mesh.members = whole
        assert (await mesh.placing.place(offer("two"), PROBE)).owner.id == "b2"
