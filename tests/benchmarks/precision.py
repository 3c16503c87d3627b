"""How far a coarser Gram matrix moves the gradient of a loss: bfloat16 and TF32 with float32 sums, on the CPU.

A GPU multiplies rounded factors and sums in float32. So does this: the factors of every matrix product of a loss are
rounded to 8 or 11 bits of significand, then multiplied in float32. The reference is the loss in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from condense.dispersion.losses import LOSSES

Rows = Iterator[tuple[str, str]]
BITS = {"float32": 24, "TF32": 11, "bfloat16": 8}
PRODUCTS = ("__matmul__", "matmul", "bmm", "baddbmm")
CONES = (0.0, 0.5, 0.9, 0.99)


def rounded(x: Tensor, bits: int) -> Tensor:
    """A float32 tensor to so many bits of significand, ties to even as the hardware does."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


class CoarseProducts(TorchFunctionMode):
    """Round the factors of every matrix product."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.count = bits, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in PRODUCTS:
            self.count += 1
            args = [rounded(arg, self.bits) if arg.dtype == torch.float32 else arg for arg in args]
        return func(*args, **(kwargs or {}))


def cone(cosine: float, tokens: int = 256, width: int = 576, seed: int = 0) -> Tensor:
    """Two texts of tokens whose directions have this mean cosine, in a residual stream's uneven lengths."""
    generator = torch.Generator().manual_seed(seed)
    noise, axis = (torch.randn(*size, generator=generator) for size in ((2, tokens, width), (width,)))
    lengths = 20 * torch.rand(2, tokens, 1, generator=generator) + 5
    rows = noise * (1 - cosine) ** 0.5 + axis * cosine**0.5
    return rows / rows.norm(dim=-1, keepdim=True) * lengths


def gradient(loss: str, states: Tensor, bits: int | None) -> Tensor:
    """The gradient of a loss with its products rounded to so many bits; None: in float64."""
    copy = (states.double() if bits is None else states.float()).requires_grad_()
    with CoarseProducts(bits or 24) as coarse:
        value = LOSSES[loss](copy)
    assert coarse.count or loss == "mean_cosine", "no product was rounded"
    (found,) = torch.autograd.grad(value, copy)
    return found.double()


def errors(clouds: Mapping[str, Tensor]) -> Rows:
    """Per loss and precision the relative error of the gradient, ‖g − g64‖/‖g64‖, for each cloud."""
    for loss in LOSSES:
        for name, bits in BITS.items():
            apart = []
            for states in clouds.values():
                right = gradient(loss, states, None)
                apart.append(float((gradient(loss, states, bits) - right).norm() / right.norm()))
            yield f"{loss}, {name}", "  ".join(f"{key} {error:.1e}" for key, error in zip(clouds, apart, strict=True))


def table() -> Rows:
    """The same for cones of mean cosine 0 to .99."""
    yield from errors({f"{cosine:g}:": cone(cosine) for cosine in CONES})
