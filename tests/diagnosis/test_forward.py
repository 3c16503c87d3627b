"""The hooks of a measured forward pass: on a device they keep the states and wait for nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from condense import analyze, load, windows
from condense.diagnosis import forward
from condense.models import layers
from condense.models.layers import Site, find_stacks
from condense.texts.windows import Windows
from tests.waiting import CONFIG, NoWaiting


def never(site: Site, states: Tensor) -> None:
    pytest.fail("it was measured within the forward pass")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_hook_waits_for_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every site is handed on and kept; meta has no values that could be waited for."""
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    real, stacks = layers.watching, find_stacks(model)

    def watching(stack: Any, receive: Callable[[Site, Tensor], None]) -> Any:
        def watched(site: Site, states: Tensor) -> None:
            with NoWaiting():
                receive(site, states)

        return real(stack, watched)

    monkeypatch.setattr(forward, "watching", watching)
    monkeypatch.setattr(forward, "_is_measured_at_once", lambda states: False)
    cut = Windows.__new__(Windows)
    reader = forward._BatchReader.__new__(forward._BatchReader)
    reader.model, reader.stacks, reader.windows = model, stacks, cut
    kept = reader.passing(torch.ones(2, 8, dtype=torch.long, device=device), never)
    assert [site.name for site, _ in kept] == ["embedding", *["block"] * 3, "output"]
    assert all(states.shape == (2, 8, 32) and states.device.type == device for _, states in kept)


def test_states_that_were_kept_give_the_same_numbers(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device, where sites are measured after the pass: equal to the last bit, score and pooled view too."""
    model = load(tiny("llama"), device="cpu")
    cut = windows(model.tokenizer, num_texts=4, max_length=32)
    at_once = analyze(model, cut, batch_size=2)
    monkeypatch.setattr(forward, "_is_measured_at_once", lambda states: False)
    after = analyze(model, cut, batch_size=2)
    assert after.sites == at_once.sites and after.quality == at_once.quality and after.pooled == at_once.pooled
