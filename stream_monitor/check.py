"""Looking before running: is the configuration right, are the topics there, what do real records hold?"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_monitor.config import Config, TopicConfig, WebhookConfig
from stream_monitor.errors import PeerError
from stream_monitor.publish.webhook import host_of, unreachable
from stream_monitor.records import Inferences, Kind, Labels, PartitionId, Stream
from stream_monitor.source import check_connection, open_source

if TYPE_CHECKING:
    from stream_monitor.window.flow import Decoded

SAMPLE_SECONDS = 10.0
"""How long a sample waits for records of a quiet topic."""


def check_configuration(config: Config, *, connect: bool, sample: int) -> dict[str, Any]:
    """What `check` prints. Raises PeerError when a broker or a topic is not to be had."""
    report: dict[str, Any] = {"configuration": "ok"}
    if connect:
        report["connection"] = _connection(config)
    if sample:
        report["topics"] = _sample(config, sample)
    return report


def _connection(config: Config) -> list[str]:
    """Who can be reached; raises PeerError with everything that cannot. A webhook is talked to and not posted to."""
    problems, reached = [], []
    topic, webhooks = config.publish.drift_topic, config.publish.webhooks
    if config.source.kind == "kafka":
        problems += check_connection(config.source, written=[topic] if topic else [])
        reached.append(f"{config.source.bootstrap_servers}: every topic is there")
    elif topic:
        problems.append("publish.drift_topic needs brokers: source.kind is files")
    problems += [problem for webhook in webhooks if (problem := unreachable(webhook)) is not None]
    reached += [f"{host_of(webhook.url)}: a webhook that can be reached{_unsigned(webhook)}" for webhook in webhooks]
    if problems:
        raise PeerError("; ".join(problems))
    return reached


def _unsigned(webhook: WebhookConfig) -> str:
    return "" if webhook.key is not None else "; without a secret nobody can tell our events from forged ones"


def _sample(config: Config, most: int) -> list[dict[str, Any]]:
    """Read records of every topic, from its beginning, and say what they hold."""
    from stream_monitor.app import decode_poll, make_decoder  # the engine: nobody waits for it to check a file

    earliest = config.model_copy(update={"source": config.source.model_copy(update={"start": "earliest"})})
    source = open_source(earliest, clock=time.monotonic)
    decoder = make_decoder(config)
    found: dict[str, list[Any]] = defaultdict(list)
    counts: Counter[str] = Counter()
    wanted = [t.topic for t in (*config.source.inference, *config.source.ground_truth)]
    source.start({})
    until = time.monotonic() + SAMPLE_SECONDS
    try:
        while time.monotonic() < until and not source.finished and any(counts[t] < most for t in wanted):
            for decoded in decode_poll(decoder, source.poll(most, 0.5)):
                topic = decoded.raw.binding.topic
                if counts[topic] < most:
                    counts[topic] += len(decoded.raw)
                    found[topic].append(decoded)
            source.pause(_full(source.partitions(), counts, most))
    finally:
        source.close()
    return [
        _topic_report(topic, found[topic.topic]) for topic in (*config.source.inference, *config.source.ground_truth)
    ]


def _full(partitions: Sequence[PartitionId], counts: Counter[str], most: int) -> frozenset[PartitionId]:
    return frozenset(p for p in partitions if counts[p.topic] >= most)


def _topic_report(topic: TopicConfig, batches: Sequence[Decoded[Any]]) -> dict[str, Any]:
    read = sum(len(b.raw) for b in batches)
    reasons = Counter(str(reason) for b in batches for reason in b.rejects.reason)
    report: dict[str, Any] = {
        "topic": topic.topic,
        "read": read,
        "refused": sum(reasons.values()),
        "reasons": dict(reasons.most_common()),
        "fields": [],
        "notes": [],
    }
    if not read:
        report["notes"].append("no records came within 10 s: nothing can be said about them")
    events = [b.columns for b in batches if isinstance(b.columns, Inferences)]
    labels = [b.columns for b in batches if isinstance(b.columns, Labels)]
    if events:
        report["fields"] = _feature_report(events)
        report["notes"] += _event_notes(events)
    if labels and all(b.raw.binding.stream == Stream.GROUND_TRUTH for b in batches):
        outcomes = sorted({o for b in labels for o in b.outcomes})
        report["notes"].append(f"outcomes: {', '.join(outcomes) or 'none'}")
    return report


def _feature_report(events: Sequence[Inferences]) -> list[dict[str, Any]]:
    """Every feature seen: in how many events, and what its values were."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for columns in events:
        cells = columns.cells
        for code in np.unique(cells.name).tolist():
            held = np.bincount(cells.kind[cells.name == code], minlength=len(Kind))
            for kind in Kind:
                if held[kind]:
                    kinds[cells.names[code]][kind.name.lower()] += int(held[kind])
    total = sum(len(columns) for columns in events)
    return [
        {"feature": name, "share of events": f"{100 * sum(c.values()) / max(total, 1):.0f} %",
         "values": ", ".join(f"{kind} {count}" for kind, count in c.most_common())}
        for name, c in sorted(kinds.items())
    ]  # fmt: skip


def _event_notes(events: Sequence[Inferences]) -> list[str]:
    """What the mapping found, and what it missed, besides the features."""
    total = sum(len(columns) for columns in events)
    models = sorted({f"{key.model} {key.version}" for columns in events for key in columns.keys})
    notes = [f"models: {', '.join(models[:10])}"]
    held = {
        "prediction.label": sum(len(c) - c.label.null_count for c in events),
        "prediction.score": sum(int(np.isfinite(c.score).sum()) for c in events),
        "prediction (number)": sum(int(np.isfinite(c.value).sum()) for c in events),
        "latency_ms": sum(int(np.isfinite(c.latency_ms).sum()) for c in events),
        "segment": sum(len(c) - c.segment.null_count for c in events),
    }
    notes += [f"{name}: in {count} of {total} events" for name, count in held.items() if count]
    missed = [name for name, count in held.items() if not count]
    if missed:
        notes.append(f"not found in any event: {', '.join(missed)}")
    return notes
