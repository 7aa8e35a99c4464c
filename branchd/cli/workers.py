"""branchctl consumer, autoscale and stats: what workers are told while they run, and what they say."""

from collections.abc import Awaitable, Callable

import click

from branchd.cli.batch import each
from branchd.cli.options import output, patterns
from branchd.cli.output import Column, as_json, neutral, show
from branchd.cli.selectors import Selection, at, find
from branchd.cli.session import Session, run
from branchd.client import BranchdClient, Object

#: what is wanted is kept, and the worker will be told of it; that it does so already nobody can say
_UNCONFIRMED = "wanted; the worker has not confirmed it"

_CONSUMING = {True: "yes", False: "no", None: "unknown"}

COLUMNS = (
    Column("QUEUE", lambda one: one["queue"]),
    Column("WANTED", lambda one: "yes" if one["wanted"] else "no"),
    Column("CONSUMING", lambda one: _CONSUMING[one["consuming"]]),
)

BOUNDS = (
    Column("MIN", lambda one: one["min"]),
    Column("MAX", lambda one: one["max"]),
    Column("ACTUAL", lambda one: one["actual"]),
)


USE = (
    Column("PID", lambda one: one["pid"]),
    Column("MEMORY", lambda one: _mebibytes(one["rss"])),
    Column("CPU", lambda one: None if one["cpu_seconds"] is None else f"{one['cpu_seconds']:.1f}s"),
    Column("PROCESSES", lambda one: one["processes"]),
    Column("THREADS", lambda one: one["threads"]),
    Column("FILES", lambda one: one["open_files"]),
    Column("TREE", lambda one: one["tree"] and as_json(one["tree"]), wide=True),
    Column("WORKER", lambda one: one["worker"] and as_json(one["worker"]), wide=True),
)


def _mebibytes(size: int | None) -> str | None:
    return None if size is None else f"{size / (1 << 20):.1f}MiB"


@click.group()
def consumer() -> None:
    """Consumers: which queues a worker takes tasks from."""


@consumer.command("ls")
@click.argument("selector")
@output
@click.pass_obj
def consumer_ls(session: Session, selector: str, form: str) -> None:
    """List the queues of one worker: wanted, and what it says that it does."""
    found = run(_of_one(session, selector, lambda client, app, name: client.consumers(app, name)))
    show(form, found, COLUMNS, lambda one: str(one["queue"]))


@consumer.command("add")
@click.argument("selector")
@click.argument("queue")
@output
@click.pass_obj
def consumer_add(session: Session, selector: str, queue: str, form: str) -> int:
    """Let workers take tasks from QUEUE too, now and after every restart."""

    async def one(client: BranchdClient, instance: Object) -> Object:
        return await client.add_consumer(instance["app"], instance["name"], queue)

    def tell(consumer: Object) -> str:
        name = neutral(queue)
        return f"consumes from {name}" if consumer["consuming"] else f"consumer of {name} {_UNCONFIRMED}"

    return _each(session, selector, form, one, tell)


@consumer.command("rm")
@click.argument("selector")
@click.argument("queue")
@output
@click.pass_obj
def consumer_rm(session: Session, selector: str, queue: str, form: str) -> int:
    """Let workers take no more tasks from QUEUE."""

    async def one(client: BranchdClient, instance: Object) -> Object:
        await client.cancel_consumer(instance["app"], instance["name"], queue)
        consumers = (await client.consumers(instance["app"], instance["name"]))["items"]
        answers = all(consumer["consuming"] is not None for consumer in consumers)
        still = any(consumer["consuming"] for consumer in consumers if consumer["queue"] == queue)
        return {"queue": queue, "wanted": False, "consuming": still if answers else None}

    def tell(consumer: Object) -> str:
        name = neutral(queue)
        confirmed = consumer["consuming"] is False
        return f"no longer consumes from {name}" if confirmed else f"no consumer of {name} {_UNCONFIRMED}"

    return _each(session, selector, form, one, tell)


@click.group()
def autoscale() -> None:
    """Autoscale: how many processes a worker's pool may have."""


@autoscale.command("show")
@click.argument("selector")
@output
@click.pass_obj
def autoscale_show(session: Session, selector: str, form: str) -> None:
    """Show the bounds of one worker's pool, and how many processes it has."""
    found = run(_of_one(session, selector, lambda client, app, name: client.autoscale(app, name)))
    show(form, found, BOUNDS, lambda one: f"{one['min']},{one['max']}")


@autoscale.command("set")
@click.argument("selector")
@click.argument("least", metavar="MIN", type=int)
@click.argument("most", metavar="MAX", type=int)
@output
@click.pass_obj
def autoscale_set(session: Session, selector: str, least: int, most: int, form: str) -> int:
    """Set the bounds, now and after every restart."""

    async def one(client: BranchdClient, instance: Object) -> Object:
        return await client.set_autoscale(instance["app"], instance["name"], least, most)

    def tell(bounds: Object) -> str:
        words = f"{bounds['min']} to {bounds['max']} processes"
        return words if bounds["actual"] is not None else f"{words} {_UNCONFIRMED}"

    return _each(session, selector, form, one, tell)


@click.command()
@click.argument("selector")
@output
@click.pass_obj
def stats(session: Session, selector: str, form: str) -> None:
    """Show what the processes of one instance use now; with -o wide or json what a Celery worker says of itself too."""
    found = run(_of_one(session, selector, lambda client, app, name: client.stats(app, name)))
    show(form, found, USE, lambda _: selector)


async def _of_one(
    session: Session, selector: str, ask: Callable[[BranchdClient, str, str], Awaitable[Object]]
) -> Object:
    client = session.client()
    found = (await find(client, Selection(patterns((selector,))))).instances
    if len(found) > 1:
        raise click.UsageError(f"{selector} means {len(found)} instances; this shows one")
    return await ask(at(client, found[0]), found[0]["app"], found[0]["name"])


def _each(
    session: Session,
    selector: str,
    form: str,
    act: Callable[[BranchdClient, Object], Awaitable[Object]],
    tell: Callable[[Object], str],
) -> int:
    return run(each(session.client(), Selection(patterns((selector,))), form, act, tell))
