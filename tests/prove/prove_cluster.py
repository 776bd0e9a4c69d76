"""Three hosts on one machine: Serve and a Ray Train run across them, one worker host cut off under load and returned.

`python -m tests.prove cluster [--cuts N] [--away S]`
"""

import argparse
import json
import os
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
from rich.console import Console

from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.deployment.mirror import mirror_version
from forge_core.deployment.ray_pods import CLUSTER_VARIABLES
from forge_core.deployment.replay_rows import to_records
from forge_core.deployment.routing import nominate, promote
from forge_core.deployment.serve_client import ServeClient, get_serve_client
from forge_core.errors import ForgeError
from forge_core.ledger import Ledger
from forge_core.settings import Settings
from forge_core.storage import Storage
from infra.local.environment import ROOT
from tests.prove.network_hosts import Hosts, python
from tests.prove.serving_load import Load, Report
from tests.serve.live_models import train

HEAD, WORKERS = "head", ("w1", "w2")
CONNECTIONS = 8
_KINDS = ("router", "variant")
# Seconds that a start may take; on two idle cores it is one minute.
_PATIENCE = 900.0


def run(only: Sequence[str] = ()) -> bool:
    """Tell whether Serve and Train ran across hosts, and callers noticed no more than was bound of a lost one."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove cluster", description=__doc__)
    parser.add_argument("--cuts", type=int, default=2, help="how often a worker host is cut off")
    parser.add_argument("--away", type=float, default=90.0, help="seconds that it stays away")
    chosen = parser.parse_args(list(only))
    console = Console(highlight=False, soft_wrap=True)
    faults: list[str] = []
    try:
        with Hosts((HEAD, *WORKERS)) as hosts:
            try:
                cluster = Cluster(hosts, console)
                cluster.start()
                faults += cluster.train()
                for number in range(chosen.cuts):
                    faults += cluster.cut(WORKERS[number % 2], chosen.away)
            except (ForgeError, RuntimeError, subprocess.SubprocessError, TimeoutError) as error:
                for log in sorted(hosts.home.glob("*.log")):
                    console.print(f"{log.name}: …{log.read_text(errors='replace')[-1500:]}", markup=False)
                faults.append(f"{type(error).__name__}: {error}")
    except PermissionError as error:
        faults.append(f"no hosts here: {error}")
    for fault in faults:
        console.print(fault, style="red", markup=False)
    return not faults


class Cluster:
    """A Ray head with Serve and two worker hosts, started as containers of our image are."""

    def __init__(self, hosts: Hosts, console: Console) -> None:
        self.hosts, self.console = hosts, console
        head = hosts.addresses[HEAD]
        self.settings = Settings(
            home=hosts.home,
            profile="compose",
            keyless="all",
            host="0.0.0.0",
            model="sample",
            serve_file=ROOT / "deployments/serve-cluster.yaml",
            api_address=f"http://{head}:8000",
            dashboard_address=f"http://{head}:8265",
            tracking_uri="",
            startup_timeout=_PATIENCE,
        )
        self.token = secrets.token_hex(32)
        self.bodies: list[Any] = []
        self.expected: list[tuple[Any, float]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Return once every host is in the cluster and a version answers from two of them."""
        begun = time.monotonic()
        self._make_version()
        made = time.monotonic()
        os.environ["RAY_AUTH_TOKEN"] = self.token
        for name in (HEAD, *WORKERS):
            # One after another: Ray gives a start half a minute, however many share the cores.
            self._start_node(name)
            _until(lambda name=name: self._kept() and name in self._alive(), _PATIENCE, f"{name} did not come up")
        _until(lambda: self._kept() and self._answers(), _PATIENCE, "the API did not answer")
        _until(self._whole, _PATIENCE, "no two replicas of each on three hosts")
        self.console.print(
            f"version: {made - begun:.0f} s; three hosts and Serve: {time.monotonic() - made:.0f} s; "
            f"replicas: {self._told()}"
        )

    def train(self) -> list[str]:
        """Train with two workers, on the hosts where there is room, and tell whether it was more than one host."""
        rows = self.settings.home / "rows.parquet"
        generate_sample_data(20_000).to_parquet(rows)
        command = python("-m", "forge_core.training.distributed_trainer", "--num-workers=2", f"--dataset={rows}")
        log = self.hosts.home / f"{HEAD}.log"
        before, begun = log.stat().st_size, time.monotonic()
        process = self.hosts.start(
            HEAD,
            (*command, "--features=feature1,feature2", "--epochs=3"),
            {**self._variables(HEAD), "RAY_ADDRESS": f"{self.hosts.addresses[HEAD]}:6379"},
        )
        seen: set[str] = set()
        while process.poll() is None and time.monotonic() - begun < _PATIENCE:
            found = [p for p in self.hosts.processes() if "RayTrainWorker" in _title(p)]
            seen |= {self.hosts.host_of(p) for p in found} - {""}
            time.sleep(0.5)
        told = log.read_text(errors="replace")[before:]
        result = [line for line in told.splitlines() if line.startswith(("run ", "validation"))]
        self.console.print(f"Train on {', '.join(sorted(seen))}, {time.monotonic() - begun:.0f} s: {'; '.join(result)}")
        if process.poll() != 0:
            return [f"training ended with {process.poll()}: {told[-1500:]}"]
        return [] if len(seen) == 2 else [f"expected Train workers on two hosts, found {sorted(seen)}"]

    def cut(self, victim: str, away: float) -> list[str]:
        """Cut a worker host off under load, let it return, and tell what callers noticed."""
        target = (self.hosts.addresses[HEAD], 8000, "/predict")
        _until(self._whole, _PATIENCE, "three hosts and two replicas of each were not there before the cut")
        before = self._told()
        with Load(self.settings.home, target, self.bodies, {"1": self.expected}, [(CONNECTIONS, None)]) as load:
            time.sleep(5.0)
            cut = time.monotonic()
            self.hosts.cut(victim)
            dead = _until(lambda: (alive := self._alive()) != set() and victim not in alive, away, "", strict=False)
            whole = _until(lambda: self._spread(2, without=victim), away, "", strict=False)
            time.sleep(max(0.0, away - (time.monotonic() - cut)))
            back = time.monotonic()
            self.hosts.join(victim)
            # A node that was given up ends itself; whoever keeps containers starts it again.
            ended = _until(lambda: self._nodes[victim].poll() is not None, 120.0, "", strict=False)
            others = [name for name, node in self._nodes.items() if name != victim and node.poll() is not None]
            if ended is not None:
                self._start_node(victim)
            again = _until(lambda: victim in self._alive(), _PATIENCE, f"{victim} did not come back")
            time.sleep(5.0)
        for name in others:
            self.console.print(f"{name} ended too: {self._end_of_log(name)}", markup=False)
        faults = [f"{name} was lost together with {victim}" for name in others]
        return faults + self._judge(victim, load.report, before, (cut, back), (dead, whole, ended, again))

    def _judge(
        self,
        victim: str,
        report: Report,
        before: str,
        moments: tuple[float, float],
        seconds: tuple[float | None, float | None, float | None, float | None],
    ) -> list[str]:
        cut, back = moments
        away = [(at, kind) for at, kind in report.failures if cut <= at < back]
        later = [(at, kind) for at, kind in report.failures if at >= back]
        kinds = ", ".join(f"{n} × {kind}" for kind, n in Counter(k for _, k in [*away, *later]).items()) or "none"
        until = max((at for at, _ in away), default=cut) - cut
        dead, whole, ended, again = (f"{s:.1f} s" if s is not None else "not in time" for s in seconds)
        silent = max((b - a for a, b in pairwise(sorted(report.per_second))), default=0)
        self.console.print(
            f"{victim} cut off for {back - cut:.0f} s, with {before}:\n"
            f"  {report.requests} requests, {len(away)} failed while it was away (the last after {until:.1f} s), "
            f"{len(later)} after it returned; {kinds}; {len(report.wrong)} wrong\n"
            f"  longest time without any reply {max(report.longest_gap, float(silent)):.1f} s\n"
            f"  given up by Ray after {dead}, two replicas of each elsewhere after {whole}\n"
            f"  returned: its node ended itself after {ended}, is in the cluster again after {again}; {self._told()}"
        )
        faults = [] if not report.wrong else [f"wrong replies, such as {report.wrong[0]}"]
        # What a caller had under way on the lost host may be lost: once a connection.
        if len(away) + len(later) > CONNECTIONS:
            faults.append(f"{len(away) + len(later)} requests failed around the loss of {victim}, bound {CONNECTIONS}")
        if None in (seconds[0], seconds[1]):
            faults.append(f"Serve was not whole without {victim} within the time that it was away")
        return faults

    def _make_version(self) -> None:
        rows = generate_sample_data(3000, random_state=3)
        home = self.settings.home / "candidate"
        folder = train(home, rows, sample_contract(), "gradient_boosting", "classification")
        mirror_version(Storage(self.settings.storage), "sample", "1", folder)
        ledger = Ledger(self.settings.ledger)
        for step in (nominate, promote):
            step(ledger, "sample", "1", actor="prove", reason="a test")
        asked = rows[folder.contract.feature_columns].head(64)
        self.bodies = [{"features": record} for record in to_records(asked, folder.contract)]
        proba = folder.pipeline.predict_proba(asked)
        assert folder.classes is not None
        self.expected = [(folder.classes[int(p.argmax())], float(p.max())) for p in proba]

    def _end_of_log(self, name: str) -> str:
        return (self.hosts.home / f"{name}.log").read_text(errors="replace")[-1500:]

    def _kept(self) -> bool:
        """Start what ended again, as whoever keeps containers does; return that it was done."""
        for name, node in self._nodes.items():
            if node.poll() is not None:
                self.console.print(f"{name} ended with {node.returncode} and is started again")
                self._start_node(name)
        return True

    def _start_node(self, name: str) -> None:
        options = ("--num-cpus=0",) if name == HEAD else ("--num-cpus=1", "--object-store-memory=200000000")
        variables = self._variables(name)
        if name != HEAD:
            variables["RAY_ADDRESS"] = f"{self.hosts.addresses[HEAD]}:6379"
        command = python("-m", "infra.docker.entrypoint", "serve", *options)
        self._nodes[name] = self.hosts.start(name, command, variables)

    def _variables(self, name: str) -> dict[str, str]:
        """Return a host's variables: a home of its own, by which its processes are known, and what all share by URL."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("FORGE_", "RAY_", "MLFLOW_"))}
        fields = ("profile", "keyless", "host", "model", "serve_file", "api_address", "dashboard_address")
        ours = {f"FORGE_{field.upper()}": str(getattr(self.settings, field)) for field in (*fields, "startup_timeout")}
        return {
            **inherited,
            **ours,
            "FORGE_HOME": str(self.settings.home / f"home-{name}"),
            "FORGE_LEDGER_URL": self.settings.ledger,
            "FORGE_STORAGE_URL": self.settings.storage,
            **CLUSTER_VARIABLES,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
            # Three hosts on few cores: what only starts slowly is not taken for dead.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "90",
        }

    def _serve(self) -> ServeClient:
        return get_serve_client(self.settings)

    def _answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.settings.api_url}/health/ready", timeout=5.0, trust_env=False).status_code == 200
        return False

    def _where(self) -> dict[str, list[str]]:
        """Return the hosts of the running replicas of router and variant, as Serve tells them."""
        names = {address: name for name, address in self.hosts.addresses.items()}
        found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        for app, state in self._serve()._statuses().items():
            for deployment in state["deployments"].values():
                for replica in deployment["replicas"]:
                    if replica["state"] == "RUNNING" and (kind := app.partition("-")[0]) in found:
                        found[kind].append(names.get(replica["node_ip"], "?"))
        return {kind: sorted(where) for kind, where in found.items()}

    def _spread(self, wanted: int, *, without: str = "") -> bool:
        with suppress(ForgeError):
            return all(len([h for h in hosts if h != without]) >= wanted for hosts in self._where().values())
        return False

    def _whole(self) -> bool:
        return self._kept() and self._spread(2) and len(self._alive()) == len(self.hosts.addresses)

    def _told(self) -> str:
        return "; ".join(f"{kind} on {', '.join(hosts)}" for kind, hosts in self._where().items())

    def _alive(self) -> set[str]:
        """Return the hosts whose node is alive in Ray's eyes."""
        names = {address: name for name, address in self.hosts.addresses.items()}
        url = f"{self.settings.dashboard_url}/nodes?view=summary"
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            told = httpx.get(url, headers=headers, timeout=10.0, trust_env=False).json()
        except (httpx.HTTPError, json.JSONDecodeError):
            return set()
        nodes = told["data"]["summary"]
        return {names.get(n["ip"], "?") for n in nodes if n["raylet"].get("state") == "ALIVE"}


def _until(met: Callable[[], bool], seconds: float, fault: str, *, strict: bool = True) -> float | None:
    """Return after how many seconds something was so; None, or an error, where it was not in time."""
    begun = time.monotonic()
    while not met():
        if time.monotonic() - begun > seconds:
            if strict:
                raise TimeoutError(f"{fault} within {seconds:.0f} s")
            return None
        time.sleep(0.25)
    return time.monotonic() - begun


def _title(process: Any) -> str:
    with suppress(Exception):
        return (process.cmdline() or [""])[0]
    return ""
