"""The OpenAPI document is valid, true to the contracts, and its examples work; the page asks nobody else."""

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from forge_core.data.coercion import LARGEST
from forge_core.errors import SchemaViolation
from serve_app.bodies import USUAL, NotTheForm, many_rows
from serve_app.live_version import LiveVersion
from serve_app.open_inference import parse_infer
from serve_app.openapi import openapi_document
from serve_app.protocol import STATUS
from serve_app.schemas import batch_schema, columns_schema, record_schema
from tests.serve.live_models import MIXED, BoardInProcess
from tests.serve.whole_api import whole_api

pytestmark = pytest.mark.slow

Versions = Mapping[str, LiveVersion]


def checker(schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


RECORD = checker(record_schema(MIXED))
BATCH = checker(batch_schema(record_schema(MIXED), columns_schema(MIXED)))


def accepted(row: Any) -> bool:
    try:
        MIXED.check_row(row)
    except SchemaViolation:
        return False
    return True


def document(versions: Versions) -> dict[str, Any]:
    return json.loads(json.dumps(openapi_document(list(versions.values()), "sample")))


@pytest.mark.slow
def test_the_document_is_valid_with_and_without_live_models(versions: Versions) -> None:
    validate(document(versions), cls=OpenAPIV31SpecValidator)
    empty = openapi_document([], "sample")
    validate(empty, cls=OpenAPIV31SpecValidator)
    assert "/models/{model}/predict" in empty["paths"] and "/predict" in empty["paths"]


def test_every_route_is_in_the_document_and_every_path_has_a_route(versions: Versions) -> None:
    api = whole_api(BoardInProcess(list(versions.values()), "sample", "sqlite://"))
    routes = {(r.path, method) for r in api.routes for method in r.methods - {"HEAD"}}  # type: ignore[attr-defined]
    pages = {(path, "GET") for path, _ in routes if path.startswith(("/docs", "/openapi.json"))}
    told = {
        (re.sub(rf"/models/({'|'.join(versions)})", "/models/{model}", path), method.upper())
        for path, item in document(versions)["paths"].items()
        for method in item
    }
    assert told == routes - pages and len(pages) == 6


def test_a_live_models_fields_are_told_as_its_contract_has_them(versions: Versions) -> None:
    features = document(versions)["components"]["schemas"]["mixed.Features"]
    fields = features["properties"]
    assert list(fields) == versions["mixed"].columns and features["additionalProperties"] is False
    assert features["required"] == ["distance", "stops", "colour", "free"]
    assert fields["distance"] == {
        "type": "number", "exclusiveMinimum": 0.0, "maximum": 5000.0,
        "description": "number, more than 0, at most 5000",
    }  # fmt: skip
    assert (fields["stops"]["minimum"], fields["stops"]["maximum"], fields["stops"]["type"]) == (0, 5, "integer")
    assert fields["warm"]["type"] == ["number", "null"] and fields["warm"]["maximum"] == LARGEST
    assert fields["colour"]["enum"] == ["blue", "red"] and fields["free"]["not"] == {"enum": ["none"]}
    assert fields["town"]["type"] == ["string", "null"] and fields["when"]["format"] == "date-time"


def test_the_answers_are_told_with_the_models_own_classes(versions: Versions) -> None:
    schemas = document(versions)["components"]["schemas"]
    assert schemas["mixed.Prediction"]["properties"]["prediction"] == {"enum": ["a", "b", "c"]}
    assert schemas["sample.Prediction"]["properties"]["prediction"] == {"enum": [0, 1]}
    assert schemas["numbers.Prediction"]["properties"]["prediction_probability"] == {"type": "null"}


def test_statuses_of_our_errors_are_told_where_there_is_a_body(versions: Versions) -> None:
    said = document(versions)
    told = set(said["paths"]["/predict"]["post"]["responses"])
    assert told >= {"200", "401", "403", "404", "429"} | {str(s) for s, _ in STATUS.values()} - {"500", "409"}
    assert set(said["components"]["securitySchemes"]) == {"bearer", "key"} and {} in said["security"]
    assert said["paths"]["/health"]["get"]["security"] == []


@pytest.mark.slow
def test_each_example_fits_its_schema_and_is_answered_as_told(versions: Versions, api_url: str) -> None:
    said = httpx.get(f"{api_url}/openapi.json").raise_for_status().json()
    assert said == document(versions)
    tried = 0
    for path, item in said["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        if path.startswith("/rollouts/") or path.endswith("/rollback"):  # there is nothing to roll out or back here
            checker({**content["schema"], "components": said["components"]}).validate(content["example"])
            continue
        for schema, value in (
            (content["schema"], content["example"]),
            (
                item["post"]["responses"]["200"]["content"]["application/json"]["schema"],
                httpx.post(
                    api_url + path.replace("{version}", "3").replace("{experiment}", "model-comparison"),
                    json=content["example"],
                )
                .raise_for_status()
                .json(),
            ),
        ):
            checker({**schema, "components": said["components"]}).validate(value)
        tried += 1
    assert tried == 3 + 3 * 5 + 4


ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3), st.just([]))
ZONES = ("", "Z", "+02:00", "-23:59", "+24:00", "+2")
TIMES = st.builds("{:%Y-%m-%d}T{:%H:%M:%S}{}{}".format, st.dates(), st.times(), st.sampled_from(["", ".5", ".123456"]),
                  st.sampled_from(ZONES))  # fmt: skip
LIKELY: dict[str, Any] = {
    "distance": st.floats(-1, 5001) | st.integers(0, 5000) | st.sampled_from([0, 5e-324, 5000, 5000.1]),
    "stops": st.integers(-1, 6) | st.sampled_from([2.0, 2.5, True]),
    "warm": st.floats(allow_nan=False) | st.sampled_from([LARGEST, LARGEST * 2, 10**400]),
    "town": st.text(max_size=4) | st.none(),
    "colour": st.sampled_from(["red", "blue", "Red", "red ", None, True]),
    "free": st.text(max_size=4) | st.sampled_from(["none", "None", ""]),
    "when": TIMES | st.none() | st.sampled_from(["now", "2024-02-30T10:00:00Z", "2024-01-01T10:00:60Z", 1]),
    "flag": st.booleans() | st.sampled_from([None, 0, 1, "true"]),
}
GOOD = {"distance": 10.0, "stops": 1, "colour": "red", "free": "x"}


@st.composite
def rows(draw: Any) -> dict[str, Any]:
    """Return a row in which a few fields are changed, dropped or added."""
    row: dict[str, Any] = dict(GOOD)
    for name in draw(st.lists(st.sampled_from(sorted(LIKELY)), max_size=3, unique=True)):
        row[name] = draw(st.one_of(LIKELY[name], LIKELY[name], ANY))
    for name in draw(st.sampled_from([[], [], [], ["town"], ["stops"], ["free", "colour"]])):
        row.pop(name, None)
    if draw(st.integers(0, 9)) == 0:
        row[draw(st.text(max_size=3))] = 1
    return row


def told_apart(row: dict[str, Any]) -> bool:
    """Tell whether a row is one of the known gaps: a time that the contract takes in another form than RFC 3339."""
    alone = {"when": row.get("when")}
    return row.get("when") is not None and not checker(
        {"properties": {"when": RECORD.schema["properties"]["when"]}}
    ).is_valid(alone)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(rows())
def test_the_schema_and_the_contract_accept_the_same_rows(row: dict[str, Any]) -> None:
    if RECORD.is_valid(row):
        assert accepted(row)
    elif not told_apart(row):
        assert not accepted(row)


def test_the_known_gaps_are_times_in_other_forms_and_the_lengths_of_lists() -> None:
    for moment in ("2024-01-01", "2024-01-01T10:00", "2024-01-01 10:00:00", "20240101T100000", "0001-01-01T00:00:00Z"):
        row = {**GOOD, "when": moment}
        assert accepted(row) and not RECORD.is_valid(row)
    columns = {name: [value] * 2 for name, value in GOOD.items()}
    for request in (
        {"columns": {**columns, "stops": [1]}},
        {"records": [GOOD], "request_ids": ["a", "b"]},
    ):
        assert BATCH.is_valid(request)
        with pytest.raises(NotTheForm):
            many_rows(request, USUAL)


@pytest.mark.parametrize(
    ("request_", "right"),
    [
        ({"records": [GOOD]}, True),
        ({"records": [GOOD, GOOD], "request_ids": ["a", "b"]}, True),
        ({"records": [GOOD], "request_ids": None}, True),
        ({"columns": {name: [value] for name, value in GOOD.items()}}, True),
        ({"records": []}, False),
        ({"columns": {}}, False),
        ({"columns": {name: [] for name in GOOD}}, False),
        ({"records": [GOOD], "columns": {}}, False),
        ({"records": [GOOD], "more": 1}, False),
        ({"records": [GOOD] * 2, "request_ids": ["a", "a"]}, False),
        ({"records": [GOOD], "request_ids": [""]}, False),
        ({"records": GOOD}, False),
        ([], False),
    ],
)
def test_batches_are_judged_alike(request_: Any, right: bool) -> None:
    assert BATCH.is_valid(request_) is right
    try:
        many_rows(request_, USUAL)
    except NotTheForm:
        assert not right
    else:
        assert right


def test_a_time_beyond_the_calendar_is_a_fault_and_no_crash() -> None:
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        with pytest.raises(SchemaViolation, match="when: expected an ISO 8601 time"):
            MIXED.check_row({**GOOD, "when": moment})
        with pytest.raises(SchemaViolation, match="when: expected an ISO 8601 time"):
            MIXED.check_rows([{**GOOD, "when": moment}] * 2)


def test_the_v2_example_is_a_request(versions: Versions) -> None:
    for name, live in versions.items():
        sent = document(versions)["paths"][f"/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
        request = parse_infer(json.dumps(sent["application/json"]["example"]).encode(), live)
        assert live.contract.check_rows(request.rows) == live.contract.check_rows([live.example])


def test_the_page_and_all_that_it_loads_come_from_here(api_url: str) -> None:
    page = httpx.get(f"{api_url}/docs").raise_for_status()
    assert "default-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 4 and not any("//" in address for address in loaded)
    for address in loaded:
        assert len(httpx.get(f"{api_url}/{address}").raise_for_status().content) > 500
    assert httpx.get(f"{api_url}/docs/../../setup.py").status_code == 404
