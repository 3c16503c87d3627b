"""Measures a model on windows: forward passes, per-site summaries, quality, verdict.

May import dispersion, models, texts, records.
"""
