"""A rollout on the running service: begun, looked at, brought one step further, or taken back.

Each call may be repeated and takes up where a killed one left off: what was decided stands in the ledger, and Serve is
brought to it again.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from forge_core.deployment.go_back import go_back, name_roles
from forge_core.deployment.go_live import try_version
from forge_core.deployment.mirror import mirrored_version
from forge_core.deployment.routing import read_state
from forge_core.deployment.serve_client import ServeClient
from forge_core.deployment.splits import check_unsplit
from forge_core.errors import Conflict, ModelNotFound, ServiceUnavailable
from forge_core.experiments.rollout import begin, move_on, overtaken_by, seen, send_back
from forge_core.experiments.rollout_evidence import Sides, read_labels, read_step, weigh
from forge_core.experiments.rollout_records import Rollout, RolloutRecords
from forge_core.experiments.rollout_verdict import Look, judge
from forge_core.ledger import Ledger
from forge_core.policy import ModelPolicy, RolloutPolicy
from forge_core.storage import Storage
from forge_core.tracking.registry import Registry

logger = logging.getLogger(__name__)


def start_rollout(
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
) -> Rollout:
    """Try a registered version as every deployment does, then begin its rollout; one under way goes on.

    Raises
    ------
    ModelNotFound
        When there is no such version, or no champion whose traffic it could share: deploy a first version directly.
    Conflict
        When another version is being rolled out, or an experiment has the traffic.
    ForgeError
        As `go_live` does, where the version may not, or cannot, go live.
    """
    number = registry.resolve(model, version).version
    found = RolloutRecords(ledger).under_way(model)
    if found is None or found.version != number:
        if found is not None:
            raise Conflict(f"{found.id} of {model!r} is under way ({found.told_step}); abort it first, or wait for it")
        check_unsplit(ledger, model)
        if not read_state(ledger)[1]["models"].get(model, {}).get("champion"):
            raise ModelNotFound(f"model {model!r} has no champion to compare with; deploy a first version directly")
        number, _ = try_version(
            storage, ledger, registry, serve, model, number,
            policy=policy, actor=actor, reason=reason, at=at, progress=progress,
        )  # fmt: skip
        if read_state(ledger)[1]["models"][model]["champion"] == number:
            raise Conflict(f"version {number} of {model!r} is champion already; there is nothing to roll out")
    rollout = begin(ledger, model, number, policy=policy.rollout, actor=actor, reason=reason, at=at)
    settle(ledger, registry, serve, model, progress=progress)
    return rollout


def go_on(
    storage: Storage,
    ledger: Ledger,
    registry: Registry,
    serve: ServeClient,
    model: str,
    *,
    policy: RolloutPolicy,
    actor: str,
    now: datetime | None = None,
    progress: Callable[[str], None] = logger.info,
) -> tuple[Rollout, Look | None]:
    """Look at a model's rollout and do what the evidence says; return it with the look, None where others ended it.

    Raises
    ------
    ModelNotFound
        When none is under way.
    """
    rollout = RolloutRecords(ledger).wanted(model)
    moment = now or datetime.now(UTC)
    if gone := overtaken_by(ledger, rollout):
        ended = send_back(ledger, rollout, "overtaken", actor=actor, reason=gone)
        return _settled(ledger, registry, serve, ended, progress), None
    try:
        _check_registered(registry, rollout)
        sides = _sides(storage, rollout)
    except ModelNotFound as error:
        lost = f"the version is gone: {error}"
        back = send_back(ledger, rollout, "rolled back", actor=actor, reason=lost)
        return _settled(ledger, registry, serve, back, progress), None
    evidence = weigh(read_step(storage, rollout, sides), rollout, policy, sides, read_labels(ledger, rollout))
    look = judge(rollout, evidence, policy, moment)
    progress(f"{rollout.id} at {rollout.told_step}: {look.action} ({look.reason})")
    after = _follow(ledger, rollout, look, actor, moment)
    if (after.step, after.status) == (rollout.step, rollout.status):
        return after, look
    return _settled(ledger, registry, serve, after, progress), look


def roll_back_now(
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
    """Give all traffic to the last good champion, in one flip, and return its version.

    While a rollout is under way that is the champion of now, and the version is dismissed; otherwise the one before.

    Parameters
    ----------
    from_version : str, optional
        The champion to leave, as for `go_back`.

    Raises
    ------
    ModelNotFound
        When no rollout is under way and there is no champion before this one.
    """
    champion = flip_back(ledger, model, actor=actor, reason=reason)
    if champion is None:
        return go_back(
            ledger, registry, serve, model,
            actor=actor, reason=reason, at=at, from_version=from_version, progress=progress,
        )  # fmt: skip
    settle(ledger, registry, serve, model, progress=progress)
    return champion


def flip_back(ledger: Ledger, model: str, *, actor: str, reason: str) -> str | None:
    """End a rollout in the ledger and return the champion that has the traffic; None where none is under way."""
    records = RolloutRecords(ledger)
    while (rollout := records.under_way(model)) is not None:
        try:
            send_back(ledger, rollout, "rolled back", actor=actor, reason=reason)
            return rollout.champion
        except Conflict:
            continue  # a look or a person came between; going back wins
    return None


def settle(
    ledger: Ledger,
    registry: Registry,
    serve: ServeClient,
    model: str,
    *,
    progress: Callable[[str], None] = logger.info,
) -> None:
    """Bring Serve, and the registry's names, to what the ledger says."""
    serve.reconcile(ledger, progress=progress)
    name_roles(registry, ledger, model)


def _settled(
    ledger: Ledger, registry: Registry, serve: ServeClient, rollout: Rollout, progress: Callable[[str], None]
) -> Rollout:
    settle(ledger, registry, serve, rollout.model, progress=progress)
    return rollout


def _follow(ledger: Ledger, rollout: Rollout, look: Look, actor: str, now: datetime) -> Rollout:
    """Do what a look says; where somebody changed the rollout meanwhile, the next look starts from there."""
    try:
        if look.action == "roll back":
            return send_back(ledger, rollout, "rolled back", actor=actor, reason=look.reason, look=look)
        if look.action == "promote" and rollout.status == "running":
            return move_on(ledger, rollout, actor=actor, reason=look.reason, look=look, now=now)
        return seen(ledger, rollout, look)
    except Conflict as error:
        logger.info("the look is made again: %s", error)
        found = RolloutRecords(ledger).newest(rollout.model)
        return found or rollout


def _check_registered(registry: Registry, rollout: Rollout) -> None:
    """Raise ModelNotFound where the version was deleted; a registry that is away keeps nobody from looking."""
    try:
        registry.resolve(rollout.model, rollout.version)
    except ServiceUnavailable as error:
        logger.warning("looking on without the registry: %s", error)


def _sides(storage: Storage, rollout: Rollout) -> Sides:
    estimators = []
    for version in (rollout.version, rollout.champion):
        with mirrored_version(storage, rollout.model, version) as folder:
            estimators.append(folder.expectation.estimator)
            task, classes = folder.task, tuple(folder.classes or ())
    return Sides(task, classes, *estimators)
