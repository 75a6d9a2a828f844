"""How near the expected loss of a regression comes to what labels show later, where inputs drift and the concept does not.

Each stream has a baseline of labelled rows and windows in which the mix of rows leans more and more to one side of every
input. Errors are larger on some inputs than on others; truths are drawn anew. Asked of each window, as in `estimate.py`: is
the estimate nearer to what all its labels show than the baseline's value, and does the interval hold that? Then what a row
costs. Run: python tests/benchmarks/losses.py [--streams 24]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from scipy import special

from stream_monitor.judge.expectation import is_outside
from stream_monitor.judge.loss import LossEstimator, learn
from stream_monitor.judge.performance import metrics
from stream_monitor.records import Floats, Kind
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task
from stream_monitor.summarize.profile import Schema
from stream_monitor.summarize.rows import PREDICTION, Rows, SubjectKey, Texts
from stream_monitor.summarize.scores import ScoreProfile, of_leaves

REGRESSIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "one input": lambda x: np.exp(0.6 * x[:, 0]),
    "three inputs": lambda x: np.exp(0.4 * x[:, 0] - 0.3 * x[:, 1] + 0.3 * np.abs(x[:, 2])),
    "a group": lambda x: np.where(x[:, 4] > 0.5, 3.0, 1.0) * (1 + 0.5 * (x[:, 0] > 1)),
    "no input": lambda x: np.ones(len(x)),
}
"""How large errors are by the inputs. In the last they do not depend on them: nothing can be foretold."""

LOSSES = ("mae", "mse", "rmse", "mape", "bias", "error_p05", "error_p50", "error_p95",
          "absolute_error_p50", "absolute_error_p90", "absolute_error_p99")  # fmt: skip
FEATURES = 6
WINDOWS = 20


def inputs(rng: np.random.Generator, n: int, lean: Floats, *, beyond: bool) -> Floats:
    """Five numbers and a group. The mix of rows leans to one side of each: among rows as the baseline has them, or, if
    `beyond`, by a shift that brings rows it has hardly seen.
    """
    if beyond:
        x = rng.normal(size=(n, FEATURES)) + lean
    else:  # the density exp(lean x) on the range of a uniform of standard deviation 1
        end, u = math.sqrt(3), rng.random((n, FEATURES))
        steep = np.where(np.abs(lean) < 1e-3, 1e-3, lean)
        x = np.log(np.exp(-steep * end) + u * (np.exp(steep * end) - np.exp(-steep * end))) / steep
    x[:, 4] = rng.random(n) < special.expit(lean[4] - 1.4)
    return x


def answered(rng: np.random.Generator, x: Floats, size: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """Predictions and truths: the model misses a bend, so that errors lean where the third input is large."""
    value = 30 + 2 * x[:, 0] + x[:, 1] - x[:, 3]
    return value, value + 0.2 * np.maximum(x[:, 2] - 1, 0) + size(x) * rng.normal(size=len(x))


def table(x: Floats, value: Floats) -> Rows:
    """As events bring them; the group is a category."""
    n = len(x)
    none = np.zeros(n, np.uint64)
    kind = np.full((n, FEATURES + 1), Kind.NUMBER, np.uint8)
    kind[:, 4] = Kind.STRING
    number = np.column_stack([x, value])
    number[:, 4] = np.nan
    names = tuple(SubjectKey("feature", f"x{f}") for f in range(FEATURES))
    texts = {4: Texts(np.arange(n, dtype=np.int32), pa.array(np.where(x[:, 4] > 0.5, "b", "a")))}
    return Rows(np.arange(n), none, none, np.zeros(n, np.int32), (*names, PREDICTION), kind, number, texts)


def measured(value: Floats, truth: Floats) -> OutcomeProfile:
    """What labels show of a regression."""
    nothing, none = np.full(len(value), np.nan), pa.nulls(len(value), pa.string())
    profile = OutcomeProfile(Task.REGRESSION)
    profile.add(Joined(none, truth, none, nothing, value, nothing))
    return profile


def learnt(x: Floats, value: Floats, truth: Floats) -> LossEstimator:
    """From a baseline."""
    rows = table(x, value)
    held = learn(Schema.learn(rows, most_categories=200), rows, truth)
    assert held is not None
    return LossEstimator(held)


def window(estimator: LossEstimator, x: Floats, value: Floats) -> ScoreProfile:
    """What is counted of one."""
    counts = ScoreProfile()
    counts.add(of_leaves(estimator.leaves, estimator.leaves.of(table(x, value))))
    return counts


def stream(
    name: str, *, labels: int, rows: int, seed: int, beyond: bool = False
) -> dict[str, list[tuple[float, float, bool]]]:
    """Of each window and metric: how far off the estimate and the baseline are, and whether the interval holds it."""
    rng = np.random.default_rng(seed)
    size = REGRESSIONS[name]
    x = inputs(rng, labels, np.zeros(FEATURES), beyond=beyond)
    value, truth = answered(rng, x, size)
    estimator, before = learnt(x, value, truth), metrics(measured(value, truth))
    found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for lean in np.cumsum(rng.normal(0, 0.25, (WINDOWS, FEATURES)), axis=0):
        x = inputs(rng, rows, lean, beyond=beyond)
        value, truth = answered(rng, x, size)
        after, expected = metrics(measured(value, truth)), estimator.estimates(window(estimator, x, value))
        for metric in LOSSES:
            real, estimate = after[metric].value, expected[metric].metric()
            found[metric].append(
                (
                    abs(estimate.value - real),
                    abs(before[metric].value - real),
                    not is_outside(estimate, real),
                )
            )
    return found


CASES: tuple[tuple[int, int], ...] = ((1_000, 1_000), (5_000, 1_000), (20_000, 5_000))
"""Labelled baseline rows, and rows of a window."""

ASKED = ("mae", "absolute_error_p90")
"""Of them the interval is asked to hold in nine windows of ten, over all models; of the first, half the baseline's error."""


def measure(case: tuple[int, int], *, streams: int, beyond: bool) -> int:
    """Print one case; how many of the asked figures are missed."""
    missed, held = 0, defaultdict[str, list[float]](list)
    for name in REGRESSIONS:
        found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
        for seed in range(streams):
            for metric, part in stream(name, labels=case[0], rows=case[1], seed=seed, beyond=beyond).items():
                found[metric] += part
        for metric, parts in found.items():
            off, before, inside = np.mean(parts, axis=0).tolist()
            held[metric].append(inside)
            # From 400 rows no tree follows three inputs to where the baseline has hardly been: it is told, and not asked.
            is_asked = metric == "mae" and name != "no input" and (not beyond or case[0] >= 5_000)
            missed += is_asked and off > before / 2
            print(
                f"{'beyond' if beyond else 'within':7} {case[0]:6,} labels {case[1]:5,} rows  {name:12} {metric:18} off by "
                f"{off:.4f}, the baseline by {before:.4f}, held {inside:.1%}"
            )
    over_all = {metric: float(np.mean(held[metric])) for metric in LOSSES}
    print("held over all: " + ", ".join(f"{metric} {share:.1%}" for metric, share in over_all.items()))
    return missed + (0 if beyond else sum(over_all[metric] < 0.9 for metric in ASKED))


def cost(rows: int) -> float:
    """CPU time of telling the leaf of a row of ten features, all of which matter, in microseconds."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 10))
    value = x.sum(axis=1)
    none, names = np.zeros(rows, np.uint64), tuple(SubjectKey("feature", f"x{f}") for f in range(10))
    made = Rows(np.arange(rows), none, none, np.zeros(rows, np.int32), (*names, PREDICTION),
                np.full((rows, 11), Kind.NUMBER, np.uint8), np.column_stack([x, value]), {})  # fmt: skip
    held = learn(Schema.learn(made, most_categories=200), made, value + np.exp(0.2 * value) * rng.normal(size=rows))
    assert held is not None
    assert len(held.leaves.cuts) >= 10
    start = time.process_time()
    for _ in range(10):
        held.leaves.of(made)
    return (time.process_time() - start) / 10 / rows * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=24)
    streams = parser.parse_args().streams
    missed = sum(measure(case, streams=streams, beyond=beyond) for beyond in (False, True) for case in CASES)
    took = cost(20_000)
    print(f"the leaf of a row of ten features: {took:.2f} microseconds")
    missed += took > 1.0
    print(f"{missed} figures missed", file=sys.stderr)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
