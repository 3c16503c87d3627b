"""A model over windows to one reading per text: forward passes, the states of every site reduced to numbers.

All measuring is done on the CPU, one site and text per thread. On a CPU the states of as many sites as there are
threads wait until one thread each measures them, for small matrices do not gain from several threads; at no time are
more kept. Elsewhere a pass is launched and nothing waits for it: its hooks keep a copy of the states, the head's losses
are computed there, and both are sent to the host in one copy per device (`transfer`). While the device works on the
next batch, the host waits for that copy and measures it. At most two batches are in memory; where there is no room for
two, one at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis.pooled import halves_of, pool
from condense.diagnosis.quality import Score, Scorer
from condense.diagnosis.transfer import Transfer
from condense.diagnosis.workers import Waiting, Workers
from condense.errors import RunError, is_out_of_memory
from condense.geometry import Measurement
from condense.metrics import UPDATES
from condense.models.layers import OVERFLOW, Site, Stack, input_device, run, sent, specials_of, watching
from condense.texts.windows import Windows

OnNote = Callable[[str], None]
_T = TypeVar("_T")
_Measured = tuple[Measurement, Tensor | None]  # a site of a text, and what its block does to each token
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

    Where memory runs out the batch is halved for the rest of the run, and the same texts are read again. RunError if
    states are not finite, or if there is no memory for a single text.
    """
    start, overlapping = 0, True
    pending: _Batch | None = None
    with Workers() as workers:
        reader = _BatchReader(model, stacks, windows, scorer, workers, spectral_tokens, seed, halves)
        while start < len(indices):
            ahead = len(pending.readings) if pending else 0
            batch = indices[start + ahead : start + ahead + batch_size]
            following = None
            if batch and (pending is None or (pending.transfer and overlapping)):
                launch = functools.partial(reader.launch, batch, pending)
                following = _attempt(launch, beside=pending is not None)
                overlapping = overlapping and following is not None  # else it is launched again, alone
            readings = _attempt(functools.partial(reader.finish, pending)) if pending else None
            if readings:
                yield from readings
                start += ahead
            elif following is None:
                batch_size, overlapping = _halved(ahead or len(batch), windows, on_note), True
            elif pending:
                following, overlapping = None, False
            pending = following


def _attempt(work: Callable[[], _T], *, beside: bool = False) -> _T | None:
    """What `work` returns, or None where memory ran out; the memory of the attempt is freed then.

    beside: None whatever failed, for another batch that waits to be read must not be lost.
    """
    try:
        return work()
    except Exception as error:
        if not (beside or is_out_of_memory(error)):
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
class _Batch:
    """Texts whose forward passes were launched: what is known of them, and what is on its way to the host."""

    readings: list[TextReading]
    waiting: Waiting[_Measured]
    measured: list[list[_Measured]]  # of every text and site
    known: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)  # `_known` of each stack
    received: dict[str, Tensor] = field(default_factory=dict)  # what the next block of a stack receives
    sites: list[Site] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # of these sites, not yet measured
    losses: list[Tensor] = field(default_factory=list)  # of every text what its tokens cost
    halves: list[Tensor] = field(default_factory=list)  # the output of the pass over the halves
    transfer: Transfer | None = None

    def send(self) -> None:
        """Begin to copy to the host what was kept on the device."""
        self.transfer = Transfer([*self.states, *self.losses, *self.halves])
        self.states = []

    def arrive(self) -> None:
        """Wait until all of it is on the host."""
        if self.transfer is not None:
            arrived = iter(self.transfer.wait())
            self.states = [next(arrived) for _ in self.sites]
            self.losses = [next(arrived) for _ in self.losses]
            self.halves = [next(arrived) for _ in self.halves]


@dataclass
class _BatchReader:
    """The forward passes over batches of texts, and the readings of what their hooks keep."""

    model: Any
    stacks: tuple[Stack, ...]
    windows: Windows
    scorer: Scorer
    workers: Workers
    spectral_tokens: int
    seed: int
    halves: bool = False

    def __post_init__(self) -> None:
        special = self.windows.special
        self.keeps = {stack.name: kept_positions(specials_of(stack, self.stacks, special)) for stack in self.stacks}
        self.ids = {stack.name: ids_of(stack, self.stacks, self.windows.ids) for stack in self.stacks}
        self.shared = shared_tokens(self.windows.ids, kept_positions(special))

    def launch(self, batch: list[int], before: _Batch | None = None) -> _Batch:
        """Run the passes over texts: on a CPU the sites are measured on the way, elsewhere nothing is waited for.

        before: a batch that is still on its way, which on some devices has to leave the queue first.
        """
        if before is not None and before.transfer is not None:
            before.transfer.fetch()
        texts = _Batch([TextReading(index) for index in batch], Waiting(self.workers), [[] for _ in batch])
        ids = sent(self.windows.ids[batch], input_device(self.model))

        def take(site: Site, states: Tensor) -> None:
            if site.name == "output" and self.scorer.head is not None and not self.scorer.reason:
                texts.losses = [self.scorer.losses(own, row) for own, row in zip(states, ids, strict=True)]
            states = states.clone()  # a block may write over what it was given
            if not texts.sites and _is_measured_at_once(states):
                self._receive(texts, site, states)
                texts.waiting.finish_if_many()
            else:  # and so every site after one that is kept, for they are measured in their order
                texts.sites.append(site)
                texts.states.append(states)

        with contextlib.ExitStack() as hooks:
            for stack in self.stacks:
                hooks.enter_context(watching(stack, take))
            run(self.model, self.stacks, ids)
        texts.waiting.finish()
        if self.scorer.head is None and not self.scorer.reason:
            ids, special = self.windows.ids, self.windows.special
            texts.losses = [self.scorer.losses_of_model(index, ids[index], special[index]) for index in batch]
        if self.halves:
            self._embed_halves(texts)
        if texts.sites:
            texts.send()
        return texts

    def finish(self, texts: _Batch) -> list[TextReading]:
        """The readings of a batch that was launched, when what it sends has arrived."""
        texts.arrive()
        for site, states in zip(texts.sites, texts.states, strict=True):
            self._receive(texts, site, states)
        texts.waiting.finish()
        pairs = list(zip(texts.readings, texts.measured, strict=True))
        settled = self.workers.run([functools.partial(self._settled, *pair) for pair in pairs])
        for number, (reading, sites) in enumerate(zip(texts.readings, settled, strict=True)):
            reading.sites = sites
            if texts.losses:
                reading.score = self.scorer.score(texts.losses[number], self.windows.special[reading.index])
        for states in texts.halves:
            self._pool_halves(texts.readings, states)
        return texts.readings

    def _receive(self, texts: _Batch, site: Site, states: Tensor) -> None:
        """Have the states of every text (B, S, d), on the CPU, measured, and what the site's block does to them."""
        before = texts.received.pop(site.stack, None) if site.name == "block" else None
        if site.index < site.blocks:
            texts.received[site.stack] = states
        if site.stack not in texts.known:
            texts.known[site.stack] = self._known(site.stack, texts.readings)
        for row, (reading, own, known) in enumerate(zip(texts.readings, states, texts.known[site.stack], strict=True)):
            given = None if before is None else before[row]
            task = functools.partial(self._measure_site, site, reading.index, *known, own, given)
            texts.waiting.add(texts.measured[row], task, own.nbytes)
            if site.name == "output" and site.stack == self.stacks[0].name:
                keep = self.keeps[site.stack][reading.index]
                reading.pooled = pool(own, keep, bool(self.windows.special[reading.index][0]))

    def _known(self, stack: str, readings: list[TextReading]) -> list[tuple[Tensor, Tensor]]:
        """Of each text the positions of the spectral metrics and the pairs of positions with one token."""
        numbers = [reading.index for reading in readings]
        keeps, ids = self.keeps[stack], self.ids[stack]
        chosen = [spectral_positions(keeps[number], self.spectral_tokens, self.seed, number) for number in numbers]
        return list(zip(chosen, [geometry.same_pairs(ids[number]) for number in numbers], strict=True))

    def _settled(self, reading: TextReading, measured: list[_Measured]) -> list[Measurement]:
        """The sites with their spectral metrics and with what their blocks do.

        The means of that are over kept tokens that are a sink on no side of a block.
        """
        keeps = [self.keeps[stack.name][reading.index] for stack in self.stacks for _ in stack.sites()]
        made = []
        for number, ((own, update), keep) in enumerate(zip(measured, keeps, strict=True)):
            if update is not None:
                counted = keep & update[0].isfinite()
                for side in (measured[number - 1][0], own):
                    counted[side.sinks[:, 0].long()] = False
                means = update[:, counted].mean(1).tolist()
                own = replace(own, values={**own.values, **dict(zip(UPDATES, means, strict=True))})
            made.append(own)
        return geometry.settle(made)

    def _embed_halves(self, texts: _Batch) -> None:
        """One more forward pass over as many tokens: each half is a text of its own, without the other as context."""

        def take(site: Site, states: Tensor) -> None:
            if site.name == "output":
                texts.halves = [states.clone()]

        with watching(self.stacks[0], take):
            run(self.model, self.stacks, sent(self._halves_of(texts.readings)[0], input_device(self.model)))

    def _pool_halves(self, readings: list[TextReading], states: Tensor) -> None:
        """The vectors of the halves from their output (2B, s, d)."""
        special = self._halves_of(readings)[1]
        keeps = kept_positions(specials_of(self.stacks[0], self.stacks, special))
        rows = zip(states, keeps, special, strict=True)
        vectors = [pool(own, keep, bool(marked[0])) for own, keep, marked in rows]
        for number, reading in enumerate(readings):
            reading.halves = torch.stack(vectors[2 * number : 2 * number + 2])

    def _halves_of(self, readings: list[TextReading]) -> tuple[Tensor, Tensor]:
        """The ids of the halves of all texts, and which of them are special, (2B, s) each."""
        cut = [halves_of(self.windows.ids[r.index], self.windows.special[r.index]) for r in readings]
        return torch.cat([ids for ids, _ in cut]), torch.cat([special for _, special in cut])

    def _measure_site(
        self, site: Site, index: int, spectral: Tensor, same: Tensor, states: Tensor, given: Tensor | None
    ) -> _Measured:
        """One site of one text without its Gram matrix; given: the states that its block received."""
        ids, keep = self.ids[site.stack][index], self.keeps[site.stack][index]
        wanted = site.name == "block" and site.index > site.blocks // 2  # the cross-text cosine of the deepest half
        shared = self.shared.unsqueeze(1) == ids if wanted and len(self.shared) else None
        try:
            made = geometry.measure(states, keep, spectral, ids, shared, same).reduced()
        except ValueError as error:
            raise RunError(f"text {index} at {site.label} ({site.stack}): {error}", OVERFLOW) from None
        return made, None if given is None else geometry.block_updates(given, states)


def _is_measured_at_once(states: Tensor) -> bool:
    """Whether states are measured within the forward pass: on a CPU, where there is nothing to wait for."""
    return states.device.type == "cpu"
