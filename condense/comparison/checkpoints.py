"""The checkpoints of a training run: the step in a name, what of a folder belongs to the run, what is left out and why.

Standard library only: names, links and `trainer_state.json` are read here, no model is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from condense.errors import UsageError
from condense.models.recognise import recognise

_WORDS = r"(?:checkpoint|ckpt|global[-_]?step|steps?|iter(?:ation)?|ba|update)"
_AFTER = r"(?:-tokens?[\d.]+[kMBT]|-unsharded|-rank\d+|-v\d+|-ckpt|[-_]hf)"
_STEP = re.compile(rf"(?:^|[-_/=.]){_WORDS}[-_=]?(\d+){_AFTER}*$")
"""A name that ends in its step: checkpoint-500, step1000-unsharded, stage1-step150-tokens1B, epoch=3-step=1000."""
_STEP_WITH_MORE = re.compile(rf"(?:^|[-_/=.])({_WORDS})[-_=]?(\d+)(?=$|[-_.=]\D)")
_NUMBER = re.compile(r"0*(\d{1,12})$")
_STAGE = re.compile(r"stage[-_]?(\d+)(?:[-_]ingredient[-_]?(\d+))?", re.IGNORECASE)
_NAMED = re.compile(r"(?:^|[-_.])(?:last|best|final|latest)(?:$|[-_.])", re.IGNORECASE)
_UNFINISHED = re.compile(r"^tmp[-_]", re.IGNORECASE)
_MODEL = ("config.json", "adapter_config.json")
_STATE = "trainer_state.json"
_TORCH = (".ckpt", ".pt", ".pth")
_MOST_NAMED = 3
_LARGEST_STATE = 64 * 2**20


@dataclass(frozen=True)
class TrainingRun:
    """A run over its steps: what it is called, its folder or hub id, and what of it is not used, with the reason."""

    name: str
    source: str
    left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not used, with the name of the run."""
        return tuple(f"{self.name}: {note}" for note in self.left_out)


class Entry(NamedTuple):
    """One checkpoint of a run: its name in the run, its step, and its path (or its name again, of a revision)."""

    name: str
    step: int
    path: str


def step_of(name: str) -> int | None:
    """The training step that a name ends in (`run/checkpoint-500`, `step1000-unsharded`), or None."""
    match = _STEP.search(name.removesuffix(".json").rstrip("/"))
    return int(match.group(1)) if match else None


def step_in_run(name: str) -> int | None:
    """The training step of an entry of a run, whose name may also be a bare number or say more after the step."""
    bare = name.removesuffix(".json")
    step = step_of(bare)
    if step is None and (number := _NUMBER.match(bare)):
        step = int(number.group(1))
    if step is None:
        pairs = _STEP_WITH_MORE.findall(bare)
        named = [digits for word, digits in pairs if word not in ("checkpoint", "ckpt")] or [d for _, d in pairs]
        step = int(named[-1]) if named else None
    return step


def in_order(entries: Iterable[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries by step, one for each; and what is left out: a second one of a step, and other stages.

    Of two of one step one that holds a model is used (OLMo has a sharded `step1000` beside `step1000-unsharded`), the
    one with the shorter name of several. Steps of a later stage are counted from 0 again, so that only the first stage
    that is there is used.
    """
    listed = sorted(entries, key=lambda entry: (_lacks_model(Path(entry.path)), len(entry.name), entry.name))
    stages = {_stage_of(entry.name) for entry in listed}
    kept: dict[int, Entry] = {}
    other_stages, twice = [], []
    for entry in listed:
        if _stage_of(entry.name) != min(stages):
            other_stages.append(entry)
        elif entry.step in kept:
            twice.append(entry)
        else:
            kept[entry.step] = entry
    said = [f"{entry.name} is left out: step {entry.step} is {kept[entry.step].name}" for entry in twice]
    if len(twice) > _MOST_NAMED:
        said = [f"{_listed(twice)} are left out: another checkpoint is of the same step"]
    if other_stages:
        verb = "is" if len(other_stages) == 1 else "are"
        said.append(f"{_listed(other_stages)} {verb} left out: of another stage, whose steps are counted anew")
    return [kept[step] for step in sorted(kept)], said


def _listed(entries: Sequence[Entry]) -> str:
    ordered = sorted(entries, key=lambda entry: entry.step)
    more = f" and {len(ordered) - _MOST_NAMED} more" if len(ordered) > _MOST_NAMED else ""
    return ", ".join(entry.name for entry in ordered[:_MOST_NAMED]) + more


def _lacks_model(path: Path) -> bool:
    """Whether an entry is a folder without a model in it; a saved run or a revision is none."""
    return path.is_dir() and not is_model(model_inside(path))


def _stage_of(name: str) -> tuple[int, int]:
    match = _STAGE.search(name)
    return (int(match.group(1)), int(match.group(2) or 0)) if match else (0, 0)


# --- a folder --------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a folder holds checkpoints or saved runs with steps, itself or in one folder up to three below."""
    if not folder.is_dir():
        return False
    try:
        return bool(_with_steps(folder)) or (not is_model(folder) and len(_runs_below(folder)) == 1)
    except OSError:
        return False


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter itself."""
    return any((folder / name).exists() for name in _MODEL)


def read_run(folder: Path) -> tuple[Path, list[Entry], list[str]]:
    """The folder of the checkpoints, these in the order of their steps, and what is left out, each with the reason.

    A folder without checkpoints is looked for in the folders below it. UsageError where there are none, where there
    are several runs, and for checkpoints that are not in Hugging Face's format, saying what they are.
    """
    named = _with_steps(folder)
    if not named:
        folder = _only_run_below(folder)
        named = _with_steps(folder)
    paths = [path for _, path in named if path.is_dir()]
    if not paths and (files := [path for _, path in named if path.suffix in _TORCH]):
        known = recognise(files[0])
        if known is not None:
            raise UsageError(
                f"{folder} holds {len(files)} checkpoints that are {known.what}, not in Hugging Face's format",
                known.hint,
            )
    chosen = [(step, path) for step, path in named if path.is_dir()] or [
        (step, path) for step, path in named if path.suffix == ".json"
    ]
    if not chosen:
        raise UsageError(f"{folder} holds no checkpoints that can be read", "expected folders such as checkpoint-500")
    entries, left_out = in_order(Entry(path.name, step, str(path)) for step, path in chosen)
    further, named_so = _without_steps(folder, entries)
    return folder, sorted([*entries, *further], key=lambda entry: entry.step), [*left_out, *named_so]


def _with_steps(folder: Path) -> list[tuple[int, Path]]:
    """What in a folder has a step in its name: folders, saved runs, and files of torch; no unfinished ones or links."""
    named = []
    for path in sorted(folder.iterdir()):
        kind = path.is_dir() or path.suffix in (".json", *_TORCH)
        name = path.name.removesuffix(path.suffix) if path.suffix in _TORCH else path.name
        if kind and not (name.startswith(".") or _UNFINISHED.match(name) or path.is_symlink()):
            step = step_in_run(name)
            bare = _NUMBER.match(name.removesuffix(".json")) is not None
            if step is not None and not (bare and path.is_dir() and not _holds_model(path)):
                named.append((step, path))
    return named


def _holds_model(folder: Path) -> bool:
    return is_model(folder) or any((folder / name).exists() for name in (_STATE, "model.safetensors", "lit_model.pth"))


def _without_steps(folder: Path, entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """What has no step in its name: used where `trainer_state.json` says its step, else left out with the reason."""
    taken = {entry.step: entry.name for entry in entries}
    targets = {Path(entry.path).resolve(): entry.name for entry in entries}
    used, left_out = [], []
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in taken.values()]
    for path in [*others, folder]:
        name = path.name if path != folder else "the model in the folder itself"
        if path.is_symlink() and path.resolve() in targets:
            left_out.append(f"{name} is left out: it is {targets[path.resolve()]}")
        elif _UNFINISHED.match(path.name) and step_in_run(path.name) is not None:
            left_out.append(f"{name} is left out: it was not finished")
        elif step_in_run(path.name) is None or path == folder:
            if not is_model(path):
                if path != folder and _NAMED.search(path.name):
                    left_out.append(f"{name} is left out: there is no model in it")
                continue
            step, reason = _step_of_state(path)
            if step is not None and step not in taken:
                taken[step] = name
                own = "final" if path == folder else path.name
                used.append(Entry(f"{own}-step-{step}", step, str(path)))
            else:
                left_out.append(f"{name} is left out: {reason or f'step {step} is {taken[step or 0]}'}")
    return used, left_out


def _step_of_state(folder: Path) -> tuple[int | None, str]:
    """The step that the Trainer wrote beside a model, or why it is not known which step the model is of."""
    file = folder / _STATE
    unknown = f"neither its name nor a {_STATE} in it says its step"
    try:
        if file.stat().st_size > _LARGEST_STATE:
            return None, unknown
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None, unknown
    step = state.get("global_step") if isinstance(state, dict) else None
    if type(step) is not int or step < 0:
        return None, unknown
    if state.get("best_model_checkpoint"):
        return None, f"it may be the best checkpoint or that of step {step}"
    return step, ""


def _runs_below(folder: Path) -> list[Path]:
    """The folders below that hold checkpoints, at the first of three depths that has any.

    Lightning puts them into `lightning_logs/version_0/checkpoints`.
    """
    level = [folder]
    for _ in range(3):
        level = [path for one in level for path in sorted(one.iterdir()) if path.is_dir() and not path.is_symlink()]
        runs = [path for path in level if not path.name.startswith(".") and _with_steps(path)]
        if runs:
            return runs
    return []


def _only_run_below(folder: Path) -> Path:
    """The one folder below that holds checkpoints."""
    below = _runs_below(folder)
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(str(path.relative_to(folder)) for path in below[:3])
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        raise UsageError(
            f"{folder} holds several runs: {names}{more}", f"condense compare {below[0]} {below[1]}, each a run"
        )
    if is_model(folder):
        raise UsageError(
            f"{folder} is one model", "name a second one, or the folder whose checkpoint-* are to be compared"
        )
    if (known := recognise(folder)) is not None:
        raise UsageError(f"{folder} is {known.what}, not a folder of checkpoints", known.hint)
    raise UsageError(
        f"{folder} holds no checkpoints", "expected folders such as checkpoint-500 or step1000, or saved runs"
    )


def model_inside(path: Path) -> Path:
    """Where the model of a checkpoint is: the folder itself, or the only one in it with a model."""
    if not path.is_dir() or is_model(path):
        return path
    level = [path]
    for _ in range(2):
        level = [inner for one in level for inner in sorted(one.iterdir()) if inner.is_dir() and not inner.is_symlink()]
        models = [inner for inner in level if is_model(inner)]
        if models:
            return models[0] if len(models) == 1 else path
    return path
