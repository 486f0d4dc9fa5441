"""The HTML page of a report: complete in one file, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from trimtab.reproduce import find
from trimtab.reproduce.experiment import Figure, Row, Value
from trimtab.reproduce.numbers import duration, readable, times
from trimtab.reproduce.outcome import SystemOutcome

_VERDICTS = {
    True: ("holds", "✓", "holds"),
    False: ("misses", "✗", "does not hold"),
    None: ("open", "–", "no claim"),
}
# A ratio bar spans this many doublings to either side of 1x.
_BAR_DOUBLINGS = 4.0


def render(
    machine: Mapping[str, Any],
    outcomes: Sequence[SystemOutcome],
    date: str,
    seed: int,
    full: bool,
) -> str:
    """Return the page as one HTML document.

    Args:
        machine: what :func:`trimtab.hardware.provenance` says.
        outcomes: the systems, in the order in which they appear.
        date: when the run began.
        seed: the first random seed.
        full: whether the full size was run.
    """
    present = [outcome for outcome in outcomes if outcome.status != "unavailable"]
    absent = [outcome for outcome in outcomes if outcome.status == "unavailable"]
    sections = [_section(outcome, machine, full) for outcome in present]
    if absent:
        sections.append(_absent(absent))
    size = "full size" if full else "quick size"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Trimtab: reproduced experiments</title>
<link rel="icon" href="data:,">
<style>
{_resource("page.css")}
</style>
</head>
<body>
<a class="skip" href="#results">Skip to the results</a>
<header>
<div class="brand">{_LOGO}<span>trimtab</span></div>
<button id="theme" type="button" hidden>Dark theme</button>
<h1>Published claims, measured here</h1>
<p class="lead">Each system's headline experiment beside its baseline, both in one run, {size},
first seed {seed}. A claim that does not hold on this machine is shown as such.</p>
{_tally(outcomes)}
{_machine(machine, date)}
{_contents(present)}
</header>
<main id="results">
{"".join(sections)}
</main>
<footer>Written by trimtab {escape(str(machine.get("versions", {}).get("trimtab", "")))}
with <code>trimtab reproduce</code>. The same figures as data: <code>report.json</code>.</footer>
<script>
{_resource("page.js")}
</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return (files("trimtab.reproduce") / name).read_text(encoding="utf-8")


def _tally(outcomes: Sequence[SystemOutcome]) -> str:
    ran = sum(outcome.status == "ok" for outcome in outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    counts = {holds: sum(outcome.count(holds) for outcome in outcomes) for holds in _VERDICTS}
    tiles = [
        ("", f"{ran} of {len(outcomes)}", "systems measured"),
        ("holds", str(counts[True]), "claims hold"),
        ("misses", str(counts[False]), "claims do not hold"),
        ("open", str(counts[None]), "figures without a claim"),
    ]
    if failed:
        tiles.append(("failed", str(failed), "systems failed to run"))
    cells = "".join(
        f'<div class="tile {kind}"><dt>{label}</dt><dd>{number}</dd></div>'
        for kind, number, label in tiles
    )
    return f'<dl class="tally">{cells}</dl>'


def _machine(machine: Mapping[str, Any], date: str) -> str:
    versions = machine.get("versions", {})
    facts = {
        "Machine": machine.get("summary", ""),
        "System": machine.get("system", ""),
        "Python": machine.get("python", ""),
        "Packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Settings": ", ".join(f"{k}={v}" for k, v in machine.get("settings", {}).items()) or "none",
        "Date": date,
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items()
    )
    return (
        f'<details class="machine"><summary>Measured on {escape(str(facts["Machine"]))}, '
        f"{escape(date[:10])}</summary><dl>{items}</dl></details>"
    )


def _contents(outcomes: Sequence[SystemOutcome]) -> str:
    if len(outcomes) < 2:
        return ""
    links = "".join(
        f'<li><a href="#{outcome.system}">{outcome.system}</a></li>' for outcome in outcomes
    )
    return f'<nav aria-label="Systems"><ul>{links}</ul></nav>'


def _section(outcome: SystemOutcome, machine: Mapping[str, Any], full: bool) -> str:
    about = outcome.about
    heading = _sentence(about.get("title") or find(outcome.system).subject)
    parts = [
        f'<section id="{outcome.system}" aria-labelledby="{outcome.system}-title">',
        f'<div class="name">{outcome.system} <span>{duration(outcome.seconds)}</span></div>',
        f'<h2 id="{outcome.system}-title">{heading}</h2>',
        f'<p class="source">{escape(about.get("source") or find(outcome.system).paper)}</p>',
    ]
    if about:
        size = about["full"] if full else about["quick"]
        parts.append(
            '<dl class="setting">'
            f"<div><dt>The paper claims</dt><dd>{_sentence(about['claim'])}</dd></div>"
            f"<div><dt>Compared with</dt><dd>{_sentence(about['baseline'])}</dd></div>"
            f"<div><dt>Size of this run</dt><dd>{_sentence(size)}</dd></div></dl>"
        )
    if outcome.status == "failed":
        parts.append(_failure(outcome))
    if outcome.rows:
        parts.append(_table(outcome, _place(machine)))
    if outcome.figures:
        figures = "".join(_figure(figure) for figure in outcome.figures)
        parts.append(f'<div class="figures">{figures}</div>')
    parts.append(_commands(outcome))
    parts.append("</section>")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:])


def _failure(outcome: SystemOutcome) -> str:
    details = (
        f"<details><summary>Details</summary><pre>{escape(outcome.details)}</pre></details>"
        if outcome.details
        else ""
    )
    return (
        f'<div class="failure" role="note"><strong>Failed to run.</strong> '
        f"{escape(outcome.error)}{details}</div>"
    )


def _table(outcome: SystemOutcome, machine: str) -> str:
    rows = "".join(_row(row, machine) for row in outcome.rows)
    return (
        f'<table><caption class="hidden">Results of {outcome.system}</caption><thead><tr>'
        '<th scope="col">Metric</th><th scope="col" class="number">Paper</th>'
        '<th scope="col" class="number">Baseline</th><th scope="col" class="number">Ours</th>'
        '<th scope="col" class="number">Ratio</th><th scope="col">Claim</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _place(machine: Mapping[str, Any]) -> str:
    """Name the machine in the few words that fit a row."""
    devices = machine.get("devices") or [f"{machine.get('cores', '?')} cores"]
    return ", ".join([str(machine.get("processor", "this machine")), *devices])


def _row(row: Row, machine: str) -> str:
    kind, mark, verdict = _VERDICTS[row.holds]
    seeds = ""
    if row.seeds:
        seeds = f" Seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))}."
    note = f"{row.note.rstrip('.')}." if row.note else ""
    where = f"On {row.where or machine}."
    return (
        f'<tr><th scope="row">{escape(row.metric)}'
        f'<span class="unit">{escape(row.unit)}</span>'
        f'<span class="note">{escape(note)}{escape(seeds)} {escape(where)}</span></th>'
        f"{_cell('Paper', row.paper)}{_cell('Baseline', row.baseline)}{_cell('Ours', row.ours)}"
        f'<td class="number" data-label="Ratio">{_ratio(row.ratio)}</td>'
        f'<td data-label="Claim" class="verdict {kind}"><span aria-hidden="true">{mark}</span> '
        f"{verdict}</td></tr>"
    )


def _cell(label: str, value: Value) -> str:
    kind = "number words" if isinstance(value, str) else "number"
    return f'<td class="{kind}" data-label="{label}">{escape(readable(value))}</td>'


def _ratio(ratio: float | None) -> str:
    """Write a ratio over a bar that grows from 1x: right when ours is better, left when worse."""
    if ratio is None or ratio <= 0:
        return times(ratio)
    span = min(abs(math.log2(ratio)) / _BAR_DOUBLINGS, 1.0) * 50
    start = 50.0 if ratio >= 1 else 50.0 - span
    kind = "better" if ratio >= 1 else "worse"
    return (
        f'{times(ratio)}<span class="bar" aria-hidden="true">'
        f'<i class="{kind}" style="left:{start:.1f}%;width:{span:.1f}%"></i></span>'
    )


def _figure(figure: Figure) -> str:
    if isinstance(figure.data, bytes):
        data = base64.b64encode(figure.data).decode()
        image = f'<img alt="{escape(figure.alt)}" src="data:image/png;base64,{data}">'
        spoken = ""
    else:
        # An XML declaration or a doctype has no place inside HTML.
        image = figure.data[figure.data.index("<svg") :]
        spoken = f'<p class="hidden">{escape(figure.alt)}</p>'
    table = _figures_as_table(figure) if figure.table else ""
    return (
        f"<figure><figcaption>{escape(figure.title)}</figcaption>"
        f'<div class="plot">{image}</div>{spoken}{table}</figure>'
    )


def _figures_as_table(figure: Figure) -> str:
    header, *rows = figure.table
    head = "".join(f'<th scope="col">{escape(readable(cell))}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(readable(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        "<details><summary>The figures</summary>"
        f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _commands(outcome: SystemOutcome) -> str:
    own = f"trimtab reproduce {outcome.system}"
    commands = dict.fromkeys(row.command for row in outcome.rows if row.command)
    lines = "\n".join(escape(command) for command in commands or [own])
    return f"<details class='again'><summary>Measure it again</summary><pre>{lines}</pre></details>"


def _absent(outcomes: Sequence[SystemOutcome]) -> str:
    items = "".join(
        f"<li><strong>{outcome.system}</strong> {escape(find(outcome.system).subject)}"
        f'<span class="note">{escape(outcome.error)}</span></li>'
        for outcome in outcomes
    )
    return (
        '<section id="not-available" class="absent" aria-labelledby="absent-title">'
        f'<h2 id="absent-title">Not available</h2><ul>{items}</ul></section>'
    )


# A rudder and, hinged on its edge, the small tab that turns it.
_LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" width="28" height="28" aria-hidden="true">'
    '<path d="M6 4 h10 c1 8 1 16 0 24 h-6 c-3-6-4-16-4-24z" fill="var(--ink)"/>'
    '<path d="M18 16 l8 4 c0 3-1 6-2 8 l-6-1z" fill="var(--accent)"/></svg>'
)
