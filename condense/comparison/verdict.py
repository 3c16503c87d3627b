"""The words for a difference, and the findings of a comparison. Pure Python: no numpy, no tensors.

The words are decided here, once, for `compare`, `treat` and `trial`: a difference counts as more spread or more
condensed when its interval excludes 0 and it is at least the smallest that counts; it is smaller than what counts
when the whole 95 % interval lies within ±that; else it is inconclusive. Findings carry numbers, a next command, a
source.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from condense.diagnosis.verdict import LIU
from condense.records.base import Estimate, Finding
from condense.records.comparison import Kind, Member
from condense.records.plans import Plan
from condense.records.treatment import ConeWord, Opened, QualityWord, Word

LEAST, TOLERANCE = Plan.min_effect, Plan.quality_tolerance
WITHOUT_TOP = "mean_cosine_without_top_dimensions"
Severity = Literal["severe", "warning", "info", "good"]
Bounds = tuple[float | None, float | None]
CONVENTION = "convention of condense"
LI = "Li et al. 2025, arXiv:2509.23024; Li et al. 2026, arXiv:2506.24106"
RANKS = "Across model families geometry barely ranks models: rho about 0.2 with a benchmark"
UNITS = {"bits_per_byte": "bits per byte", "loss": "nats per token"}
UNDECIDED: Word = Word("inconclusive", "mean_cosine")


# --- the rules -------------------------------------------------------------------------------------------


def cone_word(change: Estimate, strict: Bounds, least: float) -> ConeWord:
    """The word for a change in mean cosine; `strict`: its interval at the level required for a direction."""
    if change.value is not None and abs(change.value) >= least and _excludes_zero(strict):
        return "more spread" if change.value < 0 else "more condensed"
    if change.low is not None and change.high is not None and -least < change.low and change.high < least:
        return "smaller than what counts"
    return "inconclusive"


def quality_word(change: Estimate, strict: Bounds, least: float | None) -> QualityWord:
    """The word for a change in bits per byte or loss; `least`: the tolerated rise, None without a reference."""
    if change.value is None or least is None:
        return "not measured"
    if _excludes_zero(strict) and abs(change.value) >= least:
        if change.value < 0:
            return "improved"
        if change.value > least:
            return "worse"
    return "held" if change.high is not None and change.high <= least else "not shown to be held"


def quality_in(words: Mapping[str, Word]) -> QualityWord:
    """The word on quality; "not shown to be held" where nothing is decided."""
    known: dict[str, QualityWord] = {"improved": "improved", "held": "held", "worse": "worse"}
    word = words["quality"].word if "quality" in words else "not measured"
    return "not measured" if word == "not measured" else known.get(word, "not shown to be held")


def what_opened(words: Mapping[str, Word], changes: Mapping[str, Estimate]) -> Opened:
    """Whether the cone opened or three dimensions were scaled: words with and without each text's top three."""
    whole, rest = (words.get(key, UNDECIDED).word for key in ("mean_cosine", WITHOUT_TOP))
    if whole != "more spread":
        if rest == "more spread":
            return "cone opened"
        return "not clear" if "inconclusive" in (whole, rest) else "neither"
    if rest == "inconclusive":
        return "not clear"
    if rest != "more spread":
        return "three dimensions rescaled"
    total, inner = (changes[key].value or 0.0 for key in ("mean_cosine", WITHOUT_TOP))
    return "cone opened" if inner <= 0.5 * total else "both"


def open_because(change: Estimate, word: Word) -> str:
    """Why a difference is inconclusive, from its interval."""
    least = word.least or 0.0
    if change.value is None or change.low is None or change.high is None:
        return f"There is no interval: {change.reason or 'too little was measured'}."
    if change.low <= 0 <= change.high:
        return f"The 95 % interval holds 0 and reaches beyond ±{least:g}: no difference and one that counts both fit."
    if abs(change.value) < least:
        return f"The 95 % interval excludes 0 and reaches beyond ±{least:g}: whether the difference counts is open."
    count = round(0.05 / word.alpha)
    return f"{count} differences are judged side by side, and at the level that asks for ({word.alpha:.2g}) 0 fits too."


def _excludes_zero(bounds: Bounds) -> bool:
    low, high = bounds
    return low is not None and high is not None and (low > 0 or high < 0)


# --- findings --------------------------------------------------------------------------------------------


def findings(kind: Kind, members: Sequence[Member]) -> tuple[Finding, ...]:
    """The findings of a comparison of models, the main one first; `trajectory.findings` has those of a run."""
    if kind == "pair":
        return (_pair_finding(*members), *_three_dimensions(members[1]), *_quality_change(*members))
    several = len({(m.model.architecture, m.model.parameters) for m in members}) > 1
    return (_family(members), *_size_finding(members), *([_scope_finding()] if several else []))


# --- two -------------------------------------------------------------------------------------------------


def _pair_finding(first: Member, other: Member) -> Finding:
    change, word = change_of(other, "mean_cosine"), word_of(other, "mean_cosine")
    seen = (
        f"deep mean cosine {number(first.deep['mean_cosine'], 3)} → {number(other.deep['mean_cosine'], 3)}, difference "
        f"{signed(change, 4)} (counts from {LEAST:g}); effective rank {_rank_shown(first)} → {_rank_shown(other)}"
    )
    if other.difference is not None and not other.difference.paired and word.word in ("more spread", "more condensed"):
        return _other_windows(first, other, seen)
    a, b = other.name, first.name
    key, severity, title, why = {
        "more condensed": (
            "more-condensed",
            "warning",
            f"{a} is more condensed than {b}",
            "Its tokens point more alike. That is no defect by itself: read the quality beside it.",
        ),
        "more spread": (
            "less-condensed",
            "info",
            f"{a} is less condensed than {b}",
            "Its tokens point less alike. That is no gain by itself: read the quality beside it.",
        ),
        "smaller than what counts": (
            "too-small-to-count",
            "good",
            f"{a} and {b} differ by less than what counts",
            f"The whole interval lies within ±{LEAST:g}, the smallest difference that counts.",
        ),
        "inconclusive": (
            "inconclusive",
            "info",
            f"Inconclusive: whether {a} or {b} is more condensed is open",
            open_because(change, word),
        ),
    }[word.word]
    more = f"condense compare {quoted_id(first)} {quoted_id(other)} --num-texts {4 * other.corpus.texts}"
    step = more if word.word == "inconclusive" else analyze_again(other)
    return Finding(key, _severity(severity), title, seen, why, step, CONVENTION)


def _severity(name: str) -> Severity:
    known: dict[str, Severity] = {"severe": "severe", "warning": "warning", "good": "good"}
    return known.get(name, "info")


def _other_windows(first: Member, other: Member, seen: str) -> Finding:
    """A clear difference between numbers measured on different tokens: no model is called more condensed."""
    higher = word_of(other, "mean_cosine").word == "more condensed"
    return Finding(
        "other-windows",
        "info",
        f"{other.name} reads {'higher' if higher else 'lower'} than {first.name}, each on windows of its own",
        seen,
        "Another tokenizer cuts the text into other tokens and other windows, and both move a mean cosine: this number "
        "does not say which model is more condensed. Bits per byte compare.",
        analyze_again(other),
        CONVENTION,
    )


def _three_dimensions(other: Member) -> list[Finding]:
    """Whether what changed is more than three coordinates."""
    whole, rest = word_of(other, "mean_cosine").word, word_of(other, WITHOUT_TOP).word
    moved = ("more spread", "more condensed")
    if change_of(other, WITHOUT_TOP).value is None or not (whole in moved or rest in moved):
        return []
    if whole == rest:
        key, title = "cone-moved", "The difference stays without the top three dimensions"
    elif rest in moved:
        key, title = "cone-moved", f"Without each text’s top three dimensions {other.name} is {rest}"
    elif rest == "smaller than what counts":
        key, title = "three-dimensions-moved", "The difference is made by each text’s top three dimensions"
    else:
        key, title = "three-dimensions-unclear", "Whether more than the top three dimensions moved is not clear"
    return [
        Finding(
            key,
            "info",
            title,
            f"deep mean cosine {signed(change_of(other, 'mean_cosine'), 4)}, without each text’s top three dimensions "
            f"{signed(change_of(other, WITHOUT_TOP), 4)} (counts from {LEAST:g})",
            "A few coordinates can make most of a cosine: what stays without them is the cone itself.",
            analyze_again(other),
            "Timkey & van Schijndel 2021, arXiv:2109.04404",
        )
    ]


_QUALITY: dict[str, tuple[str, Severity, str]] = {
    "improved": ("quality-improved", "good", "It predicts the texts better"),
    "held": ("quality-held", "good", "It predicts the texts as well"),
    "worse": ("quality-lost", "warning", "It predicts the texts worse"),
    "not shown to be held": ("quality-unclear", "info", "It is not shown that it predicts the texts as well"),
}


def _quality_change(first: Member, other: Member) -> list[Finding]:
    """Quality on the same texts."""
    word = word_of(other, "quality")
    if word.word not in _QUALITY or other.difference is None or word.least is None:
        return []
    key, severity, title = _QUALITY[word.word]
    base, new = (getattr(member.quality, word.key) for member in (first, other))
    return [
        Finding(
            key,
            severity,
            title,
            f"{UNITS[word.key]} {number(base, 3)} → {number(new, 3)}, difference "
            f"{signed(other.difference.quality[word.key], 4)}",
            f"Tolerated is a rise of {word.least:.4f}, {TOLERANCE:.1%} of the first. Geometry and quality can each "
            "change alone.",
            analyze_again(other),
            CONVENTION,
        )
    ]


# --- several -----------------------------------------------------------------------------------------------


def _family(members: Sequence[Member]) -> Finding:
    known = sorted(
        (member for member in members if member.deep["mean_cosine"].value is not None),
        key=lambda member: (member.deep["mean_cosine"].value or 0.0, member.name),
    )
    if not known:
        return Finding(
            "undefined",
            "warning",
            "No member has a mean cosine",
            "undefined in all",
            "there is nothing to compare",
            analyze_again(members[0]),
            CONVENTION,
        )
    least, most, others = known[0], known[-1], members[1:]
    words = [_family_word(member) for member in others]
    moved = [member for member, word in zip(others, words, strict=True) if word in ("more condensed", "more spread")]
    furthest = max(moved, key=lambda member: abs(change_of(member, "mean_cosine").value or 0.0), default=members[-1])
    counts = "; ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    lost = [member for member in others if word_of(member, "quality").word == "worse"]
    alpha = word_of(others[0], "mean_cosine").alpha
    return Finding(
        "range",
        "warning" if "more condensed" in words or lost else "info",
        _family_title(members[0], others),
        f"deep mean cosine {number(least.deep['mean_cosine'], 3)} ({least.name}) to "
        f"{number(most.deep['mean_cosine'], 3)} ({most.name}); against {members[0].name}: {counts}",
        f"A difference counts from {LEAST:g}, and its interval has to exclude 0 at {alpha:.2g}, .05 over the number of "
        "differences. It is no defect or gain by itself: read the quality beside it.",
        analyze_again(furthest),
        CONVENTION,
    )


def _family_word(member: Member) -> str:
    """The word of a member against the first; none of a direction where it was read on windows of its own."""
    word = word_of(member, "mean_cosine").word
    unpaired = member.difference is not None and not member.difference.paired
    return "on windows of its own" if unpaired else word


def _family_title(first: Member, others: Sequence[Member]) -> str:
    """Which members differ from the first and in which direction; where none does, what else changed."""
    words = {member.name: _family_word(member) for member in others}
    up, down = ([n for n, word in words.items() if word == way] for way in ("more condensed", "more spread"))
    if up and down:
        title = f"Against {first.name}, {len(up)} of {len(words)} are more condensed and {len(down)} less"
        return f"{title}{_other_changes(others)}"
    if not up and not down:
        small = set(words.values()) == {"smaller than what counts"}
        start = (
            "All differ by less than what counts from" if small else "None is shown to be more or less condensed than"
        )
        return f"{start} {first.name}{_other_changes(others)}"
    way, moved = ("more", up) if up else ("less", down)
    who = moved[0] + " is" if len(moved) == 1 else f"{len(moved)} of {len(words)} are"
    rest = [word for word in words.values() if word not in ("more condensed", "more spread")]
    added = ", the others differ by less than what counts" if set(rest) == {"smaller than what counts"} else ""
    title = f"{who} {way} condensed than {first.name}{added if len(moved) == 1 else ''}"
    return f"{title}{_other_changes(others, moved[0] if len(moved) == 1 and not added else '')}"


def _other_changes(others: Sequence[Member], subject: str = "") -> str:
    """What else changed: quality, the cone without three dimensions; subject: the member the sentence is about."""
    lost = [member.name for member in others if word_of(member, "quality").word == "worse"]
    rose = [
        member.name
        for member in others
        if word_of(member, WITHOUT_TOP).word == "more condensed" and _family_word(member) != "more condensed"
    ]
    changes = (
        (lost, f"predict{'s' * (len(lost) == 1)} the texts worse"),
        (rose, f"{'is' if len(rose) == 1 else 'are'} more condensed without each text’s top three dimensions"),
    )
    parts = [words if who == [subject] else f"{_listed_names(who)} {words}" for who, words in changes if who]
    return f", but {' and '.join(parts)}" if parts else ""


def _listed_names(names: Sequence[str]) -> str:
    shown = [*names[:3], f"{len(names) - 3} more"] if len(names) > 3 else names
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _size_finding(members: Sequence[Member]) -> list[Finding]:
    """The published statement about size, with the result here."""
    own = [m for m in members if m.model.architecture == members[0].model.architecture]
    sized = sorted((m for m in own if m.trend.spearman.rho is not None), key=lambda m: (m.model.parameters, m.name))
    if len({member.model.parameters for member in sized}) < 2:
        return []
    small, large = sized[0], sized[-1]
    a, b = small.trend.spearman.rho or 0.0, large.trend.spearman.rho or 0.0
    word = "falls" if b < a - 0.1 else "rises" if b > a + 0.1 else "hardly changes"
    points = ", ".join(f"{_size_of_model(m)} {m.trend.spearman.rho or 0.0:+.2f}" for m in sized[:12])
    published = "As published: within" if word == "falls" else "Published is the opposite: within"
    return [
        Finding(
            "size",
            "info",
            f"From the smallest to the largest the trend over depth {word}",
            f"Spearman rho of mean cosine with depth by parameters: {points}" + (" …" if len(sized) > 12 else ""),
            f"{published} a family larger models condense less with depth. A trend is no severity: random weights "
            "score +1, and few blocks make a coarse rank correlation.",
            analyze_again(large),
            LIU,
        )
    ]


def _scope_finding() -> Finding:
    return Finding(
        "scope",
        "info",
        "This orders geometry, not models",
        RANKS,
        "Compare within a family, at one tokenizer and one corpus; for what a model can do, evaluate it.",
        "condense compare --help",
        "Rudman & Eickhoff 2024, arXiv:2305.19358",
    )


# --- numbers and names -------------------------------------------------------------------------------------


def change_of(member: Member, key: str) -> Estimate:
    """A member − the first in a deep metric; undefined for the first."""
    return member.difference.deep.get(key, Estimate(None)) if member.difference else Estimate(None)


def word_of(member: Member, key: str) -> Word:
    """The word for the difference of a member to the first; undecided for the first."""
    return member.difference.words.get(key, UNDECIDED) if member.difference else UNDECIDED


def analyze_again(member: Member) -> str:
    """The command that analyses one member."""
    commit = member.model.revision
    revision = f" --revision {shlex.quote(commit)}" if commit else ""
    return f"condense analyze {shlex.quote(member.model.id)}{revision} --random-twin -o report/"


def _size_of_model(member: Member) -> str:
    count = member.model.parameters
    if count >= 1e9:
        return f"{count / 1e9:.3g} B"
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count:,}"


def quoted_id(member: Member) -> str:
    """The id of a member's model, quoted for a shell."""
    return shlex.quote(member.model.id)


def _rank_shown(member: Member) -> str:
    rank = member.deep["effective_rank"]
    share = "" if rank.null_ratio is None else f" ({100 * rank.null_ratio:.0f} % of random)"
    return number(rank, 1) + share


def number(estimate: Estimate, digits: int) -> str:
    """A value with fixed digits."""
    return "undefined" if estimate.value is None else f"{estimate.value:.{digits}f}"


def signed(diff: Estimate, digits: int = 4) -> str:
    """A difference with its sign and interval, in plain characters."""
    if diff.value is None:
        return "undefined"
    interval = "" if diff.low is None or diff.high is None else f" [{diff.low:+.{digits}f}, {diff.high:+.{digits}f}]"
    return f"{diff.value:+.{digits}f}{interval}"
