"""The whole Serve configuration as data: the template, what settings and policies add, one application a version.

Replicas, the limits of autoscaling and `user_config` are changed in place by Serve; another `args` or
`ray_actor_options`, and autoscaling instead of a number, start replicas anew, one after the other.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forge_core.deployment.routing_table import Table, variant_name
from forge_core.errors import ConfigurationError
from forge_core.policy import MonitorPolicy, ServingPolicy, load_policies
from forge_core.settings import Settings

# What Ray reads when Serve starts: HAProxy instead of the Python proxy, and logs where a container shows them.
# A request that a router took with it to its end goes to another: a prediction or a label sent twice counts once.
# HAProxy can do so for what fits into its buffer, here some two thousand rows, which also arrive in one piece.
# Routers count their requests themselves: HAProxy would tell each to a process that reads it as a line of text.
SERVE_VARIABLES = {
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.ingress:middlewares",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",
    # The controller looks round half as often as by default; a replica that died is seen a tenth of a second later.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "1",
}


@dataclass(frozen=True)
class ServeConfig:
    """Composes the Serve configuration of a set of versions and a routing table.

    Attributes
    ----------
    template_file : Path
        `deployments/serve.yaml`: the applications `router`, `profiler`, `recorder` and the pattern `variant`.
    host, port : str, int
        Where the prediction API listens.
    arguments : mapping
        Passed to every application builder: storage and ledger URLs, profile, default model, whether it is open.
    watch : mapping
        Each model's `window_hours` and `redacted` features; None for one that is not watched.
    serving : mapping
        Each model's policy of replicas, over the pattern's.
    """

    template_file: Path
    host: str
    port: int
    arguments: Mapping[str, Any]
    watch: Mapping[str, Mapping[str, Any] | None]
    serving: Mapping[str, ServingPolicy]

    def compose(self, variants: Iterable[tuple[str, str]], table: Table) -> dict[str, Any]:
        """Return the configuration that runs these (model, version) pairs and routes by this table."""
        template = self._template()
        patterns = {app["name"]: app for app in template.pop("applications")}
        pattern = patterns.pop("variant")
        apps = []
        for app in patterns.values():
            app["args"] = {**self.arguments, **app.get("args", {})}
            if app["name"] == "router":
                router = _deployment(app, "Router")
                router["user_config"] = {"models": table, "watch": dict(self.watch)}
                app["args"]["counted_by_serve"] = "autoscaling_config" in router or router.get("num_replicas") == "auto"
            apps.append(app)
        apps += [self._variant(pattern, model, version) for model, version in sorted(set(variants))]
        return {**template, "http_options": {"host": self.host, "port": self.port}, "applications": apps}

    def _variant(self, pattern: Mapping[str, Any], model: str, version: str) -> dict[str, Any]:
        app = copy.deepcopy(dict(pattern))
        app["name"] = variant_name(model, version)
        app["args"] = {**self.arguments, **app.get("args", {}), "model": model, "version": version}
        if model in self.serving:
            _scale(_deployment(app, "Variant"), self.serving[model])
        return app

    def _template(self) -> dict[str, Any]:
        if not self.template_file.is_file():
            raise ConfigurationError(f"expected Serve's template at {self.template_file}, found none")
        return yaml.safe_load(self.template_file.read_text())


def get_serve_config(settings: Settings) -> ServeConfig:
    """Return what the settings and the policies say."""
    policies = load_policies(settings.policy_file)
    return ServeConfig(
        template_file=settings.serve_file,
        host=settings.host,
        port=settings.api_port,
        arguments={
            "storage_url": settings.storage,
            "ledger_url": settings.ledger,
            "profile": settings.profile,
            "default_model": settings.model,
            "open_without_key": settings.open_without_key,
        },
        watch={n: _watch(p.monitor) for n, p in policies.items()},
        serving={n: p.serving for n, p in policies.items()},
    )


def _watch(policy: MonitorPolicy) -> dict[str, Any] | None:
    return {"window_hours": policy.window_hours, "redacted": list(policy.redacted)} if policy.watch else None


def _scale(deployment: dict[str, Any], serving: ServingPolicy) -> None:
    """Put a policy over a deployment's replicas; Serve takes a number or autoscaling, never both."""
    if serving.replicas is not None:
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = serving.replicas
    elif serving.autoscaling is not None:
        deployment.pop("num_replicas", None)
        deployment["autoscaling_config"] = serving.autoscaling.model_dump()
    if serving.num_cpus is not None:
        deployment["ray_actor_options"] = {**deployment.get("ray_actor_options", {}), "num_cpus": serving.num_cpus}
    if serving.max_ongoing_requests is not None:
        deployment["max_ongoing_requests"] = serving.max_ongoing_requests


def _deployment(app: dict[str, Any], name: str) -> dict[str, Any]:
    return next(d for d in app["deployments"] if d["name"] == name)
