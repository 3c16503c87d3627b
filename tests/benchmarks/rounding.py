"""A checkpoint whose weights are rounded to a coarser grid: `python -m tests.benchmarks.rounding MODEL DIR --bits 3`.

Every matrix of the blocks is rounded to 2^bits equally spaced values between the smallest and the largest of each
run of 32 weights of a row (as Q4_1 does with 16), or with `--rows` of each row; embeddings, norms and biases stay.
Saved as float32 safetensors: the values are those of a quantised model, the file is not smaller. For
docs/recipes.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

BLOCK = 32


def rounded(weight: torch.Tensor, bits: int, block: int | None = BLOCK) -> torch.Tensor:
    """The same matrix on a grid of 2^bits values per run of `block` weights of a row, or per row."""
    runs = weight.reshape(len(weight), -1, block or weight.shape[1])
    low, high = runs.amin(-1, keepdim=True), runs.amax(-1, keepdim=True)
    step = (high - low).clamp_min(1e-12) / (2**bits - 1)
    return (((runs - low) / step).round() * step + low).reshape(weight.shape)


@torch.no_grad()
def round_blocks(model: Any, bits: int, block: int | None) -> tuple[int, float]:
    """Round the matrices of all blocks in place; how many weights that were, and the change relative to their norm."""
    count, change, norm = 0, 0.0, 0.0
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.dim() == 2 and weight.shape[1] % BLOCK == 0:
            new = rounded(weight, bits, block)
            change += float((new - weight).square().sum())
            norm += float(weight.square().sum())
            weight.copy_(new)
            count += weight.numel()
    return count, (change / norm) ** 0.5


def main() -> None:
    from condense import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="*", default=[3])
    parser.add_argument("--rows", action="store_true", help="one grid per row")
    chosen = parser.parse_args()
    for bits in chosen.bits:
        checkpoint = load(chosen.model, device="cpu")
        count, change = round_blocks(checkpoint.model, bits, None if chosen.rows else BLOCK)
        place = chosen.folder / (f"rounded-{bits}-bit" + ("-rows" if chosen.rows else ""))
        checkpoint.model.save_pretrained(place)
        checkpoint.tokenizer.save_pretrained(place)
        told = f"{count:,} of {checkpoint.info.parameters:,} weights on a grid of {2**bits} values"
        print(f"{place}: {told}, changed by {change:.2%} of their norm", flush=True)


if __name__ == "__main__":
    main()
