"""One version behind the prediction API, asked by its number over HTTP, the way any client's request goes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from forge_core.errors import ModelError, ServiceUnavailable

VERSION_HEADER = "X-Forge-Version"

# These pass: the router has not heard of the version yet, a replica is busy or restarts, a proxy reloads.
_PASSING = {404, 408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Answer:
    """What was served for one row: prediction and probability of its class, or why the row was refused."""

    request_id: str
    prediction: Any = None
    probability: float | None = None
    refusal: str = ""


class ServedPath:
    """Asks one version of a model; safe to use from several threads.

    Parameters
    ----------
    url : str
        Base URL of the prediction API.
    model, version : str
        Which version must answer.
    patience : float
        Seconds that one request is repeated while nobody answers or the version is not held yet.
    api_key : str
        Shown where the API asks for a key.
    """

    def __init__(self, url: str, model: str, version: str, *, patience: float = 60.0, api_key: str = "") -> None:
        self.url, self.model, self.version, self.patience = url, model, version, patience
        # This machine or cluster, never through a proxy of the environment.
        headers = {VERSION_HEADER: version, "Accept": "application/json"} | ({"X-API-Key": api_key} if api_key else {})
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30.0, headers=headers)

    def __enter__(self) -> "ServedPath":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def ask(self, records: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[Answer]:
        """Return what is served for rows in one request; where it is refused, what is served for each by itself.

        Raises
        ------
        ModelError
            When another version answers, or the version fails or stays away.
        ServiceUnavailable
            When there is no prediction API.
        """
        body = {"records": list(records), "request_ids": list(ids)}
        reply = self._post("/predict/batch", body, {})
        if reply.status_code == 422:
            return [self.ask_one(record, id) for record, id in zip(records, ids, strict=True)]
        replies = reply.json()["predictions"]
        if len(replies) != len(records):
            raise ModelError(f"expected {len(records)} replies of {self._name}, found {len(replies)}")
        return [self._read(one) for one in replies]

    def ask_one(self, record: Mapping[str, Any], id: str) -> Answer:
        """Return what is served for one row in a request of its own; raises as `ask` does."""
        reply = self._post("/predict", {"features": dict(record)}, {"X-Request-ID": id})
        if reply.status_code == 422:
            return Answer(id, refusal=_detail(reply))
        return self._read(reply.json())

    @property
    def _name(self) -> str:
        return f"version {self.version} of {self.model!r}"

    def _read(self, reply: Mapping[str, Any]) -> Answer:
        if (reply["model"], reply["model_version"]) != (self.model, self.version):
            raise ModelError(
                f"expected {self._name} to answer, found version {reply['model_version']} of {reply['model']!r}; "
                f"the router does not honour the header {VERSION_HEADER}"
            )
        return Answer(reply["request_id"], reply["prediction"], reply["prediction_probability"])

    def _post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        deadline = time.monotonic() + self.patience
        while True:
            trouble: ModelError | ServiceUnavailable
            try:
                reply = self._client.post(f"/models/{self.model}{path}", json=body, headers=dict(headers))
            except httpx.HTTPError as error:
                trouble = ServiceUnavailable(
                    f"expected the prediction API at {self.url}, found: {error or type(error).__name__}; "
                    "start it with `make up`"
                )
            else:
                if reply.status_code in (200, 422):
                    return reply
                trouble = ModelError(f"{self._name} does not answer: status {reply.status_code}, {_detail(reply)}")
                if reply.status_code not in _PASSING or (reply.status_code == 500 and _is_ours(reply)):
                    raise trouble
            if time.monotonic() > deadline:
                raise trouble
            time.sleep(0.2)


def _is_ours(reply: httpx.Response) -> bool:
    return reply.headers.get("content-type", "").startswith("application/problem+json")


def _detail(reply: httpx.Response) -> str:
    return str(reply.json()["detail"]) if _is_ours(reply) else reply.text[:200]
