"""One thing done to many instances, or apps, at once: what fails keeps none of the others, and the end tells what did.

What came of one is told as soon as those before it are told, so that the order is that of the selection.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import click

from branchd.cli.exits import Exit, code
from branchd.cli.output import as_json, missing, show
from branchd.cli.selectors import Found, Selection, at, find, label
from branchd.cli.session import explain
from branchd.client import BranchdClient, Object
from branchd.core.errors import BranchdError
from branchd.core.value import Value

#: requests under way at once
MOST_AT_ONCE = 50

#: names of those that failed, in the last line; each was told of before
MOST_NAMED = 5


class Batch(Value):
    form: str  #: of the output
    instances: Sequence[Object]
    name: Callable[[Object], str] = label
    unreachable: Sequence[str] = ()  #: branches that may have more of them

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
                explain(result, self.name(instance))
                continue
            results.append(result)
            match self.form:
                case "table" | "wide":
                    click.echo(f"{self.name(instance)}: {tell(result)}")
                case "name":
                    click.echo(self.name(instance))
                case "jsonl":
                    click.echo(as_json(result))
                case _:
                    pass
        if self.form == "json":
            show(self.form, Found(results, self.unreachable).document, (), self.name)
        if failures and len(tasks) > 1:
            names = ", ".join(self.name(instance) for instance, _ in failures[:MOST_NAMED])
            more = f" and {len(failures) - MOST_NAMED} more" if len(failures) > MOST_NAMED else ""
            click.echo(f"{len(failures)} of {len(tasks)} failed: {names}{more}", err=True)
        missing(self.unreachable)
        code = _exit([error for _, error in failures], len(tasks))
        return Exit.PARTIAL if self.unreachable and code is Exit.OK else code


async def each(
    client: BranchdClient,
    selection: Selection,
    form: str,
    act: Callable[[BranchdClient, Object], Awaitable[Object]],
    tell: Callable[[Object], str],
) -> Exit:
    """As run(), to all that are selected; `act` is given a client of the branch that has the instance."""
    found = await find(client, selection)
    batch = Batch(form, found.instances, found.label, found.unreachable)
    return await batch.run(lambda instance: act(at(client, instance), instance), tell)


def _exit(failures: list[BranchdError], asked: int) -> Exit:
    if not failures:
        return Exit.OK
    if len(failures) < asked:
        return Exit.PARTIAL
    codes = {code(error) for error in failures}
    return codes.pop() if len(codes) == 1 else Exit.FAILED
