"""Tensors from a device to the host: one copy per device, which on CUDA runs beside the next forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """Tensors on their way to the host, packed into one copy per device.

    On CUDA the copy has a stream of its own and goes into page-locked memory, which torch keeps for the next copies;
    nothing waits for it but `wait`. Elsewhere (MPS, XPU) there is one queue: `fetch` before more is put into it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Begin the copy of tensors of any shape and type; their own memory may be used again afterwards."""
        self._kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        self._numbers: dict[torch.device, list[int]] = {}
        for number in sorted(range(len(tensors)), key=lambda each: -tensors[each].itemsize):  # so that all are aligned
            self._numbers.setdefault(tensors[number].device, []).append(number)
        self._copies = {device: _begin_copy([tensors[n] for n in own]) for device, own in self._numbers.items()}

    def fetch(self) -> None:
        """Copy now what no stream of its own copies; waits for those devices."""
        for device, (packed, arrival) in self._copies.items():
            self._copies[device] = packed if arrival is not None else packed.to("cpu"), arrival

    def wait(self) -> list[Tensor]:
        """The tensors on the host, as they were given, when all of them are there."""
        self.fetch()
        arrived: dict[int, Tensor] = {}
        for device, numbers in self._numbers.items():
            packed, arrival = self._copies[device]
            if arrival is not None:
                arrival.synchronize()
            kinds = [self._kinds[number] for number in numbers]
            parts = torch.split(packed, [shape.numel() * dtype.itemsize for shape, dtype in kinds])
            for number, part, (shape, dtype) in zip(numbers, parts, kinds, strict=True):
                arrived[number] = part.view(dtype).view(shape)
        return [arrived[number] for number in range(len(self._kinds))]


def _begin_copy(tensors: Sequence[Tensor]) -> tuple[Tensor, Any]:
    """The bytes of all tensors of a device, and on CUDA the event after which they are on the host."""
    packed = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])
    if not _has_streams(packed.device):
        return packed, None
    stream: Any = torch.cuda.Stream(packed.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(packed.device))
    host = torch.empty(packed.shape, dtype=packed.dtype, device="cpu", pin_memory=True)
    with torch.cuda.stream(stream):
        host.copy_(packed, non_blocking=True)
    packed.record_stream(stream)  # its memory is given to nothing else before the copy is done
    return host, stream.record_event()


def _has_streams(device: torch.device) -> bool:
    return device.type == "cuda"
