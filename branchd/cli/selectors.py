"""Which instances are meant: shop:mail-1, shop:*, web2/shop:mail-*, mail-1, -l team=pay, --state BACKOFF, --all.

supervisord's syntax, with a branch before it where several are. That nothing matches is an error; then nothing is done
to the others either.
"""

import asyncio
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from branchd.client import ApiProblem, BranchdClient
from branchd.client.client import Object
from branchd.core.errors import BranchdError, NotFound

_PATTERN = re.compile(r"(?:(?P<branch>[^/:\s]+)/)?(?:(?P<app>[^/:\s]+):)?(?P<name>[^/:\s]+)")
_WILD = frozenset("*?[")


class Ambiguous(BranchdError):
    """A bare name that several apps have."""


@dataclass(frozen=True, slots=True)
class Pattern:
    text: str
    branch: str
    app: str
    name: str
    bare: bool  #: without an app: must be unique unless it has a wildcard

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """ValueError."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a selector; such as shop:mail-1, shop:* or mail-1")
        bare = match["app"] is None and not _WILD & set(match["name"])
        return cls(text, match["branch"] or "*", match["app"] or "*", match["name"], bare)

    @property
    def exact(self) -> bool:
        return self.branch == "*" and not _WILD & set(self.app + self.name)

    def matches(self, instance: Object) -> bool:
        return (
            fnmatchcase(instance["name"], self.name)
            and fnmatchcase(instance["app"], self.app)
            and fnmatchcase(instance["branch"], self.branch)
        )


@dataclass(frozen=True, slots=True)
class Selection:
    patterns: tuple[Pattern, ...] = ()  #: any of them; none: all
    labels: tuple[tuple[str, str], ...] = ()  #: and each of these
    states: frozenset[str] = frozenset()  #: and one of these

    @property
    def words(self) -> str:
        return " ".join(
            [pattern.text for pattern in self.patterns]
            + [f"-l {name}={value}" for name, value in self.labels]
            + [f"--state {state}" for state in sorted(self.states)]
        )


def label(instance: Object) -> str:
    """Its name for people, and for selectors."""
    return f"{instance['app']}:{instance['name']}"


def select(selection: Selection, instances: Sequence[Object]) -> list[Object]:
    """In the order of `instances`. NotFound where a pattern, or all of it, matches nothing; Ambiguous."""
    chosen: set[int] = set() if selection.patterns else set(range(len(instances)))
    for pattern in selection.patterns:
        matching = [index for index, instance in enumerate(instances) if pattern.matches(instance)]
        if not matching:
            raise NotFound(f"no instance matches {pattern.text}", _suggestion(pattern, instances))
        if pattern.bare and len(matching) > 1:
            candidates = ", ".join(label(instances[index]) for index in matching[:20])
            raise Ambiguous(f"{pattern.text} is in several apps", f"one of {candidates}")
        chosen.update(matching)
    found = [instances[index] for index in sorted(chosen) if _passes(selection, instances[index])]
    if not found and selection != Selection():
        raise NotFound(f"no instance matches {selection.words}")
    return found


async def find(client: BranchdClient, selection: Selection) -> list[Object]:
    """As select(), over what the API has; where all are named exactly it is asked for them alone."""
    if selection.patterns and all(pattern.exact and not pattern.bare for pattern in selection.patterns):
        names = dict.fromkeys((pattern.app, pattern.name) for pattern in selection.patterns)
        try:
            instances = await asyncio.gather(*(client.instance(app, name) for app, name in names))
        except ApiProblem as problem:
            if problem.status != 404:
                raise
        else:
            return select(selection, instances)
    return select(selection, (await client.instances())["items"])


def _passes(selection: Selection, instance: Object) -> bool:
    labels = instance["effective"].get("labels", {})
    return all(labels.get(name) == value for name, value in selection.labels) and (
        not selection.states or instance["status"]["state"] in selection.states
    )


def _suggestion(pattern: Pattern, instances: Iterable[Object]) -> str:
    names = [label(instance) for instance in instances]
    if any(name.startswith(f"{pattern.text}:") for name in names):
        return f"{pattern.text} is an app: did you mean {pattern.text}:*?"
    close = difflib.get_close_matches(pattern.text, [*names, *(name.partition(":")[2] for name in names)], 3)
    return f"did you mean {' or '.join(close)}?" if close else "branchctl ps lists them"
