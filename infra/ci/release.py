"""`python -m infra.ci.release deploy|rollback`: an image onto the cluster of the current kubectl context, and back.

What ran before is kept in the ConfigMap `forge-release`, so that the way back needs nothing of who deployed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from forge_core.deployment.ray_pods import manifest_yaml
from forge_core.errors import ConfigurationError, ForgeError, ServiceUnavailable
from infra.kubernetes.generated import NAMESPACE, documents
from infra.kubernetes.render import kubectl, render

_RELEASE = "forge-release"
_IN_SPACE = ("-n", NAMESPACE)


def deploy(overlay: str, image: str, *, patience: str = "15m") -> None:
    """Apply an overlay with an image and return once everything of it runs.

    Raises
    ------
    ConfigurationError, ServiceUnavailable
        What cannot be built, or kubectl's own words.
    """
    before = _release()
    manifests = render(overlay, image=image)
    apply = ("apply", "--server-side", "--force-conflicts", "--field-manager=forge-deploy", "-f", "-")
    kubectl(*apply, given=_without_namespace(manifests) if _namespace_is_there() else manifests)
    if before.get("image") != image:
        record = {"image": image, "previous": before.get("image", ""), "overlay": overlay}
        kubectl("apply", "-f", "-", given=json.dumps(_config_map(record)))
    _await(manifests, patience)
    sys.stdout.write(f"{image} runs; before it {before.get('image') or 'nothing'}\n")


def rollback(*, patience: str = "15m") -> None:
    """Bring the image before this one back; what is served, the versions, stays as it is.

    Raises
    ------
    ConfigurationError
        Nothing was deployed before.
    """
    release = _release()
    if not release.get("previous"):
        raise ConfigurationError(
            f"expected the image before this one in the ConfigMap {_RELEASE}, found none: this was the first "
            "deployment; look at `kubectl get pods` and its events"
        )
    deploy(release["overlay"], release["previous"], patience=patience)


def _namespace_is_there() -> bool:
    """Tell whether the namespace is there; who may only work within it need not be allowed to write it."""
    try:
        return bool(kubectl("get", "namespace", NAMESPACE, "--ignore-not-found").strip())
    except ServiceUnavailable as error:
        if "forbidden" in str(error).lower():
            return True
        raise


def _without_namespace(manifests: str) -> str:
    return "---\n".join(manifest_yaml(m) for m in documents(manifests) if m["kind"] != "Namespace")


def _await(manifests: str, patience: str) -> None:
    for manifest in documents(manifests):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet"):
            kubectl("rollout", "status", f"{kind.lower()}/{name}", *_IN_SPACE, f"--timeout={patience}")
        if kind == "RayService":
            # Another image is another cluster, to which KubeRay moves the traffic once it serves.
            for condition in ("UpgradeInProgress=false", "Ready"):
                kubectl(
                    "wait", f"rayservice/{name}", *_IN_SPACE, f"--for=condition={condition}", f"--timeout={patience}"
                )


def _release() -> dict[str, str]:
    found = kubectl("get", "configmap", _RELEASE, *_IN_SPACE, "-o", "json", "--ignore-not-found")
    return dict(json.loads(found).get("data", {})) if found.strip() else {}


def _config_map(data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": _RELEASE, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy or roll back and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.ci.release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    forth = commands.add_parser("deploy")
    forth.add_argument("overlay")
    forth.add_argument("image")
    commands.add_parser("rollback")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "deploy":
            deploy(chosen.overlay, chosen.image)
        else:
            rollback()
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
