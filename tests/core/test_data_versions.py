"""Dataset versions: the id is what the rows contain, and a version is whole or absent."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_core.data.contracts import infer_contract
from forge_core.data.ingest import ingest
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import (
    dataset_id,
    load_contract,
    load_dataset,
    load_manifest,
    load_quarantine,
    save_dataset,
)
from forge_core.errors import DataNotFound, UnusableTarget
from forge_core.policy import DataPolicy
from forge_core.storage import Storage

NOW = datetime(2024, 2, 1, tzinfo=UTC)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


CELLS = st.tuples(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=True, width=32), st.one_of(st.none(), st.text(max_size=4))
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=15), st.randoms(use_true_random=False))
def test_the_id_does_not_depend_on_any_order(cells: list[tuple[int, float, str | None]], random: object) -> None:
    def frame(rows: list[tuple[int, float, str | None]]) -> pd.DataFrame:
        table = pd.DataFrame(rows, columns=["a", "b", "c"]).astype({"c": "str"})
        return table.astype({"a": "int64", "b": "float64"})

    shuffled = list(cells)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dataset_id(frame(cells)) == dataset_id(frame(shuffled)[["c", "a", "b"]])
    assert dataset_id(frame(cells)) != dataset_id(frame([*cells, cells[0]]))


def test_any_changed_cell_changes_the_id() -> None:
    rows = generate_sample_data(100)
    ids = {dataset_id(rows)}
    for column, value in (("feature1", 0.5), ("feature2", "new"), ("target", 9), ("sample_id", None)):
        changed = rows.copy()
        changed.loc[50, column] = value
        ids.add(dataset_id(changed))
    ids.add(dataset_id(rows.rename(columns={"feature1": "feature3"})))
    ids.add(dataset_id(rows.assign(target=rows["target"].astype(float))))
    swapped = rows.copy()
    swapped.loc[[0, 1], "feature1"] = swapped.loc[[1, 0], "feature1"].to_numpy()
    ids.add(dataset_id(swapped))
    assert len(ids) == 8


def test_the_id_is_pinned() -> None:
    rows = pd.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", None]})
    assert dataset_id(rows) == "ds-a2af477ab537a968"


def test_how_text_and_times_are_held_does_not_change_the_id() -> None:
    rows = generate_sample_data(30)
    other = rows.astype({"feature2": "category", "sample_id": object})
    other["event_time"] = other["event_time"].astype("datetime64[ns, UTC]").dt.tz_convert("America/New_York")
    assert dataset_id(other) == dataset_id(rows)
    negative = pd.DataFrame({"a": [-0.0, np.nan]})
    assert dataset_id(negative) == dataset_id(pd.DataFrame({"a": [0.0, np.nan]}))


def test_a_version_gives_back_what_was_kept(storage: Storage) -> None:
    rows = generate_sample_data(120)
    rows.loc[4, "feature1"] = 1e9
    contract = sample_contract()
    checked = contract.check(rows, 0.1)
    version = save_dataset(
        storage, checked.good, source="sample:", contract=contract, quarantine=checked.quarantine,
        parent="ds-0", code_commit="abc", now=NOW,
    )  # fmt: skip
    assert (version.n_rows, version.n_bad, version.parent, version.created_at) == (119, 1, "ds-0", NOW)
    assert load_manifest(storage, version.id) == version
    assert load_contract(storage, version.id).digest == version.contract_digest == contract.digest
    pd.testing.assert_frame_equal(load_dataset(storage, version.id), checked.good.reset_index(drop=True))
    assert dataset_id(load_dataset(storage, version.id), contract) == version.id
    assert load_dataset(storage, version.id, ["target"]).columns.tolist() == ["target"]
    assert load_quarantine(storage, version.id)["row_number"].tolist() == [4]


def test_saving_again_changes_nothing(storage: Storage) -> None:
    rows = generate_sample_data(20)
    first = save_dataset(storage, rows, source="a", now=NOW)
    again = save_dataset(storage, rows.iloc[::-1], source="b")
    assert again == first


def test_another_target_is_another_version(storage: Storage) -> None:
    rows = generate_sample_data(20)
    one = save_dataset(storage, rows, source="a", contract=infer_contract(rows, target="target"))
    two = save_dataset(storage, rows, source="a", contract=infer_contract(rows, target="feature1"))
    assert one.id != two.id
    assert load_contract(storage, two.id).target == "feature1"


def test_without_a_manifest_there_is_no_version(storage: Storage) -> None:
    rows = generate_sample_data(20)
    version = save_dataset(storage, rows, source="a")
    Path(storage.path(f"datasets/{version.id}/manifest.json")).unlink()
    for load in (load_manifest, load_dataset, load_contract):
        with pytest.raises(DataNotFound, match=version.id):
            load(storage, version.id)
    assert save_dataset(storage, rows, source="a").id == version.id
    with pytest.raises(DataNotFound, match="without a contract"):
        load_contract(storage, version.id)


def test_ingest_keeps_good_rows_of_a_file_and_sets_bad_ones_aside(storage: Storage, tmp_path: Path) -> None:
    rows = generate_sample_data(300).astype({"feature1": object})
    rows.loc[10, "feature1"] = "broken"
    rows.to_csv(tmp_path / "rows.csv", index=False)
    policy = DataPolicy(
        source="-", target="target", time_column="event_time", key_column="sample_id", label_time_column="known_at"
    )
    version = ingest(storage, str(tmp_path / "rows.csv"), policy, now=NOW).version
    assert (version.n_rows, version.n_bad) == (299, 1)
    assert load_quarantine(storage, version.id)["value"].tolist() == ["broken"]
    assert load_contract(storage, version.id).feature_columns == ["feature1", "feature2"]
    with pytest.raises(UnusableTarget, match="answer"):
        ingest(storage, "sample:", policy.model_copy(update={"target": "answer"}))
