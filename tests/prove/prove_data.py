"""Data under fire: every planted fault found and no good row lost; a killed writer leaves nothing half."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from forge_core.data.ingest import ingest
from forge_core.data.versions import list_datasets, load_dataset, load_quarantine
from forge_core.errors import DataNotFound
from forge_core.policy import DataPolicy
from forge_core.storage import Storage
from tests.planted import POLICY, found_kinds, planted_contract, write_planted

GOOD, EACH, KILLS = 1_000_000, 1_000, 20


def run(only: Sequence[str] = ()) -> bool:
    """Run `planted` and `killed`, or those named, and tell whether every bound was kept."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="forge-prove-") as folder:
        root = Path(folder)
        results = [
            loop(root, console)
            for name, loop in (("planted", _planted), ("killed", _killed))
            if not only or name in only
        ]
    return all(results)


def _planted(root: Path, console: Console) -> bool:
    """Ingest a file with twenty kinds of faults."""
    planted = write_planted(root / "planted.csv", GOOD, EACH)
    storage, policy = _place(root / "planted")
    started = time.monotonic()
    found = ingest(storage, str(root / "planted.csv"), policy)
    seconds = time.monotonic() - started
    counts = found_kinds(load_quarantine(storage, found.version.id), planted)
    table = Table(title=f"planted faults: {found.n_read:,} rows in {seconds:.0f} s", title_justify="left")
    for column in ("kind", "planted", "found"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, count in counts.items():
        table.add_row(kind, f"{len(planted[kind]):,}", f"{count:,}")
    kept = set(load_dataset(storage, found.version.id, ["id"])["id"])
    bad = set().union(*(rows for kind, rows in planted.items() if kind != "repeated key"))
    everything = set(pd.read_csv(root / "planted.csv", usecols=["id"], dtype="str", on_bad_lines="skip")["id"])
    lost, let_in = len(everything - bad - kept), len(kept & bad)
    console.print(table)
    console.print(f"good rows lost: {lost}; bad rows let in: {let_in}; kept: {found.version.n_rows:,}", highlight=False)
    return lost == 0 and let_in == 0 and all(count == len(planted[kind]) for kind, count in counts.items())


def _killed(root: Path, console: Console) -> bool:
    """Kill a writer twenty times, at moments over its whole run, and let it run again."""
    write_planted(root / "killed.csv", 300_000, 50)
    storage, _ = _place(root / "undisturbed")
    process = _worker(root, "undisturbed")
    started = _began_to_write(root / "undisturbed")
    process.wait()
    whole = time.monotonic() - started
    wanted = list_datasets(storage)[0]
    chance = random.Random(0)
    table = Table(title=f"kill -9 of a writer (writes for {whole:.1f} s undisturbed)", title_justify="left")
    for column in ("kill", "after s", "found after the kill", "drafts", "same id after the re-run"):
        table.add_column(column)
    good = True
    for kill in range(KILLS):
        storage, _ = _place(root / f"kill-{kill}")
        process = _worker(root, f"kill-{kill}")
        moment = whole * (kill + chance.random()) / KILLS
        _began_to_write(root / f"kill-{kill}")
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        versions = list_datasets(storage)
        whole_ones = all(len(load_dataset(storage, v.id)) == v.n_rows == wanted.n_rows for v in versions)
        nothing_half = whole_ones and _refuses_half(storage, wanted.id, versions == [])
        drafts = len(list((root / f"kill-{kill}").glob(".drafts/*")))
        _worker(root, f"kill-{kill}").wait()
        again = list_datasets(storage)
        same = [v.id for v in again] == [wanted.id] and len(load_dataset(storage, wanted.id)) == wanted.n_rows
        good = good and nothing_half and same
        state = "the whole version" if versions else "nothing"
        table.add_row(str(kill + 1), f"{moment:.2f}", state if nothing_half else "[red]half a version", str(drafts),
                      "yes" if same else "[red]no")  # fmt: skip
    console.print(table)
    return good


def _began_to_write(folder: Path) -> float:
    """Wait for the writer's draft and return when it appeared."""
    deadline = time.monotonic() + 60
    while not list(folder.glob(".drafts/*/rows.parquet")) and time.monotonic() < deadline:
        time.sleep(0.002)
    return time.monotonic()


def _refuses_half(storage: Storage, id: str, absent: bool) -> bool:
    """Tell whether a version without a manifest cannot be loaded."""
    try:
        load_dataset(storage, id)
    except DataNotFound:
        return absent
    return not absent


def _place(folder: Path) -> tuple[Storage, DataPolicy]:
    folder.mkdir()
    contract = folder.parent / "contract.yaml"
    contract.write_text(planted_contract().to_yaml())
    return Storage(str(folder)), POLICY.model_copy(update={"contract": str(contract)})


def _worker(root: Path, name: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from forge_core.data.ingest import ingest; from forge_core.storage import Storage;"
        "from tests.planted import POLICY; root, name = sys.argv[1:];"
        "policy = POLICY.model_copy(update={'contract': root + '/contract.yaml'});"
        "ingest(Storage(root + '/' + name), root + '/killed.csv', policy)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(root), name])
