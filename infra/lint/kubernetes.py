"""Kubernetes: each overlay as kubectl builds it, and the flat files, against schemas that know every field."""

import sys

from infra.lint.check import Check

_FOLDERS = ("overlays/local", "overlays/cloud", "base/api", "base/training")
_FOLDER = "infra/kubernetes"
# Findings that are meant, and why; none of them is of high severity.
_MEANT = {
    "CKV_K8S_15": "pull always: a digest never changes, and a cluster on one machine is given its image by hand",
    "CKV_K8S_35": "secrets as files: libpq, the S3 clients and Ray read them from the environment",
    "CKV_K8S_38": "account tokens: flows and reconciler patch the RayService; a test holds who else has one",
    "CKV_K8S_43": "digests: `make deploy` puts the pushed image's in the place of name and version",
}


def checks() -> list[Check]:
    """Return the checks of this subject."""
    kubectl = "install kubectl 1.30 or later"
    builds = [
        Check(f"Kubernetes: kubectl kustomize {name}", ("kubectl", "kustomize", f"{_FOLDER}/{name}"), kubectl)
        for name in _FOLDERS
    ]
    return [
        *builds,
        Check("Kubernetes: manifests against their schemas", (sys.executable, "-m", "infra.lint.manifests", *_FOLDERS)),
        Check(
            "Kubernetes: checkov",
            (
                *("checkov", "--quiet", "--compact", "--skip-download", "--framework", "kubernetes", "-d", _FOLDER),
                *("--skip-check", ",".join(_MEANT)),
            ),
        ),
    ]
