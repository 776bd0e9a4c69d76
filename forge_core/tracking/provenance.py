"""Where a version came from, down to its rows, and in what two versions differ."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_core.data.versions import load_manifest
from forge_core.errors import DataNotFound
from forge_core.models.version import VersionFolder
from forge_core.statistics.quality import Interval
from forge_core.storage import Storage
from forge_core.tracking.model_card import flat, model_card
from forge_core.tracking.registry import CHAMPION, RegisteredVersion, Registry


@dataclass(frozen=True)
class Lineage:
    """Where a version came from; None where it is not known.

    `dataset` has `id`, `source`, `train_rows`, `held_out_rows`, `held_out_since`, `held_out_until`, and from its
    manifest, where that is there, `rows`, `set_aside`, `contract`, `parent`, `created_at`. `code` has `commit` and
    `lock_sha256`. `run` has `id`, `parent`, `flow_run` and `trial`: the trial that won, with its number, value and run.
    """

    model: str
    version: str
    gate: str
    reason: str | None
    candidate: str | None
    previous_version: str | None
    model_type: str | None
    hyperparameters: dict[str, Any]
    features_hash: str
    dataset: dict[str, Any]
    code: dict[str, Any]
    run: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return one line a fact, as a terminal shows it."""
        rows = flat(self.to_dict())
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {'unknown' if value is None else value}" for name, value in rows)


@dataclass(frozen=True)
class Comparison:
    """In what two versions differ: parameters and facts as (a, b), metrics with intervals as (a, b).

    `same_rows` tells whether both were judged on the same held-out rows; else metrics cannot be compared.
    """

    model: str
    a: str
    b: str
    parameters: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[Interval | None, Interval | None]]
    datasets: tuple[str | None, str | None]
    same_rows: bool

    def text(self) -> str:
        """Return a table as a terminal shows it."""
        rows: list[tuple[str, str, str]] = [
            ("", f"version {self.a}", f"version {self.b}"),
            ("dataset", str(self.datasets[0]), str(self.datasets[1])),
        ]
        rows += [(name, str(a), str(b)) for name, (a, b) in self.parameters.items()]
        rows += [(name, str(a or "none"), str(b or "none")) for name, (a, b) in self.metrics.items()]
        widths = [max(len(row[place]) for row in rows) for place in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        said = "Both were judged on the same held-out rows." if self.same_rows else (
            "They were judged on different held-out rows: their metrics cannot be compared."
        )  # fmt: skip
        return "\n".join([*lines, said])


def lineage(registry: Registry, model: str, which: str = CHAMPION, *, storage: Storage | None = None) -> Lineage:
    """Return where a version came from, read from its own checked parts, its run, and the dataset's manifest.

    Parameters
    ----------
    which : str
        A number or an alias.
    storage : Storage, optional
        Where dataset versions lie; None leaves out what only the manifest knows.
    """
    version = registry.resolve(model, which)
    with registry.open(version) as folder:
        facts, evaluation = folder.lineage, folder.evaluation
        features_hash = folder.features_hash
    dataset = {
        "id": facts.get("dataset"),
        "source": facts.get("source"),
        "train_rows": facts.get("train_rows"),
        "held_out_rows": evaluation.n_rows,
        "held_out_since": evaluation.since,
        "held_out_until": evaluation.until,
        **_manifest(storage, facts.get("dataset")),
    }
    older = [v.version for v in registry.versions(model) if int(v.version) < int(version.version)]
    return Lineage(
        model=model,
        version=version.version,
        gate="passed" if version.passed_gate else "refused",
        reason=facts.get("reason"),
        candidate=facts.get("candidate"),
        previous_version=older[-1] if older else None,
        model_type=facts.get("model_type"),
        hyperparameters=dict(facts.get("hyperparameters") or {}),
        features_hash=features_hash,
        dataset=dataset,
        code={"commit": facts.get("code_commit"), "lock_sha256": facts.get("lock_sha256")},
        run=_run(registry, version, facts),
    )


def compare(registry: Registry, model: str, a: str, b: str) -> Comparison:
    """Return in what two versions (numbers or aliases) differ."""
    first, second = registry.resolve(model, a), registry.resolve(model, b)
    with registry.open(first) as one, registry.open(second) as two:
        params = [_parameters(folder) for folder in (one, two)]
        metrics = [folder.evaluation.metrics for folder in (one, two)]
        datasets = (one.lineage.get("dataset"), two.lineage.get("dataset"))
        spans = [(f.evaluation.n_rows, f.evaluation.since, f.evaluation.until) for f in (one, two)]
    return Comparison(
        model, first.version, second.version,
        parameters={
            k: (params[0].get(k), params[1].get(k))
            for k in dict.fromkeys([*params[0], *params[1]]) if params[0].get(k) != params[1].get(k)
        },
        metrics={k: (metrics[0].get(k), metrics[1].get(k)) for k in dict.fromkeys([*metrics[0], *metrics[1]])},
        datasets=datasets,
        same_rows=datasets[0] == datasets[1] and spans[0] == spans[1],
    )  # fmt: skip


def card(registry: Registry, model: str, which: str = CHAMPION) -> str:
    """Return a registered version's card as Markdown."""
    version = registry.resolve(model, which)
    with registry.open(version) as folder:
        return model_card(model, folder, version.version)


def _parameters(folder: VersionFolder) -> dict[str, Any]:
    facts = folder.lineage
    shown = ("model_type", "train_rows", "code_commit", "lock_sha256")
    return {
        **{k: facts.get(k) for k in shown},
        "features": folder.features_hash,
        **(facts.get("hyperparameters") or {}),
    }


def _manifest(storage: Storage | None, dataset: str | None) -> dict[str, Any]:
    if storage is None or dataset is None:
        return {}
    try:
        found = load_manifest(storage, dataset)
    except DataNotFound:
        return {"rows": None, "note": f"the dataset version is not at {storage.url} any more"}
    return {
        "rows": found.n_rows, "set_aside": found.n_bad, "contract": found.contract_digest,
        "parent": found.parent, "created_at": found.created_at.isoformat(),
    }  # fmt: skip


def _run(registry: Registry, version: RegisteredVersion, facts: Mapping[str, Any]) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    found: dict[str, Any] = {"id": version.run_id, "parent": None, "flow_run": facts.get("flow_run"), "trial": None}
    try:
        run = registry.client.get_run(version.run_id)
        found["parent"] = run.data.tags.get("mlflow.parentRunId")
        found["trial"] = _winner(registry, version.run_id, run.info.experiment_id, facts)
    except MlflowException as error:  # a run may be deleted, the version stays
        found["note"] = str(error)
    return found


def _winner(registry: Registry, run_id: str, experiment: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the trial with the version's parameters: its number, what it was worth, and its run in MLflow."""
    if not any(file.path == "search.json" for file in registry.client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory(prefix="forge-search-") as path:
        trials = json.loads(Path(registry.client.download_artifacts(run_id, "search.json", path)).read_text())["trials"]
    chosen = facts.get("hyperparameters") or {}
    for trial in trials:
        params = trial.get("hyperparameters") or {}
        if trial.get("state") == "complete" and params and all(chosen.get(k) == v for k, v in params.items()):
            runs = registry.client.search_runs([experiment], f"tags.`forge.trial` = '{trial['number']}'")
            own = [r for r in runs if all(r.data.params.get(k) == str(v)[:500] for k, v in params.items())]
            metrics = {k: v for k, v in trial.items() if isinstance(v, float) and k != "seconds"}
            return {"number": trial["number"], **metrics, "run": own[0].info.run_id if own else None}
    return None
