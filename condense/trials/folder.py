"""The folder of a run: what its steps left, whether that is sound, what it reads as, and how it is cleared.

Each step ends with a file that is written last and names the files of the step with size and sha256: `trained.json`
after the weights are saved, `run.json` after they were measured. A step counts only while all of that still matches and
belongs to the same settings, model and text; whatever does not is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from condense.errors import UsageError
from condense.files import flush, json_or_none, write_text
from condense.folders import File, changed, describe, names_in, remove_unfinished
from condense.lock import refuse_in_use
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, ModelInfo
from condense.records.learning import Beyond, Tried
from condense.records.serial import decode, encode
from condense.records.tasks import TaskScore
from condense.records.treatment import Curve, Overhead, Schedule
from condense.records.trial import ArmRun, SitePoint, StepCost
from condense.training.loop import Trained
from condense.training.prepare import Prepared

TRAINED, MEASURED, FAILED, BEGUN = "trained.json", "run.json", "failed.json", "begun.json"
PROGRESS = "progress.json"  # how far a run in a worker is; removed when it ends
MODEL = ("model", "adapter")
MEASURES = ("validation.json", "probe.json", "tasks.json", "beyond.json", "cloud.safetensors")
SHARED = ("costs.json", "fingerprint.json")
# What training, saving and measuring write into the folder of a run; of an unfinished one nothing else is removed.
_MADE = re.compile(
    r"(trained|run|failed|begun|progress|validation|probe|tasks|beyond)\.json|cloud\.safetensors|\.[^/]*\.tmp|runs/.*"
    r"|(model|adapter|checkpoint-\d+|tmp-checkpoint-\d+)/"
    r"(.*\.(safetensors|json|jinja|model|bin|pt|pth|py|tmp)|.*(merges|vocab)\.txt|README\.md)"
)


@dataclass(frozen=True)
class Step:
    """A finished step of a run: how it trained (None for the model as it came), what to report, the files it made."""

    fingerprint: str
    trained: Trained | None
    details: tuple[str, ...]
    files: Mapping[str, File]


@dataclass(frozen=True)
class Run:
    """A finished run: its record, what was measured of it, how it trained (None for the model as it came)."""

    record: ArmRun
    validation: Diagnosis
    probe: Diagnosis
    trained: Trained | None
    details: tuple[str, ...]
    folder: Path
    beyond: Beyond = field(default_factory=Beyond)


@dataclass(frozen=True)
class Runs:
    """All that was found: the model as it came, the finished runs by arm and seed, and why others are missing.

    costs: what a step of each arm takes; unavailable: why an arm cannot be had at all; failures: of single runs;
    tuning: what the search tried for each arm; texts: what all of them were trained and measured on.
    """

    model: ModelInfo
    environment: Mapping[str, Any]
    schedule: Schedule
    overhead: Overhead
    before: Run
    arms: Mapping[str, Mapping[int, Run]]
    costs: Mapping[str, StepCost] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuning: Mapping[str, tuple[Tried, ...]] = field(default_factory=dict)
    texts: Prepared | None = None


# --- steps ---------------------------------------------------------------------------------------------


def refuse_links(folder: Path) -> None:
    """UsageError for a link where runs would write: what it points to is somebody else's."""
    places = [folder, *(folder / name for name in SHARED), *(path for path in folder.glob("*") if path.is_dir())]
    for run in (folder / "before", *folder.glob("*/seed-*")):
        places += [run, *run.rglob("*")]
    linked = next((path for path in places if path.is_symlink()), None)
    if linked is not None:
        raise UsageError(
            f"{linked} is a link, which condense does not make", "move it away, or choose another --output"
        )


def refuse_workers(folder: Path) -> None:
    """UsageError while a worker that an earlier trial has left is still at one of its runs."""
    for run in sorted(folder.glob("*/seed-*")):
        refuse_in_use(run)


def begin(folder: Path, fingerprint: str) -> None:
    """Make the folder of a run; what another run left in it, or one of other settings, is removed."""
    begun = {"fingerprint": fingerprint}
    if json_or_none(folder / BEGUN) != begun:
        clear_run(folder)
        write_text(folder / BEGUN, json.dumps(begun))


def finish_step(folder: Path, name: str, fingerprint: str, run: tuple[Trained | None, Iterable[str]]) -> None:
    """Mark a step as finished: how it trained and what to report, with the files that it made; written last."""
    parts = MODEL if name == TRAINED else MEASURES
    names = [file for file in names_in(folder) if file.partition("/")[0] in parts and _MADE.fullmatch(file)]
    flush(folder / file for file in names)
    step = Step(fingerprint, run[0], tuple(run[1]), describe(folder, names))
    write_text(folder / name, json.dumps(encode(step), allow_nan=False))


def read_step(folder: Path, name: str, fingerprint: str) -> Step | None:
    """A finished step; None where it is missing, of other settings, or a file is not what the step left."""
    try:
        step: Step = decode(Step, json_or_none(folder / name))
    except ValueError:
        return None
    return step if step.fingerprint == fingerprint and not changed(folder, step.files) else None


def is_done(folder: Path, fingerprint: str, *, with_model: bool = False) -> bool:
    """Whether a run is finished, with its saved model where that is to be kept."""
    steps = (MEASURED, TRAINED) if with_model else (MEASURED,)
    return all(read_step(folder, name, fingerprint) is not None for name in steps)


def fail(folder: Path, reason: str) -> None:
    """Write down why a run failed; its weights are removed."""
    write_text(folder / FAILED, json.dumps({"reason": reason}))
    drop_model(folder)


def failure(folder: Path) -> str | None:
    """Why a run failed; None if it did not."""
    if not os.path.lexists(folder / FAILED):
        return None
    try:
        return str(json_or_none(folder / FAILED)["reason"])
    except (LookupError, TypeError):
        return "no reason is known"


def failures(folders: Mapping[int, Path]) -> tuple[str, ...]:
    """Why runs of an arm, by seed, failed, one line each."""
    reasons = {seed: failure(folder) for seed, folder in folders.items()}
    return tuple(f"seed {seed}: {reason}" for seed, reason in reasons.items() if reason is not None)


def drop_model(folder: Path) -> None:
    """Remove the saved weights of a run."""
    _remove(folder, *MODEL)


def drop_checkpoints(folder: Path) -> None:
    """Remove the training checkpoints of a run."""
    _remove(folder, *(path.name for path in folder.glob("checkpoint-*")))


def names_made(folder: Path) -> list[str]:
    """The files in the folder of all runs that are condense's by their names: of the runs, and what they share."""
    runs = re.compile(rf"(before|[^/]+/seed-\d+)/({_MADE.pattern})")
    return [name for name in names_in(folder) if name in SHARED or runs.fullmatch(name)]


def clear_run(folder: Path) -> None:
    """Remove what a run made; a file of any other name stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    _remove(folder, *(path.name for path in folder.iterdir()))
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove(folder: Path, *parts: str) -> None:
    """Remove what runs make, by its names, from files and folders of a run, and the folders that this empties."""
    for name in names_in(folder):
        if name.partition("/")[0] in parts and _MADE.fullmatch(name):
            (folder / name).unlink()
    for path in sorted((path for part in parts for path in (folder / part, *(folder / part).rglob("*"))), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()


def clear_runs(folder: Path) -> None:
    """Remove all runs of a treatment or a trial with what they share; files of other names stay."""
    for path in (folder / "before", *sorted(folder.glob("*/seed-*"))):
        clear_run(path)
    remove_unfinished(folder, SHARED)
    for name in SHARED:
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(OSError):
            path.rmdir()


# --- records -------------------------------------------------------------------------------------------


def read_run(folder: Path, seed: int, schedule: Schedule) -> Run:
    """A finished run from its folder."""
    step: Step = decode(Step, json.loads((folder / MEASURED).read_text(encoding="utf-8")))
    validation, probe = (Diagnosis.from_json(folder / f"{kind}.json") for kind in ("validation", "probe"))
    scores, trained = folder / "tasks.json", step.trained
    record = ArmRun(
        seed=seed,
        deep=_without_texts(validation.deep),
        quality=validation.quality,
        probe_deep=_without_texts(probe.deep),
        probe_quality=probe.quality,
        sites=tuple(_point(validation, index) for index in range(len(validation.sites))),
        weights_sha256=validation.model.weights_sha256,
        curve=Curve() if trained is None else trained.curve,
        seconds=0.0 if trained is None else trained.seconds,
        trained_tokens=0 if trained is None else schedule.train_tokens,
        penalty_to_ce=None if trained is None else trained.curve.penalty_to_ce or None,
        folder="/".join(folder.parts[-2:] if trained is None else folder.parts[-3:]),
        tasks=decode(tuple[TaskScore, ...], json.loads(scores.read_text(encoding="utf-8"))) if scores.exists() else (),
    )
    return Run(record, validation, probe, trained, step.details, folder, _beyond(folder / "beyond.json"))


def _beyond(path: Path) -> Beyond:
    """What a run did on other texts; nothing where it was made without them."""
    kept = json_or_none(path)
    return Beyond() if kept is None else decode(Beyond, kept)


def _without_texts(deep: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Deep numbers without their values per text, which lie in the run's diagnoses."""
    return {key: replace(estimate, per_text=None, deleted=None) for key, estimate in deep.items()}


def _point(diagnosis: Diagnosis, index: int) -> SitePoint:
    site = diagnosis.sites[index]
    keys = ("mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank")
    cosine, without, rank = (site.metrics[key].value for key in keys)
    return SitePoint(site.site, site.stack, site.index, cosine, without, rank)
