"""Stage 1: bytes and offsets in."""
