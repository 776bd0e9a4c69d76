"""Bringing a version live: mirror its parts, try it as a candidate, and give it the traffic only then.

Every step may be repeated, so a deployment that was killed in the middle is simply started again.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from forge_core.deployment.go_back import name_roles
from forge_core.deployment.mirror import mirror_version
from forge_core.deployment.parity import ParityReport, check_parity
from forge_core.deployment.replay_rows import choose_rows
from forge_core.deployment.routing import dismiss, nominate, promote, read_history, read_state, withdraw
from forge_core.deployment.serve_client import ServeClient
from forge_core.deployment.served_path import ServedPath
from forge_core.errors import ApprovalNeeded, ForgeError, ModelError, ServiceUnavailable
from forge_core.ledger import Ledger
from forge_core.models.version import VersionFolder
from forge_core.policy import ModelPolicy
from forge_core.storage import Storage
from forge_core.tracking.registry import Registry

logger = logging.getLogger(__name__)


def go_live(
    storage: Storage,
    ledger: Ledger,
    registry: Registry,
    serve: ServeClient,
    model: str,
    version: str,
    *,
    policy: ModelPolicy,
    actor: str,
    reason: str,
    at: datetime | None = None,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Make a registered version the champion and return what is live.

    Before it gets any traffic, held-out rows are replayed over HTTP through this very version, and every answer must
    be that of its own pipeline.

    Parameters
    ----------
    policy : ModelPolicy
        `gate.approval`, `gate.parity_tolerance`, `gate.replay_rows`, and how the rows were split.

    Returns
    -------
    dict
        `version`, `table` (what the router holds), `revision` of the desired state, and `parity`: the figures, or
        None where the version was champion already.

    Raises
    ------
    ApprovalNeeded
        When the policy asks for a person's approval and nobody gave it.
    ModelError
        When the version's gate or a person refused it, it does not start, or it answers differently from its
        pipeline; what was live goes on serving. `context["parity"]` has the figures and the worst rows.
    Conflict
        When another deployment of the same model came between.
    """
    registered, parity = try_version(
        storage, ledger, registry, serve, model, version, policy=policy, actor=actor, reason=reason, at=at,
        progress=progress,
    )  # fmt: skip
    details = {"parity": parity.to_dict()} if parity else {}
    promote(ledger, model, registered, actor=actor, reason=reason, at=at, details=details)
    try:
        table = serve.reconcile(ledger, progress=progress)
    except ModelError:
        withdraw(ledger, model, registered, actor=actor, reason="it did not start", at=at)
        serve.reconcile(ledger, progress=progress)
        raise
    name_roles(registry, ledger, model)
    return {
        "version": registered,
        "table": table,
        "revision": read_state(ledger)[0],
        "parity": details.get("parity"),
    }


def try_version(
    storage: Storage,
    ledger: Ledger,
    registry: Registry,
    serve: ServeClient,
    model: str,
    version: str,
    *,
    policy: ModelPolicy,
    actor: str,
    reason: str,
    at: datetime | None = None,
    progress: Callable[[str], None] = logger.info,
) -> tuple[str, ParityReport | None]:
    """Make a registered version the candidate, loaded and held, once it answers as its own pipeline does.

    Returns
    -------
    version : str
        Its number.
    parity : ParityReport or None
        None where it is champion already.

    Raises
    ------
    ForgeError
        As `go_live` does; where it is the version's fault, it is no candidate any more.
    """
    registered = registry.resolve(model, version)
    with registry.open(registered) as folder:
        if not registered.passed_gate:
            raise ModelError(f"version {registered.version} of {model!r} was refused: {folder.verdict.reason}")
        if policy.gate.approval:
            check_approval(ledger, model, registered.version)
        mirror_version(storage, model, registered.version, folder)
        if read_state(ledger)[1]["models"].get(model, {}).get("champion") == registered.version:
            return registered.version, None
        nominate(ledger, model, registered.version, actor=actor, reason=reason, at=at)
        try:
            return registered.version, _try(storage, ledger, serve, folder, model, registered.version, policy, progress)
        except ServiceUnavailable:
            raise  # says nothing about the version: the next attempt finds the candidate and goes on
        except Exception as error:
            figures = error.context if isinstance(error, ForgeError) else {}
            told = str(error) or type(error).__name__
            dismiss(ledger, model, registered.version, actor=actor, reason=told, at=at, details=figures)
            _tidy(ledger, serve, progress)
            raise


def check_approval(ledger: Ledger, model: str, version: str) -> None:
    """Raise ApprovalNeeded unless a person approved the version, or it was live before."""
    history = read_history(ledger, model)
    if version not in history.approvals and version not in history.line:
        raise ApprovalNeeded(
            f"version {version} of {model!r} passed its gate and waits for a person's approval, as the policy asks; "
            f"`prefect deployment run 'deploy/{model}' -p version={version} -p approved_by=NAME -p reason=WHY` "
            f"approves and deploys it, `python -m forge_core.deployment decline {model} {version}` refuses it",
            context={"model": model, "version": version},
        )


def _try(
    storage: Storage,
    ledger: Ledger,
    serve: ServeClient,
    folder: VersionFolder,
    model: str,
    version: str,
    policy: ModelPolicy,
    progress: Callable[[str], None],
) -> ParityReport:
    """Load the candidate and return how its answers compare; raise ModelError where they differ."""
    rows = choose_rows(
        storage,
        folder,
        data=policy.data,
        random_state=policy.training.random_state,
        n_rows=policy.gate.replay_rows,
    )
    serve.reconcile(ledger, trying=model, progress=progress)
    progress(f"replaying {rows.origin}")
    with ServedPath(serve.api_url, model, version, api_key=serve.api_key) as path:
        report = check_parity(folder, rows, path, tolerance=policy.gate.parity_tolerance)
    progress(f"parity of version {version}: {report.told()}")
    if not report.passed:
        raise ModelError(
            f"version {version} of {model!r} does not go live, what was live goes on serving: {report.told()}. "
            "Train it again, or look at its compiled.json and at serve_app's path for what changes these rows",
            context={"parity": report.to_dict()},
        )
    return report


def _tidy(ledger: Ledger, serve: ServeClient, progress: Callable[[str], None]) -> None:
    """Take a dismissed candidate off Serve; the reason for dismissing it is what the caller must hear."""
    try:
        serve.reconcile(ledger, progress=progress)
    except ForgeError as error:
        logger.warning("the dismissed candidate is still loaded, the next reconcile removes it: %s", error)
