"""What a wait says: for how long it really waited, and what for; over what an API that answers early would say."""

from typing import Any

import pytest

from branchd.cli.exits import Exit, TimedOut, code
from branchd.cli.outcome import DidNotStart, Patience
from branchd.client import ApiProblem

PLAIN = "its agent does not answer; supervised as a plain process"


def instance(state: str, ready: str = "False", reason: str = "", why: str = "", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "reason": why}]
    pid = 7 if state in {"RUNNING", "STARTING", "STOPPING"} else None
    facts = {"state": state, "wanted": "up", "pid": pid, "reason": reason, "last_exit": None, "deleting": False}
    return {"app": "shop", "name": "w1", "status": {**facts, "conditions": conditions, **status}}


class Scripted:
    """A client whose instance goes through these, and stays at the last."""

    def __init__(self, *answers: dict[str, Any] | ApiProblem) -> None:
        self.answers = list(answers)

    async def instance(self, _app: str, _name: str) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ApiProblem):
            raise answer
        return answer


def patience(seconds: float, *answers: dict[str, Any] | ApiProblem) -> Patience:
    return Patience(Scripted(*answers), seconds)  # type: ignore[arg-type]


GONE = ApiProblem(404, "", "", "no such instance")


async def test_an_early_answer_is_not_the_end_of_the_wait() -> None:
    up = instance("RUNNING", "True")
    later = patience(60, instance("BACKOFF"), up)
    assert await later.up(instance("RUNNING", "Unknown", why="nothing heard yet")) is up
    assert later.ask == 60


@pytest.mark.parametrize("state", ["FATAL", "EXITED"])
async def test_what_waiting_does_not_mend_ends_it_at_once(state: str) -> None:
    with pytest.raises(DidNotStart, match="no such program") as caught:
        await patience(60, GONE).up(instance(state, reason="no such program"))
    assert code(caught.value) is Exit.FAILED


async def test_what_waiting_may_mend_is_waited_for_as_long_as_asked() -> None:
    broken = instance("BACKOFF", reason="exit code 3")
    with pytest.raises(TimedOut, match=r"not ready within 0.01 seconds: BACKOFF: exit code 3"):
        await patience(0.01, broken).up(broken)
    silent = instance("RUNNING", "Unknown", why=PLAIN)
    with pytest.raises(TimedOut, match=f"RUNNING \\(pid 7\\), but {PLAIN}") as caught:
        await patience(0.01, silent).up(silent)
    assert code(caught.value) is Exit.TIMED_OUT


@pytest.mark.parametrize(
    "done", [instance("STOPPED", wanted="down"), instance("EXITED", last_exit={"code": 0, "signal": None})]
)
async def test_what_is_not_wanted_up_or_has_done_its_work_is_not_waited_for(done: dict[str, Any]) -> None:
    assert await patience(60, GONE).up(done) is done


async def test_a_stop_is_over_when_no_process_is_left() -> None:
    stopped = instance("STOPPED")
    assert await patience(60, instance("STOPPING"), stopped).down(instance("RUNNING")) is stopped
    with pytest.raises(TimedOut, match=r"not stopped within 0.01 seconds: STOPPING"):
        await patience(0.01, instance("STOPPING")).down(instance("STOPPING"))


@pytest.mark.parametrize("end", [GONE, instance("RUNNING", "True")], ids=["gone", "another of that name"])
async def test_a_deletion_is_over_when_that_instance_is_gone(end: dict[str, Any] | ApiProblem) -> None:
    going = instance("STOPPING", deleting=True)
    assert await patience(60, going, end).gone(going, False) is going
    with pytest.raises(TimedOut, match=r"not gone within 0.01 seconds"):
        await patience(0.01, going).gone(going, False)
