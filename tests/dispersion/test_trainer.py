"""The penalty inside Trainer: gradients equal to those of one whole batch, and every trap that breaks this."""

import io
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, OPTConfig, OPTForCausalLM, Trainer, TrainingArguments

from condense.dispersion.callback import CondensationMonitor
from condense.dispersion.config import DispersionConfig
from condense.dispersion.disperser import Disperser
from condense.dispersion.trainer import DispersionMixin, DispersionTrainer
from condense.errors import RunError, UsageError
from tests.dispersion.ddp_gradients import (
    COEFFICIENT,
    LENGTHS,
    SPECIAL,
    MeanOfMeans,
    OwnMean,
    Recorder,
    Undivided,
    arguments,
    arm_step,
    collate,
    distance,
    gradients,
    llama,
    one_step,
    packed,
    rows,
    unequal,
    unequal_items,
)

EXACT = 2e-6  # relative to the largest gradient; float32 sums in another order
PENALTY = {"coefficient": COEFFICIENT}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plain_penalty(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The angular loss by hand over blocks 1..L, from states that hooks of our own collect."""
    states: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, a, o: states.append(o)) for block in model.model.layers]
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    per_site = []
    for site in states:
        per_row = []
        for row, ids, mask in zip(site, batch["input_ids"], batch["attention_mask"], strict=True):
            keep = [i for i in range(len(ids)) if mask[i] and int(ids[i]) not in SPECIAL.values() and i > 0]
            unit = nn.functional.normalize(row[keep], dim=-1, eps=0)
            cosine = (unit @ unit.T)[~torch.eye(len(keep), dtype=torch.bool)]
            bounded = cosine + (cosine.clamp(-0.9, 0.9) - cosine).detach()
            per_row.append(torch.exp(-torch.acos(bounded) / math.pi).mean().log())
        per_site.append(torch.stack(per_row).mean())
    return torch.stack(per_site).mean()


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """Gradients of all 8 rows in one batch, in a plain loop with the loss written out by hand."""
    model, batch = llama(), collate(rows())
    (model(**batch).loss + COEFFICIENT * plain_penalty(model, batch)).backward()
    return gradients(model)


def step(trainer: type[Trainer], folder: Path, batch: int, accumulation: int, **changes: Any) -> dict[str, Tensor]:
    model = changes.pop("model", None) or llama()
    options = {name: changes.pop(name) for name in ("data_collator", "compute_loss_func") if name in changes}
    data = changes.pop("data", None) or rows()
    args = TrainingArguments(**arguments(folder, batch, accumulation, **changes))
    return one_step(trainer, model, data, args, **options)[0]


# --- accumulation, checkpointing, adapters ------------------------------------------------------------


@pytest.mark.parametrize("batch,accumulation", [(8, 1), (4, 2), (2, 4), (3, 3)])
def test_the_gradient_does_not_depend_on_the_accumulation(
    tmp_path: Path, whole: dict[str, Tensor], batch: int, accumulation: int
) -> None:
    assert distance(step(DispersionTrainer, tmp_path, batch, accumulation), whole) < EXACT


@pytest.mark.parametrize("trap,least", [(OwnMean, 1.0), (Undivided, 0.5)])
def test_a_loss_out_of_scale_shows(tmp_path: Path, whole: dict[str, Tensor], trap: type[Trainer], least: float) -> None:
    assert distance(step(trap, tmp_path, 2, 4), whole) > least


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, whole: dict[str, Tensor], reentrant: bool) -> None:
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert distance(step(DispersionTrainer, tmp_path, 2, 4, **options), whole) < EXACT


def adapted() -> nn.Module:
    import peft

    torch.manual_seed(3)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    return peft.get_peft_model(llama(), config)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_lora_under_accumulation(tmp_path: Path, reentrant: bool | None) -> None:
    model, batch = adapted(), collate(rows())
    penalty = plain_penalty(model.get_base_model(), batch)
    (model(**batch).loss + COEFFICIENT * penalty).backward()
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    found = step(DispersionTrainer, tmp_path, 2, 4, model=adapted(), **(options if reentrant is not None else {}))
    assert all("lora" in name for name in found)
    assert distance(found, gradients(model)) < EXACT


def test_documents_in_packed_rows_weigh_alike(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    """Micro-batches of 3, 1, 2 and 2 documents: the mean over 8 documents, not a mean of four means."""
    model, batch = llama(), packed(rows())
    with Disperser(model, COEFFICIENT) as disperser:
        (model(**batch, use_cache=False).loss + disperser.penalty()).backward()
    packing = {"data": unequal_items(), "data_collator": unequal}
    found = step(DispersionTrainer, tmp_path, 1, 4, **packing)
    assert distance(found, gradients(model)) < EXACT
    assert distance(step(MeanOfMeans, tmp_path, 1, 4, **packing), gradients(model)) > 0.01


def test_sequences_without_a_pair_do_not_count(tmp_path: Path) -> None:
    """Rows of two tokens leave one valid token; four sequences in three micro-batches are never spread evenly."""
    data = rows((9, 12, 6, 7, 2, 2))
    model, batch = llama(), collate(data)
    with Disperser(model, COEFFICIENT) as disperser:
        (model(**batch).loss + disperser.penalty()).backward()
    assert distance(step(DispersionTrainer, tmp_path, 2, 3, data=data), gradients(model)) < EXACT
    assert distance(step(MeanOfMeans, tmp_path, 2, 3, data=data), gradients(model)) > 0.01


def test_a_model_that_ignores_the_number_of_items(tmp_path: Path) -> None:
    """Without normalisation by items Trainer divides the sum by the steps, so the penalty must come undivided."""

    class Blind(DispersionTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False

    model, data = llama(), rows((10,) * 8)
    for row in data:
        row["labels"] = row["input_ids"]  # equal counts: then a mean of means of the cross-entropy is right
    batch = collate(data)
    (model(**batch).loss + COEFFICIENT * plain_penalty(model, batch)).backward()
    assert distance(step(Blind, tmp_path, 2, 4, data=data), gradients(model)) < EXACT


def test_few_tokens_are_the_same_ones_in_every_micro_batch(tmp_path: Path) -> None:
    few = {**PENALTY, "max_tokens": 4}
    found = [
        one_step(DispersionTrainer, llama(), rows(), TrainingArguments(**arguments(tmp_path, b, a)), dispersion=few)[0]
        for b, a in ((8, 1), (2, 4))
    ]
    assert distance(found[1], found[0]) < EXACT


# --- further forward passes ---------------------------------------------------------------------------


def test_label_smoothing(tmp_path: Path) -> None:
    whole_batch = step(DispersionTrainer, tmp_path, 8, 1, label_smoothing_factor=0.1)
    found = step(DispersionTrainer, tmp_path, 2, 4, label_smoothing_factor=0.1)
    assert distance(found, whole_batch) < EXACT
    assert distance(found, step(DispersionTrainer, tmp_path, 2, 4)) > 0.01


def test_a_loss_function_of_ones_own(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    def sum_over_items(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    assert distance(step(DispersionTrainer, tmp_path, 2, 4, compute_loss_func=sum_over_items), whole) < EXACT


def test_evaluation_has_no_penalty(tmp_path: Path) -> None:
    args = TrainingArguments(
        **arguments(tmp_path, 4, 1, max_steps=2, logging_steps=2, eval_strategy="steps", eval_steps=1)
    )
    trainer = DispersionTrainer(
        model=llama(), args=args, train_dataset=rows(), eval_dataset=rows((8, 8)), data_collator=collate,
        dispersion=PENALTY,
    )  # fmt: skip
    trainer.train()
    measured = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.model.eval()
    with torch.no_grad():
        assert measured[-1] == pytest.approx(float(trainer.model(**collate(rows((8, 8)))).loss), abs=1e-5)
    readings = [entry for entry in trainer.state.log_history if "mean_cosine" in entry]
    assert len(readings) == 1 and "loss" in readings[0]  # not beside an evaluation between two logs
    assert trainer.evaluate()["eval_loss"] == measured[-1]
    assert not trainer.disperser.attached


# --- two processes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Tensor], dict[str, float]]]:
    """What two gloo processes compute, 2 rows x 2 micro-batches each."""
    out = tmp_path_factory.mktemp("ddp") / "gradients.pt"
    worker = Path(__file__).with_name("ddp_gradients.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker, out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


def test_two_processes_have_the_gradient_of_one(ranks: dict[str, Any], whole: dict[str, Tensor]) -> None:
    assert distance(ranks["right"][0], whole) < EXACT


def test_an_arm_has_the_gradient_of_one_process_where_its_rows_do_not_divide(
    ranks: dict[str, Any], tmp_path: Path
) -> None:
    """7 rows on 2 processes of one row a turn: the last turn of the second has none."""
    assert distance(ranks["arm"], arm_step(str(tmp_path), 1, 7, 7)) < EXACT


@pytest.mark.parametrize("trap", ["times_processes", "before_scaling", "own_mean"])
def test_a_penalty_scaled_by_processes_shows(ranks: dict[str, Any], whole: dict[str, Tensor], trap: str) -> None:
    assert distance(ranks[trap][0], whole) > 0.3


def test_processes_with_unequal_numbers_of_documents(ranks: dict[str, Any]) -> None:
    model = llama()
    with Disperser(model, COEFFICIENT) as disperser:
        (model(**packed(rows()), use_cache=False).loss + disperser.penalty()).backward()
    assert distance(ranks["unequal"][0], gradients(model)) < EXACT
    assert distance(ranks["mean_of_means"][0], gradients(model)) > 0.01


def test_the_logged_readings_are_those_of_the_whole_batch(tmp_path: Path, ranks: dict[str, Any]) -> None:
    model, batch = llama(), collate(rows())
    ce, value = float(model(**batch).loss.detach()), float(plain_penalty(model, batch).detach())
    for logs in (ranks["right"][1], one_step(
        DispersionTrainer, llama(), rows(), TrainingArguments(**arguments(tmp_path, 2, 4)))[1]):  # fmt: skip
        assert logs["ce_loss"] == pytest.approx(ce, abs=1e-5)
        assert logs["dispersion_value"] == pytest.approx(value, abs=1e-5)
        assert logs["dispersion_penalty"] == pytest.approx(COEFFICIENT * value, abs=1e-5)
        assert logs["loss"] == pytest.approx(ce + COEFFICIENT * value, abs=1e-4)
        assert logs["penalty_to_ce"] == pytest.approx(COEFFICIENT * abs(value) / ce, abs=1e-5)
        assert -1 < logs["mean_cosine"] < 1


# --- what a run must survive or refuse ------------------------------------------------------------------


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_for(folder: Path, steps: int, resume: str | None = None, **dispersion: Any) -> Trainer:
    changes = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2,
               "lr_scheduler_type": "constant"}  # fmt: skip
    args = TrainingArguments(**arguments(folder, 2, 2, **changes))
    trainer = DispersionTrainer(
        model=llama(attention_dropout=0.1), args=args, train_dataset=rows() + rows(seed=2), data_collator=collate,
        dispersion={**PENALTY, "max_tokens": 4, **dispersion},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    through = run_for(tmp_path, 4)
    resumed = run_for(tmp_path, 4, resume=str(tmp_path / "checkpoint-2"))
    assert same(weights(through.model), weights(resumed.model))
    logged = [[e["dispersion_value"] for e in t.state.log_history if "loss" in e] for t in (through, resumed)]
    assert logged[0] == logged[1]


def test_a_choice_of_tokens_that_forgets_the_step_would_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_penalty = Disperser.penalty
    monkeypatch.setattr(Disperser, "penalty", lambda self, step=None: whole_penalty(self))
    through = run_for(tmp_path, 4)
    resumed = run_for(tmp_path, 4, resume=str(tmp_path / "checkpoint-2"))
    assert not same(weights(through.model), weights(resumed.model))


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    class Broken(DispersionTrainer):
        def _weight(self, count: int | None, steps: int) -> float:
            return math.nan if self.state.global_step == 1 else super()._weight(count, steps)

    trainer = Broken(
        model=llama(), args=TrainingArguments(**arguments(tmp_path, 2, 2, max_steps=3)), train_dataset=rows(),
        data_collator=collate, dispersion=PENALTY,
    )  # fmt: skip
    before = Snapshots()
    trainer.add_callback(before)
    with pytest.raises(RunError, match="loss at step 1 is nan"):
        trainer.train()
    assert same(weights(trainer.model), before.after[1])
    assert not trainer.disperser.attached and not hooks(trainer.model)


@pytest.mark.parametrize("coefficient", [1e20, 1e38])
def test_a_gradient_whose_norm_overflows_is_not_taken_for_none(tmp_path: Path, coefficient: float) -> None:
    """Its numbers are finite, its norm is not: clipping makes zeros of it, and the arm would seem to do nothing."""
    trainer = DispersionTrainer(
        model=llama(),
        args=TrainingArguments(**arguments(tmp_path, 2, 2, max_steps=3, max_grad_norm=1.0)),
        train_dataset=rows(),
        data_collator=collate,
        dispersion={"coefficient": coefficient},
    )
    with pytest.raises(RunError, match="non-finite gradient norm at step 0: inf") as failed:
        trainer.train()
    assert "coefficient" in failed.value.hint


class Snapshots(Recorder):
    """The weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after[state.global_step] = weights(kwargs["model"])


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path, clip: float, poison: float) -> None:
    model = llama()
    model.model.norm.weight.register_hook(lambda gradient: torch.full_like(gradient, poison))
    before = weights(model)
    with pytest.raises(RunError, match=r"gradient of .* at step 0"):
        step(DispersionTrainer, tmp_path, 2, 2, model=model, max_grad_norm=clip)
    assert same(weights(model), before)


def test_a_smaller_batch_after_an_error_begins_its_own_means(tmp_path: Path) -> None:
    """auto_find_batch_size begins training again inside `train`: its steps were counted with those that failed."""
    trainer = DispersionTrainer(
        model=llama(), args=TrainingArguments(**arguments(tmp_path, 2, 2)), train_dataset=rows(), data_collator=collate
    )
    trainer._since_log.steps, trainer._losses = 3, [torch.tensor(1.0)]
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert trainer._since_log.steps == 0 and not trainer._losses


def test_without_the_guard_a_poisoned_gradient_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("condense.dispersion.trainer._Guard.on_pre_optimizer_step", lambda *args, **kwargs: None)
    model = llama()
    model.model.norm.weight.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    with pytest.raises(RunError, match="non-finite gradient norm"):  # the log comes after the step
        step(DispersionTrainer, tmp_path, 2, 2, model=model)
    assert bool(torch.isnan(model.model.norm.weight).all())


def test_trainer_may_not_hide_nan_in_its_log(tmp_path: Path) -> None:
    args = TrainingArguments(**arguments(tmp_path, 2, 2))
    assert args.logging_nan_inf_filter
    DispersionTrainer(model=llama(), args=args, train_dataset=rows(), data_collator=collate)
    assert not args.logging_nan_inf_filter


def dropping(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "opt":
        return OPTForCausalLM(OPTConfig(
            vocab_size=100, hidden_size=16, ffn_dim=32, num_hidden_layers=4, num_attention_heads=2, layerdrop=0.9,
            word_embed_proj_dim=16, max_position_embeddings=64, **SPECIAL))  # fmt: skip
    return BartForConditionalGeneration(BartConfig(
        vocab_size=100, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_layerdrop=0.9,
        decoder_layerdrop=0.9, max_position_embeddings=64, decoder_start_token_id=2, **SPECIAL))  # fmt: skip


@pytest.mark.parametrize("kind", ["opt", "bart"])
def test_layerdrop_is_turned_off(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dropping(kind)
    step(DispersionTrainer, tmp_path, 4, 2, model=model)
    assert not [part for part in model.modules() if getattr(part, "layerdrop", 0)]
    assert not [name for name in vars(model.config) if name.endswith("layerdrop") and getattr(model.config, name)]
    monkeypatch.setattr("condense.dispersion.trainer._Guard.on_train_begin", lambda *args, **kwargs: None)
    with pytest.raises(Exception, match="blocks of the .* were called"):
        step(DispersionTrainer, tmp_path, 4, 2, model=dropping(kind), max_steps=5)


def test_splitting_batches_over_devices_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = TrainingArguments(**arguments(tmp_path, 2, 2))
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(UsageError, match="DataParallel") as refusal:
        DispersionTrainer(model=llama(), args=args, train_dataset=rows(), data_collator=collate)
    assert "torchrun" in refusal.value.hint


def test_splitting_sequences_over_devices_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "get_cp_size", lambda self: 2)
    with pytest.raises(UsageError, match="sequence"):
        DispersionTrainer(model=llama(), args=TrainingArguments(**arguments(tmp_path, 2, 2)), data_collator=collate)


def test_a_model_made_when_training_begins(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    made = []
    recorder = Recorder()
    trainer = DispersionTrainer(
        model_init=lambda: made.append(llama()) or made[-1], args=TrainingArguments(**arguments(tmp_path, 2, 4)),
        train_dataset=rows(), data_collator=collate, dispersion=PENALTY, callbacks=[recorder],
    )  # fmt: skip
    trainer.train()
    assert len(made) == 2
    assert distance(recorder.gradients, whole) < EXACT


def test_the_config_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    args = TrainingArguments(**arguments(tmp_path, 2, 2))
    with pytest.raises(ValueError, match="loss must be one of"):
        DispersionTrainer(model=llama(), args=args, dispersion={"loss": "entropy"})
    with pytest.raises(ValueError, match="does not have"):
        DispersionTrainer(model=llama(), args=args, dispersion=DispersionConfig(layers="7"))


def test_any_trainer_can_be_mixed_with(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    class Doubling(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * 2

    class Both(DispersionMixin, Doubling):
        pass

    model, batch = llama(), collate(rows())
    (2 * model(**batch).loss + COEFFICIENT * plain_penalty(model, batch)).backward()
    assert distance(step(Both, tmp_path, 2, 4), gradients(model)) < EXACT


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_no_hook_outlives_the_training(tmp_path: Path) -> None:
    model = llama()
    step(DispersionTrainer, tmp_path, 4, 2, model=model)
    assert hooks(model) == 0


def test_the_routers_loss_is_no_cross_entropy(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=100, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=5.0,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    batch = collate(rows((9, 9)))
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    wanted = batch["labels"][:, 1:]
    by_hand = float(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100))
    args = TrainingArguments(**arguments(tmp_path, 2, 1, max_steps=1))
    trainer = DispersionTrainer(
        model, args, train_dataset=rows((9, 9)), data_collator=collate, dispersion={"coefficient": 1.0}
    )
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logs["ce_loss"] == pytest.approx(by_hand, rel=1e-4)
    assert logs["penalty_to_ce"] == pytest.approx(abs(logs["dispersion_penalty"]) / by_hand, rel=1e-4)
    assert logs["loss"] > logs["ce_loss"] + logs["dispersion_penalty"] + 1


# --- the monitor ----------------------------------------------------------------------------------------

PROBE = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(5))
KEYS = ("probe_mean_cosine", "probe_effective_rank", "probe_relative_variance")


def monitored(folder: Path, monitor: CondensationMonitor, steps: int = 4, **changes: Any) -> Trainer:
    dispersion = {"coefficient": changes.pop("coefficient", 1.0)}
    trainer = DispersionTrainer(
        model=llama(attention_dropout=0.1),
        args=TrainingArguments(**arguments(folder, 4, 1, max_steps=steps, **changes)),
        train_dataset=rows(LENGTHS + LENGTHS), data_collator=collate, dispersion=dispersion, callbacks=[monitor],
    )  # fmt: skip
    trainer.train()
    return trainer


def test_the_monitor_measures_the_probe(tmp_path: Path) -> None:
    stream = io.StringIO()
    trainer = monitored(tmp_path, CondensationMonitor(PROBE, every=2, stream=stream))
    entries = [entry for entry in trainer.state.log_history if KEYS[0] in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    states: list[Tensor] = []
    handles = [b.register_forward_hook(lambda m, a, o: states.append(o[:, 1:])) for b in trainer.model.model.layers[1:]]
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(PROBE)
    [handle.remove() for handle in handles]
    unit = [nn.functional.normalize(site.double(), dim=-1) for site in states]
    cosine = [float(((u.sum(1).square().sum(-1) - 15) / (15 * 14)).mean()) for u in unit]
    assert entries[-1]["probe_mean_cosine"] == pytest.approx(sum(cosine) / 2, abs=1e-6)
    ranks = []
    for site in unit:
        values = torch.linalg.svdvals(site - site.mean(1, keepdim=True))
        shares = values / values.sum(-1, keepdim=True)
        ranks.append(float(torch.exp(-(shares * shares.log().nan_to_num(0)).sum(-1)).mean()))
    assert entries[-1]["probe_effective_rank"] == pytest.approx(sum(ranks) / 2, rel=1e-3)
    lines = stream.getvalue().splitlines()
    assert "cosine" in lines[0] and any("|penalty|/CE" in line and "rank" in line for line in lines)


def test_the_monitor_does_not_touch_the_run(tmp_path: Path) -> None:
    plain = monitored(tmp_path, CondensationMonitor(PROBE, every=10**6, quiet=True))
    watched = monitored(tmp_path, CondensationMonitor(every=1, quiet=True))
    assert same(weights(plain.model), weights(watched.model))
    assert sum(KEYS[0] in entry for entry in watched.state.log_history) == 4  # from the first batch, then fixed


def test_the_monitor_beside_a_plain_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = TrainingArguments(**arguments(tmp_path, 4, 1, max_steps=2))
    with pytest.raises(UsageError, match="trainer"):
        Trainer(llama(), args, train_dataset=rows(), data_collator=collate, callbacks=[CondensationMonitor()]).train()
    trainer = Trainer(llama(), args, train_dataset=rows(), data_collator=collate)
    trainer.add_callback(CondensationMonitor(trainer=trainer))
    trainer.train()
    assert KEYS[0] in trainer.state.log_history[0]
    assert "cosine" in capsys.readouterr().err
    assert hooks(trainer.model) == 0


def test_one_line_on_a_terminal_none_when_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monitored(tmp_path, CondensationMonitor(PROBE, every=1, stream=stream), steps=2)
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().count("\r") == 5
    monitored(tmp_path, CondensationMonitor(PROBE, every=1, quiet=True), steps=2)
    assert "cosine 0" not in capsys.readouterr().err


@pytest.mark.parametrize("coefficient,words", [(1e-3, "too faint"), (100.0, "outweighs")])
def test_a_penalty_out_of_proportion_is_warned_of_once(tmp_path: Path, coefficient: float, words: str) -> None:
    with pytest.warns(UserWarning, match=words) as caught:
        monitored(tmp_path, CondensationMonitor(PROBE, quiet=True), steps=3, coefficient=coefficient)
    assert len([one for one in caught if words in str(one.message)]) == 1


def test_the_control_arm_is_measured_and_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = monitored(tmp_path, CondensationMonitor(PROBE, quiet=True), steps=2, coefficient=0.0)
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logs["loss"] == pytest.approx(logs["ce_loss"]) and -1 < logs["mean_cosine"] < 1


def test_tensorboard_holds_the_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = monitored(tmp_path, CondensationMonitor(PROBE, every=2, quiet=True), report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = {"ce_loss", "dispersion_penalty", "dispersion_value", "mean_cosine", "penalty_to_ce", *KEYS}
    assert {f"train/{tag}" for tag in tags} <= set(events.Tags()["scalars"])
    logged = [entry["mean_cosine"] for entry in trainer.state.log_history if "mean_cosine" in entry]
    assert [scalar.value for scalar in events.Scalars("train/mean_cosine")] == pytest.approx(logged)
    assert [scalar.step for scalar in events.Scalars("train/probe_mean_cosine")] == [0, 2, 4]
