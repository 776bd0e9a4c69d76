"""Kubernetes: each overlay as kubectl builds it, and the flat files, against schemas that know every field."""

import sys

from infra.lint.check import Check

_FOLDERS = ("overlays/local", "overlays/cloud", "base/api", "base/training")
_FOLDER = "infra/kubernetes"


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
            ("checkov", "--quiet", "--compact", "--skip-download", "--framework", "kubernetes", "-d", _FOLDER),
        ),
    ]
