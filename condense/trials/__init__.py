"""Arms under seeds: the orchestration, its runs, effects and verdict.

May import training and what is below.
"""
