"""The pages of reference say what the code says: fields and defaults of a spec, scopes of the API."""

import re
from pathlib import Path

import pytest
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields

from branchd.api.handlers import ROUTES
from branchd.core.spec import LIVE, Autoscale, Hook, Limits, Logs, Probe, Ready, Restart, Spec, StopStep
from branchd.wire import json
from branchd.wire.decode import encode

DOCS = Path(__file__).parents[1] / "docs"


def table(page: str, heading: str) -> list[dict[str, str]]:
    """The rows of a section's only table, their cells by the titles of the columns."""
    section = re.split(rf"^#+ {re.escape(heading)}$", (DOCS / page).read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
    (found,) = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    titles, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in found.splitlines())
    return [dict(zip(titles, row, strict=True)) for row in rows]


def default(field: FieldInfo) -> str:
    if field.default_factory is not NODEFAULT:
        value = field.default_factory()
    elif field.default is not NODEFAULT:
        value = {} if isinstance(field.default, Struct) else field.default
    else:
        return "needed"
    value = int(value) if isinstance(value, float) and value.is_integer() else encode(value)
    return f"`{json.dumps(value).decode()}`"


SECTIONS = {
    "The spec of an instance": Spec, "autoscale": Autoscale, "restart": Restart, "stop": StopStep, "ready": Ready,
    "Probes": Probe, "hooks": Hook, "limits": Limits, "logs": Logs,
}  # fmt: skip


@pytest.mark.parametrize(("heading", "kind"), SECTIONS.items(), ids=SECTIONS)
def test_the_page_has_every_field_of_a_spec_with_its_default(heading: str, kind: type) -> None:
    shown = [(row["field"], row["default"]) for row in table("spec.md", heading)]
    assert shown == [(f"`{field.name}`", default(field)) for field in fields(kind)]


def test_the_page_says_of_every_field_when_a_change_takes_effect() -> None:
    shown = {row["field"].strip("`"): row["change"] for row in table("spec.md", "The spec of an instance")}
    assert shown.pop("logs") == "see below"
    assert {name for name, when in shown.items() if when == "at once"} == LIVE
    assert {when for name, when in shown.items() if name not in LIVE} == {"restart"}


def test_the_page_says_which_scope_every_operation_needs() -> None:
    shown = set()
    for row in table("http.md", "Who asks"):
        path = row.pop("path").strip("`")
        shown |= {(method, path, scope) for scope, methods in row.items() for method in methods.split(", ") if method}
    assert shown == {(route.method, route.path, route.scope or "anybody") for route in ROUTES}
