"""The logit lens: what the head would predict from the state after each block, on a few windows.

nostalgebraist 2020: the final norm and the head are applied to the states of every site as if it were the last. A block
of positions at a time, so that no full logits are held; off unless asked for, as it costs a head per site.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from condense import geometry
from condense.diagnosis.quality import Scorer, make_scorer
from condense.intervals import over_documents
from condense.metrics import LENS
from condense.models.checkpoint import Checkpoint
from condense.models.layers import PROBE_TOKENS, Site, Stack, find_stacks, input_device, run, watching
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import Windows

MOST_WINDOWS = 8
_BLOCK = 32  # positions whose logits are held at once
_KEYS = tuple(LENS)


def with_lens(diagnosis: Diagnosis, checkpoint: Checkpoint, windows: Windows, seed: int) -> Diagnosis:
    """The diagnosis with `lens.cross_entropy` and `lens.kl` at every site but the output, and over the deep half.

    On up to 8 windows spread over all; null with the reason for models that predict no next token, or whose
    prediction is not their final norm and head.
    """
    model: Any = checkpoint.model
    stacks = find_stacks(model)
    scorer = make_scorer(model, stacks, checkpoint.info.objective, windows, seed, checkpoint.head_missing)
    norm, reason = (None, scorer.reason) if scorer.reason else _final_norm(model, stacks[-1], scorer, windows)
    if reason:
        nothing = dict.fromkeys(_KEYS, Estimate(None, reason=f"no logit lens: {reason}"))
        sites = tuple(replace(site, metrics={**site.metrics, **nothing}) for site in diagnosis.sites)
        return replace(diagnosis, sites=sites, deep={**diagnosis.deep, **nothing})
    count = len(windows)
    chosen = sorted({round(k * (count - 1) / max(1, MOST_WINDOWS - 1)) for k in range(MOST_WINDOWS)})
    labels = [site.label for site in diagnosis.sites if site.site != "output"]
    table = torch.full((len(_KEYS), len(labels), count), math.nan, dtype=torch.float64)
    for index in chosen:
        table[:, :, index] = _lens_values(model, stacks[-1], scorer, norm, windows, index)
    return _recorded(diagnosis, labels, table)


def _recorded(diagnosis: Diagnosis, labels: list[str], table: Tensor) -> Diagnosis:
    """The numbers of every window (keys, sites, N) in the record, with their means over the deep half."""
    documents = diagnosis.corpus.documents

    def estimate(values: Tensor) -> Estimate:
        spread = over_documents(values.numpy(), documents)
        per_text = tuple(None if math.isnan(value) else value for value in values.tolist())
        return Estimate(spread.value, *spread.clipped(0.0), per_text, reason=spread.reason)

    nothing = dict.fromkeys(_KEYS, Estimate(None, reason="the lens reads what blocks receive and hand on"))
    sites = []
    for site in diagnosis.sites:
        own = nothing
        if site.label in labels:
            number = labels.index(site.label)
            own = {key: estimate(table[row, number]) for row, key in enumerate(_KEYS)}
        sites.append(replace(site, metrics={**site.metrics, **own}))
    blocks = len(labels) - 1
    deep = {key: estimate(table[row, 1 + blocks // 2 :].mean(0)) for row, key in enumerate(_KEYS)}
    return replace(diagnosis, sites=tuple(sites), deep={**diagnosis.deep, **deep})


@torch.inference_mode()
def _lens_values(
    model: Any, stack: Stack, scorer: Scorer, norm: nn.Module | None, windows: Windows, index: int
) -> Tensor:
    """Cross-entropy and KL from the final prediction at each site but the output, (2, sites), means over tokens."""
    ids = windows.ids[index : index + 1].to(input_device(model))
    states: list[Tensor] = []

    def receive(site: Site, hidden: Tensor) -> None:
        states.append(hidden[0].clone())

    with watching(stack, receive):
        run(model, (stack,), ids)
    *inner, final = states
    head: Any = scorer.head
    predicted = torch.nonzero(~windows.special[index][1:]).flatten().to(ids.device)
    sums = torch.zeros(len(_KEYS), len(inner), dtype=torch.float64)
    for positions in torch.split(predicted, _BLOCK):
        targets = ids[0, 1:][positions]
        expected = head(final[positions.to(final.device)]).float()
        for number, hidden in enumerate(inner):
            rows = hidden[positions.to(hidden.device)]
            logits = head(rows if norm is None else norm(rows)).float().to(expected.device)
            losses = functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
            sums[0, number] += losses.cpu().double().sum()
            sums[1, number] += geometry.divergences(expected, logits)[0].cpu().double().sum()
    return sums / max(1, len(predicted))


@torch.inference_mode()
def _final_norm(model: Any, stack: Stack, scorer: Scorer, windows: Windows) -> tuple[nn.Module | None, str | None]:
    """The module between the last block and the head (None where there is none), or the reason why it is not known.

    It is the module whose input is the last block's output and whose output is the model's last hidden state.
    """
    if scorer.head is None:
        return None, "its prediction is not its head on its last hidden state"
    ids = windows.ids[:1, :PROBE_TOKENS].to(input_device(model))
    states: list[Tensor] = []
    called: list[tuple[nn.Module, Tensor, Tensor]] = []
    inside = {id(module) for block in stack.modules for module in block.modules()}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            called.append((module, args[0], output))

    apart = [m for m in stack.root.modules() if id(m) not in inside and m is not stack.root]
    handles = [module.register_forward_hook(note) for module in apart]
    try:
        with watching(stack, lambda site, hidden: states.append(hidden)):
            run(model, (stack,), ids)
    finally:
        for handle in handles:
            handle.remove()
    last, final = states[-2:]
    if torch.equal(last, final):
        return None, None
    for module, given, made in reversed(called):
        if given.shape == last.shape and torch.equal(given, last) and torch.equal(made, final):
            return module, None
    return None, "its final norm was not found"
