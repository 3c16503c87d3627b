"""What is dispersed, how strongly and for how long: the settings of the penalty, checked when they are made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condense.dispersion.variants import PENALTIES
from condense.records.plans import COEFFICIENT, Plan
from condense.records.schedules import schedule_factor

GIVEN_BY_DISPERSER = ("states", "mask", "step", "labels")
_RANGES = ("all", "late", "early", "last")


@dataclass(frozen=True)
class DispersionConfig:
    """What is dispersed and how strongly; the defaults are those of `condense treat` (`Plan`).

    coefficient   multiplies the mean over sites of the loss; 0 measures without pushing, below 0 condenses.
    loss          a name in `condense.dispersion.variants.PENALTIES`, with its `constants` (`{"tau": 0.5}`).
    layers        `all` blocks, the `late` (deepest) or `early` half, the `last` one, or numbers 1..L
                  ("3,7,-1" or a sequence; -1 is the last). In an encoder-decoder: of each stack.
    paper_sites   replace block L by the output after the final norm, as in Liu et al. 2026.
    max_tokens    at most this many tokens of each sequence (>= 2), the same positions everywhere; 0 for all.
    seed          of the choice of positions.
    special_ids   token ids left out; None takes those that the model's config names.
    schedule      `constant`, `linear[:SHARE]` or `cosine[:SHARE]`: the coefficient falls to 0 at SHARE of `steps`
                  (default: at the end). From then on the hooks are off.
    steps         optimizer steps in all, for a schedule; Hugging Face's Trainer sets it.
    """

    coefficient: float = COEFFICIENT
    loss: str = Plan.loss
    layers: str | Sequence[int] = Plan.layers
    paper_sites: bool = Plan.paper_sites
    max_tokens: int = Plan.max_tokens
    seed: int = Plan.seed
    special_ids: Sequence[int] | None = None
    constants: Mapping[str, float] | None = None
    schedule: str = Plan.coefficient_schedule
    steps: int | None = None

    def __post_init__(self) -> None:
        """ValueError for a value out of range, an unknown loss or a constant that the loss does not have."""
        if not abs(self.coefficient) < float("inf"):
            raise ValueError(f"coefficient must be finite, got {self.coefficient}")
        if self.loss not in PENALTIES:
            raise ValueError(f"loss must be one of {', '.join(PENALTIES)}, got {self.loss!r}")
        if self.max_tokens < 0 or self.max_tokens == 1:
            raise ValueError(f"max_tokens must be 0 (all) or at least 2, got {self.max_tokens}")
        schedule_factor(self.schedule, 0.0)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        known = [n for n in inspect.signature(PENALTIES[self.loss]).parameters if n not in GIVEN_BY_DISPERSER]
        for name in self.constants or ():
            if name not in known:
                raise ValueError(f"{self.loss} has no constant {name!r}, only {', '.join(known) or 'none at all'}")
        if self.layers not in _RANGES:
            _numbers(self.layers)

    def factor_at(self, step: int) -> float:
        """What the schedule multiplies the coefficient by at a step, in [0, 1]. ValueError without `steps`."""
        if self.schedule == "constant":
            return 1.0
        if self.steps is None:
            raise ValueError(f"the schedule {self.schedule} needs steps=, the number of optimizer steps in all")
        return schedule_factor(self.schedule, step / self.steps)

    def coefficient_at(self, step: int) -> float:
        """The coefficient at a step, by the schedule. ValueError for a schedule without `steps`."""
        return self.coefficient * self.factor_at(step)

    def has_ended(self, step: int) -> bool:
        """Whether the schedule is through at a step, whatever the coefficient; a constant one never is."""
        return self.factor_at(step) == 0


def _numbers(layers: str | Sequence[int]) -> list[int]:
    try:
        numbers = [int(part) for part in (layers.split(",") if isinstance(layers, str) else layers)]
    except ValueError:
        numbers = []
    if not numbers or 0 in numbers:
        counted = " (blocks are counted from 1)" if 0 in numbers else ""
        raise ValueError(
            f"layers must be {', '.join(_RANGES)} or block numbers such as 3,7,-1, got {layers!r}{counted}"
        )
    return numbers


def chosen_blocks(layers: str | Sequence[int], blocks: int) -> list[int]:
    """Numbers 1..L, ascending, of the blocks that `layers` names in a stack of L. ValueError if there are none."""
    half = blocks // 2
    ranges = {"all": (1, blocks), "late": (half + 1, blocks), "early": (1, half), "last": (blocks, blocks)}
    if isinstance(layers, str) and layers in ranges:
        first, last = ranges[layers]
        numbers = set(range(first, last + 1))
    else:
        numbers = {n + blocks + 1 if n < 0 else n for n in _numbers(layers)}
    if not numbers or min(numbers) < 1 or max(numbers) > blocks:
        raise ValueError(f"layers {layers!r} names no block, or one that a stack of {blocks} does not have")
    return sorted(numbers)
