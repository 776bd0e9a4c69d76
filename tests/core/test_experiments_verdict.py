"""Verdicts say what the rows say: who wins, when nobody does, and when no figure is to be believed."""

import io
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from forge_core.errors import ConfigurationError
from forge_core.experiments.assignment import unit_id
from forge_core.experiments.definition import define, differences
from forge_core.experiments.joined import join_outcomes
from forge_core.experiments.looks import look, moments_of_looks
from forge_core.experiments.picture import verdict_figure
from forge_core.experiments.planning import plan_experiment
from forge_core.experiments.verdict import Judgement, judge
from tests.core.experiment_data import START, conversions, definition, exposures, outcomes, trial

pytestmark = pytest.mark.slow


def judged(rates: dict[str, float], n_users: int, seed: int = 1, **fields: object) -> Judgement:
    shares = fields.get("traffic_allocation")
    rule = definition(tuple(rates), **fields)
    return judge(rule, join_outcomes(rule, *trial(rates, n_users, seed, shares)))  # type: ignore[arg-type]


def test_a_better_variant_wins_and_the_words_say_what_to_do() -> None:
    verdict = judged({"old": 0.10, "new": 0.14}, 9000, baseline=0.1, min_effect=0.02).verdict
    assert (verdict.state, verdict.winner, verdict.stop, verdict.method) == (
        "winner",
        "new",
        True,
        "exact, by conversions alone",
    )
    found = verdict.variants[1]
    assert found.p == verdict.p < 0.01 and found.low is not None and 0 < found.low < 0.04 < (found.high or 0)
    assert verdict.e is not None and verdict.e > 20 and sum(c.n for c in verdict.variants) == 9000
    assert "Stop and give everybody 'new'" in verdict.advice and "points" in verdict.sentence
    plain = verdict.to_dict()
    assert plain["variants"][1]["variant"] == "new" and plain["mismatch"]["alarm"] is False


def test_a_worse_variant_loses_to_the_control() -> None:
    verdict = judged({"old": 0.14, "new": 0.10}, 9000).verdict
    assert (verdict.state, verdict.winner) == ("control is best", "old")


def test_for_a_metric_that_should_be_low_the_lower_one_wins() -> None:
    verdict = judged({"old": 0.14, "new": 0.10}, 9000, primary={"name": "conversion", "better": "lower"}).verdict
    assert (verdict.state, verdict.winner) == ("winner", "new")


def test_few_users_decide_nothing_and_no_user_at_all_is_said() -> None:
    assert judged({"old": 0.1, "new": 0.1}, 80).verdict.state == "not yet"
    verdict = judged({"old": 0.1, "new": 0.1}, 0).verdict
    assert (verdict.state, verdict.winner, verdict.p, verdict.stop) == ("no users yet", None, 1.0, False)


def test_an_effect_that_would_matter_can_be_ruled_out() -> None:
    verdict = judged({"old": 0.10, "new": 0.10}, 30_000, seed=1, baseline=0.1, min_effect=0.02).verdict
    assert (verdict.state, verdict.winner) == ("no difference that matters", "old")


def test_of_several_variants_the_best_wins_and_p_counts_them_all() -> None:
    rates = {"old": 0.10, "a": 0.12, "b": 0.16}
    verdict = judged(rates, 20_000).verdict
    assert (verdict.state, verdict.winner) == ("winner", "b") and len(verdict.variants) == 3
    assert [c.p <= 0.05 for c in verdict.variants] == [False, False, True]


def test_with_few_conversions_the_exact_way_decides() -> None:
    verdict = judged({"old": 0.002, "new": 0.02}, 6000).verdict
    assert verdict.method == "exact, by conversions alone" and verdict.winner == "new"
    found = verdict.variants[1]
    assert found.e is not None and found.p <= 2 / found.e and (found.low or 0) > -1e-4


def test_users_in_other_shares_freeze_the_verdict_whatever_the_difference() -> None:
    rule = definition()
    met, what = trial({"old": 0.10, "new": 0.20}, 8000, 1)
    lost = (met["variant"] == "new") & (np.arange(len(met)) % 6 == 0)
    verdict = judge(rule, join_outcomes(rule, met[~lost], what)).verdict
    assert (verdict.state, verdict.winner, verdict.stop) == ("frozen", None, True)
    assert verdict.mismatch.alarm and verdict.mismatch.e > 100 and "Believe no figure" in verdict.advice


def test_declared_shares_that_are_not_equal_are_no_mismatch() -> None:
    shares = {"old": 0.9, "new": 0.1}
    verdict = judged({"old": 0.1, "new": 0.1}, 20_000, traffic_allocation=shares).verdict
    assert not verdict.mismatch.alarm and verdict.users["new"] == pytest.approx(2000, rel=0.1)


def test_a_declared_maximum_is_looked_at_as_often_as_declared_and_ends() -> None:
    judgement = judged({"old": 0.10, "new": 0.10}, 4000, seed=3, max_units=4000, looks=5)
    found = judgement.history.standing
    assert found.bound is not None and judgement.verdict.method == "group sequential, 5 looks up to 4,000 users"
    planned = found.looks.exposed[np.isfinite(found.bound)].sum(axis=1)
    assert planned.tolist() == [800, 1600, 2400, 3200, 4000] and len(judgement.history.courses[0].at) == 5
    assert (judgement.verdict.state, judgement.verdict.winner) == ("undecided at the end", None)
    assert judged({"old": 0.10, "new": 0.10}, 3900, seed=3, max_units=4000, looks=5).verdict.state == "not yet"
    early = judged({"old": 0.10, "new": 0.16}, 3000, seed=2, max_units=4000, looks=5).verdict
    assert (early.state, early.winner) == ("winner", "new")


def test_users_after_the_declared_maximum_change_nothing() -> None:
    rule = definition(max_units=2000, looks=4)
    met, what = trial({"old": 0.1, "new": 0.13}, 6000, 5)
    some = met[:2000]
    whole, first = (judge(rule, join_outcomes(rule, m, what)).verdict for m in (met, some))
    assert [c.p for c in whole.variants] == [c.p for c in first.variants]
    assert [(c.n, c.low) for c in whole.variants] == [(c.n, c.low) for c in first.variants]


def test_between_two_declared_looks_the_interval_is_that_of_the_last_one() -> None:
    rule = definition(max_units=2000, looks=4)
    met, what = trial({"old": 0.1, "new": 0.13}, 1400, 5)
    at_look, later = (judge(rule, join_outcomes(rule, m, what)).verdict for m in (met[:1000], met))
    assert [(c.n, c.low, c.p) for c in at_look.variants] == [(c.n, c.low, c.p) for c in later.variants]
    before = judge(rule, join_outcomes(rule, met[:300], what)).verdict.variants
    assert [(c.low, c.p) for c in before] == [(None, 1.0)] * 2 and sum(c.n for c in before) == 300


def numbers(met: pd.DataFrame, metric: str, means: dict[str, float], seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.normal(met["variant"].map(means).to_numpy(float), 2.0)
    seconds = (met["at"] - START).dt.total_seconds() + 0.6
    rows = [
        {"unit": unit, "seconds": second, "metric": metric, "value": value}
        for unit, second, value in zip(met["unit"], seconds, values, strict=True)
    ]
    return outcomes(rows)


@pytest.mark.parametrize(("slower_by", "state"), [(1.0, "broken"), (0.0, "kept"), (0.3, "open")])
def test_a_guard_rail_is_kept_broken_or_open(slower_by: float, state: str) -> None:
    rule = definition(guard_rails=[{"name": "ms", "kind": "mean", "better": "lower", "max_harm": 0.3}])
    met, what = trial({"old": 0.10, "new": 0.15}, 9000, 1)
    ms = numbers(met, "ms", {"old": 10.0, "new": 10.0 + slower_by}, 1)
    verdict = judge(rule, join_outcomes(rule, met, pd.concat([what, ms], ignore_index=True))).verdict
    (rail,) = verdict.guard_rails
    assert rail.state == state and rail.value == pytest.approx(slower_by, abs=0.15)
    expected = ("guard rail broken", "old") if state == "broken" else ("winner", "new")
    assert (verdict.state, verdict.winner) == expected
    assert ("Not settled yet for it: ms" in verdict.advice) == (state == "open")


def test_means_and_ratios_are_those_of_their_formulas() -> None:
    rng = np.random.default_rng(0)
    met = exposures(rng.choice(["old", "new"], 4000))
    orders, spent = rng.integers(1, 5, 4000).astype(float), rng.exponential(3, 4000)
    rows = [
        {"unit": unit, "seconds": 5000 + place, "metric": name, "value": value, "key": key}
        for place, (unit, n, total) in enumerate(zip(met["unit"], orders, spent, strict=True))
        for name, value, key in (("orders", n, ""), ("spent", total / 2, "a"), ("spent", total / 2, "b"))
    ]
    rule = definition(primary={"name": "spent", "kind": "ratio", "per": "orders"})
    joined = join_outcomes(rule, met, outcomes(rows))
    at = moments_of_looks(joined)
    ratio = look(joined, rule.primary, ["old", "new"], at)
    mean = look(joined, rule.primary.model_copy(update={"kind": "mean", "per": None}), ["old", "new"], at)
    for column, name in enumerate(("old", "new")):
        mine = (met["variant"] == name).to_numpy()
        r = spent[mine].sum() / orders[mine].sum()
        assert ratio.mean[-1, column] == pytest.approx(r)
        linear = (spent[mine] - r * orders[mine]) / orders[mine].mean()
        assert ratio.variance[-1, column] == pytest.approx(linear.var(ddof=1))
        assert mean.mean[-1, column] == pytest.approx(spent[mine].mean())
        assert mean.variance[-1, column] == pytest.approx(spent[mine].var(ddof=1))


def test_users_without_a_value_are_left_out_or_zero_as_declared() -> None:
    met, what = exposures(["old", "new"] * 50), outcomes([{"unit": f"{0:016x}", "seconds": 200, "metric": "spent",
                                                          "value": 8.0}])  # fmt: skip
    for absent, mean in (("left out", 8.0), ("zero", 8.0 / 50)):
        rule = definition(primary={"name": "spent", "kind": "mean", "absent": absent})
        joined = join_outcomes(rule, met, what)
        assert look(joined, rule.primary, ["old", "new"], moments_of_looks(joined)).mean[-1, 0] == pytest.approx(mean)


def test_each_outcome_that_does_not_count_has_a_reason() -> None:
    rule = definition(overrides={"boss": "new"})
    met = exposures(["old", "new", "old"])
    one, two, three = met["unit"]
    joined = join_outcomes(
        rule,
        pd.concat([met, met[:1].assign(variant="new")], ignore_index=True),
        outcomes(
            [
                {"unit": one, "seconds": 10}, {"unit": one, "seconds": 11},
                {"unit": two, "seconds": 12, "variant": "old"},
                {"unit": "f" * 16, "seconds": 13}, {"unit": three, "seconds": -1},
                {"unit": "", "variant": "old", "seconds": 14}, {"unit": "", "variant": "old", "seconds": 15},
                {"unit": three, "seconds": 16, "metric": "typo"},
                {"unit": unit_id(rule.salt, "boss"), "seconds": 17, "repeats": 3},
            ]
        ),
    )  # fmt: skip
    assert joined.not_counted == {
        "twice": 4, "other variant": 1, "no exposure": 1, "before exposure": 1, "more than exposures": 1,
        "metric not declared": 1, "override": 1,
    }  # fmt: skip
    verdict = judge(rule, joined).verdict
    assert "do not count" in verdict.advice and verdict.users == {"old": 2, "new": 1}


def test_in_a_window_users_count_once_it_is_over_and_late_outcomes_do_not() -> None:
    rule = definition(window_hours=1)
    met = exposures(["old", "new", "old"], seconds=[0, 0, 7000])
    one, two, three = met["unit"]
    what = outcomes([{"unit": one, "seconds": 3000}, {"unit": two, "seconds": 4000}, {"unit": three, "seconds": 7100}])
    now = (START + timedelta(seconds=7200)).to_pydatetime()
    verdict = judge(rule, join_outcomes(rule, met, what, now=now), now=now).verdict
    assert verdict.users == {"old": 1, "new": 1} and verdict.waiting == 1
    assert verdict.not_counted == {"after the window": 1} and verdict.variants[0].mean == 1.0
    assert "1 users are left out" in verdict.advice


def test_without_a_difference_looking_at_every_moment_names_few_winners() -> None:
    false = sum(judged({"old": 0.1, "new": 0.1}, 2000, seed).verdict.p <= 0.05 for seed in range(60))
    assert false <= 7  # of at most 3 that are to be expected


@pytest.mark.parametrize("fields", [{}, {"max_units": 2000, "looks": 5}, {"min_effect": 0.02, "baseline": 0.1}])
@pytest.mark.parametrize("n_users", [0, 1, 30, 3000])
def test_a_picture_is_made_of_any_number_of_users(fields: dict[str, object], n_users: int) -> None:
    picture = verdict_figure(judged({"old": 0.10, "new": 0.13}, n_users, **fields))
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    assert image.shape[0] > 800 and image.shape[1] > 1000 and image.std() > 5


def test_everything_that_is_wrong_with_a_definition_is_named() -> None:
    variants = {"a": {"model": "m", "version": "1"}, "b": {"model": "m", "version": "2"}}
    with pytest.raises(ConfigurationError) as error:
        define(
            {
                "id": "x", "variants": variants, "traffic_allocation": {"a": 0.5, "c": 0.6}, "control": "q",
                "overrides": {"boss": "z"}, "baseline": 2.0,
            }
        )  # fmt: skip
    told = str(error.value)
    for part in ("no variant 'c'", "no share for b", "add up to 1, found 1.1", "control: no variant 'q'",
                 "'z' for 'boss'", "baseline"):  # fmt: skip
        assert part in told
    with pytest.raises(ConfigurationError, match=r"id: .*letters.*found 'a b/c'"):
        define({"id": "a b/c", "variants": variants, "traffic_allocation": {"a": 0.5, "b": 0.5}})
    with pytest.raises(ConfigurationError, match="typo: Extra inputs"):
        define({"id": "x", "variants": variants, "traffic_allocation": {"a": 0.5, "b": 0.5}, "typo": 1})
    for shares, fault in (({"a": 1.5, "b": -0.5}, "0 to 1"), ({"a": 1.0, "b": 0.0}, "two variants"),
                          ({"a": float("nan"), "b": 1}, "finite"), ({}, "no share for a, b")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=fault):
            define({"id": "x", "variants": variants, "traffic_allocation": shares})
    with pytest.raises(ConfigurationError, match="live: expected versions of one registered model"):
        define({"id": "x", "variants": {**variants, "b": {"model": "n", "version": "1"}}, "live": True,
                "traffic_allocation": {"a": 0.5, "b": 0.5}})  # fmt: skip


def test_two_definitions_differ_in_words_and_a_description_does_not_count() -> None:
    first = definition(description="one")
    assert differences(first, definition(description="two")) == []
    told = differences(first, definition(("old", "new", "third"), alpha=0.01))
    assert "alpha is 0.05 and was given as 0.01" in told
    assert "variants.third is not there and was given as models:/flights/3" in told


def test_a_plan_says_how_many_users_and_days_it_takes() -> None:
    plan = plan_experiment(0.02, baseline=0.10, daily_users=1000)
    assert plan.per_variant == 3839 and plan.users == 7678 and plan.max_units > plan.users
    assert plan.days == plan.max_units / 1000 and "3,839 users a variant" in str(plan)
    uneven = plan_experiment(0.02, baseline=0.10, shares={"old": 0.9, "new": 0.1})
    assert uneven.users == 38390 and uneven.days is None
    assert plan_experiment(0.5, spread=2.0).per_variant < plan_experiment(0.25, spread=2.0).per_variant
    for wrong in ({}, {"baseline": 0.1, "spread": 1.0}, {"baseline": 1.2}, {"spread": -1}):
        with pytest.raises(ConfigurationError):
            plan_experiment(0.02, **wrong)  # type: ignore[arg-type]


def test_conversions_of_both_kinds_add_up() -> None:
    rule = definition()
    met = exposures(["old", "new"] * 500)
    named = conversions(met, {"old": 0.2, "new": 0.2}, np.random.default_rng(0))
    nameless = outcomes([{"unit": "", "variant": "new", "seconds": 2000}] * 30)
    verdict = judge(rule, join_outcomes(rule, met, pd.concat([named, nameless], ignore_index=True))).verdict
    by_name = int((named["variant"] == "new").sum())
    assert verdict.variants[1].mean == pytest.approx((by_name + 30) / 500)
