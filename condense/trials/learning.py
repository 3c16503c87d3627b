"""How each arm of a trial learned: its curve, the difference to the control at equal tokens and after equal time.

Every difference is paired by seed and window and has the interval of `intervals.over_seeds`. The steps before the end
are looked at in three quarters; their words divide alpha by the number of looks too, so that the curve gives no more
chances to noise than one number does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from condense.comparison.differences import estimate_of
from condense.comparison.verdict import quality_word, signed
from condense.intervals import ALPHA, Floats, Spread, over_seeds
from condense.records.base import Again, Estimate, Finding
from condense.records.learning import (
    Learning,
    LearningCurve,
    Look,
    Reach,
    Scores,
    TextEffect,
    TimingWord,
    crossing,
    timing_sentence,
)
from condense.records.plans import MIN_SEEDS
from condense.records.treatment import QualityWord
from condense.records.trial import ArmResult
from condense.trials.folder import Run, Runs

QUARTERS = ("first quarter", "second quarter", "third quarter")
END = "end"


@dataclass(frozen=True)
class RunCurve:
    """One run by evaluated step, the end last: seconds (K,), bits of every window (K, N), bytes of the windows (N,)."""

    step: tuple[int, ...]
    seconds: Floats
    bits: Floats
    sizes: Floats
    documents: tuple[int, ...]
    clock: str

    @property
    def per_byte(self) -> Floats:
        """Bits per byte at each step."""
        values: Floats = self.bits.sum(axis=1) / self.sizes.sum()
        return values

    def at_seconds(self, seconds: float) -> Floats | None:
        """Bits of every window after so many seconds, between two evaluations; held at the end, None before the first.

        Shape (N,).
        """
        if seconds < self.seconds[0]:
            return None
        after = int(np.searchsorted(self.seconds, seconds))
        held = {len(self.seconds): -1, 0: 0}
        if after in held:
            end: Floats = self.bits[held[after]]
            return end
        width = self.seconds[after] - self.seconds[after - 1]
        share = (seconds - self.seconds[after - 1]) / width if width > 0 else 1.0
        between: Floats = (1 - share) * self.bits[after - 1] + share * self.bits[after]
        return between


def run_curve(run: Run, steps: int) -> RunCurve | None:
    """The curve of a run, its end as the saved and reloaded model was measured; None where there is none."""
    scores, quality = run.trained.scores if run.trained else None, run.validation.quality
    ratios, sizes = quality.bits_per_byte.per_text, np.array(quality.predicted_bytes, dtype=np.float64)
    if scores is None or not scores.step or ratios is None or scores.total_seconds is None:
        return None
    end = np.array([np.nan if ratio is None else ratio for ratio in ratios]) * sizes
    if any(len(row) != len(end) for row in scores.nats) or not np.isfinite(end).all():
        return None
    bits = np.vstack([np.array(scores.nats) / np.log(2), end])
    seconds = np.array([*scores.seconds, scores.total_seconds])
    return RunCurve((*scores.step, steps), seconds, bits, sizes, run.validation.corpus.documents, scores.clock)


def curve_of(run: Run, steps: int, tokens_per_step: int) -> LearningCurve:
    """The curve of a run as its record keeps it; empty where there is none."""
    curve = run_curve(run, steps)
    if curve is None:
        return LearningCurve()
    tokens = tuple(step * tokens_per_step for step in curve.step)
    return LearningCurve(curve.step, tokens, tuple(curve.seconds.tolist()), tuple(curve.per_byte.round(6).tolist()))


def with_learning(
    arms: Sequence[ArmResult], runs: Runs, control: Mapping[int, Run], least: float | None, tolerance: float
) -> list[ArmResult]:
    """The arms with the curve of every run, what each did over the steps and over the time, and on other texts.

    least: the smallest difference in bits per byte of the validation text that counts; tolerance: the share of the
    control's that counts on other texts.
    """
    steps, each = runs.schedule.steps, runs.schedule.tokens_per_step
    compared = sum(bool(own) for own in runs.arms.values()) - 1
    made = []
    for arm in arms:
        own = runs.arms[arm.spec.name]
        records = tuple(replace(run, learning=curve_of(own[run.seed], steps, each)) for run in arm.runs)
        pair = (_run_curves(own, steps), _run_curves(control, steps))
        learned = learning_of(*pair, each, least, compared, own is control)
        then = _then(own, control, runs, tolerance, compared)
        other = _other(own, control, runs, tolerance, compared)
        made.append(replace(arm, runs=records, learning=learned, then=then, other=other))
    return made


def _run_curves(runs: Mapping[int, Run], steps: int) -> dict[int, RunCurve]:
    """The curves of an arm by seed, of the runs that have one."""
    return {seed: curve for seed, run in runs.items() if (curve := run_curve(run, steps)) is not None}


def _then(
    arm: Mapping[int, Run], control: Mapping[int, Run], runs: Runs, tolerance: float, compared: int
) -> Learning | None:
    """How fast the final models of an arm learn the next text.

    None for runs that did so for other steps, or with other settings than the control's (another choice of --tune).
    """
    if runs.texts is None or runs.texts.then is None:
        return None
    windows, steps = runs.texts.then.windows, runs.texts.then.schedule.steps
    sizes, sha = np.array(windows.predicted_bytes, dtype=np.float64), windows.info.windows_sha256

    def curve(scores: Scores) -> RunCurve:
        bits = np.array(scores.nats) / np.log(2)
        return RunCurve(scores.step, np.array(scores.seconds), bits, sizes, windows.info.documents, scores.clock)

    def is_alike(seed: int, settings: tuple[float, ...]) -> bool:
        theirs = control[seed].beyond.then_settings if seed in control else ()
        return not settings or not theirs or settings == theirs

    def curves(made: Mapping[int, Run]) -> dict[int, RunCurve]:
        known = {seed: run.beyond for seed, run in made.items() if run.beyond.then_sha256 == sha}
        alike = {seed: one.then for seed, one in known.items() if is_alike(seed, one.then_settings)}
        return {seed: curve(scores) for seed, scores in alike.items() if scores and scores.step[-1] == steps}

    mine, theirs = curves(arm), curves(control)
    ends = [float(one.per_byte[-1]) for one in theirs.values()]
    least = tolerance * float(np.mean(ends)) if ends else None
    return learning_of(mine, theirs, runs.schedule.tokens_per_step, least, compared, arm is control)


def _other(
    arm: Mapping[int, Run], control: Mapping[int, Run], runs: Runs, tolerance: float, compared: int
) -> TextEffect | None:
    """Bits per byte of an arm on the text of another domain, and the difference to the control."""
    if runs.texts is None or runs.texts.other is None:
        return None
    windows = runs.texts.other.windows
    sizes, sha = np.array(windows.predicted_bytes, dtype=np.float64), windows.info.windows_sha256

    def bits(made: Mapping[int, Run]) -> dict[int, Floats]:
        known = {seed: run.beyond.other for seed, run in made.items()}
        return {s: np.array(one.nats) / np.log(2) for s, one in known.items() if one and one.windows_sha256 == sha}

    mine, theirs = bits(arm), bits(control)
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    own = estimate_of(mean_over_seeds([float(mine[seed].sum() / sizes.sum()) for seed in seeds]))
    if arm is control:
        return TextEffect(len(seeds), own)
    least = tolerance * float(np.mean([theirs[seed].sum() / sizes.sum() for seed in seeds]))
    spread = over_seeds(np.array([mine[seed] - theirs[seed] for seed in seeds]), windows.info.documents, sizes)
    change, alpha = estimate_of(spread), ALPHA / max(1, compared)
    word = quality_word(change, spread.bounds(alpha), least) if len(seeds) >= MIN_SEEDS else None
    return TextEffect(len(seeds), own, change, word, least)


def learning_of(
    own: Mapping[int, RunCurve],
    other: Mapping[int, RunCurve],
    tokens_per_step: int,
    least: float | None,
    compared: int = 1,
    is_control: bool = False,
) -> Learning | None:
    """What an arm did over the steps against the control; of the control itself its own values alone.

    least: the smallest difference in bits per byte that counts; compared: as in `arm_effect`. None without a seed under
    which both have a curve.
    """
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    pairs = [(own[seed], other[seed]) for seed in seeds]
    shared = sorted(set.intersection(*({*curve.step} for pair in pairs for curve in pair)))
    pairs = [(_at(mine, shared), _at(theirs, shared)) for mine, theirs in pairs]
    if len({len(curve.sizes) for pair in pairs for curve in pair}) > 1:
        return None
    values = np.array([mine.per_byte for mine, _ in pairs])
    made = Learning(
        step=tuple(shared),
        tokens=tuple(step * tokens_per_step for step in shared),
        seconds=tuple(np.mean([theirs.seconds for _, theirs in pairs], axis=0).round(4).tolist()),
        own_seconds=tuple(np.mean([mine.seconds for mine, _ in pairs], axis=0).round(4).tolist()),
        own=tuple(estimate_of(mean_over_seeds(column)) for column in values.T),
        seeds=len(seeds),
        clock="processor" if pairs[0][1].clock == "processor" else "wall",
    )
    return made if is_control else _compared(made, pairs, least, ALPHA / max(1, compared), tokens_per_step)


def _at(curve: RunCurve, steps: Sequence[int]) -> RunCurve:
    """The curve at some of its steps."""
    chosen = [curve.step.index(step) for step in steps]
    return RunCurve(tuple(steps), curve.seconds[chosen], curve.bits[chosen], curve.sizes, curve.documents, curve.clock)


def mean_over_seeds(values: Sequence[float] | Floats) -> Spread:
    """The mean of one number per training seed, its variance over seeds alone."""
    known = np.asarray(values, dtype=np.float64)
    if len(known) < 2:
        return Spread(float(known[0]), (), "one seed: other seeds are not covered")
    return Spread(float(known.mean()), ((float(known.var(ddof=1)) / len(known), len(known) - 1.0),))


def _compared(
    own: Learning, pairs: Sequence[tuple[RunCurve, RunCurve]], least: float | None, alpha: float, tokens_per_step: int
) -> Learning:
    """The arm's own values with its differences to the control and the words for them."""
    mine, theirs = zip(*pairs, strict=True)
    changed = np.array([a.bits - b.bits for a, b in pairs])  # (S, K, N)
    spreads = [_spread(changed[:, at], theirs[0]) for at in range(len(own.step))]
    timed = [_after(pairs, at) for at in range(len(own.step))]
    looks = _looks(own.step, changed, theirs[0], least, alpha)
    if few := len(pairs) < MIN_SEEDS:
        looks = tuple(replace(look, word=None) for look in looks)
    values = [spread.value or 0.0 for spread in spreads]
    ratios = [a.seconds[-1] / b.seconds[-1] for a, b in pairs]
    return replace(
        own,
        changes=tuple(map(estimate_of, spreads)),
        timed=tuple(map(estimate_of, timed)),
        looks=looks,
        timing=None if few else timing_of(looks, least),
        turn=_turn(own.step, values, looks),
        timed_word=None if few else quality_word(estimate_of(timed[-1]), timed[-1].bounds(alpha), least),
        second_ratio=estimate_of(mean_over_seeds(ratios)),
        reach=_reach(mine, theirs, tokens_per_step),
        least=least,
    )


def _spread(bits: Floats, control: RunCurve) -> Spread:
    """The mean over seeds of a difference in bits (S, N), per byte."""
    return over_seeds(bits, control.documents, control.sizes)


def _after(pairs: Sequence[tuple[RunCurve, RunCurve]], at: int) -> Spread:
    """Arm − control after as many seconds of training as the control had at one of its steps, seed by seed."""
    rows = []
    for mine, theirs in pairs:
        bits = mine.at_seconds(float(theirs.seconds[at]))
        if bits is None:
            return Spread(None, (), "before the arm’s first evaluation")
        rows.append(bits - theirs.bits[at])
    return _spread(np.array(rows), pairs[0][1])


def _looks(
    steps: Sequence[int], changed: Floats, control: RunCurve, least: float | None, alpha: float
) -> tuple[Look, ...]:
    """The quarters before the end, each the mean over its evaluated steps, and the end, which stands alone.

    A word before the end needs alpha over the number of looks.
    """
    last, parts = steps[-1], []
    for number, name in enumerate(QUARTERS):
        inside = [at for at, step in enumerate(steps[:-1]) if number * last < 4 * step <= (number + 1) * last]
        if inside:
            parts.append((name, inside))
    parts.append((END, [len(steps) - 1]))
    made = []
    for name, inside in parts:
        spread = _spread(changed[:, inside].mean(axis=1), control)
        own = alpha if name == END else alpha / len(parts)
        change = estimate_of(spread)
        word = quality_word(change, spread.bounds(own), least)
        made.append(Look(name, steps[inside[0]], steps[inside[-1]], change, word))
    return tuple(made)


_SIGNS: Mapping[QualityWord | None, int] = {"improved": -1, "worse": 1}


def timing_of(looks: Sequence[Look], least: float | None) -> TimingWord | None:
    """When an arm differs from the control, from the words of its looks; None where quality was not measured."""
    if least is None or not looks:
        return None
    *before, end = looks
    early = [sign for look in before if (sign := _SIGNS.get(look.word))]
    final = _SIGNS.get(end.word)
    if len({*early, *([final] if final else [])}) > 1:
        return "the sign turns"
    if early and final:
        return "early and final"
    if early:
        low, high = end.change.low, end.change.high
        small = low is not None and high is not None and -least < low and high < least
        return "early only" if small else "early, the end is open"
    return "final only" if final else "none"


def _turn(steps: Sequence[int], values: Sequence[float], looks: Sequence[Look]) -> float | None:
    """Where the mean difference last changes its sign between two looks with opposite words; None without such."""
    signed = [(look, sign) for look in looks if (sign := _SIGNS.get(look.word))]
    last = next((at for at in range(len(signed) - 1, 0, -1) if signed[at][1] != signed[at - 1][1]), None)
    if last is None:
        return None
    (old, sign), (new, _) = signed[last - 1], signed[last]
    for at in range(list(steps).index(new.last) - 1, -1, -1):
        if steps[at] < old.first:
            break
        if values[at] * sign > 0:
            share = values[at] / (values[at] - values[at + 1])
            return float(steps[at] + share * (steps[at + 1] - steps[at]))
    return None


def _reach(mine: Sequence[RunCurve], theirs: Sequence[RunCurve], tokens_per_step: int) -> Reach:
    """Tokens and seconds at which each run first has the control's final bits per byte under its seed."""
    tokens, seconds, reference = [], [], []
    for arm, control in zip(mine, theirs, strict=True):
        level = float(control.per_byte[-1])
        arrived = [crossing(where, arm.per_byte.tolist(), level) for where in (arm.step, arm.seconds.tolist())]
        own = [crossing(where, control.per_byte.tolist(), level) for where in (control.step, control.seconds.tolist())]
        if None not in arrived:
            tokens.append((arrived[0] or 0.0) * tokens_per_step)
            seconds.append(arrived[1] or 0.0)
            reference.append(((own[0] or 0.0) * tokens_per_step, own[1] or 0.0))
    if len(tokens) < len(mine):
        missing = Estimate(None, reason=f"reached under {len(tokens)} of {len(mine)} seeds")
        return Reach(len(tokens), len(mine), missing, missing, missing, missing)
    taken = [estimate_of(mean_over_seeds(values)) for values in (tokens, seconds)]
    ratios = [Estimate(None, reason="the control does not improve")] * 2  # its first value is as good as its last
    if all(all(both) for both in reference):
        known = enumerate((tokens, seconds))
        shares = [[a / b[at] for a, b in zip(values, reference, strict=True)] for at, values in known]
        ratios = [estimate_of(mean_over_seeds(values)) for values in shares]
    return Reach(len(tokens), len(mine), *taken, *ratios)


# --- findings ------------------------------------------------------------------------------------------


def learning_findings(arms: Sequence[ArmResult], steps: int, again: Again) -> list[Finding]:
    """Effects that depend on when a trial ends, and gains that are gone after equal time."""
    made = []
    for arm in arms:
        one = arm.learning
        if one is None or one.timing is None:
            continue
        if one.timing in ("the sign turns", "early only", "early, the end is open"):
            made.append(_when(arm, one, steps, again))
        if one.looks[-1].word == "improved" and one.timed_word != "improved":
            made.append(_gone(arm, one, again))
    return made


def _when(arm: ArmResult, one: Learning, steps: int, again: Again) -> Finding:
    parts = [f"{look.name} {signed(look.change)}" for look in one.looks]
    return Finding(
        "early-effect",
        "warning" if one.timing == "the sign turns" else "info",
        timing_sentence(arm.spec.name, one),
        f"bits per byte, arm − control: {'; '.join(parts)}",
        "A trial that ends earlier would say something else of this arm: what counts is the end, and longer training "
        "may move it further.",
        again(output="longer/", max_steps=str(2 * steps)),
        "this run",
    )


def _gone(arm: ArmResult, one: Learning, again: Again) -> Finding:
    return Finding(
        "equal-time",
        "warning",
        f"{arm.spec.name}: the gain is {'gone' if one.is_gone else 'not shown'} after equal time",
        f"bits per byte, arm − control: {signed(one.looks[-1].change)} at equal tokens, {signed(one.timed[-1])} after "
        f"as many seconds as the control had; the arm takes {one.second_ratio.value:.2f} times the control’s",
        "The control would use the same time for more steps. An arm that is slower is read before its learning rate "
        "has fallen, so that a schedule that ends there would do somewhat better.",
        again(output="again/"),
        "this run",
    )
