"""What callers may send, and what they hear: over real HTTP, with bodies that no client library would make."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app.bodies import Limits
from tests.serve.boards import Board, rising, served

LIMITS = Limits(body_bytes=100_000, rows=1000, read_seconds=1.0)
GOOD = '{"features": {"x": 1.0, "town": "Oslo"}}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Board({"1": rising}), LIMITS) as url:
        yield url


def post(url: str, path: str, body: str | bytes, **headers: str) -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    return httpx.post(url + path, content=content, headers={"Content-Type": "application/json", **headers}, timeout=10)


def row(text: str) -> str:
    return '{"features": {"x": ' + text + ', "town": "Oslo"}}'


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (row("NaN"), 400, "expected JSON"),
        (row("Infinity"), 400, "expected JSON"),
        (row("1e400"), 400, "infinity"),
        (row("1e300"), 422, "x: "),
        (row('"1"'), 422, "x: expected a number, found text"),
        (row("true"), 422, "x: expected a number, found a boolean"),
        (row("null"), 422, "x: is required"),
        (row("[1]"), 422, "x: expected a number, found a list"),
        (row('{"a": {"b": 1}}'), 422, "x: expected a number, found an object"),
        (row("1") + "}", 400, "expected JSON"),
        (row('1, "x": 2'), 400, "found 'x' twice"),
        (row('1, "x" : 2'), 400, "found 'x' twice"),
        (row('1, "x"\n: 2'), 400, "found 'x' twice"),
        ('{"features": {"x": 1, "town": "Oslo"}, "features": {}}', 400, "found 'features' twice"),
        (row('1, "more": 3'), 422, "more: is no feature"),
        ('{"features": {"town": "Oslo"}}', 422, "x: is required"),
        ('{"features": [1, 2]}', 422, "features: expected an object"),
        ('{"feature": {}}', 422, "features: is required; feature: is not known"),
        ("[]", 422, "found a list"),
        ("", 400, "expected JSON"),
        ("[" * 5000, 400, "depth"),
        (b'{"features": {"x": 1, "town": "\xff"}}', 400, "UTF-8"),
        ('{"features": {' + ", ".join(f'"c{i}": 1' for i in range(5000)) + "}}", 422, "is no feature"),
        ('{"features": {"x": 1, "town": "' + "a" * 100_000 + '"}}', 413, "at most 100000 bytes"),
    ],
)
def test_a_body_that_cannot_be_served_gets_a_problem_document(url: str, body: Any, status: int, told: str) -> None:
    answer = post(url, "/predict", body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert problem["status"] == status and told in problem["detail"] and problem["title"]
    assert len(answer.content) < 30_000


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"records": []}, 422, "at least one row"),
        ({"records": [{"x": 1, "town": "a"}, 3]}, 422, "expected a list of objects"),
        ({"records": [{"x": 1, "town": "a"}, {"x": "no", "town": "a"}]}, 422, "row 1, x: expected a number"),
        ({"columns": {"x": [1, 2], "town": ["a"]}}, 422, "lists of one length, found 1, 2"),
        ({"columns": {"x": 1}}, 422, "lists of values"),
        ({"records": [{"x": 1, "town": "a"}], "request_ids": ["a", "b"]}, 422, "one request id a row"),
        ({"records": [{"x": 1, "town": "a"}] * 2, "request_ids": ["a", "a"]}, 422, "each request id once"),
        ({"records": [{"x": 1, "town": "a"}], "request_ids": [1]}, 422, "a list of texts"),
        ({"records": [{"x": 1, "town": "a"}] * 1001}, 413, "at most 1000 rows"),
        ({"records": [{"x": 1}], "columns": {}}, 422, "records: is not known here"),
        ({"records": [{"x": 1, "town": "a"}], "reply": "rows"}, 422, "reply: expected `records` or `columns`"),
        ({"records": [{"x": 1, "town": "a"}], "reply": ["columns"]}, 422, "reply: expected `records` or `columns`"),
    ],
)
def test_a_batch_that_cannot_be_served_gets_a_problem_document(url: str, body: Any, status: int, told: str) -> None:
    answer = post(url, "/predict/batch", json.dumps(body))
    assert answer.status_code == status and told in answer.json()["detail"], answer.text


def test_records_and_columns_get_the_same_answers_in_order(url: str) -> None:
    columns = {"x": [i / 3 for i in range(900)], "town": ["Oslo"] * 900}
    records = [{"x": x, "town": "Oslo"} for x in columns["x"]]
    ids = [f"id{i}" for i in range(900)]
    replies = [
        post(url, "/predict/batch", json.dumps({**form, "request_ids": ids})).json()["predictions"]
        for form in ({"columns": columns}, {"records": records})
    ]
    kept = [[(r["request_id"], r["prediction"], r["prediction_probability"]) for r in each] for each in replies]
    assert kept[0] == kept[1] and [k[0] for k in kept[0]] == ids and len(kept[0]) == 900


def test_a_reply_by_columns_says_what_one_by_records_says(url: str) -> None:
    records = [{"x": i / 3, "town": "Oslo"} for i in range(40)]
    ids = [f"id{i}" for i in range(40)]
    by_row, by_column = (
        post(url, "/predict/batch", json.dumps({"records": records, "request_ids": ids, "reply": reply})).json()
        for reply in ("records", "columns")
    )
    told = by_column["predictions"]
    assert list(told) == list(by_row["predictions"][0]) and told["request_id"] == ids
    rows = [dict(zip(told, values, strict=True)) for values in zip(*told.values(), strict=True)]
    times = [row.pop("processing_time_ms") for row in [*rows, *by_row["predictions"]]]
    assert rows == by_row["predictions"] and all(t > 0 for t in times)


def test_a_key_twice_in_one_of_many_records_is_refused(url: str) -> None:
    answer = post(url, "/predict/batch", '{"records": [{"x": 1, "town": "a"}, {"x": 1, "x": 2, "town": "a"}]}')
    assert answer.status_code == 400 and "found 'x' twice" in answer.json()["detail"]
    text = post(url, "/predict/batch", json.dumps({"records": [{"x": 1, "town": 'a": '}]}))
    assert text.status_code == 200  # what looks like a key within a text is none


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/csv"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"X-Request-ID": "a" * 129}, 422),
        ({"X-Forge-Version": "99"}, 404),
        ({"X-Forge-Event-Time": "yesterday"}, 422),
        ({"X-Forge-Event-Time": "0001-01-01T00:00:00+14:00"}, 422),
        ({"X-Forge-Event-Time": "2013-04-01T10:00:00Z"}, 200),
    ],
)
def test_headers_are_held_to_their_form(url: str, headers: dict[str, str], status: int) -> None:
    assert post(url, "/predict", GOOD, **headers).status_code == status


def test_unknown_paths_and_methods_are_told_as_problems(url: str) -> None:
    lost, wrong = httpx.get(f"{url}/nowhere"), httpx.get(f"{url}/predict")
    assert (lost.status_code, wrong.status_code) == (404, 405) and wrong.headers["allow"] == "POST"
    assert lost.json()["status"] == 404 and wrong.headers["content-type"] == "application/problem+json"


def raw(url: str) -> socket.socket:
    where = urlsplit(url)
    assert where.hostname and where.port
    return socket.create_connection((where.hostname, where.port), timeout=10)


def head(length: int, more: str = "") -> bytes:
    return (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


@pytest.mark.slow
def test_a_body_that_does_not_come_is_given_up(url: str) -> None:
    started = time.monotonic()
    with raw(url) as client:
        client.sendall(head(500) + b'{"features"')
        answer = client.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 408") and 0.9 < time.monotonic() - started < 5
    assert b"expected the whole body within 1 s, found 11 bytes" in answer


def test_an_announced_body_that_is_too_long_is_refused_before_it_comes(url: str) -> None:
    with raw(url) as client:
        client.sendall(head(10**9))
        assert client.recv(65_536).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_without_a_length_is_cut_at_the_limit(url: str) -> None:
    answer = httpx.post(f"{url}/predict", content=(b" " * 10_000 for _ in range(50)), timeout=10)
    assert answer.status_code == 413


def test_callers_that_leave_disturb_nobody(url: str) -> None:
    for _ in range(20):
        client = raw(url)
        client.sendall(head(len(GOOD)) + GOOD.encode()[: len(GOOD) // 2])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not a farewell
        client.close()
        with contextlib.closing(raw(url)) as other:
            other.sendall(head(len(GOOD)) + GOOD.encode())
    assert post(url, "/predict", GOOD).status_code == 200


def test_a_variant_that_does_not_answer_is_a_503_and_no_hang() -> None:
    with served(Board({"1": rising}, seconds=30, patience=0.2)) as url:
        answer = post(url, "/predict", GOOD)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    assert "no answer came within 0.2 s" in answer.json()["detail"]


def test_a_fault_on_our_side_shows_nothing_of_it() -> None:
    def broken(values: list[float]) -> list[float]:
        raise RuntimeError("secret path")

    with served(Board({"1": broken})) as url:
        answer = post(url, "/predict", GOOD)
    assert answer.status_code == 500 and "secret" not in answer.text and "log" in answer.json()["detail"]
