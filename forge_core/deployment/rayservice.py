"""The same Serve configuration as a Kubernetes manifest, KubeRay's RayService, and distributed training as its RayJob.

What is live comes from the ledger at the time of writing. `serveConfigV2` edited is changed in place by KubeRay;
anything below `rayClusterConfig` edited is a new cluster, to which the traffic moves.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from forge_core import __version__
from forge_core.deployment.ray_pods import Manifest, manifest_yaml, ray_cluster
from forge_core.deployment.serve_config import ServeConfig

IMAGE = f"mlops-forge:{__version__}"
# Pods read these from their own environment, so that no password stands in a manifest.
_OWN_TO_PODS = ("storage_url", "ledger_url")


def config_for_pods(config: ServeConfig) -> ServeConfig:
    """Return the configuration without what pods know themselves."""
    told = {key: value for key, value in config.arguments.items() if key not in _OWN_TO_PODS}
    return replace(config, arguments=told)


def serve_section(config: Mapping[str, Any]) -> str:
    """Return a composed configuration as `serveConfigV2`: served on all addresses of the pod, a proxy on each node."""
    http = {**config["http_options"], "host": "0.0.0.0"}
    serve = {**config, "proxy_location": "EveryNode", "http_options": http}
    return manifest_yaml(serve)


def ray_service(
    config: Mapping[str, Any], *, name: str = "forge", image: str = IMAGE, workers: tuple[int, int] = (2, 4)
) -> Manifest:
    """Return a RayService (ray.io/v1) that runs a Serve configuration.

    Parameters
    ----------
    config : mapping
        A composed Serve configuration, of a `config_for_pods`.
    name : str
        Of the service; its Secrets and accounts begin with it, see `ray_pods`.
    image : str
        Holds this project and its dependencies, in the versions of this one.
    workers : (int, int)
        Fewest and most pods beside the head; KubeRay adds one where a replica's `num_cpus` find no room.
    """
    port = config["http_options"]["port"]
    labels = {"app.kubernetes.io/name": "forge-api", "app.kubernetes.io/part-of": "mlops-forge"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {
            "serveConfigV2": serve_section(config),
            # KubeRay names it {name}-serve-svc and chooses the pods; the labels are for who scrapes it.
            "serveService": {
                "metadata": {"labels": labels},
                "spec": {"ports": [{"name": "serve", "port": port, "targetPort": port}]},
            },
            "rayClusterConfig": ray_cluster(name, image, group="serving", workers=workers, cpus=2, serve_port=port),
        },
    }


def ray_job(entrypoint: str, *, name: str = "forge", image: str = IMAGE, workers: int = 2) -> Manifest:
    """Return a RayJob (ray.io/v1) `{name}-training`: a cluster that runs one command and is removed afterwards.

    Applied again it does nothing more: KubeRay runs a RayJob of a name once.

    Parameters
    ----------
    entrypoint : str
        Shell command of the driver, which runs in the head pod.
    name, image : str
        As of `ray_service`.
    workers : int
        Worker pods, each with two CPUs: one trains, one reads.
    """
    cluster = ray_cluster(name, image, group="training", workers=(workers, workers), cpus=2)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # Serving goes first wherever room is short.
        group["template"]["spec"]["priorityClassName"] = f"{name}-training"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"{name}-training"},
        "spec": {
            "entrypoint": entrypoint,
            # KubeRay starts the driver itself, so that no pod beside the cluster needs Ray's token.
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "activeDeadlineSeconds": 14400,
            "rayClusterSpec": cluster,
        },
    }
