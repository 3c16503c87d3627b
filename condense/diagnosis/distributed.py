"""Several processes, one result: the ranks of `torchrun`, what they tell each other, and who fails for all.

Rank r measures the texts r, r + size, … Everything that is gathered is on the CPU (numbers and float64
sums of some hundred kilobytes per text), so gloo sends it, whatever device the model is on. Every rank
ends with the same diagnosis; which of them prints and writes is the caller's choice.

A process that waits for another waits as long as it takes: one may measure for hours while the others have nothing to
do. One that is gone is noticed at once, because its connections close.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from condense.diagnosis.forward import TextReading
from condense.diagnosis.resume import decode, encode
from condense.errors import CondenseError, RunError, UsageError, as_condense_error, system_failure

PATIENCE = timedelta(days=30)  # how long a process waits for one that is alive
_FAILURE = "condense/failure/"
_LISTENING = 2.0  # seconds in which a process that failed waits for the others to fail too
_LOOKING = 0.05  # and in which it looks for what one that is gone has left, before the launcher ends it


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
        for start in range(0, total, self.size):
            part: bytes | CondenseError = b""
            if start + self.rank < total:
                part = self._encode_next(readings)
            parts = self.all_of(part)
            failure = next((each for each in parts if isinstance(each, CondenseError)), None)
            if failure is not None:
                failure.shared = True
                raise failure
            yield from (decode(each) for each in parts if each)

    def told(self, value: Any, group: Any = None) -> Any:
        """The first rank's value, on every rank; inside `together` only."""
        if self.size == 1:
            return value
        values = [value]
        with _lost_ones():
            dist.broadcast_object_list(values, src=0, group=group)
        return values[0]

    def all_of(self, value: Any) -> list[Any]:
        """The values of all ranks by rank, on every rank; inside `together` only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost_ones():
            dist.all_gather_object(values, value)
        return values

    def largest(self, value: int) -> int:
        """The largest of the ranks' values, on every rank, which have all come this far; inside `together` only."""
        if self.size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

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


@contextlib.contextmanager
def _lost_ones() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _gone() from error


def _gone() -> RunError:
    return RunError("another process of this run is gone", "its own message is above")


def joined() -> Ranks:
    """The ranks that are together now."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else ALONE


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
    count = torch.cuda.device_count()
    return f"cuda:{int(environment.get('LOCAL_RANK', '0')) % count}" if count else asked


@contextlib.contextmanager
def together(ranks: Ranks, *, training: bool = False) -> Iterator[None]:
    """Join the other ranks for as long as something is shared; nothing for a single process.

    training: tensors on GPUs are sent too. An outer `together`, or a process group of the caller's, is used.
    """
    if ranks.size == 1 or dist.is_initialized():
        yield
        return
    if training:  # a step takes minutes at most: what hangs for longer than the default is given up
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    else:
        dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)
    try:
        yield
    except BaseException:
        if not torch.cuda.is_available():  # NCCL would wait for what the others no longer send
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def failing_together(name: str) -> Iterator[None]:
    """Have the failure of one rank end all of them with one message and its exit code, while tensors are exchanged.

    name: of what is done, the same on every rank and nothing else's. Where one fails, the others find their connections
    closed, or the launcher ends them. Where all fail alike nobody is lost (`have_all_failed`), and the first speaks.
    """
    ranks = joined()
    try:
        yield
    except BaseException as error:
        if ranks.size == 1 or getattr(error, "shared", False):
            raise
        if _is_loss(error):
            raise _failure_in(name, ranks, _LOOKING) or _gone() from error
        own = as_condense_error(error) if isinstance(error, Exception) else CondenseError(type(error).__name__)
        _store().set(_key(name, ranks.rank), json.dumps([str(own), own.hint, own.exit_code]))
        until = time.monotonic() + _LISTENING
        while not have_all_failed(name, ranks) and time.monotonic() < until:
            time.sleep(_LOOKING / 2)
        alike = isinstance(error, Exception) and _failure_in(name, Ranks(0, 1), 0) is not None
        if alike and not ranks.is_first:
            own.shared = True
            raise own from error
        raise


def have_all_failed(name: str, ranks: Ranks) -> bool:
    """Whether every rank failed in what has this name, so that all of them are in step again."""
    return dist.is_initialized() and bool(_store().check([_key(name, rank) for rank in range(ranks.size)]))


def is_alone(name: str, ranks: Ranks) -> bool:
    """Whether this rank failed in what has this name and the others did not: they are stuck, or gone."""
    failed = dist.is_initialized() and bool(_store().check([_key(name, ranks.rank)]))
    return failed and not have_all_failed(name, ranks)


def _key(name: str, rank: int) -> str:
    return f"{_FAILURE}{name}/{rank}"


def _store() -> Any:
    """The store that all ranks reach; that of `torchrun` outlives them."""
    return dist.distributed_c10d._get_default_store()


def _is_loss(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    said = str(error).lower()
    signs = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in said for sign in signs)


def _failure_in(name: str, ranks: Ranks, seconds: float) -> CondenseError | None:
    """The failure that one of so many ranks left in the store, looked for so long; the others share it."""
    until = time.monotonic() + seconds
    while True:
        for rank in range(ranks.size):
            with contextlib.suppress(RuntimeError):  # the store was that of a process that is gone
                if _store().check([_key(name, rank)]):
                    message, hint, code = json.loads(_store().get(_key(name, rank)))
                    failure = CondenseError(message, hint)
                    failure.exit_code, failure.shared = code, True
                    return failure
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOKING / 2)
