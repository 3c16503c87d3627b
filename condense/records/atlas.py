"""What the atlas keeps of a model: its curves over depth and its deep numbers, in a few kilobytes. Standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from condense.metrics import METRICS
from condense.records.base import Estimate, Saved
from condense.records.diagnosis import CorpusInfo, Diagnosis, ModelInfo

ATLAS_SCHEMA = "condense.atlas/1"
PLACED_BY = "mean_cosine"
"""The deep number that a model is placed by; it keeps its value per window, for an interval of the difference."""
_DIGITS = 6


@dataclass(frozen=True)
class AtlasModel(Saved):
    """One model of the atlas: who it is, how it was measured, its curves from the embedding to the last block.

    `source` is where its weights came from, `licence` theirs; `depth` is l/L of each point of `curves`. `corpus` has no
    names of texts.
    """

    SCHEMA: ClassVar[str] = ATLAS_SCHEMA

    schema: str
    condense: str
    name: str
    source: str
    licence: str | None
    model: ModelInfo
    corpus: CorpusInfo
    protocol: Mapping[str, Any]
    depth: tuple[float, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    deep: Mapping[str, Estimate]

    @classmethod
    def of(cls, run: Diagnosis, name: str, *, source: str = "", licence: str | None = None) -> Self:
        """The entry of a diagnosis; of an encoder–decoder model it holds the main stack."""
        sites = [site for site in run.sites if site.stack == run.main_stack and site.site != "output"]
        keys = [metric.key for metric in METRICS.values() if metric.level in (1, 2)]
        return cls(
            schema=ATLAS_SCHEMA,
            condense=run.condense,
            name=name,
            source=source,
            licence=licence,
            model=replace(run.model, id=name, notes=()),
            corpus=replace(run.corpus, windows=(), notes=()),
            protocol=run.protocol,
            depth=tuple(site.depth for site in sites),
            curves={key: tuple(_short(site.metrics[key].value) for site in sites) for key in keys},
            deep={key: _brief(run.deep[key], whole=key == PLACED_BY) for key in keys},
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the curves as plain rows: depth and every number there."""
        return [
            {"depth": depth, **{key: curve[index] for key, curve in self.curves.items()}}
            for index, depth in enumerate(self.depth)
        ]

    def at(self, key: str, depth: float) -> float | None:
        """A curve at a relative depth in [0, 1], on the line between the sites on both sides; None where undefined."""
        curve = self.curves.get(key, ())
        if len(curve) != len(self.depth) or not curve:
            return None
        after = next((index for index, place in enumerate(self.depth) if place >= depth), len(curve) - 1)
        before = max(0, after - 1) if self.depth[after] > depth else after
        first, last = curve[before], curve[after]
        if first is None or last is None:
            return None
        span = self.depth[after] - self.depth[before]
        share = (depth - self.depth[before]) / span if span else 0.0
        return first + share * (last - first)


def _brief(estimate: Estimate, *, whole: bool) -> Estimate:
    """An estimate in short numbers, with its values per window only where `whole`."""
    values = estimate.per_text if whole else None
    return Estimate(
        _short(estimate.value),
        _short(estimate.low),
        _short(estimate.high),
        per_text=None if values is None else tuple(map(_short, values)),
        null=_short(estimate.null),
        null_ratio=_short(estimate.null_ratio),
        reason=estimate.reason,
    )


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
