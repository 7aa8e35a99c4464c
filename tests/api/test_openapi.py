"""The OpenAPI document: valid, complete, and true of what the server does."""

import asyncio
import itertools
from collections import Counter
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from branchd.api.handlers import ROUTES
from branchd.core.spec import Spec
from tests.api.conftest import ADMIN, Api

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

#: what there is to be found
KNOWN = {"app": "shop", "instance": "web-1", "queue": "mail", "branch": "here"}

#: requests of each route
EXAMPLES = 25


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    answer = await api("GET", "/v1/openapi.json")
    assert answer.headers["Content-Type"].startswith("application/json")
    found: dict[str, Any] = answer.json
    return found


def test_the_document_is_valid_openapi_31(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def test_every_route_is_in_it_once_with_a_summary_and_a_scope(document: dict[str, Any]) -> None:
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {(route.method, route.path) for route in ROUTES}
    assert len(operations) == len(ROUTES)
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    for route in ROUTES:
        operation = operations[route.method, route.path]
        assert operation["summary"]
        assert operation["x-scope"] == route.scope
        assert bool(operation["security"]) is (route.scope is not None)
        assert {"422", "500"} < set(operation["responses"])


def test_the_headers_that_mean_something_are_in_it(document: dict[str, Any]) -> None:
    found = {
        (method, path, parameter["name"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for parameter in operation["parameters"]
        if parameter["in"] == "header"
    }
    assert {
        ("post", "/v1/apps/{app}/instances", "Idempotency-Key"),
        ("put", "/v1/apps/{app}/instances/{instance}", "If-Match"),
        ("put", "/v1/apps/{app}/instances/{instance}", "If-None-Match"),
        ("put", "/v1/apps/{app}/queues/{queue}", "If-None-Match"),
    } < found


def test_the_shape_of_a_spec_is_the_value(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["Spec"]
    assert set(schema["properties"]) == set(Spec.__struct_fields__)
    assert schema["additionalProperties"] is False


def test_what_may_be_left_out_of_a_body_is_never_left_out_of_an_answer(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert "hint" not in schemas["Problem"]["required"]  # left out where there is nothing to say
    assert schemas["Restart"]["required"] == []
    assert "source" in schemas["Instance"]["required"]
    assert "conditions" in schemas["App"]["required"]


@pytest.mark.timeout(170)
async def test_generated_requests_meet_no_server_error_and_nothing_undocumented(
    shop: Api, document: dict[str, Any]
) -> None:
    await shop("PUT", "/v1/apps/shop/instances/web-1", {})
    await shop("PUT", "/v1/apps/shop/queues/mail", {})
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=shop.url)
    failures: list[str] = []
    seen: Counter[int] = Counter()

    def attack(operation: Any) -> None:
        examples = itertools.count()

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if next(examples) % 4:  # else the generated names, which are those of nothing
                case.path_parameters.update({name: KNOWN[name] for name in KNOWN if name in case.path_parameters})
            case.query.pop("follow", None)  # has no end
            case.query.pop("wait", None)  # would only take time
            case.headers["Authorization"] = f"Bearer {ADMIN}"
            seen[case.call_and_validate(checks=CHECKS, timeout=20).status_code] += 1

        try:
            check()
        except Exception as error:  # noqa: BLE001  # all routes are looked at, and every failure is shown
            failures.append(f"{operation.label}: {error}")

    def attack_all() -> None:
        operations = [result.ok() for result in schema.exclude(path="/v1/events").get_all_operations()]
        for operation in sorted(operations, key=lambda one: one.method.upper() == "DELETE"):
            attack(operation)

    await asyncio.to_thread(attack_all)
    assert failures == []
    assert {200, 201, 204, 404, 409, 422} <= set(seen)
    assert (await shop("GET", "/healthz")).status == 200
