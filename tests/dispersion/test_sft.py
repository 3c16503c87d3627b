"""The penalty inside TRL's SFTTrainer, whose fused head returns no hidden states."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dispersion.ddp_gradients import COEFFICIENT, Recorder, collate, distance, gradients, llama, packed, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
]

trl = pytest.importorskip("trl")

from condense.dispersion.callback import CondensationMonitor  # noqa: E402
from condense.dispersion.disperser import Disperser  # noqa: E402
from condense.dispersion.trainer import DispersionMixin  # noqa: E402
from condense.errors import RunError  # noqa: E402

EXACT = 5e-6  # the fused head sums the cross-entropy in tiles: another order
LENGTHS = (16, 5, 9, 12, 7, 14, 6, 10)


class DispersedSFT(DispersionMixin, trl.SFTTrainer):
    """The line a user writes."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 100)}
    core = Tokenizer(models.WordLevel(words, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def dataset(data: list[dict[str, list[int]]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(data)


def step(
    folder: Path, batch: int, accumulation: int, model: nn.Module | None = None, data: Any = None, **changes: Any
) -> tuple[dict[str, Tensor], Any]:
    """Gradients of one optimizer step, and the trainer."""
    options = {name: changes.pop(name) for name in ("compute_loss_func", "peft_config") if name in changes}
    config = trl.SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
        **({"max_steps": 1, "max_grad_norm": 0.0, "logging_steps": 1, "activation_checkpointing": False} | changes),
    )  # fmt: skip
    recorder = Recorder()
    trainer = DispersedSFT(
        model=model or llama(), args=config, train_dataset=dataset(data or rows(LENGTHS)), processing_class=tokenizer(),
        dispersion={"coefficient": COEFFICIENT}, callbacks=[recorder], **options,
    )  # fmt: skip
    trainer.train()
    return recorder.gradients, trainer


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """All 8 rows in one batch, in a plain loop."""
    return by_plain_loop(llama(), collate(rows(LENGTHS)))


def by_plain_loop(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    with Disperser(model, COEFFICIENT) as disperser:
        (model(**batch, use_cache=False).loss + disperser.penalty(batch.get("attention_mask"))).backward()
    return gradients(model)


@pytest.mark.parametrize("batch,accumulation", [(8, 1), (2, 4)])
def test_padded_rows(tmp_path: Path, whole: dict[str, Tensor], batch: int, accumulation: int) -> None:
    found, trainer = step(tmp_path, batch, accumulation)
    assert distance(found, whole) < EXACT
    logs = trainer.state.log_history[0]
    assert {"ce_loss", "dispersion_value", "mean_cosine", "penalty_to_ce", "mean_token_accuracy"} <= logs.keys()
    assert logs["loss"] == pytest.approx(logs["ce_loss"] + logs["dispersion_penalty"], abs=1e-4)


def test_the_head_is_the_fused_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else these tests would prove nothing: its output holds neither hidden states nor logits."""
    seen = []
    whole_init = trl.trainer.utils.FusedCausalLMOutput.__init__
    monkeypatch.setattr(
        trl.trainer.utils.FusedCausalLMOutput, "__init__",
        lambda self, *args, **kwargs: seen.append(self) or whole_init(self, *args, **kwargs),
    )  # fmt: skip
    step(tmp_path, 4, 2)
    assert len(seen) == 2 and not hasattr(seen[0], "hidden_states") and not hasattr(seen[0], "logits")


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(tmp_path: Path, whole: dict[str, Tensor], reentrant: bool) -> None:
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert distance(step(tmp_path, 2, 4, **options)[0], whole) < EXACT


def test_lora(tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)

    def adapted() -> dict[str, Any]:
        torch.manual_seed(3)
        return {"model": peft.get_peft_model(llama(), config)}

    split, together = step(tmp_path, 2, 4, **adapted())[0], step(tmp_path, 8, 1, **adapted())[0]
    assert all("lora" in name for name in split)
    assert distance(split, together) < EXACT
    assert distance(split, by_plain_loop(adapted()["model"], collate(rows(LENGTHS)))) < EXACT


def test_packed_rows(tmp_path: Path) -> None:
    """Micro-batches of one flattened row each, with unequal numbers of documents."""
    reference = by_plain_loop(llama(), packed(rows(LENGTHS)))
    counts = []
    for batch, accumulation in ((8, 1), (1, 8), (2, 2)):
        found, trainer = step(tmp_path, batch, accumulation, packing=True, max_length=32, pad_to_multiple_of=8)
        batches = list(trainer.get_train_dataloader())
        counts.append([trainer.disperser.sequences(one) for one in batches])
        assert all(one["input_ids"].shape[0] == 1 and "attention_mask" not in one for one in batches)
        assert distance(found, reference) < EXACT
    assert all(sum(count) == 8 for count in counts) and len(set(counts[1])) > 1


def test_packing_without_weights_would_be_a_mean_of_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DispersedSFT, "_weight", lambda self, count, steps: 1 / steps)
    found, _ = step(tmp_path, 1, 8, packing=True, max_length=32)
    assert distance(found, by_plain_loop(llama(), packed(rows(LENGTHS)))) > 0.01


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
def test_label_smoothing_runs_a_second_forward_pass(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    found, _ = step(tmp_path, 2, 4, label_smoothing_factor=1e-9)
    assert distance(found, whole) < EXACT


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
def test_a_loss_function_of_ones_own(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    def sum_over_items(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    assert distance(step(tmp_path, 2, 4, compute_loss_func=sum_over_items)[0], whole) < EXACT


def test_collecting_passes_without_gradients_would_show(
    tmp_path: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap: the last pass counts even if it has no graph."""
    monkeypatch.setattr("condense.dispersion.disperser.torch.is_grad_enabled", lambda: True)
    with pytest.warns(FutureWarning, match="label_smoothing"):
        found, _ = step(tmp_path, 2, 4, label_smoothing_factor=1e-9)
    assert distance(found, whole) > 0.1


def test_evaluation_and_the_monitor_leave_the_averages_alone(tmp_path: Path) -> None:
    config = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=2, logging_steps=1, eval_strategy="steps",
        eval_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
        activation_checkpointing=False, packing=True, max_length=32,
    )  # fmt: skip
    trainer = DispersedSFT(
        model=llama(), args=config, train_dataset=dataset(rows(LENGTHS)), eval_dataset=dataset(rows((9, 9))),
        processing_class=tokenizer(), dispersion={"coefficient": 1.0}, callbacks=[CondensationMonitor(quiet=True)],
    )  # fmt: skip
    trainer.train()
    history = trainer.state.log_history
    assert all("mean_token_accuracy" in entry and "mean_cosine" in entry for entry in history if "loss" in entry)
    assert sum("probe_effective_rank" in entry for entry in history) == 2
    assert [entry for entry in history if "eval_loss" in entry] and not [e for e in history if "eval_mean_cosine" in e]
    trainer.model.eval()
    with torch.no_grad():
        plain = trainer.model(**packed(rows((9, 9))), use_cache=False).loss
    measured = [entry["eval_loss"] for entry in history if "eval_loss" in entry][-1]
    assert measured == pytest.approx(float(plain), abs=1e-5)


def test_special_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    model = llama(bos_token_id=None, eos_token_id=None)
    _, trainer = step(tmp_path, 4, 2, model=model)
    assert set(trainer.disperser.config.special_ids) == {0, 1, 2}


def test_a_model_that_diverged_stops_with_its_step_and_site(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="non-finite states at block 2"):
        step(tmp_path, 4, 2, model=model)
