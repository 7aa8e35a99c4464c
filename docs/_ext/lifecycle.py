"""Draws the automaton of an instance from branchd.core.automaton's own tables, as the documentation is built.

Only where the states stand in the picture, and how an arrow bends, is decided here. Everything else is read; a state
that has no place below fails the build.
"""

import math
from typing import NamedTuple, Self

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from branchd.core.automaton import ANSWERS, HELD, TABLE, Cell, Question
from branchd.core.lifecycle import State, Symbol


class Point(NamedTuple):
    x: float
    y: float

    def __add__(self, other: Self) -> Self:  # type: ignore[override]
        return type(self)(self.x + other.x, self.y + other.y)

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.x - other.x, self.y - other.y)

    def __mul__(self, factor: float) -> Self:  # type: ignore[override]
        return type(self)(self.x * factor, self.y * factor)

    @property
    def length(self) -> float:
        return math.hypot(self.x, self.y)


#: where the middle of each state's box stands, in the picture's units
PLACES = {
    State.STOPPED: Point(70, 300),
    State.STARTING: Point(380, 70),
    State.RUNNING: Point(690, 70),
    State.STOPPING: Point(270, 250),
    State.BACKOFF: Point(740, 300),
    State.EXITED: Point(480, 430),
    State.FATAL: Point(70, 70),
}
SIZE = Point(800, 490)
BOX = Point(110, 40)
#: how far the middle of an arrow lies beside the straight line, as a share of its length
BEND = 0.12

Arrow = tuple[State, State]


def arrows() -> dict[Arrow, list[str]]:
    """From where to where, and each label that leads there, in the tables' order; a question's carry its answers."""
    found: dict[Arrow, list[str]] = {}
    for source, row in (*TABLE.items(), (State.STARTING, HELD)):
        for symbol, cell in row.items():
            if isinstance(cell, Cell):
                choices = [(symbol.value, cell)]
            else:
                choices = [(f"{symbol}: {answer}", choice) for answer, choice in ANSWERS[cell].items()]
            for label, choice in choices:
                if choice.to is not source:
                    found.setdefault((source, choice.to), []).append(label)
    return found


def border(middle: Point, towards: Point) -> Point:
    """Where the line from the middle of a box leaves it, and a little further."""
    way = towards - middle
    steps = [half / abs(part) for half, part in ((BOX.x / 2, way.x), (BOX.y / 2, way.y)) if part]
    return middle + way * min(steps) + way * (4 / way.length)


def draw_arrow(number: int, arrow: Arrow, title: str) -> str:
    """A bent line with its number upon it; one there and one back bend to different sides."""
    source, target = PLACES[arrow[0]], PLACES[arrow[1]]
    way = target - source
    control = source + way * 0.5 + Point(way.y, -way.x) * (2 * BEND)
    start, end = border(source, control), border(target, control)
    badge = start * 0.25 + control * 0.5 + end * 0.25
    return (
        f'<g><title>{title}</title><path d="M{start.x:.1f} {start.y:.1f}Q{control.x:.1f} {control.y:.1f} '
        f'{end.x:.1f} {end.y:.1f}" fill="none" stroke="currentColor" marker-end="url(#lifecycle-head)"/>'
        f'<circle cx="{badge.x:.1f}" cy="{badge.y:.1f}" r="10" fill="var(--color-background-primary, white)" '
        f'stroke="currentColor"/><text x="{badge.x:.1f}" y="{badge.y + 4:.1f}" font-size="11">{number}</text></g>'
    )


def draw_state(state: State) -> str:
    middle = PLACES[state]
    corner = middle - BOX * 0.5
    return (
        f'<rect x="{corner.x}" y="{corner.y}" width="{BOX.x}" height="{BOX.y}" rx="8" stroke="currentColor" '
        f'stroke-width="2" fill="none"/><text x="{middle.x}" y="{middle.y + 5}" font-size="14">{state}</text>'
    )


def picture() -> str:
    """The whole as an SVG that takes the page's colours."""
    lines = [
        draw_arrow(number, arrow, f"{arrow[0]} to {arrow[1]}: {', '.join(labels)}")
        for number, (arrow, labels) in enumerate(arrows().items(), 1)
    ]
    return (
        f'<svg viewBox="0 0 {SIZE.x} {SIZE.y}" role="img" aria-label="States of an instance; told in words below" '
        'font-family="sans-serif" text-anchor="middle" style="max-width: 100%"><defs><marker id="lifecycle-head" '
        'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="currentColor"/></marker></defs><g fill="currentColor">'
        f"{''.join(lines)}{''.join(map(draw_state, State))}</g></svg>"
    )


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def words(cell: Cell | Question | None, state: State | None = None) -> str:
    """A cell in words: what is done, and where it leads unless it stays."""
    if cell is None:
        return ""
    if isinstance(cell, Question):
        return f"*{cell.value}*"
    does = ", ".join([*(do.value for do in cell.does), *([f"*{cell.then.value}*"] if cell.then else [])])
    where = "" if cell.to is state else f"→ {cell.to}"
    return ": ".join(filter(None, [where, does])) or "stays"


class Diagram(SphinxDirective):
    """The picture."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", picture(), format="html")]


class Arrows(SphinxDirective):
    """What the picture's numbers mean."""

    def run(self) -> list[nodes.Node]:
        rows = [
            [str(number), source.value, target.value, ", ".join(labels)]
            for number, ((source, target), labels) in enumerate(arrows().items(), 1)
        ]
        return self.parse_text_to_nodes(markdown_table(["", "from", "to", "by"], rows))


class Table(SphinxDirective):
    """Every event in every state."""

    def run(self) -> list[nodes.Node]:
        columns = [(state.value, state, row) for state, row in TABLE.items()]
        columns.insert(list(TABLE).index(State.STARTING) + 1, ("STARTING, waits", State.STARTING, HELD))
        rows = [[symbol.value, *(words(row.get(symbol), state) for _, state, row in columns)] for symbol in Symbol]
        return self.parse_text_to_nodes(markdown_table(["", *(title for title, _, _ in columns)], rows))


class Answers(SphinxDirective):
    """Where the answer to each question leads."""

    def run(self) -> list[nodes.Node]:
        rows = [
            [question.value, answer.value, words(cell)]
            for question, answers in ANSWERS.items()
            for answer, cell in answers.items()
        ]
        return self.parse_text_to_nodes(markdown_table(["question", "answer", "what follows"], rows))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("lifecycle-diagram", Diagram)
    app.add_directive("lifecycle-arrows", Arrows)
    app.add_directive("lifecycle-table", Table)
    app.add_directive("lifecycle-answers", Answers)
    return {"parallel_read_safe": True}
