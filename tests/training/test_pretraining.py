"""Coupled Adam and LayerNorm scaling against their definitions."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from condense.errors import UnavailableError, UsageError
from condense.records.options import ModelOptions
from condense.records.plans import Plan
from condense.records.treatment import Curve, Schedule
from condense.training import costs, loop, pretraining
from condense.training.arm_names import parse_arms
from condense.training.learning import Evaluation
from condense.training.loop import Trained
from condense.training.pretraining import CoupledAdam, fold_layernorm_scaling, layernorm_scaling
from condense.training.remedies import remedy_of
from condense.training.rows import Rows
from tests.conftest import build, tiny_config

IDS = torch.randint(1, 60, (4, 12), generator=torch.Generator().manual_seed(0))


def train(model: Any, folder: Path, callbacks: list[Any], steps: int = 3, **more: Any) -> None:
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-2, weight_decay=0.1, lr_scheduler_type="constant",
        max_grad_norm=0.0, **more,
    )  # fmt: skip
    Trainer(model, args, train_dataset=[{"input_ids": row, "labels": row} for row in IDS], callbacks=callbacks).train()


class ByHand:
    """Coupled AdamW of two matrices in plain code, beside torch's for the rest."""

    def __init__(self, weights: list[nn.Parameter], lr: float, decay: float) -> None:
        self.weights, self.lr, self.decay, self.t = weights, lr, decay, 0
        self.m = [torch.zeros_like(w) for w in weights]
        self.v = [torch.zeros(w.shape[1]) for w in weights]

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        for w, m, v in zip(self.weights, self.m, self.v, strict=True):
            m.mul_(0.9).add_(0.1 * w.grad)
            v.mul_(0.999).add_(0.001 * w.grad.square().mean(0))  # the recursion is linear, so the mean comes first
            w.mul_(1 - self.lr * self.decay)
            w.sub_(self.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8))


@pytest.mark.parametrize("tied", [True, False])
def test_coupled_adam_takes_the_steps_of_its_definition(tied: bool, tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.tie_word_embeddings = tied
    ours, theirs = build(config), build(config)
    batches: list[torch.Tensor] = []
    hook = ours.register_forward_pre_hook(lambda m, a, k: batches.append(k["input_ids"].clone()), with_kwargs=True)
    train(ours, tmp_path, [CoupledAdam()])
    hook.remove()
    parts = {theirs.get_input_embeddings().weight, theirs.get_output_embeddings().weight}
    rest = [p for p in theirs.parameters() if p not in parts]
    decayed = {p for n, p in theirs.named_parameters() if p.ndim > 1}
    other = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p in decayed], "weight_decay": 0.1},
            {"params": [p for p in rest if p not in decayed], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    coupled = ByHand([p for p in parts if p.requires_grad], 1e-2, 0.1)
    theirs.train()
    for batch in batches:
        theirs.zero_grad()
        theirs(input_ids=batch, labels=batch).loss.backward()
        other.step()
        coupled.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-4, atol=2e-5)


def test_coupled_adam_wants_adam(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coupled-adam"):
        train(build(tiny_config("llama")), tmp_path, [CoupledAdam()], optim="sgd")
    frozen = build(tiny_config("llama"))
    frozen.get_input_embeddings().weight.requires_grad_(False)
    frozen.get_output_embeddings().weight.requires_grad_(False)
    with pytest.raises(UsageError, match="not trained"):
        train(frozen, tmp_path, [CoupledAdam()])


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_norms_are_scaled_and_then_folded(name: str) -> None:
    torch.manual_seed(0)
    model = build(tiny_config(name)).eval().double()  # in float32 rounding alone is 1e-6
    plain = [norm for block in _blocks(model) for norm in _norms(block)]
    outputs: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        before = [norm(torch.ones(1, norm.weight.numel()).double().cumsum(-1)) for norm in plain]
        with layernorm_scaling(model):
            for number, block in enumerate(_blocks(model), 1):
                for norm in _norms(block):
                    outputs[id(norm)] = norm(torch.ones(1, norm.weight.numel()).double().cumsum(-1)) * math.sqrt(number)
            inside = model(IDS).logits
        fold_layernorm_scaling(model)
        after = model(IDS).logits
    for norm, value in zip(plain, before, strict=True):
        torch.testing.assert_close(outputs[id(norm)], value)
    torch.testing.assert_close(after, inside, rtol=1e-5, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def train_as_arm(model: Any, arm: str, folder: Path, plan: Plan | None = None, **more: Any) -> tuple[Trained, Any]:
    """Train a model in place as an arm of a trial is trained, a row a micro-batch."""
    plan, spec = plan or Plan(max_steps=4, learning_rate=1e-2), parse_arms(arm)[-1]
    schedule = Schedule(4, 12, plan.max_steps or 4, 24, 96, 1, 2, False, 4, 1, "", "", 0)
    rows = Rows(
        [{"input_ids": row, "labels": row.clone(), "attention_mask": torch.ones(12).long()} for row in IDS], 12, False
    )
    acts = remedy_of(spec).acts(spec, plan)
    torch.manual_seed(0)
    return loop.train(model, None, rows, plan, schedule, intervention=acts, folder=folder, masked=False, **more)


def test_a_trained_arm_is_folded_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config("gpt2")
    model, seen = build(config), []
    _, trained = train_as_arm(
        model,
        "layernorm-scaling",
        tmp_path,
        evaluation=Evaluation(lambda model: seen.append(model.eval()(IDS).logits.detach()) or (0.0,), frozenset({4})),
    )
    with torch.no_grad():
        torch.testing.assert_close(trained.eval()(IDS).logits, seen[-1], rtol=1e-4, atol=1e-5)


def test_the_control_reads_its_cosine_under_a_schedule(tmp_path: Path) -> None:
    plan = Plan(max_steps=4, coefficient_schedule="linear:0.5")
    curves = {}
    for arm in ("control", "dispersion=1"):
        torch.manual_seed(0)
        curves[arm] = train_as_arm(build(tiny_config("gpt2")), arm, tmp_path / arm, plan)[0].curve.mean_cosine
    assert all(value is not None for value in curves["control"])
    assert [value is not None for value in curves["dispersion=1"]] == [True, True, False, False]


def test_the_ratio_of_a_penalty_is_over_the_steps_that_had_it(tmp_path: Path) -> None:
    plan, ratios = Plan(max_steps=8, learning_rate=1e-9), {}
    for arm in ("control", "dispersion=1", "dispersion+linear:0.25=1", "cosreg=1"):
        torch.manual_seed(0)
        trained, _ = train_as_arm(build(tiny_config("gpt2")), arm, tmp_path / arm, plan)
        ratios[arm] = trained.curve.penalty_to_ce
    assert ratios["control"] == 0 and ratios["cosreg=1"]
    assert ratios["dispersion+linear:0.25=1"] == pytest.approx(0.75 * ratios["dispersion=1"], rel=0.1)
    zero = Curve((1, 2, 3), (2.0, 2.0, 2.0), (0.2, 0.0, 0.0), (0.5, 0.5, None))
    assert zero.penalty_to_ce == pytest.approx(0.05), "a loss that is met at a step counts, a step without it does not"
    assert Curve().penalty_to_ce is None


@pytest.mark.parametrize("arm", ["dispersion+linear:0.75=1", "coupled-adam", "layernorm-scaling"])
def test_a_resumed_arm_ends_where_the_uninterrupted_one_does(arm: str, tmp_path: Path) -> None:
    plan, ended = Plan(max_steps=4, learning_rate=1e-2, save_steps=2), []
    for resume in (False, True):
        torch.manual_seed(0)
        trained, model = train_as_arm(build(tiny_config("gpt2")), arm, tmp_path, plan, resume=resume)
        shutil.rmtree(tmp_path / "checkpoint-4")
        ended.append((trained.curve.penalty, {name: value.clone() for name, value in model.state_dict().items()}))
    (whole, weights), (resumed, same) = ended
    assert resumed == whole and ("linear" not in arm or (whole[2] != 0 == whole[3]))
    assert all(torch.equal(weights[name], value) for name, value in same.items())


def test_the_memory_of_coupled_adam_is_that_of_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coupled = []
    plain = pretraining.coupled_step
    monkeypatch.setattr(pretraining, "coupled_step", lambda *given: coupled.append(1) or plain(*given))
    torch.save({"input_ids": IDS, "labels": IDS}, tmp_path / "batch.pt")
    spec, options = parse_arms("coupled-adam")[-1], ModelOptions(device="cpu")
    monkeypatch.setattr(costs, "load", lambda *given: SimpleNamespace(model=build(tiny_config("gpt2"))))
    peak = costs._peak_of_job(costs.Footprint("model", options, spec, Plan(), 0, str(tmp_path / "batch.pt")))
    assert isinstance(peak, int), peak
    assert len(coupled) == costs.STEPS, "one tied matrix"


def _blocks(model: Any) -> list[nn.Module]:
    return list(model.model.layers if hasattr(model, "model") else model.transformer.h)


def _norms(block: nn.Module) -> list[Any]:
    width = 32
    return [part for part in block.modules() if "Norm" in type(part).__name__ and part.weight.numel() == width]


def test_norms_that_do_not_scale_with_their_weight_are_refused() -> None:
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    kept = [p.clone() for p in model.parameters()]
    with pytest.raises(UnavailableError, match="Gemma2RMSNorm"), layernorm_scaling(model):
        pass
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
