"""Replacements whose elders hand the name over, stay, are lost or hang: the name runs once in the end."""

import asyncio

from branchd.branch.mesh.names import QUIET
from branchd.branch.mesh.replacing import LOOK_EVERY, PATIENCE
from branchd.core.values import Key
from branchd.wire.mesh import Accepted, Handover, Here
from tests.branch.hosts import Host, Hosts, offer
from tests.simulation.loop import simulate
from tests.waiting import until

A = Key("web", "a")

#: seconds after which a replacement has looked often enough
SETTLED = PATIENCE + 3 * LOOK_EVERY


async def moving(hosts: Hosts) -> tuple[Host, Host, Host]:
    """The elder, its replacement, and one who looks on."""
    elder, new, other = await hosts.join(3)
    await elder.hosting.offer(offer("a"))
    elder.names.moves(A)
    assert isinstance(await elder.ask(new, offer("a", "move", moving=True)), Accepted)
    assert (elder.running, new.running, hosts.broker.held("i.web:a")) == (["a"], ["a"], [elder.id])
    return elder, new, other


@simulate
async def test_it_gets_the_name_when_it_is_handed_over() -> None:
    elder, new, _ = await moving(Hosts())
    assert isinstance(await elder.link.ask(new.me, Handover("web", "a"), 1), Here)
    assert sorted(elder.broker.held("i.web:a")) == [elder.id, new.id]
    await elder.delete("a")
    await elder.gone("a")
    await asyncio.sleep(1)
    assert (elder.broker.held("i.web:a"), elder.running, new.running) == ([new.id], [], ["a"])


@simulate
async def test_it_goes_where_its_elder_stays() -> None:
    elder, new, _ = await moving(Hosts())
    elder.names.stays(A)
    await asyncio.sleep(SETTLED)
    assert (elder.running, new.running, elder.broker.held("i.web:a")) == (["a"], [], [elder.id])


@simulate
async def test_it_waits_as_long_as_its_elder_moves() -> None:
    elder, new, _ = await moving(Hosts())
    await asyncio.sleep(700)
    assert (elder.running, new.running, elder.broker.held("i.web:a")) == (["a"], ["a"], [elder.id])


@simulate
async def test_it_stands_for_the_name_of_an_elder_that_is_lost() -> None:
    elder, new, other = await moving(Hosts())
    elder.processes.running.clear()  # the power of its machine is lost
    await elder.crash()
    await asyncio.sleep(SETTLED)
    assert (new.running, other.broker.held("i.web:a")) == (["a"], [new.id])
    holder, here = await other.names.locate("web", "a")
    assert (holder, here.moving) == (new.me, False)
    new.processes.crash()
    await new.crash()
    new = await new.again()
    assert not new.fleet.get("web", "a").waiting


@simulate
async def test_it_does_neither_while_absence_says_nothing() -> None:
    elder, new, other = await moving(Hosts())
    new.doubt = "many vanished at once"
    await elder.crash()
    await asyncio.sleep(10 * SETTLED)
    assert (new.running, other.broker.held("i.web:a"), new.fleet.get("web", "a").waiting) == (["a"], [], True)
    new.doubt = ""
    await until(lambda: other.broker.held("i.web:a") == [new.id], seconds=60)


@simulate
async def test_it_does_neither_while_its_elder_hangs() -> None:
    elder, new, other = await moving(Hosts())
    elder.link._received = lambda *_: None
    elder.bus._on_message = lambda *_: None
    await asyncio.sleep(10 * SETTLED)
    assert (new.running, other.broker.held("i.web:a"), new.fleet.get("web", "a").waiting) == (["a"], [elder.id], True)


@simulate
async def test_an_elder_that_returns_when_its_replacement_has_the_name_stays_and_the_other_goes() -> None:
    elder, new, other = await moving(Hosts())
    await elder.crash()
    await until(lambda: other.broker.held("i.web:a") == [new.id], seconds=SETTLED)
    elder = await elder.again()  # and its drain was ended
    await asyncio.sleep(QUIET)
    assert (elder.running, new.running, other.broker.held("i.web:a")) == (["a"], [], [elder.id])


@simulate
async def test_a_name_that_a_third_one_took_meanwhile_is_left_to_him() -> None:
    elder, new, other = await moving(Hosts())
    await elder.crash()
    assert isinstance(await new.ask(other, offer("a", "third")), Accepted)
    await asyncio.sleep(SETTLED)
    assert (new.running, other.running, other.broker.held("i.web:a")) == ([], ["a"], [other.id])
