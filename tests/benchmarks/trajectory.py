"""A small pretraining run from random weights, as a folder of checkpoints: `python -m tests.benchmarks.trajectory DIR`.

A tiny Llama (or GPT-2) on the topics of Python's own help, byte-level BPE trained on the same text. What it makes
is compared with `condense compare DIR`; docs/trajectories.md shows the page. With `--coefficient` it is trained with
the dispersion loss, from the same weights and on the same rows: `condense compare CONTROL DISPERSED`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from condense.dispersion.disperser import Disperser

STEPS = (0, 5, 10, 20, 40, 80, 160, 320)


def text() -> list[str]:
    """The topics of Python's help, which come with every Python."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def tokenizer(texts: Sequence[str], size: int) -> Any:
    """A byte-level BPE like GPT-2's, trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False, initial_alphabet=alphabet
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


def model(kind: str, vocabulary: int, blocks: int, width: int, positions: int) -> Any:
    """Random weights, initialised as transformers does."""
    import transformers as t

    if kind == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=vocabulary, n_embd=width, n_layer=blocks, n_head=4, n_positions=positions, bos_token_id=0,
                eos_token_id=0,
            )
        )  # fmt: skip
    return t.LlamaForCausalLM(
        t.LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=positions, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip


def rows(ids: torch.Tensor, length: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of rows that begin anywhere in the text."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(ids) - length, (batch,), generator=generator)
        yield torch.stack([ids[start : start + length] for start in starts.tolist()])


def pretrain(
    folder: Path, *, kind: str = "llama", steps: Sequence[int] = STEPS, vocabulary: int = 2048, blocks: int = 6,
    width: int = 128, length: int = 128, batch: int = 16, rate: float = 1e-3, seed: int = 0, quiet: bool = False,
    coefficient: float = 0.0,
) -> Path:  # fmt: skip
    """Train and save `checkpoint-N` for every step of `steps`; the tokenizer lies in `folder` itself.

    coefficient: of the dispersion loss that is added to the cross-entropy; 0 for none.
    """
    torch.manual_seed(seed)
    texts = text()
    coder = tokenizer(texts, vocabulary)
    coder.save_pretrained(folder)
    ids = torch.tensor(coder("<|endoftext|>".join(texts), verbose=False)["input_ids"])
    net = model(kind, len(coder), blocks, width, max(256, length)).train()
    disperser = Disperser(net, coefficient) if coefficient else None
    if disperser is not None:
        disperser.attach()
    optimizer = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    batches = rows(ids, length, batch, seed)
    for step in range(max(steps) + 1):
        if step in steps:
            net.save_pretrained(folder / f"checkpoint-{step}")
        part = next(batches)
        for group in optimizer.param_groups:  # a short warm-up, as every recipe has one
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        loss = net(input_ids=part, labels=part).loss
        (loss if disperser is None else loss + disperser.penalty()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in steps and not quiet:
            sys.stdout.write(f"step {step}: loss {loss.item():.3f}\n")
            sys.stdout.flush()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=lambda words: tuple(map(int, words.split(","))), default=STEPS)
    parser.add_argument("--coefficient", type=float, default=0.0)
    chosen = parser.parse_args()
    pretrain(
        chosen.folder,
        kind=chosen.kind,
        steps=chosen.steps,
        blocks=chosen.blocks,
        width=chosen.width,
        coefficient=chosen.coefficient,
    )


if __name__ == "__main__":
    main()
