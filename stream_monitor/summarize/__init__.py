"""Stage 3: columns become profiles that add."""
