"""The trainer of an arm: a regulariser beside the loss, the rows of a step over several processes, sharded models.

The weights are the same on all processes after every step, because gradients are averaged over them, whatever each
draws at random.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import BatchSampler, DataLoader, Dataset

from condense.diagnosis.distributed import Ranks, joined
from condense.dispersion.disperser import Disperser
from condense.dispersion.trainer import DispersionTrainer
from condense.errors import RunError
from condense.models.layers import input_device
from condense.training.chats import IGNORED
from condense.training.interventions import Regulariser
from condense.training.learning import Clock
from condense.training.rows import Rows

_EMPTY = -1  # in place of the number of a row: a row that counts for nothing


class ArmTrainer(DispersionTrainer):
    """`DispersionTrainer` with a regulariser of the weights, which counts once per optimizer step.

    An arm without a dispersion loss only reads the cosine of its states; the clock leaves that out.
    rows_per_step: of all processes together; by default what the arguments say.
    """

    def __init__(
        self,
        *args: Any,
        clock: Clock,
        regulariser: Regulariser | None = None,
        rows_per_step: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs &= _counts_items(self.model, self.train_dataset)
        self._regulariser, self._clock, self._rows_per_step = regulariser, clock, rows_per_step
        self._penalties: list[float] = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the dispersion trainer's, plus the regulariser's share of this micro-batch."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._regulariser is None or not (model.training and torch.is_grad_enabled()):
            return result
        loss, outputs = result if return_outputs else (result, None)
        penalty = self._regulariser.coefficient * self._regulariser.value(model)
        self._penalties.append(float(penalty.detach()))
        steps = getattr(self, "current_gradient_accumulation_steps", 1)
        total = loss + (penalty / steps if self._is_scaled(num_items_in_batch) else penalty)
        return (total, outputs) if return_outputs else total

    def _penalty(self, disperser: Disperser, step: int) -> torch.Tensor:
        if disperser.config.coefficient:
            return super()._penalty(disperser, step)
        with self._clock.stopped():
            return super()._penalty(disperser, step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the regulariser's mean penalty since the last log beside the rest."""
        if "loss" in logs and self._penalties:
            logs["regulariser_penalty"] = sum(self._penalties) / len(self._penalties)
            self._penalties.clear()
        super().log(logs, start_time)

    def get_train_dataloader(self) -> Any:
        """As super's for one process; `StepBatches` for several, uneven micro-batches, or masks that are drawn."""
        args, ranks, rows = self.args, joined(), cast("Any", self.train_dataset)
        usual = args.per_device_train_batch_size * args.gradient_accumulation_steps
        alone = ranks.size == 1 and usual == self._rows_per_step and "labels" in rows[0]
        if self._rows_per_step is None or alone:
            return super().get_train_dataloader()
        spare = "labels" in rows[0] and self.model_accepts_loss_kwargs
        batch, seed = args.per_device_train_batch_size, args.data_seed or 0
        batches = StepBatches(len(rows), self._rows_per_step, batch, ranks, seed, spare=spare)
        collate, pinned = self.data_collator, args.dataloader_pin_memory
        return _Batches(_WithEmptyRow(rows), batch_sampler=batches, collate_fn=collate, pin_memory=pinned)

    def create_accelerator_and_postprocess(self) -> None:
        """As super does; accelerate shards on GPUs alone, and would quietly copy the model to every process on CPUs."""
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        sharded = self.args.fsdp or launched_sharded()
        if sharded and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def gathered(self) -> dict[str, torch.Tensor]:
        """The weights of a sharded model on the first process, nothing on the others; every process calls it."""
        weights: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model)
        return weights


# --- the rows of a step -------------------------------------------------------------------------------------


@torch.no_grad()
def _counts_items(model: Any, rows: Any) -> bool:
    """Whether the loss is a sum over the number of labels that Trainer gives, and not a mean of its own.

    `Trainer` believes so of every model whose forward pass takes keywords. BERT's is a mean: taken for a share of a sum
    it would count once for every micro-batch, against one penalty for all of them.
    """
    device = input_device(model)
    inputs = {key: value[None].to(device) for key, value in rows[0].items()}
    inputs["labels"] = inputs["input_ids"]
    was = model.training
    model.eval()
    try:
        one, half = (float(model(**inputs, num_items_in_batch=torch.tensor(n, device=device)).loss) for n in (1, 2))
    except TypeError:  # it does not take the number
        return False
    except Exception:  # what is wrong with the model shows in training, where it is told
        return True
    finally:
        model.train(was)
    return abs(one - 2 * half) < abs(one - half)


class StepBatches(BatchSampler):
    """The rows of each micro-batch of one process, so that a step of all of them has the rows of one process.

    rows, per_step, batch   rows of the text, of a step over all processes, and of a micro-batch at most.
    seed                    with the epoch it decides the order, which is that of `Trainer` in one process.
    spare                   what stands where a process has no row for a micro-batch that others have one for: a row
                            that counts for nothing; or, without it, a row of the step once more.
    """

    def __init__(self, rows: int, per_step: int, batch: int, ranks: Ranks, seed: int, *, spare: bool) -> None:
        self._rows, self._per_step, self._batch, self._ranks = rows, per_step, batch, ranks
        self._seed, self._spare, self._epoch = seed, spare, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another pass over the text."""
        self._epoch = epoch

    def _turns(self, rows: int) -> int:
        """Micro-batches of every process for so many rows."""
        return math.ceil(rows / (self._batch * self._ranks.size))

    def __len__(self) -> int:
        """Micro-batches of a pass over the text, the same on every process."""
        whole, rest = divmod(self._rows, self._per_step)
        return whole * self._turns(self._per_step) + self._turns(rest)

    def __iter__(self) -> Iterator[list[int]]:
        """Row numbers of one micro-batch after the other, counted on from one pass over the text to the next."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator).tolist()
        for start in range(0, self._rows, self._per_step):
            step = order[start : start + self._per_step]
            turns = self._turns(len(step))
            slots = turns * self._ranks.size
            for slot in range(self._ranks.rank, slots, self._ranks.size):
                own = step[len(step) * slot // slots : len(step) * (slot + 1) // slots]
                first = self._epoch * self._rows  # of this pass
                yield [first + row for row in own] or [_EMPTY if self._spare else first + step[slot % len(step)]]


class _WithEmptyRow(Dataset[dict[str, torch.Tensor]]):
    """Rows by their number in any pass; at -1 one that adds nothing to loss and penalty: no label, no pair of tokens.

    Rows whose labels are drawn later have their number as `draw`.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index != _EMPTY:
            row = self._rows[index % len(self._rows)]
            return row if "labels" in row else {**row, "draw": torch.tensor(index)}
        row = {key: value.clone() for key, value in self._rows[0].items()}
        row["labels"].fill_(IGNORED)
        for key in row.keys() & {"position_ids", "attention_mask"}:
            row[key].zero_()
        if "attention_mask" in row:
            row["attention_mask"][0] = 1
        return row


class _Batches(DataLoader[Any]):
    """A loader whose order Trainer can set to that of another epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Pass it on to the sampler."""
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


# --- sharded models -----------------------------------------------------------------------------------------


def launched_sharded(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch` was told to shard, by its flags or its configuration."""
    return environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


@contextlib.contextmanager
def launch_unchanged() -> Iterator[None]:
    """Undo what accelerate notes in the environment of a sharded run: the next arm would take it for the launcher's."""
    was = launched_sharded()
    try:
        yield
    finally:
        if not was:
            os.environ.pop("ACCELERATE_USE_FSDP", None)


def skeleton_of(model: Any) -> Any:
    """The modules of a model without their weights, to put gathered ones into."""
    return copy.deepcopy(model).to("meta")


def filled(skeleton: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A skeleton with gathered weights; tied ones are tied again. RunError where one is missing."""
    skeleton.load_state_dict(weights, strict=False, assign=True)
    skeleton.tie_weights()
    missing = [name for name, parameter in skeleton.named_parameters() if parameter.is_meta]
    if missing:
        raise RunError(f"the weights of {missing[0]} were not gathered from the processes")
    return skeleton
