"""The steps of the flows: each calls one function of `forge_core` and leaves what there is to look at."""

import json
import logging
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.artifacts import leave_picture, leave_table, leave_text, slug
from flows.caching import CACHED, REPEATED
from flows.house import House, open_house
from forge_core.data.data_report import data_figure, ingestion_markdown
from forge_core.data.ingest import ingest
from forge_core.data.versions import load_contract, load_sample
from forge_core.deployment.routing import approve, read_history
from forge_core.errors import ApprovalNeeded, ModelError
from forge_core.models.evaluation import Evaluation, Verdict
from forge_core.models.target import infer_learning
from forge_core.monitoring.drift_detection import FeatureDriftDetector
from forge_core.monitoring.reports import drift_markdown
from forge_core.policy import DataPolicy, GatePolicy
from forge_core.tracking.mlflow_extensions import ExperimentTracker
from forge_core.tracking.registry import CHALLENGER, RegisteredVersion, write_mlmodel
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest, load_split
from forge_core.training.lineage import code_commit, lock_hash
from forge_core.training.trial_runs import Tracking
from forge_core.training.tuning import search

logger = logging.getLogger(__name__)


@task(name="ingest", **CACHED)
def ingest_rows(model: str, source: str, policy: DataPolicy, since: str | None, until: str | None) -> dict[str, Any]:
    """Load, check against the contract, set bad rows aside, keep the good ones as a dataset version."""
    house = open_house(model)
    found = ingest(
        house.storage, source, policy, since=since, until=until, code_commit=code_commit(), progress=_tell_rows()
    )
    version = found.version
    logger.info("dataset=%s rows=%d set_aside=%d", version.id, version.n_rows, found.n_bad)
    sample, contract = load_sample(house.storage, version.id), load_contract(house.storage, version.id)
    leave_text(slug(model, "data"), ingestion_markdown(found, sample, contract), "What was kept, what was set aside")
    leave_picture(slug(model, "data-columns"), data_figure(sample, contract), f"Columns of {version.id}")
    return {
        "dataset": version.id,
        "rows": version.n_rows,
        "set_aside": found.n_bad,
        "learning": infer_learning(sample[policy.target]),
    }


def _tell_rows(seconds: float = 10.0) -> Callable[[int], None]:
    """Return a callback that logs the number of rows every so many seconds."""
    told = time.monotonic()

    def progress(n_rows: int) -> None:
        nonlocal told
        if time.monotonic() - told >= seconds:
            told = time.monotonic()
            logger.info("rows=%d", n_rows)

    return progress


@task(name="compare-with-training", **CACHED)
def compare_parts(model: str, split: SplitRequest) -> dict[str, Any]:
    """Tell how the newest, held-out rows differ from those to be trained on."""
    house = open_house(model)
    parts = load_split(house.storage, split)
    numerical = parts.X_train.select_dtypes("number").columns.tolist()
    categorical = [c for c in parts.X_train.columns if c not in numerical]
    detector = FeatureDriftDetector(parts.X_train, categorical, numerical)
    report = detector.compute_drift(parts.X_test)
    leave_text(slug(model, "held-out-drift"), drift_markdown(report), "Held-out rows against training rows")
    return {"score": report.score, "feature": report.feature}


@task(name="search", **CACHED)
def search_parameters(
    model: str,
    split: SplitRequest,
    model_type: str,
    metric: str,
    trials: int,
    fixed: dict[str, Any],
    start_from: dict[str, Any] | None,
    random_state: int,
    task: Literal["auto", "classification", "regression"] = "auto",
) -> dict[str, Any]:
    """Search hyperparameters with Ray Tune; each trial is a child run of the model's experiment."""
    house = open_house(model)
    bar = create_progress_artifact(0.0, key=slug(model, "search"), description=f"{trials} trials")

    def progress(done: int, result: dict[str, Any]) -> None:
        logger.info("trial %d/%d %s", done, trials, result)
        update_progress_artifact(bar, 100.0 * done / trials)

    found = search(
        split,
        model_type=model_type,
        metric=metric,
        task=task,
        trials=trials,
        fixed=fixed,
        start_from=start_from,
        random_state=random_state,
        address=house.ray_address,
        progress=progress,
        tracking=Tracking(model, uri=house.settings.mlflow_url),
    )
    if found.unsent_runs:
        logger.warning("trials that MLflow does not have: %d", found.unsent_runs)
    rows = found.table().sort_values(metric, ascending=found.mode == "min", na_position="last")
    leave_table(
        slug(model, "trials"),
        json.loads(rows.round({metric: 5, "seconds": 1}).to_json(orient="records")),
        f"Trials by validation {metric}, the best first",
    )
    leave_picture(slug(model, "search"), found.picture(), f"{metric} by trial")
    return {"hyperparameters": found.hyperparameters, "value": found.value, "trials": found.trials}


@task(name="fit", **CACHED)
def fit_winner(model: str, recipe: Recipe) -> str:
    """Fit features and estimator on the training and validation part."""
    return candidate.fit(open_house(model).storage, recipe)


@task(name="evaluate", **CACHED)
def evaluate_candidate(model: str, recipe: Recipe, policy: GatePolicy, champion: str | None) -> dict[str, Any]:
    """Score the held-out rows with intervals and ask the gate."""
    house = open_house(model)
    name = f"champion v{champion}" if champion else "the training mean"
    with house.version(champion) as folder:
        evaluation, verdict = candidate.evaluate(
            house.storage, recipe, policy=policy, champion=folder, champion_name=name
        )
    _leave_evaluation(house, recipe, evaluation, verdict)
    logger.info("gate passed=%s reason=%s", verdict.passed, verdict.reason)
    return {"evaluation": evaluation.to_dict(), "verdict": verdict.to_dict(), "reason": verdict.reason}


@task(name="compile", **CACHED)
def compile_pipeline(model: str, recipe: Recipe, tolerance: float) -> dict[str, Any]:
    """Convert to ONNX and measure parity on held-out rows."""
    return candidate.compile_candidate(open_house(model).storage, recipe, tolerance=tolerance)


@task(name="register", **REPEATED)
def register_version(
    model: str, recipe: Recipe, parent_run: str | None, reason: str, trials: list[dict[str, Any]]
) -> str:
    """Register the candidate as a version with all its parts; a second time finds the first."""
    house = open_house(model)
    verdict = Verdict.from_dict(house.storage.read_json(recipe.key("evaluation.json"))["verdict"])
    version = house.registry.by_candidate(model, recipe.candidate_id)
    if version is None:
        lineage = {
            "code_commit": code_commit(),
            "lock_sha256": lock_hash(),
            "flow_run": parent_run,
            "reason": reason,
        }
        version = _upload(house, recipe, verdict, lineage, trials)
    if version.version not in read_history(house.ledger, model).stages:
        if verdict.passed:
            house.registry.set_alias(version, CHALLENGER)
        house.ledger.append_event(
            "registered" if verdict.passed else "refused",
            model,
            version=version.version,
            actor="train flow",
            reason=verdict.reason,
            details={"candidate": recipe.candidate_id, "run": version.run_id},
        )
    return version.version


def _upload(
    house: House, recipe: Recipe, verdict: Verdict, lineage: dict[str, Any], trials: list[dict[str, Any]]
) -> RegisteredVersion:
    """Put the candidate's parts together, and its figures and pictures into a run, and register them."""
    storage, dataset = house.storage, recipe.split.dataset_id
    evaluation = Evaluation.from_dict(storage.read_json(recipe.key("evaluation.json"))["evaluation"])
    tracker = ExperimentTracker(house.model, tracking_uri=house.settings.mlflow_url)
    with tempfile.TemporaryDirectory(prefix="forge-candidate-") as path, tracker:
        run_id = tracker.run_id or ""
        parts = candidate.assemble(
            storage,
            recipe,
            Path(path) / "version",
            lineage={**lineage, "run": run_id},
            window_hours=house.policy.monitor.window_hours,
        )
        write_mlmodel(parts.path, parts.pipeline, parts.input_example)
        tracker.log_params({"model_type": recipe.model_type, **dict(recipe.hyperparameters)})
        tracker.log_params({"dataset": dataset, "candidate": recipe.candidate_id})
        tracker.log_metrics({name: interval.value for name, interval in evaluation.metrics.items()})
        tracker.log_bytes(storage.read_bytes(recipe.key("evaluation.png")), "pictures/evaluation.png")
        tracker.log_dict({"trials": trials}, "search.json")
        tracker.log_dataset_version(storage, dataset, target=recipe.split.target)
        return house.registry.register(
            house.model,
            parts.path,
            run_id=run_id,
            candidate=recipe.candidate_id,
            gate="passed" if verdict.passed else "refused",
            tags={"dataset": dataset},
        )


@task(name="ask-for-approval", **REPEATED)
def ask_for_approval(model: str, version: str) -> str | None:
    """Tell how a person lets the version go live; None where nobody has to, or somebody did."""
    from forge_core.deployment.go_live import check_approval

    house = open_house(model)
    if not house.policy.gate.approval:
        return None
    try:
        check_approval(house.ledger, model, version)
    except ApprovalNeeded as needed:
        leave_text(slug(model, "approval"), str(needed), f"Version {version} waits for a person")
        return str(needed)
    return None


@task(name="deploy", **REPEATED)
def deploy_version(
    model: str, version: str, reason: str, at: datetime | None, approved_by: str | None = None
) -> dict[str, Any]:
    """Bring a version live on Ray Serve without dropping a request, once it answers as its own pipeline does."""
    from forge_core.deployment.go_live import go_live

    house = open_house(model)
    if approved_by is not None:
        chosen = house.registry.resolve(model, version).version
        approve(house.ledger, model, chosen, actor=approved_by, reason=reason, at=at)
    try:
        live = go_live(
            house.storage,
            house.ledger,
            house.registry,
            house.serve,
            model,
            version,
            policy=house.policy,
            actor=approved_by or "train flow",
            reason=reason,
            at=at,
            progress=logger.info,
        )
    except ModelError as error:
        if parity := error.context.get("parity"):
            leave_table(slug(model, "parity"), parity["worst"], f"Version {version} was refused: worst replayed rows")
        raise
    if parity := live["parity"]:
        figures = [{"figure": name, "value": value} for name, value in parity.items() if name != "worst"]
        leave_table(slug(model, "parity"), figures, f"Version {version} over HTTP against its own pipeline")
    return live


@task(name="begin-rollout", **REPEATED)
def begin_rollout(
    model: str, version: str, reason: str, at: datetime | None, approved_by: str | None = None
) -> dict[str, Any]:
    """Try a version as every deployment does and give it its first traffic; a rollout under way goes on."""
    from forge_core.experiments.rollout_run import start_rollout

    house = open_house(model)
    if approved_by is not None:
        chosen = house.registry.resolve(model, version).version
        approve(house.ledger, model, chosen, actor=approved_by, reason=reason, at=at)
    found = start_rollout(
        house.storage, house.ledger, house.registry, house.serve, model, version,
        policy=house.policy, actor=approved_by or "rollout flow", reason=reason, at=at, progress=logger.info,
    )  # fmt: skip
    return {"rollout": found.id, "version": found.version, "step": found.told_step}


@task(name="rollback", **REPEATED)
def roll_back_version(model: str, from_version: str, actor: str, reason: str) -> str:
    """Give the traffic to the last good champion: ends a rollout, else goes to the champion before this one."""
    from forge_core.experiments.rollout_run import roll_back_now

    house = open_house(model)
    return roll_back_now(
        house.ledger, house.registry, house.serve, model,
        actor=actor, reason=reason, from_version=from_version, progress=logger.info,
    )  # fmt: skip


def _leave_evaluation(house: House, recipe: Recipe, evaluation: Evaluation, verdict: Verdict) -> None:
    rows = [
        {"metric": name, "value": round(m.value, 4), "low": round(m.low, 4), "high": round(m.high, 4)}
        for name, m in evaluation.metrics.items()
    ]
    leave_table(slug(house.model, "metrics"), rows, f"{recipe.candidate_id} on {evaluation.n_rows:,} held-out rows")
    gate = [{"check": c.name, "passed": c.passed, "found": c.found, "needed": c.needed} for c in verdict.checks]
    leave_table(slug(house.model, "gate"), gate, "The gate's verdict: " + ("passed" if verdict.passed else "refused"))
    leave_picture(
        slug(house.model, "evaluation"), house.storage.read_bytes(recipe.key("evaluation.png")), "ROC and calibration"
    )
