"""What is done to a served model under load: swaps and rollbacks, kills, and a step of load on autoscaling."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle

import httpx
import onnx
import psutil

from forge_core.deployment.serve_client import get_serve_client
from forge_core.errors import ForgeError, ModelError
from forge_core.pictures import CURRENT, INK, ORANGE, png, small_multiples, tidy_axes
from tests.prove.serving_ground import Ground
from tests.prove.serving_load import Report

VICTIMS = ("variant", "router", "profiler")
# Connections of the step of load, and replicas of router and variant at most.
LOW, HIGH, MOST_REPLICAS = 1, 64, 3


@dataclass
class Kill:
    """One kill: when (`time.monotonic`), of what, until when requests failed, and when a new replica ran."""

    victim: str
    at: float
    failures: Counter[str] = field(default_factory=Counter)
    failing_seconds: float = 0.0
    whole_seconds: float | None = None


def swaps(ground: Ground, versions: list[str], n_swaps: int, n_rollbacks: int) -> Report:
    """Swap round the versions, going back after some swaps, under load from 16 connections."""
    live, following, gone_back = versions[0], cycle(versions), 0
    ground.swap(live)
    with ground.load([(16, None)]) as load:
        for done in range(1, n_swaps + 1):
            live = next(version for version in following if version != live)
            ground.swap(live)
            if gone_back < n_rollbacks * done // n_swaps:
                live = ground.go_back()
                gone_back += 1
    return load.report


def broken_versions(ground: Ground) -> tuple[Report, dict[str, str]]:
    """Try a version that does not load and one that does not warm, under load; return why each was refused."""
    unwarmed = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["unheard"], ["score"])],
        "unwarmed",
        [onnx.helper.make_tensor_value_info("unheard", onnx.TensorProto.FLOAT, [None, 1])],
        [onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, [None, 1])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_model(unwarmed, opset_imports=opset, ir_version=8).SerializeToString()
    refused: dict[str, str] = {}
    with ground.load([(16, None)]) as load:
        for name, parts in {"does not load": b"no graph at all", "does not warm": graph}.items():
            version = ground.with_graph(parts, name.replace(" ", "-"))
            try:
                ground.swap(version)
                refused[version] = ""
            except ModelError as error:
                refused[version] = f"{name}: {str(error)[:100]}"
    return load.report, refused


def kills(ground: Ground, seconds: float, every: float) -> tuple[Report, list[Kill]]:
    """Kill one replica after another with signal 9, each kind once in `every` seconds, under load."""
    ground.scale(router={"num_replicas": 2}, serving={"replicas": 2})
    _await_replicas(ground, {"variant": 2, "router": 2, "profiler": 1})
    found: list[Kill] = []
    pause = every / len(VICTIMS)
    with ground.load([(16, None)]) as load:
        time.sleep(min(pause, 5.0))
        begun = time.monotonic()
        for victim in cycle(VICTIMS):
            if time.monotonic() - begun > seconds - pause / 2:
                break
            found.append(_kill_one(ground, victim, pause))
    for kill, until in zip(found, [*(k.at for k in found[1:]), float("inf")], strict=True):
        failed = [(at, kind) for at, kind in load.report.failures if kill.at <= at < until]
        kill.failures = Counter(kind for _, kind in failed)
        kill.failing_seconds = max((at for at, _ in failed), default=kill.at) - kill.at
    return load.report, found


def _kill_one(ground: Ground, victim: str, pause: float) -> Kill:
    """Kill the oldest replica of a kind, wait for as many as before to run, then for the rest of the pause."""
    before = _running(ground)[victim]
    process = ground.replicas(victim)[0]
    kill = Kill(victim, time.monotonic())
    process.kill()
    while time.monotonic() - kill.at < max(pause, 60.0):
        pids = _running(ground)[victim]
        if process.pid not in pids and len(pids) >= len(before):
            kill.whole_seconds = time.monotonic() - kill.at
            break
        time.sleep(0.25)
    time.sleep(max(0.0, pause - (time.monotonic() - kill.at)))
    return kill


def switched_scaling(ground: Ground) -> Report:
    """Switch autoscaling on under the load of one connection, and return what it met.

    It replaces every replica, one after the other, so there are two of each before.
    """
    if len(_running(ground)["router"]) < 2:
        ground.scale(router={"num_replicas": 2}, serving={"replicas": 2})
    _await_replicas(ground, {"variant": 2, "router": 2, "profiler": 1})
    scaled = {"min_replicas": 1, "max_replicas": MOST_REPLICAS, "upscale_delay_s": 2, "downscale_delay_s": 5}
    router = {**scaled, "target_ongoing_requests": 16, "look_back_period_s": 5}
    with ground.load([(LOW, None)]) as load:
        ground.scale(router={"autoscaling_config": router}, serving={"autoscaling": scaled})
        _await_replicas(ground, {"variant": 1, "router": 1, "profiler": 1})
    return load.report


@dataclass(frozen=True)
class Step:
    """A step of load: the lengths of its three parts in seconds, and (seconds, routers, variants) over time."""

    lengths: tuple[float, float, float]
    seen: list[tuple[float, int, int]]
    report: Report
    picture: bytes

    def replicas(self, kind: str) -> tuple[int, int, int]:
        """Return how many replicas of a kind there were at most before and during the high load, and in the end."""
        place, rise = {"router": 1, "variant": 2}[kind], self.lengths[0]
        before = [look[place] for look in self.seen if look[0] < rise]
        during = [look[place] for look in self.seen if rise <= look[0] < rise + self.lengths[1]]
        return max(before, default=0), max(during, default=0), self.seen[-1][place]


def scaling(ground: Ground, low: float, high: float) -> Step:
    """Send a step of load and return the replicas over time.

    Parameters
    ----------
    low, high : float
        Seconds of the low load before, and of the high load; the low load after it takes twice as long as before.
    """
    lengths = low, high, 2 * low
    with _watched(ground) as seen, ground.load(list(zip((LOW, HIGH, LOW), lengths, strict=True))) as load:
        begun = time.monotonic()
        load.process.wait()
    told = [(at - begun, n_routers, n_variants) for at, n_routers, n_variants in seen]
    return Step(lengths, told, load.report, _picture(told, load.report, begun, lengths))


@contextmanager
def _watched(ground: Ground) -> Iterator[list[tuple[float, int, int]]]:
    seen: list[tuple[float, int, int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            with suppress(ForgeError, httpx.HTTPError):
                now = _running(ground)
                seen.append((time.monotonic(), len(now["router"]), len(now["variant"])))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _running(ground: Ground) -> dict[str, set[int]]:
    """Return the process ids of the running replicas of each kind, as Serve tells them."""
    found: dict[str, set[int]] = {victim: set() for victim in VICTIMS}
    for name, replicas in get_serve_client(ground.settings).replicas().items():
        kind = name.partition("-")[0]
        if kind in found:
            found[kind] |= {pid for pid in replicas if psutil.pid_exists(pid)}
    return found


def _await_replicas(ground: Ground, wanted: dict[str, int], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := {kind: len(pids) for kind, pids in _running(ground).items()}) != wanted:
        if time.monotonic() > deadline:
            raise ForgeError(f"expected the replicas {wanted} within {seconds:.0f} s, found {found}")
        time.sleep(0.5)


def _picture(seen: list[tuple[float, int, int]], report: Report, begun: float, steps: Sequence[float]) -> bytes:
    figure, (replicas, rate) = small_multiples(2)
    times = [at for at, _, _ in seen]
    replicas.step(times, [n for _, n, _ in seen], where="post", color=CURRENT, label="router")
    replicas.step(times, [n for _, _, n in seen], where="post", color=ORANGE, label="variant")
    replicas.set(title="replicas", ylim=(0, None))
    replicas.legend(frameon=False)
    seconds = sorted(report.per_second)
    rate.plot([s - begun for s in seconds], [report.per_second[s] for s in seconds], color=INK)
    rate.set(title="replies a second", ylim=(0, None))
    for axes in (replicas, rate):
        tidy_axes(axes)
        axes.set_xlabel("seconds")
        for edge, name in zip((steps[0], steps[0] + steps[1]), (f"{HIGH} connections", f"{LOW}"), strict=True):
            axes.axvline(edge, color="#999999", linewidth=0.8, linestyle=":")
            axes.annotate(name, (edge, 0.02), xycoords=("data", "axes fraction"), fontsize=7, color=INK)
    return png(figure)
