"""Errors that grow and relations that turn, found from late labels: the promise, the delay, and what it is called.

    .venv/bin/python tests/benchmarks/relations.py            all of it
    .venv/bin/python tests/benchmarks/relations.py delay clean

One false alarm in 100,000 labels is allowed: `5 per 100000 events`, of which labels get a fifth. Labels come two days
after their predictions. Everything goes through the watch that the service runs, fed as its outcomes feed it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from scipy import special

from stream_monitor.judge.answers import AT_ONCE, Answers, Rise
from stream_monitor.judge.calibrate import LABELS_SHARE, Budget
from stream_monitor.judge.calibration import Calibration, calibrate
from stream_monitor.judge.concept import Concept, Turn
from stream_monitor.judge.loss import LossEstimator, learn
from stream_monitor.judge.relation import Relation
from stream_monitor.outcomes import CLASSES_SHARE
from stream_monitor.records import Floats, IncidentKind, Kind
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task
from stream_monitor.summarize.profile import Schema
from stream_monitor.summarize.rows import PREDICTION, Rows, SubjectKey
from stream_monitor.summarize.scores import ScoreProfile, of_texts

BUDGET = Budget.parse("5 per 100000 events")
SECOND = 1_000_000
LABELS_A_DAY = 2_000
LATE_US = 2 * 86_400 * SECOND
CHUNK = 1_000
Draw = Callable[[np.random.Generator, int], Joined]


def labelled(score: Floats, truth: Floats, *, with_scores: bool) -> Joined:
    """Binary predictions that say yes from a half on, with their truths."""
    names, nothing = np.array(["no", "yes"], object), np.full(len(score), np.nan)
    true, said = names[truth.astype(int)], names[(score >= 0.5).astype(int)]
    return Joined(pa.array(true), nothing, pa.array(said), score if with_scores else nothing, nothing, nothing)


def wrong(rate: float) -> Draw:
    """Labels without scores, so many of them wrong."""

    def draw(rng: np.random.Generator, n: int) -> Joined:
        said = (rng.random(n) < 0.5).astype(np.float64)
        return labelled(said, np.where(rng.random(n) < rate, 1 - said, said), with_scores=False)

    return draw


def scored(*, shift: float = 0.0, slope: float = 1.5) -> Draw:
    """Scores that are probabilities of an input; the truth follows the input with `slope`, scores with 1.5."""

    def draw(rng: np.random.Generator, n: int) -> Joined:
        x = rng.normal(shift, 1.0, n)
        return labelled(special.expit(1.5 * x), rng.random(n) < special.expit(slope * x), with_scores=True)

    return draw


def of_customers(labels: int) -> Draw:
    """So many labels in a row share a customer, whose log odds of an error have a deviation of 1."""

    def draw(rng: np.random.Generator, n: int) -> Joined:
        rate = special.expit(-2.4 + rng.normal(0, 1, n // labels + 1))[np.arange(n) // labels]
        said = (rng.random(n) < 0.5).astype(np.float64)
        return labelled(said, np.where(rng.random(n) < rate, 1 - said, said), with_scores=False)

    return draw


def swinging(factor: float) -> Draw:
    """A tenth wrong, by so much more at noon and less at night."""
    passed = 0

    def draw(rng: np.random.Generator, n: int) -> Joined:
        nonlocal passed
        angle = (passed + np.arange(n)) / LABELS_A_DAY * 2 * np.pi
        passed += n
        said = (rng.random(n) < 0.5).astype(np.float64)
        is_wrong = rng.random(n) < 0.1 * factor ** np.sin(angle)
        return labelled(said, np.where(is_wrong, 1 - said, said), with_scores=False)

    return draw


def watch(usual: Draw, rows: int, seed: int) -> Concept:
    """On a baseline of so many rows."""
    reference = OutcomeProfile(Task.BINARY, "yes")
    reference.add(usual(np.random.default_rng(10_000 + seed), rows))
    relation = Relation.of(reference)
    assert relation is not None
    return Concept(relation, BUDGET, LABELS_SHARE, 0.1)


def told(concept: Concept, rng: np.random.Generator, draw: Draw, first: int, n: int) -> list[tuple[int, Turn]]:
    """(label, turn) of each alarm in labels [first, first + n)."""
    found = []
    for start in range(first, first + n, CHUNK):
        number = np.arange(start, min(start + CHUNK, first + n))
        made = number * (86_400 * SECOND // LABELS_A_DAY)
        nowhere = np.zeros(len(number), np.int64)
        turns = concept.update(
            draw(rng, len(number)), made, made + LATE_US, nowhere, names={}, share_at=lambda _: LABELS_SHARE
        )
        found += [(start + turn.at, turn) for turn in turns if not turn.is_calm and not turn.is_again]
    return found


def delay(runs: int = 40) -> None:
    """10 % of errors become 20 %."""
    for rows in (1_000_000, 10_000, 2_000):
        delays, days = [], []
        for seed in range(runs):
            concept, rng = watch(wrong(0.1), rows, seed), np.random.default_rng(seed)
            told(concept, rng, wrong(0.1), 0, 2_000)
            hits = told(concept, rng, wrong(0.2), 2_000, 3_000)
            if hits:
                delays.append(hits[0][0] + 1 - 2_000)
                days.append(abs(hits[0][1].onset_us * LABELS_A_DAY / SECOND / 86_400 - 2_000) / LABELS_A_DAY)
        print(
            f"10 % to 20 %, baseline of {rows:,}: found {len(delays)} of {runs}, median after {np.median(delays):.0f} "
            f"labels, 90 % within {np.quantile(delays, 0.9):.0f}; onset off by {np.median(days):.3f} days, at most "
            f"{max(days):.2f}"
        )


def lasting(runs: int = 12, labels: int = 30_000) -> None:
    """A change that lasts is one alarm, and is not called calm while it lasts."""
    for before, after in ((0.1, 0.2), (0.25, 0.37), (0.25, 0.31)):
        counts = []
        for seed in range(runs):
            concept, rng = watch(wrong(before), 20_000, seed), np.random.default_rng(seed)
            known = len(told(concept, rng, wrong(before), 0, 10_000))
            counts.append(known + len(told(concept, rng, wrong(after), 10_000, labels)))
        print(f"{before:.0%} to {after:.0%} for {labels:,} labels: {counts} alarms, one each is wanted")


def recovery(runs: int = 25, a_day: int = 2_000) -> None:
    """A bad day and a half, labels half a day late on average: one alarm of its error rate, dated when it began."""
    for rate in (0.25, 0.4):
        extra, off = 0, []
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            made = np.arange(9 * a_day) * (86_400 * SECOND // a_day)
            day = made / (86_400 * SECOND)
            said = (rng.random(len(made)) < 0.5).astype(np.float64)
            is_wrong = rng.random(len(made)) < np.where((day >= 3) & (day < 4.5), rate, 0.1)
            joined = labelled(said, np.where(is_wrong, 1 - said, said), with_scores=False)
            came = made + (rng.exponential(0.5, len(made)) * 86_400 * SECOND).astype(np.int64)
            order = np.argsort(came, kind="stable")
            turns = watch(wrong(0.1), 10_000, seed).update(
                joined.take(order), made[order], came[order], np.zeros(len(order), np.int64), names={},
                share_at=lambda _: LABELS_SHARE,
            )  # fmt: skip
            alarms = [turn for turn in turns if not turn.is_calm and not turn.is_again]
            extra += len(alarms) - 1
            off.append(abs(alarms[0].onset_us / (86_400 * SECOND) - 3) if alarms else 9.0)
        print(
            f"10 % to {rate:.0%} for a day and a half: {extra} alarms too many in {runs} streams; onset off by "
            f"{np.median(off):.2f} days, at most {max(off):.2f}"
        )


def clean(labels: int = 240_000, streams: int = 4) -> None:
    """Nothing changes."""
    for name, usual in (("10 % wrong", wrong(0.1)), ("with scores", scored())):
        counts = [
            len(told(watch(usual, 10_000, seed), np.random.default_rng(seed), usual, 0, labels))
            for seed in range(streams)
        ]
        print(f"{labels:,} clean labels, {name}: {counts} false alarms (2.4 allowed on average)")


def alike(labels: int = 240_000, streams: int = 4) -> None:
    """Nothing changes, but errors come together."""
    cases = {
        "5 labels a customer": of_customers(5),
        "20 labels a customer": of_customers(20),
        "a swing by 1.35 within a day": swinging(1.35),
        "a swing by 2 within a day": swinging(2.0),
    }
    for name, usual in cases.items():
        counts = [
            len(told(watch(usual, 10_000, seed), np.random.default_rng(seed), usual, 0, labels))
            for seed in range(streams)
        ]
        print(f"{labels:,} clean labels, {name}: {counts} false alarms (2.4 allowed on average)")


def relation(runs: int = 20) -> None:
    """A relation that turns round, and inputs that move."""
    cases = {
        "relation turned, inputs unchanged": scored(slope=-1.5),
        "relation half as steep, inputs unchanged": scored(slope=0.75),
        "inputs moved by +1 sd, relation unchanged": scored(shift=1.0),
        "inputs moved by -2 sd, relation unchanged": scored(shift=-2.0),
    }
    hard = scored(shift=2.0)  # sure answers; inputs that move to the middle make more errors, as their scores foretell
    for name, after in cases.items():
        print(f"{name}: {_kinds(scored(), after, runs)}")
    print(f"harder cases, relation unchanged: {_kinds(hard, scored(), runs)}")


def _always(share: float, _: int) -> float:
    return share


def segments(runs: int = 10, markets: int = 8) -> None:
    """One market of eight is wrong in 30 % instead of 10 %: the whole with all of the budget, or half of it shared."""
    in_one, named = 3, 0
    alone: list[int] = []
    heard: list[int] = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        names = {k: [f"market is {k}"] for k in range(markets)}
        market = rng.integers(0, markets, 14_000)
        said = (rng.random(14_000) < 0.5).astype(np.float64)
        rate = np.where((market == in_one) & (np.arange(14_000) >= 2_000), 0.3, 0.1)
        joined = labelled(said, np.where(rng.random(14_000) < rate, 1 - said, said), with_scores=False)
        made = np.arange(14_000) * (86_400 * SECOND // LABELS_A_DAY)
        every, mine = np.arange(14_000), np.flatnonzero(market == in_one)
        for share, rows, watched in (
            (1.0, every, watch(wrong(0.1), 10_000, seed)),
            (0.5, mine, watch(wrong(0.1), 1_000, seed)),
        ):
            part = LABELS_SHARE * share
            watched.share = part
            watched._set_limits()
            turns = watched.update(
                joined.take(rows), made[rows], made[rows] + LATE_US, market[rows], names=names,
                share_at=partial(_always, part),
            )  # fmt: skip
            found = [(int(rows[turn.at]), turn) for turn in turns if not turn.is_calm and rows[turn.at] >= 2_000]
            (alone if share == 1.0 else heard).append(found[0][0] - 2_000 if found else 12_000)
            named += share == 1.0 and any(f"market is {in_one}" in turn.worst for _, turn in found)
    print(
        f"10 % to 30 % in one of {markets} markets: the whole finds it after {np.median(alone):.0f} labels (median of {runs}, "
        f"at most 12,000 seen) and names it in {named}, the market by itself after {np.median(heard):.0f} labels of all"
    )


def classes(runs: int = 20, many: int = 10) -> None:
    """A class of 5 % of rows is wrong in 60 % instead of 10 %, of ten classes."""
    shares = np.append(np.full(many - 1, 0.95 / (many - 1)), 0.05)
    names = np.array([f"class {k}" for k in range(many)], object)

    def draw(rng: np.random.Generator, n: int, rate: float = 0.1) -> Joined:
        truth = rng.choice(many, n, p=shares)
        is_wrong = rng.random(n) < np.where(truth == many - 1, rate, 0.1)
        said, nothing = np.where(is_wrong, (truth + rng.integers(1, many, n)) % many, truth), np.full(n, np.nan)
        return Joined(pa.array(names[truth]), nothing, pa.array(names[said]), nothing, nothing, nothing)

    delays, named = [], 0
    for seed in range(runs):
        reference = OutcomeProfile(Task.MULTICLASS)
        reference.add(draw(np.random.default_rng(10_000 + seed), 10_000))
        relation_of = Relation.of(reference)
        assert relation_of is not None
        concept, rng = Concept(relation_of, BUDGET, LABELS_SHARE, 0.1), np.random.default_rng(seed)
        told(concept, rng, draw, 0, 2_000)
        hits = told(concept, rng, lambda r, n: draw(r, n, 0.6), 2_000, 8_000)
        if hits:
            delays.append(hits[0][0] + 1 - 2_000)
            named += f"the truth is class {many - 1}" in hits[0][1].worst
    print(
        f"10 % to 60 % in a class of 5 %: found {len(delays)} of {runs}, median after {np.median(delays):.0f} labels, "
        f"named in {named}"
    )


def several(runs: int = 20) -> None:
    """Three classes with probabilities: inputs that move, and relations that turn. Each class has a watch, as in service."""
    usual = of_three()
    cases = {
        "three classes, one input moved by +0.8 sd, relation unchanged": of_three(shift=0.8),
        "three classes, one input moved by +1.6 sd, relation unchanged": of_three(shift=1.6),
        "three classes, half of b is c now, inputs unchanged": of_three(turned=0.5),
        "three classes, a quarter of b is c now, inputs unchanged": of_three(turned=0.25),
        "three classes, half of b is c now, and one input moved by +0.8 sd": of_three(shift=0.8, turned=0.5),
    }
    for name, after in cases.items():
        kinds: list[set[IncidentKind]] = []
        for seed in range(runs):
            rng, watches = np.random.default_rng(seed), OfThree(usual, 5_000, seed)
            watches.told(rng, usual, 0, 2_000)
            kinds.append(watches.told(rng, after, 2_000, 3_000))
        print(f"{name}: {_counted(kinds)}")


def of_three(*, shift: float = 0.0, turned: float = 0.0) -> Draw:
    """Truths drawn from the probabilities the model gives; of those that are b so many are c instead."""

    def draw(rng: np.random.Generator, n: int) -> Joined:
        x = rng.normal((shift, 0.0, 0.0), 1.0, (n, 3))
        p = special.softmax(2 * x, axis=1)
        truth = (rng.random(n)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
        truth = np.where((truth == 1) & (rng.random(n) < turned), 2, truth)
        names, said, nothing = np.array(list("abc"), object), p.argmax(axis=1), np.full(n, np.nan)
        texts = [f'{{"a":{a},"b":{b},"c":{c}}}' for a, b, c in p.tolist()]
        of_truth, of_label = p[np.arange(n), truth], p[np.arange(n), said]
        return Joined(
            pa.array(names[truth]), nothing, pa.array(names[said]), nothing, nothing, of_truth, of_label,
            probabilities=pa.array(texts),
        )  # fmt: skip

    return draw


class OfThree:
    """The watch over all and one over each class, beside the newest answers, on a baseline of so many rows."""

    def __init__(self, usual: Draw, rows: int, seed: int) -> None:
        known = usual(np.random.default_rng(10_000 + seed), rows)
        reference, scores = OutcomeProfile(Task.MULTICLASS), ScoreProfile()
        reference.add(known)
        scores.add(of_texts(known.probabilities, known.truth_label, ("a", "b", "c")))
        relation_of = Relation.of(reference)
        assert relation_of is not None
        self.answers = Answers(("a", "b", "c"))
        self.whole = Concept(relation_of, BUDGET, LABELS_SHARE * (1 - CLASSES_SHARE), 0.1)
        self.classes = {}
        for label, held in scores.classes.items():
            keys, counts = held.arrays()
            bins, at = np.unique(keys >> 1, return_inverse=True)
            true, every = (np.bincount(at, part).astype(np.float64) for part in (counts * (keys & 1), counts))
            fitted = calibrate(bins, true, every)
            of_class = Relation.of_class(reference, label)
            assert of_class is not None
            self.classes[label] = Concept(
                of_class, BUDGET, LABELS_SHARE * CLASSES_SHARE / 3, 0.1, rise=partial(self._rise, label, fitted)
            )

    def _rise(self, label: str, fitted: Calibration, since_us: int, until_us: int) -> Rise | None:
        return self.answers.rise(label, fitted, since_us=since_us, until_us=until_us)

    def told(self, rng: np.random.Generator, draw: Draw, first: int, n: int) -> set[IncidentKind]:
        """What alarms of n labels from the first on are called."""
        found = []
        for start in range(first, first + n, AT_ONCE):
            number = np.arange(start, min(start + AT_ONCE, first + n))
            made, joined = number * (86_400 * SECOND // LABELS_A_DAY), draw(rng, len(number))
            self.answers.add(joined, made, made + LATE_US)
            truth = np.array(joined.truth_label.to_pylist(), object)
            for label, concept in {"": self.whole, **self.classes}.items():
                mine = np.flatnonzero((truth == label) | (label == ""))
                found += concept.update(
                    joined.take(mine), made[mine], made[mine] + LATE_US, mine * 0, names={},
                    share_at=partial(_always, concept.share),
                )  # fmt: skip
        return {turn.kind for turn in found if not turn.is_calm and not turn.is_again}


def losses(runs: int = 20) -> None:
    """Numbers whose errors are larger on one side of an input, which moves there; and errors that grow anywhere."""
    cases = {
        "numbers, the input moved by +0.8 sd, relation unchanged": (0.0, 0.8, 1.0, 0.0),
        "numbers, the input moved by +1.5 sd, relation unchanged": (0.0, 1.5, 1.0, 0.0),
        "numbers of a model that misses a bend, the input moved by +0.8 sd, relation unchanged": (0.2, 0.8, 1.0, 0.0),
        "numbers of a model that misses a bend, the input moved by +1.5 sd, relation unchanged": (0.2, 1.5, 1.0, 0.0),
        "numbers, errors half as large again, inputs unchanged": (0.0, 0.0, 1.5, 0.0),
        "numbers, truths half a standard deviation higher, inputs unchanged": (0.0, 0.0, 1.0, 0.5),
        "numbers, errors twice as large, and the input moved by +0.8 sd": (0.0, 0.8, 2.0, 0.0),
    }
    for rows in (10_000, 3_000):
        for name, after in cases.items():
            kinds = [_kinds_of_numbers(*after, rows=rows, seed=seed) for seed in range(runs)]
            print(f"{name}, baseline of {rows:,}: {_counted(kinds)}")


def _kinds_of_numbers(
    bend: float, shift: float, factor: float, lean: float, *, rows: int, seed: int
) -> set[IncidentKind]:
    first, rng = np.random.default_rng(10_000 + seed), np.random.default_rng(seed)
    inputs, known = numbers(first, rows, bend=bend)
    learnt = learn(Schema.learn(inputs, most_categories=200), inputs, known.truth_number)
    assert learnt is not None
    reference = OutcomeProfile(Task.REGRESSION)
    reference.add(known)
    relation_of = Relation.of(reference)
    assert relation_of is not None
    concept = Concept(relation_of, BUDGET, LABELS_SHARE, 0.1, missed=learnt.missed)

    def draw(shift: float, factor: float, lean: float, rng: np.random.Generator, n: int) -> Joined:
        inputs, joined = numbers(rng, n, bend=bend, shift=shift, factor=factor, lean=lean)
        size, error = LossEstimator(learnt).expected(learnt.leaves.of(inputs))
        return replace(joined, expected_size=size, expected_error=error)

    told(concept, rng, partial(draw, 0.0, 1.0, 0.0), 0, 2_000)
    return {turn.kind for _, turn in told(concept, rng, partial(draw, shift, factor, lean), 2_000, 3_000)}


def numbers(
    rng: np.random.Generator, n: int, *, bend: float, shift: float = 0.0, factor: float = 1.0, lean: float = 0.0
) -> tuple[Rows, Joined]:
    """Inputs with predictions, and their truths, whose errors have a deviation that grows with the input.

    The model misses a `bend`, so that they lean where the input is large.
    """
    x = rng.normal((shift, 0.0), 1.0, (n, 2))
    value = 5 + x[:, 0] - x[:, 1] - bend * np.maximum(x[:, 0] - 0.5, 0)
    truth = 5 + x[:, 0] - x[:, 1] + lean + factor * rng.normal(size=n) * np.exp(0.3 * x[:, 0])
    none, nothing = pa.nulls(n, pa.string()), np.full(n, np.nan)
    keys = (SubjectKey("feature", "x0"), SubjectKey("feature", "x1"), PREDICTION)
    ids = np.zeros(n, np.uint64)
    number = np.column_stack([x, value])
    rows = Rows(np.arange(n), ids, ids, np.zeros(n, np.int32), keys, np.full((n, 3), Kind.NUMBER, np.uint8), number, {})
    return rows, Joined(none, truth, none, nothing, value, nothing)


def _kinds(usual: Draw, after: Draw, runs: int) -> str:
    kinds = []
    for seed in range(runs):
        concept, rng = watch(usual, 10_000, seed), np.random.default_rng(seed)
        told(concept, rng, usual, 0, 2_000)
        kinds.append({turn.kind for _, turn in told(concept, rng, after, 2_000, 4_000)})
    return _counted(kinds)


def _counted(kinds: Sequence[set[IncidentKind]]) -> str:
    runs = len(kinds)
    counts = {
        str(k): sum(k in found for found in kinds) for k in (IncidentKind.CONCEPT_DRIFT, IncidentKind.PERFORMANCE)
    }
    return ", ".join(f"{kind} in {count} of {runs}" for kind, count in counts.items())


if __name__ == "__main__":
    parts: dict[str, Callable[[], None]] = {
        "delay": delay,
        "lasting": lasting,
        "recovery": recovery,
        "clean": clean,
        "alike": alike,
        "relation": relation,
        "segments": segments,
        "classes": classes,
        "several": several,
        "losses": losses,
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
