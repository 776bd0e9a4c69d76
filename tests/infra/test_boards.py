"""Boards and alert rules against the code: every metric that they name is emitted by it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from forge_core.monitoring import metric_names
from forge_core.monitoring.metric_names import Metric
from infra.grafana.boards import BOARDS, FOLDER, board

PROMETHEUS = Path("infra/prometheus")
NAMES = {metric.name for metric in vars(metric_names).values() if isinstance(metric, Metric)}


@pytest.mark.parametrize("name", BOARDS)
def test_the_board_files_are_what_the_code_writes(name: str) -> None:
    assert json.loads((FOLDER / f"{name}.json").read_text()) == json.loads(json.dumps(board(*BOARDS[name])))


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_beside_each_other_and_name_the_provisioned_source(name: str) -> None:
    panels = json.loads((FOLDER / f"{name}.json").read_text())["panels"]
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len(panels) == len({p["id"] for p in panels})
    sources = {p["datasource"]["uid"] for p in panels} | {t["datasource"]["uid"] for p in panels for t in p["targets"]}
    assert sources == {"prometheus"} and all(p["description"] for p in panels)


def test_grafana_is_given_the_boards_and_the_source_that_they_name() -> None:
    provisioning = FOLDER / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert [(source["uid"], source["type"], source["url"]) for source in sources] == [
        ("prometheus", "prometheus", "$PROMETHEUS_URL")
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "forge.yml").read_text())["providers"]
    grafana = yaml.safe_load(Path("infra/docker/docker-compose.yml").read_text())["services"]["grafana"]
    places = {mount.split(":")[1] for mount in grafana["volumes"]}
    assert places >= {f"{provider['options']['path']}/{name}.json" for name in BOARDS}
    assert "PROMETHEUS_URL" in grafana["environment"]


def test_every_metric_of_a_board_or_a_rule_is_emitted() -> None:
    rules = (PROMETHEUS / "rules.yml", *Path("infra/kubernetes").rglob("prometheusrule.yaml"))
    texts = [file.read_text() for file in (*FOLDER.glob("*.json"), *rules)]
    found = {name for text in texts for name in re.findall(r"\bforge_(?!core)\w+", text)}
    named = {re.sub("_(bucket|sum|count)$", "", name) for name in found}
    assert named and named <= NAMES


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's promtool: apt-get install prometheus")
@pytest.mark.parametrize("command", [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")])
def test_prometheus_own_tool_accepts_the_files_and_the_rules_do_what_they_say(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    shutil.which("amtool") is None, reason="needs Debian's amtool: apt-get install prometheus-alertmanager"
)
def test_alertmanagers_own_tool_accepts_its_file() -> None:
    done = subprocess.run(
        ["amtool", "check-config", "alertmanager.yml"], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
