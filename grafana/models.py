"""The morning look: every model in a row, the most troubled first."""

from __future__ import annotations

from grafana.board import INCIDENT_URL, MODEL_LINK, MODELS, Board, choice, incidents
from grafana.panels import GOOD_IS_ZERO, RATIO, Builder, Column, Query, Row, lines, number, rows
from grafana.queries import series

WHO = {"model": "$model"}
OPEN = f"max by (model, version, kind, severity, incident) ({series('incident_active', **WHO)})"
NONE = f"0 * max by (model, version) ({series('last_event_timestamp_seconds', **WHO)})"
"""For every version there is: so that no incident is a 0 and no monitor is no value."""

STRENGTH = (
    f"max by (model, version) ({series('feature_drift_score', **WHO, reference='baseline')}"
    f" / {series('feature_drift_threshold', **WHO, reference='baseline')})"
)
RATE = (
    f"sum by (model, version) (rate({series('events_total', **WHO, stream='inference', outcome='summarised')}"
    "[$__rate_interval]))"
)
COVERAGE = f"max by (model, version) ({series('label_coverage_ratio', **WHO, window='$window')})"
TEAM = f"{NONE} + on (model) group_left (team) max by (model, team) ({series('model_info', **WHO)})"
ONSET = (
    f"time() - max by (model, version, incident) ({series('incident_onset_timestamp_seconds', **WHO)})"
    f" and on (incident) {OPEN}"
)
"""Of whole models: a segment's incident has a table of its own."""


def severity(name: str) -> str:
    """Open incidents of a severity for each version."""
    return f"count by (model, version) (max by (model, version, incident) ({series('incident_active', **WHO, severity=name)}))"


def how_many(name: str) -> str:
    """Open incidents of a severity; no value while nothing is monitored."""
    found = f"count(max by (incident) ({series('incident_active', **WHO, severity=name)}))"
    return f"{found} or 0 * max({series('ready')})"


def error_of(family: str, **labels: str) -> str:
    """The error that models of all tasks have: the share of wrong classes, or the mean absolute error."""
    wrong = f"1 - max by (model, version) ({series(family, **WHO, metric='accuracy', **labels)})"
    off = f"max by (model, version) ({series(family, **WHO, metric='mae', **labels)})"
    return f"({wrong} or {off})"


AGAINST = f"{error_of('performance', basis='cohort', window='$window')} / ({error_of('performance_baseline')} > 0)"
TROUBLE = (
    f"(10 * {severity('critical')} or {NONE}) + (3 * {severity('warning')} or {NONE})"
    f" + (clamp_max({STRENGTH}, 3) or {NONE})"
)
WORSE = ((None, "green"), (1.1, "yellow"), (1.3, "red"))


def board() -> Board:
    """The dashboard."""
    return Board(
        MODELS,
        "Every model at a glance: traffic, worst drift against its threshold, error against the baseline's, labels, "
        "open incidents.",
        [Row("Now", _now()), Row("Over time", _over_time()), Row("Segments", _segments(), closed=True)],
        variables=[
            choice("model", "Model", "last_event_timestamp_seconds", every=True),
            choice("window", "Window of labels", "performance"),
        ],
        annotations=[incidents(**WHO)],
    )


def _now() -> list[Builder]:
    return [
        number("Models", "Models that had traffic since the service knows them. Good: as many as you run.",
               f"count(max by (model) ({series('last_event_timestamp_seconds', **WHO)}))", width=3),
        number("Critical", "Open incidents somebody is paged for. Good: 0. Their rows are on top of the table below.",
               how_many("critical"), steps=GOOD_IS_ZERO, width=3),
        number("Warnings", "Open incidents to look at today. Good: 0.",
               how_many("warning"), steps=((None, "green"), (1, "orange")), width=3),
        number("Beyond the threshold", "Model versions with a feature whose trailing window is further from the baseline "
               "than chance explains. Good: 0. It may be 1 for a moment without an incident: an incident also needs an "
               "effect that matters.",
               f"count({STRENGTH} > 1) or 0 * max({series('ready')})", steps=GOOD_IS_ZERO, width=4),
        number("Events", "Inference events a second, all models. Good: your usual traffic; 0 means that nothing is watched.",
               f"sum(rate({series('events_total', **WHO, stream='inference', outcome='summarised')}[$__rate_interval]))",
               unit="eps", width=4, decimals=1),
        number("Labels waiting", "Predictions whose truth has not come. Good: about the usual label delay times the "
               "traffic; a steady rise means that labels stopped.",
               f"sum({series('pending_predictions', **WHO)})", width=4),
        number("The monitor", "Whether the service keeps up with its streams. Good: keeps up. Otherwise everything here "
               "is old: see the dashboard of the monitor itself.",
               f"min({series('ready')})", width=3, empty="not scraped",
               words={"1": ("keeps up", "green"), "0": ("behind", "red")}),
        rows("Every model, the most troubled first",
             "One row for each version. Trouble is 10 for each critical incident, 3 for each warning, plus the worst drift "
             "over its threshold (at most 3). Good: trouble below 1, drift below 1, error against baseline near 1, coverage "
             "as usual for the model. Click a model to open its dashboard.",
             [Query(TROUBLE), Query(TEAM), Query(RATE, trend=True), Query(STRENGTH), Query(AGAINST), Query(COVERAGE),
              Query(f"{severity('critical')} or {NONE}"), Query(f"{severity('warning')} or {NONE}"),
              Query(f"time() - max by (model, version) ({series('last_event_timestamp_seconds', **WHO)})")],
             [Column("model", link=MODEL_LINK, link_title="Open ${__data.fields.model}"), Column("version", width=90),
              Column("team", width=110),
              Column("Value #A", "trouble", decimals=1, steps=((None, "green"), (1, "yellow"), (10, "red"))),
              Column("Value #G", "critical", steps=GOOD_IS_ZERO),
              Column("Value #H", "warnings", steps=((None, "green"), (1, "orange"))),
              Column("Value #D", "worst drift / threshold", decimals=2, steps=RATIO),
              Column("Value #E", "error / baseline", decimals=2, steps=WORSE),
              Column("Value #F", "labelled", unit="percentunit", decimals=0),
              Column("Trend #C", "events a second", unit="eps"),
              Column("Value #I", "newest event", unit="dtdurations"),
              Column("Value #B", hidden=True)],
             sort="trouble", height=10),
        rows("Open incidents",
             "What people were told and is not over: one row for each incident. Good: empty. Click the incident to read "
             "what the service knows of it: onset, subjects, sample sizes, baseline.",
             [Query(f"count by (model, version, kind, severity, incident) (max by (model, version, kind, severity, incident, "
                    f"subject) ({series('incident_active', **WHO)}))"),
              Query(ONSET)],
             [Column("severity", width=90), Column("model", link=MODEL_LINK, link_title="Open ${__data.fields.model}"),
              Column("version", width=90), Column("kind"), Column("Value #A", "subjects", decimals=0, width=90),
              Column("Value #B", "since its onset", unit="dtdurations"),
              Column("incident", link=INCIDENT_URL, link_title="The incident in the service")],
             sort="since its onset", height=8, empty="no open incident"),
    ]  # fmt: skip


def _over_time() -> list[Builder]:
    return [
        lines("Open incidents by kind", "How many incidents were open at each moment. Good: a flat zero. Many kinds at once "
              "on many models is one cause, most times a deployment upstream.",
              [Query(f"count by (kind) ({OPEN})", "{{kind}}")], stacked=True, decimals=0, empty="no incident in this range"),
        lines("Worst drift against its threshold", "The largest score over its threshold, ten models. Good: below the line at "
              "1. A slow climb is a changing population, a jump is a broken field or a deployment.",
              [Query(f"topk(10, {STRENGTH})", "{{model}} {{version}}")], steps=((None, "green"), (1, "red")), decimals=2),
        lines("Traffic", "Inference events a second, the ten largest. Good: its usual rhythm. A fall to nothing of one model "
              "while others go on is that model's producer.",
              [Query(f"topk(10, {RATE})", "{{model}} {{version}}")], unit="eps"),
        lines("Error against the baseline's", "Share of wrong classes, or mean absolute error, over the same on the baseline. "
              "Good: around 1, which is what the model was accepted with. It follows by as long as labels take.",
              [Query(AGAINST, "{{model}} {{version}}")], steps=((None, "green"), (1.3, "red")), decimals=2,
              empty="no labels yet, or no truth in the baseline"),
    ]  # fmt: skip


def _segments() -> list[Builder]:
    return [
        rows("Open incidents of single segments",
             "What is wrong in one segment and not in the whole model. Good: empty.",
             [Query("count by (model, version, segment, kind, severity, incident) "
                    f"({series('segment_incident_active', **WHO)})")],
             [Column("severity", width=90), Column("model", link=MODEL_LINK, link_title="Open ${__data.fields.model}"),
              Column("version", width=90), Column("segment"), Column("kind"), Column("Value", "subjects", decimals=0),
              Column("incident", link=INCIDENT_URL, link_title="The incident in the service")],
             width=12, empty="no open incident"),
        lines("Worst drift of segments", "The largest score over its threshold in the newest closed window, the ten worst "
              "segments. Good: below 1. Needs `segments` in the configuration of the model.",
              [Query(f"topk(10, max by (model, version, segment) ({series('segment_feature_drift_score', **WHO)}"
                     f" / {series('segment_feature_drift_threshold', **WHO)}))", "{{model}} {{version}} {{segment}}")],
              steps=((None, "green"), (1, "red")), height=9, decimals=2, empty="no segments configured"),
    ]  # fmt: skip
