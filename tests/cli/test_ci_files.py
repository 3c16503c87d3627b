"""What CI systems read: the action, the workflow of `condense init`, the examples. Their steps are really run."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import condense
from condense.cli.app import app
from condense.cli.settings import template

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOWS = {
    "init": template("workflow.yml"),
    "example": (ROOT / "docs" / "examples" / "github.yml").read_text(encoding="utf-8"),
}
REUSABLE = yaml.safe_load((ROOT / ".github" / "workflows" / "gate.yml").read_text(encoding="utf-8"))
COMPONENT, COMPONENT_JOB = yaml.safe_load_all((ROOT / "templates" / "gate.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITLAB = yaml.safe_load((ROOT / "docs" / "examples" / "gitlab-ci.yml").read_text(encoding="utf-8"))
pytestmark = pytest.mark.timeout(900)  # every step loads torch in a process of its own
SMALL = "--num-texts 8 --max-length 32 --device cpu"


@pytest.fixture(scope="module")
def baseline(tiny, tmp_path_factory):
    """A saved run of the tiny Llama."""
    file = tmp_path_factory.mktemp("baseline") / "base.json"
    done = CliRunner().invoke(app, ["analyze", str(tiny("llama")), *SMALL.split(), "--json", str(file)])
    assert done.exit_code == 0, done.output
    return file


@pytest.fixture
def runner(tmp_path, baseline):
    """Run a step as a runner's bash does, with `condense` on the path: (script, variables) -> finished process."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "condense").write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m condense "$@"\n')
    (tools / "condense").chmod(0o755)
    shutil.copy(baseline, tmp_path / "base.json")

    def step(script, **variables):
        environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(tmp_path / "output"),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), **variables,
        }  # fmt: skip
        (tmp_path / "step.sh").write_text(script)
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(tmp_path / "step.sh")]
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    return step


# --- the action -------------------------------------------------------------------------------------


def steps_of(name):
    return next(step for step in ACTION["runs"]["steps"] if step.get("id") == name or step["name"] == name)


def gate_step(runner, model="", **changes):
    """The action's own step, its variables filled from the inputs' defaults as the runner does."""
    step = steps_of("gate")
    inputs = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()}
    inputs |= {"model": str(model), "args": SMALL, **changes}
    variables = {}
    for name, value in step["env"].items():
        key = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value)[1]
        variables[name] = inputs[key]
    return runner(step["run"], **variables)


def outputs(tmp_path):
    return dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())


def test_the_action_passes(runner, tiny, tmp_path):
    done = gate_step(runner, tiny("llama"), baseline="base.json")
    assert done.returncode == 0, done.stderr
    found = outputs(tmp_path)
    assert (found["outcome"], found["exit-code"]) == ("passed", "0")
    assert (tmp_path / found["report"]).exists() and (tmp_path / found["diagnosis"]).exists()
    names = {path.name for path in (tmp_path / "condense-report").iterdir()}
    assert {"diagnosis.json", "report.html", "report.md", "layers.csv", "junit.xml", "check.md"} <= names
    assert (tmp_path / "summary.md").read_text().partition("\n")[2].startswith("### condense check: passed")


def test_the_action_fails_and_still_leaves_the_report(runner, tiny, tmp_path):
    arguments = """--assert "deep.mean_cosine <= -0.9" --assert 'warn: bits_per_byte <= 0'"""
    done = gate_step(runner, tiny("llama"), **{"check-args": arguments})
    assert done.returncode == 1
    assert outputs(tmp_path)["outcome"] == "failed"
    assert "::error title=condense%3A deep.mean_cosine FAIL::" in done.stdout
    assert "::warning title=condense%3A quality.bits_per_byte WARN::" in done.stdout
    assert "<failure" in (tmp_path / "condense-report" / "junit.xml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "code"), [({"model": "no/such-model"}, "3"), ({"args": "--nix"}, "2")])
def test_the_action_tells_an_error_from_a_failure(runner, tiny, tmp_path, changes, code):
    done = gate_step(runner, changes.pop("model", tiny("llama")), **changes)
    assert done.returncode == int(code), done.stderr
    assert outputs(tmp_path)["outcome"] == "error" and "nothing was decided" in done.stdout


HOSTILE = {
    "commands": {"model": "$(touch hacked1); `touch hacked2`", "args": "'; touch hacked3' $(touch hacked4)"},
    "a model that looks like an option": {"model": "--help"},
    "a model that looks like an output": {"model": "--json=stolen"},
    "an output that looks like an option": {"output": "-rf", "model": "no/such-model"},
    "outputs in args": {"args": "--num-texts 8 --output elsewhere"},
    "outputs in args, otherwise": {"args": "-oelsewhere"},
    "outputs in args, with a line below": {"args": "--num_texts 8 --dry_run"},
    "the end of the options in args": {"args": "-- other-model"},
    "a gate in args": {"args": "--baseline other.json"},
    "outputs in check-args": {"check-args": "--junit=elsewhere.xml"},
    "a new baseline in check-args": {"check-args": "--accept base.json"},
    "a quote that is not closed": {"args": "--num-texts '8"},
    "a quote that is not closed in check-args": {"check-args": '--assert "deep.mean_cosine <= 1'},
    "an empty value in args": {"args": '--text-column "" --no-cache'},
    "an empty value at the end of args": {"args": '--num-texts 8 --text ""'},
    "an output of several lines": {"output": "a\noutcome=passed"},
    "no output": {"output": ""},
    "no model": {"model": ""},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_inputs_are_data(runner, tiny, tmp_path, name):
    """No value of an input is run, moves the results or lets the gate pass, whatever it holds."""
    changes = {"model": str(tiny("llama")), **HOSTILE[name]}
    before = {path.name for path in tmp_path.iterdir()}
    done = gate_step(runner, **changes)
    assert done.returncode in (2, 3), done.stdout + done.stderr
    assert outputs(tmp_path)["outcome"] == "error" and "::error title=condense::" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} - before <= {"output", "step.sh", "summary.md", "condense-report"}
    assert not list(tmp_path.glob("condense-report/*"))


@pytest.mark.slow
def test_an_old_report_never_decides(runner, tiny, tmp_path):
    """What lies in the output folder is removed first, whether the new run ends well or not; other files stay."""
    folder = tmp_path / "condense-report"
    folder.mkdir()
    shutil.copy(tmp_path / "base.json", folder / "diagnosis.json")
    for name in ("report.html", "report.md", "layers.csv", "junit.xml", "check.md", "notes.txt"):
        (folder / name).write_text("old")
    assert gate_step(runner, "no/such-model").returncode == 3
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    shutil.copy(tmp_path / "base.json", folder / "diagnosis.json")
    (tmp_path / "condense.toml").write_text('[analyze]\njson = "elsewhere.json"\n')
    done = gate_step(runner, tiny("llama"), config="condense.toml")
    assert (done.returncode, outputs(tmp_path)["outcome"]) in ((2, "error"), (0, "passed")), done.stdout
    assert done.returncode or (folder / "diagnosis.json").read_text() != (tmp_path / "base.json").read_text()


@pytest.mark.parametrize("extras", ["gguf]; touch hacked", "gguf @ https://example.org/x", "$(touch hacked)"])
def test_extras_are_names(tmp_path, extras):
    environment = {"PATH": os.environ["PATH"], "ACTION_PATH": str(ROOT), "EXTRAS": extras, "TORCH_INDEX": ""}
    words = ["bash", "-eo", "pipefail", "-c", steps_of("Install condense")["run"]]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "::error" in done.stdout and not list(tmp_path.iterdir())


def test_no_step_holds_an_expression():
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "expressions belong into env"


def test_the_action_is_whole():
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"]), "an input that nothing reads, or the other way round"
    written = set(re.findall(r'(?:echo "|printf .|\\n)([\w-]+)=', steps_of("gate")["run"]))
    assert written == {value["value"].split(".")[-1].removesuffix(" }}") for value in ACTION["outputs"].values()}
    keep = steps_of("Keep the report")
    assert "!cancelled()" in keep["if"] and keep["with"]["path"] == "${{ inputs.output }}"
    assert all(part in keep["with"]["name"] for part in ("inputs.artifact", "github.job", "strategy.job-index"))
    cache = steps_of("Restore the caches")["with"]
    assert "~/.cache/huggingface\n" not in cache["path"] and "~/.cache/huggingface/hub\n" in cache["path"]
    assert "github.run_id" in cache["key"] and "strategy.job-index" in cache["key"]
    assert all(cache["key"].startswith(line) for line in cache["restore-keys"].splitlines())
    assert ACTION["runs"]["using"] == "composite"
    assert all("shell" in step for step in ACTION["runs"]["steps"] if "run" in step)


def test_the_install_step_names_torch_and_this_folder(tmp_path):
    """The pip calls it makes, recorded by a pip of our own: installing takes minutes and a network."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s " "$@" >> "$CALLS"; echo >> "$CALLS"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "ACTION_PATH": str(ROOT), "EXTRAS": "peft,data",
        "TORCH_INDEX": "https://example.org/cpu", "CALLS": str(tmp_path / "calls"),
    }  # fmt: skip
    words = ["bash", "-eo", "pipefail", "-c", steps_of("Install condense")["run"]]
    subprocess.run(words, env=environment, check=True)
    torch, own = (tmp_path / "calls").read_text().splitlines()
    assert re.search(r"--no-deps --index-url https://example.org/cpu torch==\d", torch)
    assert f"{ROOT}[peft,data]" in own and f"--constraint {ROOT}/constraints.txt" in own


# --- workflows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_are_whole(name):
    workflow = yaml.safe_load(WORKFLOWS[name])
    assert {"pull_request", "workflow_dispatch"} <= set(workflow[True]), "`on` is a boolean to YAML 1.1"
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] and job["steps"][0]["uses"].startswith("actions/checkout@")


def test_the_workflow_of_init_uses_inputs_that_exist():
    text = WORKFLOWS["init"]
    (step,) = [s for s in yaml.safe_load(text)["jobs"]["gate"]["steps"] if s.get("id") == "condense"]
    commented = yaml.safe_load(text.replace("          # ", "          ").replace("        # ", "        "))
    (full,) = [s for s in commented["jobs"]["gate"]["steps"] if s.get("id") == "condense"]
    assert set(step["with"]) < set(full["with"]) <= set(ACTION["inputs"])
    assert full["env"] == {"HF_TOKEN": "${{ secrets.HF_TOKEN }}"}


def example_steps():
    steps = yaml.safe_load(WORKFLOWS["example"])["jobs"]["gate"]["steps"]
    return [step["run"] for step in steps if step.get("name") in ("Analyze", "Check")]


def component_script():
    """The lines of the GitLab component; its variables are set from its inputs."""
    (job,) = COMPONENT_JOB.values()
    assert job["variables"]["MODEL"] == "$[[ inputs.model ]]" and job["variables"]["OUTPUT"] == "$[[ inputs.output ]]"
    return [f"OUTPUT={COMPONENT['spec']['inputs']['output']['default']}", *job["script"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [example_steps(), GITLAB["condense"]["script"], component_script()], ids=["github", "gitlab", "component"]
)
def test_the_examples_run(script, runner, tiny, tmp_path):
    """Their lines as they stand, on a tiny model; the settings of the example's own repository make it small."""
    (tmp_path / "condense.toml").write_text("[analyze]\nnum_texts = 8\nmax_length = 32\n")
    folder = tmp_path / "condense-report"
    folder.mkdir()
    (folder / "diagnosis.json").write_text("of an earlier run")
    done = runner("\n".join(script), MODEL=str(tiny("llama")), BASELINE="base.json")
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists() and "<testsuites" in (folder / "junit.xml").read_text()
    asked = '--assert "deep.mean_cosine <= -0.9"'
    check = re.sub(r"condense check", f"condense check {asked}", script[-1])
    assert (
        runner("\n".join([*script[:-3], check]), MODEL="", BASELINE="base.json", OUTPUT="condense-report").returncode
        == 1
    )
    gone = runner("\n".join(script), MODEL="no/such-model", BASELINE="base.json")
    assert gone.returncode == 3 and not (folder / "diagnosis.json").exists()


def test_the_reusable_workflow_passes_every_input_on():
    called = REUSABLE[True]["workflow_call"]
    job = REUSABLE["jobs"]["gate"]
    (step,) = [step for step in job["steps"] if step.get("id") == "condense"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert set(called["inputs"]) == {*step["with"], "runs-on", "timeout-minutes"}
    assert all(value == f"${{{{ inputs.{name} }}}}" for name, value in step["with"].items())
    assert step["env"]["HF_TOKEN"] == "${{ secrets.hf-token }}" and REUSABLE["permissions"] == {"contents": "read"}


def test_examples_pin_condense_and_torch():
    version, torch = condense.__version__, re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(), re.M)[0]
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "examples").glob("*.yml")}
    texts |= {path: path.read_text() for path in (ROOT / "templates" / "gate.yml", ROOT / "Dockerfile")}
    for path, text in texts.items():
        assert torch in text, path
        assert "condense-lm @" not in text or f"condense.git@v{version}" in text or f"condense@v{version}" in text, path
    for text in (WORKFLOWS["init"], yaml.safe_dump(REUSABLE), (ROOT / "docs" / "ci.md").read_text()):
        assert set(re.findall(r"OWNER/condense@(\S+)", text)) == {f"v{version}"}


def test_the_images_install_what_there_is():
    """The commands of the light image are run by .ci/wheel; those of both name files and extras that exist."""
    text = (ROOT / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+)$", text, re.M) for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*" and {f"!{name}" for name in copied} <= set(ignored)
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    required = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    light = {line for line in (ROOT / "requirements-light.txt").read_text().split("\n") if line and line[0] != "#"}
    assert light < required and not light & {"torch", "transformers", "pandas", "scikit-learn"}


def test_the_pre_commit_hook_checks_every_run(runner, baseline, tmp_path):
    (hook,) = HOOKS
    assert re.search(hook["files"], "out/diagnosis.json") and not re.search(hook["files"], "package.json")
    (tmp_path / "condense.toml").write_text('[check.assertions]\n"deep.mean_cosine" = { max = 1.0 }\n')
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(baseline, tmp_path / name / "diagnosis.json")
    files = "a/diagnosis.json b/diagnosis.json"
    passed = runner(f"{hook['entry']} {files}")
    assert passed.returncode == 0 and passed.stdout.count("PASS deep.mean_cosine") == 2
    (tmp_path / "a" / "diagnosis.json").write_text("{")
    broken = runner(f"{hook['entry']} {files}")
    assert broken.returncode == 3 and broken.stdout.count("PASS deep.mean_cosine") == 1, "the others are checked too"


def test_the_gitlab_job_keeps_its_report():
    artifacts = GITLAB["condense"]["artifacts"]
    assert artifacts["when"] == "always" and "condense-report/" in artifacts["paths"]
    assert artifacts["reports"]["junit"] in GITLAB["condense"]["script"][-1]
    (job,) = COMPONENT_JOB.values()
    assert job["artifacts"]["when"] == "always" and set(COMPONENT["spec"]["inputs"]) == set(
        re.findall(r"inputs\.(\w+)", (ROOT / "templates" / "gate.yml").read_text())
    )
