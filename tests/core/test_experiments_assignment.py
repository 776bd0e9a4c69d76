import math
import timeit
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from forge_core.errors import ConfigurationError
from forge_core.experiments.assignment import assign, reallocate, segments_of, share_of, unit_id, unit_point

HALVES = segments_of({"model_v1": 0.5, "model_v2": 0.5})


def test_fixed_users_keep_their_variant_for_ever() -> None:
    drawn = [assign(HALVES, unit_point("model_comparison", f"user{number}"))[-1] for number in range(8)]
    assert drawn == ["2", "2", "1", "1", "1", "1", "2", "2"]
    assert unit_point("model_comparison", "user123") == 0.8381420248193996
    assert unit_id("model_comparison", "user123") == "d69079ca00a6906c"
    assert int(unit_id("s", "k"), 16) / 2**64 == pytest.approx(unit_point("s", "k"), abs=1e-15)


@pytest.mark.slow
def test_shares_of_a_million_users_are_those_asked_for() -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    segments, counts = segments_of(shares), dict.fromkeys(shares, 0)
    for number in range(1_000_000):
        counts[assign(segments, unit_point("salt", f"user{number}"))] += 1
    assert stats.chisquare(list(counts.values()), [1e6 * share for share in shares.values()]).pvalue > 0.01


def test_points_of_two_salts_are_independent() -> None:
    points = np.array([[unit_point(salt, str(n)) for salt in ("one", "two")] for n in range(20_000)])
    table = np.histogram2d(*points.T, bins=4, range=[[0, 1], [0, 1]])[0]
    assert stats.chi2_contingency(table).pvalue > 0.01


def test_from_5_to_25_percent_exactly_the_needed_share_of_users_moves() -> None:
    before = segments_of({"champion": 0.95, "canary": 0.05})
    after = reallocate(before, {"champion": 0.75, "canary": 0.25})
    points = [unit_point("rollout:4", f"user{number}") for number in range(200_000)]
    moved = [(p, assign(before, p), assign(after, p)) for p in points if assign(before, p) != assign(after, p)]
    assert {(was, now) for _, was, now in moved} == {("champion", "canary")}
    assert all(0.75 <= p < 0.95 for p, _, _ in moved) and len(moved) == sum(0.75 <= p < 0.95 for p in points)
    assert share_of(after) == {"champion": 0.75, "canary": 0.25}


def test_a_canary_grows_in_steps_without_slivers() -> None:
    segments = segments_of({"champion": 0.99, "canary": 0.01})
    for share in (0.05, 0.25, 0.5):
        segments = reallocate(segments, {"champion": 1 - share, "canary": share})
        assert segments == ((1 - share, "champion"), (1.0, "canary"))
    assert reallocate(segments, {"canary": 1.0}) == ((1.0, "canary"),)
    assert reallocate(segments, {"champion": 1, "canary": 0}) == ((1.0, "champion"),)


def moved_share(before: tuple, after: tuple) -> float:
    ends = sorted({0.0, *(end for end, _ in before), *(end for end, _ in after)})
    pieces = list(pairwise(ends))
    return sum(high - low for low, high in pieces if assign(before, low) != assign(after, low))


def as_shares(weights: list[int]) -> dict[str, float]:
    return {f"v{place}": weight / sum(weights) for place, weight in enumerate(weights)}


WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any)


@pytest.mark.slow
@given(st.lists(WEIGHTS, min_size=2, max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_reallocation_of_any_number_of_variants_moves_the_least(steps: list[list[int]]) -> None:
    segments = segments_of(as_shares(steps[0]))
    for weights in steps[1:]:
        was, wanted = share_of(segments), as_shares(weights)
        after = reallocate(segments, wanted)
        ends = [end for end, _ in after]
        assert ends[-1] == 1.0 and all(low < high for low, high in pairwise([0.0, *ends]))
        assert share_of(after) == pytest.approx({v: s for v, s in wanted.items() if s}, abs=1e-9)
        needed = sum(max(share - was.get(v, 0), 0) for v, share in wanted.items())
        assert moved_share(segments, after) == pytest.approx(needed, abs=1e-9)
        segments = after


def test_every_point_has_a_variant() -> None:
    thirds = segments_of(dict.fromkeys("abc", 1 / 3))
    assert [assign(thirds, p) for p in (0.0, 1 / 3, 0.9999999999999999)] == ["a", "b", "c"]
    assert all(0 <= unit_point("s", key) < 1 for key in ("", "ü", "\ud800", "x" * 10_000))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"a": 0.5, "b": 0.6}, "a sum of 1.1"),
        ({"a": 1.2, "b": -0.2}, "'b': -0.2"),
        ({"a": math.nan, "b": 1.0}, "'a': nan"),
        ({"a": "half", "b": 0.5}, "'a': 'half'"),
        ({"a": 0.0}, "a sum of 0"),
        ({}, "a sum of 0"),
    ],
)
def test_shares_that_cannot_be_used_are_named(shares: dict, said: str) -> None:
    for call in (lambda: segments_of(shares), lambda: reallocate(HALVES, shares)):
        with pytest.raises(ConfigurationError, match=r"at least 0 and 1 together") as caught:
            call()
        assert said in str(caught.value)


def test_an_assignment_takes_microseconds() -> None:
    best = min(timeit.repeat(lambda: assign(HALVES, unit_point("model_comparison", "user123")), number=20_000))
    assert best / 20_000 < 20e-6
