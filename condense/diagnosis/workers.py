"""Work on many sites or texts at once, on the CPU: one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import threadpoolctl
import torch

_WAITING = 256 * 2**20  # bytes of states that are kept within a forward pass until they are measured
_T = TypeVar("_T")


class Waiting(Generic[_T]):
    """Sites whose states are on the CPU and not yet measured, with the list that each measurement belongs to."""

    def __init__(self, workers: Workers) -> None:
        """Have them measured by these workers."""
        self._workers = workers
        self._tasks: list[tuple[list[_T], Callable[[], _T]]] = []
        self._bytes = 0

    def add(self, measured: list[_T], task: Callable[[], _T], size: int) -> None:
        """Measure one site of one text later, and append what it returns; size: the bytes of its states."""
        self._tasks.append((measured, task))
        self._bytes += size

    def finish_if_many(self) -> None:
        """Measure where every worker has a site, or the states take much memory: within a forward pass."""
        if len(self._tasks) >= self._workers.threads or self._bytes >= _WAITING:
            self.finish()

    def finish(self) -> None:
        """Append what every task returns to its list."""
        results = self._workers.run([task for _, task in self._tasks])
        for (measured, _), result in zip(self._tasks, results, strict=True):
            measured.append(result)
        self._tasks, self._bytes = [], 0


class Workers:
    """One worker per core, each with one thread, for a whole run.

    Two workers with two threads each compete for the cores. torch keeps its number of threads per thread and MKL for
    all, OpenBLAS (numpy's and scipy's) for all: every worker sets torch's, and the calling thread restores all.
    """

    def __init__(self) -> None:
        """As many as torch has threads."""
        self.threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.threads, "condense-sites")
        self._libraries = threadpoolctl.ThreadpoolController().select(internal_api="openblas")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.threads)

    def run(self, tasks: Sequence[Callable[[], _T]]) -> list[_T]:
        """What the tasks return, in order."""
        try:
            with self._libraries.limit(limits=1):
                return list(self._pool.map(_on_one_thread, tasks))
        finally:
            torch.set_num_threads(self.threads)


@torch.inference_mode()
def _on_one_thread(task: Callable[[], _T]) -> _T:
    torch.set_num_threads(1)
    return task()
