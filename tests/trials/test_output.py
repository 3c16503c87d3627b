"""The folder of a trial: kills while it is cleared, damage, other weights, and files that are not condense's."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from condense.errors import UsageError
from condense.folders import MARK, names_in, read_mark
from condense.lock import locked
from condense.records.plans import Plan, TrialPlan
from condense.records.trial import Trial
from condense.training.arm_names import parse_arms
from condense.trials import arm_run, folder, runs
from condense.trials import run as trial_run
from condense.trials.run import trial
from tests.folder_kills import killed_before

TRAINING = Plan(max_steps=2, max_length=64, per_device_train_batch_size=2, learning_rate=1e-3, num_texts=4)
PLAN = TrialPlan(parse_arms("dispersion=3", ()), 1, TRAINING)
OTHER = replace(PLAN, training=replace(TRAINING, learning_rate=0.02))
TEXTS = [f"{n} words of a text that a small model learns to read, and to write, line by line. " * 12 for n in range(30)]
REPORTS = {"trial.json", "report.html", "report.md", "trial.csv"}


@pytest.fixture(autouse=True)
def _without_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring what a step costs starts a process; nothing here is about it."""
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})


def numbers(trial: Trial) -> list[Any]:
    """Weights and quality of all runs."""
    return [(arm.spec.name, run.weights_sha256, run.quality) for arm in trial.arms for run in arm.runs]


@pytest.fixture(scope="module")
def done(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Path]:
    """A trial that is done (do not change), and its folder."""
    out = tmp_path_factory.mktemp("trial") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "step_costs", lambda *given, **more: {})
        made = trial(tiny("llama"), TEXTS, out, PLAN, device="cpu")
    assert made is not None
    return made, out


@pytest.fixture(scope="module")
def other(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The same trial with another learning rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "step_costs", lambda *given, **more: {})
        made = trial(tiny("llama"), TEXTS, tmp_path_factory.mktemp("other") / "out", OTHER, device="cpu")
    assert made is not None
    return made


def test_the_folder_says_what_is_in_it(done: tuple[Trial, Path]) -> None:
    mark = read_mark(done[1])
    assert mark is not None and mark.kind == "trial" and mark.is_whole(done[1])
    assert set(names_in(done[1])) == {*mark.files, MARK} and mark.files.keys() >= REPORTS


def survive(number: int, model: Path, out: Path, new: Trial) -> bool:
    """Kill a trial with other settings and --force while it clears the old one; then the same again."""

    def action() -> None:
        os.fsync = os.fstat  # type: ignore[assignment]  # in the child
        trial(model, TEXTS, out, OTHER, force=True, device="cpu")

    killed = killed_before(number, action, (trial_run, "_begin"))
    again = trial(model, TEXTS, out, OTHER, force=True, device="cpu")
    assert again is not None and numbers(again) == numbers(new) and again.plan == OTHER
    mark = read_mark(out)
    assert mark is not None and mark.is_whole(out) and set(names_in(out)) == {*mark.files, MARK}
    return killed


@pytest.fixture
def replayed(
    tiny: Callable[[str], Path], other: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Training and measuring are replayed and the page is empty; what happens in the folder stays as it is."""
    train, analyze, kept = arm_run.train_arm, arm_run.analyze, {}

    def train_arm(*given: Any, **more: Any) -> Any:
        place = given[5]
        name = "-".join(place.parts[-2:])
        if name in kept:
            shutil.copytree(tmp_path / "kept" / name, place / "model")
        else:
            kept[name] = train(*given, **more)
            shutil.copytree(place / "model", tmp_path / "kept" / name)
        return kept[name]

    def measured(checkpoint: Any, texts: Any, **more: Any) -> Any:
        key = checkpoint.info.id, texts.info.windows_sha256
        if key not in kept:
            kept[key] = analyze(checkpoint, texts, **more)
        return kept[key]

    monkeypatch.setattr(arm_run, "train_arm", train_arm)
    monkeypatch.setattr(arm_run, "analyze", measured)
    monkeypatch.setattr(Trial, "to_html", lambda self: "<!doctype html>")
    monkeypatch.setattr(gc, "collect", lambda: 0)
    made = trial(tiny("llama"), TEXTS, tmp_path / "out", OTHER, device="cpu")
    assert made is not None and numbers(made) == numbers(other)
    shutil.rmtree(tmp_path / "out")
    yield
    assert len(kept) == 8


@pytest.mark.usefixtures("replayed")
def test_old_numbers_are_never_reported_as_new(
    tiny: Callable[[str], Path], done: tuple[Trial, Path], other: Trial, tmp_path: Path
) -> None:
    """Calls of all phases; a kill at one of them left runs without a mark, which --force refused."""
    for number in (1, 25, 110, 300, 360, 376, 1500):
        out = Path(shutil.copytree(done[1], tmp_path / str(number)))
        assert survive(number, tiny("llama"), out, other)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("replayed")
def test_old_numbers_are_never_reported_as_new_whenever_it_was_killed(
    tiny: Callable[[str], Path], done: tuple[Trial, Path], other: Trial, tmp_path: Path
) -> None:
    """Every fifth call while the old runs are cleared and the first new one begins, every 40th until all is written."""
    number, killed = 1, True
    while killed:
        out = Path(shutil.copytree(done[1], tmp_path / str(number)))
        killed = survive(number, tiny("llama"), out, other)
        shutil.rmtree(out)
        number += 5 if number < 600 else 40
    assert number > 3000


def test_runs_without_their_fingerprint_are_not_believed(
    tiny: Callable[[str], Path], done: tuple[Trial, Path], other: Trial, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done[1], tmp_path / "out"))
    (out / "arms" / "fingerprint.json").unlink()
    again = trial(tiny("llama"), TEXTS, out, OTHER, resume=True, device="cpu")
    assert again is not None and numbers(again) == numbers(other)


@pytest.mark.parametrize(
    "name",
    ["costs.json", "fingerprint.json", "before/run.json", "before/probe.json", "control/seed-0/run.json",
     "dispersion=3/seed-0/validation.json", "dispersion=3/seed-0/trained.json"],
)  # fmt: skip
def test_what_is_damaged_is_made_again(
    name: str, tiny: Callable[[str], Path], done: tuple[Trial, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done[1], tmp_path / "out"))
    (out / "arms" / name).write_bytes(bytes(50))
    again = trial(tiny("llama"), TEXTS, out, PLAN, resume=True, device="cpu")
    assert again is not None and numbers(again) == numbers(done[0])


def test_a_pipe_is_no_record(tmp_path: Path) -> None:
    """Opening one would wait for ever; it is nobody's to remove either."""
    for name in ("run.json", "failed.json"):
        os.mkfifo(tmp_path / name)
    assert folder.read_step(tmp_path, "run.json", "f") is None
    assert folder.failure(tmp_path) == "no reason is known"


def test_kept_models_are_looked_at_too(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    plan = replace(PLAN, keep_models=True)
    trial(tiny("llama"), TEXTS, tmp_path / "out", plan, device="cpu")
    path = tmp_path / "out" / "arms" / "control" / "seed-0" / "model" / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(bytes(len(before)))
    trial(tiny("llama"), TEXTS, tmp_path / "out", plan, resume=True, device="cpu")
    assert path.read_bytes() == before


def test_resume_looks_at_the_weights_again(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = copy_of("llama")
    trial(model, TEXTS, tmp_path / "out", PLAN, device="cpu")
    changed = {name: 4 * value for name, value in load_file(model / "model.safetensors").items()}
    save_file(changed, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="different: weights"):
        trial(model, TEXTS, tmp_path / "out", PLAN, resume=True, device="cpu")


def test_a_second_trial_into_one_folder_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(UsageError, match=f"out is in use by process {os.getpid()}"):
        trial(tiny("llama"), TEXTS, tmp_path / "out", PLAN, device="cpu")


def test_force_removes_nothing_of_somebody_else(
    tiny: Callable[[str], Path], done: tuple[Trial, Path], other: Trial, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done[1], tmp_path / "out"))
    mine = {"thesis.txt", "arms/notes.md", "arms/control/seed-0/notes.md"}
    for name in mine:
        (out / name).write_text("mine")
    again = trial(tiny("llama"), TEXTS, out, OTHER, force=True, device="cpu")
    assert again is not None and numbers(again) == numbers(other)
    assert {(out / name).read_text() for name in mine} == {"mine"} and not mine & (read_mark(out) or []).files.keys()
    (out / "report.md").write_text("what I wrote instead")
    with pytest.raises(UsageError, match=r"report\.md was not written by condense, or was changed since"):
        trial(tiny("llama"), TEXTS, out, PLAN, force=True, device="cpu")
    assert Trial.from_json(out / "trial.json") == again


def test_arms_of_somebody_else_are_not_removed(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "arms").mkdir(parents=True)
    (tmp_path / "out" / "arms" / "fingerprint.json").write_text(json.dumps({"of": "another program"}))
    with pytest.raises(UsageError, match="arms was not written by condense"):
        trial(tiny("llama"), TEXTS, tmp_path / "out", PLAN, force=True, device="cpu")
    with pytest.raises(UsageError, match="nothing to resume"):
        trial(tiny("llama"), TEXTS, tmp_path / "out", PLAN, resume=True, device="cpu")
    assert names_in(tmp_path) == ["out/arms/fingerprint.json"]
