"""Where records come from and where verdicts go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stream_monitor.config import Config, SourceConfig
from stream_monitor.errors import PeerError, UsageError
from stream_monitor.source.kafka import Client, KafkaSource, PythonClient, bindings_of
from stream_monitor.source.protocol import Source
from stream_monitor.source.sink import ConfluentSink, KafkaSink, Sink

__all__ = ["check_connection", "open_sink", "open_source"]

_CHECK_SECONDS = 5.0


def open_source(config: Config, *, clock: Callable[[], float]) -> Source:
    """The source the configuration names, not yet started; `clock` is monotonic, in seconds."""
    source = config.source
    if source.kind == "files":
        from stream_monitor.source.files import FileSource

        return FileSource(bindings_of(source))
    return KafkaSource(
        _open_client(source),
        bindings_of(source),
        begin=source.start,
        on_data_loss=source.on_data_loss,
        clock=clock,
    )


def open_sink(config: Config) -> Sink:
    """Where drift events and dead letters go: the brokers the records come from."""
    if config.source.kind == "files":
        raise UsageError("topics can only be written to where source.kind is kafka")
    return ConfluentSink(config.source) if config.source.client == "confluent" else KafkaSink(config.source)


def check_connection(config: SourceConfig, *, written: Sequence[str] = ()) -> list[str]:
    """Everything that stands between us and the records, a sentence each; empty where nothing does.

    `written`: further topics, which we write to.
    """
    names = [t.topic for t in (*config.inference, *config.ground_truth)]
    if config.kind == "files":
        return [f"there is no file {name}" for name in names if not Path(name).is_file()]
    client = None
    try:
        client = _open_client(config)
        client.connect(_CHECK_SECONDS)
        wanted = [*names, *([config.dead_letter_topic] if config.dead_letter_topic else []), *written]
        found = client.partitions(wanted)
        return [f"there is no topic {topic}, or we may not see it" for topic in wanted if not found.get(topic)]
    except (PeerError, UsageError) as error:
        return [str(error)]
    finally:
        if client is not None:
            client.close()


def _open_client(config: SourceConfig) -> Client:
    if config.client == "confluent":
        from stream_monitor.source.confluent import ConfluentClient

        return ConfluentClient(config)
    return PythonClient(config)
