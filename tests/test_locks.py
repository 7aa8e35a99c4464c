"""requirements/*.txt are what `make lock` writes for pyproject.toml, as far as that can be told without a network."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ]+)( ; .+)? \\$", re.MULTILINE)


def pins(name: str) -> set[tuple[str, str]]:
    return {(package, version) for package, version, _ in PIN.findall((ROOT / "requirements" / name).read_text())}


def asked_for(*lists: list[str]) -> set[str]:
    """The names alone, as the locks spell them."""
    return {re.split(r"[^A-Za-z0-9._-]", wanted)[0].lower() for names in lists for wanted in names}


def test_everything_that_the_project_asks_for_is_locked() -> None:
    groups = PROJECT["dependency-groups"]
    demo = asked_for(PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]["demo"])
    assert demo | asked_for(groups["build"]) <= {package for package, _ in pins("demo.txt")}
    assert asked_for(PROJECT["project"]["dependencies"]) <= {package for package, _ in pins("package.txt")}
    assert asked_for(groups["build"]) <= {package for package, _ in pins("build.txt")}
    assert demo | asked_for(*groups.values()) <= {package for package, _ in pins("dev.txt")}


def test_all_run_on_the_versions_of_the_demo() -> None:
    assert pins("package.txt") | pins("build.txt") <= pins("demo.txt") <= pins("dev.txt")


def test_locks_have_hashes_and_say_nothing_of_where_packages_come_from() -> None:
    for lock in (ROOT / "requirements").iterdir():
        text = lock.read_text()
        assert "://" not in text
        assert len(re.findall(r"\\\n    --hash=sha256:", text)) >= len(PIN.findall(text)) > 0
        assert [line for line in text.splitlines() if re.match("[a-zA-Z-]", line) and not PIN.match(line)] == []
