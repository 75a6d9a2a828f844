"""The page at `/` and the one at `/api/docs`: HTML made here, with no file from anywhere else.

The page is whole without a script. The script fetches it again every few seconds and swaps its main part, so there
is one place that turns figures into HTML and escapes them: this one.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from stream_monitor.records import Json

WORST_FEATURES = 12
RECENT_CLOSED = 10
PERFORMANCE_ROWS = 24
COHORT_LINES = 4
NAME_CHARACTERS = 80
"""What fits a screen; the API has the rest."""

STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1a1d23;--soft:#626a78;--line:#e1e5eb;--track:#e8ebf0;
--bad:#c0282d;--badsoft:#fdecec;--warn:#9a5b00;--warnsoft:#fdf2dc;--good:#1c7a45;--note:#2b62b8;--notesoft:#e8f0fd}
@media (prefers-color-scheme:dark){:root{--ground:#13161b;--card:#1b1f26;--ink:#e7eaf0;--soft:#98a1b0;--line:#2c323c;
--track:#2a303a;--bad:#ff7b7b;--badsoft:#3a1d20;--warn:#f0b354;--warnsoft:#372a14;--good:#5fcf92;--note:#86b1f7;
--notesoft:#1b2a42}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{display:flex;flex-wrap:wrap;gap:4px 20px;align-items:baseline;padding-top:22px;padding-bottom:14px}
h1{font-size:20px;margin:0}h2{font-size:15px;margin:0 0 10px}
nav{margin-left:auto;display:flex;gap:16px}a{color:var(--note)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0 0 16px}
table{width:100%;border-collapse:collapse}.wide{overflow-x:auto}
th{font-weight:500;color:var(--soft);text-align:left;font-size:13px}
th,td{padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}tr:last-child td{border-bottom:0}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.name{min-width:84px;max-width:340px;overflow-wrap:anywhere}.when{white-space:nowrap}.soft{color:var(--soft)}.small{font-size:13px}
ul.incidents{list-style:none;margin:0;padding:0}
ul.incidents li{border-left:4px solid var(--line);padding:2px 0 2px 14px;margin:0 0 14px}
ul.incidents li:last-child{margin-bottom:0}
li.critical{border-color:var(--bad)!important}li.warning{border-color:var(--warn)!important}
li.info{border-color:var(--note)!important}
.tag{display:inline-block;border-radius:4px;padding:0 7px;font-size:12px;line-height:20px;white-space:nowrap;
background:var(--track);color:var(--soft)}
.tag.critical,.tag.drift{background:var(--badsoft);color:var(--bad)}
.tag.warning{background:var(--warnsoft);color:var(--warn)}.tag.info{background:var(--notesoft);color:var(--note)}
.tag.ok{color:var(--good)}
.words{margin:2px 0;overflow-wrap:anywhere}
.bar{display:block;min-width:160px;margin-top:7px;background:var(--track);border-radius:5px}
.bar rect{fill:var(--good)}.bar.over rect{fill:var(--bad)}.bar rect.mark{fill:var(--ink)}
.cover .bar{min-width:90px}.strip{display:block;min-width:190px;margin-top:3px}.strip line{stroke:var(--ink);stroke-width:2}
.strip circle{fill:var(--ink)}.strip circle.before{fill:none;stroke:var(--soft)}.strip rect{fill:var(--note);opacity:.25}
.strip line.base{stroke:var(--warn);stroke-dasharray:2 2}
.state.bad{color:var(--bad)}.state.good{color:var(--good)}.empty{color:var(--soft);margin:0}
dl{display:flex;flex-wrap:wrap;gap:8px 34px;margin:0}dt{color:var(--soft);font-size:13px}
dd{margin:0;font-size:19px;font-variant-numeric:tabular-nums}
code{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}footer{padding-bottom:26px}
"""

SCRIPT = """
const freshen = async () => {
  const note = document.getElementById('note');
  try {
    const answer = await fetch('/', {headers: {Accept: 'text/html'}});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    for (const id of ['state', 'main'])
      document.getElementById(id).replaceWith(document.adoptNode(page.getElementById(id)));
    document.title = page.title;
    note.textContent = 'Figures as of ' + new Date().toLocaleTimeString() + '.';
  } catch (error) {
    note.textContent = 'The service does not answer: these figures are old.';
  }
};
setInterval(() => document.hidden || String(getSelection()) || freshen(), 5000);
"""


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_source_hash(SCRIPT)}; style-src {_source_hash(STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only this style and this script run: a name that got through the escaping would still be text. Bars are therefore
drawn with SVG attributes and not with inline styles."""


def page(
    *,
    summary: Json,
    models: Sequence[Json],
    features: Sequence[Json],
    opened: Sequence[Json],
    closed: Sequence[Json],
    performance: Sequence[Json],
    reasons: Sequence[str],
    labels: Sequence[Json] = (),
    estimated: Sequence[Json] = (),
) -> str:
    """The console. `reasons` why the service is not ready; none: it is."""
    count = len(opened)
    title = f"({count}) Stream Monitor" if count else "Stream Monitor"
    body = "".join(
        (
            _opened(opened),
            _models(models),
            _features(features),
            _cohorts(labels),
            _performance(spoken(performance)[:PERFORMANCE_ROWS], spoken(estimated)),
            _closed(closed),
            _totals(summary),
        )
    )
    return _document(
        title,
        f"<header><h1>Stream Monitor</h1>{_state(reasons)}"
        '<nav><a href="/metrics">Metrics</a><a href="/api/docs">API</a></nav></header>'
        f'<main id="main">{body}</main>'
        '<footer class="soft small" id="note">Refreshes by itself. Times are event time, UTC.</footer>'
        f"<script>{SCRIPT}</script>",
    )


def docs_page(schema: Json) -> str:
    """What the API can be asked, from its OpenAPI description."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {_text(path)}</code></td><td>{_text(route.get('summary', ''))}"
        f'<div class="soft small">{_parameters(route)}</div></td></tr>'
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
    )
    return _document(
        "Stream Monitor API",
        '<header><h1>Stream Monitor API</h1><nav><a href="/">Console</a>'
        '<a href="/api/openapi.json">OpenAPI</a></nav></header>'
        f'<main><section><div class="wide"><table>{rows}</table></div></section></main>',
    )


def _parameters(route: Mapping[str, Any]) -> str:
    names = [f"<code>{_text(p['name'])}</code>" for p in route.get("parameters", ())]
    return ", ".join(names) + (" with a JSON body" if "requestBody" in route else "")


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>"
    )


# -- parts -----------------------------------------------------------------------------------------


def _state(reasons: Sequence[str]) -> str:
    if not reasons:
        return '<span id="state" class="state good">keeps up</span>'
    return f'<span id="state" class="state bad">not ready: {_text("; ".join(reasons))}</span>'


def _section(title: str, content: str, *, otherwise: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content or f'<p class=empty>{_text(otherwise)}</p>'}</section>"


def _table(heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Heads are (text, class of the column); cells are HTML. Empty without rows."""
    lines = [
        "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(row, heads, strict=True)) for row in rows
    ]
    if not lines:
        return ""
    head = "".join(f'<th class="{kind}">{_text(text)}</th>' for text, kind in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _opened(incidents: Sequence[Json]) -> str:
    items = "".join(_incident(i) for i in incidents)
    return _section(
        f"Open incidents ({len(incidents)})" if incidents else "Open incidents",
        f'<ul class="incidents">{items}</ul>' if items else "",
        otherwise="Nothing is open.",
    )


def _incident(incident: Json) -> str:
    subjects = "; ".join(f"{s['name'][:NAME_CHARACTERS]} {s['detail']}" for s in incident["subjects"][:4])
    more = len(incident["subjects"]) - 4
    return (
        f'<li class="{_text(incident["severity"])}"><span class="tag {_text(incident["severity"])}">'
        f"{_text(incident['severity'])}</span> <b>{_line(incident)}</b> "
        f'<span class="soft">{_text(incident["kind"].replace("_", " "))}</span>'
        f'<p class="words">{_text(incident["summary"])}</p>'
        f'<div class="soft small words">since {_time(incident["onset"])}, seen {_time(incident["opened_at"])}'
        f"{' · ' + _text(subjects) if subjects else ''}{f' and {more} more' if more > 0 else ''}</div></li>"
    )


def _line(row: Json) -> str:
    """Model and version, and the segment where it is one."""
    parts = ", ".join(f"{name}={value}" for name, value in row.get("segment", {}).items())
    return _name(f"{row['model']} {row['version']}" + (f" [{parts}]" if parts else ""))


def _models(models: Sequence[Json]) -> str:
    heads = [("Model", "name"), ("Team", ""), ("Events", "n"), ("Late", "n"), ("Labelled", "n"), ("Waiting", "n"),
             ("Newest event", ""), ("Baseline", ""), ("Open", "n")]  # fmt: skip
    rows = (
        (
            _line(m),
            _text(m.get("team") or "–"),
            *(_count(m.get(name)) for name in ("events", "late", "labelled", "waiting")),
            _time(m.get("last_event")),
            _baseline(m),
            _count(m.get("open_incidents")),
        )
        for m in models
    )
    return _section("Models", _table(heads, rows), otherwise="No events yet.")


def _baseline(model: Json) -> str:
    if model.get("baseline_id") is None:
        return '<span class="tag warning">none yet</span>'
    return '<span class="tag">provisional</span>' if model.get("provisional") else '<span class="tag ok">given</span>'


def _features(features: Sequence[Json]) -> str:
    found = [(f, score) for f in features if (score := worst_score(f)) is not None]
    found.sort(key=lambda pair: -strength(pair[1]))
    heads = [("Feature", "name"), ("Model", "name"), ("Score against threshold", ""), ("", "n"), ("", "")]
    rows = (
        (
            _name(feature["name"]),
            _line(feature),
            _bar(score),
            f'{_number(score["value"])} <span class="soft">/ {_number(score["threshold"])}</span>',
            f'<span class="tag {_text(score["verdict"])}">{_text(score["verdict"])}</span> '
            f'<span class="soft small">{_text(score["statistic"])}, {_text(score["window"])}</span>',
        )
        for feature, score in found[:WORST_FEATURES]
    )
    return _section("Worst features", _table(heads, rows), otherwise="No window has been judged yet.")


def worst_score(feature: Json) -> Json | None:
    """The latest score that is furthest over its threshold; None where nothing was judged."""
    return max(feature.get("latest", ()), key=strength, default=None)


def strength(score: Json) -> float:
    """Value over threshold; 0 where either is undefined. What is too small a sample to tell comes last."""
    value, threshold = _defined(score.get("value")), _defined(score.get("threshold"))
    if value is None or not threshold or score.get("verdict") == "insufficient":
        return 0.0
    return value / threshold


def _bar(score: Json) -> str:
    """The threshold stands at half the width; twice the threshold and more fills it."""
    ratio = strength(score)
    kind = "bar over" if ratio > 1 else "bar"
    width = min(ratio, 2.0) * 50
    return (
        f'<svg class="{kind}" width="100%" height="10" role="img" aria-label="{ratio:.2f} times the threshold">'
        f'<rect width="{width:.1f}%" height="10" rx="5"/><rect x="50%" width="2" height="10" class="mark"/></svg>'
    )


SPOKEN_METRICS = ("accuracy", "f1", "auc", "log_loss", "calibration_error", "mae", "rmse", "bias", "r2")
"""What people ask first; the API has the others, and those of segments and longer windows."""


def spoken(rows: Iterable[Json]) -> list[Json]:
    """Those of whole models in the shortest window each has: one model's every metric would leave no room for another."""
    windows: dict[tuple[str, str, str], str] = {}
    found = []
    for row in rows:
        window = windows.setdefault((row["model"], row["version"], row.get("outcome", "label")), row["window"])
        if not row.get("segment") and row["metric"] in SPOKEN_METRICS and row["window"] == window:
            found.append(row)
    return found


def _performance(rows: Sequence[Json], estimated: Sequence[Json]) -> str:
    heads = [("Model", "name"), ("Metric", ""), ("Value", "n"), ("Interval", "n"), ("Baseline", "n"), ("Coverage", "n"),
             ("Labelled", "n"), ("Window", "")]  # fmt: skip
    cells = (
        (
            _line(r),
            _text(r["metric"] + ("" if r.get("outcome", "label") == "label" else f" ({r['outcome']})")),
            _number(r["value"]),
            _interval(r),
            _number(r["baseline_value"]),
            _share(r["coverage"]),
            _count(r["samples"]),
            f'{_text(r["window"])} <span class="soft small">to {_time(r["window_end"])}</span>',
        )
        for r in rows
    )
    table = _table(heads, cells)
    return _section("Model quality", table and table + _gaps(estimated), otherwise="No labels yet.")


def _gaps(estimated: Sequence[Json]) -> str:
    """Where labels have lasted to show something else than was expected, one sentence for each version."""
    found: dict[tuple[str, str], Json] = {}
    for row in estimated:
        if row.get("gap"):
            found.setdefault((row["model"], row["version"]), row)
    return "".join(f'<p class="small words">{_line(row)}: {_text(row["gap"])}</p>' for row in found.values())


def _interval(row: Json) -> str:
    lower, upper = _number(row["lower"]), _number(row["upper"])
    return lower if lower == upper == "–" else f"{lower} – {upper}"


def _cohorts(labels: Sequence[Json]) -> str:
    """How the newest cohorts of each version were labelled, and what became of their first metric meanwhile."""
    found = [(row, cohorts) for row in labels if (cohorts := labelled_cohorts(row))]
    found.sort(key=lambda pair: str(pair[1][0]["window_end"]), reverse=True)
    found.sort(key=lambda pair: not pair[0].get("is_late"))
    heads = [("Model", "name"), ("Predictions of", "when"), ("Labelled", "cover"), ("", "n"), ("First said", "n"),
             ("Now", "n"), ("Expected", "n"), ("", "")]  # fmt: skip
    rows = [cells for row, cohorts in found[:COHORT_LINES] for cells in _cohort_rows(row, cohorts)]
    more = len(found) - COHORT_LINES
    left = f'; {more} more versions in <a href="/api/v1/labels">the API</a>' if more > 0 else ""
    legend = (
        '<p class="soft small words">Bar: labelled, mark: usual by now. Strip: the band is what was expected without '
        "labels, the line what they say now with its interval, circles what was said before, the dashed mark the "
        f"baseline{left}.</p>"
    )
    table = _table(heads, rows)
    waiting = "".join(_waits(row) for row, _ in found[:COHORT_LINES])
    return _section("Cohorts and their labels", table and table + waiting + legend, otherwise="No labels yet.")


def _waits(row: Json) -> str:
    """Why errors are not watched as labels come, where they are not."""
    watch = row.get("watch") or {"state": AS_THEY_COME}
    if watch["state"] == AS_THEY_COME:
        return ""
    held = f" ({_count(watch['held'])} held back)" if watch["held"] else ""
    return f'<p class="small words">{_line(row)}: errors wait, {_text(watch["reason"])}{held}.</p>'


AS_THEY_COME = "as_they_come"
"""What `/api/v1/labels` says of a watch that waits for nothing."""


def labelled_cohorts(row: Json) -> list[Json]:
    """The cohorts of the shortest window that has labels for any; the newest first."""
    by_window: dict[str, list[Json]] = {}
    for cohort in row.get("cohorts", ()):
        by_window.setdefault(cohort["window"], []).append(cohort)
    return next((some for some in by_window.values() if any(c["labelled"] for c in some)), [])


def _cohort_rows(row: Json, cohorts: Sequence[Json]) -> Iterator[Sequence[str]]:
    ends = [e for c in cohorts for e in _ends(c)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    named = "" if row["outcome"] == "label" else f"{row['outcome']} "
    for number, cohort in enumerate(cohorts):
        figure = _first_figure(cohort)
        metric = str(figure.get("metric", ""))
        before = _said(cohort, metric)
        first = f'{_number(before[0][1])} <span class="soft">at {_share(before[0][0])}</span>' if before else "–"
        yield (
            f'{_line(row)} <span class="soft small">{_name(named + metric)}</span>' if number == 0 else "",
            f'{_time(cohort["window_start"])} <span class="soft small">{_text(cohort["window"])}</span>',
            _filled(cohort),
            f'{_share(cohort["coverage"])} <span class="tag {RIPE.get(cohort["ripeness"], "")}">'
            f"{_text(cohort['ripeness'].replace('_', ' '))}</span>",
            first,
            _number(figure.get("value")),
            _interval({end: figure.get(f"expected_{end}") for end in ("lower", "upper")}),
            _strip(figure, [value for _, value in before], low, high),
        )


RIPE = {"ripe": "ok", "labels_missing": "warning"}
"""Ripeness -> how it is marked."""


def _first_figure(cohort: Json) -> Json:
    return cohort["figures"][0] if cohort["figures"] else {}


def _said(cohort: Json, metric: str) -> list[tuple[float, float]]:
    """(coverage, value) of a metric at each revision."""
    said = [(r["coverage"], f["value"]) for r in cohort["revisions"] for f in r["figures"] if f["metric"] == metric]
    return [(coverage, value) for coverage, value in said if _defined(value) is not None]


def _ends(cohort: Json) -> list[float]:
    """All that the strip of a cohort has to have room for."""
    figure = _first_figure(cohort)
    names = ("value", "lower", "upper", "expected_lower", "expected_upper", "baseline_value")
    values = [*(figure.get(name) for name in names), *(value for _, value in _said(cohort, str(figure.get("metric"))))]
    return [number for value in values if (number := _defined(value)) is not None]


def _filled(cohort: Json) -> str:
    """The labelled share of the whole width, with a mark at what it usually is by now."""
    usual = _defined(cohort.get("usual_coverage"))
    mark = "" if usual is None else f'<rect x="{100 * usual:.1f}%" width="2" height="10" class="mark"/>'
    return (
        f'<svg class="bar" width="100%" height="10" role="img" aria-label="{_share(cohort["coverage"])} labelled">'
        f'<rect width="{100 * (_defined(cohort["coverage"]) or 0.0):.1f}%" height="10" rx="5"/>{mark}</svg>'
    )


def _strip(figure: Json, before: Sequence[float], low: float, high: float) -> str:
    """Expected, before and now on one scale, the same for all cohorts of a version."""

    def at(value: object) -> str | None:
        number = _defined(value)
        return None if number is None else f"{4 + 92 * (number - low) / ((high - low) or 1.0):.1f}%"

    parts = []
    left, right = _defined(figure.get("expected_lower")), _defined(figure.get("expected_upper"))
    if left is not None and right is not None:
        width = 92 * (right - left) / ((high - low) or 1.0)
        parts.append(f'<rect x="{at(left)}" width="{max(width, 1.0):.1f}%" height="16" rx="3"/>')
    if (base := at(figure.get("baseline_value"))) is not None:
        parts.append(f'<line class="base" x1="{base}" x2="{base}" y1="0" y2="16"/>')
    parts += [f'<circle class="before" cx="{at(value)}" cy="8" r="3"/>' for value in before]
    lower, now, upper = (at(figure.get(name)) for name in ("lower", "value", "upper"))
    if lower is not None and upper is not None:
        parts.append(f'<line x1="{lower}" x2="{upper}" y1="8" y2="8"/>')
    if now is not None:
        parts.append(f'<circle cx="{now}" cy="8" r="4"/>')
    words = f"{_text(figure.get('metric', 'no figure'))} {_number(figure.get('value'))}"
    return f'<svg class="strip" width="100%" height="16" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _closed(incidents: Sequence[Json]) -> str:
    heads = [("Closed", ""), ("Model", "name"), ("Severity", ""), ("What it was", "words")]
    rows = (
        (
            _time(i["closed_at"]),
            _line(i),
            f'<span class="tag {_text(i["severity"])}">{_text(i["severity"])}</span>',
            _text(i["summary"]),
        )
        for i in incidents[:RECENT_CLOSED]
    )
    return _section("Recently closed", _table(heads, rows), otherwise="Nothing was closed yet.")


def _totals(summary: Json) -> str:
    parts = [
        f"<div><dt>{_text(title)}</dt><dd>{_count(summary.get(group, {}).get(name))}</dd></div>"
        for title, group, name in (
            ("events summarised", "inference", "summarised"),
            ("late", "inference", "late"),
            ("duplicate", "inference", "duplicate"),
            ("refused", "inference", "rejected"),
            ("labels matched", "ground_truth", "matched"),
            ("labels waiting", "ground_truth", "orphan_waiting"),
            ("predictions waiting", "predictions", "waiting"),
        )
    ]
    return _section("Since the beginning", f"<dl>{''.join(parts)}</dl>", otherwise="")


# -- words -----------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Anything as text that is safe in an element and in a quoted attribute."""
    return escape(str(value).encode("utf-8", "replace").decode(), quote=True)


def _name(text: str) -> str:
    """A name; a very long one is cut, and whole on hovering."""
    if len(text) <= NAME_CHARACTERS:
        return _text(text)
    return f'<span title="{_text(text[:1000])}">{_text(text[:NAME_CHARACTERS])}…</span>'


def _defined(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _shown(write: Callable[[float], str]) -> Callable[[object], str]:
    """What is undefined is a dash, not nan."""

    def show(value: object) -> str:
        number = _defined(value)
        return "–" if number is None else write(number)

    return show


_number = _shown(lambda v: f"{v:.3g}" if abs(v) < 1 else f"{v:,.2f}".replace(",", "\u202f"))
_count = _shown(lambda v: f"{v:,.0f}".replace(",", "\u202f"))
_share = _shown(lambda v: f"{100 * v:.0f} %")


def _time(text: str | None) -> str:
    """`2026-11-21T08:55:00.000Z` as `11-21 08:55`, the whole on hovering."""
    if not text:
        return "–"
    return f'<time datetime="{_text(text)}" title="{_text(text)}">{_text(text[5:16].replace("T", " "))}</time>'
