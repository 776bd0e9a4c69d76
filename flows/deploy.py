"""`prefect deployment run 'deploy/…' -p version=3` and `'rollback/…'`: what is live changes by hand."""

from typing import Any

from prefect import flow

from flows.house import open_house
from flows.tasks import deploy_version, roll_back_version
from forge_core.deployment.routing import read_state
from forge_core.errors import ModelNotFound


@flow(name="deploy")
def deploy(
    model: str = "flights", version: str = "challenger", reason: str = "asked for", approved_by: str | None = None
) -> dict[str, Any]:
    """Bring a version that passed its gate live.

    Parameters
    ----------
    version : str
        A version's number or an alias.
    reason : str
        Why, for the record.
    approved_by : str, optional
        Who approves it, where the policy (`gate.approval`) asks for a person.
    """
    return deploy_version(model, version, reason, None, approved_by)


@flow(name="rollback")
def rollback(model: str = "flights", reason: str = "asked for", by: str = "rollback flow") -> str:
    """Give the traffic back to the last good champion and return its version.

    While a rollout is under way it ends, and the champion of now has all traffic; otherwise it is the one before.

    Parameters
    ----------
    reason, by : str
        Why and who, for the record.
    """
    champion = read_state(open_house(model).ledger)[1]["models"].get(model, {}).get("champion")
    if champion is None:
        raise ModelNotFound(f"expected a live version of {model!r} to leave, found none; deploy one")
    return roll_back_version(model, champion, by, reason)
