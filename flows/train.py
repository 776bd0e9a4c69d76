"""`prefect deployment run 'train/…'`: from a source to a version that is live, or to the gate's reasons why not."""

from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.dead_runs import crash_dead_runs
from flows.house import House, open_house, utc
from flows.tasks import (
    ask_for_approval,
    begin_rollout,
    compare_parts,
    compile_pipeline,
    deploy_version,
    evaluate_candidate,
    fit_winner,
    ingest_rows,
    register_version,
    search_parameters,
)
from forge_core.deployment.mirror import mirrored_version
from forge_core.deployment.routing import read_state
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest


@flow(name="train")
async def train(
    model: str = "flights",
    source: str | None = None,
    since: str | None = None,
    until: str | None = None,
    trials: int | None = None,
    start_from: dict[str, Any] | None = None,
    deploy: bool = True,
    reason: str = "asked for",
) -> dict[str, Any]:
    """Train a candidate, ask the gate, register it, and bring it live where the gate says yes.

    Parameters
    ----------
    model : str
        A model of the policy file.
    source : str, optional
        A source URI; the policy's by default.
    since, until : str, optional
        ISO times that bound the rows; labels that became known after `until` are not used.
    trials : int, optional
        Trials of the search; the policy's by default.
    start_from : dict, optional
        Hyperparameters to try first.
    deploy : bool
        Bring a version that passed live.
    reason : str
        Why, for the record.

    Returns
    -------
    dict
        `version`, `passed`, `reason`, `dataset`, and `live` where it was deployed, or in `waits_for` how a person
        approves it where the policy asks for that; with `rollout.enabled` of the policy, `rollout` where it began.
    """
    await crash_dead_runs()
    return _train(model, source, since, until, trials, start_from, deploy, reason)


def _train(
    model: str,
    source: str | None,
    since: str | None,
    until: str | None,
    trials: int | None,
    start_from: dict[str, Any] | None,
    deploy: bool,
    reason: str,
) -> dict[str, Any]:
    house = open_house(model)
    policy, data = house.policy, house.policy.data
    rows = ingest_rows(model, source or data.source, data, since, until)
    split = SplitRequest(
        storage_url=house.settings.storage,
        dataset_id=rows["dataset"],
        target=data.target,
        time_column=data.time_column,
        validation_share=data.validation_share,
        test_share=data.test_share,
        random_state=policy.training.random_state,
    )
    learning = rows["learning"] if policy.training.task == "auto" else policy.training.task
    compare_parts(model, split)
    found = search_parameters(
        model,
        split,
        policy.training.model_type,
        policy.training.metric,
        trials or policy.training.trials,
        policy.training.hyperparameters,
        start_from,
        policy.training.random_state,
        learning,
    )
    recipe = Recipe(split, policy.training.model_type, learning, tuple(sorted(found["hyperparameters"].items())))
    fit_winner(model, recipe)
    judged = evaluate_candidate(model, recipe, policy.gate, _incumbent(house, recipe))
    compile_pipeline(model, recipe, policy.gate.parity_tolerance)
    version = register_version(model, recipe, flow_run.id, reason, found["trials"])
    result = {
        "version": version,
        "passed": judged["verdict"]["passed"],
        "reason": judged["reason"],
        "dataset": rows["dataset"],
    }
    if not (deploy and result["passed"]):
        return result
    if waits := ask_for_approval(model, version):
        result["waits_for"] = waits
    elif policy.rollout.enabled and read_state(house.ledger)[1]["models"].get(model, {}).get("champion"):
        result["rollout"] = begin_rollout(model, version, reason, utc(until))
        # Starts the flow `rollout/{model}`, which looks on from here.
        resource = {"prefect.resource.id": f"forge.model.{model}", "prefect.resource.name": model}
        emit_event("forge.rollout.wanted", resource=resource, payload={"version": version, "reason": reason})
    else:
        result["live"] = deploy_version(model, version, reason, utc(until))
    return result


def _incumbent(house: House, recipe: Recipe) -> str | None:
    """Return the version to beat: the champion, or the one before it where the champion is this very candidate.

    A run that was killed after the promotion would otherwise be judged against itself when it is repeated,
    refused, and never brought live.
    """
    entry = read_state(house.ledger)[1]["models"].get(house.model, {})
    champion: str | None = entry.get("champion")
    if champion is None:
        return None
    with mirrored_version(house.storage, house.model, champion) as folder:
        return entry.get("previous") if folder.lineage["candidate"] == recipe.candidate_id else champion
