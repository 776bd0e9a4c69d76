"""Errors, settings, storage, policy, ledger: the two lowest floors."""

import pickle
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy.exc import StatementError

from forge_core import errors
from forge_core.errors import ConfigurationError, Conflict, DataNotFound, ForgeError, ServiceUnavailable
from forge_core.ledger import Event, Feedback, Ledger
from forge_core.policy import load_policies, load_policy
from forge_core.settings import Settings
from forge_core.storage import Storage

NOW = datetime(2013, 4, 1, tzinfo=UTC)


def every_error() -> list[type[ForgeError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, ForgeError)]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_survives_a_process_border_and_is_in_the_drawing(kind: type[ForgeError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what was found", context={"column": "late"})))  # noqa: S301
    assert type(copy) is kind and str(copy) == "what was found" and copy.context == {"column": "late"}
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.slow
def test_importing_forge_core_is_light_and_names_load_when_used() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import forge_core; spent = time.perf_counter() - t;"
        "heavy = [m for m in ('pandas', 'ray', 'mlflow', 'sklearn', 'pydantic') if m in sys.modules];"
        "assert not heavy, heavy; assert spent < 0.1, spent; assert forge_core.Storage.__name__ == 'Storage'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    import forge_core

    assert [getattr(forge_core, name) for name in forge_core.__all__]
    with pytest.raises(AttributeError, match="it offers"):
        forge_core.nothing  # noqa: B018


def test_settings_derive_urls_from_home_and_ports(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_port=8123)
    assert settings.api_url == "http://127.0.0.1:8123"
    assert settings.storage == f"{tmp_path}/storage" and settings.ledger == f"sqlite:///{tmp_path}/ledger.db"


def test_settings_read_mlflows_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    settings = Settings()
    assert settings.mlflow_url == "http://mlflow:5000"


def test_storage_writes_whole_files_and_never_leaves_its_root(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    store.write_frame("a/rows.parquet", pd.DataFrame({"x": [1, 2]}))
    (tmp_path / "a" / ".half.draft").write_bytes(b"half")
    assert store.list("a") == ["a/rows.parquet"]
    assert store.read_frame("a/rows.parquet")["x"].tolist() == [1, 2]
    with pytest.raises(ConfigurationError, match="stays below"):
        store.read_bytes("../secret")
    with pytest.raises(DataNotFound, match="nothing is stored"):
        store.read_json("a/none.json")


def test_policy_file_of_the_project_is_valid_and_unknown_models_list_the_known() -> None:
    assert {"flights", "sample"} <= set(load_policies("deployments/policy.yaml"))
    with pytest.raises(ConfigurationError, match="known: flights, sample"):
        load_policy("deployments/policy.yaml", "none")


def test_policy_faults_name_the_field(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("models: {m: {data: {source: a.csv, target: y}, gate: {confidence: 2, typo: 1}}}")
    with pytest.raises(ConfigurationError, match=r"m?gate\.confidence.*gate\.typo|gate\.typo.*gate\.confidence"):
        load_policies(file)


def test_feedback_is_idempotent_and_the_first_label_stays(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    assert ledger.record_feedback("m", [Feedback("a", 1.0, NOW), Feedback("b", 0.0, NOW)]) == 2
    assert ledger.record_feedback("m", [Feedback("a", 0.0, NOW), Feedback("c", 0.0, NOW + timedelta(hours=1))]) == 1
    assert {f.request_id: f.label for f in Ledger(ledger.url).feedback("m")} == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert [f.request_id for f in ledger.feedback("m", since=NOW + timedelta(minutes=1))] == ["c"]


def test_two_writers_of_the_serving_state_cannot_undo_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url)
    conflicts, wins = [], []

    def write(name: str) -> None:
        try:
            Ledger(url).put_serving_state("router", {"by": name}, expected_revision=0)
            wins.append(name)
        except Conflict as conflict:
            conflicts.append(str(conflict))

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1 and len(conflicts) == 3
    assert Ledger(url).serving_state("router") == (1, {"by": wins[0]})


def test_a_serving_state_and_its_event_are_committed_together_or_not_at_all(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    event = Event("promoted", "m", "1", "a", "first", NOW)
    ledger.put_serving_state("router", {"by": "a"}, expected_revision=0, event=event)
    with pytest.raises(Conflict):
        ledger.put_serving_state("router", {"by": "b"}, expected_revision=0, event=event)
    with pytest.raises(StatementError):
        unfit = Event("promoted", "m", "2", "a", "cannot be written", NOW, {"set": {1}})
        ledger.put_serving_state("router", {"by": "c"}, expected_revision=1, event=unfit)
    assert ledger.serving_state("router") == (1, {"by": "a"})
    assert [e["reason"] for e in ledger.events("m")] == ["first"]


def test_an_unreachable_ledger_says_where_it_was_looked_for() -> None:
    with pytest.raises(ServiceUnavailable, match="FORGE_LEDGER_URL"):
        Ledger("sqlite:////proc/none/ledger.db")
