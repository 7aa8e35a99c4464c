"""Which specs would have the daemon itself connect to other machines."""

from typing import Any

import pytest

from branchd.core.spec import Hook, Hooks, Probe, Ready, Spec
from branchd.core.supervision_faults import outward


def found(**spec: Any) -> list[str]:
    return [pointer for pointer, _ in outward(Spec(**spec))]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8000/x", "https://localhost/", "http://[::1]:80/", "http://127.5.5.5", "http://a:b@127.0.0.1/"],
)
def test_probes_of_loopback_stay_here(url: str) -> None:
    assert found(ready=Ready(probe=Probe(http=url)), alive=Probe(http=url)) == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://10.0.0.1/", "http://example.org/", "http://127.0.0.1@example.org/", "http://localhost.example.org/"),
        *("http://[::ffff:10.0.0.1]/", "http://0.0.0.0/", "http://[:", "http://127.1/"),
    ],
)
def test_probes_of_anything_else_do_not(url: str) -> None:
    assert found(ready=Ready(probe=Probe(http=url)), alive=Probe(http=url)) == ["/ready/probe/http", "/alive/http"]


@pytest.mark.parametrize(("address", "pointers"), [
    (":5432", []), ("localhost:1", []), ("127.0.0.1:1", []), ("[::1]:1", []), ("db.example.org:5432", ["/alive/tcp"]),
    ("10.1.1.1:1", ["/alive/tcp"]),
])  # fmt: skip
def test_nor_do_connections(address: str, pointers: list[str]) -> None:
    assert found(alive=Probe(tcp=address)) == pointers


def test_programs_run_here_and_hooks_by_url_do_not() -> None:
    command, url = Hook(command=("mail",)), Hook(url="http://127.0.0.1/")
    assert found(alive=Probe(exec=("check",)), hooks=Hooks(command, command)) == []
    assert found(hooks=Hooks(url, url)) == ["/hooks/on_exit/url", "/hooks/on_fatal/url"]
