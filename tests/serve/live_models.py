"""Live versions of small models that were really trained, answered in process, and a board that holds them."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa

from forge_core.data.contracts import Contract
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.deployment.mirror import mirror_version
from forge_core.models.version import VersionFolder
from forge_core.policy import GatePolicy
from forge_core.storage import Storage
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest
from serve_app.columns import packed
from serve_app.experiment_desk import ExperimentDesk
from serve_app.lanes import Lane
from serve_app.live_version import LiveVersion, live_version
from serve_app.recorder import Recorder
from serve_app.router import Switchboard
from serve_app.variant import Variant

MIXED = Contract(
    pa.DataFrameSchema(
        {
            "key": pa.Column("int64", unique=True),
            "distance": pa.Column("float64", [pa.Check.gt(0), pa.Check.le(5000)]),
            "stops": pa.Column("int64", pa.Check.in_range(0, 5)),
            "warm": pa.Column("float64", nullable=True),
            "town": pa.Column("str", nullable=True),
            "colour": pa.Column("str", pa.Check.isin(["red", "blue"])),
            "free": pa.Column("str", pa.Check.notin(["none"])),
            "when": pa.Column("datetime64[us, UTC]", nullable=True),
            "flag": pa.Column("boolean", nullable=True),
            "kind": pa.Column("str", pa.Check.isin(["a", "b", "c"])),
        }
    ),
    target="kind",
    key="key",
)
NUMBERS = Contract(
    pa.DataFrameSchema(
        {
            "key": pa.Column("int64", unique=True),
            "width": pa.Column("float64", nullable=True),
            "count": pa.Column("int64"),
            "price": pa.Column("float64"),
        }
    ),
    target="price",
    key="key",
)


def mixed_rows(n_rows: int = 600, random_state: int = 0) -> pd.DataFrame:
    """Return rows of every kind of feature with three classes, and gaps in those that may have them."""
    random = np.random.default_rng(random_state)
    gap = random.random((4, n_rows)) < 0.1
    distance = random.uniform(1, 5000, n_rows)
    colour = random.choice(["red", "blue"], n_rows)
    times = pd.Series(pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(n_rows), unit="h"))
    return pd.DataFrame(
        {
            "key": np.arange(n_rows),
            "distance": distance,
            "stops": random.integers(0, 6, n_rows),
            "warm": pd.Series(random.normal(10, 5, n_rows)).mask(gap[0]),
            "town": pd.Series(random.choice(["Oslo", "Bodø", "Bergen"], n_rows), dtype="str").mask(gap[1]),
            "colour": pd.Series(colour, dtype="str"),
            "free": pd.Series(random.choice(["x", "y"], n_rows), dtype="str"),
            "when": times.astype("datetime64[us, UTC]").mask(gap[2]),
            "flag": pd.Series(random.random(n_rows) < 0.5, dtype="boolean").mask(gap[3]),
            "kind": pd.Series(np.where(colour == "red", "a", np.where(distance > 2500, "b", "c")), dtype="str"),
        }
    )


def number_rows(n_rows: int = 400, random_state: int = 0) -> pd.DataFrame:
    """Return rows whose two features and target are numbers."""
    random = np.random.default_rng(random_state)
    width, count = random.normal(0, 1, n_rows), random.integers(0, 9, n_rows)
    rows = pd.DataFrame({"key": np.arange(n_rows), "width": width, "count": count, "price": 3 * width + count})
    return rows.assign(width=rows["width"].mask(random.random(n_rows) < 0.05))


def train(home: Path, rows: pd.DataFrame, contract: Contract, model_type: str, task: Any) -> VersionFolder:
    """Return a version's folder with every part, as a training leaves it."""
    storage = Storage(str(home / "storage"))
    dataset = save_dataset(storage, rows, source="sample:", contract=contract)
    split = SplitRequest(str(home), dataset.id, contract.target or "", contract.time, 0.15, 0.15, 0)
    settings = {"max_iter": 10, "random_state": 0} if model_type == "gradient_boosting" else {}
    recipe = Recipe(split, model_type, task, tuple(settings.items()))
    candidate.fit(storage, recipe)
    policy = GatePolicy(metric="rmse" if task == "regression" else "log_loss")
    candidate.evaluate(storage, recipe, policy=policy, champion=None, champion_name="the training mean")
    candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    return candidate.assemble(storage, recipe, home / "version", lineage={"reason": "test"})


def answered_here(storage: Storage, folder: VersionFolder, model: str, version: str) -> LiveVersion:
    """Return a mirrored version whose lane asks a variant in this process."""
    mirror_version(storage, model, version, folder)
    variant = Variant(storage.url, model, version)

    async def send(rows: list[Any]) -> Sequence[Any]:
        return await variant.score(packed(rows))

    return live_version(folder, model, version, Lane(send))


class BoardInProcess(Switchboard):
    """A switchboard over live versions that are there, with a recorder in this process; nothing is profiled."""

    def __init__(self, versions: Sequence[LiveVersion], default_model: str, ledger_url: str) -> None:
        super().__init__("memory://none", default_model)
        self.known = {(live.model, live.version): live for live in versions}
        self.recorder = Recorder(ledger_url)
        self.experiments = ExperimentDesk(lambda: self.recorder.ledger, self.storage, lambda: self.recorder)

    async def route_all(self) -> None:
        """Make the greatest version of each model its champion, and another one the candidate."""
        table: dict[str, dict[str, str]] = {}
        for model, version in sorted(self.known):
            row = table.setdefault(model, {})
            table[model] = {"champion": version, **({"candidate": row["champion"]} if row else {})}
        await self.route(table, dict.fromkeys(table))

    def _load(self, model: str, version: str) -> LiveVersion:
        return self.known[model, version]

    async def record(self, model: str | None, labels: Sequence[tuple[str, float]], event_time: datetime | None) -> int:
        """Return how many labels were committed."""
        moment = event_time or datetime.now().astimezone()
        return await self.recorder.record(self.version_of(model).model, [(i, label, moment) for i, label in labels])

    async def metrics(self) -> bytes:
        """Return the metrics of this board, by way of its recorder."""
        await self.recorder.gather(self.counting.take())
        return await self.recorder.metrics()

    async def monitoring(self, flush: bool) -> dict[str, Any]:
        """Return the counts of a board that nobody watches."""
        return {"waiting_in_router": self.journal.waiting, "dropped_by_router": self.journal.dropped}


def trained_versions(stack: ExitStack) -> Mapping[str, LiveVersion]:
    """Return `sample` (two classes), `mixed` (three, every kind of feature) and `numbers` (a regression)."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forge-live-")))
    trained = {
        "sample": train(
            home / "sample", generate_sample_data(600), sample_contract(), "gradient_boosting", "classification"
        ),
        "mixed": train(home / "mixed", mixed_rows(), MIXED, "logistic_regression", "classification"),
        "numbers": train(home / "numbers", number_rows(), NUMBERS, "linear", "regression"),
    }
    storage = Storage(str(home / "mirror"))
    return {name: answered_here(storage, folder, name, "3") for name, folder in trained.items()}
