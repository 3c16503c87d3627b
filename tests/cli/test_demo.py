"""`condense demo --sick`: each fault gets its attribution, and nothing of a user's is written over."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from condense.cli.app import app
from condense.models import sick
from condense.models.checkpoint import load

FAULTS = {
    "cone": ("severe", "common direction"),
    "rogue-dimension": ("watch", "rogue dimensions"),
    "sink": ("watch", "attention-sink artefact"),
    "low-rank": ("condensed", "rank collapse without a cone"),
}


def condense(*words: str) -> Any:
    return CliRunner().invoke(app, ["demo", "--sick", "--num-texts", "8", *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("demo") / "sick"
    return folder, condense("-o", str(folder))


def test_every_fault_gets_its_attribution(made: tuple[Path, Any]) -> None:
    folder, result = made
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip().endswith("4 of 4 attributions are right.")
    verdicts = {name: json.loads((folder / name / "diagnosis.json").read_text())["verdict"] for name in FAULTS}
    assert {name: (v["level"], v["attribution"]) for name, v in verdicts.items()} == FAULTS
    assert not any(verdict["borderline"] for verdict in verdicts.values())
    plain = " ".join(result.stdout.split())
    for _, attribution in FAULTS.values():
        assert f"Right: {attribution}." in plain


def test_each_model_is_a_checkpoint_with_a_report(made: tuple[Path, Any]) -> None:
    """So that the next command of a finding runs as it stands."""
    folder, _ = made
    for name in FAULTS:
        assert load(folder / name, offline=True).info.blocks == sick.BLOCKS
        assert (folder / name / "report.html").read_text().startswith("<!doctype html>")
        main = json.loads((folder / name / "diagnosis.json").read_text())["verdict"]["findings"][0]
        assert main["next"].startswith(f"condense analyze {folder / name}")


def test_what_is_there_is_only_replaced_where_it_is_unchanged(made: tuple[Path, Any]) -> None:
    folder, _ = made
    refused = condense("-o", str(folder))
    assert refused.exit_code == 2 and "is not empty" in refused.stderr
    config = folder / "cone" / "config.json"
    before = config.read_text()
    config.write_text("mine")
    refused = condense("-o", str(folder), "--force")
    assert refused.exit_code == 2 and "was not written by condense, or was changed since" in refused.stderr
    assert config.read_text() == "mine"
    config.write_text(before)


def test_the_model_without_a_fault_is_not_condensed(tmp_path: Path) -> None:
    from condense.diagnosis.run import analyze
    from condense.texts.windows import windows

    sick.Sick("healthy", "", "", "not condensed", lambda model: None).write(tmp_path)
    checkpoint = load(tmp_path)
    verdict = analyze(checkpoint, windows(checkpoint.tokenizer, num_texts=8, max_length=128)).verdict
    assert (verdict.level, verdict.cone, verdict.rank, verdict.attribution) == ("ok", "low", "intact", "not condensed")


def test_a_wrong_verdict_is_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(sick.SICK[1], attribution="common direction")
    monkeypatch.setattr(sick, "SICK", (other,))
    result = condense("-o", str(tmp_path / "out"))
    assert result.exit_code == 4 and "the verdict is wrong on rogue-dimension" in result.stderr
    assert "Wrong: rogue dimensions instead of common direction." in " ".join(result.stdout.split())
    assert (tmp_path / "out" / "rogue-dimension" / "diagnosis.json").exists()


def test_one_text_is_no_fault_of_condense(tmp_path: Path) -> None:
    """The cosine across texts needs two: a verdict on one is not wrong."""
    result = CliRunner().invoke(app, ["demo", "--sick", "--num-texts", "1", "-o", str(tmp_path / "sick")])
    assert result.exit_code == 2 and "two texts" in result.stderr and not (tmp_path / "sick").exists()


def test_what_make_demo_fetches_is_shown() -> None:
    """Hundreds of megabytes: pip tells what it does, and no line of it is muted."""
    lines = (Path(__file__).parents[2] / "Makefile").read_text().splitlines()
    pip = [line for line in lines if "$(PIP)" in line]
    assert len(pip) >= 4 and not any("--quiet" in line or " -q" in line or line.startswith("\t@") for line in pip)
