"""Metrics of model quality: how far binned areas are off, how often intervals hold the truth, and what a label costs.

Areas under the ROC and precision-recall curves against scikit-learn's on scores as people have them; the share of seeded
simulations in which each 95 % interval holds the value of a sample of a million; CPU time per label of folding joined
rows into the cohorts of four windows, of writing and reading a profile, and of working out its metrics.

python tests/benchmarks/performance.py --samples 2000 --rows 200000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from scipy import special
from sklearn.metrics import average_precision_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[2]))

from stream_monitor.judge.performance import metrics
from stream_monitor.records import Flags, Floats, window_starts
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task, shares

LARGE = 1_000_000
BATCH = 10_000
WINDOWS = (900, 3_600, 86_400, 604_800)
Scored = tuple[Flags, Floats]
S = TypeVar("S")
T = TypeVar("T")


def binary_rows(truth: Flags, score: Floats, threshold: float) -> Joined:
    """Scored predictions of a positive label."""
    nothing = np.full(len(truth), np.nan)
    labels = [pa.array(np.where(part, "1", "0")) for part in (truth, score > threshold)]
    return Joined(labels[0], nothing, labels[1], score, nothing, nothing)


def numeric_rows(truth: Floats, value: Floats) -> Joined:
    """Predicted numbers."""
    nothing, labels = np.full(len(truth), np.nan), pa.nulls(len(truth), pa.string())
    return Joined(labels, truth, labels, nothing, value, nothing)


def class_rows(draw: np.random.Generator, rows: int) -> Joined:
    """Five classes of unlike frequency, predicted at random from calibrated probabilities' best."""
    weights = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    probability = draw.dirichlet(weights / 4, rows)
    truth = (probability.cumsum(axis=1) > draw.random(rows)[:, None]).argmax(axis=1)
    chosen, at, names = probability.argmax(axis=1), np.arange(rows), np.array(list("abcde"))
    nothing = np.full(rows, np.nan)
    return Joined(
        pa.array(names[truth]), nothing, pa.array(names[chosen]), nothing, nothing,
        probability[at, truth], probability[at, chosen], (probability**2).sum(axis=1),
    )  # fmt: skip


def profile_of(rows: Joined, task: Task) -> OutcomeProfile:
    """One batch."""
    profile = OutcomeProfile(task, "1" if task is Task.BINARY else None)
    profile.add(rows)
    return profile


# -- areas -----------------------------------------------------------------------------------------


def scores(rows: int) -> Iterator[tuple[str, Flags, Floats]]:
    """Truths and scores as people have them, and three that are narrower than that."""
    draw = np.random.default_rng(1)

    def calibrated(score: Floats) -> Scored:
        return draw.random(rows) < score, score

    def apart(share: float, scored: Callable[[Floats], Floats]) -> Scored:
        truth = draw.random(rows) < share
        return truth, np.clip(scored(truth.astype(np.float64)), 0, 1)

    yield "calibrated, skewed", *calibrated(draw.beta(0.8, 6.0, rows))
    yield "calibrated, heavily skewed", *calibrated(draw.beta(0.8, 6.0, rows) ** 3)
    yield "calibrated, at both ends", *calibrated(draw.beta(0.3, 0.3, rows))
    yield "rare, 1 in 500", *calibrated(special.expit(-7 + 1.5 * draw.normal(size=rows)))
    yield "rare, well told apart", *apart(0.01, lambda y: special.expit(draw.normal(3 * y - 4, 1)))
    yield "saturated", *apart(0.5, lambda y: special.expit(draw.normal(16 * y - 8, 6)))
    yield (
        "saturated, single precision",
        *apart(0.5, lambda y: special.expit(draw.normal(16 * y - 8, 6)).astype(np.float32).astype(np.float64)),
    )
    yield (
        "half exactly 0 or 1",
        *apart(
            0.1,
            lambda y: np.where(draw.random(rows) < 0.5, np.abs(y - (draw.random(rows) < 0.1)), draw.beta(2, 2, rows)),
        ),
    )
    yield "two decimals", *calibrated(draw.beta(2, 5, rows).round(2))
    yield "three decimals", *calibrated(draw.beta(2, 5, rows).round(3))
    yield "a forest of 500 trees", *calibrated(draw.binomial(500, draw.beta(0.8, 6.0, rows)) / 500)
    yield "narrow, .50 ± .02", *apart(0.3, lambda y: draw.normal(0.5 + 0.02 * y, 0.02))
    yield "NARROWER, .50 ± .002", *apart(0.3, lambda y: draw.normal(0.5 + 0.002 * y, 0.002))
    yield "NARROWER, .0102 ± .0001", *apart(0.02, lambda y: draw.normal(0.0102 + 0.0001 * y, 0.0001))
    yield "NARROWER, .60 ± .0001", *apart(0.3, lambda y: draw.normal(0.6 + 0.0001 * y, 0.0001))


def areas(rows: int) -> None:
    """How far binned areas are off."""
    print(
        f"{'areas from bins, ' + str(rows) + ' rows':34}{'AUC':>8}{'error':>10}{'PR-AUC':>9}{'error':>10}{'bytes':>9}"
    )
    for name, truth, score in scores(rows):
        profile = profile_of(binary_rows(truth, score, 0.5), Task.BINARY)
        found = metrics(profile)
        auc, pr_auc = roc_auc_score(truth, score), average_precision_score(truth, score)
        print(f"{name:34}{auc:8.4f}{found['auc'].value - auc:+10.1e}{pr_auc:9.4f}"
              f"{found['pr_auc'].value - pr_auc:+10.1e}{len(profile.to_bytes()):9}")  # fmt: skip


# -- intervals -------------------------------------------------------------------------------------


def rare_scores(draw: np.random.Generator, rows: int) -> Joined:
    """Calibrated scores of an event of one in nine."""
    score = draw.beta(0.8, 6.0, rows)
    return binary_rows(draw.random(rows) < score, score, 0.3)


def overconfident_scores(draw: np.random.Generator, rows: int) -> Joined:
    """Scores too near to 0 and 1."""
    probability = draw.beta(2.0, 2.0, rows)
    return binary_rows(draw.random(rows) < probability, special.expit(2 * special.logit(probability)), 0.5)


def prices(draw: np.random.Generator, rows: int) -> Joined:
    """Skewed truths with errors in proportion to them."""
    truth = draw.lognormal(3.0, 0.5, rows)
    return numeric_rows(truth, truth * draw.lognormal(0.02, 0.2, rows))


def heavy_errors(draw: np.random.Generator, rows: int) -> Joined:
    """Normal truths around 10 with Laplace errors."""
    truth = draw.normal(10.0, 2.0, rows)
    return numeric_rows(truth, truth + draw.laplace(0.3, 1.0, rows))


WORLDS: dict[str, tuple[Task, Callable[[np.random.Generator, int], Joined]]] = {
    "binary, calibrated and rare": (Task.BINARY, rare_scores),
    "binary, overconfident": (Task.BINARY, overconfident_scores),
    "regression, prices": (Task.REGRESSION, prices),
    "regression, heavy errors": (Task.REGRESSION, heavy_errors),
    "five classes": (Task.MULTICLASS, class_rows),
}


def coverage(world: str, *, rows: int, samples: int) -> dict[str, float]:
    """The share of samples whose interval holds the value of a million rows, by metric; no bound is no miss."""
    task, make = WORLDS[world]
    target = metrics(profile_of(make(np.random.default_rng(0), LARGE), task))
    held: Counter[str] = Counter()
    for seed in range(samples):
        for name, found in metrics(profile_of(make(np.random.default_rng(1 + seed), rows), task)).items():
            if name in target:
                true = target[name].value
                held[name] += not (found.lower > true or found.upper < true)
    return {name: held[name] / samples for name in target}


def intervals(samples: int) -> None:
    """How often intervals hold the truth."""
    for world in WORLDS:
        by_rows = {rows: coverage(world, rows=rows, samples=samples) for rows in (100, 300, 1_000)}
        print(f"\n{world}: share of {samples} intervals that hold the truth; " + ", ".join(f"n={n}" for n in by_rows))
        for name in by_rows[1_000]:
            print(f"  {name:22}" + "".join(f"{found[name]:8.3f}" for found in by_rows.values()))


# -- costs -----------------------------------------------------------------------------------------


def costs(batches: int) -> None:
    """CPU time of folding, storing and reading."""
    print("\nCPU time; labels in batches of 10,000 for predictions spread over so many days")
    for world in ("binary, calibrated and rare", "regression, prices", "five classes"):
        task, make = WORLDS[world]
        for days in (0.02, 1.0, 10.0):
            held: dict[tuple[int, int], OutcomeProfile] = {}
            folding = sum(_fold(held, make(np.random.default_rng(b), BATCH), task, b, days) for b in range(batches))
            bodies, writing = _timed(_each(OutcomeProfile.to_bytes, held.values()))
            profiles, reading = _timed(_each(OutcomeProfile.from_bytes, bodies))
            _, measuring = _timed(_each(metrics, profiles))
            print(f"  {world:28} {days:5} days: {folding / batches / BATCH * 1e6:5.2f} µs a label; of {len(held)} "
                  f"profiles each: write {writing / len(held) * 1e6:.0f} µs, read {reading / len(held) * 1e6:.0f} µs, "
                  f"metrics {measuring / len(held) * 1e6:.0f} µs, at most {max(map(len, bodies))} bytes")  # fmt: skip


def _fold(held: dict[tuple[int, int], OutcomeProfile], rows: Joined, task: Task, seed: int, days: float) -> float:
    """CPU seconds of one batch, as `outcomes` folds it into cohorts."""
    time_us = np.sort(np.random.default_rng(seed).integers(0, int(days * 86_400e6), BATCH))
    start = time.process_time()
    mine = shares(rows, task, positive_label="1")
    for seconds in WINDOWS:
        starts, place = np.unique(window_starts(time_us, seconds), return_inverse=True)
        positive = "1" if task is Task.BINARY else None
        profiles = [held.setdefault((seconds, s), OutcomeProfile(task, positive)) for s in starts.tolist()]
        mine.fold(profiles, place, 1)
    return time.process_time() - start


def _each(step: Callable[[S], T], things: Iterable[S]) -> Callable[[], list[T]]:
    return lambda: [step(thing) for thing in things]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    return work(), time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=500, help="simulated samples for each interval; 0: none")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the areas")
    parser.add_argument("--batches", type=int, default=5, help="batches of 10,000 labels; 0: none")
    args = parser.parse_args()
    areas(args.rows)
    if args.samples:
        intervals(args.samples)
    if args.batches:
        costs(args.batches)
