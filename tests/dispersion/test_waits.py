"""What would make the host wait for a GPU: none of it happens in a hook, nor in a step with a penalty.

There is no GPU here: every operation is looked at as it is dispatched, and the step also runs on the meta device,
where whatever needs a value fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from condense.dispersion.disperser import Disperser
from condense.dispersion.losses import LOSSES
from condense.dispersion.tokens import choose, find_documents
from tests.waiting import CONFIG, NoWaiting


@pytest.mark.parametrize("wait", ["x.sum().item()", "x[x > 0]", "x.nonzero()", "bool(x.any())", "x.unique()"])
def test_a_wait_is_seen(wait: str) -> None:
    with pytest.raises(AssertionError), NoWaiting():
        eval(wait, {"x": torch.ones(3)})


@contextmanager
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the look at whether states were finite, which on a GPU is the next step's; meta has no autocast."""
    with monkeypatch.context() as patch:
        patch.setattr(Disperser, "check", lambda self: None)
        patch.setattr(torch, "autocast", lambda *given, **more: nullcontext())
        yield


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("max_tokens", [8])
def test_a_step_with_a_penalty_waits_for_nothing(
    device: str, loss: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**CONFIG)).train()
        ids = torch.zeros(2, 16, dtype=torch.long)
    if device == "cpu":
        ids = torch.randint(3, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    with unchecked(monkeypatch), Disperser(model, loss=loss, max_tokens=max_tokens, special_ids=[1, 2]) as disperser:
        output = model(input_ids=ids)  # without NoWaiting: what a model does is its own
        with NoWaiting():
            (output.logits.float().mean() + disperser.penalty()).backward()
    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_hook_of_a_penalty_waits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hook by itself, with the passes of the model between them let alone."""
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG)).train()
    called = []
    for name in ("_enter", "_norm", "_block", "_leave"):
        real = getattr(Disperser, name)

        def watched(self: Disperser, *given: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            called.append(name)
            with NoWaiting():
                return real(self, *given, **more)

        monkeypatch.setattr(Disperser, name, watched)
    with Disperser(model):
        model(input_ids=torch.ones(2, 8, dtype=torch.long, device=device))
    assert {"_enter", "_block", "_leave"} <= set(called)


@pytest.mark.parametrize("max_tokens", [0, 5, 100])
def test_rows_of_one_document_give_the_tokens_that_documents_give(max_tokens: int) -> None:
    """The same tokens in the same order as where documents are found by their position ids."""
    generator = torch.Generator().manual_seed(3)
    attended = torch.rand(6, 20, generator=generator) > 0.2
    attended[1], attended[2, 1:], attended[3] = False, False, True
    ids = torch.randint(0, 9, (6, 20), generator=generator)
    special = torch.tensor([0, 4])
    rows = find_documents(attended, ids, None, special)
    running = (attended.cumsum(1) - 1).clamp(min=0)
    found = find_documents(attended, ids, running, special)
    assert rows.one_a_row and not found.one_a_row and torch.equal(rows.valid, found.valid)
    assert int(rows.sequences) == int(found.sequences)
    assert torch.equal(rows.position[attended], found.position[attended])
    one, other = choose(rows, max_tokens, 1, 2), choose(found, max_tokens, 1, 2)
    mine = [row[mask].tolist() for row, mask in zip(one.tokens, one.mask, strict=True) if mask.any()]
    assert mine == [row[mask].tolist() for row, mask in zip(other.tokens, other.mask, strict=True)]
