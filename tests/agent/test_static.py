"""The agent's sources stay what every supported interpreter can run: Python 3.8, the standard library and celery."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.harness import AGENT

SOURCES = sorted(AGENT.glob("*.py"))
OWN = {source.stem for source in SOURCES}
#: where other interpreters may be on a developer's machine
VERSIONS = Path.home() / ".pyenv" / "versions"


def interpreters() -> list[str]:
    """Every Python from 3.8 on that can be found here; always the one that runs this."""
    named = [shutil.which(f"python3.{minor}") for minor in range(8, 16)]
    candidates = {sys.executable, *filter(None, named), *map(str, VERSIONS.glob("3.*/bin/python"))}
    return sorted(filter(_is_supported, candidates))


def _is_supported(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 8))"
    return subprocess.run([python, "-c", check], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_syntax_is_python_3_8(source: Path) -> None:
    ast.parse(source.read_text(), source.name, feature_version=(3, 8))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_only_the_standard_library_and_celery_are_imported(source: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the folder is no package when it runs"
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names | {"celery"} | OWN


def test_no_module_can_be_mistaken_for_a_users() -> None:
    assert {name for name in OWN if not name.startswith(("_branchd_", "__"))} == set()


@pytest.mark.parametrize("python", interpreters())
def test_the_interpreters_of_this_machine_compile_it(python: str) -> None:
    code = "import sys; [compile(open(path).read(), path, 'exec') for path in sys.argv[1:]]"
    subprocess.run([python, "-c", code, *map(str, SOURCES)], check=True, capture_output=True, timeout=60)
