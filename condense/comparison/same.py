"""Whether two models are the same: their outputs on the same tokens in numbers, in a word, and as findings.

Only this module decides the word: identical where states agree up to rounding; equivalent where the whole interval of
the Kullback–Leibler divergence lies below what is tolerated; different where all of it lies above; else not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from condense import intervals
from condense.comparison.verdict import Bounds, Severity, analyze_again, quoted_id, word_of
from condense.files import size_in_words
from condense.intervals import ALPHA, Floats
from condense.records.base import Estimate, Finding
from condense.records.comparison import Kind, Member, Same, SameSite, SameWord
from condense.records.diagnosis import Diagnosis
from condense.records.diagnosis import Site as SiteName

SiteKey = tuple[str, SiteName, int]
"""The stack, the name and the index of a site."""
ROUNDING: Mapping[str, float] = {"float32": 1e-5, "float16": 1e-4, "bfloat16": 1e-3}
"""How far 1 − cosine of corresponding states may be from 0 by the rounding of the forward pass alone."""
PREDICTION = 1e-6
"""Nats per token below which two predictions differ by the rounding of float32 alone."""
SAFE = ("identical", "equivalent")
KL_SOURCE = "Kullback & Leibler 1951; debiased CKA: Murphy et al. 2024, arXiv:2405.01012"


@dataclass(frozen=True)
class WindowReading:
    """One window: Σ KL over its predicted positions, how many agree in their top token, how many there are.

    `sites`: the mean cosine of corresponding states (NaN for other widths), HSIC of both, of the first, of the other.
    """

    nats: float
    agree: int
    count: int
    sites: Mapping[SiteKey, tuple[float, ...]]


@dataclass(frozen=True)
class Reading:
    """Two models over all windows; `unscored`: the reason why there are no predictions to compare, or None."""

    windows: tuple[WindowReading, ...]
    unscored: str | None = None


def not_compared(against: str, reason: str) -> Same:
    """A pair that could not be read token by token, and why."""
    nothing = Estimate(None, reason=reason)
    return Same(against, "not compared", None, None, nothing, nothing, reason=reason)


def same_of(
    reading: Reading,
    first: Diagnosis,
    other: Diagnosis,
    against: str,
    *,
    tolerance: float,
    compared: int = 1,
) -> Same:
    """The numbers of a pair with their intervals over documents, and the word for them.

    tolerance: of the KL, as a share of the first's loss; compared: how many are compared with the first, over which
    .05 is divided for a word. With other windows (another tokenizer) the models are compared on the first's tokens: the
    word is never one of equality then.
    """
    documents, alpha = first.corpus.documents, ALPHA / max(1, compared)
    nats, agree, counts = (
        np.array([getattr(window, name) for window in reading.windows], dtype=np.float64)
        for name in ("nats", "agree", "count")
    )
    kl = top1 = Estimate(None, reason=reading.unscored)
    strict: Bounds = (None, None)
    if counts.sum():
        spread = intervals.ratio_over_documents(nats, counts, documents)
        per_text = tuple((nats / np.maximum(counts, 1)).tolist())
        kl = Estimate(spread.value, *spread.clipped(0.0), per_text, reason=spread.reason)
        strict = spread.clipped(0.0, alpha=alpha)
        alike = intervals.ratio_over_documents(agree, counts, documents)
        shares = tuple((agree / np.maximum(counts, 1)).tolist())
        top1 = Estimate(alike.value, *alike.clipped(0.0, 1.0), shares, reason=alike.reason)
    undefined = "the widths differ: no coordinates correspond"
    if first.model.hidden_size == other.model.hidden_size:
        undefined = "all states of a window are zero in one of the two: they have no direction"
    sites = _site_estimates(reading, documents, undefined)
    rounding = ROUNDING.get(first.model.dtype, ROUNDING["float32"])
    block, site = _first_difference(sites, rounding, kl)
    loss = first.quality.loss.value
    limit = None if loss is None else tolerance * loss
    made = Same(
        against=against,
        word=_sameness_word(site, kl, strict, limit),
        from_block=block,
        from_site=site,
        kl=kl,
        top1=top1,
        sites=sites,
        tolerated=limit,
        alpha=alpha,
        rounding=rounding,
        tokens=int(counts.sum()),
    )
    return made if other.corpus.windows_sha256 == first.corpus.windows_sha256 else _other_tokenizer(made)


def _sameness_word(site: str | None, kl: Estimate, strict: Bounds, limit: float | None) -> SameWord:
    if site is None:
        return "identical"
    low, high = strict
    if limit is not None and high is not None and high <= limit:
        return "equivalent"
    if kl.value is None or (limit is not None and low is not None and low > limit):
        return "different"
    return "not shown to be equivalent"


def _other_tokenizer(made: Same) -> Same:
    """The word of a pair whose tokenizers give other tokens for the text."""
    if made.word in SAFE:
        return replace(made, word="different", from_block=None, from_site="tokenizer", weights=made.word)
    reason = "another tokenizer cuts the text into other tokens, and the models differ on the same tokens too"
    return not_compared(made.against, reason)


def _site_estimates(reading: Reading, documents: Sequence[int], undefined: str) -> tuple[SameSite, ...]:
    """Cosine and CKA of every site; undefined: why a cosine is, where it is."""
    made = []
    for key in reading.windows[0].sites:
        cosines, *moments = np.array([window.sites[key] for window in reading.windows], dtype=np.float64).T
        spread = intervals.over_documents(cosines, documents)
        reason = spread.reason if spread.value is not None else undefined
        cosine = Estimate(spread.value, *spread.clipped(-1.0, 1.0), reason=reason)
        stack, site, index = key
        made.append(SameSite(site, stack, index, cosine, _cka(moments, documents)))
    return tuple(made)


def _cka(moments: Sequence[Floats], documents: Sequence[int]) -> Estimate:
    """Means of HSIC over windows, one over the root of the product of the others; the interval is linearised.

    Nguyen et al. 2021, arXiv:2010.15327, for the means over batches.
    """
    known = np.isfinite(moments).all(axis=0)
    cross, own, other = (np.where(known, moment, np.nan) for moment in moments)
    means = [float(np.nanmean(moment)) if known.any() else 0.0 for moment in (cross, own, other)]
    if means[1] <= 0 or means[2] <= 0:
        return Estimate(None, reason="the states do not vary over tokens")
    value = means[0] / (means[1] * means[2]) ** 0.5
    errors = cross / (means[1] * means[2]) ** 0.5 - value * (own / means[1] + other / means[2]) / 2
    spread = intervals.over_documents(value + errors, documents)
    return Estimate(value, *spread.clipped(-1.0, 1.0), reason=spread.reason)


def _first_difference(sites: Sequence[SameSite], rounding: float, kl: Estimate) -> tuple[int | None, str | None]:
    """The first site where the two differ by more than rounding: number of the block and name, or None, None.

    0 is what block 1 receives. The output and the prediction have no number.
    """
    for site in sites:
        known = site.cosine.value if site.cosine.value is not None else site.cka.value
        if known is not None and 1 - known > rounding:
            return (site.index if site.site != "output" else None), site.label
    if kl.value is not None and kl.value > PREDICTION:
        return None, "prediction"
    return None, None


# --- findings --------------------------------------------------------------------------------------------


def with_same(kind: Kind, members: Sequence[Member], others: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings of a comparison, with those on sameness inserted.

    They come first, unless the models have different shapes, or are different and one is more condensed: two models
    that were trained apart.
    """
    known = [member for member in members[1:] if member.same is not None and member.same.word != "not compared"]
    if not known:
        return tuple(others)
    if kind == "pair":
        own = _same_pair_finding(members[0], members[1], known[0].same)
        moved = others[0].id in ("more-condensed", "less-condensed")
        behind = moved and own.id == "same-different"
        return (others[0], own, *others[1:]) if behind else (own, *others)
    own = _family_finding(members[0], members[1:])
    alike = all(shape_of(member) == shape_of(members[0]) for member in members)
    cones = {word_of(member, "mean_cosine").word for member in members[1:]}
    trained = own.severity != "good" and bool(cones & {"more condensed", "more spread"})
    return (own, *others) if alike and not trained else (*others, own)


def shape_of(run: Member | Diagnosis) -> tuple[object, ...]:
    """What conversions of one model have in common: class, width, depth, vocabulary."""
    model = run.model
    return model.architecture, model.hidden_size, model.blocks, model.vocabulary_size


def numbers_of(same: Same) -> str:
    """KL, top-1 agreement and the first site where the states differ, in one line."""
    parts = []
    if same.kl.value is not None:
        bounds = "" if same.kl.high is None else f" [{same.kl.low:.3g}, {same.kl.high:.3g}]"
        limit = "" if same.tolerated is None else f" (tolerated {same.tolerated:.3g})"
        parts.append(f"KL {same.kl.value:.3g}{bounds} nats per token{limit}")
    if same.top1.value is not None:
        parts.append(f"the same top token in {100 * same.top1.value:.2f} %")
    blocks = [site for site in same.sites if site.cosine.value is not None]
    if blocks:
        last = blocks[-1]
        parts.append(
            f"1 − cosine of corresponding states {max(0.0, 1 - (last.cosine.value or 0.0)):.2g} at {last.label}"
        )
    return "; ".join(parts)


_WHERE = {
    "embedding": "What block 1 receives differs already: look at the embedding, tied weights, added tokens, its scale.",
    "output": "All blocks agree: look at the final norm.",
    "prediction": "No state leaves rounding. What differs is in the head (its scale, tied weights that only one "
    "of the two has), or too small for a cosine to show.",
}


def _same_pair_finding(first: Member, other: Member, same: Same | None) -> Finding:
    if same is None:
        raise ValueError("these two were not compared token by token")
    a, b = first.name, other.name
    more = f"condense compare {quoted_id(first)} {quoted_id(other)} --num-texts {4 * other.corpus.texts}"
    if same.from_site == "tokenizer":
        title = f"{b} reads the text with another tokenizer than {a}"
        why = f"On the same token ids the two are {same.weights}: the weights are {a}’s, and the tokenizer is not."
        step = f"condense analyze {quoted_id(other)} --tokenizer {quoted_id(first)}"
        return Finding("same-tokenizer", "warning", title, numbers_of(same), why, step, KL_SOURCE)
    place = same.from_site or ""
    where = _WHERE.get(place, f"The states part at {place}: what differs is in it, or acts in every block from it on.")
    key, severity, title, why = _PAIR[same.word]
    names = {"a": a, "b": b, "place": _site_words(place), "where": where}
    step = more if key == "same-open" else analyze_again(other)
    title, why = title.format(**names), why.format(**names)
    if same.word == "identical" and same.kl.value is None:
        title = f"No state of {b} differs from {a}’s, to rounding; no predictions were compared"
        why = f"No predictions: {same.kl.reason or 'there are none'}. A head that differs is not seen here."
    return Finding(key, severity, title, numbers_of(same), why, step, KL_SOURCE)


_PAIR: Mapping[str, tuple[str, Severity, str, str]] = {
    "identical": (
        "same-identical",
        "good",
        "{b} is the same model as {a}, to rounding",
        "No state and no prediction differs by more than the rounding of one model’s arithmetic.",
    ),
    "equivalent": (
        "same-equivalent",
        "good",
        "{b} is equivalent to {a}",
        "The whole interval of the KL lies below what is tolerated. {where}",
    ),
    "not shown to be equivalent": (
        "same-open",
        "info",
        "{b} is not shown to be equivalent to {a}",
        "The interval of the KL reaches over what is tolerated, or there is none. {where}",
    ),
    "different": (
        "same-different",
        "warning",
        "{b} is not the same model as {a}: they differ from {place} on",
        "{where} Models that were trained apart differ like this too.",
    ),
}


def _site_words(site: str) -> str:
    return f"the {site}" if site in ("embedding", "output", "prediction") else site


def _family_finding(first: Member, others: Sequence[Member]) -> Finding:
    """Which of several is safe to use in place of the first: the smallest that is equivalent."""
    safe = [other for other in others if other.same is not None and other.same.word in SAFE]
    counts = "; ".join(f"{other.name} is {_word_with_numbers(other.same)}" for other in others[:8])
    severity: Severity = "good" if safe else "warning"
    limit = next((other.same.tolerated for other in others if other.same and other.same.tolerated is not None), None)
    share = "" if limit is None else f", {limit:.3g} nats per token"
    why = f"Equivalent: the whole interval of the KL to the first lies below what is tolerated of its loss{share}."
    step = analyze_again(min(safe, key=_weights_size)) if safe else analyze_again(others[0])
    return Finding("same-smallest", severity, _equivalents_title(first, others, safe), counts, why, step, KL_SOURCE)


def _word_with_numbers(same: Same | None) -> str:
    """The word of a member with its KL and agreement."""
    if same is None or same.kl.value is None or same.top1.value is None:
        return same.word if same else "not compared"
    high = "" if same.kl.high is None else f", at most {same.kl.high:.3g}"
    return f"{same.word} (KL {same.kl.value:.3g}{high}; the same top token in {100 * same.top1.value:.1f} %)"


def _equivalents_title(first: Member, others: Sequence[Member], safe: Sequence[Member]) -> str:
    if not safe:
        return f"None of the {len(others)} is shown to be equivalent to {first.name}"
    smallest = min(safe, key=_weights_size)
    size, whole = smallest.model.weights_bytes, first.model.weights_bytes
    if size is None or any(other.model.weights_bytes is None for other in safe):
        names = ", ".join(other.name for other in safe[:3])
        return f"{len(safe)} of {len(others)} equivalent to {first.name}: {names}"
    instead = "" if whole is None or whole <= size else f", {size_in_words(size)} instead of {size_in_words(whole)}"
    unscored = smallest.same is not None and smallest.same.kl.value is None
    states = " in its states; no predictions were compared" if unscored else ""
    return f"{smallest.name} is the smallest that is equivalent to {first.name}{states}{instead}"


def _weights_size(member: Member) -> tuple[float, str]:
    size = member.model.weights_bytes
    return (float("inf") if size is None else float(size), member.name)
