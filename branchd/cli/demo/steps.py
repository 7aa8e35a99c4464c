"""How the tour speaks and waits: one line for what is done, lines for what came back, and a failure that says why."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click

#: seconds between two looks at a condition
PAUSE = 0.005


class Failed(Exception):
    """A step of the tour did not hold."""


async def until(condition: Callable[[], Awaitable[Any]], seconds: float, what: str) -> Any:
    """What the condition returns once that is true of it. Failed at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(PAUSE)
    return value


class Voice:
    def __init__(self) -> None:
        self._number = 0

    def step(self, title: str) -> None:
        self._number += 1
        click.echo()
        click.echo(click.style(f"{self._number}. {title}", bold=True))

    def did(self, request: str) -> None:
        click.echo(click.style(f"   > {request}", fg="cyan"))

    def came(self, answer: Any) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        for line in text.splitlines():
            click.echo(f"     {line}")

    def holds(self, truth: object, claim: str) -> None:
        """Failed when the claim is not true."""
        if not truth:
            raise Failed(claim)
        click.echo(click.style(f"   ok: {claim}", fg="green"))
