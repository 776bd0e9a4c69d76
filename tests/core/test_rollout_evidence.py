"""Verdicts on made evidence: better, equal, wrong, slow and failing versions, in shadow and on shares of traffic."""

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forge_core.experiments.rollout_evidence import Evidence, Sides, next_step_evidence, read_labels, read_step, weigh
from forge_core.experiments.rollout_guards import Bar, distance_guard, errors_guard, labels_guard, latency_guard
from forge_core.experiments.rollout_picture import rollout_figure
from forge_core.experiments.rollout_records import Rollout
from forge_core.experiments.rollout_verdict import Look, judge
from forge_core.ledger import Feedback, Ledger
from forge_core.monitoring.prediction_log import PredictionLog
from forge_core.monitoring.shadow_log import SHADOW_COLUMNS, ShadowLog
from forge_core.policy import RolloutPolicy
from forge_core.statistics.estimation import QualityEstimator
from forge_core.storage import Storage

pytestmark = pytest.mark.slow

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
POLICY = RolloutPolicy(min_minutes=1.0)
KINDS = ("better", "equal", "wrong", "slow", "failing")
N = 3000


def rollout(step: int = 0) -> Rollout:
    return Rollout("m", "rollout:2", "2", "1", (0.0, *POLICY.steps), NOON, NOON, step=step, shadow_share=0.25)


def truth(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows' chance of class 1, and their labels."""
    chance = rng.beta(0.6, 0.6, n)
    return chance, (rng.random(n) < chance).astype(float)


def stated(rng: np.random.Generator, chance: np.ndarray, kind: str) -> np.ndarray:
    """Return what a version of a kind says of rows; the champion is `equal`."""
    noise = {"better": 0.2, "wrong": 0.0}.get(kind, 1.2)
    logit = np.log(chance / (1 - chance)).clip(-6, 6) + rng.normal(0, noise, len(chance))
    found = 1 / (1 + np.exp(-logit))
    return rng.permutation(found) if kind == "wrong" else found  # the same distribution, of other rows


def milliseconds(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    return rng.gamma(4, 2.0, n) * (3.0 if kind == "slow" else 1.0)


def faults(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    broken = rng.random(n) < (0.02 if kind == "failing" else 0.0)
    return np.where(broken, "error", np.where(rng.random(n) < 0.01, "contract", ""))


@cache
def sides(kind: str = "equal") -> Sides:
    rng = np.random.default_rng(1)
    chance, label = truth(rng, 4000)
    estimators = [QualityEstimator.fit(stated(rng, chance, k), label) for k in (kind, "equal")]
    return Sides("classification", (0, 1), *estimators)


def shadow_rows(storage: Storage, kind: str, n: int = N, seed: int = 0) -> dict[str, float]:
    """Write what a shadow of a kind answered, and return the labels."""
    rng = np.random.default_rng(seed)
    chance, label = truth(rng, n)
    mine, theirs = stated(rng, chance, kind), stated(rng, chance, "equal")
    fault = faults(rng, n, kind)
    at = pd.Series(NOON + pd.to_timedelta(np.arange(n) * 0.1, unit="s"))
    columns = (
        [f"r{i}" for i in range(n)], at, at, "2", "1", (mine >= 0.5).astype(int), np.where(fault == "", mine, np.nan),
        (theirs >= 0.5).astype(int), theirs, milliseconds(rng, n, kind), milliseconds(rng, n, "equal"), fault,
    )  # fmt: skip
    frame = pd.DataFrame(dict(zip(SHADOW_COLUMNS, columns, strict=True)))
    ShadowLog(storage, "m").append(frame)
    return {f"r{i}": value for i, value in enumerate(label)}


def split_rows(storage: Storage, kind: str, share: float, n: int = N, seed: int = 0) -> dict[str, float]:
    """Write what both versions answered while a version of a kind had a share, and return the labels."""
    rng = np.random.default_rng(seed)
    chance, label = truth(rng, n)
    mine = rng.random(n) < share
    fault = np.where(mine, faults(rng, n, kind), "")
    answered = mine & (fault == "")
    score = np.where(answered, stated(rng, chance, kind), stated(rng, chance, "equal"))
    at = pd.Series(NOON + pd.to_timedelta(np.arange(n) * 0.1, unit="s"))
    frame = pd.DataFrame(
        {
            "request_id": [f"r{seed}-{i}" for i in range(n)],
            "event_time": at,
            "received_at": at,
            "version": np.where(answered, "2", "1"),
            "variant": np.where(answered, "canary", "champion"),
            "owner": "",
            "prediction": (score >= 0.5).astype(int),
            "probability": score,
            "assigned": np.where(mine, "canary", "champion"),
            "split": "rollout:2",
            "propensity": np.where(mine, share, 1 - share),
            "unit": [f"{i:016x}" for i in range(n)],
            "latency_ms": np.where(answered, milliseconds(rng, n, kind), milliseconds(rng, n, "equal")),
            "fault": fault,
            "x": 1.0,
        }
    )
    PredictionLog(storage, "m").append(frame)
    return {f"r{seed}-{i}": value for i, value in enumerate(label)}


def look(storage: Storage, at: Rollout, kind: str, labels: dict[str, float], minutes: float = 30) -> Look:
    found = weigh(read_step(storage, at, sides(kind)), at, POLICY, sides(kind), labels)
    return judge(at, found, POLICY, NOON + timedelta(minutes=minutes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_labels", [True, False])
def test_in_shadow_a_good_version_goes_on_and_a_bad_one_goes_back(tmp_path: Path, kind: str, with_labels: bool) -> None:
    labels = shadow_rows(Storage(str(tmp_path)), kind)
    found = look(Storage(str(tmp_path)), rollout(), kind, labels if with_labels else {})
    wanted = {"better": "promote", "equal": "promote"}.get(kind, "roll back")
    assert found.action == wanted, found.reason
    harmed = {g.name for g in found.evidence.guards if g.state == "harm"}
    assert {"wrong": "answers", "slow": "latency", "failing": "errors"}.get(kind, "") in {*harmed, ""}
    quality = found.evidence["labelled quality"]
    assert quality.state == (("harm" if kind == "wrong" else "fine") if with_labels else "unknown")
    assert quality.better == (with_labels and kind == "better")
    assert found.evidence.n_contract > 0 and found.evidence["errors"].n_rows == N - found.evidence.n_contract


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_share_of_the_traffic_a_good_version_goes_on_and_a_bad_one_goes_back(tmp_path: Path, kind: str) -> None:
    storage, now = Storage(str(tmp_path)), rollout(3)
    labels = split_rows(storage, kind, 0.25, n=8000)
    found = look(storage, now, kind, labels)
    assert found.action == {"better": "promote", "equal": "promote"}.get(kind, "roll back"), found.reason
    named = {"wrong": "labelled: wrong answers +", "slow": "p95 latency", "failing": "errors in"}.get(kind, "")
    assert named in found.reason
    unlabelled = look(storage, now, kind, {})
    # A version that knows how often it is wrong is found out by its own confidence too.
    assert unlabelled.action == found.action
    assert "not judged: labelled quality: no labels of both yet" in unlabelled.reason or unlabelled.action != "promote"


def test_at_the_last_share_the_champions_speed_from_before_is_what_counts(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    split_rows(storage, "slow", 1.0)
    carried = next_step_evidence({"champion_p95": 15.0, "log_e": {"errors": 2.0}, "label_counts": [[1, 2, 3, 4]]})
    assert carried == {"champion_p95": 15.0}
    now = Rollout(**{**vars(rollout(5)), "evidence": carried})
    found = look(storage, now, "slow", {})
    assert found.action == "roll back" and "the champion's 15.0 (allowed 22.5)" in found.reason
    assert look(storage, rollout(5), "slow", {}).evidence["latency"].state == "unknown"


def test_rows_of_another_step_split_or_of_a_named_variant_are_no_evidence(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    split_rows(storage, "equal", 0.25)
    assert read_step(storage, rollout(3), sides()).n_new > 600
    assert read_step(storage, rollout(2), sides()).n_new == 0  # assigned by another share
    later = Rollout(**{**vars(rollout(3)), "step_at": NOON + timedelta(seconds=150)})
    assert 300 < read_step(storage, later, sides()).n_new < 450
    other = Rollout(**{**vars(rollout(3)), "id": "rollout:2.2"})
    assert read_step(storage, other, sides()).n_new == 0
    named = PredictionLog(Storage(str(tmp_path / "named")), "m")
    named.append(PredictionLog(storage, "m").read().assign(propensity=np.nan))
    assert read_step(named.storage, rollout(3), sides()).n_new == 0


def test_a_step_waits_for_rows_minutes_and_doubt_and_ends_with_its_time(tmp_path: Path) -> None:
    storage, now = Storage(str(tmp_path)), rollout(3)
    nothing = look(storage, now, "equal", {})
    assert (nothing.action, nothing.reason) == ("hold", "0 of 200 rows")
    split_rows(storage, "equal", 0.25, n=600)
    assert "of 200 rows; 0.5 of 1 minutes" in look(storage, now, "equal", {}, minutes=0.5).reason
    late = look(storage, now, "equal", {}, minutes=72 * 60 + 1)
    assert late.action == "roll back" and late.reason.startswith("no end within 72 hours: 1")
    split_rows(storage, "failing", 0.25, n=1200, seed=5)
    doubt = Evidence((errors_guard(Bar(0.001, {}), 2, 300, 0.005),), 300, 0, {}, NOON)
    waits = judge(now, doubt, POLICY, NOON + timedelta(minutes=30))
    assert (waits.action, waits.reason) == (
        "hold", "errors in 0.667 % of 300 rows (allowed 0.5 %), which may be chance",
    )  # fmt: skip


def test_a_version_that_must_be_better_waits_for_labels_that_show_it(tmp_path: Path) -> None:
    policy = RolloutPolicy(min_minutes=0, require_better=True)
    storage = Storage(str(tmp_path))
    labels = shadow_rows(storage, "better", n=6000)
    for known, action in ((labels, "promote"), ({}, "hold")):
        found = weigh(read_step(storage, rollout(), sides("better")), rollout(), policy, sides("better"), known)
        assert judge(rollout(), found, policy, NOON).action == action


def test_harm_that_was_seen_once_stays_harm() -> None:
    bar = Bar(0.001, {"errors": 9.0})
    assert errors_guard(bar, 0, 100_000, 0.005).state == "harm"
    assert errors_guard(Bar(0.001, {}), 0, 100_000, 0.005).state == "fine"


def test_a_stall_of_the_whole_machine_is_not_the_versions_fault() -> None:
    rng = np.random.default_rng(0)
    at = pd.Series(NOON + pd.to_timedelta(np.arange(6000) * 0.01, unit="s"))
    stalled = (np.arange(6000) // 100) % 4 == 0
    speed = rng.gamma(4, 2.0, 6000) * np.where(stalled, 30, 1)
    new, old = (pd.DataFrame({"received_at": at, "latency_ms": speed * rng.gamma(50, 1 / 50, 6000)}) for _ in range(2))
    told = latency_guard(Bar(0.001, {}), new, old, ratio=1.5, least_ms=5)
    assert told.state == "fine" and "slow in 0 of 60 seconds" in told.reason
    alone = latency_guard(Bar(0.001, {}), new, old.assign(latency_ms=8.0), ratio=1.5, least_ms=5)
    assert alone.state == "harm"


@pytest.mark.parametrize("seed", range(3))
def test_looking_often_at_equal_distributions_never_shows_a_distance_and_a_real_one_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = set()
    for _ in range(60):
        old, new = rng.beta(0.6, 0.6, 5000), rng.beta(0.6, 0.6, 5000)
        # Against a limit just above zero any distance that is found is a false one.
        states |= {distance_guard(Bar(0.05, {}), new[:n], old[:n], 1e-9).state for n in range(100, 5001, 350)}
    assert "harm" not in states
    far = distance_guard(
        Bar(0.05 / 30, {}), np.clip(rng.beta(0.6, 0.6, 2000) + 0.6, 0, 1), rng.beta(0.6, 0.6, 2000), 0.4
    )
    assert far.state == "harm" and far.value is not None and far.value > 0.5


def test_a_regression_is_judged_by_its_numbers(tmp_path: Path) -> None:
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    value = rng.normal(10, 3, N)
    known = Sides("regression", (), None, None)
    at = pd.Series(NOON + pd.to_timedelta(np.arange(N) * 0.1, unit="s"))
    good, bad = value + rng.normal(0, 0.5, N), value + rng.normal(0, 4, N)
    for model, mine in (("good", good), ("bad", bad)):
        theirs = value + rng.normal(0, 1, N)
        columns = (
            [f"r{i}" for i in range(N)], at, at, "2", "1", mine, mine, theirs, theirs,
            milliseconds(rng, N, "equal"), milliseconds(rng, N, "equal"), "",
        )  # fmt: skip
        ShadowLog(storage, model).append(pd.DataFrame(dict(zip(SHADOW_COLUMNS, columns, strict=True))))
        now = Rollout(**{**vars(rollout()), "model": model})
        labels = {f"r{i}": float(v) for i, v in enumerate(value)}
        found = weigh(read_step(storage, now, known), now, POLICY, known, labels)
        quality = found["labelled quality"]
        assert (quality.state, quality.better) == (("fine", True) if model == "good" else ("harm", False))
        assert found["estimated quality"].state == "unknown"


def test_labels_of_the_ledger_count_once_and_only_since_the_start() -> None:
    ledger = Ledger("sqlite://")
    ledger.record_feedback("m", [Feedback("old", 1.0, NOON - timedelta(days=9)), Feedback("r1", 1.0, NOON)])
    ledger.record_feedback("m", [Feedback("r1", 0.0, NOON + timedelta(hours=1))])
    assert read_labels(ledger, rollout()) == {"r1": 1.0}


def test_labels_that_come_late_are_looks_of_their_own_and_evidence_only_grows(tmp_path: Path) -> None:
    storage, now = Storage(str(tmp_path)), rollout(4)
    labels = split_rows(storage, "wrong", 0.5, n=4000)
    rows, seen, log_e = read_step(storage, now, sides()), {}, []
    for known in range(0, 4001, 250):
        seen |= {f"r0-{i}": labels[f"r0-{i}"] for i in range(known)}
        found = weigh(rows, now, POLICY, sides(), seen)
        now = now.with_look({"at": known}, found.carried)
        log_e.append(found["labelled quality"].log_e)
    assert log_e == sorted(log_e) and log_e[-1] > 7
    assert 5 < len(now.evidence["label_counts"]) <= 17


def test_labels_too_few_for_a_look_are_counted_but_prove_nothing() -> None:
    guard = labels_guard(Bar(0.001, {}), [], np.ones(10), np.zeros(10), 0.02)
    assert "wrong answers" in guard.reason and guard.value == 1.0
    assert guard.state == "doubt" and guard.log_e == 0.0 and not guard.better


def test_the_picture_of_a_rollout_shows_every_guard(tmp_path: Path) -> None:
    storage, now = Storage(str(tmp_path)), rollout(3)
    labels = split_rows(storage, "failing", 0.25, n=8000)
    for n in range(1, 9):
        part = {k: v for i, (k, v) in enumerate(labels.items()) if i < 1000 * n}
        seen = look(storage, now, "failing", part, minutes=3 * n)
        now = now.with_look(seen.short(), seen.evidence.carried)
    picture = rollout_figure(now, POLICY)
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    (tmp_path / "rollout.png").write_bytes(picture)
