"""Lists over the neighbourhood: every branch is asked for its part, and those that do not answer in time are named."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from branchd.api.answers import Elsewhere, Place
from branchd.api.forwarding import whole
from branchd.api.routing import LOCAL, Call
from branchd.branch.mesh.neighbours import Neighbours
from branchd.core.errors import NoRoute, Unavailable
from branchd.core.peers import Announcement, BranchState
from branchd.wire import json

#: seconds for the parts to come
PATIENCE = 2.0


async def gather(
    call: Call, mesh: Neighbours, asked: Sequence[Announcement], place: Callable[[dict[str, str]], Place]
) -> Elsewhere:
    """Their parts of the page that the call asks for. A branch that knows of no such thing has no part.

    Those that are silent, or lost, are not asked, and are told as unreachable.
    """
    parts = await asyncio.gather(*(_part(call, mesh, branch, place) for branch in asked))
    answered = [part for part in parts if part is not None]
    return Elsewhere(
        [item for items, _, _ in answered for item in items],
        any(more for _, more, _ in answered),
        any(known for _, _, known in answered),
        [branch.name for branch, part in zip(asked, parts, strict=True) if part is None],
    )


async def _part(
    call: Call, mesh: Neighbours, branch: Announcement, place: Callable[[dict[str, str]], Place]
) -> tuple[list[tuple[Place, Any]], bool, bool] | None:
    """The items, whether it has more, and whether it knows what was asked for; None where no answer comes."""
    if branch.state in (BranchState.SILENT, BranchState.CLOSED):
        return None
    given = [(name, value) for name, value in call.request.rel_url.query.items() if name not in {LOCAL.name, "fresh"}]
    target = f"{call.request.rel_url.raw_path}?{urlencode([*given, (LOCAL.name, '1')])}"
    try:
        async with (
            asyncio.timeout(PATIENCE),
            mesh.carrier.carry(branch.peer, call.principal, "GET", target, {}, b"", PATIENCE) as served,
        ):
            body = await whole(served)
        if served.status == 404 and call.path:  # else it does not know the list, being of an earlier version
            return [], False, False
        found = json.loads_quickly(body)
        return [(_told(place(item)), item) for item in found["items"]], found["next"] is not None, True
    except (TimeoutError, NoRoute, Unavailable):
        return None
    except (ValueError, KeyError, TypeError):  # it answers with something else, a problem perhaps
        return None


def _told(place: Place) -> Place:
    """TypeError for what cannot be sorted among the others."""
    "".join(place)
    return place


async def objects(call: Call, mesh: Neighbours) -> list[dict[str, Any]]:
    """The objects that those who have one answer the call with; a branch that does not answer has none."""
    target = f"{call.request.rel_url.raw_path}?{LOCAL.name}=1"

    async def ask(branch: Announcement) -> dict[str, Any] | None:
        try:
            async with (
                asyncio.timeout(PATIENCE),
                mesh.carrier.carry(branch.peer, call.principal, "GET", target, {}, b"", PATIENCE) as served,
            ):
                found = json.loads(await whole(served))
                return found if served.status == 200 and isinstance(found, dict) else None
        except (TimeoutError, NoRoute, Unavailable, ValueError):
            return None

    answers = await asyncio.gather(*map(ask, mesh.others()))
    return [one for one in answers if one is not None]
