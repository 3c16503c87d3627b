"""A model over windows to one reading per text: forward passes, the states of every site reduced to numbers.

On a CPU the states of as many sites as there are threads wait until one thread each measures them, for small
matrices do not gain from several threads; at no time are more kept. Elsewhere a hook keeps a copy of the states and no
more, so that the host never waits for the device within a forward pass; the sites are measured where they are when it
has been launched, and the eigenvalues of a batch's Gram matrices are taken together, on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self

import threadpoolctl
import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis.pooled import halves_of, pool
from condense.diagnosis.quality import Score, Scorer
from condense.errors import RunError, is_out_of_memory
from condense.geometry import Measurement
from condense.metrics import UPDATES
from condense.models.layers import OVERFLOW, Site, Stack, input_device, run, specials_of, watching
from condense.texts.windows import Windows

OnNote = Callable[[str], None]
_REPEATED = 0.01
_SHARED = 64
_WAITING = 256 * 2**20  # bytes of states that are kept until they are measured


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

    Where memory runs out the batch is halved for the rest of the run, and the same texts are read again. RunError if
    states are not finite, or if there is no memory for a single text.
    """
    start = 0
    with _Workers() as workers:
        reader = _BatchReader(model, stacks, windows, scorer, workers, spectral_tokens, seed, halves)
        while start < len(indices):
            batch = indices[start : start + batch_size]
            readings = _attempt(reader, batch)
            if readings is None:
                batch_size = _halved(len(batch), windows, on_note)
                continue
            yield from readings
            start += len(batch)


def _attempt(reader: _BatchReader, batch: list[int]) -> list[TextReading] | None:
    """The readings of a batch, or None where memory ran out; the memory of the attempt is freed then."""
    try:
        return reader.read(batch)
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
class _BatchReader:
    """One forward pass over a batch of texts, with the readings that its hooks fill in."""

    model: Any
    stacks: tuple[Stack, ...]
    windows: Windows
    scorer: Scorer
    workers: _Workers
    spectral_tokens: int
    seed: int
    halves: bool = False

    def __post_init__(self) -> None:
        special = self.windows.special
        self.keeps = {stack.name: kept_positions(specials_of(stack, self.stacks, special)) for stack in self.stacks}
        self.ids = {stack.name: ids_of(stack, self.stacks, self.windows.ids) for stack in self.stacks}
        self.shared = shared_tokens(self.windows.ids, kept_positions(special))

    def read(self, batch: list[int]) -> list[TextReading]:
        """The readings of a batch."""
        ids = self.windows.ids[batch].to(input_device(self.model))
        readings = [TextReading(index) for index in batch]
        chosen = {
            name: [spectral_positions(keep[i], self.spectral_tokens, self.seed, i) for i in batch]
            for name, keep in self.keeps.items()
        }
        same = {name: [geometry.same_pairs(ids[i]) for i in batch] for name, ids in self.ids.items()}
        waiting = _Waiting(self.workers)
        written: list[list[Tensor | None]] = [[] for _ in batch]  # of every site what its block does to each token
        received: dict[str, Tensor] = {}  # what the next block of a stack receives

        def receive(site: Site, states: Tensor) -> None:
            before = received.pop(site.stack, None) if site.name == "block" else None
            for row, updates in enumerate(written):
                updates.append(None if before is None else geometry.block_updates(before[row], states[row]))
            states = states.clone() if _is_measured_at_once(states) else states  # a block may write over it
            if site.index < site.blocks:
                received[site.stack] = states
            known = zip(chosen[site.stack], same[site.stack], strict=True)
            for reading, own, token_ids, more in zip(readings, states, ids, known, strict=True):
                waiting.add(reading, own, functools.partial(self._measure_site, site, reading.index, *more))
                if site.name == "output" and site.stack == self.stacks[0].name:
                    keep = self.keeps[site.stack][reading.index]
                    reading.pooled = pool(own, keep, bool(self.windows.special[reading.index][0]))
                if site.name == "output" and self.scorer.head is not None and not self.scorer.reason:
                    reading.score = self.scorer.from_states(own, token_ids, self.windows.special[reading.index])

        for site, states in self.passing(ids, receive):
            receive(site, states)
        waiting.finish()
        for reading, updates in zip(readings, written, strict=True):
            reading.sites = geometry.settle(self._with_updates(reading, updates))
        if self.scorer.head is None and not self.scorer.reason:
            for reading, row in zip(readings, ids, strict=True):
                special = self.windows.special[reading.index].to(row.device)
                reading.score = self.scorer.from_model(reading.index, row, special)
        if self.halves:
            self._embed_halves(readings)
        return readings

    def passing(self, ids: Tensor, receive: Callable[[Site, Tensor], None]) -> list[tuple[Site, Tensor]]:
        """A forward pass over ids (B, S): on a CPU each site is received as it comes, else it is kept and returned."""
        kept = list[tuple[Site, Tensor]]()

        def take(site: Site, states: Tensor) -> None:
            if _is_measured_at_once(states):
                receive(site, states)
            else:
                kept.append((site, states.clone()))  # a block may write over what it was given

        with contextlib.ExitStack() as hooks:
            for stack in self.stacks:
                hooks.enter_context(watching(stack, take))
            run(self.model, self.stacks, ids)
        return kept

    def _with_updates(self, reading: TextReading, updates: list[Tensor | None]) -> list[Measurement]:
        """The sites with the means of what their blocks do, over kept tokens that are a sink on no side of a block."""
        keeps = [self.keeps[stack.name][reading.index] for stack in self.stacks for _ in stack.sites()]
        made = []
        for number, (own, update, keep) in enumerate(zip(reading.sites, updates, keeps, strict=True)):
            if update is not None:
                counted = keep & update[0].isfinite()
                for side in (reading.sites[number - 1], own):
                    counted[side.sinks[:, 0].long()] = False
                means = update[:, counted].mean(1).tolist()
                own = replace(own, values={**own.values, **dict(zip(UPDATES, means, strict=True))})
            made.append(own)
        return made

    def _embed_halves(self, readings: list[TextReading]) -> None:
        """One more forward pass over as many tokens: each half is a text of its own, without the other as context."""
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

    def _measure_site(self, site: Site, index: int, spectral: Tensor, same: Tensor, states: Tensor) -> Measurement:
        ids, keep = self.ids[site.stack][index], self.keeps[site.stack][index]
        wanted = site.name == "block" and site.index > site.blocks // 2  # the cross-text cosine of the deepest half
        shared = self.shared.unsqueeze(1) == ids if wanted and len(self.shared) else None
        try:
            return geometry.measure(states, keep, spectral, ids, shared, same)
        except ValueError as error:
            raise RunError(f"text {index} at {site.label} ({site.stack}): {error}", OVERFLOW) from None


def _is_measured_at_once(states: Tensor) -> bool:
    """Whether states are measured within the forward pass: on a CPU, where there is nothing to wait for."""
    return states.device.type == "cpu"


class _Waiting:
    """Sites of a forward pass whose states were received and are not yet measured completely."""

    def __init__(self, workers: _Workers) -> None:
        self._workers = workers
        self._of: list[TextReading] = []
        self._tasks: list[Callable[[], Measurement]] = []
        self._bytes = 0

    def add(self, reading: TextReading, states: Tensor, measure: Callable[[Tensor], Measurement]) -> None:
        """Measure states (S, d), a copy that the model does not write over, for a reading: on a CPU later."""
        on_cpu = states.device.type == "cpu"
        task = functools.partial(measure, states) if on_cpu else measure(states).reduced
        self._of.append(reading)
        self._tasks.append(task)
        self._bytes += states.nbytes if on_cpu else 0
        if on_cpu and (len(self._tasks) >= self._workers.threads or self._bytes >= _WAITING):
            self.finish()

    def finish(self) -> None:
        """Store every measurement in its reading."""
        for reading, measurement in zip(self._of, self._workers.run(self._tasks), strict=True):
            reading.sites.append(measurement)
        self._of, self._tasks, self._bytes = [], [], 0


class _Workers:
    """Measurements of many sites: one worker per core, each with one thread, for a whole run.

    Two workers with two threads each compete for the cores. torch keeps its number of threads per thread and MKL for
    all, OpenBLAS (numpy's and scipy's) for all: every worker sets torch's, and the calling thread restores all.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.threads, "condense-sites")
        self._libraries = threadpoolctl.ThreadpoolController().select(internal_api="openblas")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.threads)

    def run(self, tasks: Sequence[Callable[[], Measurement]]) -> list[Measurement]:
        """The measurements without their Gram matrices, in order."""
        try:
            with self._libraries.limit(limits=1):
                return list(self._pool.map(_on_one_thread, tasks))
        finally:
            torch.set_num_threads(self.threads)


@torch.inference_mode()
def _on_one_thread(task: Callable[[], Measurement]) -> Measurement:
    torch.set_num_threads(1)
    return task().reduced()
