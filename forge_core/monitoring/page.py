"""A check as one HTML page that stands alone, for people who are no statisticians: verdict, what to do, pictures."""

import base64
from dataclasses import dataclass
from html import escape

import pandas as pd

from forge_core.monitoring.checkup import Checkup
from forge_core.monitoring.drift_report import FeatureDrift
from forge_core.monitoring.reports import distribution_figure, drift_figure, quality_figure
from forge_core.monitoring.windows import ReferenceProfile

_MOST_PICTURES = 9
_MOST_SLICES = 5
_FEWEST = 30

_KINDS = {
    "distribution": "its values are spread differently",
    "missing": "more (or fewer) values are missing",
    "unseen": "levels appear that training never saw",
    "range": "values lie beyond all that training saw",
    "unit": "values are ten times as large as any in training: another unit?",
    "schema": "the column is gone or has another type",
    "correlation": "the two go together differently",
}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem} h2{font-size:1.1rem;margin-top:2rem}
.verdict{border-left:.4rem solid var(--tone);background:#f6f6f4;padding:.8rem 1rem;margin:1rem 0}
table{border-collapse:collapse;width:100%} td,th{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} img{max-width:100%} .quiet{color:#666}
"""


@dataclass(frozen=True)
class Advice:
    """A verdict in one line, its colour, and what to do."""

    headline: str
    tone: str
    steps: tuple[str, ...]


def advise(checkup: Checkup) -> Advice:
    """Return what a check means: repair before all, then quality, then drift."""
    told = checkup.quality or checkup.estimate
    if faults := checkup.drift.faults:
        names = ", ".join(dict.fromkeys(f.feature for f in faults))
        steps = (
            f"Look at the source of {names}: the values themselves are wrong, not the world.",
            "Nothing is retrained on such rows; once repaired, the next check is calm again.",
        )
        return Advice(f"Data must be repaired: {names}", "#c0392b", steps)
    if (checkup.quality and checkup.quality.alarm) or checkup.loss_alarm:
        how = "together" if checkup.quality and checkup.quality.alarm else "one by one, against the held-out loss"
        steps = (f"The labels show it beyond doubt, taken {how}.", _next_step(checkup))
        return Advice("Predictions have become worse", "#c0392b", steps)
    if checkup.estimate and checkup.estimate.alarm and not checkup.quality:
        steps = ("No label says so yet; the model's own confidence does.", _next_step(checkup))
        return Advice("Predictions have probably become worse", "#d68910", steps)
    if checkup.alarm.alarm or checkup.drift.drifted:
        harmless = "Quality has not suffered so far." if told else "Send labels, to see whether quality suffers."
        steps = ("Inputs look different from those of training; that alone is information.", harmless)
        return Advice("Inputs have changed", "#d68910", (*steps, _next_step(checkup)))
    return Advice("All is as in training", "#1e8449", ("Nothing to do.",))


def check_page(checkup: Checkup, reference: ReferenceProfile) -> str:
    """Return the page of a check against this reference."""
    advice, drift = advise(checkup), checkup.drift
    steps = "".join(f"<li>{escape(step)}</li>" for step in advice.steps)
    notes = "".join(f"<li>{escape(note)}</li>" for note in drift.notes)
    title = f"{checkup.model} version {checkup.version}"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">Check of {checkup.at:%Y-%m-%d %H:%M} UTC on {drift.n_current:,} rows in '
        f"{checkup.n_windows} windows, against the training rows.</p>",
        f'<div class="verdict" style="--tone:{advice.tone}"><b>{escape(advice.headline)}</b>',
        f"<ul>{steps}{notes}</ul></div>",
        "<h2>Are predictions still right?</h2>",
        *_quality(checkup),
        "<h2>Do inputs still look like training?</h2>",
        f"<p>{escape(checkup.alarm.lane.capitalize())}: {escape(checkup.alarm.reason)}.</p>",
        _image(drift_figure(drift), "drift of every feature"),
        _table(drift.significant),
    ]
    moved = [n for n in dict.fromkeys(f.feature for f in drift.significant) if n in reference.grid.features]
    shown = moved[:_MOST_PICTURES] or list(reference.grid.features)[:_MOST_PICTURES]
    picture = distribution_figure(reference.grid, reference.counts, checkup.current, shown)
    parts += [
        "<h2>How they are spread</h2>",
        "<p>Grey: the training rows. Blue: the newest windows.</p>",
        _image(picture, "distributions"),
        '<p class="quiet">PSI tells how far two distributions are apart, less what chance alone would show; 0.1 is '
        "worth a look, 0.2 is drift by convention. A feature is listed only where chance is ruled out.</p>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _next_step(checkup: Checkup) -> str:
    return f"{'A retraining was asked for' if checkup.retrain else 'No retraining was asked for'}: {checkup.reason}."


def _quality(checkup: Checkup) -> list[str]:
    parts = [f"<p>{escape(told.reason)}.</p>" for told in (checkup.quality, checkup.estimate) if told]
    if checkup.n_pending or checkup.n_orphans:
        lost = f"{checkup.n_pending:,} labels wait for their prediction, {checkup.n_orphans:,} belong to none known."
        parts.append(f'<p class="quiet">{lost}</p>')
    if not parts:
        return ["<p>No labels yet, and nothing to estimate from. Send feedback with the replies' request ids.</p>"]
    if checkup.quality and len(checkup.slices):
        parts.append(_slices(checkup.slices.head(_MOST_SLICES), checkup.quality.metric))
    if checkup.quality and (checkup.over_time["n"] >= _FEWEST).any():
        enough = checkup.over_time[checkup.over_time["n"] >= _FEWEST]  # a handful of labels says nothing
        figure = quality_figure(enough, checkup.quality.reference, checkup.quality.metric)
        parts.append(_image(figure, "quality over time"))
    return parts


def _slices(worst: pd.DataFrame, metric: str) -> str:
    rows = "".join(
        f'<tr><td>{escape(str(s.column))}</td><td>{escape(str(s.level))}</td><td class="n">{s.value:.4f}</td>'
        f'<td class="n">{s.low:.4f} to {s.high:.4f}</td><td class="n">{s.n:,}</td></tr>'
        for s in worst.itertuples()
    )
    head = f'<th>where it is worst</th><th></th><th class="n">{escape(metric)}</th><th class="n">95 %</th>'
    return f'<table><tr>{head}<th class="n">labels</th></tr>{rows}</table>'


def _table(found: list[FeatureDrift]) -> str:
    if not found:
        return "<p>No feature differs by more than chance.</p>"
    rows = "".join(
        f"<tr><td>{escape(f.feature)}</td><td>{escape(_KINDS[f.kind])}</td><td>{escape(f.level)}</td>"
        f'<td class="n">{f.psi:.3f}</td><td class="n">{f.psi_low:.3f} to {f.psi_high:.3f}</td>'
        f'<td class="n">{f.n_current:,}</td></tr>'
        for f in found
    )
    head = '<th>feature</th><th>what</th><th>how much</th><th class="n">PSI</th><th class="n">95 %</th>'
    return f'<table><tr>{head}<th class="n">rows</th></tr>{rows}</table>'


def _image(png: bytes, says: str) -> str:
    return f'<img alt="{escape(says)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
