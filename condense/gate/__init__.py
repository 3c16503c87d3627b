"""Holds assertions against a run. May import comparison and what is below."""
