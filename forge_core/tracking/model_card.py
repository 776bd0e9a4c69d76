"""What a version is, on one page: Markdown from its own parts, for people who did not train it."""

from collections.abc import Mapping, Sequence
from typing import Any

from forge_core.models.version import VersionFolder
from forge_core.statistics.quality import LOWER_IS_BETTER


def model_card(model: str, folder: VersionFolder, version: str | None = None) -> str:
    """Return a version's card as Markdown: what it is, its rows, metrics with intervals, slices, limits, verdict.

    Parameters
    ----------
    version : str, optional
        Its number; a card written before the registration has none.
    """
    lineage, evaluation, verdict = folder.lineage, folder.evaluation, folder.verdict
    sections = [
        f"# {model}" + (f", version {version}" if version else ""),
        f"{_article(str(lineage.get('model_type', 'model')))} for a {evaluation.task}, "
        f"with {len(folder.contract.feature_columns)} features. "
        f"The gate {'let it pass' if verdict.passed else 'refused it'}: {verdict.reason}.",
        "## Trained on",
        _table(
            ("what", "value"),
            [
                ("dataset version", lineage.get("dataset")),
                ("source", lineage.get("source")),
                ("rows", _count(lineage.get("train_rows"))),
                ("code commit", lineage.get("code_commit")),
                ("lock file (SHA-256)", lineage.get("lock_sha256")),
                ("reason", lineage.get("reason")),
                *sorted((lineage.get("hyperparameters") or {}).items()),
            ],
        ),
        f"## On {evaluation.n_rows:,} held-out rows",
        *([f"From {evaluation.since} to {evaluation.until}."] if evaluation.since else []),
        _table(
            ("metric", "value", "low", "high", "better"),
            [
                (
                    name,
                    f"{m.value:.4f}",
                    f"{m.low:.4f}",
                    f"{m.high:.4f}",
                    "lower" if name in LOWER_IS_BETTER else "higher",
                )
                for name, m in evaluation.metrics.items()
            ],
        ),
    ]
    if evaluation.slices:
        slices = sorted(evaluation.slices.items())
        sections += ["## Slices", _table(("slice", "gate's metric"), [(n, f"{v:.4f}") for n, v in slices])]
    checks = [(c.name, "yes" if c.passed else "no", c.found, c.needed) for c in verdict.checks]
    sections += ["## The gate", _table(("check", "passed", "found", "needed"), checks)]
    sections += ["## Known limits", "\n".join(f"- {limit}" for limit in _limits(folder))]
    return "\n\n".join(sections) + "\n"


def _limits(folder: VersionFolder) -> list[str]:
    evaluation, compiled = folder.evaluation, folder.compiled
    limits = [
        "Features: "
        + ", ".join(f"`{name}`" for name in folder.contract.feature_columns)
        + "; other columns are unseen.",
        f"Judged on {evaluation.n_rows:,} rows only"
        + (
            f", none later than {evaluation.until}."
            if evaluation.until
            else "; they have no time, so drift is unjudged."
        ),
        f"Served {compiled['serves']}: {compiled['reason']}.",
    ]
    if folder.classes:
        limits.append("Says one of: " + ", ".join(str(c) for c in folder.classes) + "; never anything else.")
    if not evaluation.slices:
        limits.append("No slice had enough rows to be judged by itself.")
    return limits


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = "unknown" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _article(model_type: str) -> str:
    words = model_type.replace("_", " ")
    return f"{'An' if words[0] in 'aeiou' else 'A'} {words} model"


def flat(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return fields as rows of a table; what lies in mappings gets its path as name."""
    rows: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}.{inner}", v) for inner, v in flat(value)]
        else:
            rows.append((name, value))
    return rows
