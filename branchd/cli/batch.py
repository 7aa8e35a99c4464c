"""One thing done to many instances at once: one that fails does not keep the others, and the end tells which did.

What came of one is told as soon as those before it are told, so that the order is that of the selection.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import click

from branchd.cli.exits import Exit, TimedOut, code
from branchd.cli.output import as_json, neutral, show
from branchd.cli.selectors import label
from branchd.cli.session import explain
from branchd.client.client import Object
from branchd.core.errors import BranchdError

#: requests under way at once
MOST_AT_ONCE = 50


class DidNotStart(BranchdError):
    """It was started and is not up."""


@dataclass(frozen=True, slots=True)
class Batch:
    form: str  #: of the output
    instances: Sequence[Object]

    async def run(self, act: Callable[[Object], Awaitable[Object]], tell: Callable[[Object], str]) -> Exit:
        """`act` gives what is shown: by `tell` as a line for people, else as JSON."""
        places = asyncio.Semaphore(MOST_AT_ONCE)

        async def one(instance: Object) -> Object | BranchdError:
            async with places:
                try:
                    return await act(instance)
                except BranchdError as error:
                    return error

        results: list[Object] = []
        failures: list[tuple[Object, BranchdError]] = []
        tasks = [asyncio.ensure_future(one(instance)) for instance in self.instances]
        for instance, task in zip(self.instances, tasks, strict=True):
            result = await task
            if isinstance(result, BranchdError):
                failures.append((instance, result))
                explain(result, label(instance))
                continue
            results.append(result)
            match self.form:
                case "table" | "wide":
                    click.echo(f"{label(instance)}: {tell(result)}")
                case "name":
                    click.echo(label(instance))
                case "jsonl":
                    click.echo(as_json(result))
                case _:
                    pass
        if self.form == "json":
            show(self.form, {"items": results, "next": None, "partial": False, "unreachable": []}, (), label)
        if failures and len(tasks) > 1:
            names = ", ".join(label(instance) for instance, _ in failures)
            click.echo(f"{len(failures)} of {len(tasks)} failed: {names}", err=True)
        return _exit([error for _, error in failures], len(tasks))


def _exit(failures: list[BranchdError], asked: int) -> Exit:
    if not failures:
        return Exit.OK
    if len(failures) < asked:
        return Exit.PARTIAL
    codes = {code(error) for error in failures}
    return codes.pop() if len(codes) == 1 else Exit.FAILED


def state(instance: Object) -> str:
    """In a few words."""
    status = instance["status"]
    words: str = status["state"]
    if status["pid"] is not None:
        words += f" (pid {status['pid']})"
    return f"{words}: {neutral(status['reason'])}" if status["reason"] else words


def require_up(instance: Object, seconds: float) -> Object:
    """The instance when it is ready, or has done what it had to; DidNotStart; TimedOut when `seconds` were too few."""
    status = instance["status"]
    ready = {condition["type"]: condition["status"] for condition in status["conditions"]}.get("Ready")
    last = status["last_exit"] or {}
    if status["wanted"] == "down" or (status["state"] == "RUNNING" and ready == "True"):
        return instance
    if status["state"] == "EXITED" and last.get("code") == 0:
        return instance
    if status["state"] in {"FATAL", "EXITED"}:
        raise DidNotStart(state(instance), f"branchctl logs {label(instance)} shows what it wrote")
    raise TimedOut(f"not ready within {seconds:g} seconds: {state(instance)}")


def require_down(instance: Object, seconds: float) -> Object:
    if instance["status"]["pid"] is not None or instance["status"]["state"] in {"STOPPING", "STARTING", "BACKOFF"}:
        raise TimedOut(f"not stopped within {seconds:g} seconds: {state(instance)}")
    return instance


def require_gone(gone: bool, instance: Object, seconds: float) -> Object:
    if not gone:
        raise TimedOut(f"not gone within {seconds:g} seconds: its stop plan still runs")
    return instance
