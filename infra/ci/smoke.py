"""`python -m infra.ci.smoke [URL]`: ask a deployed API for its health and one prediction.

Without a URL the Service of the current kubectl context is reached through a port of this machine. The key is
FORGE_API_KEY, or the one in the Secret forge-environment. An API without any live model yet is well if it says so.
"""

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from forge_core.errors import ConfigurationError, ForgeError, ServiceUnavailable

_NAMESPACE = ("-n", "mlops-forge")


def smoke(url: str, key: str, *, must_predict: bool = False, patience: float = 120.0) -> str:
    """Return what the API answered, as a sentence.

    Parameters
    ----------
    url : str
        Base URL of the API.
    key : str
        Of a caller who may predict; empty where the door is open.
    must_predict : bool
        Whether an API without a live model fails.
    patience : float
        Seconds that it may take to answer at all.

    Raises
    ------
    ServiceUnavailable
        It does not answer, or not as it should: says what was asked and what came.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=30.0, trust_env=False) as client:
        _await_health(client, patience)
        ready = client.get("/health/ready")
        if ready.status_code == 503 and not must_predict:
            return "healthy; no model is live yet, and it says so"
        _expect(ready, 200)
        info = _expect(client.get("/model/info"), 200)
        reply = _expect(client.post("/predict", json={"features": info["example"]["features"]}), 200)
    if reply["model_version"] != info["version"]:
        raise ServiceUnavailable(f"expected an answer of version {info['version']}, found {reply['model_version']}")
    return f"healthy; {info['name']} version {info['version']} predicts {reply['prediction']!r}"


def _await_health(client: httpx.Client, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            _expect(client.get("/health"), 200)
            return
        except (httpx.HTTPError, ServiceUnavailable) as error:
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"expected {client.base_url}/health to be 200 within {patience:.0f} s, found: {error}"
                ) from error
            time.sleep(1.0)


def _expect(answer: httpx.Response, status: int) -> dict[str, Any]:
    if answer.status_code != status:
        raise ServiceUnavailable(
            f"expected {status} of {answer.request.method} {answer.request.url}, found {answer.status_code}: "
            f"{answer.text[:500]}"
        )
    return dict(answer.json())


@contextmanager
def _forwarded(service: str) -> Iterator[str]:
    """Give a URL of this machine behind which a Service of the cluster answers."""
    command = ["kubectl", "port-forward", *_NAMESPACE, f"service/{service}", "0:8000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if (port := re.search(r"127\.0\.0\.1:(\d+)", line)) is None:
            raise ServiceUnavailable(f"`{' '.join(command)}` failed: {line.strip()}")
        yield f"http://127.0.0.1:{port[1]}"
    finally:
        process.terminate()
        process.wait(10)


def _key_of_cluster() -> str:
    path = "jsonpath={.data.FORGE_API_KEY}"
    command = ["kubectl", "get", "secret", "forge-environment", *_NAMESPACE, "-o", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return base64.b64decode(done.stdout).decode() if done.returncode == 0 else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.ci.smoke", description=__doc__)
    parser.add_argument("url", nargs="?", default="", help="base URL; without one, through kubectl")
    parser.add_argument("--service", default="forge-serve-svc", help="Service to reach through kubectl")
    parser.add_argument("--must-predict", action="store_true", help="fail where no model is live")
    chosen = parser.parse_args(arguments)
    key = os.environ.get("FORGE_API_KEY", "")
    try:
        if chosen.url:
            told = smoke(chosen.url, key, must_predict=chosen.must_predict)
        else:
            if shutil.which("kubectl") is None:
                raise ConfigurationError("expected a URL, or the program kubectl to reach the cluster, found neither")
            with _forwarded(chosen.service) as url:
                told = smoke(url, key or _key_of_cluster(), must_predict=chosen.must_predict)
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
