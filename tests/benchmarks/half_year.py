"""Half a year of predictions whose labels come up to 90 days late: does every fate add up, and what does it take?

Labels come days, weeks and months after their predictions, some before them; some are said twice, some corrected, some
speak of nobody, some come when their prediction is forgotten. The service is restarted every month. At the end every
fate and every daily and weekly cohort is compared with what NumPy makes of the same rows at once.

python tests/benchmarks/half_year.py --a-day 2000
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from labels import DAY_US, LABELS, PREDICTIONS, START_US, predictions, truths

from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.history import performance_rows, summary
from stream_monitor.memory import hold_memory
from stream_monitor.records import Flags, Floats, Ints, window_starts
from stream_monitor.store import Store

DAYS = 182
HORIZON_DAYS = 90
STEPS_A_DAY = 2
RESTART_DAYS = 30
CONFIG = parse(
    {
        "label_horizon": f"{HORIZON_DAYS}d",
        "pane": "15m",
        "windows": ["1d", "7d"],
        "models": {"credit": {"task": "binary", "positive_label": "deny"}},
    },
    {},
)
NEVER_US = 2**62


@dataclass(frozen=True)
class HalfYear:
    """What happens: predictions by row (n,), labels in the order of their time (m,)."""

    made_us: Ints
    score: Floats
    time_us: Ints
    row: Ints  # from n on: nobody
    deny: Flags

    def __post_init__(self) -> None:
        assert (np.diff(self.time_us) >= 0).all()


def drawn(rng: np.random.Generator, a_day: int) -> HalfYear:
    """A half year."""
    n = DAYS * a_day
    made = START_US + np.sort(rng.integers(0, DAYS * DAY_US, n))
    score = rng.random(n)
    truth = np.append(rng.random(n) < score, np.zeros(n // 100, np.bool_))
    days = np.select(
        [rng.random(n) < 0.6, rng.random(n) < 0.75],
        [np.minimum(rng.exponential(3.0, n), 80.0), rng.uniform(0, 60, n)],
        rng.uniform(60, 80, n),
    )
    early = rng.random(n) < 0.03
    days[early] = -rng.uniform(0, 1 / 24, int(early.sum()))
    kind = rng.random(n)
    first = np.where(kind < 0.85, made + (days * DAY_US).astype(np.int64), NEVER_US)
    beyond = np.flatnonzero((kind >= 0.85) & (kind < 0.86))
    late = made[beyond] + (rng.uniform(95, 110, len(beyond)) * DAY_US).astype(np.int64)
    labelled = np.flatnonzero(kind < 0.85)
    again, corrected = labelled[rng.random(len(labelled)) < 0.04], labelled[rng.random(len(labelled)) < 0.05]
    unknown = n + np.arange(n // 100)
    row = np.concatenate([labelled, again, corrected, unknown, beyond])
    time_us = np.concatenate(
        [
            first[labelled],
            first[again] + rng.integers(1, DAY_US, len(again)),
            first[corrected] + DAY_US + rng.integers(1, 8 * DAY_US, len(corrected)),
            START_US + rng.integers(0, DAYS * DAY_US, len(unknown)),
            late,
        ]
    )
    deny = truth[row]
    deny[len(labelled) + len(again) :][: len(corrected)] ^= True
    order = np.argsort(time_us, kind="stable")
    order = order[time_us[order] < START_US + DAYS * DAY_US]
    return HalfYear(made, score, time_us[order], row[order], deny[order])


def lived(folder: Path, year: HalfYear) -> Engine:
    """The service goes through it, step by step; whenever it begins anew it is given what it had not committed."""
    path = folder / "monitor.duckdb"
    engine = Engine(CONFIG, Store(path))
    made = told = 0
    for step in range(1, DAYS * STEPS_A_DAY + 1):
        end = START_US + step * (DAY_US // STEPS_A_DAY)
        row = np.arange(made, np.searchsorted(year.made_us, end))
        part = np.arange(told, np.searchsorted(year.time_us, end))
        if len(row):
            engine.offer(predictions(row, year.made_us[row], year.score[row]))
        if len(part):
            engine.offer(truths(year.row[part], told, year.time_us[part], year.deny[part]))
        made, told = made + len(row), told + len(part)
        engine.step(0.0, seal_now=True)
        engine.join(0.0)
        engine.checkpoint()
        if step % (RESTART_DAYS * STEPS_A_DAY) == 0:
            engine.store.close()
            engine = Engine(CONFIG, Store(path))
            made, told = (engine.positions()[partition] for partition in (PREDICTIONS, LABELS))
    engine.finish(0.0)
    engine.checkpoint()
    return engine


def fates(year: HalfYear, watermark_us: int) -> dict[str, int]:
    """What must have become of everything, from all rows at once."""
    n, m = len(year.made_us), len(year.row)
    first = np.unique(year.row, return_index=True)[1]
    is_first = np.zeros(m, np.bool_)
    is_first[first] = True
    forgotten_us = (year.made_us // DAY_US + 1 + HORIZON_DAYS) * DAY_US
    predicted = year.row < n
    in_time = predicted.copy()
    in_time[predicted] = year.time_us[predicted] < forgotten_us[year.row[predicted]]
    stands = np.zeros(n + n, np.int32)  # what was last said of each row
    fate: dict[str, int] = dict.fromkeys(("matched", "duplicate", "corrected", "orphan_waiting", "orphan_expired"), 0)
    for place, row in enumerate(year.row.tolist()):
        if not in_time[place]:
            expired = (year.time_us[place] // DAY_US + 1 + HORIZON_DAYS) * DAY_US <= watermark_us
            fate["orphan_expired" if expired else "orphan_waiting"] += 1
        elif is_first[place]:
            fate["matched"] += 1
        else:
            fate["duplicate" if stands[row] == year.deny[place] else "corrected"] += 1
        stands[row] = year.deny[place]
    labelled = np.zeros(n, np.bool_)
    labelled[year.row[in_time & predicted]] = True
    gone = ~labelled & (forgotten_us <= watermark_us)
    return fate | {
        "labelled": int(labelled.sum()),
        "expired_unlabelled": int(gone.sum()),
        "waiting": int((~labelled & ~gone).sum()),
    }


def cohorts(year: HalfYear, days: int) -> dict[int, tuple[int, float]]:
    """(labelled, accuracy) of every cohort of so many days, by its start."""
    n = len(year.made_us)
    truth = np.full(n, -1)
    forgotten_us = (year.made_us // DAY_US + 1 + HORIZON_DAYS) * DAY_US
    mine = year.row < n
    mine[mine] = year.time_us[mine] < forgotten_us[year.row[mine]]
    truth[year.row[mine]] = year.deny[mine]  # the last one stands
    start = window_starts(year.made_us, days * 86_400)
    right = truth == (year.score > 0.5)
    return {
        one: (int((truth[start == one] >= 0).sum()), float(right[(start == one) & (truth >= 0)].mean()))
        for one in np.unique(start[truth >= 0]).tolist()
    }


def main() -> int:
    """Live it and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a-day", type=int, default=200)
    options = parser.parse_args()
    hold_memory()
    year = drawn(np.random.default_rng(1), options.a_day)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        engine = lived(Path(folder), year)
        assert engine.sealed_us is not None
        found, wanted = summary(engine), fates(year, engine.sealed_us)
        had = {name: (found["ground_truth"] | found["predictions"])[name] for name in wanted}
        print(f"{len(year.made_us):,} predictions, {len(year.row):,} labels in {time.perf_counter() - began:.0f} s")
        for name, count in wanted.items():
            print(f"    {name:20} {had[name]:10,}, by NumPy {count:10,}{'' if had[name] == count else '   WRONG'}")
        wrong = sum(had[name] != count for name, count in wanted.items())
        wrong += found["ground_truth"]["offered"] != len(year.row)
        for days in (1, 7):
            wanted_cohorts = cohorts(year, days)
            off = [
                start for start, figures in had_cohorts(engine, days).items() if wanted_cohorts.get(start) != figures
            ]
            print(f"    cohorts of {days} d: {len(wanted_cohorts)}, {len(off)} of them off")
            wrong += len(off) + (len(had_cohorts(engine, days)) != len(wanted_cohorts))
        print(f"{engine.store.size_bytes() / 1e6:.0f} MB of file", end=", ")
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB of memory at most")
        engine.store.close()
    return int(wrong > 0)


def had_cohorts(engine: Engine, days: int) -> dict[int, tuple[int, float]]:
    """(labelled, accuracy) of the cohorts the service tells, by their start."""
    return {
        row.window_start_us: (row.samples, row.value)
        for row in performance_rows(engine)
        if (row.metric, row.basis) == ("accuracy", "cohort")
        and row.window_end_us - row.window_start_us == days * DAY_US
    }


if __name__ == "__main__":
    sys.exit(main())
