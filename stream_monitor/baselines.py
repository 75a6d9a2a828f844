"""Baselines from files: raw rows in any event format, or built baseline files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stream_monitor.config import Config
from stream_monitor.decode import Decoder, DecoderOptions, ModelOptions
from stream_monitor.errors import InputError, UsageError
from stream_monitor.judge.baseline import MAGIC, Baseline, Reading, build, is_baseline_file
from stream_monitor.records import Binding, Floats, Inferences, ModelKey, RawBatch, Stream
from stream_monitor.source.files import FileSource
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task, class_probabilities, task_of
from stream_monitor.summarize.rows import Rows, concat
from stream_monitor.summarize.scores import MOST_CLASSES, ScoreProfile, of_texts

DEFAULT_OUTCOME = "label"

_POLL_ROWS = 20_000


def read_baselines(paths: Sequence[Path], config: Config, *, model: str | None = None) -> list[Baseline]:
    """Every baseline the files hold: built ones as they are, raw rows built into one for each (model, version).

    `model` is what rows belong to that name no model. Raises UsageError for a file that is not there or is a folder,
    InputError for one that holds no usable row.
    """
    found: list[Baseline] = []
    raw: list[Path] = []
    for path in paths:
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder: as a baseline a folder can only be SageMaker's statistics.json and constraints.json, "
                "and these are not read in this version yet"
            )
        if not path.is_file():
            raise UsageError(f"there is no baseline file {path}")
        with path.open("rb") as file:
            if is_baseline_file(file.read(len(MAGIC))):
                found.append(Baseline.from_bytes(path.read_bytes()))
            else:
                raw.append(path)
    if raw:
        found += build_baselines(raw, config, model=model)
    return found


def build_baselines(
    paths: Sequence[Path], config: Config, *, model: str | None = None, version: str | None = None
) -> list[Baseline]:
    """Build a baseline for each (model, version) of the rows; rows without a version are for any ("")."""
    batches = read_rows(paths, config, model=model, version=version)
    return baselines_of_rows(batches, config, source=", ".join(str(path) for path in paths))


def read_rows(
    paths: Sequence[Path], config: Config, *, model: str | None = None, version: str | None = None
) -> Iterator[RawBatch]:
    """The raw rows of files, batch by batch. The first inference topic's mapping serves them too: they are the same events."""
    fields = dict(config.source.inference[0].fields) if config.source.inference else {}
    source = FileSource([Binding(Stream.INFERENCE, str(path), model, version, fields) for path in paths])
    try:
        source.start({})
        while not source.finished:
            yield from source.poll(_POLL_ROWS, 0.0).batches
    finally:
        source.close()


def row_decoder(config: Config) -> Decoder:
    """What reads baseline rows as the configuration wants it."""
    models = {name: ModelOptions(m.task, m.positive_label) for name, m in config.models.items()}
    return Decoder(DecoderOptions(record_bytes=config.limits.record_bytes, models=models))


def baselines_of_rows(batches: Iterable[RawBatch], config: Config, *, source: str) -> list[Baseline]:
    """The same from batches of rows, wherever they come from."""
    gathered = _Gathered(config)
    decoder = row_decoder(config)
    for batch in batches:
        gathered.add(decoder.baseline(batch)[0])
    made = [gathered.build(key, source) for key in sorted(gathered.rows)]
    if not made:
        raise InputError(f"no row of {source} can be used as a baseline row")
    return made


class _Gathered:
    """Rows and truths by (model, version)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rows: dict[ModelKey, list[Rows]] = defaultdict(list)
        self._outcomes: dict[ModelKey, OutcomeProfile] = {}
        self._told: dict[ModelKey, list[tuple[pa.Array, pa.Array]]] = defaultdict(list)  # probabilities and truths
        self._truth: dict[ModelKey, list[Floats]] = defaultdict(list)  # of every row, NaN where it carries no number
        self._newest: dict[ModelKey, int] = defaultdict(int)

    def add(self, columns: Inferences) -> None:
        """Take the rows of one batch."""
        for index, key in enumerate(columns.keys):
            row = np.flatnonzero(columns.key == index)
            if not len(row):
                continue
            none = np.zeros(len(row), np.int32)
            self.rows[key].append(Rows.of(columns, row, segment=none, most_features=self.config.limits.features))
            self._newest[key] = max(self._newest[key], int(columns.time_us[row].max()))
            self._truth[key].append(columns.truth_value[row])
            self._add_truth(key, columns, row)

    def _add_truth(self, key: ModelKey, columns: Inferences, row: np.ndarray) -> None:
        truth = columns.truth_label.take(pa.array(row))
        number = columns.truth_value[row]
        held = np.flatnonzero(truth.is_valid().to_numpy(zero_copy_only=False) | np.isfinite(number))
        if not len(held):
            return
        chosen = row[held]
        index = pa.array(chosen)
        model = self.config.model(key.model)
        if key not in self._outcomes:
            numeric = np.isfinite(columns.value[chosen]) & np.isfinite(number[held])
            task = task_of(model.task, is_numeric=bool(2 * numeric.sum() > len(held)))
            self._outcomes[key] = OutcomeProfile(task, model.positive_label)
        true, label = truth.take(pa.array(held)), columns.label.take(index)
        if self._outcomes[key].task is Task.MULTICLASS:
            self._told[key].append((columns.probabilities.take(index), true))
        of_truth, of_label, squares = class_probabilities(columns.probabilities.take(index), true, label)
        self._outcomes[key].add(
            Joined(
                truth_label=true,
                truth_number=number[held],
                label=label,
                score=columns.score[chosen],
                value=columns.value[chosen],
                truth_probability=of_truth,
                label_probability=of_label,
                squared_probability=squares,
            )
        )

    def _class_scores(self, key: ModelKey) -> bytes | None:
        """What the rows gave each class, and whether it came true; None without probabilities or with too many classes."""
        told, outcome = self._told.pop(key, []), self._outcomes.get(key)
        classes = sorted({label for pair in outcome.pairs for label in pair}) if outcome else []
        if len(classes) > MOST_CLASSES or not any(texts.null_count < len(texts) for texts, _ in told):
            return None
        held = ScoreProfile()
        for texts, true in told:
            held.add(of_texts(texts, true, classes))
        return held.to_bytes()

    def build(self, key: ModelKey, source: str) -> Baseline:
        """The baseline of one (model, version)."""
        outcome = self._outcomes.get(key)
        truth = np.concatenate(self._truth.pop(key))
        return build(
            concat(self.rows.pop(key), most_features=self.config.limits.features),
            model=key.model,
            version=key.version,
            reading=reading_of(self.config, key.model),
            provisional=False,
            created_us=self._newest[key],
            source=source,
            outcomes={} if outcome is None else {DEFAULT_OUTCOME: outcome.to_bytes()},
            class_scores=self._class_scores(key),
            truth=truth if outcome is not None and outcome.task is Task.REGRESSION else None,
        )


def merged(baselines: Iterable[Baseline]) -> dict[ModelKey, Baseline]:
    """By (model, version); a later one replaces an earlier."""
    return {ModelKey(b.model, b.version): b for b in baselines}


def reading_of(config: Config, model: str) -> Reading:
    """How baseline rows of a model are read, as the configuration says."""
    features = config.model(model).features
    return Reading(
        most_categories=config.limits.categories,
        kinds={name: f.kind for name, f in features.items() if f.kind is not None},
        ignore=frozenset(name for name, f in features.items() if f.ignore),
        seasonality=config.drift.seasonality,
    )
