"""Calibration maps: monotone, as scikit-learn pools, as uncertain as their labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.isotonic import IsotonicRegression

from stream_monitor.judge.calibration import Beta, Calibration, Isotonic, calibrate, pooled
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.scores import middle_of_bin, probability_bin

Labelled = tuple[Ints, Floats, Floats]


def labelled(n: int, seed: int, *, slope: float = 1.0, offset: float = 0.0) -> Labelled:
    """Bins of n scores, their true rows and their rows; true with expit(offset + slope logit(score))."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-0.5, 1.5, n)
    truth = rng.random(n) < special.expit(offset + slope * logit)
    key, at = np.unique(probability_bin(special.expit(logit)), return_inverse=True)
    return key, np.bincount(at, truth, len(key)).astype(np.float64), np.bincount(at).astype(np.float64)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_those_of_scikit_learn(seed: int) -> None:
    """The rates of the pooled blocks are its isotonic regression, weighted by rows."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 9, 300).astype(np.float64)
    true = np.minimum(rng.binomial(8, np.linspace(0.1, 0.8, 300)), rows).astype(np.float64)
    first = pooled(true, rows)
    rate = np.add.reduceat(true, first) / np.add.reduceat(rows, first)
    mine = np.repeat(rate, np.diff([*first.tolist(), len(rows)]))
    theirs = IsotonicRegression().fit_transform(np.arange(300), true / rows, sample_weight=rows)
    assert mine == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("n", [30, 300, 3_000, 30_000])
def test_laws_of_a_map(n: int) -> None:
    """It rises from above 0 to below 1, and is sure of nothing that it is not asked."""
    found = calibrate(*labelled(n, 4))
    everywhere = probability_bin(np.linspace(0, 1, 2_001))
    read = found.read(everywhere)
    assert (np.diff(read) >= 0).all()
    assert 0 < read.min() < read.max() < 1
    assert found.variance(everywhere, np.zeros(2_001)) == 0
    assert found.variance(everywhere, np.ones(2_001)) > 0
    assert found.rows == n


@pytest.mark.parametrize("n", [500, 20_000])
def test_a_model_that_is_too_sure_is_corrected(n: int) -> None:
    """Scores whose logits are twice the truth's: the map is near the truth where the scores are."""
    found = calibrate(*labelled(n, 5, slope=0.5, offset=0.3))
    p = np.array([0.05, 0.2, 0.5, 0.8])
    want = special.expit(0.3 + 0.5 * special.logit(p))
    assert np.abs(found.read(probability_bin(p)) - want).max() < (0.1 if n == 500 else 0.03)


@pytest.mark.parametrize(
    ("n", "offset", "want"), [(999, 0.0, Beta), (5_000, 0.0, Isotonic), (5_000, -6.0, Beta), (5_000, 6.0, Beta)]
)
def test_which_map_is_fitted(n: int, offset: float, want: type) -> None:
    """Isotonic from 1,000 rows with 100 of either outcome."""
    assert isinstance(calibrate(*labelled(n, 6, offset=offset)), want)


def test_without_rows_the_model_is_believed() -> None:
    """The prior is the identity."""
    nothing = np.zeros(0)
    found = Beta.fit(np.zeros(0, np.int64), nothing, nothing)
    key = probability_bin(np.array([0.001, 0.3, 0.9]))
    assert found.read(key) == pytest.approx(middle_of_bin(key))


def test_scores_that_are_all_one_are_a_rate() -> None:
    """One block: its share of true rows, one row more of the model's own mind."""
    found = calibrate(np.array([1]), np.array([600.0]), np.array([2_000.0]))
    assert found.read(probability_bin(np.array([0.1, 0.9]))) == pytest.approx([600.5 / 2_001] * 2)
    rate = 600.5 / 2_001
    assert found.variance(np.array([1]), np.array([2.0])) == pytest.approx(4 * rate * (1 - rate) / 2_001)


@pytest.mark.parametrize(("n", "draws"), [(400, 200), (20_000, 60)])
def test_the_variance_is_that_of_maps_fitted_anew(n: int, draws: int) -> None:
    """The mean of the map over a fixed crowd varies between sets of labels as much as it says: within a factor 1.6.

    With few rows the prior holds the maps together, and the variance said is the wider.
    """
    rng = np.random.default_rng(7)
    crowd = probability_bin(special.expit(rng.normal(0.5, 1.0, 1_000)))
    slope = np.full(1_000, 1 / 1_000)
    maps: list[Calibration] = [calibrate(*labelled(n, 100 + k)) for k in range(draws)]
    spread = np.var([float((found.read(crowd) * slope).sum()) for found in maps])
    said = np.mean([found.variance(crowd, slope) for found in maps])
    assert 0.625 < said / spread < 1.6 if n > 1_000 else 0.625 < said / spread < 3
