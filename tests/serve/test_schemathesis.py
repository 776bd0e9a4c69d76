"""Schemathesis over the OpenAPI document: thousands of requests that fit it, and that do not.

FUZZ_EXAMPLES=200 pytest tests/serve/test_schemathesis.py   # requests an operation, a quarter of an hour
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# What a schema cannot say: tensors must fit the model and their own shape, lists of columns have one length, shares add
# up to 1 and name the variants.
CONFIG = """
[generation]
database = "none"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503]

[[operations]]
include-path-regex = "/(infer|batch)$|^/experiments"
checks.positive_data_acceptance.enabled = false
"""


@pytest.mark.slow
def test_what_the_document_says_is_what_the_api_does(api_url: str, tmp_path: Path) -> None:
    examples = int(os.environ.get("FUZZ_EXAMPLES", "3"))
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    longer = [] if examples > 3 else ["--max-time", "15"]
    run = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "--config-file", config,
            "run", f"{api_url}/openapi.json", "--phases", "examples,fuzzing,coverage",
            "-n", str(examples), "--seed", "1", "--no-color", "--no-shrink", "--warnings", "off",
            "--continue-on-failure", "--report", "json", "--report-dir", tmp_path, *longer,
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=100 + 20 * examples, check=False,
    )  # fmt: skip
    told = run.stdout[run.stdout.find("=== ") :] if "=== " in run.stdout else run.stdout + run.stderr
    assert run.returncode == 0, told[:20_000]
    found = re.search(r"([\d,]+) generated", run.stdout)
    assert found and int(found[1].replace(",", "")) > 100, told[-2000:]
    print(found[0])
