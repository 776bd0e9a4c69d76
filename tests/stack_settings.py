"""Settings of a stack of its own: free ports, and a home whose path is short enough for Unix sockets."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from forge_core.settings import Settings


def short_home() -> Path:
    """Return a new empty folder."""
    return Path(tempfile.mkdtemp(prefix="fh-"))


def stack_settings(home: Path, free_ports: Callable[[int], list[int]]) -> Settings:
    """Return settings for a stack beside any other on this machine."""
    names = ("api_port", "prefect_port", "mlflow_port", "ray_port", "dashboard_port")
    names += ("haproxy_metrics_port", "haproxy_stats_port")
    # Said here, so that no variable of the surroundings can say otherwise.
    return Settings(home=home, model="sample", tracking_uri="", **dict(zip(names, free_ports(len(names)), strict=True)))
