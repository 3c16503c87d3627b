"""The embedding and unembedding matrices of a model: the geometry of their rows, without a forward pass."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condense.geometry import MatrixNumbers, matrix_null, measure_matrix
from condense.metrics import MATRIX
from condense.models.checkpoint import Checkpoint
from condense.records.base import Estimate, Finding
from condense.records.diagnosis import MATRICES, MatrixReading

EVIDENCE = "Gao et al. 2019, arXiv:1907.12009; Coupled Adam 2025, arXiv:2502.08441; arXiv:2602.20433"


def matrices_of(checkpoint: Checkpoint) -> dict[str, MatrixReading]:
    """The readings by name, `embedding-matrix` and `unembedding-matrix`; without one that the model does not have.

    A matrix that is quantised or not finite is left out.
    """
    model: Any = checkpoint.model
    readings: dict[str, MatrixReading] = {}
    std = _initial_std(model)
    weights = {
        MATRICES[0]: _weight_of(model, "get_input_embeddings"),
        MATRICES[1]: None if checkpoint.head_missing else _weight_of(model, "get_output_embeddings"),
    }
    first, second = weights.values()
    tied = first is not None and second is not None and _is_same_matrix(first, second)
    for name, weight in weights.items():
        if weight is None:
            continue
        if tied and MATRICES[0] in readings:
            readings[name] = readings[MATRICES[0]]
            continue
        try:
            readings[name] = _matrix_reading(weight, measure_matrix(weight, std), tied=tied)
        except ValueError:  # not finite: the states will not be either
            continue
    return readings


def _weight_of(model: Any, getter: str) -> Tensor | None:
    from accelerate.utils import align_module_device

    try:
        module = getattr(model, getter)()
        with align_module_device(module):  # an offloaded weight is on its execution device only inside this context
            weight = getattr(module, "weight", None)
            if weight is not None and hasattr(module, "_hf_hook"):
                weight = weight.detach().clone()
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return weight if weight.device.type != "meta" and min(weight.shape) > 1 else None


def _is_same_matrix(first: Tensor, second: Tensor) -> bool:
    if first.data_ptr() == second.data_ptr():
        return True
    return first.shape == second.shape and bool(torch.equal(first, second.to(first.device)))


def _initial_std(model: Any) -> float | None:
    """The standard deviation of the embedding's initialisation, if the config names it."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    declared = (getattr(config, key, None) for key in ("initializer_range", "init_std"))
    return next((float(std) for std in declared if isinstance(std, float) and std > 0), None)


def _matrix_reading(weight: Tensor, numbers: MatrixNumbers, *, tied: bool) -> MatrixReading:
    rows, width = weight.shape
    null_rank, null_spectrum = matrix_null(rows, width)
    nulls = {"effective_rank": null_rank, "dimension": float(width)}  # U-statistics: whatever the number of rows
    metrics = {key: _exact_estimate(value, nulls.get(key)) for key, value in numbers.values.items()}
    return MatrixReading(
        rows=rows,
        width=width,
        tied=tied,
        metrics={key.partition(".")[2]: metrics[key.partition(".")[2]] for key in MATRIX},
        zero=numbers.zero,
        duplicate=numbers.duplicate,
        initial=numbers.initial,
        spectrum=numbers.spectrum,
        spectrum_null=null_spectrum,
    )


def _exact_estimate(value: float, null: float | None) -> Estimate:
    """A number of the whole matrix, which is not a sample: the interval is the number itself."""
    if not math.isfinite(value):
        return Estimate(None, reason="undefined: fewer than two rows that vary")
    return Estimate(value, value, value, null=null, null_ratio=None if not null else value / null)


def matrix_finding(model: str, readings: Mapping[str, MatrixReading]) -> Finding:
    """The finding on the matrices' geometry, with its limits."""
    summary = "; ".join(f"{name.replace('-', ' ')} {words_of(reading)}" for name, reading in readings.items())
    if len(readings) == 2 and readings[MATRICES[0]].tied:
        summary = f"tied matrices {words_of(readings[MATRICES[0]])}"
    return Finding(
        id="matrices",
        severity="info",
        title="Embedding and unembedding, from the weights alone" if readings else "No embedding matrix can be read",
        seen=summary or "it is quantised, or not finite, or the model reads no token ids",
        why="A common shift of the rows was held against a model (Gao 2019), and removed with a small gain (Coupled "
        "Adam). Over 108 models the geometry of this matrix reflects batch size and weight decay and does not predict "
        "performance (arXiv:2602.20433). States need a text.",
        next=f"condense analyze {shlex.quote(model)} -o report/",
        source=EVIDENCE,
    )


def words_of(reading: MatrixReading) -> str:
    """A matrix in one line."""
    values = {key: estimate.value for key, estimate in reading.metrics.items()}
    rank = reading.metrics["effective_rank"]
    parts = [f"{reading.rows:,} × {reading.width:,}"]
    for key, name in (("mean_cosine", "mean cosine"), ("mean_shift", "mean shift")):
        parts += [f"{name} {value:.3f}"] if (value := values[key]) is not None else []
    if rank.value is not None and rank.null_ratio is not None:
        parts.append(f"effective rank {rank.value:.0f} ({100 * rank.null_ratio:.0f} % of random)")
    if share := values["untrained_share"]:
        parts.append(f"{100 * share:.3g} % of the rows never trained")
    return ", ".join(parts)
