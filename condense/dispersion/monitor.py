"""Geometry of a model while it trains, in any loop: a fixed probe, measured every so many steps. Torch only.

monitor = condense.Monitor(model, probe, path="run.jsonl")
for step in range(steps):
...
logger.log(monitor(step, loss=float(loss)))
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condense import geometry
from condense.dispersion.config import chosen_blocks
from condense.dispersion.tokens import special_tokens
from condense.errors import UsageError, first_line
from condense.models.layers import Site, find_stacks, input_device, path_of, run, unwrapped, watching
from condense.records.monitor import MONITOR_SCHEMA
from condense.version import __version__

KEYS = ("mean_cosine", "effective_rank", "relative_variance", "median_norm")
"""Keys of the report that a monitor measures at every block."""
RISE = 0.2
"""A deep mean cosine this far above the first measurement raises an alarm."""
SHARE = 0.5
"""A deep effective rank or relative variance below this share of the first measurement raises an alarm."""
_LOG = logging.getLogger(__name__)
Probe = list[tuple[Tensor, Tensor]]


class Monitor:
    """How condensed a model is while it trains: call it with the step, in any loop, on any module.

    model    as for `Disperser`: a transformers model, any other module, or what `condense.adapt` returns; wrapped for
             data parallelism or compiled or not. Measured in evaluation mode without gradients; nothing of it changes.
    probe    token ids (N, S) with S >= 4, or `Windows`. Position 0 and special tokens are left out.
    path     a JSONL file: a head, then one line for each measurement, which `condense report PATH` draws. An existing
             file is gone on with if it is a monitor's of the same model, else UsageError.
    every    steps between two measurements; other calls return {} at once.
    special_ids  token ids left out; None takes those that the model's config names.

    A call returns numbers for any logger: `deep.KEY` for the keys of `KEYS` (mean over the texts and the deepest half
    of the blocks of the last stack), `blocks_measured`, `monitor_errors`, `monitor_seconds`. What cannot be measured
    is counted and left out, and never stops the training. ValueError for a probe that is not (N, S) ids.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        path: str | Path | None = None,
        every: int = 1,
        special_ids: Sequence[int] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.model = model
        self.every = every
        self.errors = 0
        self.seconds = 0.0
        self.alarms: list[str] = []
        self._probe = probe_of(probe, special_tokens(model, special_ids))
        self._stack = find_stacks(model)[-1]
        self._first: dict[str, float] = {}
        self._measured = 0
        self._last_error = ""
        self._started = time.perf_counter()
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._open(self._path)
        _LOG.info("%r", self)

    def __repr__(self) -> str:
        """What is measured, and how it went so far."""
        return f"Monitor({self._stack.blocks} blocks at {path_of(self.model, self._stack)}; {self.status})"

    @property
    def status(self) -> str:
        """For example "30 of 30 blocks, 0 errors", of the last measurement and of all so far."""
        why = f" ({self._last_error})" if self._last_error else ""
        return f"{self._measured} of {self._stack.blocks} blocks, {self.errors} errors{why}"

    @property
    def share_of_time(self) -> float:
        """Share of the time since the monitor was made that it took itself, 0 to 1."""
        return self.seconds / max(time.perf_counter() - self._started, 1e-9)

    def __call__(self, step: int, **beside: float) -> dict[str, float]:
        """Measure if `step` is due; `beside` (a loss, say) is written and drawn with the numbers."""
        step = int(step)
        if step % self.every:
            return {}
        before = time.perf_counter()
        blocks = self._measure()
        deep = deep_of(blocks, self._stack.blocks)
        seconds = time.perf_counter() - before
        self.seconds += seconds
        self._measured = len(next(iter(blocks.values()), {}))
        alarms = self._alarms(step, deep)
        numbers = range(1, self._stack.blocks + 1)
        if self._path is not None:
            line = {
                "step": step,
                "deep": deep,
                "blocks": {key: [values.get(number) for number in numbers] for key, values in blocks.items()},
                "beside": {name: _number(value) for name, value in beside.items()},
                "measured": self._measured,
                "errors": self.errors,
                "seconds": round(seconds, 4),
                "alarms": alarms,
            }
            self._write(line)
        return {f"deep.{key}": value for key, value in deep.items()} | {
            "blocks_measured": self._measured,
            "monitor_errors": self.errors,
            "monitor_seconds": seconds,
        }

    def _measure(self) -> dict[str, dict[int, float]]:
        try:
            return readings(self.model, self._probe, KEYS)
        except Exception as error:  # the training must not stop because it is watched
            self.errors += 1
            self._last_error = first_line(error)[:120]
            if self.errors == 1:
                warnings.warn(f"the monitor could not measure: {self._last_error}", stacklevel=3)
            return {key: {} for key in KEYS}

    def _alarms(self, step: int, deep: dict[str, float]) -> list[str]:
        """What has changed too far since the first measurement; each kind is warned of once."""
        if not self._first:
            self._first = dict(deep)
            return []
        new = alarms_of(self._first, deep)
        for kind, text in new.items():
            if not any(known.startswith(f"{kind}:") for known in self.alarms):
                self.alarms.append(f"{kind}: {text} (step {step})")
                warnings.warn(f"{text} (step {step})", stacklevel=3)
        return list(new.values())

    def _open(self, path: Path) -> None:
        name = type(unwrapped(self.model)).__name__
        head = {
            "schema": MONITOR_SCHEMA,
            "condense": __version__,
            "model": name,
            "blocks": self._stack.blocks,
            "path": path_of(self.model, self._stack),
            "texts": len(self._probe),
            "tokens": int(sum(len(ids) for ids, _ in self._probe)),
            "keys": list(KEYS),
        }
        try:
            if path.exists() and path.stat().st_size:
                self._go_on(path, head)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}", "choose another path") from None

    def _go_on(self, path: Path, head: dict[str, Any]) -> None:
        """Take up a file of an earlier part of the same run; its first measurement stays the one to compare with."""
        with path.open(encoding="utf-8", errors="replace") as lines:
            try:
                first, second = json.loads(next(lines)), json.loads(next(lines, "{}"))
            except ValueError:
                first, second = {}, {}
        if not isinstance(first, dict) or {k: first.get(k) for k in ("schema", "model", "blocks")} != {
            k: head[k] for k in ("schema", "model", "blocks")
        }:
            raise UsageError(f"{path} is not a monitor's file of this model", "choose another path, or move it away")
        self._first = {key: value for key, value in (second.get("deep") or {}).items() if isinstance(value, float)}
        written = path.read_bytes()
        if not written.endswith(b"\n"):  # a line that was not written whole, to which the next would be joined
            os.truncate(path, written.rfind(b"\n") + 1)

    def _write(self, line: dict[str, Any]) -> None:
        if self._path is None:
            return
        size = None
        try:
            with self._path.open("ab") as file:
                size = file.tell()
                file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        except OSError as error:
            self.errors += 1
            self._last_error = first_line(error)[:120]
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self._path, size)


def _number(value: Any) -> float | None:
    """A value beside the measurement; None where it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several
        return None
    return number if math.isfinite(number) else None


def probe_of(probe: Any, special: Tensor) -> Probe:
    """Ids (n,) of each text and which of its tokens count; `probe` is ids (N, S) or `Windows`."""
    marked = getattr(probe, "special", None)
    ids = getattr(probe, "ids", probe)
    ids = ids if isinstance(ids, Tensor) else torch.as_tensor(ids)
    if ids.ndim != 2 or ids.shape[1] < 4 or ids.is_floating_point():
        raise ValueError(f"probe must be token ids (N, S) with S >= 4, got {tuple(ids.shape)} {ids.dtype}")
    keep = ~torch.isin(ids, special.to(ids.device)) if marked is None else ~marked.to(ids.device)
    keep[:, 0] = False
    return [(own.clone(), kept) for own, kept in zip(ids, keep, strict=True) if int(kept.sum()) >= 2]


@torch.no_grad()
def readings(model: nn.Module, probe: Probe, keys: Sequence[str]) -> dict[str, dict[int, float]]:
    """For each key the mean over texts at each block 1..L of the last stack; what is not finite is left out."""
    stacks = find_stacks(model)
    sums: dict[str, dict[int, float]] = {key: {} for key in keys}
    with _evaluating(model), torch.compiler.set_stance("force_eager"):
        for ids, keep in probe:
            text = keep.cpu()

            def receive(site: Site, states: Tensor, text: Tensor = text) -> None:
                if site.name != "block":
                    return
                rows = states[0].detach().cpu()[text]
                finite = bool(torch.isfinite(rows).all())
                for key in keys:
                    value = float(getattr(geometry, key)(rows)) if finite else math.nan
                    sums[key][site.index] = sums[key].get(site.index, 0.0) + value / len(probe)

            with watching(stacks[-1], receive):
                run(model, stacks, ids[None].to(input_device(unwrapped(model))))
    return {key: {n: v for n, v in values.items() if math.isfinite(v)} for key, values in sums.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def deep_of(blocks: dict[str, dict[int, float]], depth: int) -> dict[str, float]:
    """The mean over the deepest half of the blocks, for each key that was measured at all of them."""
    late = chosen_blocks("late", depth)
    whole = {key: values for key, values in blocks.items() if all(number in values for number in late)}
    return {key: sum(values[number] for number in late) / len(late) for key, values in whole.items()}


def alarms_of(first: dict[str, float], now: dict[str, float]) -> dict[str, str]:
    """What has moved too far from the first measurement, by kind, in words."""
    alarms = {}
    if "mean_cosine" in first and "mean_cosine" in now and now["mean_cosine"] - first["mean_cosine"] >= RISE:
        both = f"{first['mean_cosine']:.3f} at the first step, {now['mean_cosine']:.3f} now"
        alarms["cosine"] = f"deep mean cosine {both}"
    for key, name in (("effective_rank", "effective rank"), ("relative_variance", "relative variance")):
        if key in first and key in now and now[key] < SHARE * first[key]:
            alarms[key] = f"deep {name} {first[key]:.3g} at the first step, {now[key]:.3g} now"
    return alarms
