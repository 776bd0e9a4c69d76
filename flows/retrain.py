"""`prefect deployment run 'retrain/…'`, or the event `forge.retrain.wanted`: train again, with the cooldown kept."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_run_logger

from flows.house import open_house, utc
from flows.train import train


@flow(name="retrain")
async def retrain(
    model: str = "flights", until: str | None = None, reason: str = "asked for", force: bool = False
) -> dict[str, Any]:
    """Train on all rows up to `until`, starting the search at the champion's hyperparameters.

    Parameters
    ----------
    until : str, optional
        ISO time of the decision (event time); default now.
    force : bool
        Ignore the cooldown.

    Returns
    -------
    dict
        What `train` returns, or `{"skipped": why}`.
    """
    house = open_house(model)
    now = utc(until) or datetime.now(UTC)
    wait = timedelta(hours=house.policy.retrain.retraining_frequency)
    last = [e["at"] for e in house.ledger.events(model, "retrained")]
    if last and not force and now - max(last) < wait:
        why = f"last retrained {max(last):%Y-%m-%d %H:%M}, cooldown {wait}"
        get_run_logger().info("skipped: %s", why)
        return {"skipped": why}
    start = None
    if champion := house.registry.find(model):
        with house.registry.open(champion) as folder:
            start = folder.lineage["hyperparameters"]
    result = await train(model=model, until=until, trials=house.policy.retrain.trials, start_from=start, reason=reason)
    # Only now: a retraining that was killed half-way is repeated, not skipped by its own cooldown.
    house.ledger.append_event(
        "retrained", model, version=result["version"], actor="retrain flow", reason=reason, at=now, details=result
    )
    return result
