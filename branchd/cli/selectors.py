"""Which instances are meant: shop:mail-1, shop:*, web2/shop:mail-*, mail-1, -l team=pay, --state BACKOFF, --all.

supervisord's syntax, with a branch before it where several are. That nothing matches is an error; then nothing is done
to the others either.
"""

import asyncio
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from branchd.client import ApiProblem, BranchdClient, Object
from branchd.core.errors import BranchdError, NotFound
from branchd.core.value import Value

_PATTERN = re.compile(r"(?:(?P<branch>[^/:\s]+)/)?(?:(?P<app>[^/:\s]+):)?(?P<name>[^/:\s]+)")
_WILD = frozenset("*?[")


class Ambiguous(BranchdError):
    """A name that several apps, or several branches, have."""


class Uncertain(BranchdError):
    """Nothing matches, and not all branches have answered."""


class Pattern(Value):
    text: str
    branch: str  #: empty: on whichever there is one
    app: str
    name: str
    bare: bool  #: without an app, and without a wildcard

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """ValueError."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a selector; such as shop:mail-1, shop:* or mail-1")
        bare = match["app"] is None and not _WILD & set(match["name"])
        return cls(text, match["branch"] or "", match["app"] or "*", match["name"], bare)

    @property
    def exact(self) -> bool:
        """Means one instance; without a branch the one of that name."""
        return not _WILD & set(self.branch + self.app + self.name)

    def matches(self, instance: Object) -> bool:
        return (
            fnmatchcase(instance["name"], self.name)
            and fnmatchcase(instance["app"], self.app)
            and fnmatchcase(instance["branch"], self.branch or "*")
        )


class Selection(Value):
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


class Found(Value):
    instances: Sequence[Object]
    unreachable: Sequence[str] = ()  #: branches that did not answer: theirs are not among them

    @property
    def document(self) -> Object:
        """As the API gives a list."""
        missing = list(self.unreachable)
        return {"items": list(self.instances), "next": None, "partial": bool(missing), "unreachable": missing}

    @property
    def label(self) -> Callable[[Object], str]:
        """Gives the name of each, with its branch where several have the same one."""
        names = Counter(map(label, self.instances))

        def told(instance: Object) -> str:
            name = label(instance)
            return f"{instance['branch']}/{name}" if names[name] > 1 else name

        return told


def label(instance: Object) -> str:
    """Its name for people, and for selectors."""
    return f"{instance['app']}:{instance['name']}"


def at(client: BranchdClient, instance: Object) -> BranchdClient:
    """The client to ask of it: another branch may have a pinned one of the same name."""
    return client.at(instance["branch"]) if instance["placement"] == "pinned" else client


def select(selection: Selection, instances: Sequence[Object]) -> list[Object]:
    """In the order of `instances`. NotFound where a pattern, or all of it, matches nothing; Ambiguous."""
    chosen: set[int] = set() if selection.patterns else set(range(len(instances)))
    for pattern in selection.patterns:
        matching = [index for index, instance in enumerate(instances) if pattern.matches(instance)]
        if not matching:
            raise NotFound(f"no instance matches {pattern.text}", _suggestion(pattern, instances))
        names = dict.fromkeys(label(instances[index]) for index in matching)
        if pattern.bare and len(names) > 1:
            raise Ambiguous(f"{pattern.text} is in several apps", f"one of {', '.join(list(names)[:20])}")
        if (pattern.bare or pattern.exact) and not pattern.branch and len(matching) > 1:
            candidates = ", ".join(f"{instances[index]['branch']}/{label(instances[index])}" for index in matching[:20])
            raise Ambiguous(f"{pattern.text} is on several branches", f"one of {candidates}")
        chosen.update(matching)
    found = [instances[index] for index in sorted(chosen) if _passes(selection, instances[index])]
    if not found and selection != Selection():
        raise NotFound(f"no instance matches {selection.words}")
    return found


async def find(client: BranchdClient, selection: Selection, *, statuses: bool = False) -> Found:
    """As select(), over what the API has; where all are named exactly it is asked for them alone. Uncertain.

    `statuses`: how they are is enough; what was asked for may be left out.
    """
    if selection.patterns and all(pattern.exact and not pattern.bare for pattern in selection.patterns):
        names = dict.fromkeys((pattern.branch, pattern.app, pattern.name) for pattern in selection.patterns)
        asked = [(client.at(branch) if branch else client, app, name) for branch, app, name in names]
        try:
            instances = await asyncio.gather(*(one.instance(app, name) for one, app, name in asked))
        except ApiProblem as problem:
            if problem.status not in {404, 409, 503}:
                raise
        else:
            unique = {(one["branch"], label(one)): one for one in instances}
            return Found(select(selection, list(unique.values())))
    everything = await (client.statuses() if statuses and not selection.labels else client.instances())
    try:
        return Found(select(selection, everything["items"]), everything["unreachable"])
    except NotFound as error:
        if not everything["partial"]:
            raise
        missing = ", ".join(everything["unreachable"])
        raise Uncertain(f"{error.detail} on the branches that answered", f"{missing} did not answer") from None


def _passes(selection: Selection, instance: Object) -> bool:
    labels = instance.get("effective", {}).get("labels", {})
    return all(labels.get(name) == value for name, value in selection.labels) and (
        not selection.states or instance["status"]["state"] in selection.states
    )


def _suggestion(pattern: Pattern, instances: Iterable[Object]) -> str:
    names = [label(instance) for instance in instances]
    if any(name.startswith(f"{pattern.text}:") for name in names):
        return f"{pattern.text} is an app: did you mean {pattern.text}:*?"
    close = difflib.get_close_matches(pattern.text, [*names, *(name.partition(":")[2] for name in names)], 3)
    return f"did you mean {' or '.join(close)}?" if close else "branchctl ps lists them"
