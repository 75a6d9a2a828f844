"""One model version at work: rows wait, panes seal, windows close, verdicts become incidents.

A `Version` owns the baseline and the raw rows whose pane still stands open. Its `Line`s, the whole and one for
each segment, hold the profile of every span that is under way. What is finished goes to the store.
"""

from __future__ import annotations

import json
import logging
import struct
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stream_monitor.baselines import reading_of
from stream_monitor.config import duration_text
from stream_monitor.judge import baseline as baselines
from stream_monitor.judge.baseline import Baseline, Reading
from stream_monitor.judge.calibrate import LABELS_SHARE, Budget
from stream_monitor.judge.charts import Found
from stream_monitor.judge.detectors import DetectorBank
from stream_monitor.judge.finding import Case, case_of, kind_of
from stream_monitor.judge.incident import IncidentBook, group_of
from stream_monitor.judge.onset import estimate_onset
from stream_monitor.judge.season import PERIODS
from stream_monitor.judge.verdicts import Span, score_window
from stream_monitor.judge.watch import Watch, compressed, decompressed, delta_of, rows_of
from stream_monitor.judge.wording import describe
from stream_monitor.publish.log import fields
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Codes,
    Evidence,
    Floats,
    Incident,
    IncidentKind,
    Inferences,
    Ints,
    LineKey,
    ModelKey,
    Score,
    Verdict,
    window_start,
    window_starts,
)
from stream_monitor.store import DAYS, FIVE_MINUTES, HOURS, PANES, SCORES, SKETCHES, Shelf
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.profile import Coded, Profile, pane_bodies
from stream_monitor.summarize.protocol import BINS, MAIN, UNSEEN
from stream_monitor.summarize.rows import Rows, concat
from stream_monitor.summarize.sketches import Sketches

if TYPE_CHECKING:
    from stream_monitor.engine import Engine

log = logging.getLogger(__name__)

HOUR_US = 3_600 * MICROSECONDS
WEEK_US = 168 * HOUR_US
LEVELS: Sequence[tuple[int, Shelf]] = ((86_400, DAYS), (3_600, HOURS), (300, FIVE_MINUTES))
"""Spans every line compacts its panes to, the longest first, and where they are kept."""

DELTA_BYTES = 1 << 19
DELTAS = 64
"""Rows are written beside the stored charts, up to half a megabyte or 64 checkpoints of them, then the charts again: what is
written a second stays near what comes in. Each line has limits of its own, up to half as much more, so that the charts
of a hundred versions are not written all in one transaction."""

SKETCH_CHECKPOINTS = 30
"""The sketch of an hour under way is written at every 30th checkpoint only: people miss a minute of it after a crash."""

BIN_SUBJECTS = 20
"""Subjects whose bins are counted for the metrics: 20 of them are 600 series a version, 200 would be 6,000."""

COARSE_MAIN = 10
COARSE = COARSE_MAIN + BINS - MAIN
"""Ten bins of equal mass, as people know them from PSI, and the bins for what is no value in range."""


@dataclass(slots=True)
class _Open:
    """A span under way: its start and the profile so far."""

    start_us: int
    profile: Profile


class Line:
    """The profile of every span under way for one (model, version, segment), and its incidents."""

    def __init__(self, engine: Engine, key: LineKey, baseline: Baseline | None, *, whole: Line | None = None) -> None:
        self.engine = engine
        self.key = key
        self._whole = whole  # of a segment: the line of its version
        self.number = engine.names.line_index(key)
        self.baseline = baseline
        self.book = IncidentBook(key)
        self._configure_book()
        self.detectors: DetectorBank | None = None
        self.watch: Watch | None = None
        self._unwritten: list[bytes] = []  # rows the watch was given since the last checkpoint
        self._deltas: list[int] = []  # rows in each delta that stands beside the stored watch
        self.open: dict[int, _Open] = {}  # span seconds -> what is under way
        self.latest: dict[int, list[Score]] = {}  # window seconds -> scores of the last window that closed
        self.observed: Ints = np.zeros((0, COARSE), np.int64)  # counts since the baseline is in use, coarse bins
        self._previous: dict[int, _Open] = {}  # window seconds -> the last one that closed
        self._trailing: dict[int, tuple[int, Profile, list[Score]]] = {}
        self._finished: dict[Shelf, list[tuple[int, int, bytes]]] = defaultdict(list)
        self._scores: list[Score] = []
        self._sketch: tuple[int, Sketches] | None = None
        self._saves = 0
        self.use(baseline)

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole model version, not a segment of it."""
        return not self.key.segment

    def _configure_book(self) -> None:
        """What the configuration of today says, whatever it said when the book was stored."""
        config = self.engine.config
        self.book.minimum_effect = config.drift.minimum_effect
        self.book.importance = {n: f.importance for n, f in config.model(self.key.model).features.items()}
        self.book.fixed = {name: fixed.critical for name, fixed in config.drift.thresholds.items()}

    def use(self, baseline: Baseline | None) -> None:
        """Judge by this baseline from now on; what was under way on another schema is let go."""
        self.baseline = baseline
        self.open = {}
        self._sketch = None
        self._previous, self._trailing = {}, {}
        self.detectors = None
        self.watch, self._unwritten = None, []
        if baseline is not None:
            self.watch = self._new_watch(baseline)
            self.book.begin_charts(features=sum(s.key.kind == "feature" for s in baseline.schema.subjects))
            self.observed = np.zeros((min(len(baseline.schema), BIN_SUBJECTS), COARSE), np.int64)
        self.book.baseline_id = None if baseline is None else baseline.id
        if baseline is not None and self.is_whole and self.engine.config.drift.detectors:
            self.detectors = DetectorBank(len(baseline.schema), makes=self.engine.config.drift.detectors)

    def _new_watch(self, baseline: Baseline) -> Watch:
        """The charts of this line and its part of the model's budget.

        A fifth is for what labels show, where labels are expected. With segments configured the whole version gets
        half of the rest; an event belongs to one segment of each key, and time passes for every segment that may be.
        """
        config = self.engine.config
        budget = Budget.parse(config.drift.false_alarms)
        share = 1 - LABELS_SHARE if self.engine.expects_labels else 1.0
        keys = config.model(self.key.model).segments
        if keys:
            share /= 2
        if not self.is_whole:
            share /= len(keys) if budget.events is not None else config.limits.segments
        wanted, season = config.drift.seasonality, baseline.season
        watch = Watch.of(baseline, budget, share, seasonality=wanted)
        if wanted != "none" and watch.season is None and self.is_whole:
            log.warning(
                "baseline_without_rhythm",
                extra=fields(model=self.key.model, version=self.key.version, seasonality=wanted,
                       hours_covered=0 if season is None else season.covered, hours=PERIODS[wanted]),
            )  # fmt: skip
        return watch

    # -- folding ---------------------------------------------------------------------------------

    def absorb(self, rows: Rows, coded: Coded, *, until_us: int) -> list[Incident]:
        """Fold sealed rows, which are in order, and close every span that ends by `until_us`."""
        assert self.baseline is not None
        changed: dict[str, Incident] = {}
        self._keep_panes(rows, coded)
        ends = self._ends(rows.time_us, until_us)
        cuts = np.searchsorted(rows.time_us, ends, "left")
        cases = deque(self._watch(rows, coded))
        start = 0
        for end_us, stop in zip([*ends.tolist(), None], [*cuts.tolist(), len(rows)], strict=True):
            if stop > start:
                self._fold(rows, coded, start, stop, changed)
                start = stop
            while cases and cases[0][0].at < stop:
                self._tell(*cases.popleft(), changed)
            if end_us is not None:
                self._close_spans(end_us, changed)
        self.flush()
        return list(changed.values())

    def _ends(self, time_us: Ints, until_us: int) -> Ints:
        """The ends, ascending and at most `until_us`, of the spans these rows fall in or that are under way."""
        spans = self.engine.spans
        ends = [np.unique(window_starts(time_us, s)) + s * MICROSECONDS for s in spans]
        ends.append(np.array([o.start_us + s * MICROSECONDS for s, o in self.open.items()], np.int64))
        every = np.unique(np.concatenate(ends))
        return every[every <= until_us]

    def _keep_panes(self, rows: Rows, coded: Coded) -> None:
        assert self.baseline is not None
        if not len(rows):
            return
        pane = rows.time_us // self.engine.pane_us
        starts = np.flatnonzero(np.diff(pane, prepend=pane[0] - 1))
        bodies = pane_bodies(self.baseline.schema, coded, starts)
        at = (pane[starts] * self.engine.pane_us).tolist()
        self._finished[PANES] += [(time, n, body) for time, (n, body) in zip(at, bodies, strict=True)]

    def _fold(self, rows: Rows, coded: Coded, start: int, stop: int, changed: dict[str, Incident]) -> None:
        """Add rows [start, stop), which cross no span's end, to every span under way."""
        assert self.baseline is not None
        part = Coded(coded.code[start:stop], coded.number[start:stop])
        profile = Profile.fold(self.baseline.schema, part)
        first = int(rows.time_us[start])
        for seconds in self.engine.spans:
            held = self.open.get(seconds)
            if held is None:
                self.open[seconds] = _Open(window_start(first, seconds), profile)
            else:
                held.profile = held.profile.merge(profile)
        if self.is_whole:
            self.observed += self.coarse(profile.counts)
            self._sketch_rows(rows, part, start, stop)
            if self.detectors is not None:
                self._detect(self.detectors, part.number, rows.time_us[start:stop], changed)

    def _sketch_rows(self, rows: Rows, part: Coded, start: int, stop: int) -> None:
        assert self.baseline is not None
        hour = int(rows.time_us[start]) // HOUR_US * HOUR_US
        if self._sketch is None or self._sketch[0] != hour:
            self._sketch = (hour, Sketches())
        schema = self.baseline.schema
        unseen = schema.unseen(rows.take(np.arange(start, stop)), part.code) if (part.code == UNSEEN).any() else {}
        self._sketch[1].update(part.number, unseen)

    def _watch(self, rows: Rows, coded: Coded) -> list[tuple[Found, Case | None]]:
        """What the charts found in these rows, by time, each alarm with its case."""
        assert self.watch is not None
        if not len(rows):
            return []
        found = self.watch.update(coded.code, rows.id_hi, rows.id_lo, rows.time_us, matters=self._matters)
        self._unwritten.append(delta_of(coded.code, rows.id_hi, rows.id_lo, rows.time_us))
        return [(f, None if f.is_calm else self._case(f)) for f in found]

    def _matters(self, found: Found) -> bool:
        """The second gate: an effect of practical size, and of a segment, one that its model does not show too."""
        case = self._case(found)
        is_small = case.evidence.effect < self.book.minimum_effect  # one that cannot be told is not small
        return not is_small and not self._is_told_of_the_whole(case, found)

    def _case(self, found: Found) -> Case:
        assert self.baseline is not None
        baseline, f = self.baseline, found.unit.subject
        return case_of(
            found,
            baseline.schema.subjects[f],
            baseline=baseline.profile.counts[f],
            representatives=baseline.representatives[f],
            deviation=float(baseline.deviations[f]),
            line=self.key,
        )

    def _is_told_of_the_whole(self, case: Case, found: Found) -> bool:
        """A segment that drifts with its model is no news beside it."""
        if self._whole is None:
            return False
        return self._whole.book.stood(case.kind, case.evidence.name, at_us=found.time_us)

    def _tell(self, found: Found, case: Case | None, changed: dict[str, Incident]) -> None:
        """Bring what the charts found to the book."""
        assert self.baseline is not None
        if found.is_calm:
            subject = self.baseline.schema.subjects[found.unit.subject]
            kind = kind_of(subject.key.kind, is_bad=found.unit.is_bad)
            noted = self.book.calm(kind, subject.key.name, now_us=found.time_us)
            self._merge_changes(noted, changed, found.time_us)
            return
        assert case is not None
        if not found.is_again:
            self.engine.count("detector_changes", 1, model=self.key.model, version=self.key.version,
                              feature=case.evidence.name, detector="charts")  # fmt: skip
        noted = self.book.alarm(
            case.kind,
            case.evidence,
            now_us=found.time_us,
            onset_us=case.onset_us,
            onset_between_us=case.onset_between_us,
        )
        self._merge_changes(noted, changed, found.time_us)

    def _detect(self, detectors: DetectorBank, number: Floats, time_us: Ints, changed: dict[str, Incident]) -> None:
        assert self.baseline is not None
        spread = self.baseline.deviations
        usable = np.isfinite(spread) & (spread > 0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values = (number - self.baseline.means) / np.where(usable, spread, np.nan)
        subjects = self.subject_names()
        for change in detectors.update(values, time_us):
            name, kind = subjects[change.subject]
            self.engine.count("detector_changes", 1, model=self.key.model, version=self.key.version,
                              feature=name, detector=change.detector)  # fmt: skip
            evidence = Evidence(name, kind, change.detector, float("nan"), float("nan"), 0.0,
                                int(self.open[self.engine.spans[0]].profile.rows), self.baseline.profile.rows,
                                f"{change.detector} saw its mean move")  # fmt: skip
            which = IncidentKind.PREDICTION_DRIFT if kind == "prediction" else IncidentKind.DATA_DRIFT
            noted = self.book.note(which, evidence, now_us=change.time_us, onset_us=change.time_us)
            self._merge_changes(noted, changed, change.time_us)

    def subject_names(self) -> list[tuple[str, str]]:
        """(name, kind) of every subject, in the order of the schema."""
        assert self.baseline is not None
        return [(s.key.name, s.key.kind) for s in self.baseline.schema.subjects]

    # -- closing ---------------------------------------------------------------------------------

    def _close_spans(self, end_us: int, changed: dict[str, Incident]) -> None:
        """Close what ends at a time: levels go to the store, windows are judged."""
        ending = [s for s, held in self.open.items() if held.start_us + s * MICROSECONDS == end_us]
        scores: list[Score] = []
        closed: dict[str, Profile] = {}
        for seconds in sorted(ending):
            held = self.open.pop(seconds)
            self._shelve(seconds, held)
            if seconds in self.engine.config.windows:
                scores += self._judge(seconds, held, closed)
        if not scores:
            if ending:
                self._merge_changes(self.book.advance(now_us=end_us), changed, end_us)
            return
        self._scores += scores
        self._merge_changes(
            self.book.observe(
                scores,
                now_us=end_us,
                onset_of=lambda score: self._onset(score, closed),
                describe=lambda score: self._describe(score, closed),
            ),
            changed,
            end_us,
        )

    def finish(self) -> list[Incident]:
        """The files are read: close every span with what it has."""
        changed: dict[str, Incident] = {}
        for end_us in sorted({o.start_us + s * MICROSECONDS for s, o in self.open.items()}):
            self._close_spans(end_us, changed)
        self.flush()
        return list(changed.values())

    def _shelve(self, seconds: int, held: _Open) -> None:
        for level, shelf in LEVELS:
            if level == seconds:
                self._finished[shelf].append((held.start_us, held.profile.rows, held.profile.to_bytes()))
        if seconds == 3_600 and self._sketch is not None and self._sketch[0] == held.start_us:
            self._finished[SKETCHES].append((held.start_us, held.profile.rows, self._sketch[1].to_bytes()))
            self._sketch = None

    def _merge_changes(self, incidents: Sequence[Incident], changed: dict[str, Incident], now_us: int) -> None:
        self.engine.count_opened(incidents, now_us=now_us)
        changed.update({incident.id: incident for incident in incidents})

    def _judge(self, seconds: int, held: _Open, closed: dict[str, Profile]) -> list[Score]:
        window = duration_text(seconds)
        closed[window] = held.profile
        scores = self.scores_of(held.profile, seconds, held.start_us, held.start_us + seconds * MICROSECONDS)
        scores = [self._fixed(score) for score in scores]
        self.latest[seconds] = scores
        beside = self._beside(seconds, held)  # first: reading the store flushes the scores
        self._scores += beside
        self._previous[seconds] = held
        return scores

    def _fixed(self, score: Score) -> Score:
        """The score by a fixed threshold, where one is configured for its statistic."""
        fixed = self.engine.config.drift.thresholds.get(score.statistic)  # type: ignore[call-overload]  # any statistic
        if fixed is None or score.verdict is Verdict.INSUFFICIENT:
            return score
        verdict = Verdict.DRIFT if score.value > fixed.warning else Verdict.OK
        return replace(score, threshold=fixed.warning, verdict=verdict)

    def _beside(self, seconds: int, held: _Open) -> list[Score]:
        """The window compared with the one before it, and with the same hours a week earlier: to explain, not to alarm."""
        span_us, scores = seconds * MICROSECONDS, []
        end_us = held.start_us + span_us
        before = self._previous.get(seconds)
        if before is not None and before.start_us == held.start_us - span_us:
            scores += self.scores_of(held.profile, seconds, held.start_us, end_us, ("previous", before.profile))
        if 3_600 <= seconds < WEEK_US // MICROSECONDS:
            earlier = self.total(held.start_us - WEEK_US, end_us - WEEK_US)
            if earlier.rows:
                scores += self.scores_of(held.profile, seconds, held.start_us, end_us, ("season", earlier))
        return scores

    def scores_of(
        self, profile: Profile, seconds: int, start_us: int, end_us: int, reference: tuple[str, Profile] | None = None
    ) -> list[Score]:
        """Compare a window's profile with the baseline, or with another reference of that name."""
        assert self.baseline is not None
        name, other = reference or ("baseline", self.baseline.profile)
        subjects = self.baseline.subjects()
        config = self.engine.config
        budget = Budget.parse(config.drift.false_alarms)
        lines = 1 + (config.limits.segments if config.model(self.key.model).segments else 0)
        alpha = budget.alpha(
            window_seconds=seconds, windows=len(config.windows), tests=subjects.tests * lines, rows=profile.rows
        )
        return score_window(
            Span(self.key, duration_text(seconds), start_us, end_us, name),
            subjects,
            baseline_counts=other.counts,
            window_counts=profile.counts,
            representatives=self.baseline.representatives,
            baseline_sd=self.baseline.deviations,
            alpha=alpha,
            minimum_effect=config.drift.minimum_effect,
        )

    def _subject_index(self, score: Score) -> int:
        return self.subject_names().index((score.subject, score.subject_kind))

    def _onset(self, score: Score, closed: dict[str, Profile]) -> int:
        """When the change a window shows began: looked for in the window and in the one before it."""
        assert self.baseline is not None
        self.flush()
        f = self._subject_index(score)
        length = score.window_end_us - score.window_start_us
        since, until = score.window_start_us - length, score.window_end_us
        for shelf in _shelves_for(length):
            found = self.engine.store.profiles(shelf, self.number, since, until)
            if len(found) > 1:
                slices = np.stack([_broad(self._profile(body).counts[f]) for _, body in found])
                starts = np.array([start for start, _ in found])
                return _refined_onset(
                    slices,
                    starts,
                    baseline=_broad(self.baseline.profile.counts[f]),
                    window=_broad(closed[score.window].counts[f]),
                )
        return score.window_start_us

    def _describe(self, score: Score, closed: dict[str, Profile]) -> str:
        assert self.baseline is not None
        f = self._subject_index(score)
        subject = self.baseline.schema.subjects[f]
        words = describe(
            score,
            baseline=self.baseline.profile.counts[f],
            window=closed[score.window].counts[f],
            representatives=self.baseline.representatives[f] if subject.is_numeric else None,
            categories=getattr(subject.bins, "values", ()),
        )
        is_fixed = score.statistic in self.book.fixed
        return f"{words}, {score.statistic} beyond the fixed {score.threshold:g}" if is_fixed else words

    def keep(self, score: Score) -> None:
        """Take a score of joined labels into the history."""
        self._scores.append(score)

    # -- reading ---------------------------------------------------------------------------------

    def _profile(self, body: bytes) -> Profile:
        assert self.baseline is not None
        return Profile.from_bytes(self.baseline.schema, body)

    def total(self, start_us: int, end_us: int) -> Profile:
        """The profile of sealed panes in [start, end): days, hours and five minutes where they are complete."""
        assert self.baseline is not None
        self.flush()
        total = Profile.empty(self.baseline.schema)
        for shelf, since, until in _cover(start_us, end_us, self.engine.levels):
            for _, body in self.engine.store.profiles(shelf, self.number, since, until):
                total = total.merge(self._profile(body))
        return total

    def trailing(self, seconds: int) -> tuple[Profile, list[Score]] | None:
        """The window that ends where panes are sealed, and its scores; looked at again every max(pane, window/60)."""
        sealed = self.engine.sealed_us
        if self.baseline is None or sealed is None:
            return None
        pane = self.engine.config.pane
        step = max(pane, -(-seconds // 60 // pane) * pane) * MICROSECONDS
        until = sealed // step * step
        held = self._trailing.get(seconds)
        if held is None or held[0] != until:
            since = until - seconds * MICROSECONDS
            profile = self.total(since, until)
            scores = self.scores_of(profile, seconds, since, until) if profile.rows else []
            held = self._trailing[seconds] = (until, profile, scores)
        return held[1], held[2]

    def coarse(self, counts: Ints) -> Ints:
        """Counts (F, BINS) of the first subjects in ten main bins (the first ten categories, then the rest) and the others."""
        assert self.baseline is not None
        chosen = counts[:BIN_SUBJECTS]
        out = np.zeros((len(chosen), COARSE), np.int64)
        for f, subject in enumerate(self.baseline.schema.subjects[:BIN_SUBJECTS]):
            main = chosen[f, :MAIN]
            if isinstance(subject.bins, Categories):
                out[f, : COARSE_MAIN - 1] = main[: COARSE_MAIN - 1]
                out[f, COARSE_MAIN - 1] = main[COARSE_MAIN - 1 :].sum()
            else:
                group = np.arange(MAIN) * COARSE_MAIN // max(subject.bins.bins, 1)
                out[f, :COARSE_MAIN] = np.bincount(np.minimum(group, COARSE_MAIN - 1), main, COARSE_MAIN)
        out[:, COARSE_MAIN:] = chosen[:, MAIN:]
        return out

    def coarse_bounds(self, f: int) -> list[float]:
        """The largest value of each coarse main bin of a number; empty for categories."""
        assert self.baseline is not None
        bins = self.baseline.schema.subjects[f].bins
        if isinstance(bins, Categories):
            return []
        bounds = bins.bounds()
        return [float(bounds[-(-(g + 1) * bins.bins // COARSE_MAIN)]) for g in range(COARSE_MAIN)]

    def bin_names(self, f: int) -> list[str | None]:
        """The labels of the coarse bins of a subject; None for a bin it cannot have."""
        assert self.baseline is not None
        bins = self.baseline.schema.subjects[f].bins
        if isinstance(bins, Categories):
            named = list(bins.values[: COARSE_MAIN - 1])
            main = [*named, *[None] * (COARSE_MAIN - 1 - len(named))]
            return [*main, "other" if len(bins.values) >= COARSE_MAIN else None, "missing", "wrong_type", None, None, None,
                    "unseen"]  # fmt: skip
        return [*(f"{b:02d}" for b in range(COARSE_MAIN)), "missing", "wrong_type", "infinite", "below", "above", None]

    # -- the store -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Put finished profiles and scores on their shelves."""
        for shelf, finished in self._finished.items():
            if finished:
                start = np.array([f[0] for f in finished], np.int64)
                table = pa.table(
                    {
                        "line": pa.array(np.full(len(finished), self.number, np.int32)),
                        "start_us": start,
                        "rows": [f[1] for f in finished],
                        "body": pa.array([f[2] for f in finished], pa.binary()),
                    }
                )
                self.engine.store.append(shelf, table, start)
        self._finished.clear()
        if self._scores:
            self._flush_scores()

    def _flush_scores(self) -> None:
        scores, self._scores = self._scores, []
        start = np.array([s.window_start_us for s in scores], np.int64)
        table = pa.table(
            {
                "line": pa.array(np.full(len(scores), self.number, np.int32)),
                "window_seconds": pa.array(
                    [(s.window_end_us - s.window_start_us) // MICROSECONDS for s in scores], pa.int32()
                ),
                "start_us": start,
                **{
                    name: [getattr(s, name) for s in scores]
                    for name in ("reference", "subject", "subject_kind", "statistic", "value", "expected", "threshold",
                                 "effect", "samples", "baseline_samples")
                },
                "verdict": [str(s.verdict) for s in scores],
            }
        )  # fmt: skip
        self.engine.store.append(SCORES, table, start)

    def save(self, *, final: bool = False) -> dict[str, bytes]:
        """The states to upsert."""
        self.flush()
        self._saves += 1
        states = {f"{self.number}/observed": self.observed.astype("<i8").tobytes()} if self.is_whole else {}
        states |= {f"{self.number}/book": json.dumps(self.book.to_json()).encode()}
        if self.detectors is not None:
            states[f"{self.number}/detectors"] = self.detectors.to_bytes()
        self._save_watch()
        if self._sketch is not None and (final or self._saves % SKETCH_CHECKPOINTS == 0):
            states[f"{self.number}/sketch"] = (
                self._sketch[0].to_bytes(8, "big", signed=True) + self._sketch[1].to_bytes()
            )
        return states

    def _save_watch(self) -> None:
        """The rows the charts were given since the last checkpoint; once they outweigh the charts, the charts."""
        if self.watch is None or not self._unwritten:
            return
        store, group = self.engine.store, f"watch/{self.number}"
        rows = b"".join(struct.pack("<I", len(part)) + part for part in self._unwritten)
        delta = compressed(rows)
        patience = 1 + self.number % 16 / 32
        is_small = sum(self._deltas) + len(delta) < DELTA_BYTES * patience and len(self._deltas) < DELTAS * patience
        if self._deltas and is_small:
            store.put_states(group, {str(len(self._deltas)): delta})
            self._deltas.append(len(delta))
        else:
            store.drop_states(group, [str(k) for k in range(1, len(self._deltas))])
            store.put_states(group, {"0": compressed(self.watch.to_bytes())})
            self._deltas = [0]
        self._unwritten = []

    def forget_watch(self) -> None:
        """The charts of an earlier baseline have nothing to say about the next one's ranks."""
        group = f"watch/{self.number}"
        self.engine.store.drop_states(group, list(self.engine.store.states(group)))
        self._deltas = []

    def _resume_watch(self) -> None:
        """The charts as they were last written, and the rows since."""
        stored = self.engine.store.states(f"watch/{self.number}")
        if self.watch is None or "0" not in stored:
            return
        if not self.watch.restore(decompressed(stored["0"])):
            log.warning("charts_begin_anew", extra=fields(model=self.key.model, version=self.key.version))
            self.forget_watch()
            self.book.reconcile(set())
            return
        self._deltas = [0]
        for k in range(1, len(stored)):
            self._deltas.append(len(stored[str(k)]))
            rows, at = decompressed(stored[str(k)]), 0
            while at < len(rows):
                (size,) = struct.unpack_from("<I", rows, at)
                code, id_hi, id_lo, times = rows_of(rows[at + 4 : at + 4 + size])
                at += 4 + size
                # What was found then stands in the book; only what mattered raises again.
                self.watch.update(code, id_hi, id_lo, times, matters=self._matters)
        subjects = self.subject_names()
        self.book.reconcile(
            {
                (group_of(kind_of(subjects[unit.subject][1], is_bad=unit.is_bad)), subjects[unit.subject][0])
                for unit in self.watch.charts.raised()
            }
        )

    def resume(self, states: dict[str, bytes], sealed_us: int | None) -> None:
        """Take up what `save` wrote; spans under way are summed from the sealed panes."""
        if f"{self.number}/book" in states:
            self.book = IncidentBook.from_json(json.loads(states[f"{self.number}/book"]))
            self._configure_book()
        if self.baseline is None or sealed_us is None:
            return
        self._resume_watch()
        observed = np.frombuffer(states.get(f"{self.number}/observed", b""), "<i8")
        if observed.size == self.observed.size:
            self.observed = observed.reshape(self.observed.shape).copy()
        if self.detectors is not None and f"{self.number}/detectors" in states:
            saved = DetectorBank.from_bytes(states[f"{self.number}/detectors"])
            # Detectors that the configuration has changed begin anew.
            if tuple(saved.makes) == self.detectors.makes:
                self.detectors = saved
        sketch = states.get(f"{self.number}/sketch")
        if sketch is not None:
            hour = int.from_bytes(sketch[:8], "big", signed=True)
            if hour == sealed_us // HOUR_US * HOUR_US:
                self._sketch = (hour, Sketches.from_bytes(sketch[8:]))
        for seconds in self.engine.spans:
            span_us = seconds * MICROSECONDS
            start = window_start(sealed_us, seconds)
            profile = self.total(start, sealed_us)
            if profile.rows:
                self.open[seconds] = _Open(start, profile)
            before = self.total(start - span_us, start)
            if before.rows and seconds in self.engine.config.windows:
                self._previous[seconds] = _Open(start - span_us, before)


class Version:
    """One (model, version): its baseline, its lines and the rows whose panes stand open."""

    def __init__(self, engine: Engine, index: int) -> None:
        self.engine = engine
        self.index = index
        self.key: ModelKey = engine.names.versions[index]
        self.model = engine.config.model(self.key.model)
        self.baseline: Baseline | None = None
        self.first_us: int | None = None
        self.newest_us: int | None = None
        self.extra: dict[str, int] = defaultdict(int)  # features the baseline does not have -> rows that carry them
        self.lines: dict[tuple[tuple[str, str], ...], Line] = {}
        self._open: list[Rows] = []
        self._unsaved: list[Rows] = []
        self._slots: dict[int, int] = {}  # slot of saved rows -> the newest time in it
        self._learning: list[Rows] = []
        self._learning_saved = 0
        self._given_id: str | None = None  # of the baseline that was last taken from the configuration

    @classmethod
    def create(cls, index: int, engine: Engine) -> Version:
        """A version that was not seen before, with the baseline that was given for it, if any."""
        version = cls(engine, index)
        version.take_given(now_us=None)
        version.whole()
        return version

    @classmethod
    def load(cls, index: int, engine: Engine) -> Version:
        """A version as the state file holds it."""
        version = cls(engine, index)
        store = engine.store
        body = store.state("baseline", str(index))
        if body is not None:
            version.baseline = Baseline.from_bytes(body)
        states = store.states("line")
        for key in engine.names.lines:
            if (key.model, key.version) == version.key:
                line = version._line(key.segment)
                line.resume(states, engine.sealed_us)
        saved = json.loads(store.state("version", str(index)) or b"{}")
        version.first_us, version.newest_us = saved.get("first_us"), saved.get("newest_us")
        version.extra.update(saved.get("extra", {}))
        version._given_id = saved.get("given")
        version._load_rows()
        return version

    def take_given(self, *, now_us: int | None) -> list[Incident]:
        """Use the baseline that is configured for this version, unless that was done before."""
        given = self.engine.given_for(self.key)
        if given is None:
            return []
        if given.id == self._given_id:
            self._complete(given)
            return []
        self._given_id = given.id
        return self.promote(given, now_us=now_us)

    def _complete(self, given: Baseline) -> None:
        """Take what the same rows say of truths where the stored baseline lacks it: an earlier program wrote less."""
        held = self.baseline
        if held is None or held.id != given.id:
            return
        of_truths = given.outcomes, given.class_scores, given.losses
        if of_truths != (held.outcomes, held.class_scores, held.losses):
            self.baseline = replace(held, outcomes=given.outcomes, class_scores=given.class_scores, losses=given.losses)
            self.engine.store.put_states("baseline", {str(self.index): self.baseline.to_bytes()})

    def _load_rows(self) -> None:
        floor = self.engine.sealed_us
        for key, body in self.engine.store.states(f"rows/{self.index}").items():
            rows = Rows.from_bytes(body)
            kept = rows if floor is None else rows.take(np.flatnonzero(rows.time_us >= floor))
            self._slots[int(key)] = int(rows.time_us.max())
            if len(kept):
                self._open.append(kept)
        if self.baseline is None:
            learning = self.engine.store.states(f"learning/{self.index}")
            self._learning = [Rows.from_bytes(learning[key]) for key in sorted(learning, key=int)]
            self._learning_saved = len(self._learning)

    def whole(self) -> Line:
        """The line of the whole version."""
        return self._line(())

    def _line(self, segment: tuple[tuple[str, str], ...]) -> Line:
        line = self.lines.get(segment)
        if line is None:
            whole = self.whole() if segment else None
            line = Line(self.engine, LineKey(*self.key, segment), self.baseline, whole=whole)
            self.lines[segment] = line
        return line

    @property
    def reading(self) -> Reading:
        """How baseline rows of this model are read."""
        return reading_of(self.engine.config, self.key.model)

    # -- rows ------------------------------------------------------------------------------------

    def note_events(self, time_us: Ints) -> None:
        """The first and newest event time of accepted events."""
        low, high = int(time_us.min()), int(time_us.max())
        self.first_us = low if self.first_us is None else min(self.first_us, low)
        self.newest_us = high if self.newest_us is None else max(self.newest_us, high)

    def add(self, columns: Inferences, row: Ints) -> None:
        """Rows on time, of this version."""
        segment = self.engine.names.segment_codes(columns.segment.take(pa.array(row)), self.model.segments)
        known = None
        if self.baseline is not None:
            known = frozenset(s.key.name for s in self.baseline.schema.subjects if s.key.kind == "feature")
        rows = Rows.of(columns, row, segment=segment, most_features=self.engine.config.limits.features, known=known)
        self._count_extra(rows.left_out)
        self._open.append(rows)
        self._unsaved.append(rows)

    def open_rows(self) -> int:
        """Rows that wait for their pane to seal."""
        return sum(len(rows) for rows in self._open)

    def seal(self, until_us: int) -> list[Incident]:
        """Fold every waiting row before `until_us`, in the order of (time, id)."""
        ready, waiting = [], []
        for rows in self._open:
            before = rows.time_us < until_us
            if before.all():
                ready.append(rows)
            elif before.any():
                ready.append(rows.take(np.flatnonzero(before)))
                waiting.append(rows.take(np.flatnonzero(~before)))
            else:
                waiting.append(rows)
        self._open = waiting
        block = concat(ready).sorted() if ready else None
        if self.baseline is None:
            return self._learn(block, until_us) if block is not None else []
        return self._absorb(block, until_us)

    def _absorb(self, block: Rows | None, until_us: int) -> list[Incident]:
        assert self.baseline is not None
        if block is None:
            return [i for line in self.lines.values() if line.open for i in self._quiet(line, until_us)]
        coded = self.baseline.schema.encode(block)
        changed = self.whole().absorb(block, coded, until_us=until_us)
        rows_of = self._segment_rows(block)
        for segment, row in rows_of.items():
            part = Coded(coded.code[row], coded.number[row])
            name = ",".join(f"{key}={value}" for key, value in segment)
            self.engine.count("segment_events", len(row), model=self.key.model, version=self.key.version, segment=name)
            changed += self._line(segment).absorb(block.take(row), part, until_us=until_us)
        # A segment without rows in this block lives in the same time: its windows end too.
        for segment, line in self.lines.items():
            if segment and segment not in rows_of and line.open:
                changed += self._quiet(line, until_us)
        return changed

    def _quiet(self, line: Line, until_us: int) -> list[Incident]:
        """No new rows for a line: only time passes."""
        assert self.baseline is not None
        nothing = Rows.empty()
        return line.absorb(nothing, self.baseline.schema.encode(nothing), until_us=until_us)

    def _segment_rows(self, block: Rows) -> dict[tuple[tuple[str, str], ...], Ints]:
        """The rows of every segment: one for each configured key and value, within the limit."""
        if not self.model.segments:
            return {}
        chosen: dict[tuple[tuple[str, str], ...], list[Ints]] = defaultdict(list)
        for code in np.unique(block.segment).tolist():
            row = np.flatnonzero(block.segment == code)
            for pair in self.engine.names.segments[code]:
                if (pair,) in self.lines:
                    chosen[(pair,)].append(row)
        return {segment: np.sort(np.concatenate(rows)) for segment, rows in sorted(chosen.items())}

    def open_segments(self, segment: Ints | Codes) -> None:
        """Open the lines of the segments of events as they come: labels may meet them before their pane seals."""
        if self.model.segments:
            for code in np.unique(segment).tolist():
                for pair in self.engine.names.segments[code]:
                    if len(self.lines) <= self.engine.config.limits.segments:
                        self._line((pair,))

    def _count_extra(self, left_out: Mapping[str, int]) -> None:
        """Features the baseline does not have: new ones appear in mid-stream without harm, and are seen to."""
        for name, count in left_out.items():
            if name not in self.reading.ignore and (
                name in self.extra or len(self.extra) < self.engine.config.limits.features
            ):
                self.extra[name] += count

    # -- baselines -------------------------------------------------------------------------------

    def _learn(self, block: Rows, until_us: int) -> list[Incident]:
        """Collect the first rows of a version that has no baseline, and judge the rest by what they taught."""
        book = self.whole().book
        wanted = self.engine.config.drift.learn_from
        first = int(block.time_us[0])
        evidence = Evidence(self.key.version, "version", "baseline", 0.0, 0.0, 0.0, 0, 0,
                            f"learning one from its first {wanted} events")  # fmt: skip
        changed = book.hold(IncidentKind.BASELINE_MISSING, evidence, now_us=first, onset_us=first)
        self._learning.append(block)
        if sum(len(rows) for rows in self._learning) < wanted:
            return changed
        rows = concat(self._learning, most_features=self.engine.config.limits.features)
        taught, rest = rows.take(np.arange(wanted)), rows.take(np.arange(wanted, len(rows)))
        until = int(taught.time_us[-1])
        learnt = baselines.build(
            taught,
            model=self.key.model,
            version=self.key.version,
            reading=self.reading,
            provisional=True,
            created_us=until,
            source=f"its first {wanted} events",
        )
        changed += self.promote(learnt, now_us=until)
        return changed + self._absorb(rest if len(rest) else None, until_us)

    def promote(self, baseline: Baseline, *, now_us: int | None) -> list[Incident]:
        """Judge by a baseline from now on; `now_us` closes the incidents it explains, None where there are none yet."""
        self.baseline = baseline
        self._learning = []
        self.engine.store.put_states("baseline", {str(self.index): baseline.to_bytes()})
        learning = list(self.engine.store.states(f"learning/{self.index}"))
        self.engine.store.drop_states(f"learning/{self.index}", learning)
        self._learning_saved = 0
        self.extra.clear()
        changed: list[Incident] = []
        for line in self.lines.values():
            if now_us is not None:
                line.flush()
                explained = [IncidentKind.BASELINE_MISSING] if baseline.provisional else None
                changed += line.book.close(now_us=now_us, kinds=explained)
                # Profiles on other bins do not add to those on these.
                self.engine.forget_profiles(line.number)
                line.forget_watch()
            line.use(baseline)
            self.engine.forget_errors(line)
        log.info(
            "baseline_in_use",
            extra=fields(model=self.key.model, version=self.key.version, baseline=baseline.id,
                   provisional=baseline.provisional),
        )  # fmt: skip
        return changed

    def finish(self) -> list[Incident]:
        """The files are read: close every window with what it has."""
        return [incident for line in self.lines.values() if line.baseline for incident in line.finish()]

    # -- the store -------------------------------------------------------------------------------

    def save(self, *, final: bool = False) -> None:
        """Write what changed since the last checkpoint."""
        store = self.engine.store
        self._save_rows()
        lines: dict[str, bytes] = {}
        for line in self.lines.values():
            lines |= line.save(final=final)
        store.put_states("line", lines)
        body: dict[str, Any] = {
            "first_us": self.first_us,
            "newest_us": self.newest_us,
            "extra": self.extra,
            "given": self._given_id,
        }
        store.put_states("version", {str(self.index): json.dumps(body).encode()})

    def _save_rows(self) -> None:
        """Rows that came since the last checkpoint and still wait, in a slot that is free."""
        store = self.engine.store
        floor = NO_TIME if self.engine.sealed_us is None else self.engine.sealed_us
        unsaved = [rows for rows in (rows.since(floor) for rows in self._unsaved) if len(rows)]
        self._unsaved = []
        if unsaved:
            rows = concat(unsaved)
            free = [slot for slot, newest in self._slots.items() if newest < floor]
            slot = min(free, default=len(self._slots))
            self._slots[slot] = int(rows.time_us.max())
            store.put_states(f"rows/{self.index}", {str(slot): rows.to_bytes()})
        fresh = self._learning[self._learning_saved :]
        if fresh:
            merged = concat(fresh)
            store.put_states(f"learning/{self.index}", {str(self._learning_saved): merged.to_bytes()})
            self._learning[self._learning_saved :] = [merged]
            self._learning_saved += 1


def _broad(counts: Ints) -> Ints:
    """Counts of one subject (BINS,) with eight main bins in one: a few hundred rows say nothing about 256 bins."""
    return np.concatenate([counts[:MAIN].reshape(-1, 8).sum(axis=1), counts[MAIN:]])


ONSET_PASSES = 3


def _refined_onset(slices: Ints, starts: Ints, *, baseline: Ints, window: Ints) -> int:
    """The onset, looked for again with what came after it: the window itself may be half of the old distribution."""
    onset = estimate_onset(slices, starts, baseline=baseline, window=window)
    for _ in range(ONSET_PASSES):
        after = slices[starts >= onset].sum(axis=0)
        onset = estimate_onset(slices, starts, baseline=baseline, window=after)
    return onset


def _shelves_for(length_us: int) -> tuple[Shelf, ...]:
    """Where the slices of a window are looked for, the finest that is affordable first."""
    if length_us <= 2 * HOUR_US:
        return PANES, FIVE_MINUTES, HOURS
    return (FIVE_MINUTES, HOURS) if length_us <= 2 * 24 * HOUR_US else (HOURS, DAYS)


def _cover(start_us: int, end_us: int, levels: Sequence[tuple[int, Shelf]]) -> list[tuple[Shelf, int, int]]:
    """Cut [start, end) into runs of whole spans, the longest that fit in the middle, panes at the ends."""
    if start_us >= end_us:
        return []
    for position, (seconds, shelf) in enumerate(levels):
        span = seconds * MICROSECONDS
        first, last = -(-start_us // span) * span, end_us // span * span
        if first < last:
            finer = levels[position + 1 :]
            return [*_cover(start_us, first, finer), (shelf, first, last), *_cover(last, end_us, finer)]
    return [(PANES, start_us, end_us)]
