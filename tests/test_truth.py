"""Predictions and labels on the state file: fates and truths, against a ledger kept by hand, however joins cut them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_monitor.records import MICROSECONDS, NO_TIME
from stream_monitor.store import LABELS, PREDICTIONS, Store
from stream_monitor.truth import DAY_US, LABEL_SCHEMA, LABELS_KEPT, PREDICTION_SCHEMA, Ledger, Met, Truth

MODELS = ["champion", "challenger"]
VERSIONS = (0, 1, 0)  # the model of each version: the champion has two
HORIZON_US = 45 * DAY_US
START_US = 20_000 * DAY_US
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Prediction:
    """A prediction of an id, so many seconds into the story."""

    id: int
    seconds: int
    version: int = 0

    @property
    def model(self) -> int:
        return VERSIONS[self.version]

    @property
    def time_us(self) -> int:
        return START_US + self.seconds * MICROSECONDS


@dataclass(frozen=True)
class Label:
    """A label of an id; `model` -1 names none, `seconds` None has no time."""

    id: int
    seconds: int | None
    text: str = "yes"
    model: int = -1
    outcome: int = 0

    @property
    def time_us(self) -> int:
        return NO_TIME if self.seconds is None else START_US + self.seconds * MICROSECONDS

    @property
    def order(self) -> tuple[bool, int]:
        return self.seconds is not None, self.seconds or 0


@dataclass
class Monitor:
    """The late join with what its joins brought: `cohorts` and `arrivals` as they add up, and what waits to reach the
    detectors."""

    store: Store = field(default_factory=lambda: Store(None))
    corrections_us: int | None = None
    cohorts: Counter[Key] = field(default_factory=Counter)
    arrivals: Counter[Key] = field(default_factory=Counter)
    waiting: dict[Key, Key] = field(default_factory=dict)
    _newest: dict[type, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.truth = Truth(
            self.store,
            horizon_us=HORIZON_US,
            model_of_version=VERSIONS.__getitem__,
            corrections_us=self.corrections_us,
        )

    def read(self, predictions: Sequence[Prediction], labels: Sequence[Label]) -> None:
        """Hand in records, and join them."""
        if predictions:
            self.truth.add_predictions(self._rows(predictions))
        if labels:
            self.truth.add_labels(self._rows(labels))
        self._take(self.truth.join(MODELS))

    def _rows(self, records: Sequence[Prediction] | Sequence[Label]) -> pa.Table:
        """As the engine hands them over."""
        common = {
            "id_hi": pa.array([r.id * 7 for r in records], pa.uint64()),
            "id_lo": pa.array([r.id for r in records], pa.uint64()),
            "time_us": pa.array([r.time_us for r in records], pa.int64()),
            "arrival_us": pa.array([self._arrival(r) for r in records], pa.int64()),
            "label": pa.array([r.text if isinstance(r, Label) else "yes" for r in records]),
        }
        made = [r for r in records if isinstance(r, Prediction)]
        if made:
            version = pa.array([r.version for r in made], pa.int32())
            nothing, none = pa.array([0.5] * len(made)), pa.nulls(len(made), pa.string())
            more = {"version": version, "segment": version, "score": nothing, "value": nothing, "probabilities": none}
            more |= {"expected_size": nothing, "expected_error": nothing}
        else:
            labels = [r for r in records if isinstance(r, Label)]
            more = {
                "model": pa.array([r.model for r in labels], pa.int32()),
                "outcome": pa.array([r.outcome for r in labels], pa.int32()),
                "number": pa.array([0.5] * len(labels)),
            }
        names = [n for n in (PREDICTION_SCHEMA if made else LABEL_SCHEMA).names if n not in ("seq", "day")]
        return pa.table(common | more).select(names)

    def _arrival(self, record: Prediction | Label) -> int:
        """Its time, or as early as its partition still allows."""
        if record.seconds is None:
            return NO_TIME
        kind = type(record)
        self._newest[kind] = max(self._newest[kind], record.time_us)
        return max(record.time_us, self._newest[kind] - MICROSECONDS)

    def _take(self, met: Met) -> None:
        """As outcomes do."""
        for table, sign in ((met.new, 1), (met.removed, -1), (met.replaced, 1)):
            for row in table.to_pylist():
                self.arrivals[tuple(sorted(row.items()))] += sign
                del row["joined_us"]
                self.cohorts[tuple(sorted(row.items()))] += sign
        for row in met.withdrawn.to_pylist():
            del self.waiting[made(row)]
        for row in met.revised.to_pylist():
            assert made(row) in self.waiting
            self.waiting[made(row)] = (row["label"], row["joined_us"])
        for row in met.opened.to_pylist():
            assert made(row) not in self.waiting
            self.waiting[made(row)] = (row["label"], row["joined_us"])

    def restart(self) -> None:
        """Write everything down and take it up again."""
        self.store.put_states("truth", self.truth.save())
        saved = json.loads(json.dumps(self.truth.ledger.to_json()))
        self.store.commit()
        self.__post_init__()
        self.truth.ledger = Ledger.from_json(saved)

    def fates(self) -> dict[str, int]:
        """How many labels have each fate."""
        found: Counter[str] = Counter()
        for (_, fate), count in self.truth.ledger.labels.items():
            assert count >= 0
            found[fate] += count
        return {fate: count for fate, count in found.items() if count}

    def truths(self) -> dict[tuple[int, int, int, int], str]:
        """(id, version, seconds, outcome) -> the truth."""
        assert set(self.cohorts.values()) <= {0, 1}
        rows = [dict(key) for key, count in self.cohorts.items() if count]
        found = {
            (r["id_lo"], r["version"], (r["time_us"] - START_US) // MICROSECONDS, r["outcome"]): r["label"]
            for r in rows
        }
        assert len(found) == len(rows)
        return found

    def books(self) -> dict[str, Any]:
        """The ledger without what is zero, and without what was told: that depends on what had come by then."""
        ledger = self.truth.ledger
        counted = [name for name in Ledger.__slots__ if not name.startswith("told")]
        plain = {name: dict(getattr(ledger, name)) for name in counted}
        delays = {v: counts for v, counts in ledger.delays.items() if any(counts)}
        return {name: {k: v for k, v in found.items() if v} for name, found in plain.items()} | {"delays": delays}


def made(row: dict[str, Any]) -> Key:
    """Prediction and outcome of a row."""
    return row["id_lo"], row["version"], row["time_us"], row["outcome"]


def by_hand(
    predictions: Sequence[Prediction], labels: Sequence[Label]
) -> tuple[dict[str, int], dict[tuple[int, int, int, int], str]]:
    """Fates and truths, one label after the other."""

    def targets(label: Label) -> tuple[Prediction, ...]:
        found = []
        for model in range(len(MODELS)):
            if label.model in (-1, model):
                mine = sorted((p for p in predictions if (p.id, p.model) == (label.id, model)), key=lambda p: p.seconds)
                by_then = [p for p in mine if label.seconds is None or p.seconds <= label.seconds]
                found += by_then[-1:] or mine[:1]
        return tuple(found)

    held: dict[Key, Key] = {}
    truth: dict[tuple[Prediction, int], Key] = {}
    fates: Counter[str] = Counter()
    for number, label in enumerate(labels):
        about = targets(label)
        key = (label.id, label.model, label.outcome, about)
        told = (label.order, str(number).zfill(9) if label.seconds is None else label.text, label.text)
        if key not in held:
            fates["matched" if about else "orphan_waiting"] += 1
        else:
            fates["duplicate" if held[key][-1] == label.text else "corrected"] += 1
        held[key] = max(held.get(key, told), told)
        for prediction in about:
            one = (prediction, label.outcome)
            truth[one] = max(truth.get(one, told), told)
    return dict(fates), {(p.id, p.version, p.seconds, o): told[-1] for (p, o), told in truth.items()}


REUSED = [Prediction(1, 0), Prediction(1, 3600)]


@pytest.mark.parametrize(
    ("labels", "fates", "truths"),
    [
        ([Label(1, 20), Label(1, 3620)], {"matched": 2}, ("yes", "yes")),
        ([Label(1, 20), Label(1, 3620, "no")], {"matched": 2}, ("yes", "no")),
        ([Label(1, 3620, "no"), Label(1, 20)], {"matched": 2}, ("yes", "no")),
        ([Label(1, 20), Label(1, 3620), Label(1, 3630)], {"matched": 2, "duplicate": 1}, ("yes", "yes")),
        ([Label(1, 20), Label(1, 3620), Label(1, 30, "no")], {"matched": 2, "corrected": 1}, ("no", "yes")),
        ([Label(1, 20), Label(1, 3599, "no")], {"matched": 1, "corrected": 1}, ("no", None)),
        ([Label(1, 20), Label(1, 3600, "no")], {"matched": 2}, ("yes", "no")),
        ([Label(1, -5), Label(1, 20, "no")], {"matched": 1, "corrected": 1}, ("no", None)),
        ([Label(1, None)], {"matched": 1}, (None, "yes")),
        ([Label(1, 20, model=0), Label(1, 3620, "no", model=0)], {"matched": 2}, ("yes", "no")),
        ([Label(1, 3620, model=1)], {"orphan_waiting": 1}, (None, None)),
    ],
)
@pytest.mark.parametrize("cut", range(3))
def test_labels_of_an_id_used_again(
    labels: list[Label], fates: dict[str, int], truths: tuple[str | None, str | None], cut: int
) -> None:
    """Each use of the id has labels of its own: read at once, or predictions first, or label by label."""
    monitor = Monitor()
    if cut == 0:
        monitor.read(REUSED, labels)
    else:
        monitor.read(REUSED, [])
        for at in range(0, len(labels), 3 - cut):
            monitor.read([], labels[at : at + 3 - cut])
    assert monitor.fates() == fates
    assert monitor.truths() == {
        (1, 0, p.seconds, 0): truth for p, truth in zip(REUSED, truths, strict=True) if truth is not None
    }


def test_a_label_that_came_before_the_second_use_of_its_id_moves_to_it() -> None:
    """It corrected the first use as long as the second was unknown; then both have their own label."""
    monitor = Monitor()
    monitor.read(REUSED[:1], [Label(1, 20), Label(1, 3620, "no")])
    assert monitor.fates() == {"matched": 1, "corrected": 1}
    assert monitor.truths() == {(1, 0, 0, 0): "no"}
    monitor.read(REUSED[1:], [])
    assert monitor.fates() == {"matched": 2}
    assert monitor.truths() == {(1, 0, 0, 0): "yes", (1, 0, 3600, 0): "no"}


def test_what_is_told_of_fates_and_delays_never_falls() -> None:
    """It stays where it was while the count is below it, over a restart too, and then goes on with the count."""
    monitor = Monitor()
    monitor.read(REUSED[:1], [Label(1, 20), Label(1, 3620, "no"), Label(3, 3700)])
    monitor.read(REUSED[1:], [])
    monitor.restart()
    ledger = monitor.truth.ledger
    assert ledger.labels[("champion", "corrected")] == 0
    assert ledger.told_labels[("champion", "corrected")] == 1
    assert ledger.told_labels[("champion", "matched")] == 2
    monitor.read([], [Label(1, 30, "no")])
    assert ledger.told_labels[("champion", "corrected")] == 1
    monitor.read([], [Label(1, 3630)])
    assert ledger.told_labels[("champion", "corrected")] == 2
    late, early = Prediction(3, 3600), Prediction(3, 0)
    monitor.read([early], [])
    assert (sum(ledger.delays[(0, 0)]), ledger.delay_us[(0, 0)]) == (3, (20 + 20 + 3700) * MICROSECONDS)
    monitor.read([late], [])
    assert (sum(ledger.delays[(0, 0)]), ledger.delay_us[(0, 0)]) == (3, (20 + 20 + 100) * MICROSECONDS)
    monitor.restart()
    ledger = monitor.truth.ledger
    assert (sum(ledger.told_delays[(0, 0)]), ledger.told_delay_us[(0, 0)]) == (4, (20 + 20 + 3700) * MICROSECONDS)


def test_a_prediction_whose_only_label_was_for_a_later_one_waits_again() -> None:
    """The label was read before the prediction it speaks of."""
    monitor = Monitor()
    monitor.read(REUSED[:1], [Label(1, 3620)])
    assert monitor.truth.ledger.labelled == {0: 1}
    monitor.read(REUSED[1:], [])
    assert monitor.truths() == {(1, 0, 3600, 0): "yes"}
    assert monitor.fates() == {"matched": 1}
    assert monitor.truth.ledger.waiting(0) == 1
    assert sum(monitor.truth.ledger.delays[(0, 0)]) == 1


def test_a_label_without_a_time_stays_with_its_prediction() -> None:
    """The newest one known when they met; another use of the id does not take it away."""
    monitor = Monitor()
    monitor.read([], [Label(1, None)])
    assert monitor.fates() == {"orphan_waiting": 1}
    monitor.read(REUSED[:1], [])
    for prediction in (REUSED[1], Prediction(1, 7200)):
        monitor.restart()
        monitor.read([prediction], [])
    assert monitor.truths() == {(1, 0, 0, 0): "yes"}
    assert monitor.fates() == {"matched": 1}
    monitor.read([], [Label(1, None, "no")])
    assert monitor.truths() == {(1, 0, 0, 0): "yes", (1, 0, 7200, 0): "no"}
    assert monitor.fates() == {"matched": 2}


def test_champion_and_challenger_take_up_an_id_again_in_their_own_time() -> None:
    """A label that names no model speaks of the newest prediction of each; where one is new, the label is new."""
    monitor = Monitor()
    monitor.read(
        [Prediction(1, 0), Prediction(1, 0, 1), Prediction(1, 3600)],
        [Label(1, 20), Label(1, 3620, "no"), Label(1, 3630, "no", model=1)],
    )
    assert monitor.fates() == {"matched": 3}
    assert monitor.truths() == {(1, 0, 0, 0): "yes", (1, 0, 3600, 0): "no", (1, 1, 0, 0): "no"}


def test_a_label_repeated_before_its_prediction_counts_for_the_model_of_it() -> None:
    """As when the prediction had come first."""
    early, late = Monitor(), Monitor()
    labels = [Label(1, 20), Label(1, 21), Label(1, 22, "no"), Label(1, 23, "no", outcome=1)]
    early.read([], labels)
    early.read([Prediction(1, 0, 1)], [])
    early.read([Prediction(1, 1, 0)], [])
    late.read([Prediction(1, 0, 1), Prediction(1, 1, 0)], labels)
    assert early.books() == late.books()
    assert late.books()["labels"] == {
        ("challenger", "matched"): 2,
        ("challenger", "duplicate"): 1,
        ("challenger", "corrected"): 1,
    }


# -- cuts ----------------------------------------------------------------------------------------

ONCE, TIMELESS = 3, 4  # ids from here on are used once by each model; only labels of the last may have no time

uses = st.builds(Prediction, st.integers(1, ONCE - 1), st.integers(0, 6), st.integers(0, 2))
single_uses = st.builds(Prediction, st.integers(ONCE, TIMELESS), st.integers(0, 6), st.integers(0, 1))
stories_of_predictions = st.tuples(
    st.lists(uses, max_size=8, unique_by=lambda p: (p.id, p.model, p.seconds)),
    st.lists(single_uses, max_size=4, unique_by=lambda p: (p.id, p.model)),
).flatmap(lambda both: st.permutations(both[0] + both[1]))
stories_of_labels = st.lists(
    st.integers(1, TIMELESS).flatmap(
        lambda one: st.builds(
            Label,
            st.just(one),
            st.integers(0, 8) if one < TIMELESS else st.none() | st.integers(0, 8),
            st.sampled_from(["no", "yes"]),
            st.integers(-1, 1),
            st.integers(0, 1),
        )
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@example(
    predictions=[Prediction(1, 1, 2), Prediction(1, 0, 1), Prediction(1, 0, 0), Prediction(3, 0, 0)],
    labels=[Label(1, 0, "no", 0, 0)],
    cuts=[(1, 1)],
)
@given(stories_of_predictions, stories_of_labels, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=8))
def test_nothing_depends_on_how_joins_cut_the_streams(
    predictions: list[Prediction], labels: list[Label], cuts: list[tuple[int, int]]
) -> None:
    """One join of everything, many joins with a restart after each, and a ledger kept by hand agree in every account."""
    once, often = Monitor(), Monitor()
    once.read(predictions, labels)
    made_to, told_to = 0, 0
    told: dict[tuple[str, str], int] = {}
    for more_made, more_told in [*cuts, (len(predictions), len(labels))]:
        often.read(predictions[made_to : made_to + more_made], labels[told_to : told_to + more_told])
        often.restart()
        made_to, told_to = made_to + more_made, told_to + more_told
        assert sum(often.fates().values()) == min(told_to, len(labels))
        told, before = dict(often.truth.ledger.told_labels), told
        assert all(told[key] >= max(count, often.truth.ledger.labels[key]) for key, count in before.items())
    assert often.books() == once.books()
    assert often.truths() == once.truths()
    assert often.waiting == once.waiting
    assert +often.arrivals == +once.arrivals
    assert set(often.arrivals.values()) <= {0, 1}
    assert (once.fates(), once.truths()) == by_hand(predictions, labels)
    labelled = {(one, version, seconds) for one, version, seconds, _ in once.truths()}
    ledger = once.truth.ledger
    assert sum(ledger.labelled.values()) == len(labelled)
    assert sum(ledger.labelled[v] + ledger.waiting(v) for v in range(len(VERSIONS))) == len(predictions)


# -- expiry --------------------------------------------------------------------------------------

DAY = 86_400


@pytest.mark.parametrize("label_first", [False, True])
def test_a_label_is_forgotten_with_its_prediction(label_first: bool) -> None:
    """A customer scored again after the horizon does not inherit the label of the first time."""
    monitor = Monitor()
    first, label = [Prediction(1, 0), Prediction(2, 0)], [Label(1, 30 * DAY)]
    monitor.read([] if label_first else first, label)
    monitor.read(first if label_first else [], [])
    assert monitor.truth.expire(START_US + 46 * DAY_US) == 1
    monitor.read([Prediction(1, 60 * DAY)], [])
    ledger = monitor.truth.ledger
    assert (ledger.labelled[0], ledger.expired[0], ledger.waiting(0)) == (1, 1, 1)
    monitor.read([], [Label(1, 62 * DAY)])
    assert monitor.fates() == {"matched": 2}
    assert monitor.truths() == {(1, 0, 0, 0): "yes", (1, 0, 60 * DAY, 0): "yes"}
    assert (ledger.labelled[0], ledger.expired[0], ledger.waiting(0)) == (2, 1, 0)


def test_labels_nobody_predicted_expire() -> None:
    """Once each, with the day they came on; those that met a prediction in time do not."""
    monitor = Monitor()
    monitor.read([], [Label(i, 0) for i in range(5)] + [Label(9, 10 * DAY), Label(8, None)])
    monitor.read([Prediction(1, 20)], [])
    monitor.truth.expire(START_US + 46 * DAY_US)
    assert monitor.fates() == {"matched": 1, "orphan_expired": 4, "orphan_waiting": 2}
    monitor.truth.expire(START_US + 60 * DAY_US)
    assert monitor.fates() == {"matched": 1, "orphan_expired": 5, "orphan_waiting": 1}
    monitor.read([Prediction(8, 60 * DAY)], [])
    assert monitor.fates() == {"matched": 2, "orphan_expired": 5}
    assert not any(monitor.truth.ledger.label_days.values())


def test_orphans_expire_under_the_model_they_name() -> None:
    """Each day's own."""
    monitor = Monitor()
    monitor.read(
        [], [Label(1, 0, model=1), Label(2, 0, model=1), Label(3, 0), Label(4, 10 * DAY), Label(5, 10 * DAY, model=0)]
    )
    monitor.restart()
    monitor.truth.expire(START_US + 46 * DAY_US)
    waiting = {("", "orphan_waiting"): 1, ("champion", "orphan_waiting"): 1}
    expired = {("challenger", "orphan_expired"): 2, ("", "orphan_expired"): 1}
    assert monitor.books()["labels"] == waiting | expired


# -- what truths cost ------------------------------------------------------------------------------


def kept(monitor: Monitor) -> tuple[int, int]:
    """Predictions and labels in the state file."""
    monitor.truth.flush_predictions()
    relations = (monitor.store.relation(shelf) for shelf in (PREDICTIONS, LABELS))
    return tuple(monitor.store.query(f"select count(*) as n from {r}")["n"][0].as_py() for r in relations)


def settle(monitor: Monitor, seconds: int) -> None:
    """Go through all that is due so far into the story."""
    while monitor.truth.settle(START_US + seconds * MICROSECONDS):
        pass


@pytest.mark.parametrize("ids", [[1], [2], [1, 2]], ids=["predicted", "never predicted", "both"])
@pytest.mark.parametrize("texts", ["yes no maybe", "yes"])
def test_corrections_without_end_are_counted_and_forgotten(ids: list[int], texts: str) -> None:
    """What is kept of one id does not grow with its labels; the newest truth stands, and every label has its fate."""
    monitor, told = Monitor(), texts.split()
    labels = [Label(i, 10 + k, told[k % len(told)]) for k in range(5_000) for i in ids]
    monitor.read([Prediction(1, 0)], [])
    for start in range(0, len(labels), 1_000):
        monitor.read([], labels[start : start + 1_000])
        assert kept(monitor)[1] <= len(ids) * (LABELS_KEPT + 2)
    fates, truths = by_hand([Prediction(1, 0)], labels)
    assert (monitor.fates(), monitor.truths()) == (fates, truths)
    monitor.restart()
    more = [Label(1, 10_000, "at last"), Label(2, 10_000, "at last"), Label(1, 9, "long ago")]
    monitor.read([], more)
    assert (monitor.fates(), monitor.truths()) == by_hand([Prediction(1, 0)], labels + more)


def test_truths_are_settled_once_they_may_not_be_corrected_any_more() -> None:
    """Labelled predictions and their labels leave the file after `corrections`; nothing that was counted changes."""
    monitor = Monitor(corrections_us=7 * DAY_US)
    made = [Prediction(i, 60 * i) for i in range(1, 101)]
    labels = [Label(i, DAY // 2 + i, "no") for i in range(1, 61)]
    monitor.read(made, labels)
    before = monitor.books(), monitor.truths()
    settle(monitor, 7 * DAY)
    assert kept(monitor) == (100, 60)
    monitor.read([], [Label(1, 7 * DAY, "yes")])
    assert monitor.truths()[(1, 0, 60, 0)] == "yes"
    monitor.read([], [Label(1, DAY // 2 + 1, "no", model=0), Label(1, 7 * DAY + 1, "no")])
    settle(monitor, 8 * DAY + 1)
    assert kept(monitor) == (41, 4), "the one that was corrected yesterday, and those without a label"
    monitor.restart()
    assert (monitor.books()["truths"], monitor.truths()) == (before[0]["truths"], before[1])
    settle(monitor, 15 * DAY + 1)
    assert kept(monitor) == (40, 0)
    late = [Label(1, 16 * DAY, "yes"), Label(80, 16 * DAY, "yes")]
    monitor.read([], late)
    assert monitor.fates()["orphan_waiting"] == 1, "as if it had not been predicted"
    assert monitor.truths()[(80, 0, 4800, 0)] == "yes"
    assert monitor.truth.ledger.waiting(0) == 39
    monitor.truth.expire(START_US + 60 * DAY_US)
    assert monitor.truth.ledger.expired[0] == 39


def test_what_may_still_be_said_keeps_a_prediction() -> None:
    """An outcome the version has had elsewhere, a challenger without its label, a second prediction of the id."""
    monitor = Monitor(corrections_us=DAY_US)
    made = [Prediction(1, 0), Prediction(2, 0), Prediction(3, 0), Prediction(3, 0, version=1), Prediction(4, 0)]
    monitor.read(
        [*made, Prediction(4, 2 * DAY)],
        [Label(i, 60) for i in (1, 2)] + [Label(3, 60, model=0), Label(4, 60), Label(1, 90, outcome=1)],
    )
    settle(monitor, 3 * DAY)
    assert kept(monitor)[0] == 5, "only the first has both outcomes"
    monitor.read([], [Label(2, 3 * DAY, outcome=1), Label(3, 3 * DAY, "no")])
    settle(monitor, 6 * DAY)
    found = monitor.store.query(f"select id_lo from {monitor.store.relation(PREDICTIONS)}")
    assert set(found["id_lo"].to_pylist()) == {3, 4}


@settings(max_examples=50, deadline=None)
@given(stories_of_predictions, stories_of_labels, st.lists(st.integers(0, 5), max_size=4))
def test_settling_changes_nothing_that_comes_in_time(
    predictions: list[Prediction], labels: list[Label], cuts: list[int]
) -> None:
    """Predictions and labels of one day, settled a week later, with a restart between: fates, truths and books stand."""
    plain, settled = Monitor(), Monitor(corrections_us=DAY_US)
    for monitor in (plain, settled):
        monitor.read(predictions, [])
        for start, stop in pairwise([0, *sorted(cuts), len(labels)]):
            monitor.read([], labels[start:stop])
        if monitor is settled:
            settle(monitor, 8 * DAY)
            monitor.restart()
        monitor.read([Prediction(99, 8 * DAY)], [Label(99, 8 * DAY)])
    assert settled.books() == plain.books()
    assert settled.truths() == plain.truths()
    assert all(a <= b for a, b in zip(kept(settled), kept(plain), strict=True))
