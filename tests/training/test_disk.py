"""A run that would not fit on its disk is refused before it trains, and leaves nothing behind."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from condense.cli.app import app
from condense.errors import RunError
from condense.training.loop import _run
from condense.training.prepare import refuse_small_disk

Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> list[Path]:
    asked: list[Path] = []

    def usage(place: Path) -> Usage:
        asked.append(Path(place))
        return Usage(10**12, 10**12 - size, size)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


def test_room_is_asked_for_where_the_output_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = free(monkeypatch, 1000)
    refuse_small_disk(tmp_path / "deep" / "out.work", 1000)
    assert asked == [tmp_path]
    with pytest.raises(RunError, match=r"not enough disk in .*: 2\.5 GB needed, 1 kB free") as refused:
        refuse_small_disk(tmp_path / "deep" / "out.work", 2_500_000_000)
    assert refused.value.exit_code == 4 and "--output" in refused.value.hint


def test_what_a_resumed_run_has_written_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "out.work"
    (work / "control").mkdir(parents=True)
    (work / "control" / "model.safetensors").write_bytes(b"x" * 600)
    free(monkeypatch, 400)
    refuse_small_disk(work, 1000)
    with pytest.raises(RunError):
        refuse_small_disk(work, 1001)
    assert (work / "control" / "model.safetensors").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_treat_refuses_before_it_trains(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Rain number {number} falls on the old stone bridge. " * 30)
    words = [
        "treat", str(tiny("llama")), "--text", str(tmp_path / "texts"), "-o", str(tmp_path / "out"), "--device", "cpu",
        "--max-steps", "2", "--max-length", "64", "--num-texts", "2", *more,
    ]  # fmt: skip
    monkeypatch.setattr("condense.trials.arm_run.train_arm", lambda *a, **k: pytest.fail("it trained"))
    free(monkeypatch, 1)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 4, result.output
    assert "condense: not enough disk in" in result.stderr and "free some space" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()


def test_a_model_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    text = tmp_path / "train.txt"
    text.write_text("A line of text to train on. " * 200, encoding="utf-8")
    done = CliRunner().invoke(app, ["treat", str(tmp_path / "none"), "--text", str(text), "-o", str(tmp_path / "out")])
    assert done.exit_code == 3 and {path.name for path in tmp_path.iterdir()} == {"train.txt"}


def test_a_trial_asks_for_room_too(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1000)
    text = tmp_path / "train.txt"
    text.write_text("A line of text to train on. " * 400, encoding="utf-8")
    words = ["trial", str(tiny("llama")), "--text", str(text), "-o", str(tmp_path / "out"), "--max-length", "64"]
    done = CliRunner().invoke(app, [*words, "--device", "cpu", "--max-steps", "1", "--arms", "dispersion"])
    assert done.exit_code == 4 and "not enough disk" in done.output
    assert not (tmp_path / "out").exists()


class Saving(torch.nn.Linear):
    """A model that cannot write its checkpoint."""

    error: Exception

    def save_pretrained(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "disk full"),
        (OSError(28, "No space left on device"), "disk full"),
        (MemoryError(), "out of memory"),
        (SafetensorError("Cannot allocate memory (os error 12)"), "out of memory"),
    ],
)
def test_a_checkpoint_that_cannot_be_saved_is_no_fault_of_the_model(error: Exception, said: str) -> None:
    """`save_pretrained` is a method of the model, as its forward pass is."""
    model = Saving(2, 2)
    model.error = error
    trainer = SimpleNamespace(model=model, train=lambda **given: model.save_pretrained())
    with pytest.raises(RunError, match=said):
        _run(trainer, None)
