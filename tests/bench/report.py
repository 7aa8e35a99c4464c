"""The figures as a markdown table. No measuring here."""

from collections.abc import Mapping
from typing import Any

from tests.bench.supervisors import Branchd, Loop, Supervisord

#: share of the CPUs in use by others, above which a figure is not to be trusted
NOISY = 0.15


def markdown(book: Mapping[str, Any]) -> str:
    """The comparison with its ratio (below 1: branchd needs less), the floors, and what disturbed them."""
    figures, machine, versions = book["figures"], book["machine"], book["versions"]
    ours, theirs = figures.get(Branchd.name, {}), figures.get(Supervisord.name, {})
    heads = [f"{name} {versions.get(name, '')}".strip() for name in (Branchd.name, Supervisord.name)]
    lines = [
        f"{machine['cpus']} CPUs, Linux {machine['kernel']}, Python {machine['python']}; less is better everywhere.",
        "",
        f"| measure | {heads[0]} | {heads[1]} | ratio |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {label} | {figure(ours, label)} | {figure(theirs, label)} | {ratio(ours, theirs, label)} |"
        for label in dict.fromkeys([*ours, *theirs])
    ]
    lines += ["", "| floor | |", "| --- | --- |"]
    floor = figures.get(Loop.name, {})
    lines += [f"| {label} | {figure(floor, label)} |" for label in floor]
    loud = [f"{label} ({share:.0%})" for label, share in book["busy_before"].items() if share > NOISY]
    lines += ["", f"Others used the CPUs before: {', '.join(loud) or 'nothing noteworthy'}."]
    return "\n".join(lines) + "\n"


def figure(figures: Mapping[str, float], label: str) -> str:
    return f"{figures[label]:.3g}" if label in figures else "n/a"


def ratio(ours: Mapping[str, float], theirs: Mapping[str, float], label: str) -> str:
    if label not in ours or not theirs.get(label):
        return "n/a"
    return f"{ours[label] / theirs[label]:.3f}"
