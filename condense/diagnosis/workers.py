"""Measurements of many sites at once, on the CPU: one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import threadpoolctl
import torch

from condense.geometry import Measurement

_WAITING = 256 * 2**20  # bytes of states that are kept within a forward pass until they are measured
_Task = Callable[[], Measurement]


class Waiting:
    """Sites whose states are on the CPU and not yet measured, with the list of each text's measurements."""

    def __init__(self, workers: Workers) -> None:
        """Have them measured by these workers."""
        self._workers = workers
        self._tasks: list[tuple[list[Measurement], _Task]] = []
        self._bytes = 0

    def add(self, measured: list[Measurement], task: _Task, size: int) -> None:
        """Measure one site of one text later, and append the measurement; size: the bytes of its states."""
        self._tasks.append((measured, task))
        self._bytes += size

    def finish_if_many(self) -> None:
        """Measure where every worker has a site, or the states take much memory: within a forward pass."""
        if len(self._tasks) >= self._workers.threads or self._bytes >= _WAITING:
            self.finish()

    def finish(self) -> None:
        """Append every measurement to the list of its text."""
        measurements = self._workers.run([task for _, task in self._tasks])
        for (measured, _), measurement in zip(self._tasks, measurements, strict=True):
            measured.append(measurement)
        self._tasks, self._bytes = [], 0


class Workers:
    """Measurements of many sites: one worker per core, each with one thread, for a whole run.

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

    def run(self, tasks: Sequence[_Task]) -> list[Measurement]:
        """The measurements without their Gram matrices, in order."""
        try:
            with self._libraries.limit(limits=1):
                return list(self._pool.map(_on_one_thread, tasks))
        finally:
            torch.set_num_threads(self.threads)


@torch.inference_mode()
def _on_one_thread(task: _Task) -> Measurement:
    torch.set_num_threads(1)
    return task().reduced()
