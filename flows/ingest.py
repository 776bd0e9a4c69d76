"""`prefect deployment run 'ingest/…'`: rows into a dataset version, with a report."""

from typing import Any

from prefect import flow

from flows.house import open_house
from flows.tasks import ingest_rows


@flow(name="ingest", log_prints=False)
def ingest(
    model: str = "flights", source: str | None = None, since: str | None = None, until: str | None = None
) -> dict[str, Any]:
    """Ingest a model's rows and return the dataset's id and counts.

    Parameters
    ----------
    model : str
        A model of the policy file.
    source : str, optional
        A source URI; the policy's by default.
    since, until : str, optional
        ISO times that bound the rows.
    """
    house = open_house(model)
    return ingest_rows(model, source or house.policy.data.source, house.policy.data, since, until)
