"""Every knob of the service: name, default, unit, bound. Durations are whole seconds, sizes are bytes.

`load` reads YAML, fills in `${NAME}` from the environment it is given and files named by `*_file`, and reports every
problem at once with its path and, for an unknown key, the nearest valid name.
"""

from __future__ import annotations

import base64
import difflib
import math
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from stream_monitor.errors import UsageError
from stream_monitor.records import DEFAULT_OUTCOME, Binding, IncidentKind, Severity, Stream

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZES = {"B": 1, "kB": 1_000, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def duration_seconds(text: str) -> int:
    """`90s`, `15m`, `1h`, `7d` as seconds; raises ValueError."""
    found = re.fullmatch(r"(\d+)\s*([smhd])", text.strip())
    if not found:
        raise ValueError("write a duration like 90s, 15m, 1h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def duration_text(seconds: int) -> str:
    """The shortest way to write a duration: 900 is `15m`."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


def size_bytes(text: str) -> int:
    """`10MB`, `500kB`, `1GB` as bytes (decimal); raises ValueError."""
    found = re.fullmatch(r"(\d+)\s*(B|kB|KB|MB|GB)", text.strip())
    if not found:
        raise ValueError("write a size like 500kB, 10MB or 1GB")
    return int(found[1]) * _SIZES[found[2]]


def _duration(value: object) -> object:
    return duration_seconds(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return size_bytes(value) if isinstance(value, str) else value


def _text(value: object) -> object:
    """YAML reads an unquoted 7 as a number; a version is a name."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _objective(text: str) -> str:
    if not re.fullmatch(r"(>=|<=|>|<)\s*-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text.strip()):
        raise ValueError("write an objective like '>= 0.85'")
    return text


MOST_OUTCOMES = 20
"""Outcomes of a model told apart: more are names made of ids, and each has windows and watches of its own."""

OBJECTIVE_METRICS: Mapping[str, tuple[str, ...]] = {
    "binary": ("accuracy", "precision", "recall", "specificity", "f0_5", "f1", "f2", "auc", "pr_auc", "true_positive_rate",
               "true_negative_rate", "false_positive_rate", "false_negative_rate", "log_loss", "brier",
               "calibration_error"),
    "multiclass": ("accuracy", "precision", "recall", "f0_5", "f1", "f2", "weighted_precision", "weighted_recall",
                   "weighted_f0_5", "weighted_f1", "weighted_f2", "log_loss", "brier", "calibration_error"),
    "regression": ("mae", "mse", "rmse", "r2", "mape", "bias", "error_p05", "error_p50", "error_p95",
                   "absolute_error_p50", "absolute_error_p90", "absolute_error_p99"),
}  # fmt: skip
"""What an objective may be of, by task; with several classes also `recall[deny]` and the like."""

_OF_CLASS = re.compile(r"(precision|recall|specificity|f1)\[.+\]")


VALUE_METRICS = ("mean", "p05", "p50", "p95")
"""Of an outcome that is a number of its own; no objective is of them."""

_UNBOUNDED, _POSITIVE = (-math.inf, math.inf), (0.0, math.inf)
_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("bias", "error_p05", "error_p50", "error_p95"), _UNBOUNDED),
    **dict.fromkeys(("mae", "mse", "rmse", "mape", "log_loss"), _POSITIVE),
    **dict.fromkeys(("absolute_error_p50", "absolute_error_p90", "absolute_error_p99"), _POSITIVE),
    "r2": (-math.inf, 1.0),
    "brier": (0.0, 2.0),  # of several classes; of two it ends at 1
}
"""Between what a metric lies; those that are not named are shares."""


def _check_range(metric: str, text: str) -> None:
    """An objective beyond its metric's range would always be missed, or never."""
    limit, (low, high) = float(text.strip().lstrip("<>= ")), _RANGES.get(metric, (0.0, 1.0))
    if math.isinf(limit) or not low <= limit <= high:
        bounds = [f"is at least {low:g}"] * (low > -math.inf) + [f"is at most {high:g}"] * (high < math.inf)
        raise _ConflictError(
            f"objectives: '{text}' asks nothing of {metric}, which {' and '.join(bounds) or 'is a number'}",
            "objectives",
        )


def _metric(name: str) -> str:
    return _known_metric(name, {metric for metrics in OBJECTIVE_METRICS.values() for metric in metrics})


def any_metric(name: str) -> str:
    """The name of any metric there is, of a class or a number too; raises ValueError."""
    return _known_metric(
        name, {*VALUE_METRICS, *(metric for metrics in OBJECTIVE_METRICS.values() for metric in metrics)}
    )


def _known_metric(name: str, metrics: Collection[str]) -> str:
    """The name of one of these metrics, or of one of a class; raises ValueError that says which are like it."""
    known = sorted(metrics)
    if name not in known and not _OF_CLASS.fullmatch(name):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise ValueError(f"no such metric; {hint}")
    return name


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65_535 or re.search(r"[\s/]", host):
        raise ValueError("write an address like 127.0.0.1:9464")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+[!-~]*", text):
        raise ValueError("write an address that begins with http:// or https://")
    found = urlsplit(text)
    try:
        is_whole = found.hostname is not None and found.hostname.encode("idna") and found.port != 0
    except ValueError:  # a port or a name that is none
        is_whole = False
    if not is_whole:
        raise ValueError("this address names no host or no port that can be")
    if found.username is not None or found.password is not None:
        raise ValueError("an address with a user name or password in it would be printed: sign with a secret instead")
    return text


Duration = Annotated[int, BeforeValidator(_duration), Field(ge=1, le=10 * 365 * 86_400)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
Name = Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=200)]
Key = Annotated[str, BeforeValidator(_text)]


class _ConflictError(ValueError):
    """Keys that are right by themselves do not go together."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """How many false incidents a model may open: `count` in `seconds` of time, or in `events`; one of them is None."""

    count: float
    seconds: int | None
    events: int | None


def false_alarms(text: str) -> FalseAlarms:
    """`1 per 30d` or `1 per 100000 events`; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s+per\s+(?:(\d+)\s+events?|(\d+[smhd]))", text.strip())
    if not found or float(found[1]) <= 0 or found[2] == "0":
        raise ValueError("write it like '1 per 30d' or '1 per 100000 events'")
    events = int(found[2]) if found[2] else None
    return FalseAlarms(float(found[1]), duration_seconds(found[3]) if found[3] else None, events)


def _budget(text: str) -> str:
    false_alarms(text)
    return text


class SecurityConfig(_Part):
    """How to reach a broker that asks who we are."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "SASL_SSL"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: Name | None = None
    password: SecretStr | None = None
    password_file: Path | None = Field(default=None, strict=False, description="read instead of `password`")
    ca_file: Path | None = Field(default=None, strict=False)
    cert_file: Path | None = Field(default=None, strict=False)
    key_file: Path | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _complete(self) -> SecurityConfig:
        has_secret = self.password is not None or self.password_file is not None
        if self.protocol.startswith("SASL") and (self.mechanism is None or self.username is None or not has_secret):
            message = f"{self.protocol} needs mechanism, username and password"
            raise _ConflictError(message, "protocol", "mechanism", "username", "password", "password_file")
        return self


class TopicConfig(_Part):
    """One topic (or file) and what is known of its events."""

    topic: Annotated[str, Field(min_length=1)]
    model: Name | None = None
    version: Name | None = None
    fields: dict[str, str] = Field(default_factory=dict, description="our dotted name -> path in the payload")
    timestamp_unit: Literal["s", "ms", "us", "ns"] | None = None

    def binding(self, stream: Stream) -> Binding:
        """The same in the vocabulary of the stages."""
        return Binding(stream, self.topic, self.model, self.version, dict(self.fields), self.timestamp_unit)


def _topics(value: object) -> object:
    if isinstance(value, list):
        return tuple({"topic": item} if isinstance(item, str) else item for item in value)
    return value


Topics = Annotated[tuple[TopicConfig, ...], BeforeValidator(_topics)]


def _start(value: object) -> object:
    """A time without an offset means UTC, as in events; YAML itself reads an unquoted timestamp."""
    if value in ("latest", "earliest"):
        return value
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError("write latest, earliest or a timestamp like 2026-11-21T10:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class SourceConfig(_Part):
    """Where records come from."""

    kind: Literal["kafka", "files"] = "kafka"
    bootstrap_servers: str = "localhost:9092"
    client: Literal["kafka-python", "confluent"] = "kafka-python"
    start: Annotated[Literal["latest", "earliest"] | datetime, BeforeValidator(_start)] = "latest"
    on_data_loss: Literal["fail", "earliest", "latest"] = "fail"
    security: SecurityConfig | None = None
    inference: Topics = (TopicConfig(topic="inference"),)
    ground_truth: Topics = ()
    dead_letter_topic: str | None = None

    @model_validator(mode="after")
    def _named_once(self) -> SourceConfig:
        names = [t.topic for t in (*self.inference, *self.ground_truth)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise _ConflictError(f"topics named twice: {', '.join(twice)}", "inference", "ground_truth")
        if not self.inference:
            raise _ConflictError("inference needs at least one topic", "inference")
        return self


class Retention(_Part):
    """How long profiles are kept, by their length."""

    panes: Duration = 2 * 3600
    hours: Duration = 60 * 86_400
    days: Duration = 730 * 86_400


def _sequence(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class FixedThreshold(_Part):
    """Where a statistic of a window alarms whatever the sample size: what some auditors ask for."""

    warning: Annotated[float, Field(gt=0, strict=False)]
    critical: Annotated[float, Field(gt=0, strict=False)] = float("inf")


Statistic = Literal["psi", "jensen_shannon", "ks", "wasserstein", "linf", "chi_square"]


class DriftConfig(_Part):
    """When people are told."""

    false_alarms: Annotated[str, AfterValidator(_budget)] = "1 per 30d"
    minimum_effect: Annotated[float, Field(ge=0, le=10, strict=False)] = 0.1
    seasonality: Literal["none", "daily", "weekly"] = "none"
    learn_from: Annotated[int, Field(ge=200, le=10_000_000)] = 10_000
    detectors: Annotated[tuple[Literal["adwin", "page_hinkley", "kswin"], ...], BeforeValidator(_sequence)] = ()
    thresholds: dict[Statistic, FixedThreshold] = Field(
        default_factory=dict, description="fixed thresholds of window statistics, outside the budget"
    )

    @property
    def budget(self) -> FalseAlarms:
        """`false_alarms`, read."""
        return false_alarms(self.false_alarms)


class FeatureConfig(_Part):
    """What is known of one feature."""

    kind: Literal["numeric", "categorical", "vector"] | None = None
    importance: Annotated[float, Field(ge=0, strict=False)] = 1.0
    ignore: bool = False


class OutcomeConfig(_Part):
    """What is known of one outcome of a model."""

    task: Literal["binary", "multiclass", "regression", "value"] | None = Field(
        default=None, description="`value`: a number that no prediction foretells, watched by itself"
    )
    positive_label: Name | None = None
    horizon: Duration | None = Field(default=None, description="a truth that comes later after its prediction is none")

    @model_validator(mode="after")
    def _fit_together(self) -> OutcomeConfig:
        _check_positive_label(self.task, self.positive_label)
        if self.positive_label is not None and self.task not in (None, "binary"):
            raise _ConflictError(f"task {self.task} has no positive_label", "task", "positive_label")
        return self


def _check_positive_label(task: str | None, positive_label: str | None) -> None:
    if task == "binary" and positive_label is None:
        message = "task binary needs positive_label: without it every truth and every answer would count as negative"
        raise _ConflictError(message, "task", "positive_label")


class ModelConfig(_Part):
    """What is known of one model."""

    task: Literal["binary", "multiclass", "regression"] | None = None
    positive_label: Name | None = None
    team: Name | None = None
    baseline: Path | None = Field(default=None, strict=False)
    segments: tuple[str, ...] = Field(default=(), strict=False)
    objectives: dict[Annotated[str, AfterValidator(_metric)], Annotated[str, AfterValidator(_objective)]] = Field(
        default_factory=dict, description="metric -> what it must hold, like '>= 0.85'"
    )
    outcomes: Annotated[dict[Name, OutcomeConfig], Field(max_length=MOST_OUTCOMES)] = Field(default_factory=dict)
    features: dict[Key, FeatureConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _outcomes_fit(self) -> ModelConfig:
        _check_positive_label(self.task, self.positive_label)
        own = self.outcomes.get(DEFAULT_OUTCOME, OutcomeConfig())
        if own.task is not None or own.positive_label is not None:
            message = f"the task and positive_label of the outcome {DEFAULT_OUTCOME} are those of the model itself"
            raise _ConflictError(message, "outcomes")
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> ModelConfig:
        odd = [name for name in self.objectives if self.task is not None and not _is_of(self.task, name)]
        if odd:
            raise _ConflictError(f"objectives: {', '.join(odd)}: no metric of task {self.task}", "objectives", "task")
        for name, text in self.objectives.items():
            _check_range(name, text)
        return self


def _is_of(task: str, metric: str) -> bool:
    return metric in OBJECTIVE_METRICS[task] or (task == "multiclass" and bool(_OF_CLASS.fullmatch(metric)))


class Limits(_Part):
    """What no input can make the service exceed."""

    models: Annotated[int, Field(ge=1)] = 200
    features: Annotated[int, Field(ge=1)] = 2000
    segments: Annotated[int, Field(ge=0)] = 50
    categories: Annotated[int, Field(ge=2, le=256)] = 200
    series: Annotated[int, Field(ge=100)] = 20_000
    record_bytes: Size = 10_000_000


Kinds = Annotated[tuple[Annotated[IncidentKind, Field(strict=False)], ...], BeforeValidator(_sequence)]
Severities = Annotated[tuple[Annotated[Severity, Field(strict=False)], ...], BeforeValidator(_sequence)]


class WebhookConfig(_Part):
    """One address that is told of incidents; of all of them where no list says which."""

    url: Annotated[str, AfterValidator(_url), Field(repr=False)]  # many an address is a secret itself
    secret: SecretStr | None = None
    secret_file: Path | None = Field(default=None, strict=False, description="read instead of `secret`")
    ca_file: Path | None = Field(default=None, strict=False)
    timeout: Annotated[Duration, Field(le=300)] = 10
    kinds: Kinds = ()
    severities: Severities = ()
    models: Annotated[tuple[Name, ...], BeforeValidator(_sequence)] = ()

    @field_validator("secret")
    @classmethod
    def _readable(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            signing_key(secret.get_secret_value())
        return secret

    @property
    def key(self) -> bytes | None:
        """What deliveries are signed with; None: they are not."""
        return None if self.secret is None else signing_key(self.secret.get_secret_value())

    def wants(self, *, model: str, kind: str, severity: str) -> bool:
        """Whether it is told of such an incident."""
        return (
            (not self.models or model in self.models)
            and (not self.kinds or kind in self.kinds)
            and (not self.severities or severity in self.severities)
        )


def signing_key(secret: str) -> bytes:
    """The key of a webhook's secret: after `whsec_` base64, as the Standard Webhooks libraries write it; else its text.

    Raises ValueError, which does not repeat the secret.
    """
    if not secret:
        raise ValueError("this secret is empty")
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("what follows whsec_ must be base64")
    return key


class PublishConfig(_Part):
    """Where verdicts go."""

    http: Annotated[str, AfterValidator(_address)] = "127.0.0.1:9464"
    token_file: Path | None = Field(default=None, strict=False)
    drift_topic: Annotated[str, Field(min_length=1)] | None = None
    webhooks: tuple[WebhookConfig, ...] = Field(default=(), strict=False)
    event_source: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")] = "/stream-monitor"
    give_up_after: Duration = 86_400

    @model_validator(mode="after")
    def _told_once(self) -> PublishConfig:
        urls = [webhook.url for webhook in self.webhooks]
        if len(set(urls)) < len(urls):
            raise _ConflictError("webhooks: an address stands there twice", "webhooks")
        return self

    @property
    def host(self) -> str:
        return self.http.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.http.rpartition(":")[2])


class Config(_Part):
    """The whole configuration."""

    state: Path = Field(default=Path("./state/monitor.duckdb"), strict=False)
    source: SourceConfig = SourceConfig()
    pane: Annotated[Duration, Field(ge=1, le=900)] = 10
    allowed_lateness: Annotated[int, BeforeValidator(_duration), Field(ge=0, le=86_400)] = 10
    idle_timeout: Duration = 30
    duplicate_horizon: Duration = 600
    windows: Annotated[tuple[Duration, ...], BeforeValidator(_sequence)] = (900, 3600, 86_400, 604_800)
    label_horizon: Duration = 45 * 86_400
    corrections: Annotated[int, BeforeValidator(_duration), Field(ge=3600)] | None = None
    retention: Retention = Retention()
    drift: DriftConfig = DriftConfig()
    models: dict[Name, ModelConfig] = Field(default_factory=dict)
    limits: Limits = Limits()
    publish: PublishConfig = PublishConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        if not self.windows or len(set(self.windows)) < len(self.windows):
            raise _ConflictError("windows: name at least one, each once", "windows")
        odd = [duration_text(window) for window in self.windows if window % self.pane]
        if odd:
            message = f"windows: no multiple of pane ({duration_text(self.pane)}): {', '.join(odd)}"
            raise _ConflictError(message, "windows", "pane")
        return self

    @model_validator(mode="after")
    def _outcomes_end(self) -> Config:
        beyond = [
            f"models.{name}.outcomes.{outcome}.horizon"
            for name, model in self.models.items()
            for outcome, known in model.outcomes.items()
            if known.horizon is not None and known.horizon > self.label_horizon
        ]
        if beyond:
            message = f"{', '.join(beyond)}: longer than label_horizon ({duration_text(self.label_horizon)})"
            raise _ConflictError(message, "models", "label_horizon")
        return self

    def model(self, name: str) -> ModelConfig:
        """What is said of a model; the defaults for one that is not named."""
        return self.models.get(name, ModelConfig())


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two, one would be silently lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path, environment: Mapping[str, str]) -> Config:
    """Read a configuration file; raises UsageError with every problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    try:
        body = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        # Without the library's excerpt: the line may hold a password.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it cannot be read"
        raise UsageError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML: {problem}") from None
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise UsageError(f"{path} must hold a mapping of keys at its top")
    return parse(body, environment, name=str(path))


def parse(body: Mapping[str, Any], environment: Mapping[str, str], *, name: str = "configuration") -> Config:
    """Check a configuration that is already read; raises UsageError with every problem."""
    missing: dict[str, str] = {}
    failures, config = _validate(_fill(body, environment, "", missing))
    problems = [f"{path}: the environment has no {variable}" for path, variable in missing.items()]
    problems += [f"{path}: {words}" if path else words for path, words in map(_said, failures) if path not in missing]
    if config is not None:
        config, unreadable = _with_secrets(config)
        problems += unreadable
    if problems or config is None:
        raise UsageError(f"{name}: {len(problems)} problem{'s' * (len(problems) != 1)}", tuple(problems))
    return config


def _fill(value: Any, environment: Mapping[str, str], path: str, missing: dict[str, str]) -> Any:
    """Replace `${NAME}` in every text; `missing` is given the path of each name the environment lacks."""
    if isinstance(value, Mapping):
        return {k: _fill(v, environment, f"{path}.{k}" if path else str(k), missing) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, environment, f"{path}[{i}]", missing) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(found: re.Match[str]) -> str:
        if found[1] not in environment:
            missing[path] = found[1]
        return environment.get(found[1], "")

    return re.sub(r"\$\{(\w+)\}", replace, value)


def _validate(body: Any) -> tuple[list[ErrorDetails], Config | None]:
    """Every failure, and what the rest of the body makes; None where nothing can be made of it.

    Once the wrong keys are taken out, what must hold between the others is checked too. A rule between keys one of
    which was wrong itself is not asked: a default would answer.
    """
    failures: list[ErrorDetails] = []
    wrong: list[tuple[int | str, ...]] = []
    while True:
        try:
            return failures, Config.model_validate(body)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
        before = body
        for failure in found:
            if not _answered_by_default(failure, wrong):
                failures.append(failure)
            body = _without(body, failure["loc"])
            wrong.append(failure["loc"])
        if body == before:
            return failures, None


def _answered_by_default(failure: ErrorDetails, wrong: Sequence[tuple[int | str, ...]]) -> bool:
    conflict = failure.get("ctx", {}).get("error")
    if not isinstance(conflict, _ConflictError):
        return False
    asked = [(*failure["loc"], key) for key in conflict.keys]
    return any(path[: len(key)] == key for path in wrong for key in asked)


def _without(body: Any, where: Sequence[int | str]) -> Any:
    """A copy without the key at a path; of a list with a wrong item nothing is left."""
    if not where or not isinstance(body, Mapping) or where[0] not in body:
        return body
    first, inner = where[0], body[where[0]]
    if len(where) > 1 and isinstance(inner, Mapping):
        return {**body, first: _without(inner, where[1:])}
    return {key: value for key, value in body.items() if key != first}


def _with_secrets(config: Config) -> tuple[Config, list[str]]:
    """The configuration with the secrets that lie in files, and what is wrong with the files it names."""
    problems = [f"{where}: there is no file {path}" for where, path in _named_files(config) if not path.is_file()]
    config, unread = _with_webhook_secrets(config)
    problems += unread
    security = config.source.security
    if security is None or security.password_file is None:
        return config, problems
    try:
        secret = SecretStr(security.password_file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        return config, [*problems, f"source.security.password_file: {error}"]
    source = config.source.model_copy(update={"security": security.model_copy(update={"password": secret})})
    return config.model_copy(update={"source": source}), problems


def _with_webhook_secrets(config: Config) -> tuple[Config, list[str]]:
    problems: list[str] = []
    webhooks = list(config.publish.webhooks)
    for number, webhook in enumerate(webhooks):
        if webhook.secret_file is None:
            continue
        try:
            secret = webhook.secret_file.read_text(encoding="utf-8").strip()
            signing_key(secret)
        except (OSError, ValueError) as error:
            # A file that is no text fails with a part of its bytes.
            words = "it is no text" if isinstance(error, UnicodeDecodeError) else error
            problems.append(f"publish.webhooks[{number}].secret_file: {words}")
            continue
        webhooks[number] = webhook.model_copy(update={"secret": SecretStr(secret)})
    publish = config.publish.model_copy(update={"webhooks": tuple(webhooks)})
    return config.model_copy(update={"publish": publish}), problems


def _named_files(config: Config) -> Iterator[tuple[str, Path]]:
    """(path of the key, file) of every file that must be there; a baseline may be a folder."""
    for model, known in config.models.items():
        if known.baseline is not None and not known.baseline.is_dir():
            yield f"models.{model}.baseline", known.baseline
    if config.publish.token_file is not None:
        yield "publish.token_file", config.publish.token_file
    for number, webhook in enumerate(config.publish.webhooks):
        if webhook.ca_file is not None:
            yield f"publish.webhooks[{number}].ca_file", webhook.ca_file
    if config.source.security is not None:
        for key in ("ca_file", "cert_file", "key_file"):
            path: Path | None = getattr(config.source.security, key)
            if path is not None:
                yield f"source.security.{key}", path


_WORDS = {
    "missing": "this key is needed",
    "string_type": "this must be text: put it in quotes",
    "dict_type": "this must be a mapping of keys",
    "model_type": "this must be a mapping of keys",
    "tuple_type": "this must be a list",
    "int_type": "this must be a whole number",
}


def _said(failure: ErrorDetails) -> tuple[str, str]:
    """The dotted path of a failure and, in words, what is wrong."""
    where = [part for part in failure["loc"] if part != "[key]"]  # what a key that is wrong itself is marked with
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where).lstrip(".")
    if failure["type"] == "extra_forbidden":
        return path, "no such key" + _nearest(where)
    return path, _WORDS.get(failure["type"], str(failure["msg"]).removeprefix("Value error, "))


def _nearest(where: Sequence[int | str]) -> str:
    """The valid name closest to an unknown key, as a hint."""
    part: Any = Config
    for step in where[:-1]:
        if isinstance(part, type) and issubclass(part, BaseModel) and step in part.model_fields:
            part = part.model_fields[str(step)].annotation
        part = next((t for t in _types(part) if isinstance(t, type) and issubclass(t, BaseModel)), part)
    if not (isinstance(part, type) and issubclass(part, BaseModel)):
        return ""
    close = difflib.get_close_matches(str(where[-1]), part.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(part.model_fields)}"


def _types(annotation: Any) -> list[Any]:
    """An annotation and everything inside it."""
    return [annotation, *(t for inner in get_args(annotation) for t in _types(inner))]
