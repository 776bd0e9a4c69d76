"""Where a training's rows come from: a dataset version by id, split the same way wherever it is loaded."""

from dataclasses import dataclass

from forge_core.data.loaders import get_data_loader
from forge_core.data.splits import DataSplit
from forge_core.data.versions import load_contract, load_dataset
from forge_core.storage import Storage


@dataclass(frozen=True)
class SplitRequest:
    """A dataset version and its split; plain values, so that it crosses process borders and keys caches."""

    storage_url: str
    dataset_id: str
    target: str
    time_column: str | None
    validation_share: float
    test_share: float
    random_state: int


def load_split(storage: Storage, request: SplitRequest) -> DataSplit:
    """Return the dataset's training, validation and test part; their `X_…` hold the contract's features only."""
    contract = load_contract(storage, request.dataset_id)
    frame = load_dataset(storage, request.dataset_id)
    return get_data_loader().split_data(
        frame,
        target_column=request.target,
        time_column=request.time_column,
        key_column=None if request.time_column else contract.key,
        feature_columns=contract.feature_columns,
        validation_share=request.validation_share,
        test_share=request.test_share,
        random_state=request.random_state,
    )
