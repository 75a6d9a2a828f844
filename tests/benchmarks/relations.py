"""Errors that grow and relations that turn, found from late labels: the promise, the delay, and what it is called.

    .venv/bin/python tests/benchmarks/relations.py            all of it
    .venv/bin/python tests/benchmarks/relations.py delay clean

One false alarm in 100,000 labels is allowed: `5 per 100000 events`, of which labels get a fifth. Labels come two days
after their predictions. Everything goes through the watch that the service runs, fed as its outcomes feed it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from scipy import special

from stream_monitor.judge.calibrate import LABELS_SHARE, Budget
from stream_monitor.judge.concept import Concept, Turn
from stream_monitor.judge.relation import Relation
from stream_monitor.records import Floats, IncidentKind
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task

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


def _kinds(usual: Draw, after: Draw, runs: int) -> str:
    kinds = []
    for seed in range(runs):
        concept, rng = watch(usual, 10_000, seed), np.random.default_rng(seed)
        told(concept, rng, usual, 0, 2_000)
        kinds.append({turn.kind for _, turn in told(concept, rng, after, 2_000, 4_000)})
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
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
