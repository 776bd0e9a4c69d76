"""What experiments promise: false winners, visitors to a verdict, mismatched shares, promotion, assignment."""

import itertools
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from forge_core.experiments.assignment import assign, reallocate, segments_of, unit_point
from forge_core.experiments.decision import Decision, decide_conversions, decide_paired
from forge_core.statistics.confidence_sequences import difference_sequence
from forge_core.statistics.group_sequential import group_sequential_z, maximum_inflation
from forge_core.statistics.power import sample_size_per_variant
from forge_core.statistics.ratio_mismatch import MISMATCH, mismatch_evidence
from tests.benchmarks.harness import Report

HALVES = [0.5, 0.5]
VISITORS, LATE = 20_000, 2000
Floats = NDArray[np.float64]
Verdict = Callable[[Floats, Floats], NDArray[np.bool_]]


def run() -> bool:
    """Measure all of it, on one core, and report."""
    report = Report("experiments")
    _false_winners(report)
    _visitors_to_a_verdict(report)
    _mismatched_shares(report)
    _promotion(report)
    _assignment(report)
    return report.finish()


def _visits(
    rng: np.random.Generator, rates: tuple[float, float], n_experiments: int, n_visitors: int, late: int = 0
) -> tuple[Floats, Floats]:
    """Return conversions and visitors after each visitor, shape (n_experiments, n_visitors, 2), assigned by chance.

    With `late`, a conversion comes up to so many visitors after its own.
    """
    second = rng.random((n_experiments, n_visitors)) < 0.5
    converted = rng.random((n_experiments, n_visitors)) < np.where(second, rates[1], rates[0])
    visitors = np.stack([~second, second], axis=-1)
    if not late:
        return np.cumsum(visitors & converted[..., None], 1, dtype=float), np.cumsum(visitors, 1, dtype=float)
    trial, place = np.nonzero(converted)
    seen = np.zeros((n_experiments, n_visitors + late, 2))
    np.add.at(seen, (trial, place + rng.integers(0, late, len(place)), second[trial, place].astype(int)), 1.0)
    return np.cumsum(seen, axis=1)[:, :n_visitors], np.cumsum(visitors, 1, dtype=float)


def _moments(k: Floats, n: Floats) -> list[Floats]:
    """Return units, mean and variance of either variant."""
    rate = np.divide(k, n, out=np.zeros_like(k), where=n > 0)
    return [part for v in (0, 1) for part in (n[..., v], rate[..., v], (rate * (1 - rate))[..., v])]


def _false_winners(report: Report) -> None:
    plain_bound = stats.norm.isf(0.025)
    for rate, effect, seed in ((0.10, 0.02, 1), (0.005, 0.002, 2)):

        def ours(k: Floats, n: Floats, rate: float = rate, effect: float = effect) -> NDArray[np.bool_]:
            return decide_conversions(k, n, HALVES, baseline=rate, min_effect=effect).winner[:, -1] >= 0

        def alone(k: Floats, n: Floats, rate: float = rate, effect: float = effect) -> NDArray[np.bool_]:
            return decide_conversions(k, None, HALVES, baseline=rate, min_effect=effect).winner[:, -1] >= 0

        def interval(k: Floats, n: Floats) -> NDArray[np.bool_]:
            return difference_sequence(*_moments(k, n), n_star=VISITORS).p[:, -1] <= 0.05

        def plain(k: Floats, n: Floats) -> NDArray[np.bool_]:
            return (np.abs(group_sequential_z(*_moments(k, n))[:, 100:]) > plain_bound).any(axis=1)

        rows: list[tuple[str, Verdict, int, int, float | None]] = [
            ("share with a winner", ours, 2000, 0, 0.05),
            ("the same by conversions alone", alone, 600, 0, 0.05),
            (f"the same, conversions up to {LATE} visitors late and not waited for", ours, 600, LATE, 0.05),
            ("the interval of the difference ever misses 0", interval, 1000, 0, 0.05),
            ("a plain z-test, read as often", plain, 1000, 0, None),
        ]
        for named, verdict, trials, late, target in rows:
            rng = np.random.default_rng([seed, late])
            found = [verdict(*_visits(rng, (rate, rate), 20, VISITORS, late)) for _ in range(trials // 20)]
            report.add(f"no effect, p = {100 * rate:g} %, a look after each of {VISITORS} visitors: {named} ({trials})",
                       float(np.mean(np.concatenate(found))), at_most=target)  # fmt: skip


def _visitors_to_a_verdict(report: Report) -> None:
    fixed = 2 * sample_size_per_variant(0.10, 0.02)
    report.add("10 -> 12 %: fixed-horizon n, both variants, power 0.8", fixed)
    declared = {"baseline": 0.10, "min_effect": 0.02}
    for named, alone in (("unknown horizon", False), ("unknown horizon, conversions alone", True)):
        ended, right = _run_until_ended(
            lambda k, n, alone=alone: decide_conversions(k, None if alone else n, HALVES, **declared),  # type: ignore[misc]
            np.arange(5 * fixed),
        )
        _report_visitors(report, named, ended / fixed, right, 1.25)
    most = math.ceil(fixed * maximum_inflation(20))
    looks = np.ceil(most * np.arange(1, 21) / 20).astype(int) - 1
    ended, right = _run_until_ended(lambda k, n: decide_conversions(k, n, HALVES, max_visitors=most, **declared), looks)
    _report_visitors(report, f"declared maximum of {most}, 20 looks", ended / fixed, right, 0.85)
    rng = np.random.default_rng(5)
    wrong = []
    for _ in range(200):
        k, n = (part[:, looks] for part in _visits(rng, (0.1, 0.1), 20, most))
        wrong.append(decide_conversions(k, n, HALVES, max_visitors=most, **declared).winner[:, -1] >= 0)
    report.add("no effect, declared maximum, 20 looks: share with a winner (4000)", float(np.mean(wrong)), at_most=0.05)


def _run_until_ended(
    decide: Callable[[Floats, Floats], Decision], looks: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return visitors until the end, and whether the better variant won, of 1000 experiments."""
    rng, visitors, right = np.random.default_rng(4), [], []
    for _ in range(100):
        k, n = (part[:, looks] for part in _visits(rng, (0.10, 0.12), 10, int(looks[-1]) + 1))
        # Most end early: the long rest is looked at for the others only.
        for until in (len(looks) // 3, len(looks)):
            found = decide(k[:, :until], n[:, :until])
            done = found.ended[:, -1] if until < len(looks) else np.ones(len(k), bool)
            end = np.where(found.ended.any(axis=1), found.ended.argmax(axis=1), until - 1)
            visitors.append(looks[end][done] + 1.0)
            right.append(found.winner[done, -1] == 1)
            k, n = k[~done], n[~done]
    return np.concatenate(visitors), np.concatenate(right)


def _report_visitors(report: Report, named: str, ratio: Floats, right: NDArray[np.bool_], target: float) -> None:
    report.add(f"10 -> 12 %, {named}: mean visitors to a verdict / fixed n (1000)", float(ratio.mean()), at_most=target)
    report.add(f"10 -> 12 %, {named}: median / fixed n", float(np.median(ratio)))
    report.add(f"10 -> 12 %, {named}: share in which the better one won", float(right.mean()), at_least=0.78)


def _mismatched_shares(report: Report) -> None:
    n, trials = 100_000, 800
    rng = np.random.default_rng(6)
    alarms, plain = [], []
    for _ in range(trials // 10):
        counts = _assigned(rng, 0.5, 10, n)
        alarms.append((mismatch_evidence(counts, HALVES) >= MISMATCH).any(axis=1))
        z = np.abs(counts[..., 1] - counts[..., 0])[:, 100:] / np.sqrt(np.arange(101, n + 1))
        plain.append((z > stats.norm.isf(0.005)).any(axis=1))
    report.add(f"shares as asked, a look after each of {n} users: false alarms ({trials})", float(np.mean(alarms)),
               at_most=0.01)  # fmt: skip
    report.add(f"shares as asked: chi-square at p < 0.01, read as often ({trials})", float(np.mean(plain)))
    for share, trials in ((0.51, 400), (0.52, 1000)):
        fixed = (stats.norm.isf(0.005) + stats.norm.ppf(0.8)) ** 2 * 0.25 / (share - 0.5) ** 2
        delays = []
        for _ in range(trials // 10):
            alarm = mismatch_evidence(_assigned(rng, share, 10, int(4 * fixed)), HALVES) >= MISMATCH
            delays.append(np.where(alarm.any(axis=1), alarm.argmax(axis=1) + 1.0, np.inf))
        report.add(f"{100 * share:g}/{100 - 100 * share:g}: median users to the alarm / fixed test ({trials})",
                   float(np.median(np.concatenate(delays))) / fixed, at_most=1.15)  # fmt: skip


def _assigned(rng: np.random.Generator, share: float, n_experiments: int, n_users: int) -> Floats:
    second = np.cumsum(rng.random((n_experiments, n_users)) < share, axis=1, dtype=float)
    return np.stack([np.arange(1, n_users + 1) - second, second], axis=-1)


def _promotion(report: Report) -> None:
    """Rows on which two models differ come as a tenth of all; the better by 2 points wins 6 in 10 of them."""
    rng, trials, differ = np.random.default_rng(7), 2000, 2000
    for named, wins, target in (("equal", 0.5, 0.05), ("2 points worse", 0.4, 0.05)):
        won = np.cumsum(rng.random((trials, differ)) < wins, axis=1, dtype=float)
        said = decide_paired(won, np.arange(1, differ + 1) - won)
        report.add(f"shadow, {named}, a look after every row: promoted ({trials})", float((said[:, -1] == 1).mean()),
                   at_most=target)  # fmt: skip
    won = np.cumsum(rng.random((trials, differ)) < 0.6, axis=1, dtype=float)
    said = decide_paired(won, np.arange(1, differ + 1) - won) == 1
    rows = np.cumsum(rng.geometric(0.1, (trials, differ)), axis=1)
    needed = np.where(said.any(axis=1), rows[np.arange(trials), said.argmax(axis=1)], np.inf)
    unpaired = 2 * sample_size_per_variant(0.80, 0.02)
    report.add(f"shadow, 2 points better, differing on 10 %: median rows to promotion ({trials})",
               float(np.median(needed)))  # fmt: skip
    report.add(f"shadow: median rows / unpaired test ({unpaired} rows at 80 %)", float(np.median(needed)) / unpaired,
               at_most=0.25)  # fmt: skip
    report.add(f"shadow, 2 points better: promoted within {10 * differ} rows", float(said.any(axis=1).mean()))


def _assignment(report: Report) -> None:
    shares, n = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}, 1_000_000
    started = time.process_time()
    segments = segments_of(shares)
    drawn = [assign(segments, unit_point("checkout", f"user{number}")) for number in range(n)]
    each = (time.process_time() - started) / n
    counts = [drawn.count(variant) for variant in shares]
    p = float(stats.chisquare(counts, [n * share for share in shares.values()]).pvalue)
    report.add(f"assignment: chi-square p of the shares of {n} users", p, at_least=0.01)
    before = segments_of({"champion": 0.95, "canary": 0.05})
    after = reallocate(before, {"champion": 0.75, "canary": 0.25})
    points = [unit_point("rollout:4", f"user{number}") for number in range(n)]
    moves = [(assign(before, point), assign(after, point)) for point in points]
    moved = sum(was != now for was, now in moves)
    must = sum(now == "canary" for _, now in moves) - sum(was == "canary" for was, _ in moves)
    report.add(f"assignment: share of {n} users moved when 5 % grows to 25 %", moved / n)
    report.add("assignment: users moved beyond those the canary gains", moved - must, at_most=0)
    share = sum(high - low for low, high in _moved_pieces(before, after))
    report.add("assignment: moved part of [0, 1), distance from 0.2", abs(share - 0.2), at_most=1e-9)
    report.add("assignment: microseconds a user", 1e6 * each)


def _moved_pieces(
    before: tuple[tuple[float, str], ...], after: tuple[tuple[float, str], ...]
) -> list[tuple[float, float]]:
    ends = sorted({0.0, *(end for end, _ in before), *(end for end, _ in after)})
    return [(low, high) for low, high in itertools.pairwise(ends) if assign(before, low) != assign(after, low)]
