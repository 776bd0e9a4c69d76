"""The other products: how each is started, how a row is put to it, and where its answer stands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from infra.local.deployments import tail
from infra.local.environment import ROOT
from infra.local.processes import family, free_ports
from tests.benchmarks.serving_venvs import venv_of
from tests.benchmarks.serving_work import Served, mlflow_model

Record = dict[str, Any]
_SERVICES = "tests.benchmarks.peers"
_CLEAN = dict(os.environ)


@dataclass(frozen=True)
class Peer:
    """One way to serve the same model.

    Attributes
    ----------
    form : {"documentation", "tuned", "limit"}
        As its documentation starts it, tuned, or the ONNX session with nothing around it.
    command : callable
        Of the model, a folder for files of its own and three free ports; it answers HTTP on the first.
    path : str
        Where a body is POSTed.
    body : callable
        Rows as the product takes them.
    answers : callable
        The probabilities of class 1 in its reply.
    """

    name: str
    form: Literal["documentation", "tuned", "limit"]
    command: Callable[[Served, Path, Sequence[int]], list[str]]
    path: str
    body: Callable[[Sequence[Record]], Any]
    answers: Callable[[Any], Any]

    def right(self, served: Served) -> NDArray[np.float64]:
        """Return the right answers of what it serves."""
        return served.onnx_answers if "ONNX" in self.name else served.answers


@dataclass(frozen=True)
class Running:
    """A peer's server: where it answers, and its first process."""

    url: str
    pid: int

    def processes(self) -> list[psutil.Process]:
        """Return all of its processes."""
        return family(self.pid)


@contextmanager
def started(peer: Peer, served: Served, folder: Path) -> Iterator[Running]:
    """Give a peer's server, which is stopped at the end with all of its processes."""
    ports = free_ports(3)
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        **{name: value for name, value in _CLEAN.items() if not name.startswith(("FORGE_", "RAY_", "PREFECT_"))},
        "PYTHONPATH": str(ROOT), "BENCH_PIPELINE": str(served.pipeline), "BENCH_ONNX": str(served.onnx),
        "BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true", "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = peer.command(served, folder, ports)
    variables["PATH"] = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        _await_answer(peer, server, url, served.records[:1], log)
        yield Running(url, server.pid)
    finally:
        _stop(server)


def check(
    name: str,
    ask: Callable[[Sequence[Record]], Any],
    records: Sequence[Record],
    right: NDArray[np.float64],
    *,
    batches: bool = False,
) -> None:
    """Raise a RuntimeError where a server's answers to single rows, or to all of them at once, are not its model's."""
    first = np.array([np.ravel(ask([record]))[0] for record in records[:40]], float)
    _compare(name, first, right[:40])
    if batches:
        _compare(f"{name}, {len(records)} rows", np.ravel(ask(records)), right)


def ask(peer: Peer, url: str, records: Sequence[Record]) -> NDArray[np.float64]:
    """Return the probabilities that a peer answers."""
    answer = httpx.post(f"{url}{peer.path}", json=peer.body(records), trust_env=False, timeout=60.0)
    if not answer.is_success:
        raise RuntimeError(f"{peer.name} answered {answer.status_code}: {answer.text[:500]}")
    return np.ravel(np.asarray(peer.answers(answer.json()), float))


def _compare(name: str, got: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    difference = float(np.abs(got - right).max())
    if not difference <= 1e-4:
        row = int(np.abs(got - right).argmax())
        raise RuntimeError(f"{name} answers wrong: row {row} {got[row]}, the pipeline says {right[row]}")


def _await_answer(
    peer: Peer, server: "subprocess.Popen[bytes]", url: str, records: Sequence[Record], log: Path
) -> None:
    deadline, last = time.monotonic() + 90, ""
    while time.monotonic() < deadline and server.poll() is None:
        try:
            ask(peer, url, records)
            return
        except (httpx.HTTPError, RuntimeError) as error:
            last = str(error)
            time.sleep(0.25)
    raise RuntimeError(f"{peer.name} did not come up: {last}\n{tail(log, 30)}")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    processes = family(server.pid)
    for process in processes:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        _signal(process.kill)
    server.wait()


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _mlflow(served: Served, folder: Path, ports: Sequence[int]) -> list[str]:
    model = mlflow_model(served, folder / "model")
    address = ["--host", "127.0.0.1", "--port", str(ports[0])]
    program = str(Path(sys.executable).parent / "mlflow")
    return [program, "models", "serve", "-m", str(model), "--env-manager", "local", *address]


def _uvicorn(service: str) -> Callable[[Served, Path, Sequence[int]], list[str]]:
    def command(served: Served, folder: Path, ports: Sequence[int]) -> list[str]:
        program = [sys.executable, "-m", "uvicorn", f"{_SERVICES}.{service}:app", "--host", "127.0.0.1"]
        return [*program, "--port", str(ports[0]), "--no-access-log"]

    return command


def _bentoml(service: str) -> Callable[[Served, Path, Sequence[int]], list[str]]:
    def command(served: Served, folder: Path, ports: Sequence[int]) -> list[str]:
        program = [str(venv_of("bentoml") / "bin" / "bentoml"), "serve", f"{_SERVICES}.bento_service:{service}"]
        return [*program, "--host", "127.0.0.1", "--port", str(ports[0]), "--working-dir", str(ROOT)]

    return command


def _mlserver(**tuning: Any) -> Callable[[Served, Path, Sequence[int]], list[str]]:
    def command(served: Served, folder: Path, ports: Sequence[int]) -> list[str]:
        names = ("http_port", "grpc_port", "metrics_port")
        settings = {"host": "127.0.0.1", **dict(zip(names, ports, strict=True))}
        model = {
            "name": "forest",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(served.pipeline)},
            **tuning,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        return [str(venv_of("mlserver") / "bin" / "mlserver"), "start", str(folder)]

    return command


def _tensors(records: Sequence[Record]) -> dict[str, Any]:
    inputs = []
    for name in records[0]:
        values = [record[name] for record in records]
        kind = next((_V2[type(v)] for v in values if v is not None), "FP64")
        inputs.append({"name": name, "shape": [len(values), 1], "datatype": kind, "data": values})
        if kind == "BYTES":
            inputs[-1]["parameters"] = {"content_type": "str"}
    return {"parameters": {"content_type": "pd"}, "inputs": inputs, "outputs": [{"name": "predict_proba"}]}


def split_frame(records: Sequence[Record]) -> dict[str, Any]:
    """Return rows as MLflow's `dataframe_split`."""
    return {"dataframe_split": {"columns": list(records[0]), "data": [list(r.values()) for r in records]}}


_V2 = {float: "FP64", int: "INT64", str: "BYTES", bool: "BOOL"}
_V2_PATH = "/v2/models/forest/infer"


def _probabilities(reply: Any) -> Any:
    return np.reshape(reply["outputs"][0]["data"], (-1, 2))[:, 1]


MLFLOW = Peer(
    "MLflow", "documentation", _mlflow, "/invocations", split_frame, lambda reply: np.array(reply["predictions"])[:, 1]
)
PEERS = (
    MLFLOW,
    Peer("BentoML", "documentation", _bentoml("Plain"), "/predict", lambda rows: {"rows": list(rows)}, list),
    Peer("MLServer", "documentation", _mlserver(), _V2_PATH, _tensors, _probabilities),
    Peer(
        "FastAPI", "documentation", _uvicorn("fastapi_service"), "/predict", lambda rows: rows[0],
        lambda reply: reply["probability"],
    ),
    Peer("BentoML, batching", "tuned", _bentoml("Batched"), "/predict", lambda rows: {"rows": list(rows)}, list),
    Peer(
        "MLServer, batching", "tuned", _mlserver(max_batch_size=64, max_batch_time=0.01), _V2_PATH, _tensors,
        _probabilities,
    ),
    Peer(
        "BentoML, ONNX by hand", "tuned", _bentoml("Onnx"), "/predict", lambda rows: {"features": rows[0]}, float
    ),
    Peer(
        "Starlette, ONNX", "limit", _uvicorn("onnx_service"), "/predict", lambda rows: {"features": rows[0]},
        lambda reply: reply["probability"],
    ),
)  # fmt: skip
