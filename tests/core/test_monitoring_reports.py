import io

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from forge_core.monitoring.drift_detection import FeatureDriftDetector
from forge_core.monitoring.drift_report import DriftReport
from forge_core.monitoring.reports import COLOURS, distribution_figure, drift_figure, drift_markdown, quality_figure


def frame(n: int, seed: int, shift: float = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    many = [f"level-{i}" for i in range(30)] + (["new"] * 10 if shift else [])
    return pd.DataFrame({"age": rng.normal(shift, 1, n), "a|b": rng.choice(many, n), "none": np.nan})


@pytest.fixture(scope="module")
def watch() -> FeatureDriftDetector:
    return FeatureDriftDetector(frame(3000, 0), ["a|b"], ["age", "none"])


def has_colour(png: bytes, colour: str) -> bool:
    pixels = (image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    want = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == want).all(axis=-1).sum() > 500)


def test_bars_take_the_colour_of_their_level(watch: FeatureDriftDetector) -> None:
    loud, calm = (drift_figure(watch.compute_drift(frame(1000, 1, shift))) for shift in (1.0, 0.0))
    assert loud.startswith(b"\x89PNG") and has_colour(loud, COLOURS["drift"])
    assert not has_colour(calm, COLOURS["drift"])


def test_an_empty_report_still_has_a_picture_and_a_table() -> None:
    nothing = DriftReport((), 0.0, None, "none", 5, 0.1, 0.2)
    assert drift_figure(nothing).startswith(b"\x89PNG")
    assert "no drift" in drift_markdown(nothing)


def test_the_table_has_the_gravest_first_and_escapes_bars(watch: FeatureDriftDetector) -> None:
    text = drift_markdown(watch.compute_drift(frame(1000, 2, 2.0)))
    lines = text.splitlines()
    assert lines[0].startswith("**drift**: score ")
    assert lines[4].startswith("| age | distribution |") and "**drift**" in lines[4]
    assert any(line.startswith("| a\\|b | unseen |") for line in lines)
    assert lines[-1].startswith("| none | distribution | 0.000 |")


def test_distributions_are_drawn_for_every_kind_of_feature(watch: FeatureDriftDetector) -> None:
    current = watch.grid.count(frame(1000, 3, 1.0))
    assert has_colour(distribution_figure(watch.grid, watch.reference, current, ["age", "a|b", "none"]), "#0072B2")


def test_quality_is_drawn_against_its_reference() -> None:
    days = pd.date_range("2024-01-01", periods=9, tz="UTC")
    table = pd.DataFrame({"window": days, "value": 0.5, "low": 0.4, "high": 0.6, "n": 10})
    assert has_colour(quality_figure(table, 0.45, "log_loss"), "#0072B2")
