"""What answers foretell of the errors of a class: held to sums over rows, and to the laws of state."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stream_monitor.errors import StateError
from stream_monitor.judge.answers import AT_ONCE, LOOKED_AT, Answers, Rise
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.outcome import Joined

SECOND = 1_000_000
LATE_US = 60 * SECOND
NAMES = np.array(list("abc"), object)


def answered(p: Floats, truth: Ints) -> Joined:
    """Predictions of three classes with their truths."""
    nothing = np.full(len(p), np.nan)
    texts = pa.array([f'{{"a":{a},"b":{b},"c":{c}}}' for a, b, c in p.tolist()])
    said = pa.array(NAMES[p.argmax(axis=1)])
    return Joined(pa.array(NAMES[truth]), nothing, said, nothing, nothing, nothing, probabilities=texts)


def drawn(seed: int, n: int) -> tuple[Floats, Ints]:
    """Probabilities, and truths drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet((1.0, 1.0, 0.5), n)
    return p, (rng.random(n)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)


def after(joined: Joined, *, parts: int = 1, restarts: bool = False) -> Answers:
    """A prediction a second, the truth a minute later."""
    answers = Answers(("a", "b", "c"))
    for row in np.array_split(np.arange(len(joined)), parts):
        answers.add(joined.take(row), row * SECOND, row * SECOND + LATE_US)
        if restarts:
            answers = Answers.from_bytes(answers.to_bytes(), ("a", "b", "c"))
    return answers


def test_the_rate_that_is_foretold_is_a_ratio_of_sums() -> None:
    """Of rows 100 to 799: what gave c to a row that was taken for another, over what gave c to any."""
    p, truth = drawn(1, 1_000)
    found = after(answered(p, truth)).rise("c", None, since_us=100 * SECOND, until_us=799 * SECOND + LATE_US)
    q, missed, is_c = p[100:800, 2], p[100:800].argmax(axis=1) != 2, truth[100:800] == 2
    assert found is not None
    assert found.came == pytest.approx(missed[is_c].mean())
    assert found.foretold == pytest.approx((q * missed).sum() / q.sum(), rel=0.01)
    away = missed - found.foretold
    assert found.error == pytest.approx(np.sqrt((q * (1 - q) * away**2).sum()) / is_c.sum(), rel=0.02)


def test_truths_that_are_drawn_from_the_probabilities_are_within_chance_of_them() -> None:
    """In 200 draws the rate that came is off by a standard error in root mean square."""
    off = []
    for seed in range(200):
        found = after(answered(*drawn(seed, 600))).rise("b", None, since_us=0, until_us=10**12)
        assert found is not None
        off.append((found.came - found.foretold) / found.error)
    assert 0.85 < np.sqrt(np.mean(np.square(off))) < 1.15


def test_parts_and_restarts_change_nothing() -> None:
    """What an alarm looks at is the newest answers as of its time, whatever came in the same part after it."""
    joined = answered(*drawn(2, 5_000))
    assert LOOKED_AT + AT_ONCE < 5_000
    until_us = 4_200 * SECOND + LATE_US
    found = [after(joined, parts=n, restarts=again).rise("a", None, since_us=0, until_us=until_us)
             for n, again in ((5, False), (37, True))]  # fmt: skip
    assert found[0] == found[1] is not None


def test_the_first_answers_tell_what_probabilities_are_worth() -> None:
    """A model twice too sure of itself, of which no baseline knows: its first thousand answers do, as of their time."""
    p, truth = drawn(6, 2_000)
    too_sure = p**2 / (p**2).sum(axis=1, keepdims=True)
    answers, own = after(answered(too_sure, truth), parts=2), after(answered(p, truth), parts=2)
    until_us = 2_000 * SECOND + LATE_US
    found = answers.rise("c", None, since_us=1_000 * SECOND, until_us=until_us)
    true = own.rise("c", None, since_us=1_000 * SECOND, until_us=until_us)
    early = answers.rise("c", None, since_us=0, until_us=999 * SECOND + LATE_US)
    taken_at_their_word = (too_sure[:, 2] * (p.argmax(axis=1) != 2)).sum() / too_sure[:, 2].sum()
    assert found is not None
    assert true is not None
    assert early is not None
    assert found.foretold == pytest.approx(true.foretold, abs=0.04)
    assert early.foretold == pytest.approx(taken_at_their_word, abs=0.03)
    assert abs(taken_at_their_word - true.foretold) > 0.08


def test_without_probabilities_or_with_few_truths_nothing_is_said() -> None:
    """An eleventh of the answers without an object, or 19 truths of the class."""
    p, truth = drawn(3, 1_100)
    joined = answered(p, truth)
    assert joined.probabilities is not None
    texts = pa.array(
        [None if k < 120 else text for k, text in enumerate(joined.probabilities.to_pylist())], pa.string()
    )
    partly = Joined(joined.truth_label, joined.truth_number, joined.label, joined.score, joined.value,
                    joined.truth_probability, probabilities=texts)  # fmt: skip
    assert after(partly, parts=2).rise("a", None, since_us=0, until_us=10**12) is None
    twentieth = int(np.flatnonzero(truth == 2)[19])
    for last, is_said in ((twentieth - 1, False), (twentieth, True)):
        found = after(joined, parts=2).rise("c", None, since_us=0, until_us=last * SECOND + LATE_US)
        assert (found is not None) == is_said


def test_answers_of_other_classes_are_forgotten_and_damage_is_said() -> None:
    """Another reference has other classes; bytes that are no state raise."""
    state = after(answered(*drawn(4, 100))).to_bytes()
    assert len(Answers.from_bytes(state, ("a", "b", "c")).truth) == 100
    assert len(Answers.from_bytes(state, ("a", "b")).truth) == 0
    with pytest.raises(StateError):
        Answers.from_bytes(b"nonsense", ("a",))


@pytest.mark.parametrize(
    ("came", "foretold", "error", "is_foretold"),
    [
        (0.30, 0.30, 0.01, True),
        (0.30, 0.27, 0.01, True),
        (0.30, 0.26, 0.01, False),  # four standard errors beyond
        (0.30, 0.19, 0.04, True),  # half of what is beyond chance: 0.3 - 0.1 - 2 * 0.04
        (0.30, 0.15, 0.06, True),
        (0.30, 0.13, 0.057, False),
        (0.12, 0.09, 0.05, False),  # foretold to fall
        (-0.30, -0.28, 0.01, True),  # a lean to the other side
        (-0.30, 0.10, 0.2, False),
    ],
)
def test_half_of_a_rise_must_be_foretold_and_the_rest_be_chance(
    came: float, foretold: float, error: float, is_foretold: bool
) -> None:
    """Above 0.1, or below it."""
    assert Rise(came, foretold, error).is_foretold(0.1) == is_foretold
