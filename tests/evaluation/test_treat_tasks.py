"""`condense treat … --eval-tasks`: every arm scored, the same training, the section on every page, early refusals."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from condense.errors import UnavailableError, UsageError
from condense.evaluation.run import evaluate
from condense.records.base import Estimate
from condense.records.plans import Plan
from condense.records.tasks import TaskEffect, TaskScore
from condense.records.treatment import Treatment
from condense.report.tables import task_rows
from condense.report.treatment.text import treatment_markdown
from condense.treatment.run import treat
from condense.trials.arm_run import Watch

pytest.importorskip("lm_eval", reason="pip install 'condense-lm[eval]'")
TASKS = Path(__file__).parents[1] / "tasks"
NAMES = ("small_facts", "small_text")
ARGUMENTS = [
    "--coefficient", "2", "--max-steps", "3", "--max-length", "64", "--batch-size", "4", "--learning-rate", "5e-3",
    "--num-texts", "8", "--warmup", "0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    words = "the cone of a small model opens when its tokens are pushed apart while it learns to read and write".split()
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("texts")
    for index in range(24):
        order = torch.randint(0, len(words), (200,), generator=generator)
        (folder / f"{index}.txt").write_text(" ".join(words[i] for i in order) + f" {index}")
    return folder


def condense(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "condense", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def done(tiny, text, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("tasks") / "out"
    chosen = ["--eval-tasks", ",".join(NAMES), "--include-path", TASKS, "--eval-limit", "20"]
    return condense("treat", tiny("llama"), "--text", text, "-o", out, *ARGUMENTS, *chosen), out


def test_every_arm_is_scored_and_what_was_scored_is_the_file(done):
    run, out = done
    assert run.returncode == 0, run.stderr
    treatment = Treatment.from_json(out / "condense.json")
    assert {name: len(arm.tasks) for name, arm in treatment.arms.items()} == {"before": 4, "control": 4, "treated": 4}
    assert treatment.arms["treated"].tasks == evaluate(out, NAMES, include_path=TASKS, limit=20)
    by_key = {(score.task, score.metric): score for score in treatment.arms["control"].tasks}
    for effect, score in zip(treatment.task_effects, treatment.arms["treated"].tasks, strict=True):
        old = by_key[effect.task, effect.metric]
        assert effect.paired and effect.difference.value == score.value - old.value
        assert effect.samples == {"small_facts": 20, "small_text": 6}[effect.task]
    bits = next(effect for effect in treatment.task_effects if effect.metric == "bits_per_byte")
    assert bits.difference.low < bits.difference.value < bits.difference.high


def test_the_pages_agree(done):
    run, out = done
    treatment = Treatment.from_json(out / "condense.json")
    score = next(s for s in treatment.arms["treated"].tasks if s.metric == "bits_per_byte")
    for name in ("README.md", "report.md", "report.html"):
        page = (out / name).read_text(encoding="utf-8")
        assert "Downstream tasks" in page and f"{score.value:.3f}" in page, name
        assert "2 points" in page and "No checkpoint was chosen" in page, name
    assert "downstream tasks" in run.stdout and f"{score.value:.3f}" in run.stdout
    assert "tasks, on before and every arm: small_facts, small_text, the first 20" in re.sub(r"\s+", " ", run.stderr)
    assert "Traceback" not in run.stderr and "it/s" not in run.stderr and "lm_eval" not in run.stderr


def test_the_tasks_change_nothing_in_the_training(done, tiny, text, tmp_path):
    scored = Treatment.from_json(done[1] / "condense.json")
    plain = replace(scored.plan, eval_tasks=(), eval_limit=None, include_path=None)
    found = treat(tiny("llama"), text, tmp_path / "out", plain, device="cpu")
    for name in ("control", "treated"):
        assert found.arms[name].validation.model.weights_sha256 == scored.arms[name].validation.model.weights_sha256, (
            name
        )
    assert found.task_effects == () and "Downstream" not in treatment_markdown(found)


def test_refusals_come_before_any_work(tiny, text, tmp_path):
    with pytest.raises(UsageError, match="--eval-limit and --include-path"):
        Plan(eval_limit=3)
    with pytest.raises(UsageError, match="--eval-limit is 0"):
        Plan(eval_tasks=NAMES, eval_limit=0)
    plan = Plan(eval_tasks=("small_fact",), include_path=str(TASKS))
    with pytest.raises(UnavailableError, match="no task 'small_fact'"):
        treat(tiny("llama"), text, tmp_path / "out", plan)
    with pytest.raises(UsageError, match="predicts no next token"):
        treat(tiny("bert"), text, tmp_path / "bert", replace(plan, eval_tasks=NAMES), dry_run=True, device="cpu")
    run = condense("treat", tiny("llama"), "--text", text, "-o", tmp_path / "out", "--eval-tasks", "a",
                   "--include-path", tmp_path / "none")  # fmt: skip
    assert run.returncode == 3 and run.stderr.startswith("condense: no such folder of task files"), run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_loads_no_data(tiny, text, tmp_path):
    """A task whose data is nowhere passes the dry run, which only looks up its name, and no other."""
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: nobody/nothing\noutput_type: loglikelihood\n")
    plan, seen = Plan(eval_tasks=("far",), include_path=str(tmp_path), max_steps=1, max_length=64, num_texts=2), []
    watch = Watch(on_plan=lambda plan, schedule, overhead: seen.append(plan))
    assert treat(tiny("llama"), text, tmp_path / "out", plan, dry_run=True, watch=watch, device="cpu") is None
    assert [one.training for one in seen] == [plan.resolved()]
    with pytest.raises(UnavailableError, match="cannot be reached"):
        treat(tiny("llama"), text, tmp_path / "out", plan, device="cpu")
    assert not (tmp_path / "out.work").exists()


# --- the rows of the pages -----------------------------------------------------------------------------


def test_rows_say_what_is_clear_what_is_paired_and_why_there_is_no_interval():
    old, new = TaskScore("t", "acc", 0.5, 0.02, 500), TaskScore("t", "acc", 0.25, None, 500)

    def row(difference: Estimate, paired: bool = True):
        effects = [TaskEffect("t", "acc", 0.25, 0.5, difference, paired, 500)]
        (made,) = task_rows({"control": [old], "treated": [new]}, effects)
        change = made.change
        return change.text, change.interval, change.strong, ", ".join(change.notes)

    assert row(Estimate(-0.25, -0.3, -0.2)) == ("-0.250", "-0.300 to -0.200", True, "")
    assert row(Estimate(0.02, -0.3, 0.2), paired=False) == ("+0.020", "-0.300 to +0.200", False, "not paired")
    assert row(Estimate(0.02, reason="no standard error"), paired=False)[1:] == ("", False, "no standard error")
    assert row(Estimate(0.0, 0.0, 0.0)) == ("+0.000", "", False, "no sample changed")
    (made,) = task_rows({"control": [], "treated": [new]}, [])
    assert [(cell.text, cell.notes) for cell in made.cells] == [("–", ()), ("0.250", ())]
    assert made.change.notes == ("not compared",)
    assert task_rows({}, []) == []


def test_names_of_tasks_stay_text_in_markdown(done):
    treatment = Treatment.from_json(done[1] / "condense.json")
    evil = "a|b<script>\x1b[31m"
    arms = {n: replace(a, tasks=tuple(replace(s, task=evil) for s in a.tasks)) for n, a in treatment.arms.items()}
    page = treatment_markdown(replace(treatment, arms=arms, task_effects=()))
    line = next(line for line in page.splitlines() if "script" in line)
    assert line.startswith(r"| a\|b&lt;script&gt;") and "\x1b" not in line
