"""Ray for the runs of a trial: a local one of this process alone, or a cluster, and how many runs there is room for.

A local Ray listens on the network, as every Ray does: it is given a secret of its own, without which no connection is
taken, unless the process had imported Ray before. Its files are in a folder that nobody else can enter. It has no
dashboard and sends no usage statistics.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import condense
from condense.doctor import memory_of_machine
from condense.errors import RunError, UnavailableError, UsageError, first_line
from condense.files import size_in_words
from condense.records.jobs import JobOptions
from condense.records.options import ModelOptions
from condense.report.text import plural
from condense.training.loop import InterruptedRunError

_PATIENCE = 10  # seconds for the address of a cluster to answer
_START_ONE = "start one with ray start --head, or use --ray alone"


@dataclass(frozen=True)
class Room:
    """How many runs go on at once, the CPUs and GPUs of each, and what there is to say of that."""

    jobs: int
    cpus: int
    gpus: float
    notes: tuple[str, ...] = ()


# --- room ----------------------------------------------------------------------------------------------


def refuse_without_ray(jobs: JobOptions, options: ModelOptions) -> None:
    """UnavailableError without Ray, or a cluster that answers; UsageError for a device that no worker has."""
    if not jobs.in_workers:
        return
    if importlib.util.find_spec("ray") is None:
        raise UnavailableError("runs in workers need the package ray", "pip install 'condense-lm[ray]'")
    if ":" in options.device:
        raise UsageError(
            f"--device {options.device} names one GPU, and each worker sees only its own", "use --device cuda"
        )
    if not jobs.is_local:
        _refuse_unreachable(str(jobs.ray))
    if options.device == "cuda" and jobs.gpus_per_run == 0:
        raise UsageError("--device cuda and --gpus-per-run 0 do not go together", "leave out one of them")


def room_for(jobs: JobOptions, options: ModelOptions, runs: int) -> Room:
    """What there is room for, on this machine or on the cluster.

    UsageError for more GPUs per run than this machine has, UnavailableError for a cluster that cannot be reached.
    """
    on_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    gpus = float(on_gpu) if jobs.gpus_per_run is None else jobs.gpus_per_run
    return (_local_room if jobs.is_local else _cluster_room)(jobs, gpus, max(1, runs))


def _local_room(jobs: JobOptions, gpus: float, runs: int) -> Room:
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    cores, cards = len(affinity(0)), torch.cuda.device_count()
    if gpus > cards:
        raise UsageError(f"--gpus-per-run is {gpus:g}, and this machine has {cards}", "use fewer, or leave it out")
    shared = max(1, cores // jobs.jobs) if jobs.jobs else 1
    cpus = jobs.cpus_per_run or shared
    asked, notes = jobs.jobs or max(1, cores // cpus), []
    if gpus:
        asked = min(asked, _fit(cards, gpus))
    if asked * cpus > cores and jobs.jobs:
        notes.append(f"{asked} runs of {plural(cpus, 'thread')} at once share {plural(cores, 'core')}")
    return Room(min(asked, runs), cpus, gpus, tuple(notes))


def _cluster_room(jobs: JobOptions, gpus: float, runs: int) -> Room:
    cpus = jobs.cpus_per_run or 1
    with connected(jobs) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get("CPU", 0) // cpus), _fit(int(node.get("GPU", 0)), gpus) if gpus else runs) for node in nodes
    )
    notes = [f"Ray at {jobs.ray}: {plural(len(nodes), 'node')}, room for {plural(room, 'run')} at once"]
    if not room:
        needs = plural(cpus, "CPU") + (f" and {gpus:g} GPU{'s' * (gpus > 1)}" if gpus else "")
        notes.append(f"no node has {needs} now: runs wait until one joins")
    return Room(max(1, min(room, runs, jobs.jobs or runs)), cpus, gpus, tuple(notes))


def _fit(cards: int, gpus: float) -> int:
    """Runs that so many GPUs hold: several on each, or several for each."""
    return int(cards // gpus) if gpus >= 1 else cards * int(1 / gpus + 1e-9)


def fitted(room: Room, jobs: JobOptions, memory: int | None) -> Room:
    """The room as the memory of this machine leaves it; runs on GPUs or on a cluster are not looked at.

    memory: bytes of one run. Fewer runs at once where --jobs did not say how many; UsageError where it did and they
    never fit, a note where they do not fit now.
    """
    if not memory or room.gpus or not jobs.is_local or room.jobs == 1:
        return room
    total, free = memory_of_machine()
    if total is None or free is None:
        return room
    holds, needed = max(1, free // memory), room.jobs * memory
    if needed <= free:
        return room
    words = f"{room.jobs} runs at once take about {size_in_words(needed)} of memory"
    if jobs.jobs is None:
        note = f"{plural(holds, 'run')} at once: more do not fit in {size_in_words(free)} of memory"
        return replace(room, jobs=min(room.jobs, holds), notes=(*room.notes, note))
    if needed > total:
        raise UsageError(f"{words}, and this machine has {size_in_words(total)}", f"use --jobs {holds}")
    return replace(room, notes=(*room.notes, f"{words}, and {size_in_words(free)} are free: --jobs {holds} fits"))


def seconds_of(durations: Sequence[float], jobs: int) -> float:
    """How long runs of such durations take, so many at once, each begun when a worker is free."""
    ends = [0.0] * max(1, jobs)
    for duration in durations:
        ends[ends.index(min(ends))] += duration
    return max(ends)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads, so that all of a trial is computed alike; None: as it is."""
    from threadpoolctl import threadpool_limits

    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


# --- Ray -----------------------------------------------------------------------------------------------


@functools.cache
def _secret() -> str:
    return secrets.token_hex(32)


@contextlib.contextmanager
def connected(jobs: JobOptions, room: Room | None = None) -> Iterator[Any]:
    """The module ray, connected: to a local Ray that ends with this, or to a cluster; one that is in use is used."""
    with contextlib.ExitStack() as stack:
        loaded = sys.modules.get("ray")
        if loaded is not None and loaded.is_initialized():
            yield loaded
            return
        ray = _start_local(room or Room(1, 1, 0.0), stack) if jobs.is_local else _join(str(jobs.ray))
        stack.callback(ray.shutdown)
        yield ray


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """What Ray changes of the handling of SIGTERM is changed back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread: Ray changed nothing either
            for number, handler in before.items():
                signal.signal(number, handler)


def _refuse_unreachable(address: str) -> None:
    """UnavailableError where nothing answers at HOST:PORT; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UnavailableError(f"no Ray cluster at {address}: {first_line(error)}", _START_ONE) from None


def _join(address: str) -> Any:
    """Connect to a cluster; UnavailableError if there is none."""
    with _starting({"RAY_NUM_REDIS_GET_RETRIES": "2"}), contextlib.chdir(tempfile.gettempdir()):
        import ray

        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UnavailableError(f"no Ray cluster at {address}: {first_line(error)}", _START_ONE) from None
    return ray


def _start_local(room: Room, stack: contextlib.ExitStack) -> Any:
    """Start a local Ray with nothing but the workers.

    It starts in its own folder: Ray puts the folder it is started in on the workers' path of modules, and there might
    be a random.py in the user's.
    """
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"  # sockets have short names
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="condense-ray-", dir=parent, ignore_cleanup_errors=True)
    )
    package = str(Path(condense.__file__).parents[1])
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), package))),
    }
    if "ray" not in sys.modules or _secret.cache_info().currsize:  # Ray reads this when it is imported
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _secret()}
    with _starting(settings), contextlib.chdir(folder):
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=room.jobs * room.cpus,
                num_gpus=torch.cuda.device_count() if room.gpus else 0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(Path(folder) / "r"),  # Ray lets everybody into it, but not into the folder around
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            ray.shutdown()
            raise RunError(f"Ray does not start here: {first_line(error)}", "leave out --jobs and --ray") from error
    return ray


@contextlib.contextmanager
def _starting(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment while Ray starts, which passes them on; its warnings are not shown.

    InterruptedRunError for a SIGTERM meanwhile, for which Ray has a handler of its own.
    """
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with signals_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SystemExit:
        raise InterruptedRunError(128 + signal.SIGTERM) from None
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
