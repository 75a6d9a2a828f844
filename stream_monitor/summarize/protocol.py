"""The layout of a subject's counts, shared by every profile and by those who judge it."""

from __future__ import annotations

MAIN = 256
"""Columns 0 to 255: equal-mass bins of the baseline, or its categories by frequency."""

MISSING = 256
WRONG_TYPE = 257
INFINITE = 258
BELOW = 259
"""Below the baseline's smallest value."""
ABOVE = 260
UNSEEN = 261
"""A category the baseline does not have, or not among those it keeps."""

BINS = 262
