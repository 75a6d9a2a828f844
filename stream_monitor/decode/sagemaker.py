"""SageMaker's records rewritten as ours: data capture (JSONL) and ground truth for model quality.

A capture becomes an inference event: CSV input gives features `f0`, `f1`, ... by position, JSON input its object (or
`features`, or the one entry of `instances`); the output is the prediction. The id is `inferenceId` where the caller
gave one, else `eventId`: the rule by which SageMaker joins its own labels. A capture of several rows has one id for all
of them and cannot be joined, so it is left without features and refused. Rewriting is Python for each record; canonical
events never come here.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.decode.json import JsonReader
from stream_monitor.records import Flags

_SQL = """
    SELECT i, coalesce(json_type(v, '$.captureData') = 'OBJECT', false)
           OR coalesce(json_type(v, '$.groundTruthData') = 'OBJECT', false) AS found
    FROM input
"""


def find_records(texts: pa.Array, reader: JsonReader) -> Flags:
    """(n,) which JSON texts are SageMaker records."""
    found: Flags = reader.query(_SQL, texts).column("found").combine_chunks().to_numpy(zero_copy_only=False)
    return found.astype(np.bool_)


def rewrite(texts: pa.Array) -> pa.Array:
    """SageMaker records as canonical JSON events; what cannot be understood is left out of them."""
    return pa.array([_rewrite(text) for text in texts.to_pylist()], pa.string())


def _rewrite(text: str) -> str:
    try:
        # ASCII, so that a lone surrogate in captured JSON stays an escape the parser can refuse.
        return json.dumps(_event(json.loads(text)))
    except (ValueError, RecursionError):
        return "{}"


def _event(record: dict[str, Any]) -> dict[str, Any]:
    metadata = _as_dict(record.get("eventMetadata"))
    event: dict[str, Any] = {"inference_id": metadata.get("inferenceId") or metadata.get("eventId")}
    if "groundTruthData" in record:
        event |= _truth(_as_dict(record["groundTruthData"]))
    if "captureData" in record:
        capture = _as_dict(record["captureData"])
        event["timestamp"] = metadata.get("inferenceTime")
        event["features"] = _features(_content(_as_dict(capture.get("endpointInput"))))
        output = capture.get("endpointOutput") or capture.get("batchTransformOutput")
        event["prediction"] = _prediction(_content(_as_dict(output)))
    return event


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _content(part: dict[str, Any]) -> Any:
    """What was captured: JSON as its value, CSV as a list of cells (of one row), None where neither."""
    data, encoding = part.get("data"), part.get("encoding")
    if not isinstance(data, str):
        return data  # JSON that was put in as it was
    if encoding == "BASE64":
        try:
            data = base64.b64decode(data, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
    if encoding == "JSON" or "json" in str(part.get("observedContentType", "")):
        return _json(data)
    return _csv(data)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _csv(text: str) -> list[Any] | None:
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error:
        return None
    return [_cell(cell.strip()) for cell in rows[0]] if len(rows) == 1 else None


def _cell(text: str) -> Any:
    """A CSV cell has no types: what reads as a number is one, nothing is missing, the rest is text."""
    if not text or "_" in text:
        return text or None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and text.lstrip("+-").isdigit() else number


def _features(content: Any) -> dict[str, Any] | None:
    content = _sole(content, "instances")
    if isinstance(content, dict):
        inner = content.get("features")
        return _features(inner) if isinstance(inner, dict | list) else content
    if isinstance(content, list):
        cells = content[0] if len(content) == 1 and isinstance(content[0], list) else content
        return None if any(isinstance(cell, list | dict) for cell in cells) else _by_position(cells)
    return None


def _by_position(cells: list[Any]) -> dict[str, Any]:
    return {f"f{place}": cell for place, cell in enumerate(cells)}


def _prediction(content: Any) -> Any:
    """A number, a label, or an object with label and score; of two CSV cells the second is the score."""
    content = _sole(content, "predictions")
    if isinstance(content, dict):
        label = content.get("label", content.get("predicted_label"))
        return {**content, "label": label}
    if isinstance(content, list):
        if len(content) == 1:
            return _prediction(content[0])
        return {"label": content[0], "score": content[1]} if len(content) == 2 else None
    return content


def _truth(part: dict[str, Any]) -> dict[str, Any]:
    content = _content(part)
    if isinstance(content, dict):
        return {name: content[name] for name in ("label", "value", "outcome", "timestamp") if name in content}
    return {"label": content[0] if isinstance(content, list) and len(content) == 1 else content}


def _sole(content: Any, name: str) -> Any:
    """The one entry of a list under a name, else the content itself."""
    entries = content.get(name) if isinstance(content, dict) else None
    return entries[0] if isinstance(entries, list) and len(entries) == 1 else content
