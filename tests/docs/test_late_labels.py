"""The page about late labels is held to the program: its links, commands, figures, configuration and fates."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from stream_monitor import config as configuration
from stream_monitor.labels import Ripeness
from stream_monitor.publish.http import DetailQuery, PerformanceQuery, create_app
from stream_monitor.records import Reason
from stream_monitor.replay import Job, replay

ROOT = Path(__file__).parents[2]
PAGE_PATH = ROOT / "docs" / "late-labels.md"
PAGE = PAGE_PATH.read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose first column has this title."""
    found = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, first
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]


def anchor(heading: str) -> str:
    """How a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def script() -> ModuleType:
    """The program that draws the figures."""
    spec = importlib.util.spec_from_file_location("draw_late_labels", ROOT / "docs" / "draw_late_labels.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_leads_here() -> None:
    """Nobody has to find the page by looking into the folder."""
    assert "](docs/late-labels.md)" in README


def test_links_lead_somewhere() -> None:
    """Files are there, and have the headings that are linked to."""
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(targets) >= 10
    for target in targets:
        path, _, heading = target.partition("#")
        file = (PAGE_PATH.parent / path).resolve()
        assert file.is_file(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in map(anchor, headings), target


def test_figures_are_shown_and_small() -> None:
    """Every figure that is drawn is on the page, small enough for a repository, and the page says what draws them."""
    shown = set(re.findall(r"^!\[[^\]]+\]\((\S+)\)$", PAGE, re.MULTILINE))
    drawn = {f"late-labels/{path.name}" for path in (ROOT / "docs" / "late-labels").iterdir()}
    source = (ROOT / "docs" / "draw_late_labels.py").read_text(encoding="utf-8")
    written = {f"late-labels/{name}" for name in re.findall(r'write\("(\S+)"', source)}
    assert shown == drawn == written
    assert all((ROOT / "docs" / name).stat().st_size < 150_000 for name in shown)
    [command] = [line for line in "\n".join(blocks("sh")).splitlines() if ".py" in line]
    assert (ROOT / command.split()[-1]).is_file()


def test_addresses_that_are_asked_exist() -> None:
    """Each route with parameters it knows and values it takes."""
    view: Any = None
    publisher: Any = None
    routes = {str(vars(route)["path"]) for route in create_app(view, publisher).routes}
    queries = {"performance": PerformanceQuery, "performance/details": DetailQuery}
    asked = [shlex.split(line)[-1] for line in "\n".join(blocks("sh")).splitlines() if line.startswith("curl ")]
    assert len(asked) >= 3
    for url in asked:
        parts = urlsplit(url)
        assert parts.path in routes, url
        given = {name: values[0] for name, values in parse_qs(parts.query, strict_parsing=True).items()}
        query = queries.get(parts.path.removeprefix("/api/v1/"))
        if query is not None:
            query(**given).filters()


def test_the_configuration_that_is_shown_is_accepted(tmp_path: Path) -> None:
    """As it stands."""
    [text] = blocks("yaml")
    path = tmp_path / "monitor.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = configuration.load(path, {})
    assert (loaded.label_horizon, loaded.corrections) == (120 * 86_400, 7 * 86_400)
    assert yaml.safe_load(text)["models"].keys() == loaded.models.keys()


def test_the_horizon_that_is_told_is_the_default() -> None:
    """In days."""
    days = configuration.Config().label_horizon // 86_400
    assert f"`label_horizon` ({days} days)" in PAGE


def test_bases_are_all_of_them() -> None:
    """The three that a row of performance may have."""
    assert [cell.strip("`") for cell, *_ in rows("basis")] == ["cohort", "arrival", "estimated"]
    words = get_args(PerformanceQuery.model_fields["basis"].annotation)
    assert set(get_args(words[0])) == {"cohort", "arrival", "estimated"}


def test_ripeness_words_are_all_named() -> None:
    """A word the API says is explained here."""
    assert {str(word) for word in Ripeness if f"`{word}`" not in PAGE} <= {"ripe"}


def test_make_targets_exist() -> None:
    """Each that is shown."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {line.split()[1] for line in "\n".join(blocks("sh")).splitlines() if line.startswith("make ")}
    assert {"demo"} <= shown <= targets


BAD_LABELS = [(label.strip("`"), fate.strip("`"), why) for label, fate, why in rows("label")]


@pytest.mark.parametrize(("label", "fate", "why"), BAD_LABELS)
def test_bad_labels_have_the_fate_that_is_told(tmp_path: Path, label: str, fate: str, why: str) -> None:
    """One more label after two predictions and one truth: one more of that fate, and its reason where it is refused."""
    at = "2026-11-21T10:00:00Z"
    events = [
        {
            "inference_id": name,
            "model": "credit",
            "timestamp": at,
            "features": {"x": 1.0},
            "prediction": {"label": "deny"},
        }
        for name in ("a", "b")
    ]
    known = {"inference_id": "a", "label": "deny", "timestamp": "2026-11-21T10:01:00Z"}
    body = label if '"timestamp"' in label else label[:-1] + ', "timestamp": "2026-11-21T10:02:00Z"}'
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)), encoding="utf-8")
    (tmp_path / "labels.jsonl").write_text(f"{json.dumps(known)}\n{body}\n", encoding="utf-8")
    out = tmp_path / "out"
    job = Job(configuration.Config(), [tmp_path / "events.jsonl"], [tmp_path / "labels.jsonl"], [], out)
    found = replay(job)["ground_truth"]
    expected = dict.fromkeys(found, 0) | {"offered": 2, "matched": 1}
    assert found == expected | {fate: expected[fate] + 1}
    reason = re.match(r"`(\w+)`", why)
    assert (fate == "rejected") == (reason is not None)
    if reason is not None:
        assert reason[1] in set(Reason)
        assert f'"reason": "{reason[1]}"' in (out / "rejects.jsonl").read_text(encoding="utf-8")


def test_the_table_of_bad_labels_is_there() -> None:
    """With every fate but that of a label nobody predicted for months."""
    assert {fate for _, fate, _ in BAD_LABELS} == {"rejected", "duplicate", "corrected", "matched", "orphan_waiting"}


@pytest.mark.slow
def test_the_story_behind_the_figures_is_the_same_each_time() -> None:
    """Seeded: the first days give the same bytes, and labels come after their predictions."""
    module = script()
    one, other = ([next(made) for _ in range(8)] for made in (module.slices(), module.slices()))
    assert one == other
    events = {json.loads(line)["inference_id"]: json.loads(line) for step, _ in one for line in step}
    labels = [json.loads(line) for _, step in one for line in step]
    assert labels
    assert all(label["timestamp"] >= events[label["inference_id"]]["timestamp"] for label in labels)


def test_parts_of_an_answer_that_are_named_are_there() -> None:
    """What the page says a cohort of the API has, the service writes."""
    source = (ROOT / "stream_monitor" / "delays.py").read_text(encoding="utf-8")
    for name in ("coverage", "usual_coverage", "ripeness", "figures", "revisions", "delays", "cohorts"):
        assert f"`{name}`" in PAGE
        assert f'"{name}"' in source
