"""The two Grafana boards, written as what they show: `python -m infra.grafana.boards` writes their JSON files.

The data source has the fixed uid `prometheus`, which provisioning gives it; variables of the import dialogue are not
resolved by provisioning and would show nothing.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_WIDTH, _HEIGHT = 12, 8


@dataclass(frozen=True)
class Panel:
    """One picture: its queries, each with a legend; `unit` is Grafana's."""

    title: str
    says: str
    queries: dict[str, str]
    unit: str = "short"
    limits: dict[str, float] = field(default_factory=dict)


_REQUESTS = "forge_http_requests_total"
_SECONDS = "forge_http_request_duration_seconds_bucket"
_VERSION_SECONDS = "forge_prediction_duration_seconds_bucket"

SERVICE = [
    Panel(
        "Requests a second by status",
        "What all routes answered.",
        {"{{status}}": f"sum by (status) (rate({_REQUESTS}[5m]))"},
        "reqps",
    ),
    Panel(
        "Share of requests that failed",
        "Answers of 500 and above.",
        {"failed": f'(sum(rate({_REQUESTS}{{status=~"5.."}}[5m])) or vector(0)) / sum(rate({_REQUESTS}[5m]))'},
        "percentunit",
        {"red": 0.01},
    ),
    Panel(
        "Time of a prediction request",
        "From the first byte to the reply.",
        {
            f"p{p}": f'histogram_quantile(0.{p}, sum by (le) (rate({_SECONDS}{{route=~".*predict.*"}}[5m])))'
            for p in (50, 95, 99)
        },
        "s",
    ),
    Panel(
        "p95 by version",
        "Contract, waiting and scoring of a call.",
        {
            "{{model}} v{{version}} {{variant}}": "histogram_quantile(0.95, sum by (le, model, version, variant) "
            f"(rate({_VERSION_SECONDS}[5m])))"
        },
        "s",
    ),
    Panel(
        "Rows answered a second",
        "By version and role.",
        {"{{model}} v{{version}} {{variant}}": "sum by (model, version, variant) (rate(forge_predictions_total[5m]))"},
    ),
    Panel(
        "Rows refused a second",
        "Rows that broke the contract of their version.",
        {"refused": "sum(rate(forge_refused_rows_total[5m])) or vector(0)"},
    ),
    Panel(
        "Served rows logged and dropped a second",
        "Dropped rows may be in no window and not in the prediction log.",
        {
            "logged": "sum(rate(forge_logged_rows_total[5m])) or vector(0)",
            "dropped": "sum(rate(forge_dropped_rows_total[5m])) or vector(0)",
        },
        limits={"red": 1.0},
    ),
    Panel(
        "Labels committed a second",
        "Feedback that is in the ledger.",
        {"{{model}}": "sum by (model) (rate(forge_feedback_labels_total[5m])) or vector(0)"},
    ),
]

MODEL = [
    Panel(
        "Drift score",
        "Largest debiased PSI among findings that are not chance; 0.1 and 0.2 are the conventional bands.",
        {"{{model}} v{{version}}": "forge_drift_score"},
        limits={"orange": 0.1, "red": 0.2},
    ),
    Panel(
        "Features that moved most",
        "Debiased PSI.",
        {"{{model}} {{feature}}": "topk(10, forge_feature_psi)"},
        limits={"orange": 0.1, "red": 0.2},
    ),
    Panel(
        "Alarms",
        "Drift beyond its error budget; quality worse than allowed; features that need repair; a retraining wanted.",
        {
            "drift {{model}} v{{version}}": "forge_drift_alarm",
            "quality {{model}} v{{version}} by {{source}}": "forge_quality_alarm",
            "faults {{model}} v{{version}}": "forge_data_faults",
            "retrain {{model}} v{{version}}": "forge_retrain_wanted",
        },
    ),
    Panel(
        "Quality",
        "The gate's metric on labels or estimated without them, with its interval, and on held-out rows.",
        {
            "{{model}} {{metric}} by {{source}}": "forge_quality",
            "{{model}} {{metric}} low": "forge_quality_low",
            "{{model}} {{metric}} high": "forge_quality_high",
            "{{model}} {{metric}} held out": "forge_quality_reference",
        },
    ),
    Panel(
        "Labels in the newest windows",
        "Rows whose truth is known.",
        {"{{model}} v{{version}}": "forge_labelled_rows"},
    ),
    Panel(
        "Age of the newest check",
        "Since a check of each live version was made.",
        {"{{model}} v{{version}}": "time() - forge_check_timestamp_seconds"},
        "s",
    ),
]

BOARDS = {
    "service": ("forge-service", "MLOps-Forge: the service", SERVICE),
    "model": ("forge-model", "MLOps-Forge: models and drift", MODEL),
}


def board(uid: str, title: str, panels: list[Panel]) -> dict[str, Any]:
    """Return a board's JSON model."""
    return {
        "uid": uid,
        "id": None,
        "title": title,
        "tags": ["mlops-forge"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": c, "value": v} for c, v in panel.limits.items())]
    defaults = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": {"thresholdsStyle": {"mode": "line" if panel.limits else "off"}, "fillOpacity": 8},
    }
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": _SOURCE,
        "gridPos": {"x": number % 2 * _WIDTH, "y": number // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> None:
    """Write both files."""
    for name, (uid, title, panels) in BOARDS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(board(uid, title, panels), indent=1) + "\n")


if __name__ == "__main__":
    main()
