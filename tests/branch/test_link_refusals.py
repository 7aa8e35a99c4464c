"""What a link drops and survives: garbage, forgeries, too much, and bugs of those whom it calls."""

import asyncio

import pytest

from branchd.branch.mesh import link as module
from branchd.core.errors import NoAnswer, NotFound, Unavailable
from branchd.core.peers import Address, inbox
from branchd.wire import json
from branchd.wire.mesh import Cancel, Cancelled, HangUp, Knock, Ping, Pong
from branchd.wire.portions import LONGEST_MESSAGE
from branchd.wire.sealing import Path
from tests.branch.neighbours import KEY, WHERE, Neighbours, serve_slowly
from tests.fakes.seal import ClearSeal
from tests.simulation.loop import simulate

CARRIED = {"method": "GET", "target": "/", "headers": {}, "body": "", "scope": "read"}


@simulate
async def test_every_answer_comes_once_however_often_it_is_delivered():
    neighbours = Neighbours()
    one, two = await neighbours.join(2)
    await two.bind(KEY)
    neighbours.broker.faults.duplication = 1.0
    assert len(await one.gather(KEY, WHERE)) == 1
    assert (one.dropped, two.dropped) == ({"replayed": 1}, {"replayed": 1})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b'{"kind":"Ping"}',
        b'{"kind":["Ping"],"body":{},"ask":"1"}',
        b'{"kind":"Unheard","body":{},"ask":"1"}',
        b'{"kind":"Ping","body":{"more":1},"ask":"1"}',
        b'{"kind":"Ping","body":[],"ask":"1"}',
        b'{"kind":"Ping","kind":"Ping","body":{},"ask":"1"}',
        b'{"kind":"Pong","body":{"more":1},"to":"1"}',
        b'{"kind":"Pong","body":{},"to":["1"]}',
        b'{"kind":"Pong","body":{},"ask":"1"}',
        b'{"kind":"Ping","body":{}}',
        b'{"kind":"Gone","body":{"downs":[]}}',
        b"[" * 100_000,
    ],
    ids=range(19),
)
@simulate
async def test_garbage_is_counted_and_dropped(body):
    neighbours = Neighbours()
    one, two = await neighbours.join(2)
    await neighbours.forge(two, body)
    assert two.dropped == {"garbage": 1}
    assert await one.ask(two.me, Ping(), 1) == Pong()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Gone", {"downs": [{"id": "b1", "incarnation": 10**99, "state": "silent"}]}),
        ("Cancel", {"request": "r" * 81}),
        ("Cancel", {"request": ""}),
        ("Cancel", {"request": "r\n"}),
        ("Here", {"branch": "b\r\nX-Header: y", "request": "", "digest": "", "accepted_at": 1.0}),
        ("Carried", {**CARRIED, "principal": "p\u001b[2J"}),
        ("Carried", {**CARRIED, "principal": "p" * 256}),
    ],
)
@simulate
async def test_what_no_branch_says_is_counted_and_dropped(kind, body):
    neighbours = Neighbours()
    (one,) = await neighbours.join(1)
    seen = serve_slowly(one, 0.0)
    await neighbours.forge(one, json.dumps({"kind": kind, "body": body, "ask": "1"}))
    assert (one.dropped, seen) == ({"invalid": 1}, [])


@simulate
async def test_an_answer_to_no_question_is_dropped():
    neighbours = Neighbours()
    (one,) = await neighbours.join(1)
    await neighbours.forge(one, json.dumps({"kind": "Pong", "body": {}, "to": "1"}))
    assert one.dropped == {"late": 1}


@simulate
async def test_what_is_too_long_is_not_even_opened():
    neighbours = Neighbours()
    (one,) = await neighbours.join(1)
    await neighbours.forge(one, bytes(LONGEST_MESSAGE))
    assert one.dropped == {"oversized": 1}


@simulate
async def test_what_does_not_open_is_counted_by_its_reason():
    neighbours = Neighbours()
    (one,) = await neighbours.join(1)
    bus = neighbours.broker.bus("2" * 32)
    await bus.open(lambda _, __: None, lambda _: None)
    await asyncio.sleep(1)
    seal = ClearSeal(Address("2" * 32, "boot"))
    message = seal.seal(Path.SEND, KEY, b"")
    await one.bind(KEY)
    await bus.send(inbox(one.me.id), message)
    await bus.send(KEY, message)
    await bus.send(KEY, message)
    await asyncio.sleep(1)
    assert one.dropped == {"wrong target": 1, "garbage": 1, "replayed": 1}


@pytest.mark.parametrize("failure", [NotFound("no"), Unavailable("not now"), RuntimeError("a bug"), KeyError("kind")])
@simulate
async def test_a_question_that_fails_is_not_answered_and_harms_no_other(failure):
    one, two = await Neighbours().join(2)

    async def fail(_: Address, __: Cancel) -> Cancelled:
        raise failure

    two.serve(Cancel, fail)
    with pytest.raises(NoAnswer):
        await one.ask(two.me, Cancel("r"), 1)
    assert await one.ask(two.me, Ping(), 1) == Pong()


@simulate
async def test_more_questions_than_can_be_worked_on_are_dropped(monkeypatch):
    monkeypatch.setattr(module, "MOST_AT_WORK", 10)
    one, two = await Neighbours().join(2)
    seen = serve_slowly(two, 1)
    asked = await asyncio.gather(*(one.ask(two.me, Cancel(str(n)), 3) for n in range(15)), return_exceptions=True)
    assert asked.count(Cancelled()) == 10
    assert sum(isinstance(answer, NoAnswer) for answer in asked) == 5
    assert two.dropped == {"too many": 5}
    assert seen == ["begun"] * 10 + ["done"] * 10
    assert await one.ask(two.me, Cancel("again"), 3) == Cancelled()


@simulate
async def test_one_bad_hearer_harms_no_other_message():
    neighbours = Neighbours()
    one, two = await neighbours.join(2)
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail(_: Address, __: Knock) -> None:
        raise RuntimeError("a bug")

    two.hear(Knock, fail)
    await one.tell(two.me, Knock())
    await one.tell(two.me, HangUp("after"))
    assert await one.ask(two.me, Ping(), 1) == Pong()
    assert neighbours.heard == [(two.me.id, one.me.id, "after")]
    assert failures == []
    assert two.dropped == {}


@simulate
async def test_nobody_else_answers_a_question_even_who_knows_its_number():
    neighbours = Neighbours()
    one, two, three = await neighbours.join(3)

    async def silence(_, __):
        return None

    two.serve(Cancel, silence)
    asking = asyncio.create_task(one.ask(two.me, Cancel("r"), 2))
    await asyncio.sleep(0.5)
    [number] = one._waiting
    body = json.dumps({"kind": "Cancelled", "body": {}, "to": number})
    await three._post(one.me, body)
    with pytest.raises(NoAnswer):
        await asking
    assert one.dropped["impostor"] == 1
    asked = asyncio.create_task(one.ask(two.me, Cancel("r"), 1))
    await asyncio.sleep(0.5)
    assert one._waiting.keys() != {number}
    with pytest.raises(NoAnswer):
        await asked
