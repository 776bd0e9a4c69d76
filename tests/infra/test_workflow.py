"""The workflow runs what a person can run, pins what it borrows, and may do little; its targets say what they need."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from forge_core.errors import ConfigurationError, ServiceUnavailable
from infra.ci import release
from infra.ci.plan import SECRETS, main, plan
from infra.ci.smoke import smoke
from infra.ci.validate_model import BASELINE, FOLDER, _shuffled
from infra.kubernetes.model_file import place_model
from infra.local.processes import free_ports
from serve_app.api import build_api
from serve_app.door import Door
from serve_app.model_file import FileBoard, load_model_file

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/main.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]
GUIDE = {
    "CODECOV_TOKEN", "DOCKERHUB_USERNAME", "DOCKERHUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION", "EKS_CLUSTER_NAME", "MLFLOW_TRACKING_URI",
}  # fmt: skip


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("job", "step"), STEPS, ids=[f"{job}-{n}" for n, (job, _) in enumerate(STEPS)])
def test_a_step_is_a_make_target_or_an_action_of_one_commit(job: str, step: dict[str, Any]) -> None:
    if "run" in step:
        named = re.fullmatch(r"make ([a-z-]+)(?: [A-Z]+=\S+)*", step["run"])
        assert named is not None and named[1] in targets(), step["run"]
    else:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_the_stages_are_there_and_each_waits_for_what_it_needs() -> None:
    runs = {name: [step["run"].split()[1] for step in job["steps"] if "run" in step] for name, job in JOBS.items()}
    assert runs["test"][2:] == ["lint", "test", "test-long", "coverage"]
    assert runs["image"] == ["image", "scan", "push"] and "validate-model" in runs["model"]
    assert runs["deploy"][-3:] == ["deploy", "smoke", "rollback"]
    assert {"image", "model"} <= set(JOBS["deploy"]["needs"]) and "test" in JOBS["image"]["needs"]
    assert JOBS["deploy"]["environment"] == "production"
    assert "failure()" in JOBS["deploy"]["steps"][-1]["if"]


def test_nobody_may_more_than_it_needs() -> None:
    assert WORKFLOW["permissions"] == {}
    for name, job in JOBS.items():
        assert job["permissions"] == {"contents": "read"} | ({"id-token": "write"} if name == "deploy" else {})
        assert job["timeout-minutes"] <= 60
    # A pull request gets no key and changes nothing outside.
    for name, step in STEPS:
        if {"DOCKERHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"} & set(step.get("env", {})) and name != "plan":
            assert "github.event_name == 'push'" in (step.get("if") or JOBS[name]["if"])
    assert "github.event_name == 'push'" in JOBS["deploy"]["if"]


def test_every_secret_of_the_guide_is_used_and_its_absence_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = set(re.findall(r"secrets\.([A-Z_]+)", (ROOT / ".github/workflows/main.yml").read_text()))
    assert used == set(SECRETS) and used >= GUIDE
    outputs = tmp_path / "outputs"
    assert main({"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(outputs)}) == 0
    told = capsys.readouterr().out
    for secret in SECRETS:
        assert f"::notice::{secret} is not set" in told
    assert outputs.read_text() == "push=false\ndeploy=false\ncoverage=false\nrole=false\n"
    wanted = {key for job in JOBS.values() for key in re.findall(r"plan\.outputs\.(\w+)", json.dumps(job))}
    assert wanted == {line.partition("=")[0] for line in outputs.read_text().split()}


@pytest.mark.parametrize(
    ("given", "push", "deploy"),
    [
        (set(), False, False),
        ({"DOCKERHUB_USERNAME"}, False, False),
        ({"DOCKERHUB_USERNAME", "DOCKERHUB_TOKEN"}, True, False),
        (GUIDE, True, True),
        (GUIDE - {"AWS_SECRET_ACCESS_KEY"}, True, False),
        (GUIDE - {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"} | {"AWS_ROLE_ARN"}, True, True),
        (GUIDE - {"DOCKERHUB_TOKEN"}, False, False),
    ],
)
def test_what_is_done_follows_from_the_secrets(given: set[str], push: bool, deploy: bool) -> None:
    found = plan({**dict.fromkeys(given, "x"), "CODECOV_TOKEN": ""})
    assert (found["push"], found["deploy"], found["coverage"]) == (push, deploy, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["infra/ci/image", "scan", "forge:1"], "needs Docker"),
        (["infra/ci/image", "push", "forge:1", "a/forge:1"], "needs Docker"),
        ([sys.executable, "-m", "infra.ci.smoke"], "kubectl"),
        ([sys.executable, "-m", "infra.ci.release", "deploy", "cloud", "forge:1"], "kubectl"),
        ([sys.executable, "-m", "infra.ci.release", "rollback"], "kubectl"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-3:]),
)
def test_without_its_program_a_target_says_what_it_needs(command: list[str], told: str, tmp_path: Path) -> None:
    for program in ("bash", "env", "dirname"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The API of a model file behind a real HTTP server, and a key that works."""
    place_model(tmp_path / "model.skops")
    board = FileBoard(load_model_file(tmp_path / "model.skops"))
    (port,) = free_ports(1)
    app = build_api(board, Door(list, open_without_key=True), trust_event_time=False)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}", ""
    server.should_exit = True
    thread.join(20)


@pytest.mark.slow
def test_the_smoke_test_predicts_and_fails_on_what_does_not_answer(api: tuple[str, str]) -> None:
    url, key = api
    assert smoke(url, key, must_predict=True).startswith("healthy; model version")
    (nobody,) = free_ports(1)
    with pytest.raises(ServiceUnavailable, match="/health to be 200 within 1 s"):
        smoke(f"http://127.0.0.1:{nobody}", "", patience=1.0)
    with pytest.raises(ServiceUnavailable, match=r"401|expected 200"):
        smoke(url, "a-wrong-key", must_predict=True, patience=1.0)


class Cluster:
    """What kubectl was told, and a ConfigMap that it keeps."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.applied: list[str] = []
        self.release = ""

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        self.calls.append(arguments)
        if arguments[:2] == ("get", "configmap"):
            return self.release
        if arguments[0] == "apply" and given is not None:
            if given.startswith("{"):
                self.release = given
            else:
                self.applied.append(given)
        return ""


def test_a_rollback_brings_the_image_before_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    monkeypatch.setattr(release, "kubectl", cluster)
    monkeypatch.setattr(release, "_namespace_is_there", lambda: True)

    def rendered(overlay: str, *, image: str) -> str:
        kinds = ("Namespace", "Deployment", "RayService")
        return "---\n".join(f"kind: {k}\nmetadata: {{name: forge}}\nimage: {overlay}/{image}\n" for k in kinds)

    monkeypatch.setattr(release, "render", rendered)
    with pytest.raises(ConfigurationError, match="the first deployment"):
        release.rollback()
    for image in ("forge:1", "forge:1", "forge:2"):
        release.deploy("cloud", image)
    assert "kind: Namespace" not in "".join(cluster.applied)
    waits = [" ".join(call) for call in cluster.calls if call[0] in ("rollout", "wait")]
    assert any("deployment/forge" in w for w in waits) and any("UpgradeInProgress=false" in w for w in waits)
    release.rollback()
    assert "cloud/forge:1" in cluster.applied[-1]
    assert json.loads(cluster.release)["data"] == {"image": "forge:1", "previous": "forge:2", "overlay": "cloud"}


def test_the_baseline_is_committed_and_names_what_is_compared() -> None:
    baseline, wanted = json.loads(BASELINE.read_text()), yaml.safe_load((FOLDER / "validation.yaml").read_text())
    assert set(wanted["slack"]) <= set(baseline["metrics"]) and baseline["serves"] == "compiled"
    tracked = subprocess.run(["git", "ls-files", "infra/ci"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "infra/ci/baseline.json" in tracked.stdout


def test_broken_labels_are_those_that_are_learnt_from() -> None:
    from forge_core.data.sample import generate_sample_data

    rows = generate_sample_data(1000)
    broken = _shuffled(rows, "target", 0.15)
    assert (broken["target"][850:] == rows["target"][850:]).all()
    assert broken["target"].sum() == rows["target"].sum() and (broken["target"] != rows["target"]).mean() > 0.3


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_model_validation_passes_a_good_model_and_fails_a_bad_one(broken: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.ci.validate_model", "--results", str(tmp_path)]
    page = tmp_path / "page.md"
    variables = {**os.environ, "GITHUB_STEP_SUMMARY": str(page), "MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(
        [*command, *(["--broken"] if broken else [])],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == int(broken), done.stdout + done.stderr[-2000:]
    assert f"Model validation: {'FAILED' if broken else 'passed'}" in page.read_text()
    if broken:
        for check in ("better log_loss than the training mean", "roc_auc floor", "log_loss against the baseline"):
            assert f"✘  | {check}" in done.stdout, check
