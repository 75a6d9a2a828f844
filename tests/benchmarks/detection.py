"""What the calibrated detector promises and how soon it speaks: false alarms, delays, dependence, many features, cost.

    .venv/bin/python tests/benchmarks/detection.py [calibration|delays|dependence|season|features|cost ...]

Columns of values are coded on bins learnt from a baseline and go through the charts the service uses; decoding and
windows, which have no part in when an alarm is raised, are left out. Each column is a stream of its own. Seeded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_monitor.judge import hazard
from stream_monitor.judge.baseline import Baseline, Reading, build
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.charts import Charts, Found, Ranks, Unit
from stream_monitor.judge.watch import Watch
from stream_monitor.records import Kind
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.protocol import MISSING
from stream_monitor.summarize.rows import Rows, SubjectKey, Texts

Values = NDArray[np.float64]  # numbers (n, columns), NaN is missing; or category numbers
Draw = Callable[[np.random.Generator, tuple[int, ...]], Values]
CHUNK = 4_096
SEED = 7


def _missing(values: Values, rng: np.random.Generator) -> Values:
    return np.where(rng.random(values.shape) < 0.2, np.nan, values)


DATA: Mapping[str, Draw] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "log-normal": lambda rng, size: rng.lognormal(0, 1, size),
    "t, 3 degrees": lambda rng, size: rng.standard_t(3, size),
    "tied (0 to 9)": lambda rng, size: rng.binomial(9, 0.4, size).astype(float),
    "Bernoulli 0.3": lambda rng, size: (rng.random(size) < 0.3).astype(float),
    "20 % missing": lambda rng, size: _missing(rng.standard_normal(size), rng),
    "30 categories": lambda rng, size: rng.choice(30, size, p=(s := 1 / np.arange(1, 31)) / s.sum()).astype(float),
}
CATEGORICAL = frozenset({"30 categories", "Bernoulli 0.3"})


def rows_of(values: Values, rng: np.random.Generator, *, categorical: bool) -> Rows:
    """One subject's values as baseline rows in order."""
    n = len(values)
    ids = rng.integers(0, 2**63, (2, n), dtype=np.uint64)
    missing = np.isnan(values)
    kind = np.where(missing, Kind.MISSING, Kind.STRING if categorical else Kind.NUMBER).astype(np.uint8)
    texts: dict[int, Texts] = {}
    if categorical:
        names = pa.array([str(k) for k in range(31)])
        texts = {0: Texts(np.arange(n, dtype=np.int32), names.take(pa.array(values.astype(np.int64))))}
    return Rows(
        time_us=np.arange(n),
        id_hi=ids[0],
        id_lo=ids[1],
        segment=np.zeros(n, np.int32),
        subjects=(SubjectKey("feature", "x"),),
        kind=kind[:, None],
        number=np.where(missing | categorical, np.nan, values)[:, None],
        texts=texts,
    )


@dataclass
class Bench:
    """A baseline of one subject, and streams of it judged side by side."""

    baseline: Baseline
    rng: np.random.Generator

    @classmethod
    def of(cls, values: Values, rng: np.random.Generator, *, categorical: bool = False) -> Bench:
        rows = rows_of(values, rng, categorical=categorical)
        return cls(
            build(rows, model="m", version="1", reading=Reading(), provisional=False, created_us=0, source=""), rng
        )

    def charts(self, columns: int, nominal: float) -> Charts:
        """So many columns, each judged at a nominal rate."""
        one = Ranks.of(self.baseline.profile)
        left = dict.fromkeys(range(columns), one.left[0]) if one.left else {}
        mass = dict.fromkeys(range(columns), one.mass[0]) if one.mass else {}
        ranks = Ranks(tuple(f"{one.seeds[0]} {f}" for f in range(columns)), np.repeat(one.bins, columns), left, mass,
                      np.repeat(one.readable, columns), one.rows, np.repeat(one.bad, columns))  # fmt: skip
        dependence = self.baseline.dependence
        return Charts(ranks, np.repeat(dependence.factors(1), columns, axis=2),
                      np.repeat(dependence.freedoms(1), columns, axis=1), nominal)  # fmt: skip

    def feed(self, charts: Charts, values: Values) -> list[Found]:
        """Code values (n, columns) and judge them."""
        bins = self.baseline.schema.subjects[0].bins
        ids = self.rng.integers(0, 2**63, (2, len(values)), dtype=np.uint64)
        code = np.empty(values.shape, np.uint16)
        for f in range(values.shape[1]):
            if isinstance(bins, NumericBins):
                kind = np.where(np.isnan(values[:, f]), Kind.MISSING, Kind.NUMBER).astype(np.uint8)
                code[:, f] = bins.encode(kind, values[:, f], id_hi=ids[0], id_lo=ids[1], seed=f"{f}")
            else:
                place = {text: k for k, text in enumerate(bins.values)}
                table = np.array([place.get(str(k), 261) for k in range(31)], np.uint16)
                code[:, f] = np.where(np.isnan(values[:, f]), MISSING, table[np.nan_to_num(values[:, f]).astype(int)])
        return charts.update(code, charts.ranks.encode(code, ids[0], ids[1]), np.arange(len(values)))


def false_alarms(
    bench: Bench, draw: Callable[[int], Values], budget: float, columns: int, rows: int
) -> tuple[float, int]:
    """(events between false incidents over the budget, incidents), the time with one open taken off.

    A column has one open while its values, or what is missing of them, are in alarm: what is raised in that time opens
    nothing, and the time counts once.
    """
    charts = bench.charts(columns, hazard.nominal_rate(budget, 1))
    incidents, busy = 0, 0
    held: list[set[Unit]] = [set() for _ in range(columns)]
    began = [0] * columns
    for start in range(0, rows, CHUNK):
        for found in bench.feed(charts, draw(CHUNK)):
            f, at = found.unit.subject, start + found.at
            if found.is_again:
                continue
            if found.is_calm:
                held[f].remove(found.unit)
                busy += 0 if held[f] else at - began[f]
                continue
            if not held[f]:
                incidents, began[f] = incidents + 1, at
            held[f].add(found.unit)
    busy += sum(rows - at for units, at in zip(held, began, strict=True) if units)
    return (columns * rows - busy) / max(incidents, 1) / budget, incidents


def _stream(draw: Draw, rng: np.random.Generator, rows: int) -> Values:
    return draw(rng, (rows, 40))


def calibration(scale: float) -> None:
    """Budgets that hold, whatever the data; and with a finite baseline."""
    rng = np.random.default_rng(SEED)
    print("events between false alarms over the budget (alarms seen), baseline of a million rows")
    for name, draw in DATA.items():
        bench = Bench.of(draw(rng, (1_000_000,)), rng, categorical=name in CATEGORICAL)
        cells = []
        for budget, rows in ((1_000, 20 * CHUNK), (10_000, 60 * CHUNK), (100_000, 300 * CHUNK)):
            stream = partial(_stream, draw, rng)
            ratio, alarms = false_alarms(bench, stream, budget, 40, int(rows * scale))
            cells.append(f"{budget}: {ratio:.2f} ({alarms})")
        print(f"  {name:15} {'   '.join(cells)}", flush=True)
    for rows in (10_000, 2_000):
        ratios = []
        for _ in range(int(100 * scale)):
            bench = Bench.of(rng.standard_normal(rows), rng)
            ratios.append(1 / false_alarms(bench, lambda n: rng.standard_normal((n, 20)), 10_000, 20, 40 * CHUNK)[0])
        print(f"  {rows} rows, budget 10,000: false rate over nominal: mean {np.mean(ratios):.2f}, "
              f"95th percentile of baselines {np.quantile(ratios, 0.95):.2f}", flush=True)  # fmt: skip


def delay(bench: Bench, draw: Callable[[int, int, int], Values], budget: float, *, columns: int, rows: int,
          quiet: int = 2_000) -> tuple[float, float]:  # fmt: skip
    """(median events until found, share found), `draw(n, columns, changed)`; columns in false alarm are left out."""
    charts = bench.charts(columns, hazard.nominal_rate(budget, 1))
    bench.feed(charts, draw(quiet, columns, 0))
    calm = set(range(columns)) - {unit.subject for unit in charts.raised()}
    first: dict[int, int] = {}
    for start in range(0, rows, CHUNK):
        for found in bench.feed(charts, draw(min(CHUNK, rows - start), columns, 1)):
            if not found.is_calm:
                first.setdefault(found.unit.subject, start + found.at + 1)
        if calm <= first.keys():
            break
    delays = [first.get(f, rows + 1) for f in calm]
    return float(np.median(delays)), float(np.mean([d <= rows for d in delays]))


CHANGES: Mapping[str, Callable[[Values, np.random.Generator], Values]] = {
    "shift 0.1 sd": lambda z, _: z + 0.1,
    "shift 0.25 sd": lambda z, _: z + 0.25,
    "shift 0.5 sd": lambda z, _: z + 0.5,
    "shift 1 sd": lambda z, _: z + 1,
    "shift 2 sd": lambda z, _: z + 2,
    "doubled spread": lambda z, _: 2 * z,
    "5 % at +4 sd": lambda z, rng: z + 4 * (rng.random(z.shape) < 0.05),
}


def delays(scale: float) -> None:
    """How soon changes of a normal feature are found at one false alarm in 100,000 events."""
    rng = np.random.default_rng(SEED)
    print("median events until found (share found within 20,000), budget 1 per 100,000 events")
    for m in (1_000_000, 10_000, 2_000):
        bench = Bench.of(rng.standard_normal(m), rng)
        for name, change in CHANGES.items():

            def draw(n: int, columns: int, changed: int, change: Callable[..., Values] = change) -> Values:
                z = rng.standard_normal((n, columns))
                return change(z, rng) if changed else z

            median, found = delay(bench, draw, 100_000, columns=int(400 * scale), rows=20_000)
            print(f"  m = {m:8} {name:15} {median:6.0f}  ({found:.0%})", flush=True)


def _ar(rng: np.random.Generator, rows: int, columns: int, start: Values | None = None, phi: float = 0.9) -> Values:
    z: Values = rng.standard_normal((rows, columns)) * np.sqrt(1 - phi**2)
    z[0] += phi * (rng.standard_normal(columns) if start is None else start)
    for i in range(1, rows):
        z[i] += phi * z[i - 1]
    return z


def dependence(scale: float) -> None:
    """AR(1) with 0.9: the budget, and a shift of a standard deviation of the marginal."""
    rng = np.random.default_rng(SEED)
    for m in (1_000_000, 100_000, 10_000):
        bench = Bench.of(_ar(rng, m, 1)[:, 0], rng)
        last: list[Values | None] = [None]

        def draw(n: int, last: list[Values | None] = last) -> Values:
            z = _ar(rng, n, 40, last[0])
            last[0] = z[-1]
            return z

        ratio, alarms = false_alarms(bench, draw, 100_000, 40, int(100 * CHUNK * scale))
        median, found = delay(bench, lambda n, c, changed: _ar(rng, n, c) + changed, 100_000, columns=100, rows=8_000)
        print(f"AR(1) 0.9, m = {m}: {10_000 / (ratio * 100_000):.2f} false alarms in 10,000 events ({alarms}); "
              f"shift of 1 sd found in {median:.0f} ({found:.0%})", flush=True)  # fmt: skip


def _rhythm(seconds: NDArray[np.floating[Any]], period: str) -> Values:
    """A sine over the day; in a week two flatter, lower days."""
    day = np.sin(2 * np.pi * seconds / 86_400)
    weekend = (seconds // 86_400) % 7 >= 5
    return np.asarray(np.where(weekend & (period == "weekly"), 0.4 * day - 0.5, day), np.float64)


def season(scale: float) -> None:
    """A rhythm of days or weeks plus noise of one deviation, with and without `seasonality`, one event every ten seconds."""
    rng = np.random.default_rng(SEED)
    for period, m in (("daily", 100_000), ("weekly", 300_000)):
        times = np.arange(m) * 10.0
        rows = rows_of(_rhythm(times, period) + rng.standard_normal(m), rng, categorical=False)
        baseline = build(replace(rows, time_us=(times * 1e6).astype(np.int64)), model="m", version="1",
                         reading=Reading(seasonality=period), provisional=False, created_us=0, source="")  # fmt: skip
        budget, ranks = Budget(1, events=1e5), Ranks.of(baseline.profile)
        for name, part in (
            ("none", (baseline.dependence, None)),
            (period, (baseline.season_dependence, baseline.season)),
        ):
            bins = baseline.schema.subjects[0].bins
            assert isinstance(bins, NumericBins)

            def feed(watch: Watch, first: int, count: int, shift: float, period: str = period,
                     bins: NumericBins = bins) -> list[Found]:  # fmt: skip
                at = (first + np.arange(count)) * 10.0
                values = _rhythm(at, period) + rng.standard_normal(count) + shift
                ids = rng.integers(0, 2**63, (2, count), dtype=np.uint64)
                kind = np.full(count, Kind.NUMBER, np.uint8)
                code = bins.encode(kind, values, id_hi=ids[0], id_lo=ids[1], seed="x")[:, None]
                return watch.update(code, ids[0], ids[1], (at * 1e6).astype(np.int64))

            watch, events = Watch(ranks, budget, 1.0, *part), int(600_000 * scale)
            false = sum(
                not f.is_calm and not f.is_again for k in range(0, events, CHUNK) for f in feed(watch, m + k, CHUNK, 0)
            )
            delays = []
            for _ in range(40):
                fresh, start = Watch(ranks, budget, 1.0, *part), int(rng.integers(0, 60_480))
                feed(fresh, start, 2_000, 0)
                shift = float(baseline.deviations[0])
                told = [f for f in feed(fresh, start + 2_000, 6_000, shift) if not f.is_calm]
                delays.append(told[0].at + 1 if told else 6_001)
            print(f"{period} rhythm, seasonality {name}: {false / events * 1e4:.2f} false alarms in 10,000 events; "
                  f"shift of 1 sd found in {np.median(delays):.0f} of 6,000", flush=True)  # fmt: skip


def features(scale: float) -> None:
    """200 features for a week at an event a second, one false alarm in 30 days; then three of them shift."""
    rng = np.random.default_rng(SEED)
    budget = 30 * 86_400
    bench = Bench.of(rng.standard_normal(1_000_000), rng)
    medians = {}
    for columns in (200, 3):
        false, found = 0, []
        for run in range(40):  # four of them for a week, the others for the delay alone
            charts = bench.charts(columns, hazard.nominal_rate(budget, columns))
            for _ in range(7 * 86_400 // CHUNK if columns == 200 and run < 4 * scale else 1):
                false += sum(
                    not (f.is_calm or f.is_again) for f in bench.feed(charts, rng.standard_normal((CHUNK, columns)))
                )
            shifted = rng.standard_normal((CHUNK, columns)) + (np.arange(columns) < 3)
            named = [f for f in bench.feed(charts, shifted) if not f.is_calm]
            first = {f.unit.subject: f.at + 1 for f in reversed(named)}
            found.append((float(np.median([first.get(f, CHUNK) for f in range(3)])), sorted(first)))
        medians[columns] = float(np.median([first for first, _ in found]))
        right = np.mean([names == [0, 1, 2] for _, names in found])
        print(f"{columns} features: {false} false alarms; each of the three found after {medians[columns]:.0f} events, "
              f"exactly the three named in {right:.0%} of {len(found)} runs", flush=True)  # fmt: skip
    print(f"  delay of 200 over that of 3: {medians[200] / medians[3]:.2f}")


def cost(scale: float) -> None:
    """CPU an event of 20 features."""
    rng = np.random.default_rng(SEED)
    bench = Bench.of(rng.standard_normal(100_000), rng)
    for chunk in (8_192, 1_024, 128):
        charts = bench.charts(20, 1e-9)
        code = rng.integers(0, 256, (chunk, 20)).astype(np.uint16)
        times = np.arange(chunk)
        charts.update(code, code, times)
        rounds = max(1, int(200_000 * scale) // chunk)
        began = time.process_time()
        for _ in range(rounds):
            charts.update(rng.permutation(code), code, times)
        print(
            f"20 features in chunks of {chunk}: {(time.process_time() - began) / rounds / chunk * 1e6:.2f} us an event"
        )


PARTS = {
    "calibration": calibration,
    "delays": delays,
    "dependence": dependence,
    "season": season,
    "features": features,
    "cost": cost,
}


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows and runs")
    arguments = parser.parse_args()
    for name in arguments.part or PARTS:
        PARTS[name](arguments.scale)


if __name__ == "__main__":
    main()
