"""Writes a Serve configuration into a KubeRay service, which passes it on to Serve.

What is PUT to Serve past KubeRay is lost when KubeRay's operator or the Ray head starts again: both go back to what
the RayService says. So in Kubernetes it is written there, with the pod's own service account, and read back from Serve.
"""

import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from forge_core.deployment.rayservice import serve_section
from forge_core.errors import ConfigurationError, ServiceUnavailable

# Where Kubernetes puts a pod's own credentials.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Serve's applications as its REST API tells them.
Statuses = Callable[[], Mapping[str, Any]]


class KubeRay:
    """The RayService of a name in the namespace of this pod.

    Parameters
    ----------
    service : str
        Its name.
    kubernetes_url : str, optional
        Base URL of the Kubernetes API; by default that of the cluster in which this pod runs.
    account : Path
        Folder with `token`, `namespace` and, for https, `ca.crt`.
    pass_on_seconds : float
        How long KubeRay may take to pass a configuration on.

    Raises
    ------
    ConfigurationError
        When this process runs in no pod.
    """

    def __init__(
        self,
        service: str,
        *,
        kubernetes_url: str | None = None,
        account: Path = ACCOUNT,
        pass_on_seconds: float = 180.0,
    ) -> None:
        if not (account / "token").is_file():
            raise ConfigurationError(
                f"expected a pod's service account at {account}, because FORGE_RAYSERVICE is {service!r}, found none; "
                "outside of Kubernetes leave it empty"
            )
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        host = f"[{host}]" if ":" in host else host
        namespace = (account / "namespace").read_text().strip()
        base = kubernetes_url or f"https://{host}:{port}"
        self.url = f"{base}/apis/ray.io/v1/namespaces/{namespace}/rayservices/{service}"
        self._account, self._pass_on_seconds = account, pass_on_seconds

    def put(self, config: Mapping[str, Any], statuses: Statuses) -> None:
        """Write a composed configuration and return once Serve was told it: the same applications, none besides.

        Raises
        ------
        ServiceUnavailable
            Kubernetes does not answer or does not let this pod, or KubeRay does not pass the configuration on.
        ConfigurationError
            Kubernetes refuses it.
        """
        self._patch({"spec": {"serveConfigV2": serve_section(config)}})
        wanted = {app["name"]: app for app in config["applications"]}
        deadline = time.monotonic() + self._pass_on_seconds
        while differing := _differing(wanted, statuses()):
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"expected KubeRay to pass the configuration on within {self._pass_on_seconds:.0f} s, found "
                    f"{', '.join(sorted(differing))} unchanged; look at `kubectl describe rayservice`"
                )
            time.sleep(0.5)

    def _patch(self, change: Mapping[str, Any]) -> None:
        # Read anew for each call: Kubernetes replaces the token about once an hour.
        headers = {
            "Authorization": f"Bearer {(self._account / 'token').read_text().strip()}",
            "Content-Type": "application/merge-patch+json",
        }
        authority = self._account / "ca.crt"
        verify = ssl.create_default_context(cafile=str(authority)) if authority.is_file() else True
        try:
            with httpx.Client(trust_env=False, timeout=60.0, headers=headers, verify=verify) as client:
                answer = client.patch(self.url, json=change)
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"expected the Kubernetes API at {self.url}, found: {error or type(error).__name__}"
            ) from error
        if answer.status_code in (401, 403):
            raise ServiceUnavailable(
                f"Kubernetes does not let this pod's service account patch {self.url}: {answer.text[:300]}; "
                "give it `patch` on that RayService"
            )
        if answer.status_code >= 400:
            raise ConfigurationError(f"Kubernetes refused the configuration: {answer.text[:500]}")


def _differing(wanted: Mapping[str, Any], applications: Mapping[str, Any]) -> set[str]:
    """Return the applications that Serve was told otherwise, or not yet told to drop."""
    running = {name: app for name, app in applications.items() if app["status"] != "DELETING"}
    told = {name: app.get("deployed_app_config") or {} for name, app in running.items()}
    # Serve writes keys of its own beside ours, such as the logging that all applications share.
    differing = {n for n, app in wanted.items() if {key: told.get(n, {}).get(key) for key in app} != app}
    return differing | (set(running) - set(wanted))
