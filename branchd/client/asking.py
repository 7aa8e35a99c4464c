"""How the API is asked: what goes with every request, and what its answer becomes: an object, all pages of a list, a
problem. Which endpoints there are stands in client.py, how a request is carried in connection.py.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from branchd.client.connection import Answer, Endpoint, exchange
from branchd.client.errors import ApiProblem
from branchd.core.value import Value

#: an object of the API, in the shapes of wire/resources.py
Object = dict[str, Any]

#: objects of a page: the most that the API gives at once
PAGE = 1000


class Asking(Value):
    """Every method raises ApiProblem when the API says no, and Unreachable when no whole answer came."""

    endpoint: Endpoint
    token: str | None
    timeout: float  #: seconds for an answer, beside those that it was asked to wait
    branch: str | None  #: whose instances and events it is asked about; None: all of the neighbourhood
    local: bool  #: the branch answers without the others

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        match: str | None = None,
        wait: float | None = None,
        patience: float = 0.0,
        accept: str = "application/json",
    ) -> AsyncIterator[Answer]:
        """`wait`: seconds that the answer may wait for what is asked; `patience`: seconds that it has besides."""
        asked = dict(query or {}) | ({} if wait is None else {"wait": f"{wait:g}s"})
        if self.local:
            asked["local"] = "1"
        if self.branch is not None and path.startswith("/v1/"):
            asked["branch"] = self.branch
        sent = {"Accept": accept} | dict(headers or {})
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        if match is not None:
            sent["If-Match"] = match
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        target = path + ("?" + urlencode(asked, doseq=True) if asked else "")
        timeout = self.timeout + patience + (wait or 0)
        async with exchange(self.endpoint, method, target, sent, content, timeout) as answer:
            if answer.status >= 400:
                raise ApiProblem.of(answer.status, _document(answer, await answer.read()))
            yield answer

    async def object(self, method: str, path: str, body: Object | None = None, **options: Any) -> Object:
        async with self.request(method, path, body, **options) as answer:
            return parsed(answer, await answer.read())

    async def call(self, method: str, path: str, **options: Any) -> int:
        """The status alone."""
        async with self.request(method, path, **options) as answer:
            await answer.read()
            return answer.status

    async def holds(self, path: str) -> bool:
        """False where the answer is 503."""
        try:
            await self.call("GET", path)
        except ApiProblem as problem:
            if problem.status != 503:
                raise
            return False
        return True

    async def list(self, path: str, filters: Mapping[str, str] | None = None) -> Object:
        """All pages as one: {items, next: None, partial, unreachable}."""
        items: list[Any] = []
        partial, unreachable, cursor = False, list[str](), None
        while True:
            query = {**(filters or {}), "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
            page = await self.object("GET", path, query=query)
            items += page["items"]
            partial = partial or page.get("partial", False)
            unreachable += [name for name in page.get("unreachable", ()) if name not in unreachable]
            cursor = page.get("next")
            if not cursor:
                return {"items": items, "next": None, "partial": partial, "unreachable": unreachable}


def parsed(answer: Answer, content: bytes) -> Object:
    """ApiProblem where it is none."""
    document = _document(answer, content)
    if not isinstance(document, dict):
        raise ApiProblem.of(answer.status, None)
    return document


def _document(answer: Answer, content: bytes) -> Any:
    """None where it is not JSON."""
    if "json" not in answer.headers.get("content-type", ""):
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None
