"""`make demo`: the whole story on real flights, told live on the terminal.

Trained on January to March; April drifts and its candidate is refused; after June's storms a candidate wins.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from forge_core.errors import ConfigurationError, ForgeError
from forge_core.settings import Settings
from infra.local.prefect_api import PrefectApi, now
from infra.local.processes import MemoryWatch
from infra.local.replay import replay
from infra.local.stack import apply_environment, up

MODEL = "flights"
MARKS = {"COMPLETED": "[green]✔", "RUNNING": "[yellow]…", "FAILED": "[red]✘", "CRASHED": "[red]✘"}


@dataclass
class Story:
    """The demo as it goes: where it prints, how long each stage took, what happened."""

    settings: Settings
    console: Console = field(default_factory=Console)
    stages: list[tuple[str, float]] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where pictures are saved."""
        path = self.settings.home.resolve() / "demo"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def stage(self, title: str, why: str) -> Iterator[None]:
        """Print a stage's heading and keep its time."""
        self.console.print()
        self.console.rule(f"[bold]{len(self.stages) + 1}. {title}", align="left")
        self.console.print(f"[dim]{why}")
        started = time.monotonic()
        yield
        self.stages.append((title, time.monotonic() - started))
        self.console.print(f"[dim]{self.stages[-1][1]:.0f} s")

    def tell(self, sentence: str) -> None:
        """Say what happened, now and again at the end."""
        self.happened.append(sentence)
        self.console.print(f"[bold cyan]→[/] {sentence}")


def run(settings: Settings) -> None:
    """Play the story from its beginning and leave the stack running.

    Raises
    ------
    ConfigurationError
        When this home has a history of the model: the story would start in its middle.
    """
    _require_beginning(settings)
    story = Story(settings)
    started = time.monotonic()
    with MemoryWatch(settings.home) as memory:
        with story.stage("The stack", "Prefect, MLflow, Ray with Serve and a worker, on this machine only."):
            up(settings)
            apply_environment(settings)
        prefect = PrefectApi(settings.prefect_url)
        with story.stage("Train", "New York flights, January to March: will a flight be 15 minutes late or more?"):
            _train(story, prefect, "2013-04-01")
        with story.stage("One prediction", "The call that an application makes."):
            _predict_one(story)
        with story.stage("April", "Every flight of April over HTTP, on event time; labels follow hours later."):
            _replay(story, "2013-04-01", "2013-05-01")
        with story.stage("What the monitor says", "Drift against the training rows; log loss on the labels so far."):
            refused = _watch(story, prefect, "2013-05-01")
        with story.stage("May and June", "The same version goes on serving; June brings storms."):
            _replay(story, "2013-05-01", "2013-07-01")
        with story.stage("What the monitor says now", "Quality falls again; there is more to learn from."):
            _watch(story, prefect, "2013-07-01")
        with story.stage("Looking back", "Was the gate right in April? And the pictures."):
            _look_back(story, refused)
    _close(story, time.monotonic() - started, memory.peak_bytes)


def _require_beginning(settings: Settings) -> None:
    from forge_core.ledger import Ledger

    if settings.ledger.startswith("sqlite") and not (settings.home / "ledger.db").exists():
        return
    if Ledger(settings.ledger).events(MODEL):
        raise ConfigurationError(
            f"{settings.home.resolve()} has a history of {MODEL} already, and the story starts without one; "
            "remove it with `make clean`, or tell the story elsewhere with FORGE_HOME"
        )


def _train(story: Story, prefect: PrefectApi, until: str) -> None:
    story.console.print(f"[dim]$ prefect deployment run 'train/{MODEL}' -p until={until}")
    run = prefect.run(f"train/{MODEL}", {"model": MODEL, "until": until, "reason": "the first model"})
    _follow(story, prefect, run)
    info = _get(story, "/model/info")
    auc = info["metrics"]["roc_auc"]
    story.tell(
        f"version {info['version']} is live ({info['serves']['serves']}, {info['serves']['reason']}); "
        f"AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] on the newest 15 % of the rows"
    )


def _predict_one(story: Story) -> None:
    import json

    example = _get(story, "/model/info")["example"]
    story.console.print(
        f"[dim]$ curl -X POST {story.settings.api_url}/predict -H 'Content-Type: application/json' "
        f"-d '{json.dumps(example)}'"
    )
    with httpx.Client(base_url=story.settings.api_url, trust_env=False) as client:
        answer = client.post("/predict", json=example)
    story.console.print_json(data=answer.json())


def _replay(story: Story, since: str, until: str) -> None:
    from forge_core.data.flights import flights_contract, load_flights

    contract = flights_contract()
    rows = load_flights(since=_utc(since), until=_utc(until))
    bar = Progress(
        TextColumn("{task.fields[moment]:%d %B %Hh}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=story.console,
    )
    with bar:
        task = bar.add_task("", total=len(rows), moment=_utc(since))
        sent = replay(
            story.settings.api_url,
            rows,
            features=contract.feature_columns,
            key="flight_id",
            time_column="time_hour",
            label_time_column="known_at",
            target="late",
            progress=lambda moment, n: bar.update(task, completed=n, moment=moment),
        )
    story.tell(
        f"{sent.predictions:,} flights predicted and {sent.labels:,} labels recorded in {sent.requests:,} requests; "
        f"{rows['late'].mean():.0%} of these flights were late"
    )


def _watch(story: Story, prefect: PrefectApi, until: str) -> str | None:
    """Run the monitor, then follow the retraining that its event starts; return a version that was refused."""
    story.console.print(f"[dim]$ prefect deployment run 'monitor/{MODEL}' -p now={until}")
    began = now()
    _follow(story, prefect, prefect.run(f"monitor/{MODEL}", {"model": MODEL, "now": until}))
    report = _last_event(story, "checked")["details"]
    story.tell(report["sentence"])
    if not report["retrain"]:
        return None
    story.console.print("[dim]the event forge.retrain.wanted starts 'retrain/flights' by itself")
    run = prefect.newest_run(f"retrain/{MODEL}", began)
    if run is None:
        raise ForgeError("the monitor asked for a retraining, and none started within a minute; see the Prefect UI")
    _follow(story, prefect, run)
    verdict = _last_event(story, "retrained")["details"]
    if verdict["passed"]:
        story.tell(f"the gate promoted version {verdict['version']}: {verdict['reason']}")
        live = _get(story, "/model/info")["version"]
        story.tell(f"/model/info says that version {live} serves now")
        return None
    story.tell(f"the gate refused version {verdict['version']}: {verdict['reason']}")
    return str(verdict["version"])


def _look_back(story: Story, refused: str | None) -> None:
    from forge_core.data.flights import flights_contract, load_flights
    from forge_core.ledger import Ledger
    from forge_core.models.model_trainer import score
    from forge_core.monitoring.performance import join_feedback, quality_over_time
    from forge_core.monitoring.prediction_log import PredictionLog
    from forge_core.monitoring.reports import quality_figure
    from forge_core.statistics.quality import classification_metrics
    from forge_core.storage import Storage
    from forge_core.tracking.registry import Registry

    settings = story.settings
    registry = Registry(settings.mlflow_url)
    if refused:
        may = load_flights(since=_utc("2013-05-01"), until=_utc("2013-06-01"))
        columns = flights_contract().feature_columns
        loss = {}
        for name, version in (("the champion", "1"), ("the refused one", refused)):
            with registry.open(registry.resolve(MODEL, version)) as folder:
                loss[name] = classification_metrics(may["late"], score(folder.pipeline, may[columns]))["log_loss"]
        told = " and ".join(f"{name} {value:.4f}" for name, value in loss.items())
        story.tell(f"log loss in May, which nobody knew in April: {told} (lower is better)")
    log = PredictionLog(Storage(settings.storage), MODEL).read()
    joined = join_feedback(log, Ledger(settings.ledger).feedback(MODEL))
    weekly = quality_over_time(joined, "log_loss", freq="7D")
    with registry.open(registry.resolve(MODEL, "1")) as folder:
        reference = folder.evaluation.metrics["log_loss"].value
    (story.folder / "quality.png").write_bytes(quality_figure(weekly, reference, "log_loss"))


def _close(story: Story, seconds: float, peak_bytes: int) -> None:
    table = Table(title="Where the time went", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for title, spent in story.stages:
        table.add_row(title, f"{spent:.0f}")
    table.add_row("[bold]all", f"[bold]{seconds:.0f}")
    settings = story.settings
    places = "\n".join(
        [
            f"API          {settings.api_url}/model/info",
            f"Prefect UI   {settings.prefect_url}",
            f"MLflow UI    {settings.mlflow_url}",
            f"pictures     {story.folder}",
            "",
            "stop: make down   (keeps all data)      remove the data: make clean",
        ]
    )
    story.console.print()
    story.console.print(Panel("\n".join(f"• {s}" for s in story.happened), title="What happened", title_align="left"))
    story.console.print(table, f"peak memory (PSS, all processes together): {peak_bytes / 1e9:.2f} GB")
    story.console.print(Panel(places, title="Where to look", title_align="left"))


def _follow(story: Story, prefect: PrefectApi, run: dict[str, Any]) -> None:
    """Show a run's steps live until it ends."""
    with Live(console=story.console, refresh_per_second=4, transient=False) as live:
        prefect.wait(run, lambda flow, tasks: live.update(_steps(flow, tasks)))


def _steps(flow: dict[str, Any], tasks: list[dict[str, Any]]) -> Group:
    grid = Table.grid(padding=(0, 2))
    for task in tasks:
        spent = task["estimated_run_time"] or 0.0
        state = "found again" if task["state_name"] == "Cached" else task["state_name"].lower()
        grid.add_row(
            MARKS.get(task["state_type"], " "), task["name"].rsplit("-", 1)[0], f"{spent:.1f} s", f"[dim]{state}"
        )
    return Group(f"flow run [bold]{flow['name']}[/]: {flow['state_name'].lower()}", grid)


def _get(story: Story, path: str) -> dict[str, Any]:
    with httpx.Client(base_url=story.settings.api_url, trust_env=False, timeout=30.0) as client:
        return client.get(path).raise_for_status().json()


def _last_event(story: Story, kind: str) -> dict[str, Any]:
    from forge_core.ledger import Ledger

    return Ledger(story.settings.ledger).events(MODEL, kind)[-1]


def _utc(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)
