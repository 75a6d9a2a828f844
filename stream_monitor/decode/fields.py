"""Where our fields lie in a record: the canonical places, or those a mapping names.

A mapping is `our dotted name -> their path`: `{"inference_id": "$.request.id", "features.age": "inputs[0].age"}`. The
result is what the JSON query needs: a path for each scalar field, one for the features object, and one for each feature
or segment key mapped by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stream_monitor.errors import UsageError
from stream_monitor.records import Stream

PREDICTION_PARTS = ("prediction.label", "prediction.score", "prediction.value", "prediction.probabilities")
INFERENCE_FIELDS = (
    "inference_id",
    "model",
    "version",
    "timestamp",
    "prediction",
    *PREDICTION_PARTS,
    "latency_ms",
    "segment",
)
BASELINE_FIELDS = (*INFERENCE_FIELDS, "label", "value")
LABEL_FIELDS = ("inference_id", "model", "timestamp", "label", "value", "outcome")

_ROOT = re.compile(r"\$(?=$|[.\[])")
_STEP = re.compile(r"""\.?(?:"([^"]+)"|([^.\[\]"']+))|\[(?:(\d+)|"([^"]+)"|'([^']+)')\]""")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields of one kind of record lie. Paths are in DuckDB's JSON path language.

    `cells` are (feature name, path) of features mapped one by one, `segments` the same for segment keys.
    """

    fields: tuple[tuple[str, str], ...]
    features: str | None
    cells: tuple[tuple[str, str], ...] = ()
    segments: tuple[tuple[str, str], ...] = ()

    @property
    def has_features(self) -> bool:
        """Whether records of this kind carry features at all."""
        return self.features is not None or bool(self.cells)


def layout(names: tuple[str, ...], mapping: Mapping[str, str], *, features: bool) -> Layout:
    """The layout of a record with the given scalar fields under a mapping.

    Mapping `prediction` moves its parts with it. With any `features.x` mapped, an object of features is read only if
    `features` is mapped too. Raises UsageError naming every entry that cannot be used.
    """
    paths, problems = _parse(mapping)
    problems += [f"fields.{name}: not a field of this stream" for name in paths if not _is_field(name, names, features)]
    if problems:
        raise UsageError("; ".join(problems), tuple(problems))
    cells = _children(paths, "features.")
    default_features = None if cells else '$."features"'
    return Layout(
        fields=tuple((name, _field_path(name, paths)) for name in names),
        features=paths.get("features", default_features) if features else None,
        cells=cells,
        segments=_children(paths, "segment."),
    )


def mapping_problems(mapping: Mapping[str, str], stream: Stream) -> tuple[str, ...]:
    """Every reason a mapping of a stream cannot be used; empty if it can."""
    inference = stream is Stream.INFERENCE
    try:
        layout(BASELINE_FIELDS if inference else LABEL_FIELDS, mapping, features=inference)
    except UsageError as error:
        return error.problems
    return ()


def json_path(text: str) -> str:
    """A dotted path (`$.request.inputs[0].age`, `response.score`, `a["odd.name"]`) in DuckDB's language.

    Raises ValueError where it is no such path. `$` is the whole record.
    """
    root = _ROOT.match(text)
    position = root.end() if root else 0
    steps: list[str] = []
    while position < len(text):
        found = _STEP.match(text, position)
        if found is None:
            raise ValueError(f"{text!r} is not a dotted path")
        steps.append(_step(found))
        position = found.end()
    if not steps and not root:
        raise ValueError("an empty path")
    return "$" + "".join(steps)


def _step(found: re.Match[str]) -> str:
    quoted, plain, index, double, single = found.groups()
    if index is not None:
        return f"[{index}]"
    name: str = quoted or plain or double or single
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'."{escaped}"'


def _parse(mapping: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    paths: dict[str, str] = {}
    problems: list[str] = []
    for name, text in mapping.items():
        try:
            paths[name] = json_path(text)
        except ValueError as error:
            problems.append(f"fields.{name}: {error}")
    return paths, problems


def _is_field(name: str, names: tuple[str, ...], features: bool) -> bool:
    if name in BASELINE_FIELDS and "prediction" in names:
        return True  # truth beside a prediction may be mapped; only baselines read it
    inner = name.startswith(("features.", "segment.")) and not name.endswith(".")
    return name in names or (features and (name == "features" or inner))


def _field_path(name: str, paths: Mapping[str, str]) -> str:
    if name in paths:
        return paths[name]
    parent, _, part = name.partition(".")
    if part:
        return f'{_field_path(parent, paths)}."{part}"'
    return f'$."{name}"'


def _children(paths: Mapping[str, str], prefix: str) -> tuple[tuple[str, str], ...]:
    return tuple((name.removeprefix(prefix), path) for name, path in paths.items() if name.startswith(prefix))
