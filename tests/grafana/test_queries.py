"""Every query of every panel: parsed, held to the catalogue, and answered by a real Prometheus that was told the story."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from servers import prometheus as servers

from grafana import story
from grafana.ask import Answer, Prometheus, Range, ask, chosen, filled, panels, table_of
from grafana.write import boards
from stream_monitor.publish.catalogue import BY_NAME, PREFIX

Json = dict[str, Any]

BOARDS: dict[str, Json] = {name: json.loads(text) for name, text in boards().items()}
EXAMPLES = {name: "x" for board in BOARDS.values() for name in (v["name"] for v in board["templating"]["list"])}
DURATIONS = {"window": "15m", "__rate_interval": "1m", "__range": "6h", "__interval": "1m"}
LOOSE = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}
"""What Prometheus says of every target."""

STEP_SECONDS = 450
RATE = 0.5
"""A story of few events told in wide steps: half a minute of work instead of ten, and the same queries. A window of 15 minutes
needs two scrapes."""


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every target, annotation and list of a variable."""
    for name, board in BOARDS.items():
        for panel in panels(board):
            yield from ((f"{name}: {panel['title']} {t['refId']}", t["expr"]) for t in panel["targets"])
        for note in board["annotations"]["list"]:
            yield f"{name}: {note['name']}", note["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector = re.fullmatch(r"label_values\((.+), \w+\)", variable["definition"])
                assert selector is not None
                yield f"{name}: ${variable['name']}", selector[1]


EXPRESSIONS = list(expressions())
each_expression = pytest.mark.parametrize("expr", [e for _, e in EXPRESSIONS], ids=[where for where, _ in EXPRESSIONS])


def parsed(expr: str) -> Any:
    """Its syntax tree; the parser raises where there is none."""
    return promql_parser.parse(filled(expr, {**EXAMPLES, **DURATIONS}))


def nodes(node: Any) -> Iterator[Any]:
    """A node and all below it."""
    yield node
    for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, part, None)
        if isinstance(inner, promql_parser.Expr):
            yield from nodes(inner)
    for argument in getattr(node, "args", None) or ():
        yield from nodes(argument)


def selectors(expr: str) -> list[Any]:
    """Every selector in an expression, each with its name."""
    return [node for node in nodes(parsed(expr)) if isinstance(node, promql_parser.VectorSelector)]


def labels_of(name: str) -> set[str]:
    """The labels of a series as exposed; KeyError for one that is not."""
    family = name.removeprefix(PREFIX)
    for end in ("_bucket", "_sum", "_count"):
        if family not in BY_NAME and BY_NAME[family.removesuffix(end)].kind == "histogram":
            return {*BY_NAME[family.removesuffix(end)].labels, "le"}
    return set(BY_NAME[family].labels)


@each_expression
def test_names_and_labels_are_of_the_catalogue(expr: str) -> None:
    """Each selector names a family and labels that the service exposes, and the job that was chosen."""
    found = selectors(expr)
    assert found
    for selector in found:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        if "build_info" not in selector.name:  # the list of jobs itself
            assert "job" in matched
        allowed = set() if selector.name in LOOSE else labels_of(str(selector.name))
        assert matched <= allowed | {"job"}


@each_expression
def test_labels_kept_by_an_aggregation_are_there(expr: str) -> None:
    """`by (…)` names labels of the series below it, or of the target."""
    for node in nodes(parsed(expr)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            below = [inner for inner in nodes(node.expr) if isinstance(inner, promql_parser.VectorSelector)]
            known = set().union(*(set() if s.name in LOOSE else labels_of(str(s.name)) for s in below))
            made = {"same"} if "label_replace" in expr else set()
            assert set(node.modifier.labels) <= known | made | {"job", "instance"}


@each_expression
def test_counters_are_looked_at_over_a_time(expr: str) -> None:
    """A counter or a bucket stands in a range, a gauge in none but for its extremes; `rate` spans four scrapes."""
    ranged = [n.vector_selector.name for n in nodes(parsed(expr)) if isinstance(n, promql_parser.MatrixSelector)]
    for selector in selectors(expr):
        family = selector.name.removeprefix(PREFIX)
        counts = family in BY_NAME and BY_NAME[family].kind == "counter"
        grows = f"{selector.name}{{" in expr.partition(" offset 1h")[0] and " offset 1h" in expr
        assert (selector.name in ranged) == ((counts and not grows) or family.endswith("_bucket")), selector.name
    assert not re.search(r"\b(?:irate|rate)\([^[]*\[(?!\$__rate_interval\])", expr)


def test_the_checks_see_mistakes() -> None:
    """A name, a label and a syntax that are wrong are noticed."""
    with pytest.raises(KeyError):
        labels_of(PREFIX + "feature_drift_scores")
    assert "feature" not in labels_of(PREFIX + "performance")
    with pytest.raises(ValueError, match="parenthesis"):
        parsed("sum by (a (b)")


# -- on a real server ------------------------------------------------------------------------------

SELECTIONS: dict[str, dict[str, str]] = {
    "credit in trouble": {"model": "credit", "version": "7", "feature": "age", "metric": "accuracy"},
    "demand in trouble": {"model": "demand", "version": "3", "feature": "price", "metric": "mae"},
    "credit with a new version": {"model": "credit", "feature": "channel", "metric": "accuracy"},
}
ENDS = {"credit with a new version": story.HOURS}
"""At which hour of the story a selection is looked at, where it is not that of most incidents."""

QUIET: dict[str, set[tuple[str, str]]] = {
    # Every age comes as text: there is nothing left to score, and the panels of bins say why.
    "credit in trouble": {
        ("feature.json", "Score"),
        ("feature.json", "Score / threshold"),
        ("labels.json", "Errors now and on the baseline"),
    },
    # A model of numbers without segments, and a price that is as it was.
    "demand in trouble": {
        ("model.json", "Scores"),
        ("model.json", "Traffic by segment"),
        ("model.json", "Worst drift by segment"),
        ("model.json", "$metric by segment"),
        ("feature.json", "Open incidents that name it"),
        ("feature.json", "Changes that detectors saw"),
        ("labels.json", "Who was taken for what"),
        ("labels.json", "Recall of each class"),
        ("labels.json", "What came true of each confidence"),
    },
    # Half an hour old and as its baseline; the matrix wants a closed hour, and how labels usually come two cells of it.
    "credit with a new version": {
        ("feature.json", "Open incidents that name it"),
        ("feature.json", "Changes that detectors saw"),
        ("labels.json", "Who was taken for what"),
        ("labels.json", "Recall of each class"),
        ("labels.json", "What came true of each confidence"),
        ("labels.json", "Errors now and on the baseline"),
        ("labels.json", "Labelled / usual"),
    },
}
"""Panels that have nothing to show, and say so."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A server with the story in it."""
    missing = servers.unavailable()
    if missing is not None:
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    folder = tmp_path_factory.mktemp("story")
    samples = story.Telling(folder, step_seconds=STEP_SECONDS, rate=RATE).run()
    with story.prometheus(samples, folder) as url:
        yield Prometheus(url)


def over(selection: str) -> Range:
    """Six hours before the moment that is looked at."""
    end = story.START + ENDS.get(selection, story.INCIDENT_HOUR) * 3600
    return Range(max(story.START, end - 6 * 3600), end, STEP_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", BOARDS)
def test_panels_show_data(prometheus: Prometheus, name: str, selection: str) -> None:
    """Every query is answered without a complaint; every panel but the quiet ones shows finite figures."""
    board, span = BOARDS[name], over(selection)
    own = {v["name"] for v in board["templating"]["list"]}
    given = {"datasource": "prometheus", **{k: v for k, v in SELECTIONS[selection].items() if k in own}}
    if name == "models.json":
        given = {"datasource": "prometheus"}
    values = chosen(board, prometheus, span, given=given)
    silent = set()
    for panel in panels(board):
        answers = ask(panel, prometheus, span, values)
        if not any(map(shows, answers)):
            silent.add(panel["title"])
        for answer in answers:
            assert not any(map(math.isinf, figures(answer))), (panel["title"], answer.expr)
        if panel["type"] in ("table", "barchart"):
            check_table(panel, answers)
    assert silent == {title for board_name, title in QUIET[selection] if board_name == name}


def figures(answer: Answer) -> Iterator[float]:
    """Every value of an answer."""
    for one in answer.result:
        yield from (float(value) for _, value in ([one["value"]] if answer.is_table else one["values"]))


def shows(answer: Answer) -> bool:
    """Whether there is a figure at all."""
    return any(map(math.isfinite, figures(answer)))


def check_table(panel: Json, answers: list[Answer]) -> None:
    """Queries meet in rows: no row has labels of one query alone where others have more."""
    rows = table_of(panel, answers)
    assert len(rows) <= sum(len(answer.result) for answer in answers)
    named = [o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]]
    for row in rows:
        assert not any(column.startswith("Value #") for column in row) or panel["type"] == "barchart", (named, row)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_annotations_mark_what_happened(prometheus: Prometheus) -> None:
    """Incidents and new baselines of the story are marked on the dashboard of their model."""
    board, span = BOARDS["model.json"], Range(story.START, story.START + story.HOURS * 3600, STEP_SECONDS)
    given = {"datasource": "prometheus", "model": "credit", "version": ".+"}
    values = chosen(board, prometheus, span, given=given)
    found = {n["name"]: prometheus.series(filled(n["expr"], values), span) for n in board["annotations"]["list"]}
    kinds = {one["metric"]["kind"] for one in found["Incidents"]}
    assert {"data_drift", "broken_input"} <= kinds
    assert {one["metric"]["version"] for one in found["New baselines"]} == {"7", "8"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_psi_in_promql_is_near_the_services_own(prometheus: Prometheus) -> None:
    """While the income is higher both say so, within a third; before, both are near what chance gives."""
    board = BOARDS["feature.json"]
    titles = {panel["title"]: panel for panel in panels(board)}
    given = {"datasource": "prometheus", "model": "credit", "version": "7", "feature": "income", "window": "15m"}
    for hour, drifted in ((1.75, False), (3.5, True)):
        span = Range(story.START, story.START + hour * 3600, STEP_SECONDS)
        values = chosen(board, prometheus, span, given=given)
        [score] = ask(titles["Score"], prometheus, span, values)
        computed, chance = ask(titles["PSI over time, from bins"], prometheus, span, values)
        own = float(score.result[0]["value"][1])
        from_bins = float(computed.result[0]["values"][-1][1])
        expected = float(chance.result[0]["values"][-1][1])
        assert (own > 0.2) == drifted
        assert from_bins == pytest.approx(own, rel=1 / 3) if drifted else from_bins < 4 * expected
