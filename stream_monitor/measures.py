"""What the truths of an outcome are held to: the predictions, or nothing but the level they had before.

The rules, the first that holds:

1. What the configuration says of the outcome; a `positive_label` alone means binary.
2. Truths of the outcome `label` are what the model is made to foretell: its own task.
3. Truths that are numbers are watched by themselves. What they have to do with the prediction nobody told.
4. Truths that are classes of the predictions are what was foretold: binary where one of them is the positive label, of
   several classes where half of them are classes that predictions name.
5. Truths of other classes are counted, and held to nothing; later ones may be told apart by rule 3 or 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.config import ModelConfig
from stream_monitor.records import DEFAULT_OUTCOME
from stream_monitor.summarize.outcome import Task, task_of

NEGATIVE = ""
"""A class that is not the positive one, whatever it was called."""


@dataclass(frozen=True, slots=True)
class Measure:
    """The task of an outcome and, of a binary one, the truth that is called positive."""

    task: Task
    positive_label: str | None = None
    is_settled: bool = True  # False: by rule 5


def configured(model: ModelConfig, outcome: str) -> Measure | None:
    """What the configuration says of an outcome, None where the truths have to show it."""
    if outcome == DEFAULT_OUTCOME:
        return None if model.task is None else Measure(Task(model.task), model.positive_label)
    known = model.outcomes.get(outcome)
    if known is None or (known.task is None and known.positive_label is None):
        return None
    return Measure(Task(known.task or Task.BINARY), known.positive_label)


def measure(model: ModelConfig, outcome: str, rows: pa.Table) -> Measure:
    """What joined truths (n,) of an outcome are held to; `rows` are as a join brings them."""
    told = configured(model, outcome)
    if told is not None:
        return told
    numeric = np.isfinite(rows["number"].to_numpy())
    if outcome == DEFAULT_OUTCOME:
        both = numeric & np.isfinite(rows["value"].to_numpy())
        return Measure(task_of(None, is_numeric=_are_most(both)), model.positive_label)
    if _are_most(numeric):
        return Measure(Task.VALUE)
    if model.task != "regression" and _are_foretold(rows, model):
        return Measure(Task(model.task or Task.MULTICLASS), model.positive_label)
    return Measure(Task.VALUE, is_settled=False)


def in_words_of_the_outcome(model: ModelConfig, outcome: str, rows: pa.Table) -> pa.Table:
    """Predictions as a binary outcome of another positive label names them.

    A model that says `show` or `hide` is right to `show` where the outcome `click` turns out to be its own `yes`.
    """
    told = configured(model, outcome)
    if told is None or told.task is not Task.BINARY or model.positive_label in (None, told.positive_label):
        return rows
    positive = pc.equal(rows["predicted_label"], pa.scalar(model.positive_label, pa.string()))
    said = pc.if_else(positive, pa.scalar(told.positive_label, pa.string()), pa.scalar(NEGATIVE, pa.string()))
    return rows.set_column(rows.schema.get_field_index("predicted_label"), "predicted_label", said)


def _are_most(flags: np.ndarray) -> bool:
    return bool(2 * flags.sum() > len(flags))


def _are_foretold(rows: pa.Table, model: ModelConfig) -> bool:
    if model.task == "binary":
        return bool(pc.any(pc.equal(rows["label"], pa.scalar(model.positive_label, pa.string()))).as_py())
    known = pc.is_in(rows["label"], value_set=pc.unique(rows["predicted_label"]).drop_null())
    return bool(2 * pc.sum(known).as_py() >= len(rows))
