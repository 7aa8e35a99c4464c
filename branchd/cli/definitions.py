"""branchctl create, set, app, queue: what there is to be."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import click

from branchd.cli.batch import Batch, each
from branchd.cli.exits import Exit
from branchd.cli.options import duration, output, patterns, waiting
from branchd.cli.outcome import Patience, state
from branchd.cli.output import Column, as_json, neutral, show
from branchd.cli.selectors import Found, Selection, at, label
from branchd.cli.session import Session, run
from branchd.cli.spec_options import ProgramCommand, spec, spec_options, unsetting
from branchd.client import ApiProblem, Object

APP_COLUMNS = (
    Column("NAME", lambda app: app["name"]),
    Column("INSTANCES", lambda app: app["instances"]),
    Column("KIND", lambda app: app["spec"].get("kind", "celery")),
    Column("GENERATION", lambda app: app["generation"], wide=True),
    Column("CREATED", lambda app: app["created_at"], wide=True),
    Column("SHARED", lambda app: ", ".join(map(_shared, app["conditions"])), wide=True),
    Column("RUNS", lambda app: app["spec"].get("application") or " ".join(app["spec"].get("command", ()))),
)

QUEUE_COLUMNS = (
    Column("NAME", lambda queue: queue["name"]),
    Column("EXCHANGE", lambda queue: queue["exchange"]),
    Column("TYPE", lambda queue: queue["exchange_type"]),
    Column("ROUTING KEY", lambda queue: queue["routing_key"]),
    Column("OPTIONS", lambda queue: as_json(queue["options"]) if queue["options"] else None, wide=True),
)


def _name(one: Object) -> str:
    return str(one["name"])


def _shared(condition: Object) -> str:
    return f"{condition['type']}={condition['status']}"


@click.command(cls=ProgramCommand)
@click.argument("app")
@click.argument("name", required=False)
@spec_options
@click.option("--branch", help="Where it belongs for good; else the branch with the most room takes it.")
@click.option("--count", type=click.IntRange(1, 1000), help="So many of them, each with a name of its own.")
@waiting()
@output
@click.pass_obj
def create(
    session: Session,
    /,
    app: str,
    name: str | None,
    branch: str | None,
    count: int | None,
    wait: bool,
    timeout: float,
    form: str,
    **fields: Any,
) -> Exit:
    """Create an instance of APP and start it. Without a NAME it gets one.

    What its spec leaves out, the app's says.
    """
    if name is not None and count is not None:
        raise click.UsageError("NAME and --count exclude each other")
    body = spec(**fields) | ({} if name is None else {"name": name})

    async def work() -> Exit:
        client = session.client()
        patience = Patience(client, timeout)
        asked = client if branch is None else client.at(branch)
        seconds = patience.ask if wait else None
        if count is None:
            made = [await asked.create_instance(app, body, wait=seconds)]
            problems = []
        else:
            several = await asked.create_instances(app, body, count, wait=seconds)
            made, problems = several["items"], several["problems"]
        if form in {"table", "wide"}:
            for one in made:
                click.echo(f"{label(one)}: created on {neutral(one['branch'])}, {state(one)}")
        else:
            show(form, made[0] if count is None else Found(made).document, (), label)
        for problem in problems:
            click.echo(f"not created: {neutral(problem['detail'])}", err=True)
        if wait:
            for one in made:
                await Patience(at(client, one), patience.left).up(one)
        return Exit.PARTIAL if problems else Exit.OK

    return run(work())


@click.command("set", cls=ProgramCommand)
@click.argument("selector")
@spec_options
@unsetting
@click.option("--restart", is_flag=True, help="Restart them, so that all of it takes effect.")
@output
@click.pass_obj
def set_command(
    session: Session, /, selector: str, unset: tuple[str, ...], restart: bool, form: str, **fields: Any
) -> Exit:
    """Change what is asked for of instances. What is not given stays; what is unset is as the app has it.

    What a process is started with takes effect with its next start.
    """
    patch = spec(**fields) | dict.fromkeys(unset)
    if not patch and not restart:
        raise click.UsageError("say what to change: --json, -f, a flag or --unset")

    async def work() -> Exit:
        return await each(
            session.client(),
            Selection(patterns((selector,))),
            form,
            lambda client, one: client.patch_instance(one["app"], one["name"], patch, restart=restart),
            lambda one: f"changed, generation {one['generation']}, {state(one)}",
        )

    return run(work())


@click.group()
def app() -> None:
    """Apps: named sets of defaults for instances."""


@app.command("ls")
@output
@click.pass_obj
def app_ls(session: Session, form: str) -> None:
    """List the apps."""
    show(form, run(session.client().apps()), APP_COLUMNS, _name)


@app.command("show")
@click.argument("name")
@output
@click.pass_obj
def app_show(session: Session, name: str, form: str) -> None:
    """Show an app and its spec."""
    found = run(session.client().app(name))
    show(form, found, APP_COLUMNS, _name)
    if form in {"table", "wide"}:
        for condition in found["conditions"]:
            click.echo(f"{condition['type']}: {condition['status']}  {neutral(condition['reason'])}".rstrip())
        click.echo()
        for field, value in sorted(found["spec"].items()):
            click.echo(f"  {field:<12}  {neutral(value if isinstance(value, str) else as_json(value))}")


@app.command("set", cls=ProgramCommand)
@click.argument("name")
@spec_options
@unsetting
@click.option("--replace", is_flag=True, help="Make this the whole spec, rather than change what is given.")
@click.option("--restart", is_flag=True, help="Restart the instances that the change concerns, at once.")
@output
@click.pass_obj
def app_set(
    session: Session, /, name: str, unset: tuple[str, ...], replace: bool, restart: bool, form: str, **fields: Any
) -> None:
    """Change an app, or create it. Its instances run on as they are until they are restarted."""
    given = spec(**fields) | dict.fromkeys(unset)
    values = {field: value for field, value in given.items() if value is not None}
    if replace and (unset or restart):
        raise click.UsageError("--replace goes with neither --unset nor --restart")

    async def work() -> tuple[Object, str]:
        client = session.client()
        if not replace:
            try:
                return await client.patch_app(name, given, restart=restart), "changed"
            except ApiProblem as problem:
                if problem.status != 404 or (unset and not values):
                    raise
        return await client.put_app(name, values), "set"

    found, done = run(work())
    if form in {"table", "wide"}:
        click.echo(f"{found['name']}: {done}, generation {found['generation']}")
    else:
        show(form, found, APP_COLUMNS, _name)


@app.command("publish")
@click.argument("apps", nargs=-1, required=True, metavar="APP...")
@output
@click.pass_obj
def app_publish(session: Session, apps: tuple[str, ...], form: str) -> Exit:
    """Make this branch's own definition of an app, with its queues, the neighbourhood's."""
    return _each(form, apps, session.client().publish_app, "published")


@app.command("adopt")
@click.argument("apps", nargs=-1, required=True, metavar="APP...")
@output
@click.pass_obj
def app_adopt(session: Session, apps: tuple[str, ...], form: str) -> Exit:
    """Drop this branch's own definition of an app, with its queues, for the neighbourhood's."""
    return _each(form, apps, session.client().adopt_app, "adopted")


def _each(form: str, apps: tuple[str, ...], act: Callable[[str], Awaitable[Object]], done: str) -> Exit:
    async def work() -> Exit:
        batch = Batch(form, [{"name": name} for name in dict.fromkeys(apps)], _name)
        return await batch.run(lambda one: act(one["name"]), lambda one: f"{done}, generation {one['generation']}")

    return run(work())


@app.command("rm")
@click.argument("name")
@click.option("--cascade", is_flag=True, help="Stop and delete its instances first.")
@click.option(
    "--timeout", type=duration, metavar="TIME", default="60s", show_default=True, help="How long that may take."
)
@click.pass_obj
def app_rm(session: Session, name: str, cascade: bool, timeout: float) -> None:
    """Delete an app that has no instances."""
    run(session.client().delete_app(name, cascade=cascade, patience=timeout if cascade else 0.0))
    click.echo(f"{name}: deleted")


@click.group()
def queue() -> None:
    """Queues: how an app's queues are declared at the broker."""


@queue.command("ls")
@click.argument("app")
@output
@click.pass_obj
def queue_ls(session: Session, app: str, form: str) -> None:
    """List the queues that APP declares."""
    show(form, run(session.client().queues(app)), QUEUE_COLUMNS, _name)


@queue.command("set")
@click.argument("app")
@click.argument("name")
@click.option("--exchange", help="By default the queue's own name.")
@click.option("--type", "exchange_type", help="direct (by default), topic, fanout or headers.")
@click.option("--routing-key", help="By default the queue's own name.")
@click.option("--options", help="More of the declaration, as a JSON object.")
@output
@click.pass_obj
def queue_set(session: Session, /, app: str, name: str, options: str | None, form: str, **fields: str | None) -> None:
    """Declare a queue of APP, or declare it anew."""
    declaration: Object = {field: value for field, value in fields.items() if value is not None}
    if options is not None:
        try:
            declaration["options"] = json.loads(options)
        except ValueError as error:
            raise click.UsageError(f"--options is not JSON: {error}") from None
    found = run(session.client().put_queue(app, name, declaration))
    show(form, found, QUEUE_COLUMNS, _name)


@queue.command("rm")
@click.argument("app")
@click.argument("name")
@click.pass_obj
def queue_rm(session: Session, app: str, name: str) -> None:
    """Forget the declaration of a queue; the queue at the broker stays."""
    run(session.client().delete_queue(app, name))
    click.echo(f"{neutral(name)}: deleted")
