"""`condense doctor` says what is there, what is not, and the command that fixes it; a token it never says."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from condense import doctor as installation
from condense.cli.app import app
from condense.cli.console import MANNER
from condense.doctor import Installation, Problem, examine

ROOT = Path(__file__).parents[2]
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, a cache of its own, no token and no hub cache of this machine."""
    from huggingface_hub import constants

    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    MANNER.quiet = MANNER.debug = False


def doctor(*arguments: object, before: tuple[object, ...] = ()) -> Result:
    return CliRunner().invoke(app, [str(word) for word in (*before, "doctor", *arguments)])


def without(monkeypatch: pytest.MonkeyPatch, *missing: str, **other: str) -> None:
    """Packages that are not there, or are there in another version."""
    real = installation._version
    monkeypatch.setattr(
        installation, "_version", lambda name: None if name in missing else other.get(name) or real(name)
    )


def of(found: Installation, what: str) -> Problem:
    (problem,) = (problem for problem in found.problems if problem.what == what)
    return problem


def test_all_is_there() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    assert "● All that condense needs is there." in result.stdout
    assert f"torch {torch.__version__}" in " ".join(result.stdout.split())
    assert "condense cache" in result.stdout and "settings file     none here" in result.stdout


def test_the_record_is_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "cache" / "gguf").mkdir(parents=True)
    (tmp_path / "cache" / "gguf" / "weights").write_bytes(b"x" * 12345)
    found = examine()
    assert found.works and found.python == ".".join(map(str, sys.version_info[:3]))
    assert [device.name for device in found.devices][0] == "cpu" and found.cpu_count == os.cpu_count()
    assert f"{torch.get_num_threads()} thread" in found.devices[0].title
    assert found.memory is not None and found.memory > 2**28
    assert [(place.name, place.size) for place in found.folders] == [
        ("here", 0), ("condense cache", 12345), ("hub cache", 0),
    ]  # fmt: skip
    assert all(place.writable and place.counted and place.free > 0 for place in found.folders)


def test_a_missing_required_package(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "scipy")
    result = doctor()
    assert result.exit_code == 3
    assert "✖ scipy: this package is missing" in result.stdout and "pip install 'scipy>=1.13'" in result.stdout
    assert "✖ 1 thing to fix before anything works." in result.stdout


def test_without_torch_there_are_no_devices_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    found = examine()
    assert found.devices == () and of(found, "torch").required and not found.works
    assert doctor().exit_code == 3


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Any]:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(installation, "_devices", broken)
    problem = of(examine(), "torch")
    assert problem.required and "libcudart.so.12" in problem.why and "--force-reinstall" in problem.fix


@pytest.mark.parametrize("name", installation.OPTIONAL)
def test_a_missing_optional_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, name)
    purpose, fix = installation.OPTIONAL[name][1:]
    problem = of(examine(), purpose)
    assert (problem.why, problem.fix, problem.required) == (f"the package {name} is missing", fix, False)
    assert doctor().exit_code == 0


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, transformers="5.9.1", gguf="0.10")
    found = examine()
    problem = of(found, "transformers")
    assert problem.required and problem.why == "transformers 5.9.1 is older than 5.23"
    assert problem.fix == "pip install --upgrade 'transformers>=5.23'"
    assert not any("gguf" in other.why for other in found.problems)


def test_the_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def listed(lines: list[str]) -> dict[str, str]:
        matches = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", line) for line in lines]
        return {match[1]: match[2] or "" for match in matches if match}

    assert listed(project["dependencies"]) == {k: v for k, v in installation.REQUIRED.items() if k != "accelerate"}
    assert project["requires-python"] == f">={installation.PYTHON}"
    extras = project["optional-dependencies"]
    for name, (oldest, _, fix) in installation.OPTIONAL.items():
        extra = re.fullmatch(r"pip install 'condense-lm\[(\w+)\]'", fix)
        if extra:
            assert listed(extras[extra[1]])[name] == oldest


def test_a_version_is_read_as_pip_reads_it() -> None:
    older = [("2.9", "2.10"), ("2.10rc1", "2.10"), ("2.10.dev3", "2.10")]
    assert all(installation._is_older(version, oldest) for version, oldest in older)
    others = [("2.13.0+cpu", "2.10"), ("2.10.post1", "2.10"), ("1!1.0", "2.10"), ("unknown", "2.10"), ("1.0", "")]
    assert not any(installation._is_older(version, oldest) for version, oldest in others)


def test_a_foreign_condense_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution `condense` of the index writes the folder condense/ too."""
    with monkeypatch.context() as patch:
        without(patch, "condense")
        assert not any(problem.what == "import condense" for problem in examine().problems)
    foreign = tmp_path / "site" / "condense-9.9.dist-info"
    foreign.mkdir(parents=True)
    (foreign / "METADATA").write_text("Metadata-Version: 2.1\nName: condense\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(foreign.parent))
    problem = of(examine(), "import condense")
    assert "condense 9.9" in problem.why and "condense-lm" in problem.why and not problem.required
    assert problem.fix == ("pip uninstall --yes condense && pip install --force-reinstall --no-deps condense-lm")
    result = doctor()
    assert result.exit_code == 0 and "somebody else's" in " ".join(result.stdout.split())


# --- the hub ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["HF_TOKEN", "file"])
def test_a_token_is_seen_and_never_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "file":
        (tmp_path / "token").write_text(TOKEN)
        place = str(tmp_path / "token")
    else:
        monkeypatch.setenv(place, TOKEN)
    result = doctor("--json", tmp_path / "doctor.json")
    shown = doctor()
    record = json.loads((tmp_path / "doctor.json").read_text())
    assert record["token"] == place and not any("token" in problem["why"] for problem in record["problems"])
    assert "there is one" in shown.stdout
    for text in (result.output, shown.output, (tmp_path / "doctor.json").read_text()):
        assert TOKEN not in text


def test_no_token_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    found = examine()
    assert found.offline == {"HF_HUB_OFFLINE": "1"} and found.token == "none"
    assert of(found, "models and datasets that are not on this disk").fix == "unset HF_HUB_OFFLINE"
    assert of(found, "gated and private models of the hub").fix == "hf auth login"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert examine().offline == {}


# --- places -----------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "file" / "cache"))
    found = examine()
    assert not next(place for place in found.folders if place.name == "condense cache").writable
    problem = of(found, ".gguf checkpoints, used diagnoses, resuming a run")
    assert problem.fix.startswith("export CONDENSE_CACHE=") and not problem.required
    result = doctor()
    assert result.exit_code == 0 and "free, not writable" in result.stdout


def test_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_FREE_BYTES", 1e18)
    assert of(examine(), "downloads from the hub").fix == "export HF_HOME=/another/disk"


def test_a_huge_cache_is_not_counted_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "file").write_bytes(b"x" * 10)
    monkeypatch.setattr(installation, "_COUNTING_SECONDS", -1.0)
    place = next(place for place in examine().folders if place.name == "condense cache")
    assert not place.counted and place.size < 20
    assert "over " in doctor().stdout


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said", "fix"),
    [
        ("[analyze]\nnum_text = 3\n", "unknown key 'num_text' in [analyze]", "did you mean num_texts?"),
        ("[analyze\n", "is not valid TOML", "correct the file"),
        ("[analyze]\ntrust_remote_code = true\n", "only taken as a flag", "--trust-remote-code"),
    ],
)
def test_a_settings_file_that_is_wrong(text: str, said: str, fix: str) -> None:
    Path("condense.toml").write_text(text)
    result = doctor()
    shown = " ".join(result.stdout.split())
    assert result.exit_code == 3 and "condense.toml, not valid" in shown
    assert "✖ every command: " in shown and said in shown and fix in shown


def test_a_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSE_ANALYZE__NUM_TEXT", "3")
    result = doctor()
    assert result.exit_code == 3 and "CONDENSE_ANALYZE__NUM_TEXT" in result.stdout


def test_a_settings_file_that_is_right_or_named(tmp_path: Path) -> None:
    Path("condense.toml").write_text("[analyze]\nnum_texts = 3\n")
    assert doctor().exit_code == 0
    (tmp_path / "mine.toml").write_text("[analyze]\nnonsense = 3\n")
    assert doctor(before=("--config", tmp_path / "mine.toml")).exit_code == 3
    result = doctor(before=("--config", tmp_path / "nothing.toml"))
    assert result.exit_code == 3 and "no such settings file" in result.stdout


# --- outputs ----------------------------------------------------------------------------------------


def test_the_json_is_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "peft")
    file = tmp_path / "doctor.json"
    result = doctor("--json", file)
    assert result.exit_code == 0 and result.stdout == "" and f"wrote {file}" in result.stderr
    record = json.loads(file.read_text())
    assert record["schema"] == installation.SCHEMA
    assert next(package for package in record["packages"] if package["name"] == "peft")["version"] is None
    file.write_text("mine")
    assert doctor("--json", file).exit_code == 2 and file.read_text() == "mine"


def test_control_characters_are_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSE_CACHE", "/tmp/\x1b[31mred")
    assert "\x1b" not in doctor().stdout


def test_it_is_quick_and_asks_nothing_of_the_network() -> None:
    code = (
        "import socket, sys, time\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from condense.cli.app import app\n"
        "try:\n    app(['doctor'])\nexcept SystemExit as end:\n    code = end.code\n"
        "print(time.process_time(), 'transformers' in sys.modules)\n"
        "assert code == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    seconds, heavy = done.stdout.splitlines()[-1].split()
    assert float(seconds) < 5 and heavy == "False"
