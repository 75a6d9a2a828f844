"""The shared vocabulary: what one stage hands to the next. Imports nothing of ours.

Arrays are NumPy unless said otherwise; `n` is the number of rows of a batch. Times are integer
microseconds since the Unix epoch, UTC, in event time unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]

MICROSECONDS = 1_000_000
DEFAULT_OUTCOME = "label"
"""The outcome of labels that name none: the truth that a model is made to foretell."""

NO_TIME = int(np.iinfo(np.int64).min)
"""A label without a timestamp, a record whose broker gave none."""

WEEK_SECONDS = 7 * 86_400
_MONDAY_US = 4 * 86_400 * MICROSECONDS
"""The epoch was a Thursday."""


def window_starts(time_us: Ints, seconds: int) -> Ints:
    """The starts of the tumbling windows that times fall in, (n,): weeks begin on Mondays, all others at the epoch."""
    span_us = seconds * MICROSECONDS
    offset_us = 0 if seconds % WEEK_SECONDS else _MONDAY_US
    return (time_us - offset_us) // span_us * span_us + offset_us


def window_start(time_us: int, seconds: int) -> int:
    """That of one time."""
    return int(window_starts(np.array([time_us]), seconds)[0])


class Stream(StrEnum):
    """The two kinds of topic."""

    INFERENCE = "inference"
    GROUND_TRUTH = "ground_truth"


class Reason(StrEnum):
    """Why a record was refused: a closed set, since it is a metric label."""

    EMPTY = "empty"  # a tombstone or no bytes at all
    TOO_LARGE = "too_large"  # beyond limits.record_bytes
    INVALID_UTF8 = "invalid_utf8"
    NOT_JSON = "not_json"  # broken, truncated, two values on a line
    NOT_AN_OBJECT = "not_an_object"
    NO_ID = "no_id"  # absent, null, empty, or neither a string nor an integer
    NO_FEATURES = "no_features"  # absent, or not an object
    NO_TIMESTAMP = "no_timestamp"  # none in the event and none from the transport
    BAD_TIMESTAMP = "bad_timestamp"  # unreadable, outside 2000 to 2100, a day ahead of its record
    NO_LABEL = "no_label"  # ground truth with neither label nor value
    BAD_LABEL = "bad_label"  # a label that is a list or an object, a value that is no finite number
    NAME_TOO_LONG = "name_too_long"  # a model, version, outcome or segment name beyond 200 characters
    TOO_MANY_MODELS = "too_many_models"  # beyond limits.models
    TOO_MANY_OUTCOMES = "too_many_outcomes"  # ground truth of a model that has its twenty outcomes


class Kind(IntEnum):
    """What one feature cell of one event held."""

    MISSING = 0  # null, absent, NaN
    NUMBER = 1
    STRING = 2
    BOOLEAN = 3
    LIST = 4
    OBJECT = 5
    INFINITE = 6


class PartitionId(NamedTuple):
    """One ordered log: a Kafka partition, or one file (number 0, `topic` is its path)."""

    stream: Stream
    topic: str
    number: int


class ModelKey(NamedTuple):
    """What a baseline belongs to."""

    model: str
    version: str


class LineKey(NamedTuple):
    """What panes are kept for: a version, whole (`segment` empty) or one of its segments."""

    model: str
    version: str
    segment: tuple[tuple[str, str], ...] = ()

    @property
    def segment_name(self) -> str:
        """`market=eu`; empty for the whole."""
        return ",".join(f"{key}={value}" for key, value in self.segment)


@dataclass(frozen=True, slots=True)
class Binding:
    """What the configuration says of one topic or file. `fields` maps our names to dotted paths of theirs."""

    stream: Stream
    topic: str
    model: str | None = None
    version: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    timestamp_unit: str | None = None  # s | ms | us | ns; None: by magnitude


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Records of one topic from one poll. The rows of a partition are contiguous and in offset order."""

    binding: Binding
    partitions: tuple[PartitionId, ...]
    partition: Codes  # (n,) index into `partitions`
    offset: Ints  # (n,)
    value: pa.Array  # (n,) binary; null is a tombstone
    record_time_us: Ints  # (n,) the transport's timestamp, NO_TIME where there is none
    headers: Sequence[Sequence[tuple[str, bytes]]] | None = None  # None: no record has any
    made_time: bool = False  # `record_time_us` was made up (`--rate`): it stands in, but proves nothing
    is_table: bool = False  # `value` is JSON made from a tabular file's rows (dots in names already nested)

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True)
class Poll:
    """What one call of a source returned.

    `ends`: the end offset of each partition, as known after the poll. `positions`: the offset from which each goes on,
    so that where a partition was begun is known before its first record comes.
    """

    batches: tuple[RawBatch, ...]
    ends: Mapping[PartitionId, int]
    positions: Mapping[PartitionId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejects:
    """Refused rows of one RawBatch: their row numbers in it and the reason of each."""

    row: Codes
    reason: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Cells:
    """Feature values, flattened: cell k is feature `names[name[k]]` of row `row[k]`. Ordered by row.

    A key twice in one object appears twice; the later one counts. Names are data: any text.
    `text` holds, for the cells listed ascending in `text_cell`, canonical JSON text without surrounding quotes:
    strings and booleans as themselves, lists and objects as JSON. Cells of kind NUMBER or INFINITE have
    their `number` (INFINITE: with its sign) and no text. A cell whose name is too long to be published is none of these:
    `long_name_row` holds its row, once for each.
    """

    names: tuple[str, ...]
    row: Codes
    name: Codes
    kind: Bytes  # Kind
    number: Floats
    text_cell: Codes
    text: pa.Array  # string, len(text_cell)
    long_name_row: Codes = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Inferences:
    """Inference events as columns: rows in the order of the RawBatch they came from."""

    keys: tuple[ModelKey, ...]
    partitions: tuple[PartitionId, ...]
    partition: Codes
    offset: Ints
    time_us: Ints
    record_time_us: Ints  # NO_TIME: none
    id_hi: Hashes  # the 128-bit hash of the id's text
    id_lo: Hashes
    key: Codes  # index into `keys`
    cells: Cells
    label: pa.Array  # string: predicted class, null where none
    score: Floats  # probability of the positive label, NaN where none
    value: Floats  # predicted number (regression), NaN where none
    probabilities: pa.Array  # string: JSON object class -> probability, null where none
    latency_ms: Floats  # NaN where none
    segment: pa.Array  # string: JSON object, null where none
    truth_label: pa.Array  # string: `label` beside the prediction (baseline rows), null where none
    truth_value: Floats  # `value`, or a numeric `label`, beside the prediction; NaN where none

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True)
class Labels:
    """Ground truth events as columns: rows in the order of the RawBatch they came from."""

    models: tuple[str, ...]
    outcomes: tuple[str, ...]
    partitions: tuple[PartitionId, ...]
    partition: Codes
    offset: Ints
    time_us: Ints  # NO_TIME: unknown (files only)
    record_time_us: Ints
    id_hi: Hashes
    id_lo: Hashes
    model: Codes  # index into `models`, -1: the label names none
    outcome: Codes  # index into `outcomes`
    label: pa.Array  # string: JSON text without quotes; the number's text where only `value` was given
    number: Floats  # the label or value as a number, NaN where it is not one

    def __len__(self) -> int:
        return len(self.offset)


class Verdict(StrEnum):
    """What a comparison of two profiles says. The last two are never `ok`."""

    OK = "ok"
    DRIFT = "drift"
    INSUFFICIENT = "insufficient"
    STALE = "stale"


class Severity(StrEnum):
    """critical: act now; warning: look today; info: note."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class IncidentKind(StrEnum):
    """The closed set of what people are told about."""

    DATA_DRIFT = "data_drift"
    PREDICTION_DRIFT = "prediction_drift"
    CONCEPT_DRIFT = "concept_drift"
    PERFORMANCE = "performance"
    DATA_QUALITY = "data_quality"
    BIAS = "bias"
    ATTRIBUTION_DRIFT = "attribution_drift"
    MULTIVARIATE_DRIFT = "multivariate_drift"
    BASELINE_MISSING = "baseline_missing"
    BROKEN_INPUT = "broken_input"
    LABELS_LATE = "labels_late"
    VOLUME = "volume"
    DATA_LOSS = "data_loss"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True)
class Score:
    """One row of `scores.parquet`: one statistic of one subject over one window."""

    line: LineKey
    window: str  # as configured: 15m, 1h
    window_start_us: int
    window_end_us: int
    reference: str  # baseline | previous | season
    subject: str
    subject_kind: str  # feature | prediction | latency
    statistic: str
    value: float
    expected: float
    threshold: float
    effect: float
    samples: int
    baseline_samples: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Performance:
    """One row of `performance.parquet`: one metric over one window, by prediction cohort or by arrival."""

    line: LineKey
    outcome: str
    basis: str  # cohort | arrival | estimated
    window: str
    window_start_us: int
    window_end_us: int
    metric: str
    value: float
    lower: float
    upper: float
    samples: int
    coverage: float
    baseline_value: float
    best_constant: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """One subject's case in an incident."""

    name: str
    kind: str  # feature | prediction | metric | latency | version | stream | outcome
    statistic: str
    value: float
    threshold: float
    effect: float
    samples: int
    baseline_samples: int
    detail: str  # in words: "median 41 -> 47"


@dataclass(frozen=True, slots=True)
class Incident:
    """One drift, as people are told of it; replaced by a newer copy as it goes on. Times are event time."""

    id: str
    line: LineKey
    kind: IncidentKind
    severity: Severity
    onset_us: int
    opened_us: int
    closed_us: int | None
    subjects: tuple[Evidence, ...]  # the strongest first
    baseline_id: str | None
    summary: str
    worsened_us: int | None = None  # when its severity last rose, as far as that is known
    onset_between_us: tuple[int, int] | None = (
        None  # the earliest and the latest the onset may lie, where that is known
    )


Json = Mapping[str, Any]
