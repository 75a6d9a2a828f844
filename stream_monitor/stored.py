"""Baselines in a state file that nobody else uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream_monitor import history
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.errors import UsageError
from stream_monitor.judge.baseline import Baseline
from stream_monitor.records import ModelKey
from stream_monitor.store import Store


def _open(state: Path) -> Store:
    if not state.is_file():
        raise UsageError(f"there is no state file {state}")
    return Store(state)


def stored_baselines(state: Path) -> list[dict[str, Any]]:
    """The baselines a state file judges by. Raises StateError while another process owns it."""
    store = _open(state)
    try:
        return history.baselines(Engine(parse({}, {}), store))
    finally:
        store.close()


def promote_in_state(state: Path, baseline: Baseline) -> dict[str, Any]:
    """Judge the baseline's version by it from now on; closes the incidents it explains."""
    store = _open(state)
    try:
        engine = Engine(parse({}, {}), store)
        key = ModelKey(baseline.model, baseline.version)
        index = engine.names.version_index(key)
        if index is None:
            raise UsageError(f"no events of {key.model} {key.version} were seen yet")
        now = engine.sealed_us if engine.sealed_us is not None else baseline.created_us
        changed = engine.versions[index].promote(baseline, now_us=now)
        engine.note(changed)
        engine.checkpoint()
        return {
            "baseline_id": baseline.id,
            "model": key.model,
            "version": key.version,
            "rows": baseline.profile.rows,
            "incidents_closed": sum(incident.closed_us is not None for incident in changed),
        }
    finally:
        store.close()
