"""Whether the Ray cluster has room for the workers, and what each of them asks for."""

import logging
import os
from dataclasses import dataclass
from typing import Any

from forge_core.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """What each worker gets."""

    use_gpu: bool
    resources: dict[str, float]


def join_ray(address: str | None) -> None:
    """Join the Ray cluster at the address, or start one for this process where there is none."""
    import ray
    import ray.data

    from forge_core.training.tuning import connect

    # Ray Data sets its own logger up when it is imported, to tell of every pass over the rows.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    if address:
        connect(address)
        return
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def room_for(workers: int, *, gpu: bool | None = None) -> Room:
    """Return what each of the workers gets from the cluster that this process joined.

    Parameters
    ----------
    workers : int
    gpu : bool, optional
        None takes GPUs where the cluster has them.

    Raises
    ------
    ConfigurationError
        When the cluster has fewer GPUs, or is more than this machine and has fewer CPUs, than there are workers.
    """
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    gpus, cpus = int(total.get("GPU", 0)), total.get("CPU", 0.0)
    use_gpu = gpus > 0 if gpu is None else gpu
    if use_gpu and gpus < workers:
        raise ConfigurationError(
            f"expected {workers} GPUs for {workers} workers, found {gpus} in the cluster; "
            f"ask for {gpus or 'no GPU'}{' workers at most' if gpus else ''}, or add GPUs",
            context={"workers": workers, "gpus": gpus},
        )
    if _is_this_machine(ray.nodes()):
        if workers > cpus:
            logger.warning("workers=%d cpus=%g on this machine: they share the cores and gain nothing", workers, cpus)
        # Room is left for the tasks that read data.
        each = max(0.01, min(1.0, 0.75 * free.get("CPU", cpus) / workers))
        return Room(use_gpu, {"CPU": round(each, 4), **({"GPU": 1} if use_gpu else {})})
    if workers > cpus:
        raise ConfigurationError(
            f"expected {workers} CPUs for {workers} workers, found {cpus:g} in the cluster's {len(ray.nodes())} nodes; "
            f"ask for {int(cpus)} workers at most, or add nodes",
            context={"workers": workers, "cpus": cpus},
        )
    if workers > free.get("CPU", 0.0):
        logger.warning("workers=%d free_cpus=%g: waiting for other work to end", workers, free.get("CPU", 0.0))
    return Room(use_gpu, {"CPU": 1, **({"GPU": 1} if use_gpu else {})})


def _is_this_machine(nodes: list[dict[str, Any]]) -> bool:
    alive = [node for node in nodes if node["Alive"]]
    return len(alive) == 1 and alive[0]["NodeManagerHostname"] == os.uname().nodename
