"""Trains one arm: rows, remedies, the loop, its cost, its saved weights.

May import diagnosis, evaluation, dispersion and what is below.
"""
