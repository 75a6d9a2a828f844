"""PromQL made of the catalogue: a name or a label that the service does not expose cannot be written here."""

from __future__ import annotations

from stream_monitor.publish.catalogue import BY_NAME

JOB = 'job=~"$job"'
"""In every selector, so that two services behind one Prometheus can be told apart."""

SCRAPED: dict[str, tuple[str, ...]] = {"up": (), "scrape_duration_seconds": (), "scrape_samples_scraped": ()}
"""What Prometheus itself says of a target; more than this is said on request only."""

ENDS = ("_bucket", "_sum", "_count")


def series(name: str, **matchers: str) -> str:
    """A selector on a family of the catalogue (a histogram's with its ending) or on what Prometheus adds.

    A value with a variable or with alternatives is matched as a pattern; one that begins with ! must not be.
    """
    if name in SCRAPED:
        full, labels = name, SCRAPED[name]
    else:
        end = next((e for e in ENDS if name.endswith(e) and name.removesuffix(e) in BY_NAME), "")
        metric = BY_NAME[name.removesuffix(end)]
        full, labels = metric.full_name + end, metric.labels
    unknown = matchers.keys() - set(labels)
    if unknown:
        raise ValueError(f"{full} has no label {', '.join(sorted(unknown))}")
    return f"{full}{{{', '.join([JOB, *(matcher(label, value) for label, value in matchers.items())])}}}"


def expected(name: str, **matchers: str) -> str:
    """What is expected of a window before its labels, where the window has enough rows to expect anything of."""
    rows = series("performance_samples", **matchers, basis="estimated")
    return f"{series(name, **matchers, basis='estimated')} and {rows} >= {FEWEST_EXPECTED}"


FEWEST_EXPECTED = 30
"""Predictions; an interval from 0 to 1 would flatten all that follows."""


def grown(by: str, span: str, name: str, **matchers: str) -> str:
    """How much counters grew in a span; unlike `increase` it sees the first count of one that is new."""
    now = f"sum by ({by}) ({series(name, **matchers)})"
    before = f"sum by ({by}) ({series(name, **matchers)} offset {span})"
    return f"({now} - {before} >= 0) or {now}"


SIGNS = {(False, False): "=", (False, True): "=~", (True, False): "!=", (True, True): "!~"}


def matcher(label: str, value: str) -> str:
    """One matcher of a selector."""
    text = value.removeprefix("!")
    sign = SIGNS[text != value, any(mark in text for mark in "$|+")]
    return f'{label}{sign}"{text}"'
