"""The rows that are measured inside this process, on one loaded model."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from condense.cli.demo import demo_file
from condense.diagnosis import forward as measuring
from condense.diagnosis import quality
from condense.diagnosis import resume as journal
from condense.diagnosis.run import analyze
from condense.geometry import cosine, spectrum
from condense.metrics import PER_TEXT
from condense.models.checkpoint import Checkpoint, load
from condense.texts.documents import probe
from condense.texts.windows import Windows, windows

Rows = Iterator[tuple[str, str]]


@functools.cache
def checkpoint() -> Checkpoint:
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return load(demo_file(), device="cpu")


def long_texts(count: int) -> list[str]:
    """As many different documents as wanted, each of several passages of the probe text."""
    passages = [document.text for document in probe()]
    size = len(passages)
    return [
        "\n\n".join(passages[(k + step * (1 + k // size)) % size] for step in range(6)) for k in range(count)
    ]  # fmt: skip


def texts(count: int, length: int) -> Windows:
    return windows(checkpoint().tokenizer, long_texts(count), num_texts=count, max_length=length)


@torch.inference_mode()
def plain(ids: torch.Tensor) -> float:
    """Seconds of a plain LM forward pass with all its logits."""
    start = time.perf_counter()
    checkpoint().model(input_ids=ids)
    return time.perf_counter() - start


def forward(count: int, length: int) -> Rows:
    """After each text of a real run the same text goes through the plain model, so that both see the same machine."""
    chosen = texts(count, length)
    for _ in range(3):
        plain(chosen.ids[:1])
    forwards: list[Moment] = []
    per_text: list[Moment] = []
    begun = [Moment.now()]

    def on_text(done: int, total: int) -> None:
        per_text.append(Moment.now() - begun[-1])
        before = Moment.now()
        plain(chosen.ids[done - 1 : done])
        forwards.append(Moment.now() - before)
        begun.append(Moment.now())

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(journal, "cache_folder", lambda _: Path(folder)):
        analyze(checkpoint(), chosen, on_text=on_text, journal=True)  # one of its own: nothing to resume from
    end = Moment.now() - begun[-1]
    walls, bases = [m.wall for m in per_text[1:]], [m.wall for m in forwards[1:]]
    middle, base = statistics.median(walls), statistics.median(bases)
    yield "texts x tokens, float32, one at a time", f"{count} x {length}"
    yield "plain LM forward / analyze, median per text", f"{base:.3f} s / {middle:.3f} s"
    yield "ratio of the medians", f"{middle / base:.3f}"
    yield "ratio of the 5 % fastest of each", f"{_fast(walls) / _fast(bases):.3f}"
    yield "ratio text by text: median (quartiles)", _quartiles([a / b for a, b in zip(walls, bases, strict=True)])
    cpu = [a.cpu / b.cpu for a, b in zip(per_text[1:], forwards[1:], strict=True)]
    yield "the same in CPU time (of use with 1 thread)", _quartiles(cpu)
    yield "before the first text / after the last", f"{per_text[0].wall - middle:.2f} s / {end.wall:.2f} s"
    whole = sum(m.wall for m in per_text) + end.wall
    yield "whole run over the forward passes alone", f"{whole / sum(m.wall for m in forwards):.3f}"


@dataclass(frozen=True)
class Moment:
    """Wall time and CPU time of this process, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Moment) -> Moment:
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


def _quartiles(values: list[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return f"{statistics.median(ordered):.3f} ({low:.3f} to {high:.3f})"


def _fast(values: list[float]) -> float:
    return sorted(values)[len(values) // 20]


PARTS = {
    "cosines of all pairs (float32 Gram, upper part)": (cosine, "pair_cosines"),
    "histogram and exact quantiles": (cosine, "_counts_and_quantiles"),
    "float64 Gram of the spectral rows": (spectrum.Spectra, "__init__"),
    "tridiagonal forms of the Gram matrices": (spectrum.Spectra, "reduce"),
    "ranks from them, all sites together": (sys.modules["condense.geometry.measure"], "ranks_of"),
    "head and loss": (quality.Scorer, "losses"),
    "all of a site": (measuring._BatchReader, "_measure_site"),
    "everything": (measuring, "_attempt"),
}
REST = "norms, sums, distinct pairs, block updates"


def parts(count: int, length: int) -> Rows:
    """CPU seconds of each part per text, on one thread; the plain forward is interleaved for the ratio."""
    chosen = texts(min(count, 12), length)
    spent: dict[str, list[float]] = defaultdict(list)
    forwards: list[float] = []
    plain(chosen.ids[:1])

    def on_text(done: int, total: int) -> None:
        before = Moment.now()
        plain(chosen.ids[done - 1 : done])
        forwards.append((Moment.now() - before).cpu)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.ExitStack() as stack:
            for name, (owner, attribute) in PARTS.items():
                stack.enter_context(_timed(owner, attribute, name, spent))
            analyze(checkpoint(), chosen, on_text=on_text)
    finally:
        torch.set_num_threads(threads)
    per = {name: _typical(seconds, len(forwards)) for name, seconds in spent.items()}
    base = statistics.median(forwards)
    inner, ranks = list(PARTS)[:4], list(PARTS)[4]
    per[REST] = per["all of a site"] - sum(per[name] for name in inner)
    per["forward pass of the blocks"] = per["everything"] - per["head and loss"]
    per["everything"] += per["all of a site"] + per[ranks]  # in other threads
    yield "plain LM forward with logits", f"{1e3 * base:7.1f} ms  1.000"
    for name in [*inner, REST, ranks, "head and loss", "forward pass of the blocks", "everything"]:
        yield name, f"{1e3 * per[name]:7.1f} ms  {per[name] / base:.3f}"


def _typical(seconds: list[float], count: int) -> float:
    """Seconds per text: the median over texts of what the calls of a text come to."""
    per_text = len(seconds) // count
    sums = [sum(seconds[k * per_text : (k + 1) * per_text]) for k in range(count)]
    return statistics.median(sums)


@contextlib.contextmanager
def _timed(owner: Any, attribute: str, name: str, spent: dict[str, list[float]]) -> Iterator[None]:
    """CPU time of the calling thread inside a function."""
    original: Callable[..., Any] = getattr(owner, attribute)

    def timed(*args: Any, **more: Any) -> Any:
        start = time.thread_time()
        try:
            return original(*args, **more)
        finally:
            spent[name].append(time.thread_time() - start)

    setattr(owner, attribute, timed)
    try:
        yield
    finally:
        setattr(owner, attribute, original)


def batches(count: int, length: int) -> Rows:
    """Largest difference over texts, sites and metrics, relative to the metric's size (at least 1e-3)."""
    chosen = texts(min(count, 8), length)
    one, four = (analyze(checkpoint(), chosen, batch_size=size) for size in (1, 4))
    worst: dict[str, float] = {}
    for a, b in zip(one.sites, four.sites, strict=True):
        for key in PER_TEXT:
            pairs = zip(a.metrics[key].per_text or (), b.metrics[key].per_text or (), strict=True)
            apart = [abs(x - y) / max(abs(x), 1e-3) for x, y in pairs if x is not None and y is not None]
            worst[key] = max([worst.get(key, 0.0), *apart])
    losses = zip(one.quality.loss.per_text or (), four.quality.loss.per_text or (), strict=True)
    nats = [abs((x or 0) - (y or 0)) for x, y in losses]
    key = max(worst, key=lambda name: worst[name])
    yield "largest relative difference of any metric", f"{worst[key]:.1e} ({key})"
    yield "largest difference of the loss, nats per token", f"{max(nats):.1e}"
    if math.isclose(worst[key], 0.0):
        yield "equal to the last bit", "yes"
