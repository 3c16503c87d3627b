"""Robust dispersion, placebos, SimReg and the schedule of the coefficient, each against its definition."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import condense
from condense.dispersion.callback import CondensationMonitor
from condense.dispersion.config import DispersionConfig
from condense.dispersion.losses import angular
from condense.dispersion.trainer import DispersionTrainer
from condense.dispersion.variants import PENALTIES, norms, projected, robust, shuffled, simreg
from condense.errors import RunError, UsageError
from condense.records.plans import Plan
from condense.records.schedules import schedule_factor
from tests.dispersion.ddp_gradients import collate, llama, rows


def cloud(seed: int = 0, batch: int = 3, tokens: int = 10, width: int = 16, shift: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, tokens, width, generator=generator) + shift).requires_grad_()


def gradient(value: Tensor, states: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, states, retain_graph=True)
    return found


MASK = torch.tensor([[True] * 10, [True] * 6 + [False] * 4, [False] + [True] * 9])


# --- robust -------------------------------------------------------------------------------------------


def test_robust_is_angular_on_standardised_states() -> None:
    states = cloud()
    kept = states.detach()[MASK]
    by_hand = angular((states - kept.mean(0)) / kept.std(0), MASK)
    assert float(robust(states, MASK).detach()) == pytest.approx(float(by_hand.detach()), abs=1e-6)


def test_robust_cannot_be_met_by_rescaling_coordinates() -> None:
    states = cloud().detach()
    scale = torch.ones(16)
    scale[:3] = 300.0
    assert float(robust(states * scale, MASK)) == pytest.approx(float(robust(states, MASK)), abs=1e-5)
    assert abs(float(angular(states * scale, MASK)) - float(angular(states, MASK))) > 0.005


def test_robust_leaves_sinks_out() -> None:
    states = cloud().detach()
    sink = states.clone()
    sink[0, 4] = 1000 * torch.ones(16)
    without = MASK.clone()
    without[0, 4] = False
    assert float(robust(sink, MASK)) == pytest.approx(float(robust(states, without)), abs=1e-6)
    shown = sink.requires_grad_()
    assert gradient(robust(shown, MASK), shown)[0, 4].count_nonzero() == 0


def test_the_studys_other_robust_leaves_the_three_strongest_coordinates_out() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "study" / "leave_out.py"))
    states = cloud().detach()
    states[..., 5:8] += 50
    weak = [i for i in range(16) if i not in (5, 6, 7)]
    found = script["leave_strongest_out"](states, MASK)
    assert float(found) == pytest.approx(float(angular(states[..., weak], MASK)), abs=1e-6)


def test_robust_statistics_carry_no_gradient() -> None:
    states = cloud()
    kept = states.detach()[MASK]
    mean, deviation = kept.mean(0), kept.std(0)
    fixed = angular((states - mean) / deviation, MASK)
    torch.testing.assert_close(gradient(robust(states, MASK), states), gradient(fixed, states))


# --- placebos -----------------------------------------------------------------------------------------


def test_shuffled_is_angular_on_tokens_of_all_texts() -> None:
    states = cloud()
    value = shuffled(states, MASK, step=3)
    generator = torch.Generator().manual_seed(1_000_003 + 3)
    order = torch.randperm(int(MASK.sum()), generator=generator)
    mixed = torch.zeros_like(states).masked_scatter(MASK[..., None], states[MASK][order])
    torch.testing.assert_close(value, angular(mixed, MASK))
    assert float(shuffled(states, MASK, step=4).detach()) != float(value.detach())
    alone = cloud(batch=1)
    assert float(shuffled(alone).detach()) == pytest.approx(float(angular(alone).detach()), abs=1e-6)
    assert gradient(value, states)[~MASK].count_nonzero() == 0


def test_projection_is_fixed_and_an_eighth_as_wide() -> None:
    states = cloud(width=64)
    value = projected(states, MASK)
    assert float(value.detach()) == float(projected(states, MASK).detach())
    matrix = torch.randn(64, 8, generator=torch.Generator().manual_seed(20260202))
    torch.testing.assert_close(value, angular(states @ matrix, MASK), rtol=1e-5, atol=1e-6)
    assert torch.linalg.matrix_rank(gradient(value, states).reshape(-1, 64)) == 8


def test_norms_have_the_gradient_size_of_angular_and_another_direction() -> None:
    states = cloud()
    ours, theirs = gradient(norms(states, MASK), states), gradient(angular(states, MASK), states)
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-4)
    directions = torch.nn.functional.normalize(states.detach()[MASK], dim=-1)
    across = ours[MASK] - (ours[MASK] * directions).sum(-1, keepdim=True) * directions
    assert float(across.norm()) < 1e-5 * float(ours.norm())


@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_every_penalty_is_connected_where_nothing_counts(name: str) -> None:
    states = cloud()
    more = {"labels": torch.zeros(3, 10, dtype=torch.long)} if name == "simreg" else {}
    none = torch.zeros(3, 10, dtype=torch.bool)
    value = PENALTIES[name](states, none, **more)
    assert float(value.detach()) == 0 and gradient(value, states).count_nonzero() == 0


# --- SimReg ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_computed_outside_of_autocast(name: str) -> None:
    states = cloud(width=64).detach()
    more = {"labels": torch.arange(10).remainder(3).expand(3, 10)} if name == "simreg" else {}
    plain = PENALTIES[name](states, MASK, **more)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(PENALTIES[name](states, MASK, **more), plain, rtol=1e-6, atol=1e-7)
    half = states.bfloat16()
    exact = PENALTIES[name](half.float(), MASK, **more)
    torch.testing.assert_close(PENALTIES[name](half, MASK, **more).float(), exact, rtol=1e-5, atol=1e-6)


def test_simreg_by_its_definition() -> None:
    states = cloud(tokens=7).detach()
    labels = torch.tensor([[4, 4, 4, 2, 2, 9, -1], [1, 2, 3, 4, 5, 6, -1], [7, 7, 7, 7, 7, -1, -1]])
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 1] = False
    totals = []
    for own, label, kept in zip(states.double(), labels.tolist(), mask.tolist(), strict=True):
        unit = own / own.norm(dim=-1, keepdim=True)
        tokens = [i for i in range(7) if kept[i]]
        anchors = []
        for i in tokens:
            partners = [p for p in tokens if p != i and label[i] >= 0 and label[p] == label[i]]
            below = sum(math.exp(float(unit[i] @ unit[a]) / 0.1) for a in tokens if a != i)
            if partners:
                terms = [-math.log(math.exp(float(unit[i] @ unit[p]) / 0.1) / below) for p in partners]
                anchors.append(sum(terms) / len(terms))
        if anchors:
            totals.append(sum(anchors) / len(anchors))
    assert float(simreg(states, mask, labels=labels)) == pytest.approx(sum(totals) / len(totals), rel=1e-5)
    with pytest.raises(ValueError, match="labels"):
        simreg(states, mask)


def test_the_disperser_gives_the_next_tokens_of_each_document() -> None:
    model, batch = llama(), collate(rows((9, 5)))
    with condense.Disperser(model, 1.0, loss="simreg", layers="last", max_tokens=0) as disperser:
        model(**batch)
        value = disperser.penalty()
    seen: list[Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(lambda m, a, o: seen.append(o))
    model(**batch)
    hook.remove()
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    labels = torch.full_like(ids, -1)
    labels[:, :-1] = torch.where(attended[:, 1:] & attended[:, :-1], ids[:, 1:], -1)
    kept = attended & ~torch.isin(ids, disperser._special)
    kept[:, 0] = False
    torch.testing.assert_close(value, simreg(seen[0], kept, labels=labels))


# --- the schedule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "share", "factor"),
    [
        ("constant", 0.9, 1.0), ("linear", 0.25, 0.75), ("linear", 1.0, 0.0), ("linear:0.25", 0.125, 0.5),
        ("linear:0.25", 0.25, 0.0), ("linear:0.25", 0.9, 0.0), ("cosine", 0.5, 0.5), ("cosine:0.5", 0.125, 0.8535534),
        ("cosine:0.5", 0.5, 0.0),
    ],
)  # fmt: skip
def test_the_factor_of_a_schedule(schedule: str, share: float, factor: float) -> None:
    assert schedule_factor(schedule, share) == pytest.approx(factor)


@pytest.mark.parametrize(
    "schedule", ["", "line", "linear:", "constant:", "linear:0", "linear:2", "linear:nan", "constant:0.5", "cosine:x"]
)
def test_schedules_that_are_none(schedule: str) -> None:
    with pytest.raises(ValueError, match="a schedule is"):
        DispersionConfig(schedule=schedule)
    with pytest.raises(UsageError, match="--coefficient-schedule"):
        Plan(coefficient_schedule=schedule)


def test_a_plain_loop_under_a_schedule() -> None:
    model, batch = llama(), collate(rows((9, 5)))
    with condense.Disperser(model, 2.0, schedule="linear:0.5", steps=4, max_tokens=0) as disperser:
        values = []
        for step in range(4):
            model(**batch)
            values.append(float(disperser.penalty(step=step).detach()))
            assert disperser.value.isnan() == disperser.mean_cosine.isnan() == (step >= 2), "no reading of an old step"
        assert values[1] == pytest.approx(values[0] / 2) and values[2:] == [0.0, 0.0]
        assert not disperser.attached
        assert all(not module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="needs steps="):
        with condense.Disperser(model, 2.0, schedule="linear") as disperser:
            model(**batch)
            disperser.penalty(step=0)


def test_a_falling_coefficient_goes_by_optimizer_steps_not_by_calls() -> None:
    """With four micro-batches a step it was gone after one step of eight."""
    model, batch = llama(), collate(rows((9, 5)))
    with condense.Disperser(model, 2.0, schedule="linear:0.5", steps=8, max_tokens=0) as disperser:
        model(**batch)
        with pytest.raises(ValueError, match="step="):
            disperser.penalty()
        values = [float(disperser.penalty(step=0).detach())]
        for call in range(1, 16):
            model(**batch)
            values.append(float(disperser.penalty(step=call // 4).detach()))
    assert values == pytest.approx([values[0] * factor for factor in (1.0, 0.75, 0.5, 0.25) for _ in range(4)])


def falling_trainer(folder, schedule: str, coefficient: float = 1.0, steps: int = 4, accumulation: int = 1, **more):  # type: ignore[no-untyped-def]
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2 // accumulation,
        gradient_accumulation_steps=accumulation,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=0.0,
    )
    config = DispersionConfig(coefficient=coefficient, schedule=schedule, max_tokens=0)
    return DispersionTrainer(
        llama(), args, train_dataset=rows((9, 9)), data_collator=collate, dispersion=config, **more
    )


def test_a_schedule_ends_whatever_the_coefficient() -> None:
    config = DispersionConfig(coefficient=0.0, schedule="linear:0.5", steps=4)
    assert [config.has_ended(step) for step in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("schedule", ["constant", "linear:0.5"])
def test_a_loss_that_is_not_finite_is_found_at_every_step(schedule: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Infinite with a finite gradient, so that only the loss tells."""
    trainer = falling_trainer(tmp_path, schedule)
    plain = type(trainer)._supers_loss

    def broken(loss_model, inputs, return_outputs, items):  # type: ignore[no-untyped-def]
        loss, outputs, own = plain(trainer, loss_model, inputs, return_outputs, items)
        return loss + (float("nan") if trainer.state.global_step == 3 else 0.0), outputs, own

    trainer._supers_loss = broken
    with pytest.raises(RunError, match="the loss at step 3 is nan"):
        trainer.train()


@pytest.mark.parametrize(("coefficient", "warned"), [(0.1, False), (1e-3, True)])
def test_a_falling_penalty_is_not_called_faint(coefficient, warned, tmp_path, recwarn) -> None:  # type: ignore[no-untyped-def]
    """At .1 and half of 60 steps the last ratios are 1e-4 of cross-entropy because they are meant to be."""
    monitor = [CondensationMonitor(quiet=True, every=100)]
    trainer = falling_trainer(tmp_path, "cosine:0.5", coefficient, 60, callbacks=monitor)
    trainer.train()
    assert min(entry["penalty_to_ce"] for entry in trainer.state.log_history if entry.get("penalty_to_ce")) < 1e-3
    assert any("too faint" in str(one.message) for one in recwarn) is warned


def test_the_hooks_are_off_behind_the_end_under_accumulation(tmp_path) -> None:  # type: ignore[no-untyped-def]
    trainer = falling_trainer(tmp_path, "linear:0.5", accumulation=2)
    plain, hooked = trainer._supers_loss, []

    def noted(*given):  # type: ignore[no-untyped-def]
        hooked.append(any(module._forward_hooks for module in trainer.model.modules()))
        return plain(*given)

    trainer._supers_loss = noted
    trainer.train()
    assert hooked == [True] * 4 + [False] * 4


def test_the_trainer_lets_the_coefficient_fall(tmp_path) -> None:  # type: ignore[no-untyped-def]
    trainer = falling_trainer(tmp_path, "linear:0.5")
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    penalties = [entry["dispersion_penalty"] for entry in logs]
    assert penalties[1] == pytest.approx(penalties[0] / 2, rel=1e-5) and penalties[2:] == [0.0, 0.0]
    assert "dispersion_value" not in logs[2] and logs[2]["loss"] == pytest.approx(logs[2]["ce_loss"])
    assert not trainer.disperser.attached
