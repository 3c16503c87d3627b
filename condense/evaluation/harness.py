"""lm-evaluation-harness: which tasks are there, open them, run a model on them. The only file that imports it.

Written against lm_eval 0.4.13, which works with transformers 5.23. The harness talks on stdout, stderr and its
logger and seeds every generator of the process; none of that leaves this file. No response is cached.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import difflib
import io
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condense.errors import RunError, UnavailableError, UsageError, is_out_of_memory, system_failure
from condense.files import expanded
from condense.models import hub

if TYPE_CHECKING:
    from condense.models.checkpoint import Checkpoint

OnRequest = Callable[[int, int], None]
BOOTSTRAP = 1000
_LOGGERS = ("lm_eval", "datasets", "huggingface_hub")


@dataclass(frozen=True)
class FoundTasks:
    """Tasks that exist by name; none of their data is loaded. `names` is empty if none was asked for."""

    names: tuple[str, ...] = ()
    include_path: Path | None = None
    manager: Any = None


@dataclass(frozen=True)
class OpenTasks:
    """Tasks with their data: for each name the harness's own tasks by theirs, and its group if the name is one."""

    names: tuple[str, ...] = ()
    leaves: tuple[Mapping[str, Any], ...] = ()
    groups: tuple[Any, ...] = ()
    manager: Any = None


def find_tasks(names: Sequence[str], include_path: str | Path | None = None) -> FoundTasks:
    """Check that every name is a task, group or tag of the harness or of the YAML files under `include_path`.

    Nothing is downloaded. UnavailableError if lm_eval is missing, the folder does not exist or a name is unknown
    (with the nearest known ones).
    """
    if not names:
        return FoundTasks()
    folder = expanded(include_path).absolute() if include_path is not None else None
    if folder is not None and not folder.is_dir():
        raise UnavailableError(f"no such folder of task files: {folder}", "see --include-path")
    with _quiet():
        manager = _manager(names, folder)
    for name in names:
        if name not in manager.task_index:
            raise UnavailableError(f"lm_eval knows no task {name!r}", _hint(name, manager.all_tasks, folder))
    return FoundTasks(tuple(dict.fromkeys(names)), folder, manager)


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """An index of tasks; the harness's own 14,000 take seconds to read, so not where the folder has all of them."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UnavailableError(
            f"downstream tasks need the package lm_eval ({error})", "pip install 'condense-lm[eval]'"
        ) from None
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if all(_is_whole(own, name) for name in names):
            return own
    return TaskManager(include_path=None if folder is None else str(folder))


def _is_whole(own: Any, name: str) -> bool:
    """True for a task of this index, and for a group whose members are all tasks of it."""
    if name in own.all_groups:
        members = own.task_index[name].cfg.get("task")
        return isinstance(members, list) and all(isinstance(m, str) and m in own.all_subtasks for m in members)
    return name in own.all_subtasks


def _hint(name: str, known: Sequence[str], folder: Path | None) -> str:
    for path in sorted(folder.glob("**/*.yaml")) if folder is not None else ():
        if name in path.read_text(encoding="utf-8", errors="replace"):
            return f"{path} mentions it, but the harness cannot read it: is it valid YAML with a key task?"
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else "--include-path DIR adds task files of your own"


def open_tasks(found: FoundTasks) -> OpenTasks:
    """Load the data of the tasks: from this disk, or from the hub, for these names only, unless offline.

    Data files of a task are looked for from the working directory, as the harness does, then from `include_path`.
    UnavailableError for data that cannot be had, for a task file that does not work, for tasks that run code which
    the model writes or need pictures or sound; UsageError for a task that is named twice through groups.
    """
    with hub.opened(), _quiet(), _generators_kept():
        loaded = [_loaded(name, found) for name in found.names]
    leaves = tuple(one["tasks"] for one in loaded)
    times = collections.Counter(name for tasks in leaves for name in tasks)
    if times and max(times.values()) > 1:
        raise UsageError(f"the task {times.most_common(1)[0][0]} is named more than once", "leave out it or its group")
    for name, task in (pair for tasks in leaves for pair in tasks.items()):
        if getattr(task, "UNSAFE_CODE", False):
            raise UnavailableError(f"the task {name} runs code that the model writes", "condense runs none")
        if getattr(task, "MULTIMODAL", False):
            raise UnavailableError(f"the task {name} needs pictures or sound", "choose one of text")
    groups = tuple(one["groups"].get(name) for name, one in zip(found.names, loaded, strict=True))
    return OpenTasks(found.names, leaves, groups, found.manager)


def _loaded(name: str, found: FoundTasks) -> Mapping[str, Any]:
    """What the harness's manager makes of a name: its tasks, and the groups if it is a group."""
    try:
        try:
            made: Mapping[str, Any] = found.manager.load([name])
        except FileNotFoundError:
            if found.include_path is None:
                raise
            with contextlib.chdir(found.include_path):
                made = found.manager.load([name])
    except ConnectionError as error:
        raise UnavailableError(
            f"the task {name} needs a dataset that cannot be reached: {_first_line(error)}",
            "go online once to fill the cache of datasets, or name a task with local data (--include-path)",
        ) from None
    except Exception as error:
        if (failure := system_failure(error)) is not None:
            raise failure from error
        raise UnavailableError(
            f"the task {name} cannot be used: {type(error).__name__}: {_first_line(error)}"
        ) from error
    return made


def run(
    opened: Checkpoint, tasks: OpenTasks, *, limit: int | None, seed: int, batch_size: int, on_request: OnRequest
) -> Mapping[str, Any]:
    """What `lm_eval.simple_evaluate` returns, with every sample; the batch is halved when memory runs out.

    RunError names the failure of tasks that cannot be run on this model.
    """
    import lm_eval

    items = [
        part
        for leaves, group in zip(tasks.leaves, tasks.groups, strict=True)
        for part in ((group,) if group is not None else leaves.values())
    ]
    while True:
        try:
            with _quiet(), _generators_kept():
                results: Mapping[str, Any] = lm_eval.simple_evaluate(
                    _wrapped(opened, tasks, batch_size, on_request), tasks=items, task_manager=tasks.manager,
                    limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True, random_seed=seed,
                    numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                )  # fmt: skip
            return results
        except Exception as error:
            if not is_out_of_memory(error):
                raise system_failure(error) or RunError(
                    f"lm_eval failed on {', '.join(tasks.names)}: {type(error).__name__}: {_first_line(error)}",
                    "see the task's file and the length of its samples; --debug shows where",
                ) from error
            if batch_size == 1:
                raise
        batch_size //= 2


def _wrapped(opened: Checkpoint, tasks: OpenTasks, batch_size: int, on_request: OnRequest) -> Any:
    """The model as the harness wants it. The tokenizer is a copy, for the harness may give it a padding token."""
    from lm_eval.models.huggingface import HFLM

    backend = "seq2seq" if opened.info.objective == "seq2seq" else "causal"
    wrapped = HFLM(
        pretrained=opened.model, tokenizer=copy.deepcopy(opened.tokenizer), backend=backend,
        max_length=opened.positions, batch_size=batch_size,
    )  # fmt: skip
    wrapped.set_cache_hook(_Progress(tasks, on_request))
    return wrapped


class _Progress:
    """Stands where the harness would keep its cache of answers: counts them, keeps none."""

    def __init__(self, tasks: OpenTasks, on_request: OnRequest) -> None:
        self.tasks, self.on_request, self.done = tasks, on_request, 0

    def add_partial(self, kind: str, request: object, answer: object) -> None:
        """Called by the harness for every answer of the model."""
        self.done += 1
        total = sum(len(task.instances) for leaves in self.tasks.leaves for task in leaves.values())
        self.on_request(min(self.done, total), total)


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Put back the state of every random generator, so that what is trained next does not depend on the tasks."""
    import numpy as np
    import torch

    plain, drawn = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(drawn)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars, no chatter, and standard errors without a pool of processes; failures still arrive as exceptions."""
    from tqdm.std import tqdm

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    start = tqdm.__init__

    def silent(bar: Any, *args: Any, **kwargs: Any) -> None:
        start(bar, *args, **{**kwargs, "disable": True})

    pool = os.environ.get("DISABLE_MULTIPROC")
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        tqdm.__init__ = silent  # the harness has no other switch for the bars over its samples
        os.environ["DISABLE_MULTIPROC"] = "1"
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__ = start
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if pool is None:
            os.environ.pop("DISABLE_MULTIPROC", None)
        else:
            os.environ["DISABLE_MULTIPROC"] = pool


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:200]
