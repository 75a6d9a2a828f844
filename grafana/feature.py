"""One feature: how it was, how it is, and since when it is otherwise."""

from __future__ import annotations

from grafana.board import FEATURE, INCIDENT_URL, Board, baselines, choice, incidents
from grafana.panels import RATIO, Builder, Column, Query, Row, heat, lines, number, pairs, rows
from grafana.queries import grown, series

WHO = {"model": "$model", "version": "$version"}
ONE = {**WHO, "feature": "$feature"}
DRIFT = {**ONE, "window": "$window", "reference": "baseline"}
SCORE, THRESHOLD, EXPECTED = (series(f"feature_drift_{part}", **DRIFT) for part in ("score", "threshold", "expected"))
NO_VALUES = "no good value in the window"
NO_GOOD = "missing|wrong_type|infinite|below|above|unseen"
UNKNOWN_BINS = "this feature is not among the first 20, whose bins are published"

SEEN = series("feature_observations_total", **ONE)
HELD = f"max by (bin) ({series('feature_reference_ratio', **ONE)})"


def share(span: str) -> str:
    """Share of the values of a span in each bin."""
    counts = f"sum by (bin) (increase({SEEN}[{span}]))"
    return f"{counts} / ignoring (bin) group_left () sum({counts})"


def psi(span: str) -> str:
    """PSI of a span against the baseline, on the published bins: the sum of (n - e) ln((n + 1/2) / (e + 1/2)) over N.

    n of N values are in a bin, and e of them were to be expected. The halves give an empty bin a logarithm, and let bins that
    are empty in both say nothing.
    """
    seen, many = f"sum by (bin) (increase({SEEN}[{span}]))", f"sum(increase({SEEN}[{span}]))"
    due = f"({HELD} * scalar({many}))"
    return f"sum(({seen} - on (bin) {due}) * on (bin) ln(({seen} + 0.5) / on (bin) ({due} + 0.5))) / {many}"


def by_chance(span: str) -> str:
    """What that PSI is when nothing has changed: (bins in use - 1) / values."""
    return f"(count({HELD} > 0) - 1) / sum(increase({SEEN}[{span}]))"


def board() -> Board:
    """The dashboard."""
    return Board(
        FEATURE,
        "One feature of one version: the baseline's distribution beside the window's, drift over time, and what is wrong "
        "with its values.",
        [
            Row("Now", _now()),
            Row("How it is distributed", _distribution()),
            Row("Drift over time", _drift()),
            Row("What is wrong with its values", _quality()),
            Row("Detail", _detail(), closed=True),
        ],
        variables=[
            choice("model", "Model", "feature_drift_score"),
            choice("version", "Version", "feature_drift_score", of={"model": "$model"}, newest=True),
            choice("feature", "Feature", "feature_drift_score", of=WHO),
            choice("window", "Window", "feature_drift_score", of=WHO),
        ],
        annotations=[incidents(**WHO, subject="$feature"), baselines(**WHO)],
    )


def _now() -> list[Builder]:
    return [
        number("Score / threshold", "Distance of the trailing window from the baseline, over the distance that chance explains. "
               "Good: below 1.", f"max({SCORE} / {THRESHOLD})", steps=RATIO, decimals=2, empty=NO_VALUES),
        number("Score", "The distance itself, PSI. Good: near the expected value.", f"max({SCORE})",
               decimals=4, empty=NO_VALUES),
        number("Expected by chance", "The score's mean when nothing has changed, given the sample sizes. With few events even "
               "a clean window scores high. Good: far below the threshold.", f"max({EXPECTED})", decimals=4, empty=UNKNOWN_BINS),
        number("Values in the window", "Good: thousands. Below some hundreds only large changes can be told.",
               f"max({series('feature_window_samples', **ONE, window='$window')})"),
        number("Missing", "Share of the window's events without this feature. Good: as in the baseline, see below.",
               f"max({series('feature_missing_ratio', **ONE, window='$window')})", unit="percentunit", decimals=1),
        number("PSI of the range", "PSI of everything in the range selected above against the baseline, computed in PromQL "
               "from the published bins, so that any time can be judged. Good: near what chance gives, in the panel of PSI "
               "over time. Below 0.1 is small, above 0.25 large, if there are thousands of events.",
               psi("$__range"), decimals=3, steps=((None, "green"), (0.1, "yellow"), (0.25, "red")), empty=UNKNOWN_BINS),
    ]  # fmt: skip


def _distribution() -> list[Builder]:
    return [
        pairs("Baseline and window", "Share of values in each bin: the baseline's beside the window's. Numbers have ten bins "
              "that hold a tenth of the baseline each (00 the lowest; their bounds are under Detail), categories their own. "
              "Good: pairs of equal height. Bars at `missing`, `wrong_type`, `above` or `unseen` are no drift but broken data.",
              [Query(HELD, "baseline"), Query(share("$window"), "window")], by="bin", empty=UNKNOWN_BINS),
        heat("Bins over time", "Share of values in each bin over time, darker is more. Good: even bands. A band that shifts "
             "up or down is a moved population; all into `wrong_type` or `missing` is a broken field.",
             Query(share("$__rate_interval"), "{{bin}}"), empty=UNKNOWN_BINS),
    ]  # fmt: skip


def _drift() -> list[Builder]:
    return [
        lines("Score, threshold, expected", "Distance of the trailing window from the baseline with the threshold beyond which "
              "chance is no explanation, and its mean without drift (dashed). Good: the score near the expected line.",
              [Query(f"max by (statistic) ({SCORE})", "{{statistic}}"),
               Query(f"max by (statistic) ({THRESHOLD})", "threshold"),
               Query(f"max by (statistic) ({EXPECTED})", "expected by chance")],
              dashed="threshold|expected", decimals=3, empty="no baseline yet: nothing is judged"),
        lines("PSI over time, from bins", "PSI of the window that ends at each moment, in PromQL from the published bins, and "
              "its mean without drift (dashed). Good: near the dashed line. It bins in its own "
              "way, so it is near the service's score and not equal, and needs no verdict of it: look here when you doubt one.",
              [Query(psi("$window"), "PSI"), Query(by_chance("$window"), "expected by chance")],
              dashed="expected", decimals=3, empty=UNKNOWN_BINS),
    ]  # fmt: skip


def _quality() -> list[Builder]:
    bad = f"sum by (bin) (increase({series('feature_observations_total', **ONE, bin=NO_GOOD)}[$window]))"
    return [
        lines("Values that are no good", "Share of the window's values that are missing, of another type, infinite, outside the "
              "baseline's range (below, above) or of a category it does not have (unseen). Good: as in the baseline, most "
              "times 0. A jump to 1 is a broken field: somebody upstream changed it.",
              [Query(f"{bad} / ignoring (bin) group_left () sum(increase({SEEN}[$window]))", "{{bin}}")],
              unit="percentunit", empty=UNKNOWN_BINS),
        rows("The same in the baseline", "Share of the baseline's values that are no good, and of the window's. Good: equal.",
             [Query(f"max by (bin) ({series('feature_reference_ratio', **ONE, bin=NO_GOOD)})"),
              Query(f"{bad} / ignoring (bin) group_left () sum(increase({SEEN}[$window]))")],
             [Column("bin", "values"), Column("Value #A", "baseline", unit="percentunit", decimals=2),
              Column("Value #B", "window", unit="percentunit", decimals=2)], width=6, height=8, empty=UNKNOWN_BINS),
        rows("Open incidents that name it", "Good: empty. Click the incident for the bins that moved.",
             [Query(f"max by (kind, severity, incident) ({series('incident_active', **WHO, subject='$feature')})")],
             [Column("severity", width=80), Column("kind"), Column("Value", "open", width=60),
              Column("incident", link=INCIDENT_URL, link_title="The incident in the service")],
             width=6, height=8, empty="no open incident"),
    ]  # fmt: skip


def _detail() -> list[Builder]:
    others = {"model": "$model", "feature": "$feature", "window": "$window", "reference": "baseline"}
    return [
        rows("Bins of the baseline", "The largest value of each bin and the baseline's share in it. Good: a tenth "
             "in each of a number's. Categories have no bounds.",
             [Query(HELD), Query(f"max by (bin) ({series('feature_bin_upper', **ONE)})")],
             [Column("bin"), Column("Value #A", "baseline's share", unit="percentunit", decimals=1),
              Column("Value #B", "largest value", decimals=2)], width=8, empty=UNKNOWN_BINS),
        lines("Values a second", "How often the feature is seen, by bin. Good: steady; PSI of a handful of values means little.",
              [Query(f"sum by (bin) (rate({SEEN}[$__rate_interval]))", "{{bin}}")], unit="eps", stacked=True, width=8, height=9,
              empty=UNKNOWN_BINS),
        lines("Changes that detectors saw", "Changes an hour in this feature, by detector, before they are weighed. Good: rare.",
              [Query(grown("detector", "1h", "detector_changes_total", **ONE), "{{detector}}")],
              width=8, height=9, empty="no change seen"),
        lines("The same feature in all windows", "Score over threshold for each published window length. Good: below 1. The "
              "short window moves first, the long one stays longer.",
              [Query(f"max by (window) ({series('feature_drift_score', **ONE, reference='baseline')}"
                     f" / {series('feature_drift_threshold', **ONE, reference='baseline')})", "{{window}}")],
              steps=((None, "green"), (1, "red")), decimals=2),
        lines("The same feature in all versions", "Score over threshold by version of the model. Good: below 1 in each, for each "
              "has its own baseline.",
              [Query(f"max by (version) ({series('feature_drift_score', **others)} / "
                     f"{series('feature_drift_threshold', **others)})", "{{version}}")],
              steps=((None, "green"), (1, "red")), decimals=2),
    ]  # fmt: skip
