"""Whether the MLflow server answers, and what to say where it does not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from forge_core.errors import ServiceUnavailable


def unreachable(tracking_uri: str, error: Exception) -> ServiceUnavailable:
    """Return the error that says where MLflow was looked for and how to start it."""
    return ServiceUnavailable(
        f"expected MLflow at {tracking_uri}, found: {str(error)[:200]}; "
        "start it with `make up` or set MLFLOW_TRACKING_URI"
    )


def ping(tracking_uri: str, timeout: float = 3.0) -> None:
    """Return once the server answers; MLflow's own client would try for minutes.

    Raises
    ------
    ServiceUnavailable
        When it does not answer, or answers with a fault of its own. A database's URI is never asked.
    """
    if not tracking_uri.startswith("http"):
        return
    try:
        answer = httpx.get(f"{tracking_uri.rstrip('/')}/health", timeout=timeout)
    except httpx.HTTPError as error:
        raise unreachable(tracking_uri, error) from error
    if answer.status_code >= 500:  # an unknown path or a refused key says that someone is there
        raise unreachable(tracking_uri, RuntimeError(f"status {answer.status_code}"))


def await_server(tracking_uri: str, seconds: float) -> None:
    """Return once the server answers, or raise ServiceUnavailable after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ping(tracking_uri)
        except ServiceUnavailable:
            if time.monotonic() >= until:
                raise
            time.sleep(0.5)


@contextmanager
def translated(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises where no server answers into ServiceUnavailable."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except RequestException as error:
        raise unreachable(tracking_uri, error) from error
    except MlflowException as error:
        if "Max retries exceeded" in str(error) or "Connection refused" in str(error):
            raise unreachable(tracking_uri, error) from error
        raise
