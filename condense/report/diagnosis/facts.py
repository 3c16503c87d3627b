"""What a page says beside its charts: title, the three axes, quality, provenance, glossary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condense.metrics import METRICS, QUALITY, Metric
from condense.records.diagnosis import Diagnosis, Estimate
from condense.report.diagnosis.figures import NOTHING, StackView
from condense.report.text import number, percent

AXES = {
    "cone": "How narrow is the cone of token directions?",
    "rank": "How many directions are in use?",
    "attribution": "What makes it so?",
}
LEVEL_WORDS = {
    "ok": "OK", "watch": "Watch", "condensed": "Condensed", "severe": "Severe", "undefined": "No verdict",
}  # fmt: skip


@dataclass(frozen=True)
class Band:
    """One word of a scale and where it begins and ends, in percent of the scale."""

    word: str
    start: float
    stop: float


@dataclass(frozen=True)
class AxisCard:
    """One axis of the verdict: its word, its number, where that lies among the bands."""

    key: str
    word: str
    value: str
    unit: str
    interval: str
    mark: float | None = None
    low: float | None = None
    high: float | None = None
    twin: float | None = None
    twin_text: str = ""
    bands: tuple[Band, ...] = ()
    edges: tuple[tuple[str, float], ...] = ()
    rows: tuple[tuple[str, str, float, bool], ...] = ()


def title(diagnosis: Diagnosis) -> str:
    """The model's id; of a long path only its last part (the whole stands below and in the provenance)."""
    name = diagnosis.model.id
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return last if len(name) > 48 and last else name


def axes(view: StackView) -> list[AxisCard]:
    """The three axes of a stack's verdict."""
    return [_cone(view), _rank(view), _attribution(view)]


def _cone(view: StackView) -> AxisCard:
    deep, bands = view.deep.get("mean_cosine", NOTHING), view.verdict.bands
    edges = [bands[k] for k in ("cone_moderate", "cone_high", "cone_severe") if k in bands]
    twin = view.twin_deep.get("mean_cosine", NOTHING).value
    return AxisCard(
        "cone", view.verdict.cone, number(deep.value, 2), "mean cosine", _interval(deep, 2), _place(deep.value),
        _place(deep.low), _place(deep.high), _place(twin), number(twin, 2),
        _bands(("low", "moderate", "high", "severe"), edges), _edges(edges),
    )  # fmt: skip


def _rank(view: StackView) -> AxisCard:
    deep, bands = view.deep.get("effective_rank", NOTHING), view.verdict.bands
    edges = [bands[k] for k in ("rank_low", "rank_reduced") if k in bands]
    null = deep.null or 0.0
    ends = [None if v is None or not null else v / null for v in (deep.low, deep.high)]
    twin = view.twin_deep.get("effective_rank", NOTHING).null_ratio
    interval = f"{number(deep.value, 0)} of {number(null, 0)} directions" if deep.value is not None and null else ""
    if interval and deep.low is not None:
        interval = (
            f"{number(deep.value, 0)} ({number(deep.low, 0)} to {number(deep.high, 0)}) of {number(null, 0)} directions"
        )
    return AxisCard(
        "rank", view.verdict.rank, percent(deep.null_ratio), "of random directions", interval, _place(deep.null_ratio),
        _place(ends[0]), _place(ends[1]), _place(twin), percent(twin),
        _bands(("low", "reduced", "intact"), edges), _edges(edges),
    )  # fmt: skip


def _attribution(view: StackView) -> AxisCard:
    named = (
        ("mean_cosine", "as measured", True),
        ("mean_cosine_without_top_dimensions", "without the top 3 dimensions", False),
        ("cross_text_cosine", "between different texts", False),
        ("mean_cosine_with_sink", "with the sink token kept", False),
    )
    rows = []
    for key, words, first in named:
        value = view.deep.get(key, NOTHING).value
        rows.append((words, number(value, 2), _place(value) or 0.0, first))
    return AxisCard("attribution", view.verdict.attribution, "", "", "", rows=tuple(rows))


def _interval(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"95 % interval {number(estimate.low, digits)} to {number(estimate.high, digits)}"


def _place(value: float | None) -> float | None:
    """A value between 0 and 1 in percent of the scale."""
    return None if value is None else round(100 * min(1.0, max(0.0, value)), 2)


def _bands(words: tuple[str, ...], edges: list[float]) -> tuple[Band, ...]:
    ends = [0.0, *edges, 1.0]
    if len(ends) != len(words) + 1:
        return ()
    return tuple(Band(word, 100 * a, 100 * b) for word, a, b in zip(words, ends[:-1], ends[1:], strict=True))


def _edges(edges: list[float]) -> tuple[tuple[str, float], ...]:
    return tuple((f"{edge:.2f}".lstrip("0"), 100 * edge) for edge in edges)


def quality(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """Loss, perplexity and bits per byte: name, number, unit, interval, meaning or the reason of its absence."""
    rows = []
    for key, digits in (("loss", 2), ("perplexity", 1), ("bits_per_byte", 2)):
        of: Estimate = getattr(diagnosis.quality, key)
        metric = QUALITY[key]
        rows.append(
            {
                "title": diagnosis.quality.label if key == "loss" else metric.title,
                "value": "" if of.value is None else number(of.value, digits),
                "unit": metric.unit, "interval": _interval(of, digits), "meaning": metric.meaning,
                "reason": of.reason or "not measured",
            }
        )  # fmt: skip
    return rows


# --- provenance ----------------------------------------------------------------------------------------


def provenance(diagnosis: Diagnosis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is needed to repeat or to doubt the measurement: groups of (name, value)."""
    from dataclasses import asdict

    corpus = {k: v for k, v in asdict(diagnosis.corpus).items() if k != "windows"}
    run = {
        "command": diagnosis.command,
        "created": diagnosis.created,
        "condense": diagnosis.condense,
        "schema": diagnosis.schema,
    }
    groups: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("Run", run), ("Model", asdict(diagnosis.model)), ("Corpus", corpus), ("Protocol", diagnosis.protocol),
        ("Environment", diagnosis.environment), ("Timing", diagnosis.timing),
    )  # fmt: skip
    return [
        (name, [(k.replace("_", " "), written(v)) for k, v in values.items() if v not in (None, (), [])])
        for name, values in groups
    ]


def written(value: Any) -> str:
    """A value of a record as the provenance shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, tuple | list):
        return ", ".join(map(written, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {written(item)}" for key, item in value.items())
    return str(value)


# --- glossary ------------------------------------------------------------------------------------------


def term(key: str, title: str, meaning: str, source: str, formula: str = "") -> Metric:
    """A term of the glossary that is not a metric."""
    return Metric(key, title, "", None, None, None, meaning, formula, source)


_TERMS = (
    term("window", "text, window",
         "A run of exactly max-length tokens of one document. Documents are never glued together.",
         "convention of condense"),
    term("deepest-half", "deepest half",
         "The later half of the blocks. A deep number is the median over them; the verdict reads only these.",
         "convention of condense", "blocks ⌊L/2⌋+1 to L"),
    term("attention-sink", "attention sink",
         "A token, usually the first, that attention heads look at when they have nothing to look at. Its state is "
         "huge and would hide all others, so position 0 and special tokens are left out of every primary number.",
         "Xiao et al. 2024, arXiv:2309.17453; Sun et al. 2024, arXiv:2402.17762"),
    term("rogue-dimension", "rogue dimension",
         "A coordinate with a large offset common to all tokens, which makes every cosine large although the other "
         "coordinates differ.", "Timkey & van Schijndel 2021, arXiv:2109.04404"),
    term("gaussian-null", "Gaussian null",
         "The same number for random Gaussian rows of the same shape: what no structure at all would give. A rank is "
         "read against it, never alone.", "convention of condense"),
    term("random-twin", "random twin",
         "The same architecture with random weights. What training added is the difference to it.",
         "convention of condense"),
    term("interval", "95 % interval",
         "A t interval over the texts (bootstrap over the texts for deep numbers): how far the number may move with "
         "other texts of the same kind. Below 8 texts it says little.", "Student 1908; Efron 1979"),
)  # fmt: skip


def _groups() -> list[tuple[str, list[Metric]]]:
    cosine = [m for key, m in METRICS.items() if "cosine" in key or key == "top_dimension_share"]
    rank = [m for key, m in METRICS.items() if "rank" in key or key == "participation_ratio"]
    rest = [m for m in METRICS.values() if m not in cosine and m not in rank]
    return [
        ("Terms", list(_TERMS)), ("Directions and cosines", cosine), ("Ranks", rank),
        ("Variance, norms and sinks", rest), ("Quality", list(QUALITY.values())),
    ]  # fmt: skip


GLOSSARY = _groups()
