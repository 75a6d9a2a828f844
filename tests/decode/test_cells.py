"""Names of features coded over a batch, against a plain loop."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.decode.cells import decode_cells
from stream_monitor.decode.json import RawCells

_NAMES = st.lists(st.sampled_from(["", "a", "b", "ab", "é", "x" * 201]), max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.lists(_NAMES, max_size=2), st.integers(1, 4), _NAMES)
def test_names_are_coded(events: list[list[str]], repeats: int, last: list[str]) -> None:
    """Codes lead back to the names, whether events repeat one another or not; long names are dropped and counted."""
    rows = [*events * repeats, last]
    position = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    names = [name for row in rows for name in row]
    raw = RawCells(position, pa.array(names, pa.string()), pa.array(map(str, range(len(names))), pa.string()))
    cells = decode_cells(raw, lambda texts: texts)
    kept = [place for place, name in enumerate(names) if len(name) <= 200]
    assert cells.long_name_row.tolist() == [row for place, row in enumerate(position) if len(names[place]) > 200]
    assert [cells.names[code] for code in cells.name] == [names[place] for place in kept]
    assert len(set(cells.names)) == len(cells.names)
    assert cells.row.tolist() == position[kept].tolist()
    assert cells.number.tolist() == [float(place) for place in kept]
