"""Routes: declared once at their handler, from which the router and the OpenAPI document are made.

What is done with a request before its handler sees it stands in edge.py.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import Enum, auto
from typing import Any, TypeVar

from aiohttp import web

from branchd.api.encoded import Encoded
from branchd.api.parameters import FLAG, Parameter, duration, text
from branchd.api.settings import HttpSettings
from branchd.api.streams import Streams
from branchd.branch.mesh.neighbours import Neighbours
from branchd.branch.service import Service
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError
from branchd.core.value import Value

T = TypeVar("T")

#: seconds that a request may wait; a caller that waits longer asks again
LONGEST_WAIT = 3600.0

LOCAL = Parameter("local", FLAG, False, "Ask this branch alone.")
WHERE: Parameter[str | None] = Parameter("branch", text(63), None, "The branch that is meant, by its name or id.")
WAIT = Parameter("wait", duration(LONGEST_WAIT), 0.0, "Answer when it has come to that, after so long at the latest.")


class About(Enum):
    """What a route is about: which branches can answer, and whether another one may have the request carried there."""

    HERE = auto()  #: this branch; nobody else asks for it by way of another branch
    DEFINITION = auto()  #: what all branches share: this one answers
    INSTANCE = auto()  #: {app} and {instance}: the branch that has it answers
    NEW = auto()  #: an instance that may not exist yet; its handler has it created where nobody has it
    BRANCH = auto()  #: {branch}, or ?branch=: that branch answers
    NEIGHBOURHOOD = auto()  #: a list: every branch has its part of it

    @property
    def carried(self) -> bool:
        return self not in {About.HERE, About.DEFINITION}


class House(Value):
    """What handlers work with; one a server."""

    service: Service
    settings: HttpSettings
    streams: Streams
    encoded: Encoded  #: instances
    statuses: Encoded  #: how they are
    document: Callable[[], bytes]  #: the OpenAPI document


class Call(Value):
    """One request, authenticated, allowed, and its parts decoded."""

    house: House
    route: "Route"
    request: web.Request
    principal: Principal
    path: Mapping[str, str]  #: the path's variables; their names are valid
    parameters: Mapping[str, Any]
    body: Any = None  #: JSON values; None for routes without a body

    @property
    def service(self) -> Service:
        return self.house.service

    @property
    def neighbours(self) -> Neighbours | None:
        """The other branches, where they may be asked: not for what one of them carried here, and not for ?local=1."""
        return None if self.principal.via is not None or self.get(LOCAL) else self.service.mesh

    def get(self, parameter: Parameter[T]) -> T:
        value: T = self.parameters[parameter.name]
        return value


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Text(Value):
    """Answers that are no JSON object: their media types."""

    types: tuple[str, ...]


class Route(Value):
    method: str
    path: str  #: aiohttp's and OpenAPI's notation: /v1/apps/{app}
    scope: Scope | None  #: the least that a principal needs; None: anybody, without a token
    handler: Handler
    returns: Mapping[int, Any]  #: by status: a Value, list[Value] for a page of them, Text, or None
    body: Any  #: the type that the document shows; None: takes no body
    query: Mapping[str, Parameter[Any]]
    headers: Mapping[str, str]  #: request headers with a meaning here, and which
    raises: tuple[type[BranchdError], ...]  #: besides what any route of its form can raise
    streams: bool  #: may go on without end
    about: About

    @property
    def name(self) -> str:
        return self.handler.__name__

    @property
    def changes(self) -> bool:
        """Whether it may change anything; a GET never does."""
        return self.method != "GET"

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip()


class Routes:
    """A module's routes, in the order of writing; calling it makes the decorator."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def __call__(
        self,
        method: str,
        path: str,
        *,
        scope: Scope | None,
        returns: Mapping[int, Any],
        body: Any = None,
        query: tuple[Parameter[Any], ...] = (),
        headers: Mapping[str, str] | None = None,
        raises: tuple[type[BranchdError], ...] = (),
        streams: bool = False,
        about: About = About.HERE,
    ) -> Callable[[Handler], Handler]:
        def declare(handler: Handler) -> Handler:
            chosen = about in {About.INSTANCE, About.NEW} or (about is About.BRANCH and "{branch}" not in path)
            named = {parameter.name: parameter for parameter in (*query, *([WHERE] if chosen else []), LOCAL)}
            self._routes.append(
                Route(method, path, scope, handler, returns, body, named, headers or {}, raises, streams, about)
            )
            return handler

        return declare
