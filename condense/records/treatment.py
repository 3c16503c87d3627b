"""The values of a treatment: the arms, the seeds, the effect, and the verdict. Frozen, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from condense.records.base import Estimate, Finding, Saved
from condense.records.diagnosis import Diagnosis, Quality
from condense.records.plans import Plan
from condense.records.tasks import TaskEffect, TaskScore

TREATMENT_SCHEMA = "condense.treatment/1"
VerdictId = Literal[
    "dispersed",
    "dispersed-at-a-cost",
    "condensed-further",
    "too-small-to-count",
    "inconclusive",
    "no-control",
]
ConeWord = Literal["more spread", "more condensed", "smaller than what counts", "inconclusive"]
"""What a difference in mean cosine comes to."""
QualityWord = Literal["improved", "held", "worse", "not shown to be held", "not measured"]
"""What a difference in bits per byte (or in the loss, where there are none) comes to."""
AnyWord = Literal[
    "more spread",
    "more condensed",
    "smaller than what counts",
    "inconclusive",
    "improved",
    "held",
    "worse",
    "not shown to be held",
    "not measured",
]
Opened = Literal["cone opened", "three dimensions rescaled", "both", "neither", "not clear"]


@dataclass(frozen=True)
class Schedule:
    """What a plan comes to on a given text: rows, steps and tokens, and an estimate of time and disk.

    A step holds `tokens_per_step` over all `processes`, each of which takes up to `accumulation` micro-batches of
    `batch_size` rows. `notes` says in words what of the text was left out, and why; `adapter` which modules LoRA adapts
    and how many parameters that trains, empty without it. `jobs` runs go on at once, each with `threads`
    threads (None: this process's own); `seconds` is of all of them so shared out, `memory_bytes` of one.
    """

    rows: int
    row_length: int
    steps: int
    tokens_per_step: int
    train_tokens: int
    batch_size: int
    accumulation: int
    packed: bool
    train_documents: int
    validation_documents: int
    train_sha256: str
    validation_sha256: str
    disk_bytes: int
    seconds: float | None = None
    memory_bytes: int | None = None
    notes: tuple[str, ...] = ()
    adapter: str = ""
    processes: int = 1
    jobs: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Curve:
    """What was logged while an arm trained, one entry per logged step."""

    step: tuple[int, ...] = ()
    ce_loss: tuple[float, ...] = ()
    penalty: tuple[float, ...] = ()
    mean_cosine: tuple[float | None, ...] = ()
    gradient_norm: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()

    @property
    def penalty_to_ce(self) -> float | None:
        """|penalty| / cross-entropy, mean over the logged steps at which the penalty was on; 0 where it never was.

        Steps behind the end of a schedule are left out: they say nothing of how strong the loss was. At those the
        hooks are off, so that there is no cosine either. None where no cross-entropy above 0 was logged.
        """
        logged = zip(self.ce_loss, self.penalty, self.mean_cosine, strict=True)
        known = [(abs(penalty) / ce, bool(penalty) or cosine is not None) for ce, penalty, cosine in logged if ce > 0]
        on = [ratio for ratio, was_on in known if was_on]
        return sum(on) / len(on) if on else 0.0 if known else None


@dataclass(frozen=True)
class Arm:
    """One arm: the saved and reloaded model on validation and probe, and how it trained."""

    validation: Diagnosis
    probe: Diagnosis
    curve: Curve = field(default_factory=Curve)
    seconds: float = 0.0
    trained_tokens: int = 0
    penalty_to_ce: float | None = None
    cloud: tuple[tuple[float, ...], ...] = ()
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True)
class Word:
    """What a difference comes to, and by which rule.

    `least` is the smallest difference that counts, in the unit of `key`; None where no reference is known. `low` and
    `high` bound the difference at level 1 − `alpha`, and a word that names a direction needs this interval to exclude
    0: `alpha` is .05 over the number of differences that are judged side by side. "smaller than what counts" and
    "held" are read off the 95 % interval.
    """

    word: AnyWord
    key: str
    least: float | None = None
    low: float | None = None
    high: float | None = None
    alpha: float = 0.05


@dataclass(frozen=True)
class Power:
    """What so many training seeds could have shown of one number, and how many it takes to show what counts.

    `shown`: the smallest difference that is found in 80 % of trials like this one (two-sided, at `alpha`); `wanted`:
    the smallest that counts; `seeds_needed`: the seeds it takes to find that, None where no number of them does and
    `reason` says what would. `seed_sd` is the standard deviation of the difference over seeds, `document_error` its
    standard error over documents, with `document_dof` degrees of freedom.
    """

    key: str
    seeds: int
    alpha: float
    seed_sd: float
    document_error: float
    document_dof: float | None
    shown: float | None
    wanted: float | None
    seeds_needed: int | None
    reason: str | None = None


@dataclass(frozen=True)
class SiteEffect:
    """Differences at one site per metric; `words` on the mean cosine, judged at alpha over the number of blocks."""

    site: str
    stack: str
    index: int
    metrics: Mapping[str, Estimate]
    words: Mapping[str, ConeWord] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """New minus old with 95 % intervals: paired by window where both read the same ones (`paired`).

    Variance over documents and, with several training seeds, over seeds. `covers` says what the intervals cover.
    `words` holds what counts, by `mean_cosine`, `mean_cosine_without_top_dimensions` and `quality`. `spread` is the
    standard deviation of each difference over seeds, None for one seed.
    """

    against: str
    paired: bool
    deep: Mapping[str, Estimate]
    quality: Mapping[str, Estimate]
    sites: tuple[SiteEffect, ...]
    words: Mapping[str, Word] = field(default_factory=dict)
    covers: str = ""
    seeds: int = 1
    spread: Mapping[str, float | None] = field(default_factory=dict)
    power: Mapping[str, Power] = field(default_factory=dict)

    @property
    def quality_key(self) -> str:
        """What quality is judged by: `bits_per_byte`, or `loss` of a model that has none."""
        word, bits = self.words.get("quality"), self.quality.get("bits_per_byte")
        return word.key if word else "bits_per_byte" if bits and bits.value is not None else "loss"

    def least(self, key: str = "mean_cosine") -> float | None:
        """The smallest difference that counts in what `words` holds under the key; None where that is not known."""
        return self.words[key].least if key in self.words else None


@dataclass(frozen=True)
class Overhead:
    """Cost of the loss: treated ÷ control in a short interleaved pass of forward and backward.

    Under a schedule that ends early: of a pass with the loss on. `time_range` is the lowest and the highest ratio of
    any round: its noise; empty where it was not kept.
    """

    time_ratio: float | None
    memory_ratio: float | None
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 0
    reason: str | None = None
    time_range: tuple[float, ...] = ()

    @property
    def time_noise(self) -> str:
        """The range of the time ratio over rounds in words; empty where it is not known."""
        return f" ({self.time_range[0]:.3f} to {self.time_range[1]:.3f})" if len(self.time_range) == 2 else ""


@dataclass(frozen=True)
class Outcome:
    """The verdict of a treatment, of quality too, and the findings behind it, the headline first.

    `covers` says what the verdict is limited to, as in "this pair of runs; other seeds not covered".
    """

    id: VerdictId
    quality: QualityWord
    opened: Opened
    findings: tuple[Finding, ...]
    covers: str = ""

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A verdict that was saved with earlier words."""
        return renamed_verdict(data, "id")


@dataclass(frozen=True)
class SeedModel:
    """What one model trained under one seed came to on the validation windows; `weights_sha256` as it was saved."""

    deep: Mapping[str, Estimate]
    quality: Quality
    weights_sha256: str | None


@dataclass(frozen=True)
class TreatmentSeed:
    """One training seed of a treatment: the treated model, its control under the same seed, treated − control.

    `control` is None where none was trained; `effect` is then treated − before.
    """

    seed: int
    deep: Mapping[str, Estimate]
    quality: Quality
    weights_sha256: str | None
    effect: Effect
    control: SeedModel | None = None


@dataclass(frozen=True)
class TriedDose:
    """A coefficient that a search tried: its difference to the search's control in deep mean cosine and quality.

    `penalty_to_ce`: as of a `Curve`; without estimates the run failed (`reason`).
    """

    coefficient: float
    effect: Estimate
    quality: Estimate
    word: AnyWord
    quality_word: AnyWord
    penalty_to_ce: float | None = None


@dataclass(frozen=True)
class DoseSearch:
    """How a coefficient was chosen: short runs on part of the training text, each against one control.

    `points` are in the order they were tried, `chosen` is None where none had a measurable effect within the quality
    tolerance. Neither the validation nor the probe text of the treatment was read. `least` and `tolerated` are the
    smallest effect that counts and the rise in `quality_key` that is tolerated, each the `share` of the plan's that the
    steps are of its steps; a word needs its interval at `alpha`.
    """

    steps: int
    train_tokens: int
    documents: int
    train_sha256: str
    validation_sha256: str
    points: tuple[TriedDose, ...]
    chosen: float | None
    reason: str
    quality_key: str
    least: float
    tolerated: float | None
    alpha: float
    share: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Treatment(Saved):
    """What `treat` did and what came of it: before, control and treated on the same windows.

    `arms` and the saved checkpoint are those of the first training seed, never of the best one. `effect` and `verdict`
    are over all seeds, `seeds` has each of them.
    """

    SCHEMA: ClassVar[str] = TREATMENT_SCHEMA

    schema: str
    condense: str
    created: str
    command: str
    model: str
    output: str
    plan: Plan
    schedule: Schedule
    arms: Mapping[str, Arm]
    effect: Effect
    probe_effect: Effect
    overhead: Overhead
    verdict: Outcome
    timing: Mapping[str, float]
    cloud_site: str = ""
    cloud_variance: tuple[float, ...] = ()
    task_effects: tuple[TaskEffect, ...] = ()
    seeds: tuple[TreatmentSeed, ...] = ()
    search: DoseSearch | None = None

    @classmethod
    def older(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A treatment that does not say which windows are of one document, without its intervals."""
        corpus: Any = data
        for key in ("arms", "treated", "validation", "corpus"):
            corpus = corpus.get(key) if isinstance(corpus, Mapping) else None
        effects = [key for key in ("effect", "probe_effect") if key in data]
        return data if has_documents(corpus) else {**data, **{key: without_bounds(data[key]) for key in effects}}

    def rows(self) -> list[dict[str, Any]]:
        """The layer tables of all arms as plain rows, with the columns `arm` and `corpus` in front."""
        return [
            {"arm": name, "corpus": corpus, **row}
            for name, arm in self.arms.items()
            for corpus, diagnosis in (("validation", arm.validation), ("probe", arm.probe))
            for row in diagnosis.rows()
        ]


def renamed_verdict(judged: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A verdict (its id under `name`) that was saved with earlier words, in those of today.

    Until 0.1 "no-measurable-effect" was what is "too-small-to-count" now, and `quality_held` was true, false or null.
    """
    made = {key: value for key, value in judged.items() if key != "quality_held"}
    if made.get(name) == "no-measurable-effect":
        made[name] = "too-small-to-count"
    if "quality_held" in judged and "quality" not in made:
        held: QualityWord = "held" if judged["quality_held"] else "not shown to be held"
        made["quality"] = "not measured" if judged["quality_held"] is None else held
        made["covers"] = NO_DOCUMENTS
    return made


NO_DOCUMENTS = "not run: this run does not say which windows come from one document"
"""Why a run that was saved before documents were kept has no intervals."""


def has_documents(corpus: Any) -> bool:
    """Whether the corpus of a saved run says which windows are of one document."""
    return isinstance(corpus, Mapping) and bool(corpus.get("documents"))


def without_bounds(data: Any) -> Any:
    """Saved values with no estimate's interval, each with the reason; they were too narrow."""
    if isinstance(data, Mapping):
        kept = {key: without_bounds(value) for key, value in data.items()}
        bounded = "value" in data and data.get("low") is not None
        return {**kept, "low": None, "high": None, "reason": NO_DOCUMENTS} if bounded else kept
    if isinstance(data, list) and data and isinstance(data[0], Mapping):
        return [without_bounds(item) for item in data]
    return data
