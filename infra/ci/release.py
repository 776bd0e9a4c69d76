"""`python -m infra.ci.release deploy|rollback`: an image onto the cluster of the current kubectl context, and back.

What ran before is kept in the ConfigMap `forge-release`, so that the way back needs nothing of the machine that deployed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from forge_core.errors import ConfigurationError, ForgeError, ServiceUnavailable
from infra.kubernetes.generated import NAMESPACE, documents
from infra.kubernetes.render import render

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
    _kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=forge-deploy", "-f", "-", given=manifests)
    if before.get("image") != image:
        record = {"image": image, "previous": before.get("image", ""), "overlay": overlay}
        _kubectl("apply", "-f", "-", given=json.dumps(_config_map(record)))
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
            f"expected the image before this one in the ConfigMap {_RELEASE}, found none: this was the first deployment; "
            "look at `kubectl get pods` and its events"
        )
    deploy(release["overlay"], release["previous"], patience=patience)


def _await(manifests: str, patience: str) -> None:
    for manifest in documents(manifests):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet"):
            _kubectl("rollout", "status", f"{kind.lower()}/{name}", *_IN_SPACE, f"--timeout={patience}")
        if kind == "RayService":
            # Another image is another cluster, to which KubeRay moves the traffic once it serves.
            for condition in ("UpgradeInProgress=false", "Ready"):
                _kubectl("wait", f"rayservice/{name}", *_IN_SPACE, f"--for=condition={condition}", f"--timeout={patience}")


def _release() -> dict[str, str]:
    found = _kubectl("get", "configmap", _RELEASE, *_IN_SPACE, "-o", "json", "--ignore-not-found")
    return dict(json.loads(found).get("data", {})) if found.strip() else {}


def _config_map(data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": _RELEASE, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _kubectl(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceUnavailable(f"`kubectl {' '.join(arguments)}` failed: {done.stderr.strip()[-1500:]}")
    return done.stdout


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
