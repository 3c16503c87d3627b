"""treat from end to end on tiny models: the folder it leaves, the report, resume, and what it refuses."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from condense.cli.app import app
from condense.errors import UnavailableError, UsageError
from condense.folders import MARK, Mark, names_in, read_mark, write_mark
from condense.models import checkpoint as checkpoints
from condense.records.plans import Plan
from condense.records.treatment import Power, Treatment, Word
from condense.report.treatment.text import arm_value, arms_table
from condense.texts.documents import Document
from condense.training.interventions import as_trained
from condense.treatment.run import treat
from condense.treatment.verdict import assess
from condense.trials.arm_run import Watch
from condense.trials.verdict import power_before

PLAN = Plan(
    coefficient=2.0, max_steps=12, max_length=64, per_device_train_batch_size=4, learning_rate=5e-3, num_texts=8,
    warmup=0.0,
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def texts() -> list[Document]:
    words = "the cone of a small model opens when its tokens are pushed apart while it learns to read and write".split()
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(30):
        order = torch.randint(0, len(words), (260,), generator=generator)
        made.append(Document(f"d{index}", " ".join(words[i] for i in order) + f" {index}"))
    return made


@pytest.fixture(scope="module")
def treated(tiny, texts, tmp_path_factory) -> tuple[Treatment, Path]:
    out = tmp_path_factory.mktemp("treat") / "out"
    treatment = treat(tiny("llama"), texts, out, PLAN, command="condense treat tiny", device="cpu")
    assert treatment is not None
    return treatment, out


def test_the_folder_is_a_checkpoint_with_its_papers(treated):
    treatment, out = treated
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "condense.json", "report.html", "report.md"} <= names
    assert not out.with_name("out.work").exists()
    assert Treatment.from_json(out / "condense.json") == treatment
    loaded = checkpoints.load(out, device="cpu")
    assert loaded.info.weights_sha256 == treatment.arms["treated"].validation.model.weights_sha256
    assert loaded.model.config.use_cache is True or json.loads((out / "config.json").read_text())["use_cache"]


def test_the_loss_spreads_and_the_arms_differ_only_in_it(treated):
    treatment, _ = treated
    assert list(treatment.arms) == ["before", "control", "treated"]
    assert treatment.effect.against == "control"
    assert treatment.effect.deep["mean_cosine"].value < -0.01
    control, arm = treatment.arms["control"].curve, treatment.arms["treated"].curve
    assert control.step == arm.step == tuple(range(1, 13))
    assert control.ce_loss[0] == pytest.approx(arm.ce_loss[0], rel=1e-5), "the first batch must be the same"
    assert set(control.penalty) == {0.0} and any(arm.penalty)
    assert arm.mean_cosine[-1] < control.mean_cosine[-1]
    assert treatment.arms["before"].validation.corpus == treatment.arms["treated"].validation.corpus
    assert treatment.verdict.id in ("dispersed", "dispersed-at-a-cost")


@pytest.fixture(scope="module")
def seeded(tiny, texts, tmp_path_factory) -> tuple[Treatment, Path]:
    """The same treatment under two seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    return treat(tiny("llama"), texts, folder / "out", replace(PLAN, seeds=2), device="cpu"), folder


def test_a_second_run_gives_the_same_numbers(treated, seeded):
    one, two = (run.arms["treated"].validation for run in (treated[0], seeded[0]))
    assert one.model.weights_sha256 == two.model.weights_sha256 and one.sites == two.sites
    assert seeded[0].seeds[0].effect == replace(treated[0].effect, sites=())


def test_several_seeds_keep_the_first_model_and_report_over_all(treated, seeded):
    """OUT is the first seed's model, whichever is best; `arms` are its diagnoses, effect and verdict are over all."""
    (one, _), (found, folder) = treated, seeded
    assert {name: (arm.validation.deep, arm.probe.deep, arm.curve) for name, arm in found.arms.items()} == {
        name: (arm.validation.deep, arm.probe.deep, arm.curve) for name, arm in one.arms.items()
    }
    assert [seed.seed for seed in found.seeds] == [0, 1]
    first, second = found.seeds
    for name in ("control", "treated"):
        assert found.arms[name].validation.model.weights_sha256 == (
            first.weights_sha256 if name == "treated" else first.control.weights_sha256
        )
    loaded = checkpoints.load(folder / "out", device="cpu")
    assert loaded.info.weights_sha256 == first.weights_sha256 != second.weights_sha256
    assert len({first.weights_sha256, second.weights_sha256, first.control.weights_sha256}) == 3
    assert first.quality == found.arms["treated"].validation.quality and first == one.seeds[0]
    for key in ("mean_cosine", "effective_rank"):
        values = [seed.deep[key].value - seed.control.deep[key].value for seed in found.seeds]
        assert [seed.effect.deep[key].value for seed in found.seeds] == pytest.approx(values)
        assert found.effect.deep[key].value == pytest.approx(sum(values) / 2)
    assert found.effect.deep["mean_cosine"].value != one.effect.deep["mean_cosine"].value
    assert Treatment.from_json(folder / "out" / "condense.json") == found
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_a_treatment_saved_before_there_were_seeds_is_read(treated):
    data = treated[0].to_dict()
    del data["seeds"], data["plan"]["seeds"]
    assert replace(Treatment.from_json(data), seeds=treated[0].seeds) == treated[0]


def test_card_and_reports_agree(treated):
    treatment, out = treated
    value = f"{treatment.effect.deep['mean_cosine'].value:+.4f}"
    for name in ("README.md", "report.md", "report.html"):
        assert value in (out / name).read_text(encoding="utf-8").replace("−", "-"), name
    card = (out / "README.md").read_text(encoding="utf-8")
    assert treatment.schedule.train_sha256 in card and "base_model:" in card
    frame = treatment.to_frame()
    assert set(frame["arm"]) == {"before", "control", "treated"} and set(frame["corpus"]) == {"validation", "probe"}


def test_a_tiny_coefficient_is_no_success(tiny, texts, tmp_path):
    plan = replace(PLAN, coefficient=1e-5, max_steps=4)
    found = treat(tiny("llama"), texts, tmp_path / "out", plan, device="cpu")
    assert found.verdict.id == "too-small-to-count"
    assert "penalty-ratio" in {finding.id for finding in found.verdict.findings}


def test_toward_collapse(tiny, texts, tmp_path):
    plan = replace(PLAN, coefficient=-5.0, loss="mean_cosine")
    found = treat(tiny("llama"), texts, tmp_path / "out", plan, device="cpu")
    assert found.effect.deep["mean_cosine"].value > 0.01 and found.verdict.id == "condensed-further"


def test_lora_is_merged_and_masked_models_are_trained(tiny, texts, tmp_path):
    plan = replace(PLAN, use_peft=True, max_steps=3, merge_adapter=False)
    found = treat(tiny("qwen2"), texts, tmp_path / "lora", plan, device="cpu")
    assert found.arms["treated"].validation.model.architecture == "Qwen2ForCausalLM"
    assert (tmp_path / "lora" / "adapter" / "adapter_config.json").exists()
    card, page = ((tmp_path / "lora" / name).read_text() for name in ("README.md", "report.html"))
    words = "LoRA of rank 16, alpha 32, dropout 0.05 on all linear modules"
    assert words in card and words in page and words in found.to_markdown().replace("\\", "")
    assert "v\\_proj" in card and f"of {tiny('qwen2')}".rpartition("/")[2].replace("_", "\\_") in card
    masked = treat(tiny("bert"), texts, tmp_path / "bert", replace(PLAN, max_steps=3), device="cpu")
    assert masked.effect.quality["bits_per_byte"].value is None
    assert masked.arms["treated"].validation.quality.loss.value is not None


def test_from_scratch_and_without_control(tiny, texts, tmp_path):
    plan = replace(PLAN, control=False, max_steps=3)
    found = treat(tiny("gpt2"), texts, tmp_path / "out", plan, device="cpu", random_init=True)
    assert list(found.arms) == ["before", "treated"] and found.verdict.id == "no-control"
    assert found.arms["before"].validation.model.source_format == "random"
    better = replace(found.effect, words={**found.effect.words, "quality": Word("improved", "bits_per_byte", 0.01)})
    outcome = assess(plan, "m", found.arms, better)
    assert outcome.quality == "improved" and all(finding.id != "early-gain" for finding in outcome.findings)


def test_what_stands_beside_each_other_adds_up(treated, seeded):
    """Under several seeds the difference is their mean: the arms beside it once were those of the first seed."""
    for run, _ in (treated, seeded):
        for key, change in {**run.effect.deep, **run.effect.quality}.items():
            own, other = (arm_value(run, name, key) for name in ("treated", "control"))
            if change.value is not None and own is not None and other is not None:
                assert own - other == pytest.approx(change.value, abs=1e-9, rel=1e-6), key
    table, probe = arms_table(seeded[0]), arms_table(seeded[0], probe=True)
    assert table.title == "On the validation text: means over 2 seeds"
    assert probe.title == "On the probe text: the arms of seed 0, the difference a mean over 2 seeds"
    assert arms_table(treated[0]).title == "On the validation text"


def test_each_seed_has_random_weights_of_its_own_shared_by_its_arms(tiny, texts, tmp_path):
    """Seeds that share their initial weights would say nothing of another initialisation."""
    plan = replace(PLAN, max_steps=1, learning_rate=1e-12, seeds=2)
    found = treat(tiny("gpt2"), texts, tmp_path / "out", plan, device="cpu", random_init=True)
    first, second = (seed.deep["mean_cosine"].value for seed in found.seeds)
    assert first == pytest.approx(found.arms["before"].validation.deep["mean_cosine"].value, abs=1e-6)
    assert abs(first - second) > 1e-4, "another initialisation"
    for seed in found.seeds:
        assert seed.effect.deep["mean_cosine"].value == pytest.approx(0, abs=1e-6), "the arms of a seed share it"


def test_pretraining_with_the_loss_ends_in_a_wider_cone(tiny, texts, tmp_path):
    """From random weights: the loss against cross-entropy only; docs/treating.md has a larger run."""
    plan = replace(PLAN, coefficient=1.0, max_steps=40, learning_rate=3e-3)
    found = treat(tiny("gpt2"), texts, tmp_path / "out", plan, device="cpu", random_init=True)
    effect = found.effect.deep["mean_cosine"]
    assert effect.high < -0.01, "the treated model is less condensed than the control"
    trained = [found.arms[name].validation.quality.bits_per_byte.value for name in ("before", "control", "treated")]
    assert max(trained[1:]) < trained[0], "both arms learned"
    warned = any(finding.id == "early-gain" for finding in found.verdict.findings)
    assert warned == (found.verdict.quality == "improved"), "a gain from random weights need not last"


def test_refusals_come_before_any_work(tiny, texts, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        treat(tiny("llama"), texts, taken, PLAN)
    with pytest.raises(UsageError, match="nothing to resume"):
        treat(tiny("llama"), texts, tmp_path / "new", PLAN, resume=True)
    write_mark(tmp_path / "left.work", Mark("work"))
    with pytest.raises(UsageError, match="interrupted run"):
        treat(tiny("llama"), texts, tmp_path / "left", PLAN)
    with pytest.raises(UnavailableError, match="no language-modelling objective"):
        treat(tiny("t5"), texts, tmp_path / "t5", PLAN, device="cpu")
    with pytest.raises(UsageError, match="positions"):
        treat(tiny("llama"), texts, tmp_path / "long", replace(PLAN, max_length=4096), device="cpu")
    assert (taken / "mine.txt").read_text() == "keep me"


BAD = [{"seeds": 0}, {"tau": 0.0}, {"max_tokens": 1}, {"learning_rate": -1.0}, {"coefficient": float("nan")}]


@pytest.mark.parametrize("bad", BAD)
def test_plans_that_mean_nothing(bad):
    with pytest.raises(UsageError):
        Plan(**bad)


def planned(model, texts, out, plan):
    """The schedule of a dry run."""
    told = []
    watch = Watch(on_plan=lambda plan, schedule, overhead: told.append(schedule))
    assert treat(model, texts, out, plan, device="cpu", dry_run=True, watch=watch) is None and not out.exists()
    return told[0]


@pytest.mark.parametrize("warmup", [PLAN.max_steps, 500, 0.99])
def test_a_warm_up_as_long_as_the_training_is_refused(tiny, texts, tmp_path, warmup):
    with pytest.raises(UsageError, match=r"a warm-up of \d+ steps leaves none"):
        planned(tiny("llama"), texts, tmp_path / "out", replace(PLAN, warmup=warmup))
    assert planned(tiny("llama"), texts, tmp_path / "out", replace(PLAN, warmup=PLAN.max_steps - 1)).steps


def test_lora_is_planned_as_lora(tiny, texts, tmp_path):
    full = planned(tiny("llama"), texts, tmp_path / "full", PLAN)
    lora = planned(tiny("llama"), texts, tmp_path / "lora", replace(PLAN, use_peft=True, lora_target_modules="q_proj"))
    assert (
        full.adapter == "" and lora.adapter.startswith("q_proj: ") and "parameters are trained beside" in lora.adapter
    )
    assert lora.seconds > 0 and lora.memory_bytes > 0


def test_adapters_have_a_learning_rate_of_their_own():
    assert Plan().peak_rate == 5e-5 and Plan(use_peft=True).resolved().learning_rate == 2e-4
    assert replace(Plan(), use_peft=True).peak_rate == 2e-4
    assert Plan(use_peft=True, learning_rate=1e-3).peak_rate == 1e-3
    assert replace(Plan(learning_rate=3e-5), use_peft=True).learning_rate == 3e-5


def test_lora_that_cannot_be_is_refused_before_anything_runs(tiny, texts, tmp_path, monkeypatch):
    wrong = replace(PLAN, use_peft=True, lora_target_modules="query,value")
    with pytest.raises(UsageError, match="query") as refused:
        planned(tiny("llama"), texts, tmp_path / "out", wrong)
    assert "q_proj" in str(refused.value.hint)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "peft" else found(name, *more))
    with pytest.raises(UnavailableError, match="needs the package peft"):
        planned(tiny("llama"), texts, tmp_path / "out", replace(PLAN, use_peft=True))


def test_fresh_adapters_are_taken_off_again(tiny):
    model = checkpoints.load(tiny("llama"), device="cpu").model
    ids, names = torch.arange(12)[None], [name for name, _ in model.named_modules()]
    before, state = model(input_ids=ids).logits, torch.get_rng_state()
    with as_trained(model, Plan(use_peft=True, lora_target_modules="q_proj,v_proj")) as (tuned, trained, words):
        assert trained == sum(part.numel() for part in tuned.parameters() if part.requires_grad) > 0
        assert words.startswith("q_proj, v_proj: ")
    assert [name for name, _ in model.named_modules()] == names and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(input_ids=ids).logits, before) and all(part.requires_grad for part in model.parameters())
    assert not hasattr(model, "peft_config")


def test_dry_run_writes_nothing(tiny, texts, tmp_path):
    plans = []
    watch = Watch(on_plan=lambda plan, schedule, overhead: plans.append((schedule, overhead)))
    assert treat(tiny("llama"), texts, tmp_path / "out", PLAN, dry_run=True, watch=watch, device="cpu") is None
    assert list(tmp_path.iterdir()) == []
    schedule, overhead = plans[0]
    assert schedule.steps == 12 and schedule.tokens_per_step == 256 and schedule.packed
    assert overhead.time_ratio > 0 and schedule.seconds > 0


@pytest.mark.parametrize(
    ("seeds", "words"), [(1, "power: one seed covers no other seed"), (3, "power: A public recipe")]
)
def test_a_dry_run_says_what_the_seeds_can_show(tiny, texts, tmp_path, seeds, words):
    from typer.testing import CliRunner

    from condense.cli.app import app

    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in texts))
    command = ["treat", tiny("llama"), "--text", text, "-o", tmp_path / "out", "--device", "cpu", "--dry-run"]
    command += ["--max-steps", 2, "--max-length", 64, "--num-texts", 8, "--seeds", seeds]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0 and words in " ".join(done.output.split()), done.output


def test_a_dry_run_knows_how_much_the_seeds_of_an_earlier_treatment_vary(tmp_path):
    from condense.cli.treat import _spread_before

    assert _spread_before(tmp_path) == []
    saved = Path(__file__).parents[1] / "saved" / "treatment-0.1.0.json"
    record = Treatment.from_json(saved)
    power = Power("mean_cosine", 3, 0.05, 0.01, 0.001, 3.0, 0.04, 0.01, 12)
    replace(record, effect=replace(record.effect, power={"mean_cosine": power})).to_json(tmp_path / "condense.json")
    (line,) = power_before(3, 1, _spread_before(tmp_path))
    assert line.startswith("by the earlier run, 3 seeds can show deep mean cosine: a difference of")


def test_force_replaces_what_condense_made_and_nothing_else(tiny, texts, tmp_path):
    out, plan = tmp_path / "out", replace(PLAN, max_steps=2)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    first = treat(tiny("llama"), texts, out, plan, force=True, device="cpu")
    assert (out / "thesis.txt").read_text() == "mine" and Treatment.from_json(out / "condense.json") == first
    second = treat(tiny("llama"), texts, out, replace(plan, seed=1), force=True, device="cpu")
    assert (out / "thesis.txt").read_text() == "mine" and Treatment.from_json(out / "condense.json") == second
    assert read_mark(out).is_whole(out) and set(names_in(out)) == {*read_mark(out).files, MARK, "thesis.txt"}
    (out / "README.md").write_text("what I wrote instead")
    with pytest.raises(UsageError, match="README.md was not written by condense, or was changed since"):
        treat(tiny("llama"), texts, out, plan, force=True, device="cpu")
    assert (out / "README.md").read_text() == "what I wrote instead"
    assert Treatment.from_json(out / "condense.json") == second
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_run_resumes_to_the_same_weights(treated, tiny, texts, tmp_path):
    """SIGTERM in the middle of an arm: exit code 143, nothing in place; --resume ends as if nothing had been."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for document in texts:
        (folder / f"{document.name}.txt").write_text(document.text)
    arguments = [
        "--quiet", "treat", str(tiny("llama")), "--text", str(folder),
        "--coefficient", "2", "--max-steps", "30", "--max-length", "64", "--batch-size", "4", "--learning-rate", "5e-3",
        "--num-texts", "8", "--warmup", "0", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    command = [sys.executable, "-W", "ignore", "-m", "condense", *arguments, "-o", str(stopped)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    begun = stopped.with_name("stopped.work") / "control"
    while process.poll() is None and not (stopped.with_name("stopped.work") / "before" / "run.json").exists():
        time.sleep(0.02)
    time.sleep(0.15)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.fail("the run ended before the signal came")
    assert process.returncode == 143, errors
    assert not stopped.exists() and begun.parent.exists()
    run = CliRunner().invoke(app, [*arguments, "-o", str(stopped), "--resume"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, [*arguments, "-o", str(straight)])
    assert run.exit_code == 0, run.output
    one, two = (Treatment.from_json(place / "condense.json") for place in (straight, stopped))
    for name in ("control", "treated"):
        assert one.arms[name].validation.model.weights_sha256 == two.arms[name].validation.model.weights_sha256
    assert one.effect == two.effect
