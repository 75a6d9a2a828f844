"""A snapshot as bytes: rendered once after each commit, so that a scrape only hands them out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from stream_monitor.publish.catalogue import CATALOGUE, Metric
from stream_monitor.publish.snapshot import Distribution, Kept, Row, Snapshot, keep

SUFFIXES = {"counter": "_total", "info": "_info"}
"""What the client library takes off a family's name and puts on its samples."""


class SnapshotCollector(Collector):
    """The families of the catalogue with the rows of one snapshot; a family without rows is declared all the same."""

    def __init__(self, kept: Kept, *, dropped_total: int) -> None:
        self._rows = dict(kept.rows)
        self._rows["series"] = [((), float(kept.series))]
        self._rows["series_dropped_total"] = [((), float(dropped_total))]

    def collect(self) -> Iterator[Family]:
        """Every family, in the order of the catalogue."""
        for metric in CATALOGUE:
            yield _family(metric, self._rows[metric.name])


def _family(metric: Metric, rows: Sequence[Row]) -> Family:
    name = metric.full_name.removesuffix(SUFFIXES.get(metric.kind, ""))
    family = Family(name, metric.help, metric.kind, metric.unit)
    for labels, value in rows:
        named = dict(zip(metric.labels, labels, strict=True))
        if isinstance(value, Distribution):
            family.samples += _buckets(metric, named, value)
        else:
            family.samples.append(Sample(metric.full_name, named, value))
    return family


def _buckets(metric: Metric, labels: dict[str, str], held: Distribution) -> Iterator[Sample]:
    """Cumulated counts, their sum and number, as the format wants them."""
    seen = 0
    for bound, count in zip((*metric.buckets, float("inf")), held.counts, strict=True):
        seen += count
        yield Sample(f"{metric.full_name}_bucket", {**labels, "le": _bound(bound)}, seen)
    yield Sample(f"{metric.full_name}_count", labels, seen)
    yield Sample(f"{metric.full_name}_sum", labels, held.total)


def _bound(value: float) -> str:
    """A bucket's upper bound as the formats write it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


class Exposition:
    """One snapshot's bytes: the text format at once, OpenMetrics when somebody first asks for it."""

    def __init__(self, kept: Kept, *, dropped_total: int) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SnapshotCollector(kept, dropped_total=dropped_total))
        self._lock = threading.Lock()
        self._openmetrics: bytes | None = None
        self.text: bytes = generate_latest(self._registry)

    @property
    def openmetrics(self) -> bytes:
        """The same in OpenMetrics 1.0.0; rendered once, however many ask at the same time."""
        with self._lock:
            if self._openmetrics is None:
                body: bytes = openmetrics.generate_latest(self._registry, version="1.0.0")  # type: ignore[no-untyped-call]
                self._openmetrics = body
            return self._openmetrics


class Publisher:
    """Holds the newest exposition. One thread publishes, any number read; a reader sees one snapshot or the next."""

    def __init__(self, *, series: int) -> None:
        self._series = series
        self._dropped = 0
        self._current = Exposition(keep(Snapshot(), series=series), dropped_total=0)

    def publish(self, snapshot: Snapshot) -> None:
        """Replace what is exposed. Call it after the commit that holds these figures, never before."""
        kept = keep(snapshot, series=self._series)
        self._dropped += kept.dropped
        self._current = Exposition(kept, dropped_total=self._dropped)

    @property
    def text(self) -> bytes:
        """The newest figures in the text format, as in `metrics.prom`."""
        return self._current.text

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) for an Accept header; the text format for whatever cannot be read."""
        try:
            _, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # how the library fails on a version that is no number
            content_type = CONTENT_TYPE_PLAIN_0_0_4
        current = self._current
        if content_type.startswith("application/openmetrics-text"):
            return current.openmetrics, openmetrics.CONTENT_TYPE_LATEST
        return current.text, CONTENT_TYPE_PLAIN_0_0_4
