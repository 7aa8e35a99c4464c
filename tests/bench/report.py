"""The figures as a markdown table. No measuring here."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.mesh import BARE, BRANCHES, DISK, MEMORY, PROCESSES
from tests.bench.supervisors import SUPERVISORS, Branchd, Loop

#: share of the CPUs in use by others, above which a figure is not to be trusted
NOISY = 0.15


def markdown(book: Mapping[str, Any]) -> str:
    """The comparison with its ratios (below 1: branchd needs less), the mesh, the floors, and what disturbed them."""
    machine = book["machine"]
    lines = [f"{machine['cpus']} CPUs, Linux {machine['kernel']}, Python {machine['python']}; less is better, but for "
             "what is told a second."]  # fmt: skip
    for table in (_beside_others(book), _mesh(book), _floors(book)):
        lines += ["", *table] if table else []
    loud = [f"{label} ({share:.0%})" for label, share in book["busy_before"].items() if share > NOISY]
    lines += ["", f"Others used the CPUs before: {', '.join(loud) or 'nothing noteworthy'}."]
    return "\n".join(lines) + "\n"


def _beside_others(book: Mapping[str, Any]) -> list[str]:
    """Each with its ratio in brackets: what branchd takes of what that one takes."""
    names = [kind.name for kind in SUPERVISORS if kind.name in book["figures"]]
    ours = book["figures"].get(Branchd.name, {})
    labels = dict.fromkeys(label for name in names for label in book["figures"][name])
    rows = []
    for label in labels:
        cells = [figure(ours, label)] if Branchd.name in names else []
        for name in names:
            if name != Branchd.name:
                theirs = book["figures"][name]
                cells.append(f"{figure(theirs, label)} ({ratio(ours, theirs, label)})" if label in theirs else "n/a")
        rows.append([label, *cells])
    return _table(["measure", *(f"{name} {book['versions'].get(name, '')}".strip() for name in names)], rows)


def _mesh(book: Mapping[str, Any]) -> list[str]:
    """What the branches do beside what bare probes and offers cost over the same bus."""
    disk, memory, bare = (book["figures"].get(name, {}) for name in (DISK, MEMORY, BARE))
    table = _table(
        [f"mesh of {BRANCHES} branches in {PROCESSES} processes", DISK, MEMORY, BARE, f"{DISK} to {BARE}"],
        [
            [label, figure(disk, label), figure(memory, label), figure(bare, label), ratio(disk, bare, label)]
            for label in dict.fromkeys([*disk, *memory, *bare])
        ],
    )
    about = (
        "The broker shares these CPUs. Bus, seal, stores (every commit is synced) and logs are real; programs "
        f"are not started and HTTP is left out. {book['stores']}."
    )
    return [*table, "", about] if table else []


def _floors(book: Mapping[str, Any]) -> list[str]:
    floor = book["figures"].get(Loop.name, {})
    return _table(["floor", ""], [[label, figure(floor, label)] for label in floor])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Nothing where there are no rows."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] if rows else []


def figure(figures: Mapping[str, float], label: str) -> str:
    return f"{figures[label]:.3g}" if label in figures else "n/a"


def ratio(ours: Mapping[str, float], theirs: Mapping[str, float], label: str) -> str:
    if label not in ours or not theirs.get(label):
        return "n/a"
    return f"{ours[label] / theirs[label]:.3f}"
