"""A model over windows to one reading per text: forward passes with everything reduced inside the hooks.

At no time are the states of more than one site kept. Eigenvalues of a text's Gram matrices are taken
together after its forward pass, one matrix per thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condense import geometry
from condense.capture import Site, Stack, run, watching
from condense.corpus import Windows
from condense.errors import RunError
from condense.geometry import Measurement
from condense.quality import Score, Scorer


@dataclass
class TextReading:
    """All measurements of one text, site by site in depth order, and its score."""

    index: int
    sites: list[Measurement] = field(default_factory=list)
    score: Score | None = None


def spectral_positions(keep: Tensor, count: int, seed: int, index: int) -> Tensor:
    """The kept positions that the spectral metrics of text `index` use: `count` of them, drawn once, in order."""
    kept = torch.nonzero(keep).flatten()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return kept[torch.randperm(len(kept), generator=generator)[:count]].sort().values


def kept_positions(special: Tensor) -> Tensor:
    """Tokens that count in primary numbers: neither position 0 nor a special token. (N, S) -> (N, S)."""
    keep = ~special
    keep[..., 0] = False
    return keep


@torch.inference_mode()
def read_texts(
    model: Any,
    stacks: tuple[Stack, ...],
    windows: Windows,
    scorer: Scorer,
    *,
    indices: list[int],
    batch_size: int,
    spectral_tokens: int,
    seed: int,
) -> Iterator[TextReading]:
    """Yield a reading for each text of `indices`, in order. RunError if states are not finite."""
    keep = kept_positions(windows.special)
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        ids = windows.ids[batch].to(_device(model))
        readings = [TextReading(index) for index in batch]
        positions = [spectral_positions(keep[i], spectral_tokens, seed, i) for i in batch]

        def receive(site: Site, states: Tensor, batch: list[int] = batch, readings: Any = readings,
                    positions: Any = positions, ids: Tensor = ids) -> None:  # fmt: skip
            for row, index in enumerate(batch):
                readings[row].sites.append(_measured(site, states[row], keep[index], positions[row], index))
                if site.name == "output" and scorer.head is not None and not scorer.reason:
                    special = windows.special[index].to(ids.device)
                    readings[row].score = scorer.from_states(states[row], ids[row], special)

        with contextlib.ExitStack() as hooks:
            for stack in stacks:
                hooks.enter_context(watching(stack, receive))
            run(model, stacks, ids)
        for reading, row in zip(readings, ids, strict=True):
            if scorer.head is None and not scorer.reason:
                reading.score = scorer.from_model(reading.index, row, windows.special[reading.index].to(row.device))
            _take_ranks(reading)
        yield from readings


def _device(model: Any) -> torch.device:
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    parameter = next((embeddings or model).parameters())
    device: torch.device = parameter.device
    return device


def _measured(site: Site, states: Tensor, keep: Tensor, positions: Tensor, index: int) -> Measurement:
    try:
        return geometry.measure(states, keep, positions)
    except ValueError as error:
        place = f"{site.name} {site.index}" if site.name == "block" else site.name
        raise RunError(
            f"text {index} at {place} ({site.stack}): {error}",
            "float16 overflows in many models: use --dtype float32 or bfloat16; else the weights are damaged",
        ) from None


def _take_ranks(reading: TextReading) -> None:
    """Replace the Gram matrices of a reading by their spectral metrics, one matrix per thread."""
    jobs = [(place, key, gram) for place in reading.sites for key, gram in place.grams.items()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(lambda job: geometry.ranks(job[1], job[2]), jobs))
    finally:
        torch.set_num_threads(threads)
    for (place, key, _), value in zip(jobs, results, strict=True):
        place.values[key] = value
    for place in reading.sites:
        place.grams.clear()
