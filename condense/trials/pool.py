"""Runs in workers of Ray.

A worker is given the input of a run and the text, cut and tokenised once, and writes the run's folder as this process
would; what comes back is whether it did. So the folder of the trial has to be on storage that all nodes share. A run
whose worker dies is begun again, up to `RETRIES` times, from its last sound checkpoint; one that fails is not.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from condense.errors import CondenseError, RunError, UnavailableError, first_line
from condense.evaluation.harness import OpenTasks, find_tasks, open_tasks
from condense.files import json_or_none, write_text
from condense.lock import forget_lost, locked
from condense.models import hub
from condense.records.jobs import JobOptions
from condense.report.text import plural
from condense.training.loop import InterruptedRunError
from condense.training.prepare import Prepared
from condense.training.remedies import remedy_of
from condense.training.rows import Split
from condense.trials.arm_run import ArmRunInput, RunState, Watch, attempt
from condense.trials.folder import MEASURED, PROGRESS, fail
from condense.trials.ray_session import Room, connected, signals_kept, threads
from condense.version import __version__

RETRIES = 3
SHARED_STORAGE = "put --output on storage that all nodes of the cluster share"
_TOLD_EVERY = 1.0  # seconds between two looks at the workers, and between two words of one


# --- runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Site:
    """What a worker has to find as it is in this process."""

    version: str
    working_directory: str
    shared: Path
    content: str
    threads: int


def run_all(
    runs: Sequence[ArmRunInput], texts: Prepared, shared: Path, jobs: JobOptions, room: Room, watch: Watch
) -> None:
    """Run all in workers; each leaves its folder as `attempt` does, with the reason where it failed.

    shared: a file of the trial's folder, by which a worker knows that it sees the same. UnavailableError where it does
    not, or has another condense; RunError where Ray itself is lost; InterruptedRunError after a signal, when the
    workers have saved their checkpoints.
    """
    with connected(jobs, room) as ray, _signals_noted() as came:
        site = _Site(__version__, os.getcwd(), shared, shared.read_text(encoding="utf-8"), room.cpus)
        _Runs(ray, runs, texts, site, jobs, room, watch, came).finish()


@contextlib.contextmanager
def in_workers(jobs: JobOptions, room: Room | None, watch: Watch) -> Iterator[None]:
    """Ray for every `run_all` in the body, where there is room for one; None: nothing is started."""
    if room is None:
        yield
        return
    watch.on_phase("starting Ray" if jobs.is_local else "connecting to Ray")
    with connected(jobs, room):
        yield


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list, and nothing else happens; outside the main thread they stay."""
    came: list[int] = []
    with signals_kept():
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, frame: came.append(number))
        yield came


class _Runs:
    """The runs of a trial on their way through the workers."""

    def __init__(
        self,
        ray: Any,
        runs: Sequence[ArmRunInput],
        texts: Prepared,
        site: _Site,
        jobs: JobOptions,
        room: Room,
        watch: Watch,
        came: Sequence[int],
    ) -> None:
        self._ray, self._watch, self._came, self._site = ray, watch, came, site
        self._total, self._waiting = len(runs), collections.deque(runs)
        self._running: dict[Any, ArmRunInput] = {}
        self._lost: collections.Counter[Path] = collections.Counter()
        # a cluster may have more room in a while: there Ray holds the runs that wait
        self._local = jobs.is_local
        self._most = room.jobs if jobs.is_local else jobs.jobs or len(runs)
        self._work = ray.remote(work).options(num_cpus=room.cpus, num_gpus=room.gpus, max_retries=0)
        bare = replace(texts, parts=Split((), ()), tuning=None)
        whole = any(remedy_of(run.spec).other_tokens for run in runs)
        self._texts = {False: ray.put(bare), True: ray.put(texts) if whole else None}
        self._site_ref = ray.put(site)

    def finish(self) -> None:
        """Until all are done, have failed, or a signal came."""
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._most:
                self._submit(self._waiting.popleft())
            for ref in self._ray.wait(list(self._running), timeout=_TOLD_EVERY)[0]:
                self._collect(ref, self._running.pop(ref))
            self._tell()
            if self._came:
                self._stop()
                raise InterruptedRunError(128 + self._came[0])

    def _submit(self, run: ArmRunInput) -> None:
        (run.folder / PROGRESS).unlink(missing_ok=True)
        texts = self._texts[remedy_of(run.spec).other_tokens]
        self._running[self._work.remote(run, texts, self._site_ref)] = run

    def _collect(self, ref: Any, run: ArmRunInput) -> None:
        """Take note of how a run ended."""
        from ray import exceptions

        name = f"{run.name}, seed {run.seed}"
        try:
            kind, text, hint = self._ray.get(ref)
        except exceptions.OutOfMemoryError:
            return self._again(run, name, "its machine ran out of memory and Ray stopped its worker")
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError) as error:
            where = "node" if isinstance(error, exceptions.NodeDiedError) else "worker"
            return self._again(run, name, f"its {where} died")
        except exceptions.RayTaskError as error:
            cause = first_line(error.cause or error)
            if isinstance(error.cause, ImportError | AttributeError):
                hint = f"install condense-lm[ray]=={__version__} on every node"
                raise UnavailableError(f"a worker cannot run condense: {cause}", hint) from None
            raise RunError(f"{name}: {cause}", "run again with --resume") from None
        except exceptions.RayError as error:
            raise RunError(f"Ray is lost: {first_line(error)}", "run again with --resume") from error
        if kind == "stopped":
            return self._again(run, name, "its worker was told to stop")
        if kind == "refused":
            raise UnavailableError(text, hint)
        if kind == "failed":
            self._watch.on_note(f"{name}: {text}; going on with the others")
        elif not _appears(run.folder / MEASURED):
            raise UnavailableError(f"{run.folder} was written, but not here", SHARED_STORAGE)
        return None

    def _again(self, run: ArmRunInput, name: str, why: str) -> None:
        """Begin a run again that was lost; one that is lost too often has failed."""
        forget_lost(run.folder)
        self._lost[run.folder] += 1
        if self._came:
            return
        if self._lost[run.folder] > RETRIES:
            reason = f"{why}, for the {self._lost[run.folder]}th time"
            fail(run.folder, reason)
            self._watch.on_note(f"{name}: {reason}; going on with the others")
            return
        self._watch.on_note(f"{name}: {why}; it is begun again, {self._lost[run.folder]} of {RETRIES} times")
        self._waiting.appendleft(replace(run, resume=True))

    def _tell(self) -> None:
        states = [_state_of(run, self._local) for run in self._running.values()]
        done = self._total - len(self._waiting) - len(self._running)
        self._watch.on_workers([state for state in states if state is not None], done, self._total)

    def _stop(self) -> None:
        """Interrupt the workers and wait until each has saved a checkpoint; a second signal ends the waiting."""
        self._watch.on_note(
            f"stopping {plural(len(self._running), 'worker')}: each finishes its step and saves a checkpoint; "
            "once more to stop at once"
        )
        for ref in self._running:
            self._ray.cancel(ref)
        while self._running and len(self._came) < 2:
            for ref in self._ray.wait(list(self._running), timeout=0.2)[0]:
                self._running.pop(ref)


def _appears(path: Path) -> bool:
    """Whether a file that a worker has written is here, or comes within a minute: storage in a network has caches."""
    patience = time.monotonic() + 60
    while not path.exists() and time.monotonic() < patience:
        time.sleep(0.5)
    return path.exists()


def _state_of(run: ArmRunInput, certain: bool) -> RunState | None:
    """How far a run is; None for one that waits for a worker, unless it is certain that one is being started."""
    told = json_or_none(run.folder / PROGRESS)
    if told is None and certain:
        return RunState(run.name, run.seed, "starting", 0, 0)
    try:
        return RunState(run.name, run.seed, str(told["phase"]), int(told["done"]), int(told["total"]))
    except (LookupError, TypeError, ValueError):
        return None


# --- in a worker ---------------------------------------------------------------------------------------


def work(run: ArmRunInput, texts: Prepared, site: _Site) -> tuple[str, str, str]:
    """One run, in a worker: (done, failed, stopped or refused; why; what to do about it)."""
    refused = _refusal(site)
    if refused is not None:
        return "refused", *refused
    _settle(site)
    try:
        with hub.closed(run.options.offline), threads(site.threads), locked(run.folder):
            telling = _Telling(run.folder / PROGRESS)
            step = lambda done, total, logs: telling.count(done, total)  # noqa: E731
            watch = Watch(on_phase=telling.phase, on_text=telling.count, on_step=step)
            try:
                tasks = _tasks(() if run.searched else run.training.eval_tasks, run.training.include_path)
                reason = attempt(run, texts, tasks, watch)
            finally:
                telling.end()
    except InterruptedRunError:
        return "stopped", "", ""
    except CondenseError as error:
        return "refused", str(error), error.hint
    return ("done", "", "") if reason is None else ("failed", reason, "")


def _refusal(site: _Site) -> tuple[str, str] | None:
    """Why a worker cannot run here, and what to do; None if it can."""
    node = socket.gethostname()
    if site.version != __version__:
        return f"condense {__version__} is installed on {node}, and {site.version} here", "install the same everywhere"
    try:
        same = site.shared.read_text(encoding="utf-8") == site.content
    except OSError:
        same = False
    if not same:
        return f"{site.shared.parent} is not there on {node}", SHARED_STORAGE
    return None


def _settle(site: _Site) -> None:
    """Make a worker's process what the command line makes of its own: quiet, and where relative paths are meant."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ["OMP_NUM_THREADS"] = str(site.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with contextlib.suppress(OSError):  # where the folder is not on this node, relative paths name nothing
        os.chdir(site.working_directory)


@functools.cache
def _tasks(names: tuple[str, ...], include_path: str | None) -> OpenTasks:
    return open_tasks(find_tasks(names, include_path))


class _Telling:
    """Writes how far a run is into its folder, at most once a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._phase, self._last = path, "starting", 0.0
        self._write(0, 0)

    def phase(self, phase: str) -> None:
        """A new phase begins."""
        self._phase = phase
        self._write(0, 0)

    def count(self, done: int, total: int) -> None:
        """So much of the phase is done."""
        if time.monotonic() - self._last >= _TOLD_EVERY or done == total:
            self._write(done, total)

    def end(self) -> None:
        """Nothing more is told."""
        self._path.unlink(missing_ok=True)

    def _write(self, done: int, total: int) -> None:
        self._last = time.monotonic()
        write_text(self._path, json.dumps({"phase": self._phase, "done": done, "total": total}))
