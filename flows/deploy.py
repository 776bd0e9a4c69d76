"""`prefect deployment run 'deploy/…' -p version=3`: a registered version goes live by hand."""

from typing import Any

from prefect import flow

from flows.tasks import deploy_version


@flow(name="deploy")
def deploy(model: str = "flights", version: str = "challenger", reason: str = "asked for") -> dict[str, Any]:
    """Bring a version that passed its gate live.

    Parameters
    ----------
    version : str
        A version's number or an alias.
    """
    return deploy_version(model, version, reason, None)
