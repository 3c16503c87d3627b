"""Two live models on the same token ids: their predictions and their states, token by token.

The first model is read window by window beside each of the others, or once into a folder on the disk where both do
not fit into memory at the same time. Only a few numbers are kept of each window.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from condense import geometry
from condense.comparison.same import Reading, SiteKey, WindowReading
from condense.diagnosis.forward import kept_positions, spectral_positions
from condense.diagnosis.quality import Scorer, logits_of, make_scorer, mask_positions
from condense.errors import RunError, UnavailableError, as_condense_error, is_out_of_memory
from condense.files import cache_folder, size_in_words
from condense.geometry import SPECTRAL_TOKENS
from condense.models.checkpoint import Checkpoint
from condense.models.layers import (
    Site,
    embedding_rows,
    find_stacks,
    forward_pass,
    input_device,
    last_state,
    run,
    specials_of,
    watching,
)
from condense.records.options import CompareOptions
from condense.texts.windows import Windows, check_ids

if TYPE_CHECKING:
    from condense.comparison.measuring import OnNote, Opener
    from condense.comparison.members import Candidate

OnText = Callable[[int, int], None]
_BLOCK = 128  # positions whose logits are held at once


@dataclass(frozen=True)
class Window:
    """One model on one window: states (S, d) by site, and its logits (n, V) block by block of what it predicts."""

    states: dict[SiteKey, Tensor]
    logits: Iterator[Tensor]


class Source(Protocol):
    """The states and predictions of a model: from the model itself, or as saved on disk."""

    @property
    def scored(self) -> str | None:
        """Why the model predicts nothing, or None."""

    def window(self, index: int) -> Window:
        """The states and predictions on window `index`."""


class LiveModel:
    """A model in memory, read window by window; `scored`: the reason why it predicts nothing, or None."""

    def __init__(self, checkpoint: Checkpoint, windows: Windows, seed: int) -> None:
        """UnavailableError where the windows hold ids that the model has no embedding for."""
        self.model: Any = checkpoint.model
        check_ids(windows.ids, embedding_rows(self.model))
        self.windows, self.seed, self.objective = windows, seed, checkpoint.info.objective
        self.stacks = find_stacks(self.model)
        self.scorer: Scorer = make_scorer(
            self.model, self.stacks, self.objective, windows, seed, checkpoint.head_missing
        )
        self.scored = self.scorer.reason

    @torch.inference_mode()
    def window(self, index: int) -> Window:
        """One forward pass, two where a mask has to be laid over the window first."""
        ids = self.windows.ids[index : index + 1].to(input_device(self.model))
        states: dict[SiteKey, Tensor] = {}

        def receive(site: Site, hidden: Tensor) -> None:
            index = site.index if site.name == "block" else 0
            states[(site.stack, site.name, index)] = hidden[0].detach().float().cpu()

        whole = self.objective == "causal" and self.scorer.head is None and self.scored is None
        whole = whole and self.stacks[0].called is None  # else the stack gives logits too
        with contextlib.ExitStack() as hooks:
            for stack in self.stacks:
                hooks.enter_context(watching(stack, receive))
            with forward_pass(self.model):
                output = self.model(input_ids=ids) if whole else run(self.model, self.stacks, ids)
        return Window(states, self._predicted_logits(index, ids, output))

    @torch.inference_mode()
    def _predicted_logits(self, index: int, ids: Tensor, output: Any) -> Iterator[Tensor]:
        """The logits of the predicted positions, a block at a time."""
        if self.scored is not None:
            return
        special = self.windows.special[index]
        if self.objective == "masked":
            chosen = mask_positions(special, self.seed, index).to(ids.device)
            masked = ids.clone()
            masked[0, chosen] = int(self.scorer.mask_token_id or 0)
            with forward_pass(self.model):
                output = self.model(input_ids=masked)
            logits = logits_of(output, masked)
            yield from torch.split(logits[0, chosen], _BLOCK)
            return
        chosen = torch.nonzero(~special[1:]).flatten().to(ids.device)
        if self.scorer.head is None:
            logits = logits_of(output, ids)[0]
            yield from torch.split(logits.index_select(0, chosen.to(logits.device)), _BLOCK)
            return
        for positions in torch.split(chosen, _BLOCK):
            states = last_state(output)[0]
            yield self.scorer.head(states.index_select(0, positions.to(states.device)))


@dataclass(frozen=True)
class KeptModel:
    """The states and predictions of a model on every window, saved on disk."""

    folder: Path
    scored: str | None

    def window(self, index: int) -> Window:
        """The states and predictions as they were written."""
        kept = torch.load(self.folder / f"{index}.pt", weights_only=True)
        return Window(kept["states"], iter(kept["logits"]))


def keep_on_disk(model: LiveModel, folder: Path, on_text: OnText, on_note: Callable[[str], None] | None) -> KeptModel:
    """Write the states and logits of a model on all windows into a folder.

    RunError where the disk has no space for them, before anything is read but the first window.
    """
    count = len(model.windows)
    for index in range(count):
        window = model.window(index)
        file = folder / f"{index}.pt"
        torch.save({"states": window.states, "logits": [block.cpu() for block in window.logits]}, file)
        if index == 0:
            size = file.stat().st_size
            _check_room(folder, size * (count - 1))
            if on_note is not None:
                on_note(f"keeping states and predictions on the disk: {size_in_words(size * count)} until this ends")
        on_text(index + 1, count)
    return KeptModel(folder, model.scored)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RunError(
            f"states and predictions take {size_in_words(size)} more on the disk, {size_in_words(free)} are free",
            "ask for fewer windows with --num-texts, or name another folder with CONDENSE_CACHE",
        )


def read_pair(first: Source, other: LiveModel, on_text: OnText) -> Reading:
    """Two models window by window: how far their predictions are apart, and their states at every site of both.

    first: the reference, P of KL(P‖Q). RunError where states are not finite.
    """
    reasons = [f"{name}: {why}" for name, why in (("the first", first.scored), ("the other", other.scored)) if why]
    windows = []
    for index in range(len(other.windows)):
        pair = first.window(index), other.window(index)
        windows.append(WindowReading(*_predictions(*pair), _states(*pair, other, index)))
        on_text(index + 1, len(other.windows))
    return Reading(tuple(windows), "; ".join(reasons) or None)


def _predictions(first_window: Window, other_window: Window) -> tuple[float, int, int]:
    """Sum of KL over the predicted positions, how many agree in their most likely token, how many there are."""
    nats, agree, count = 0.0, 0, 0
    with torch.inference_mode():
        for mine, theirs in zip(first_window.logits, other_window.logits, strict=False):
            apart, alike = geometry.divergences(mine.to(theirs.device), theirs)
            if not bool(torch.isfinite(apart).all()):
                raise RunError("predictions of the two models are not finite", "are the weights damaged?")
            nats += float(apart.cpu().double().sum())
            agree, count = agree + int(alike.sum()), count + len(alike)
    return nats, agree, count


def _states(
    first_window: Window, other_window: Window, other: LiveModel, index: int
) -> dict[SiteKey, tuple[float, ...]]:
    """Per site that corresponds: the mean cosine of corresponding states, and the three parts of the CKA."""
    readings = {}
    for key in first_window.states:
        if key[1] == "block" and first_window.states.keys() != other_window.states.keys():
            continue  # models of other depths
        stack = next(stack for stack in other.stacks if stack.name == key[0])
        x, y = first_window.states[key], other_window.states[key]
        kept = kept_positions(specials_of(stack, other.stacks, other.windows.special))[index]
        try:
            kept = kept & ~geometry.sinks(x, kept) & ~geometry.sinks(y, kept)
            chosen = spectral_positions(kept, SPECTRAL_TOKENS, other.seed, index)
            same_width = x.shape == y.shape
            cosine = float(geometry.corresponding_cosine(x[kept], y[kept])) if same_width else math.nan
            readings[key] = (cosine, *map(float, geometry.debiased_hsic(x[chosen], y[chosen])))
        except ValueError as error:
            raise RunError(f"text {index} at {key[1]} {key[2]}: {error}", "are the weights damaged?") from None
    return readings


def read_beside(
    first: Candidate,
    others: Sequence[Candidate],
    opener: Opener,
    settings: CompareOptions,
    on_note: OnNote | None,
    give_back: Callable[[], None],
) -> dict[str, Reading | str]:
    """Each of the others read beside the first on the first's windows, by name; where that failed, the reason.

    give_back: frees the memory of models that are no longer referenced. Two models are held at a time, with
    `settings.one_at_a_time` one, and the first's states and predictions are saved on disk meanwhile.
    """
    readings: dict[str, Reading | str] = {}
    seed = settings.seed or 0
    with contextlib.ExitStack() as stack:
        try:
            checkpoint, cut = opener.open(first, settings)
            live = LiveModel(checkpoint, cut(), seed)
            windows, objective = live.windows, live.objective
            source: Source = live
            if settings.one_at_a_time:
                with opener.counting(f"keeping {first.name}") as on_text:
                    name = stack.enter_context(tempfile.TemporaryDirectory(dir=cache_folder("pairs")))
                    source = keep_on_disk(live, Path(name), on_text, on_note)
                del checkpoint, cut, live
                give_back()
        except Exception as failure:
            return dict.fromkeys((other.name for other in others), str(as_condense_error(failure)))
        for other in others:
            try:
                readings[other.name] = _read_beside(source, other, windows, objective, opener, settings)
            except Exception as failure:  # one pair never ends the comparison
                readings[other.name] = _failure_words(failure, settings)
                if on_note is not None:
                    on_note(f"{other.name} is not compared token by token: {readings[other.name]}")
            give_back()
    return readings


def _read_beside(
    source: Source, other: Candidate, windows: Windows, objective: str, opener: Opener, settings: CompareOptions
) -> Reading:
    checkpoint, _ = opener.open(other, settings)
    if checkpoint.info.objective != objective:
        raise UnavailableError(f"the first is trained as {objective}, this one as {checkpoint.info.objective}")
    with opener.counting(f"beside {other.name}"[:40]) as on_text:
        return read_pair(source, LiveModel(checkpoint, windows, settings.seed or 0), on_text)


def _failure_words(failure: Exception, settings: CompareOptions) -> str:
    if is_out_of_memory(failure) and not settings.one_at_a_time:
        return "there is no memory for two models: --one-at-a-time needs it for one"
    return str(as_condense_error(failure))
