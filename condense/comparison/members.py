"""The inputs of a comparison: models, saved runs, the checkpoints of a run, revisions of a hub id, modules in memory.

Standard library only: names and JSON are read here, no model is opened.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from condense.comparison import checkpoints
from condense.comparison.checkpoints import Entry, TrainingRun, is_run, step_in_run, step_of
from condense.errors import CondenseError, UnavailableError, UsageError, as_condense_error
from condense.files import expanded
from condense.models import folder as inspection
from condense.records.comparison import COMPARISON_SCHEMA
from condense.records.diagnosis import DIAGNOSIS_SCHEMA, Diagnosis
from condense.records.serial import read_json
from condense.records.treatment import TREATMENT_SCHEMA, Treatment
from condense.records.trial import TRIAL_SCHEMA

_NUMBER = re.compile(r"\d+$")
Run = TypeVar("Run", Diagnosis, Treatment)


@dataclass(frozen=True)
class Candidate:
    """One thing to compare: a model to be measured, or a diagnosis that was saved.

    `place`: the argument for `load`, or the saved run's path; `probe`: a treatment arm measured on the probe text;
    `error`: why it cannot be read (it is left out then); `live`: a model in memory; `run`: the training run that it is
    a checkpoint of.
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
    run: TrainingRun | None = None


def find(arguments: Sequence[str | Path], revisions: Sequence[str] = (), *, as_models: bool = False) -> list[Candidate]:
    """The candidates that the arguments name, each under a name of its own, those of a run in the order of steps.

    A folder that holds checkpoints (`checkpoint-500`, `step1000`, or saved runs so called) is a training run, alone or
    beside others; as_models: a folder that is a model too is taken as that. What cannot be read is a candidate with
    its `error`. UsageError for fewer than two or for folders that do not go together; the error itself where fewer
    than two others are left.
    """
    names = [str(argument) for argument in arguments]
    if len(names) > 1 and not as_models and (revisions or all(is_run(expanded(name)) for name in names)):
        return _several_runs(names, revisions)
    if revisions:
        return _revisions(names, revisions)
    if len(names) == 1:
        candidates = _of_one(names[0])
        if len(candidates) < 2:
            raise UsageError(
                f"there is nothing to compare {names[0]} with", "name two or more, or a folder of checkpoint-*"
            )
        return candidates
    if not as_models:
        _refuse_runs_beside_others(names)
    candidates = [candidate for argument in names for candidate in _readable(argument)]
    if len(candidates) < 2:
        raise UsageError("compare needs two or more", "condense compare A B: models, checkpoints or saved runs")
    _refuse_too_few(candidates)
    return _with_distinct_names(_on_one_text(candidates))


def _refuse_runs_beside_others(names: Sequence[str]) -> None:
    """UsageError for a folder of checkpoints beside something that is no run, naming that: it may be misspelt."""
    runs = [name for name in names if is_run(expanded(name))]
    run = next((name for name in runs if not checkpoints.is_model(expanded(name))), None)
    other = next((name for name in names if name not in runs), None)
    if run is not None and other is not None:
        what = "holds no checkpoints with steps" if expanded(other).exists() else "is no folder here"
        raise UsageError(
            f"{run} holds the checkpoints of a run, and {other} {what}",
            "compare a run alone or with other runs, or name its checkpoints one by one; a hub id needs --revisions",
        )


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


def run_of(candidates: Sequence[Candidate]) -> str | None:
    """The training run that all candidates are steps of: its folder or hub id; None if they are not one run's."""
    candidates = [candidate for candidate in candidates if candidate.error is None]
    steps = [candidate.step for candidate in candidates]
    if None in steps or len(set(steps)) < len(steps):
        return None
    runs = {_training_run(candidate) for candidate in candidates}
    named = {candidate.run.source if candidate.run else None for candidate in candidates}
    return runs.pop() if len(runs) == 1 else named.pop() if len(named) == 1 else None


def notes_of(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """What of the candidates' training runs is left out, and why."""
    return tuple(dict.fromkeys(note for c in candidates if c.run is not None for note in c.run.notes))


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


def _run_of_folder(folder: Path, name: str = "") -> list[Candidate]:
    """The checkpoints of a folder in the order of their steps, with what of it is left out.

    name: of the run, which is put before the names of its checkpoints.
    """
    inner, entries, left_out = checkpoints.read_run(folder)
    run = TrainingRun(name or str(folder), str(inner), tuple(left_out))
    start = f"{name}/" if name else ""
    if all(entry.path.endswith(".json") for entry in entries):
        saved = [replace(_readable(entry.path)[0], step=entry.step, run=run) for entry in entries]
        names = [f"{start}{entry.name.removesuffix('.json')}" for entry in entries]
        if name:
            return [replace(candidate, name=own) for candidate, own in zip(saved, names, strict=True)]
        _refuse_too_few(saved)
        return _with_distinct_names(saved)
    return [_checkpoint(entry, folder, run, start) for entry in entries]


def _checkpoint(entry: Entry, folder: Path, run: TrainingRun, start: str) -> Candidate:
    """A checkpoint of a run, with the tokenizer of the run's folder where it has none."""
    path = checkpoints.model_inside(Path(entry.path))
    places = (path, *path.parents[: len(path.parts) - len(folder.parts)]) if path != folder else (path,)
    tokenizer = next((place for place in places if inspection.has_tokenizer(place)), None)
    own = None if tokenizer in (path, None) else str(tokenizer)
    return Candidate(f"{start}{entry.name}", str(path), entry.step, tokenizer=own, run=run)


def _several_runs(arguments: Sequence[str], revisions: Sequence[str]) -> list[Candidate]:
    """The checkpoints of runs that are laid over each other: of folders, and of hub ids at the given revisions."""
    hub = [name for name in arguments if not inspection.is_path(name)]
    if revisions and not hub:
        raise UsageError(
            "--revisions belongs to a hub id", "condense compare ORG/A ORG/B --revisions step1000,step2000"
        )
    for name in arguments:
        if name not in hub and not is_run(expanded(name)):
            raise UsageError(f"{name} is not a run over its steps", "with --revisions name runs and hub ids only")
    candidates: list[Candidate] = []
    for argument, name in zip(arguments, _run_names(arguments), strict=True):
        if argument not in hub:
            candidates += _run_of_folder(expanded(argument), name)
            continue
        steps = {revision: step_in_run(revision) for revision in revisions}
        entries, left_out = checkpoints.in_order(
            Entry(key, step, key) for key, step in steps.items() if step is not None
        )
        unnamed = [f"{key} is left out: its name says no step" for key, step in steps.items() if step is None]
        if not entries:
            raise UsageError("--revisions names no training steps", "for example step1000,step2000")
        run = TrainingRun(name, argument, (*left_out, *unnamed))
        candidates += [
            Candidate(f"{name}/{entry.name}", argument, entry.step, revision=entry.name, run=run) for entry in entries
        ]
    _refuse_too_few(candidates)
    return candidates


def _run_names(arguments: Sequence[str]) -> list[str]:
    """A name for every run, the shortest end of its path that no other has; numbered where a run is named twice."""
    parts = [
        list(expanded(name).resolve().parts) if inspection.is_path(name) else name.split("/") for name in arguments
    ]
    names = []
    for own in parts:
        ends = ["/".join(own[-length:]) for length in range(1, len(own) + 1)]
        others = [other for other in parts if other is not own]
        apart = [end for length, end in enumerate(ends, 1) if all(o[-length:] != own[-length:] for o in others)]
        names.append((apart or ends)[0].lstrip("/"))
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


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
                    f"{path} holds the checkpoints of a run",
                    "compare it alone or with other runs, or name its checkpoints one by one",
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
    steps = {name: step for name in dict.fromkeys(names) if (step := _step_of_revision(name)) is not None}
    listed = [Candidate(name, arguments[0], steps.get(name), revision=name) for name in dict.fromkeys(names)]
    if len(steps) == len(listed) == len(set(steps.values())):
        return sorted(listed, key=lambda candidate: steps[candidate.name])
    return [replace(candidate, step=None) for candidate in listed]


def _step_of_revision(name: str) -> int | None:
    """The step in a revision's name; else the number that it ends in."""
    step, number = step_in_run(name), _NUMBER.search(name)
    return step if step is not None else int(number.group()) if number else None


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


def candidates_of(runs: Sequence[Any], revisions: Sequence[str], *, as_models: bool = False) -> list[Candidate]:
    """The candidates of names and files, or of what is in memory: errors as those of `find`; ValueError for both."""
    named = [run for run in runs if isinstance(run, str | Path)]
    if len(named) == len(runs):
        return find(named, revisions, as_models=as_models)
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


@contextlib.contextmanager
def in_evaluation_mode(candidates: Sequence[Candidate]) -> Iterator[None]:
    """Put models in memory into evaluation mode; on exit restore the mode of each of their parts."""
    live = [candidate.live for candidate in candidates if candidate.live is not None]
    models = [module if hasattr(module, "named_modules") else module.model for module in live]
    modes = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


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
