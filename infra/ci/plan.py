"""`python -m infra.ci.plan`: which of the workflow's secrets are there, and so what it will do.

Prints a notice for each that is absent, and writes `push`, `deploy`, `coverage` and `role` (true or false) where
GitHub Actions reads a step's outputs. Needs nothing but Python.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# What each secret is for, as the notice says it.
SECRETS = {
    "CODECOV_TOKEN": "coverage is measured and not sent to Codecov",
    "DOCKERHUB_USERNAME": "images are built and scanned, and not pushed",
    "DOCKERHUB_TOKEN": "images are built and scanned, and not pushed",
    "AWS_REGION": "nothing is deployed",
    "EKS_CLUSTER_NAME": "nothing is deployed",
    "AWS_ROLE_ARN": "AWS is asked with AWS_ACCESS_KEY_ID, a key that does not expire, where there is one",
    "AWS_ACCESS_KEY_ID": "AWS is asked with AWS_ROLE_ARN (GitHub's own identity, better), where there is one",
    "AWS_SECRET_ACCESS_KEY": "AWS is asked with AWS_ROLE_ARN (GitHub's own identity, better), where there is one",
    "MLFLOW_TRACKING_URI": "the model validation is reported here, and not in MLflow",
}
_PUSH = ("DOCKERHUB_USERNAME", "DOCKERHUB_TOKEN")
_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def plan(variables: Mapping[str, str]) -> dict[str, bool]:
    """Return what can be done with the secrets that are there."""
    given = {name for name in SECRETS if variables.get(name)}
    push = given.issuperset(_PUSH)
    known = "AWS_ROLE_ARN" in given or given.issuperset(_KEY)
    deploy = push and known and given.issuperset(("AWS_REGION", "EKS_CLUSTER_NAME"))
    return {"push": push, "deploy": deploy, "coverage": "CODECOV_TOKEN" in given, "role": "AWS_ROLE_ARN" in given}


def main(variables: Mapping[str, str] = os.environ) -> int:
    """Tell, and return 0: an absent secret is no fault."""
    mark = "::notice::" if variables.get("GITHUB_ACTIONS") else ""
    for name, what in SECRETS.items():
        if not variables.get(name):
            sys.stdout.write(f"{mark}{name} is not set: {what}\n")
    lines = "".join(f"{name}={str(does).lower()}\n" for name, does in plan(variables).items())
    sys.stdout.write(lines)
    if outputs := variables.get("GITHUB_OUTPUT"):
        with Path(outputs).open("a") as file:
            file.write(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
