"""Events a second of `stream-monitor replay` over JSONL: clean, with broken records, with broken values, with labels.

python tests/benchmarks/replay.py --events 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import events

COMMAND = (sys.executable, "-c", "import sys; from stream_monitor.cli import main; sys.exit(main())")


def measure(arguments: Sequence[str | Path], out: Path) -> tuple[float, float, float]:
    """Events a second by the replay's own clock, its CPU seconds, its largest resident size in MB."""
    command = [*COMMAND, "replay", *map(str, arguments), "--out", str(out), "--json"]
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"replay ended with exit code {child.returncode}")
    summary = json.loads((out / "summary.json").read_text())
    return summary["events_per_second"], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    """Print a line for each kind of input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=25)
    parser.add_argument("--per-second", type=float, default=1_000.0, help="events in a second of event time")
    options = parser.parse_args()
    clean = events.Stream(options.events, options.features, per_second=options.per_second)
    kinds = {
        "clean": clean,
        "10 % broken records": replace(clean, broken_records=0.1),
        "10 % broken values": replace(clean, broken_values=0.1),
    }
    print(f"{'replay':24} {'events/s':>10} {'us CPU/event':>13} {'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        path, labels, out = Path(folder) / "events.jsonl", Path(folder) / "labels.jsonl", Path(folder) / "out"
        for name, stream in kinds.items():
            events.write(events.inference(stream), path)
            _print(name, measure(["--inference", path], out), options.events)
        events.write(events.inference(clean), path)
        events.write(events.ground_truth(clean), labels)
        _print("every event labelled", measure(["--inference", path, "--ground-truth", labels], out), options.events)


def _print(name: str, found: tuple[float, float, float], count: int) -> None:
    rate, cpu, megabytes = found
    print(f"{name:24} {rate:10,.0f} {cpu / count * 1e6:13.1f} {megabytes:6.0f}", flush=True)


if __name__ == "__main__":
    main()
