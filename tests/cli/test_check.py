"""`condense check` at the door: settings, exit codes, what is shown and written, what a CI runner reads."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import junitparser
import pytest
from typer.testing import CliRunner

from condense.cli.app import app
from condense.cli.console import MANNER
from condense.cli.settings import TEMPLATES, template
from condense.gate.assertions import default_gate, parse_inline, parse_tables
from condense.gate.run import Policy, evaluate
from condense.records.diagnosis import Diagnosis
from condense.report.gate.text import gate_annotations, gate_junit, gate_markdown
from tests.gate.test_gate import moved, with_deep

OLD = Path(__file__).parents[1] / "saved" / "diagnosis-0.1.0.json"
GITHUB = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of the test's own, outside of any runner."""
    monkeypatch.chdir(tmp_path)
    for name in GITHUB:
        monkeypatch.delenv(name, raising=False)
    yield
    MANNER.quiet = MANNER.debug = False


def condense(*arguments, **environment):
    return CliRunner(env=environment).invoke(app, [str(a) for a in arguments])


@pytest.fixture
def run(diagnosed):
    return diagnosed("llama")


@pytest.fixture
def files(run, tmp_path):
    """base.json, worse.json (a narrower cone) and same.json."""
    run.to_json(tmp_path / "base.json")
    run.to_json(tmp_path / "same.json")
    moved(run, 0.1).to_json(tmp_path / "worse.json")
    return tmp_path


def assert_refused(result, code, *parts):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and result.stdout == ""
    assert 1 <= len(result.stderr.splitlines()) <= 2
    for part in parts:
        assert part in result.stderr, (part, result.stderr)


# --- exit codes -------------------------------------------------------------------------------------


def test_pass_warn_and_fail(files):
    passed = condense("check", "same.json", "--baseline", "base.json")
    assert passed.exit_code == 0 and "passed: 2 passed" in passed.stdout
    failed = condense("check", "worse.json", "--baseline", "base.json")
    assert failed.exit_code == 1
    lines = failed.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("FAIL deep.mean_cosine"))
    assert lines[start + 1].split() == ["expected", "increase", "<=", "0.02"]
    assert re.match(r"  found     \+0\.1000 \[\+0\.1000, \+0\.1000\], from 0\.\d{4} to 0\.\d{4}$", lines[start + 2])
    assert lines[start + 3] == "  where     mean of blocks 2 to 3"
    assert lines[start + 4] == "  next      condense compare base.json worse.json"
    assert lines[-1] == "failed: 1 failed, 1 passed" and "PASS quality.bits_per_byte" in failed.stdout
    warned = condense("check", "base.json", "--assert", "warn: deep.mean_cosine <= -0.9")
    assert warned.exit_code == 0 and "WARN deep.mean_cosine" in warned.stdout


def test_policies(files, run):
    condensed = ["check", "worse.json", "--baseline", "base.json"]
    assert condense(*condensed, "--informational").exit_code == 0
    warning = ["check", "base.json", "--assert", "warn: deep.mean_cosine <= -0.9"]
    assert condense(*warning, "--strict").exit_code == 1
    with_deep(run, 0.5, 0.4, 0.6).to_json("open.json")
    open_ = ["check", "open.json", "--assert", "deep.mean_cosine <= 0.5"]
    undecided = condense(*open_)
    assert undecided.exit_code == 5 and undecided.stdout.splitlines()[-1] == "undecided: 1 inconclusive"
    assert condense(*open_, "--inconclusive", "fail").exit_code == 1
    assert condense(*open_, "--strict").exit_code == 1
    assert condense(*open_, "--informational").exit_code == 0
    assert condense(*open_, "--assert", "deep.mean_cosine <= 1").exit_code == 0
    absent = ["check", "base.json", "--assert", "deep.mean_cosine <= baseline"]
    assert condense(*absent).exit_code == 5
    assert condense(*absent, "--not-run", "fail").exit_code == 1
    ignored = condense(*absent, "--not-run", "ignore")
    assert ignored.exit_code == 0 and "passed" in ignored.stdout.splitlines()[-1]
    assert condense(*absent, CONDENSE_CHECK__NOT_RUN="fail").exit_code == 1


def test_undecided_is_said_everywhere(files, run, monkeypatch):
    with_deep(run, 0.5, 0.4, 0.6).to_json("open.json")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    done = condense(
        "check", "open.json", "--assert", "deep.mean_cosine <= 0.5", "--junit", "j.xml", "--md", "c.md",
        GITHUB_ACTIONS="true",
    )  # fmt: skip
    assert done.exit_code == 5 and "undecided: 1 inconclusive" in done.stdout
    assert "::warning title=condense%3A deep.mean_cosine INCONCLUSIVE" in done.stdout
    assert "### condense check: undecided" in Path("c.md").read_text()
    assert "### condense check: undecided" in Path("summary.md").read_text()
    assert '<property name="outcome" value="undecided"' in Path("j.xml").read_text()


def test_a_gate_that_cannot_fail_says_so(files):
    done = condense("check", "base.json", "--assert", "warn: deep.mean_cosine <= 1", "--md", "c.md", "--junit", "j.xml")
    assert done.exit_code == 0
    for text in (done.stdout, Path("c.md").read_text(), Path("j.xml").read_text()):
        assert "nothing here can fail" in " ".join(text.split())


def test_a_target_that_is_not_there_is_2(files):
    for words in (["--informational"], ["--not-run", "ignore"], []):
        done = condense("check", "base.json", "--assert", "block.7.mean_cosine <= 1", *words)
        assert_refused(done, 2, "there is no block.7.mean_cosine: the model has 3 blocks", "block.1 to block.3")


JENKINS = Path(__file__).parents[1] / "golden" / "junit-10.xsd"


@pytest.mark.parametrize(
    ("texts", "code", "counts"),
    [
        (["deep.mean_cosine <= 1"], 0, (1, 0, 0, 0)),
        (["deep.mean_cosine <= 1", "warn: deep.mean_cosine <= -0.9", "verdict.id == dispersed"], 0, (3, 0, 0, 2)),
        (["deep.mean_cosine <= -0.9", "any-block.mean_cosine <= 1"], 1, (2, 1, 0, 0)),
        (["deep.mean_cosine <= baseline"], 5, (2, 0, 1, 1)),
        (["verdict.id == dispersed", "warn: deep.mean_cosine <= -0.9"], 5, (3, 0, 1, 2)),
    ],
)
def test_junit_is_what_jenkins_validates(run, texts, code, counts):
    """By the schema of its xUnit plugin, and read back by a library; with names that XML cannot hold as they are."""
    replace(run, model=replace(run.model, id='<evil>&"\x1b[31m\ud800')).to_json("run.json")
    words = [word for text in texts for word in ("--assert", text)]
    assert condense("check", "run.json", *words, "--junit", "junit.xml").exit_code == code
    command = ["xmllint", "--noout", "--schema", str(JENKINS), "junit.xml"]
    valid = subprocess.run(command, capture_output=True, text=True)
    assert valid.returncode == 0, valid.stderr
    report = junitparser.JUnitXml.fromfile("junit.xml")
    (suite,) = report
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == counts
    kinds = [type(result).__name__ for case in suite for result in case.result]
    assert (kinds.count("Failure"), kinds.count("Error"), kinds.count("Skipped")) == counts[1:]
    values = {each.name: each.value for each in suite.properties()}
    assert (
        values["outcome"] == {0: values["outcome"], 1: "failed", 5: "undecided"}[code] and "<evil>" in values["model"]
    )


def test_the_schema_can_refuse():
    Path("bad.xml").write_text('<testsuites skipped="0"/>')
    command = ["xmllint", "--noout", "--schema", str(JENKINS), "bad.xml"]
    assert subprocess.run(command, capture_output=True).returncode != 0


# --- months later -----------------------------------------------------------------------------------


def older(run, **changes):
    """A run of an earlier release: its record lacks what came later."""
    data = run.to_dict() | {"condense": "0.0.9"}
    data["protocol"] = {**data["protocol"], **changes.pop("protocol", {})}
    return {**data, **changes}


def test_a_release_that_adds_a_number_keeps_its_baselines(files, run):
    data = older(run)
    data["protocol"]["versions"] = {k: v for k, v in data["protocol"]["versions"].items() if k != "dimension"}
    for values in (data["deep"], *(site["metrics"] for site in data["sites"])):
        values.pop("dimension")
    Path("old.json").write_text(json.dumps(data))
    done = condense("check", "same.json", "--baseline", "old.json", "--md", "c.md", "--junit", "j.xml")
    assert done.exit_code == 0 and "passed: 2 passed" in done.stdout
    for text in (done.stdout, Path("c.md").read_text(), Path("j.xml").read_text()):
        assert f"condense {run.condense}, the baseline by condense 0.0.9" in " ".join(text.split())
    new = condense("check", "same.json", "--baseline", "old.json", "--assert", "deep.dimension <= baseline")
    assert new.exit_code == 5 and "measured by condense 0.0.9, has no dimension" in " ".join(new.stdout.split())
    both = condense("check", "old.json", "--baseline", "old.json", "--assert", "deep.dimension <= baseline")
    assert both.exit_code == 5 and "has no dimension" in " ".join(both.stdout.split())


def test_only_the_definitions_that_are_asked_for_count(files, run):
    versions = {**run.protocol["versions"], "dimension": 99}
    Path("old.json").write_text(json.dumps(older(run, protocol={"versions": versions})))
    assert condense("check", "same.json", "--baseline", "old.json").exit_code == 0
    done = condense("check", "same.json", "--baseline", "old.json", "--assert", "deep.dimension <= baseline")
    assert_refused(done, 2, "the definition of dimension has version")


def test_a_run_of_the_first_release_decides_nothing(files):
    """Measured before definitions had versions and windows their documents."""
    for words in (
        ["same.json", "--baseline", OLD],
        [OLD, "--baseline", OLD],
        [OLD, "--assert", "deep.mean_cosine <= 1"],
    ):
        done = condense("check", *words)
        assert done.exit_code == 5, done.output
        assert "NOT RUN" in done.stdout and "KeyError" not in done.output


def test_a_newer_schema_is_named_as_newer(files):
    Path("new.json").write_text('{"schema": "condense.diagnosis/2"}')
    for command in (["check"], ["report"]):
        done = condense(*command, "new.json")
        assert_refused(
            done, 3, "schema is 'condense.diagnosis/2', newer than 'condense.diagnosis/1'", "upgrade condense-lm"
        )


def test_accept_shows_what_changed_and_writes_the_baseline(files, run):
    done = condense("check", "worse.json", "--accept", "base.json")
    assert done.exit_code == 0 and "FAIL deep.mean_cosine" in done.stdout, "shown, not failed"
    assert Path("base.json").read_bytes() == Path("worse.json").read_bytes()
    assert "wrote base.json" in done.stderr and run.condense in done.stderr
    assert condense("check", "worse.json", "--baseline", "base.json").exit_code == 0
    first = condense("check", "same.json", "--accept", "folder/first.json")
    assert first.exit_code == 0 and Path("folder/first.json").read_bytes() == Path("same.json").read_bytes()
    Path("mine.json").write_text("mine")
    assert condense("check", "same.json", "--accept", "mine.json").exit_code != 0
    assert Path("mine.json").read_text() == "mine"
    unlike = older(run, protocol={"hash": "0", "max_length": 999})
    Path("unlike.json").write_text(json.dumps(unlike, separators=(",", ":")))
    moved_on = condense("check", "same.json", "--accept", "unlike.json")
    assert moved_on.exit_code == 0 and "max_length is 64 against 999" in " ".join(moved_on.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["nix.json"], 3, ["no such run file"]),
        (["base.json", "--baseline", "nix.json"], 3, ["no such run file: nix.json"]),
        (["broken.json"], 3, ["broken.json is not JSON"]),
        (["base.json", "--baseline", "broken.json"], 3, ["is not JSON"]),
        (["other.json"], 3, ["no schema"]),
        (["trial.json"], 3, ["of another kind (condense.trial/1)"]),
        (["torn.json"], 3, ["torn.json: not a valid condense.diagnosis/1"]),
        (["base.json", "--assert", "deep.mean_cosin <= 1"], 2, ["did you mean mean_cosine?"]),
        (["base.json", "--junit", "mine.txt"], 2, ["not written by condense"]),
        (["base.json", "--junit", "mine.txt/x.xml"], 2, ["cannot write"]),
        (["base.json", "--baseline", "unlike.json"], 2, ["max_length is 64 against 999", "--force"]),
    ],
)
def test_what_is_no_failed_gate_is_not_1(files, run, arguments, code, parts):
    Path("broken.json").write_text('{"schema": "condense.dia')
    Path("other.json").write_text("{}")
    Path("trial.json").write_text('{"schema": "condense.trial/1"}')
    Path("torn.json").write_text('{"schema": "condense.diagnosis/1"}')
    Path("mine.txt").write_text("keep me")
    replace(run, protocol={**run.protocol, "hash": "0", "max_length": 999}).to_json("unlike.json")
    assert_refused(condense("check", *arguments), code, *parts)
    assert Path("mine.txt").read_text() == "keep me"


def test_a_bug_is_4(files, monkeypatch):
    monkeypatch.setattr("condense.gate.run.evaluate", lambda *a, **k: 1 / 0)
    result = condense("check", "base.json")
    assert result.exit_code == 4 and "internal error" in result.stderr


def test_force_compares_what_differs(files, run):
    replace(run, protocol={**run.protocol, "hash": "0", "max_length": 999}).to_json("unlike.json")
    result = condense("check", "base.json", "--baseline", "unlike.json", "--force")
    assert result.exit_code == 0 and "compared by force" in result.stdout


# --- settings ---------------------------------------------------------------------------------------

TABLE = '[check.assertions."deep.mean_cosine"]\nmax = -0.9\n'


def test_a_settings_file_is_the_gate(files):
    assert condense("check", "base.json").exit_code == 0
    Path("condense.toml").write_text(TABLE)
    failed = condense("check", "base.json")
    assert failed.exit_code == 1 and "expected  <= -0.9" in failed.stdout and "verdict.cone" not in failed.stdout
    Path("condense.toml").write_text(TABLE + 'level = "off"\n')
    nothing = condense("check", "base.json")
    assert nothing.exit_code == 0 and "nothing was asked" in nothing.stdout


def test_pyproject_and_a_named_file(files):
    Path("pyproject.toml").write_text(TABLE.replace("[check", "[tool.condense.check"))
    assert condense("check", "base.json").exit_code == 1
    Path("soft.toml").write_text(TABLE + 'level = "warn"\n')
    assert condense("--config", "soft.toml", "check", "base.json").exit_code == 0


def test_flags_come_before_the_environment_and_that_before_the_file(files):
    Path("condense.toml").write_text(f'[check]\nbaseline = "base.json"\nstrict = true\n{TABLE}')
    assert condense("check", "worse.json", "--assert", "deep.mean_cosine <= 1").exit_code == 0
    soft = "warn: deep.mean_cosine <= baseline"
    assert condense("check", "worse.json", "--assert", soft).exit_code == 1, "strict from the file"
    assert condense("check", "worse.json", "--assert", soft, CONDENSE_CHECK__STRICT="false").exit_code == 0
    named = condense("check", "worse.json", "--assert", soft, "--baseline", "nix.json")
    assert named.exit_code == 3, "the flag's baseline, not the file's"


def test_assertions_as_a_list(files):
    Path("condense.toml").write_text('[check]\nassert = ["deep.mean_cosine <= -0.9"]\n')
    assert condense("check", "base.json").exit_code == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[check.asertions."deep.mean_cosine"]\nmax = 1\n', ["[check.asertions]", "did you mean assertions?"]),
        ('[check.assertions."deep.mean_cosin"]\nmax = 1\n', ["mean_cosin", "did you mean mean_cosine?"]),
        ('[check.assertions."deep.mean_cosine"]\nmaximum = 1\n', ["unknown key 'maximum'", "did you mean max?"]),
        ("[check]\nstrickt = true\n", ["unknown key 'strickt'", "did you mean strict?"]),
        ("[check]\nassertions = 3\n", ["unknown key 'assertions'"]),
    ],
)
@pytest.mark.parametrize("command", [["check", "base.json"], ["analyze", "nowhere", "--check"]], ids=lambda c: c[0])
def test_mistakes_in_the_file_are_2_before_any_work(files, text, parts, command):
    Path("condense.toml").write_text(text)
    assert_refused(condense(*command), 2, *parts)


def test_a_setting_of_check_with_a_wrong_value_is_2_beside_analyze_too(files):
    Path("condense.toml").write_text('[check]\ninconclusive = "maybe"\n')
    for command in (["check", "base.json"], ["analyze", "nowhere", "--check"]):
        result = condense(*command)
        assert result.exit_code == 2 and "maybe" in result.output


# --- surfaces ---------------------------------------------------------------------------------------

NASTY = "m|odel`<b>\x1b[31m\n::error::gotcha\u202e & ]]>"


@pytest.fixture
def gate(run):
    """A failure, a warning, an open result, one that did not run and two that passed; a model with a nasty name."""
    named = replace(with_deep(run, 0.5, 0.4, 0.6), model=replace(run.model, id=NASTY))
    texts = ["deep.mean_cosine <= 0.3", "warn: deep.mean_cosine <= 0.2", "deep.mean_cosine <= 0.5",
             "verdict.id == dispersed", "deep.mean_cosine <= 1", "any-block.mean_cosine <= 1"]  # fmt: skip
    return evaluate(named, [parse_inline(text) for text in texts])


def cases(gate):
    root = ElementTree.fromstring(gate_junit(gate))
    return root, {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}


def test_junit_blocks_only_on_what_ends_the_build(gate):
    root, found = cases(gate)
    assert [root.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["6", "1", "0", None]
    assert root.find("testsuite").get("skipped") == "3"
    assert found["deep.mean_cosine <= 0.3"] == ["failure"] and found["deep.mean_cosine <= 1"] == ["system-out"]
    assert found["deep.mean_cosine <= 0.2"] == found["deep.mean_cosine <= 0.5"] == ["skipped"]
    failure = next(root.iter("failure"))
    assert "found: 0.5000 [0.4000, 0.6000]" in failure.text and "next: " in failure.text
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(set(names)) == len(names), "GitLab drops cases of one name"
    assert next(p.get("value") for p in root.iter("property") if p.get("name") == "model").startswith("m|odel`<b>")
    strict, _ = cases(replace(gate, policy=Policy(strict=True)))
    assert strict.get("failures") == "4"
    told, _ = cases(replace(gate, policy=Policy(informational=True)))
    assert told.get("failures") == "0"


def test_the_summary_says_the_outcome_first_and_folds_the_rest(gate):
    text = gate_markdown(gate)
    assert text.partition("-->\n")[2].startswith(
        "### condense check: failed\n\n1 failed, 1 warned, 1 inconclusive, 1 not run, 2 passed"
    )
    table, _, folded = text.partition("<details>")
    assert "FAIL" in table and "PASS" not in table and "PASS" in folded
    assert text.count("<details>") == text.count("</details>") == 2
    assert "<b>" not in re.sub(r"`[^`]*`", "", text) and "\x1b" not in text


def test_the_summary_stays_below_its_limit(run):
    many = [parse_inline(f"deep.mean_cosine <= {-0.9 - i / 1e6}") for i in range(9000)]
    many += [parse_inline(f"deep.mean_cosine <= {0.9 + i / 1e6}") for i in range(9000)]
    text = gate_markdown(evaluate(run, many))
    assert 100_000 < len(text.encode()) < 1024 * 1024 and "… and " in text
    assert text.count("<details>") == text.count("</details>") == 2
    small = gate_markdown(evaluate(run, many[:50]), limit=3000)
    assert len(small.encode()) < 3000 and "… and " in small


def test_annotations_are_ten_and_escaped(gate, run):
    lines = gate_annotations(gate)
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning", "::warning", "::warning"]
    assert lines[0].startswith("::error title=condense%3A deep.mean_cosine FAIL::expected: <= 0.3%0Afound: 0.5000 [")
    assert not any("\n" in line for line in lines)
    many = [parse_inline(f"warn: deep.mean_cosine <= {-0.9 - i / 100}") for i in range(20)]
    assert len(gate_annotations(evaluate(run, many))) == 10


def test_on_github(files, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    result = condense("check", "worse.json", "--baseline", "base.json", **environment)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("::error title=condense%3A deep.mean_cosine FAIL::")
    assert summary.read_text().startswith("before\n<!-- condense ")
    plain = condense("check", "worse.json", "--baseline", "base.json")
    assert "::error" not in plain.stdout


def test_a_summary_that_cannot_be_written_changes_nothing(files):
    environment = {"GITHUB_STEP_SUMMARY": "nowhere/summary.md"}
    result = condense("check", "worse.json", "--baseline", "base.json", **environment)
    assert result.exit_code == 1 and "cannot write the step summary" in result.stderr


def test_a_name_cannot_speak_to_the_runner(files, run):
    replace(run, model=replace(run.model, id=NASTY)).to_json("nasty.json")
    for assertion in ("deep.mean_cosine <= 1", "deep.mean_cosine <= -0.9", "block.9.mean_cosine <= 1"):
        result = condense("check", "nasty.json", "--assert", assertion, GITHUB_ACTIONS="true")
        spoken = [line for line in result.stdout.splitlines() if line.lstrip().startswith("::")]
        assert all("gotcha" not in line.partition("::error::")[2] for line in spoken) and len(spoken) <= 1
        assert "\u202e" not in result.output


def test_files_are_written_before_the_exit(files):
    result = condense("check", "worse.json", "--baseline", "base.json", "--junit", "out/j.xml", "--md", "out/c.md")
    assert result.exit_code == 1
    assert ElementTree.parse("out/j.xml").getroot().get("failures") == "1"
    assert Path("out/c.md").read_text().splitlines()[1].startswith("### condense check: failed")
    again = condense("check", "same.json", "--baseline", "base.json", "--junit", "out/j.xml", "--md", "out/c.md")
    assert again.exit_code == 0, "our own files are written over"


def test_plain_where_unicode_is_not_spoken(files):
    arguments = [sys.executable, "-m", "condense", "check", "worse.json", "--baseline", "base.json"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and "x FAIL deep.mean_cosine" in done.stdout and "+ PASS" in done.stdout


def test_it_is_quick_since_it_loads_little(files):
    code = (
        "import sys\nfrom condense.cli.app import app\n"
        "try:\n    app(['check', 'worse.json', '--baseline', 'base.json'])\nexcept SystemExit as end:\n    print()\n"
        "print(*sorted({'scipy', 'pandas', 'torch', 'transformers', 'plotly', 'jinja2'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "FAIL deep.mean_cosine" in done.stdout and not done.stdout.splitlines()[-1], done.stdout


# --- analyze --check --------------------------------------------------------------------------------

FAST = ["--num-texts", "8", "--max-length", "32", "--device", "cpu"]


def test_analyze_and_check_in_one(tiny):
    passed = condense("analyze", tiny("llama"), *FAST, "--json", "base.json", "--check")
    assert passed.exit_code == 0 and "check base.json" in passed.stdout
    again = condense("analyze", tiny("llama"), *FAST, "-o", "out", "--baseline", "base.json", "--check")
    assert again.exit_code == 0 and "note: the baseline has the same weights" in again.stdout
    failed = condense("analyze", tiny("llama"), *FAST, "-o", "again", "--assert", "deep.mean_cosine <= -0.9")
    assert failed.exit_code == 1 and "FAIL deep.mean_cosine" in failed.stdout
    written = {path.name for path in Path("again").iterdir()}
    assert {"diagnosis.json", "report.html", "report.md", "layers.csv"} <= written
    assert Diagnosis.from_json(Path("again/diagnosis.json")).corpus.texts == 8


def test_settings_of_check_hold_beside_analyze(tiny):
    Path("gate.toml").write_text(f'[check]\njunit = "junit.xml"\ninformational = true\n{TABLE}')
    result = condense("--config", "gate.toml", "analyze", tiny("llama"), *FAST, "--check")
    assert result.exit_code == 0 and "informational" in result.stdout and Path("junit.xml").exists()


def test_an_unlike_baseline_is_2_before_anything_is_measured(tiny, monkeypatch):
    condense("analyze", tiny("llama"), "--num-texts", "8", "--max-length", "16", "--device", "cpu", "--json", "b.json")
    monkeypatch.setattr("condense.models.checkpoint.read", lambda *words: pytest.fail("the weights were read"))
    result = condense("analyze", tiny("llama"), *FAST, "-o", "out", "--baseline", "b.json", "--check")
    assert result.exit_code == 2 and "max_length is 32 against 16" in result.stderr
    more = condense("analyze", tiny("llama"), *FAST, "--num-texts", "16", "--max-length", "16", "--baseline", "b.json")
    assert more.exit_code == 2 and "number of texts is 16 against 8" in more.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nowhere", "--check", "--offline"], 3),
        (["MODEL", "--check", "--baseline", "nix.json"], 3),
        (["MODEL", "--assert", "deep.mean_cosin <= 1"], 2),
        (["MODEL", "--check", "--max-length", "4096"], 2),
    ],
)
def test_infrastructure_beside_analyze_is_never_1(tiny, arguments, code):
    words = [str(tiny("llama")) if word == "MODEL" else word for word in arguments]
    result = condense("analyze", *words, "-o", "out")
    assert result.exit_code == code, result.output
    assert not Path("out").exists()


# --- init -------------------------------------------------------------------------------------------


def test_init_writes_what_check_reads(files):
    result = condense("init")
    assert result.exit_code == 0 and all(path.exists() for path in TEMPLATES)
    assert condense("check", "same.json", "--baseline", "base.json").exit_code == 0
    failed = condense("check", "worse.json", "--baseline", "base.json")
    assert failed.exit_code == 1 and "increase <= 0.02" in failed.stdout
    alone = condense("check", "base.json")
    assert alone.exit_code == 5 and alone.stdout.count("NOT RUN") == 2


def test_the_template_holds_every_default():
    """Its assertions are the default gate, its values the defaults of the options, commented or not."""
    text = template("condense.toml")
    data = tomllib.loads(text)
    written = set(parse_tables(data["check"]["assertions"]))
    assert written == set(default_gate(True)) | set(default_gate(False))
    treated = set(default_gate(True, treatment=True)) - set(default_gate(True))
    commented = tomllib.loads(re.sub(r"^# (?=\[check\.|level|min|max|not)", "", text, flags=re.M))
    assert treated <= set(parse_tables(commented["check"]["assertions"]))
    policy = Policy()
    scalars = {key: data["check"][key] for key in ("strict", "inconclusive")}
    assert scalars == {key: getattr(policy, key) for key in scalars}
    assert "baseline" in set(re.findall(r"^# (\w+) = ", text, re.M))


def test_pages_can_hold_every_outcome(gate):
    """All surfaces take all outcomes, with and without an interval."""
    bare = replace(gate, results=tuple(replace(r, found=replace(r.found, low=None, high=None)) for r in gate.results))
    for one in (gate, bare, replace(gate, results=())):
        assert gate_markdown(one) and ElementTree.fromstring(gate_junit(one)) is not None
        assert len(gate_annotations(one)) <= 10


def test_the_settings_of_the_guide_are_understood():
    guide = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    data = tomllib.loads(guide.partition("```toml\n")[2].partition("```")[0])
    assert {a.target.name for a in parse_tables(data["check"]["assertions"])} == set(data["check"]["assertions"])
    for text in re.findall(r'--assert "([^"]+)"', guide):
        parse_inline(text)
