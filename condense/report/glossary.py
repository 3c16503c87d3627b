"""What a page says beside its charts: title, the three axes, quality, provenance, glossary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from condense.metrics import METRICS, QUALITY, Metric

if TYPE_CHECKING:
    pass


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
