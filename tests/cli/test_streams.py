"""What leaves a run: no secret, no name of a text with --no-text, no command to a CI runner; streams that fail."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from condense.cli import console
from condense.cli.app import app, main
from condense.cli.console import MANNER, Guarded, command_line, redacted, say
from condense.errors import RunError, UnavailableError, UsageError, system_failure
from condense.files import is_special, write_text
from condense.models import hub
from condense.records.diagnosis import Diagnosis
from condense.records.options import ModelOptions
from condense.report.escape import for_runner
from condense.texts.documents import Document, read

SECRET = "hf_SECRETsecretSECRET"
FAST = ("--num-texts", "2", "--max-length", "16", "--device", "cpu")
NAME = "patients-john-doe"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    yield
    MANNER.secrets, MANNER.stdout_error, MANNER.debug = (), "", False


def condense(*words: object, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(app, [str(word) for word in words])


def process(*words: object, redirect: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """condense as a shell starts it, with its streams as `redirect` says."""
    call = f'exec "$0" -m condense "$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", call, sys.executable, *map(str, words)],
        capture_output=True, text=True, timeout=300, check=False, cwd=cwd,
    )  # fmt: skip


# --- secrets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET}\r\n", f" {SECRET}\t"])
def test_a_mounted_secret_is_stripped_before_the_hub_gets_it(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str | None] = []

    def fetch(repo: str, options: ModelOptions, *more: Any, **others: Any) -> Any:
        got.append(options.token)
        raise UnavailableError(f"the hub says no to {options.token}")

    monkeypatch.setattr("condense.models.hub.fetch", fetch)
    for words, environment in ((("--token", token), {}), ((), {"HF_TOKEN": token})):
        result = condense("--debug", "analyze", "org/model", *words, **environment)
        assert result.exit_code == 3 and "the hub says no to …" in result.stderr, result.output
        assert "SECRET" not in result.output and "Traceback" in result.stderr
    assert got == [SECRET, SECRET]


def test_a_token_that_is_none_is_refused_without_being_shown() -> None:
    for token in ("hf_SE CRET", "hf_SE\rCRET", "hf_SECRETé"):
        result = condense("analyze", "org/model", "--token", token)
        assert result.exit_code == 2 and "holds characters that no token has" in result.stderr
        assert "SE" not in result.output.replace("SystemExit", "")
    assert condense("analyze", "./nowhere", HF_TOKEN=" \n").exit_code == 3


def test_the_recorded_command_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["condense", "treat", "m", "--text", os.fsdecode(b"caf\xe9.txt")])
    assert command_line().encode().decode() == r"condense treat m --text 'caf\xe9.txt'"


@pytest.mark.parametrize(
    "words", [["--token", SECRET], [f"--token={SECRET}"], ["--text", SECRET], ["-o", f"x{SECRET}x"]], ids=" ".join
)
def test_the_recorded_command_holds_no_token(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}\n")
    monkeypatch.setattr(sys, "argv", ["condense", "analyze", "m", *words])
    assert SECRET not in command_line() and command_line().startswith("condense analyze m")


def test_a_short_secret_does_not_take_letters_out_of_words() -> None:
    MANNER.secrets = ("a",)
    assert redacted("a word") == "a word"


# --- --no-text --------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.txt"
    path.write_text("one sentence of a text that nobody may know of. " * 60)
    return path


def held(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and NAME in path.read_text(errors="replace")]


@pytest.mark.parametrize("form", ["--text", "--text="])
def test_no_output_names_the_text(form: str, text: Path, tiny: Callable[[str], Path], monkeypatch: Any) -> None:
    named = [form + text.name] if form.endswith("=") else [form, text.name]
    words = ["analyze", str(tiny("llama")), *FAST, *named, "-o"]
    for more, folder in (([], "named"), (["--no-text"], "unnamed"), (["--no-text", "--no-cache"], "measured")):
        monkeypatch.setattr(sys, "argv", ["condense", *words, folder, *more])
        result = condense(*words, folder, *more)
        assert result.exit_code == 0, result.output
    assert held(Path("named")) and not held(Path("unnamed")) and not held(Path("measured"))
    run = Diagnosis.from_json(Path("unnamed/diagnosis.json"))
    assert run.corpus.source == "not told" and run.corpus.windows == ("text 0", "text 1")
    assert "--no-text" in run.command and "--text" in run.command


def test_a_comparison_names_no_text(text: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ("--text", text, *FAST)
    for name in ("llama", "gpt2"):
        monkeypatch.setattr(sys, "argv", ["condense", "analyze", f"--text={text}"])
        assert condense("analyze", tiny(name), *shown, "--json", f"{name}.json").exit_code == 0
    words = ["compare", "llama.json", "gpt2.json", tiny("qwen2"), *shown, "--no-text", "-o", "out"]
    monkeypatch.setattr(sys, "argv", ["condense", *map(str, words)])
    result = condense(*words)
    assert result.exit_code == 0, result.output
    assert Path("out/members/qwen2.json").exists() and not held(Path("out"))
    assert NAME not in result.stdout


def test_a_failure_names_no_text(tiny: Callable[[str], Path]) -> None:
    Path("folder").mkdir()
    Path(f"folder/{NAME}.txt").write_text("too short")
    for path in ("folder", f"folder/{NAME}.txt"):
        result = condense("analyze", tiny("llama"), *FAST, "--text", path, "--no-text")
        assert result.exit_code == 2 and "the text" in result.stderr and NAME not in result.output
        assert NAME in condense("analyze", tiny("llama"), *FAST, "--text", path).stderr
    missing = condense("analyze", tiny("llama"), *FAST, "--text", f"{NAME}.md", "--no-text")
    assert missing.exit_code == 3 and "no such text: the text" in missing.stderr


def test_a_dry_run_names_no_text(text: Path, tiny: Callable[[str], Path]) -> None:
    result = condense("analyze", tiny("llama"), *FAST, "--text", text, "--no-text", "--dry-run")
    assert result.exit_code == 0 and "of the text" in result.stdout and NAME not in result.output


# --- commands to a runner ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error::x", ": :error::x"),
        ("a\n  \t::set-output name=a::b\n", "a\n  \t: :set-output name=a::b\n"),
        ("a ::error::x", "a ::error::x"),
        ("a ##[add-mask]b", "a ## [add-mask]b"),
        ("std::vector", "std::vector"),
    ],
)
def test_no_line_is_a_command(text: str, shown: str) -> None:
    assert for_runner(text) == shown


def test_a_name_and_a_saved_run_cannot_speak_to_a_runner(
    diagnosed: Callable[[str], Any], copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = f"{'x' * 76}\n::error::gotcha ##[add-mask]y"
    run = diagnosed("llama")
    first = replace(run.verdict.findings[0], title=nasty, seen=nasty, why=nasty, next=f"::error::{nasty}")
    verdict = replace(run.verdict, findings=(first,))
    replace(run, model=replace(run.model, id=nasty), verdict=verdict).to_json(Path("nasty.json"))
    run.to_json(Path("run.json"))
    folder = copy_of("llama").rename(Path("::error::gotcha"))
    for words in (
        ["report", "nasty.json"], ["check", "nasty.json"], ["compare", "nasty.json", "run.json", "--force"],
        ["analyze", f"./{folder}", *FAST], ["analyze", f"./{folder}", "--dry-run"], ["analyze", "::error::x"],
        ["compare", "run.json", "::error::none/x"], ["report", "::error::none.json"],
    ):  # fmt: skip
        result = condense(*words)
        for line in result.output.splitlines():
            assert not line.lstrip().startswith("::") and "##[" not in line, (words, line)
    say("::error::x")
    assert capsys.readouterr().err == ": :error::x\n"


def test_the_annotations_of_a_gate_are_commands(diagnosed: Callable[[str], Any]) -> None:
    diagnosed("llama").to_json(Path("run.json"))
    result = condense("check", "run.json", "--assert", "deep.mean_cosine <= -0.9", GITHUB_ACTIONS="true")
    assert result.exit_code == 1 and "\n::error" in result.stdout


# --- streams that fail ------------------------------------------------------------------------------


@pytest.fixture
def saved(diagnosed: Callable[[str], Any]) -> str:
    diagnosed("llama").to_json(Path("run.json"))
    return "run.json"


@pytest.mark.parametrize("words", [["check", "run.json", "--junit", "j.xml"], ["--version"], ["--help"]], ids=" ".join)
def test_a_full_stdout_is_one_line_and_4(words: list[str], saved: str) -> None:
    done = process(*words, redirect=">/dev/full")
    assert done.returncode == 4, done.stderr
    assert "stdout: No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1
    assert Path("j.xml").exists() or "check" not in words


def test_files_are_written_where_only_stdout_failed(tiny: Callable[[str], Path], monkeypatch: Any) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    done = process("analyze", tiny("llama"), *FAST, "-o", "out", redirect=">/dev/full")
    assert done.returncode == 4 and "wrote out/report.html" in done.stderr
    assert {path.name for path in Path("out").iterdir()} >= {"diagnosis.json", "report.html", "report.md", "layers.csv"}
    full = Full()
    monkeypatch.setattr(sys, "stdout", full)
    Guarded(full).write("x")  # type: ignore[arg-type]
    assert MANNER.stdout_error == "No space left on device"


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&-", "2>/dev/full"])
def test_closed_streams_change_nothing(redirect: str, saved: str) -> None:
    done = process("check", saved, "--junit", "j.xml", redirect=redirect)
    assert done.returncode == 0, done.stderr
    assert Path("j.xml").exists() and "Traceback" not in done.stderr
    assert process("report", "none.json", redirect=redirect).returncode == 3


def test_a_closed_stdin_is_no_text(tiny: Callable[[str], Path]) -> None:
    done = process("analyze", tiny("llama"), *FAST, "--text", "-", redirect="<&-")
    assert done.returncode == 3 and done.stderr.startswith("condense: standard input is closed")


# --- odd files --------------------------------------------------------------------------------------


def test_pipes_and_devices_are_refused(tiny: Callable[[str], Path], copy_of: Callable[[str], Path], saved: str) -> None:
    """None of these ends by itself, so the test would hang."""
    os.mkfifo("pipe")
    folder = copy_of("llama")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    weights = shutil.copytree(tiny("llama"), "weights")
    os.mkfifo(Path(weights) / "extra.safetensors")
    for words, code in (
        (["analyze", tiny("llama"), *FAST, "--text", "pipe"], 3), (["report", "pipe"], 3),
        (["check", saved, "--baseline", "pipe"], 3), (["compare", saved, "pipe.json"], 3),
        (["analyze", folder, *FAST], 3), (["analyze", f"./{weights}", *FAST], 3),
        (["analyze", tiny("llama"), *FAST, "--json", "pipe", "--force"], 2),
        (["analyze", tiny("llama"), *FAST, "--json", "/dev/null", "--force"], 2),
        (["report", saved, "--html", "/dev/null"], 2),
    ):  # fmt: skip
        result = condense(*words)
        assert result.exit_code == code and len(result.stderr.splitlines()) <= 2, (words, result.output)
    assert is_special(Path("/dev/null")) and not is_special(Path("run.json")) and not is_special(Path())


def test_a_device_is_never_replaced() -> None:
    """Run as root, renaming a file over /dev/null would break the machine."""
    os.mkfifo("pipe")
    with pytest.raises(UsageError, match="is a pipe or a device"):
        write_text(Path("pipe"), "x")


def test_what_a_shell_hands_over_is_read(tiny: Callable[[str], Path]) -> None:
    call = '"$0" -m condense check <(cat run.json) --junit j.xml'
    shutil.copy(Path(__file__).parents[1] / "saved" / "diagnosis-0.1.0.json", "run.json")
    done = subprocess.run(["bash", "-c", call, sys.executable], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1) and Path("j.xml").exists(), done.stderr
    accepted = '"$0" -m condense check <(cat run.json) --accept accepted.json'
    done = subprocess.run(["bash", "-c", accepted, sys.executable], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path("accepted.json").read_bytes() == Path("run.json").read_bytes(), "a pipe gives its text once"


LONG = "a" * 300


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["analyze", "MODEL", "--text", LONG], 2), (["analyze", "MODEL", "-o", LONG], 2),
        (["analyze", "MODEL", "--json", LONG], 2), (["analyze", LONG, "--offline"], 3), (["report", LONG], 3),
        (["check", "run.json", "--baseline", LONG], 3), (["--config", LONG, "check", "run.json"], 2),
        (["treat", "MODEL", "-o", LONG, "--text", "t.txt"], 2), (["trial", "MODEL", "-o", LONG, "--text", "t.txt"], 2),
        (["init", LONG], 2), (["doctor", "--json", LONG], 2),
    ],
    ids=lambda value: " ".join(value).replace(LONG, "LONG") if isinstance(value, list) else "",
)  # fmt: skip
def test_a_name_of_300_bytes_is_one_line(words: list[str], code: int, tiny: Callable[[str], Path], saved: str) -> None:
    Path("t.txt").write_text("a text. " * 200)
    result = condense(*(str(tiny("llama")) if word == "MODEL" else word for word in words))
    assert result.exit_code == code and len(result.stderr.splitlines()) <= 2, result.output
    assert "internal error" not in result.stderr


def test_a_name_of_other_bytes_is_measured_and_kept(tiny: Callable[[str], Path]) -> None:
    Path("texts").mkdir()
    path = os.fsdecode(b"texts/caf\xe9.txt")
    Path(path).write_text("one sentence of a text that is long enough. " * 60)
    for text in ("texts", path):
        result = condense("analyze", tiny("llama"), *FAST, "--text", text, "-o", "out", "--force")
        assert result.exit_code == 0, result.output
        run = Diagnosis.from_json(Path("out/diagnosis.json"))
        assert run.corpus.windows[0].startswith("caf\\xe9.txt")
    assert "used the diagnosis measured" in condense("analyze", tiny("llama"), *FAST, "--text", path).stderr
    assert Document("caf\udce9", "x\ud800").name == "caf\\xe9"


@pytest.mark.parametrize(
    "text",
    [
        '{"schema":"condense.diagnosis/1","a":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"schema":"condense.diagnosis/1","created":' + "9" * 5000 + "}",
        '{"schema":"condense.diagnosis/1","timing":{"a":1e999}}',
        '{"schema":["condense.diagnosis/1"]}', "[]", "null", '"x"', "", "\0", "{",
    ],
    ids=["deep", "digits", "huge", "schema", "list", "null", "string", "empty", "zero", "brace"],
)  # fmt: skip
def test_an_odd_saved_run_is_3(text: str) -> None:
    Path("run.json").write_text(text)
    for words in (["report", "run.json"], ["check", "run.json"], ["compare", "run.json", "run.json"]):
        result = condense(*words)
        assert result.exit_code == 3 and len(result.stderr.splitlines()) <= 2, result.output
        assert len(result.stderr) < 600


def test_numbers_that_no_float_holds_are_3(diagnosed: Callable[[str], Any]) -> None:
    data = json.loads(diagnosed("llama").to_json())
    for change in ("value", "low"):
        data["deep"]["mean_cosine"][change] = 10**400
        Path("run.json").write_text(json.dumps(data))
        result = condense("report", "run.json")
        assert result.exit_code == 3 and "internal error" not in result.stderr, result.output


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values of a JSON document, containers too."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(leaf for key, value in inner for leaf in leaves(value, (*path, key)))]


ODD = [
    None, True, -1, 0, 10**30, 10**400, 1e308, float("inf"), float("nan"), "", "x" * 10_000, "=cmd()", "<b>", "\udce9",
    "\x1b[31m", "::error::x", [], [[]], {}, {"a": None}, {"value": 1e999},
]  # fmt: skip


@pytest.mark.slow
def test_mutated_runs_never_crash(diagnosed: Callable[[str], Any]) -> None:
    """A fuzzer with a fixed seed: one value of a saved run is replaced, and all that can be made of it is made."""
    draw = random.Random(0)
    whole = diagnosed("llama").to_json()
    drawn = (
        ["report", "run.json"], ["report", "run.json", "--md", "r.md", "--csv", "r.csv"], ["check", "run.json"],
        ["report", "run.json", "--html", "r.html", "--plotlyjs", "none", "--force"],
        ["compare", "run.json", "whole.json", "--force"],
    )  # fmt: skip
    Path("whole.json").write_text(whole)
    for _ in range(150):
        data = json.loads(whole)
        path = draw.choice(draw.choice([leaves(data), [(key,) for key in data]]))
        holder: Any = data
        for key in path[:-1]:
            holder = holder[key]
        value = draw.choice(ODD)
        if path:
            holder[path[-1]] = value
        Path("run.json").write_text(json.dumps(data), encoding="utf-8")
        words = draw.choice(drawn)
        result = condense(*words)
        assert result.exit_code in (0, 1, 3, 5), (path, value, words, result.output)
        assert "Traceback" not in result.output, (path, value, words, result.output)


# --- the machine, not the model ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), RunError),
        (OSError(12, "Cannot allocate memory"), RunError),
        (OSError(28, "No space left on device", "x"), RunError),
        (OSError(122, "Disk quota exceeded"), RunError),
        (OSError(5, "Input/output error"), RunError),
        (OSError(27, "File too large"), RunError),
        (ImportError("libscipy.so: failed to map segment from shared object"), RunError),
        (RuntimeError("can't start new thread"), RunError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), RunError),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), RunError),
        (Exception("I/O error: Cannot allocate memory (os error 12)"), RunError),
        (OSError(36, "File name too long", "a" * 300), UsageError),
        (PermissionError(13, "Permission denied", "x"), UnavailableError),
        (ValueError("nothing of the kind"), type(None)),
        (FileNotFoundError(2, "No such file", "x"), type(None)),
    ],
)
def test_whose_failure_it_is(error: Exception, kind: type) -> None:
    assert type(system_failure(error)) is kind


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), OSError(12, "No memory")])
@pytest.mark.parametrize(
    "place",
    [
        "condense.models.config.honoured",
        "transformers.AutoTokenizer.from_pretrained",
        "condense.models.checkpoint._build",
    ],
)
def test_memory_and_disk_are_4_while_a_model_is_opened(
    place: str, error: Exception, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(place, fail)
    result = condense("analyze", tiny("llama"), *FAST, "--no-cache")
    assert result.exit_code == 4 and len(result.stderr.splitlines()) <= 2, result.output


def test_memory_that_runs_out_while_a_command_line_is_parsed_is_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser loads libraries of its own, outside of any command."""

    def parse() -> None:
        raise ImportError("/lib/_pydantic_core.so: failed to map segment from shared object")

    monkeypatch.setattr("condense.cli.app.app", parse)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 4 and capsys.readouterr().err.startswith("condense: out of memory")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(122, "Quota"), MemoryError()])
def test_a_disk_that_is_full_while_fetching_is_4(error: Exception) -> None:
    with pytest.raises(RunError), hub._explained("org/model"):
        raise error
    with pytest.raises(UnavailableError), hub._explained("org/model"):
        raise ValueError("something else")


def test_a_working_directory_that_is_gone_is_one_line(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for words in (["treat", tiny("llama"), "-o", "out", "--text", "t"], ["init"], ["demo", "-o", "out"]):
        result = condense(*words)
        assert result.exit_code == 2 and "the working directory is gone" in result.stderr, result.output


def test_an_unreadable_folder_is_3(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("texts").mkdir()
    for module, name in ((Path, "iterdir"), (os, "scandir")):
        original = getattr(module, name)

        def refuse(path: Any, original: Callable[[Any], Any] = original) -> Any:
            if Path(path).name == "texts":
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(UnavailableError, match="no permission"):
        list(read("texts"))
    result = condense("analyze", tiny("llama"), *FAST, "--text", "texts")
    assert result.exit_code == 3 and "no permission (texts)" in result.stderr
    assert condense("analyze", tiny("llama"), *FAST, "-o", "texts").exit_code == 2


def test_a_traceback_is_shown_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    MANNER.secrets, MANNER.debug = (SECRET,), True
    with pytest.raises(typer.Exit), console.reported():
        raise ValueError(f"Illegal header value b'Bearer {SECRET}'")
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "Bearer …" in shown and SECRET not in shown


def test_a_disperser_that_is_attached_says_nothing_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """It is attached once a timed pass; the plan names the loss once."""
    import logging

    from condense.dispersion import disperser, monitor

    root = logging.getLogger("condense")
    before, level = list(root.handlers), root.level
    try:
        console.show_log()
        for logger in (disperser._LOG, monitor._LOG):
            logger.info("attached")
            logger.warning("a warning")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert capsys.readouterr().err == "a warning\na warning\n"
