"""Where the runs of a trial go: an option group, as those of plans.py. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from condense.errors import UsageError
from condense.records.options import WORKERS, Flag, Options


@dataclass(frozen=True)
class JobOptions(Options):
    """Where the runs of a trial go: one after the other in this process, or in workers of Ray.

    `ray` is `local`, for a Ray of this process alone, or the address of a cluster; with `jobs` above 1 it is local
    where nothing is said.
    """

    ray: Annotated[
        str | None,
        Flag(
            "Run in workers of Ray: of a local one, or of the cluster at auto, HOST:PORT or ray://HOST:PORT.",
            WORKERS,
            metavar="[ADDRESS]",
            bare=("local", r"local|auto|ray://\S+|[\w.\-]+:\d+|\[[\da-fA-F:]+\]:\d+"),
        ),
    ] = None
    jobs: Annotated[
        int | None,
        Flag(
            "Runs at once. Default: 1, in this process; with --ray as many as there is room for.", WORKERS, at_least=1
        ),
    ] = None
    cpus_per_run: Annotated[
        int | None,
        Flag("CPUs and threads of a run. Default: this machine's shared out over --jobs, else 1.", WORKERS, at_least=1),
    ] = None
    gpus_per_run: Annotated[
        float | None,
        Flag(
            "GPUs of a run; 0.5 puts two on one. Default: 1 where the model is on a GPU, else 0.", WORKERS, at_least=0
        ),
    ] = None

    def __post_init__(self) -> None:
        """UsageError for resources of a run without workers, and for one and a half GPUs."""
        super().__post_init__()
        for name, value in (("--cpus-per-run", self.cpus_per_run), ("--gpus-per-run", self.gpus_per_run)):
            if value is not None and not self.in_workers:
                raise UsageError(f"{name} is for runs in workers", "add --jobs N or --ray, or leave it out")
        gpus = float(self.gpus_per_run or 0)
        if gpus > 1 and not gpus.is_integer():
            raise UsageError(f"--gpus-per-run is {gpus:g}", "use a share of one GPU, or a whole number")

    @property
    def in_workers(self) -> bool:
        """Whether runs go into workers."""
        return self.ray is not None or (self.jobs or 1) > 1

    @property
    def is_local(self) -> bool:
        """Whether the workers are of this machine's own Ray."""
        return self.ray in (None, "local")
