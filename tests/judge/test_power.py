"""What a budget buys: the closed form against charts that are run, and the laws it obeys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import special

from stream_monitor.judge import hazard, power
from stream_monitor.judge.charts import Charts, Ranks
from stream_monitor.judge.power import CHANGES, Change, Charted
from stream_monitor.records import Floats
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.profile import Subject
from stream_monitor.summarize.protocol import ABOVE, BELOW, BINS, MAIN, MISSING
from stream_monitor.summarize.rows import SubjectKey

BUDGET = 100_000
COLUMNS = 100
ROWS = 10_000
WARM, CHUNK = 8_192 + 2_048, 2_048
LARGEST = 0.5
NUMBER, CATEGORY = "number", "category"
BY_NAME = {change.name: change for change in CHANGES}


def subject(kind: str, values: Floats | None = None) -> Subject:
    """A number, of normal values or of these, or a category of three."""
    if kind == CATEGORY:
        return Subject(SubjectKey("feature", kind), "categorical", Categories(("web", "app", "shop")))
    drawn = np.random.default_rng(3).normal(size=ROWS) if values is None else values
    return Subject(SubjectKey("feature", kind), "numeric", NumericBins.learn(drawn))


def charted(
    kind: str = NUMBER,
    *,
    columns: int = 1,
    rows: int = ROWS,
    missing: float = 0.0,
    every: float = BUDGET,
    values: Floats | None = None,
    inflation: float = 1.0,
) -> tuple[Charted, float]:
    """Charts of so many equal subjects, each with a budget of its own; and their nominal rate."""  # fmt: skip
    bad = np.full(columns, round(rows * missing))
    of_kind = subject(kind, values)
    bins = MAIN if isinstance(of_kind.bins, Categories) else of_kind.bins.bins
    mass = {f: np.array([LARGEST, 0.3, 0.2]) for f in range(columns)} if kind == CATEGORY else {}
    left = {f: np.array([0.0, LARGEST, 0.8]) for f in mass}
    names = tuple(map(str, range(columns)))
    ranks = Ranks(names, np.full(columns, bins), left, mass, rows - bad, rows, bad)
    nominal = hazard.nominal_rate(every, 1)
    charts = Charts(ranks, hazard=nominal)
    assert charts.inflation is not None
    assert charts.freedom is not None
    charts = Charts(ranks, charts.inflation * inflation, charts.freedom, nominal)
    assert charts.inflation is not None
    assert charts.freedom is not None
    subjects = (of_kind,) * columns
    return Charted(ranks, charts.tables, charts.limits, charts.inflation, charts.freedom, subjects), nominal


def simulated(of: Charted, nominal: float, change: Change) -> float:
    """Median events from the change to the alarm, over the columns that were calm before it."""
    rng = np.random.default_rng(20261121)
    charts = Charts(of.ranks, hazard=nominal)
    old, new = (power.changed(of.ranks, of.subjects, c)[0] for c in (None, change))
    for _ in range(0, WARM, CHUNK):
        code = drawn(old, rng, len(of.ranks))
        charts.update(code, code, np.zeros(CHUNK, np.int64))
    before = {unit.subject for unit in charts.raised()}
    first: dict[int, int] = {}
    for start in range(0, power.MOST_EVENTS, CHUNK):
        code = drawn(new, rng, len(of.ranks))
        for found in charts.update(code, code, np.zeros(CHUNK, np.int64)):
            if not found.is_calm:
                first.setdefault(found.unit.subject, start + found.at + 1)
        if len(before | first.keys()) == len(of.ranks):
            break
    assert len(before) < COLUMNS / 10
    return float(np.median([first.get(f, np.inf) for f in range(len(of.ranks)) if f not in before]))


def drawn(share: Floats, rng: np.random.Generator, columns: int) -> np.ndarray:
    """Codes of one chunk."""
    below = np.cumsum(share) / share.sum()
    return np.searchsorted(below, rng.random((CHUNK, columns)), "right").astype(np.uint16)


@pytest.mark.parametrize(
    ("kind", "missing", "name"),
    [
        *((NUMBER, 0.0, f"shift_{size:g}") for size in power.SHIFTS),
        (NUMBER, 0.0, "spread_2"),
        (CATEGORY, 0.0, "largest_share_minus_0.1"),
        (CATEGORY, 0.0, "largest_share_plus_0.1"),
        (NUMBER, 0.0, "missing_plus_0.1"),
        (NUMBER, 0.05, "missing_plus_0.1"),
        (CATEGORY, 0.01, "missing_plus_0.1"),
    ],
)
def test_the_median_of_charts_that_are_run(kind: str, missing: float, name: str) -> None:
    """Within 25 % for each kind of change."""
    of, nominal = charted(kind, columns=COLUMNS, missing=missing)
    told = power.events_to_find(of, [BY_NAME[name]])[0, 0]
    assert told == pytest.approx(simulated(of, nominal, BY_NAME[name]), rel=0.25)


def delays(of: Charted, changes: Sequence[Change] = CHANGES) -> dict[str, float]:
    """Of the first subject, by the change's name."""
    return dict(zip((c.name for c in changes), power.events_to_find(of, changes)[:, 0].tolist(), strict=True))


def test_names_are_those_of_the_api() -> None:
    """Users script against them."""
    assert list(BY_NAME) == [
        "shift_0.1", "shift_0.25", "shift_0.5", "shift_1", "shift_2", "spread_2", "largest_share_minus_0.1",
        "largest_share_plus_0.1", "missing_plus_0.1",
    ]  # fmt: skip


def test_a_larger_change_and_a_larger_budget_are_quicker() -> None:
    """More false alarms buy delay, never lose it."""
    few, many = delays(charted(every=1e7)[0]), delays(charted(every=1e5)[0])
    shifts = [many[f"shift_{size:g}"] for size in power.SHIFTS]
    assert shifts == sorted(shifts, reverse=True)
    assert all(many[name] <= few[name] for name in ("shift_0.1", "shift_1", "spread_2", "missing_plus_0.1"))


def test_what_cannot_be_is_nan() -> None:
    """A category has no shift, a number no largest share; more than all rows cannot be missing."""
    number, category = delays(charted(missing=0.95)[0]), delays(charted(CATEGORY)[0])
    assert np.isnan([number["largest_share_plus_0.1"], number["missing_plus_0.1"], category["shift_1"]]).all()
    assert np.isfinite([number["shift_1"], category["largest_share_plus_0.1"]]).all()


def test_a_subject_that_is_not_judged_has_no_delay() -> None:
    """Fewer than 200 readable baseline rows."""
    assert np.isnan(power.events_to_find(charted(rows=199)[0])).all()


def test_a_change_smaller_than_a_short_baseline_can_tell_is_never_found() -> None:
    """The baseline's own error is larger than a tenth of a standard deviation."""
    assert np.isinf(delays(charted(rows=400, every=1e7)[0])["shift_0.1"])


def test_dependence_costs_delay() -> None:
    """Ten times the variance, some ten times the events; nothing where a few are enough."""
    plain, inflated = delays(charted()[0]), delays(charted(inflation=10.0)[0])
    assert 4 < inflated["shift_0.5"] / plain["shift_0.5"] < 15


@pytest.mark.parametrize("kind", [NUMBER, CATEGORY])
@pytest.mark.parametrize("change", [None, *CHANGES], ids=lambda c: "before" if c is None else c.name)
def test_changed_shares_add_up(kind: str, change: Change | None) -> None:
    """Each distribution sums to one; before a change every bin in use has its even share."""
    share = power.changed(*((of := charted(kind, missing=0.02)[0]).ranks, of.subjects), change)[0]
    if np.isnan(share).all():
        return
    assert share.sum() == pytest.approx(1)
    assert share.min() >= 0
    if change is None:
        assert share[1 : MAIN - 1] == pytest.approx(0.98 / MAIN)
        assert share[MISSING] == pytest.approx(0.02)


def test_a_shift_is_one_of_normal_scores() -> None:
    """The share above the old median is Phi(z), whatever the values."""
    of = charted(values=np.exp(np.random.default_rng(5).normal(size=ROWS)))[0]
    share = power.changed(of.ranks, of.subjects, Change("shift", 1.0))[0]
    assert share[128:MAIN].sum() + share[ABOVE] == pytest.approx(special.ndtr(1.0), abs=1e-6)


def test_ties_stay_ties() -> None:
    """A yes or no that shifts is another share of yes: nothing lies beyond it, and each answer stays even."""
    values = np.repeat([0.0, 1.0], [6_000, 4_000])
    of = charted(values=values)[0]
    share = power.changed(of.ranks, of.subjects, Change("shift", 0.5))[0]
    assert share[[BELOW, ABOVE]].sum() == 0
    yes = 1 - special.ndtr(special.ndtri(0.6) - 0.5)
    assert share[154:MAIN].sum() == pytest.approx(yes, abs=0.003)
    assert np.ptp(share[160:MAIN]) < 1e-12


def test_effects_are_those_of_the_second_gate() -> None:
    """A shift is itself; shares are Cohen's h; what cannot be has none."""
    of = charted(CATEGORY)[0]
    effect = dict(zip(BY_NAME, power.effects(of.ranks, of.subjects)[:, 0].tolist(), strict=True))
    h = 2 * np.arcsin(np.sqrt(0.6)) - 2 * np.arcsin(np.sqrt(0.5))
    assert effect["largest_share_plus_0.1"] == pytest.approx(h)
    assert effect["missing_plus_0.1"] == pytest.approx(2 * np.arcsin(np.sqrt(0.1)))
    assert np.isnan(effect["shift_1"])
    number = charted()[0]
    assert power.effects(number.ranks, number.subjects, [Change("shift", 0.25)])[0, 0] == 0.25


def test_normal_limits_grow_with_the_window_over_a_short_baseline() -> None:
    """Over an endless baseline they fall, since long windows are looked at less often; else its error is added."""
    low, high = power.normal_limits(charted(rows=1_000)[0].limits)
    wide, wider = power.normal_limits(charted(rows=10**9)[0].limits)
    assert high[0] > 2 * low[0]
    assert 3 < wider[0] < wide[0] < 6


def test_every_code_has_a_place() -> None:
    """Distributions have the layout of the counts."""
    of = charted()[0]
    assert power.changed(of.ranks, of.subjects, None).shape == (1, BINS)
