"""A whole trial on a tiny model: every arm, the same rows, resume, failures; and the command around it."""

import hashlib
import json
import pydoc_data.topics
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from condense.cli.app import app
from condense.errors import RunError, UnavailableError, UsageError
from condense.models.checkpoint import load
from condense.records.diagnosis import Diagnosis
from condense.records.plans import Plan, TrialPlan
from condense.records.trial import Trial
from condense.training import pretraining
from condense.training.arm_names import parse_arms
from condense.training.loop import InterruptedRunError
from condense.trials import arm_run, runs
from condense.trials.arm_run import Watch
from condense.trials.run import trial

ALL = (
    "control,dispersion=3,dispersion:mean_cosine@late=0.1,embedding-dropout,noisy-embedding,active-forgetting,"
    "larger-vocab,cosreg"
)
TRAINING = Plan(max_steps=9, max_length=64, per_device_train_batch_size=4, learning_rate=1e-3, num_texts=8)


@pytest.fixture(scope="module")
def texts():
    return [text for _, text in sorted(pydoc_data.topics.topics.items())][:40]


@pytest.fixture(scope="module")
def whole(tiny, texts, tmp_path_factory):
    """Every arm under two seeds, with what the caller was told."""
    out, told = tmp_path_factory.mktemp("trial") / "out", []
    watch = Watch(on_run=lambda *said: told.append(said), on_note=lambda line: told.append(line))
    plan = TrialPlan(parse_arms(ALL, ()), 2, TRAINING)
    made = trial(tiny("llama"), texts, out, plan, device="cpu", watch=watch, command="condense trial m -o out")
    return made, out, told


def arms(made):
    return {arm.spec.name: arm for arm in made.arms}


def test_every_arm_ran_under_every_seed(whole):
    made, out, told = whole
    assert [arm.status for arm in made.arms] == ["done"] * 8, [(arm.spec.name, arm.reason) for arm in made.arms]
    assert all([run.seed for run in arm.runs] == [0, 1] for arm in made.arms)
    assert told[0][0] == "before" and [said[2:] for said in told[1:]] == [(n, 16) for n in range(16)]
    assert not list(out.glob("arms/*/seed-*/model")), "checkpoints are not kept unless asked"
    files = {"trial.json", "report.html", "report.md", "trial.csv", "arms", ".condense.json"}
    assert {path.name for path in out.iterdir()} == files


def test_the_arms_see_the_same_rows_in_the_same_order(whole):
    found = arms(whole[0])
    control = found["control"].runs
    for name in ("dispersion=3", "cosreg=1", "active-forgetting"):
        for mine, theirs in zip(found[name].runs, control, strict=True):
            assert mine.curve.ce_loss[0] == pytest.approx(theirs.curve.ce_loss[0], rel=1e-5), name
    assert control[0].curve.ce_loss[0] != pytest.approx(control[1].curve.ce_loss[0], rel=1e-4), "seeds shuffle"
    assert found["embedding-dropout"].runs[0].curve.ce_loss[0] != pytest.approx(control[0].curve.ce_loss[0], rel=1e-5)
    assert len({run.trained_tokens for arm in found.values() for run in arm.runs}) == 1, "one budget"


def test_each_arm_did_its_own_thing(whole):
    found = arms(whole[0])
    assert found["dispersion=3"].effect.metrics["mean_cosine"].value < -0.01
    assert found["cosreg=1"].runs[0].penalty_to_ce > 0 and max(found["control"].runs[0].curve.penalty) == 0
    assert found["larger-vocab"].parameters_added > 0 and found["larger-vocab"].details
    assert {arm.parameters_added for name, arm in found.items() if name != "larger-vocab"} == {0}
    forgot, control = found["active-forgetting"].runs[0].curve.ce_loss, found["control"].runs[0].curve.ce_loss
    assert forgot[:3] == pytest.approx(control[:3], rel=1e-5), "nothing is forgotten before the third step"
    assert abs(forgot[3] - control[3]) > 0.01 and any(
        "forgotten" in line for line in found["active-forgetting"].details
    )
    weights = [run.weights_sha256 for arm in found.values() for run in arm.runs]
    assert len(set(weights)) == len(weights)


def test_effects_are_those_of_the_saved_diagnoses(whole):
    made, out, _ = whole
    of = arms(made)["dispersion=3"].effect.by_seed[1].metrics["mean_cosine"]
    mine, theirs = (
        Diagnosis.from_json(out / "arms" / name / "seed-1" / "validation.json")
        for name in (Path(arms(made)[arm].runs[1].folder).parts[-2] for arm in ("dispersion=3", "control"))
    )
    assert of.value == pytest.approx(mine.deep["mean_cosine"].value - theirs.deep["mean_cosine"].value)
    assert mine.corpus == theirs.corpus and of.low < of.value < of.high


def test_larger_vocab_is_compared_by_the_same_bytes(whole):
    made, out, _ = whole
    arm = arms(made)["larger-vocab"]
    assert arm.effect.unpaired and arm.effect.metrics["loss"].value is None
    assert arm.runs[0].quality.predicted_bytes == made.control.runs[0].quality.predicted_bytes
    assert sum(arm.runs[0].quality.predicted_tokens) < sum(made.control.runs[0].quality.predicted_tokens)
    assert arm.cost.memory_ratio == pytest.approx(1, abs=0.05), "of a tiny model: the libraries are nearly all of it"


def test_tasks_are_scored_under_every_arm(tiny, texts, tmp_path, monkeypatch):
    """A local task, offline; the scores of two seeds are averaged sample by sample."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    folder = Path(__file__).parents[1] / "tasks"
    name = "small_facts"
    training = replace(TRAINING, max_steps=2, eval_tasks=(name,), include_path=str(folder), eval_limit=6)
    plan = TrialPlan(parse_arms("dispersion=3", ()), 2, training)
    made = trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu")
    arm = arms(made)["dispersion=3"]
    assert made.before.tasks and all(run.tasks[0].samples == 6 for run in arm.runs)
    effect = arm.task_effects[0]
    assert effect.paired and effect.new == pytest.approx(sum(run.tasks[0].value for run in arm.runs) / 2)
    assert effect.difference.value == pytest.approx(effect.new - effect.old)
    assert "small\\_facts" in made.to_markdown() and name in made.to_html(plotlyjs="none")


def test_costs_and_ranks(whole):
    made = whole[0]
    assert all(arm.cost.time_ratio.value > 0 and arm.cost.peak_memory_bytes > 1e7 for arm in made.arms)
    assert made.control.cost.time_ratio.value == 1 and made.control.cost.memory_ratio == 1
    assert made.unranked and "2 seeds" in made.unranked and all(not arm.ranks for arm in made.arms)
    assert {dose.remedy for dose in made.doses} == {"dispersion", "cosreg"}


def test_the_record_is_read_back(whole):
    made, out, _ = whole
    assert Trial.from_json(out / "trial.json") == made
    rows = made.rows()
    assert len(rows) == 16 and {row["seed"] for row in rows} == {0, 1}
    text = (out / "trial.json").read_text(encoding="utf-8")
    assert "NaN" not in text and made.to_json() == text


def test_only_what_is_missing_is_done_again(whole, tiny, texts, tmp_path, monkeypatch):
    """A lost run is repeated to the same weights, a third seed is added, everything else stands."""
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    made, done, _ = whole
    out = Path(shutil.copytree(done, tmp_path / "out"))
    names = "control,dispersion=3,cosreg"
    lost = out / arms(made)["dispersion=3"].runs[1].folder
    shutil.rmtree(lost)
    told = []
    watch = Watch(on_run=lambda *said: told.append(said[:2]))
    again = trial(
        tiny("llama"), texts, out, TrialPlan(parse_arms(names, ()), 3, TRAINING), device="cpu", resume=True, watch=watch
    )
    assert told == [("dispersion=3", 1), ("control", 2), ("dispersion=3", 2), ("cosreg=1", 2)]
    before, after = arms(made)["dispersion=3"].runs, arms(again)["dispersion=3"].runs
    assert [run.weights_sha256 for run in before] == [run.weights_sha256 for run in after[:2]]
    assert again.unranked == "3 seeds: a rank needs 5" and not arms(again)["dispersion=3"].ranks
    assert (
        arms(made)["dispersion=3"].verdict_reason.startswith("2 seeds")
        and not arms(again)["dispersion=3"].verdict_reason
    )
    assert arms(again)["dispersion=3"].effect.power["mean_cosine"].seeds == 3
    assert arms(again)["dispersion=3"].effect.by_seed[0] == arms(made)["dispersion=3"].effect.by_seed[0]


def test_other_settings_are_not_mixed_in(whole, tiny, texts):
    plan = TrialPlan(parse_arms(ALL, ()), 2, replace(TRAINING, learning_rate=2e-3))
    with pytest.raises(UsageError, match="other settings"):
        trial(tiny("llama"), texts, whole[1], plan, device="cpu", resume=True)


def failing(monkeypatch, wanted):
    """Make the training of the wanted arms fail; wanted is asked with (coefficient of dispersion, seed)."""
    plain = arm_run.train_arm

    def train(source, rows, plan, schedule, acts, folder, **more):
        if wanted(acts.dispersion.coefficient, plan.seed):
            raise ValueError("the remedy <b>broke</b>\nin two lines")
        return plain(source, rows, plan, schedule, acts, folder, **more)

    monkeypatch.setattr(arm_run, "train_arm", train)
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})


def test_an_arm_that_fails_is_told_and_the_others_go_on(tiny, texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, lambda coefficient, seed: coefficient == 9 or (coefficient == 1 and seed == 1))
        plan = TrialPlan(parse_arms("control,dispersion=9,dispersion=1", ()), 2, replace(TRAINING, max_steps=2))
        notes = []
        made = trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu", watch=Watch(on_note=notes.append))
    found = arms(made)
    assert (found["dispersion=9"].status, found["dispersion=1"].status) == ("failed", "partial")
    assert "seed 0: ValueError: the remedy <b>broke</b>" in found["dispersion=9"].reason
    assert found["dispersion=1"].effect is not None and found["control"].status == "done"
    assert len(notes) == 3 and "going on" in notes[0]
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    again = trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu", resume=True)
    assert [arm.status for arm in again.arms] == ["done"] * 3


def test_without_a_control_there_is_no_trial(tiny, texts, tmp_path, monkeypatch):
    failing(monkeypatch, lambda coefficient, seed: coefficient == 0)
    plan = TrialPlan(parse_arms("dispersion=1", ()), 1, replace(TRAINING, max_steps=1))
    with pytest.raises(RunError, match="control arm failed under every seed"):
        trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu")


def test_a_masked_model_has_no_larger_vocabulary(tiny, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    plan = TrialPlan(parse_arms("dispersion=3,larger-vocab", ()), 1, replace(TRAINING, max_steps=2))
    made = trial(tiny("bert"), texts, tmp_path / "out", plan, device="cpu")
    found = arms(made)
    assert found["larger-vocab"].status == "unavailable" and found["larger-vocab"].reason
    assert found["dispersion=3"].effect.metrics["bits_per_byte"].value is None
    word = found["dispersion=3"].effect.words["quality"]
    assert word.key == "loss" and word.least > 0, "the pseudo-loss stands in"


def test_a_signal_leaves_what_was_done(tiny, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    plan = TrialPlan(parse_arms("dispersion=3", ()), 1, replace(TRAINING, max_steps=4), curve_points=4)

    def stop(step, steps, logs):
        if step == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError) as stopped:
        trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu", watch=Watch(on_step=stop))
    assert stopped.value.code == 130
    made = trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu", resume=True)
    straight = trial(tiny("llama"), texts, tmp_path / "straight", replace(plan, curve_points=0), device="cpu")
    for name in ("control", "dispersion=3"):
        one, two = (arms(run)[name].runs[0] for run in (made, straight))
        assert one.weights_sha256 == two.weights_sha256, "a resumed run ends with the weights of an uninterrupted one"
        curve = one.learning
        assert curve.step == (1, 2, 3, 4) and list(curve.seconds) == sorted(curve.seconds), "what was scored stays"
        assert curve.bits_per_byte[-1] == pytest.approx(one.quality.bits_per_byte.value, abs=1e-5)
        assert two.learning.step == (), "the same weights without a curve"


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, tmp_path, texts):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    more = "\n".join(json.dumps({"text": text[::-1]}) for text in texts)
    Path("more.jsonl").write_text(more, encoding="utf-8")

    def invoke(*words):
        return CliRunner().invoke(app, ["--quiet", "trial", *map(str, words)])

    return invoke


SMALL = (
    "--text",
    "train.jsonl",
    "--max-steps",
    2,
    "--max-length",
    64,
    "--num-texts",
    8,
    "--device",
    "cpu",
    "--batch-size",
    2,
)


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, tiny):
    done = run(
        tiny("llama"), "-o", "out", "--arms", "dispersion,cosreg", "--coefficients", "0.1,1", "--dry-run", *SMALL
    )
    assert done.exit_code == 0, done.output
    for words in (
        "dispersion=0.1",
        "dispersion=1",
        "cosreg=0.1",
        "control",
        "3 seeds",
        "15 runs",
        "power: A public recipe",
    ):
        assert words in " ".join(done.output.split()), words
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("model", "arm", "changed", "error", "said"),
    [
        ("llama", "coupled-adam", {"optim": "adafactor"}, UsageError, "the optimizer is Adafactor"),
        ("llama", "coupled-adam", {"use_peft": True}, UsageError, "LoRA does not train"),
        ("llama", "cosreg", {"use_peft": True}, UsageError, "LoRA does not train"),
        ("llama", "active-forgetting", {"use_peft": True}, UsageError, "LoRA does not train"),
        ("bert", "simreg", {}, UnavailableError, "needs a causal model"),
        ("bert", "placebo-shuffled", {"per_device_train_batch_size": 1}, UsageError, "one row of one text"),
        ("llama", "layernorm-scaling", {}, UnavailableError, "no norms in its blocks"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_refused_in_a_dry_run(
    tiny, texts, tmp_path, monkeypatch, model, arm, changed, error, said
):
    monkeypatch.setattr(pretraining, "_norms_of", lambda block: [])
    plan = TrialPlan(parse_arms(arm), 1, replace(TRAINING, **changed))
    more = {"device": "cpu", "dry_run": True, "random_init": arm == "layernorm-scaling"}
    with pytest.raises(error, match=said) as refused:
        trial(tiny(model), texts, tmp_path / "out", plan, **more)
    assert refused.value.hint and arm in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_arms_that_can_be_trained_are_not_refused(tiny, texts, tmp_path):
    plan = TrialPlan(parse_arms("coupled-adam,placebo-shuffled,simreg,cosreg,active-forgetting"), 1, TRAINING)
    told = []
    watch = Watch(on_plan=lambda plan, schedule, overhead: told.append(len(plan.arms)))
    trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu", dry_run=True, watch=watch)
    assert told == [6]


def test_the_time_of_a_trial_counts_what_each_arm_adds_to_a_step(tiny, texts, tmp_path):
    """By the control's step alone, as it was, an arm that takes twice as long was promised in half its time."""
    told = []
    watch = Watch(on_plan=lambda plan, schedule, overhead: told.append(overhead))
    plan = TrialPlan(parse_arms("control,dispersion=1,simreg,embedding-dropout"), 1, TRAINING)
    trial(tiny("llama"), texts, tmp_path / "out", plan, device="cpu", dry_run=True, watch=watch)
    assert list(told[0].seconds_per_step) == ["control", "dispersion=1", "simreg=0.1"]
    assert told[0].time_ratio is None, "of a treatment alone"


def test_the_command_writes_its_files_and_tells_the_table(run, tiny, monkeypatch):
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    done = run(tiny("llama"), "-o", "out", "--arms", "dispersion=3", "--seeds", 1, "--keep-models", *SMALL)
    assert done.exit_code == 0, done.output
    assert "dispersion=3" in done.output and "bits per byte" in done.output
    for name in ("trial.json", "report.html", "report.md", "trial.csv"):
        assert (Path("out") / name).stat().st_size > 200
    kept = list(Path("out/arms").glob("*/seed-0/model"))
    assert len(kept) == 2 and load(kept[0], device="cpu").info.parameters
    shown = CliRunner().invoke(app, ["report", "out/trial.json"])
    assert shown.exit_code == 0 and "dispersion=3" in shown.output


def test_an_arm_that_fails_exits_4_after_everything_is_written(run, tiny, monkeypatch):
    failing(monkeypatch, lambda coefficient, seed: coefficient == 9)
    done = run(tiny("llama"), "-o", "out", "--arms", "dispersion=9", "--seeds", 1, *SMALL)
    assert done.exit_code == 4 and "--resume" in done.output and "dispersion=9 failed" in done.output
    assert "broke" in Path("out/report.md").read_text(encoding="utf-8")
    assert "<b>broke</b>" not in Path("out/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--arms", "dispersal"), 2, "dispersion"),
        (("--arms", "control=1"), 2, "control"),
        (("--coefficients", "a,b"), 2, "--coefficients"),
        (("--seeds", "0"), 2, "seeds"),
        (("--resume",), 2, "nothing to resume"),
        (("--text", "none.txt"), 3, "none.txt"),
        (("--warmup", "500"), 2, "a warm-up of 500 steps"),
        (("--tune", "warmup_steps=1,100"), 2, "a warm-up of 100 steps"),
        (("--max-steps", "6", "--warmup", "4", "--then-text", "more.jsonl", "--then-steps", "4"), 2, "--then-steps"),
    ],
)
def test_bad_requests(run, tiny, words, code, said):
    done = run(tiny("llama"), "-o", "out", *SMALL, *words)
    assert done.exit_code == code and said in done.output and "Traceback" not in done.output
    assert not Path("out").exists()


def test_what_is_not_ours_is_not_touched(run, tiny):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine", encoding="utf-8")
    done = run(tiny("llama"), "-o", "out", "--arms", "dispersion=1", "--seeds", 1, *SMALL)
    assert done.exit_code == 2 and "not empty" in done.output
    assert Path("out/thesis.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_a_trial_from_scratch_that_was_killed_between_arms_goes_on_with_the_weights_of_its_seed(
    tiny, texts, tmp_path, monkeypatch
):
    """The second arm of the second seed begins where the first of that seed began, in another process."""
    begun, real = {}, arm_run.train_arm

    def train_arm(source, rows, plan, *more, **named):
        weights = b"".join(value.numpy().tobytes() for value in source.model.state_dict().values())
        begun.setdefault(plan.seed, []).append(hashlib.sha256(weights).hexdigest())
        return real(source, rows, plan, *more, **named)

    monkeypatch.setattr(arm_run, "train_arm", train_arm)
    plan = TrialPlan(parse_arms("control,dispersion=3", ()), 2, replace(TRAINING, max_steps=2, seed=5))
    options = {"device": "cpu", "random_init": True}
    straight = trial(tiny("gpt2"), texts, tmp_path / "straight", plan, **options)
    assert len({*begun[5], *begun[6]}) == 2 and all(len(set(begun[seed])) == 1 for seed in (5, 6))
    at_once = {seed: hashes[0] for seed, hashes in begun.items()}

    def kill(arm, seed, done, total):
        if (arm, seed) == ("dispersion=3", 6):
            raise KeyboardInterrupt

    begun.clear()
    with pytest.raises(KeyboardInterrupt):
        trial(tiny("gpt2"), texts, tmp_path / "out", plan, watch=Watch(on_run=kill), **options)
    torch.rand(7)  # what else the process that resumes has drawn does not matter
    assert [len(begun[seed]) for seed in (5, 6)] == [2, 1]
    resumed = trial(tiny("gpt2"), texts, tmp_path / "out", plan, resume=True, **options)
    assert {seed: set(hashes) for seed, hashes in begun.items()} == {seed: {one} for seed, one in at_once.items()}
    for mine, theirs in zip(straight.arms, resumed.arms, strict=True):
        assert [run.weights_sha256 for run in mine.runs] == [run.weights_sha256 for run in theirs.runs]
        assert mine.effect == theirs.effect


def test_a_run_from_before_it_could_be_distributed_is_of_one_process(tmp_path):
    """Its folder says nothing of processes, and its plan nothing of sharding: both are as they were."""
    asked = SimpleNamespace(folder=tmp_path, resume=True, processes=2)
    (tmp_path / runs.FINGERPRINT).write_text('{"model": "m"}')
    assert runs._begun_with(asked) == 1 and runs._begun_with(SimpleNamespace(**vars(asked) | {"resume": False})) == 2
    (tmp_path / runs.FINGERPRINT).write_text('{"model": "m", "processes": 3}')
    assert runs._begun_with(asked) == 3
    for damaged in ('{"processes": "two"}', '{"processes": -1}', "[]", "{"):
        (tmp_path / runs.FINGERPRINT).write_text(damaged)
        assert runs._begun_with(asked) in (1, 2)
