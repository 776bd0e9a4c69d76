"""A verdict as rows of a table and as a page of Markdown."""

from typing import Any

from forge_core.experiments.verdict import Verdict


def verdict_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """Return one row a variant."""
    return [
        {
            "variant": found.variant,
            "users": verdict.users[found.variant],
            "mean": _rounded(found.mean),
            "difference": _rounded(found.value),
            "low": _rounded(found.low),
            "high": _rounded(found.high),
            "p": _rounded(found.p),
            "e": None if found.e is None else float(f"{found.e:.4g}"),
        }
        for found in verdict.variants
    ]


def verdict_markdown(verdict: Verdict) -> str:
    """Return what was seen and what to do, with tables of the variants and the guard rails."""
    lines = [f"**{verdict.state}**: {verdict.sentence}", "", verdict.advice, ""]
    lines += _table(verdict_rows(verdict))
    if verdict.guard_rails:
        rails = [
            {"guard rail": r.metric, "variant": r.variant, "state": r.state, "difference": _rounded(r.value),
             "low": _rounded(r.low), "high": _rounded(r.high), "borne": r.max_harm}
            for r in verdict.guard_rails
        ]  # fmt: skip
        lines += ["", *_table(rails)]
    mismatch = verdict.mismatch
    lines += ["", f"Evidence against the declared shares: {mismatch.e:.3g} (frozen from 100). {verdict.method}."]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = list(rows[0])
    cells = [[("" if row[name] is None else str(row[name])).replace("|", "\\|") for name in head] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
