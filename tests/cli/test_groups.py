"""Groups to flags: every command has the flags of its groups, reads settings as it reads flags, and stays small."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from condense.cli import settings
from condense.cli.analyze import analyze
from condense.cli.app import app
from condense.cli.check import check
from condense.cli.compare import compare
from condense.cli.demo import demo
from condense.cli.groups import Only, Without, command
from condense.cli.report import report
from condense.cli.treat import treat
from condense.cli.trial import Arms, trial
from condense.records.options import Flag, ModelOptions, OutputOptions, TextOptions
from condense.records.plans import Plan

COMMANDS = [analyze, treat, trial, compare, check, report, demo, settings.init]
UNIQUE = "A made-up option for this test."


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(function: Any) -> typer.Typer:
    """An application of one command."""
    one = typer.Typer()
    one.command()(command(function))
    return one


def ran(function: Any, *words: str, **environment: str) -> Any:
    result = CliRunner(env=environment).invoke(made(function), list(words))
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("function", COMMANDS, ids=lambda function: function.__name__)
def test_a_command_is_a_signature_of_groups(function: Any) -> None:
    assert len(inspect.signature(function.__wrapped__).parameters) <= 12


def test_groups_become_flags_and_flags_become_groups() -> None:
    got: list[Any] = []

    def measure(model: str, options: ModelOptions, plan: Annotated[Plan, Only("tau", "control", "precision")]) -> None:
        got.append((model, options, plan))

    ran(measure, "m", "--device", "cpu", "--tau", "2", "--no-control", "--bf16", HF_TOKEN=" t\n")
    model, options, plan = got[0]
    assert (model, options) == ("m", ModelOptions(device="cpu", token="t"))
    assert plan == Plan(tau=2.0, control=False, precision="bf16")
    assert "--coefficient" not in ran(measure, "--help").output


def test_a_name_is_one_flag_for_all_who_have_it() -> None:
    got: list[Any] = []

    def both(
        *, force: Annotated[bool, Flag(UNIQUE)] = False, output: Annotated[Path, Flag("Where.")], files: OutputOptions
    ) -> None:
        got.append((force, output, files))

    ran(both, "--output", "out", "--force")
    assert got == [(True, Path("out"), OutputOptions(output=Path("out"), force=True))]
    shown = ran(both, "--help").output
    assert shown.count("--force") == 1 and shown.count("--output") == 1 and UNIQUE in shown


def test_an_unknown_field_is_a_mistake_of_the_programmer() -> None:
    def wrong(options: Annotated[ModelOptions, Without("colour")]) -> None: ...

    with pytest.raises(ValueError, match="ModelOptions has no colour"):
        command(wrong)


def test_what_a_group_refuses_is_one_line() -> None:
    def read(corpus: TextOptions) -> None: ...

    result = CliRunner().invoke(made(read), ["--text", "a", "--dataset", "b"])
    assert result.exit_code == 2 and "--text and --dataset are both given" in result.stderr


def condense(*words: str, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["analyze", "m", "--text", ""], "--text is empty"),
        (["analyze", "m", "--output", ""], "--output is empty"),
        (["analyze", "m", "--json", ""], "--json is empty"),
        (["analyze", "m", "--revision", ""], "--revision is empty"),
        (["analyze", "m", "--device", "gpu"], "cannot use device 'gpu'"),
        (["analyze", "m", "--batch-size", "²"], "--batch-size is '²'"),
        (["analyze", "m", "--batch-size", "nan"], "--batch-size is 'nan'"),
        (["treat", "m", "-o", "out", "--text", ""], "--text is empty"),
        (["treat", "m", "-o", "", "--text", "t"], "--output is empty"),
        (["treat", "m", "-o", "out"], "name the training text"),
        (["treat", "m", "-o", "out", "--text", "t", "--push-to-hub", ""], "--push-to-hub is empty"),
        (["treat", "m", "-o", "out", "--text", "t", "--tau", "nan"], "--tau is nan"),
        (["treat", "m", "-o", "out", "--text", "t", "--quality-tolerance", "nan"], "--quality-tolerance is nan"),
        (["treat", "m", "-o", "out", "--text", "t", "--weight-decay", "inf"], "--weight-decay is inf"),
        (["treat", "m", "-o", "out", "--text", "t", "--lora-dropout", "nan"], "--lora-dropout is nan"),
        (["treat", "m", "-o", "out", "--text", "t", "--device", "gpu:0"], "cannot use device 'gpu:0'"),
        (["trial", "m", "-o", "out", "--text", "t", "--min-effect", "-inf"], "--min-effect is -inf"),
        (["trial", "m", "-o", "out", "--text", "t", "--coefficients", "nan"], "a coefficient of --coefficients is nan"),
        (["trial", "m", "-o", "out", "--text", "t", "--arms", "cosreg=inf"], "a coefficient of cosreg=inf is inf"),
        (["compare", "a", "b", "--device", "gpu"], "cannot use device 'gpu'"),
        (["check", "r.json", "--baseline", ""], "--baseline is empty"),
        (["report", "r.json", "--html", ""], "--html is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_means_nothing_is_one_line_and_2(words: list[str], said: str) -> None:
    result = condense(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"condense: {said}") and len(result.stderr.splitlines()) <= 2
    assert result.stdout == "" and not list(Path.cwd().iterdir())


def test_settings_are_read_as_flags_are() -> None:
    Path("condense.toml").write_text('[analyze]\ntext = ""\n')
    assert "--text is empty" in condense("analyze", "m").stderr
    Path("condense.toml").write_text("[treat]\ntau = nan\n")
    words = ("treat", "m", "-o", "out", "--text", "t")
    assert "--tau is nan" in condense(*words).stderr
    assert "--max-tokens is 1" in condense(*words, CONDENSE_TREAT__TAU="1", CONDENSE_TREAT__MAX_TOKENS="1").stderr


@pytest.mark.parametrize("value", ["inf", "1e400", "-inf", "nan"])
@pytest.mark.parametrize("key", ["num_texts", "max_length", "seed", "batch_size"])
def test_a_setting_that_is_not_finite_is_2(key: str, value: str) -> None:
    Path("condense.toml").write_text(f"[analyze]\n{key} = {value}\n")
    result = condense("analyze", "m")
    assert result.exit_code == 2 and f"--{key.replace('_', '-')}" in result.stderr, result.output


def test_brackets_in_a_help_are_no_markup() -> None:
    """[@layers] was taken for a tag of rich, and left out of the help of trial."""
    (info,) = inspect.signature(trial).parameters["named_arms"].annotation.__metadata__
    assert Text.from_markup(info.help).plain == Arms.help and "[@layers]" in Arms.help
    for function in COMMANDS:
        for name, parameter in inspect.signature(function).parameters.items():
            for known in getattr(parameter.annotation, "__metadata__", ()):
                assert not Text.from_markup(known.help or "").spans, name
