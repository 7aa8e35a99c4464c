"""The OpenAPI 3.1 document, made from the routes and the Values that they name, when it is first asked for."""

import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

import msgspec

import branchd
from branchd.api import problems
from branchd.api.body import JSON, MERGE_PATCH
from branchd.api.parameters import Parameter
from branchd.api.problems import (
    BadRequest,
    BrokenJson,
    CrossOrigin,
    Internal,
    NotJson,
    Problem,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthenticated,
    WrongHost,
)
from branchd.api.routing import About, Route, Text
from branchd.core.errors import (
    BranchdError,
    Denied,
    Invalid,
    NoAnswer,
    NoRoute,
    NotFound,
    OutcomeUnknown,
    StorageFailed,
    Unavailable,
)
from branchd.core.faults import NAME

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"

_ABOUT = """\
Errors are problems as of RFC 9457, with every invalid field at once. Scopes: each includes the ones before it, of read,
operate, admin."""


def document(routes: Iterable[Route]) -> Json:
    routes = list(routes)
    schemas, components = _schemas(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "branchd", "version": branchd.__version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _item(shape: Any) -> Any:
    """The Value of a page's items, or the shape itself."""
    return get_args(shape)[0] if get_origin(shape) is list else shape


def _schemas(routes: list[Route]) -> tuple[Mapping[Any, Json], Json]:
    shapes = [_item(shape) for route in routes for shape in (route.body, *route.returns.values())]
    unions = [shape for shape in shapes if isinstance(shape, UnionType)]
    kinds = [Problem, *(kind for shape in shapes for kind in get_args(shape) or (shape,) if isinstance(kind, type))]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    known: dict[Any, Json] = dict(zip(kinds, schemas, strict=True))
    optional = _named(
        [known[Problem], *(known[route.body] for route in routes if isinstance(route.body, type))], components
    )
    for name in components.keys() - optional:  # of what is only answered every field is there, also the usual ones
        if "properties" in components[name]:
            components[name]["required"] = list(components[name]["properties"])
    return known | {union: {"anyOf": [known[kind] for kind in get_args(union)]} for union in unions}, components


def _named(schema: Any, components: Json) -> set[str]:
    """The components that a schema names, and those that they name."""
    names = set(re.findall(re.escape(_REFERENCE).replace(r"\{name\}", r"(\w+)"), str(schema)))
    return names.union(*(_named(components[name], components) for name in names))


def _operation(route: Route, schemas: Mapping[Any, Json]) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary.partition("\n")[0],
        "description": route.summary,
        "parameters": [
            *_path_parameters(route.path),
            *map(_query_parameter, route.query.values()),
            *_header_parameters(route.headers),
        ],
        "responses": {
            **{str(status): _response(shape, schemas) for status, shape in route.returns.items()},
            **_problems(route, schemas),
        },
        "security": [] if route.scope is None else [{"token": []}],
        "x-scope": route.scope,
    }
    if route.body is not None:
        schema = schemas[route.body] if isinstance(route.body, type) else {"type": "object"}
        types = (MERGE_PATCH, JSON) if route.method == "PATCH" else (JSON,)
        operation["requestBody"] = {"required": True, "content": {each: {"schema": schema} for each in types}}
    return operation


def _path_parameters(path: str) -> Iterator[Json]:
    for name in re.findall(r"\{(\w+)\}", path):
        schema: Json = {"type": "string"}
        if name in {"app", "instance", "branch"}:
            schema["pattern"] = f"^{NAME.pattern}$"
        elif name == "queue":
            schema |= {"minLength": 1, "maxLength": 255}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameter(parameter: Parameter[Any]) -> Json:
    schema = dict(parameter.form.schema)
    if parameter.default not in (None, (), False):
        schema["default"] = parameter.default
    if parameter.repeatable:
        schema = {"type": "array", "items": schema}
    return {"name": parameter.name, "in": "query", "description": parameter.about, "schema": schema}


def _header_parameters(headers: Mapping[str, str]) -> Iterator[Json]:
    for name, about in headers.items():
        yield {"name": name, "in": "header", "description": about, "schema": {"type": "string"}}


def _response(shape: Any, schemas: Mapping[Any, Json]) -> Json:
    if shape is None:
        return {"description": "Done."}
    if isinstance(shape, Text):
        return {"description": "A stream.", "content": {each: {"schema": {"type": "string"}} for each in shape.types}}
    item = _item(shape)
    schema = schemas[item] if isinstance(item, type | UnionType) else {"type": "object"}
    return {
        "description": "A page." if get_origin(shape) is list else "The object.",
        "content": {JSON: {"schema": _page(schema) if get_origin(shape) is list else schema}},
    }


def _page(item: Json) -> Json:
    properties = {
        "items": {"type": "array", "items": item},
        "next": {"type": ["string", "null"], "description": "The cursor of the next page; null: this is the last."},
        "partial": {"type": "boolean", "description": "Some branches did not answer."},
        "unreachable": {"type": "array", "items": {"type": "string"}, "description": "Those that did not."},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def possible(route: Route) -> list[type[BranchdError]]:
    """The errors that a route can answer with: what its form implies, and what it declares."""
    found: list[type[BranchdError]] = [BadRequest, CrossOrigin, WrongHost, Invalid, Internal, *route.raises]
    if route.scope is not None:
        found += [Unauthenticated, Denied]
    if "{" in route.path:
        found.append(NotFound)
    found += [BrokenJson, TooLarge, TooSlow, NotJson]
    if route.changes:
        found += [Unavailable, StorageFailed]
    if route.about in {About.INSTANCE, About.NEW, About.BRANCH}:
        found += [NotFound, Unavailable, NoRoute, NoAnswer]
        if route.changes:
            found.append(OutcomeUnknown)
    if route.streams:
        found.append(TooMany)
    return found


def _problems(route: Route, schemas: Mapping[Any, Json]) -> Json:
    by_status: dict[int, list[str]] = {}
    for error in possible(route):
        meaning = problems.meaning(error)
        slugs = by_status.setdefault(meaning.status, [])
        if meaning.slug not in slugs:
            slugs.append(meaning.slug)
    content = {problems.MEDIA_TYPE: {"schema": schemas[Problem]}}
    return {
        str(status): {"description": "Problem: " + ", ".join(slugs), "content": content}
        for status, slugs in sorted(by_status.items())
    }
