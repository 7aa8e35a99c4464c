"""How the report is shown: by section of the source, the verdicts in one order, for people and as JSON."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from branchd.cli.importing.notes import Entry, Imported, Note, Verdict
from branchd.core.merge import hide

#: columns of a verdict's word
_WIDTH = max(map(len, Verdict))

#: instances that are named one by one
_MOST_NAMED = 4


def lines(imported: Imported) -> Iterator[str]:
    for entry in imported.entries:
        yield f"{entry.title}  {_instances(entry.instances)}".rstrip()
        told = {key for note in entry.notes if note.text and note.verdict is not Verdict.LINT for key in note.keys}
        carried = (note for note in entry.notes if note.verdict is Verdict.CARRIED and not note.text)
        plain = [key for note in carried for key in note.keys if key not in told]
        if plain:
            yield f"  {Verdict.CARRIED:<{_WIDTH}}  {', '.join(plain)}"
        for verdict in Verdict:
            for note in entry.notes:
                if note.verdict is verdict and (note.text or verdict is not Verdict.CARRIED):
                    yield from _note(note)
        yield ""
    counts = {verdict: sum(n.verdict is verdict for e in imported.entries for n in e.notes) for verdict in Verdict}
    summed = ", ".join(
        f"{count} {verdict}" for verdict, count in counts.items() if count and verdict is not Verdict.CARRIED
    )
    instances = sum(len(app["instances"]) for app in imported.apps.values())
    yield f"{_many(len(imported.apps), 'app')}, {_many(instances, 'instance')}{': ' if summed else ''}{summed}"


def document(imported: Imported) -> dict[str, Any]:
    """As JSON, secrets hidden."""
    return {
        "apps": {name: hidden(app) for name, app in imported.apps.items()},
        "sections": [_section(entry) for entry in imported.entries],
        "incomplete": imported.incomplete,
    }


def hidden(app: Mapping[str, Any]) -> dict[str, Any]:
    return {**hide(app), "instances": {name: hide(spec) for name, spec in app["instances"].items()}}


def _section(entry: Entry) -> dict[str, Any]:
    return {
        "title": entry.title, "file": entry.file, "instances": list(entry.instances),
        "notes": [
            {"verdict": note.verdict.value, "keys": list(note.keys), "detail": note.text, "hint": note.cure}
            for note in entry.notes
        ],
    }  # fmt: skip


def _note(note: Note) -> Iterator[str]:
    keys = f"{', '.join(note.keys)}: " if note.keys and note.text else ", ".join(note.keys)
    yield f"  {note.verdict:<{_WIDTH}}  {keys}{note.text}"
    if note.cure:
        yield f"  {'':<{_WIDTH}}    {note.cure}"


def _instances(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    if len(names) > _MOST_NAMED:
        return f"-> {names[0]} to {names[-1]}, {len(names)} instances"
    return f"-> {', '.join(names)}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def selectors(names: Iterable[str], known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The fewest that mean these: `APP:*` where they are all of an app."""
    by_app: dict[str, list[str]] = {}
    for name in names:
        app, _, instance = name.partition(":")
        by_app.setdefault(app, []).append(instance)
    return [
        selector
        for app, instances in by_app.items()
        for selector in (
            [f"{app}:*"]
            if len(instances) == len(known[app]["instances"]) > 1
            else [f"{app}:{instance}" for instance in instances]
        )
    ]
