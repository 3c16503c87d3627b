"""Downstream tasks: a model's scores through lm-evaluation-harness, and paired differences of two models.

The last checkpoint is the one that is evaluated; none is chosen by the scores that are reported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from condense import intervals
from condense.errors import UsageError
from condense.evaluation import harness
from condense.evaluation.harness import OnRequest, OpenTasks, find_tasks, open_tasks
from condense.intervals import Floats, Spread
from condense.records.base import Estimate
from condense.records.tasks import TaskEffect, TaskScore

if TYPE_CHECKING:
    from condense.models.checkpoint import Checkpoint

BATCH_SIZE = 8
Scale = Literal["mean", "exp"]
# What a metric's samples come to, by the name of the harness's aggregation: see `_samples_of`.
_AGGREGATIONS: Mapping[str, Scale] = {
    "mean": "mean",
    "bits_per_byte": "mean",
    "perplexity": "exp",
    "weighted_perplexity": "exp",
}


def evaluate(
    checkpoint: Checkpoint | str | Path,
    tasks: OpenTasks | Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    on_request: OnRequest = lambda done, total: None,
) -> tuple[TaskScore, ...]:
    """Scores of a model on tasks of lm-evaluation-harness, in the order of the names; () without names.

    checkpoint: an opened one, or what `load` takes; tasks: names of tasks, groups or tags, or what `open_tasks`
    returned, so that several models share it; include_path: folder of task files of your own; limit: only the first
    so many samples of each task, at least 1; batch_size: samples per forward pass, halved when memory runs out. A
    group with a score of its own gives that, any other one gives its members'. The random state of the process is
    left as it was. UsageError for a model that cannot score text, UnavailableError for a task or its data that
    cannot be had, RunError for a task that fails.
    """
    if limit is not None and limit < 1 or batch_size < 1:
        raise ValueError(f"limit {limit} and batch_size {batch_size} must be at least 1")
    if not isinstance(tasks, OpenTasks):
        tasks = open_tasks(find_tasks(tasks, include_path))
    if not tasks.names:
        return ()
    if isinstance(checkpoint, str | Path):
        from condense.models.checkpoint import load

        checkpoint = load(checkpoint)
    check_model(checkpoint)
    results = harness.run(checkpoint, tasks, limit=limit, seed=seed, batch_size=batch_size, on_request=on_request)
    scores: list[TaskScore] = []
    for leaves, group in zip(tasks.leaves, tasks.groups, strict=True):
        own = [_scores(name, task, results) for name, task in leaves.items()]
        if group is not None and group.name in results.get("groups", {}):
            scores += _group_scores(group.name, own, results)
        else:
            scores += [score for of_leaf in own for score in of_leaf]
    return tuple(scores)


def check_model(checkpoint: Checkpoint) -> None:
    """UsageError for a model that gives no likelihood of a text: masked, without a head, or with an untrained one."""
    if checkpoint.info.objective not in ("causal", "seq2seq") or checkpoint.head_missing:
        why = checkpoint.head_missing or f"{checkpoint.info.architecture} predicts no next token"
        raise UsageError(f"{checkpoint.info.id} cannot be evaluated on tasks: {why}", "leave out --eval-tasks")


# --- the harness's results as records ------------------------------------------------------------------


def _scores(name: str, task: Any, results: Mapping[str, Any]) -> list[TaskScore]:
    """The scores of a single task, one per metric and filter."""
    found = []
    for metric, chosen in _metrics(results["results"][name]):
        drawn = [sample for sample in results["samples"][name] if sample["filter"] == chosen and metric in sample]
        kind = getattr(task.aggregation().get(metric), "__name__", "mean")
        per_sample, weights, scale = _samples_of([sample[metric] for sample in drawn], kind)
        hashes = [sample[f"{part}_hash"] for sample in drawn for part in ("doc", "prompt", "target")]
        score = _score(name, metric, chosen, results, len(drawn))
        found.append(_keeping(score, per_sample, weights, scale, hashes))
    return found


def _metrics(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(metric, filter) of what the harness reports, as in `acc,none`, without the standard errors."""
    parts = [key.partition(",") for key in block if "," in key]
    return [(metric, chosen) for metric, _, chosen in parts if not metric.endswith("_stderr")]


def _score(name: str, metric: str, chosen: str, results: Mapping[str, Any], samples: int) -> TaskScore:
    block = results["results"][name]
    better, version = results["higher_is_better"].get(name, {}).get(metric), results["versions"].get(name)
    return TaskScore(
        task=name,
        metric=metric if chosen == "none" else f"{metric} ({chosen})",
        value=_finite(block[f"{metric},{chosen}"]),
        stderr=_finite(block.get(f"{metric}_stderr,{chosen}")),
        samples=samples,
        higher_is_better=True if better is None else bool(better),
        shots=results["n-shot"].get(name),
        version=None if version is None else str(version),
        harness=f"lm_eval {results['lm_eval_version']}",
    )


def _finite(value: object) -> float | None:
    """A number of the harness; None for its "N/A" and for what is not finite."""
    known = isinstance(value, int | float | np.number) and math.isfinite(float(value))
    return float(value) if known else None  # type: ignore[arg-type]


def _samples_of(items: Sequence[Any], kind: str) -> tuple[list[float], list[float] | None, Scale]:
    """Samples as x, weights and scale, so that Σ w·x / Σ w (or its exponential) is the metric; [] if it is neither.

    The harness keeps log-likelihoods for `perplexity`, and pairs (log-likelihood, words or bytes) for the other two.
    """
    scale = _AGGREGATIONS.get(kind)
    if scale is None:
        return [], None, "mean"
    if kind in ("mean", "perplexity"):
        sign = 1.0 if kind == "mean" else -1.0
        plain = [_finite(item) for item in items]
        return [sign * x for x in plain if x is not None], None, scale
    unit = math.log(2) if kind == "bits_per_byte" else 1.0
    return [-float(nats) / (size * unit) for nats, size in items if size], [float(size) for _, size in items], scale


def _keeping(
    score: TaskScore, per_sample: Sequence[float], weights: Sequence[float] | None, scale: Scale, hashes: Sequence[str]
) -> TaskScore:
    """The score with its samples, if they really come to the harness's value, whatever the task did; else as it is."""
    if score.value is None or not per_sample or (weights is not None and len(weights) != len(per_sample)):
        return score
    mean = float(np.average(per_sample, weights=weights))
    if not math.isclose(mean if scale == "mean" else math.exp(mean), score.value, rel_tol=1e-9, abs_tol=1e-12):
        return score
    return replace(
        score,
        per_sample=tuple(per_sample),
        weights=None if weights is None else tuple(weights),
        scale=scale,
        samples_sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    )


def _group_scores(name: str, own: Sequence[Sequence[TaskScore]], results: Mapping[str, Any]) -> list[TaskScore]:
    """The scores of a group; its samples are those of its members where the group's score is a mean of them."""
    found = []
    for metric, chosen in _metrics(results["results"][name]):
        score = _score(name, metric, chosen, results, 0)
        parts = [part for scores in own for part in scores if part.metric == score.metric]
        score = replace(score, samples=sum(part.samples for part in parts))
        if all(part.per_sample and part.weights is None and part.scale == "mean" for part in parts):
            members = [part.per_sample or () for part in parts]
            flat, hashes = [x for scores in members for x in scores], [part.samples_sha256 or "" for part in parts]
            by_size = _keeping(score, flat, None, "mean", hashes)
            by_task = _keeping(score, flat, [1 / len(scores) for scores in members for _ in scores], "mean", hashes)
            score = by_task if by_size.per_sample is None else by_size
        found.append(score)
    return found


# --- differences ---------------------------------------------------------------------------------------


def task_effects(new: Sequence[TaskScore], old: Sequence[TaskScore]) -> tuple[TaskEffect, ...]:
    """New − old for every task and metric that both have, with a 95 % interval over samples.

    Paired where both kept the scores of the same samples (equal `samples_sha256`): the interval of the differences per
    sample. Else from the two standard errors, and `paired` is False. It does not cover training seeds: see
    `task_effects_over_seeds`.
    """
    return task_effects_over_seeds([new], [old])


def task_effects_over_seeds(
    new: Sequence[Sequence[TaskScore]], old: Sequence[Sequence[TaskScore]]
) -> tuple[TaskEffect, ...]:
    """New − old, mean over training seeds, for every task and metric that all runs have.

    new, old: the scores of both under the same seeds, in the same order. The interval's variance has a part over seeds
    and one over samples (of the differences averaged over seeds where paired), each with its own t quantile.
    """
    if len(new) != len(old):
        raise ValueError(f"{len(new)} runs against {len(old)}: give both under the same seeds")
    tables = [{(score.task, score.metric): score for score in run} for run in (*new, *old)]
    keys = [key for key in (tables[0] if tables else ()) if all(key in table for table in tables)]
    return tuple(
        _task_effect([table[key] for table in tables[: len(new)]], [table[key] for table in tables[len(new) :]])
        for key in keys
    )


def _task_effect(new: Sequence[TaskScore], old: Sequence[TaskScore]) -> TaskEffect:
    first = new[0]
    paired = all(_same_samples(score, old[0]) for score in (*new, *old))
    spread = _sample_spread(new, old) if paired else _stderr_spread(new, old)
    low, high = spread.bounds()
    return TaskEffect(
        task=first.task,
        metric=first.metric,
        new=_mean_value(new),
        old=_mean_value(old),
        difference=Estimate(spread.value, low, high, reason=spread.reason),
        paired=paired,
        samples=min(score.samples for score in (*new, *old)),
        higher_is_better=first.higher_is_better,
        seeds=len(new),
        shown=intervals.smallest_detectable(spread.parts) if len(new) > 1 and spread.parts else None,
    )


def _mean_value(scores: Sequence[TaskScore]) -> float | None:
    known = [score.value for score in scores if score.value is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def _same_samples(new: TaskScore, old: TaskScore) -> bool:
    kept = new.per_sample is not None and old.per_sample is not None
    alike = (new.samples_sha256, new.weights, new.scale) == (old.samples_sha256, old.weights, old.scale)
    return kept and alike and len(new.per_sample or ()) == len(old.per_sample or ())


def _differences(new: Sequence[TaskScore], old: Sequence[TaskScore]) -> Floats | None:
    pairs = [(a.value, b.value) for a, b in zip(new, old, strict=True)]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    return np.array(known, dtype=np.float64) if len(known) == len(pairs) else None


def _sample_spread(new: Sequence[TaskScore], old: Sequence[TaskScore]) -> Spread:
    """Paired: what each sample adds to the differences, seed by seed; every sample is a unit of its own."""
    values = _differences(new, old)
    if values is None:
        return Spread(None, (), "undefined in one of the two")
    errors = np.array([_influence(a) - _influence(b) for a, b in zip(new, old, strict=True)])
    size = errors.shape[1]
    if size < 2:
        return Spread(float(values.mean()), (), "one sample only")
    spread = intervals.over_seeds(values[:, None] + size * errors, range(size))
    return Spread(float(values.mean()), spread.parts, spread.reason)


def _influence(score: TaskScore) -> Floats:
    """What each sample adds to the error of a score: w·(x − mean)/Σw, times the score itself on the scale "exp"."""
    x = np.array(score.per_sample, dtype=np.float64)
    weights = np.ones(len(x)) if score.weights is None else np.array(score.weights, dtype=np.float64)
    share = weights / weights.sum()
    influence: Floats = share * (x - share @ x)
    return influence if score.scale == "mean" else influence * (score.value or 0.0)


def _stderr_spread(new: Sequence[TaskScore], old: Sequence[TaskScore]) -> Spread:
    """Unpaired: the harness's standard errors, which seeds do not make smaller, for they share the samples."""
    values = _differences(new, old)
    if values is None:
        return Spread(None, (), "undefined in one of the two")
    value, parts = float(values.mean()), []
    for scores in (new, old):
        errors = [score.stderr for score in scores if score.stderr is not None]
        if len(errors) < len(scores):
            return Spread(value, (), "no standard error")
        parts.append(((sum(errors) / len(errors)) ** 2, max(1.0, scores[0].samples - 1.0)))
    if len(values) == 1:
        both = intervals.difference(Spread(value, (parts[0],)), Spread(0.0, (parts[1],)))
        return Spread(value, both.parts)
    return Spread(value, ((float(values.var(ddof=1)) / len(values), len(values) - 1.0), *parts))
