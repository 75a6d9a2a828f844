"""The late join on the state file: predictions that wait, labels that come, and what becomes of both.

Predictions and labels are collected as columns, appended to the store's shelves, and met in a few
vectorised queries on a cadence that keeps joining below a tenth of the time. `window/join.py` decides; this
module fetches, writes and counts.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.names import REST
from stream_monitor.records import MICROSECONDS, NO_TIME, Codes, Flags, Hashes, Ints
from stream_monitor.store import LABELS, PREDICTIONS, Store
from stream_monitor.window.join import (
    NEW,
    OUTCOME_BITS,
    Aims,
    Decision,
    Truths,
    aim,
    decide,
    id_key,
    label_key,
    surplus,
    truth_rank,
    truths,
)

DAY_US = 86_400 * MICROSECONDS

FAR_US = 2**62 // DAY_US * DAY_US
"""Later than any time. A label without one speaks of the newest prediction, and waits for it however long."""

FATES = ("matched", "duplicate", "corrected", "orphan_waiting", "orphan_expired")
"""NEW, DUPLICATE and CORRECTED as the ledger names them; a NEW label without a prediction is an ORPHAN, and one that came
beyond the horizon of its outcome is TOO_LATE for every prediction it speaks of."""
ORPHAN, TOO_LATE = 3, 4
_TOO_LATE_KEY = np.uint64(0x2545F4914F6CDD1D)

DELAY_BOUNDS_SECONDS = (1, 10, 60, 600, 3600, 21_600, 86_400, 604_800, 2_592_000, 7_776_000, 15_552_000)
"""The bounds of the label delay histogram; the metrics catalogue has the same, a test says so."""

CLASS_DELAY_BOUNDS_SECONDS = tuple(10 ** (k / 4) for k in range(33))
"""Those of the delays by class, four to the tenfold, up to three years: a quantile between them is right within a tenth or
so of itself for delays that spread over a bin."""

LABELS_KEPT = 8
"""Labels of one key (id, model, outcome) that are kept beside its first and its truth: a prediction that comes late parts
them by their times. A million corrections of one id are counted, and forgotten."""

SETTLED_LABELS = 200_000
"""Labels of a day that are gone through at once, with their predictions: a second, and some 100 MB."""
NEVER = 2**62
"""More truths than a prediction can have."""

WEEK_US = 7 * DAY_US
FADING_DELAYS = 200
"""Delays by class are halved each week while there are more: a week weighs half as much as the next, so that a doubled delay
shows within weeks whatever the traffic, and so many are enough for a percentile."""

MOST_DELAY_CLASSES = 20
OTHER_CLASSES = "(other)"

PREDICTION_SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("id_hi", pa.uint64()),
        ("id_lo", pa.uint64()),
        ("version", pa.int32()),
        ("segment", pa.int32()),
        ("time_us", pa.int64()),
        ("arrival_us", pa.int64()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("value", pa.float64()),
        ("probabilities", pa.string()),
        ("expected_size", pa.float64()),
        ("expected_error", pa.float64()),
    ]
)
"""`expected_size`, `expected_error`: of a number, the |error| and error that the baseline leads to expect; NaN: none."""

LABEL_SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("id_hi", pa.uint64()),
        ("id_lo", pa.uint64()),
        ("model", pa.int32()),
        ("outcome", pa.int32()),
        ("time_us", pa.int64()),
        ("arrival_us", pa.int64()),
        ("label", pa.string()),
        ("number", pa.float64()),
        ("day", pa.int64()),
    ]
)

MET_SCHEMA = pa.schema(
    [
        ("id_hi", pa.uint64()),
        ("id_lo", pa.uint64()),
        ("version", pa.int32()),
        ("segment", pa.int32()),
        ("outcome", pa.int32()),
        ("time_us", pa.int64()),
        ("joined_us", pa.int64()),
        ("predicted_label", pa.string()),
        ("score", pa.float64()),
        ("value", pa.float64()),
        ("probabilities", pa.string()),
        ("expected_size", pa.float64()),
        ("expected_error", pa.float64()),
        ("label", pa.string()),
        ("number", pa.float64()),
    ]
)
"""A prediction with its truth. `time_us` is the prediction's, `joined_us` the time of the joined outcome."""

AMENDED_SCHEMA = MET_SCHEMA.append(pa.field("at_us", pa.int64())).append(pa.field("sign", pa.int8()))
"""A truth that was taken back (sign -1) or took its place (1), and when that was known."""


@dataclass(frozen=True, slots=True)
class Met:
    """What one join brought: truths that are new, truths taken back, and what replaced these where something did.

    A truth is taken back by a correction, when its label turns out to speak of a prediction that was not yet known, or
    when one that came late changes when they met. `opened`: the new ones as they were known at their `joined_us`,
    whatever a later label of the same batch made of them; `revised`: what has become of opened ones by labels that had
    come by then; `withdrawn`: opened ones whose prediction has no truth any more. What all joins bring together depends
    on predictions and labels alone, not on how joins cut them. `amended`: what, told after the opened ones and in the
    order of its times, ends at the truths as they are now; of several corrections in one join it has the last.
    """

    new: pa.Table
    removed: pa.Table
    replaced: pa.Table
    opened: pa.Table
    revised: pa.Table
    withdrawn: pa.Table
    amended: pa.Table = field(default_factory=AMENDED_SCHEMA.empty_table)


@dataclass(slots=True)
class Ledger:
    """The fates of labels and predictions; totals over the whole state. Counts by model where a model is known.

    A late prediction can change the fate of labels, so that a count falls. What is exported as a counter must not: the
    `told` ones stay at the highest value they had until the count has caught up.
    """

    labels: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))  # (model, fate)
    labelled: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version
    expired: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version
    predictions: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version
    delays: dict[tuple[int, int], list[int]] = field(
        default_factory=dict
    )  # (version, outcome) -> counts by DELAY_BOUNDS_SECONDS, then +Inf
    delay_us: dict[tuple[int, int], int] = field(
        default_factory=lambda: defaultdict(int)
    )  # (version, outcome), whole microseconds
    class_delays: dict[tuple[int, int, str], list[int]] = field(
        default_factory=dict
    )  # (version, outcome, class) -> counts by CLASS_DELAY_BOUNDS_SECONDS, then beyond
    label_days: dict[tuple[int, str], int] = field(
        default_factory=lambda: defaultdict(int)
    )  # (day, model) -> orphans first seen that day
    prediction_days: dict[tuple[int, int], list[int]] = field(
        default_factory=dict
    )  # (day, version) -> [made, labelled]
    truths: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))  # (version, outcome)
    of_label: dict[int, int] = field(default_factory=dict)  # versions for which a truth of the outcome `label` has come
    told_labels: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    told_delays: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    told_delay_us: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))

    def class_of(self, version: int, outcome: int, label: str) -> tuple[int, int, str]:
        """Where delays of a class are counted: the first classes have places of their own, the rest share one."""
        key = (version, outcome, label)
        if key not in self.class_delays:
            if sum((v, o) == (version, outcome) for v, o, _ in self.class_delays) >= MOST_DELAY_CLASSES:
                key = (version, outcome, OTHER_CLASSES)
            self.class_delays.setdefault(key, [0] * (len(CLASS_DELAY_BOUNDS_SECONDS) + 1))
        return key

    def begin_labels(self, version: int) -> None:
        """Its labels come: until now other outcomes stood for them, and made predictions labelled that are not.

        Those whose days are gone have expired without one.
        """
        kept = 0
        for (_, v), counts in self.prediction_days.items():
            if v == version:
                kept, counts[1] = kept + counts[1], 0
        self.expired[version] += self.labelled[version] - kept
        self.labelled[version] = 0
        self.of_label[version] = 1

    def fade(self) -> None:
        """Halve the delays of classes that have enough of them; the shares of their bins stay."""
        for key, counts in self.class_delays.items():
            if sum(counts) > FADING_DELAYS:
                self.class_delays[key] = np.diff(np.cumsum(counts) // 2, prepend=0).tolist()

    def tell(self, predicting: Collection[str] | None = None) -> None:
        """Bring what is told up to what is counted; labels of models that never predicted together, if it is said which do.

        Anybody can make such models up, by the thousand.
        """
        fates: Counter[tuple[str, str]] = Counter()
        for (model, fate), count in self.labels.items():
            fates[(model if predicting is None or model in ("", *predicting) else REST, fate)] += count
        shown = {key: max(self.told_labels[key], count) for key, count in fates.items()}
        self.told_labels.clear()
        self.told_labels.update(shown)
        for pair, counts in self.delays.items():
            told = self.told_delays.get(pair, [0] * len(counts))
            self.told_delays[pair] = [max(both) for both in zip(told, counts, strict=True)]
        for pair, delay in self.delay_us.items():
            self.told_delay_us[pair] = max(self.told_delay_us[pair], delay)

    def waiting(self, version: int) -> int:
        """Predictions of a version that are neither labelled nor expired."""
        return self.predictions[version] - self.labelled[version] - self.expired[version]

    def fate(self, name: str) -> int:
        """Labels of one fate over all models."""
        return sum(count for (_, fate), count in self.labels.items() if fate == name)

    def to_json(self) -> dict[str, Any]:
        pairs = {name: [[*key, n] for key, n in getattr(self, name).items()] for name in _BY_PAIR}
        classes = [[*key, counts] for key, counts in self.class_delays.items()]
        return pairs | {name: list(getattr(self, name).items()) for name in _BY_NUMBER} | {"class_delays": classes}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Ledger:
        ledger = cls()
        for name in _BY_PAIR:
            # Delays were once counted by version alone: nobody knows of which outcome, and they are counted anew.
            found = (entry for entry in body.get(name, ()) if len(entry) == 3)
            getattr(ledger, name).update({(one, other): n for one, other, n in found})
        for name in _BY_NUMBER:
            getattr(ledger, name).update({int(k): v for k, v in body.get(name, ())})
        ledger.class_delays.update({(v, o, label): counts for v, o, label, counts in body.get("class_delays", ())})
        return ledger


_BY_PAIR = (
    "labels", "label_days", "prediction_days", "truths", "told_labels",
    "delays", "delay_us", "told_delays", "told_delay_us",
)  # fmt: skip
_BY_NUMBER = ("of_label", "labelled", "expired", "predictions")


@dataclass(slots=True)
class _Settling:
    """A day that is gone through for truths that are final. `shared`: its ids that other days have as well."""

    day: int
    times: int
    before_us: int
    shared: pa.Table
    parts: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class _Standing:
    """Labels and predictions, each in the order they came, and what they mean for each other.

    `texts` (labels,) are codes of the labels' texts, `key` and `rank` (labels,) what they are and how they compare,
    `owner` (labels,) the models they are counted under, -1 where none is known, `day` (labels,) the shelves they belong
    on: that of the prediction a label has met, so that both are forgotten together; that of its arrival for an orphan.
    """

    labels: pa.Table
    predictions: pa.Table
    texts: Codes
    key: Hashes
    rank: Ints
    decision: Decision
    aims: Aims
    owner: Codes
    day: Ints
    truths: Truths
    too_late: Flags  # (labels,)

    def fates(self) -> Codes:
        """The fate of each label, as a place in FATES."""
        waits = self.decision.fate == NEW
        waits[self.aims.label] = False
        return np.where(self.too_late, TOO_LATE, np.where(waits, ORPHAN, self.decision.fate))

    def surplus(self) -> Flags:
        """Which labels have been counted and will mean nothing more."""
        kept = self.decision.fate == NEW
        for part in (self.truths.label, self.truths.first, self.truths.opening):
            kept[part] = True
        return surplus(self.key, self.rank, kept, most=LABELS_KEPT)

    def pairs(self) -> Ints:
        """One number for prediction and outcome of each truth."""
        return (self.truths.prediction << OUTCOME_BITS) + self.truths.outcome

    def labelled(self, n: int, label: int | None, of_label: Collection[int]) -> Flags:
        """Which of n predictions, in the order they came, have a truth: those of versions `of_label` one of that outcome."""
        found = np.zeros(n, np.bool_)
        version = self.predictions["version"].to_numpy()[self.truths.prediction]
        counts = ~np.isin(version, list(of_label)) | (self.truths.outcome == label)
        found[self.truths.prediction[counts]] = True
        return found

    def firsts(self) -> Ints:
        """One number for prediction and first label of each truth."""
        return (self.truths.prediction << 32) + self.truths.first


class Truth:
    """Waiting predictions, waiting labels and their ledger, on the store's open transaction."""

    def __init__(
        self,
        store: Store,
        *,
        horizon_us: int,
        model_of_version: Callable[[int], int],
        corrections_us: int | None = None,
        models: Sequence[str] | None = None,
        horizon_of: Callable[[int, int], int] | None = None,
    ) -> None:
        """`corrections_us`: how long truths may be corrected, None: as long as the horizon. `models`: their names, a list
        that grows. `horizon_of` (model, outcome): microseconds after which its truths do not count; None: all do."""
        self._store = store
        self._horizon_us = horizon_us
        self._corrections_us = corrections_us
        self._model_of_version = model_of_version
        self._model_names = models
        self._horizon_of = horizon_of
        self._new_predictions: list[pa.Table] = []
        self._new_labels: list[pa.Table] = []
        self._next_prediction = int(store.meta("next_prediction") or 1)
        self._next_label = int(store.meta("next_label") or 1)
        self._joined_up_to = int(store.meta("joined_up_to") or 0)
        self._faded_week = int(store.meta("faded_week") or 0)
        self._settled = {int(day): times for day, times in json.loads(store.meta("settled") or "{}").items()}
        self._settling: _Settling | None = None
        self.ledger = Ledger()
        saved = store.states("truth")
        if "inbox" in saved:
            self._new_labels.append(from_ipc(saved["inbox"]))

    # -- collecting ------------------------------------------------------------------------------

    def add_predictions(self, rows: pa.Table) -> None:
        """Predictions without `seq`, in the order they were accepted."""
        n = len(rows)
        seq = pa.array(np.arange(self._next_prediction, self._next_prediction + n))
        self._next_prediction += n
        self._new_predictions.append(rows.add_column(0, "seq", seq).cast(PREDICTION_SCHEMA))
        version = rows["version"].to_numpy()
        day = self._shelf_time(rows["time_us"].to_numpy(), rows["arrival_us"].to_numpy()) // DAY_US
        for (d, v), count in _counts(day, version):
            self.ledger.prediction_days.setdefault((d, v), [0, 0])[0] += count
            self.ledger.predictions[v] += count

    def add_labels(self, rows: pa.Table) -> None:
        """Labels without `seq` and `day`, in the order they came."""
        n = len(rows)
        seq = pa.array(np.arange(self._next_label, self._next_label + n))
        self._next_label += n
        arrival = rows["arrival_us"].to_numpy()
        day = np.where(arrival == NO_TIME, FAR_US, arrival) // DAY_US
        complete = rows.add_column(0, "seq", seq).append_column("day", pa.array(day))
        self._new_labels.append(complete.select(LABEL_SCHEMA.names).cast(LABEL_SCHEMA))

    def pending_labels(self) -> int:
        """Labels collected and not yet joined."""
        return sum(len(t) for t in self._new_labels)

    def has_work(self) -> bool:
        """Whether a join could find anything."""
        return bool(self._new_labels) or (
            self._next_prediction - 1 > self._joined_up_to and not self._store.is_empty(LABELS)
        )

    def _shelf_time(self, time_us: Ints, arrival_us: Ints) -> Ints:
        """The time that decides when a row expires: an absurd one must not open a table of its own day."""
        return np.clip(time_us, arrival_us - self._horizon_us, arrival_us + DAY_US)

    def flush_predictions(self) -> None:
        """Put the collected predictions on their shelf."""
        if not self._new_predictions:
            return
        rows = pa.concat_tables(self._new_predictions).combine_chunks()
        self._new_predictions = []
        self._store.append(
            PREDICTIONS, rows, self._shelf_time(rows["time_us"].to_numpy(), rows["arrival_us"].to_numpy())
        )

    def seen_before(self, id_hi: Hashes, id_lo: Hashes, model: Ints, time_us: Ints, *, horizon_us: int) -> Ints:
        """Row numbers of old events that are duplicates of a stored prediction of their model."""
        self.flush_predictions()
        rows = pa.table({"row": np.arange(len(id_hi)), "id_hi": id_hi, "id_lo": id_lo, "model": model, "t": time_us})
        low, high = int(time_us.min()) - horizon_us, int(time_us.max()) + horizon_us
        found = self._store.query(
            f"select distinct o.row as row, p.version as version, o.model as model "
            f"from {self._store.relation(PREDICTIONS)} p join old_rows o using (id_lo) "
            f"where p.id_hi = o.id_hi and p.time_us between {low} and {high} and abs(p.time_us - o.t) <= {horizon_us}",
            old_rows=rows,
        )
        same = [
            row
            for row, version, wanted in zip(*(found[c].to_pylist() for c in ("row", "version", "model")), strict=True)
            if self._model_of_version(version) == wanted
        ]
        return np.unique(np.asarray(same, np.int64))

    def recent(self, since_us: int) -> pa.Table:
        """id_hi, id_lo, version, time_us of the stored predictions since a time."""
        return self._store.query(
            f"select id_hi, id_lo, version, time_us from {self._store.relation(PREDICTIONS)} where time_us >= {since_us}"
        )

    # -- joining ---------------------------------------------------------------------------------

    def join(self, model_names: list[str], *, label_outcome: int | None = None) -> Met:
        """Meet the collected labels with the waiting predictions and new predictions with the stored labels.

        `label_outcome`: the number of the outcome `label`, once a label has named it.

        What the rows of these ids meant before and what they mean now are both read from the rows; the difference is
        what is new. So a prediction that comes after its label, even as a second use of its id, ends as if it had come first.
        Two things still depend on when a join comes. A label without a time stays with the newest prediction known when
        they met. What detectors have read of a truth that is taken back later, they have read: only a late prediction
        brings that about.
        """
        self.flush_predictions()
        batch = _concat(self._new_labels, LABEL_SCHEMA)
        self._new_labels = []
        stored = self._stored_labels(batch)
        seen_up_to, self._joined_up_to = self._joined_up_to, self._next_prediction - 1
        if not len(stored) and not len(batch):
            return Met(*(_empty(MET_SCHEMA) for _ in range(6)))
        labels = pa.concat_tables([stored, batch]).combine_chunks()
        # Joined on one column DuckDB reads the others of matching rows only: a quarter of the time. A row of another
        # id that shares half the hash is no harm: whatever follows compares both halves.
        predictions = self._store.query(
            f"select p.* from {self._store.relation(PREDICTIONS)} p semi join ids using (id_lo) order by seq",
            ids=labels.select(["id_lo"]),
        )
        texts = _text_codes(labels["label"])
        # Without labels from before nothing had a meaning before.
        known = int(np.searchsorted(predictions["seq"].to_numpy(), seen_up_to, "right")) if len(stored) else 0
        before = self._stand(stored, predictions.slice(0, known), texts[: len(stored)])
        after = self._stand(labels, predictions, texts)
        self._keep(stored, after)
        self._count_labels(before, after, model_names)
        self._count_predictions(before, after, label_outcome)
        self.ledger.tell(self._predicting())
        return _difference(before, after)

    def _stored_labels(self, batch: pa.Table) -> pa.Table:
        """The labels that came before, of the ids of new labels and of new predictions, in the order they came."""
        ids = [batch.select(["id_lo"])]
        if self._store.is_empty(LABELS):
            return _empty(LABEL_SCHEMA)
        if self._next_prediction - 1 > self._joined_up_to:
            ids.append(
                self._store.query(
                    f"select id_lo from {self._store.relation(PREDICTIONS)} where seq > {self._joined_up_to}"
                )
            )
        return self._store.query(
            f"select l.* from {self._store.relation(LABELS)} l semi join ids using (id_lo) order by seq",
            ids=pa.concat_tables(ids),
        ).cast(LABEL_SCHEMA)

    def _stand(self, labels: pa.Table, predictions: pa.Table, texts: Codes) -> _Standing:
        """What labels and predictions, each in the order they came, mean for each other."""
        ids, time_us, named = _ids(labels), labels["time_us"].to_numpy(), labels["model"].to_numpy()
        arrival_us, outcome = labels["arrival_us"].to_numpy(), labels["outcome"].to_numpy()
        timeless = time_us == NO_TIME
        made_ids, models = _ids(predictions), self._models(predictions)
        made_us, made_arrival_us = predictions["time_us"].to_numpy(), predictions["arrival_us"].to_numpy()
        aims = aim(
            label_id=ids,
            label_model=named,
            label_time_us=np.where(timeless, np.where(arrival_us == NO_TIME, FAR_US, arrival_us), time_us),
            prediction_id=made_ids,
            prediction_model=models,
            prediction_time_us=made_us,
        )
        placed_us = _greatest(aims, made_us[aims.prediction], np.full(len(labels), NO_TIME))
        shelf_us = self._shelf_time(made_us, made_arrival_us)
        key, rank = label_key(ids, named, outcome, aims.epoch), truth_rank(time_us, texts)
        shelves = _greatest(aims, shelf_us[aims.prediction] // DAY_US, labels["day"].to_numpy())
        aims, too_late = self._in_time(aims, models, outcome, np.where(timeless, arrival_us, time_us), made_us)
        key = np.where(too_late, key ^ _TOO_LATE_KEY, key)  # what comes too late corrects nothing
        return _Standing(
            labels=_with(labels, "arrival_us", np.where(timeless & (arrival_us == NO_TIME), placed_us, arrival_us)),
            predictions=predictions,
            texts=texts,
            key=key,
            rank=rank,
            decision=decide(key, time_us, texts),
            aims=aims,
            owner=_owners(ids, named, made_ids, models),
            day=shelves,
            truths=truths(
                aims,
                rank=rank,
                outcome=outcome,
                label_arrival_us=np.where(timeless, NO_TIME, arrival_us),
                prediction_arrival_us=made_arrival_us,
            ),
            too_late=too_late,
        )

    def _in_time(self, aims: Aims, models: Codes, outcome: Codes, time_us: Ints, made_us: Ints) -> tuple[Aims, Flags]:
        """The pairs within the horizons of their outcomes; which labels (n,) have pairs, and none within."""
        is_late = np.zeros(len(aims.label), np.bool_)
        if self._horizon_of is not None:
            of = outcome[aims.label].astype(np.int64)
            pairs, place = np.unique(
                (models[aims.prediction].astype(np.int64) << OUTCOME_BITS) + of, return_inverse=True
            )
            mask = (1 << OUTCOME_BITS) - 1
            horizon_us = np.array(
                [self._horizon_of(pair >> OUTCOME_BITS, pair & mask) for pair in pairs.tolist()], np.int64
            )
            time = time_us[aims.label]
            is_late = (time != NO_TIME) & (time > made_us[aims.prediction] + horizon_us[place])
        too_late = np.zeros(len(time_us), np.bool_)
        too_late[aims.label] = True
        too_late[aims.label[~is_late]] = False
        return Aims(aims.label[~is_late], aims.prediction[~is_late], aims.epoch), too_late

    def _keep(self, stored: pa.Table, after: _Standing) -> None:
        """Put new labels on their shelf, and those that met another prediction on its.

        A spare one is forgotten once it is known which model it counts for, one of very many at once.
        """
        n, rows, surplus = len(stored), _with(after.labels, "day", after.day), after.surplus()
        needed = ~after.decision.spare[n:] | (after.owner[n:] < 0)
        moved = stored["day"].to_numpy() != after.day[:n]
        gone = stored.filter(pa.array(moved | surplus[:n]))
        for day in np.unique(gone["day"].to_numpy()).tolist():
            self._store.query(
                f"delete from {LABELS.table(day)} where seq in (select seq from gone) returning seq", gone=gone
            )
        wanted = rows.filter(pa.array(np.append(moved, needed) & ~surplus))
        self._store.append(LABELS, wanted, wanted["day"].to_numpy() * DAY_US)

    # -- counting --------------------------------------------------------------------------------

    def _count_predictions(self, before: _Standing, after: _Standing, label: int | None) -> None:
        """First truths: the prediction is labelled, and its delay is known where its first label has a time.

        Once a truth of the outcome `label` has come for a version, the others do not make its predictions labelled.
        """
        n, version = len(after.predictions), after.predictions["version"].to_numpy()
        had = before.labelled(n, label, self.ledger.of_label)
        first = np.unique(version[after.truths.prediction[after.truths.outcome == label]]).tolist()
        for v in sorted(set(first) - set(self.ledger.of_label)):
            had &= version != v
            self.ledger.begin_labels(v)
        has = after.labelled(n, label, self.ledger.of_label)
        for changed, sign in ((had & ~has, -1), (has & ~had, 1)):
            chosen = after.predictions.select(["time_us", "arrival_us", "version"]).filter(pa.array(changed))
            day = self._shelf_time(chosen["time_us"].to_numpy(), chosen["arrival_us"].to_numpy()) // DAY_US
            for (d, v), count in _counts(day, chosen["version"].to_numpy()):
                self.ledger.labelled[v] += sign * count
                if (d, v) in self.ledger.prediction_days:
                    self.ledger.prediction_days[(d, v)][1] += sign * count
        for standing, sign in ((before, -1), (after, 1)):
            version = standing.predictions["version"].to_numpy()[standing.truths.prediction]
            for pair, count in _counts(version, standing.truths.outcome):
                self.ledger.truths[pair] += sign * count
        same = _positions(before.firsts(), after.firsts())
        self._count_delays(before, _others(len(before.firsts()), same), -1)
        self._count_delays(after, np.flatnonzero(same < 0), 1)

    def _count_delays(self, standing: _Standing, rows: Ints, sign: int) -> None:
        """The delays of the first labels of some truths."""
        times = standing.labels["time_us"].to_numpy()[standing.truths.first[rows]]
        made = standing.truths.prediction[rows][times != NO_TIME]
        version = standing.predictions["version"].to_numpy()[made]
        delay = np.maximum(times[times != NO_TIME] - standing.predictions["time_us"].to_numpy()[made], 0)
        bucket = np.searchsorted(np.asarray(DELAY_BOUNDS_SECONDS) * MICROSECONDS, delay, "left")
        first = standing.truths.first[rows][times != NO_TIME]
        who = version.astype(np.int64) * 65_536 + standing.truths.outcome[rows][times != NO_TIME]
        for (one, b), count in _counts(who, bucket):
            pair = divmod(one, 65_536)
            self.ledger.delays.setdefault(pair, [0] * (len(DELAY_BOUNDS_SECONDS) + 1))[b] += sign * count
        for one in np.unique(who).tolist():
            self.ledger.delay_us[divmod(one, 65_536)] += sign * int(delay[who == one].sum())
        chosen = standing.labels.select(["label", "outcome"]).take(pa.array(first))
        self._count_class_delays(version, chosen, standing.texts[first], delay, sign)

    def _count_class_delays(self, version: Codes, labels: pa.Table, texts: Codes, delay: Ints, sign: int) -> None:
        """The same by outcome and class; `texts` (labels,) are codes of the labels' texts."""
        if not len(labels):
            return
        _, first, code = np.unique(texts, return_index=True, return_inverse=True)
        names = labels["label"].take(pa.array(first)).to_pylist()
        bucket = np.searchsorted(np.asarray(CLASS_DELAY_BOUNDS_SECONDS) * MICROSECONDS, delay, "left")
        who = version.astype(np.int64) * 65_536 + labels["outcome"].to_numpy()
        for (pair, place), count in _counts(who, code * (len(CLASS_DELAY_BOUNDS_SECONDS) + 1) + bucket):
            k, b = divmod(place, len(CLASS_DELAY_BOUNDS_SECONDS) + 1)
            key = self.ledger.class_of(pair // 65_536, pair % 65_536, names[k] or "")
            counts = self.ledger.class_delays[key]
            counts[b] = max(0, counts[b] + sign * count)  # what is taken back may have faded
            if not any(counts):  # a label that turned out to speak of another version leaves no trace
                del self.ledger.class_delays[key]

    def _predicting(self) -> set[str] | None:
        """The models that ever predicted, None where nobody said how they are called."""
        if self._model_names is None:
            return None
        return {self._model_names[self._model_of_version(version)] for version in self.ledger.predictions}

    def _models(self, predictions: pa.Table) -> Codes:
        """The model of each prediction."""
        version = predictions["version"].to_numpy()
        known, place = np.unique(version, return_inverse=True)
        models = np.array([self._model_of_version(v) for v in known.tolist()], np.int32)
        return models[place] if len(version) else np.zeros(0, np.int32)

    def _count_labels(self, before: _Standing, after: _Standing, model_names: list[str]) -> None:
        """Give every new label its fate, and those whose fate the join has changed their new one.

        A label that names no model counts for the model whose prediction of its id came first, as soon as one came.
        """
        fates, days = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for standing, sign in ((before, -1), (after, 1)):
            fate = standing.fates()
            fates.update({pair: sign * count for pair, count in _counts(standing.owner, fate)})
            waits = fate == ORPHAN
            days.update({pair: sign * count for pair, count in _counts(standing.day[waits], standing.owner[waits])})
        names = {-1: "", **dict(enumerate(model_names))}
        for (model, place), count in fates.items():
            if count:
                self.ledger.labels[(names[model], FATES[place])] += count
        for (day, model), count in days.items():
            if count:
                self.ledger.label_days[(day, names[model])] += count

    # -- settled truths --------------------------------------------------------------------------

    def settle(self, watermark_us: int) -> bool:
        """Forget labelled predictions that may no longer be corrected, one part of a day at a time; whether one was due.

        A day is gone through whenever another `corrections` has passed since it ended: what is labelled is kept for at
        most twice that long. Its counts stay. Predictions that lack an outcome their version has had wait on.
        """
        days = set(self._store.blocks(PREDICTIONS)) & set(self._store.blocks(LABELS))
        if self._settling is None or self._settling.day not in days:
            day = self._day_to_settle(days, watermark_us)
            self._settling = None if day is None else self._begin_settling(day, watermark_us)
        if self._settling is None:
            return False
        self._settle_part(self._settling)
        self._settling.part += 1
        if self._settling.part >= self._settling.parts:
            self._settled[self._settling.day] = self._settling.times
            self._settling = None
        return True

    def _times(self, day: int, watermark_us: int) -> int:
        """How often a day that ended so long ago should have been gone through."""
        return 0 if self._corrections_us is None else (watermark_us - (day + 1) * DAY_US) // self._corrections_us

    def _day_to_settle(self, days: set[int], watermark_us: int) -> int | None:
        self._settled = {day: times for day, times in self._settled.items() if day in days}
        due = (day for day in sorted(days) if self._times(day, watermark_us) > self._settled.get(day, 0))
        return next(due, None)

    def _begin_settling(self, day: int, watermark_us: int) -> _Settling:
        assert self._corrections_us is not None
        self.flush_predictions()
        made, told = PREDICTIONS.table(day), LABELS.table(day)
        elsewhere = [table for table in map(PREDICTIONS.table, self._store.blocks(PREDICTIONS)) if table != made]
        others = " union all ".join(f"select id_lo from {table}" for table in elsewhere)
        shared = self._store.query(
            f"select distinct id_lo from ({others}) semi join {told} using (id_lo)" if others else
            f"select id_lo from {told} where false"
        )  # fmt: skip
        labels = int(self._store.query(f"select count(*) as n from {told}")["n"][0].as_py())
        return _Settling(
            day=day,
            times=self._times(day, watermark_us),
            before_us=watermark_us - self._corrections_us,
            shared=shared,
            parts=labels // SETTLED_LABELS + 1,
        )

    def _settle_part(self, held: _Settling) -> None:
        """Ids by their hashes: what an id has come to is decided by all its rows together."""
        made, told = PREDICTIONS.table(held.day), LABELS.table(held.day)
        width = 2**64 // held.parts + 1
        mine = f"id_lo >= {held.part * width} and id_lo < {(held.part + 1) * width}"
        labels = self._store.query(
            f"select l.* from {told} l anti join shared using (id_lo) where {mine} order by seq", shared=held.shared
        ).cast(LABEL_SCHEMA)
        if not len(labels):
            return
        predictions = self._store.query(
            f"select p.* from {made} p semi join ids using (id_lo) where {mine} order by seq",
            ids=labels.select(["id_lo"]),
        )
        standing = self._stand(labels, predictions, _text_codes(labels["label"]))
        settled, spoken = self._settled_rows(standing, held.before_us)
        for table, rows in ((made, predictions.filter(pa.array(settled))), (told, labels.filter(pa.array(spoken)))):
            self._store.query(f"delete from {table} where seq in (select seq from gone) returning seq", gone=rows)

    def _settled_rows(self, standing: _Standing, before_us: int) -> tuple[Flags, Flags]:
        """Which predictions have their truths since before a time, as all of their id have, and the labels that say so."""
        version, n = standing.predictions["version"].to_numpy(), len(standing.predictions)
        found = np.bincount(standing.truths.prediction, minlength=n)
        wanted = Counter(v for v, _ in self.ledger.truths)
        settled = found >= np.array([wanted.get(v, NEVER) for v in version.tolist()])
        newest_us = np.full(n, NO_TIME)
        np.maximum.at(
            newest_us, standing.aims.prediction, standing.labels["arrival_us"].to_numpy()[standing.aims.label]
        )
        settled &= newest_us < before_us
        waiting = np.unique(_ids(standing.predictions)[~settled])
        settled &= ~np.isin(_ids(standing.predictions), waiting)
        spoken = np.zeros(len(standing.labels), np.bool_)
        spoken[standing.aims.label[settled[standing.aims.prediction]]] = True
        return settled, spoken

    # -- expiry and persistence ------------------------------------------------------------------

    def expire(self, watermark_us: int) -> int:
        """Drop the days whose predictions and labels have waited beyond the horizon; how many days went."""
        before = watermark_us - self._horizon_us
        dropped = 0
        for block in self._store.expired_blocks(PREDICTIONS, before):
            for (day, version), (made, labelled) in list(self.ledger.prediction_days.items()):
                if day == block:
                    self.ledger.expired[version] += made - labelled
                    del self.ledger.prediction_days[(day, version)]
            self._store.drop_block(PREDICTIONS, block)
            dropped += 1
        for block in self._store.expired_blocks(LABELS, before):
            for day, model in list(self.ledger.label_days):
                if day == block:
                    orphans = self.ledger.label_days.pop((day, model))
                    self.ledger.labels[(model, "orphan_waiting")] -= orphans
                    self.ledger.labels[(model, "orphan_expired")] += orphans
            self._store.drop_block(LABELS, block)
        self._fade(watermark_us)
        self.ledger.tell(self._predicting())
        return dropped

    def _fade(self, watermark_us: int) -> None:
        """Once for each week of event time that has begun since the last; beyond a year nothing more can fade."""
        week = watermark_us // WEEK_US
        for _ in range(min(week - self._faded_week, 52) if self._faded_week else 0):
            self.ledger.fade()
        self._faded_week = max(self._faded_week, week)

    def save(self) -> dict[str, bytes]:
        """Put everything on the shelves or into keyed states; the states to upsert."""
        self.flush_predictions()
        self._store.set_meta("next_prediction", str(self._next_prediction))
        self._store.set_meta("next_label", str(self._next_label))
        self._store.set_meta("joined_up_to", str(self._joined_up_to))
        self._store.set_meta("faded_week", str(self._faded_week))
        self._store.set_meta("settled", json.dumps(self._settled))
        return {"inbox": to_ipc(_concat(self._new_labels, LABEL_SCHEMA))}


def to_ipc(table: pa.Table) -> bytes:
    """A table as compressed Arrow IPC."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_ipc(body: bytes) -> pa.Table:
    """The table `to_ipc` wrote."""
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def _empty(schema: pa.Schema) -> pa.Table:
    return schema.empty_table()


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks() if tables else _empty(schema)


def _ids(table: pa.Table) -> Hashes:
    return id_key(table["id_hi"].to_numpy(), table["id_lo"].to_numpy())


def _owners(label_id: Hashes, named: Codes, prediction_id: Hashes, model: Codes) -> Codes:
    """The model each label is counted under, -1 where none is known: the one it names, or that of the first prediction."""
    made, first = np.unique(prediction_id, return_index=True)
    found = np.append(model[first], np.int32(-1))[_positions(made, label_id)]
    return np.where(named >= 0, named, found)


def _with(table: pa.Table, name: str, values: Ints) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def _greatest(aims: Aims, values: Ints, otherwise: Ints) -> Ints:
    """The greatest value over the predictions each label speaks of; `otherwise` (n,) where there is none."""
    found = np.full(len(otherwise), NO_TIME)
    np.maximum.at(found, aims.label, values)
    found[found == NO_TIME] = otherwise[found == NO_TIME]
    return found


def _positions(haystack: Ints | Hashes, needles: Ints | Hashes) -> Ints:
    """Where each needle stands in an array of distinct numbers, -1 where it does not."""
    if not len(haystack):
        return np.full(len(needles), -1, np.int64)
    order = np.argsort(haystack)
    at = np.minimum(np.searchsorted(haystack[order], needles), len(haystack) - 1)
    return np.where(haystack[order[at]] == needles, order[at], -1)


def _others(n: int, found: Ints) -> Ints:
    """Which of n places are not among those found; -1 is none."""
    missing = np.ones(n, np.bool_)
    missing[found[found >= 0]] = False
    return np.flatnonzero(missing)


def _text_codes(texts: pa.ChunkedArray) -> Any:
    """Codes in the order of the texts, so that comparing codes compares texts."""
    if not len(texts):
        return np.zeros(0, np.int32)
    encoded = pc.rank(pc.fill_null(texts, ""), sort_keys="ascending", tiebreaker="dense")
    return encoded.to_numpy().astype(np.int32)


def _difference(before: _Standing, after: _Standing) -> Met:
    """What has become of the truths."""
    held = _positions(before.pairs(), after.pairs())
    fresh, gone = held < 0, _others(len(before.pairs()), held)
    old, new = held[~fresh], np.flatnonzero(~fresh)
    moved = before.truths.joined_us[old] != after.truths.joined_us[new]
    corrected = (after.texts[before.truths.label[old]] != after.texts[after.truths.label[new]]) | moved
    revised = after.texts[before.truths.opening[old]] != after.texts[after.truths.opening[new]]
    revised |= moved
    return Met(
        new=_met_rows(after, fresh, after.truths.label),
        removed=_met_rows(before, np.concatenate([old[corrected], gone]), before.truths.label),
        replaced=_met_rows(after, new[corrected], after.truths.label),
        opened=_met_rows(after, fresh, after.truths.opening),
        revised=_met_rows(after, new[revised], after.truths.opening),
        withdrawn=_met_rows(before, gone, before.truths.opening),
        amended=_amended(before, after, old, new, fresh, gone),
    )


def _amended(before: _Standing, after: _Standing, old: Ints, new: Ints, fresh: Flags, gone: Ints) -> pa.Table:
    """What became of truths, `old` ones that are `new` ones now, and of `fresh` ones since they were opened."""
    was, now = before.truths.label[old], after.truths.label[new]
    other = before.texts[was] != after.texts[now]
    old, new = old[other], new[other]
    came_us, known_us = _known_us(before), _known_us(after)
    at_us = np.maximum(came_us[old], known_us[new])
    at_once = np.flatnonzero(fresh & (after.texts[after.truths.opening] != after.texts[after.truths.label]))
    parts = (
        (_met_rows(before, gone, before.truths.label), came_us[gone], -1),
        (_met_rows(before, old, before.truths.label), at_us, -1),
        (_met_rows(after, new, after.truths.label), at_us, 1),
        (_met_rows(after, at_once, after.truths.opening), known_us[at_once], -1),
        (_met_rows(after, at_once, after.truths.label), known_us[at_once], 1),
    )
    return pa.concat_tables(
        rows.append_column("at_us", pa.array(at)).append_column("sign", pa.array(np.full(len(rows), sign, np.int8)))
        for rows, at, sign in parts
    )


def _known_us(standing: _Standing) -> Ints:
    """When each truth was known as it is."""
    arrival_us: Ints = standing.labels["arrival_us"].to_numpy()
    return np.maximum(standing.truths.joined_us, arrival_us[standing.truths.label])


def _met_rows(standing: _Standing, chosen: Ints | Flags, labels: Ints) -> pa.Table:
    """Some of its truths, with one label for each of all."""
    made = standing.predictions.take(pa.array(standing.truths.prediction[chosen]))
    truth = standing.labels.take(pa.array(labels[chosen]))
    columns = {name: made[name] for name in ("id_hi", "id_lo", "version", "segment", "time_us", "score", "value")}
    columns |= {name: made[name] for name in ("probabilities", "expected_size", "expected_error")}
    columns["predicted_label"] = made["label"]
    columns |= {name: truth[name] for name in ("outcome", "label", "number")}
    columns["joined_us"] = pa.array(standing.truths.joined_us[chosen])
    return pa.table(columns).select(MET_SCHEMA.names).cast(MET_SCHEMA)


def _counts(first: Any, second: Any) -> list[tuple[tuple[int, int], int]]:
    """How often each pair occurs."""
    if not len(first):
        return []
    one, other = first.astype(np.int64), second.astype(np.int64)
    low, width = int(other.min()), int(other.max()) - int(other.min()) + 1
    pairs, counts = np.unique(one * width + (other - low), return_counts=True)
    return [((pair // width, pair % width + low), n) for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True)]
