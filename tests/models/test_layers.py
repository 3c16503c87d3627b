"""The sites are what they are called: compared with the models' own hidden states and with separate hooks."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condense.diagnosis import forward as measuring
from condense.diagnosis.forward import read_texts
from condense.diagnosis.quality import Scorer
from condense.errors import UnavailableError
from condense.models.checks import self_check
from condense.models.layers import Site, Stack, find_stacks, run, shifted, unwrapped, watching
from condense.texts.windows import windows
from tests.conftest import CAUSAL, build, tiny_config

IDS = torch.arange(3, 3 + 40).view(2, 20)
LAST_BLOCK = {
    "gpt2": "transformer.h.2", "llama": "model.layers.2", "qwen2": "model.layers.2", "qwen3": "model.layers.2",
    "bert": "bert.encoder.layer.2",
}  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    """A tiny GPT-2 of this test's own."""
    found: nn.Module = build(tiny_config("gpt2"))
    return found


@torch.inference_mode()
def captured(model: Any, ids: Tensor = IDS) -> dict[str, list[tuple[Site, Tensor]]]:
    """All sites of a model on `ids` by stack, in the order in which they came."""
    stacks = find_stacks(model)
    seen: dict[str, list[tuple[Site, Tensor]]] = {stack.name: [] for stack in stacks}

    def receive(site: Site, states: Tensor) -> None:
        seen[site.stack].append((site, states.clone()))

    if len(stacks) == 1:
        with watching(stacks[0], receive):
            run(model, stacks, ids)
    else:
        with watching(stacks[0], receive), watching(stacks[1], receive):
            run(model, stacks, ids)
    return seen


def hooks_of(model: nn.Module) -> int:
    """Hooks of ours: transformers keeps some of its own."""
    hooks = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(hook.__module__.startswith("condense") for hook in hooks)


# --- the sites --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CAUSAL, "bert"])
def test_sites_are_the_models_own_hidden_states(opened: Callable[[str], Any], name: str) -> None:
    model = opened(name).model
    ((stack, seen),) = captured(model).items()
    assert stack == ("encoder" if name == "bert" else "decoder")
    assert [(site.name, site.index, site.depth) for site, _ in seen] == [
        ("embedding", 0, 0.0), ("block", 1, 1 / 3), ("block", 2, 2 / 3), ("block", 3, 1.0), ("output", 3, 1.0),
    ]  # fmt: skip
    before: list[Tensor] = []
    block = model.get_submodule(LAST_BLOCK[name])
    hook = block.register_forward_hook(
        lambda module, args, output: before.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        output = model.base_model(IDS, output_hidden_states=True)
    hook.remove()
    states = [x for _, x in seen]
    for mine, theirs in zip(states[:3], output.hidden_states[:3], strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(states[3], before[0])
    torch.testing.assert_close(states[4], output.last_hidden_state)
    torch.testing.assert_close(states[4], output.hidden_states[-1])
    if name in CAUSAL:  # the final norm stands between them
        assert not torch.allclose(states[3], states[4], atol=1e-2)
    else:
        torch.testing.assert_close(states[3], states[4])


def test_embedding_is_what_block_1_receives(opened: Callable[[str], Any]) -> None:
    """Tokens and positions for GPT-2, not the token rows alone."""
    model = opened("gpt2").model
    parts = model.transformer
    expected = parts.wte(IDS) + parts.wpe(torch.arange(20))
    torch.testing.assert_close(captured(model)["decoder"][0][1], expected.detach())


def test_a_shared_block_fires_once_per_layer(opened: Callable[[str], Any]) -> None:
    model = opened("albert").model
    (stack,) = find_stacks(model)
    assert len(stack.modules) == 1 and stack.blocks == 3
    seen = captured(model)["encoder"]
    assert [site.name for site, _ in seen] == ["embedding", "block", "block", "block", "output"]
    with torch.no_grad():
        theirs = model.base_model(IDS, output_hidden_states=True).hidden_states
    for (_, mine), state in zip(seen[1:4], theirs[1:], strict=True):
        torch.testing.assert_close(mine, state)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_two_stacks(opened: Callable[[str], Any], name: str) -> None:
    model = opened(name).model
    seen = captured(model)
    assert [len(seen["encoder"]), len(seen["decoder"])] == [2 + 2, 3 + 2]
    with torch.no_grad():
        output = model(input_ids=IDS, decoder_input_ids=shifted(IDS, model.config), output_hidden_states=True)
    torch.testing.assert_close(seen["encoder"][-1][1], output.encoder_last_hidden_state)
    for (_, mine), state in zip(seen["decoder"][:3], output.decoder_hidden_states[:3], strict=True):
        torch.testing.assert_close(mine, state)


def test_decoder_inputs_are_shifted_behind_the_start_token(opened: Callable[[str], Any]) -> None:
    model = opened("bart").model
    torch.testing.assert_close(shifted(IDS, model.config), model.prepare_decoder_input_ids_from_labels(IDS))


@pytest.mark.parametrize("cls", ["GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification"])
def test_the_stack_is_found_under_any_head(cls: str) -> None:
    import transformers

    config = tiny_config("gpt2")
    config.pad_token_id = 0
    found = build(config, cls=getattr(transformers, cls))
    (stack,) = find_stacks(found)
    assert stack.blocks == 3 and type(stack.root).__name__ == "GPT2Model"
    self_check(found, (stack,), IDS)


def test_wrappers_are_looked_through(model: Any) -> None:
    import peft

    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert unwrapped(adapted) is model
    assert unwrapped(nn.DataParallel(model)) is model
    (stack,) = find_stacks(adapted)
    assert stack.blocks == 3
    self_check(adapted, (stack,), IDS)


def test_a_longer_list_beside_the_blocks_is_not_taken_for_them(model: Any) -> None:
    model.transformer.extras = nn.ModuleList([nn.Linear(500, 500) for _ in range(7)])
    (stack,) = find_stacks(model)
    assert stack.modules == tuple(model.transformer.h)


def test_no_blocks() -> None:
    bare: Any = nn.Linear(3, 3)
    bare.config = tiny_config("gpt2")
    with pytest.raises(UnavailableError, match="no list of 3 blocks"):
        find_stacks(bare)


# --- self check -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CAUSAL, "bert", "albert", "bart", "t5"])
def test_self_check_passes_the_honest(opened: Callable[[str], Any], name: str) -> None:
    found = opened(name).model
    self_check(found, find_stacks(found), IDS)
    assert hooks_of(found) == 0


def test_self_check_refuses_sites_that_are_not_the_stream(model: Any) -> None:
    (stack,) = find_stacks(model)
    wrong = dataclasses.replace(stack, modules=tuple(block.mlp for block in model.transformer.h))
    with pytest.raises(UnavailableError, match=r"hidden state \d of GPT2Model is none of the sites"):
        self_check(model, (wrong,), IDS)
    assert hooks_of(model) == 0


def test_self_check_refuses_another_order(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = model.transformer.forward

    def lie(*args: Any, **kwargs: Any) -> Any:
        output = honest(*args, **kwargs)
        first, second, *rest = output.hidden_states
        output.hidden_states = (second, first, *rest)
        return output

    monkeypatch.setattr(model.transformer, "forward", lie)
    with pytest.raises(UnavailableError, match="none of the sites"):
        self_check(model, find_stacks(model), IDS)


def test_self_check_refuses_a_foreign_last_state(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = model.transformer.forward

    def lie(*args: Any, **kwargs: Any) -> Any:
        output = honest(*args, **kwargs)
        output.hidden_states = (*output.hidden_states[:-1], 2 * output.hidden_states[-1])
        return output

    monkeypatch.setattr(model.transformer, "forward", lie)
    with pytest.raises(UnavailableError, match="last hidden state"):
        self_check(model, find_stacks(model), IDS)


def test_self_check_needs_hidden_states(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = model.transformer.forward

    def silent(*args: Any, **kwargs: Any) -> Any:
        output = honest(*args, **kwargs)
        output.hidden_states = None
        return output

    monkeypatch.setattr(model.transformer, "forward", silent)
    with pytest.raises(UnavailableError, match="no hidden states"):
        self_check(model, find_stacks(model), IDS)


def test_a_skipped_block_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (stack,) = find_stacks(model)
    monkeypatch.setattr(model.transformer, "h", model.transformer.h[:2])
    monkeypatch.setattr(model.transformer.config, "n_layer", 2)
    with pytest.raises(UnavailableError, match="2 of 3 blocks"), watching(stack, lambda site, states: None):
        run(model, (stack,), IDS)


class _Wide(nn.Module):
    """A block that hands on two streams."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = states[0] if states.ndim == 4 else states
        output = self.block(states, *args, **kwargs)
        states = output[0] if isinstance(output, tuple) else output
        return states.expand(2, *states.shape)


def test_several_streams_are_refused(model: Any) -> None:
    model.transformer.h[0] = _Wide(model.transformer.h[0])
    with pytest.raises(UnavailableError, match=r"block 1 .*\(2, 2, 20, 32\), not one"):
        captured(model)
    assert hooks_of(model) == 0


# --- hooks and memory -------------------------------------------------------------------------------


def test_hooks_are_removed(model: Any) -> None:
    (stack,) = find_stacks(model)
    with watching(stack, lambda site, states: None):
        assert hooks_of(model) > 0
    assert hooks_of(model) == 0
    with pytest.raises(KeyError), watching(stack, lambda site, states: None):
        raise KeyError
    assert hooks_of(model) == 0


def test_watching_counts_every_forward_pass_anew(model: Any) -> None:
    seen: list[tuple[str, int]] = []
    (stack,) = find_stacks(model)
    with torch.inference_mode(), watching(stack, lambda site, states: seen.append((site.name, site.index))):
        run(model, (stack,), IDS)
        run(model, (stack,), IDS)
    assert seen[:5] == seen[5:] and len(seen) == 10


def test_a_failed_pass_leaves_no_count_behind(model: Any) -> None:
    (stack,) = find_stacks(model)
    seen: list[str] = []

    def receive(site: Site, states: Tensor) -> None:
        seen.append(site.name)
        if len(seen) == 2:
            raise RuntimeError("once")

    with torch.inference_mode(), watching(stack, receive):
        with pytest.raises(RuntimeError, match="once"):
            run(model, (stack,), IDS)
        run(model, (stack,), IDS)
    assert seen[2:] == ["embedding", "block", "block", "block", "output"]


def test_hooks_change_nothing(model: Any) -> None:
    (stack,) = find_stacks(model)
    with torch.inference_mode():
        plain = model(IDS).logits
        with watching(stack, lambda site, states: None):
            assert torch.equal(model(IDS).logits, plain)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_states_of_one_site_at_a_time(
    opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """When a site is read, the one before it is the model's own last reference and earlier ones are gone."""
    checkpoint = opened("llama")
    texts = windows(checkpoint.tokenizer, num_texts=3, max_length=32)
    refs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def spying(stack: Stack, receive: Any) -> Any:
        def spy(site: Site, states: Tensor) -> None:
            alive.append(sum(ref() is not None for ref in refs))
            receive(site, states)
            if site.name != "embedding":  # the model itself keeps these to its end
                refs.append(weakref.ref(states))

        return watching(stack, spy)

    monkeypatch.setattr(measuring, "watching", spying)
    model, stacks = checkpoint.model, find_stacks(checkpoint.model)
    scorer = Scorer(model, "causal", None, None, 0, "not scored")
    readings = list(
        read_texts(
            model, stacks, texts, scorer, indices=[0, 1, 2], batch_size=batch_size, spectral_tokens=16, seed=0
        )
    )  # fmt: skip
    assert len(alive) == 5 * (3 // batch_size) and max(alive) <= 1
    assert not any(ref() is not None for ref in refs)
    assert [reading.index for reading in readings] == [0, 1, 2]
    for reading in readings:
        for place in reading.sites:
            kept = [v for name, v in vars(place).items() if isinstance(v, Tensor) and name != "shared"]
            assert place.spectra is None and max(v.numel() for v in kept) <= 200  # no states, no Gram matrices
            assert len(place.shared) <= 64  # sums of the tokens that the corpus repeats
