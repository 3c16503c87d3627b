"""Compares models, checkpoints and saved runs. May import diagnosis, evaluation and what is below."""
