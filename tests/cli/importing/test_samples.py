"""Configurations in the shape of well-known products: each report, and what is made of it, line for line."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from branchd.cli.importing import report, toml
from branchd.cli.importing.assembling import of_supervisord
from branchd.cli.importing.notes import Imported
from branchd.cli.importing.reading import read
from branchd.wire.spec import effective
from tests.cli.importing.machines import HOST, MACHINE, VARIABLES

DATA = Path(__file__).with_name("data")
SAMPLES = sorted(path.stem for path in DATA.glob("*.conf"))

#: in the shape of those that Celery publishes
PUBLISHED = sorted(f"published/{path.stem}" for path in (DATA / "published").glob("*.conf"))

#: those of which something cannot be carried over
INCOMPLETE = {"erp", "forge", "monitors", "notebooks", "sockets"}


def imported(path: Path) -> Imported:
    return of_supervisord(path, HOST, VARIABLES, MACHINE, keep_commands=False)


def shown(found: Imported) -> str:
    lines = "\n".join([*report.lines(found), "", "--- conf.d", *toml.lines(found.apps)])
    return lines.replace(str(DATA), "/etc/supervisor")


def test_there_are_twelve_and_three() -> None:
    assert len(SAMPLES) == 12
    assert len(PUBLISHED) == 3


@pytest.mark.parametrize("name", [*SAMPLES, *PUBLISHED])
def test_a_report_is_as_it_was_read_by_eye(name: str) -> None:
    """`python -m tests.cli.importing.test_samples` writes them anew; read the difference."""
    assert shown(imported(DATA / f"{name}.conf")) == (DATA / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", [*SAMPLES, *PUBLISHED])
def test_every_key_of_every_section_is_in_the_report(name: str) -> None:
    path = DATA / f"{name}.conf"
    told = {(entry.title, key) for entry in imported(path).entries for note in entry.notes for key in note.keys}
    sections = read(path, HOST, VARIABLES).sections
    assert {(f"[{title}]", key) for title, section in sections.items() for key in section} <= told


@pytest.mark.parametrize("name", [*SAMPLES, *PUBLISHED])
def test_what_is_made_is_what_branchd_takes_and_the_toml_says_it(name: str) -> None:
    found = imported(DATA / f"{name}.conf")
    for app in found.apps.values():
        own = {field: value for field, value in app.items() if field not in {"instances", "queues"}}
        for spec in app["instances"].values():
            effective(own, spec)
    read_back = tomllib.loads("\n".join(toml.lines(found.apps))).get("apps", {})
    assert read_back == {app: {k: v for k, v in spec.items() if k != "queues"} for app, spec in found.apps.items()}


@pytest.mark.parametrize("name", [*SAMPLES, *PUBLISHED])
def test_what_cannot_be_carried_over_makes_an_import_incomplete(name: str) -> None:
    assert bool(imported(DATA / f"{name}.conf").incomplete) is (name in INCOMPLETE)


def test_supervisords_own_sample_says_what_becomes_of_each_of_its_keys(tmp_path: Path) -> None:
    sample = subprocess.run(
        [Path(sys.executable).with_name("echo_supervisord_conf")], check=True, capture_output=True, text=True
    ).stdout
    path = tmp_path / "supervisord.conf"
    path.write_text(sample)
    found = imported(path)
    assert not found.apps
    assert not found.incomplete
    # with its examples made real, of which it shows every key
    path.write_text(
        re.sub(r"^;(?=[\w\[])", "", sample, flags=re.MULTILINE).replace("events=EVENT", "events=EVENT\nx=1")
    )
    found = imported(path)
    sections = read(path, HOST, VARIABLES).sections
    told = {(entry.title, key): note for entry in found.entries for note in entry.notes for key in note.keys}
    assert told.keys() == {(f"[{title}]", key) for title, section in sections.items() for key in section}
    assert len([key for title, key in told if title == "[program:theprogramname]"]) == 31


if __name__ == "__main__":
    for sample in [*SAMPLES, *PUBLISHED]:
        (DATA / f"{sample}.txt").write_text(shown(imported(DATA / f"{sample}.conf")))
