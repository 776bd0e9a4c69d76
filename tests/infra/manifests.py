"""Reading kustomizations without kubectl: which manifests a folder holds, and the pods within them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "kubernetes"
Manifest = dict[str, Any]


def kustomized(folder: Path) -> list[Manifest]:
    """Return the manifests of a kustomization, those of the ones below it included; without patches."""
    found: list[Manifest] = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = (folder / name).resolve()
        found += kustomized(path) if path.is_dir() else read(path)
    return found


def read(path: Path) -> list[Manifest]:
    """Return the manifests of a file."""
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def name_of(manifest: Manifest) -> str:
    """Return `Kind/name`."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(value: Any) -> Iterator[Manifest]:
    """Give the specification of every pod in a manifest, whatever its kind."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod."""
    return [*pod.get("initContainers", []), *pod["containers"]]
