"""branchctl logs and events: what instances write, and what happens to them."""

import asyncio
import codecs
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, BinaryIO

import click

from branchd.cli.exits import Exit
from branchd.cli.options import patterns
from branchd.cli.output import as_json, missing, neutral
from branchd.cli.selectors import Selection, at, find, label
from branchd.cli.session import Session, run
from branchd.client import ApiProblem, BranchdClient, Object, Unreachable

#: lines of a log to begin with: the most that the API gives
LONGEST_TAIL = 10_000

#: seconds that a follower of events waits for a daemon that went away
PATIENCE = 60.0

#: seconds between two looks whether it is there again
PAUSE = 0.5

#: bytes of a line that are kept back until its end comes, when lines of several instances are told apart
LONGEST_LINE = 64 << 10


class Writer:
    """To where the logs go: bytes as they were written; on a terminal nothing that could move or recolour it."""

    def __init__(self, out: BinaryIO, terminal: bool) -> None:
        self._out = out
        self._terminal = terminal

    def source(self, prefix: str) -> "Source":
        return Source(self, prefix.encode())

    def write(self, data: bytes, decoder: codecs.IncrementalDecoder, final: bool = False) -> None:
        if self._terminal:
            data = neutral(decoder.decode(data, final).replace("\r\n", "\n"), keep="\n\t").encode()
        self._out.write(data)
        self._out.flush()


class Source:
    """The output of one instance: with a prefix only whole lines are passed on."""

    def __init__(self, writer: Writer, prefix: bytes) -> None:
        self._writer = writer
        self._prefix = prefix
        self._rest = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, piece: bytes) -> None:
        if not self._prefix:
            self._writer.write(piece, self._decoder)
            return
        *whole, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            whole.append(self._rest)
            self._rest = b""
        if whole:
            self._writer.write(b"".join(self._prefix + line + b"\n" for line in whole), self._decoder)

    def close(self) -> None:
        last = self._prefix + self._rest + b"\n" if self._rest else b""
        self._writer.write(last, self._decoder, final=True)


@click.command()
@click.argument("selectors", nargs=-1, required=True, metavar="SELECTOR...")
@click.option("-n", "--tail", type=click.IntRange(0, LONGEST_TAIL),
              help="So many of the last lines; 100, or with --since all.")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("--since", metavar="TIME", help="Written since then: 2026-01-31T23:59:59Z, or 15m for so long ago. Exact "
              "where logs.format gives lines their times; else some older ones come too.")  # fmt: skip
@click.option("--grep", metavar="TEXT", help="Only lines with this text; it is no pattern.")
@click.option("-i", "--ignore-case", is_flag=True, help="--grep finds ASCII letters of either case.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), default="stdout", show_default=True,
              help="Which one; stdout has both unless the spec's logs.stderr is file.")  # fmt: skip
@click.option("--stderr", "stream", flag_value="stderr", help="The same as --stream stderr.")
@click.pass_obj
def logs(
    session: Session, selectors: tuple[str, ...], tail: int | None, follow: bool, since: str | None, grep: str | None,
    ignore_case: bool, stream: str,
) -> int:  # fmt: skip
    """Show what instances wrote. With several, each line begins with the instance's name."""
    if ignore_case and not grep:
        raise click.UsageError("--ignore-case is for --grep")
    selection = Selection(patterns(selectors))
    writer = Writer(sys.stdout.buffer, sys.stdout.isatty())
    asked = {"tail": tail, "stream": stream, "follow": follow, "since": since, "grep": grep, "ignore_case": ignore_case}

    async def all_of_them() -> int:
        client = session.client()
        found = await find(client, selection)
        missing(found.unreachable)
        names = [found.label(instance) for instance in found.instances]
        width = max(map(len, names))
        prefixes = [f"{name.ljust(width)} | " if len(names) > 1 else "" for name in names]
        work = [
            _copy(at(client, instance), instance, writer.source(prefix), asked)
            for instance, prefix in zip(found.instances, prefixes, strict=True)
        ]
        if follow:
            await asyncio.gather(*work)
        else:
            for one in work:
                await one
        return Exit.PARTIAL if found.unreachable else Exit.OK

    return run(all_of_them())


async def _copy(client: BranchdClient, instance: Object, source: Source, asked: Mapping[str, Any]) -> None:
    try:
        async for piece in client.logs(instance["app"], instance["name"], **asked):
            source.feed(piece)
    finally:
        source.close()
    if asked["follow"]:
        click.echo(f"{label(instance)}: {await _why_ended(client, instance)}", err=True)


async def _why_ended(client: BranchdClient, instance: Object) -> str:
    try:
        found = await client.instance(instance["app"], instance["name"])
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        return "it is gone"
    return "it is gone" if found["created_at"] != instance["created_at"] else "the daemon ended its log"


@click.command()
@click.option("-n", "--tail", type=click.IntRange(min=0), help="Begin with so many of the last; 100 unless following.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--after", type=click.IntRange(min=0), help="Begin after the event with this id.")
@click.option("--branch", help="Those of that branch; else of the one that is asked.")
@click.option("--app", help="Only of this app.")
@click.option("--instance", help="Only of instances of this name.")
@click.option("--type", "types", multiple=True, help="Only types that begin so, such as instance.state; repeatable.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "jsonl"]), default="table", show_default=True,
              help="How to show it.")  # fmt: skip
@click.pass_obj
def events(
    session: Session, tail: int | None, follow: bool, after: int | None, branch: str | None, app: str | None,
    instance: str | None, types: tuple[str, ...], form: str,
) -> int:  # fmt: skip
    """Show what happened last, or with -f what happens from now on.

    --tail counts before --app, --instance and --type choose. Following goes on after a restart of the daemon, where it
    was; without a daemon for a minute it ends.
    """
    if after is not None and tail is not None:
        raise click.UsageError("--after and --tail exclude each other")
    if after is None and tail is None and not follow:
        tail = 100

    async def watch() -> Exit:
        client = session.client() if branch is None else session.client().at(branch)
        select = partial(client.events, follow=follow, app=app, instance=instance, types=types)
        stream = following(client, select, after, tail) if follow else select(after, tail=tail)
        async with aclosing(stream):
            async for event in stream:
                if event["type"] == "reset":
                    click.echo("some of these events are no longer kept", err=True)
                else:
                    click.echo(as_json(event) if form == "jsonl" else _line(event))
        return Exit.OK

    return run(watch())


async def following(
    client: BranchdClient, select: Callable[..., AsyncGenerator[Object, None]], after: int | None, tail: int | None
) -> AsyncGenerator[Object, None]:
    """What select(after, tail=...) gives, and when that ends, what comes after it once the daemon is there again.

    Unreachable where it is not there at first, or not again within PATIENCE seconds.
    """
    seen = await client.last_event() if after is None else after
    start = (seen, None) if tail is None else (None, tail)
    while True:
        try:
            async with aclosing(select(start[0], tail=start[1])) as stream:
                async for event in stream:
                    seen = int(event["id"])
                    yield event
        except Unreachable as error:
            click.echo(f"{error.detail}; waiting for the daemon", err=True)
        else:
            click.echo(f"{client.url}: the daemon ended the stream; waiting for it", err=True)
        await _until_there(client)
        click.echo(f"{client.url}: it is there again; going on after event {seen}", err=True)
        start = (seen, None)


async def _until_there(client: BranchdClient) -> None:
    """Unreachable."""
    end = time.monotonic() + PATIENCE
    while True:
        await asyncio.sleep(PAUSE)
        try:
            if await client.ready() or time.monotonic() > end:  # it may be there, and have other troubles
                return
        except Unreachable:
            if time.monotonic() > end:
                raise


def _line(event: Object) -> str:
    who = ":".join(part for part in (event["app"], event["instance"]) if part) or "-"
    facts = [
        f"{name}={value if isinstance(value, str) else as_json(value)}"
        for name, value in event["data"].items()
        if value not in (None, "", [])
    ]
    return neutral("  ".join([event["at"], f"{event['type']:<20}", who, " ".join(facts)]).rstrip())
