"""Truth as it comes: how much of it, how late, and what it says of the predictions."""

from __future__ import annotations

from grafana.board import LABELS, Board, baselines, choice, incidents
from grafana.panels import Builder, Column, Query, Row, heat, lines, matrix, number, pairs, rows
from grafana.queries import expected, series

WHO = {"model": "$model", "version": "$version"}
MEASURED = {**WHO, "metric": "$metric", "window": "$window"}
DELAY = series("label_delay_seconds_bucket", model="$model", outcome="label")
DELAYS = f"sum by (le) (increase({DELAY}[$__rate_interval]))"
TRUTHS = f"sum by (outcome) (rate({series('events_total', model='$model', stream='ground_truth')}[$__rate_interval]))"
NO_LABELS = "no labels yet"
NO_ESTIMATE = "nothing is expected: no scores, or no truth in the baseline"
AS_USUAL = ((None, "red"), (0.5, "yellow"), (0.9, "green"))
"""Below half of the usual labels a lasting outage opens `labels_late`; a tenth less is no concern."""

NOW_COVERED = series("label_coverage_ratio", **WHO, window="$window")
USUALLY = series("label_coverage_expected_ratio", **WHO, window="$window")
NO_CLASSES = "this model predicts numbers, or has no labels yet"


def board() -> Board:
    """The dashboard."""
    return Board(
        LABELS,
        "Labels of one model: coverage, delay and fates, and every metric with its interval beside the baseline's.",
        [
            Row("Now", _now()),
            Row("Labels", _labels()),
            Row("Performance", _performance()),
            Row("Classes, confidence and errors", _classes()),
            Row("Joining", _joining(), closed=True),
        ],
        variables=[
            choice("model", "Model", "performance"),
            choice("version", "Version", "performance", of={"model": "$model"}, newest=True),
            choice("window", "Window", "performance", of=WHO),
            choice("metric", "Metric", "performance", of=WHO, pattern="/^(?!bias$).*/"),
        ],
        annotations=[incidents(**WHO, kind="concept_drift|performance|labels_late"), baselines(**WHO)],
    )


def _now() -> list[Builder]:
    value = series("performance", **MEASURED, basis="cohort")
    return [
        number("$metric", "The metric of the newest window of predictions whose labels are through. Good: the baseline's value "
               "within its interval, see below.", f"max({value})", decimals=3, empty=NO_LABELS, width=3),
        number("Baseline's $metric", "The same on the baseline: what the model was accepted with. Good: the panel "
               "beside it near this.",
               f"max({series('performance_baseline', **WHO, metric='$metric')})", decimals=3, empty="the baseline has no truth",
               width=3),
        number("Expected $metric", "What to expect of all predictions of the newest closed window, from scores and inputs, "
               "before their labels. Good: near the metric beside it once its labels are through.",
               f"max({expected('performance', **MEASURED)})", decimals=3, empty=NO_ESTIMATE, width=3),
        number("Labelled", "Share of that window's predictions whose truth is known. Good: what it usually ends at; with "
               "little of it the metric is of the early labels alone.",
               f"max({series('label_coverage_ratio', **WHO, window='$window')})", unit="percentunit", decimals=0,
               empty=NO_LABELS, width=3),
        number("Labelled / usual", "The same over what it usually is by now. Good: near 1. Far below: labels are late, and "
               "what is said of errors waits.", f"max({NOW_COVERED} / {USUALLY})", steps=AS_USUAL, decimals=2,
               empty="not known yet", width=3),
        number("Median delay", "Time from a prediction to its label that half of the labels take at most. Good: as usual.",
               f"histogram_quantile(0.5, sum by (le) (increase({DELAY}[1h])))",
               unit="s", empty=NO_LABELS, width=3),
        number("Waiting", "Predictions without a label yet. Good: steady.", f"sum({series('pending_predictions', **WHO)})",
               width=3),
        number("Never labelled", "Predictions whose label never came within the horizon (45 days by default). Good: few; they "
               "are in no metric.", f"sum(increase({series('expired_predictions_total', **WHO)}[$__range]))", width=3),
    ]  # fmt: skip


def _labels() -> list[Builder]:
    quantiles = ((0.5, "half"), (0.9, "90 %"), (0.99, "99 %"))
    return [
        lines("Cohorts maturing: labelled share by window", "Share of predictions with a label, in the newest window of each "
              "length that should be labelled by now. Good: flat lines; the longer window lies higher, for its labels had "
              "more time. A fall is a label pipeline that stands, and quality below grows blind with it.",
              [Query(f"max by (window) ({series('label_coverage_ratio', **WHO)})", "{{window}}")],
              unit="percentunit", most=1, width=8, empty=NO_LABELS),
        lines("Labelled now and usually", "Share of the newest ripe window's predictions with a label, and what it usually "
              "is by now (dashed), learnt from earlier ones. Good: on each other. Once the line has stayed below the dashed "
              "one for long, an incident `labels_late` says so.",
              [Query(f"max({NOW_COVERED})", "now"), Query(f"max({USUALLY})", "usually by now")],
              dashed="usually", unit="percentunit", most=1, width=8, empty=NO_LABELS),
        lines("Delay of labels by class", "Time within which half and 90 % of the labels of each true class came. Good: classes "
              "alike. A class that comes first fills young cohorts: they say more of it than of the model.",
              [Query(f"max by (truth, percentile) ({series('label_delay_percentile_seconds', **WHO, percentile='50|90')})",
                     "{{truth}}, {{percentile}} %")], unit="s", width=8, empty=NO_LABELS),
        lines("Delay of labels", "Time from prediction to label within which half, 90 % and 99 % of them come, read from "
              "buckets: between bounds it is a straight line. Good: flat.",
              [Query(f"histogram_quantile({q}, {DELAYS})", name) for q, name in quantiles], unit="s", width=8, empty=NO_LABELS),
        lines("What became of labels", "Labels a second by their fate. Good: nearly all matched. Corrected is a truth that "
              "changed; duplicates cost nothing. Labels that never meet a prediction point to ids that differ.",
              [Query(TRUTHS, "{{outcome}}")], unit="eps", stacked=True, width=8, empty=NO_LABELS),
        lines("How old the published window is", "Age of the end of the window of predictions that quality is told of, and the "
              "age by which labels are usually through (dashed): the newest that is so old is published. Good: just above the "
              "dashed line. Without that line the habit is unknown, and young windows are published, with their early labels.",
              [Query(f"time() - max by (window) ({series('performance_window_end_timestamp_seconds', **WHO, basis='cohort')})",
                     "{{window}}"),
               Query(f"max({series('label_through_seconds', **WHO)})", "labels are through")],
              dashed="through", unit="s", width=8, empty=NO_LABELS),
    ]  # fmt: skip


def _performance() -> list[Builder]:
    now = f"max by (metric) ({series('performance', **WHO, window='$window', basis='cohort')})"
    parts = {end: f"max by (metric) ({series(f'performance_{end}', **WHO, window='$window', basis='cohort')})"
             for end in ("lower", "upper", "samples")}  # fmt: skip
    measured = {**MEASURED, "basis": "cohort"}
    return [
        lines("$metric with its interval", "The metric of the newest ripe window of predictions, whose labels are through, with "
              "its 95 % interval (dotted), the baseline's value and the objective (dashed). Good: the baseline inside the "
              "interval. A wide interval means few labels, not a bad model.",
              [Query(f"max({series('performance', **measured)})", "$metric"),
               Query(f"max({series('performance_lower', **measured)})", "lower"),
               Query(f"max({series('performance_upper', **measured)})", "upper"),
               Query(f"max({series('performance_baseline', **WHO, metric='$metric')})", "baseline"),
               Query(f"max by (bound) ({series('performance_objective', model='$model', metric='$metric')})",
                     "objective ({{bound}})")],
              dashed="baseline|objective", faint="lower|upper", least=None, decimals=3, height=9, empty=NO_LABELS),
        rows("Every metric now and on the baseline", "The newest ripe window of predictions. Good: the baseline "
             "between lower and upper. `labels` is how many it is computed from.",
             [Query(now), Query(parts["lower"]), Query(parts["upper"]),
              Query(f"max by (metric) ({series('performance_baseline', **WHO)})"), Query(parts["samples"])],
             [Column("metric"), Column("Value #A", "now", decimals=3), Column("Value #B", "lower", decimals=3),
              Column("Value #C", "upper", decimals=3), Column("Value #D", "baseline", decimals=3),
              Column("Value #E", "labels", decimals=0)], width=12, empty=NO_LABELS),
        lines("$metric expected and realised", "What was expected of the newest closed window before its labels, with the "
              "interval (dotted) for what all its labels will show, and what labels show of the newest ripe one: where that "
              "takes longer than a window, the expectation runs ahead. Good: realised within the interval. Beside it for "
              "window after window: the relation has changed, or early labels are not like late ones.",
              [Query(f"max({expected('performance', **MEASURED)})", "expected"),
               Query(f"max({expected('performance_lower', **MEASURED)})", "expected, lower"),
               Query(f"max({expected('performance_upper', **MEASURED)})", "expected, upper"),
               Query(f"max({series('performance', **measured)})", "realised")],
              faint="lower|upper", least=None, decimals=3, height=9, width=16, empty=NO_LABELS),
        lines("Windows in a row outside of what was expected", "How many labelled windows in a row, up to the newest, lie above "
              "(+) or below (-) the interval of what was expected of them. Good: near 0; one in twenty is outside by chance. "
              "Beyond 3 the gap lasts: the relation has changed, or labels that come first are unlike the rest.",
              [Query(f"max({series('performance_gap_windows', **MEASURED)})", "$metric")],
              least=None, decimals=0, height=9, width=8, empty=NO_ESTIMATE),
        lines("By prediction or by arrival", "The metric of the predictions made in a window (cohort) and of the labels that "
              "came in it (arrival). Good: close. Arrival says first that the world changed; cohort says when.",
              [Query(f"max by (basis) ({series('performance', **MEASURED, basis='cohort|arrival')})", "{{basis}}")],
              least=None, decimals=3, empty=NO_LABELS),
        lines("Labels behind the metric", "Labelled predictions that the metric is computed from. Good: steady, hundreds or "
              "more. Compare the interval's width.",
              [Query(f"max by (basis) ({series('performance_samples', **MEASURED, basis='cohort|arrival')})", "{{basis}}")],
              empty=NO_LABELS),
    ]  # fmt: skip


def _classes() -> list[Builder]:
    cells = series("confusion_predictions", **WHO)
    sure = series("confidence_predictions", **WHO)
    true = series("confidence_predictions", **WHO, came_true="true")
    by_truth = f"sum by (truth, predicted) ({cells})"
    return [
        matrix("Who was taken for what", "Labelled predictions of the newest ripe cohort: a row for each true class, a column "
               "for each predicted one. Good: large on the diagonal, where both have one name. A column that grows everywhere is "
               "a model that falls back on one class. At most ten classes, the rest together.",
               Query(by_truth), row="truth", column="predicted", height=6, empty=NO_CLASSES),
        lines("Recall of each class", "Share of a true class that was predicted as such. Good: flat lines. One that falls alone "
              "is one kind of case the model has lost.",
              [Query(f"sum by (truth) (label_replace({by_truth}, \"same\", \"$1\", \"predicted\", \"(.*)\")"
                     f" and on (truth, same) label_replace({by_truth}, \"same\", \"$1\", \"truth\", \"(.*)\"))"
                     f" / sum by (truth) ({cells})", "{{truth}}")],
              unit="percentunit", most=1, height=6, empty=NO_CLASSES),
        pairs("What came true of each confidence", "Predictions by the confidence they were made with (of two classes: the "
              "score of the positive one): the share that came true, and how many of all predictions they are. Good: each "
              "bar of `came true` ends within the numbers below it. Shorter bars throughout: the model promises too much.",
              [Query(f"sum by (confidence) ({true}) / sum by (confidence) ({sure})", "came true"),
               Query(f"sum by (confidence) ({sure}) / ignoring (confidence) group_left () sum({sure})", "of all")],
              by="confidence", height=8, empty="no confidence in the predictions, or no labels yet"),
        pairs("Errors now and on the baseline", "Predicted less true, in roots of the baseline's mean squared error: the newest "
              "cohort's share in each range beside the baseline's. Good: pairs of equal height. All to one side is a bias, "
              "both ends higher is a wider spread.",
              [Query(f"max by (error) ({series('error_reference_ratio', **WHO)})", "baseline"),
               Query(f"max by (error) ({series('error_ratio', **WHO)})", "now")],
              by="error", height=8, empty="this model predicts classes, or has no labels yet"),
    ]  # fmt: skip


def _joining() -> list[Builder]:
    return [
        heat("Delays, over time", "Labels by the time they took, darker is more. Good: one steady band.",
             Query(DELAYS, "{{le}}"), unit="short", buckets=True, empty=NO_LABELS),
        lines("Waiting and given up", "Predictions that wait for a label, and those given up in an hour. "
              "Good: steady and flat.",
              [Query(f"sum({series('pending_predictions', **WHO)})", "waiting"),
               Query(f"sum(increase({series('expired_predictions_total', **WHO)}[1h]))", "given up in an hour")], height=9),
        lines("Labels in hand", "Labels that were read and not joined yet, all models. Good: close to 0: they are joined as "
              "fast as a tenth of the time allows.", [Query(f"max({series('join_backlog_labels')})", "labels")]),
        lines("How far labels are read", "Age of the event time up to which labels are taken. Good: seconds, or as long as "
              "nobody sent one.",
              [Query(f"time() - max({series('watermark_timestamp_seconds', stream='ground_truth')})", "labels")], unit="s"),
    ]  # fmt: skip
