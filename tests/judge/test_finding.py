"""What findings mean to people: kind, size, beginning and words, on streams whose change is known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import ndtr

from stream_monitor.judge.baseline import Baseline, Reading, build
from stream_monitor.judge.charts import BAD, LOCATION, SHAPE, SPREAD, Charts, Found, Ranks, Unit
from stream_monitor.judge.finding import FEWEST_BROKEN, Case, case_of, kind_of, onset_of
from stream_monitor.records import Floats, IncidentKind, Ints, Kind, LineKey
from stream_monitor.summarize.profile import BinCodes
from stream_monitor.summarize.protocol import ABOVE, BINS, INFINITE, MAIN, MISSING, WRONG_TYPE
from stream_monitor.summarize.rows import Rows, SubjectKey, Texts

LINE = LineKey("credit", "7")
SECOND = 1_000_000
K = IncidentKind
CHANNELS = ("web", "app", "shop")
AGE, CHANNEL, PREDICTION, LATENCY = range(4)


def rows_of(numbers: Floats, channel: Ints, seed: int) -> Rows:
    """An age, a channel, a predicted number and a latency, an event a second."""
    n, draw = len(numbers), np.random.default_rng(seed)
    kind = np.full((n, 4), Kind.NUMBER, np.uint8)
    number = np.insert(numbers, 1, np.nan, axis=1)
    kind[np.isnan(number)] = Kind.MISSING
    kind[np.isinf(number)] = Kind.INFINITE
    kind[:, CHANNEL] = Kind.STRING
    names = pa.array(CHANNELS).take(pa.array(channel))
    return Rows(
        time_us=np.arange(n, dtype=np.int64) * SECOND,
        id_hi=draw.integers(0, 2**63, n, dtype=np.uint64),
        id_lo=draw.integers(0, 2**63, n, dtype=np.uint64),
        segment=np.zeros(n, np.int32),
        subjects=(
            SubjectKey("feature", "age"),
            SubjectKey("feature", "channel"),
            SubjectKey("prediction", "prediction"),
            SubjectKey("latency", "latency_ms"),
        ),
        kind=kind,
        number=number,
        texts={CHANNEL: Texts(np.arange(n, dtype=np.int32), names)},
    )


class Stage:
    """A baseline (ages of 40 +- 10, 60 % web), and a stream as it is but for what is changed after `quiet` events."""

    quiet = 1_500

    def __init__(self, seed: int = 1, rows: int = 4_000) -> None:
        draw = np.random.default_rng(seed)
        self.draw = draw
        numbers = draw.normal(40, 10, (20_000, 3))
        self.baseline: Baseline = build(
            rows_of(numbers, draw.choice(3, 20_000, p=[0.6, 0.3, 0.1]), 2),
            model="credit",
            version="7",
            reading=Reading(),
            provisional=False,
            created_us=0,
            source="",
        )
        self.numbers = draw.normal(40, 10, (rows, 3))
        self.channel = draw.choice(3, rows, p=[0.6, 0.3, 0.1])
        self.after = slice(self.quiet, rows)

    def found(self) -> Found:
        """The one alarm of the stream."""
        stream = rows_of(self.numbers, self.channel, 3)
        ranks = Ranks.of(self.baseline.profile)
        code = self.baseline.schema.encode(stream).code
        charts = Charts(ranks, hazard=1e-9)
        found = charts.update(code, ranks.encode(code, stream.id_hi, stream.id_lo), stream.time_us)
        [alarm] = [f for f in found if not f.is_again]
        assert not alarm.is_calm
        return alarm

    def case(self, found: Found | None = None) -> Case:
        """As an incident takes it."""
        found = found or self.found()
        f, baseline = found.unit.subject, self.baseline
        return case_of(
            found,
            baseline.schema.subjects[f],
            baseline=baseline.profile.counts[f],
            representatives=baseline.representatives[f],
            deviation=float(baseline.deviations[f]),
            line=LINE,
        )

    def made(self, codes: BinCodes, *, scale: int, chart: str = BAD, subject: int = AGE) -> Found:
        """A finding with these last codes, an event a second."""
        times = np.arange(len(codes), dtype=np.int64) * SECOND
        unit = Unit(subject, chart == BAD)
        return Found(
            unit, int(times[-1]), len(codes) - 1, False, chart, scale, int(times[-scale]), 8.0, 4.0, codes, times
        )


@pytest.mark.parametrize(
    ("kind", "is_bad", "expected"),
    [
        ("feature", False, K.DATA_DRIFT),
        ("latency", False, K.DATA_DRIFT),
        ("prediction", False, K.PREDICTION_DRIFT),
        ("feature", True, K.DATA_QUALITY),
        ("prediction", True, K.DATA_QUALITY),
    ],
)
def test_kinds(kind: str, is_bad: bool, expected: IncidentKind) -> None:
    """What a subject is and whether it can be read decide."""
    assert kind_of(kind, is_bad=is_bad) is expected


def test_a_shift_of_a_number() -> None:
    """Two deviations up: located to a few events, sized in deviations, told by the median."""
    stage = Stage()
    stage.numbers[stage.after, 0] += 20
    found = stage.found()
    case = stage.case(found)
    evidence = case.evidence
    assert (case.kind, evidence.name, evidence.kind, found.chart) == (K.DATA_DRIFT, "age", "feature", LOCATION)
    assert abs(case.onset_us - stage.quiet * SECOND) <= 3 * SECOND
    assert evidence.effect == pytest.approx(2, abs=1)
    assert (evidence.statistic, evidence.value, evidence.threshold) == (LOCATION, found.value, found.threshold)
    assert evidence.value > evidence.threshold
    assert (evidence.samples, evidence.baseline_samples) == (found.scale, 20_000)
    before, after = (float(word) for word in evidence.detail.removeprefix("median ").split(" -> "))
    assert before == pytest.approx(40, abs=0.5)
    assert after > 50


def test_a_doubled_spread_of_the_prediction() -> None:
    """Prediction drift, found by the squares and told by the middle 80 %."""
    stage = Stage(2)
    stage.numbers[stage.after, 1] = 40 + 3 * (stage.numbers[stage.after, 1] - 40)
    found = stage.found()
    case = stage.case(found)
    assert (case.kind, case.evidence.name, found.chart) == (K.PREDICTION_DRIFT, "prediction", SPREAD)
    assert case.evidence.detail.startswith("middle 80 % ")
    assert abs(case.onset_us - stage.quiet * SECOND) <= 10 * SECOND


def test_a_share_of_a_category() -> None:
    """From 60 % web to 5 %: Cohen's h by hand, told by the share of the category that moved most, begun when it did."""
    stage = Stage(3)
    rows = len(stage.channel) - stage.quiet
    stage.channel[stage.after] = stage.draw.choice(3, rows, p=[0.05, 0.3, 0.65])
    found = stage.found()
    case = stage.case(found)
    assert (case.kind, case.evidence.name, found.unit) == (K.DATA_DRIFT, "channel", Unit(CHANNEL, False))
    share = np.bincount(found.codes[-found.scale :], minlength=3)[:3] / found.scale
    old = stage.baseline.profile.counts[CHANNEL, :3] / 20_000
    effect = np.abs(2 * np.arcsin(np.sqrt(share)) - 2 * np.arcsin(np.sqrt(old)))
    assert case.evidence.effect == pytest.approx(effect.max())
    most = int(np.argmax(effect))
    assert case.evidence.detail == f"share of {CHANNELS[most]} {_percent(old[most])} -> {_percent(share[most])}"
    assert abs(case.onset_us - stage.quiet * SECOND) <= 4 * SECOND


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def test_an_unseen_category() -> None:
    """Half of the events in a category the baseline never met."""
    stage = Stage(4)
    codes = np.zeros(64, np.uint16)
    codes[32::2] = BINS - 1
    case = stage.case(stage.made(codes, scale=32, chart=LOCATION, subject=CHANNEL))
    assert case.evidence.detail == "share of unseen categories 0 % -> 50 %"
    assert case.onset_us == 32 * SECOND


@pytest.mark.parametrize(
    ("code", "statistic", "words"),
    [
        (MISSING, "missing_ratio", "missing 0 % -> 25 %"),
        (WRONG_TYPE, "wrong_type_ratio", "of a wrong type 0 % -> 25 %"),
        (INFINITE, "infinite_ratio", "infinite 0 % -> 25 %"),
    ],
)
def test_bad_values(code: int, statistic: str, words: str) -> None:
    """The kind of bad value that rose most, its share, and Cohen's h of a quarter: 2 arcsin 1/2."""
    stage = Stage()
    codes = np.full(128, 100, np.uint16)
    codes[66::4] = code
    case = stage.case(stage.made(codes, scale=64))
    evidence = case.evidence
    assert (case.kind, evidence.statistic, evidence.value, evidence.detail) == (K.DATA_QUALITY, statistic, 0.25, words)
    assert evidence.effect == pytest.approx(np.pi / 3)
    # Half of the finding's value would have been its limit.
    assert evidence.threshold == pytest.approx(0.125)
    assert (evidence.samples, evidence.baseline_samples) == (64, 20_000)
    assert case.onset_us == 66 * SECOND


def test_bad_values_of_the_prediction_are_bad_quality() -> None:
    """Not prediction drift: its values have not changed."""
    stage = Stage()
    codes = np.full(64, 100, np.uint16)
    codes[40::3] = MISSING
    assert stage.case(stage.made(codes, scale=32, subject=PREDICTION)).kind is K.DATA_QUALITY


@pytest.mark.parametrize(
    ("scale", "bad", "code", "expected"),
    [
        (16, 8, MISSING, K.BROKEN_INPUT),
        (16, 7, MISSING, K.DATA_QUALITY),
        (16, 16, WRONG_TYPE, K.BROKEN_INPUT),
        (16, 16, INFINITE, K.DATA_QUALITY),
        (8, 8, MISSING, K.DATA_QUALITY),
    ],
)
def test_a_field_is_broken_by_half_of_sixteen_events(scale: int, bad: int, code: int, expected: IncidentKind) -> None:
    """Just above and just below; infinite values break nothing."""
    assert FEWEST_BROKEN == 16
    codes = np.full(2 * scale, 100, np.uint16)
    codes[-bad:] = code
    assert Stage().case(Stage().made(codes, scale=scale)).kind is expected


def test_a_shape_that_leaves_the_median_alone() -> None:
    """Two peaks for one: told by the middle, sized by the distance, which the eye would not see in the mean."""
    stage = Stage(5)
    rows = len(stage.numbers) - stage.quiet
    stage.numbers[stage.after, 0] = 40 + 10 * stage.draw.choice([-1, 1], rows) + stage.draw.normal(0, 1, rows)
    found = stage.found()
    case = stage.case(found)
    assert (found.chart, case.kind) == (SHAPE, K.DATA_DRIFT)
    assert case.evidence.statistic == SHAPE
    assert case.evidence.effect > 0.1
    assert found.start_us <= case.onset_us <= (stage.quiet + 12) * SECOND


def test_latency_is_a_subject_of_its_own_kind() -> None:
    """Its incident is data drift, its evidence says latency."""
    stage = Stage(6)
    stage.numbers[stage.after, 2] += 30
    case = stage.case()
    assert (case.kind, case.evidence.kind, case.evidence.name) == (K.DATA_DRIFT, "latency", "latency_ms")


@pytest.mark.parametrize("start", [40, 64, 80])
def test_the_onset_is_the_event(start: int) -> None:
    """Values that leave the baseline's range one after the other began with the first, wherever in the memory."""
    stage, draw = Stage(), np.random.default_rng(8)
    codes = draw.integers(0, MAIN, 128, dtype=np.uint16)
    codes[start:] = ABOVE
    found = stage.made(codes, scale=64, chart=LOCATION)
    first, likeliest, last = onset_of(found, stage.baseline.profile.counts[AGE], is_numeric=True)
    assert first <= likeliest == start * SECOND <= last


def test_the_onset_is_the_likeliest() -> None:
    """No other start has a larger sum of log-likelihood ratios, added up by brute force over named categories."""
    stage, draw = Stage(), np.random.default_rng(9)
    codes = np.concatenate([draw.choice(3, 64, p=[0.6, 0.3, 0.1]), draw.choice(3, 64, p=[0.2, 0.3, 0.5])])
    found = stage.made(codes.astype(np.uint16), scale=64, chart=LOCATION, subject=CHANNEL)
    # Half an event is added to each of 38 cells: 32 for categories, 6 for what is none.
    old = (stage.baseline.profile.counts[CHANNEL, :3] + 0.5) / (20_000 + 19)
    new = (np.bincount(codes[64:], minlength=3) + 0.5) / (64 + 19)
    sums = [float(np.log(new / old)[codes[start:]].sum()) for start in range(128)]
    onset = onset_of(found, stage.baseline.profile.counts[CHANNEL], is_numeric=False)[1] // SECOND
    assert sums[onset] == pytest.approx(max(sums))
    assert 50 <= onset <= 75


def test_of_windows_longer_than_the_memory_the_start_is_told() -> None:
    """2,048 events, of which 1,024 are remembered."""
    stage = Stage()
    codes = np.full(1_024, 100, np.uint16)
    times = np.arange(1_024, dtype=np.int64) * SECOND
    found = Found(Unit(AGE, False), 9 * SECOND, 3, False, LOCATION, 2_048, 77, 5.0, 4.0, codes, times)
    assert onset_of(found, stage.baseline.profile.counts[AGE], is_numeric=True)[:2] == (77, 77)
    assert stage.case(found).evidence.samples == 1_024


def test_the_interval_of_an_onset_holds_it() -> None:
    """A shift of one deviation in a window of 64: the true onset lies within in 17 of 20 runs, and not by width alone."""
    draw, baseline = np.random.default_rng(12), np.zeros(BINS, np.int64)
    baseline[:MAIN] = 1_000
    held, widths = [], []
    for _ in range(300):
        z = draw.standard_normal(128)
        z[72:] += 1
        code = np.minimum(ndtr(z) * MAIN, MAIN - 1).astype(np.uint16)
        found = Found(Unit(0, False), 127, 127, chart="location", scale=64, codes=code, times=np.arange(128))
        first, likeliest, last = onset_of(found, baseline, is_numeric=True)
        assert first <= likeliest <= last
        held.append(first <= 72 <= last)
        widths.append(last - first)
    assert np.mean(held) >= 0.85
    assert np.median(widths) <= 30
