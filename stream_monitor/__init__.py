"""Stream Monitor: live drift detection and model quality on an event stream."""
