"""Back to the champion before, in one call; and the registry's names, which follow what the ledger says is live."""

import logging
from collections.abc import Callable
from datetime import datetime

from forge_core.deployment.routing import read_history, read_state, roll_back
from forge_core.deployment.serve_client import ServeClient
from forge_core.ledger import Ledger
from forge_core.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Registry

logger = logging.getLogger(__name__)

STAGE_TAG = "forge.stage"


def go_back(
    ledger: Ledger,
    registry: Registry,
    serve: ServeClient,
    model: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    from_version: str | None = None,
    progress: Callable[[str], None] = logger.info,
) -> str:
    """Give the traffic to the champion before this one and return its version.

    Parameters
    ----------
    from_version : str, optional
        The champion to leave; where another one is live by now, nothing changes. Give it where the call may be
        repeated.

    Raises
    ------
    ModelNotFound
        When there is no champion before this one.
    ModelError
        When that version does not start; the desired state names it, and what was live goes on serving.
    """
    restored = roll_back(ledger, model, actor=actor, reason=reason, at=at, from_version=from_version)
    serve.reconcile(ledger, progress=progress)
    name_roles(registry, ledger, model)
    return restored


def name_roles(registry: Registry, ledger: Ledger, model: str) -> None:
    """Point `champion` and `previous` where the ledger does, and tag every version with where it stands.

    A version that went on from being `challenger` loses that alias.
    """
    entry = read_state(ledger)[1]["models"].get(model, {})
    history = read_history(ledger, model)
    versions = {v.version: v for v in registry.versions(model)}
    aliases = registry.aliases(model)
    for alias, role in ((CHAMPION, entry.get("champion")), (PREVIOUS, entry.get("previous"))):
        if role in versions and aliases.get(alias) != role:
            registry.set_alias(versions[role], alias)
        elif role is None and alias in aliases:
            registry.remove_alias(model, alias)
    challenger = aliases.get(CHALLENGER)
    if challenger and history.stage(challenger) not in ("challenger", "approved", "trial"):
        registry.remove_alias(model, CHALLENGER)
    for number, version in versions.items():
        stage = history.stages.get(number)
        if stage and version.tags.get(STAGE_TAG) != stage:
            registry.set_tag(version, STAGE_TAG, stage)
