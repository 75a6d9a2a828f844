"""Labels that are alike: the variance of their sums, and a watch over errors that is not misled by them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from test_concept import binary, feed

from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.clustering import STRETCH, Clustering
from stream_monitor.judge.concept import Concept
from stream_monitor.judge.relation import Relation
from stream_monitor.records import Floats
from stream_monitor.summarize.outcome import OutcomeProfile, Task


def test_independent_labels_are_taken_at_their_word() -> None:
    """Errors of one in ten and heavy tails alike: in 40 streams nothing is made of chance."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for values in (rng.random(30 * STRETCH) < 0.1, rng.standard_t(3, 30 * STRETCH)):
            found = Clustering()
            found.add(values.astype(np.float64))
            assert found.factor() == 1.0


@pytest.mark.parametrize("run", [4, 20])
def test_runs_of_alike_labels_inflate_sums_by_their_length(run: int) -> None:
    """And a little more, to be on the safe side."""
    found = Clustering()
    found.add(np.repeat(np.random.default_rng(run).normal(size=60 * STRETCH // run), run))
    assert run * 0.9 < found.factor() < run * 1.5


def test_a_lasting_change_is_not_taken_for_likeness() -> None:
    """The level moves once, whatever its size."""
    rng, found = np.random.default_rng(1), Clustering()
    found.add(np.concatenate([rng.normal(0, 1, 20 * STRETCH + 300), rng.normal(2, 1, 20 * STRETCH)]))
    assert found.factor() < 1.2


def test_what_is_stored_goes_on() -> None:
    """Stretch by stretch through a state file is what all at once is; the past fades."""
    values = np.repeat(np.random.default_rng(3).normal(size=40 * STRETCH), 5)
    once, often = Clustering(), Clustering()
    once.add(values)
    for start in range(0, len(values), STRETCH):
        often.add(values[start : start + STRETCH])
        often = Clustering.from_json(often.to_json())
    assert often.to_json() == once.to_json()
    once.add(np.random.default_rng(4).normal(size=1_000 * STRETCH))
    assert once.factor() < 1.2


def test_customers_whose_errors_come_together_do_not_ring() -> None:
    """Twenty labels in a row share a customer: some forty alarms in 60,000 without regard to that, two at most with it."""

    def errors(rng: np.random.Generator, n: int) -> Floats:
        rate = special.expit(-2.4 + rng.normal(0, 1, n // 20 + 1))[np.arange(n) // 20]
        return np.asarray(rng.random(n) < rate, np.float64)

    rng = np.random.default_rng(2)
    reference = OutcomeProfile(Task.BINARY, "yes")
    reference.add(binary(np.full(20_000, 0.9), 1 - errors(rng, 20_000).astype(np.int64)))
    relation = Relation.of(reference)
    assert relation is not None
    concept = Concept(relation, Budget.parse("1 per 100000 events"), 0.2, 0.1)
    turns = feed(concept, binary(np.full(60_000, 0.9), 1 - errors(rng, 60_000).astype(np.int64)))
    assert sum(not turn.is_calm and not turn.is_again for turn in turns) <= 2
