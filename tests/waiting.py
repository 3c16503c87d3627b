"""What would make the host wait for a device, seen as it is dispatched; and a model small enough for that."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_dim", "bincount", "is_nonzero", "equal")
CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


class NoWaiting(TorchDispatchMode):
    """Fails on an operation whose result, or its shape, the host has to wait for, and on a copy to another device.

    on: only where it has a tensor on a device of this kind; None: everywhere.
    """

    def __init__(self, on: str | None = None) -> None:
        super().__init__()
        self.on = on

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if self.on is not None and not any(each.device.type == self.on for each in tensors):
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        assert not name.startswith(READS), f"{name} waits for the device"
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
            chosen = [index for index in args[1] if isinstance(index, Tensor)]
            assert not any(index.dtype == torch.bool for index in chosen), f"{name}: its shape depends on values"
        made = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and isinstance(made, Tensor) and made.device.type == "cpu":
            sources = [arg for arg in args if isinstance(arg, Tensor)]
            assert all(source.device == made.device for source in sources), f"{name} takes values off the device"
        return made
