"""The same Serve configuration as a Kubernetes manifest: KubeRay's RayService.

What is live comes from the ledger at the time of writing. `serveConfigV2` edited is changed in place by KubeRay;
anything below `rayClusterConfig` edited is a new cluster, to which the traffic moves.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from forge_core import __version__
from forge_core.deployment.serve_config import SERVE_VARIABLES

Manifest = dict[str, Any]

_DASHBOARD = 8265


def ray_service(
    config: Mapping[str, Any], *, name: str = "forge", image: str = f"mlops-forge:{__version__}", max_workers: int = 3
) -> Manifest:
    """Return a RayService (ray.io/v1) that runs a Serve configuration.

    Parameters
    ----------
    config : mapping
        A composed Serve configuration; its HTTP server is moved to all addresses of the pod.
    name : str
        Of the service. Its pods take further variables (`AWS_…`) from the Secret `{name}-environment`, if there is one.
    image : str
        Holds this project and its dependencies, in the versions of this one.
    max_workers : int
        Most pods beside the head; KubeRay adds one where a replica's `num_cpus` find no room.
    """
    http = {**config["http_options"], "host": "0.0.0.0"}
    # A proxy on each node with replicas, which the Service finds; the pattern's one proxy is for one machine.
    serve = {**config, "proxy_location": "EveryNode", "http_options": http}
    head_ports = {"gcs-server": 6379, "dashboard": _DASHBOARD, "client": 10001, "serve": http["port"]}
    cluster = {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": True,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0"},
            "template": _pod("ray-head", name, image, head_ports, cpus="1", memory="4Gi"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "serving",
                "replicas": 1,
                "minReplicas": 1,
                "maxReplicas": max_workers,
                "rayStartParams": {},
                "template": _pod("ray-worker", name, image, {"serve": http["port"]}, cpus="2", memory="4Gi"),
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {"serveConfigV2": yaml.safe_dump(serve, sort_keys=False), "rayClusterConfig": cluster},
    }


def _pod(container: str, name: str, image: str, ports: Mapping[str, int], *, cpus: str, memory: str) -> Manifest:
    variables = {**SERVE_VARIABLES, "RAY_USAGE_STATS_ENABLED": "0"}
    limits = {"cpu": cpus, "memory": memory}
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "env": [{"name": key, "value": value} for key, value in variables.items()],
                    "envFrom": [{"secretRef": {"name": f"{name}-environment", "optional": True}}],
                    "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
                    "resources": {"requests": dict(limits), "limits": dict(limits)},
                }
            ]
        }
    }
