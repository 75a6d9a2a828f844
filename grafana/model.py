"""One model: what is wrong with it, since when, in which features, and how well it is right."""

from __future__ import annotations

from grafana.board import FEATURE_LINK, INCIDENT_URL, MODEL, Board, baselines, choice, incidents
from grafana.panels import GOOD_IS_ZERO, RATIO, Builder, Column, Query, Row, heat, lines, number, rows, states
from grafana.queries import expected, grown, series

WHO = {"model": "$model", "version": "$version"}
DRIFT = {**WHO, "window": "$window", "reference": "baseline"}
SCORE, THRESHOLD = (series(f"feature_drift_{part}", **DRIFT) for part in ("score", "threshold"))
RATIOS = f"max by (version, feature) ({SCORE} / {THRESHOLD})"
WORST = f"topk(20, max by (version, feature) (max_over_time(({SCORE} / {THRESHOLD})[$__range:5m] @ end())))"
NONE_IS_BAD = ((None, "red"), (1, "text"))
MEASURED = {**WHO, "metric": "$metric", "window": "$window"}
ONSET = (
    f"time() - max by (version, incident) ({series('incident_onset_timestamp_seconds', **WHO)})"
    f" and on (incident) {series('incident_active', **WHO)}"
)
"""Of the whole model: segments' incidents are on the dashboard of all models."""

OUTCOMES = f"sum by (outcome) (rate({series('events_total', **WHO, stream='inference')}[$__rate_interval]))"


def board() -> Board:
    """The dashboard."""
    return Board(
        MODEL,
        "One model: its incidents, which features moved and when, how well it does, what it predicts and how fast.",
        [
            Row("Now", _now()),
            Row("Inputs", _inputs()),
            Row("Quality, as labels tell", _quality()),
            Row("Predictions and latency", _predictions()),
            Row("Versions, baselines and what the budget of false alarms buys", _versions(), closed=True),
            Row("Segments", _segments(), closed=True),
        ],
        variables=[
            choice("model", "Model", "last_event_timestamp_seconds"),
            choice("version", "Version", "last_event_timestamp_seconds", of={"model": "$model"}, every=True),
            choice("window", "Window", "feature_drift_score", of=WHO),
            # The bias comes first in the alphabet and is nobody's first question.
            choice("metric", "Metric", "performance", of=WHO, pattern="/^(?!bias$).*/"),
        ],
        annotations=[incidents(**WHO), baselines(**WHO)],
    )


def _now() -> list[Builder]:
    return [
        number("Open incidents", "Incidents of this model that are not over. Good: 0.",
               f"count(max by (incident) ({series('incident_active', **WHO)})) or 0 * max({series('ready')})",
               steps=GOOD_IS_ZERO),
        number("Worst drift / threshold", "The largest score of a feature over its threshold, in the trailing window. Good: "
               "below 1.", f"max({RATIOS})", steps=RATIO, decimals=2),
        number("Features beyond", "Features beyond their threshold now. Good: 0; all at once is a broken input, not a "
               "changed population.", f"count({RATIOS} > 1) or 0 * max({series('ready')})", steps=GOOD_IS_ZERO),
        number("Events", "Inference events a second. Good: this model's usual traffic.",
               f"sum(rate({series('events_total', **WHO, stream='inference', outcome='summarised')}[$__rate_interval]))",
               unit="eps", decimals=1),
        number("Labelled", "Share of the newest ripe window's predictions whose truth is known. Good: what this model "
               "usually has; quality below is of these alone.",
               f"max({series('label_coverage_ratio', **WHO, window='$window')})", unit="percentunit", decimals=0,
               empty="no labels yet"),
        number("Newest event", "Age of the newest event by its own timestamp. Good: seconds to a minute.",
               f"time() - max({series('last_event_timestamp_seconds', **WHO)})", unit="dtdurations",
               steps=((None, "green"), (300, "orange"), (3600, "red"))),
        rows("Open incidents and what they name",
             "One row for each subject of each open incident. The effect is in standard deviations of the baseline, or "
             "Cohen's h for shares. Good: empty. Click the incident for its onset and the bins that moved.",
             [Query(f"max by (version, kind, severity, incident, subject) ({series('incident_effect', **WHO)})"
                    f" or 0 * max by (version, kind, severity, incident, subject) ({series('incident_active', **WHO)})"),
              Query(ONSET)],
             [Column("severity", width=90), Column("kind"), Column("subject"), Column("version", width=90),
              Column("Value #A", "effect", decimals=2, width=100), Column("Value #B", "since its onset", unit="dtdurations"),
              Column("incident", link=INCIDENT_URL, link_title="The incident in the service")],
             sort="effect", height=7, empty="no open incident"),
    ]  # fmt: skip


def _inputs() -> list[Builder]:
    return [
        states("Features over time: score against threshold",
               "The twenty features with the largest score over their threshold in this range. Green: as the baseline; "
               "yellow: from 0.8 of the threshold; red: beyond it. Good: green from left to right. A bar that ends has no "
               "good value left: a broken field. Red in one column across many features is one event upstream.",
               Query(f"{RATIOS} and on (version, feature) {WORST}", "{{feature}} ({{version}})"), steps=RATIO,
               empty="no baseline yet: nothing is judged"),
        rows("Features now, the furthest first",
             "Scores of the trailing window. Expected is the score's mean when nothing has changed: a score near it says "
             "nothing, and 0 values is a broken "
             "field. Good: score / threshold below 1, missing as in the baseline. Click a feature to look into it.",
             [Query(RATIOS), Query(f"max by (version, feature) ({SCORE})"), Query(f"max by (version, feature) ({THRESHOLD})"),
              Query(f"max by (version, feature) ({series('feature_drift_expected', **DRIFT)})"),
              Query(f"max by (version, feature) ({series('feature_window_samples', **WHO, window='$window')})"),
              Query(f"max by (version, feature) ({series('feature_missing_ratio', **WHO, window='$window')})")],
             [Column("feature", link=FEATURE_LINK, link_title="Open ${__data.fields.feature}"), Column("version", width=90),
              Column("Value #A", "score / threshold", decimals=2, steps=RATIO), Column("Value #B", "score", decimals=4),
              Column("Value #C", "threshold", decimals=4), Column("Value #D", "expected", decimals=4),
              Column("Value #E", "values", decimals=0, steps=NONE_IS_BAD),
              Column("Value #F", "missing", unit="percentunit", decimals=1)],
             sort="score / threshold", width=14, empty="no baseline yet: nothing is judged"),
        lines("What became of the events", "Inference events a second by their fate. Good: nearly all summarised. Late events "
              "are not in the windows, duplicates are counted once.",
              [Query(OUTCOMES, "{{outcome}}")], unit="eps", width=10, height=9, stacked=True),
    ]  # fmt: skip


def _quality() -> list[Builder]:
    limit = {"model": "$model", "metric": "$metric"}
    return [
        lines("$metric with its 95 % interval", "The metric of the newest ripe window of predictions, its interval (dotted), "
              "the baseline's value and the objective (dashed). Good: the baseline inside the interval, the objective on the "
              "right side of it. It is restated as labels come.",
              [Query(f"max by (version) ({series('performance', **MEASURED, basis='cohort')})", "{{version}}"),
               Query(f"max by (version) ({series('performance_lower', **MEASURED, basis='cohort')})", "{{version}} lower"),
               Query(f"max by (version) ({series('performance_upper', **MEASURED, basis='cohort')})", "{{version}} upper"),
               Query(f"max by (version) ({series('performance_baseline', **WHO, metric='$metric')})", "{{version}} baseline"),
               Query(f"max by (bound) ({series('performance_objective', **limit)})", "objective ({{bound}})")],
              dashed="baseline|objective", faint="lower|upper", least=None, width=16, height=9, decimals=3,
              empty="no labels yet"),
        lines("By prediction or by arrival of the label", "The same metric of the predictions made in a window (cohort) and of "
              "the labels that came in it (arrival). Good: close to each other. Arrival moves first when the world changes "
              "while labels are quick; a gap means that early labels are not like late ones.",
              [Query(f"max by (version, basis) ({series('performance', **MEASURED, basis='cohort|arrival')})",
                     "{{basis}} ({{version}})")], least=None, width=8, height=9, decimals=3, empty="no labels yet"),
        lines("$metric expected before labels", "What to expect of the newest closed window's predictions, from scores and "
              "inputs, with its 95 % interval (dotted); beside it what labels show so far. Good: together. A gap that stays "
              "is what the inputs do not explain: the relation has changed.",
              [Query(f"max by (version) ({expected('performance', **MEASURED)})", "{{version}} expected"),
               Query(f"max by (version) ({expected('performance_lower', **MEASURED)})",
                     "{{version}} expected, lower"),
               Query(f"max by (version) ({expected('performance_upper', **MEASURED)})",
                     "{{version}} expected, upper"),
               Query(f"max by (version) ({series('performance', **MEASURED, basis='cohort')})", "{{version}} realised")],
              faint="lower|upper", least=None, width=24, height=9, decimals=3,
              empty="nothing is expected: no scores, or no truth in the baseline"),
    ]  # fmt: skip


def _predictions() -> list[Builder]:
    made = f"sum by (bin) (increase({series('feature_observations_total', **WHO, feature='prediction')}[$__rate_interval]))"
    scores = {**WHO, "feature": "prediction.score"}
    scored = f"sum by (bin) (increase({series('feature_observations_total', **scores)}[$__rate_interval]))"
    latency = series("latency_seconds", **WHO, window="$window")
    return [
        heat("What is predicted", "Share of predictions in each class, or in each tenth of the baseline's values (00 the "
             "lowest). Good: even rows for numbers, for each tenth held a tenth of the baseline; classes as they were.",
             Query(f"{made} / ignoring (bin) group_left () sum({made})", "{{bin}}"), width=8),
        heat("Scores", "Share of scores in each tenth of the baseline's. Good: even rows. Darker at an edge means that the "
             "model is surer, or less sure, than it was.",
             Query(f"{scored} / ignoring (bin) group_left () sum({scored})", "{{bin}}"), width=8,
             empty="this model gives no scores"),
        lines("Latency of the model", "What half, 95 % and 99 % of the predictions took at most, in the trailing window, from "
              "`latency_ms` of the events. Good: flat. Values beyond the baseline's largest are shown as that.",
              [Query(f"max by (percentile) ({latency})", "P{{percentile}}")], unit="s", width=8, height=9,
              empty="events carry no latency_ms"),
    ]  # fmt: skip


def _versions() -> list[Builder]:
    return [
        rows("Versions and baselines", "Each version with the baseline it is judged by. Good: not provisional; a version "
             "without a row here has no baseline and is not judged.",
             [Query(f"max by (version, baseline, provisional) ({series('baseline_info', **WHO)})"),
              Query(f"time() - max by (version) ({series('last_event_timestamp_seconds', **WHO)})"),
              Query(f"sum by (version) (rate({series('events_total', **WHO, stream='inference', outcome='summarised')}"
                    "[$__rate_interval]))"),
              Query(f"max by (version) ({series('false_alarm_budget_events', **WHO)})")],
             [Column("version", width=90), Column("baseline"), Column("provisional", width=110),
              Column("Value #A", "in use", width=80), Column("Value #B", "newest event", unit="dtdurations"),
              Column("Value #C", "events a second", unit="eps", decimals=1),
              Column("Value #D", "events per false alarm", decimals=0)], width=12, empty="no baseline yet"),
        lines("Traffic by version", "Inference events a second. Good: the share you routed to each.",
              [Query(f"sum by (version) (rate({series('events_total', **WHO, stream='inference', outcome='summarised')}"
                     "[$__rate_interval]))", "{{version}}")], unit="eps", stacked=True, height=9),
        lines("Events until a shift is found", "How many events it takes to find a shift of so many standard deviations in the "
              "feature where that takes longest. Good: less than you see in the time you can wait. More false alarms "
              "allowed means fewer events.",
              [Query(f"max by (version, shift) ({series('detectable_shift_events', **WHO)})", "{{shift}} sd ({{version}})")],
              height=8),
        lines("Changes that detectors saw", "Changes an hour in any feature, before they are weighed: not each becomes an "
              "incident. Good: rare.",
              [Query(grown("feature", "1h", "detector_changes_total", **WHO), "{{feature}}")],
              height=8, stacked=True, empty="no change seen"),
    ]  # fmt: skip


def _segments() -> list[Builder]:
    drift = {**WHO, "window": "$window"}
    return [
        lines("Traffic by segment", "Summarised events a second. Good: the usual shares.",
              [Query(f"sum by (segment) (rate({series('segment_events_total', **WHO)}[$__rate_interval]))", "{{segment}}")],
              unit="eps", stacked=True, width=8, empty="no segments configured"),
        lines("Worst drift by segment", "The largest score over its threshold in the newest closed window of the shortest "
              "length. Good: below 1.",
              [Query(f"max by (version, segment) ({series('segment_feature_drift_score', **drift)}"
                     f" / {series('segment_feature_drift_threshold', **drift)})", "{{segment}} ({{version}})")],
              steps=((None, "green"), (1, "red")), width=8, decimals=2, empty="no segments configured"),
        lines("$metric by segment", "The metric of the newest ripe window of predictions in each segment. Good: close to "
              "each other and to the whole model's.",
              [Query(f"max by (version, segment) ({series('segment_performance', **MEASURED, basis='cohort')})",
                     "{{segment}} ({{version}})")], width=8, least=None, decimals=3, empty="no segments, or no labels yet"),
    ]  # fmt: skip
