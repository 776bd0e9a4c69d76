"""A small version of the sample model with all its parts, really trained, for tests of what is done to versions."""

from pathlib import Path

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.models.version import VersionFolder
from forge_core.policy import GatePolicy
from forge_core.storage import Storage
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest


def sample_version(home: Path) -> tuple[Storage, VersionFolder]:
    """Return a storage in the folder with dataset and candidate, and the version assembled beside them."""
    storage = Storage(str(home))
    rows = get_data_loader().preprocess_data(generate_sample_data(2000, random_state=0))
    dataset = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(str(home), dataset.id, "target", "event_time", 0.15, 0.15, 0)
    recipe = Recipe(split, "gradient_boosting", "classification", (("max_iter", 10), ("random_state", 0)))
    candidate.fit(storage, recipe)
    candidate.evaluate(storage, recipe, policy=GatePolicy(), champion=None, champion_name="the training mean")
    candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    return storage, candidate.assemble(storage, recipe, home / "version", lineage={"reason": "test"})
