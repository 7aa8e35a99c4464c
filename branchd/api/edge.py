"""What is done with every request around its handler, in this order: sender, principal, scope, names, parameters, body,
and whether another branch has to answer it (forwarding.py).

And on the way back: every error becomes a problem (problems.py), and every change leaves a record of who asked for it.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Middleware

from branchd.api import body, parameters, problems
from branchd.api.answers import IF_MATCH, IF_NONE_MATCH
from branchd.api.auth import Guard
from branchd.api.connection import SECURITY_HEADERS
from branchd.api.forwarding import OWNER, forwarded
from branchd.api.problems import NoSuchPath, WrongMethod
from branchd.api.routing import About, Call, House, Route
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError, Denied, Fault, Invalid
from branchd.core.faults import name_fault, queue_fault

AiohttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ANYBODY = Principal("anybody", Scope.READ)

#: whose answers say which branch they are of
_OWNED = frozenset({About.DEFINITION, About.INSTANCE, About.NEW})


class Edge:
    def __init__(self, house: House, guard: Guard) -> None:
        self._house = house
        self._guard = guard
        self._routes: dict[object, Route] = {}

    def serve(self, route: Route) -> AiohttpHandler:
        async def handler(request: web.Request) -> web.StreamResponse:
            principal = _ANYBODY if route.scope is None else self._guard.principal(request)
            if not route.changes:
                return await self._answer(request, route, principal)
            with suppress(Denied):  # which is told below, and for the record; who may not ask has not to wait
                _check_scope(principal, route)
                await self._house.service.take()
            response = await _or_problem(request, self._answer(request, route, principal))
            self._house.service.audit(principal, request.method, request.path, response.status, request.match_info)
            return response

        self._routes[handler] = route
        return handler

    async def _answer(self, request: web.Request, route: Route, principal: Principal) -> web.StreamResponse:
        _check_scope(principal, route)
        _check_names(request.match_info)
        _check_preconditions(request, route)
        values = parameters.read(route.query, request.query, parameters.bare(request.rel_url.raw_query_string))
        value = await body.read(request, route, self._house.settings.body_limit)
        call = Call(self._house, route, request, principal, request.match_info, values, value)
        response = await forwarded(call)
        return await route.handler(call) if response is None else response

    def middleware(self) -> Middleware:
        """aiohttp's: around routes, and around its own answers for paths and methods that are none."""

        @web.middleware
        async def around(request: web.Request, handler: AiohttpHandler) -> web.StreamResponse:
            return await _or_problem(request, self._checked(request, handler))

        return around

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal of aiohttp, sent before the headers of any answer are."""
        response.headers.update(SECURITY_HEADERS)
        route = self._routes.get(request.match_info.handler)
        done = response.status < web.HTTPBadRequest.status_code
        if done and route is not None and route.about in _OWNED:
            response.headers.setdefault(OWNER, self._house.service.name)  # another branch's answer has it

    async def _checked(self, request: web.Request, handler: AiohttpHandler) -> web.StreamResponse:
        self._guard.check_sender(request)
        return await handler(request)


async def _or_problem(request: web.Request, answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    try:
        return await answer
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


def _check_scope(principal: Principal, route: Route) -> None:
    needed = route.scope
    if principal.via is not None and not route.about.carried:
        raise Denied("this cannot be asked for by way of another branch", "ask this branch's own API")
    if needed is None or principal.scope.includes(needed):
        return
    has = principal.asked or principal.scope
    if not has.includes(needed):
        raise Denied(
            f"this needs the scope {needed}; {principal.name} has {has}", f"use a token with the scope {needed}"
        )
    # Other branches may operate here: their admins may also define instances, of whichever users branch/ then allows.
    defines = route.about in {About.INSTANCE, About.NEW} and principal.scope.includes(Scope.OPERATE)
    if not defines:
        raise Denied(f"this needs the scope {needed}; what comes from other branches has {principal.scope} here",
                     "ask this branch's own API, or change [auth] peer_scope in its configuration")  # fmt: skip


def _check_names(path: Mapping[str, str]) -> None:
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
