"""The project says of itself only what is so: settings, commands, links, entry points, layers, examples."""

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AliasChoices, BaseModel

import forge_core
from forge_core.deployment.__main__ import main as deployment_command
from forge_core.deployment.ray_pods import CLUSTER_VARIABLES
from forge_core.deployment.routing import nominate, promote
from forge_core.deployment.serve_config import get_serve_config
from forge_core.ledger import Ledger
from forge_core.settings import Settings, get_settings

ROOT = Path(__file__).resolve().parents[2]
WORDS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Variables that the stack sets for others and that are no settings of ours.
NO_SETTINGS = {"FORGE_CHECKOUT"}


def variable(name: str) -> str:
    field = Settings.model_fields[name]
    alias = field.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"FORGE_{name.upper()}"


def test_env_example_and_settings_say_the_same() -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    assert set(given) == {variable(name) for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert given[variable(name)] == default
        assert field.description


def test_every_package_that_is_asked_for_is_locked_at_a_version_that_fits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(r) for r in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    pins = [line.partition("  #")[0].partition("==") for line in (ROOT / "requirements.lock").read_text().splitlines()]
    locked = {canonicalize_name(name): found for name, sign, found in pins if sign}
    assert {r.name for r in asked if not r.specifier.contains(locked.get(canonicalize_name(r.name), "0"))} == set()


def test_no_file_speaks_of_a_setting_that_does_not_exist() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    known = {variable(name) for name in Settings.model_fields} | NO_SETTINGS
    unknown = {
        (file, name)
        for file in tracked
        if Path(file).suffix in {"", ".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".example"}
        for name in re.findall(r"\bFORGE_[A-Z][A-Z_]*[A-Z]\b", (ROOT / file).read_text())
        if name not in known
    }
    assert not unknown


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in WORDS:
        named = set(re.findall(r"`make (?:-s )?([a-z-]+)", file.read_text()))
        named |= set(re.findall(r"^make ([a-z-]+)", file.read_text(), re.MULTILINE))
        assert named <= targets, (file.name, named - targets)


def test_every_import_and_link_in_the_words_resolves() -> None:
    for file in WORDS:
        text = file.read_text()
        for module, names in re.findall(r"^from (forge_core[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip()), (file.name, module, name)
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (file.parent / target).exists(), (file.name, target)


def test_the_python_in_the_words_compiles() -> None:
    for file in WORDS:
        for block in re.findall(r"^```python\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL):
            compile(block, str(file), "exec")


def test_every_deployment_that_is_named_exists_and_has_the_parameters() -> None:
    known = {f"{d['entrypoint'].split(':')[1]}/{d['name']}": d["entrypoint"] for d in deployments()}
    seen = 0
    for file in WORDS:
        for name, rest in re.findall(r"prefect deployment run '([\w/]+)'([^`\n]*)", file.read_text()):
            assert name in known, (file.name, name)
            path, _, function = known[name].partition(":")
            flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
            assert set(re.findall(r"-p (\w+)=", rest)) <= set(inspect.signature(flow.fn).parameters), (file.name, rest)
            seen += 1
    assert seen > 5


def test_every_route_that_is_told_of_exists_and_the_other_way_round() -> None:
    from serve_app.api import build_api
    from serve_app.door import Door
    from serve_app.router import Switchboard

    api = build_api(Switchboard("memory://none", "m"), Door(list, open_without_key=True), trust_event_time=False)
    routes = {route.path.replace("{model}", "{name}") for route in api.routes if not route.path.startswith("/docs/")}
    rows = re.findall(r"^\| (`(?:GET|POST) .*?) \|", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    told = {path for row in rows for path in re.findall(r"`(?:GET |POST )?(/[^`]*)`", row)}
    assert told == routes


def test_the_requests_in_the_words_fit_the_contracts() -> None:
    from forge_core.data.flights import flights_contract
    from forge_core.data.sample import sample_contract

    seen = 0
    for file in WORDS:
        for body in re.findall(r"-d '(\{.*?\})'", file.read_text(), re.DOTALL):
            features = json.loads(body)["features"]
            contract = sample_contract() if "feature1" in features else flights_contract()
            assert list(contract.check_row(features)) == contract.feature_columns
            assert set(features) == set(contract.feature_columns)
            seen += 1
    assert seen >= 2


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == project == forge_core.__version__


@pytest.mark.slow
def test_forge_core_never_imports_ray_serve() -> None:
    for file in (ROOT / "forge_core").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("ray.serve")], file


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda d: f"{d['entrypoint'].split(':')[1]}/{d['name']}")
def test_every_deployment_starts_a_flow_with_parameters_that_it_has(deployment: dict[str, Any]) -> None:
    path, _, name = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    parameters = set(inspect.signature(flow.fn).parameters)
    given = set(deployment["parameters"])
    for trigger in deployment.get("triggers", []):
        given |= set(trigger["parameters"])
    assert flow.name == name and given <= parameters


def check_serve_configuration(config: dict[str, Any]) -> None:
    """Fail where Serve would refuse the configuration, or leave a key of it unread, as it does without a word."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import (
        DeploymentSchema,
        HTTPOptionsSchema,
        LoggingConfig,
        RayActorOptionsSchema,
        ServeApplicationSchema,
        ServeDeploySchema,
    )

    ServeDeploySchema.model_validate(config)

    def check(value: dict[str, Any], schema: type[BaseModel]) -> None:
        assert set(value) <= set(schema.model_fields), (schema.__name__, set(value) - set(schema.model_fields))

    check(config, ServeDeploySchema)
    check(config["http_options"], HTTPOptionsSchema)
    check(config["logging_config"], LoggingConfig)
    for app in config["applications"]:
        check(app, ServeApplicationSchema)
        module, _, name = app["import_path"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        for deployment in app["deployments"]:
            check(deployment, DeploymentSchema)
            check(deployment["ray_actor_options"], RayActorOptionsSchema)
            check(deployment.get("autoscaling_config", {}), AutoscalingConfig)


@pytest.fixture
def config_files(tmp_path: Path) -> Settings:
    """Settings with policies that scale in both ways, over the real template."""
    policies = yaml.safe_load((ROOT / "deployments" / "policy.yaml").read_text())
    scaled = {"min_replicas": 1, "max_replicas": 4}
    policies["models"]["flights"]["serving"] = {"autoscaling": scaled, "num_cpus": 0.5, "max_ongoing_requests": 8}
    policies["models"]["sample"]["serving"] = {"replicas": 2}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policies))
    return Settings(home=tmp_path, policy_file=tmp_path / "policy.yaml", model="flights", tracking_uri="")


def test_the_serve_configuration_has_no_unknown_keys(config_files: Settings) -> None:
    table = {"flights": {"champion": "1"}, "sample": {"champion": "2"}}
    for settings in (Settings(), config_files):
        config = get_serve_config(settings).compose([("flights", "1"), ("sample", "2")], table)
        check_serve_configuration(config)
        assert {"variant-flights-v1", "variant-sample-v2"} <= {app["name"] for app in config["applications"]}


def test_the_rayservice_runs_the_same_configuration(
    config_files: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(config_files.ledger)
    for step in (nominate, promote):
        step(ledger, "flights", "7", actor="test", reason="a test")
    for name in ("home", "policy_file", "model"):
        monkeypatch.setenv(variable(name), str(getattr(config_files, name)))
    get_settings.cache_clear()
    try:
        assert deployment_command(["rayservice", "--name", "shop", "--image", "registry.test/forge:1"]) == 0
    finally:
        get_settings.cache_clear()
    manifest = yaml.safe_load(capsys.readouterr().out)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    check_serve_configuration(config)
    assert config["http_options"] == {"host": "0.0.0.0", "port": config_files.api_port}
    apps = {app["name"]: app for app in config["applications"]}
    assert set(apps) == {"router", "recorder", "profiler", "variant-flights-v7"}
    assert apps["router"]["deployments"][0]["user_config"]["models"] == {"flights": {"champion": "7"}}
    assert {app["args"]["profile"] for app in apps.values()} == {"cluster"}
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in [c for group in groups for c in group["template"]["spec"]["containers"]]:
        assert container["image"] == "registry.test/forge:1"
        assert {"name": "serve", "containerPort": config_files.api_port} in container["ports"]
        assert CLUSTER_VARIABLES.items() <= {e["name"]: e.get("value") for e in container["env"]}.items()
        assert {"secretRef": {"name": "shop-environment", "optional": True}} in container["envFrom"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "shop-ray-token"}
    # Pods know their own URLs, which may hold a password.
    assert not {"ledger_url", "storage_url"} & {key for app in apps.values() for key in app["args"]}


def modules() -> Iterator[str]:
    for found in pkgutil.walk_packages(forge_core.__path__, "forge_core."):
        if not found.name.endswith("__main__"):
            yield found.name


@pytest.mark.slow
@pytest.mark.parametrize("name", list(modules()))
def test_the_examples_in_the_docstrings_work(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0
