"""The service itself: is the monitor blind, late, or about to fail?"""

from __future__ import annotations

from grafana.board import MONITOR, Board, annotation
from grafana.panels import GOOD_IS_ZERO, Builder, Column, Query, Row, heat, lines, number, rows
from grafana.queries import series

LAG = series("consumer_lag_events")
FOREMOST = series("partition_watermark_timestamp_seconds", stream="inference")
TOOK = series("checkpoint_duration_seconds_bucket")


def board() -> Board:
    """The dashboard."""
    return Board(
        MONITOR,
        "Whether the service reads, judges and tells in time. Look here first when the other dashboards seem too quiet.",
        [
            Row("Is the monitor blind?", _now()),
            Row("Reading", _reading()),
            Row("What is refused", _refused()),
            Row("State and resources", _state()),
            Row("Scraping", _scraping(), closed=True),
        ],
        annotations=[
            annotation("Not ready", f"max({series('ready')}) == 0", "behind", "/readyz says why", colour="orange"),
            annotation("Not scraped", f"max({series('up')}) == 0", "down", "no answer to the scrape", colour="red"),
        ],
    )


def _now() -> list[Builder]:
    return [
        number("Scraped", "Whether Prometheus reaches the service. Good: yes. No: nobody is told anything new.",
               f"min({series('up')})", words={"1": ("yes", "green"), "0": ("no", "red")}, width=3, empty="no target"),
        number("Keeps up", "Whether the service is ready. Good: yes. Otherwise /readyz says why, and verdicts are late.",
               f"min({series('ready')})", words={"1": ("yes", "green"), "0": ("no", "red")}, width=3),
        number("Last checkpoint", "Age of the last commit. Good: a second or two. Figures are published after a commit, so all "
               "panels are at least as old as this.", f"time() - max({series('checkpoint_timestamp_seconds')})", unit="s",
               steps=((None, "green"), (30, "orange"), (120, "red")), width=3, decimals=0),
        number("Records to read", "Records between our position and the end of the topics. Good: a second's worth. Growing: "
               "the service is too slow for its traffic.", f"sum({LAG})",
               steps=((None, "green"), (1000, "orange"), (100_000, "red")),
               width=4, empty="no partition assigned"),
        number("Event time behind", "How far judged event time is behind the newest event. Good: pane and lateness, 20 to 40 s "
               "with defaults. Much more: one partition holds the others back.",
               f"max({series('pane_seal_delay_seconds')})", unit="s", width=4,
               steps=((None, "green"), (120, "orange"), (900, "red"))),
        number("Refused", "Share of records refused in the range's last quarter of an hour. Good: below 1 %.",
               f"sum(increase({series('rejected_total')}[15m])) / (sum(increase({series('events_total')}[15m]))"
               f" + sum(increase({series('rejected_total')}[15m])))",
               unit="percentunit", steps=((None, "green"), (0.01, "orange"), (0.05, "red")), width=4, decimals=2,
               empty="nothing was ever refused"),
        number("Series left out", "Series beyond `limits.series` that no panel can show. Good: 0.",
               f"sum(increase({series('series_dropped_total')}[15m]))", steps=GOOD_IS_ZERO, width=3),
    ]  # fmt: skip


def _reading() -> list[Builder]:
    return [
        lines("Lag by partition", "Records not read yet. Good: near 0. One partition alone: its producer or its broker. All: "
              "the service.", [Query(f"max by (topic, partition) ({LAG})", "{{topic}} {{partition}}")], width=8,
              empty="no partition assigned"),
        lines("Event time against the clock", "How far the watermark is behind now. Good: pane, lateness and idle timeout at "
              "most, about a minute. A line at 45 degrees: event time stands.",
              [Query(f"time() - max by (stream) ({series('watermark_timestamp_seconds')})", "{{stream}}")], unit="s", width=8),
        lines("Event time of partitions against each other", "How far each partition is behind the foremost. Good: seconds. The "
              "slowest decides when windows close.",
              [Query(f"scalar(max({FOREMOST})) - max by (topic, partition) ({FOREMOST})", "{{topic}} {{partition}}")],
              unit="s", width=8),
        lines("Events by their fate", "Records a second of both streams by what became of them. Good: summarised and matched "
              "make up nearly all.",
              [Query(f"sum by (stream, outcome) (rate({series('events_total')}[$__rate_interval]))", "{{stream}} {{outcome}}")],
              unit="eps", stacked=True),
        lines("Held in memory", "Rows that wait until their pane seals, rows parked because their partition is ahead, labels "
              "not joined yet. Good: rows of half a minute, nothing parked.",
              [Query(f"max({series('rows_open')})", "open rows"), Query(f"max({series('rows_parked')})", "parked rows"),
               Query(f"max({series('join_backlog_labels')})", "labels to join")]),
    ]  # fmt: skip


def _refused() -> list[Builder]:
    return [
        lines("Refused records by reason", "Records a minute that could not be read as events. Good: few. The reason names what "
              "is wrong; a jump follows a deployment upstream or a mapping that does not fit.",
              [Query(f"60 * sum by (stream, reason) (rate({series('rejected_total')}[$__rate_interval]))",
                     "{{stream}} {{reason}}")],
              unit="cpm", stacked=True, empty="nothing was ever refused"),
        lines("Storms and dead letters", "1 while more than half of a stream is refused, and dead letters a minute. Good: 0, and "
              "as many letters as refusals where a topic for them is configured.",
              [Query(f"max by (stream) ({series('reject_storm')})", "storm on {{stream}}"),
               Query(f"60 * sum(rate({series('dead_letters_total')}[$__rate_interval]))", "dead letters")], width=6),
        lines("Values left out", "Feature values an hour that were not kept, by reason: more features than `limits.features`, or "
              "what the baseline does not know. Good: 0.",
              [Query(f"sum by (reason) (increase({series('dropped_values_total')}[1h]))", "{{reason}}")], width=6,
              empty="no value was left out"),
    ]  # fmt: skip


def _state() -> list[Builder]:
    quantiles = ((0.5, "half"), (0.99, "99 %"))
    return [
        lines("Time a checkpoint takes", "Within which half and 99 % of the commits end. Good: well below a second. Beyond, "
              "every figure is published late: look at the disk.",
              [Query(f"histogram_quantile({q}, sum by (le) (rate({TOOK}[$__rate_interval])))", name) for q, name in quantiles],
              unit="s", width=8),
        lines("Age of the last checkpoint", "Good: a second or two. A line that climbs is a loop that stands.",
              [Query(f"time() - max({series('checkpoint_timestamp_seconds')})", "age")], unit="s", width=8),
        lines("Memory", "What the process holds, and its container's limit (dashed). Good: flat after the first day, well below "
              "the limit.",
              [Query(f"max({series('memory_bytes')})", "held"), Query(f"max({series('memory_limit_bytes')})", "limit")],
              unit="bytes", dashed="limit", width=8),
        lines("State file", "Size of the state file. Good: flat once retention is reached; it grows with waiting predictions.",
              [Query(f"max({series('state_bytes')})", "state file")], unit="bytes", width=8),
        lines("Disk of the state file", "Free share of the disk. Good: above a fifth. At 0 no commit succeeds and the service "
              "stands.",
              [Query(f"min({series('state_disk_free_bytes')} / {series('state_disk_bytes')})", "free")],
              unit="percentunit", most=1, width=8, steps=((None, "red"), (0.1, "orange"), (0.2, "green"))),
        lines("Predictions that wait for labels", "All models; most of the state file. Good: the label delay times the traffic.",
              [Query(f"sum by (model) ({series('pending_predictions')})", "{{model}}")], stacked=True, width=8),
    ]  # fmt: skip


def _scraping() -> list[Builder]:
    return [
        lines("Time a scrape takes", "Good: below half a second. The text is rendered after a commit, so a scrape costs the "
              "service next to nothing.", [Query(f"max({series('scrape_duration_seconds')})", "scrape")], unit="s", width=8),
        lines("Series", "Series in the exposition. Good: well below `limits.series` (20,000 by default); what is beyond is left "
              "out, bins first.", [Query(f"max({series('series')})", "series"),
                                   Query(f"max({series('scrape_samples_scraped')})", "samples scraped")], width=8),
        heat("Checkpoints by duration", "Commits by the time they took, darker is more. Good: one band near the bottom.",
             Query(f"sum by (le) (increase({TOOK}[$__rate_interval]))", "{{le}}"), unit="short", buckets=True, width=8, height=8),
        rows("The running programs", "Version of the service and of Python for each target. Good: one row, "
             "or one for each service.",
             [Query(f"max by (job, instance, version, python) ({series('build_info')})")],
             [Column("job"), Column("instance"), Column("version"), Column("python"), Column("Value", "running")], height=5),
    ]  # fmt: skip
