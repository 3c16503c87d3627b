"""What each arm of a trial did, against the control and against each other: paired by seed and text.

Differences are averaged over seeds inside each resample of the texts; the spread over seeds stands beside them.
Below three seeds nothing is separated, so nothing is ranked.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condense.comparison.differences import QUALITY_KEYS, deep_contrast, quality_contrast, same_windows, site_contrasts
from condense.metrics import METRICS, MIN_TEXTS
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.records.plans import MIN_SEEDS
from condense.records.trial import ArmEffect, Pair, Rank, SeedEffect

MEASURES = ("mean_cosine", "bits_per_byte")
SITE_KEYS = ("mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank")
OTHER_TOKENS = "the arm has another tokenizer, so its windows hold other tokens: drawn unpaired"
Readings = Mapping[int, Diagnosis]
"""The diagnoses of one arm by training seed."""


@dataclass(frozen=True)
class _Matched:
    """The runs of two arms under the same seeds, and what of them is paired by text."""

    pairs: list[tuple[Diagnosis, Diagnosis]]
    same_tokens: bool
    same_bytes: bool

    def contrast(self, key: str, seed: int) -> Estimate:
        """First − second in one deep metric or quality number."""
        if key == "loss" and not self.same_tokens:
            return Estimate(None, reason="the loss is per token, and the tokens differ: compare bits per byte")
        if key in QUALITY_KEYS:
            paired = self.same_bytes if key == "bits_per_byte" else self.same_tokens
            return quality_contrast(self.pairs, key, seed, paired=paired)
        return deep_contrast(self.pairs, key, seed, paired=self.same_tokens)


def _matched(first: Readings, second: Readings, same_bytes: bool) -> _Matched:
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    same = all(same_windows(a, b) for a, b in pairs)
    return _Matched(pairs, same, same or same_bytes)


def arm_effect(arm: Readings, control: Readings, seed: int = 0, *, same_bytes: bool = False) -> ArmEffect | None:
    """Arm − control over the seeds that both have; None if there are none.

    same_bytes: bits per byte were taken on the control's own byte spans, so they are paired whatever the tokens.
    """
    matched = _matched(arm, control, same_bytes)
    if not matched.pairs:
        return None
    keys = (*METRICS, *QUALITY_KEYS)
    by_seed = []
    for number in sorted(arm.keys() & control.keys()):
        one = _matched({number: arm[number]}, {number: control[number]}, same_bytes)
        by_seed.append(SeedEffect(number, {key: one.contrast(key, seed) for key in keys}))
    return ArmEffect(
        metrics={key: matched.contrast(key, seed) for key in keys},
        by_seed=tuple(by_seed),
        spread={key: _spread([of.metrics[key].value for of in by_seed]) for key in keys},
        sites=site_contrasts(matched.pairs, SITE_KEYS, seed, paired=matched.same_tokens),
        unpaired="" if matched.same_tokens else OTHER_TOKENS,
    )


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) >= 2 else None


def compare_pairs(arms: Mapping[str, Readings], other_tokens: Sequence[str] = (), seed: int = 0) -> tuple[Pair, ...]:
    """Every two arms against each other on the measures that arms are ranked by.

    other_tokens: the arms that were scored on the byte spans of the rest, whose bits per byte stay paired.
    """
    made = []
    for first, second in itertools.combinations(arms, 2):
        matched = _matched(arms[first], arms[second], first in other_tokens or second in other_tokens)
        if not matched.pairs:
            continue
        differences = {key: matched.contrast(key, seed) for key in MEASURES}
        clear = {key: _is_clear(matched, key, of) for key, of in differences.items()}
        made.append(Pair(first, second, differences, clear))
    return tuple(made)


def _is_clear(matched: _Matched, key: str, difference: Estimate) -> bool:
    """Whether the interval excludes 0 and every seed says the same, with enough seeds and texts to say it."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return False
    texts = min(run.corpus.texts for pair in matched.pairs for run in pair)
    if len(matched.pairs) < MIN_SEEDS or texts < MIN_TEXTS:
        return False
    singles = [
        _Matched([pair], matched.same_tokens, matched.same_bytes).contrast(key, 0).value for pair in matched.pairs
    ]
    return len({value is not None and value > 0 for value in singles}) == 1 and None not in singles


def rank_arms(names: Sequence[str], pairs: Sequence[Pair], measure: str) -> dict[str, Rank]:
    """Where every arm stands on a measure of which less is better; arms that are not separated tie."""
    better: dict[str, int] = dict.fromkeys(names, 0)
    ties: dict[str, list[str]] = {name: [] for name in names}
    for pair in pairs:
        value = pair.differences[measure].value
        if value is None:
            continue
        if not pair.clear[measure]:
            ties[pair.first].append(pair.second)
            ties[pair.second].append(pair.first)
        elif value > 0:
            better[pair.first] += 1
        else:
            better[pair.second] += 1
    return {name: Rank(1 + better[name], tuple(ties[name])) for name in names}
