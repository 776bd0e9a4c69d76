"""The front: choose the version, check against its contract, ask its lane, reply; log off the path."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ray import serve

from forge_core import __version__
from forge_core.data.many_row_checks import Rows
from forge_core.deployment.routing_table import Route, row_versions
from forge_core.errors import ModelNotFound, SchemaViolation, ServiceUnavailable
from forge_core.monitoring.metric_names import PREDICTION_SECONDS, PREDICTIONS, REFUSED, SPLIT_FAULTS
from forge_core.storage import Storage
from serve_app.columns import Row, Same, Table
from serve_app.counting import Counting
from serve_app.experiment_desk import ExperimentDesk
from serve_app.journal import Journal, Watch
from serve_app.live_version import LiveVersion, answer, answers, load_live_version, watched
from serve_app.replies import Replies, RepliesOfOne, RepliesOfSplit
from serve_app.request_ids import new_ids
from serve_app.shadowing import Shadows
from serve_app.splitting import CHAMPION, LiveSplit

logger = logging.getLogger(__name__)

_USUAL = Watch(24.0)
_USUAL_SPLIT = _USUAL._replace(form="split")


class Switchboard:
    """The routing table and what hangs on it; the HTTP routes in `api.py` call only this.

    Parameters
    ----------
    storage_url : str
        Where versions are mirrored.
    default_model : str
        The model of `/predict` and `/model/info`.
    """

    def __init__(self, storage_url: str, default_model: str) -> None:
        self.storage = Storage(storage_url)
        self.default_model = default_model
        self.live: dict[str, LiveVersion] = {}
        self.held: dict[str, dict[str, LiveVersion]] = {}
        self.splits: dict[str, LiveSplit] = {}
        self.trials: dict[str, str] = {}
        self.watch: Mapping[str, Watch | None] = {}
        self.split_watch: Mapping[str, Watch | None] = {}
        self._routing = asyncio.Lock()
        self.counting = Counting()
        self.journal = Journal(self.counting)
        self.experiments: ExperimentDesk | None = None
        self.shadows = Shadows(lambda *rows: self.journal.add(*rows), self.counting)

    async def route(
        self, table: Mapping[str, Route], watch: Mapping[str, Mapping[str, Any] | None] | None = None
    ) -> None:
        """Load what is new beside what is held, then swap at once.

        Parameters
        ----------
        table : mapping
            A model's row names its champion, which gets the traffic unless a split shares it out, and versions that
            answer only who asks for them: the candidate, and one that stays warm.
        watch : mapping, optional
            Each model's fields of `Watch`; None for one that is neither profiled nor logged.
        """
        async with self._routing:
            held = {model: await self._hold(model, row) for model, row in table.items()}
            champions = {m: held[m][row["champion"]] for m, row in table.items() if "champion" in row}
            splits = {
                m: LiveSplit.of(row["split"], held[m], champions[m])
                for m, row in table.items()
                if "split" in row and m in champions
            }
            told = {m: Watch(w["window_hours"], tuple(w["redacted"])) if w else None for m, w in (watch or {}).items()}
            self.held, self.live, self.splits, self.watch = held, champions, splits, told
            self.split_watch = {m: w and w._replace(form="split") for m, w in told.items()}
            self.shadows.route(
                {
                    m: (row["shadow"], held[m][row["shadow"]["version"]])
                    for m, row in table.items()
                    if "shadow" in row and row["shadow"]["version"] in held[m] and m in champions
                }
            )
            self.trials = {m: row["candidate"] for m, row in table.items() if row.get("candidate") in held[m]}
        logger.info("routing %s holding %s", self._versions(), {m: sorted(v) for m, v in held.items()})

    async def _hold(self, model: str, row: Route) -> dict[str, LiveVersion]:
        current = self.held.get(model, {})
        versions: dict[str, LiveVersion] = {}
        for version in row_versions(row):
            try:
                if version not in current:
                    current = {**current, version: await asyncio.to_thread(self._load, model, version)}
                versions[version] = current[version]
            except Exception:
                if version == row.get("champion"):
                    raise
                # The deployment that tries it will hear that it is not held; what is live must not suffer.
                logger.exception("version not loaded model=%s version=%s", model, version)
        return versions

    def _load(self, model: str, version: str) -> LiveVersion:
        return load_live_version(self.storage, model, version)

    def version_of(self, model: str | None, version: str | None = None) -> LiveVersion:
        """Return the live version of a model (the default one for None), or the named one of those held.

        Raises
        ------
        ServiceUnavailable
            When the default model has no live version yet.
        ModelNotFound
            For another model without one, and for a version that is not held; lists what is.
        """
        name = model or self.default_model
        if version is not None:
            return self._held_version(name, version)
        if name in self.live:
            return self.live[name]
        if name == self.default_model:
            raise ServiceUnavailable(
                f"no version of {name!r} is live yet; train and deploy one: prefect deployment run 'train/{name}'"
            )
        raise ModelNotFound(f"no live model {name!r}; live: {', '.join(sorted(self.live)) or 'none'}")

    def _held_version(self, model: str, version: str) -> LiveVersion:
        held = self.held.get(model, {})
        if version in held:
            return held[version]
        champion = self._versions().get(model)
        told = ", ".join(f"{v} ({'champion' if v == champion else 'candidate'})" for v in sorted(held))
        raise ModelNotFound(
            f"version {version[:64]!r} of {model!r} is not held here; held: {told or 'none'}",
            context={"held": sorted(held)},
        )

    def _versions(self) -> dict[str, str]:
        return {model: live.version for model, live in self.live.items()}

    async def predict(
        self,
        model: str | None,
        records: Rows,
        request_ids: Sequence[str] | None = None,
        event_time: datetime | None = None,
        version: str | None = None,
        owner: str = "",
        users: Sequence[str] | None = None,
    ) -> Replies:
        """Return one reply a record, and journal the rows.

        All are of one version, unless a split shares the model's traffic out.

        Parameters
        ----------
        records : sequence of mappings, or mapping of lists
            Rows, or columns of one length.
        version : str, optional
            Ask this version, not the live one. Such rows are a trial: neither logged nor watched.
        owner : str
            Whose key was shown; kept in the prediction log.
        users : sequence of str, optional
            Whose each row is: a user gets the same variant each time. By default each request is a unit of its own.

        Raises
        ------
        SchemaViolation
            Names every faulty field, and in a batch its row.
        """
        started = time.perf_counter()
        live = self.version_of(model, version)
        split = self.splits.get(live.model) if version is None else None
        if split is not None:
            return await self._predict_split(split, records, request_ids, event_time, owner, users)
        rows = self._checked(live, records)
        ids = request_ids if request_ids is not None else new_ids(len(rows))
        scores = await live.lane.ask(rows)
        elapsed = time.perf_counter() - started
        predictions, probabilities = answers(live, scores)
        variant = CHAMPION if version is None else "asked"
        labels = (live.model, live.version, variant)
        self.counting.count(PREDICTIONS, labels, len(rows))
        self.counting.observe(PREDICTION_SECONDS, labels, elapsed)
        if version is None and (shadow := self.shadows.of.get(live.model)) is not None:
            received = datetime.now(UTC)
            counted = [(prediction, watched(score)) for prediction, score in zip(predictions, scores, strict=True)]
            self.shadows.offer(shadow, live, records, ids, counted, elapsed, (event_time or received, received))
        watch = self.watch.get(live.model, _USUAL)
        if version is None and watch is not None:
            received = datetime.now(UTC)
            facts = (event_time or received, received, live.version, CHAMPION, owner)
            self.journal.add(live.model, live.version, watch, _entries(ids, facts, predictions, scores, rows))
        return RepliesOfOne(live, variant, round(elapsed * 1000, 3), ids, predictions, probabilities)

    async def _predict_split(
        self,
        split: LiveSplit,
        records: Rows,
        request_ids: Sequence[str] | None,
        event_time: datetime | None,
        owner: str,
        users: Sequence[str] | None,
    ) -> RepliesOfSplit:
        """Return one reply a record where a split shares the traffic out, and journal each row with its assignment."""
        ids = request_ids if request_ids is not None else new_ids(_length(records))
        model = split.champion.model
        try:
            answered = await split.ask(records, users if users is not None and split.keyed else ids)
        except SchemaViolation as error:
            self._count_refused(split.champion, error)
            raise
        received = datetime.now(UTC)
        moment = event_time or received
        watch = self.split_watch.get(model, _USUAL_SPLIT)
        replies, logged = [], dict[str, list[tuple[Any, ...]]]()
        calls: dict[tuple[str, str, str], tuple[int, float]] = {}
        for request_id, (live, variant, row, score, seconds, chosen, fault) in zip(ids, answered, strict=True):
            version = live.version
            prediction, probability = answer(live, score)
            milliseconds = round(seconds * 1000, 3)
            assigned, propensity, unit = chosen
            entry = (
                request_id, moment, received, version, variant, owner, prediction, watched(score),
                assigned, split.id, propensity, unit, milliseconds, fault, *row,
            )  # fmt: skip
            logged.setdefault(version, []).append(entry)
            replies.append(
                {
                    "prediction": prediction,
                    "prediction_probability": probability,
                    "model_version": version,
                    "processing_time_ms": milliseconds,
                    "model": model,
                    "request_id": request_id,
                    "variant": variant,
                    "experiment": split.id,
                }
            )
            labels = (model, version, variant)
            calls[labels] = calls[labels][0] + 1 if labels in calls else 1, seconds
            if fault:
                self.counting.count(SPLIT_FAULTS, (model, assigned, fault))
        for labels, (n_rows, seconds) in calls.items():  # timed once a call and variant, as without a split
            self.counting.count(PREDICTIONS, labels, n_rows)
            self.counting.observe(PREDICTION_SECONDS, labels, seconds)
        if watch is not None:
            for version, entries in logged.items():
                self.journal.add(model, version, watch, entries)
        return RepliesOfSplit(replies)

    def _checked(self, live: LiveVersion, records: Rows) -> list[Row] | Table:
        try:
            if len(records) == 1 and not isinstance(records, Mapping):
                return live.contract.check_rows(records)
            return Table.of(live.contract.check_columns(records))
        except SchemaViolation as error:
            self._count_refused(live, error)
            raise

    def _count_refused(self, live: LiveVersion, error: SchemaViolation) -> None:
        n_rows = len({fault.get("row") for fault in error.context["faults"]})
        self.counting.count(REFUSED, (live.model, live.version), n_rows)

    async def record(self, model: str | None, labels: Sequence[tuple[str, float]], event_time: datetime | None) -> int:
        """Return how many labels were committed to the ledger."""
        name = self.version_of(model).model
        moment = event_time or datetime.now(UTC)
        rows = [(request_id, label, moment) for request_id, label in labels]
        return await serve.get_app_handle("recorder").record.remote(name, rows)

    async def metrics(self) -> bytes:
        """Return the metrics of all routers in Prometheus' text format."""
        await self.counting.hand_over()
        return await serve.get_app_handle("recorder").metrics.remote()

    async def monitoring(self, flush: bool) -> dict[str, Any]:
        """Return how many served rows were profiled and logged, waiting or dropped."""
        handle = serve.get_app_handle("profiler")
        if flush:
            await self.journal.settle(handle.flush.remote)
        counts = await handle.counts.remote()
        return {**counts, "waiting_in_router": self.journal.waiting, "dropped_by_router": self.journal.dropped}

    def health(self) -> dict[str, Any]:
        """Return that we are alive, what is live, and what is on trial."""
        return {"status": "ok", "version": __version__, "models": self._versions(), "candidates": self.trials}


def _entries(
    ids: Sequence[str],
    facts: Sequence[Any],
    predictions: list[Any],
    scores: Sequence[Any],
    rows: list[Row] | Table,
) -> list[Row] | Table:
    """Return the log's entries of rows that share the facts, held as the rows are."""
    outputs = list(map(watched, scores)) if isinstance(scores[0], list) else scores
    if isinstance(rows, Table):
        return Table.of([ids, *(Same(fact, len(ids)) for fact in facts), predictions, outputs, *rows.columns])
    return [
        (request_id, *facts, prediction, output, *row)
        for request_id, prediction, output, row in zip(ids, predictions, outputs, rows, strict=True)
    ]


def _length(records: Rows) -> int:
    return len(next(iter(records.values()), [])) if isinstance(records, Mapping) else len(records)
