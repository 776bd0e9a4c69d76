"""`python -m infra.ci.validate_model`: train on the generated sample, gate, compare with the committed baseline.

The same steps as the flow `train` (ingest, split, fit, compile, evaluate), without any server. Ends with 1 where the
model is not good enough. `--write` takes what was found as the new baseline; `--broken` trains on shuffled labels, to
see the gate refuse.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import sample_contract
from forge_core.data.versions import save_dataset
from forge_core.errors import ConfigurationError, ForgeError
from forge_core.models.evaluation import Check, Evaluation
from forge_core.policy import GatePolicy, ModelPolicy, load_policy
from forge_core.statistics.quality import LOWER_IS_BETTER
from forge_core.storage import Storage
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
BASELINE = FOLDER / "baseline.json"
RESULTS = ROOT / "build" / "ci"


@dataclass(frozen=True)
class Validation:
    """What was found: the facts that a baseline keeps, and every check."""

    facts: dict[str, Any]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_markdown(self) -> str:
        """Return the checks as a table, with the verdict above it."""
        verdict = "passed" if self.passed else "FAILED"
        rows = [(("✔" if c.passed else "✘"), c.name, c.found, c.needed) for c in self.checks]
        table = pd.DataFrame(rows, columns=["", "check", "found", "needed"]).to_markdown(index=False)
        return f"## Model validation: {verdict}\n\n{table}\n"


def validate(storage: Storage, *, baseline: Mapping[str, Any] | None, broken: bool = False) -> Validation:
    """Return what a model trained here and now shows.

    Parameters
    ----------
    storage : Storage
        Where the rows and the candidate are put; an empty folder will do.
    baseline : mapping, optional
        The facts of an earlier validation; None compares with none.
    broken : bool
        Shuffle the labels of the rows that are learnt from.

    Raises
    ------
    ConfigurationError
        When validation.yaml names something that there is not.
    """
    wanted = yaml.safe_load((FOLDER / "validation.yaml").read_text())
    policy = load_policy(ROOT / "deployments/policy.yaml", wanted["model"])
    gate = GatePolicy.model_validate({**policy.gate.model_dump(), **wanted["gate"]})
    recipe = _recipe(storage, policy, wanted["hyperparameters"], broken)
    candidate.fit(storage, recipe)
    compiled = candidate.compile_candidate(storage, recipe, tolerance=gate.parity_tolerance)
    evaluation, verdict = candidate.evaluate(
        storage, recipe, policy=gate, champion=None, champion_name="the training mean"
    )
    facts = {
        "dataset": recipe.split.dataset_id,
        "rows": evaluation.n_rows,
        "serves": compiled["serves"],
        "metrics": {name: interval.__dict__ for name, interval in evaluation.metrics.items()},
    }
    checks = [*verdict.checks, _parity(compiled, gate)]
    if baseline is not None:
        checks += _against(baseline, facts, evaluation, wanted["slack"])
    return Validation(facts, tuple(checks))


def _recipe(storage: Storage, policy: ModelPolicy, hyperparameters: Mapping[str, Any], broken: bool) -> Recipe:
    data = policy.data
    rows = get_data_loader().preprocess_data(get_data_loader().load_data(data.source))
    if broken:
        rows = _shuffled(rows, data.target, data.test_share)
    dataset = save_dataset(storage, rows, source=data.source, contract=sample_contract())
    split = SplitRequest(
        storage.url, dataset.id, data.target, data.time_column, data.validation_share, data.test_share,
        policy.training.random_state,
    )  # fmt: skip
    return Recipe(split, policy.training.model_type, "classification", tuple(sorted(hyperparameters.items())))


def _shuffled(rows: pd.DataFrame, target: str, test_share: float) -> pd.DataFrame:
    """Return the rows with the labels shuffled among those that are learnt from; the newest stay as they are."""
    learnt = np.arange(len(rows)) < round(len(rows) * (1 - test_share))
    labels = rows[target].to_numpy().copy()
    labels[learnt] = np.random.default_rng(0).permutation(labels[learnt])
    return rows.assign(**{target: labels})


def _parity(compiled: Mapping[str, Any], gate: GatePolicy) -> Check:
    parity = compiled["parity"] or {}
    found = f"largest difference {parity['largest_difference']:.2g}" if parity else compiled["reason"]
    needed = f"the compiled form serves, at most {gate.parity_tolerance:g} from the native one"
    return Check("parity of the compiled form", compiled["serves"] == "compiled", found, needed)


def _against(
    baseline: Mapping[str, Any], facts: Mapping[str, Any], evaluation: Evaluation, slack: Mapping[str, float]
) -> list[Check]:
    """Return whether the same rows were learnt from, and no metric is worse than the baseline's."""
    told = "the baseline's, or a new baseline (--write)"
    checks = [Check("rows of the baseline", facts["dataset"] == baseline["dataset"], facts["dataset"], told)]
    for name, most in slack.items():
        if name not in evaluation.metrics or name not in baseline["metrics"]:
            raise ConfigurationError(f"validation.yaml names the metric {name!r}, which the evaluation does not have")
        value, before = evaluation.metrics[name], baseline["metrics"][name]["value"]
        worse = (value.value - before) * (1 if name in LOWER_IS_BETTER else -1)
        needed = f"at most {most:g} worse than {before:.4f}"
        checks.append(Check(f"{name} against the baseline", worse <= most, str(value), needed))
    return checks


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate, tell, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.ci.validate_model", description=__doc__)
    parser.add_argument("--write", action="store_true", help="take what is found as the new baseline")
    parser.add_argument("--broken", action="store_true", help="train on shuffled labels")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    chosen = parser.parse_args(arguments)
    try:
        baseline = None if chosen.write else json.loads(BASELINE.read_text())
        with tempfile.TemporaryDirectory() as folder:
            found = validate(Storage(folder), baseline=baseline, broken=chosen.broken)
    except ForgeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    _report(found, chosen.results)
    if found.passed and chosen.write:
        BASELINE.write_text(json.dumps(found.facts, indent=2) + "\n")
        sys.stdout.write(f"written: {BASELINE.relative_to(ROOT)}\n")
    return 0 if found.passed else 1


def _report(found: Validation, folder: Path) -> None:
    """Write the report, print it, add it to the run's page in GitHub Actions, and to MLflow where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = found.to_markdown()
    (folder / "model_validation.md").write_text(text)
    (folder / "model_validation.json").write_text(json.dumps(found.facts, indent=2) + "\n")
    sys.stdout.write(text)
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(page).open("a") as file:
            file.write(text)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        from forge_core.tracking.mlflow_extensions import ExperimentTracker

        with ExperimentTracker("model-validation") as tracker:
            tracker.log_params({"dataset": found.facts["dataset"], "serves": found.facts["serves"]})
            tracker.log_metrics({name: m["value"] for name, m in found.facts["metrics"].items()})


if __name__ == "__main__":
    sys.exit(main())
