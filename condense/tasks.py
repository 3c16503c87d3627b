"""The values of downstream evaluation: scores of a model on tasks, and paired differences. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from condense.records import Estimate


@dataclass(frozen=True)
class TaskScore:
    """A model's score on one metric of one task, with the harness's own standard error.

    `per_sample` keeps the score of every sample in order (None where the metric is not a mean over samples), so
    that two models can be compared sample by sample.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    samples: int
    higher_is_better: bool = True
    per_sample: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TaskEffect:
    """New − old on one metric of one task, paired by sample where both kept their samples' scores."""

    task: str
    metric: str
    new: float | None
    old: float | None
    difference: Estimate
    paired: bool
    samples: int
    higher_is_better: bool = True
