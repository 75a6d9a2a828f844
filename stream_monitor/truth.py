"""The late join on the state file: predictions that wait, labels that come, and what becomes of both.

Predictions and labels are collected as columns, appended to the store's shelves, and met in a few
vectorised queries on a cadence that keeps joining below a tenth of the time. `window/join.py` decides; this
module fetches, writes and counts.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.records import MICROSECONDS, NO_TIME, Codes, Flags, Hashes, Ints
from stream_monitor.store import JOINED, LABELS, PREDICTIONS, Store
from stream_monitor.window.join import CORRECTED, DUPLICATE, NEW, decide, id_key, label_key, match

DAY_US = 86_400 * MICROSECONDS

DELAY_BOUNDS_SECONDS = (1, 10, 60, 600, 3600, 21_600, 86_400, 604_800, 2_592_000)
"""The bounds of the label delay histogram; the metrics catalogue has the same, a test says so."""

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
    ]
)

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

JOINED_SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("prediction_seq", pa.int64()),
        ("outcome", pa.int32()),
        ("label", pa.string()),
        ("number", pa.float64()),
        ("time_us", pa.int64()),
        ("joined_us", pa.int64()),
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
        ("label", pa.string()),
        ("number", pa.float64()),
    ]
)
"""A prediction with its truth. `time_us` is the prediction's, `joined_us` the time of the joined outcome."""


@dataclass(frozen=True, slots=True)
class Met:
    """What one join brought: truths that are new, truths taken back by a correction, and what replaced these.

    `opened`: the new ones as they were known at their `joined_us`, whatever a later label of the same batch made of them;
    `revised`: corrections that came by then, so that what waits for its pane has to change. Both depend on the labels
    in their order alone, not on how joins cut them.
    """

    new: pa.Table
    removed: pa.Table
    replaced: pa.Table
    opened: pa.Table
    revised: pa.Table


@dataclass(slots=True)
class Ledger:
    """The fates of labels and predictions; totals over the whole state. Counts by model where a model is known."""

    labels: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))  # (model, fate)
    labelled: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version
    expired: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version
    predictions: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version
    delays: dict[int, list[int]] = field(default_factory=dict)  # version -> counts by DELAY_BOUNDS_SECONDS, then +Inf
    delay_us: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # version, whole microseconds
    label_days: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # day -> orphans first seen that day
    prediction_days: dict[tuple[int, int], list[int]] = field(
        default_factory=dict
    )  # (day, version) -> [made, labelled]

    def waiting(self, version: int) -> int:
        """Predictions of a version that are neither labelled nor expired."""
        return self.predictions[version] - self.labelled[version] - self.expired[version]

    def fate(self, name: str) -> int:
        """Labels of one fate over all models."""
        return sum(count for (_, fate), count in self.labels.items() if fate == name)

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": [[m, f, n] for (m, f), n in self.labels.items()],
            "labelled": list(self.labelled.items()),
            "expired": list(self.expired.items()),
            "predictions": list(self.predictions.items()),
            "delays": list(self.delays.items()),
            "delay_us": list(self.delay_us.items()),
            "label_days": list(self.label_days.items()),
            "prediction_days": [[d, v, n] for (d, v), n in self.prediction_days.items()],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Ledger:
        ledger = cls()
        ledger.labels.update({(m, f): n for m, f, n in body["labels"]})
        for name in ("labelled", "expired", "predictions", "delays", "delay_us", "label_days"):
            getattr(ledger, name).update({int(k): v for k, v in body[name]})
        ledger.prediction_days.update({(d, v): n for d, v, n in body["prediction_days"]})
        return ledger


class Truth:
    """Waiting predictions, waiting labels and their ledger, on the store's open transaction."""

    def __init__(self, store: Store, *, horizon_us: int, model_of_version: Callable[[int], int]) -> None:
        self._store = store
        self._horizon_us = horizon_us
        self._model_of_version = model_of_version
        self._new_predictions: list[pa.Table] = []
        self._new_labels: list[pa.Table] = []
        self._next_prediction = int(store.meta("next_prediction") or 1)
        self._next_label = int(store.meta("next_label") or 1)
        self._joined_up_to = int(store.meta("joined_up_to") or 0)
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
        day = np.where(arrival == NO_TIME, -1, arrival // DAY_US)
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

    def join(self, model_names: list[str]) -> Met:
        """Meet the collected labels with the waiting predictions and new predictions with the stored labels."""
        self.flush_predictions()
        batch = _concat(self._new_labels, LABEL_SCHEMA)
        self._new_labels = []
        ids = self._ids_to_look_at(batch)
        seen_up_to, self._joined_up_to = self._joined_up_to, self._next_prediction - 1
        if not len(ids):
            return Met(*(_empty(MET_SCHEMA) for _ in range(5)))
        # Joined on one column DuckDB reads the others of matching rows only: a quarter of the time. A row of another
        # id that shares half the hash is no harm: whatever follows compares both halves.
        predictions = self._store.query(
            f"select p.* from {self._store.relation(PREDICTIONS)} p semi join ids using (id_lo)", ids=ids
        )
        history = self._stored_labels(ids)
        stored = _last_of_each(history)
        joined = self._joined(predictions)
        current, fate, risen = self._settle(batch, stored, predictions, joined)
        history = history.filter(pa.array(~self._spent(history, predictions, joined)))
        met = self._meet(current, pa.concat_tables([history, risen]), predictions, joined)
        self._count_labels(batch, fate, stored, predictions, seen_up_to, model_names)
        return met

    def _ids_to_look_at(self, batch: pa.Table) -> pa.Table:
        """The ids of new labels, and of new predictions whose label came first."""
        parts = [batch.select(["id_hi", "id_lo"])]
        if self._next_prediction - 1 > self._joined_up_to and not self._store.is_empty(LABELS):
            fresh = self._store.query(
                f"select id_hi, id_lo from {self._store.relation(PREDICTIONS)} where seq > {self._joined_up_to}"
            )
            parts.append(
                self._store.query(
                    f"select id_hi, id_lo from {self._store.relation(LABELS)} l semi join fresh using (id_lo)",
                    fresh=fresh,
                )
            )
        together = pa.concat_tables(parts)
        return together.group_by(["id_hi", "id_lo"]).aggregate([])

    def _stored_labels(self, ids: pa.Table) -> pa.Table:
        """What the keys of these ids held, in the order they came to hold it; the last row of a key is what it holds."""
        if self._store.is_empty(LABELS):
            return _empty(LABEL_SCHEMA)
        return self._store.query(
            f"select l.* from {self._store.relation(LABELS)} l semi join ids using (id_lo) order by seq", ids=ids
        ).cast(LABEL_SCHEMA)

    def _joined(self, predictions: pa.Table) -> pa.Table:
        """The truth each of these predictions holds now, by outcome."""
        if self._store.is_empty(JOINED) or not len(predictions):
            return _empty(JOINED_SCHEMA)
        return self._store.query(
            f"select j.* from {self._store.relation(JOINED)} j semi join wanted on j.prediction_seq = wanted.seq "
            "qualify row_number() over (partition by prediction_seq, outcome order by j.seq desc) = 1",
            wanted=predictions.select(["seq"]),
        ).cast(JOINED_SCHEMA)

    def _settle(
        self, batch: pa.Table, stored: pa.Table, predictions: pa.Table, joined: pa.Table
    ) -> tuple[pa.Table, Ints, pa.Table]:
        """The truth every key holds after this batch, the fate of each of its labels, and those that were a truth once."""
        if not len(batch):
            return stored, np.zeros(0, np.int64), batch
        spent = self._spent(stored, predictions, joined)
        standing = stored.filter(pa.array(~spent))
        texts = pa.chunked_array([*standing["label"].chunks, *batch["label"].chunks], pa.string())
        codes = _text_codes(texts)
        decision = decide(
            _label_keys(batch),
            batch["time_us"].to_numpy(),
            codes[len(standing) :],
            stored_key=_label_keys(standing),
            stored_time_us=standing["time_us"].to_numpy(),
            stored_text=codes[: len(standing)],
        )
        winners = batch.filter(pa.array(decision.winner))
        risen = batch.filter(pa.array(decision.rose))
        arrival = risen["arrival_us"].to_numpy()
        # A label without a time waits for its prediction however long: its shelf is never old.
        shelf = np.where(arrival == NO_TIME, np.int64(2**62 // DAY_US * DAY_US), arrival)
        self._store.append(LABELS, risen, shelf)
        kept = standing.filter(pa.array(~np.isin(_label_keys(standing), _label_keys(winners))))
        return pa.concat_tables([kept, winners]), decision.fate.astype(np.int64), risen

    @staticmethod
    def _spent(stored: pa.Table, predictions: pa.Table, joined: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Stored labels that belong to an older prediction of an id that has been used again since: a new label is new."""
        if not len(stored) or not len(predictions):
            return np.zeros(len(stored), np.bool_)
        ids = id_key(predictions["id_hi"].to_numpy(), predictions["id_lo"].to_numpy())
        seq, time = predictions["seq"].to_numpy(), predictions["time_us"].to_numpy()
        has_truth = np.isin(seq, joined["prediction_seq"].to_numpy())
        key = label_key(ids, predictions["version"].to_numpy(), np.zeros(len(ids), np.int32))
        order = np.lexsort((time, key))
        last = np.append(key[order][1:] != key[order][:-1], True)
        newest = order[last]
        waiting = newest[~has_truth[newest]]
        reused = waiting[np.isin(key[waiting], key[has_truth])]
        if not len(reused):
            return np.zeros(len(stored), np.bool_)
        newest_time = dict(zip(ids[reused].tolist(), time[reused].tolist(), strict=True))
        stored_ids = id_key(stored["id_hi"].to_numpy(), stored["id_lo"].to_numpy()).tolist()
        times = stored["time_us"].to_pylist()
        return np.array([t < newest_time.get(i, NO_TIME) for i, t in zip(stored_ids, times, strict=True)], np.bool_)

    def _meet(self, current: pa.Table, history: pa.Table, predictions: pa.Table, joined: pa.Table) -> Met:
        """Write the truths that are new or changed."""
        pairs = match(
            label_id=_ids(current),
            label_model=current["model"].to_numpy(),
            label_outcome=current["outcome"].to_numpy(),
            label_time_us=current["time_us"].to_numpy(),
            prediction_id=_ids(predictions),
            prediction_model=self._models(predictions),
            prediction_time_us=predictions["time_us"].to_numpy(),
            prediction_seq=predictions["seq"].to_numpy(),
            joined_seq=joined["prediction_seq"].to_numpy(),
            joined_outcome=joined["outcome"].to_numpy(),
        )
        labels, made = current.take(pa.array(pairs.label)), predictions.take(pa.array(pairs.prediction))
        before = _positions(
            _pair_keys(joined["prediction_seq"], joined["outcome"]), _pair_keys(made["seq"], labels["outcome"])
        )
        fresh = before < 0
        held = joined.take(pa.array(np.maximum(before, 0))) if len(joined) else _empty(JOINED_SCHEMA)
        changed = np.zeros(len(fresh), np.bool_)
        if len(joined):
            same = pc.equal(held["label"], labels["label"]).to_numpy()
            newer = labels["time_us"].to_numpy() >= held["time_us"].to_numpy()
            changed = ~fresh & ~same.astype(bool) & newer
        opening, first_us = _openings(labels, history, made["arrival_us"].to_numpy())
        joined_us = np.maximum(made["arrival_us"].to_numpy(), opening["arrival_us"].to_numpy())
        in_time = np.zeros(len(fresh), np.bool_)
        if len(joined):
            joined_us = np.where(fresh, joined_us, held["joined_us"].to_numpy())
            in_time = changed & (labels["arrival_us"].to_numpy() <= joined_us)
        met_all = _met_rows(made, labels, joined_us)
        met = Met(
            new=met_all.filter(pa.array(fresh)),
            removed=_taken_back(met_all, held, changed),
            replaced=met_all.filter(pa.array(changed)),
            opened=_met_rows(made, opening, joined_us).filter(pa.array(fresh)),
            revised=met_all.filter(pa.array(in_time)),
        )
        self._write_joined(made, labels, joined_us, fresh | changed)
        self._count_predictions(made.filter(pa.array(fresh)), first_us[fresh], joined)
        return met

    def _write_joined(self, made: pa.Table, labels: pa.Table, joined_us: Ints, chosen: Any) -> None:
        rows = pa.table(
            {
                "seq": labels["seq"],
                "prediction_seq": made["seq"],
                "outcome": labels["outcome"],
                "label": labels["label"],
                "number": labels["number"],
                "time_us": labels["time_us"],
                "joined_us": pa.array(joined_us),
            }
        ).filter(pa.array(chosen))
        shelf = self._shelf_time(made["time_us"].to_numpy(), made["arrival_us"].to_numpy())[chosen]
        self._store.append(JOINED, rows, shelf)

    # -- counting --------------------------------------------------------------------------------

    def _count_predictions(self, made: pa.Table, times: Ints, joined: pa.Table) -> None:
        """First truths: the prediction is labelled, and its delay is known where its first label has a time (`times`)."""
        seq = made["seq"].to_numpy()
        _, first = np.unique(seq, return_index=True)
        first = first[~np.isin(seq[first], joined["prediction_seq"].to_numpy())]
        chosen = made.take(pa.array(first))
        version = chosen["version"].to_numpy()
        day = self._shelf_time(chosen["time_us"].to_numpy(), chosen["arrival_us"].to_numpy()) // DAY_US
        for (d, v), count in _counts(day, version):
            self.ledger.labelled[v] += count
            if (d, v) in self.ledger.prediction_days:
                self.ledger.prediction_days[(d, v)][1] += count
        known = times != NO_TIME
        delay = np.maximum(times[known] - made["time_us"].to_numpy()[known], 0)
        bucket = np.searchsorted(np.asarray(DELAY_BOUNDS_SECONDS) * MICROSECONDS, delay, "left")
        for (v, b), count in _counts(made["version"].to_numpy()[known], bucket):
            self.ledger.delays.setdefault(v, [0] * (len(DELAY_BOUNDS_SECONDS) + 1))[b] += count
        for v in np.unique(made["version"].to_numpy()[known]).tolist():
            self.ledger.delay_us[v] += int(delay[made["version"].to_numpy()[known] == v].sum())

    def _models(self, predictions: pa.Table) -> Codes:
        """The model of each prediction."""
        version = predictions["version"].to_numpy()
        known, place = np.unique(version, return_inverse=True)
        models = np.array([self._model_of_version(v) for v in known.tolist()], np.int32)
        return models[place] if len(version) else np.zeros(0, np.int32)

    def _has_prediction(self, labels: pa.Table, predictions: pa.Table) -> Flags:
        """Which labels are the truth of a prediction: of any model, or of the one they name."""
        ids, model = _ids(labels), labels["model"].to_numpy()
        held, of_model = _ids(predictions), self._models(predictions)
        none = np.zeros(max(len(ids), len(held)), np.int32)
        named = np.isin(label_key(ids, model, none[: len(ids)]), label_key(held, of_model, none[: len(held)]))
        return np.where(model == -1, np.isin(ids, held), named)

    def _count_labels(
        self,
        batch: pa.Table,
        fate: Ints,
        stored: pa.Table,
        predictions: pa.Table,
        seen_up_to: int,
        model_names: list[str],
    ) -> None:
        """Give every label of the batch its fate, and orphans that met their prediction their new one.

        `seen_up_to`: the last prediction of the join before; a stored label without one of those was an orphan.
        """
        model_of_id = dict(zip(_ids(predictions).tolist(), self._models(predictions).tolist(), strict=True))
        names = {NEW: "", DUPLICATE: "duplicate", CORRECTED: "corrected"}
        ids, models, days = _ids(batch).tolist(), batch["model"].to_pylist(), batch["day"].to_pylist()
        has_match = self._has_prediction(batch, predictions)
        for i, (kind, found) in enumerate(zip(fate.tolist(), has_match.tolist(), strict=True)):
            model = models[i] if models[i] >= 0 else model_of_id.get(ids[i], -1)
            name = names[kind] or ("matched" if found else "orphan_waiting")
            self.ledger.labels[(model_names[model] if model >= 0 else "", name)] += 1
            if name == "orphan_waiting":
                self.ledger.label_days[days[i]] += 1
        earlier = predictions.filter(pa.array(predictions["seq"].to_numpy() <= seen_up_to))
        found_now = self._has_prediction(stored, predictions) & ~self._has_prediction(stored, earlier)
        self._count_found_orphans(stored.filter(pa.array(found_now)), model_of_id, model_names)

    def _count_found_orphans(self, rows: pa.Table, model_of_id: Mapping[int, int], model_names: list[str]) -> None:
        """Labels that were stored, had no prediction until now, and have one."""
        for one, model, day in zip(
            _ids(rows).tolist(), rows["model"].to_pylist(), rows["day"].to_pylist(), strict=True
        ):
            owner = model if model >= 0 else model_of_id.get(one, -1)
            self.ledger.labels[(model_names[model] if model >= 0 else "", "orphan_waiting")] -= 1
            self.ledger.label_days[day] -= 1
            self.ledger.labels[(model_names[owner] if owner >= 0 else "", "matched")] += 1

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
            orphans = self.ledger.label_days.pop(block, 0)
            self._expire_orphans(orphans)
            self._store.drop_block(LABELS, block)
        for block in self._store.expired_blocks(JOINED, before):
            self._store.drop_block(JOINED, block)
        return dropped

    def _expire_orphans(self, count: int) -> None:
        """Orphans of an expired day: taken from the models that have waiting ones, unnamed first."""
        for model, fate in sorted(self.ledger.labels):
            if fate == "orphan_waiting" and count:
                taken = min(count, self.ledger.labels[(model, fate)])
                self.ledger.labels[(model, fate)] -= taken
                self.ledger.labels[(model, "orphan_expired")] += taken
                count -= taken

    def save(self) -> dict[str, bytes]:
        """Put everything on the shelves or into keyed states; the states to upsert."""
        self.flush_predictions()
        self._store.set_meta("next_prediction", str(self._next_prediction))
        self._store.set_meta("next_label", str(self._next_label))
        self._store.set_meta("joined_up_to", str(self._joined_up_to))
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


def _label_keys(table: pa.Table) -> Hashes:
    return label_key(_ids(table), table["model"].to_numpy(), table["outcome"].to_numpy())


def _last_of_each(labels: pa.Table) -> pa.Table:
    """The last row of every key."""
    keys = _label_keys(labels)
    _, from_end = np.unique(keys[::-1], return_index=True)
    return labels.take(pa.array(np.sort(len(keys) - 1 - from_end)))


def _openings(labels: pa.Table, history: pa.Table, arrival_us: Ints) -> tuple[pa.Table, Ints]:
    """Of each label's key what was known when prediction and first label had both arrived, and the first label's time.

    `history` holds what the keys held, in order; `arrival_us` are the arrivals of the labels' predictions. The
    `arrival_us` of a row of the result is that of the first label of its key.
    """
    keys, known = _label_keys(labels), _label_keys(history)
    order = np.argsort(known, kind="stable")
    start = np.searchsorted(known[order], keys, "left")
    stop = np.searchsorted(known[order], keys, "right")
    arrivals = history["arrival_us"].to_numpy()
    first, chosen = order[start], order[start].copy()
    for i in np.flatnonzero(stop - start > 1).tolist():
        rows = order[start[i] : stop[i]]
        joined_us = max(int(arrival_us[i]), int(arrivals[rows[0]]))
        chosen[i] = rows[arrivals[rows] <= joined_us][-1]
    opening = history.take(pa.array(chosen))
    place = opening.schema.get_field_index("arrival_us")
    opening = opening.set_column(place, "arrival_us", pa.array(arrivals[first]))
    return opening, np.asarray(history["time_us"].to_numpy()[first], np.int64)


def _pair_keys(seq: pa.ChunkedArray, outcome: pa.ChunkedArray) -> Ints:
    return np.asarray(seq.to_numpy() * np.int64(1 << 16) + outcome.to_numpy(), np.int64)


def _positions(haystack: Ints, needles: Ints) -> Ints:
    """Where each needle stands in an array of distinct numbers, -1 where it does not."""
    if not len(haystack):
        return np.full(len(needles), -1, np.int64)
    order = np.argsort(haystack)
    at = np.minimum(np.searchsorted(haystack[order], needles), len(haystack) - 1)
    return np.where(haystack[order[at]] == needles, order[at], -1)


def _text_codes(texts: pa.ChunkedArray) -> Any:
    """Codes in the order of the texts, so that comparing codes compares texts."""
    if not len(texts):
        return np.zeros(0, np.int32)
    encoded = pc.rank(pc.fill_null(texts, ""), sort_keys="ascending", tiebreaker="dense")
    return encoded.to_numpy().astype(np.int32)


def _met_rows(made: pa.Table, labels: pa.Table, joined_us: Ints) -> pa.Table:
    columns = {name: made[name] for name in ("id_hi", "id_lo", "version", "segment", "time_us", "score", "value")}
    columns |= {"probabilities": made["probabilities"], "predicted_label": made["label"]}
    columns |= {"outcome": labels["outcome"], "label": labels["label"], "number": labels["number"]}
    columns["joined_us"] = pa.array(joined_us)
    return pa.table(columns).select(MET_SCHEMA.names).cast(MET_SCHEMA)


def _taken_back(met: pa.Table, held: pa.Table, changed: Any) -> pa.Table:
    """The same rows with the truth that was held before."""
    rows = met.filter(pa.array(changed))
    if not len(rows):
        return rows
    before = held.filter(pa.array(changed))
    for name in ("label", "number", "joined_us"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, before[name])
    return rows.cast(MET_SCHEMA)


def _counts(first: Any, second: Any) -> list[tuple[tuple[int, int], int]]:
    """How often each pair occurs."""
    if not len(first):
        return []
    one, other = first.astype(np.int64), second.astype(np.int64)
    low, width = int(other.min()), int(other.max()) - int(other.min()) + 1
    pairs, counts = np.unique(one * width + (other - low), return_counts=True)
    return [((pair // width, pair % width + low), n) for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True)]
