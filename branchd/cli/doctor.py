"""branchctl doctor: what is wrong with a branch, and what to do; also where its daemon does not answer."""

# ruff: noqa: PLC0415  # start-up time: what the last refused start left is read only where nobody answers

import click

from branchd.cli.exits import Exit, code
from branchd.cli.options import output
from branchd.cli.output import as_json, neutral, show
from branchd.cli.session import Session, run
from branchd.client import Object, Unreachable

HOW_TO_START = "start it with `branchd run`, or say where it is: --url, --run or the variable BRANCHD_URL"


@click.command()
@click.option("--branch", help="Another branch than the one that is asked.")
@output
@click.pass_obj
def doctor(session: Session, branch: str | None, form: str) -> Exit:
    """Look for what is wrong with a branch, and say what to do.

    The exit code is 1 where something does not work. Where no daemon answers it says why the last start was refused,
    as far as that is known.
    """
    try:
        client = session.client()
        found = run((client if branch is None else client.at(branch)).doctor())
    except Unreachable as error:
        found, end = _unreachable(session, error), code(error)
    else:
        end = Exit.FAILED if any(one["level"] == "failure" for one in found["findings"]) else Exit.OK
    if form == "json":
        click.echo(as_json(found, indent=2))
    elif form in {"table", "wide"}:
        for finding in found["findings"]:
            _tell(finding)
    else:
        show(form, {"items": found["findings"]}, (), lambda one: str(one["check"]))
    return end


def _tell(finding: Object) -> None:
    click.echo(neutral(f"{finding['level'].upper():<7}  {finding['check']}: {finding['detail']}"))
    if finding["cure"]:
        click.echo(neutral(f"{'':<7}  do: {finding['cure']}"))


def _unreachable(session: Session, error: Unreachable) -> Object:
    """In the shape of the API's answer; no branch says its name."""
    cure = "you must be root, the daemon's user or in its group; or use its address and a token"
    cure = cure if error.denied else HOW_TO_START
    findings = [{"check": "daemon", "level": "failure", "detail": f"no daemon answers: {error.detail}", "cure": cure}]
    if session.folder is not None:
        from msgspec.structs import asdict

        from branchd.cli import refusal
        from branchd.core.diagnosis import refused
        from branchd.wire.resources import timestamp

        if (left := refusal.find(session.folder)) is not None:
            findings.append(asdict(refused(timestamp(left.at), left.detail, left.cures)))
    return {"branch": None, "findings": findings}
