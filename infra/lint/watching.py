"""Prometheus, Alertmanager and Grafana."""

from infra.lint.check import ROOT, Check

_FOLDER = ROOT / "infra" / "prometheus"


def checks() -> list[Check]:
    """Return the checks of this subject."""
    prometheus = "apt-get install prometheus"
    return [
        Check("promtool: configuration", ("promtool", "check", "config", "prometheus.yml"), prometheus, _FOLDER),
        Check("promtool: tests of the rules", ("promtool", "test", "rules", "rules_test.yml"), prometheus, _FOLDER),
        Check(
            "amtool: routes of alerts",
            ("amtool", "check-config", "alertmanager.yml"),
            "apt-get install prometheus-alertmanager",
            _FOLDER,
        ),
    ]
