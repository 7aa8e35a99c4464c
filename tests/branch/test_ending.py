"""Which end of a daemon counts when several are asked for."""

import asyncio

import pytest

from branchd.branch.ending import Ending, Endings
from branchd.core.errors import Conflict


async def test_the_first_end_stays() -> None:
    endings = Endings()
    endings.ask(Ending.LEAVE)
    endings.ask(Ending.STOP)
    endings.ask(Ending.RELOAD)
    assert (await endings.next(), endings.chosen) == (Ending.LEAVE, Ending.LEAVE)


async def test_a_reload_counts_once_it_is_granted_and_yields_to_an_end_even_then() -> None:
    endings = Endings()
    endings.ask(Ending.RELOAD)
    assert (await endings.next(), endings.chosen) == (Ending.RELOAD, None)
    endings.grant()
    assert endings.chosen is Ending.RELOAD
    endings.ask(Ending.STOP)
    assert endings.chosen is Ending.STOP


async def test_who_asks_for_a_reload_hears_what_became_of_it() -> None:
    endings = Endings()
    first, second = asyncio.create_task(endings.reload()), asyncio.create_task(endings.reload())
    assert await endings.next() is Ending.RELOAD
    await asyncio.sleep(0)
    endings.refuse(Conflict("it does not start"))
    for asked in (first, second):
        with pytest.raises(Conflict, match="does not start"):
            await asked
    third = asyncio.create_task(endings.reload())
    assert await endings.next() is Ending.RELOAD
    endings.grant()
    await third


async def test_an_end_refuses_the_reload_that_is_tried() -> None:
    endings = Endings()
    asked = asyncio.create_task(endings.reload())
    await endings.next()
    firm = asyncio.create_task(endings.firm())
    await asyncio.sleep(0)
    assert not firm.done()
    endings.ask(Ending.STOP)
    await firm
    with pytest.raises(Conflict, match="is ending"):
        await asked
    with pytest.raises(Conflict, match="is ending"):
        await endings.reload()
    assert await endings.next() is Ending.STOP
