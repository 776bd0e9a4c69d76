"""`python -m tests.prove.search_work FOLDER OUT`: one search over rows that are kept there; its result as JSON."""

import json
import os
import sys
from pathlib import Path

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.storage import Storage
from forge_core.training.datasets import SplitRequest
from forge_core.training.tuning import search

TRIALS = 10


def main(folder: str, out: str) -> None:
    """Search, or go on with the search that was cut."""
    os.environ.pop("RAY_ADDRESS", None)
    rows = get_data_loader().preprocess_data(generate_sample_data(60_000, random_state=0))
    version = save_dataset(Storage(folder), rows, source="sample:", contract=sample_contract())
    split = SplitRequest(folder, version.id, "target", "event_time", 0.15, 0.15, 0)
    found = search(split, model_type="gradient_boosting", metric="log_loss", trials=TRIALS, early_stop=False, workers=2)
    kept = {"resumed": found.resumed, "value": found.value, "hyperparameters": found.hyperparameters}
    trials = [{"hyperparameters": t["hyperparameters"], "log_loss": t["log_loss"]} for t in found.trials]
    Path(out).write_text(json.dumps({**kept, "trials": trials, "seconds": found.seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
