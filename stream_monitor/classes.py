"""Which classes truths were of, and which of them nobody knew: a label that is spelled otherwise counts as wrong in silence.

Known are the classes that the version's baseline predicts, the positive label, and of several classes those of the truths
that errors are judged by. Where no baseline says so, and for named outcomes, it is those among the first 1,000 truths.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from stream_monitor.judge.estimate import OUTCOME
from stream_monitor.publish.log import fields
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.outcome import Task
from stream_monitor.summarize.rows import PREDICTION

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.truth import Met
    from stream_monitor.versions import Version

log = logging.getLogger(__name__)

KIND = "classes"
"""Of the states, by version and outcome."""

LEARN_TRUTHS = 1_000
"""As errors are judged by the first 1,000 labels where the baseline has no truth."""

MOST_CLASSES = 20
"""With places of their own, of those that are known and of those that are not; the rest share one."""

MOST_LEARNT = 256
"""As many classes as a baseline keeps."""

OTHER = "(other)"
NAME_CHARACTERS = 200


@dataclass(slots=True)
class _Truths:
    """Truths of one version and outcome: how many of each (class, whether it was known), and the classes of the first."""

    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    first: int = 0
    learnt: set[str] = field(default_factory=set)

    def place(self, name: str, *, is_known: bool) -> tuple[str, bool]:
        """Where truths of a class are counted."""
        key = (name[:NAME_CHARACTERS], is_known)
        if key not in self.counts and sum(known == is_known for _, known in self.counts) >= MOST_CLASSES:
            key = (OTHER, is_known)
        return key


class Classes:
    """The classes of the truths of every version that has any."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._held: dict[tuple[int, int], _Truths] = {}
        self._dirty: set[tuple[int, int]] = set()
        for key, body in engine.store.states(KIND).items():
            version, outcome = key.split("/")
            saved = json.loads(body)
            counts = Counter({(name, is_known): count for name, is_known, count in saved["counts"]})
            self._held[(int(version), int(outcome))] = _Truths(counts, saved["first"], set(saved["learnt"]))

    def take(self, met: Met) -> None:
        """Count the truths that a join brought, corrections as well; of numbers there are no classes."""
        for table in (met.new, met.replaced):
            for (version, outcome), texts in _by_outcome(table).items():
                line = self.engine.versions[version].whole()
                if self.engine.outcomes.task(line, outcome) not in (None, Task.REGRESSION, Task.VALUE):
                    self._count(version, outcome, texts)

    def _count(self, version: int, outcome: int, texts: Counter[str]) -> None:
        held = self._held.setdefault((version, outcome), _Truths())
        known = self._known(self.engine.versions[version], outcome)
        if known is None and held.first < LEARN_TRUTHS:
            held.first += texts.total()
            room = max(0, MOST_LEARNT - len(held.learnt))
            held.learnt |= {name[:NAME_CHARACTERS] for name, _ in texts.most_common(room)}
        for name, count in sorted(texts.items()):
            is_known = name[:NAME_CHARACTERS] in (held.learnt if known is None else known)
            key = held.place(name, is_known=is_known)
            if not is_known and key not in held.counts:
                self._warn(version, outcome, key[0])
            held.counts[key] += count
        self._dirty.add((version, outcome))

    def _known(self, version: Version, outcome: int) -> set[str] | None:
        """None where no baseline says."""
        if version.baseline is None or self.engine.names.outcomes[outcome] != OUTCOME:
            return None
        subjects = version.baseline.schema.subjects
        bins = [s.bins for s in subjects if s.key == PREDICTION and isinstance(s.bins, Categories)]
        if not bins:
            return None
        known = {*bins[0].values, *([version.model.positive_label] if version.model.positive_label else [])}
        if self.engine.outcomes.task(version.whole(), outcome) is not Task.MULTICLASS:
            return known
        reference = self.engine.outcomes.reference(version.whole(), outcome)  # a rare class may never be predicted
        return None if reference is None else known | {truth for truth, _ in reference.pairs}

    def _warn(self, version: int, outcome: int, name: str) -> None:
        key = self.engine.names.versions[version]
        log.warning("label_of_unknown_class", extra=fields(model=key.model, version=key.version,
                    outcome=self.engine.names.outcomes[outcome], label=name))  # fmt: skip

    def counts(self, version: int, outcome: int) -> list[tuple[str, bool, int]]:
        """(class, whether it is known, truths), the classes in order."""
        held = self._held.get((version, outcome))
        return [] if held is None else [(*key, count) for key, count in sorted(held.counts.items())]

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        bodies = {}
        for key in sorted(self._dirty):
            held = self._held[key]
            counts = [[*place, count] for place, count in sorted(held.counts.items())]
            body = {"counts": counts, "first": held.first, "learnt": sorted(held.learnt)}
            bodies["/".join(map(str, key))] = json.dumps(body).encode()
        self.engine.store.put_states(KIND, bodies)
        self._dirty = set()


def _by_outcome(table: pa.Table) -> dict[tuple[int, int], Counter[str]]:
    """How many rows of each text every (version, outcome) has."""
    found: dict[tuple[int, int], Counter[str]] = {}
    if len(table):
        grouped = table.group_by(["version", "outcome", "label"]).aggregate([([], "count_all")])
        columns = (grouped[name].to_pylist() for name in ("version", "outcome", "label", "count_all"))
        for version, outcome, text, count in zip(*columns, strict=True):
            found.setdefault((version, outcome), Counter())[text or ""] += count
    return found
