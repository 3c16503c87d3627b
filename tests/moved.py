"""A measured run whose numbers are moved window by window, as another model or another seed would give them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis

CONE = ("mean_cosine", "mean_cosine_without_top_dimensions")


def moved(
    run: Diagnosis,
    by: float | Sequence[float],
    *,
    keys: Sequence[str] = CONE,
    noise: float = 0.0,
    seed: int = 0,
    bits: float | Sequence[float] = 0.0,
    name: str | None = None,
) -> Diagnosis:
    """The run with `by` (one number, or one per window) and normal noise added to `keys` at every site and deep.

    bits: added to the bits per byte of every window, and as nats per token to its loss.
    """
    rng = np.random.default_rng(seed)
    shift = np.broadcast_to(np.asarray(by, dtype=float), run.corpus.texts) + rng.normal(0, noise, run.corpus.texts)
    sites = tuple(
        replace(s, metrics={**s.metrics, **{key: shifted(s.metrics[key], shift) for key in keys}}) for s in run.sites
    )
    deep = {**run.deep, **{key: shifted(run.deep[key], shift) for key in keys}}
    stacks = {
        stack: replace(own, deep={**own.deep, **{key: shifted(own.deep[key], shift) for key in keys}})
        for stack, own in run.stacks.items()
    }
    cost = np.broadcast_to(np.asarray(bits, dtype=float), run.corpus.texts)
    sizes = np.array(run.quality.predicted_bytes, dtype=float)
    ratio = run.quality.bits_per_byte
    if ratio.value is not None and ratio.per_text is not None:
        per_window = np.array(ratio.per_text) + cost
        total = float((per_window * sizes).sum() / sizes.sum())
        ratio = replace(ratio, value=total, per_text=tuple(per_window.tolist()))
    quality = replace(run.quality, bits_per_byte=ratio, loss=shifted(run.quality.loss, cost))
    model = run.model if name is None else replace(run.model, id=name)
    return replace(run, model=model, sites=sites, deep=deep, stacks=stacks, quality=quality)


def shifted(of: Estimate, shift: np.ndarray) -> Estimate:
    """An estimate with `shift` added window by window; undefined windows stay so, and the value is their mean."""
    if of.value is None or of.per_text is None:
        return of
    per = tuple(None if v is None else v + s for v, s in zip(of.per_text, shift.tolist(), strict=True))
    return replace(of, value=float(np.mean([v for v in per if v is not None])), per_text=per)


def in_documents(run: Diagnosis, documents: Sequence[int]) -> Diagnosis:
    """The run with its windows from these documents."""
    return replace(run, corpus=replace(run.corpus, documents=tuple(documents)))
