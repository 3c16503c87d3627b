"""The whole CI story: a release, a retrained model that passes, one that was trained to condense and fails."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from condense.cli.app import app
from condense.records.diagnosis import Diagnosis
from condense.records.plans import Plan
from condense.records.treatment import Treatment
from condense.texts.documents import Document, probe
from condense.treatment.run import treat
from tests.models import test_hub
from tests.models.test_hub import REPO

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(600),  # three trainings before the first test
]
server = test_hub.server
SAVED = Path(__file__).parents[1] / "saved"
SHAPE = ["--num-texts", "16", "--max-length", "64", "--device", "cpu"]


def condense(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trained(model: Path, out: Path, **changes: object) -> Treatment:
    plan = Plan(
        max_length=64, per_device_train_batch_size=8, learning_rate=3e-3, num_texts=8, warmup=0.0,
        **{"max_steps": 12, "control": False, **changes},  # type: ignore[arg-type]
    )  # fmt: skip
    halves = [Document(d.name, d.text[len(d.text) // 2 :]) for d in probe()]  # the probe itself is never trained on
    treatment = treat(model, halves, out, plan, command=f"condense treat {model}", device="cpu")
    assert treatment is not None
    return treatment


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory) -> Path:
    """release/, and retrained/ and condensed/ that go on from it; baseline.json is the release's diagnosis."""
    place = tmp_path_factory.mktemp("story")
    trained(tiny("llama"), place / "release", coefficient=1e-6, max_steps=30)
    trained(place / "release", place / "retrained", coefficient=1.0)
    trained(place / "release", place / "condensed", coefficient=-5.0, loss="mean_cosine", control=True)
    done = condense("analyze", place / "release", *SHAPE, "--json", place / "baseline.json", "--check")
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(autouse=True)
def _there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


def test_a_good_retrained_model_passes():
    done = condense("analyze", "retrained", *SHAPE, "-o", "good", "--force", "--check", "--baseline", "baseline.json")
    assert done.exit_code == 0, done.output
    assert "PASS deep.mean_cosine" in done.stdout and "PASS quality.bits_per_byte" in done.stdout
    assert done.stdout.splitlines()[-1] == "passed: 2 passed"


def test_a_condensed_model_fails_the_build():
    measured = condense("analyze", "condensed", *SHAPE, "-o", "bad", "--force")
    assert measured.exit_code == 0
    done = condense("check", "bad/diagnosis.json", "--baseline", "baseline.json", "--junit", "bad/junit.xml")
    assert done.exit_code == 1
    base, bad = (Diagnosis.from_json(Path(name)) for name in ("baseline.json", "bad/diagnosis.json"))
    before, after = (run.deep["mean_cosine"].value for run in (base, bad))
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("FAIL deep.mean_cosine"))
    assert lines[at + 1] == "  expected  increase <= 0.02"
    assert lines[at + 2].startswith(f"  found     {after - before:+.4f} [+")
    assert lines[at + 2].endswith(f"from {before:.4f} to {after:.4f}")
    assert lines[at + 3] == "  where     mean of blocks 2 to 3"
    assert lines[at + 4] == "  next      condense compare baseline.json bad/diagnosis.json"
    assert not [line for line in lines[:at] if re.match(r"\S (PASS|WARN|NOT RUN|INCONCLUSIVE) ", line)], (
        "failures come first"
    )
    assert re.match(r"failed: \d failed", lines[-1])
    assert int(ElementTree.parse("bad/junit.xml").getroot().get("failures")) >= 1
    one = condense("analyze", "condensed", *SHAPE, "-o", "one", "--force", "--check", "--baseline", "baseline.json")
    assert one.exit_code == 1 and Path("one/report.html").exists(), "both in one command, the report written first"


def test_months_later_a_newer_condense_keeps_the_baseline_and_accepts_the_next():
    data = json.loads(Path("baseline.json").read_text()) | {"condense": "0.0.9"}
    del data["protocol"]["versions"]["dimension"]
    Path("old.json").write_text(json.dumps(data, separators=(",", ":")))
    good = condense("analyze", "retrained", *SHAPE, "-o", "later", "--force", "--check", "--baseline", "old.json")
    assert good.exit_code == 0 and "the baseline by condense 0.0.9" in " ".join(good.stdout.split())
    accepted = condense("check", "later/diagnosis.json", "--accept", "old.json")
    assert accepted.exit_code == 0
    assert Path("old.json").read_bytes() == Path("later/diagnosis.json").read_bytes()


def test_the_whole_story_from_a_hub(models, server, tiny, tmp_path, monkeypatch):
    """Baseline, good release, condensed release, outage with and without a copy, months later: the same commands."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    gate = ["analyze", REPO, *SHAPE, "--force", "--check", "--baseline", "baseline.json", "-o"]

    server.add(REPO, models / "release")
    assert condense("analyze", REPO, *SHAPE, "-o", "first").exit_code == 0
    accepted = condense("check", "first/diagnosis.json", "--accept", "baseline.json")
    assert accepted.exit_code == 0 and Path("baseline.json").read_bytes() == Path("first/diagnosis.json").read_bytes()

    server.add(REPO, models / "condensed")
    bad = condense(*gate, "bad")
    assert bad.exit_code == 1 and "FAIL deep.mean_cosine" in bad.stdout, bad.output

    good = server.add(REPO, models / "retrained")
    done = condense(*gate, "good")
    assert done.exit_code == 0 and done.stdout.endswith("passed: 2 passed\n"), done.output
    assert Diagnosis.from_json(Path("good/diagnosis.json")).model.revision == good

    server.fail(status=503)
    away = condense(*gate, "away", "--refresh")
    assert away.exit_code == 0 and away.stdout.endswith("passed: 2 passed\n"), away.output
    assert "answers 503" in away.stderr and "going on with the copy in" in away.stderr
    assert Diagnosis.from_json(Path("away/diagnosis.json")).model.revision == good
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    lost = condense("-q", *gate, "lost")
    assert lost.exit_code == 3 and not Path("lost/diagnosis.json").exists()
    assert len(lost.stderr.splitlines()) == 2 and "answers 503" in lost.stderr and lost.stdout == ""

    server.faults.clear()
    later = ["analyze", REPO, "--num-texts", "8", "--max-length", "64", "--device", "cpu", "--force", "-o", "later"]
    older = [("deep.update_ratio <= baseline + 1", 5), ("deep.mean_cosine <= baseline + 1", 0)]
    older += [("bits_per_byte >= baseline - 0.01", 1)]
    for assertion, code in older:  # a baseline of an older release: only what it did not have is not run
        shutil.copy(SAVED / "diagnosis-metrics-2.json", "old.json")
        done = condense(*later, "--baseline", "old.json", "--assert", assertion)
        assert done.exit_code == code, done.output
    assert condense(*later, "--baseline", str(SAVED / "diagnosis-0.1.0.json")).exit_code == 5, "none of it is known"
    assert condense("check", "later/diagnosis.json", "--accept", "old.json").exit_code == 0
    assert condense("check", "later/diagnosis.json", "--baseline", "old.json").exit_code == 0


def test_the_treatment_itself_fails_on_its_verdict():
    done = condense("check", "condensed/condense.json")
    assert done.exit_code == 1
    assert "FAIL verdict.id" in done.stdout and "is not condensed-further" in done.stdout
    assert "against the model before the treatment" in done.stdout
    named = condense("check", "condensed/condense.json", "--assert", "verdict.id == condensed-further")
    assert named.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "missing.json", "--baseline", "baseline.json"], 3),
        (["check", "torn.json", "--baseline", "baseline.json"], 3),
        (["check", "baseline.json", "--baseline", "torn.json"], 3),
        (["analyze", "no-such-model", "--offline", "--check", "--baseline", "baseline.json"], 3),
        (["analyze", "torn-model", "--check", "--baseline", "baseline.json"], 3),
    ],
)
def test_infrastructure_is_never_a_failed_gate(arguments, code):
    Path("torn.json").write_bytes(Path("baseline.json").read_bytes()[:5000])
    Path("torn-model").mkdir(exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("torn-model", file).write_bytes(Path("release", file).read_bytes())
    Path("torn-model/model.safetensors").write_bytes(Path("release/model.safetensors").read_bytes()[:3000])
    done = condense(*arguments)
    assert done.exit_code == code, done.output
    assert "FAIL" not in done.stdout


def test_a_run_that_breaks_is_4(monkeypatch):
    def broken(*arguments: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr("condense.diagnosis.run.analyze", broken)
    done = condense("analyze", "release", *SHAPE, "--check", "--baseline", "baseline.json")
    assert done.exit_code == 4 and "out of memory" in done.stderr
