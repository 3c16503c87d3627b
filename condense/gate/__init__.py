"""Checks assertions on a run. May import comparison and what is below."""
