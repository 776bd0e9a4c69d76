"""The generated table: the same every time, learnable, and its dials do what they say."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from forge_core.data.feature_engineering import FeatureEngineer
from forge_core.data.sample import generate_sample_data, main, sample_contract
from forge_core.errors import ConfigurationError


def test_the_same_seed_gives_the_same_rows() -> None:
    pd.testing.assert_frame_equal(generate_sample_data(50, random_state=3), generate_sample_data(50, random_state=3))
    assert not generate_sample_data(50, random_state=4)["feature1"].equals(generate_sample_data(50)["feature1"])


def test_the_target_can_be_learnt_with_an_auc_of_about_point_eight() -> None:
    train, test = generate_sample_data(4000), generate_sample_data(4000, random_state=1)
    features = ["feature1", "feature2"]
    engineer = FeatureEngineer().fit(train[features])
    model = LogisticRegression().fit(engineer.transform(train[features]), train["target"])
    auc = roc_auc_score(test["target"], model.predict_proba(engineer.transform(test[features]))[:, 1])
    assert 0.76 < auc < 0.84


def test_drift_shifts_the_number_and_moves_the_categories() -> None:
    still, moved = generate_sample_data(20_000), generate_sample_data(20_000, drift=1.0)
    assert moved["feature1"].mean() - still["feature1"].mean() == pytest.approx(1.0)
    shares = [frame["feature2"].value_counts(normalize=True) for frame in (still, moved)]
    assert shares[0]["category1"] - shares[1]["category1"] > 0.08
    assert shares[1]["category4"] - shares[0]["category4"] > 0.03


def test_labels_are_known_after_the_delay() -> None:
    rows = generate_sample_data(10, label_delay_hours=24, rows_per_hour=2)
    assert (rows["known_at"] - rows["event_time"] == timedelta(hours=24)).all()
    assert rows["event_time"].iloc[2] - rows["event_time"].iloc[0] == timedelta(hours=1)


def test_the_contract_holds() -> None:
    assert sample_contract().check(generate_sample_data(500, drift=3.0), 0.0).n_bad == 0


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="n_rows >= 1"):
        generate_sample_data(0)


@pytest.mark.parametrize("name", ["rows.csv", "deep/rows.parquet"])
def test_the_command_writes_the_rows(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "30", "--drift", "0.5", "--seed", "2", "--out", str(tmp_path / name)]) == 0
    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    expected = generate_sample_data(30, drift=0.5, random_state=2)
    np.testing.assert_allclose(read(tmp_path / name)["feature1"], expected["feature1"])
    assert "30 rows" in capsys.readouterr().out


def test_the_command_refuses_other_formats(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "rows.xlsx")])
