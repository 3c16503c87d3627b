"""What each arm of a trial did, against the control and against each other: paired by seed and window.

Seeds are replicates: their variance is a part of every interval. Arms are ranked from five seeds on, by differences
that count and stay significant over all pairs of a measure.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from condense import intervals
from condense.comparison.differences import MORE_TEXT, QUALITY_KEYS, Pairing, Readings, estimate_of
from condense.intervals import ALPHA, Spread
from condense.metrics import METRICS
from condense.records.plans import MIN_SEEDS, RANK_SEEDS, Plan
from condense.records.treatment import Power
from condense.records.trial import ArmEffect, Pair, Rank, SeedEffect

MEASURES = ("mean_cosine", "bits_per_byte")
SITE_KEYS = ("mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank")
OTHER_TOKENS = "the arm has another tokenizer, so its windows hold other tokens: compared unpaired"
_PER_TOKEN = Spread(None, (), "the loss is per token, and the tokens differ: compare bits per byte")


def arm_effect(
    arm: Readings, control: Readings, training: Plan, *, compared: int = 1, same_bytes: bool = False
) -> ArmEffect | None:
    """Arm − control over the seeds that both have; None if there are none.

    compared: the number of arms that are compared with the control, over which .05 is divided for a word; same_bytes:
    bits per byte were taken on the control's own byte spans, so they are paired whatever the tokens.
    """
    seeds = sorted(arm.keys() & control.keys())
    if not seeds:
        return None
    documents = control[seeds[0]].corpus.documents
    pairing = Pairing.of(arm, control, documents if same_bytes else ())
    spreads, alpha = _spreads(pairing), ALPHA / max(1, compared)
    words = pairing.words(spreads, training.min_effect, training.quality_tolerance, alpha)
    if len(seeds) < MIN_SEEDS:
        words = {key: replace(word, word="inconclusive") for key, word in words.items()}
    by_seed = tuple(
        SeedEffect(seed, {key: estimate_of(spread) for key, spread in _spreads(pairing.one(index)).items()})
        for index, seed in enumerate(seeds)
    )
    return ArmEffect(
        metrics={key: estimate_of(spread) for key, spread in spreads.items()},
        by_seed=by_seed,
        spread=pairing.deviations(spreads),
        sites=pairing.sites(SITE_KEYS, training.min_effect, alpha),
        unpaired="" if pairing.same_tokens else OTHER_TOKENS,
        words=words,
        covers=pairing.covers(),
        power={key: _for_a_word(power) for key, power in pairing.power(spreads, words).items()},
    )


def _for_a_word(power: Power) -> Power:
    """With as many seeds as it takes, and no fewer than an arm's word does."""
    return replace(power, seeds_needed=None if power.seeds_needed is None else max(power.seeds_needed, MIN_SEEDS))


def _spreads(pairing: Pairing) -> dict[str, Spread]:
    return {key: pairing.deep(key) for key in METRICS} | {key: _quality(pairing, key) for key in QUALITY_KEYS}


def _quality(pairing: Pairing, key: str) -> Spread:
    return _PER_TOKEN if key == "loss" and not pairing.same_tokens else pairing.quality(key)


@dataclass(frozen=True)
class _Compared:
    """Two arms with their differences."""

    first: str
    second: str
    seeds: int
    spreads: Mapping[str, Spread]


def compare_pairs(
    arms: Mapping[str, Readings], least: Mapping[str, float | None], other_tokens: Sequence[str] = ()
) -> tuple[Pair, ...]:
    """Every two arms against each other on the measures that arms are ranked by, p-values adjusted over the pairs.

    least: the smallest difference that counts in each measure, None where it is not known; other_tokens: the arms that
    were scored on the byte spans of the rest, whose bits per byte stay paired.
    """
    compared = []
    for first, second in itertools.combinations(arms, 2):
        common = arms[first].keys() & arms[second].keys()
        if not common:
            continue
        reference = first if second in other_tokens else second
        documents = arms[reference][min(common)].corpus.documents
        by_bytes = first in other_tokens or second in other_tokens
        pairing = Pairing.of(arms[first], arms[second], documents if by_bytes else ())
        spreads = {key: pairing.deep(key) if key in METRICS else pairing.quality(key) for key in MEASURES}
        compared.append(_Compared(first, second, len(common), spreads))
    adjusted = {
        key: intervals.holm([one.spreads[key].p_value() if one.seeds > 1 else None for one in compared])
        for key in MEASURES
    }
    return tuple(
        Pair(
            one.first,
            one.second,
            {key: estimate_of(spread) for key, spread in one.spreads.items()},
            {key: _is_clear(one, key, adjusted[key][index], least.get(key)) for key in MEASURES},
            {key: adjusted[key][index] for key in MEASURES},
        )
        for index, one in enumerate(compared)
    )


def _is_clear(compared: _Compared, key: str, p: float | None, least: float | None) -> bool:
    """Whether two arms are separated: enough seeds, a difference that counts, significant over all pairs."""
    value = compared.spreads[key].value
    counts = value is not None and least is not None and abs(value) >= least
    return compared.seeds >= RANK_SEEDS and counts and p is not None and p < ALPHA


def rank_arms(names: Sequence[str], pairs: Sequence[Pair], measure: str) -> dict[str, Rank]:
    """Where every arm stands on a measure of which less is better; arms that are not separated tie.

    An arm that is compared with no other on it, since it has no value, has no place.
    """
    differences = [(pair, pair.differences[measure].value) for pair in pairs]
    known = {name for pair, value in differences if value is not None for name in (pair.first, pair.second)}
    better: dict[str, int] = {name: 0 for name in names if name in known}
    ties: dict[str, list[str]] = {name: [] for name in better}
    for pair, value in differences:
        if not {pair.first, pair.second} <= known:
            continue
        if value is None or not pair.clear[measure]:
            ties[pair.first].append(pair.second)
            ties[pair.second].append(pair.first)
        elif value > 0:
            better[pair.first] += 1
        else:
            better[pair.second] += 1
    return {name: Rank(1 + better[name], tuple(ties[name])) for name in better}


def expected_power(known: Power, seeds: int, arms: int) -> Power:
    """What so many seeds would show if the spread stays as it was found; `arms` share the .05."""
    alpha = ALPHA / max(1, arms)
    document = (known.document_error**2, known.document_dof) if known.document_dof is not None else None
    parts = [(known.seed_sd**2 / seeds, seeds - 1.0), *([document] if document else [])]
    needed = intervals.seeds_needed(known.wanted, known.seed_sd**2, document, alpha) if known.wanted else None
    return _for_a_word(
        replace(
            known,
            seeds=seeds,
            alpha=alpha,
            shown=intervals.smallest_detectable(parts, alpha),
            seeds_needed=needed,
            reason=MORE_TEXT if known.wanted and needed is None else None,
        )
    )


def reference_of(control: Readings, training: Plan) -> dict[str, float | None]:
    """The smallest difference that counts in each measure: of the mean cosine, and of the control's bits per byte."""
    bits = [run.quality.bits_per_byte.value for run in control.values()]
    known = [value for value in bits if value is not None]
    least = training.quality_tolerance * sum(known) / len(known) if known and len(known) == len(bits) else None
    return {"mean_cosine": training.min_effect, "bits_per_byte": least}
