"""What a model said: label, score, value and probabilities, whichever way a record puts them.

Rules, in order, for each event (a *bare* prediction is no object):

1. With task `regression`, or with no task and a number that stands alone (no score, no probabilities), the number is
   the value and there is no label.
2. With task `binary`, a bare number written with a fraction between 0 and 1 is the score: a label is not written so.
3. Otherwise a string, boolean or number is the label's text; `prediction.value` is the label where a classifier gave
   no other.
4. A score that is absent is the probability of the positive label, a label that is absent the most probable class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.decode.json import RawCells
from stream_monitor.decode.scalars import (
    OPEN_LIST,
    OPEN_OBJECT,
    Unescape,
    bytes_at,
    finite_numbers,
    is_null,
    is_number,
    keep_if,
    plain,
    read_numbers,
)
from stream_monitor.records import Codes, Flags, Floats, Ints

Explode = Callable[[pa.Array], RawCells]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What decoding has to know of a model. `task`: regression, binary, multiclass; None: not configured."""

    task: str | None = None
    positive_label: str | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Columns (n,) as `Inferences` has them."""

    label: pa.Array
    score: Floats
    value: Floats
    probabilities: pa.Array


def read_predictions(
    fields: Mapping[str, pa.Array],
    key: Codes,
    *,
    options: Sequence[ModelOptions],
    unescape: Unescape,
    explode: Explode,
) -> Predictions:
    """Predictions of records with the fields `prediction` and its parts; `key` indexes `options`."""
    whole = fields["prediction"]
    first = bytes_at(whole, 0)
    # A mapping may give the label alone, without an object around it.
    boxed = (first == OPEN_OBJECT) | ~is_null(fields["prediction.label"])
    label_json = _scalars(_choose(boxed, fields["prediction.label"], keep_if(whole, ~boxed)))
    probabilities = fields["prediction.probabilities"]
    probabilities = keep_if(probabilities, bytes_at(probabilities, 0) == OPEN_OBJECT)
    score = finite_numbers(fields["prediction.score"])
    value = finite_numbers(fields["prediction.value"])

    numeric = is_number(label_json, bytes_at(label_json, 0))
    number = read_numbers(label_json, numeric)
    task = _tasks(key, options)
    alone = np.isnan(score) & is_null(probabilities)
    regression = (task == "regression") | ((task == "") & numeric & alone)
    rate = (task == "binary") & numeric & ~boxed & _is_rate(label_json, number)
    score = np.where(rate, number, score)
    classifies = (task == "binary") | (task == "multiclass")
    label_json = keep_if(label_json, ~(regression & numeric) & ~rate & ~(numeric & ~np.isfinite(number)))
    stands_in = classifies & is_null(label_json) & np.isfinite(value)
    if stands_in.any():
        label_json = _choose(stands_in, fields["prediction.value"], label_json)
    value = np.where(regression & np.isnan(value) & np.isfinite(number), number, value)
    label, score = _derive(plain(label_json, unescape), score, probabilities, key, options=options, explode=explode)
    return Predictions(label, score, np.where(classifies, np.nan, value), probabilities)


def _scalars(texts: pa.Array) -> pa.Array:
    """Strings, booleans and numbers; null for a list or an object."""
    first = bytes_at(texts, 0)
    return keep_if(texts, (first != OPEN_LIST) & (first != OPEN_OBJECT))


def _choose(flags: Flags, chosen: pa.Array, other: pa.Array) -> pa.Array:
    if flags.all():
        return chosen
    return pc.if_else(pa.array(flags), chosen, other) if flags.any() else other


def _tasks(key: Codes, options: Sequence[ModelOptions]) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    return np.array([option.task or "" for option in options] or [""], "U10")[key]


def _is_rate(texts: pa.Array, number: Floats) -> Flags:
    fraction = pc.fill_null(pc.match_substring_regex(texts, r"[.eE]"), False).to_numpy(zero_copy_only=False)
    rate: Flags = fraction & (number >= 0) & (number <= 1)
    return rate


def _derive(
    label: pa.Array,
    score: Floats,
    probabilities: pa.Array,
    key: Codes,
    *,
    options: Sequence[ModelOptions],
    explode: Explode,
) -> tuple[pa.Array, Floats]:
    """Label and score with what the probabilities tell where they are absent."""
    positive = np.array([option.positive_label is not None for option in options] or [False])[key]
    wanted = ~is_null(probabilities) & (is_null(label) | (np.isnan(score) & positive))
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return label, score
    classes = explode(probabilities.take(pa.array(rows)))
    number = finite_numbers(classes.value)
    known = ~np.isnan(number)
    at, number, name = rows[classes.position[known]], number[known], classes.name.filter(pa.array(known))
    return _most_probable(label, at, number, name), _positive_score(score, at, number, name, key, options=options)


def _most_probable(label: pa.Array, at: Ints, number: Floats, name: pa.Array) -> pa.Array:
    """The label, and where it is absent the class of the greatest probability, the first of equals."""
    order = np.lexsort((-number, at))
    rows, starts = np.unique(at[order], return_index=True)
    best = name.take(pa.array(order[starts]))
    absent = is_null(label)[rows]
    if not absent.any():
        return label
    mask = np.zeros(len(label), np.bool_)
    mask[rows[absent]] = True
    return pc.replace_with_mask(label, pa.array(mask), best.filter(pa.array(absent)))


def _positive_score(
    score: Floats, at: Ints, number: Floats, name: pa.Array, key: Codes, *, options: Sequence[ModelOptions]
) -> Floats:
    """The score, and where it is absent the probability of the model's positive label."""
    known = score.copy()
    for place, option in enumerate(options):
        if option.positive_label is None:
            continue
        named = pc.equal(name, option.positive_label).to_numpy(zero_copy_only=False)
        found = named & (key[at] == place) & np.isnan(score[at])
        known[at[found]] = number[found]
    return known
