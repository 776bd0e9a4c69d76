"""The registry on a real MLflow server (SQLite): names, versions whole or not at all, lineage, cards, deletion."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from forge_core.data.loaders import get_data_loader
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.data.versions import save_dataset
from forge_core.errors import ConfigurationError, ModelError, ModelNotFound
from forge_core.models.evaluation import Verdict
from forge_core.policy import GatePolicy
from forge_core.storage import Storage
from forge_core.tracking.__main__ import main
from forge_core.tracking.mlflow_extensions import ExperimentTracker
from forge_core.tracking.names import check_alias, check_model_name
from forge_core.tracking.provenance import card, compare, lineage
from forge_core.tracking.registry import CHALLENGER, Registry, write_mlmodel
from forge_core.training import candidate
from forge_core.training.candidate import Recipe
from forge_core.training.datasets import SplitRequest
from tests.servers import MlflowServer

pytestmark = [pytest.mark.mlflow, pytest.mark.timeout(180), pytest.mark.usefixtures("surroundings")]


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "it's", "ä", "x" * 129, ".hidden", "a\x00b", "a:b"])
def test_a_model_name_that_cannot_be_one_is_refused_and_says_what_can(name: str, server: MlflowServer) -> None:
    with pytest.raises(ConfigurationError, match="expected a model name of 1 to 128 of the characters A-Z"):
        check_model_name(name)
    with pytest.raises(ConfigurationError, match="expected a model name"):
        Registry(server.uri).versions(name)


@pytest.mark.parametrize("alias", ["", "7", "v7", "latest", "a b", "a/b"])
def test_an_alias_that_cannot_be_one_is_refused(alias: str) -> None:
    with pytest.raises(ConfigurationError, match="expected an alias"):
        check_alias(alias)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("storage")))


def made_folder(storage: Storage, folder: Path, max_iter: int) -> tuple[Path, Recipe, Verdict]:
    rows = get_data_loader().preprocess_data(generate_sample_data(2000, random_state=3))
    dataset = save_dataset(storage, rows, source="sample:", contract=sample_contract())
    split = SplitRequest(storage.url, dataset.id, "target", "event_time", 0.15, 0.15, 0)
    recipe = Recipe(split, "gradient_boosting", "classification", (("max_iter", max_iter), ("random_state", 0)))
    candidate.fit(storage, recipe)
    _, verdict = candidate.evaluate(
        storage, recipe, policy=GatePolicy(), champion=None, champion_name="the training mean"
    )
    candidate.compile_candidate(storage, recipe, tolerance=1e-4)
    parts = candidate.assemble(storage, recipe, folder, lineage={"reason": "test", "code_commit": "c0ffee"})
    write_mlmodel(parts.path, parts.pipeline, parts.input_example)
    return folder, recipe, verdict


@pytest.fixture(scope="module")
def folders(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Recipe, Verdict]]:
    home = tmp_path_factory.mktemp("versions")
    return [made_folder(storage, home / str(n), n) for n in (5, 15)]


def register(server: MlflowServer, model: str, made: tuple[Path, Recipe, Verdict], outbox: Path) -> Any:
    folder, recipe, _ = made
    with ExperimentTracker(model, outbox=outbox) as tracker:
        trial = {"number": 2, "state": "complete", "log_loss": 0.4, "hyperparameters": dict(recipe.hyperparameters)}
        tracker.log_dict({"trials": [trial]}, "search.json")
        tracker.flush()
        return Registry(server.uri).register(
            model, folder, run_id=tracker.run_id or "", candidate=recipe.candidate_id, gate="passed",
            tags={"dataset": recipe.split.dataset_id},
        )  # fmt: skip


def test_a_version_registered_half_is_not_found_and_the_next_try_succeeds(
    server: MlflowServer, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "finalize_logged_model", crash)
        with pytest.raises(KeyboardInterrupt):
            register(server, "half", folders[0], tmp_path)
    registry = Registry(server.uri)
    assert registry.versions("half") == [] and registry.find("half", "1") is None
    with pytest.raises(ModelNotFound, match="versions: none"):
        registry.resolve("half", "challenger")
    assert register(server, "half", folders[0], tmp_path).version == "1"
    assert register(server, "half", folders[0], tmp_path).version == "1"  # the same candidate is registered once


def test_lineage_comparison_and_card_tell_where_versions_come_from(
    server: MlflowServer, storage: Storage, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path
) -> None:
    registry = Registry(server.uri)
    for made in folders:
        version = register(server, "told", made, tmp_path)
    registry.set_alias(version, CHALLENGER)
    found = lineage(registry, "told", CHALLENGER, storage=storage)
    dataset = folders[1][1].split.dataset_id
    assert (found.version, found.previous_version, found.gate) == ("2", "1", "passed")
    assert found.dataset["id"] == dataset and found.dataset["source"] == "sample:"
    assert found.dataset["rows"] == found.dataset["train_rows"] + found.dataset["held_out_rows"]
    assert found.code["commit"] == "c0ffee" and found.run["id"] == version.run_id
    assert found.run["trial"] == {"number": 2, "log_loss": 0.4, "run": None}
    assert found.candidate == folders[1][1].candidate_id and len(found.features_hash) > 8
    assert "dataset.id" in found.text() and dataset in found.text()
    difference = compare(registry, "told", "1", "2")
    assert difference.parameters == {"max_iter": (5, 15)} and difference.same_rows
    assert difference.metrics["log_loss"][0] != difference.metrics["log_loss"][1]
    assert "max_iter" in difference.text()
    text = card(registry, "told", "2")
    for part in (
        "# told, version 2",
        "## Trained on",
        dataset,
        "| roc_auc |",
        "## Slices",
        "## The gate",
        "## Known limits",
    ):
        assert part in text
    described = registry.client.get_model_version("told", "1").description
    assert described.startswith("# told") and "## Known limits" in described


def test_a_version_that_is_needed_is_not_deleted_and_says_why(
    server: MlflowServer, folders: list[tuple[Path, Recipe, Verdict]], tmp_path: Path
) -> None:
    registry = Registry(server.uri)
    first, second = (register(server, "kept", made, tmp_path) for made in folders)
    registry.set_alias(second, "shadow")
    with pytest.raises(ModelError, match="version 2 of 'kept' is not deleted: the alias 'shadow' points at it"):
        registry.delete_version("kept", "2")
    serving = {"models": {"kept": {"champion": "2", "previous": "1"}}}
    with pytest.raises(ModelError, match="it is previous in the serving state"):
        registry.delete_version("kept", "1", serving=serving)
    registry.set_tag(first, "protected", "true")
    with pytest.raises(ModelError, match="its tag 'protected' is true"):
        registry.delete_version("kept", "1")
    registry.set_tag(first, "protected", "false")
    registry.delete_version("kept", "1")
    assert [v.version for v in registry.versions("kept")] == ["2"] and registry.aliases("kept") == {"shadow": "2"}


def test_the_command_line_lists_explains_and_refuses(
    server: MlflowServer,
    folders: list[tuple[Path, Recipe, Verdict]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for made in folders:
        register(server, "listed", made, tmp_path)
    assert main(["alias", "listed", "2", "shadow"]) == 0
    assert main(["versions", "listed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["2", "passed", folders[1][1].split.dataset_id, "shadow"]
    assert main(["lineage", "listed", "1"]) == 0 and "dataset.train_rows" in capsys.readouterr().out
    assert main(["card", "listed", "shadow"]) == 0 and "# listed, version 2" in capsys.readouterr().out
    assert main(["alias", "listed", "1", "champion"]) == 1 and "deploy the version" in capsys.readouterr().err
    assert main(["delete", "listed", "2"]) == 1 and "'shadow' points at it" in capsys.readouterr().err
    assert main(["delete", "listed", "1"]) == 0
    assert main(["card", "listed", "9"]) == 1 and "versions: 2" in capsys.readouterr().err
