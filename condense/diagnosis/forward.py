"""A model over windows to one reading per text: forward passes with everything reduced inside the hooks.

At no time are the states of more than one site kept. Eigenvalues of a text's Gram matrices are taken
together after its forward pass, one matrix per thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis.pooled import halves_of, pool
from condense.diagnosis.quality import Score, Scorer
from condense.errors import RunError, is_out_of_memory
from condense.geometry import Measurement
from condense.models.layers import OVERFLOW, Site, Stack, input_device, run, specials_of, watching
from condense.texts.windows import Windows

OnNote = Callable[[str], None]
_REPEATED = 0.01
_SHARED = 64


@dataclass
class TextReading:
    """All measurements of one text, site by site in depth order, its score, and its vectors.

    pooled (3, d): mean, last and CLS vector; halves (2, 3, d): those of its two halves, embedded apart.
    """

    index: int
    sites: list[Measurement] = field(default_factory=list)
    score: Score | None = None
    pooled: Tensor | None = None
    halves: Tensor | None = None


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


def ids_of(stack: Stack, stacks: tuple[Stack, ...], ids: Tensor) -> Tensor:
    """The token at each position of a stack, (N, S): a decoder beside an encoder reads them one position later."""
    if len(stacks) == 1 or stack.name != "decoder":
        return ids
    return torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], dim=1)


def token_counts(ids: Tensor, keep: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Of every window: how many different tokens its kept positions hold, and which share of its pairs are one token.

    ids, keep (N, S). The share is 0 for fewer than two positions.
    """
    distinct, same = [], []
    for row, kept in zip(ids, keep, strict=True):
        sizes = torch.unique(row[kept], return_counts=True)[1]
        count = int(sizes.sum())
        distinct.append(len(sizes))
        same.append((int(sizes.square().sum()) - count) / (count * (count - 1)) if count > 1 else 0.0)
    return tuple(distinct), tuple(same)


def shared_tokens(ids: Tensor, keep: Tensor) -> Tensor:
    """The tokens whose sums are kept by themselves: those that a corpus repeats so much that its cosines show it.

    None where fewer than 1 % of the pairs are one token, for the mean over distinct pairs then differs by less than
    .02; else those that are 1 % and more of all kept positions, at most 64: fewer than 2 % of the pairs are another's.
    """
    if sum(token_counts(ids, keep)[1]) < _REPEATED * len(ids):
        return ids.new_zeros(0)
    tokens, counts = torch.unique(ids[keep], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:_SHARED]
    frequent: Tensor = tokens[order[counts[order] >= _REPEATED * int(keep.sum())]]
    return frequent


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
    halves: bool = False,
    on_note: OnNote | None = None,
) -> Iterator[TextReading]:
    """Yield a reading for each text of `indices`, in order; halves: embed the halves of each text apart too.

    Where memory runs out the batch is halved, for good, and the same texts are read again. RunError if
    states are not finite, or if there is no memory for a single text.
    """
    reader = _Reader(model, stacks, windows, scorer, spectral_tokens, seed, halves)
    start = 0
    with _RankWorkers() as workers:
        while start < len(indices):
            batch = indices[start : start + batch_size]
            readings = _attempt(reader, workers, batch)
            if readings is None:
                batch_size = _halved(len(batch), windows, on_note)
                continue
            yield from readings
            start += len(batch)


def _attempt(reader: _Reader, workers: _RankWorkers, batch: list[int]) -> list[TextReading] | None:
    """The settled readings of a batch, or None where memory ran out; nothing of the attempt is left then."""
    try:
        readings = reader.read(batch)
        for reading in readings:
            workers.settle(reading)
        return readings
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _halved(size: int, windows: Windows, on_note: OnNote | None) -> int:
    if size == 1:
        raise RunError(
            f"out of memory on a single text of {windows.info.length} tokens",
            "lower --max-length, or use --dtype bfloat16 or --device cpu (--batch-size is 1 already)",
        )
    if on_note is not None:
        on_note(f"out of memory with {size} texts at once; going on with {size // 2} (--batch-size {size // 2})")
    return size // 2


@dataclass
class _Reader:
    """One forward pass over a batch of texts, and what its hooks hand over."""

    model: Any
    stacks: tuple[Stack, ...]
    windows: Windows
    scorer: Scorer
    spectral_tokens: int
    seed: int
    halves: bool = False

    def __post_init__(self) -> None:
        special = self.windows.special
        self.keeps = {stack.name: kept_positions(specials_of(stack, self.stacks, special)) for stack in self.stacks}
        self.ids = {stack.name: ids_of(stack, self.stacks, self.windows.ids) for stack in self.stacks}
        self.shared = shared_tokens(self.windows.ids, kept_positions(special))

    def read(self, batch: list[int]) -> list[TextReading]:
        """The readings of a batch, their spectral metrics still to be settled."""
        ids = self.windows.ids[batch].to(input_device(self.model))
        readings = [TextReading(index) for index in batch]
        chosen = {
            name: [spectral_positions(keep[i], self.spectral_tokens, self.seed, i) for i in batch]
            for name, keep in self.keeps.items()
        }

        def receive(site: Site, states: Tensor) -> None:
            for reading, own, token_ids, positions in zip(readings, states, ids, chosen[site.stack], strict=True):
                keep = self.keeps[site.stack][reading.index]
                reading.sites.append(self._measure(site, own, keep, positions, reading.index))
                if site.name == "output" and site.stack == self.stacks[0].name:
                    reading.pooled = pool(own, keep, bool(self.windows.special[reading.index][0]))
                if site.name == "output" and self.scorer.head is not None and not self.scorer.reason:
                    reading.score = self.scorer.from_states(own, token_ids, self.windows.special[reading.index])

        with contextlib.ExitStack() as hooks:
            for stack in self.stacks:
                hooks.enter_context(watching(stack, receive))
            run(self.model, self.stacks, ids)
        if self.scorer.head is None and not self.scorer.reason:
            for reading, row in zip(readings, ids, strict=True):
                special = self.windows.special[reading.index].to(row.device)
                reading.score = self.scorer.from_model(reading.index, row, special)
        if self.halves:
            self._embed_halves(readings)
        return readings

    def _embed_halves(self, readings: list[TextReading]) -> None:
        """One more forward pass over as many tokens: each half is a text of its own, which has not seen the other."""
        cut = [halves_of(self.windows.ids[r.index], self.windows.special[r.index]) for r in readings]
        ids = torch.cat([ids for ids, _ in cut]).to(input_device(self.model))
        special = torch.cat([special for _, special in cut])
        stack, vectors = self.stacks[0], list[Tensor]()
        keeps = kept_positions(specials_of(stack, self.stacks, special))

        def receive(site: Site, states: Tensor) -> None:
            if site.name == "output":
                rows = zip(states, keeps, special, strict=True)
                vectors.extend(pool(own, keep, bool(marked[0])) for own, keep, marked in rows)

        with watching(stack, receive):
            run(self.model, self.stacks, ids)
        for number, reading in enumerate(readings):
            reading.halves = torch.stack(vectors[2 * number : 2 * number + 2])

    def _measure(self, site: Site, states: Tensor, keep: Tensor, positions: Tensor, index: int) -> Measurement:
        ids = self.ids[site.stack][index]
        wanted = site.name == "block" and site.index > site.blocks // 2  # the cross-text cosine of the deepest half
        shared = self.shared.unsqueeze(1) == ids if wanted and len(self.shared) else None
        try:
            return geometry.measure(states, keep, positions, ids, shared)
        except ValueError as error:
            raise RunError(f"text {index} at {site.label} ({site.stack}): {error}", OVERFLOW) from None


class _RankWorkers:
    """Spectral metrics of many small matrices: one worker per core, each with one thread, for a whole run.

    Small matrices do not gain from several threads, and two workers with two threads each fight over the
    cores. torch keeps its number of threads per thread and MKL for all, so every worker sets it and the
    calling thread puts it back.
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, "condense-ranks")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)

    def settle(self, reading: TextReading) -> None:
        """Replace the Gram matrices of a reading by their spectral metrics."""
        try:
            reading.sites = list(self._pool.map(_settled_on_one_thread, reading.sites))
        finally:
            torch.set_num_threads(self._threads)


def _settled_on_one_thread(measurement: Measurement) -> Measurement:
    torch.set_num_threads(1)
    return measurement.settled()
