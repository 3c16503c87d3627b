"""The values of a comparison: the members, their differences to the first, a run over its steps, what was seen.

Frozen, standard library only. A member keeps of its diagnosis what the report draws; per-text values and the
further stack of an encoder–decoder model stay in the diagnosis itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from condense.records.base import Estimate, Finding, Saved
from condense.records.diagnosis import (
    CorpusInfo,
    ModelInfo,
    Paper,
    Quality,
    Site,
    SiteReading,
    Trend,
    Verdict,
    with_every_metric,
)
from condense.records.treatment import Effect, has_documents, without_bounds

COMPARISON_SCHEMA = "condense.comparison/1"
Kind = Literal["pair", "family", "trajectory", "overlay"]
CURVES = ("mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank")
"""The metrics that a comparison keeps, and compares, site by site."""


SameWord = Literal["identical", "equivalent", "not shown to be equivalent", "different", "not compared"]


@dataclass(frozen=True)
class SameSite:
    """How alike two models' states of the same tokens are at one site.

    cosine: mean cosine of corresponding states, over kept tokens that are no sinks in either; cka: debiased linear CKA,
    which compares models of other widths too. index: of the block, else 0.
    """

    site: Site
    stack: str
    index: int
    cosine: Estimate
    cka: Estimate

    @property
    def label(self) -> str:
        """Short name of the site: `embedding`, `block 7`, `output`."""
        return f"block {self.index}" if self.site == "block" else self.site


@dataclass(frozen=True)
class Same:
    """Is a member the same model as the first (`against`), token by token on the same windows?

    word: identical (no state leaves `rounding`, a bound on 1 − cosine), equivalent (the upper bound of the KL at
    `alpha` is at most `tolerated`, nats per token), different (its lower bound is above), not shown to be equivalent,
    or not compared (`reason`). from_block: the first block whose corresponding cosine leaves rounding, 0 for what block
    1 receives, None where none does; from_site names the place, which may also be the output, the prediction, or the
    tokenizer: `weights` is the word on the same token ids then. kl: KL(first‖member) in nats per token; top1: share of
    predicted positions with the same most likely token; both over `tokens` predicted positions.
    """

    against: str
    word: SameWord
    from_block: int | None
    from_site: str | None
    kl: Estimate
    top1: Estimate
    sites: tuple[SameSite, ...] = ()
    tolerated: float | None = None
    alpha: float = 0.05
    rounding: float = 1e-5
    tokens: int = 0
    weights: SameWord | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Member:
    """One of the compared: which model, and what its diagnosis comes to.

    `step` is the training step, if the members are checkpoints of one run, or of several that are laid over each other
    (`run` is its name then). `sites` are those of the main stack with the metrics of `CURVES` and histograms of 100
    bins. `difference` is this member − the first (of several runs: − the first run's checkpoint of the same step), None
    where there is nothing to subtract; `same` says whether the two are one model, where both were opened for this
    comparison.
    """

    name: str
    source: str
    model: ModelInfo
    corpus: CorpusInfo
    protocol_hash: str
    condense: str
    sites: tuple[SiteReading, ...]
    deep: Mapping[str, Estimate]
    trend: Trend
    paper: Paper
    quality: Quality
    verdict: Verdict
    step: int | None = None
    difference: Effect | None = None
    same: Same | None = None
    run: str | None = None

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A member that does not say which windows are of one document, without its intervals."""
        measured = [key for key in ("deep", "quality", "sites", "difference") if key in data]
        known = has_documents(data.get("corpus"))
        return data if known else {**data, **{key: without_bounds(data[key]) for key in measured}}

    def __post_init__(self) -> None:
        """Give a member of an older version the depth metrics that it lacks, as undefined ones with the reason."""
        object.__setattr__(self, "deep", with_every_metric(self.deep, self.condense))
        if self.difference is not None:
            deep = with_every_metric(self.difference.deep, self.condense)
            object.__setattr__(self, "difference", replace(self.difference, deep=deep))

    @property
    def blocks(self) -> int:
        """Number of blocks of the main stack."""
        return sum(site.site == "block" for site in self.sites)


@dataclass(frozen=True)
class Failure:
    """A member that could not be measured, why, and the exit code that this alone would have given."""

    name: str
    reason: str
    exit_code: int = 3


@dataclass(frozen=True)
class Peak:
    """The checkpoint inside a run with the highest deep mean cosine, if it stands out from both ends.

    `rise` is it − the first checkpoint, `fall` the last − it, paired by text; `early` if it lies in the first half
    of the steps.
    """

    name: str
    step: int
    value: float
    rise: Estimate
    fall: Estimate
    early: bool


@dataclass(frozen=True)
class Trajectory:
    """A run over its steps: its checkpoints are the members, in order. `peak` is None where none stands out."""

    run: str
    scale: Literal["linear", "log"]
    peak: Peak | None = None


@dataclass(frozen=True)
class RunSteps:
    """One of several runs that are laid over each other: the steps of its members, and those that are compared.

    left_out: what its folder holds besides, and why it is not used.
    """

    name: str
    source: str
    steps: tuple[int, ...]
    paired: tuple[int, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overlay:
    """Several training runs over their steps, each against the first at equal steps.

    compared: how many differences are judged side by side, over which .05 is divided for a word.
    """

    runs: tuple[RunSteps, ...]
    scale: Literal["linear", "log"]
    compared: int


@dataclass(frozen=True)
class Comparison(Saved):
    """What `compare` found: members side by side, each against the first, on the same texts where possible.

    Of several runs (`overlay`) the members are all checkpoints, each against the first run's of the same step.
    """

    SCHEMA: ClassVar[str] = COMPARISON_SCHEMA

    schema: str
    condense: str
    created: str
    command: str
    kind: Kind
    protocol: Mapping[str, Any]
    members: tuple[Member, ...]
    findings: tuple[Finding, ...]
    caveats: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    trajectory: Trajectory | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    overlay: Overlay | None = None

    def __post_init__(self) -> None:
        """ValueError for fewer than two members: there is nothing to compare."""
        if len(self.members) < 2:
            raise ValueError(f"members: {len(self.members)} where two or more are compared")

    @property
    def reference(self) -> Member:
        """The first member, to which all others are compared."""
        return self.members[0]

    @property
    def least(self) -> float | None:
        """The smallest difference in deep mean cosine that counts; None where no member was judged."""
        return next((m.difference.least() for m in self.members if m.difference and m.difference.words), None)

    def rows(self) -> list[dict[str, Any]]:
        """One row per member: model, deep metrics, quality, trend, verdict, and the differences to the first.

        Of several runs with the name of the run, and with the words of the differences.
        """
        return [_member_row(member) for member in self.members]


def _member_row(member: Member) -> dict[str, Any]:
    model = member.model
    row: dict[str, Any] = {
        "member": member.name,
        **({"run": member.run} if member.run is not None else {}),
        "step": member.step,
        "model": model.id,
        "revision": model.revision,
        "weights_sha256": model.weights_sha256,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "blocks": member.blocks,
        "hidden_size": model.hidden_size,
        "dtype": model.dtype,
    }
    for key, estimate in member.deep.items():
        row |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
        if estimate.null_ratio is not None:
            row[f"{key}_null_ratio"] = estimate.null_ratio
    for key in ("loss", "perplexity", "bits_per_byte"):
        row[key] = getattr(member.quality, key).value
    row |= {
        "trend_rho": member.trend.spearman.rho,
        "trend_tau": member.trend.kendall.tau,
        "paper_rho": member.paper.spearman.rho,
        "paper_tau": member.paper.kendall.tau,
        "level": member.verdict.level,
        "cone": member.verdict.cone,
        "rank": member.verdict.rank,
        "attribution": member.verdict.attribution,
    }
    if member.difference is not None:
        row |= {"against": member.difference.against, "paired": member.difference.paired}
        for key, estimate in (*member.difference.deep.items(), *member.difference.quality.items()):
            row |= {
                f"{key}_difference": estimate.value,
                f"{key}_difference_low": estimate.low,
                f"{key}_difference_high": estimate.high,
            }
        if member.run is not None:
            row |= {f"{key}_word": word.word for key, word in member.difference.words.items()}
    if member.same is not None:
        same = member.same
        row |= {"same_word": same.word, "same_from_block": same.from_block, "same_from": same.from_site}
        for key, estimate in (("same_kl", same.kl), ("same_top1", same.top1)):
            row |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return row
