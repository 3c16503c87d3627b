"""Several training runs over their steps, each against the first at equal steps: what is paired, and the findings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from condense.comparison.members import Candidate
from condense.comparison.trajectory import scale_of
from condense.comparison.verdict import (
    CONVENTION,
    LEAST,
    LI,
    TOLERANCE,
    UNITS,
    WITHOUT_TOP,
    Severity,
    analyze_again,
    change_of,
    number,
    signed,
    word_of,
)
from condense.errors import UnavailableError
from condense.records.base import Finding
from condense.records.comparison import Failure, Member, Overlay, RunSteps

ONE_PAIR = "this pair of runs; other seeds not covered"
MOVED = ("more spread", "more condensed")
OWN_WINDOWS = "on windows of its own"
MOST_LISTED = 4


@dataclass(frozen=True)
class Layout:
    """How checkpoints of several runs are laid over each other, by member: its run, and what it is compared to."""

    overlay: Overlay
    run_of: Mapping[str, str]
    against: Mapping[str, str]
    caveats: tuple[str, ...] = ()


def laid_over(
    candidates: Sequence[Candidate], measured: Sequence[Candidate], failures: Sequence[Failure]
) -> Layout | None:
    """The layout of checkpoints of several runs, or None where all are of one; paired at equal steps with the first.

    UnavailableError where no checkpoint of a run could be measured.
    """
    runs = list(dict.fromkeys(candidate.run for candidate in candidates if candidate.run is not None))
    if len(runs) < 2:
        return None
    own = {run.name: {c.step or 0: c.name for c in measured if c.run == run} for run in runs}
    for run in runs:
        if not own[run.name]:
            reason = next((f.reason for f in failures if f.name.startswith(f"{run.name}/")), "none was read")
            raise UnavailableError(f"no checkpoint of {run.name} could be measured: {reason}")
    first = own[runs[0].name]
    shared = {run.name: own[run.name].keys() & first.keys() for run in runs[1:]}
    shared[runs[0].name] = first.keys() & {step for steps in shared.values() for step in steps}
    listed = [
        RunSteps(
            run.name,
            run.source,
            tuple(sorted(own[run.name])),
            tuple(sorted(shared[run.name])),
            run.left_out,
        )
        for run in runs
    ]
    against = {own[run.name][step]: first[step] for run in listed[1:] for step in run.paired}
    steps = sorted({step for run in listed for step in run.steps})
    return Layout(
        Overlay(tuple(listed), scale_of(steps), len(against)),
        {name: run for run, names in own.items() for name in names.values()},
        against,
        tuple(_unpaired_steps(listed)),
    )


def _unpaired_steps(runs: Sequence[RunSteps]) -> list[str]:
    """Which steps are drawn and not compared, a sentence for each run that has some."""
    first, made = runs[0], []
    for run in runs[1:]:
        alone = [step for step in run.steps if step not in run.paired]
        lacking = [step for step in first.steps if step not in run.paired]
        for who, other, steps in ((run.name, first.name, alone), (first.name, run.name, lacking)):
            if steps:
                made.append(f"{who} has {_listed_steps(steps)}, which {other} lacks: drawn, not compared")
    return made


def _listed_steps(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:MOST_LISTED]))
    more = f" and {len(steps) - MOST_LISTED} more" if len(steps) > MOST_LISTED else ""
    return f"step{'s' * (len(steps) > 1)} {shown}{more}"


# --- findings --------------------------------------------------------------------------------------------


class Paired(NamedTuple):
    """A run beside the first: its name, and its members that are compared, in the order of steps."""

    run: str
    members: tuple[Member, ...]

    def steps(self, key: str, *words: str) -> list[int]:
        """The steps at which the difference has one of these words."""
        return [m.step or 0 for m in self.members if word_at(m, key) in words]

    @property
    def all_steps(self) -> list[int]:
        """All steps that are compared."""
        return [member.step or 0 for member in self.members]


def word_at(member: Member, key: str) -> str:
    """The word for a difference; none of a direction in the cone where the two were read on other windows."""
    word = word_of(member, key).word
    unpaired = member.difference is not None and not member.difference.paired
    return OWN_WINDOWS if unpaired and word in MOVED else word


def paired_runs(members: Sequence[Member], overlay: Overlay) -> list[Paired]:
    """Every run but the first with its members that are compared with one of the first."""
    return [
        Paired(run.name, tuple(m for m in members if m.run == run.name and m.difference is not None))
        for run in overlay.runs[1:]
    ]


def findings(members: Sequence[Member], overlay: Overlay) -> tuple[Finding, ...]:
    """What runs show beside the first, the main finding first, then the cone without three dimensions and quality."""
    first = overlay.runs[0]
    pairs = paired_runs(members, overlay)
    made = [_cone_finding(pair, first, members, overlay) for pair in pairs]
    if len(pairs) > 1:
        made = [_all_runs(pairs, first, made), *made]
    for pair in pairs:
        made += [*_without_three(pair), *_quality_finding(pair, first, members)]
    return tuple(made)


def where(steps: Sequence[int], among: Sequence[int]) -> str:
    """The steps among those that are compared, in words: `at all 8 steps`, `from step 40 on`, `at 3 of 8 steps`."""
    if list(steps) == list(among):
        return f"at all {len(among)} steps" if len(among) > 1 else f"at step {among[0]}"
    if len(steps) == 1:
        return f"at step {steps[0]} alone"
    start = list(among).index(steps[0])
    if list(among[start : start + len(steps)]) == list(steps):
        if steps[-1] == among[-1]:
            return f"from step {steps[0]} on"
        return f"up to step {steps[-1]}" if start == 0 else f"from step {steps[0]} to {steps[-1]}"
    return f"at {len(steps)} of {len(among)} steps ({_listed_steps(steps).removeprefix('steps ')})"


def cone_phrase(pair: Paired, first: str) -> str:
    """How a run's cone differs from the first's over the steps, in words."""
    if not pair.members:
        return f"{pair.run} and {first} have no step in common"
    every = pair.all_steps
    spread, condensed = (pair.steps("mean_cosine", word) for word in MOVED)
    if spread and condensed:
        return (
            f"{pair.run} is less condensed than {first} {where(spread, every)} and more condensed "
            f"{where(condensed, every)}"
        )
    if spread or condensed:
        way = "less" if spread else "more"
        return f"{pair.run} is {way} condensed than {first} {where(spread or condensed, every)}"
    if own := pair.steps("mean_cosine", OWN_WINDOWS):
        return f"{pair.run} reads other than {first} {where(own, every)}, each on windows of its own"
    if len(pair.steps("mean_cosine", "smaller than what counts")) == len(every):
        return f"{pair.run} differs from {first} by less than what counts {where(every, every)}"
    return f"{pair.run} is at no step shown to be more or less condensed than {first}"


def _cone_finding(pair: Paired, first: RunSteps, members: Sequence[Member], overlay: Overlay) -> Finding:
    if not pair.members:
        own = next(run for run in overlay.runs if run.name == pair.run)
        return Finding(
            "no-common-step",
            "warning",
            f"{pair.run} and {first.name} have no step in common: nothing is compared",
            f"{first.name} has {_listed_steps(first.steps)}, {pair.run} {_listed_steps(own.steps)}",
            "Both are drawn over their steps. A difference is taken at equal steps only: a run changes with them.",
            _next_command(pair, members),
            CONVENTION,
        )
    spread, condensed = (pair.steps("mean_cosine", word) for word in MOVED)
    worse = pair.steps("quality", "worse")
    key = "runs-cross" if spread and condensed else "less-condensed" if spread else "more-condensed"
    if not spread and not condensed:
        small = len(pair.steps("mean_cosine", "smaller than what counts")) == len(pair.members)
        key = "too-small-to-count" if small else "inconclusive"
        key = "other-windows" if pair.steps("mean_cosine", OWN_WINDOWS) else key
    severity: Severity = "warning" if condensed or worse else "good" if key == "too-small-to-count" else "info"
    lost = f", and predicts the texts worse {where(worse, pair.all_steps)}" if worse else ""
    alpha = word_of(pair.members[-1], "mean_cosine").alpha
    return Finding(
        key,
        severity,
        f"{cone_phrase(pair, first.name)}{lost} ({ONE_PAIR})",
        _cone_numbers(pair, members),
        f"{overlay.compared} difference{'s' * (overlay.compared > 1)} at equal steps: a word needs an interval at "
        f"{alpha:.2g} that excludes 0, and a difference of {LEAST:g}. Equal steps are as much text only where "
        "batches are equal.",
        _next_command(pair, members),
        CONVENTION,
    )


def _cone_numbers(pair: Paired, members: Sequence[Member]) -> str:
    last = pair.members[-1]
    base = reference_of(last, members)
    seen = (
        f"at step {last.step} deep mean cosine {number(base.deep['mean_cosine'], 3)} → "
        f"{number(last.deep['mean_cosine'], 3)}, difference {signed(change_of(last, 'mean_cosine'), 3)}"
    )
    largest = max(pair.members, key=lambda member: abs(change_of(member, "mean_cosine").value or 0.0))
    if abs(change_of(largest, "mean_cosine").value or 0.0) > abs(change_of(last, "mean_cosine").value or 0.0):
        seen += f"; largest at step {largest.step}, {signed(change_of(largest, 'mean_cosine'), 3)}"
    return f"{seen} (counts from {LEAST:g})"


def reference_of(member: Member, members: Sequence[Member]) -> Member:
    """The checkpoint of the first run that a member is compared to; the first member where it is compared to none."""
    name = member.difference.against if member.difference else members[0].name
    return next((other for other in members if other.name == name), members[0])


def _next_command(pair: Paired, members: Sequence[Member]) -> str:
    """The command that looks at the last checkpoints that both have, or at the last of the run."""
    own = pair.members or tuple(member for member in members if member.run == pair.run)
    last = own[-1]
    base = reference_of(last, members)
    sources = " ".join(shlex.quote(member.source) for member in (base, last))
    if any(member.model.revision and not member.source.endswith(".json") for member in (base, last)):
        return analyze_again(last)
    return f"condense compare {sources} -o last/"


def _all_runs(pairs: Sequence[Paired], first: RunSteps, made: Sequence[Finding]) -> Finding:
    """Of several runs: which of them differ from the first."""
    moved = [pair for pair in pairs if pair.steps("mean_cosine", *MOVED)]
    worst: Severity = "warning" if any(one.severity == "warning" for one in made) else "info"
    names = ", ".join(pair.run for pair in moved[:MOST_LISTED])
    title = (
        f"{len(moved)} of {len(pairs)} runs differ from {first.name} at some step: {names}"
        if moved
        else f"No run is shown to differ from {first.name} at any step"
    )
    return Finding(
        "runs",
        worst,
        f"{title} (each one pair of runs; other seeds not covered)",
        "; ".join(cone_phrase(pair, first.name) for pair in pairs),
        made[0].why,
        made[0].next,
        CONVENTION,
    )


def _without_three(pair: Paired) -> list[Finding]:
    """Whether what moved is more than three coordinates."""
    whole, rest = pair.steps("mean_cosine", *MOVED), pair.steps(WITHOUT_TOP, *MOVED)
    if not whole and not rest:
        return []
    last, every = pair.members[-1], pair.all_steps
    if not rest:
        key, title = "three-dimensions-moved", f"Without the top three dimensions {pair.run} is shown to differ nowhere"
    else:
        key, title = "cone-moved", f"Without the top three dimensions {pair.run} differs {where(rest, every)}"
    return [
        Finding(
            key,
            "info",
            title,
            f"with all dimensions {where(whole, every) if whole else 'nowhere'}; at step {last.step} without each "
            f"text’s top three {signed(change_of(last, WITHOUT_TOP), 3)}",
            "A few coordinates can make most of a cosine: what stays without them is the cone itself.",
            "",
            "Timkey & van Schijndel 2021, arXiv:2109.04404",
        )
    ]


_QUALITY: tuple[tuple[Literal["worse", "improved"], str], ...] = (
    ("worse", "predicts the texts worse"),
    ("improved", "predicts the texts better"),
)


def _quality_finding(pair: Paired, first: RunSteps, members: Sequence[Member]) -> list[Finding]:
    """Quality over the same steps: where it is worse or better, and at the last step."""
    if not pair.members:
        return []
    last, every = pair.members[-1], pair.all_steps
    base, word = reference_of(last, members), word_of(last, "quality")
    if word.word == "not measured" or last.difference is None or word.least is None:
        return []
    parts = [f"{words} {where(steps, every)}" for key, words in _QUALITY if (steps := pair.steps("quality", key))]
    held = len(pair.steps("quality", "held"))
    known = f"predicts the texts as well at {held} of {len(every)} steps" if held else "is not shown to predict as well"
    severity: Severity = (
        "warning" if pair.steps("quality", "worse") else "good" if word.word != "not shown to be held" else "info"
    )
    values = [number(getattr(member.quality, word.key), 3) for member in (base, last)]
    return [
        Finding(
            "runs-quality",
            severity,
            f"Beside {first.name}, {pair.run} {' and '.join(parts) or known}",
            f"at step {last.step} {UNITS[word.key]} {values[0]} → {values[1]}, difference "
            f"{signed(last.difference.quality[word.key], 4)}: {word.word}",
            f"Tolerated is a rise of {TOLERANCE:.1%} of the first at the same step. Geometry and quality can each "
            "change alone.",
            "",
            LI,
        )
    ]
