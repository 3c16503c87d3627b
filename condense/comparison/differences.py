"""How much does one measurement differ from another? Paired by window where the windows are the same; over seeds.

Every number is a mean over windows, or linearised to one (a ratio, an exponential), so that the values of A, B and
B − A add up and a difference has the interval of the differences per window: over documents, and over training seeds
where there are several. All inference is that of `condense.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condense import intervals
from condense.comparison.verdict import LEAST, TOLERANCE, WITHOUT_TOP, cone_word, quality_word
from condense.intervals import ALPHA, Floats, Spread
from condense.metrics import METRICS, QUALITY
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import ConeWord, Effect, Power, SiteEffect, Word

QUALITY_KEYS = ("loss", "bits_per_byte")
CONE_KEYS = ("mean_cosine", WITHOUT_TOP)
Readings = Mapping[int, Diagnosis]
"""The diagnoses of one arm by training seed; a measurement without seeds is `{0: diagnosis}`."""
ONE_SEED = "this pair of runs; other seeds not covered"
MORE_TEXT = "more validation text, not more seeds"
_POOLED = "pooled over documents: there is no value per window to take an interval from"
_OTHER_WINDOWS = "the two do not have the same number of windows"
_UNDEFINED = "undefined in one of the two"


def difference(new: Diagnosis, old: Diagnosis, against: str, site_keys: Iterable[str] = tuple(METRICS)) -> Effect:
    """New − old per metric: deep, per site and quality, with 95 % intervals over documents.

    Paired where both were measured on the same windows (`windows_sha256`), else each side's variance is added and
    `paired` is False. site_keys: the metrics to compare site by site.
    """
    return effect_of({0: new}, {0: old}, against, site_keys=site_keys, trained=False)


def effect_of(
    new: Readings,
    old: Readings,
    against: str,
    *,
    least: float = LEAST,
    tolerance: float = TOLERANCE,
    compared: int = 1,
    site_keys: Iterable[str] = tuple(METRICS),
    trained: bool = True,
) -> Effect:
    """New − old over the training seeds that both have, with the word for each difference.

    least, tolerance: the smallest difference that counts in deep mean cosine, and in quality as a share of old's;
    compared: how many differences are judged side by side, over which .05 is divided for a word; trained: False where
    the two are not training runs, so that seeds are not mentioned. ValueError without a common seed.
    """
    pairing = Pairing.of(new, old)
    spreads = {key: pairing.deep(key) for key in METRICS} | {key: pairing.quality(key) for key in QUALITY_KEYS}
    changes = {key: estimate_of(spread) for key, spread in spreads.items()}
    alpha = ALPHA / max(1, compared)
    words = pairing.words(spreads, least, tolerance, alpha)
    return Effect(
        against=against,
        paired=pairing.same_tokens,
        deep={key: changes[key] for key in METRICS},
        quality={key: changes[key] for key in QUALITY_KEYS},
        sites=pairing.sites(tuple(site_keys), least, alpha),
        words=words,
        covers=pairing.covers(trained),
        seeds=len(pairing.runs),
        spread=pairing.deviations(spreads),
        power=pairing.power(spreads, words),
    )


def same_windows(new: Diagnosis, old: Diagnosis) -> bool:
    """Whether two measurements read the same token ids."""
    return new.corpus.windows_sha256 == old.corpus.windows_sha256


def _deep_or_quality(run: Diagnosis, key: str) -> Estimate:
    """A deep metric or a number of quality."""
    estimate: Estimate = getattr(run.quality, key) if key in QUALITY else run.deep[key]
    return estimate


def estimate_of(spread: Spread) -> Estimate:
    """A difference with its 95 % interval, or the reason why it has none."""
    low, high = spread.bounds()
    return Estimate(spread.value, low, high, reason=spread.reason)


# --- one number, window by window ------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A number and what each window adds to its error: `influence` (N,), which sums to 0 and is 0 where undefined.

    A mean has (x − mean)/N, a ratio Σy/Σx has (y − R·x)/Σx, exp of a mean has exp(mean)·(x − mean)/N. None with the
    reason where the number, or its value per window, is not known.
    """

    value: float | None
    influence: Floats | None = None
    known: NDArray[np.bool_] | None = None
    documents: tuple[int, ...] = ()
    reason: str | None = None


def mean_of(estimate: Estimate, documents: tuple[int, ...]) -> Linear:
    """A mean over windows as it was measured."""
    if estimate.value is None:
        return Linear(None, reason=estimate.reason)
    if estimate.per_text is None:
        return Linear(estimate.value, reason=_POOLED)
    values = np.array([np.nan if value is None else value for value in estimate.per_text], dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return Linear(estimate.value, reason=_POOLED)
    return Linear(estimate.value, _centred_where_known(values, known) / known.sum(), known, documents)


def _centred_where_known(values: Floats, known: NDArray[np.bool_]) -> Floats:
    return np.where(known, values - values[known].mean(), 0.0)


def quality_of(run: Diagnosis, key: str) -> Linear:
    """Loss, perplexity or bits per byte of a run, the last weighted by the bytes of the windows."""
    estimate: Estimate = getattr(run.quality, key)
    documents = run.corpus.documents
    if key == "perplexity" and estimate.value is not None:
        loss = mean_of(run.quality.loss, documents)
        if loss.value is None or loss.influence is None:
            return Linear(estimate.value, reason=loss.reason)
        return Linear(estimate.value, math.exp(loss.value) * loss.influence, loss.known, documents)
    if key != "bits_per_byte" or estimate.value is None or estimate.per_text is None:
        return mean_of(estimate, documents)
    ratios = np.array([np.nan if value is None else value for value in estimate.per_text], dtype=np.float64)
    known = np.isfinite(ratios)
    sizes = np.where(known, np.array(run.quality.predicted_bytes, dtype=np.float64), 0.0)
    bits = sizes * np.where(known, ratios, 0.0)
    return Linear(estimate.value, (bits - bits.sum() / sizes.sum() * sizes) / sizes.sum(), known, documents)


def difference_of(sides: Sequence[tuple[Linear, Linear]], *, paired: bool, documents: Sequence[int] = ()) -> Spread:
    """The mean over seeds of first − second, with its variance over documents and over seeds.

    Paired: over the windows where either is defined, the others of the two adding nothing to the error. documents: of
    the windows of a pair, where they are not the second's own.
    """
    known = [(a.value, b.value) for a, b in sides if a.value is not None and b.value is not None]
    if len(known) < len(sides):
        reasons = [side.reason for pair in sides for side in pair if side.value is None]
        return Spread(None, (), next((reason for reason in reasons if reason), _UNDEFINED))
    values = np.array([a - b for a, b in known])
    value = float(values.mean())
    unknown = [side.reason for pair in sides for side in pair if side.influence is None]
    if unknown:
        return Spread(value, (), unknown[0] or _POOLED)
    firsts, seconds = zip(*sides, strict=True)
    sizes = [{len(_influence_of(side)) for side in column} for column in (firsts, seconds)]
    if max(map(len, sizes)) > 1 or (paired and sizes[0] != sizes[1]):
        return Spread(value, (), _OTHER_WINDOWS)
    if paired:
        defined = _defined([side for pair in sides for side in pair])
        errors = np.array([_influence_of(a) - _influence_of(b) for a, b in sides])[:, defined]
        own = np.array(documents or seconds[0].documents)[defined] if documents or seconds[0].documents else ()
        spread = intervals.over_seeds(values[:, None] + defined.sum() * errors, tuple(own))
        return Spread(value, spread.parts, spread.reason)
    first, second = _averaged(firsts), _averaged(seconds)
    both = intervals.difference(first, second)
    if len(sides) == 1 or not both.parts:
        return Spread(value, both.parts, both.reason)
    seeds = (float(values.var(ddof=1)) / len(values), len(values) - 1.0)
    return Spread(value, (seeds, *first.parts, *second.parts))


def pooled_difference(pairs: Sequence[tuple[Estimate, Estimate]], documents: Sequence[Sequence[int]]) -> Spread:
    """The mean over seeds of first − second for numbers pooled over documents: a delete-one-document jackknife.

    documents: of both where they are the same, so that the difference is taken without each document in turn; of the
    first and of the second where they are not, and their variances are added.
    """
    values = [a.value - b.value for a, b in pairs if a.value is not None and b.value is not None]
    if len(values) < len(pairs):
        reasons = [estimate.reason for pair in pairs for estimate in pair if estimate.value is None]
        return Spread(None, (), next((reason for reason in reasons if reason), _UNDEFINED))
    value = float(np.mean(values))
    columns = list(zip(*pairs, strict=True))
    if any(
        len(estimate.deleted or ()) != len(column[0].deleted or ()) or not estimate.deleted
        for column in columns
        for estimate in column
    ):
        return Spread(value, (), _POOLED)
    first, second = (np.mean([_array_with_nan(estimate.deleted) for estimate in column], axis=0) for column in columns)
    if len(documents) == 1:
        spread = intervals.jackknife(value, list(first - second), tuple(documents[0]))
    else:
        means = [float(np.mean([estimate.value or 0.0 for estimate in column])) for column in columns]
        sides = [
            intervals.jackknife(mean, list(deleted), tuple(own))
            for mean, deleted, own in zip(means, (first, second), documents, strict=True)
        ]
        spread = intervals.difference(*sides)
        if len(values) > 1 and spread.parts:
            spread = Spread(value, (*sides[0].parts, *sides[1].parts))
    if len(values) == 1 or not spread.parts:
        return spread
    return Spread(value, ((float(np.var(values, ddof=1)) / len(values), len(values) - 1.0), *spread.parts))


def _array_with_nan(values: Sequence[float | None] | None) -> Floats:
    return np.array([np.nan if value is None else value for value in values or ()], dtype=np.float64)


def _influence_of(side: Linear) -> Floats:
    if side.influence is None:
        raise ValueError("there is no value per window")
    return side.influence


def _defined(sides: Sequence[Linear]) -> NDArray[np.bool_]:
    """The windows in which any of the sides is defined."""
    known: NDArray[np.bool_] = np.array([side.known for side in sides], dtype=np.bool_)
    return np.asarray(known.any(axis=0))


def _averaged(column: Sequence[Linear]) -> Spread:
    """The mean over seeds of one side, with its variance over documents."""
    defined = _defined(column)
    errors = np.mean([_influence_of(side) for side in column], axis=0)[defined]
    value = float(np.mean([side.value for side in column]))
    documents = column[0].documents
    own = tuple(np.array(documents)[defined]) if documents else ()
    return intervals.over_documents(value + defined.sum() * errors, own)


# --- two arms under the same seeds -----------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """The runs of two arms under the same seeds, and what of them is paired by window.

    `byte_documents`: the documents of the windows that both were scored on by bytes, where their own windows differ;
    bits per byte are paired then, and nothing else.
    """

    runs: tuple[tuple[Diagnosis, Diagnosis], ...]
    same_tokens: bool
    byte_documents: tuple[int, ...] = ()

    @classmethod
    def of(cls, new: Readings, old: Readings, byte_documents: tuple[int, ...] = ()) -> Pairing:
        """Match by seed; ValueError if the two have none in common."""
        runs = tuple((new[seed], old[seed]) for seed in sorted(new.keys() & old.keys()))
        if not runs:
            raise ValueError("the two have no training seed in common")
        return cls(runs, all(same_windows(a, b) for a, b in runs), byte_documents)

    def one(self, index: int) -> Pairing:
        """The runs of one seed alone."""
        return Pairing((self.runs[index],), self.same_tokens, self.byte_documents)

    def between(self, pairs: Sequence[tuple[Estimate, Estimate]]) -> Spread:
        """New − old of one metric, given as it was measured in each of the runs."""
        if any(estimate.deleted is not None for pair in pairs for estimate in pair):
            new, old = self.runs[0]
            own, other = new.corpus.documents, old.corpus.documents
            return pooled_difference(pairs, (other,) if self.same_tokens and own == other else (own, other))
        sides = [
            (mean_of(first, new.corpus.documents), mean_of(second, old.corpus.documents))
            for (first, second), (new, old) in zip(pairs, self.runs, strict=True)
        ]
        return difference_of(sides, paired=self.same_tokens)

    def deep(self, key: str, stack: str | None = None) -> Spread:
        """New − old in a deep metric of a stack, by default the main one."""
        return self.between([(new.deep_of(stack)[key], old.deep_of(stack)[key]) for new, old in self.runs])

    def quality(self, key: str) -> Spread:
        """New − old in loss, perplexity or bits per byte."""
        by_bytes = key == "bits_per_byte" and bool(self.byte_documents) and not self.same_tokens
        sides = [(quality_of(a, key), quality_of(b, key)) for a, b in self.runs]
        documents = self.byte_documents if by_bytes else ()
        return difference_of(sides, paired=self.same_tokens or by_bytes, documents=documents)

    def sites(self, keys: Sequence[str], least: float, alpha: float) -> tuple[SiteEffect, ...]:
        """New − old at every site that all runs have, for the given metrics, the blocks with their words."""
        tables = [{(s.stack, s.site, s.index): s.metrics for s in run.sites} for pair in self.runs for run in pair]
        blocks = sum(site.site == "block" for site in self.runs[0][0].sites)
        made = []
        for site in self.runs[0][0].sites:
            at = (site.stack, site.site, site.index)
            if not all(at in table for table in tables):
                continue
            changes: dict[str, Estimate] = {}
            words: dict[str, ConeWord] = {}
            for key in (key for key in keys if all(key in table[at] for table in tables)):
                own = [table[at][key] for table in tables]
                spread = self.between(list(zip(own[::2], own[1::2], strict=True)))
                changes[key] = estimate_of(spread)
                if site.site == "block" and key in CONE_KEYS:
                    words[key] = cone_word(changes[key], spread.bounds(alpha / blocks), least)
            made.append(SiteEffect(site.site, site.stack, site.index, changes, words))
        return tuple(made)

    def words(self, spreads: Mapping[str, Spread], least: float, tolerance: float, alpha: float) -> dict[str, Word]:
        """The words for the differences: of the mean cosine with and without three dimensions, and of quality."""
        made = {}
        for key in CONE_KEYS:
            bounds = spreads[key].bounds(alpha)
            made[key] = Word(cone_word(estimate_of(spreads[key]), bounds, least), key, least, *bounds, alpha)
        key = "bits_per_byte" if spreads["bits_per_byte"].value is not None else "loss"
        known = [value for _, old in self.runs if (value := getattr(old.quality, key).value) is not None]
        limit = tolerance * float(np.mean(known)) if known else None
        bounds = spreads[key].bounds(alpha)
        word = quality_word(estimate_of(spreads[key]), bounds, limit)
        return {**made, "quality": Word(word, key, limit, *bounds, alpha)}

    def covers(self, trained: bool = True) -> str:
        """What the intervals cover: how many seeds and documents, or that it is this pair of runs alone."""
        documents, seeds = self.runs[0][1].corpus.documents, len(self.runs)
        count = len(set(documents))
        of_documents = intervals.coverage_note(documents) or f"{count} documents"
        of_seeds = ONE_SEED if seeds == 1 else f"{seeds} seeds"
        return f"{of_seeds}; {of_documents}" if trained else of_documents

    def deviations(self, spreads: Mapping[str, Spread]) -> dict[str, float | None]:
        """Standard deviation of each difference over seeds; None for one seed, or where it is not known."""
        made: dict[str, float | None] = dict.fromkeys(spreads)
        if len(self.runs) > 1:
            for key, spread in spreads.items():
                values = (
                    [_deep_or_quality(new, key).value for new, _ in self.runs],
                    [_deep_or_quality(old, key).value for _, old in self.runs],
                )
                known = [a - b for a, b in zip(*values, strict=True) if a is not None and b is not None]
                made[key] = float(np.std(known, ddof=1)) if spread.value is not None else None
        return made

    def power(self, spreads: Mapping[str, Spread], words: Mapping[str, Word]) -> dict[str, Power]:
        """What so many seeds could have shown, of the mean cosine and of quality; nothing for one seed."""
        if len(self.runs) < 2:
            return {}
        named = {name: words[name] for name in ("mean_cosine", "quality")}
        made = {name: power_of(spreads[word.key], word, len(self.runs)) for name, word in named.items()}
        return {name: power for name, power in made.items() if power is not None}


def power_of(spread: Spread, word: Word, seeds: int) -> Power | None:
    """The smallest difference that so many seeds could have shown, and the seeds needed for what counts."""
    if not spread.parts:
        return None
    (of_seeds, _), *rest = spread.parts
    variance = sum(part[0] for part in rest)
    freedom = variance**2 / sum(part[0] ** 2 / part[1] for part in rest) if variance else None
    document = (variance, freedom) if freedom is not None else None
    needed = intervals.seeds_needed(word.least, of_seeds * seeds, document, word.alpha) if word.least else None
    return Power(
        key=word.key,
        seeds=seeds,
        alpha=word.alpha,
        seed_sd=(of_seeds * seeds) ** 0.5,
        document_error=variance**0.5,
        document_dof=freedom,
        shown=intervals.smallest_detectable(spread.parts, word.alpha),
        wanted=word.least,
        seeds_needed=needed,
        reason=MORE_TEXT if word.least and needed is None else None,
    )
