"""Several processes, one result: texts are spread over the ranks of `torchrun` and gathered in text order.

Rank r measures the texts r, r + size, … Everything that is gathered is on the CPU (numbers and float64
sums of some hundred kilobytes per text), so gloo sends it, whatever device the model is on. Every rank
ends with the same diagnosis; which of them prints and writes is the caller's choice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from condense.diagnosis.forward import TextReading
from condense.diagnosis.resume import decode, encode
from condense.errors import CondenseError, RunError, UsageError, system_failure


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of processes that measure together."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    def texts(self, total: int) -> list[int]:
        """Indices of the texts that this rank measures."""
        return list(range(self.rank, total, self.size))

    def gathered(self, readings: Iterator[TextReading], total: int) -> Iterator[TextReading]:
        """Readings of all texts in their order, on every rank, from those that each rank measured.

        A failure of one rank is raised on all of them. One round per text of each rank: no rank holds
        more than a round.
        """
        if self.size == 1:
            yield from readings
            return
        import torch.distributed as dist

        for start in range(0, total, self.size):
            part: bytes | CondenseError = b""
            if start + self.rank < total:
                part = self._encode_next(readings)
            parts: list[Any] = [None] * self.size
            try:
                dist.all_gather_object(parts, part)
            except RuntimeError as error:
                raise RunError("another process of this run is gone", "its own message is above") from error
            failure = next((each for each in parts if isinstance(each, CondenseError)), None)
            if failure is not None:
                failure.shared = True
                raise failure
            yield from (decode(each) for each in parts if each)

    def told(self, value: Any) -> Any:
        """The first rank's value, on every rank; inside `together` only."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        try:
            dist.broadcast_object_list(values, src=0)
        except RuntimeError as error:
            raise RunError("another process of this run is gone", "its own message is above") from error
        return values[0]

    def _encode_next(self, readings: Iterator[TextReading]) -> bytes | CondenseError:
        try:
            return encode(next(readings))
        except CondenseError as error:
            error.__cause__ = error.__context__ = error.__traceback__ = None
            return error
        except Exception as error:  # the other ranks must be told of any failure, or they would wait for ever
            return system_failure(error) or RunError(
                f"rank {self.rank}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            )


ALONE = Ranks()


def ranks_of(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The ranks that `torchrun` (or `accelerate launch`) started; one where there is no such launcher.

    UsageError for a RANK that does not fit the WORLD_SIZE.
    """
    try:
        size, rank = int(environment.get("WORLD_SIZE", "1")), int(environment.get("RANK", "0"))
    except ValueError:
        raise UsageError("RANK and WORLD_SIZE are not numbers", "start it with torchrun") from None
    if size > 1 and "RANK" not in environment:
        raise UsageError(f"WORLD_SIZE is {size} but RANK is not set", "start it with torchrun, or unset WORLD_SIZE")
    if not 0 <= rank < max(size, 1):
        raise UsageError(f"RANK {rank} is not one of {size}", "start it with torchrun")
    return Ranks(rank, max(size, 1))


def expect(ranks: Ranks, world: int | None) -> None:
    """Refuse to run with another number of processes than was expected (`accelerate launch --cpu` starts one)."""
    if world is not None and ranks.size != world:
        hint = f"start it with: torchrun --nproc_per_node {world}"
        error = UsageError(f"{ranks.size} processes run, --expect-world is {world}", hint)
        error.shared = True
        raise error


def device_of(asked: str, environment: Mapping[str, str] = os.environ) -> str:
    """The device of this rank: under a launcher `auto` and `cuda` mean the GPU of its local number."""
    if int(environment.get("WORLD_SIZE", "1")) == 1 or asked not in ("auto", "cuda"):
        return asked
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(environment.get('LOCAL_RANK', '0')) % count}" if count else asked


@contextlib.contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Join the other ranks for as long as texts are gathered; nothing for a single process."""
    if ranks.size == 1:
        yield
        return
    import torch.distributed as dist

    joined = dist.is_initialized()
    if not joined:
        dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.size)
    try:
        yield
    finally:
        if not joined:
            dist.destroy_process_group()
