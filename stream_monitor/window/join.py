"""The late join, as pure steps on columns: which predictions each label speaks of, its fate, and the truth that remains.

The store finds the rows whose ids meet (`store.py`); here it is decided what they mean, from the rows alone: predictions
and labels each in the order they were read, but not when one was read relative to the other. A label's key is
(id, model it names or any, outcome, epoch): an id that is used again begins a new epoch. Ids come as one 64-bit mix of
the 128-bit hash: within the rows of one join two ids collide once in 10^9 joins of 100,000 labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_monitor.records import NO_TIME, Codes, Flags, Hashes, Ints

NEW, DUPLICATE, CORRECTED = 0, 1, 2
"""The fates of a label among the labels of its key; a NEW one is matched or an orphan."""

OUTCOME_BITS = 16
"""Room for the number of an outcome beside that of a prediction; the engine tells far fewer outcomes apart."""

_MULTIPLIER, _EPOCH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def id_key(id_hi: Hashes, id_lo: Hashes) -> Hashes:
    """One 64-bit number for an id."""
    return id_lo ^ (id_hi * _MULTIPLIER)


def label_key(ids: Hashes, model: Codes, outcome: Codes, epoch: Ints) -> Hashes:
    """One 64-bit number for (id, model or -1, outcome, epoch)."""
    parts = (model.astype(np.int64) + 2).astype(np.uint64) * np.uint64(1_000_003) + outcome.astype(np.uint64)
    of_epoch = epoch.astype(np.uint64) * _EPOCH_MULTIPLIER
    return np.asarray(ids ^ ((parts + np.uint64(1)) * _MULTIPLIER) ^ of_epoch, np.uint64)


@dataclass(frozen=True, slots=True)
class Aims:
    """Index pairs (k,) of labels and the predictions they speak of, and the `epoch` (n,) of each label."""

    label: Ints
    prediction: Ints
    epoch: Ints


def aim(
    *,
    label_id: Hashes,
    label_model: Codes,
    label_time_us: Ints,
    prediction_id: Hashes,
    prediction_model: Codes,
    prediction_time_us: Ints,
) -> Aims:
    """Find for each label its prediction in every model it speaks for: the one it names, or any under its id (-1).

    That is the newest prediction made by the label's time; if there is none, the earliest after it. Of two with one
    time the later row is the newer. The epoch says how often the id had been used again by the label's time, summed
    over these models: so labels of one id and scope have one epoch exactly if they speak of the same predictions.
    """
    none = np.zeros(len(prediction_id), np.int32)
    scope = label_key(prediction_id, prediction_model, none, none.astype(np.int64))
    order = np.lexsort((prediction_time_us, scope))
    head = np.append(True, scope[order][1:] != scope[order][:-1])[: len(order)]
    start, group = np.flatnonzero(head), np.cumsum(head) - 1
    label, chosen = _meet(label_id, prediction_id[order[start]])
    speaks = (label_model[label] == -1) | (label_model[label] == prediction_model[order[start[chosen]]])
    label, chosen = label[speaks], chosen[speaks]
    # One number for (group, time), so that one search counts within all groups.
    times = np.sort(prediction_time_us)
    span = len(times) + 1
    made = group * span + np.searchsorted(times, prediction_time_us[order])
    until = chosen * span + np.searchsorted(times, label_time_us[label], "right")
    again = np.maximum(np.searchsorted(made, until) - start[chosen] - 1, 0)
    epoch = np.bincount(label, again, minlength=len(label_id)).astype(np.int64)
    return Aims(label, order[start[chosen] + again], epoch)


def truth_rank(time_us: Ints, text: Codes) -> Ints:
    """Numbers that compare as truths do: the greater timestamp wins, equal ones are settled by the text.

    Labels without a time give way to all others; among themselves the later row wins.
    """
    tie = np.where(time_us == NO_TIME, np.arange(len(time_us)), text)
    order = np.lexsort((tie, time_us))
    step = (np.diff(time_us[order]) != 0) | (np.diff(tie[order]) != 0)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.append(0, np.cumsum(step))[: len(order)]
    return rank


@dataclass(frozen=True, slots=True)
class Decision:
    """`fate` (n,) of each label; `spare` (n,): it can be forgotten, its key held a truth of the same time that outdoes it.

    An older label than the key holds is not spare: when a prediction is found to lie between them, they part.
    """

    fate: Codes
    spare: Flags


def decide(key: Hashes, time_us: Ints, text: Codes) -> Decision:
    """Give each label, in order of arrival, its fate against what its key holds at that moment.

    `text` are codes that compare as the texts. What a key holds is the truth of the greatest `truth_rank` so far, so
    what remains does not depend on the order of labels that carry times.
    """
    n, rank = len(key), truth_rank(time_us, text)
    _, group = np.unique(key, return_inverse=True)
    order = np.argsort(group, kind="stable")
    best = np.maximum.accumulate(group[order] * n + rank[order])
    first = np.append(True, np.diff(group[order]) != 0)[:n]
    of_rank = np.zeros(n, np.int64)
    of_rank[rank] = np.arange(n)
    held = of_rank[np.append(0, best[:-1])[:n] % max(n, 1)]
    same_text, same_time = text[held] == text[order], time_us[held] == time_us[order]
    fate, spare = np.empty(n, np.int32), np.empty(n, np.bool_)
    fate[order] = np.where(first, NEW, np.where(same_text, DUPLICATE, CORRECTED))
    spare[order] = ~first & same_time & (rank[order] <= rank[held])
    return Decision(fate, spare)


def surplus(key: Hashes, rank: Ints, kept: Flags, *, most: int) -> Flags:
    """Labels (n,) that are neither `kept` nor among the `most` of the greatest rank under their key."""
    n = len(key)
    _, group = np.unique(key, return_inverse=True)
    order = np.lexsort((rank, group))
    last = np.append(np.diff(group[order]) != 0, True)[:n]
    end = np.flatnonzero(last)[group[order]]
    found = np.empty(n, np.bool_)
    found[order] = end - np.arange(n) >= most
    return np.asarray(found & ~kept, np.bool_)


@dataclass(frozen=True, slots=True)
class Truths:
    """Each (prediction, outcome) that has a truth, in this order, as row numbers of predictions and labels (k,).

    `label`: the truth; `first`: the label that came first; `joined_us`: when prediction and first label had arrived;
    `opening`: the truth as it was known by then.
    """

    prediction: Ints
    outcome: Ints
    label: Ints
    first: Ints
    opening: Ints
    joined_us: Ints


def truths(aims: Aims, *, rank: Ints, outcome: Codes, label_arrival_us: Ints, prediction_arrival_us: Ints) -> Truths:
    """Settle every prediction's truth, outcome by outcome: of the labels that speak of it, the one of the greatest rank.

    `rank`, `outcome` and `label_arrival_us` (n,) are the labels', in order of arrival; of equal ranks the first counts.
    """
    pairs, group = np.unique((aims.prediction << OUTCOME_BITS) + outcome[aims.label], return_inverse=True)
    prediction = pairs >> OUTCOME_BITS
    first = np.full(len(pairs), len(rank), np.int64)
    np.minimum.at(first, group, aims.label)
    joined_us = np.maximum(prediction_arrival_us[prediction], label_arrival_us[first])
    known = label_arrival_us[aims.label] <= joined_us[group]
    return Truths(
        prediction=prediction,
        outcome=pairs & ((1 << OUTCOME_BITS) - 1),
        label=_best(group, aims.label, rank),
        first=first,
        opening=_best(group[known], aims.label[known], rank),
        joined_us=joined_us,
    )


def _best(group: Ints, label: Ints, rank: Ints) -> Ints:
    """The label of the greatest rank in each group, of equals the first; no group is empty."""
    order = np.lexsort((-label, rank[label], group))
    last = np.append(np.diff(group[order]) != 0, True)[: len(order)]
    return np.asarray(label[order[last]], np.int64)


def _meet(left: Hashes, right: Hashes) -> tuple[Ints, Ints]:
    """All index pairs with left[i] == right[j]."""
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    low, high = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
    counts = high - low
    first = np.repeat(np.arange(len(left)), counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return first, order[np.repeat(low, counts) + within]
