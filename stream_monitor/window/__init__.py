"""Stage 4, event time: watermarks, duplicates, the flow between partitions, panes and the late join."""
