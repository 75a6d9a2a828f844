"""The console: what it says, that it escapes whatever people call things, and that it needs nothing from elsewhere."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from fake_view import HOSTILE, FakeView, cohort, labels
from fastapi.testclient import TestClient

from stream_monitor.publish import console
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Filters, create_app
from stream_monitor.records import Json


class Reader(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a person reads."""
        return " ".join(self.words)


def web(view: FakeView) -> TestClient:
    """A browser on this machine."""
    return TestClient(create_app(view, Publisher(series=1000)), base_url="http://localhost:9464")


def test_says_what_is_wrong_in_words() -> None:
    """Open incidents, models, features, quality and totals are on the page."""
    read = Reader(web(FakeView()).get("/").text)
    for words in ("Open incidents (2)", "Incomes of credit 7 moved since 08:40", "market=eu", "keeps up", "44 %"):
        assert words in read.text
    assert "nan" not in read.text.lower()


def test_a_gap_that_lasts_is_said_once_for_each_version() -> None:
    """Under the table of quality, of the first metric that has one; what a model is called stays text."""
    said = "In 3 labelled windows in a row accuracy was below what was expected."
    common = {"version": "7", "segment": {}, "outcome": "label", "window": "1d"}
    rows: list[Json] = [
        {**common, "model": HOSTILE, "metric": "accuracy", "gap": said},
        {**common, "model": HOSTILE, "metric": "auc", "gap": said.replace("accuracy", "auc")},
        {**common, "model": "credit", "metric": "accuracy", "gap": None},
    ]
    quality = FakeView().performance(Filters())
    page = console.page(summary={}, models=[], features=[], opened=[], closed=[], performance=quality, reasons=[],
                        estimated=rows)  # fmt: skip
    read = Reader(page)
    assert said in read.text
    assert read.text.count("labelled windows in a row") == 1
    assert read.tags.count("script") == 1


def test_names_are_text_wherever_they_stand() -> None:
    """A model called like a script is shown, not run."""
    page = web(FakeView()).get("/").text
    read = Reader(page)
    assert HOSTILE in read.text
    assert read.tags.count("script") == 1
    assert "<script>alert" not in page


def test_hostile_attributes_do_not_get_out_of_their_quotes() -> None:
    """Severity and verdict become class names; the page trusts neither."""
    bad = '"><script>alert(1)</script>'
    view = FakeView()
    [first, *_] = view.incidents(Filters())
    page = console.page(summary={}, models=[], features=[], opened=[{**first, "severity": bad, "onset": bad}],
                        closed=[], performance=[], reasons=[bad])  # fmt: skip
    assert Reader(page).tags.count("script") == 1


def test_a_new_service_has_an_empty_page_and_says_so() -> None:
    """No events, no incidents, not ready: each in a sentence."""
    read = Reader(web(FakeView(is_empty=True, reasons=["no partition is assigned yet"])).get("/").text)
    for words in ("Nothing is open.", "No events yet.", "No labels yet.", "not ready: no partition is assigned yet"):
        assert words in read.text


@pytest.mark.parametrize("path", ["/", "/api/docs"])
def test_nothing_comes_from_elsewhere(path: str) -> None:
    """No address with a host in any attribute, no inline style, and a policy that would forbid it."""
    answer = web(FakeView()).get(path)
    read = Reader(answer.text)
    assert not [value for name, value in read.attributes if name in ("src", "href") and not value.startswith("/")]
    assert not [name for name, _ in read.attributes if name == "style" or name.startswith("on")]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_docs_list_every_route() -> None:
    """Whatever the API answers is on its page."""
    read = Reader(web(FakeView()).get("/api/docs").text)
    for path in ("GET /api/v1/incidents/{incident_id}", "POST /api/v1/baselines/promote", "GET /api/v1/summary"):
        assert path in read.text


@pytest.mark.parametrize(
    ("value", "threshold", "verdict", "strength"),
    [
        (0.4, 0.1, "drift", 4.0),
        (math.nan, 0.1, "ok", 0.0),
        (None, 0.1, "ok", 0.0),
        (0.4, 0.0, "ok", 0.0),
        (0.4, 0.1, "insufficient", 0.0),
    ],
)
def test_strength_is_value_over_threshold(value: float | None, threshold: float, verdict: str, strength: float) -> None:
    """Where it cannot be told it is nothing, never a crash of the page."""
    score = {"value": value, "threshold": threshold, "verdict": verdict}
    assert console.strength(score) == pytest.approx(strength)


def test_worst_features_come_first() -> None:
    """The one furthest beyond its threshold is on top."""
    text = Reader(web(FakeView()).get("/").text).text
    part = text[text.index("Worst features") :]
    assert part.index("income") < part.index("channel") < part.index("age")


def test_a_very_long_name_is_cut() -> None:
    """Ten thousand characters of a feature's name would bury everything else."""
    features = [{"model": "m", "version": "1", "name": "x" * 10_000, "latest": [
        {"window": "1h", "statistic": "psi", "value": 0.1, "threshold": 0.2, "verdict": "ok"}]}]  # fmt: skip
    page = console.page(summary={}, models=[], features=features, opened=[], closed=[], performance=[], reasons=[])
    assert "x" * 80 + "…" in Reader(page).text
    assert "x" * 1001 not in page


def labels_section(page: str) -> str:
    """What a person reads of cohorts."""
    text = Reader(page).text
    return text[text.index("Cohorts and their labels") : text.index("Model quality")]


def test_cohorts_tell_their_labels_and_what_was_said_before() -> None:
    """Coverage, the first figure and that of now, what was expected; the longer window where shorter ones have no labels."""
    part = labels_section(web(FakeView()).get("/").text)
    for words in ("11-21 09:30", "32 %", "64 %", "labels missing", "0.712", "at 10 %", "0.741", "0.723 – 0.765"):
        assert words in part
    churn = part[part.index("churn 2026-11") :]
    assert "11-21 00:00" in churn
    assert "09:30" not in churn


def test_versions_whose_labels_are_late_come_first() -> None:
    """And a name that looks like a script is text there too."""
    part = labels_section(web(FakeView()).get("/").text)
    assert part.index(HOSTILE) < part.index("credit 7") < part.index("churn 2026-11")


def test_many_versions_leave_the_page_small() -> None:
    """The newest few are shown; how many more there are is said."""
    rows = [labels(f"m{n:03}", "1") for n in range(300)]
    quality = [{**row, "model": f"m{n:03}"} for n in range(300) for row in FakeView().performance(Filters())]
    page = console.page(summary={}, models=[], features=[], opened=[], closed=[], performance=quality, reasons=[],
                        labels=rows)  # fmt: skip
    assert "296 more versions" in Reader(page).text
    assert len(page) < 60_000


def test_nothing_of_a_cohort_needs_to_be_known() -> None:
    """No interval, no figure, no habit: dashes and an empty strip, never nan."""
    bare = cohort("1h", "08:00", 0) | {"labelled": 1, "coverage": math.nan, "usual_coverage": math.nan}
    vague = cohort("1h", "07:00", 40)
    vague["figures"] = [dict.fromkeys(vague["figures"][0], None) | {"metric": "mae", "value": 3.5}]
    rows = [labels("m", "1") | {"cohorts": [bare, vague]}]
    page = console.page(summary={}, models=[], features=[], opened=[], closed=[], performance=[], reasons=[],
                        labels=rows)  # fmt: skip
    Reader(page)
    assert "nan" not in page.lower()
    assert "None" not in page


def test_the_strip_has_one_scale_for_all_cohorts_of_a_version() -> None:
    """The same value lies at the same place in each; what lies between others is drawn between them."""
    read = Reader(web(FakeView()).get("/").text)
    places = [float(value.rstrip("%")) for name, value in read.attributes if name == "cx"]
    assert len(set(places)) == 2  # before and now, twice alike, in three versions
    before, now = sorted(set(places))
    assert 4 <= before < now <= 96


def test_quality_speaks_of_every_model() -> None:
    """The first metrics of the shortest window; one model's twenty do not leave the others out."""
    [row, *_] = FakeView().performance(Filters())
    rows = [{**row, "model": model, "window": window, "metric": metric, "segment": segment}
            for model in ("a", "b") for segment in ({}, {"market": "eu"}) for window in ("15m", "1h")
            for metric in ("accuracy", "true_positive_rate", "auc", "recall[yes]")]  # fmt: skip
    found = [(r["model"], r["window"], r["metric"]) for r in console.spoken(rows)]
    assert found == [(m, "15m", metric) for m in ("a", "b") for metric in ("accuracy", "auc")]


def test_what_waits_for_labels_says_why() -> None:
    """A sentence for each version whose errors are not watched as labels come, with a hostile name escaped in it too."""
    part = labels_section(web(FakeView()).get("/").text)
    assert f"{HOSTILE} 1 : errors wait, labels of {HOSTILE} come first (1\u202f204 held back)." in part.replace(
        " 1:", " 1 :"
    )
    assert "churn 2026-11: errors wait, labels of churn come first." in part
    assert "labels of credit come first" not in part
