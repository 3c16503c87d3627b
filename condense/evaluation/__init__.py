"""Scores on downstream tasks through lm-evaluation-harness. May import diagnosis and what is below."""
