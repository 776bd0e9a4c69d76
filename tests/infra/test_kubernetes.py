"""The manifests agree with the code, with each other, and with what they promise: closed, small, and repeatable."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from forge_core import __version__
from forge_core.errors import ConfigurationError, ModelNotFound, ServiceUnavailable
from forge_core.settings import Settings
from infra.kubernetes import render as rendering
from infra.kubernetes.databases import make_databases
from infra.kubernetes.generated import FLAT, NAMESPACE, TRAINING, generated_files
from infra.kubernetes.model_file import place_model
from infra.kubernetes.render import render
from infra.kubernetes.secrets import GENERATED, LOCAL, secret_manifests
from serve_app.model_file import load_model_file
from tests.core.test_shape import check_serve_configuration
from tests.infra.manifests import FOLDER, Manifest, containers, kustomized, name_of, pods, read
from tests.servers import postgres_server

OVERLAYS = ("local", "cloud")
FOLDERS = [*(FOLDER / "overlays" / name for name in OVERLAYS), FOLDER / "base/api", FOLDER / "base/training"]
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
# Images of others: PostgreSQL and the object store of a cluster on one machine.
OURS = f"mlops-forge:{__version__}"
# Made by people, after the first start: docs/kubernetes.md.
BY_HAND = {"forge-metrics-key": {"secret"}}


def all_manifests() -> list[Manifest]:
    """Every manifest once, whichever folders hold it."""
    found: dict[str, Manifest] = {}
    for manifest in (m for folder in FOLDERS for m in kustomized(folder)):
        name = name_of(manifest)
        assert found.setdefault(name, manifest) == manifest, f"two different {name}"
    return list(found.values())


MANIFESTS = all_manifests()
PODS = [(name_of(manifest), pod) for manifest in MANIFESTS for pod in pods(manifest)]


def test_what_follows_from_other_files_is_as_it_would_be_written() -> None:
    stale = [path for path, text in generated_files().items() if not path.is_file() or path.read_text() != text]
    assert not stale, "run `python -m infra.kubernetes write`"


def test_the_flat_files_hold_the_same_as_the_base_and_any_order_of_them_works() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".yaml", ".yml", ".json")} == set(FLAT)
    flat = {name: read(FOLDER / name) for name in FLAT}
    for manifests in flat.values():
        assert name_of(manifests[0]) == f"Namespace/{NAMESPACE}"
    base = [m for folder in ("base/api", "base/training") for m in kustomized(FOLDER / folder)]
    told = {name_of(m): m for manifests in flat.values() for m in manifests}
    assert told == {name_of(m): m for m in base}
    # What is there twice is the same, so that a second file leaves what a first one made.
    assert all(told[name_of(m)] == m for manifests in flat.values() for m in manifests)


def test_the_four_files_of_the_guide_are_an_api_that_needs_no_operator() -> None:
    four = [m for name in ("namespace", "configmap", "deployment", "service") for m in read(FOLDER / f"{name}.yaml")]
    assert {m["apiVersion"] for m in four} <= {"v1", "apps/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1"}
    names = {name_of(m) for m in four}
    (pod,) = [pod for m in four for pod in pods(m)]
    wanted = {f"ServiceAccount/{pod['serviceAccountName']}"}
    for container in containers(pod):
        wanted |= {f"ConfigMap/{source['configMapRef']['name']}" for source in container.get("envFrom", [])}
    assert wanted <= names
    # The autoscaler's number of pods is not set back by a second apply.
    (deployment,) = [m for m in four if m["kind"] == "Deployment"]
    assert "replicas" not in deployment["spec"]


def test_applying_the_folder_starts_one_small_training_once_and_touches_no_serving() -> None:
    flat = [m for name in FLAT for m in read(FOLDER / name)]
    assert not [m for m in flat if m["kind"] == "RayService"]
    (job,) = [m for m in flat if m["kind"] == "RayJob"]
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["activeDeadlineSeconds"] <= 14400 and "suspend" not in spec
    (priority,) = [m for m in flat if m["kind"] == "PriorityClass"]
    assert priority["value"] < 0 and priority["preemptionPolicy"] == "Never"
    assert {pod["priorityClassName"] for pod in pods(job)} == {priority["metadata"]["name"]}
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [(g["minReplicas"], g["maxReplicas"]) for g in groups] == [(2, 2)]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_manifest_lies_in_the_namespace_and_has_no_placeholder(manifest: Manifest) -> None:
    if manifest["kind"] not in CLUSTER_WIDE:
        assert manifest["metadata"]["namespace"] == NAMESPACE
    assert manifest["kind"] != "Secret"
    text = yaml.safe_dump(manifest)
    for word in ("CHANGE", "REPLACE", "example.com", "123456789012", "TODO", "<", ":latest"):
        assert word not in text, word


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PODS)])
def test_a_pod_is_nobody_on_its_node_and_takes_a_known_share_of_it(name: str, pod: Manifest) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] >= 10000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert {kind for volume in pod.get("volumes", []) for kind in volume} <= {"name", "emptyDir"}
    for container in containers(pod):
        closed = container["securityContext"]
        assert closed["allowPrivilegeEscalation"] is False and closed["readOnlyRootFilesystem"] is True
        assert closed["capabilities"] == {"drop": ["ALL"]}
        for part in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][part]), container["name"]
        assert container["image"] == OURS or container["image"].rpartition(":")[2][0].isdigit()
        assert container["imagePullPolicy"] == "IfNotPresent"


def test_only_who_asks_kubernetes_for_something_holds_a_token_and_may_do_little() -> None:
    accounts = {m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] == "ServiceAccount"}
    roles = {m["metadata"]["name"]: m["rules"] for m in MANIFESTS if m["kind"] == "Role"}
    bound = {
        s["name"]: roles[m["roleRef"]["name"]] for m in MANIFESTS if m["kind"] == "RoleBinding" for s in m["subjects"]
    }
    assert not [m for m in MANIFESTS if m["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    for name, pod in PODS:
        account = pod.get("serviceAccountName")
        if account is None:
            assert pod["automountServiceAccountToken"] is False, name
            continue
        tokens = pod.get("automountServiceAccountToken", accounts[account].get("automountServiceAccountToken", True))
        assert tokens == (account in bound), name
    for rules in roles.values():
        for rule in rules:
            assert not {"*", "secrets"} & set(rule["resources"])
            assert set(rule["verbs"]) <= {"get", "list", "watch", "patch"}
    (rule,) = bound["forge-worker"]
    assert rule["resourceNames"] == [next(m for m in MANIFESTS if m["kind"] == "RayService")["metadata"]["name"]]


def test_every_server_is_probed_and_answers_on_the_port_that_its_service_names() -> None:
    services = {m["metadata"]["name"]: m["spec"] for m in MANIFESTS if m["kind"] == "Service"}
    for manifest in (m for m in MANIFESTS if m["kind"] in ("Deployment", "StatefulSet")):
        template = manifest["spec"]["template"]
        assert manifest["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]
            assert "exec" in asked or asked["httpGet"]["port"] in ports
        for spec in services.values():
            if spec["selector"].items() <= template["metadata"]["labels"].items():
                assert [ports[port["targetPort"]] for port in spec["ports"]] == [p["port"] for p in spec["ports"]]


def settings_of(*names: str) -> dict[str, str]:
    return {
        k: v
        for m in MANIFESTS
        if m["kind"] == "ConfigMap" and m["metadata"]["name"] in names
        for k, v in m["data"].items()
    }


def test_the_settings_name_services_and_ports_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FORGE_")]:
        monkeypatch.delenv(name)
    for name, value in settings_of("forge-settings", "forge-servers", "forge-place").items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    assert (settings.profile, settings.open_without_key, settings.host) == ("cluster", False, "0.0.0.0")
    assert settings.serve_file.is_file() and settings.ledger_url.startswith("postgresql+psycopg:///")
    services = {m["metadata"]["name"]: m["spec"] for m in MANIFESTS if m["kind"] == "Service"}
    service = next(m for m in MANIFESTS if m["kind"] == "RayService")
    # KubeRay makes these two of the RayService's name.
    services |= {f"{service['metadata']['name']}-serve-svc": {"ports": [{"port": settings.api_port}]}}
    services |= {f"{service['metadata']['name']}-head-svc": {"ports": [{"port": settings.dashboard_port}]}}
    urls = [settings.api_url, settings.dashboard_url, settings.mlflow_url, os.environ["PREFECT_API_URL"]]
    for url in [*urls, os.environ["AWS_ENDPOINT_URL"]]:
        host, _, port = url.partition("://")[2].removesuffix("/api").partition(":")
        assert int(port) in [p["port"] for p in services[host]["ports"]], url
    assert os.environ["PGHOST"] in services


def allowed(pod_labels: dict[str, str]) -> dict[int, list[Any]]:
    """Return who may reach which port of pods with such labels; None stands for everybody, 0 for any port."""
    found: dict[int, list[Any]] = {}
    for policy in (m["spec"] for m in MANIFESTS if m["kind"] == "NetworkPolicy"):
        if policy["podSelector"].get("matchLabels", {}).items() <= pod_labels.items():
            for rule in policy.get("ingress", []):
                for port in rule.get("ports", [{"port": 0}]):
                    found.setdefault(port["port"], []).extend(rule.get("from", [None]))
    return found


def test_nothing_is_open_but_what_is_named() -> None:
    closed = next(m["spec"] for m in MANIFESTS if name_of(m) == "NetworkPolicy/forge-closed")
    assert closed["podSelector"] == {} and closed["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in closed
    ray = {"ray.io/is-ray-node": "yes"}
    doors = allowed(ray)
    assert set(doors) == {0, 8000, 8265, 8080, 9101, 8404}
    assert doors[0] == [{"podSelector": {"matchLabels": ray}}]
    assert None in doors[8000]
    prometheus = {"kubernetes.io/metadata.name": "monitoring"}
    for port in (8080, 9101, 8404):
        assert [peer["namespaceSelector"]["matchLabels"] for peer in doors[port]] == [prometheus]
    asked = [peer["podSelector"]["matchLabels"] for peer in doors[8265]]
    assert asked == [{"app.kubernetes.io/name": "kuberay-operator"}, {"forge.role": "flows"}]
    # MLflow and Prefect ask for no password.
    for server, port in (("forge-mlflow", 5000), ("forge-prefect", 4200)):
        assert set(allowed({"app.kubernetes.io/name": server})) == {port}
        assert None not in allowed({"app.kubernetes.io/name": server})[port]


def test_the_rayservice_serves_what_serve_takes_with_a_token_and_no_secret() -> None:
    service = next(m for m in MANIFESTS if m["kind"] == "RayService")
    text = service["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)
    check_serve_configuration(config)
    assert "://" not in text
    assert config["proxy_location"] == "EveryNode" and config["http_options"]["host"] == "0.0.0.0"
    router = next(app for app in config["applications"] if app["name"] == "router")
    (deployment,) = router["deployments"]
    assert (deployment["num_replicas"], deployment["max_replicas_per_node"]) == (2, 1)
    for manifest in (m for m in MANIFESTS if m["kind"] in ("RayService", "RayJob")):
        cluster = manifest["spec"].get("rayClusterConfig") or manifest["spec"]["rayClusterSpec"]
        assert cluster["rayVersion"] == version("ray")
        assert cluster["authOptions"] == {"mode": "token", "secretName": "forge-ray-token"}
        for pod in pods(manifest):
            variables = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
            assert variables["RAY_AUTH_MODE"]["value"] == "token"
            reference = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
            assert reference == {"name": "forge-ray-token", "key": "auth_token"}


def test_every_secret_that_is_named_is_made_or_told_of_and_no_value_is_written_down() -> None:
    made = {
        m["metadata"]["name"]: m["stringData"] for m in secret_manifests(local=True, given={"PGPASSWORD": "theirs"})
    }
    assert made["forge-environment"]["PGPASSWORD"] == "theirs"
    again = {m["metadata"]["name"]: m["stringData"] for m in secret_manifests(local=False, given={})}
    values = [v for data in (*made.values(), *again.values()) for v in data.values() if v != "theirs"]
    assert len(set(values)) == len(values) and min(map(len, values)) >= 43
    assert set(made) == set(GENERATED) and set(LOCAL["forge-environment"]) <= set(made["forge-environment"])
    for manifest in MANIFESTS:
        for reference in references(manifest):
            known = {**{name: set(data) for name, data in made.items()}, **BY_HAND}
            assert reference["key"] in known[reference["name"]], (name_of(manifest), reference)


def references(value: Any) -> list[dict[str, str]]:
    if isinstance(value, list):
        return [found for inner in value for found in references(inner)]
    if not isinstance(value, dict):
        return []
    own = [inner for key, inner in value.items() if key in ("secretKeyRef", "credentials")]
    return own + [found for inner in value.values() for found in references(inner)]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in kubectl's place: builds a kustomization as the tests read it, and knows one RayService."""
    program, served = tmp_path / "kubectl", tmp_path / "served.json"
    program.write_text(
        f"#!{sys.executable}\nimport sys, yaml, pathlib\n"
        f"sys.path.insert(0, {str(FOLDER.parents[1])!r})\n"
        "from tests.infra.manifests import kustomized\n"
        "if sys.argv[1] == 'kustomize':\n"
        "    folder = pathlib.Path(sys.argv[2])\n"
        "    image = yaml.safe_load((folder / 'kustomization.yaml').read_text()).get('images', [])\n"
        "    found = [*kustomized(folder), {'kind': 'Images', 'metadata': {}, 'i': image}]\n"
        "    print('---\\n'.join(map(yaml.safe_dump, found)))\n"
        f"else:\n    print(pathlib.Path({str(served)!r}).read_text())\n"
    )
    program.chmod(0o755)
    served.write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return served


@pytest.mark.slow
def test_a_deployment_takes_no_version_off_the_air(kubectl: Path) -> None:
    def served() -> str:
        manifests = {m["kind"]: m for m in yaml.safe_load_all(render("cloud", image="registry.test:5000/forge:2"))}
        assert manifests["Images"]["i"] == [
            {"name": "mlops-forge", "newName": "registry.test:5000/forge", "newTag": "2"}
        ]
        return str(manifests["RayService"]["spec"]["serveConfigV2"])

    assert "variant-" not in served()
    kubectl.write_text('{"spec": {"serveConfigV2": "applications: [{name: variant-flights-v7}]"}}')
    assert served() == "applications: [{name: variant-flights-v7}]"


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("a/b:1", {"newName": "a/b", "newTag": "1"}),
        ("host:5000/b", {"newName": "host:5000/b"}),
        ("b@sha256:00", {"newName": "b", "digest": "sha256:00"}),
    ],
)
def test_an_images_name_is_read_as_registries_write_it(image: str, told: dict[str, str]) -> None:
    assert rendering._split(image) == told


def test_an_unknown_overlay_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="cloud, local"):
        render("moon")


@pytest.mark.postgres
def test_databases_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres_server() as url:
        host, _, port = url.partition("@")[2].partition("/")[0].partition(":")
        for name, value in {"PGHOST": host, "PGPORT": port, "PGUSER": "postgres"}.items():
            monkeypatch.setenv(name, value)
        assert make_databases(["mlflow", "prefect"]) == ["mlflow", "prefect"]
        assert make_databases(["mlflow", "other"]) == ["other"]
        with psycopg.connect(dbname="mlflow") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(ValueError, match="expected names"):
            make_databases(['x"; DROP DATABASE mlflow'])
    with pytest.raises(ServiceUnavailable, match="forge-place"):
        make_databases(["mlflow"], patience=0.0)


def test_a_pods_model_is_fetched_or_made_and_answers(tmp_path: Path) -> None:
    made = tmp_path / "models" / "model.skops"
    assert place_model(made).startswith("no MODEL_URL")
    assert "already" in place_model(made, "file:///nowhere.skops")
    assert load_model_file(made).columns == ["feature1", "feature2"]
    fetched = tmp_path / "fetched.skops"
    assert "fetched" in place_model(fetched, made.as_uri())
    assert fetched.read_bytes() == made.read_bytes()
    with pytest.raises(ModelNotFound, match="MODEL_URL"):
        place_model(tmp_path / "none.skops", (tmp_path / "missing.skops").as_uri())
    assert {path.name for path in tmp_path.iterdir()} == {"models", "fetched.skops"}


def test_a_training_without_a_storage_ends_at_once_and_says_so() -> None:
    told = run_training({})
    assert told.returncode != 0 and "set it in the ConfigMap forge-place" in told.stderr


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_training_that_the_manifest_names_runs_as_it_stands(tmp_path: Path) -> None:
    told = run_training({"FORGE_STORAGE_URL": str(tmp_path / "storage"), "FORGE_HOME": str(tmp_path)})
    assert told.returncode == 0, told.stderr[-3000:]
    trained, validated = re.search(r": (\d+) rows, 2 workers.*\nvalidation \((\d+) rows\)", told.stdout).groups()  # type: ignore[union-attr]
    assert int(trained) + int(validated) == 20000 and abs(int(validated) - 3000) < 300


def run_training(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    job = next(m for m in read(FOLDER / "distributed-training.yaml") if m["kind"] == "RayJob")
    assert job["spec"]["entrypoint"] == TRAINING
    unset = ("FORGE_STORAGE_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    path = f"{Path(sys.executable).parent}:{inherited.get('PATH', '')}"
    environment = {**inherited, "PATH": path, **variables}
    command = ["sh", "-c", job["spec"]["entrypoint"]]
    return subprocess.run(
        command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True, timeout=550, check=False
    )
