"""The pods of a Ray cluster on Kubernetes: one head, one group of workers, closed as far as Ray allows.

Settings come from the ConfigMaps `{name}-settings`, `-servers` and `-place` (where the data lies), keys and passwords
from the Secret `{name}-environment`, Ray's token from `{name}-ray-token`. Nothing of it stands in a manifest.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from forge_core.deployment.serve_config import SERVE_VARIABLES

Manifest = dict[str, Any]

DASHBOARD, GCS, CLIENT, METRICS = 8265, 6379, 10001, 8080
# Settings of all, addresses of the other servers, and where the data lies.
CONFIG_MAPS = ("settings", "servers", "place")
# What a lost host takes with it is noticed early: Ray gives a node up after five questions that got no answer within
# five seconds (by default it takes a minute), and the proxy sends what got none within ten seconds to another router
# (a prediction or a label sent twice counts once).
CLUSTER_VARIABLES = {
    **SERVE_VARIABLES,
    "RAY_health_check_initial_delay_ms": "30000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "10",
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "2",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
}
# Who runs in our images; above 10000, so that no user of the host has the number.
USER = 10001


def ray_cluster(
    name: str, image: str, *, group: str, workers: tuple[int, int], cpus: int, serve_port: int | None = None
) -> Manifest:
    """Return the specification of a RayCluster.

    Parameters
    ----------
    name : str
        Whose settings, Secrets and service accounts the pods use.
    image : str
        Holds this project and its dependencies, in the versions of this one.
    group : str
        Name of the workers' group.
    workers : (int, int)
        Fewest and most worker pods.
    cpus : int
        Of a worker; its memory is 4 GiB and its shared memory 1 GiB.
    serve_port : int, optional
        Where Serve answers; None for a cluster that serves nothing.
    """
    serve = {} if serve_port is None else {"serve": serve_port}
    head_ports = {"gcs-server": GCS, "dashboard": DASHBOARD, "client": CLIENT, "metrics": METRICS, **serve}
    head = _pod("ray-head", name, image, head_ports, cpus=1)
    # The autoscaler in the head pod asks Kubernetes for workers; the workers ask for nothing.
    head["spec"]["serviceAccountName"] = f"{name}-ray-head"
    worker = _pod("ray-worker", name, image, {"metrics": METRICS, **serve}, cpus=cpus)
    worker["spec"] |= {
        "serviceAccountName": f"{name}-ray-worker",
        "automountServiceAccountToken": False,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"ray.io/group": group}},
            }
        ],
    }
    fewest, most = workers
    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": fewest < most,
        "autoscalerOptions": {"securityContext": _container_security()},
        "authOptions": {"mode": "token", "secretName": f"{name}-ray-token"},
        "headGroupSpec": {"rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"}, "template": head},
        "workerGroupSpecs": [
            {
                "groupName": group,
                "replicas": fewest,
                "minReplicas": fewest,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }


def pod_security() -> Manifest:
    """Return the security context of a pod: no root, the files of its volumes its own, seccomp on."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def manifest_yaml(manifest: Manifest) -> str:
    """Return a manifest as YAML, texts of several lines as they are."""
    return yaml.dump(manifest, Dumper=_Blocks, sort_keys=False, width=200)


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as blocks, lists indented below their names, and no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _text)


def _pod(container: str, name: str, image: str, ports: Mapping[str, int], *, cpus: int) -> Manifest:
    variables = {**CLUSTER_VARIABLES, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "HOME": "/tmp/home"}
    # Said here too, so that no operator of whatever version starts Ray without a token.
    token = {"valueFrom": {"secretKeyRef": {"name": f"{name}-ray-token", "key": "auth_token"}}}
    limits = {"cpu": str(cpus), "memory": "4Gi", "ephemeral-storage": "10Gi"}
    return {
        "spec": {
            "securityContext": pod_security(),
            # Time for the node to drain: requests that it works on are answered.
            "terminationGracePeriodSeconds": 90,
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "env": [
                        *({"name": key, "value": value} for key, value in variables.items()),
                        {"name": "RAY_AUTH_TOKEN", **token},
                    ],
                    "envFrom": [
                        *({"configMapRef": {"name": f"{name}-{kind}", "optional": True}} for kind in CONFIG_MAPS),
                        {"secretRef": {"name": f"{name}-environment", "optional": True}},
                    ],
                    "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
                    "resources": {"requests": dict(limits), "limits": dict(limits)},
                    "securityContext": _container_security(),
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "shared-memory", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": "8Gi"}},
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            ],
        }
    }
