"""The frozen values that flow between packages, and their JSON.

Standard library only; may import version, errors and metrics.
"""
