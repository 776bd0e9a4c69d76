"""`python -m infra.lint.manifests FOLDER …`: kustomizations and the flat files against schemas that know every field.

Kubernetes' own kinds against its published schemas, strictly, in the oldest and the newest version that we support; the
operators' kinds against infra/kubernetes/schemas/, and the pods within them as Kubernetes' own.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

FOLDER = Path(__file__).resolve().parents[1] / "kubernetes"
VERSIONS = ("1.31", "1.37")
_OPERATORS = {"ray.io": "kuberay", "monitoring.coreos.com": "monitoring"}


def main(folders: Sequence[str]) -> int:
    """Check all and return the exit code; every fault is a line."""
    sources = {f"overlay or base {name}": _built(FOLDER / name) for name in folders}
    sources |= {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
    count, faults = 0, list[str]()
    for source, text in sources.items():
        for manifest in filter(None, yaml.safe_load_all(text)):
            count += 1
            name = f"{source}: {manifest['kind']} {manifest['metadata']['name']}"
            faults += [f"{name}: {fault}" for fault in _faults(manifest)]
    print(f"{count} manifests of {len(sources)} sources, Kubernetes {' and '.join(VERSIONS)}: {len(faults)} faults")
    print("\n".join(faults))
    return 1 if faults else 0


def _built(folder: Path) -> str:
    return subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout


def _faults(manifest: dict[str, Any]) -> Iterator[str]:
    schema = _OPERATORS.get(manifest["apiVersion"].partition("/")[0])
    if schema is None:
        yield from _kubernetes_faults(manifest)
        return
    known = json.loads((FOLDER / "schemas" / f"{schema}.json").read_text())["$defs"]
    if manifest["kind"] not in known:
        yield f"expected one of the kinds {', '.join(sorted(known))}"
        return
    validator = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{manifest['kind']}", "$defs": known})
    for error in validator.iter_errors(manifest):
        yield f"{error.json_path}: {error.message[:300]}"
    for template in _templates(manifest):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        yield from _kubernetes_faults(wrapped)


def _kubernetes_faults(manifest: dict[str, Any]) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:300]}"


def _templates(value: Any) -> Iterator[dict[str, Any]]:
    """Give the pod templates within an operator's manifest."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("template", "submitterPodTemplate"):
                yield inner
            else:
                yield from _templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _templates(inner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
