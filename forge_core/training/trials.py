"""One trial of a search as a plain function: folds are fitted side by side and scored after a third of the rounds
and after all of them, so that a scheduler can end the trial early.

Estimators that cannot go on from where they were (no `warm_start` with rounds) are scored once, at the end.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit

from forge_core.data.splits import DataSplit
from forge_core.errors import ConfigurationError, NotEnoughSamples
from forge_core.models.model_trainer import get_model_trainer
from forge_core.models.target import Learning, checked_target

# Thirds of a trial's rounds. Scored earlier, small learning rates would lose before they had a chance.
WHOLE = 3

State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Fold:
    """Rows to fit on and rows to score, as positions in `TrialData.X`."""

    fit: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class TrialData:
    """All that trials need to see: features, target and folds; never the held-out rows."""

    X: pd.DataFrame
    y: pd.Series
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search have in common."""

    model_type: str
    learning: Learning
    metric: str
    fixed: tuple[tuple[str, Any], ...]
    stages: tuple[int, ...] = (1, WHOLE)


def trial_data(parts: DataSplit, learning: Learning, *, folds: int, time_column: str | None, seed: int) -> TrialData:
    """Return the rows of the training and validation part with their folds; the held-out part is left out.

    Parameters
    ----------
    folds : int
        0 fits on the training part and scores the validation part. From 2 on both parts are cut in so many folds:
        with a time column each is scored by a model of the rows before it, else classes are balanced.

    Raises
    ------
    ConfigurationError
        For a single fold, or a validation part that is asked for and empty.
    NotEnoughSamples
        When a fold would hold one class only, or there are more folds than rows.
    """
    if folds == 1 or folds < 0:
        raise ConfigurationError(f"expected folds=0 (the validation part) or 2 folds and more, found {folds}")
    if not folds and parts.validation.empty:
        raise ConfigurationError("expected rows in the validation part, found none; give it a share, or ask for folds")
    rows = pd.concat([parts.train, parts.validation], ignore_index=True)
    if folds and time_column:
        rows = rows.sort_values(time_column, kind="stable", ignore_index=True)
    X, y = rows[parts.feature_columns], rows[parts.target_column]
    labels = checked_target(y, learning)
    if not folds:
        n_fit = len(parts.train)
        cut = [(np.arange(n_fit), np.arange(n_fit, len(rows)))]
    else:
        cut = _cut(labels, learning, folds, bool(time_column), seed)
    if learning == "classification":
        for number, (fit, score) in enumerate(cut):
            for name, part in (("fitted", fit), ("scored", score)):
                if len(found := np.unique(labels[part])) < 2:
                    raise NotEnoughSamples(
                        f"expected two classes or more among the {len(part):,} {name} rows of fold {number + 1}, found "
                        f"only {found.tolist()}; widen the data or ask for {'fewer' if folds else 'some'} folds"
                    )
    return TrialData(X, y, tuple(Fold(fit, score) for fit, score in cut))


def _cut(labels: Any, learning: Learning, folds: int, in_time: bool, seed: int) -> list[tuple[Any, Any]]:
    splitter: Any
    if in_time:
        splitter = TimeSeriesSplit(folds)
    elif learning == "classification":
        names, counts = np.unique(labels, return_counts=True)
        if counts.min() < folds:
            raise NotEnoughSamples(
                f"expected {folds} rows or more of every class for {folds} folds, found {counts.min()} of "
                f"{names[counts.argmin()]!r}; ask for fewer folds, or join classes"
            )
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = KFold(folds, shuffle=True, random_state=seed)
    try:
        return list(splitter.split(np.zeros(len(labels)), labels))
    except ValueError as error:
        raise NotEnoughSamples(f"expected rows for {folds} folds, found {len(labels)}: {error}") from error


def run_trial(data: TrialData, plan: TrialPlan, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield after each stage `thirds` (of the rounds), `metrics` (means over the folds), `seconds` so far.

    Raises
    ------
    ConfigurationError
        For hyperparameters that the model type has not.
    NotEnoughSamples
        When the metric has no value on a fold.
    """
    started = time.perf_counter()
    chosen = {**dict(plan.fixed), **parameters}
    trainers = [get_model_trainer(plan.model_type, chosen, task=plan.learning) for _ in data.folds]
    for trainer in trainers:
        if "n_jobs" in trainer.hyperparameters:  # a trial has one core
            trainer.hyperparameters["n_jobs"] = 1
            trainer.pipeline.named_steps["estimator"].set_params(n_jobs=1)
    estimator = trainers[0].pipeline.named_steps["estimator"]
    rounds = _rounds_of(estimator)
    total = int(estimator.get_params()[rounds]) if rounds else 0
    prepared: list[Any] = []
    for stage in plan.stages if rounds and total >= 2 * WHOLE else (WHOLE,):
        for number, (fold, trainer) in enumerate(zip(data.folds, trainers, strict=True)):
            X, y = data.X.iloc[fold.fit], data.y.iloc[fold.fit]
            if stage == WHOLE and not prepared:
                trainer.train(X, y)
                continue
            features, estimator = trainer.pipeline.named_steps["features"], trainer.pipeline.named_steps["estimator"]
            labels = checked_target(y, plan.learning)
            if len(prepared) == number:
                prepared.append(features.fit_transform(X, labels))
            estimator.set_params(**{str(rounds): max(1, total * stage // WHOLE), "warm_start": True})
            estimator.fit(prepared[number], labels)
        yield {"thirds": stage, "metrics": _scored(data, plan, trainers), "seconds": time.perf_counter() - started}


def _scored(data: TrialData, plan: TrialPlan, trainers: list[Any]) -> dict[str, float]:
    scores = [
        trainer.evaluate(data.X.iloc[fold.score], data.y.iloc[fold.score])
        for fold, trainer in zip(data.folds, trainers, strict=True)
    ]
    if bad := [number + 1 for number, s in enumerate(scores) if not np.isfinite(s[plan.metric])]:
        raise NotEnoughSamples(f"expected a value of {plan.metric} on every fold, found none on fold {bad}")
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}


def _rounds_of(estimator: Any) -> str | None:
    """Return the parameter that counts rounds of an estimator that can go on from where it was."""
    known = estimator.get_params()
    if "warm_start" not in known:
        return None
    if isinstance(estimator, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        return None if known["early_stopping"] is True else "max_iter"
    return "n_estimators" if "n_estimators" in known else None
