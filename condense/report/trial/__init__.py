"""Pages of a trial."""
