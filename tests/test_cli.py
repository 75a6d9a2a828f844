"""The command line as a process: what it loads, and how it ends before it has begun."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers.process import free_ports

SIGTERM_CAUGHT = 1 << (signal.SIGTERM - 1)


def configuration(folder: Path) -> Path:
    """A broker's address where nobody listens: connecting takes ten seconds."""
    port, http = free_ports(2)
    body = {
        "state": str(folder / "monitor.duckdb"),
        "source": {"bootstrap_servers": f"127.0.0.1:{port}", "inference": ["t"]},
        "publish": {"http": f"127.0.0.1:{http}"},
    }
    path = folder / "monitor.yaml"
    path.write_text(json.dumps(body))
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command of the program."""
    command = [sys.executable, "-m", "stream_monitor.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def loaded_by(code: str) -> set[str]:
    """The packages that some lines of Python load."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_help_loads_nothing_slow() -> None:
    """Half a second instead of five: what computes is loaded by the command that needs it."""
    assert not loaded_by("import stream_monitor.cli") & {"numpy", "pyarrow", "scipy", "pydantic", "duckdb", "fastapi"}


def test_checking_a_file_loads_no_engine(tmp_path: Path) -> None:
    """`check` without a connection reads the file and is done."""
    code = f"from stream_monitor.cli import run_command; run_command(['check', {str(configuration(tmp_path))!r}])"
    assert not loaded_by(code) & {"river", "scipy", "fastapi", "datasketches"}


def catches_sigterm(process: subprocess.Popen[str], folder: Path) -> bool:
    """The first thing `run` does; whatever is slow comes after it."""
    del folder
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) & SIGTERM_CAUGHT)


def has_state(process: subprocess.Popen[str], folder: Path) -> bool:
    """The state file is there: what follows is connecting."""
    del process
    return (folder / "monitor.duckdb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", [catches_sigterm, has_state])
def test_a_signal_ends_a_service_that_is_still_starting(
    tmp_path: Path, number: signal.Signals, moment: Callable[[subprocess.Popen[str], Path], bool]
) -> None:
    """Exit code 0 within seconds and not a word: nothing was begun that has to be ended in order."""
    process = start("run", "--config", str(configuration(tmp_path)))
    until = time.monotonic() + 60
    while not moment(process, tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=30)
    assert (process.returncode, *said) == (0, "", "")


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """Exit code 4 and nothing else on stderr: no traceback, no word of what was not let go of."""
    process = start("run", "--config", str(configuration(tmp_path)))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, len(err.splitlines())) == (4, "", 1), err
    assert "no Kafka broker answers" in err
