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

from condense.errors import UsageError
from condense.evaluation import harness
from condense.evaluation.harness import OnRequest, OpenTasks, find_tasks, open_tasks
from condense.intervals import CONFIDENCE, Floats, bootstrap_interval
from condense.records.base import Estimate
from condense.records.tasks import TaskEffect, TaskScore

if TYPE_CHECKING:
    from condense.models.checkpoint import Checkpoint

BATCH_SIZE = 8
Scale = Literal["mean", "exp"]
# What a metric's samples come to, by the name of the harness's aggregation: see `_samples_of`.
_AGGREGATIONS: Mapping[str, Scale] = {
    "mean": "mean", "bits_per_byte": "mean", "perplexity": "exp", "weighted_perplexity": "exp"
}  # fmt: skip


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
            scores += [score for of in own for score in of]
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
        score, per_sample=tuple(per_sample), weights=None if weights is None else tuple(weights), scale=scale,
        samples_sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    )  # fmt: skip


def _group_scores(name: str, own: Sequence[Sequence[TaskScore]], results: Mapping[str, Any]) -> list[TaskScore]:
    """The scores of a group; its samples are those of its members where the group's score is a mean of them."""
    found = []
    for metric, chosen in _metrics(results["results"][name]):
        score = _score(name, metric, chosen, results, 0)
        parts = [part for of in own for part in of if part.metric == score.metric]
        score = replace(score, samples=sum(part.samples for part in parts))
        if all(part.per_sample and part.weights is None and part.scale == "mean" for part in parts):
            members = [part.per_sample or () for part in parts]
            flat, hashes = [x for of in members for x in of], [part.samples_sha256 or "" for part in parts]
            by_size = _keeping(score, flat, None, "mean", hashes)
            by_task = _keeping(score, flat, [1 / len(of) for of in members for _ in of], "mean", hashes)
            score = by_task if by_size.per_sample is None else by_size
        found.append(score)
    return found


# --- differences ---------------------------------------------------------------------------------------


def task_effects(new: Sequence[TaskScore], old: Sequence[TaskScore], seed: int = 0) -> tuple[TaskEffect, ...]:
    """New − old for every task and metric that both have, with a 95 % interval over samples.

    Paired where both kept the scores of the same samples (equal `samples_sha256`): a percentile bootstrap that draws
    samples once for both (1,000 resamples). Else from the two standard errors, difference ± 1.96·√(a² + b²), and
    `paired` is False. Neither covers training seeds.
    """
    others = {(score.task, score.metric): score for score in old}
    return tuple(
        _effect(score, others[score.task, score.metric], seed) for score in new if (score.task, score.metric) in others
    )


def over_seeds(runs: Sequence[Sequence[TaskScore]]) -> tuple[TaskScore, ...]:
    """The mean over training seeds of the scores that every run has; samples are averaged where they are the same.

    The standard error is the mean of the runs' own: seeds share the samples, so they do not make it smaller.
    """
    if not runs:
        return ()
    tables = [{(score.task, score.metric): score for score in run} for run in runs]
    return tuple(
        _mean_score([table[key] for table in tables]) for key in tables[0] if all(key in table for table in tables)
    )


def _mean_score(scores: Sequence[TaskScore]) -> TaskScore:
    first, values, errors = scores[0], [s.value for s in scores], [s.stderr for s in scores]
    known, sure = [v for v in values if v is not None], [e for e in errors if e is not None]
    whole = len(known) == len(scores)
    same = whole and first.scale == "mean" and all(_same_samples(score, first) for score in scores)
    columns = zip(*(score.per_sample or () for score in scores), strict=True) if same else ()
    samples = tuple(sum(column) / len(scores) for column in columns)
    return replace(
        first,
        value=sum(known) / len(known) if whole else None,
        stderr=sum(sure) / len(sure) if len(sure) == len(scores) else None,
        per_sample=samples or None,
        weights=first.weights if samples else None,
    )


def _effect(new: TaskScore, old: TaskScore, seed: int) -> TaskEffect:
    paired = _same_samples(new, old)
    return TaskEffect(
        new.task, new.metric, new.value, old.value, _paired(new, old, seed) if paired else _unpaired(new, old), paired,
        min(new.samples, old.samples), new.higher_is_better,
    )  # fmt: skip


def _same_samples(new: TaskScore, old: TaskScore) -> bool:
    kept = new.per_sample is not None and old.per_sample is not None
    alike = (new.samples_sha256, new.weights, new.scale) == (old.samples_sha256, old.weights, old.scale)
    return kept and alike and len(new.per_sample or ()) == len(old.per_sample or ())


def _paired(new: TaskScore, old: TaskScore, seed: int) -> Estimate:
    mine, theirs = np.array(new.per_sample, dtype=np.float64), np.array(old.per_sample, dtype=np.float64)
    weights = np.ones(len(mine)) if new.weights is None else np.array(new.weights, dtype=np.float64)

    def change(means: Floats) -> Floats:
        a, b = means[:, 0] / means[:, 2], means[:, 1] / means[:, 2]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out of the interval
            return a - b if new.scale == "mean" else np.exp(a) - np.exp(b)

    if new.value is None or old.value is None:
        return Estimate(None, reason="undefined in one of the two")
    low, high = bootstrap_interval(np.stack([weights * mine, weights * theirs, weights], axis=1), change, seed)
    return Estimate(new.value - old.value, low, high, reason="one sample only" if low is None else None)


def _unpaired(new: TaskScore, old: TaskScore) -> Estimate:
    if new.value is None or old.value is None:
        return Estimate(None, reason="undefined in one of the two")
    value = new.value - old.value
    if new.stderr is None or old.stderr is None:
        return Estimate(value, reason="no standard error")
    import scipy.special

    half = float(scipy.special.ndtri(0.5 + CONFIDENCE / 2)) * math.hypot(new.stderr, old.stderr)
    return Estimate(value, value - half, value + half)
