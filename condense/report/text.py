"""How numbers and levels are written on every page: one place for formats and words."""

from __future__ import annotations

import re

from condense.records.base import Estimate
from condense.records.diagnosis import CorpusInfo, Diagnosis

_MINUS = re.compile(r"(?<![\w.)\]/-])-(?=[\d.])")


LEVELS = {
    "severe": "✖ SEVERE", "condensed": "▲ CONDENSED", "watch": "◆ WATCH", "ok": "● OK", "undefined": "○ UNDEFINED",
}  # fmt: skip
SEVERITIES = {"severe": "✖", "warning": "▲", "info": "◆", "good": "●"}
DASH = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, large ones with fewer; a dash where it is undefined."""
    if value is None:
        return DASH
    if abs(value) >= 10_000:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def in_words(seconds: float | None) -> str:
    """A time in seconds, minutes or hours."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(of: Estimate, digits: int = 3) -> str:
    """A value with its interval, or the reason why there is none."""
    if of.value is None:
        return f"not defined ({of.reason})" if of.reason else "not defined"
    if of.low is None or of.high is None:
        return number(of.value, digits)
    return f"{number(of.value, digits)} [{number(of.low, digits)}, {number(of.high, digits)}]"


def subject(diagnosis: Diagnosis) -> str:
    """What was measured, in one line."""
    model, corpus = diagnosis.model, diagnosis.corpus
    size = f"{model.parameters / 1e6:.0f} M parameters" if model.parameters >= 1e6 else f"{model.parameters} parameters"
    source = f" from {model.source_format}" if model.source_format not in ("safetensors", "") else ""
    return (
        f"{model.architecture}, {size}, {model.blocks} blocks of width {model.hidden_size}{source}; "
        f"{corpus_line(corpus)}; {model.dtype}"
    )


def corpus_line(corpus: CorpusInfo) -> str:
    """What was measured on: how many windows of how many documents, how long, of what, and how they begin."""
    few = f" ({corpus.requested} asked for)" if corpus.texts < corpus.requested else ""
    documents = len(set(corpus.documents))
    unit = f"{corpus.texts} window{'s' * (corpus.texts != 1)}{few}"
    if documents:
        unit += f" from {documents} document{'s' * (documents != 1)}"
    line = f"{unit} × {corpus.length} tokens of {corpus.source}"
    if corpus.bos is not None:
        line += ", each behind a BOS" if corpus.bos else ", without a BOS"
    if corpus.dropped:
        line += f"; {corpus.dropped} repeated document{'s' * (corpus.dropped != 1)} left out"
    return "; ".join([line, *corpus.notes])


def quality_lines(diagnosis: Diagnosis) -> list[str]:
    """Loss, perplexity and bits per byte with intervals, or one line with the reason."""
    quality = diagnosis.quality
    if quality.loss.value is None:
        return [f"quality not measured: {quality.loss.reason}"]
    lines = [
        f"{quality.label}: {estimate(quality.loss)} nats per token",
        f"perplexity: {estimate(quality.perplexity, 2)}",
    ]
    bits = quality.bits_per_byte
    return [
        *lines,
        f"bits per byte: {estimate(bits)}" if bits.value is not None else f"bits per byte: none ({bits.reason})",
    ]


def signed(of: Estimate, digits: int = 3) -> str:
    """A difference with its sign and interval; a dash where it is undefined."""
    if of.value is None:
        return DASH
    if of.low is None or of.high is None:
        return f"{of.value:+.{digits}f}"
    return f"{of.value:+.{digits}f} [{of.low:+.{digits}f}, {of.high:+.{digits}f}]"


def typeset(text: str) -> str:
    """Text whose negative numbers carry a real minus sign; hyphens and options stay."""
    return _MINUS.sub("−", text)


def difference(of: Estimate, digits: int = 3) -> str:
    """A difference with its sign and its interval, or a dash."""
    if of.value is None:
        return "–"
    if of.low is None or of.high is None:
        return typeset(f"{of.value:+.{digits}f}")
    return typeset(f"{of.value:+.{digits}f} [{of.low:+.{digits}f}, {of.high:+.{digits}f}]")


def shortened(name: str, most: int = 40) -> str:
    """A name that is not too long: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def parameter_count(count: int) -> str:
    """A number of parameters: 135 M, 1.5 B, 66 k."""
    for unit, word in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:.3g}\u202f{word}"
    return str(count)
