"""The catalogue, snapshots and their bytes, read back with the client library's own parsers and promtool."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from stream_monitor.publish.catalogue import BY_NAME, CATALOGUE, DELAY_BUCKETS, PREFIX, Metric, Priority
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.snapshot import Distribution, Snapshot, keep, label_text

LABELS = ("credit", "7", "age", "psi", "1h", "baseline")


def published(snapshot: Snapshot, *, series: int = 20_000) -> Publisher:
    """A publisher that holds this snapshot."""
    publisher = Publisher(series=series)
    publisher.publish(snapshot)
    return publisher


def parse_openmetrics(body: str) -> Iterable[Family]:
    """Every family of an OpenMetrics body."""
    families: Iterable[Family] = openmetrics_parser.text_string_to_metric_families(body)  # type: ignore[no-untyped-call]
    return families


def samples(families: Iterable[Family], name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of every sample with this full name."""
    return [(s.labels, s.value) for f in families for s in f.samples if s.name == PREFIX + name]


def drift_scores(count: int) -> Snapshot:
    """A snapshot of one family with `count` series."""
    rows = [(("credit", "7", f"feature_{i:05}", "psi", "1h", "baseline"), i / 8) for i in range(count)]
    return Snapshot({"feature_drift_score": rows})


def test_each_metric_is_declared_once() -> None:
    """Two declarations of one name would be one family with two meanings."""
    assert len(BY_NAME) == len(CATALOGUE)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda m: m.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    """A counter ends in _total, an info in _info, a unit is written in the name, and every help is a sentence."""
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert (metric.kind == "info") == metric.name.endswith("_info")
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert metric.name.removesuffix("_total").endswith(metric.unit)
    assert metric.help.endswith(".")
    assert len(set(metric.labels)) == len(metric.labels)
    assert not {"le", "quantile", "job", "instance", "type", "env"} & set(metric.labels)


def test_promised_names_and_labels_are_there() -> None:
    """Rules and dashboards outside this repository stand on these."""
    drift = ("model", "version", "feature", "statistic", "window", "reference")
    bins = ("model", "version", "baseline", "feature", "bin")
    performance = ("model", "version", "metric", "basis", "window")
    promised = {
        "events_total": ("model", "version", "stream", "outcome"),
        "rejected_total": ("stream", "reason"),
        "feature_drift_score": drift,
        "feature_drift_threshold": drift,
        "feature_observations_total": bins,
        "feature_reference_ratio": bins,
        "incident_active": ("model", "version", "kind", "subject", "severity", "incident"),
        "model_info": ("model", "team"),
        "performance": performance,
        "performance_lower": performance,
        "performance_upper": performance,
        "performance_samples": performance,
    }
    assert {name: BY_NAME[name].labels for name in promised} == promised
    unlabelled = "label_delay_seconds label_coverage_ratio pending_predictions consumer_lag_events \
        watermark_timestamp_seconds checkpoint_timestamp_seconds state_bytes series_dropped_total \
        baseline_info build_info"
    assert set(unlabelled.split()) <= BY_NAME.keys()


def test_every_family_is_declared_without_samples() -> None:
    """A fresh service exposes HELP and TYPE of the whole catalogue."""
    text = Publisher(series=1000).text.decode()
    for metric in CATALOGUE:
        kind = "gauge" if metric.kind == "info" else metric.kind
        assert f"# TYPE {metric.full_name} {kind}\n" in text
        assert f"# HELP {metric.full_name} " in text


@pytest.mark.parametrize(
    "name", ['quo"te', "new\nline", "back\\slash", "\\n", "naïve 🦊", "{a=1}", " # ", "tab\there", "\r", "\u2028"]
)
def test_hostile_label_values_come_back_as_they_were(name: str) -> None:
    """Feature names are anybody's text; both formats carry them through."""
    publisher = published(Snapshot({"feature_drift_score": [(("credit", "7", name, *LABELS[3:]), 0.5)]}))
    bodies = [
        publisher.exposition(accept)[0].decode() for accept in ("", "application/openmetrics-text; version=1.0.0")
    ]
    read = [parse_text(bodies[0]), parse_openmetrics(bodies[1])]
    for families in read:
        [(labels, value)] = samples(families, "feature_drift_score")
        assert labels["feature"] == name
        assert value == 0.5


@given(st.text(st.characters(exclude_categories=()), max_size=400))
def test_label_text_is_short_and_encodable(value: str) -> None:
    """Whatever comes in, at most 200 characters of valid UTF-8 without NUL come out; applied twice changes nothing."""
    text = label_text(value)
    text.encode("utf-8")
    assert len(text) <= 200
    assert "\0" not in text
    assert label_text(text) == text


def test_long_names_with_one_beginning_stay_two() -> None:
    """Truncation ends in a hash of the whole."""
    long = "x" * 10_000
    assert label_text(long + "a") != label_text(long + "b")
    assert label_text(long).startswith("x" * 180)


def test_nan_is_left_out_and_infinity_is_a_value() -> None:
    """NaN is no marker for what is unknown and is left out; infinity is a value."""
    rows = [(("m", "1", metric, "cohort", "1h"), v) for metric, v in [("a", math.nan), ("b", math.inf), ("c", 0.1)]]
    families = list(parse_text(published(Snapshot({"performance": rows})).text.decode()))
    assert {s[0]["metric"]: s[1] for s in samples(families, "performance")} == {"b": math.inf, "c": 0.1}


def test_histogram_is_cumulated() -> None:
    """Buckets count what is at or below them; the last is everything."""
    counts = tuple(range(1, len(DELAY_BUCKETS) + 2))
    publisher = published(
        Snapshot(histograms={"label_delay_seconds": [(("credit", "label"), Distribution(counts, 123.5))]})
    )
    families = list(parse_openmetrics(publisher.exposition("application/openmetrics-text; version=1.0.0")[0].decode()))
    buckets = [value for _, value in samples(families, "label_delay_seconds_bucket")]
    assert buckets == [sum(counts[: i + 1]) for i in range(len(counts))]
    assert samples(families, "label_delay_seconds_count") == [
        ({"model": "credit", "outcome": "label"}, float(sum(counts)))
    ]
    assert samples(families, "label_delay_seconds_sum") == [({"model": "credit", "outcome": "label"}, 123.5)]


@pytest.mark.parametrize(
    "given_samples",
    [
        {"nonsense": []},
        {"series": [((), 1.0)]},
        {"label_delay_seconds": [(("m", "label"), 1.0)]},
        {"state_bytes": [(("m",), 1.0)]},
    ],
)
def test_what_is_not_in_the_catalogue_is_refused(given_samples: dict[str, list[tuple[tuple[str, ...], float]]]) -> None:
    """A misspelt metric fails where it is handed over, not on a dashboard months later."""
    with pytest.raises(ValueError, match=r"catalogue|labels"):
        Snapshot(given_samples)


def test_wrong_number_of_buckets_is_refused() -> None:
    """Counts must fit the declared bounds."""
    with pytest.raises(ValueError, match="buckets"):
        Snapshot(histograms={"label_delay_seconds": [(("m", "label"), Distribution((1, 2), 3.0))]})


def test_series_limit_drops_the_least_important_first() -> None:
    """Beyond the limit bins go before features, features before models; the drop is counted and grows."""
    bins = [(("credit", "7", "b1", "age", f"{i:02}"), float(i)) for i in range(90)]
    scores = drift_scores(60).samples["feature_drift_score"]
    snapshot = Snapshot({"feature_observations_total": bins, "feature_drift_score": scores, "state_bytes": [((), 5.0)]})
    publisher = published(snapshot, series=100)
    families = list(parse_text(publisher.text.decode()))
    assert len(samples(families, "feature_drift_score")) == 60
    assert [s[0]["bin"] for s in samples(families, "feature_observations_total")] == [f"{i:02}" for i in range(37)]
    assert samples(families, "series_dropped_total") == [({}, 53.0)]
    assert samples(families, "series") == [({}, 100.0)]
    assert sum(len(f.samples) for f in families) == 100
    publisher.publish(snapshot)
    assert samples(parse_text(publisher.text.decode()), "series_dropped_total") == [({}, 106.0)]


@given(st.permutations(list(range(20))))
def test_what_is_dropped_does_not_depend_on_the_order(order: list[int]) -> None:
    """The same figures in any order give the same bytes."""
    rows = drift_scores(20).samples["feature_drift_score"]
    shuffled = Snapshot({"feature_drift_score": [rows[i] for i in order]})
    assert keep(shuffled, series=12).rows == keep(drift_scores(20), series=12).rows


def test_same_labels_twice_are_one_sample() -> None:
    """Prometheus refuses a scrape that holds a series twice; the last one counts."""
    rows = [(LABELS, 1.0), (LABELS, 2.0)]
    families = parse_text(published(Snapshot({"feature_drift_score": rows})).text.decode())
    assert [v for _, v in samples(families, "feature_drift_score")] == [2.0]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=what", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=0.0.1", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_format_is_negotiated(accept: str, content_type: str) -> None:
    """What Prometheus asks for it gets; anything odd gets the plain text."""
    body, found = Publisher(series=1000).exposition(accept)
    assert found == content_type
    assert body.endswith(b"# EOF\n") == content_type.startswith("application/openmetrics-text")


def test_openmetrics_is_rendered_once() -> None:
    """Two scrapes of one snapshot are handed the same object."""
    publisher = published(drift_scores(3))
    accept = "application/openmetrics-text; version=1.0.0"
    assert publisher.exposition(accept)[0] is publisher.exposition(accept)[0]
    assert publisher.exposition("")[0] is publisher.exposition("")[0]


def test_ten_thousand_series_are_rendered_in_time() -> None:
    """Nothing in it grows faster than the series: ten times what it takes. The figure is `benchmarks/scrape.py`'s."""
    snapshot = drift_scores(10_000)
    publisher = Publisher(series=20_000)
    began = time.process_time()
    publisher.publish(snapshot)
    assert time.process_time() - began < 3


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    """The linter of Prometheus reads a full exposition without a remark."""
    rows = {
        m.name: [(tuple("x" for _ in m.labels), 1.0)]
        for m in CATALOGUE
        if m.kind != "histogram" and m.name not in ("series", "series_dropped_total")
    }
    histograms = {
        m.name: [(tuple("x" for _ in m.labels), Distribution((1,) * (len(m.buckets) + 1), 9.0))]
        for m in CATALOGUE
        if m.kind == "histogram"
    }
    body = published(Snapshot(rows, histograms)).text
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_priorities_keep_the_service_and_incidents_first() -> None:
    """What people are paged on is the last to go."""
    assert BY_NAME["incident_active"].priority == Priority.INCIDENT
    assert BY_NAME["checkpoint_timestamp_seconds"].priority == Priority.SERVICE
    assert max(CATALOGUE, key=lambda m: m.priority).name in ("feature_observations_total", "feature_reference_ratio")
