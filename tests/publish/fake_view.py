"""A view over fixed figures, with names as bad as people's, for tests and for looking at the console."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_monitor.errors import UsageError
from stream_monitor.publish.http import Filters, Promotion
from stream_monitor.records import Json

HOSTILE = '<script>alert("x")</script>&\'🦊'


def subject(name: str, value: float, threshold: float, detail: str) -> dict[str, Any]:
    """One subject of an incident."""
    return {
        "name": name,
        "kind": "feature",
        "statistic": "psi",
        "value": value,
        "threshold": threshold,
        "effect": 0.61,
        "samples": 2413,
        "baseline_samples": 10_000,
        "detail": detail,
    }


def incident(number: int, **changes: Any) -> dict[str, Any]:
    """One incident, open unless told otherwise."""
    found: dict[str, Any] = {
        "id": f"inc-{number}",
        "model": "credit",
        "version": "7",
        "segment": {},
        "kind": "data_drift",
        "severity": "critical",
        "onset": "2026-11-21T08:40:00.000Z",
        "opened_at": "2026-11-21T08:55:00.000Z",
        "closed_at": None,
        "baseline_id": "b-1f3a",
        "subjects": [
            subject("income", 0.412, 0.051, "median 51200 -> 38400"),
            subject("channel", 0.133, 0.047, "share of web 62 % -> 41 %"),
        ],
        "summary": "Incomes of credit 7 moved since 08:40: median 51 200 -> 38 400; channel moved as well.",
    }
    return found | changes


def incidents() -> list[dict[str, Any]]:
    """Two open, three closed."""
    closed = {"closed_at": "2026-11-20T19:30:00.000Z", "opened_at": "2026-11-20T16:10:00.000Z"}
    return [
        incident(1),
        incident(
            2,
            model="churn",
            version="2026-11",
            kind="performance",
            severity="warning",
            summary="Accuracy of churn 2026-11 fell from 0.912 to 0.861 on 4 180 labelled predictions.",
        ),
        incident(
            3,
            **closed,
            kind="data_quality",
            severity="warning",
            segment={"market": "eu"},
            summary="age is missing in 12 % of credit 7 in market eu, 0.4 % in the baseline.",
        ),
        incident(
            4, **closed, model=HOSTILE, severity="info", kind="baseline_missing", summary=f"{HOSTILE}: no baseline."
        ),
        incident(5, **closed, kind="prediction_drift", summary="credit 7 approves 71 % of requests; baseline 58 %."),
    ]


def feature(name: str, value: float, threshold: float, verdict: str, *, model: str = "credit") -> dict[str, Any]:
    """One feature with its latest scores."""
    latest = [
        {"window": w, "statistic": "psi", "value": value * f, "threshold": threshold, "verdict": verdict}
        for w, f in (("15m", 1.0), ("1h", 0.8))
    ]
    return {
        "model": model,
        "version": "7",
        "name": name,
        "kind": "feature",
        "value_kind": "numeric",
        "importance": 1.0,
        "baseline": {"rows": 10_000, "mean": 3.5, "standard_deviation": math.nan},
        "latest": latest,
    }


def labels(model: str, version: str, *, is_late: bool = False, labelled: int = 580) -> dict[str, Any]:
    """How the labels of one version come; a day's cohort is always labelled, shorter ones as told."""
    cohorts = [cohort("15m", "09:30", labelled), cohort("15m", "09:15", 2 * labelled), cohort("1d", "00:00", 400)]
    watch = {
        "state": "waiting",
        "reason": f"labels of {model} come first",
        "age_seconds": None,
        "held": 1_204 * is_late,
    }
    return {"model": model, "version": version, "outcome": "label", "is_late": is_late, "cohorts": cohorts,
            "watch": watch if labelled < 580 or is_late else watch | {"state": "as_they_come"}}  # fmt: skip


def cohort(window: str, start: str, labelled: int) -> dict[str, Any]:
    """Of 1,800 predictions; what was said of it at a tenth of them, and what is said now."""
    figure = {"metric": "accuracy", "value": 0.741, "lower": 0.72, "upper": 0.76}
    before = {"metric": "accuracy", "value": 0.712, "lower": 0.65, "upper": 0.77}
    expected = {"expected_value": 0.744, "expected_lower": 0.723, "expected_upper": 0.765, "baseline_value": 0.681}
    at = f"2026-11-21T{start}:00.000Z"
    return {
        "window": window,
        "window_start": at,
        "window_end": at,
        "predictions": 1_800,
        "labelled": labelled,
        "coverage": labelled / 1_800,
        "usual_coverage": 0.49 if labelled else None,
        "ripeness": "labels_missing" if labelled else "unknown",
        "figures": [figure | expected] if labelled else [],
        "revisions": [{"at": at, "labelled": 180, "coverage": 0.1, "figures": [before]}] if labelled else [],
    }


@dataclass
class FakeView:
    """Answers at once; remembers what it was asked."""

    asked: list[Filters] = field(default_factory=list)
    promoted: list[Promotion] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    is_empty: bool = False

    def summary(self) -> Json:
        if self.is_empty:
            return {"inference": {}, "models": [], "incidents": 0}
        return {
            "inference": {
                "offered": 1_284_313,
                "summarised": 1_283_002,
                "rejected": 211,
                "late": 900,
                "duplicate": 200,
            },
            "ground_truth": {
                "offered": 402_118,
                "matched": 400_001,
                "duplicate": 12,
                "corrected": 5,
                "orphan_waiting": 2_000,
                "orphan_expired": 100,
                "rejected": 0,
            },
            "predictions": {"labelled": 400_001, "waiting": 883_001, "expired_unlabelled": 900},
            "models": [],
            "incidents": 5,
        }

    def models(self) -> Sequence[Json]:
        rows = [
            ("credit", "7", 903_204, "risk", 1),
            ("churn", "2026-11", 371_889, "growth", 1),
            (HOSTILE, "1", 8_809, None, 0),
        ]
        return (
            []
            if self.is_empty
            else [
                {
                    "model": m,
                    "version": v,
                    "events": n,
                    "first_event": "2026-11-01T00:00:00.000Z",
                    "last_event": "2026-11-21T10:00:00.123Z",
                    "summarised": n,
                    "late": 3,
                    "duplicate": 2,
                    "team": team,
                    "labelled": n // 3,
                    "waiting": n - n // 3,
                    "baseline_id": "b-1f3a" if team else None,
                    "provisional": m == "churn",
                    "open_incidents": opened,
                }
                for m, v, n, team, opened in rows
            ]
        )

    def features(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        rows = [
            feature("income", 0.412, 0.051, "drift"),
            feature("channel", 0.133, 0.047, "drift"),
            feature(HOSTILE, 0.031, 0.05, "ok", model="churn"),
            feature("age", 0.012, 0.049, "ok"),
            feature("a_feature_with_a_name_that_goes_on_" * 8, math.nan, 0.05, "insufficient"),
        ]
        return [] if self.is_empty else rows[filters.offset : filters.offset + filters.limit]

    def budgets(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        return [{"model": "credit", "version": "7", "false_alarms": "1 per 30d"}][filters.offset :]

    def labels(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        rows = [labels("credit", "7"), labels(HOSTILE, "1", is_late=True), labels("churn", "2026-11", labelled=0)]
        return [] if self.is_empty else rows[filters.offset : filters.offset + filters.limit]

    def scores(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        rows = [{"subject": f"f{i}", "value": math.nan if i == 1 else i / 8} for i in range(7)]
        return rows[filters.offset : filters.offset + filters.limit]

    def incidents(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        wanted = {"open": (True,), "closed": (False,)}.get(filters.state or "", (True, False))
        rows = [] if self.is_empty else [i for i in incidents() if (i["closed_at"] is None) in wanted]
        return rows[filters.offset : filters.offset + filters.limit]

    def incident(self, incident_id: str) -> Json | None:
        return next((i for i in incidents() if i["id"] == incident_id), None)

    def performance_details(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        return [{"model": "credit", "version": "7", "confusion_matrix": {"0": {"0": 3}}}][filters.offset :]

    def performance(self, filters: Filters) -> Sequence[Json]:
        self.asked.append(filters)
        rows = [
            ("credit", "7", "accuracy", 0.894, 0.890, 0.898, 0.44, 0.897),
            ("credit", "7", "auc", 0.931, 0.925, 0.936, 0.44, 0.93),
            ("churn", "2026-11", "accuracy", 0.861, 0.850, 0.871, 0.12, 0.912),
            ("churn", "2026-11", "f1", math.nan, math.nan, math.nan, 0.12, 0.7),
        ]
        return (
            []
            if self.is_empty
            else [
                {
                    "model": m,
                    "version": v,
                    "segment": {},
                    "outcome": "label",
                    "basis": "cohort",
                    "window": "1d",
                    "window_start": "2026-11-20T00:00:00.000Z",
                    "window_end": "2026-11-21T00:00:00.000Z",
                    "metric": metric,
                    "value": value,
                    "lower": lower,
                    "upper": upper,
                    "samples": 4_180,
                    "coverage": coverage,
                    "baseline_value": base,
                    "best_constant": 0.6,
                }
                for m, v, metric, value, lower, upper, coverage, base in rows
            ]
        )

    def baselines(self) -> Sequence[Json]:
        return [{"baseline_id": "b-1f3a", "model": "credit", "version": "7", "rows": 10_000}]

    def status(self) -> Json:
        return {
            "version": "0.1.0",
            "lag_events": 1_204,
            "watermark": "2026-11-21T09:59:50.000Z",
            "state_bytes": 48_234_496,
            "checkpoint": "2026-11-21T10:00:01.000Z",
        }

    def ready(self) -> tuple[bool, list[str]]:
        return not self.reasons, self.reasons

    def promote(self, promotion: Promotion) -> Json:
        if promotion.version == "9":
            raise UsageError("credit 9 has not been seen", ("promote one of: 7",))
        self.promoted.append(promotion)
        return {"baseline_id": "b-2", "model": promotion.model, "version": promotion.version}
