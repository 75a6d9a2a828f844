"""What a version is judged by: a schema of bins, the profile of the baseline's rows on it, and its outcomes."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zstandard

from stream_monitor.errors import InputError, StateError
from stream_monitor.judge import loss
from stream_monitor.judge.charts import Ranks
from stream_monitor.judge.dependence import MOST_ROWS, Dependence
from stream_monitor.judge.season import Season
from stream_monitor.judge.verdicts import Subjects
from stream_monitor.records import NO_TIME, Floats
from stream_monitor.summarize.profile import Profile, Schema, deviations, means, representatives
from stream_monitor.summarize.protocol import MAIN
from stream_monitor.summarize.rows import Rows

MAGIC = b"SMBASE01"
"""The first bytes of a built baseline file; the last two digits are its format."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a baseline's rows are read: what the configuration says of a model's features."""

    most_categories: int = 200
    kinds: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    seasonality: str = "none"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The frozen reference of one (model, version); version "" serves every version that lacks its own.

    `representatives` (F, MAIN): mean of each main bin, NaN where it is empty. `outcomes`: by outcome name, the
    stored form of an OutcomeProfile of the rows that carried their truth. `dependence`: of its rows in their order.
    `season`: their rhythm, where one was asked for; `season_dependence`: what is left once it is taken out.
    `class_scores`: of several classes, the stored form of a ScoreProfile of the rows that carried their truth; `losses`:
    of a regression, the stored form of the Losses of those rows.
    """

    model: str
    version: str
    schema: Schema
    profile: Profile
    representatives: Floats
    provisional: bool
    created_us: int
    source: str
    outcomes: Mapping[str, bytes] = field(default_factory=dict)
    dependence: Dependence = field(default_factory=Dependence)
    season: Season | None = None
    season_dependence: Dependence = field(default_factory=Dependence)
    class_scores: bytes | None = None
    losses: bytes | None = None

    @property
    def id(self) -> str:
        """A hash of what the baseline says, not of when it was made."""
        said = hashlib.blake2b(json.dumps((self.model, self.version, self.schema.id)).encode(), digest_size=8)
        said.update(self.profile.counts.tobytes())
        return said.hexdigest()

    @property
    def means(self) -> Floats:
        return means(self.profile)

    @property
    def deviations(self) -> Floats:
        return deviations(self.profile)

    def subjects(self) -> Subjects:
        """The subjects as the verdicts want them."""
        keys = [s.key for s in self.schema.subjects]
        numeric = np.array([s.is_numeric for s in self.schema.subjects], np.bool_)
        return Subjects([k.name for k in keys], [k.kind for k in keys], numeric)

    def serving(self, version: str) -> Baseline:
        """The same baseline for a version that it serves."""
        return replace(self, version=version)

    def to_bytes(self) -> bytes:
        """A self-describing file: magic, a digest of the rest, and the rest compressed."""
        head = {
            "model": self.model,
            "version": self.version,
            "schema": self.schema.to_json(),
            "provisional": self.provisional,
            "created_us": self.created_us,
            "source": self.source,
            "dependence": self.dependence.to_json(),
            "season_dependence": self.season_dependence.to_json(),
            "has_season": self.season is not None,
            "has_class_scores": self.class_scores is not None,
            "has_losses": self.losses is not None,
        }
        parts = [json.dumps(head).encode(), self.profile.to_bytes(), self.representatives.astype("<f8").tobytes()]
        if self.season is not None:
            parts.append(self.season.to_bytes())
        if self.class_scores is not None:
            parts.append(self.class_scores)
        if self.losses is not None:
            parts.append(self.losses)
        for name, body in self.outcomes.items():
            parts += [name.encode(), body]
        framed = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        content = zstandard.ZstdCompressor(level=6).compress(framed)
        return MAGIC + _digest(content) + content

    @classmethod
    def from_bytes(cls, body: bytes) -> Baseline:
        """What `to_bytes` wrote; raises InputError for anything else."""
        if not is_baseline_file(body):
            raise InputError("not a baseline of this program's format")
        digest, content = body[len(MAGIC) : len(MAGIC) + _DIGEST_BYTES], body[len(MAGIC) + _DIGEST_BYTES :]
        if digest != _digest(content):
            raise InputError("the baseline is damaged: its bytes are not those that were written")
        try:
            parts = _unframe(zstandard.decompress(content))
            head: dict[str, Any] = json.loads(parts[0])
            schema = Schema.from_json(head.pop("schema"))
            season = Season.from_bytes(parts.pop(3)) if head.pop("has_season", False) else None
            class_scores = parts.pop(3) if head.pop("has_class_scores", False) else None
            losses = parts.pop(3) if head.pop("has_losses", False) else None
            return cls(
                schema=schema,
                dependence=_dependence(head.pop("dependence", None)),
                season=season,
                class_scores=class_scores,
                losses=losses,
                season_dependence=_dependence(head.pop("season_dependence", None)),
                profile=Profile.from_bytes(schema, parts[1]),
                representatives=np.frombuffer(parts[2], "<f8").reshape(len(schema), MAIN).copy(),
                outcomes={k.decode(): v for k, v in zip(parts[3::2], parts[4::2], strict=True)},
                **head,
            )
        except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError, StateError) as error:
            raise InputError(f"the baseline is damaged: {error}") from error


def build(
    rows: Rows,
    *,
    model: str,
    version: str,
    reading: Reading,
    provisional: bool,
    created_us: int,
    source: str,
    outcomes: Mapping[str, bytes] | None = None,
    class_scores: bytes | None = None,
    truth: Floats | None = None,
) -> Baseline:
    """Learn bins from rows and fold the rows on them. Raises InputError without rows.

    `truth` (n,): the true numbers of a regression, NaN where a row carries none.
    """
    if not len(rows):
        raise InputError(f"no usable rows for {model} {version or '(any version)'} in {source}")
    schema = Schema.learn(rows, most_categories=reading.most_categories, kinds=reading.kinds, ignore=reading.ignore)
    coded = schema.encode(rows)
    profile = Profile.fold(schema, coded)
    ranks = Ranks.of(profile)
    ranked = ranks.encode(coded.code, rows.id_hi, rows.id_lo)
    # Rows without a time stand in the order of their file.
    order = np.argsort(rows.time_us, kind="stable")[-MOST_ROWS:]
    losses = None if truth is None else loss.learn(schema, rows, truth)
    season, rest = None, Dependence()
    if reading.seasonality != "none":
        season = Season.of(reading.seasonality, ranked, rows.time_us, ranks.bins)
        if season.is_usable:
            timed = order[rows.time_us[order] != NO_TIME]
            same_hour = season.apply(ranked[timed], rows.time_us[timed], rows.id_lo[timed], ranks.bins)
            rest = Dependence.of(ranks.within(season), same_hour)
    return Baseline(
        model=model,
        version=version,
        schema=schema,
        profile=profile,
        representatives=representatives(schema, coded),
        provisional=provisional,
        created_us=created_us,
        source=source,
        outcomes=dict(outcomes or {}),
        dependence=Dependence.of(ranks, ranked[order]),
        season=season,
        season_dependence=rest,
        class_scores=class_scores,
        losses=None if losses is None else losses.to_bytes(),
    )


def is_baseline_file(first_bytes: bytes) -> bool:
    """Whether a file begins like a built baseline."""
    return first_bytes.startswith(MAGIC)


def _dependence(body: Mapping[str, Any] | None) -> Dependence:
    """Files that were built before it was measured have none."""
    return Dependence() if body is None else Dependence.from_json(body)


_DIGEST_BYTES = 16


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _unframe(raw: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        parts.append(raw[at : at + size])
        at += size
    return parts
