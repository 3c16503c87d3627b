"""The inputs of a comparison: models, saved runs, the checkpoints of a run, revisions of a hub id, modules in memory.

Standard library only: names and JSON are read here, no model is opened.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from condense.errors import CondenseError, UnavailableError, UsageError, as_condense_error
from condense.files import expanded
from condense.models import folder as inspection
from condense.records.comparison import COMPARISON_SCHEMA
from condense.records.diagnosis import DIAGNOSIS_SCHEMA, Diagnosis
from condense.records.serial import read_json
from condense.records.treatment import TREATMENT_SCHEMA, Treatment
from condense.records.trial import TRIAL_SCHEMA

_STEP = re.compile(r"(?:^|[-_/])(?:checkpoint|step|global_step|global-step|iter|ckpt)[-_]?(\d+)$")
_NUMBER = re.compile(r"\d+$")
Run = TypeVar("Run", Diagnosis, Treatment)


@dataclass(frozen=True)
class Candidate:
    """One thing to compare: a model to be measured, or a diagnosis that was saved.

    `place`: the argument for `load`, or the saved run's path; `probe`: a treatment arm measured on the probe text;
    `error`: why it cannot be read (it is left out then); `live`: a model in memory.
    """

    name: str
    place: str
    step: int | None = None
    revision: str | None = None
    tokenizer: str | None = None
    diagnosis: Diagnosis | None = None
    probe: Diagnosis | None = None
    error: CondenseError | None = None
    live: Any = None


def find(arguments: Sequence[str | Path], revisions: Sequence[str] = ()) -> list[Candidate]:
    """The candidates that the arguments name, each under a name of its own, a single run's in order of steps.

    One folder that holds checkpoints (`checkpoint-500`, `step1000`, or saved runs so called) is a training run.
    What cannot be read is a candidate with its `error`. UsageError for fewer than two or for folders that do not go
    together; the error itself where fewer than two others are left.
    """
    names = [str(argument) for argument in arguments]
    if revisions:
        return _revisions(names, revisions)
    if len(names) == 1:
        candidates = _of_one(names[0])
        if len(candidates) < 2:
            raise UsageError(
                f"there is nothing to compare {names[0]} with", "name two or more, or a folder of checkpoint-*"
            )
        return candidates
    candidates = [candidate for argument in names for candidate in _readable(argument)]
    if len(candidates) < 2:
        raise UsageError("compare needs two or more", "condense compare A B: models, checkpoints or saved runs")
    _refuse_too_few(candidates)
    return _with_distinct_names(_on_one_text(candidates))


def _readable(argument: str) -> list[Candidate]:
    """The candidates of an argument; one that cannot be read has its `error` set, so that the others still run."""
    try:
        return _candidates_of_argument(argument)
    except (UnavailableError, OSError) as failure:
        return [_unreadable_candidate(argument, failure)]


def _unreadable_candidate(source: str, failure: Exception) -> Candidate:
    return Candidate(source, source, step_of(source), error=as_condense_error(failure))


def _refuse_too_few(candidates: Sequence[Candidate]) -> None:
    """Raise the first error where fewer than two are left to compare, before any of them is measured."""
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    if errors and len(candidates) - len(errors) < 2:
        raise errors[0]


def step_of(name: str) -> int | None:
    """The training step that a name ends in (`run/checkpoint-500`, `step1000`), or None."""
    match = _STEP.search(name.removesuffix(".json").rstrip("/"))
    return int(match.group(1)) if match else None


def run_of(candidates: Sequence[Candidate]) -> str | None:
    """The training run that all candidates are steps of: its folder or hub id; None if they are not one run's."""
    candidates = [candidate for candidate in candidates if candidate.error is None]
    steps = [candidate.step for candidate in candidates]
    if None in steps or len(set(steps)) < len(steps):
        return None
    runs = {_training_run(candidate) for candidate in candidates}
    return runs.pop() if len(runs) == 1 else None


def _training_run(candidate: Candidate) -> str:
    measured = candidate.diagnosis.model.id if candidate.diagnosis else candidate.place
    if step_of(measured) is None:  # a revision of a hub id
        return measured
    return str(Path(measured).parent)


# --- one argument ----------------------------------------------------------------------------------------


def _of_one(argument: str) -> list[Candidate]:
    path = expanded(argument)
    if path.is_dir():
        return _run_of_folder(path)
    return _with_distinct_names(_candidates_of_argument(argument))


def _run_of_folder(folder: Path) -> list[Candidate]:
    """The checkpoints of a folder in the order of their steps; one that holds none is named as such."""
    steps = sorted((step, path) for path in folder.iterdir() if (step := step_of(path.name)) is not None)
    models = [(step, path) for step, path in steps if path.is_dir()]
    saved = [(step, path) for step, path in steps if path.suffix == ".json"]
    if not models and not saved:
        if (folder / "config.json").exists():
            raise UsageError(
                f"{folder} is one model", "name a second one, or the folder whose checkpoint-* are to be compared"
            )
        raise UsageError(
            f"{folder} holds no checkpoints", "expected folders such as checkpoint-500 or step1000, or saved runs"
        )
    if not models:
        candidates = [candidate for _, path in saved for candidate in _readable(str(path))[:1]]
        _refuse_too_few(candidates)
        return _with_distinct_names(candidates)
    parent = str(folder) if inspection.has_tokenizer(folder) else None
    return [
        Candidate(
            path.name,
            str(path),
            step,
            tokenizer=None if inspection.has_tokenizer(path) else parent,
        )
        for step, path in models
    ]


def _candidates_of_argument(argument: str) -> list[Candidate]:
    path = expanded(argument)
    if path.suffix == ".json":
        return _saved(path)
    if inspection.is_path(argument):
        if not path.exists():
            raise UnavailableError(
                f"no such file or directory: {path}", "give a hub id, a folder, a .gguf file or a saved run"
            )
        if path.is_dir() and not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
            if any(step_of(inner.name) is not None for inner in path.iterdir()):
                raise UsageError(
                    f"{path} holds the checkpoints of a run", "compare it alone, or name its checkpoints one by one"
                )
    parent = path.parent if path.is_dir() and step_of(path.name) is not None else None
    lacks = parent is not None and not inspection.has_tokenizer(path) and inspection.has_tokenizer(parent)
    return [Candidate(argument, argument, step_of(argument), tokenizer=str(parent) if lacks else None)]


def _saved(path: Path) -> list[Candidate]:
    """The diagnosis of a saved run, or the arms of a saved treatment."""
    data = read_json(path)
    kind = data["schema"]
    if kind == DIAGNOSIS_SCHEMA:
        diagnosis = _run_from_json(Diagnosis, path, data)
        if not diagnosis.sites:
            raise UsageError(f"{path} is of the weights alone", "compare runs on a text, or the models themselves")
        step = step_of(path.name)
        if step is None:
            step = step_of(diagnosis.model.id)
        if step is None:
            step = step_of(diagnosis.model.revision or "")
        return [Candidate(diagnosis.model.id, str(path), step, diagnosis=diagnosis)]
    if kind == TREATMENT_SCHEMA:
        treatment = _run_from_json(Treatment, path, data)
        return [
            Candidate(name, str(path), diagnosis=arm.validation, probe=arm.probe)
            for name, arm in treatment.arms.items()
        ]
    if kind == COMPARISON_SCHEMA:
        raise UsageError(f"{path} is a comparison already", f"condense report {shlex.quote(str(path))}")
    if kind == TRIAL_SCHEMA:
        raise UsageError(f"{path} is a trial, which compares its arms itself", "name the saved runs in its arms/")
    raise UnavailableError(f"{path} is of an unknown kind ({kind})", "was it written by a newer condense?")


def _run_from_json(kind: type[Run], path: Path, data: dict[str, object]) -> Run:
    try:
        return kind.from_json(data)
    except UnavailableError as error:
        raise UnavailableError(f"{path}: {error}", error.hint) from None


# --- several ---------------------------------------------------------------------------------------------


def _revisions(arguments: list[str], revisions: Sequence[str]) -> list[Candidate]:
    names = [name.strip() for name in revisions if name.strip()]
    if len(arguments) != 1 or inspection.is_path(arguments[0]):
        raise UsageError(
            "--revisions belongs to one hub id", "condense compare ORG/MODEL --revisions step1000,step2000"
        )
    if len(set(names)) < 2:
        raise UsageError("--revisions names fewer than two", "separate them by commas: step1000,step2000")
    numbers = {name: _NUMBER.search(name) for name in dict.fromkeys(names)}
    steps = {name: int(match.group()) for name, match in numbers.items() if match}
    checkpoints = [Candidate(name, arguments[0], steps.get(name), revision=name) for name in numbers]
    if len(steps) == len(checkpoints) == len(set(steps.values())):
        return sorted(checkpoints, key=lambda candidate: steps[candidate.name])
    return [replace(candidate, step=None) for candidate in checkpoints]


def _on_one_text(candidates: list[Candidate]) -> list[Candidate]:
    """Arms of a treatment were read on two texts: take the probe where the others were measured on it."""
    others = {c.diagnosis.corpus.sha256 for c in candidates if c.diagnosis is not None and c.probe is None}
    return [
        replace(c, diagnosis=c.probe) if c.probe is not None and c.probe.corpus.sha256 in others else c
        for c in candidates
    ]


def _with_distinct_names(candidates: list[Candidate]) -> list[Candidate]:
    """Each under a name of its own, no longer than it must be; the checkpoints of one run in the order of steps."""
    choices = [_possible_names(candidate) for candidate in candidates]
    names = [first for first, *_ in choices]
    for rank in range(len(choices[0])):
        repeated = {name for name in names if names.count(name) > 1}
        names = [own[rank] if name in repeated else name for name, own in zip(names, choices, strict=True)]
    names = _without_common(names)
    before: dict[str, int] = {}
    named = []
    for candidate, name in zip(candidates, names, strict=True):
        before[name] = before.get(name, 0) + 1
        named.append(replace(candidate, name=name if before[name] == 1 else f"{name} ({before[name]})"))
    if len(named) > 2 and run_of(named) is not None:
        return sorted(named, key=lambda candidate: candidate.step or 0)
    return named


def _without_common(names: list[str]) -> list[str]:
    """Runs of one model, `NAME (control, seed 0)` and `NAME (dispersion=1, seed 0)`, by what is in the brackets."""
    parts = [re.fullmatch(r"(?P<model>.+) \((?P<run>.+)\)", name) for name in names]
    models = [part["model"] for part in parts if part]
    return [
        part["run"] if part and models.count(part["model"]) > 1 else name
        for name, part in zip(names, parts, strict=True)
    ]


def _possible_names(candidate: Candidate) -> tuple[str, ...]:
    """Possible names of a candidate, shortest first: every candidate has the same number of them."""
    where, own = Path(candidate.place), candidate.name
    tails = where.stem if candidate.diagnosis else where.name, f"{where.parent.name}/{where.name}", str(where)
    if candidate.probe is not None:  # an arm keeps its name
        return own, own, *(f"{own} ({tail})" for tail in tails)
    return own.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or own, own, *tails


# --- in memory -------------------------------------------------------------------------------------------


def candidates_of(runs: Sequence[Any], revisions: Sequence[str]) -> list[Candidate]:
    """The candidates of names and files, or of what is in memory: errors as those of `find`; ValueError for both."""
    named = [run for run in runs if isinstance(run, str | Path)]
    if len(named) == len(runs):
        return find(named, revisions)
    if named:
        raise ValueError("give what is in memory (diagnoses, checkpoints, modules), or names and files, not both")
    if len(runs) < 2:
        raise ValueError("compare needs two or more")
    return _number_repeated_names([_in_memory(run, number) for number, run in enumerate(runs, 1)])


def _in_memory(run: Any, number: int) -> Candidate:
    """A diagnosis, or a model with or without its tokenizer; ValueError for anything else."""
    if isinstance(run, Diagnosis):
        if not run.sites:
            raise ValueError(f"diagnosis {number} is of the weights alone: compare runs on a text, or the models")
        step = step_of(run.model.id)
        step = step_of(run.model.revision or "") if step is None else step
        return Candidate(run.model.id, f"diagnosis {number}", step, diagnosis=run)
    info = getattr(run, "info", None)
    if info is not None and hasattr(run, "tokenizer"):
        return Candidate(info.id, "in memory", live=run)
    if not callable(getattr(run, "named_modules", None)):
        raise ValueError(f"{type(run).__name__} is no name, diagnosis, checkpoint or module")
    named = getattr(getattr(run, "config", None), "name_or_path", "")
    return Candidate(named or type(getattr(run, "module", run)).__name__, "in memory", live=run)


def without_names(candidate: Candidate) -> Candidate:
    """The same without names of documents and paths of texts."""
    if candidate.diagnosis is None:
        return candidate
    corpus = candidate.diagnosis.corpus.without_names()
    return replace(candidate, diagnosis=replace(candidate.diagnosis, corpus=corpus, command=""))


def _number_repeated_names(candidates: list[Candidate]) -> list[Candidate]:
    names = [candidate.name for candidate in candidates]
    if len(set(names)) == len(names):
        return candidates
    return [replace(candidate, name=f"{candidate.name} ({number})") for number, candidate in enumerate(candidates, 1)]
