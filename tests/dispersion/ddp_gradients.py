"""Gradients of one optimizer step of tiny models, and trainers with the known traps put back in.

Used by test_trainer.py and test_sft.py; as a script under torchrun it writes the gradients of two ranks.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from condense.dispersion.trainer import DispersionTrainer
from condense.training.arm_trainer import ArmTrainer
from condense.training.learning import Clock
from condense.training.rows import Rows

COEFFICIENT = 5.0  # large beside the cross-entropy, so that a wrong scale cannot hide
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LENGTHS = (16, 5, 9, 12, 7, 14, 6, 10)


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = {
        "vocab_size": 100, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "max_position_embeddings": 128, **SPECIAL,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(config | changes)))


def rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> list[dict[str, list[int]]]:
    """Rows that begin with a BOS, of which every other one masks its first half from the loss."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, length in enumerate(lengths):
        ids = [1, *torch.randint(3, 100, (length - 1,), generator=generator).tolist()]
        hidden = length // 2 if index % 2 else 0
        made.append({"input_ids": ids, "labels": [-100] * hidden + ids[hidden:]})
    return made


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right to the longest row of this batch."""
    ids = [torch.tensor(row["input_ids"]) for row in batch]
    labels = [torch.tensor(row["labels"]) for row in batch]
    return {
        "input_ids": pad_sequence(ids, True, 0),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], True, 0),
        "labels": pad_sequence(labels, True, -100),
    }


def packed(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """One row of documents whose position ids restart."""
    ids = torch.tensor([token for row in batch for token in row["input_ids"]])[None]
    labels = torch.tensor([token for row in batch for token in [-100, *row["labels"][1:]]])[None]
    positions = torch.cat([torch.arange(len(row["input_ids"])) for row in batch])[None]
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


class Recorder(TrainerCallback):
    """Keeps the gradients as the optimizer would see them."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients = gradients(kwargs["model"])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def arguments(folder: Path | str, batch: int, accumulation: int, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "max_steps": 1, "max_grad_norm": 0.0, "report_to": "none", "use_cpu": True, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "remove_unused_columns": False, **changes,
    }  # fmt: skip


def one_step(
    trainer: type[Trainer], model: nn.Module, data: Any, args: TrainingArguments, **options: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients of one optimizer step of a trainer, and what it logged."""
    recorder = Recorder()
    options = {"data_collator": collate, "dispersion": {"coefficient": COEFFICIENT}} | options
    made = trainer(model=model, args=args, train_dataset=data, callbacks=[recorder], **options)
    made.train()
    return recorder.gradients, made.state.log_history[0]


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest difference of two sets of gradients, relative to the largest gradient."""
    assert a.keys() == b.keys() and a
    scale = max(float(x.abs().max()) for x in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


class OwnMean(DispersionTrainer):
    """Trap: a mean cross-entropy of one's own, blind to num_items_in_batch."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        disperser = self._ready()
        return model(**inputs).loss + disperser.penalty(step=self.state.global_step)


class Undivided(DispersionTrainer):
    """Trap: the penalty is not divided by the accumulation steps."""

    def _weight(self, count: int | None, steps: int) -> float:
        return super()._weight(count, steps) * steps


class TimesProcesses(DispersionTrainer):
    """Trap: the penalty is multiplied by the number of processes like the cross-entropy."""

    def _weight(self, count: int | None, steps: int) -> float:
        return super()._weight(count, steps) * self.accelerator.num_processes


class BeforeScaling(DispersionTrainer):
    """Trap: the penalty is added before super multiplies by the number of processes."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        disperser, steps = self._ready(), self.current_gradient_accumulation_steps

        def add(module: nn.Module, args: Any, output: Any) -> Any:
            output["loss"] = output["loss"] + disperser.penalty(step=self.state.global_step) / steps
            return output

        handle = model.register_forward_hook(add)
        try:
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        finally:
            handle.remove()


class MeanOfMeans(DispersionTrainer):
    """Trap: every micro-batch counts alike, however many sequences it has."""

    def _weight(self, count: int | None, steps: int) -> float:
        return 1 / steps


# What two ranks compute: trainer, collator. Packed rows of 3+1 documents per rank make the counts unequal.
DDP = {
    "right": (DispersionTrainer, collate),
    "times_processes": (TimesProcesses, collate),
    "before_scaling": (BeforeScaling, collate),
    "own_mean": (OwnMean, collate),
    "unequal": (DispersionTrainer, "unequal"),
    "mean_of_means": (MeanOfMeans, "unequal"),
}


def unequal(batch: list[list[dict[str, list[int]]]]) -> dict[str, Tensor]:
    """Each item is a list of documents that share a row."""
    return packed([document for item in batch for document in item])


def unequal_items() -> list[list[dict[str, list[int]]]]:
    made = rows()
    return [made[:3], made[3:4], made[4:6], made[6:8]]


def arm_rows(count: int) -> Rows:
    """Rows of 16 tokens of two documents each, packed, as an arm trains on."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 100, (16,), generator=generator)
        labels = torch.where(torch.arange(16) % 8 == 0, -100, ids)
        made.append({"input_ids": ids, "labels": labels, "position_ids": torch.arange(16) % 8})
    return Rows(made, 16, packed=True)


def arm_step(folder: str, batch: int, accumulation: int, rows_per_step: int, **changes: Any) -> dict[str, Tensor]:
    """Gradients of the first optimizer step of an arm, from 7 rows of 9."""
    args = TrainingArguments(**arguments(folder, batch, accumulation, seed=3, data_seed=3, **changes))
    options = {
        "data_collator": default_data_collator,
        "rows_per_step": rows_per_step,
        "clock": Clock(torch.device("cpu")),
    }
    return one_step(ArmTrainer, llama(), arm_rows(9), args, **options)[0]


def main(out: str) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"arm": arm_step(out + ".arm", 1, 4, 7)}
    for name, (trainer, collator) in DDP.items():
        packing = collator == "unequal"
        args = TrainingArguments(**arguments(out + ".run", 1 if packing else 2, 2))
        data = unequal_items() if packing else rows()
        options = {"data_collator": unequal if packing else collator}
        results[name] = one_step(trainer, llama(), data, args, **options)
    if torch.distributed.get_rank() == 0:
        torch.save(results, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
