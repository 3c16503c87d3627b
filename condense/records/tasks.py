"""The values of downstream evaluation: scores of a model on tasks, and paired differences. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from condense.records.base import Estimate


@dataclass(frozen=True)
class TaskScore:
    """A model's score on one metric of one task (or group of tasks), with the harness's own standard error.

    `per_sample` keeps x of every sample in order where value = Σ w·x / Σ w (`scale` "mean") or its exponential
    ("exp": perplexities, x in nats), with w in `weights` (None: all 1); None where the metric is neither. Two
    models can then be compared sample by sample, if `samples_sha256` says they had the same prompts.
    `version` is the task's own, `harness` names the package and its version.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    samples: int
    higher_is_better: bool = True
    per_sample: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None
    scale: Literal["mean", "exp"] = "mean"
    samples_sha256: str | None = None
    shots: int | None = None
    version: str | None = None
    harness: str | None = None


@dataclass(frozen=True)
class TaskEffect:
    """New − old on one metric of one task with a 95 % interval: paired by sample where both had the same samples.

    With several training seeds all values are means over them, the interval covers seeds and samples, and `shown` is
    the smallest difference that would have been found in 80 % of such trials; None for one seed.
    """

    task: str
    metric: str
    new: float | None
    old: float | None
    difference: Estimate
    paired: bool
    samples: int
    higher_is_better: bool = True
    seeds: int = 1
    shown: float | None = None
