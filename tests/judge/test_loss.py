"""Expected losses held to brute force over rows, and the tree to scikit-learn's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from sklearn.tree import DecisionTreeRegressor

from stream_monitor.errors import StateError
from stream_monitor.judge import loss, tree
from stream_monitor.judge.expectation import is_outside
from stream_monitor.judge.loss import Losses, LossEstimator
from stream_monitor.judge.metric import Metric
from stream_monitor.judge.performance import metrics
from stream_monitor.records import Floats, Ints, Kind
from stream_monitor.summarize.leaves import MOST_LEAVES
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task
from stream_monitor.summarize.profile import Schema
from stream_monitor.summarize.rows import PREDICTION, Rows, SubjectKey, Texts
from stream_monitor.summarize.scores import ScoreProfile, of_leaves

METRICS = {"mae", "mse", "rmse", "mape", "bias", "error_p05", "error_p50", "error_p95", "absolute_error_p50",
           "absolute_error_p90", "absolute_error_p99"}  # fmt: skip


def table(x: Floats, value: Floats, group: Ints | None = None) -> Rows:
    """Rows of numbers x0, x1, … (NaN: missing), a prediction, and perhaps a group with a name (-1: missing)."""
    n, none = len(x), np.zeros(len(x), np.uint64)
    number = np.column_stack([x, value])
    kind = np.where(np.isnan(number), Kind.MISSING, Kind.NUMBER).astype(np.uint8)
    keys = [*(SubjectKey("feature", f"x{f}") for f in range(x.shape[1])), PREDICTION]
    texts = {}
    if group is not None:
        row = np.flatnonzero(group >= 0)
        texts[len(keys)] = Texts(row.astype(np.int32), pa.array([f"g{g}" for g in group[row].tolist()], pa.string()))
        keys.append(SubjectKey("feature", "group"))
        kind = np.column_stack([kind, np.where(group >= 0, Kind.STRING, Kind.MISSING).astype(np.uint8)])
        number = np.column_stack([number, np.full(n, np.nan)])
    return Rows(np.arange(n), none, none, np.zeros(n, np.int32), tuple(keys), kind, number, texts)


def estimator(rows: Rows, truth: Floats) -> LossEstimator:
    """Learnt from baseline rows."""
    found = loss.learn(Schema.learn(rows, most_categories=200), rows, truth)
    assert found is not None
    return LossEstimator(found)


def counted(held: LossEstimator, rows: Rows) -> ScoreProfile:
    """A window of rows."""
    profile = ScoreProfile()
    profile.add(of_leaves(held.leaves, held.leaves.of(rows)))
    return profile


def realised(value: Floats, truth: Floats) -> Mapping[str, Metric]:
    """What labels show."""
    return metrics(outcome(value, truth))


def outcome(value: Floats, truth: Floats) -> OutcomeProfile:
    """Predictions with their truths."""
    nothing, none = np.full(len(value), np.nan), pa.nulls(len(value), pa.string())
    profile = OutcomeProfile(Task.REGRESSION)
    profile.add(Joined(none, truth, none, nothing, value, nothing))
    return profile


def drawn(n: int, seed: int, *, lean: float = 0.0, share: float = 0.3) -> tuple[Floats, Floats, Ints, Floats]:
    """Inputs, predictions, groups and truths: errors grow with x0 and are three times as large in one group."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, 3))
    x[:, 0] = 2 * rng.beta(1 + max(lean, 0), 1 + max(-lean, 0), n) - 1
    group = (rng.random(n) < share).astype(np.int64)
    value = 100 + x[:, 0] - x[:, 1]
    size = np.exp(x[:, 0]) * np.where(group == 1, 3.0, 1.0)
    return x, value, group, value + size * rng.normal(size=n)


def test_where_rows_come_as_in_the_baseline_its_own_figures_are_expected() -> None:
    """Of the very rows that leaves were told from every mean comes out exactly, and quantiles within their bins."""
    x, value, group, truth = drawn(3_000, 1)
    rows = table(x, value, group)
    held = estimator(rows, truth)
    told = OutcomeProfile(Task.REGRESSION)
    counts = ScoreProfile()
    for leaf, profile in enumerate(held.losses.profiles):
        told = told.merge(profile)
        counts.add(of_leaves(held.leaves, np.full(profile.rows, leaf)))
    found, want = held.estimates(counts), metrics(told)
    assert set(found) == METRICS
    assert {n: e.value for n, e in found.items()} == pytest.approx({n: want[n].value for n in METRICS}, rel=1e-9)
    constants = {name: estimate.metric().best_constant for name, estimate in found.items()}
    assert constants == pytest.approx(
        {n: want[n].best_constant for n in METRICS}, rel=1e-2, abs=1e-2
    )  # leaves have fewer truths each, and so finer ones
    assert {estimate.rows for estimate in found.values()} == {told.rows}


def test_it_follows_inputs_that_drift() -> None:
    """Rows of a kind the model errs more on: the estimate is within an eighth of what labels show, the baseline far off."""
    x, value, group, truth = drawn(10_000, 2)
    held, before = estimator(table(x, value, group), truth), realised(value, truth)
    x, value, group, truth = drawn(20_000, 3, lean=2.0, share=0.8)
    after = realised(value, truth)
    found = held.estimates(counted(held, table(x, value, group)))
    for name in ("mae", "mse", "rmse", "error_p05", "error_p95", "absolute_error_p90"):
        assert found[name].value == pytest.approx(after[name].value, rel=0.125), name
        assert before[name].value != pytest.approx(after[name].value, rel=0.4), name
        assert is_outside(found[name].metric(), after[name].value) == 0, name


def test_intervals_hold_what_is_drawn() -> None:
    """In about 19 of 20 pairs of a baseline and a window."""
    held_by_name = dict.fromkeys(METRICS, 0)
    for seed in range(40):
        x, value, group, truth = drawn(2_000, 100 + seed)
        held = estimator(table(x, value, group), truth)
        x, value, group, truth = drawn(500, 200 + seed, lean=1.0, share=0.5)
        found, after = held.estimates(counted(held, table(x, value, group))), realised(value, truth)
        for name in METRICS:
            held_by_name[name] += is_outside(found[name].metric(), after[name].value) == 0
    assert {name: n for name, n in held_by_name.items() if n < 34} == {}


def test_errors_that_do_not_depend_on_inputs_have_one_leaf() -> None:
    """No tree is grown on chance: and it is said."""
    rng = np.random.default_rng(4)
    x, value = rng.normal(size=(4_000, 10)), rng.normal(size=4_000)
    held = estimator(table(x, value), value + rng.normal(size=4_000))
    assert held.leaves.count == 1
    assert "did not depend on inputs" in held.method
    assert held.leaves.features == frozenset()


def test_the_method_names_what_matters() -> None:
    """As `baseline show` says it."""
    x, value, group, truth = drawn(10_000, 5)
    held = estimator(table(x, value, group), truth)
    assert held.method.startswith("errors of 6000 labelled rows in ")
    assert "group" in held.method
    assert "x0" in held.method


def test_the_tree_is_about_as_good_as_the_usual_one() -> None:
    """Of the size of errors in rows that neither has seen, it explains at least nine tenths of what scikit-learn's does."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(20_000, 5))
    size = np.exp(0.4 * x[:, 0] - 0.3 * x[:, 1]) * np.where(x[:, 2] > 1, 2.0, 1.0)
    value = x[:, 3]
    error = size * rng.normal(size=len(x))
    held = estimator(table(x[:10_000], value[:10_000]), (value - error)[:10_000])
    absolute = np.abs(error)
    usual = DecisionTreeRegressor(max_leaf_nodes=MOST_LEAVES, min_samples_leaf=50, random_state=0)
    usual.fit(x[:10_000], absolute[:10_000])
    mean = np.array([profile.sums["absolute"].value / profile.rows for profile in held.losses.profiles])
    own = mean[held.leaves.of(table(x[10_000:], value[10_000:]))]
    off = [np.mean((absolute[10_000:] - told) ** 2) for told in (own, usual.predict(x[10_000:]))]
    variance = absolute[10_000:].var()
    assert variance - off[0] > 0.9 * (variance - off[1]) > 0


def test_every_row_has_one_leaf() -> None:
    """Missing values, new groups, groups where there were none, values far outside: all are in a leaf, as told singly."""
    x, value, group, truth = drawn(6_000, 7)
    rng = np.random.default_rng(8)
    x[rng.random(x.shape) < 0.1] = np.nan
    group[rng.random(len(group)) < 0.1] = -1
    held = estimator(table(x, value, group), truth)
    assert held.leaves.count > 3
    wild = np.array([[np.nan, np.nan, np.nan], [1e300, -1e300, 0.0], [np.inf, -np.inf, np.inf], [0.1, 0.2, 0.3]])
    odd = table(wild, np.array([np.nan, 0.0, 1e308, 20.0]), np.array([-1, 7, 0, 1]))
    leaf = held.leaves.of(odd)
    assert ((leaf >= 0) & (leaf < held.leaves.count)).all()
    assert [int(held.leaves.of(odd.take(np.array([k])))[0]) for k in range(4)] == leaf.tolist()
    # A subject that no row of a batch has is missing in all of them.
    bare = held.leaves.of(Rows(np.arange(2), *(np.zeros(2, np.uint64),) * 2, np.zeros(2, np.int32), (),
                               np.zeros((2, 0), np.uint8), np.zeros((2, 0)), {}))  # fmt: skip
    nothing = held.leaves.of(table(np.full((1, 3), np.nan), np.array([np.nan]), np.array([-1])))
    assert bare.tolist() == nothing.tolist() * 2


def test_leaves_are_boxes_that_part_all_bins() -> None:
    """Each combination of bins is admitted by exactly one leaf, whatever the tree had seen of it."""
    rng = np.random.default_rng(9)
    code = rng.integers(0, 12, (4_000, 3)).astype(np.uint8)
    code[rng.random(code.shape) < 0.05] = tree.OTHER
    size = (1 + code[:, 0] % 5) * np.where(code[:, 1] == tree.OTHER, 4.0, 1.0)
    error = size * rng.normal(size=len(code))
    ordered = np.array([True, True, False])
    boxes = tree.grow(code[:2_000], ordered, [np.abs(error[:2_000])], code[2_000:])
    assert len(boxes) > 2
    every = rng.integers(0, tree.BINS, (5_000, 3))
    inside = np.stack([box[np.arange(3), every].all(axis=1) for box in boxes])
    assert (inside.sum(axis=0) == 1).all()
    for box in boxes:
        assert box[np.arange(3), code[2_000:]].all(axis=1).sum() >= tree.LEAST_ROWS


def test_losses_are_read_back_as_they_were_written() -> None:
    """The same leaves under the same id, the same estimates; what is damaged is refused, an old format known."""
    x, value, group, truth = drawn(2_000, 10)
    held = estimator(table(x, value, group), truth)
    body = held.losses.to_bytes()
    again = Losses.from_bytes(body)
    assert again is not None
    assert again.leaves.id == held.leaves.id
    window = counted(held, table(x, value, group))
    found, want = LossEstimator(again).estimates(window), held.estimates(window)
    assert {n: e.metric() for n, e in found.items()} == {n: e.metric() for n, e in want.items()}
    with pytest.raises(StateError):
        Losses.from_bytes(body[: len(body) // 2])
    first = held.losses.profiles[0].to_bytes()
    assert Losses.from_bytes(body.replace(first, b"\x01" + first[1:])) is None


def test_a_window_counted_with_another_tree_is_not_read() -> None:
    """Leaves are numbers: those of another tree mean something else."""
    x, value, group, truth = drawn(2_000, 11)
    one, other = (estimator(table(x, value, group), t) for t in (truth, 2 * value - truth + 5 * x[:, :1].ravel()))
    assert one.leaves.id != other.leaves.id
    window = counted(one, table(x, value, group))
    assert other.estimates(window) == {}
    both = window.merge(counted(other, table(x[:300], value[:300], group[:300])))
    assert one.estimates(both)["mae"].rows == 2_000
    assert other.estimates(both)["mae"].rows == 300


def test_rows_without_a_usable_number_are_no_reason_to_fail() -> None:
    """Truths and predictions that are missing or enormous are left out; with too few of the others nothing is learnt."""
    x, value, group, truth = drawn(1_000, 12)
    truth[::3], value[1::7] = np.nan, 1e300
    held = estimator(table(x, value, group), truth)
    assert sum(profile.rows for profile in held.losses.profiles) > 300
    truth[loss.FEWEST_ROWS :] = np.nan
    rows = table(x, value, group)
    assert loss.learn(Schema.learn(rows, most_categories=200), rows, truth) is None


def test_truths_that_are_zero_have_no_relative_error() -> None:
    """mape is of the others; where all are zero it is not known."""
    rng = np.random.default_rng(13)
    x, value = rng.normal(size=(1_000, 1)), rng.normal(size=1_000)
    truth = np.where(rng.random(1_000) < 0.5, 0.0, 10.0)
    held = estimator(table(x, value), truth)
    assert held.estimates(counted(held, table(x, value)))["mape"].value == pytest.approx(
        realised(value, truth)["mape"].value, rel=0.05
    )
    none = estimator(table(x, value), np.zeros(1_000))
    assert np.isnan(none.estimates(counted(none, table(x, value)))["mape"].metric().value)


def test_the_known_part_is_as_it_is() -> None:
    """The more rows have their truth the narrower the interval; with all of them it is what they show."""
    x, value, group, truth = drawn(2_000, 14)
    held = estimator(table(x, value, group), truth)
    x, value, group, truth = drawn(800, 15)
    truth += 2.0  # the concept drifts
    window, width = counted(held, table(x, value, group)), np.inf
    for known in (0, 200, 500, 800):
        found = held.estimates(window, outcome(value[:known], truth[:known]))
        metric = found["mae"].metric()
        assert metric.upper - metric.lower < width
        width = metric.upper - metric.lower
    want = realised(value, truth)
    assert {n: e.value for n, e in found.items()} == pytest.approx({n: want[n].value for n in METRICS}, rel=1e-9)
    assert width == 0
    assert held.estimates(window, outcome(np.zeros(801), np.ones(801))) == {}
