"""Scoring a data set: plan it, let Ray Data's processes score the parts that are missing, write the manifest."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forge_core.errors import ConfigurationError, ForgeError, ModelError
from forge_core.models.version import VersionFolder
from forge_core.scoring.output import Scoring, claim, count_faults, finish, read_done, seconds_at_work
from forge_core.scoring.part_scorer import OWN_COLUMNS, PartScorer, PartSummary
from forge_core.scoring.plan import PART_ROWS, Plan, plan_parts
from forge_core.storage import Storage

Progress = Callable[[int, int], None]
# So many tasks are given to Ray Data; each has one part or a few.
_TASKS = 2000


def score_dataset(
    storage: Storage,
    source: str | Path,
    folder: VersionFolder,
    *,
    model: str,
    version: str,
    output: str | None = None,
    keep: Sequence[str] = (),
    workers: int | None = None,
    part_rows: int = PART_ROWS,
    address: str | None = None,
    progress: Progress = lambda done, total: None,
    now: datetime | None = None,
) -> Scoring:
    """Score every row of a data set and return what was done; the same call again goes on where it was cut.

    Parameters
    ----------
    storage : Storage
        Where dataset versions are, and the output by default.
    source : str or Path
        See `forge_core.scoring.plan.plan_parts`.
    folder : VersionFolder
        The version `version` of `model`.
    output : str, optional
        URL of a folder for the output; by default `scores/{id}` at the storage.
    keep : sequence of str
        Columns that the output carries along; the contract's key always is, where the data set has it.
    workers : int, optional
        Scoring processes; by default one for each core of the cluster.
    address : str, optional
        The Ray cluster; by default one is started for this process where there is none.
    progress : callable
        Called with the rows that are done, and all rows, after each part.

    Raises
    ------
    TooManyBadRows
        When not a single row could be scored; the output tells each row's faults.
    Conflict
        When the output holds the scores of another data set or version.
    """
    contract = folder.contract
    plan = plan_parts(storage, source, features=contract.feature_columns, part_rows=part_rows)
    kept = _kept(plan, keep, contract.key)
    job = {
        "model": model,
        "version": version,
        "version_sha256": hashlib.sha256((folder.path / "parts.json").read_bytes()).hexdigest(),
        "source": plan.source,
        "fingerprint": plan.fingerprint,
        "rows": plan.n_rows,
        "parts": len(plan.parts),
        "part_rows": part_rows,
        "keep": list(kept),
    }
    id = f"score-{hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]}"
    target = Storage(output or f"{storage.url}/scores/{id}")
    claim(target, {"id": id, **job})
    done = read_done(target, plan)
    n_resumed = sum(summary.n_rows for summary in done.values())
    progress(n_resumed, plan.n_rows)
    missing = [part.number for part in plan.parts if part.number not in done]
    fresh: list[PartSummary] = []
    if missing:
        _join(address)
        files = {file.name: file.read_bytes() for file in folder.path.iterdir() if file.is_file()}
        for summary in _score(files, plan, target, kept, missing, workers):
            fresh.append(summary)
            progress(n_resumed + sum(one.n_rows for one in fresh), plan.n_rows)
    summaries = [*done.values(), *fresh]
    scoring = Scoring(
        id, target.url, model, version, plan.source, folder.compiled["serves"],
        n_rows=sum(s.n_rows for s in summaries), n_bad=sum(s.n_bad for s in summaries), n_parts=len(summaries),
        faults=count_faults(summaries), n_resumed=n_resumed,
        seconds=seconds_at_work(fresh),
        peak_bytes=max((s.peak_bytes for s in fresh), default=0),
    )  # fmt: skip
    return finish(target, scoring, plan, now or datetime.now(UTC))


def _kept(plan: Plan, keep: Sequence[str], key: str | None) -> tuple[str, ...]:
    if unknown := [name for name in keep if name not in plan.columns]:
        raise ConfigurationError(
            f"expected columns of {plan.source} to keep, found {', '.join(unknown)}; it has {', '.join(plan.columns)}"
        )
    kept = tuple(dict.fromkeys([*([key] if key in plan.columns else []), *keep]))
    if taken := [name for name in kept if name in OWN_COLUMNS or name.startswith("probability_")]:
        raise ConfigurationError(
            f"expected columns to keep with names other than the output's own, found {', '.join(taken)}; rename them"
        )
    return kept


def _join(address: str | None) -> None:
    from forge_core.training.distributed_cluster import join_ray

    join_ray(address)


def _score(
    files: dict[str, bytes],
    plan: Plan,
    target: Storage,
    kept: tuple[str, ...],
    missing: list[int],
    workers: int | None,
) -> Iterator[PartSummary]:
    """Give the numbers of each missing part as soon as it is there."""
    import ray
    import ray.data
    from ray.data.context import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # Numbers of parts go in and their summaries come out, so that nothing has to be kept back for want of memory.
    job = ray.put((files, plan, target.url, kept))
    parts = ray.data.from_items([{"part": n} for n in missing], override_num_blocks=min(len(missing), _TASKS))
    scored = parts.map_batches(
        _Process,
        fn_constructor_args=(job,),
        batch_size=1,
        num_cpus=1,
        # One part at a time: more would wait for a busy process while others have nothing to do.
        compute=ray.data.ActorPoolStrategy(size=min(workers or cores, len(missing)), max_tasks_in_flight_per_actor=1),
    )
    try:
        for batch in scored.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(PartSummary.from_json, batch["summary"])
    except (ForgeError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, ForgeError):
            raise cause from error
        raise ModelError(
            f"expected the scoring processes to score {plan.source}, which failed: {str(cause)[-600:]}; "
            "start the same scoring again to go on with the parts that are missing"
        ) from error


class _Process:
    """A scorer in a process of Ray Data's; what it works with lies in Ray's object store once."""

    def __init__(self, job: Any) -> None:
        import ray

        self._scorer = PartScorer(*ray.get(job))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Score the parts with the numbers in `part`; return their summaries as JSON."""
        return {"summary": [self._scorer.score(int(number)).to_json() for number in batch["part"]]}


def _cause(error: BaseException) -> BaseException:
    """Return our own error behind what Ray wraps it in, else the error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ForgeError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
