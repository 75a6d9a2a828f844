"""Bytes in, columns out: the second stage. Pure but for an in-memory DuckDB that parses JSON."""

from stream_monitor.decode.decoder import Decoder, DecoderOptions
from stream_monitor.decode.predictions import ModelOptions

__all__ = ["Decoder", "DecoderOptions", "ModelOptions"]
