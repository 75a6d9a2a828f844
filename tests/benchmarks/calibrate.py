"""How often the charts alarm when nothing has changed: the simulation behind the tables of `judge/hazard.py`.

    .venv/bin/python tests/benchmarks/calibrate.py

Uniform ranks, which is what every feature gives while nothing changes, through the charts themselves, from a fresh
start; alarms a row are counted by how long the charts had run. Each level is seeded by itself; some three minutes on one
core, the rarest last.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from stream_monitor.judge.charts import Charts, Ranks
from stream_monitor.judge.hazard import STAGES
from stream_monitor.summarize.protocol import MAIN

SEED = 20261121
LEVELS: Sequence[tuple[float, int, int, int]] = (
    # nominal alarms a row, rows of a run, columns, runs
    (1e-2, 16_384, 400, 12),
    (3e-3, 16_384, 400, 12),
    (1e-3, 32_768, 300, 12),
    (1e-4, 65_536, 200, 12),
    (1e-5, 65_536, 200, 40),
    (1e-6, 65_536, 200, 120),
    (1e-7, 262_144, 200, 30),
)
CHUNK = 2_048
"""Of more rows the sums of 200 columns do not fit the processor's cache: three times as slow."""
MANY_ROWS = 10**9  # a baseline that is no draw


def uniform_ranks(columns: int) -> Ranks:
    """Ranks of so many numeric subjects against an endless baseline."""
    rows = np.full(columns, MANY_ROWS, np.int64)
    seeds = tuple(str(column) for column in range(columns))
    return Ranks(seeds, np.full(columns, MAIN), {}, {}, rows, MANY_ROWS, np.zeros(columns, np.int64))


def run_lengths(hazard: float, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Rows until the first alarm of each column, `rows` + 1 where there was none."""
    charts = Charts(uniform_ranks(columns), hazard=hazard)
    first = np.full(columns, rows + 1)
    for start in range(0, rows, CHUNK):
        code = rng.integers(0, MAIN, (CHUNK, columns), dtype=np.uint16)
        for found in charts.update(code, code, np.zeros(CHUNK, np.int64)):
            if not found.is_calm:
                f = found.unit.subject
                first[f] = min(first[f], start + found.at + 1)
        if (first <= rows).all():
            break
    return first


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs")
    scale = parser.parse_args().scale
    edges = np.array([2**k for k in range(2, 2 + STAGES)] + [2**62])
    for k, (hazard, rows, columns, runs) in enumerate(LEVELS):
        rng = np.random.default_rng([SEED, k])
        alarms, exposed = np.zeros(STAGES), np.zeros(STAGES)
        for _ in range(max(1, round(runs * scale))):
            length = run_lengths(hazard, rows, columns, rng)
            for stage in range(STAGES):
                low, high = int(edges[stage]), min(int(edges[stage + 1]), rows + 1)
                exposed[stage] += np.clip(np.minimum(length, high) - low, 0, None).sum()
                alarms[stage] += ((length >= low) & (length < high)).sum()
        # A rate that never falls: windows come in as the charts run on, none goes.
        rates = isotonic_regression(alarms / np.maximum(exposed, 1), weights=np.maximum(exposed, 1)).x / hazard
        print(
            f"    {hazard:g}: ({', '.join(f'{rate:.3f}' for rate in rates)}),  # {int(alarms.sum())} alarms", flush=True
        )


if __name__ == "__main__":
    main()
