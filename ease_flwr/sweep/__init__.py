"""Many runs of one experiment: ablations, comparisons, and the search for settings."""
