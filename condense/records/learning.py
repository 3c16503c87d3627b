"""How runs learned: bits per byte of the validation text while they trained, and what that comes to. No libraries.

The curve of one run is kept with it; what an arm did over the steps and over the time stands in the trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from condense.records.base import Estimate
from condense.records.treatment import QualityWord

TimingWord = Literal["early and final", "early only", "early, the end is open", "final only", "the sign turns", "none"]
"""When an arm differs from the control: in a quarter before the end, at the end, both, or with opposite signs."""


@dataclass(frozen=True)
class Scores:
    """What the validation windows cost at some steps of one run, in nats per window, beside the clock.

    `seconds` are of training alone, without these evaluations and without saving. On a CPU they are processor time
    over threads (`clock`), so that what else the machine does is not counted; on a GPU they are wall time.
    """

    step: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    nats: tuple[tuple[float, ...], ...] = ()
    total_seconds: float | None = None
    clock: Literal["processor", "wall"] = "wall"


@dataclass(frozen=True)
class LearningCurve:
    """Bits per byte of the validation text of one run, by step; the last point is the saved and reloaded model."""

    step: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    bits_per_byte: tuple[float, ...] = ()


@dataclass(frozen=True)
class Look:
    """A part of training, its mean difference to the control in bits per byte, and the word for it.

    The word is None below three seeds.

    first, last: the first and the last evaluated step of it.
    """

    name: str
    first: int
    last: int
    change: Estimate
    word: QualityWord | None


@dataclass(frozen=True)
class Reach:
    """How soon an arm reaches the control's final bits per byte: tokens and seconds, and their ratios to the control's.

    Each is the mean over seeds with its interval over seeds, known only where the arm gets there under every seed; no
    ratio where the control's first value is as good as its last under some seed. The control's own are where its curve
    first has that value, which may be before its end.
    """

    reached: int
    seeds: int
    tokens: Estimate
    seconds: Estimate
    token_ratio: Estimate
    second_ratio: Estimate


@dataclass(frozen=True)
class Learning:
    """One arm over the steps, mean over its seeds: own values (interval over seeds) and differences to the control.

    `changes` are at equal tokens; `timed` after equal seconds of training, `seconds` being the control's at each step
    (an arm that is done earlier is held at its end) and `own_seconds` the arm's. Both have intervals over seeds and
    documents. The control has own values only. `looks` are the quarters of the steps and the end; `turn` is where the
    sign of the difference turns, between two looks that are measurable with opposite signs, else None. `second_ratio`
    is the arm's seconds over the control's. `least` is the smallest difference in bits per byte that counts.
    """

    step: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    own_seconds: tuple[float, ...]
    own: tuple[Estimate, ...]
    seeds: int
    changes: tuple[Estimate, ...] = ()
    timed: tuple[Estimate, ...] = ()
    looks: tuple[Look, ...] = ()
    timing: TimingWord | None = None
    turn: float | None = None
    timed_word: QualityWord | None = None
    second_ratio: Estimate = field(default_factory=lambda: Estimate(None))
    reach: Reach | None = None
    clock: Literal["processor", "wall"] = "wall"
    least: float | None = None

    @property
    def is_gone(self) -> bool:
        """Whether a gain that counts is excluded after equal time; quality that is held may still have gained."""
        low = self.timed[-1].low if self.timed else None
        return self.timed_word == "worse" or (self.least is not None and low is not None and low > -self.least)


@dataclass(frozen=True)
class TextScores:
    """What the windows of another text cost a run's final model, in nats per window, and which windows they are."""

    windows_sha256: str
    nats: tuple[float, ...]


@dataclass(frozen=True)
class Beyond:
    """What a run's final model did on other texts: scored on one, trained further on another (step 0 first).

    `then_settings`: peak rate and warm-up of that training, the control's; empty in runs of earlier versions.
    """

    other: TextScores | None = None
    then: Scores | None = None
    then_sha256: str = ""
    then_settings: tuple[float, ...] = ()


@dataclass(frozen=True)
class TextEffect:
    """Bits per byte of an arm on another text: its own (interval over seeds), and arm − control with its word.

    The word is None for the control and below three seeds. `least` is the smallest difference that counts.
    """

    seeds: int
    own: Estimate
    change: Estimate = field(default_factory=lambda: Estimate(None))
    word: QualityWord | None = None
    least: float | None = None


@dataclass(frozen=True)
class Tried:
    """One setting of the search of an arm: bits per byte of the tuning text after the last step, and what it took.

    Of a masked model the loss stands in. `reason`: why it has no number. `edge`: which chosen values are the smallest
    or the largest that were tried, so that a better one may lie outside.
    """

    learning_rate: float | None
    warmup_steps: float | None
    bits_per_byte: float | None
    loss: float | None = None
    seconds: float = 0.0
    reason: str | None = None
    chosen: bool = False
    edge: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The setting as it is read: `learning rate 0.001, 40 steps of warm-up`."""
        rate = [] if self.learning_rate is None else [f"learning rate {self.learning_rate:g}"]
        warm = [] if self.warmup_steps is None else [f"{self.warmup_steps:g} steps of warm-up"]
        return ", ".join([*rate, *warm])


def crossing(positions: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Where a curve first comes down to a level, interpolated between its points; None where it never does."""
    for index, value in enumerate(values):
        if value <= level:
            if index == 0:
                return float(positions[0])
            before = values[index - 1]
            share = (before - level) / (before - value)
            return float(positions[index - 1] + share * (positions[index] - positions[index - 1]))
    return None


def timing_sentence(name: str, learning: Learning) -> str:
    """When an arm differs from the control, in a sentence; empty for the control and where nothing is known."""
    if learning.timing is None:
        return ""
    before = [look for look in learning.looks[:-1] if look.word in ("improved", "worse")]
    end = learning.looks[-1].word or ""
    early = f"{_BETTER[before[0].word or '']} in the {before[0].name}" if before else ""
    if learning.timing == "the sign turns":
        parts = [f"{_BETTER[look.word or '']} in the {look.name}" for look in before]
        parts += [f"{_BETTER[end]} at the end"] if end in _BETTER else []
        where = "" if learning.turn is None else f", and the sign turns at about step {learning.turn:.0f}"
        return f"{name}: {', '.join(parts)}{where}"
    words = {
        "early and final": f"{early} and {_BETTER.get(end, '')} at the end",
        "early only": f"an early effect only: {early}, at the end smaller than what counts",
        "early, the end is open": f"an early effect: {early}; at the end it is not shown",
        "final only": f"a final effect: {_BETTER.get(end, '')} at the end, not shown before",
    }
    return f"{name}: {words.get(learning.timing, 'no effect is shown, neither early nor at the end')}"


_BETTER = {"improved": "better", "worse": "worse"}


def crossing_words(learning: Learning) -> str:
    """Between which steps the mean difference last crosses 0, where no word says that its sign turns; else empty.

    Only where the 95 % interval of a look before the end, uncorrected, excludes 0 and the mean ends on the other side
    of it. It describes the mean of these seeds: that the sign turns needs opposite words (`Learning.turn`).
    """
    if learning.timing in (None, "the sign turns") or not learning.looks:
        return ""
    end = learning.looks[-1].change.value or 0.0
    looks = [look.change for look in learning.looks[:-1]]
    other = [one for one in looks if one.low is not None and one.high is not None and one.low * one.high > 0]
    if not any((one.value or 0.0) * end < 0 for one in other):
        return ""
    values = [change.value or 0.0 for change in learning.changes]
    last = next((at for at in range(len(values) - 2, -1, -1) if values[at] * end < 0), None)
    if last is None:
        return ""
    steps = f"steps {learning.step[last]:,} and {learning.step[last + 1]:,}"
    ways = "worse to better" if end < 0 else "better to worse"
    return f"the mean crosses 0 between {steps}, from {ways}, which is not shown"


def tuning_lines(tried: Mapping[str, Sequence[Tried]]) -> list[str]:
    """What the search chose for every arm, and where that stands on the edge of what was tried."""
    lines = []
    for name, settings in tried.items():
        best = next((one for one in settings if one.chosen), None)
        if best is None:
            lines.append(f"{name}: no setting could be trained")
            continue
        value = best.loss if best.bits_per_byte is None else best.bits_per_byte
        unit = "nats per token" if best.bits_per_byte is None else "bits per byte"
        edge = f"; on the edge of what was tried ({' and '.join(best.edge)})" if best.edge else ""
        cost = sum(one.seconds for one in settings)
        lines.append(
            f"{name}: {best.words} of {len(settings)} settings ({value:.4f} {unit}), {cost:.0f} s in all{edge}"
        )
    return lines
