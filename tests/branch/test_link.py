"""Statements and questions between branches over a broker in memory, in virtual time."""

import asyncio

import pytest

from branchd.branch.mesh.link import GATHER
from branchd.core.errors import NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.wire.mesh import Cancel, HangUp, Here, Knock, Ping, Pong
from tests.branch.neighbours import KEY, WHERE, Neighbours, serve_slowly
from tests.fakes.bus import MemoryBroker
from tests.simulation.loop import simulate


@simulate
async def test_a_question_is_answered_by_the_branch_it_was_put_to():
    one, two, three = await Neighbours().join(3)
    for other in (two, three, one):
        assert (await one.ask(other.me, WHERE, 1)).branch == other.me.id


@simulate
async def test_answers_find_their_questions():
    one, *others = await Neighbours().join(10)
    answers = await asyncio.gather(*(one.ask(other.me, WHERE, 1) for other in others * 5))
    assert [here.branch for here in answers] == [other.me.id for other in others] * 5


@simulate
async def test_statements_reach_one_or_all():
    neighbours = Neighbours()
    one, two, three = await neighbours.join(3)
    await one.tell(two.me, HangUp("to one"))
    one.broadcast(HangUp("to all"))
    await asyncio.sleep(0.1)
    ids = [link.me.id for link in (one, two, three)]
    assert sorted(neighbours.heard) == sorted(
        [(two.me.id, one.me.id, "to one"), *((branch, one.me.id, "to all") for branch in ids)]
    )


@simulate
async def test_nobody_there_is_told_at_once():
    one, two = await Neighbours().join(2)
    await two.close()
    begun = asyncio.get_running_loop().time()
    with pytest.raises(NoRoute, match="not connected"):
        await one.ask(two.me, Ping(), 5)
    with pytest.raises(NoRoute, match="not connected"):
        await one.tell(two.me, HangUp("x"))
    with pytest.raises(NoRoute, match="nobody holds"):
        await one.ask_key(KEY, WHERE, 5)
    assert not await one.routed(KEY, Knock())
    assert await one.gather(KEY, WHERE) == []
    assert asyncio.get_running_loop().time() - begun < 0.1


@simulate
async def test_silence_ends_at_the_deadline_and_a_late_answer_is_dropped():
    one, two = await Neighbours().join(2)
    seen = serve_slowly(two, 3)
    with pytest.raises(NoAnswer, match="does not answer"):
        await one.ask(two.me, Cancel("r"), 2)
    await asyncio.sleep(5)
    assert seen == ["begun", "done"]
    assert one.dropped == {"late": 1}
    assert await one.ask(two.me, Ping(), 1) == Pong()


@simulate
async def test_another_life_of_the_branch_does_not_answer():
    one, two = await Neighbours().join(2)
    with pytest.raises(NoAnswer):
        await one.ask(Address(two.me.id, "an earlier boot"), Ping(), 1)
    assert two.dropped == {"wrong target": 1}


@simulate
async def test_without_a_connection_it_is_unavailable():
    neighbours = Neighbours()
    one, two = await neighbours.join(2)
    neighbours.broker.stop()
    assert not one.connected
    for asking in (
        one.ask(two.me, Ping(), 1),
        one.tell(two.me, HangUp("x")),
        one.ask_key(KEY, WHERE, 1),
        one.gather(KEY, WHERE),
        one.routed(KEY, Knock()),
        one.bind(KEY),
        one.claim("web:one"),
    ):
        with pytest.raises(Unavailable):
            await asking
    one.broadcast(HangUp("lost"))


@simulate
async def test_whoever_listens_is_told_of_the_connection():
    neighbours = Neighbours()
    link = neighbours.link("1" * 32)
    first, second = [], []
    link.on_state(first.append)
    link.on_state(second.append)
    await link.open()
    await asyncio.sleep(1)
    neighbours.broker.stop()
    neighbours.broker.start()
    await asyncio.sleep(3)
    assert [state.connected for state in first] == [True, False, True]
    assert second == first
    assert link.state == first[-1]


@simulate
async def test_a_key_leads_to_who_holds_it():
    one, two, three = await Neighbours().join(3)
    await two.bind(KEY)
    assert await one.routed(KEY, Knock())
    assert await one.ask_key(KEY, WHERE, 1) == (two.me, Here(two.me.id, "", "", 1.0))
    await three.bind(KEY)
    await two.unbind(KEY)
    assert (await one.ask_key(KEY, WHERE, 1))[0] == three.me


@simulate
async def test_a_key_is_asked_over_a_claim():
    one, two = await Neighbours().join(2)
    claim = await one.claim("web:one")
    with pytest.raises(NoRoute):
        await one.ask_key(KEY, WHERE, 1, claim)
    await two.bind(KEY)
    assert (await one.ask_key(KEY, WHERE, 1, claim))[0] == two.me
    await claim.release()


@simulate
async def test_a_holder_of_a_key_that_keeps_silent_is_no_missing_one():
    neighbours = Neighbours()
    one, two = await neighbours.join(2)
    await two.bind(KEY)
    neighbours.broker.partition(two.me.id)
    with pytest.raises(NoAnswer):
        await one.ask_key(KEY, WHERE, 1)


@simulate
async def test_where_returns_are_unknown_silence_is_nobody():
    one, two = await Neighbours(MemoryBroker(definite=False)).join(2)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(NoRoute):
        await one.ask_key(KEY, WHERE, 5)
    assert asyncio.get_running_loop().time() - begun < 2 * GATHER
    await two.bind(KEY)
    assert (await one.ask_key(KEY, WHERE, 5))[0] == two.me


@simulate
async def test_answers_of_all_who_hold_a_key_are_gathered_for_a_while():
    neighbours = Neighbours()
    one, two, three, four = await neighbours.join(4)
    for link in (two, three, four):
        await link.bind(KEY)
    neighbours.broker.partition(four.me.id)
    answers = await one.gather(KEY, WHERE)
    assert sorted(sender.id for sender, _ in answers) == [two.me.id, three.me.id]
    neighbours.broker.heal()
    await asyncio.sleep(1)
    assert one.dropped == {"late": 1}


@simulate
async def test_a_question_may_be_left_unanswered():
    one, two = await Neighbours().join(2)

    async def silent(_: Address, __: Cancel) -> None:
        return None

    two.serve(Cancel, silent)
    with pytest.raises(NoAnswer):
        await one.ask(two.me, Cancel("r"), 1)


@simulate
async def test_closing_stops_what_is_being_answered():
    one, two = await Neighbours().join(2)
    seen = serve_slowly(two, 10)
    asking = asyncio.create_task(one.ask(two.me, Cancel("r"), 2))
    await asyncio.sleep(0.1)
    await two.close()
    assert seen == ["begun", "stopped"]
    with pytest.raises(NoAnswer):
        await asking


@simulate
async def test_what_is_asked_while_it_closes_is_not_worked_on_afterwards():
    one, two = await Neighbours().join(2)
    seen = serve_slowly(two, 10)
    asking = asyncio.create_task(one.ask(two.me, Cancel("r"), 20))
    await asyncio.sleep(0.0015)
    await two.close()
    with pytest.raises((NoAnswer, NoRoute)):
        await asking
    assert "done" not in seen


@simulate
async def test_whoever_gives_up_waiting_leaves_nothing_behind():
    one, two = await Neighbours().join(2)
    serve_slowly(two, 1)
    asking = asyncio.create_task(one.ask(two.me, Cancel("r"), 5))
    await asyncio.sleep(0.5)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(1)
    assert one.dropped == {"late": 1}
