"""branchctl token, whoami: who may do what."""

import click

from branchd.cli.options import duration, output
from branchd.cli.output import Column, neutral, show
from branchd.cli.session import Session, run

TOKEN_COLUMNS = (
    Column("ID", lambda token: token["id"]),
    Column("NAME", lambda token: token["name"]),
    Column("SCOPE", lambda token: token["scope"]),
    Column("CREATED", lambda token: token["created_at"]),
    Column("EXPIRES", lambda token: token["expires_at"] or "never"),
)

IDENTITY_COLUMNS = (
    Column("PRINCIPAL", lambda identity: identity["principal"]),
    Column("SCOPE", lambda identity: identity["scope"]),
    Column("BRANCH", lambda identity: identity["branch"]),
)


@click.group()
def token() -> None:
    """Tokens: what the API takes where the kernel does not tell who asks."""


@token.command("ls")
@output
@click.pass_obj
def token_ls(session: Session, form: str) -> None:
    """List the tokens, not what they are."""
    show(form, run(session.client().tokens()), TOKEN_COLUMNS, lambda one: str(one["id"]))


@token.command("create")
@click.argument("name")
@click.option("--scope", type=click.Choice(["read", "operate", "admin"]), default="read", show_default=True,
              help="What it allows; each includes the ones before it.")  # fmt: skip
@click.option("--expires-in", type=duration, metavar="TIME", help="When it ends, such as 30d; never, unless given.")
@output
@click.pass_obj
def token_create(session: Session, name: str, scope: str, expires_in: float | None, form: str) -> None:
    """Create a token and print it, this once."""
    created = run(session.client().create_token(name, scope, expires_in))
    if form in {"table", "wide"}:
        click.echo(
            f"{created['id']}: {scope}, expires {created['expires_at'] or 'never'}; keep it, it is not shown again",
            err=True,
        )
        click.echo(created["token"])
    else:
        show(form, created, TOKEN_COLUMNS, lambda one: str(one["id"]))


@token.command("revoke")
@click.argument("id")
@click.pass_obj
def token_revoke(session: Session, id: str) -> None:
    """End a token, by its id."""
    run(session.client().revoke_token(id))
    click.echo(f"{neutral(id)}: revoked")


@click.command()
@output
@click.pass_obj
def whoami(session: Session, form: str) -> None:
    """Show as whom the API takes you, and what you may do."""
    show(form, run(session.client().whoami()), IDENTITY_COLUMNS, lambda one: str(one["principal"]))
