"""How numbers, levels and findings are written: one place for every format, shared by all surfaces.

Numbers carry a plain hyphen here, as a terminal and Markdown want it; `typeset` gives a page its real minus signs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from condense.records.base import Estimate, Finding
from condense.records.diagnosis import CorpusInfo, Diagnosis, ModelInfo, Quality
from condense.report.escape import for_code, for_comment, for_markdown

LEVELS = {
    "severe": "✖ SEVERE",
    "condensed": "▲ CONDENSED",
    "watch": "◆ WATCH",
    "ok": "● OK",
    "undefined": "○ UNDEFINED",
}
LEVEL_WORDS = {
    "ok": "OK",
    "watch": "Watch",
    "condensed": "Condensed",
    "severe": "Severe",
    "undefined": "No verdict",
}
TWIN_WORDS = {
    "more": "more condensed than its random twin",
    "less": "less condensed than its random twin",
    "not distinguishable": "not distinguishable from its random twin",
}
SEVERITIES = {"severe": "✖", "warning": "▲", "info": "◆", "good": "●"}
LAYERS = {
    "all": "all layers",
    "late": "the deepest half of the layers",
    "early": "the first half of the layers",
    "last": "the last layer",
}
FEW_DOCUMENTS = {1: "other windows of this document; other documents not covered", 2: "2 documents only"}
"""What the intervals of a run on so many documents cover, as `intervals.coverage_note` says it (without numpy)."""
DASH = "–"
NOTHING = Estimate(None)
WITHOUT_TOP = "mean_cosine_without_top_dimensions"
_MINUS = re.compile(r"(?<![\w.)\]/-])-(?=[\d.])")
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMB]\b|[MG]B\b))")


# --- numbers -------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, large ones with fewer; a dash where it is undefined."""
    if value is None:
        return DASH
    if abs(value) >= 10_000:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign; a dash where it is undefined."""
    return DASH if value is None else f"{value:+.{digits}f}"


def interval(quantity: Estimate, digits: int = 3, *, signs: bool = False) -> str:
    """The interval of an estimate, `0.44 to 0.46`; with their signs for a difference; nothing where there is none."""
    if quantity.low is None or quantity.high is None:
        return ""
    write = signed if signs else number
    return f"{write(quantity.low, digits)} to {write(quantity.high, digits)}"


def estimate(quantity: Estimate, digits: int = 3) -> str:
    """A value with its interval, or the reason why there is none."""
    if quantity.value is None:
        return f"not defined ({quantity.reason})" if quantity.reason else "not defined"
    bounds = interval(quantity, digits).replace(" to ", ", ")
    return number(quantity.value, digits) + (f" [{bounds}]" if bounds else "")


def difference(quantity: Estimate, digits: int = 3) -> str:
    """A difference with its sign and interval; a dash where it is undefined."""
    bounds = interval(quantity, digits, signs=True).replace(" to ", ", ")
    return signed(quantity.value, digits) + (f" [{bounds}]" if bounds and quantity.value is not None else "")


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def times(ratio: float | None, digits: int = 2) -> str:
    """A ratio."""
    return DASH if ratio is None else f"× {ratio:.{digits}f}"


def parameter_count(count: int | None) -> str:
    """A number of parameters: 135 M, 1.5 B, 66 k."""
    if count is None:
        return DASH
    for unit, word in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.3g} {word}"
    return str(count)


def thousands(count: int) -> str:
    """A whole number with its thousands set apart."""
    return f"{count:,}".replace(",", "\u202f")


def in_words(seconds: float | None) -> str:
    """A time in seconds, minutes or hours."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def written(value: Any) -> str:
    """A value of a record as the provenance shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return thousands(value)
    if isinstance(value, tuple | list):
        return ", ".join(map(written, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {written(item)}" for key, item in value.items())
    return str(value)


# --- words ---------------------------------------------------------------------------------------------


def typeset(text: str) -> str:
    """Text with real minus signs in its numbers, and no line break before a unit; hyphens and options stay."""
    return _UNIT.sub("\u202f", _MINUS.sub("−", text))


def sentence(text: str) -> str:
    """Text with a capital at its start and a stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ":")) else ".")


def verdict_words(name: str) -> str:
    """The id of a verdict as words: `Dispersed at a cost`."""
    return name.replace("-", " ").capitalize()


def plural(count: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(name: str, most: int = 40) -> str:
    """A name that is not too long: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def breakable(name: str) -> list[str]:
    """The parts of a name between which a line may end: after a colon or an @."""
    return [part for part in re.split(r"(?<=[:@])", name) if part]


def model_name(name: str) -> str:
    """A model's id; of a path or a very long name only its last part."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last if last and (len(name) > 48 or name[:1] in "/.~") else name


def corpus_line(corpus: CorpusInfo) -> str:
    """What was measured on: how many windows of how many documents, how long, of what, and how they begin."""
    if corpus.is_absent:
        return "the weights alone, no text"
    few = f" ({corpus.requested} asked for)" if corpus.texts < corpus.requested else ""
    documents = len(set(corpus.documents))
    unit = f"{plural(corpus.texts, 'window')}{few}" + (f" from {plural(documents, 'document')}" if documents else "")
    line = f"{unit} × {corpus.length} tokens of {corpus.source}"
    if corpus.bos is not None:
        line += ", each behind a BOS" if corpus.bos else ", without a BOS"
    if corpus.dropped:
        line += f"; {plural(corpus.dropped, 'repeated document')} left out"
    return "; ".join([line, *corpus.notes])


def model_line(model: ModelInfo) -> str:
    """What a model is: architecture, size, shape, and the format it was read from."""
    source = f" from {model.source_format}" if model.source_format not in ("safetensors", "") else ""
    size = f"{parameter_count(model.parameters)} parameters"
    return f"{model.architecture}, {size}, {model.blocks} blocks of width {model.hidden_size}{source}"


def subject(diagnosis: Diagnosis) -> str:
    """What was measured, in one line."""
    line = f"{model_line(diagnosis.model)}; {corpus_line(diagnosis.corpus)}; {diagnosis.model.dtype}"
    few = len(diagnosis.corpus.documents) > 1 and FEW_DOCUMENTS.get(len(set(diagnosis.corpus.documents)))
    return "; ".join([line, *([f"intervals: {few}"] if few else []), *diagnosis.model.notes])


def quality_of(quality: Quality, key: str) -> Estimate:
    """One of the numbers of quality by its key."""
    found: Estimate = getattr(quality, key)
    return found


def quality_lines(diagnosis: Diagnosis) -> list[str]:
    """Loss, perplexity and bits per byte with intervals, or one line with the reason."""
    quality = diagnosis.quality
    if quality.loss.value is None:
        return [f"quality not measured: {quality.loss.reason}"]
    bits = quality.bits_per_byte
    return [
        f"{quality.label}: {estimate(quality.loss)} nats per token",
        f"perplexity: {estimate(quality.perplexity, 2)}",
        f"bits per byte: {estimate(bits) if bits.value is not None else f'none ({bits.reason})'}",
    ]


# --- Markdown ------------------------------------------------------------------------------------------


def markdown_head(version: str, title: str) -> list[str]:
    """The first lines of every Markdown report: who wrote the file, and its heading."""
    return [f"<!-- condense {for_comment(version)} -->", f"# condense: {for_markdown(title)}", ""]


def markdown_findings(findings: Iterable[Finding]) -> list[str]:
    """A list entry per finding: what it is, what was seen, why it matters, its source and the next command."""
    lines = []
    for finding in findings:
        title, seen, why, source = map(for_markdown, (finding.title, finding.seen, finding.why, finding.source))
        lines.append(f"- **{title}**: {seen.rstrip('.')}. {why.rstrip('.')}. Source: {source.rstrip('.')}.")
        if finding.next:
            lines.append(f"  Next: `{for_code(finding.next)}`")
    return [*lines, ""] if lines else []


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Lines that are shown when their summary is selected."""
    return [f"<details><summary>{for_markdown(summary)}</summary>", "", *lines, "", "</details>", ""]
