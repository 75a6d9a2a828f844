"""The late join, as pure steps on columns: which fate each label has, and which prediction each truth belongs to.

The store finds the rows whose ids meet (`store.py`); here it is decided what they mean. A label's key is
(id, model it names or any, outcome). Ids come as one 64-bit mix of the 128-bit hash: within the rows
of one join two ids collide once in 10^9 joins of 100,000 labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_monitor.records import NO_TIME, Codes, Flags, Hashes, Ints

NEW, DUPLICATE, CORRECTED = 0, 1, 2
"""The fates of a label among the labels of its key; a NEW one is matched or an orphan."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def id_key(id_hi: Hashes, id_lo: Hashes) -> Hashes:
    """One 64-bit number for an id."""
    return id_lo ^ (id_hi * _MULTIPLIER)


def label_key(ids: Hashes, model: Codes, outcome: Codes) -> Hashes:
    """One 64-bit number for (id, model or -1, outcome)."""
    parts = (model.astype(np.int64) + 2).astype(np.uint64) * np.uint64(1_000_003) + outcome.astype(np.uint64)
    return ids ^ ((parts + np.uint64(1)) * _MULTIPLIER)


@dataclass(frozen=True, slots=True)
class Decision:
    """`fate` (n,) of each arriving label; `winner` (n,): it is what its key now holds and did not hold before.

    `rose` (n,): it was what its key held when it came, whatever came after it in the batch.
    """

    fate: Codes
    winner: Flags
    rose: Flags


def decide(
    key: Hashes, time_us: Ints, text: Codes, *, stored_key: Hashes, stored_time_us: Ints, stored_text: Codes
) -> Decision:
    """Give each label of a batch, in order of arrival, its fate against what its key holds at that moment.

    `text` and `stored_text` are codes of the label's text from one dictionary. A key appears at most once among the
    stored. The greatest timestamp wins; equal timestamps are settled by the text, labels without a time by arrival, so the
    truth that remains does not depend on the order of labels that carry times.
    """
    n, held = len(key), len(stored_key)
    keys = np.concatenate([stored_key, key])
    times = np.concatenate([stored_time_us, time_us])
    texts = np.concatenate([stored_text, text]).astype(np.int64)
    arrival = np.arange(held + n)
    # One rank for (time, tie-break): comparing ranks compares truths.
    tie = np.where(times == NO_TIME, arrival, texts)
    _, rank = np.unique(np.stack([times, tie], axis=1), axis=0, return_inverse=True)
    rank = rank.reshape(-1)
    text_of_rank = np.empty(held + n, np.int64)
    text_of_rank[rank] = texts
    _, group = np.unique(keys, return_inverse=True)
    order = np.argsort(group, kind="stable")  # stored first, then arrival
    span = held + n
    best = np.maximum.accumulate(group[order] * span + rank[order])
    first = np.ones(span, np.bool_)
    first[1:] = group[order][1:] != group[order][:-1]
    before = text_of_rank[np.concatenate([[0], best[:-1]]) % span]
    fate_sorted = np.where(first, NEW, np.where(before == texts[order], DUPLICATE, CORRECTED))
    fate = np.empty(span, np.int32)
    fate[order] = fate_sorted
    rose = np.empty(span, np.bool_)
    rose[order] = first | (best > np.concatenate([[-1], best[:-1]]))
    last = np.ones(span, np.bool_)
    last[:-1] = first[1:]
    final = np.empty(span, np.int64)
    final[group[order][last]] = best[last] % span
    winner = rank == final[group]
    # Of several equal winners of a key the earliest stands for all; a stored one means nothing changed.
    earliest = np.full(span, span, np.int64)
    np.minimum.at(earliest, group[winner], arrival[winner])
    winner &= earliest[group] == arrival
    return Decision(fate=fate[held:], winner=winner[held:], rose=rose[held:])


@dataclass(frozen=True, slots=True)
class Pairs:
    """Index pairs (k,) into the labels and the predictions given to `match`."""

    label: Ints
    prediction: Ints


def match(
    *,
    label_id: Hashes,
    label_model: Codes,
    label_outcome: Codes,
    label_time_us: Ints,
    prediction_id: Hashes,
    prediction_model: Codes,
    prediction_time_us: Ints,
    prediction_seq: Ints,
    joined_seq: Ints,
    joined_outcome: Codes,
) -> Pairs:
    """Pair each truth with the predictions it is the truth for: one for each (id, model, outcome).

    A label that names no model belongs to every model's prediction under its id; where a model has two labels, the
    greater timestamp counts. Within (id, model) the newest prediction is meant, unless an older one already holds a truth of
    that outcome and the label is not newer than the newest prediction (`joined_*`: which predictions hold which).
    """
    left, right = _meet(label_id, prediction_id)
    in_scope = (label_model[left] == -1) | (label_model[left] == prediction_model[right])
    left, right = left[in_scope], right[in_scope]
    if not len(left):
        return Pairs(left, right)
    pair_key = label_key(prediction_id[right], prediction_model[right], label_outcome[left])
    held = np.isin(_seq_outcome(prediction_seq[right], label_outcome[left]), _seq_outcome(joined_seq, joined_outcome))
    newer_label = label_time_us[left] > prediction_time_us[right]
    # Best label first, then the prediction: one that holds a truth, unless the newest came in between; else the newest.
    newest = _is_group_maximum(pair_key, prediction_time_us[right], prediction_seq[right])
    prefer = np.where(newest & newer_label, 2, np.where(held, 1, 0))
    order = np.lexsort((prediction_seq[right], prediction_time_us[right], prefer, label_time_us[left], pair_key))
    last = np.ones(len(order), np.bool_)
    last[:-1] = pair_key[order][1:] != pair_key[order][:-1]
    chosen = order[last]
    return Pairs(left[chosen], right[chosen])


def _seq_outcome(seq: Ints, outcome: Codes) -> Ints:
    return seq * np.int64(1 << 16) + outcome.astype(np.int64)


def _meet(left: Hashes, right: Hashes) -> tuple[Ints, Ints]:
    """All index pairs with left[i] == right[j]."""
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    low, high = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
    counts = high - low
    first = np.repeat(np.arange(len(left)), counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return first, order[np.repeat(low, counts) + within]


def _is_group_maximum(group: Hashes, first: Ints, second: Ints) -> Flags:
    """Rows whose (first, second) is the greatest of their group."""
    order = np.lexsort((second, first, group))
    end = np.ones(len(order), np.bool_)
    end[:-1] = group[order][1:] != group[order][:-1]
    ends = order[end]
    segment = np.cumsum(np.concatenate([[0], end[:-1].astype(np.int64)]))
    greatest = np.empty(len(order), np.bool_)
    leader = ends[segment]
    greatest[order] = (first[order] == first[leader]) & (second[order] == second[leader])
    return greatest
