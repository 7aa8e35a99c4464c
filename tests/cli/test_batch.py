"""How a thing done to several at once exits."""

from typing import Any

import pytest

from branchd.cli.batch import Batch
from branchd.cli.exits import Exit, TimedOut
from branchd.core.errors import BranchdError, NotFound

FAILED, LATE, ABSENT = BranchdError("no"), TimedOut("late"), NotFound("none")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([None, None], Exit.OK),
        ([None, FAILED], Exit.PARTIAL),
        ([LATE, None, LATE], Exit.PARTIAL),
        ([LATE, LATE], Exit.TIMED_OUT),
        ([ABSENT, ABSENT], Exit.NO_TARGET),
        ([LATE, ABSENT], Exit.FAILED),
        ([LATE], Exit.TIMED_OUT),
    ],
)
async def test_only_where_some_were_done_is_it_done_in_part(
    outcomes: list[BranchdError | None], expected: Exit
) -> None:
    instances = [{"app": "shop", "name": str(index)} for index in range(len(outcomes))]

    async def act(instance: dict[str, Any]) -> dict[str, Any]:
        if (error := outcomes[int(instance["name"])]) is not None:
            raise error
        return instance

    assert await Batch("table", instances).run(act, lambda _: "done") is expected
