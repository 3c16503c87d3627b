"""The folder of a treatment: two runs into one, kills, damage, other weights, and files that are not condense's."""

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from condense.cli.app import app
from condense.errors import RunError, UnavailableError, UsageError
from condense.folders import MARK, Mark, names_in, read_mark
from condense.lock import LOCK
from condense.records.plans import Plan, TrialPlan
from condense.records.treatment import Treatment
from condense.treatment import run as treatment_run
from condense.treatment.run import CONTROL, treat
from condense.trials.arm_run import Watch
from condense.trials.run import trial
from tests.folder_kills import killed_before

PLAN = Plan(coefficient=2.0, max_steps=3, max_length=64, per_device_train_batch_size=2, num_texts=4, warmup=0.0)
TEXTS = [f"{n} words of a text that a small model learns to read, and to write, line by line. " * 12 for n in range(30)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class StoppedError(Exception):
    """Stands for the end of a process, at a place of the test's choice."""


def weights(out: Path) -> str:
    found = Treatment.from_json(out / "condense.json").arms["treated"].validation.model.weights_sha256
    mark = read_mark(out)
    assert mark is not None and mark.is_whole(out) and found == mark.files["model.safetensors"].sha256
    return found


@pytest.fixture(scope="module")
def straight(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of an undisturbed run."""
    out = tmp_path_factory.mktemp("straight") / "out"
    treat(tiny("llama"), TEXTS, out, PLAN, device="cpu")
    return weights(out)


def run_nearly(model: Path, folder: Path) -> Path:
    """Run until everything is done, but for putting it into OUT; the OUT.work."""

    def stop(*given: Any) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(treatment_run, "_publish", stop)
        with pytest.raises(StoppedError):
            treat(model, TEXTS, folder / "out", PLAN, device="cpu")
    assert not (folder / "out").exists()
    return folder / "out.work"


@pytest.fixture(scope="module")
def nearly(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OUT.work of a run that is nearly done (do not change)."""
    return run_nearly(tiny("llama"), tmp_path_factory.mktemp("nearly"))


def resumed(model: Path, folder: Path, **more: Any) -> str:
    """Resume a run and return its weights; nothing but OUT is left."""
    treat(model, TEXTS, folder / "out", PLAN, resume=True, device="cpu", **more)
    assert not (folder / "out.work").exists()
    return weights(folder / "out")


# --- kills ---------------------------------------------------------------------------------------------


def kill_at_the_end(number: int, model: Path, folder: Path, force: bool) -> bool:
    """Kill a resumed run before the nth call of the system since it began to publish."""

    def action() -> None:
        os.fsync = os.fstat  # type: ignore[assignment]  # in the child: a kill takes nothing from the system
        treat(model, TEXTS, folder / "out", PLAN, resume=True, force=force, device="cpu")

    return killed_before(number, action, (treatment_run, "_publish"))


def survive(number: int, model: Path, nearly: Path, folder: Path, straight: str, old: Path | None) -> bool:
    """Kill, look, resume; whether there was a kill."""
    shutil.copytree(nearly, folder / "out.work")
    if old is not None:
        shutil.copytree(old, folder / "out")
    killed = kill_at_the_end(number, model, folder, force=old is not None)
    mark = read_mark(folder / "out")
    assert (mark is None and not (folder / "out").exists()) or (mark is not None and mark.is_whole(folder / "out"))
    if old is not None:
        assert mark is not None
    assert resumed(model, folder, force=old is not None) == straight
    assert set(names_in(folder / "out")) == {*(read_mark(folder / "out") or Mark("")).files, MARK}
    shutil.rmtree(folder)
    return killed


@pytest.fixture(scope="module")
def old(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUT of an earlier run, which --force replaces."""
    out = tmp_path_factory.mktemp("old") / "out"
    treat(tiny("llama"), TEXTS, out, replace(PLAN, seed=5, max_steps=1), device="cpu")
    return out


@pytest.mark.parametrize("number", [1, 150, 10**6])
def test_a_kill_at_the_end_loses_nothing(
    number: int, tiny: Callable[[str], Path], nearly: Path, old: Path, straight: str, tmp_path: Path
) -> None:
    assert survive(number, tiny("llama"), nearly, tmp_path / "new", straight, None) == (number < 10**6)
    assert survive(number, tiny("llama"), nearly, tmp_path / "forced", straight, old) == (number < 10**6)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("forced", [False, True], ids=["new", "forced"])
def test_a_kill_anywhere_at_the_end_loses_nothing(
    forced: bool,
    tiny: Callable[[str], Path],
    nearly: Path,
    old: Path,
    straight: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every seventh call, with a whole resume; tests/test_folders.py kills before every single one.

    The page is empty, a step is timed once, and nothing is collected: what happens in the folders stays as it is.
    """
    monkeypatch.setattr(Treatment, "to_html", lambda self: "<!doctype html>")
    monkeypatch.setattr(treatment_run, "ROUNDS", 1)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    number = 1
    while survive(number, tiny("llama"), nearly, tmp_path / str(number), straight, old if forced else None):
        number += 7
    assert number > 100


def test_a_run_that_was_finished_can_be_resumed(
    tiny: Callable[[str], Path], nearly: Path, straight: str, tmp_path: Path
) -> None:
    """A kill after the last call: OUT is whole and OUT.work gone, and --resume says no more than that it is done."""
    shutil.copytree(nearly, tmp_path / "out.work")
    assert resumed(tiny("llama"), tmp_path) == straight
    before = (tmp_path / "out" / "condense.json").read_bytes()
    assert resumed(tiny("llama"), tmp_path) == straight
    assert (tmp_path / "out" / "condense.json").read_bytes() == before
    with pytest.raises(UsageError, match="holds another treatment"):
        treat(tiny("llama"), TEXTS, tmp_path / "out", replace(PLAN, seed=1), resume=True, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_two_runs_into_one_folder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The second is refused at once, names the first, and takes nothing from it."""
    text = tmp_path / "train.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXTS))
    words = ["--quiet", "treat", str(tiny("llama")), "--text", str(text), "-o", str(tmp_path / "out")]
    words += ["--device", "cpu", "--max-steps", "3", "--max-length", "64", "--num-texts", "4"]
    command = [sys.executable, "-m", "condense", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        lock = tmp_path / "out.work" / LOCK
        while first.poll() is None and not (lock.exists() and lock.read_text().rstrip().endswith("}")):
            time.sleep(0.01)  # until it is locked and says by whom
        first.send_signal(signal.SIGSTOP)  # or it might be done before the second has begun
        second = CliRunner().invoke(app, words)
        first.send_signal(signal.SIGCONT)
        assert second.exit_code == 2, second.stderr
        assert f"out.work is in use by process {first.pid}" in second.stderr
        assert first.wait(timeout=200) == 0
    assert weights(tmp_path / "out") and not (tmp_path / "out.work").exists()


# --- damage --------------------------------------------------------------------------------------------


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nested(path: Path) -> None:
    """Deeper than Python's JSON parser goes."""
    path.write_text("[" * 100_000)


TREATED = "dispersion=2/seed-0"
DAMAGE = [
    (f"{TREATED}/model/model.safetensors", emptied),
    (f"{TREATED}/model/model.safetensors", zeroed),
    (f"{TREATED}/model/tokenizer.json", halved),
    (f"{TREATED}/model/config.json", Path.unlink),
    (f"{TREATED}/trained.json", emptied),
    (f"{TREATED}/run.json", halved),
    (f"{TREATED}/probe.json", zeroed),
    ("control/seed-0/cloud.safetensors", emptied),
    ("control/seed-0/validation.json", halved),
    ("before/run.json", zeroed),
    ("fingerprint.json", zeroed),
    ("fingerprint.json", nested),
    ("control/seed-0/begun.json", nested),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=lambda part: getattr(part, "__name__", part))
def test_what_is_damaged_is_made_again(
    name: str, damage: Callable[[Path], None], tiny: Callable[[str], Path], nearly: Path, straight: str, tmp_path: Path
) -> None:
    shutil.copytree(nearly, tmp_path / "out.work")
    damage(tmp_path / "out.work" / name)
    assert resumed(tiny("llama"), tmp_path) == straight


LINKED = [
    "before", "before/run.json", "fingerprint.json", "control", "control/seed-0/trained.json", f"{TREATED}/model",
    f"{TREATED}/model/config.json", "final", ".condense.json",
]  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_a_link(
    name: str, tiny: Callable[[str], Path], nearly: Path, tmp_path: Path
) -> None:
    """A link among the files of a run leads to something of the user's."""
    work, mine = Path(shutil.copytree(nearly, tmp_path / "out.work")), tmp_path / "mine"
    place = work / name
    if place.is_dir() or name == "final":
        mine.mkdir()
        (mine / "run.json").write_text("mine")
        shutil.rmtree(place, ignore_errors=True)
    else:
        mine.write_text("mine")
        place.unlink()
    place.symlink_to(mine)
    with pytest.raises(UsageError, match="is a link, which condense does not make|was not made by condense"):
        treat(tiny("llama"), TEXTS, tmp_path / "out", PLAN, resume=True, device="cpu")
    left = names_in(mine) if mine.is_dir() else ["run.json"]
    assert left == ["run.json"] and (mine / "run.json" if mine.is_dir() else mine).read_text() == "mine"
    assert place.is_symlink() and not (tmp_path / "out").exists()


def test_nothing_is_trained_again_without_need(
    tiny: Callable[[str], Path], nearly: Path, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(nearly, tmp_path / "out.work")
    emptied(tmp_path / "out.work" / TREATED / "probe.json")
    monkeypatch.setattr("condense.trials.arm_run.train_arm", lambda *given, **more: pytest.fail("it was trained again"))
    assert resumed(tiny("llama"), tmp_path) == straight


def test_a_damaged_checkpoint_is_passed_over(
    tiny: Callable[[str], Path], straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last training checkpoint was zeroed by a power failure: training goes on from the one before."""
    plan, seen = replace(PLAN, max_steps=6, save_steps=2), []
    once = treat(tiny("llama"), TEXTS, tmp_path / "once", plan, device="cpu")
    assert once is not None

    def stop(step: int, steps: int, logs: dict[str, float]) -> None:
        if step == 5:
            raise StoppedError

    watch = Watch(on_step=stop)
    with pytest.raises(StoppedError):
        treat(tiny("llama"), TEXTS, tmp_path / "out", plan, watch=watch, device="cpu")
    checkpoints = tmp_path / "out.work" / "control" / "seed-0"
    assert {path.name for path in checkpoints.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    zeroed(checkpoints / "checkpoint-4" / "model.safetensors")
    watch = Watch(on_step=lambda step, steps, logs: seen.append(step))
    again = treat(tiny("llama"), TEXTS, tmp_path / "out", plan, watch=watch, resume=True, device="cpu")
    assert seen[:4] == [3, 4, 5, 6] and again is not None
    for name in ("control", "treated"):
        one, two = (run.arms[name].validation.model.weights_sha256 for run in (once, again))
        assert one == two


# --- other weights, text, settings ---------------------------------------------------------------------


def test_resume_looks_again(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The model was trained on in place: the control of the old weights would meet the treated model of the new."""
    model = copy_of("llama")
    work = run_nearly(model, tmp_path)
    for texts, plan, differing in (
        (TEXTS[:25], PLAN, "train, validation, windows"),
        (TEXTS, replace(PLAN, coefficient=1.0), "training"),
    ):
        with pytest.raises(UsageError, match=rf"other settings, model or text \(different: {differing}\)"):
            treat(model, texts, tmp_path / "out", plan, resume=True, device="cpu")
    changed = {name: 4 * value for name, value in load_file(model / "model.safetensors").items()}
    save_file(changed, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"\(different: weights\)"):
        treat(model, TEXTS, tmp_path / "out", PLAN, resume=True, device="cpu")
    assert not (tmp_path / "out").exists()
    (work / "fingerprint.json").unlink()  # without it each run is still known to be of other weights
    found = treat(model, TEXTS, tmp_path / "out", PLAN, resume=True, device="cpu")
    fresh = treat(model, TEXTS, tmp_path / "fresh", PLAN, device="cpu")
    assert found is not None and fresh is not None and found.effect == fresh.effect
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh")


# --- files that are not condense's ---------------------------------------------------------------------


def test_a_folder_of_somebody_else_is_neither_used_nor_removed(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    for more in ({"resume": True}, {"force": True}, {"resume": True, "force": True}, {}):
        with pytest.raises(UsageError, match=r"out.work was not made by condense"):
            treat(tiny("llama"), TEXTS, tmp_path / "out", PLAN, device="cpu", **more)
    assert names_in(tmp_path) == ["out.work/thesis.txt"]


def test_a_file_in_the_folder_of_a_run_stays(
    tiny: Callable[[str], Path], nearly: Path, straight: str, tmp_path: Path
) -> None:
    for how in ("resume", "force"):
        notes, folder = [], tmp_path / how
        shutil.copytree(nearly, folder / "out.work")
        mine = ("thesis.txt", f"{TREATED}/thesis.txt", f"{TREATED}/model/thesis.txt", "control/notes.json")
        for name in mine:
            (folder / "out.work" / name).write_text("mine")
        watch = Watch(on_note=notes.append)
        treat(tiny("llama"), TEXTS, folder / "out", PLAN, device="cpu", watch=watch, **{how: True})
        assert weights(folder / "out") == straight
        assert {name: (folder / "out.work" / name).read_text() for name in names_in(folder / "out.work")} == (
            dict.fromkeys(mine, "mine")
        )
        assert notes and "holds files that condense did not make" in notes[0]


def test_an_output_that_is_the_model_is_refused(copy_of: Callable[[str], Path]) -> None:
    model = copy_of("llama")
    before = {name: (model / name).read_bytes() for name in names_in(model)}
    with pytest.raises(UsageError, match="is the model itself"):
        treat(model, TEXTS, model, PLAN, force=True, device="cpu")
    assert {name: (model / name).read_bytes() for name in names_in(model)} == before


def test_another_models_folder_is_not_replaced(tiny: Callable[[str], Path], copy_of: Callable[[str], Path]) -> None:
    other = copy_of("gpt2")
    before = {name: (other / name).read_bytes() for name in names_in(other)}
    with pytest.raises(UsageError, match="was not written by condense"):
        treat(tiny("llama"), TEXTS, other, PLAN, force=True, device="cpu")
    assert {name: (other / name).read_bytes() for name in names_in(other)} == before


# --- where OUT may be ----------------------------------------------------------------------------------


def mounted(folder: Path, options: str) -> bool:
    """Whether a disk of its own could be mounted at a folder, as root can."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is a disk of its own: a mount point, or one that nothing can be renamed or linked into."""
    folder = tmp_path / "disk"
    if mounted(folder, "size=32m"):
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, partial(_within, folder, getattr(os, name)))
    yield folder


def _within(folder: Path, call: Callable[..., None], source: Any, target: Any, **more: Any) -> None:
    if len({str(path).startswith(f"{folder}{os.sep}") for path in (source, target)}) == 2:
        raise OSError(errno.EXDEV, "Invalid cross-device link")
    call(source, target, **more)


def test_out_may_be_a_disk_of_its_own(
    tiny: Callable[[str], Path], nearly: Path, straight: str, disk: Path, tmp_path: Path
) -> None:
    """Also one with files of the user's, and again with --force."""
    (disk / "lost+found").mkdir()
    (disk / "thesis.txt").write_text("mine")
    shutil.copytree(nearly, tmp_path / "disk.work")
    treat(tiny("llama"), TEXTS, disk, PLAN, resume=True, force=True, device="cpu")
    first = (disk / "condense.json").read_bytes()
    assert weights(disk) == straight and not (tmp_path / "disk.work").exists()
    shutil.copytree(nearly, tmp_path / "disk.work")
    (disk / "report.md").unlink()
    treat(tiny("llama"), TEXTS, disk, PLAN, resume=True, force=True, device="cpu")
    assert weights(disk) == straight and (disk / "condense.json").read_bytes() != first
    assert (disk / "thesis.txt").read_text() == "mine" and (disk / "lost+found").is_dir()
    assert set(names_in(disk)) == {*(read_mark(disk) or Mark("")).files, MARK, "thesis.txt"}


def test_a_disk_that_the_model_would_not_fit_on_is_refused_before_training(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", []

    def usage(place: Path) -> Any:
        asked.append(Path(place))
        return SimpleNamespace(free=10**6 if Path(place) == out else 10**12)

    out.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", usage)
    stat = Path.stat

    def on_its_own(self: Path, **more: Any) -> Any:
        found = stat(self, **more)
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:])) if self == out else found

    monkeypatch.setattr(Path, "stat", on_its_own)
    monkeypatch.setattr("condense.trials.arm_run.train_arm", lambda *given, **more: pytest.fail("it was trained"))
    with pytest.raises(RunError, match=rf"not enough disk in {out}: 5\.\d+ MB needed, 1 MB free"):
        treat(tiny("llama"), TEXTS, out, PLAN, device="cpu")
    assert asked == [tmp_path / "out.work", out] and names_in(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "home", "here"])
def test_out_is_resolved(
    kind: str, tiny: Callable[[str], Path], nearly: Path, straight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that is there stays that folder, with its permissions: a shell may stand in it."""
    out = tmp_path / "elsewhere" / "x"
    out.mkdir(parents=True, mode=0o750)
    (tmp_path / "link").symlink_to(out)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    if kind == "here":
        monkeypatch.chdir(out)
    shutil.copytree(nearly, tmp_path / "elsewhere" / "x.work")
    named = {"link": tmp_path / "link", "home": "~/x", "here": "."}[kind]
    for force in (False, True):
        treat(tiny("llama"), TEXTS, named, PLAN, resume=True, force=force, device="cpu")
        if kind == "here":
            assert "condense.json" in os.listdir() and os.path.samefile(".", out)
        assert weights(out) == straight and out.stat().st_mode & 0o777 == 0o750
        assert [path.name for path in out.parent.iterdir()] == ["x"] and (tmp_path / "link").is_symlink()
        shutil.copytree(nearly, tmp_path / "elsewhere" / "x.work")
        (out / "report.md").unlink()


@pytest.mark.parametrize("which", ["out", "parent"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    which: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make = tempfile.mkstemp

    def mkstemp(*given: Any, **more: Any) -> Any:
        if Path(more["dir"]) == (out if which == "out" else tmp_path):
            raise OSError(errno.EROFS, "Read-only file system")
        return make(*given, **more)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    monkeypatch.setattr("condense.trials.runs.checkpoints.load", lambda *given, **more: pytest.fail("it was loaded"))
    place, hint = (out, "choose another") if which == "out" else (tmp_path, f"such as {out}/model")
    with pytest.raises(UsageError, match=f"cannot write into {place}: Read-only file system") as refused:
        treat(tiny("llama"), TEXTS, out, PLAN, device="cpu")
    assert hint in refused.value.hint
    if which == "out":
        with pytest.raises(UsageError, match=f"cannot write into {place}: Read-only file system"):
            trial(tiny("llama"), TEXTS, out, TrialPlan((CONTROL,), 1, PLAN), device="cpu")
    assert names_in(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_before_anything_is_loaded(tiny: Callable[[str], Path], disk: Path) -> None:
    """Where a disk can be mounted: not even a byte fits, though the folder can be written."""
    room = shutil.disk_usage(disk).free
    if not disk.is_mount():
        return
    (disk / "filler").write_bytes(bytes(room))
    with pytest.raises(RunError, match="disk full"):
        treat(tiny("llama"), TEXTS, disk / "out", PLAN, device="cpu")
    assert names_in(disk) == ["filler"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layers": "99"}, "layers '99' names no block"),
        ({"layers": "x"}, "layers must be all, late"),
        ({"optim": "sgdd"}, "these training options do not go together"),
        ({"lr_scheduler": "x"}, "these training options do not go together"),
        ({"report_to": "x"}, "--report-to: x is not supported"),
        ({"seed": 2**32 - 1, "seeds": 2}, "leaves no room for 2 seeds"),
        ({"warmup": -1.0}, "--warmup is -1"),
        ({"tau": 0.5, "loss": "decorrelation"}, "--tau is given, but no arm has a loss with a temperature"),
    ],
)
def test_settings_that_training_would_refuse_are_told_first(
    more: dict[str, Any], said: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """A dry run says it too."""
    with pytest.raises(UsageError, match=said):
        treat(tiny("llama"), TEXTS, tmp_path / "out", replace(PLAN, **more), dry_run=True, device="cpu")


def test_a_tracker_that_is_not_installed_is_told_first(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")

    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [missing])
    with pytest.raises(UnavailableError, match="--report-to wandb: WandbCallback requires wandb"):
        treat(tiny("llama"), TEXTS, tmp_path / "out", replace(PLAN, report_to="wandb"), dry_run=True, device="cpu")


# --- logs ----------------------------------------------------------------------------------------------


def test_event_files_of_every_arm_are_kept(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    plan = replace(PLAN, report_to="tensorboard", max_steps=1)
    for force in (False, True):
        treat(tiny("llama"), TEXTS, tmp_path / "out", plan, force=force, device="cpu")
        assert weights(tmp_path / "out") and [path.name for path in tmp_path.iterdir()] == ["out"]
        logs = [name for name in names_in(tmp_path / "out") if name.startswith("runs/")]
        assert {name.split("/")[1] for name in logs} == {"control-seed-0", "treated-seed-0"} and len(logs) == 2


def test_trackers_name_runs_and_group_them(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each arm is a run of its own: W&B would log the second arm into the run of the first."""
    seen: list[tuple[Any, ...]] = []
    wandb = SimpleNamespace(run=None)
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            wandb.run = wandb.run or args.run_name
            seen.append((wandb.run, args.project, os.environ["WANDB_RUN_GROUP"], os.environ["MLFLOW_TAGS"]))

    integrations = "transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK"
    monkeypatch.setattr(integrations, {"wandb": Tracker})
    plan = replace(PLAN, report_to="wandb", max_steps=1, seeds=2, seed=3)
    treat(tiny("llama"), TEXTS, tmp_path / "mine", plan, device="cpu")
    arms = [f"mine {arm} seed {seed}" for seed in (3, 4) for arm in ("control", "treated")]
    assert seen == [(arm, "mine", "mine", '{"condense": "mine"}') for arm in arms]
    assert wandb.run is None and "WANDB_RUN_GROUP" not in os.environ
