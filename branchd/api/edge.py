"""What is done with every request around its handler, in this order: sender, principal, scope, names, parameters, body.

And with every error on the way back: it becomes a problem (problems.py).
"""

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from branchd.api import body, parameters, problems
from branchd.api.answers import IF_MATCH, IF_NONE_MATCH
from branchd.api.auth import Guard
from branchd.api.connection import SECURITY_HEADERS
from branchd.api.problems import NoSuchPath, WrongMethod
from branchd.api.routing import Call, House, Route
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError, Denied, Fault, Invalid, Unavailable
from branchd.core.faults import name_fault, queue_fault

AiohttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ANYBODY = Principal("anybody", Scope.READ)


class Edge:
    def __init__(self, house: House, guard: Guard) -> None:
        self._house = house
        self._guard = guard

    def serve(self, route: Route) -> AiohttpHandler:
        async def handler(request: web.Request) -> web.StreamResponse:
            principal = _ANYBODY
            if route.scope is not None:
                principal = self._guard.principal(request)
                _check_scope(principal, route.scope)
            if route.changes and not self._house.service.ready:
                raise Unavailable("; ".join(self._house.service.problems()))
            _check_names(request.match_info)
            _check_preconditions(request, route)
            values = parameters.read(route.query, request.query)
            value = await body.read(request, route, self._house.settings.body_limit)
            return await route.handler(Call(self._house, request, principal, request.match_info, values, value))

        return handler

    def middleware(self) -> Middleware:
        """aiohttp's: around routes, and around its own answers for paths and methods that are none."""

        @web.middleware
        async def around(request: web.Request, handler: AiohttpHandler) -> web.StreamResponse:
            try:
                self._guard.check_sender(request)
                return await handler(request)
            except BranchdError as error:
                if problems.foreseen(error):
                    return problems.answer(error)
                return problems.answer(problems.internal(error, _where(request)))
            except web.HTTPException as error:
                return problems.answer(_from_aiohttp(error, request))
            except ConnectionError:  # the client is gone, and nobody would read an answer
                raise
            except Exception as error:  # noqa: BLE001  # the last wall: no traceback leaves
                return problems.answer(problems.internal(error, _where(request)))

        return around


async def secure(_request: web.Request, response: web.StreamResponse) -> None:
    """Signal of aiohttp, sent before the headers of any answer are."""
    response.headers.update(SECURITY_HEADERS)


def _check_scope(principal: Principal, needed: Scope) -> None:
    if not principal.scope.includes(needed):
        raise Denied(f"this needs the scope {needed}; {principal.name} has {principal.scope}",
                     f"use a token with the scope {needed}")  # fmt: skip


def _check_names(path: web.UrlMappingMatchInfo) -> None:
    faults = []
    for name, value in path.items():
        pointer = f"{{{name}}}"
        if name in {"app", "instance", "branch"}:
            faults.append(name_fault(value, pointer, f"{name} name"))
        elif name == "queue":
            faults.append(queue_fault(value, pointer))
    if wrong := [fault for fault in faults if fault]:
        raise Invalid(wrong, "the path names what cannot be")


def _check_preconditions(request: web.Request, route: Route) -> None:
    """A change never disregards the condition that it was asked under."""
    given = [name for name in (*IF_MATCH, *IF_NONE_MATCH) if name in request.headers and name not in route.headers]
    if route.changes and given:
        raise Invalid([Fault(f"{name}:", "is not possible here", "leave it out") for name in given])


def _from_aiohttp(error: web.HTTPException, request: web.Request) -> BranchdError:
    match error:
        case web.HTTPNotFound() if request.method == "CONNECT":
            return WrongMethod("CONNECT is not possible: this is no proxy", headers={"Allow": "GET, HEAD"})
        case web.HTTPNotFound():
            return NoSuchPath(f"there is no {request.path[:255]!r}", "see /v1/openapi.json")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return WrongMethod(f"{request.method} is not possible here", f"one of {allowed}", {"Allow": allowed})
        case _ if error.status < web.HTTPInternalServerError.status_code:
            return problems.BadRequest(error.reason)
        case _:
            return problems.internal(error, _where(request))


def _where(request: web.Request) -> str:
    return f"{request.method} {request.raw_path[:1000]!r}"
