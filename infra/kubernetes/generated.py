"""The manifests that follow from other files, so that nothing is said twice: `python -m infra.kubernetes write`.

The flat files beside this one are for `kubectl apply -f`, one by one or the whole folder. kubectl takes the files of a
folder in the order of their names, so each begins with the namespace, and any order works.
"""

from pathlib import Path
from typing import Any

import yaml

from forge_core.deployment.ray_pods import Manifest, manifest_yaml
from forge_core.deployment.rayservice import config_for_pods, ray_job, ray_service
from forge_core.deployment.serve_config import get_serve_config
from forge_core.settings import Settings

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
NAMESPACE = "mlops-forge"

# Each flat file and the files of base/ that it holds, after the namespace.
FLAT = {
    "namespace.yaml": (),
    "configmap.yaml": ("common/configmap.yaml",),
    "deployment.yaml": ("api/deployment.yaml",),
    "service.yaml": ("api/service.yaml",),
    "distributed-training.yaml": (
        "common/configmap.yaml",
        "nodes/access.yaml",
        "nodes/network.yaml",
        "training/access.yaml",
        "training/rayjob.yaml",
    ),
}
# Trains on rows of its own making where DATASET names none; as a shell command, which is how Ray runs a driver.
TRAINING = """\
: "${FORGE_STORAGE_URL:?set it in the ConfigMap forge-place}" &&
rows="$FORGE_STORAGE_URL/samples/training.parquet" &&
python -m forge_core.data.sample --rows 20000 --out "$rows" &&
python -m forge_core.training.distributed_trainer --master --num-workers=2 --dataset="$rows" \\
  --features=feature1,feature2 --batch-size=64 --epochs=10
"""
_MARK = "# Written by `python -m infra.kubernetes write` from {source}\n"


def generated_files() -> dict[Path, str]:
    """Return every file that follows from others, with its content."""
    files = {
        FOLDER / "base/ray/rayservice.yaml": _text("deployments/serve-cluster.yaml and policy.yaml", _serving()),
        FOLDER / "base/training/rayjob.yaml": _text("infra/kubernetes/generated.py", _placed(ray_job(TRAINING))),
        FOLDER / "base/monitoring/prometheusrule.yaml": _text("infra/prometheus/rules.yml", _rules()),
    }
    for name, parts in FLAT.items():
        chosen = ("common/namespace.yaml", *parts)
        texts = [files.get(FOLDER / "base" / part) or (FOLDER / "base" / part).read_text() for part in chosen]
        parts_told = "".join(f"\n#   infra/kubernetes/base/{part}" for part in chosen)
        files[FOLDER / name] = f"{_MARK.format(source=f'these; edit them:{parts_told}')}---\n" + "---\n".join(texts)
    return files


def documents(text: str) -> list[Manifest]:
    """Return the manifests of a file."""
    return [document for document in yaml.safe_load_all(text) if document]


def _serving() -> Manifest:
    # Built past the environment, so that the file says the same wherever it is written.
    settings = Settings.model_construct(
        profile="cluster",
        host="0.0.0.0",
        serve_file=ROOT / "deployments/serve-cluster.yaml",
        policy_file=ROOT / "deployments/policy.yaml",
    )
    return _placed(ray_service(config_for_pods(get_serve_config(settings)).compose([], {})))


def _rules() -> Manifest:
    groups: dict[str, Any] = yaml.safe_load((ROOT / "infra/prometheus/rules.yml").read_text())
    return _placed(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "forge", "labels": {"app.kubernetes.io/part-of": "mlops-forge"}},
            "spec": groups,
        }
    )


def _placed(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": NAMESPACE}}


def _text(source: str, manifest: Manifest) -> str:
    return _MARK.format(source=f"{source}; edit that.") + manifest_yaml(manifest)
