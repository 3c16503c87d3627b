"""Settings files: one that is found in the working directory can do nothing but change numbers."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from condense.cli import settings
from condense.cli.app import COMMANDS, app
from condense.cli.groups import flags_of
from condense.records.diagnosis import Diagnosis

FLAGS = {(run.__name__, name): flag for run in COMMANDS for name, flag in flags_of(run).items()}
KEYS = [
    pytest.param(command, name, flag, id=f"{command}.{name}")
    for (command, name), flag in FLAGS.items()
    if flag.settings in ("named", "never")
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def condense(*words: object, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(app, [str(word) for word in words])


def key_of(name: str, flag: Any) -> str:
    return flag.name_of(name)[2:].replace("-", "_")


def refused(result: Any, *said: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and 1 <= len(result.stderr.splitlines()) <= 2
    for part in said:
        assert part in result.stderr, result.stderr


# --- paths ----------------------------------------------------------------------------------------------


def test_every_flag_that_names_a_file_is_known_as_a_path() -> None:
    named = {name for (_, name), flag in FLAGS.items() if re.search(r"FILE|DIR|BASE", flag.metavar or "")}
    assert named == settings.PATHS


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("base.json", "ci/base.json"),
        ("../base.json", "ci/../base.json"),
        ("/base.json", "/base.json"),
        ("~/base.json", "~/base.json"),
        ("-", "-"),
    ],
)
def test_a_relative_path_of_a_named_file_is_beside_it(value: str, meant: str) -> None:
    Path("ci").mkdir()
    Path("ci/condense.toml").write_text(
        f'[check]\nbaseline = "{value}"\n[analyze]\ntext = "{value}"\noutput = "{value}"'
    )
    commands = {run.__name__: flags_of(run) for run in COMMANDS}
    made = settings.defaults(commands, settings.find_file(Path("ci/condense.toml")), {})
    assert made["check"] == {"baseline": meant}
    assert made["analyze"] == {"text": meant, "output": meant}
    here = settings.defaults(commands, settings.find_file(None), {"CONDENSE_CHECK__BASELINE": value})
    assert here["check"] == {"baseline": value}, "the environment means the working directory"


def test_a_gate_finds_the_baseline_beside_its_settings_from_anywhere() -> None:
    saved = (Path(__file__).parents[1] / "saved" / "diagnosis-metrics-2.json").read_bytes()
    Path("ci").mkdir()
    Path("ci/base.json").write_bytes(saved)
    Path("run.json").write_bytes(saved)
    Path("ci/gate.toml").write_text('[check]\nbaseline = "base.json"\njunit = "junit.xml"\n')
    done = condense("--config", "ci/gate.toml", "check", "run.json")
    assert done.exit_code == 0 and "check run.json against ci/base.json" in done.stdout, done.output
    assert Path("ci/junit.xml").exists() and not Path("junit.xml").exists()


# --- the allow-list ---------------------------------------------------------------------------------


def test_the_allow_list_is_this_one() -> None:
    """What a found file may set: whoever adds to it has to think of a repository of somebody else's."""
    allowed = {command: set[str]() for command, _ in FLAGS}
    for (command, name), flag in FLAGS.items():
        if flag.settings in ("found", "inside"):
            allowed[command].add(key_of(name, flag))
    measured = {"num_texts", "max_length", "seed", "batch_size", "dtype", "split", "text_column", "text"}
    trained = {
        "max_tokens", "tau", "min_effect", "quality_tolerance", "train_tokens", "max_steps", "max_length",
        "eval_length", "learning_rate", "warmup", "weight_decay", "max_grad_norm", "per_device_train_batch_size",
        "gradient_accumulation_steps", "bf16", "lora_r", "lora_alpha", "lora_dropout", "save_steps", "eval_limit",
        "seed", "num_texts", "split", "text_column", "text", "seeds",
    }  # fmt: skip
    assert allowed["analyze"] == measured | {"baseline", "assert"}
    assert allowed["compare"] == measured
    assert allowed["treat"] >= trained | {"coefficient", "loss", "layers", "paper_sites"}
    assert allowed["trial"] >= trained | {"coefficients"}
    assert allowed["check"] >= {"baseline", "assert", "strict", "inconclusive"}
    assert allowed["demo"] == {"num_texts"}
    assert not allowed.get("report") and not allowed.get("init") and not allowed.get("doctor")
    never = {key_of(name, flag) for (_, name), flag in FLAGS.items() if flag.settings == "never"}
    assert never == {"trust_remote_code", "allow_pickle", "token", "accept"}
    dangerous = {
        "output", "force", "push_to_hub", "include_path", "eval_tasks", "report_to", "informational", "dataset",
        "dataset_config", "tokenizer", "revision", "revisions", "device", "device_map", "offline", "json", "html", "md",
        "csv", "junit", "plotlyjs", "no_text", "resume", "keep_models", "no_cache", "refresh", "check", "random_init",
    }  # fmt: skip
    for command, keys in allowed.items():
        assert not keys & dangerous, command


@pytest.mark.parametrize(("command", "name", "flag"), KEYS)
def test_any_other_key_is_2_and_names_the_flag(command: str, name: str, flag: Any) -> None:
    """Whatever command is run, and before anything is done."""
    Path("condense.toml").write_text(f"[{command}]\n{key_of(name, flag)} = 1\n")
    for words in (["analyze", "nowhere"], ["check", "nowhere.json"]):
        refused(condense(*words), key_of(name, flag), f"pass {flag.name_of(name)}")
    assert [path.name for path in Path().iterdir()] == ["condense.toml"]


@pytest.mark.parametrize("key", ["analyze.trust_remote_code", "treat.allow_pickle", "trial.token", "check.accept"])
def test_what_is_only_a_flag_comes_from_nowhere_else(key: str) -> None:
    section, name = key.split(".")
    Path("named.toml").write_text(f'[{section}]\n{name} = "x"\n')
    refused(condense("--config", "named.toml", "analyze", "nowhere"), f"{name} is only taken as a flag")
    refused(condense("check", "no.json", **{f"CONDENSE_{section}__{name}".upper(): "x"}), f"{name} is only taken")


def test_a_named_file_and_the_environment_may_set_the_rest(tiny: Callable[[str], Path]) -> None:
    Path("named.toml").write_text('[analyze]\ndevice = "cpu"\nnum_texts = 3\nmax_length = 16\njson = "named.json"\n')
    assert condense("--config", "named.toml", "analyze", tiny("llama")).exit_code == 0
    assert Diagnosis.from_json(Path("named.json")).corpus.texts == 3
    done = condense("--config", "named.toml", "analyze", tiny("llama"), CONDENSE_ANALYZE__JSON="other.json")
    assert done.exit_code == 0 and Path("other.json").exists()


@pytest.mark.parametrize("kind", ["condense.toml", "pyproject.toml"])
def test_found_numbers_are_used(kind: str, tiny: Callable[[str], Path]) -> None:
    Path("texts").mkdir()
    Path("texts/one.txt").write_text("one sentence of a text that is long enough for windows. " * 40)
    table = "[analyze]" if kind == "condense.toml" else "[tool.condense.analyze]"
    Path(kind).write_text(f'{table}\nnum_texts = 2\nmax_length = 16\nseed = 3\ntext = "texts"\nbatch_size = 2\n')
    assert condense("analyze", tiny("llama"), "--device", "cpu", "--json", "r.json").exit_code == 0
    corpus = Diagnosis.from_json(Path("r.json")).corpus
    assert (corpus.texts, corpus.length, corpus.seed, corpus.source) == (2, 16, 3, "texts")


@pytest.mark.parametrize("where", ["file", "list", "environment"])
def test_one_assertion_may_stand_alone(where: str, diagnosed: Callable[[str], Any]) -> None:
    """A flag that may be repeated takes one text from a file or a variable too."""
    diagnosed("llama").to_json("run.json")
    assertion, environment = "deep.mean_cosine <= -2", {}
    if where == "environment":
        environment = {"CONDENSE_CHECK__ASSERT": assertion}
    else:
        Path("condense.toml").write_text(f"[check]\nassert = {[assertion] if where == 'list' else repr(assertion)}\n")
    result = condense("check", "run.json", **environment)
    assert result.exit_code == 1 and "expected <= -2" in " ".join(result.stdout.split()), result.output


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["../secret.txt", "/etc/passwd", "~/.netrc", "-", "out", "link.txt", "linked", "a\\u0000b", "x" * 300]
)
@pytest.mark.parametrize("key", ["analyze.text", "treat.text", "compare.text", "check.baseline", "analyze.baseline"])
def test_found_paths_stay_inside(key: str, value: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    os.chdir(inside)
    (tmp_path / "secret.txt").write_text("secret")
    Path("link.txt").symlink_to(tmp_path / "secret.txt")
    Path("out").symlink_to(tmp_path)
    Path("linked").mkdir()
    Path("linked/a.txt").symlink_to(tmp_path / "secret.txt")
    section, name = key.split(".")
    Path("condense.toml").write_text(f'[{section}]\n{name} = "{value}"\n')
    refused(condense("analyze", "nowhere"), "may only name files of this folder", f"pass --{name}")


@pytest.mark.parametrize("value", ["3", "true", '["a"]', "{a = 1}", "1979-05-27"])
def test_a_found_path_that_is_no_text_is_refused(value: str) -> None:
    Path("condense.toml").write_text(f"[analyze]\ntext = {value}\n")
    refused(condense("analyze", "nowhere"), "may only name files of this folder")


# --- a repository of an attacker's ------------------------------------------------------------------

TASK = """\
task: evil
dataset_path: json
dataset_kwargs:
  data_files: data.jsonl
output_type: multiple_choice
test_split: train
doc_to_text: !function utils.f
doc_to_target: 0
doc_to_choice: ["a","b"]
"""
HOSTILE = [
    '[treat]\neval_tasks = "evil"\ninclude_path = "tasks"\n',
    '[treat]\noutput = "../victim"\nforce = true\n',
    '[treat]\npush_to_hub = "attacker/exfil"\n',
    '[analyze]\noutput = "../victim"\nforce = true\n',
    '[analyze]\ntext = "../victim/thesis.txt"\n',
    '[init]\nforce = true\n[report]\nplotlyjs = "cdn"\n',
    '[check]\ninformational = true\n',
    '[treat]\nreport-to = "all"\n',
    '[treat]\nInclude_Path = "tasks"\n',
    '["treat"]\n"include-path" = "tasks"\n"eval-tasks" = "evil"\n',
    'treat.force = true\ntreat.output = "../victim"\n',
    '[treats]\nforce = true\n',
    'force = true\n',
    '[treat.force]\nx = 1\n',
    '[treat]\ntext = "t.txt"\ntokenizer = "attacker/tokenizer"\n',
    '[doctor]\njson = "../victim/thesis.txt"\nforce = true\n',
]  # fmt: skip


@pytest.mark.parametrize("kind", ["condense.toml", "pyproject.toml"])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_repository_does_nothing(text: str, kind: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    repository, victim = tmp_path / "repository", tmp_path / "victim"
    (repository / "tasks").mkdir(parents=True)
    victim.mkdir()
    (victim / "thesis.txt").write_text("precious")
    (repository / "tasks" / "evil.yaml").write_text(TASK)
    (repository / "tasks" / "data.jsonl").write_text('{"text":"a"}\n')
    (repository / "tasks" / "utils.py").write_text('open("PWNED", "w").write("x")\ndef f(doc): return "x"\n')
    (repository / "t.txt").write_text("one sentence of a text. " * 400)
    if kind == "pyproject.toml":
        table, own = json.dumps("condense"), text.replace("[treat.", "[tool.condense.treat.").splitlines()
        lines = [f"[tool.condense.{line[1:]}" if line.startswith("[") and "tool." not in line else line for line in own]
        text = "\n".join(lines if lines[0].startswith("[") else [f"[tool.{table}]", *lines]) + "\n"
    (repository / kind).write_text(text)
    os.chdir(repository)
    before = sorted(path.name for path in repository.rglob("*"))
    for words in (["treat", tiny("llama"), "--text", "t.txt", "-o", "out", "--max-steps", "1"], ["check", "none.json"]):
        result = condense(*words, HF_TOKEN="hf_SECRETsecret")
        assert result.exit_code == 2 and "hf_SECRET" not in result.output, result.output
    assert sorted(path.name for path in repository.rglob("*")) == before
    assert [path.name for path in victim.iterdir()] == ["thesis.txt"]
    assert (victim / "thesis.txt").read_text() == "precious"


# --- what else may be in a file ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("pyproject.toml", "[tool]\ncondense = 3\n", "tool.condense in pyproject.toml is not a table"),
        ("pyproject.toml", '[tool]\ncondense = "x"\n', "tool.condense in pyproject.toml is not a table"),
        ("pyproject.toml", "[tool]\ncondense = [1]\n", "tool.condense in pyproject.toml is not a table"),
        ("pyproject.toml", "[tool.condense]\ncheck = 3\n", "[check] in pyproject.toml is not a table"),
        ("condense.toml", "analyze = 3\n", "[analyze] in condense.toml is not a table"),
        ("condense.toml", "[analyse]\nnum_texts = 3\n", "did you mean analyze?"),
        ("condense.toml", "[analyze]\nnum_text = 3\n", "did you mean num_texts?"),
        ("condense.toml", "x = " + "[" * 100_000, "nested too deeply"),
        ("condense.toml", "[analyze]\nseed = " + "9" * 5000, "not valid TOML"),
        ("condense.toml", "[analyze]\nseed = " + "9" * 3000, "--seed is too large"),
        ("condense.toml", "[analyze]\nseed = 4294967296\n", "--seed is too large"),
        ("condense.toml", "\0", "not valid TOML"),
        ("condense.toml", '[analyze]\nsplit = "a\\u0000b"\n', "--split holds a null byte"),
    ],
)
def test_odd_files_are_one_line(name: str, text: str, said: str) -> None:
    Path(name).write_text(text)
    result = condense("analyze", "nowhere")
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert len(result.stderr.splitlines()) <= 2 and len(result.stderr) < 600


def test_another_tool_of_that_name_is_none_of_ours() -> None:
    for text in ("tool = 3\n", "[tool.other]\nx = 1\n", ""):
        Path("pyproject.toml").write_text(text)
        assert settings.find_file(None).path is None


def test_bytes_that_are_no_text_are_refused() -> None:
    Path("condense.toml").write_bytes(b"\xff\xfe\x00")
    refused(condense("analyze", "nowhere"), "cannot read condense.toml")


def test_a_folder_or_a_pipe_of_that_name_is_no_settings_file() -> None:
    Path("condense.toml").mkdir()
    assert settings.find_file(None).path is None
    Path("condense.toml").rmdir()
    os.mkfifo("condense.toml")
    assert settings.find_file(None).path is None
    refused(condense("--config", "condense.toml", "check", "r.json"), "is a pipe or a device, not a settings file")


@pytest.mark.slow
def test_values_of_any_kind_never_crash() -> None:
    """A fuzzer with a fixed seed: keys that may be found, values that nobody expects."""
    draw = random.Random(0)
    values = [
        "true", "-1", "0", "1.5", "nan", "inf", "1e400", '""', '"x"', '"auto"', "[]", "[1, 2]", '["a"]', "{}",
        "{a = 1}", "1979-05-27", "07:32:00", '"\\u0000"', '"' + "x" * 5000 + '"', "9223372036854775808", '"-1"', "-0.0",
    ]  # fmt: skip
    found = [(c, key_of(n, f)) for (c, n), f in FLAGS.items() if f.settings in ("found", "inside") and c != "demo"]
    words = {"treat": ["-o", "out", "--text", "t"], "trial": ["-o", "out", "--text", "t"], "compare": ["b"]}
    for _ in range(300):
        command, key = draw.choice(found)
        Path("condense.toml").write_text(f"[{command}]\n{key} = {draw.choice(values)}\n")
        result = condense(command, "./no", *words.get(command, ()))
        text = Path("condense.toml").read_text()
        assert result.exit_code in (2, 3), (text, result.output)
        assert "internal error" not in result.output and "Traceback" not in result.output, (text, result.output)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(text) from result.exception


def test_a_refusal_comes_before_anything_heavy(tmp_path: Path) -> None:
    Path("condense.toml").write_text("[analyze]\nforce = true\n")
    code = (
        "import sys\nfrom condense.cli.app import app\n"
        "try:\n    app(['analyze', 'nowhere'])\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- condense init ----------------------------------------------------------------------------------


def test_init_replaces_only_what_nobody_edited() -> None:
    written = [Path("condense.toml"), Path(".github/workflows/condense.yml")]
    assert condense("init").exit_code == 0
    texts = [path.read_bytes() for path in written]
    refused(condense("init"), "exists already")
    rest = "# of an earlier version\n"
    written[0].write_text(f"{settings._first_line(rest)}\n{rest}")
    assert condense("init", "--force").exit_code == 0 and [path.read_bytes() for path in written] == texts
    for edited in (
        texts[0].decode().replace("num_texts = 32", "num_texts = 64"),
        "# condense init\n[check]\n",
        settings.template("condense.toml"),
    ):
        written[0].write_text(edited)
        written[1].write_bytes(texts[1])
        refused(condense("init", "--force"), "condense.toml was not written by condense init, or was edited since")
        assert written[0].read_text() == edited


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_init_writes_through_nothing(kind: str, tmp_path: Path) -> None:
    inside, mine = tmp_path / "inside", tmp_path / "mine"
    inside.mkdir()
    toml = inside / "condense.toml"
    if kind == "link":
        assert condense("init", str(tmp_path / "other")).exit_code == 0
        mine.write_bytes((tmp_path / "other" / "condense.toml").read_bytes())
    {"folder": toml.mkdir, "pipe": lambda: os.mkfifo(toml)}.get(kind, lambda: toml.symlink_to(mine))()
    before = mine.read_bytes() if mine.exists() else None
    refused(condense("init", "inside"), "exists already")
    refused(condense("init", "inside", "--force"), "was not written by condense init")
    assert [path.name for path in inside.iterdir()] == ["condense.toml"]
    assert (mine.read_bytes() if mine.exists() else None) == before
