"""How near estimated performance comes to what labels show later, where inputs drift and the concept does not.

Each stream has a baseline of labelled rows and windows whose scores drift away from it: a shift, a spread and a prevalence
that wander. The scores of the model are a distortion of the true probability, so that calibration has work to do; labels
are drawn from the truth. Asked of each window: is the estimate nearer to what all its labels show than the baseline's
value, and does the interval hold that? Run: python tests/benchmarks/estimate.py [--streams 40]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from scipy import special

from stream_monitor.judge.calibration import calibrate
from stream_monitor.judge.estimate import Estimator
from stream_monitor.judge.performance import metrics
from stream_monitor.records import Flags, Floats
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task
from stream_monitor.summarize.scores import POSITIVE, ScoreProfile, of_scores, probability_bin

MODELS: Mapping[str, Callable[[Floats], Floats]] = {
    "calibrated": lambda logit: logit,
    "overconfident": lambda logit: 1.6 * logit - 0.5,
    "bent": lambda logit: np.where(logit > 0, 0.5 * logit, 1.5 * logit) + 0.4,
}
METRICS = ("accuracy", "precision", "recall", "specificity", "f1", "auc", "log_loss", "brier")
WINDOWS = 20


def drawn(rng: np.random.Generator, n: int, *, shift: float, spread: float) -> tuple[Floats, Flags]:
    """True logits and labels."""
    logit = rng.normal(-1.5 + shift, 1.2 * spread, n)
    return logit, rng.random(n) < special.expit(logit)


def realised(score: Floats, truth: Flags) -> OutcomeProfile:
    """What labels show."""
    nothing = np.full(len(score), np.nan)
    profile = OutcomeProfile(Task.BINARY, "yes")
    labels = pa.array(np.where(truth, "yes", "no"))
    profile.add(Joined(labels, nothing, pa.nulls(len(score), pa.string()), score, nothing, nothing))
    return profile


def estimator(score: Floats, truth: Flags) -> Estimator:
    """Fitted on labelled rows."""
    key, at = np.unique(probability_bin(score), return_inverse=True)
    rows = np.bincount(at).astype(np.float64)
    return Estimator(Task.BINARY, "yes", {POSITIVE: calibrate(key, np.bincount(at, truth).astype(np.float64), rows)})


def told(score: Floats) -> ScoreProfile:
    """What predictions say of themselves."""
    profile = ScoreProfile()
    profile.add(of_scores(score, score >= 0.5))
    return profile


def stream(model: str, *, labels: int, rows: int, seed: int) -> dict[str, list[tuple[float, float, bool]]]:
    """Of each window and metric: how far off the estimate and the baseline are, and whether the interval holds it."""
    rng = np.random.default_rng(seed)
    score_of = MODELS[model]
    logit, truth = drawn(rng, labels, shift=0.0, spread=1.0)
    score = special.expit(score_of(logit))
    held, before = estimator(score, truth), metrics(realised(score, truth))
    found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    path = np.cumsum(rng.normal(0, 0.25, (WINDOWS, 2)), axis=0)
    for shift, spread in path.tolist():
        logit, truth = drawn(rng, rows, shift=shift, spread=float(np.exp(0.4 * spread)))
        score = special.expit(score_of(logit))
        after, expected = metrics(realised(score, truth)), held.estimates(told(score))
        for name in METRICS:
            value, estimate = after[name].value, expected[name].metric()
            if np.isfinite(value) and np.isfinite(estimate.value):
                found[name].append(
                    (
                        abs(estimate.value - value),
                        abs(before[name].value - value),
                        bool(estimate.lower <= value <= estimate.upper),
                    )
                )
    return found


def measure(model: str, *, labels: int, rows: int, streams: int) -> dict[str, dict[str, float]]:
    """By metric: mean absolute errors, and the share of windows whose interval holds the realised value."""
    found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for seed in range(streams):
        for name, part in stream(model, labels=labels, rows=rows, seed=seed).items():
            found[name] += part
    return {
        name: dict(zip(("estimate", "same_as_baseline", "coverage"), np.mean(part, axis=0).tolist(), strict=True))
        for name, part in found.items()
    }


CASES: tuple[tuple[int, int], ...] = ((300, 1_000), (5_000, 1_000), (20_000, 5_000))
"""Labelled baseline rows, and rows of a window: a beta map, isotonic, isotonic with much evidence."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    results: list[dict[str, object]] = []
    missed = 0
    for labels, rows in CASES:
        for model in MODELS:
            by_metric = measure(model, labels=labels, rows=rows, streams=chosen.streams)
            results.append({"model": model, "labels": labels, "rows": rows, "metrics": by_metric})
            for name, row in by_metric.items():
                # From 300 labels no map of three weights follows scores that are bent: only the interval is asked of it.
                is_asked = name == "auc" and (labels >= 1_000 or model == "calibrated")
                is_far = row["estimate"] > row["same_as_baseline"] / 2
                missed += row["coverage"] < 0.9 or (is_asked and is_far)
                if not chosen.json:
                    print(
                        f"{model:14} {labels:6,} labels {rows:6,} rows  {name:12} off by {row['estimate']:.4f}, "
                        f"the baseline by {row['same_as_baseline']:.4f}, held {row['coverage']:.1%}"
                    )
    if chosen.json:
        print(json.dumps(results))
    print(f"{missed} figures missed", file=sys.stderr)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
