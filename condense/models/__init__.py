"""Opens checkpoints: finds, checks, fetches and loads them, and finds their blocks.

May import files, records and the ground modules.
"""
