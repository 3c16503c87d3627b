"""Pages of a treatment."""
