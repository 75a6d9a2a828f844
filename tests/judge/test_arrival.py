"""The arrival curve, its laws and its censoring, and the sums that find that labels are late."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_monitor.judge.arrival import (
    AGES,
    FALL,
    LEAST_CELLS,
    Curve,
    Excursion,
    fall_likelihood,
    quantile,
    usual_for_test,
)

CELLS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 10_000), st.floats(0, 1)).map(lambda c: (c[0], c[1], int(c[1] * c[2]))),
    max_size=30,
)


def curve_of(cells: list[tuple[int, int, int]]) -> Curve:
    """The curve of cells (step, made, labelled)."""
    curve = Curve()
    for k, made, labelled in cells:
        curve.add(k, made=made, labelled=labelled)
    return curve


@given(CELLS, st.randoms(use_true_random=False))
def test_order_is_nothing_to_the_curve(cells: list[tuple[int, int, int]], random: object) -> None:
    """The same cells in any order, and in two parts, give the same curve; merging changes neither part."""
    shuffled = list(cells)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    whole = curve_of(cells)
    one, other = curve_of(shuffled[::2]), curve_of(shuffled[1::2])
    before = one.counts.copy()
    assert (one.merge(other).counts == whole.counts).all()
    assert (one.counts == before).all()
    assert (whole.merge(Curve()).counts == whole.counts).all()


def test_the_dispersion_of_binomial_cells_is_near_one_and_of_moody_ones_is_not() -> None:
    """Pearson's chi-square by hand; and a day that has all its labels beside one that has none is told as such."""
    random = np.random.default_rng(1)
    even = curve_of([(2, 500, int(x)) for x in random.binomial(500, 0.8, 400)])
    assert 1 <= even.dispersion(2) < 1.3
    cells = [(2, 100, 90), (2, 100, 70), (2, 100, 80), (2, 100, 80)]
    by_hand = sum((x - 80) ** 2 / (100 * 0.8 * 0.2) for _, _, x in cells)
    lower_tenth = 0.5843743741551835  # of chi-square with three degrees of freedom
    assert math.isclose(curve_of(cells).dispersion(2), by_hand / lower_tenth, rel_tol=1e-6)
    assert curve_of([(2, 1000, 1000 * (k % 2)) for k in range(100)]).dispersion(2) > 900


def rising(shares: dict[int, float], *, made: int = 1000, cells: int = LEAST_CELLS) -> Curve:
    """A curve of even cells, by age."""
    return curve_of(
        [(AGES.index(age), made, round(made * share)) for age, share in shares.items() for _ in range(cells)]
    )


@pytest.mark.parametrize(
    ("shares", "horizon", "expected"),
    [
        pytest.param({}, math.inf, None, id="nothing is known"),
        pytest.param({1: 0.0, 2: 0.0}, math.inf, None, id="no label came yet"),
        pytest.param({1: 0.5, 2: 0.92}, math.inf, None, id="still rising"),
        pytest.param({1: 0.5, 2: 0.92, 4: 0.93}, math.inf, 2, id="nearly all came, and twice as long brought no more"),
        pytest.param(
            {64: 0.6, 128: 0.6, 256: 0.6}, math.inf, None, id="a third is out: four times as long is not enough"
        ),
        pytest.param({64: 0.6, 128: 0.6, 512: 0.6}, math.inf, 64, id="eight times is"),
        pytest.param({64: 0.1, 512: 0.1}, math.inf, None, id="most are out: a second wave may come"),
        pytest.param({64: 0.1, 4096: 0.1}, math.inf, 64, id="none within 64 times as long"),
        pytest.param({64: 0.1, 512: 0.1}, 600.0, 64, id="none within the label horizon"),
        pytest.param({64: 0.1, 512: 0.1, 1024: 0.9, 2048: 0.9}, math.inf, 1024, id="the second wave came"),
    ],
)
def test_when_labels_are_through(shares: dict[int, float], horizon: float, expected: int | None) -> None:
    """The age is told once enough time beyond it has brought nothing more."""
    step = rising(shares).through(horizon_seconds=horizon)
    assert (None if step is None else AGES[step]) == expected


def test_one_cell_is_not_known() -> None:
    """Two cells are shown, eight are judged by."""
    assert not rising({4: 0.9}, cells=1).knows(2, cells=2)
    assert rising({4: 0.9}, cells=2).knows(2, cells=2)
    assert not rising({4: 0.9}, cells=LEAST_CELLS - 1).knows(2)
    assert rising({4: 0.9}).knows(2)


def test_the_sum_is_the_likelihood_ratio() -> None:
    """Against the binomial densities themselves."""
    n, x, usual = 50, 31, 0.8

    def density(share: float) -> float:
        return math.comb(n, x) * share**x * (1 - share) ** (n - x)

    assert math.isclose(fall_likelihood(n, x, usual), math.log(density(FALL * usual) / density(usual)))


def test_no_change_passes_a_limit_as_rarely_as_it_says() -> None:
    """At most one in e^h cells on average (Lorden): 200,000 cells at h = 7 are 182 at most, and far fewer are seen."""
    random = np.random.default_rng(5)
    curve = rising({1: 0.7}, made=40, cells=4000)
    usual, passed, excursion = usual_for_test(curve, 0), 0, Excursion()
    for start, labelled in enumerate(random.binomial(40, 0.7, 200_000).tolist()):
        excursion.add(start, made=40, labelled=labelled, usual=usual, dispersion=1.0)
        if excursion.passes(7.0):
            passed, excursion = passed + 1, Excursion()
    assert passed <= 200_000 / math.exp(7.0)


def test_what_healed_twice_at_its_length_is_usual() -> None:
    """The third night without labels is no news, one three times as long is."""
    excursion = Excursion()
    for night in range(2):
        for start in range(10):
            excursion.add(start, made=100, labelled=0, usual=0.9, dispersion=10.0)
        assert excursion.passes(20.0), f"night {night}"
        excursion.is_alarmed = True
        excursion = excursion.over()
    for start in range(10):
        excursion.add(start, made=100, labelled=0, usual=0.9, dispersion=10.0)
    assert not excursion.passes(20.0)
    for start in range(10):
        excursion.add(start, made=100, labelled=0, usual=0.9, dispersion=10.0)
    assert excursion.passes(20.0)
    assert Excursion.from_json(excursion.to_json()) == excursion


def test_quantiles_of_a_histogram() -> None:
    """Within a bin on the logarithm; beyond all bounds the last; nothing of nothing."""
    assert math.isnan(quantile([0, 0, 0], (1.0, 10.0), 0.5))
    assert math.isclose(quantile([0, 10, 0], (1.0, 10.0), 0.5), math.sqrt(10))
    assert quantile([0, 0, 7], (1.0, 10.0), 0.5) == 10.0
    assert math.isclose(quantile([4, 0, 0], (1.0, 10.0), 1.0), 1.0)
