"""`ease open`: a local page that follows a run, then shows its report and searches with its models. Loopback only."""
