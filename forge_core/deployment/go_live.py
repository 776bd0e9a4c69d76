"""Bringing a version live: mirror its parts, change the desired state, reconcile Serve, move the alias."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from forge_core.deployment.mirror import mirror_version
from forge_core.deployment.routing import promote, read_state, withdraw
from forge_core.deployment.serve_client import ServeClient
from forge_core.errors import ModelError
from forge_core.ledger import Ledger
from forge_core.storage import Storage
from forge_core.tracking.registry import CHALLENGER, CHAMPION, Registry

logger = logging.getLogger(__name__)


def go_live(
    storage: Storage,
    ledger: Ledger,
    registry: Registry,
    serve: ServeClient,
    model: str,
    version: str,
    *,
    actor: str,
    reason: str,
    at: datetime | None = None,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Make a registered version the champion and return what is live; every step may be repeated.

    Raises
    ------
    ModelError
        When the version's gate refused it, or it does not start; what was live goes on serving.
    """
    registered = registry.resolve(model, version)
    if not registered.passed_gate:
        with registry.open(registered) as folder:
            raise ModelError(f"version {registered.version} of {model!r} was refused: {folder.verdict.reason}")
    with registry.open(registered) as folder:
        mirror_version(storage, model, registered.version, folder)
    promote(ledger, model, registered.version, actor=actor, reason=reason, at=at)
    try:
        table = serve.reconcile(ledger, progress=progress)
    except ModelError:
        withdraw(ledger, model, registered.version, actor=actor, reason="it did not start", at=at)
        serve.reconcile(ledger, progress=progress)
        raise
    registry.set_alias(registered, CHAMPION)
    if (challenger := registry.find(model, CHALLENGER)) and challenger.version == registered.version:
        registry.remove_alias(model, CHALLENGER)
    return {"version": registered.version, "table": table, "revision": read_state(ledger)[0]}
