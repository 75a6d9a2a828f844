"""Numbers for names: the state file stores a model, version, outcome, segment or line as a small integer.

Numbers are given in order of appearance and never change; the lists are part of the state.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa

from stream_monitor.config import MOST_OUTCOMES
from stream_monitor.records import Codes, Ints, LineKey, ModelKey
from stream_monitor.store import Store

Segment = tuple[tuple[str, str], ...]


class Names:
    """The lists of names, each with its reverse."""

    def __init__(self, saved: Mapping[str, list[object]] | None = None) -> None:
        body: Mapping[str, list] = saved or {}  # type: ignore[type-arg]
        self.models: list[str] = list(body.get("models", []))
        self.outcomes: list[str] = list(body.get("outcomes", []))
        self._places: dict[int, list[int]] = {model: list(held) for model, held in body.get("places", [])}
        self.versions: list[ModelKey] = [ModelKey(*v) for v in body.get("versions", [])]
        self.segments: list[Segment] = [tuple((k, v) for k, v in s) for s in body.get("segments", [[]])]
        self.lines: list[LineKey] = [
            LineKey(model, version, tuple((k, v) for k, v in segment))
            for model, version, segment in body.get("lines", [])
        ]
        self._model_of = [self.models.index(v.model) for v in self.versions]
        self._version_numbers = {key: number for number, key in enumerate(self.versions)}
        self._line_numbers = {key: number for number, key in enumerate(self.lines)}
        self._segment_numbers = {key: number for number, key in enumerate(self.segments)}
        self._parsed: dict[tuple[str, tuple[str, ...]], Segment] = {}
        self._saved = self._text()

    @classmethod
    def load(cls, store: Store) -> Names:
        """The names a state file knows."""
        text = store.meta("names")
        return cls(json.loads(text) if text else None)

    def save(self, store: Store) -> None:
        """Write the lists if they grew."""
        text = self._text()
        if text != self._saved:
            store.set_meta("names", text)
            self._saved = text

    def _text(self) -> str:
        return json.dumps(
            {
                "models": self.models,
                "outcomes": self.outcomes,
                "places": list(self._places.items()),
                "versions": self.versions,
                "segments": self.segments,
                "lines": self.lines,
            }
        )

    def model_index(self, model: str, *, most: int | None = None) -> int:
        """The number of a model, new if need be; beyond `most` the rest share one."""
        return _index(self.models, model, most)

    def known_outcome(self, outcome: str) -> int | None:
        """The number of an outcome, None if no label has named it."""
        return self.outcomes.index(outcome) if outcome in self.outcomes else None

    def outcome_index(self, model: int, outcome: str, *, kept: Collection[str]) -> int:
        """The number of an outcome that labels of a model name (-1: of none), -1 where the model has no place left.

        Those that are `kept` always have one.
        """
        known = self.known_outcome(outcome)
        held = self._places.setdefault(model, [])
        if outcome not in kept and known not in held:
            if len(held) >= MOST_OUTCOMES or (known is None and len(self.outcomes) >= MOST_OUTCOME_NAMES):
                return -1
            held.append(len(self.outcomes) if known is None else known)
        return _index(self.outcomes, outcome, None) if known is None else known

    def version_index(self, key: ModelKey) -> int | None:
        """The number of a version, None if it was never seen."""
        return self._version_numbers.get(key)

    def add_version(self, key: ModelKey) -> int:
        self.versions.append(key)
        self._model_of.append(self.model_index(key.model))
        self._version_numbers[key] = len(self.versions) - 1
        return len(self.versions) - 1

    def model_of_version(self, version: int) -> int:
        return self._model_of[version]

    def line_index(self, key: LineKey) -> int:
        """The number of a line, new if need be."""
        number = self._line_numbers.get(key)
        if number is None:
            number = self._line_numbers[key] = len(self.lines)
            self.lines.append(key)
        return number

    def segment_codes(self, texts: pa.Array, keys: Sequence[str]) -> Codes:
        """Numbers of the segments (n,) whose JSON objects are given; `keys` are those the configuration watches."""
        if not keys or texts.null_count == len(texts):
            return np.zeros(len(texts), np.int32)
        encoded = texts.dictionary_encode()
        chosen = tuple(keys)
        numbers = np.array([self._segment_number(t, chosen) for t in encoded.dictionary.to_pylist()] + [0], np.int32)
        return np.asarray(numbers[encoded.indices.fill_null(len(numbers) - 1).to_numpy(zero_copy_only=False)], np.int32)

    def _segment_number(self, text: str, keys: tuple[str, ...]) -> int:
        segment = self._parsed.get((text, keys))
        if segment is None:
            found = json.loads(text)
            segment = tuple((key, str(found[key])) for key in keys if found.get(key) is not None)
            if len(self._parsed) < MOST_SEGMENTS:
                self._parsed[(text, keys)] = segment
        if segment not in self._segment_numbers:
            if len(self.segments) >= MOST_SEGMENTS:
                return 0
            self._segment_numbers[segment] = len(self.segments)
            self.segments.append(segment)
        return self._segment_numbers[segment]

    def segments_of(self, numbers: Ints) -> list[Segment]:
        """The segments of some numbers."""
        return [self.segments[n] for n in numbers.tolist()]


MOST_OUTCOME_NAMES = 1_000
"""Outcome names of all models together: models that nobody knows may come by the thousand too."""

REST = "(others)"
"""What names beyond a limit are called."""


def _index(names: list[str], name: str, most: int | None) -> int:
    if name not in names:
        name = name if most is None or len(names) < most else REST
        if name not in names:
            names.append(name)
    return names.index(name)


MOST_SEGMENTS = 20_000
"""Distinct combinations of segment values that are told apart; what comes after counts for the whole model only."""
