"""The other arms against their definitions: embedding dropout, noisy embeddings, active forgetting, CosReg."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from condense.errors import UnavailableError, UsageError
from condense.records.plans import RemedyName
from condense.training.arm_names import parse_arms
from condense.training.interventions import (
    ActiveForgetting,
    cosreg,
    embedding_dropout,
    noisy_embedding,
    reset_embeddings,
)
from condense.training.remedies import REMEDIES, remedy_of
from tests.conftest import VOCABULARY, build, tiny_config


def model_of(name: str, **changes: Any) -> Any:
    config = tiny_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    return build(config).train()


class Watch:
    """What the input embeddings of a model give in its forward passes, after the hooks that are there already."""

    def __init__(self, model: Any) -> None:
        self.seen: list[Tensor] = []
        self.hook = model.get_input_embeddings().register_forward_hook(lambda m, a, output: self.seen.append(output))

    def __enter__(self) -> list[Tensor]:
        return self.seen

    def __exit__(self, *exception: object) -> None:
        self.hook.remove()


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


IDS = torch.randint(1, 60, (3, 40), generator=torch.Generator().manual_seed(0))  # few words, so that they repeat


# --- embedding dropout ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_whole_words_are_dropped_and_the_others_scaled(name: str) -> None:
    model = model_of(name)
    rows = model.get_input_embeddings().weight.detach()[IDS]
    with embedding_dropout(model, 0.3), Watch(model) as seen:
        model(IDS)
    (output,) = seen
    factor = (output.detach() * rows).sum(-1) / rows.square().sum(-1)
    torch.testing.assert_close(output.detach(), rows * factor[..., None])
    torch.testing.assert_close(factor[:, 0], torch.ones(3))  # the first token of a row is left alone
    factor, ids = factor[:, 1:], IDS[:, 1:]
    dropped = factor == 0
    assert dropped.any() and not dropped.all()
    torch.testing.assert_close(factor[~dropped], torch.full_like(factor[~dropped], 1 / 0.7))
    for word in ids.unique():  # dropped everywhere in the batch or nowhere
        assert len(dropped[word == ids].unique()) == 1


def test_the_first_token_of_every_document_is_left_alone() -> None:
    model = model_of("llama")
    positions = torch.tensor([[*range(15), *range(25)]]).expand(3, -1)
    mask = torch.ones_like(IDS)
    mask[2, :4] = 0
    rows = model.get_input_embeddings().weight.detach()[IDS]
    with embedding_dropout(model, 0.99), Watch(model) as seen, torch.no_grad():
        model(input_ids=IDS, position_ids=positions)
        model(input_ids=IDS, attention_mask=mask)
    same = [(output == rows).all(-1) for output in seen]
    assert same[0][:, [0, 15]].all() and same[0].sum() == 6
    assert same[1][:2, 0].all() and same[1][2, 4] and same[1].sum() == 3


def test_documents_that_lose_their_first_word_do_not_blow_up_a_deep_model() -> None:
    """Without position embeddings its state would stay 0, and 24 RMSNorms of 0 in a chain have no finite gradient."""
    model = model_of("llama", num_hidden_layers=24, rms_norm_eps=1e-5)
    positions = torch.tensor([[*range(15), *range(25)]]).expand(3, -1)

    def finite() -> bool:
        model.zero_grad()
        model(input_ids=IDS, position_ids=positions, labels=IDS).loss.backward()
        return all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())

    torch.manual_seed(0)
    with embedding_dropout(model, 0.9):
        assert finite()
    hook = model.get_input_embeddings().register_forward_hook(
        lambda m, a, output: output * (positions > 0).unsqueeze(-1)
    )
    assert not finite(), "the hazard is real"
    hook.remove()


def test_words_are_dropped_as_often_as_asked_and_anew_in_every_pass() -> None:
    embeddings = model_of("llama")
    every = torch.tensor([[0, *range(VOCABULARY)]])  # behind a first token, which is never dropped
    with embedding_dropout(embeddings), Watch(embeddings) as seen, torch.no_grad():
        for _ in range(60):
            embeddings.get_input_embeddings()(every)
    dropped = torch.stack(seen).abs().sum(-1).squeeze(1)[:, 1:] == 0  # (passes, V)
    share, deviation = float(dropped.float().mean()), math.sqrt(0.1 * 0.9 / dropped.numel())
    assert abs(share - 0.1) < 4 * deviation
    assert not torch.equal(dropped[0], dropped[1])
    assert int(dropped.sum(0).max()) < 25 and int((dropped.sum(0) == 0).sum()) < 15  # no word is always or never it


def test_dropout_follows_the_global_generator() -> None:
    model = model_of("llama")

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with embedding_dropout(model), torch.no_grad():
            return Tensor(model(IDS).logits)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_only_kept_words_get_a_gradient_through_the_input() -> None:
    model = model_of("llama", tie_word_embeddings=False)
    with embedding_dropout(model, 0.5), Watch(model) as seen:
        model(input_ids=IDS, labels=IDS).loss.backward()
    seen_by_loss = seen[0].detach()[:, :-1]  # the last state predicts nothing
    kept = set(IDS[:, :-1][seen_by_loss.abs().sum(-1) > 0].tolist())
    gradient = model.get_input_embeddings().weight.grad.abs().sum(-1)
    assert kept and set(gradient.nonzero().flatten().tolist()) == kept


def test_a_tied_head_uses_the_whole_matrix() -> None:
    model = model_of("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    inputs = []
    hook = model.lm_head.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with embedding_dropout(model, 0.5), torch.no_grad():
        logits = model(IDS).logits
    hook.remove()
    torch.testing.assert_close(logits, inputs[0] @ model.lm_head.weight.T)


# --- noisy embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("alpha", [5.0, 15.0])
def test_the_noise_fills_its_bound_row_by_row_and_spares_padding(name: str, alpha: float) -> None:
    model = model_of(name)
    lengths = [40, 10, 3]
    mask = torch.zeros(3, 40, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    mask[2] = mask[2].flip(0)  # padding in front
    rows = model.get_input_embeddings().weight.detach()[IDS]
    with noisy_embedding(model, alpha), Watch(model) as seen, torch.no_grad():
        for _ in range(30):
            model(input_ids=IDS, attention_mask=mask)
    noise = torch.stack(seen) - rows
    assert not torch.equal(noise[0], noise[1])
    assert bool((noise.abs().amax((0, 3))[mask == 0] == 0).all())
    for row, length in enumerate(lengths):
        bound = alpha / math.sqrt(length * rows.shape[-1])
        real = noise[:, row][:, mask[row] == 1]
        assert 0.99 * bound < float(real.abs().max()) <= bound * (1 + 1e-4)
        assert abs(float(real.mean())) < 4 * bound / math.sqrt(3 * real.numel())
        assert float(real.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)  # uniform


@pytest.mark.parametrize("mask", [None, torch.ones(3, 1, 40, 40, dtype=torch.bool)])
def test_without_a_mask_of_padding_the_whole_row_counts(mask: Tensor | None) -> None:
    model = model_of("llama")
    rows = model.get_input_embeddings().weight.detach()[IDS]
    with noisy_embedding(model), Watch(model) as seen, torch.no_grad():
        model(input_ids=IDS[:, :4], attention_mask=torch.ones(3, 4))  # a mask is not remembered for the next pass
        model(input_ids=IDS, attention_mask=mask)
    bound = 5 / math.sqrt(40 * rows.shape[-1])
    assert 0.99 * bound < float((seen[1] - rows).abs().max()) <= bound * (1 + 1e-4)


# --- both -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remedy", [embedding_dropout, noisy_embedding])
def test_nothing_changes_in_evaluation_or_afterwards(remedy: Callable[[Any], Any]) -> None:
    model = model_of("llama").eval()
    plain, before = model(IDS).logits, hooks_of(model)
    with remedy(model):
        assert torch.equal(model(IDS).logits, plain)
        assert not torch.equal(model.train()(IDS).logits, plain)
    assert torch.equal(model(IDS).logits, plain) and hooks_of(model) == before


@pytest.mark.parametrize("remedy", [embedding_dropout, noisy_embedding])
def test_hooks_go_when_training_fails(remedy: Callable[[Any], Any]) -> None:
    model = model_of("gpt2")
    before = hooks_of(model)
    with pytest.raises(RuntimeError, match="torn"), remedy(model):
        raise RuntimeError("torn")
    assert hooks_of(model) == before


@pytest.mark.parametrize(
    ("remedy", "value"), [(embedding_dropout, 1.0), (embedding_dropout, -0.1), (noisy_embedding, -1.0)]
)
def test_constants_out_of_range_are_refused(remedy: Any, value: float) -> None:
    with pytest.raises(ValueError, match="must be"), remedy(model_of("gpt2"), value):
        pass


@pytest.mark.parametrize("remedy", [embedding_dropout, noisy_embedding])
def test_half_precision_stays_half(remedy: Callable[[Any], Any]) -> None:
    model = model_of("llama").to(torch.bfloat16)
    with remedy(model), Watch(model) as seen:
        assert model(input_ids=IDS, labels=IDS).loss.isfinite()
    assert seen[0].dtype == torch.bfloat16


@pytest.mark.parametrize("remedy", [embedding_dropout, noisy_embedding])
def test_a_resumed_run_repeats_the_draws(remedy: Callable[[Any], Any], tmp_path: Path) -> None:
    whole, part, plain = (model_of("llama") for _ in range(3))
    with remedy(whole):
        train(whole, tmp_path / "whole", 4, [], save_strategy="steps", save_steps=2)
    torch.rand(7)
    with remedy(part):
        train(part, tmp_path / "part", 4, [], resume=str(tmp_path / "whole" / "checkpoint-2"))
    train(plain, tmp_path / "plain", 4, [])
    one, two, three = (dict(model.named_parameters()) for model in (whole, part, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one)


# --- active forgetting ------------------------------------------------------------------------------


class Recorder(TrainerCallback):
    """After each step: the embeddings, and the moments that the optimizer has of them and of another matrix."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.moments: list[tuple[float, float]] = []
        self.counts: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        weight = model.get_input_embeddings().weight
        other = model.model.layers[0].mlp.up_proj.weight
        self.weights.append(weight.detach().clone())
        sizes = [
            sum(float(optimizer.state[w][key].abs().sum()) for key in ("exp_avg", "exp_avg_sq"))
            for w in (weight, other)
        ]
        self.moments.append((sizes[0], sizes[1]))
        self.counts.append(float(optimizer.state[weight]["step"]))


def train(model: Any, folder: Path, steps: int, callbacks: list[Any], **options: Any) -> None:
    rows = [{"input_ids": IDS[i % 3], "labels": IDS[i % 3]} for i in range(40)]
    resume = options.pop("resume", None)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-3, report_to="none",
        use_cpu=True, disable_tqdm=True, logging_strategy="no",
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(("steps", "every", "at"), [(7, 3, [3, 6]), (6, 2, [2, 4]), (3, 1, [1, 2]), (1, 1, [])])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning")
def test_embeddings_are_forgotten_at_the_right_steps(steps: int, every: int, at: list[int], tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=False, pad_token_id=5)
    assert model.get_input_embeddings().padding_idx == 5
    start = model.get_input_embeddings().weight.detach().clone()
    forgetting, recorder = ActiveForgetting(seed=3), Recorder()
    train(model, tmp_path, steps, [forgetting, recorder])
    assert (forgetting.every, forgetting.resets) == (every, len(at))
    before = start
    for step, weight in enumerate(recorder.weights, 1):
        moved = float((weight - before).abs().mean())  # Adam moves by about the learning rate, a draw by its spread
        assert (moved > 0.1) == (step in at)
        if step in at:
            others = torch.cat([weight[:5], weight[6:]])
            assert float(others.mean()) == pytest.approx(0, abs=0.01)
            assert float(others.std()) == pytest.approx(0.2, rel=0.03)  # the initializer_range of the tiny models
            assert bool((weight[5] == 0).all())
        embedded, other = recorder.moments[step - 1]
        assert (embedded == 0) == (step in at) and other > 0
        assert recorder.counts[step - 1] == step
        before = weight
    if at:
        drawn = torch.empty_like(before).normal_(0, 0.2, generator=torch.Generator().manual_seed(3 + at[-1]))
        drawn[5] = 0
        assert torch.equal(recorder.weights[at[-1] - 1], drawn)
    words = " ".join(forgetting.details)
    assert f"every {every} steps" in words and "tied" not in words


def test_a_tied_head_is_forgotten_too(tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=True)
    forgetting, recorder = ActiveForgetting(), Recorder()
    train(model, tmp_path, 4, [forgetting, recorder])
    assert forgetting.resets == 1 and "tied" in " ".join(forgetting.details)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert recorder.moments[1][0] == 0 and float((recorder.weights[1] - recorder.weights[0]).abs().mean()) > 0.1


def test_a_resumed_run_forgets_the_same(tmp_path: Path) -> None:
    whole, part = model_of("llama"), model_of("llama")
    train(whole, tmp_path / "whole", 6, [ActiveForgetting(seed=1)], save_strategy="steps", save_steps=3)
    forgetting = ActiveForgetting(seed=1)
    train(part, tmp_path / "part", 6, [forgetting], resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert forgetting.resets == 2
    for (name, one), (_, two) in zip(whole.named_parameters(), part.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_long_run_forgets_every_thousand_steps() -> None:
    class State:
        max_steps, global_step = 10_000, 0

    forgetting: Any = ActiveForgetting()
    forgetting.on_train_begin(None, State(), None, model=model_of("llama"))
    assert forgetting.every == 1000


def test_state_of_other_shapes_is_left_alone_and_the_spread_may_be_missing() -> None:
    model = model_of("gpt2")
    del model.config.initializer_range
    weight = model.get_input_embeddings().weight
    optimizer = torch.optim.Adafactor(model.parameters())
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[weight].items() if isinstance(value, Tensor)}
    reset_embeddings(model, optimizer, seed=0)
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert before and all(torch.equal(optimizer.state[weight][key], value) for key, value in before.items())


def test_frozen_embeddings_cannot_be_forgotten(tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=False)
    model.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(UsageError, match="not trained"):
        train(model, tmp_path, 2, [ActiveForgetting()])


def test_forgetting_at_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ActiveForgetting(every=0)


# --- CosReg -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_cosreg_is_the_mean_over_pairs_of_rows(tied: bool) -> None:
    model = model_of("llama", tie_word_embeddings=tied, vocab_size=50)
    rows = model.get_output_embeddings().weight.detach().double().numpy()
    cosines = []
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j:
                cosines.append(rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]))
    assert cosreg(model).item() == pytest.approx(np.mean(cosines), abs=1e-6)


def test_a_step_down_its_gradient_lowers_cosreg() -> None:
    model = model_of("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight += 0.2  # rows that agree
    before = cosreg(model)
    before.backward()
    assert before.ndim == 0 and before.item() > 0.3
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["lm_head.weight"]
    with torch.no_grad():
        model.lm_head.weight -= 100 * model.lm_head.weight.grad
    assert cosreg(model).item() < before.item() - 0.01


def test_cosreg_needs_a_head() -> None:
    from transformers import LlamaModel

    with pytest.raises(UnavailableError, match="no output embeddings"):
        cosreg(build(tiny_config("llama"), cls=LlamaModel))


# --- in words ---------------------------------------------------------------------------------------


def test_every_arm_has_a_definition_with_its_constants_and_its_source() -> None:
    said = {spec.remedy: remedy_of(spec).definition(spec) for spec in parse_arms(",".join(get_args(RemedyName)))}
    assert set(said) == set(REMEDIES) == set(get_args(RemedyName))
    assert len({one.title for one in REMEDIES.values()}) == len(said)
    for name, one in REMEDIES.items():
        assert said[name].endswith(".") and (one.is_control or "arXiv:" in one.source or one.source.startswith("ours"))
    for name, words in {
        "embedding-dropout": "0.1", "noisy-embedding": "5/√", "active-forgetting": "1,000", "larger-vocab": "20%",
        "cosreg": "1.0 ·", "dispersion": "0.1 · the angular loss",
    }.items():  # fmt: skip
        assert words in said[name]


@pytest.mark.parametrize(
    ("arm", "words"), [("@late", "deepest half"), ("@3+-1", "the blocks 3, -1"), ("", "all blocks")]
)
def test_the_definition_of_dispersion_names_loss_and_blocks(arm: str, words: str) -> None:
    spec = parse_arms(f"dispersion:l2_repel{arm}=0.3")[1]
    said = remedy_of(spec).definition(spec)
    assert "0.3 · the l2_repel loss" in said and words in said
