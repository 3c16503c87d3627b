"""The trainer of an arm: losses that are means of their own, and masks that do not depend on the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, TrainingArguments, default_data_collator

from condense.dispersion.disperser import Disperser
from condense.training.arm_trainer import ArmTrainer, _counts_items
from condense.training.chats import IGNORED
from condense.training.learning import Clock
from condense.training.loop import collator
from condense.training.rows import Rows
from tests.dispersion.ddp_gradients import COEFFICIENT, arguments, arm_rows, distance, gradients, llama, one_step

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"vocab_size": 100, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    return BertForMaskedLM(BertConfig(**sizes, **none, num_attention_heads=2, max_position_embeddings=32))


def masked_rows(count: int = 4) -> Rows:
    """Rows of 16 tokens with 4 labels each."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 100, (16,), generator=generator)
        labels = torch.where(torch.arange(16) % 4 == 1, ids, IGNORED)
        made.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return Rows(made, 16, packed=False)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (1, 4)])
def test_a_loss_that_is_a_mean_is_not_added_up_over_micro_batches(
    tmp_path: Path, batch: int, accumulation: int
) -> None:
    """BERT's is taken for a share of a sum by Trainer: 4 micro-batches made it 4 times as large beside the penalty."""
    rows, model = masked_rows(), bert()
    whole: dict[str, Tensor] = default_data_collator([rows[index] for index in range(4)])
    with Disperser(model, COEFFICIENT) as disperser:
        (model(**whole).loss + disperser.penalty()).backward()
    args = TrainingArguments(**arguments(tmp_path, batch, accumulation))
    options = {"data_collator": default_data_collator, "rows_per_step": 4, "clock": Clock(torch.device("cpu"))}
    found, logs = one_step(ArmTrainer, bert(), rows, args, **options)
    assert distance(found, gradients(model)) < 2e-6
    assert logs["ce_loss"] == pytest.approx(float(bert()(**whole).loss), rel=1e-5)


def test_what_counts_labels_is_told_from_a_mean() -> None:
    assert _counts_items(llama(), arm_rows(1)) and not _counts_items(bert(), masked_rows(1))


def test_masks_depend_on_the_row_and_not_on_the_batch(tokenizers: dict[str, Any]) -> None:
    """So that a resumed run masks as an uninterrupted one, and two processes as one."""
    tokenizer = tokenizers["words"]
    ids = torch.randint(5, 400, (6, 24), generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "draw": torch.tensor(40 + i)}
        for i, row in enumerate(ids)
    ]
    whole = collator(tokenizer, True, 3)(rows)
    assert whole.keys() == {"input_ids", "attention_mask", "labels"} and whole["input_ids"].shape == (6, 24)
    collate = collator(tokenizer, True, 3)
    halves = [collate(rows[4:]), collate(rows[:4])]
    for key in whole:
        assert torch.equal(whole[key], torch.cat([halves[1][key], halves[0][key]]))
    later = collate([{**row, "draw": row["draw"] + 6} for row in rows])
    other = collator(tokenizer, True, 4)(rows)
    assert all(bool((more["labels"] != whole["labels"]).any()) for more in (later, other))
