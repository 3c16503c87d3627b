"""One vector per text, as used for search, clustering and sentence similarity.

Of each window the mean, the last and the first (CLS) state of the output are kept, as unit rows; over windows they
give the cosine between texts, the dimension and the effective rank. A check that needs no labels: how often is the
nearest neighbour of one half of a text, each half embedded separately, the other half of the same text?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense.geometry import gaussian_null
from condense.geometry.rows import sink_positions
from condense.geometry.spectrum import centred, dimension_moments, rank
from condense.intervals import Spread, jackknife, over_documents
from condense.metrics import POOLED, POOLINGS
from condense.records.base import Estimate

Floats = NDArray[np.float64]
ROWS = 256
"""The rank and the dimension read at most so many windows, spread evenly over all."""
GROUPS = 64
"""Of more documents than this, several are left out at a time for an interval."""
_SAME = 1e-6  # cosines this close to 1 between all texts: the vector does not depend on the text
_NOISE = 1e-12  # of a unit row's squared distance from the mean: below it there is float32's rounding only
NO_HALVES = "measured with --halves"
NO_CLS = "no special token stands before a text"
BLIND_CLS = "the first position of every text has the same vector: it has read nothing of the text"
ONE_DOCUMENT = "needs at least two documents"


def pool(states: Tensor, keep: Tensor, begins_with_special: bool) -> Tensor:
    """The mean, last and CLS vector of one text as unit rows, (3, d) float32; NaN where there is none.

    states (S, d) of the output, on the CPU; keep (S,) bool, the positions that count: the mean leaves sinks out too.
    CLS is position 0, where a special token stands there.
    """
    x = states.detach().double()
    lengths = torch.linalg.vector_norm(x, dim=-1)
    inner = keep & ~sink_positions(lengths, keep & (lengths > 0))
    nothing = torch.full_like(x[0], torch.nan)
    mean = x[inner].mean(0) if bool(inner.any()) else nothing
    last = x[int(torch.nonzero(keep)[-1])] if bool(keep.any()) else nothing
    rows = torch.stack([mean, last, x[0] if begins_with_special else nothing])
    return torch.nn.functional.normalize(rows, dim=-1, eps=0.0).float()


def halves_of(ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of a window as texts of their own, and which of their tokens are special: (2, s) each.

    ids, special (S,). The special tokens around the window surround each half; an odd token in the middle is left out.
    """
    own = torch.nonzero(~special).flatten()
    first, after = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, len(ids))
    half = (after - first) // 2

    def cut(row: Tensor) -> Tensor:
        around = row[:first], row[after:]
        return torch.stack(
            [
                torch.cat([around[0], row[first : first + half], around[1]]),
                torch.cat([around[0], row[after - half : after], around[1]]),
            ]
        )

    return cut(ids), cut(special)


def pooled_view(
    vectors: Sequence[Tensor | None], halves: Sequence[Tensor | None], documents: Sequence[int]
) -> dict[str, dict[str, Estimate]]:
    """Every number of every pooling; empty where no vectors were kept.

    vectors: (3, d) of each window; halves: (2, 3, d), or None of each where they were not embedded apart; documents:
    the document of each window.
    """
    own = [vector for vector in vectors if vector is not None]
    if len(own) < len(vectors) or not own:
        return {}
    table = torch.stack(own).double()  # (N, 3, d)
    parts = [half for half in halves if half is not None]
    both = torch.stack(parts).double() if len(parts) == len(own) else None
    view = {}
    for number, name in enumerate(POOLINGS):
        rows = table[:, number]
        reason = _undefined_reason(name, rows)
        if reason is not None:
            view[name] = {key: Estimate(None, reason=reason) for key in POOLED}
            continue
        view[name] = {
            "cosine": _cross_text_cosine(rows, documents),
            **_spectral_estimates(rows, documents),
            "halves_found": _halves_found(None if both is None else both[:, :, number], documents),
        }
    return view


def _undefined_reason(name: str, rows: Tensor) -> str | None:
    """Why a pooling has no numbers."""
    if not bool(torch.isfinite(rows).all()):
        return NO_CLS if name == "cls" else "a text has no such vector"
    if name == "cls" and len(rows) > 1 and bool((1 - rows @ rows[0] < _SAME).all()):
        return BLIND_CLS
    return None


# --- between texts -----------------------------------------------------------------------------------


def _cross_text_cosine(rows: Tensor, documents: Sequence[int]) -> Estimate:
    """The mean cosine of the vectors of two windows of different documents, with a delete-a-document jackknife."""
    if len(set(documents)) < 2:
        return Estimate(None, reason=ONE_DOCUMENT)
    groups = _jackknife_groups(documents, len(rows))
    index = torch.from_numpy(np.unique(np.asarray(documents), return_inverse=True)[1])
    count = int(index.max()) + 1
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64).index_add_(0, index, rows)
    sizes = torch.bincount(index, minlength=count).double()

    def cosine(kept: NDArray[np.bool_]) -> float:
        chosen = torch.from_numpy(np.isin(np.arange(count), index.numpy()[kept]))
        total, n = sums[chosen].sum(0), sizes[chosen]
        pairs = float(n.sum() ** 2 - n.square().sum())
        between = float(total.square().sum() - sums[chosen].square().sum())
        return min(1.0, max(-1.0, between / pairs)) if pairs > 0 else float("nan")

    return _jackknife_estimate("cosine", cosine, groups, documents)


def _spectral_estimates(rows: Tensor, documents: Sequence[int]) -> dict[str, Estimate]:
    """Dimension and effective rank of the vectors as a cloud, each window a row."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().astype(int))
    units = rows[torch.from_numpy(chosen)]
    gram, own = units @ units.T, tuple(np.asarray(documents)[chosen].tolist()) if documents else ()
    groups = _jackknife_groups(own, len(units))

    def part(kept: NDArray[np.bool_]) -> Tensor | None:
        """The centred Gram matrix of the windows that are kept; None where they differ by rounding only."""
        index = torch.from_numpy(np.flatnonzero(kept))
        middle = centred(gram[index][:, index])
        return middle if float(middle.diagonal().sum()) > _NOISE * len(middle) else None

    def dimension(kept: NDArray[np.bool_]) -> float:
        middle = part(kept)
        numerator, denominator = (0.0, 0.0) if middle is None else map(float, dimension_moments(middle))
        return numerator / denominator if denominator > 0 else float("nan")

    def effective_rank(kept: NDArray[np.bool_]) -> float:
        middle = part(kept)
        return float("nan") if middle is None else rank("effective_rank", middle)

    made = {
        "dimension": _jackknife_estimate("dimension", dimension, groups, own),
        "effective_rank": _jackknife_estimate("effective_rank", effective_rank, groups, own),
    }
    null = gaussian_null("effective_rank", len(units), units.shape[1])
    value = made["effective_rank"].value
    if value is not None:
        made["effective_rank"] = replace(made["effective_rank"], null=null, null_ratio=value / null)
    return made


def _jackknife_groups(documents: Sequence[int], windows: int) -> NDArray[np.int64]:
    """What is left out at a time for each window: its document, or several together; with one document the window."""
    index = np.unique(np.asarray(documents or range(windows)), return_inverse=True)[1]
    if index.max(initial=0) == 0:
        index = np.arange(windows)
    count = int(index.max(initial=0)) + 1
    return (index * min(GROUPS, count) // count).astype(np.int64)


def _jackknife_estimate(
    key: str, statistic: Callable[[NDArray[np.bool_]], float], groups: NDArray[np.int64], documents: Sequence[int]
) -> Estimate:
    """A statistic of all windows, with its value without each group of them."""
    whole = statistic(np.ones(len(groups), dtype=bool))
    value = whole if np.isfinite(whole) else None
    without = [statistic(groups != group) for group in range(int(groups.max(initial=0)) + 1)]
    deleted = tuple(v if np.isfinite(v) else None for v in without)
    spread = jackknife(value, deleted, groups.tolist() if documents else ())
    return replace(_bounded(key, spread), deleted=deleted if documents else None)


def _bounded(key: str, spread: Spread) -> Estimate:
    metric = POOLED[key]
    reason = spread.reason if spread.value is not None else "too few texts, or texts that do not vary"
    return Estimate(spread.value, *spread.clipped(metric.low, metric.high), reason=reason)


# --- retrieval of the other half -----------------------------------------------------------------------


def _halves_found(halves: Tensor | None, documents: Sequence[int]) -> Estimate:
    """How often a half's nearest vector among the other halves of all texts is the other half of its own text.

    halves (N, 2, d). A window counts ½ for each direction; a tie between k nearest counts 1/k. `null` is chance, 1/N.
    """
    if halves is None:
        return Estimate(None, reason=NO_HALVES)
    if len(halves) < 2:
        return Estimate(None, reason="needs at least two texts")
    if not bool(torch.isfinite(halves).all()):
        return Estimate(None, reason="half a text has no such vector")
    cosines = halves[:, 0] @ halves[:, 1].T
    hits = (_nearest(cosines) + _nearest(cosines.T)) / 2
    spread = over_documents(hits.numpy(), tuple(documents))
    values = tuple(hits.tolist())
    return replace(_bounded("halves_found", spread), per_text=values, null=1 / len(halves))


def _nearest(cosines: Tensor) -> Tensor:
    """For each row, whether its largest value is on the diagonal: 1/k where k are equal to rounding."""
    ties = cosines >= cosines.max(1, keepdim=True).values - 1e-7
    hits: Tensor = ties.diagonal().double() / ties.sum(1)
    return hits
