"""Draw `alarm.svg`, the figure of "What an alarm means": real charts on a made-up feature, seeded.

.venv/bin/python docs/draw_alarm.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from stream_monitor.judge.charts import SCALES, Charts, Limits, Ranks, Tables, normal_scores
from stream_monitor.judge.hazard import nominal_rate
from stream_monitor.summarize.protocol import MAIN

EVENTS, CHANGE, BACK = 2_000, 600, 1_100
WIDTH, HEIGHT, LEFT = 860, 150, 60
SEED = 4
Curve = NDArray[np.float64]


def story() -> tuple[Curve, Curve, int, int]:
    """Values, the strongest evidence over its limit after each event, and the rows of alarm and calm."""
    rng = np.random.default_rng(SEED)
    values = rng.standard_normal(EVENTS)
    values[CHANGE:BACK] += 0.7
    code = np.clip((ndtr(values) * MAIN).astype(int), 0, MAIN - 1).astype(np.uint16)[:, None]
    ranks = Ranks(("x",), np.array([MAIN]), {}, {}, np.array([100_000]), 100_000, np.array([0]))
    charts = Charts(ranks, hazard=nominal_rate(100_000, 1))
    found = charts.update(code, code, np.arange(EVENTS))
    score = normal_scores(MAIN, 100_000)[code[:, 0]]
    total = np.concatenate([[0.0], np.cumsum(score)])
    evidence = np.zeros(EVENTS)
    limits: Limits = charts.limits
    spread = np.sqrt(Tables.of(ranks).variance[0, 0])
    for k, scale in enumerate(SCALES):
        if scale > 512:
            break
        limit = float(limits.upper[0][k, 0]) / 4096
        z = np.abs(total[scale:] - total[:-scale]) / limit
        evidence[scale - 1 :] = np.maximum(evidence[scale - 1 :], z / spread)
    return values, evidence, next(f.at for f in found if not f.is_calm), next(f.at for f in found if f.is_calm)


def _path(values: Sequence[float], low: float, high: float, top: float) -> str:
    x = LEFT + np.arange(len(values)) * (WIDTH - LEFT - 10) / len(values)
    y = top + HEIGHT - 10 - (np.asarray(values) - low) / (high - low) * (HEIGHT - 20)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _at(row: int) -> float:
    return LEFT + row * (WIDTH - LEFT - 10) / EVENTS


def main() -> None:
    """Write the figure."""
    values, evidence, alarm, calm = story()
    level = 2 * HEIGHT + 20 - 10 - (1 / 2.2) * (HEIGHT - 20)
    marks = [(CHANGE, "#888", "it changes"), (alarm, "#c0392b", f"alarm, {alarm - CHANGE + 1} events later"),
             (BACK, "#888", "back"), (calm, "#27ae60", "over")]  # fmt: skip
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * HEIGHT + 60}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{2 * HEIGHT + 60}" fill="white"/>',
        f'<polyline fill="none" stroke="#9db4c8" points="{_path(values.tolist(), -4, 4, 0)}"/>',
        f'<polyline fill="none" stroke="#2c3e50" points="{_path(np.minimum(evidence, 2.2).tolist(), 0, 2.2, HEIGHT + 20)}"/>',
        f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{level:.1f}" y2="{level:.1f}" stroke="#c0392b" stroke-dasharray="5 4"/>',
        f'<text x="{LEFT + 4}" y="{level - 5:.1f}" fill="#c0392b">'
        "limit: passed once in 100,000 events when nothing changes</text>",
        '<text x="4" y="80">values</text>',
        f'<text x="4" y="{HEIGHT + 95}">evidence</text>',
    ]
    for k, (row, colour, text) in enumerate(marks):
        x = _at(row)
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="5" y2="{2 * HEIGHT + 15}" stroke="{colour}"/>')
        lines.append(f'<text x="{x + 3:.1f}" y="{2 * HEIGHT + 32 + 14 * (k % 2)}" fill="{colour}">{text}</text>')
    (Path(__file__).parent / "alarm.svg").write_text("\n".join([*lines, "</svg>", ""]))


if __name__ == "__main__":
    main()
