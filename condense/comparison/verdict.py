"""What a comparison shows, in words: findings with numbers, a next command, a source. Pure Python.

The rules are those of a treatment's effect: a difference is measurable when its interval excludes 0 and it is at
least `LEAST`; quality is held when even the upper bound of the change stays within the tolerance.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from condense.comparison.differences import size_of
from condense.diagnosis.verdict import LIU
from condense.metrics import MIN_TEXTS
from condense.records.base import Estimate, Finding
from condense.records.comparison import Kind, Member, Trajectory
from condense.records.plans import Plan

LEAST, TOLERANCE = Plan.min_effect, Plan.quality_tolerance
WITHOUT_TOP = "mean_cosine_without_top_dimensions"
Severity = Literal["severe", "warning", "info", "good"]
CONVENTION = "convention of condense"
LI = "Li et al. 2025, arXiv:2509.23024; Li et al. 2026, arXiv:2506.24106"
RANKS = "Across model families geometry barely ranks models: rho about 0.2 with a benchmark"


def findings(kind: Kind, members: Sequence[Member], trajectory: Trajectory | None = None) -> tuple[Finding, ...]:
    """The findings of a comparison, the main one first."""
    if trajectory is not None:
        return (_course(members, trajectory), *_quality_course(members), *_trend_course(members))
    if kind == "pair":
        return (_pair(members[0], members[1]), *_three_dimensions(members[1]), *_cost(members[0], members[1]))
    several = len({(m.model.architecture, m.model.parameters) for m in members}) > 1
    return (_family(members), *_size(members), *([_scope()] if several else []))


# --- two -------------------------------------------------------------------------------------------------


def _pair(first: Member, other: Member) -> Finding:
    change = _change(other, "mean_cosine")
    size = "unclear" if min(first.corpus.texts, other.corpus.texts) < MIN_TEXTS else size_of(change, LEAST)
    a, b = other.name, first.name
    named: dict[str, tuple[str, Severity, str]] = {
        "rise": ("more-condensed", "warning", f"{a} is more condensed than {b}"),
        "fall": ("less-condensed", "info", f"{a} is less condensed than {b}"),
        "none": ("no-measurable-difference", "good", f"{a} is as condensed as {b}: no measurable difference"),
        "unclear": ("inconclusive", "info", f"Inconclusive: the texts do not decide between {a} and {b}"),
    }
    why = {
        "rise": "Its tokens point more alike. That is no defect by itself: read the quality beside it.",
        "fall": "Its tokens point less alike. That is no gain by itself: read the quality beside it.",
        "none": f"The whole interval lies within ±{LEAST:g}, the smallest difference that counts.",
        "unclear": f"The interval holds both 0 and differences of {LEAST:g}, which would count; more texts narrow it.",
    }[size]
    key, severity, title = named[size]
    seen = (
        f"deep mean cosine {_number(first.deep['mean_cosine'], 3)} → {_number(other.deep['mean_cosine'], 3)}, "
        f"difference {_signed(change, 4)}; effective rank {_rank(first)} → {_rank(other)}"
    )
    step = f"condense compare {_quoted(first)} {_quoted(other)} --num-texts {4 * other.corpus.texts}"
    return Finding(key, severity, title, seen, why, step if size == "unclear" else _analyze(other), CONVENTION)


def _three_dimensions(other: Member) -> list[Finding]:
    """Whether what changed is more than three coordinates."""
    whole, rest = _change(other, "mean_cosine"), _change(other, WITHOUT_TOP)
    if size_of(whole, LEAST) not in ("rise", "fall") or rest.value is None:
        return []
    stays = size_of(rest, LEAST)
    key, title = {
        size_of(whole, LEAST): ("cone-moved", "The difference stays without the top three dimensions"),
        "none": ("three-dimensions-moved", "The difference is made by each text’s top three dimensions"),
    }.get(stays, ("three-dimensions-unclear", "Whether more than the top three dimensions moved is not clear"))
    return [
        Finding(
            key, "info", title,
            f"deep mean cosine {_signed(whole, 4)}, without each text’s top three dimensions {_signed(rest, 4)}",
            "A few coordinates can make most of a cosine: what stays without them is the cone itself.",
            _analyze(other), "Timkey & van Schijndel 2021, arXiv:2109.04404",
        )
    ]  # fmt: skip


def _cost(first: Member, other: Member) -> list[Finding]:
    """Quality on the same texts."""
    if other.difference is None:
        return []
    for key, unit in (("bits_per_byte", "bits per byte"), ("loss", "nats per token")):
        change = other.difference.quality.get(key, Estimate(None))
        base: Estimate = getattr(first.quality, key)
        if change.value is None or base.value is None:
            continue
        limit = TOLERANCE * base.value
        held = change.high is not None and change.high <= limit
        worse = change.low is not None and change.low > limit
        title = "It predicts the texts worse" if worse else (
            "It predicts the texts as well, or better" if held else "Whether it predicts the texts as well is not clear"
        )  # fmt: skip
        new: Estimate = getattr(other.quality, key)
        return [
            Finding(
                "quality-lost" if worse else "quality-held" if held else "quality-unclear",
                "warning" if worse else "good" if held else "info", title,
                f"{unit} {_number(base, 3)} → {_number(new, 3)}, difference {_signed(change, 4)}",
                f"Tolerated is {TOLERANCE:.1%} of the first. Geometry and quality can each change alone.",
                _analyze(other), CONVENTION,
            )
        ]  # fmt: skip
    return []


# --- several -----------------------------------------------------------------------------------------------


def _family(members: Sequence[Member]) -> Finding:
    known = sorted(
        (member for member in members if member.deep["mean_cosine"].value is not None),
        key=lambda member: (member.deep["mean_cosine"].value or 0.0, member.name),
    )
    if not known:
        return Finding(
            "undefined", "info", "The mean cosine is not defined for any of them", "no value", "Nothing to compare.",
            _analyze(members[0]), CONVENTION,
        )  # fmt: skip
    least, most = known[0], known[-1]
    sizes = {member.name: size_of(_change(member, "mean_cosine"), LEAST) for member in members[1:]}
    counts = {word: list(sizes.values()).count(word) for word in ("rise", "fall", "none", "unclear")}
    moved = [member for member in members[1:] if sizes[member.name] in ("rise", "fall")]
    furthest = max(moved, key=lambda member: abs(_change(member, "mean_cosine").value or 0.0), default=members[-1])
    return Finding(
        "range", "warning" if counts["rise"] else "info", _family_title(members[0], moved, sizes),
        f"deep mean cosine {_number(least.deep['mean_cosine'], 3)} ({least.name}) to "
        f"{_number(most.deep['mean_cosine'], 3)} ({most.name}); against {members[0].name}: {counts['rise']} more "
        f"condensed, {counts['fall']} less, {counts['none']} with no measurable difference, {counts['unclear']} "
        "undecided",
        f"A difference counts where its interval excludes 0 and it is at least {LEAST:g}. It is no defect or gain by "
        "itself: read the quality beside it.",
        _analyze(furthest), CONVENTION,
    )  # fmt: skip


def _family_title(first: Member, moved: Sequence[Member], sizes: Mapping[str, str]) -> str:
    """Who differs measurably from the first, and which way."""
    ways = {sizes[member.name] for member in moved}
    word = "more" if ways == {"rise"} else "less"
    rest = [size for size in sizes.values() if size not in ("rise", "fall")]
    if not moved:
        return f"None is measurably more or less condensed than {first.name}"
    if len(ways) == 2:
        up = sum(sizes[member.name] == "rise" for member in moved)
        return f"Against {first.name}, {up} of {len(sizes)} are more condensed and {len(moved) - up} less"
    if len(moved) == 1 and rest and set(rest) == {"none"}:
        return f"{moved[0].name} is {word} condensed than {first.name}, the others are not measurably different"
    who = moved[0].name + " is" if len(moved) == 1 else f"{len(moved)} of {len(sizes)} are"
    return f"{who} {word} condensed than {first.name}"


def _size(members: Sequence[Member]) -> list[Finding]:
    """The published statement about size, beside what is seen here."""
    own = [m for m in members if m.model.architecture == members[0].model.architecture]
    sized = sorted((m for m in own if m.trend.spearman.rho is not None), key=lambda m: (m.model.parameters, m.name))
    if len({member.model.parameters for member in sized}) < 2:
        return []
    small, large = sized[0], sized[-1]
    a, b = small.trend.spearman.rho or 0.0, large.trend.spearman.rho or 0.0
    word = "falls" if b < a - 0.1 else "rises" if b > a + 0.1 else "hardly changes"
    points = ", ".join(f"{_size_of(m)} {m.trend.spearman.rho or 0.0:+.2f}" for m in sized[:12])
    agrees = word == "falls"
    return [
        Finding(
            "size", "info", f"From the smallest to the largest the trend over depth {word}",
            f"Spearman rho of mean cosine with depth by parameters: {points}" + (" …" if len(sized) > 12 else ""),
            ("As published: within a family larger models condense less with depth. " if agrees else
             "Published is the opposite: within a family larger models condense less with depth. ")
            + "A trend is no severity: random weights score +1, and few blocks make a coarse rank correlation.",
            _analyze(large), LIU,
        )
    ]  # fmt: skip


def _scope() -> Finding:
    return Finding(
        "scope", "info", "This orders geometry, not models", RANKS,
        "Compare within a family, at one tokenizer and one corpus; for what a model can do, evaluate it.",
        "condense compare --help", "Rudman & Eickhoff 2024, arXiv:2305.19358",
    )  # fmt: skip


# --- a run over its steps ----------------------------------------------------------------------------------


def _course(members: Sequence[Member], trajectory: Trajectory) -> Finding:
    first, last, peak = members[0], members[-1], trajectory.peak
    ends = (
        f"deep mean cosine {_number(first.deep['mean_cosine'], 3)} at step {first.step}, "
        f"{_number(last.deep['mean_cosine'], 3)} at step {last.step}"
    )
    change = _change(last, "mean_cosine")
    size = size_of(change, LEAST)
    end = {
        "rise": "ends more condensed than it began", "fall": "ends less condensed than it began",
        "none": "ends as condensed as it began", "unclear": "ends undecided against its beginning",
    }[size]  # fmt: skip
    seen = f"{ends}, difference {_signed(change, 3)}"
    if peak is not None:
        early = "an early peak" if peak.early else "a peak"
        return Finding(
            "early-peak" if peak.early else "peak", "info",
            f"The run condenses first and opens again: {early} at step {peak.step}",
            f"{ends}; in between {peak.value:.3f} at step {peak.step}, {_signed(peak.rise, 3)} above the first and "
            f"then {_signed(peak.fall, 3)} to the last; it {end}",
            "So did the tiny models that were pretrained while condense was built, and published runs collapse in "
            "their warm-up too. A checkpoint from that stretch says nothing of the finished model.",
            _analyze(last), f"{LI}; {LIU}",
        )  # fmt: skip
    severity: Severity = "warning" if size == "rise" else "good" if size == "fall" else "info"
    return Finding(
        {"rise": "condenses", "fall": "opens", "none": "steady", "unclear": "undecided"}[size], severity,
        f"The run {end}", seen, "No checkpoint on the way stands out from both ends.", _analyze(last), f"{LI}; {LIU}",
    )  # fmt: skip


def _quality_course(members: Sequence[Member]) -> list[Finding]:
    for key, unit in (("bits_per_byte", "bits per byte"), ("loss", "nats per token")):
        values = [(m, getattr(m.quality, key).value) for m in members]
        known = [(member, value) for member, value in values if value is not None]
        if len(known) < 2:
            continue
        best = min(known, key=lambda pair: pair[1])
        (first, begin), (last, end) = known[0], known[-1]
        return [
            Finding(
                "quality-course", "info", f"Over the same steps {unit} go from {begin:.2f} to {end:.2f}",
                f"{begin:.3f} at step {first.step}, best {best[1]:.3f} at step {best[0].step}, {end:.3f} at step "
                f"{last.step}",
                "Read the two curves together: a cone that opens while prediction improves is training at work; one "
                "that narrows late while prediction improves is not thereby a defect.",
                _analyze(best[0]), LI,
            )
        ]  # fmt: skip
    return []


def _trend_course(members: Sequence[Member]) -> list[Finding]:
    known = [member for member in members if member.trend.spearman.rho is not None]
    if len(known) < 2:
        return []
    first, last = known[0], known[-1]
    a, b = first.trend.spearman.rho or 0.0, last.trend.spearman.rho or 0.0
    relieved = a >= 0.5 and b < a - 0.1
    return [
        Finding(
            "trend-course", "info",
            f"The trend over depth is {'relieved' if relieved else 'not relieved'} by training",
            f"Spearman rho of mean cosine with depth {a:+.2f} at step {first.step}, {b:+.2f} at step {last.step}",
            "Published for one 7 B run: +1.0 at initialisation, below 0 at the end. "
            + ("Here it moves the same way. " if relieved else "Here it does not move that way. ")
            + "With few blocks the coefficient is coarse.",
            _analyze(last), LIU,
        )
    ]  # fmt: skip


# --- words -------------------------------------------------------------------------------------------------


def _change(member: Member, key: str) -> Estimate:
    return member.difference.deep.get(key, Estimate(None)) if member.difference else Estimate(None)


def _analyze(member: Member) -> str:
    commit = member.model.revision
    revision = f" --revision {shlex.quote(commit)}" if commit else ""
    return f"condense analyze {shlex.quote(member.model.id)}{revision} --random-twin -o report/"


def _size_of(member: Member) -> str:
    count = member.model.parameters
    if count >= 1e9:
        return f"{count / 1e9:.3g} B"
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count:,}"


def _quoted(member: Member) -> str:
    return shlex.quote(member.model.id)


def _rank(member: Member) -> str:
    rank = member.deep["effective_rank"]
    share = "" if rank.null_ratio is None else f" ({100 * rank.null_ratio:.0f} % of random)"
    return _number(rank, 1) + share


def _number(of: Estimate, digits: int) -> str:
    return "undefined" if of.value is None else f"{of.value:.{digits}f}"


def _signed(of: Estimate, digits: int) -> str:
    if of.value is None:
        return "undefined"
    interval = "" if of.low is None or of.high is None else f" [{of.low:+.{digits}f}, {of.high:+.{digits}f}]"
    return f"{of.value:+.{digits}f}{interval}"
