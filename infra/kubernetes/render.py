"""An overlay put together for one place: its image, and what is live there already.

The RayService of the overlay is that of a first start, without any model. Where one runs already, what it serves is
kept, so that a deployment of a new image takes no version off the air.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from forge_core.deployment.ray_pods import Manifest, manifest_yaml
from forge_core.errors import ConfigurationError, ServiceUnavailable
from infra.kubernetes.generated import FOLDER, NAMESPACE, documents

_IMAGE = "mlops-forge"


def render(overlay: str, *, image: str = "", live: bool = True) -> str:
    """Return the manifests of an overlay.

    Parameters
    ----------
    overlay : str
        A folder below overlays/.
    image : str
        Name and tag (or digest) in place of `mlops-forge:VERSION`.
    live : bool
        Ask the cluster of the current kubectl context for what it serves.

    Raises
    ------
    ConfigurationError
        No such overlay, or kubectl refuses to build it.
    """
    folder = FOLDER / "overlays" / overlay
    if not (folder / "kustomization.yaml").is_file():
        known = ", ".join(sorted(path.name for path in (FOLDER / "overlays").iterdir()))
        raise ConfigurationError(f"expected one of the overlays {known}, found {overlay!r}")
    with tempfile.TemporaryDirectory() as place:
        kustomization: Manifest = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(folder, Path(place).resolve())],
        }
        if image:
            kustomization["images"] = [{"name": _IMAGE, **_split(image)}]
        (Path(place) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        manifests = documents(kubectl("kustomize", place))
    for manifest in manifests:
        if live and manifest["kind"] == "RayService" and (served := _served(manifest["metadata"]["name"])):
            manifest["spec"]["serveConfigV2"] = served
    return "---\n".join(manifest_yaml(manifest) for manifest in manifests)


def _split(image: str) -> dict[str, str]:
    name, separator, digest = image.partition("@")
    if separator:
        return {"newName": name, "digest": digest}
    # A colon before the last slash is a registry's port.
    head, slash, tail = image.rpartition("/")
    name, separator, tag = tail.partition(":")
    return {"newName": f"{head}{slash}{name}", **({"newTag": tag} if separator else {})}


def _served(name: str) -> str:
    """Return the configuration of the RayService that runs; the empty string where there is none."""
    found = kubectl("get", "rayservices.ray.io", name, "-n", NAMESPACE, "-o", "json", "--ignore-not-found")
    return str(json.loads(found)["spec"].get("serveConfigV2", "")) if found.strip() else ""


def kubectl(*arguments: str, given: str | None = None) -> str:
    """Return what kubectl prints.

    Parameters
    ----------
    given : str, optional
        Its standard input.

    Raises
    ------
    ConfigurationError
        There is no kubectl here.
    ServiceUnavailable
        It failed: its own words.
    """
    if shutil.which("kubectl") is None:
        raise ConfigurationError("expected the program kubectl (1.30 or later), found none; install it")
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceUnavailable(f"`kubectl {' '.join(arguments)}` failed: {done.stderr.strip()[-1500:]}")
    return done.stdout
