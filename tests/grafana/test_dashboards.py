"""The dashboards as files: made by the code, complete for those who read them, and leading where they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from grafana_foundation_sdk.models import units

from grafana.ask import panels
from grafana.board import TITLES
from grafana.write import FOLDER, boards
from stream_monitor.publish.http import API

Json = dict[str, Any]

MADE = boards()
BOARDS: dict[str, Json] = {name: json.loads(text) for name, text in MADE.items()}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in panels(board)]
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and name[0].isupper()}
MOST_PANELS = 30

each_board = pytest.mark.parametrize("name", BOARDS)
each_panel = pytest.mark.parametrize(("name", "panel"), PANELS, ids=[f"{n}: {p['title']}" for n, p in PANELS])


def test_committed_files_are_what_the_code_makes() -> None:
    """`python -m grafana.write` would change nothing."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")} == MADE


def test_each_has_an_address_of_its_own() -> None:
    """Five, with the uids that links and runbooks name."""
    assert [board["uid"] for board in BOARDS.values()] == list(TITLES)


@each_board
def test_files_are_classic_and_cannot_be_edited(name: str) -> None:
    """What file provisioning takes: the classic schema, no number of another Grafana's database, no edits that get lost."""
    board = BOARDS[name]
    assert 36 <= board["schemaVersion"] <= 42
    assert "id" not in board
    assert board["editable"] is False
    assert board["description"].endswith(".")


@each_board
def test_panels_lie_beside_each_other(name: str) -> None:
    """Numbers are unique, nothing overlaps, nothing hangs over the edge, and there are not too many."""
    board = BOARDS[name]
    everything = [*board["panels"], *(p for row in board["panels"] for p in row.get("panels", ()))]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells, panel["title"]
        cells |= own
    assert len(list(panels(board))) <= MOST_PANELS


@each_board
def test_variables_follow_the_range_and_the_data_source(name: str) -> None:
    """A data source and a job to choose, and every list asked for anew when the range changes."""
    variables = {variable["name"]: variable for variable in BOARDS[name]["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["datasource"]["label"] == "Data source"
    assert (variables["job"]["multi"], variables["job"]["allValue"]) == (True, ".+")
    assert all(v["label"] for v in variables.values())
    for variable in variables.values():
        if variable["type"] == "query":
            assert variable["refresh"] == 2
            assert variable["datasource"]["uid"] == "${datasource}"
            assert variable["query"]["query"] == variable["definition"]


@each_panel
def test_panels_say_what_good_looks_like(name: str, panel: Json) -> None:
    """A title, a text with the good case in it, a unit that Grafana has, a word for no data."""
    del name
    assert panel["title"]
    assert re.search(r"\bGood: ", panel["description"])
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["noValue"]
    given = [p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"]
    assert {defaults["unit"], *given} <= UNITS


@each_panel
def test_targets_are_named_and_asked_of_the_chosen_source(name: str, panel: Json) -> None:
    """Every series over time has a name in the legend; every target its letter."""
    del name
    targets = panel["targets"]
    assert [target["refId"] for target in targets] == [chr(ord("A") + n) for n in range(len(targets))]
    assert all(part["datasource"]["uid"] == "${datasource}" for part in (panel, *targets))
    if panel["type"] not in ("table", "stat"):
        assert all(target["legendFormat"] != "__auto" for target in targets)
        assert len({target["legendFormat"] for target in targets}) == len(targets)


@each_panel
def test_columns_that_are_dressed_are_there(name: str, panel: Json) -> None:
    """An override by name is for a column that the table has after renaming, and a sort is by one of them."""
    del name
    if panel["type"] != "table":
        return
    [options] = [t["options"] for t in panel["transformations"] if t["id"] == "organize"] or [{}]
    kept = [name for name in options.get("indexByName", ()) if name not in options["excludeByName"]]
    columns = {options["renameByName"].get(name, name) for name in kept}
    assert {o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]} == columns
    assert {by["displayName"] for by in panel["options"].get("sortBy", ())} <= columns
    values = {name for name in options.get("indexByName", ()) if name.startswith(("Value", "Trend"))}
    assert len(values) == (len(panel["targets"]) if options else 0)


def urls() -> Iterator[tuple[str, str]]:
    """(dashboard, address) of every link in a dashboard or a cell."""
    for name, board in BOARDS.items():
        yield from ((name, link["url"]) for link in board["links"])
        for panel in panels(board):
            for override in panel["fieldConfig"]["overrides"]:
                for given in override["properties"]:
                    if given["id"] == "links":
                        yield from ((name, link["url"]) for link in given["value"])


@pytest.mark.parametrize(("name", "url"), sorted(set(urls())))
def test_links_lead_somewhere(name: str, url: str) -> None:
    """To a dashboard that is here, with variables that it has, or to a route of the service."""
    assert {v for v in re.findall(r"\$\{(\w+)", url) if not v.startswith("__")} <= own_variables(name)
    if url.startswith("${service}"):
        assert url.removeprefix("${service}") in ("/", f"{API}/incidents/${{__data.fields.incident}}")
        return
    parts = urlsplit(url)
    uid = parts.path.removeprefix("/d/")
    target = next(n for n, board in BOARDS.items() if board["uid"] == uid)
    assert set(re.findall(r"var-(\w+)=", parts.query)) <= own_variables(target)


def own_variables(name: str) -> set[str]:
    """The variables of a dashboard."""
    return {variable["name"] for variable in BOARDS[name]["templating"]["list"]}


@each_board
def test_the_five_are_linked_to_each_other(name: str) -> None:
    """From each to all the others, taking time and variables along, and to the service's console."""
    links = BOARDS[name]["links"]
    others = {link["url"] for link in links if link["url"].startswith("/d/")}
    assert others == {f"/d/{uid}" for uid in TITLES if uid != BOARDS[name]["uid"]}
    assert all(link["keepTime"] and link["includeVars"] for link in links if link["url"] in others)


def test_provisioning_is_of_files() -> None:
    """From files, which cannot be changed in the browser, over a data source of the kind that they ask for."""
    folder = FOLDER.parent / "provisioning"
    [provider] = yaml.safe_load((folder / "dashboards" / "stream-monitor.yaml").read_text())["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"


def test_the_page_shows_each_of_them() -> None:
    """A section with a picture for every dashboard; pictures are there and small enough for a repository."""
    docs = FOLDER.parents[1] / "docs"
    page = (docs / "dashboards.md").read_text(encoding="utf-8")
    shown = re.findall(r"^!\[([^\]]+)\]\((\S+)\)$", page, re.MULTILINE)
    assert [title for title, _ in shown] == list(TITLES.values())
    assert [target for _, target in shown] == [f"dashboards/{name.replace('.json', '.png')}" for name in BOARDS]
    assert all(0 < (docs / target).stat().st_size < 450_000 for _, target in shown)
