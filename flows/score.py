"""`prefect deployment run 'score/…' -p source=…`: every row of a data set through a version; again to go on."""

import logging
import time
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.artifacts import leave_picture, leave_table, slug
from flows.caching import REPEATED
from flows.house import open_house
from forge_core.scoring.batch import score_dataset
from forge_core.scoring.report import predictions_figure, scoring_table

logger = logging.getLogger(__name__)

# So often, at most, progress is told.
_SECONDS = 2.0


@flow(name="score")
def score(
    source: str, model: str = "flights", version: str = "champion", output: str | None = None, keep: str = ""
) -> dict[str, Any]:
    """Score every row of a Parquet data set and return the counts and where the predictions are.

    Parameters
    ----------
    source : str
        Id of a dataset version, or path, folder, pattern or URL of Parquet files.
    version : str
        A version's number or an alias.
    output : str, optional
        URL of the folder for the predictions; by default below `scores/` at the storage.
    keep : str
        Columns that the output carries along, with commas between.
    """
    number = open_house(model).registry.resolve(model, version).version
    return score_rows(model, number, source, output, [name for name in keep.split(",") if name])


@task(name="score", **REPEATED)
def score_rows(model: str, version: str, source: str, output: str | None, keep: list[str]) -> dict[str, Any]:
    """Score the parts that are missing, and leave the counts and a picture of the predictions."""
    house = open_house(model)
    bar = create_progress_artifact(0.0, key=slug(model, "scored"), description=f"Rows of {source} that are scored")

    told = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= _SECONDS:
            told = time.monotonic()
            logger.info("rows=%d of=%d", done, total)
            update_progress_artifact(bar, 100.0 * done / total)

    with house.registry.open(house.registry.resolve(model, version)) as folder:
        scoring = score_dataset(
            house.storage, source, folder, model=model, version=version, output=output, keep=keep,
            address=house.ray_address, progress=progress,
        )  # fmt: skip
    leave_table(slug(model, "scores"), scoring_table(scoring), f"Version {version} on {source}")
    leave_picture(slug(model, "predictions"), predictions_figure(scoring), f"Predictions of version {version}")
    return scoring.to_dict()
