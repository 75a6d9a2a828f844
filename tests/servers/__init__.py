"""Real servers for the tests. Each is started on free ports of loopback and ended by whoever started it."""
