"""The search of --tune: the same settings for every arm, a seed and a text of its own, the best one trained."""

import pydoc_data.topics
from dataclasses import replace
from types import SimpleNamespace

import pytest

from condense.errors import UsageError
from condense.records.base import Again
from condense.records.learning import Tried, tuning_lines
from condense.records.plans import ArmSpec, Plan, TrialPlan, with_setting
from condense.records.trial import Trial
from condense.texts.documents import Document
from condense.training.arm_names import parse_arms
from condense.training.prepare import apart, halved
from condense.training.rows import Split
from condense.trials import runs
from condense.trials.arm_run import Watch
from condense.trials.run import trial
from condense.trials.tuning import choose, tuning_findings

TUNE = ("learning_rate=1e-3,3e-3", "warmup_steps=4")


def test_several_options_multiply():
    plan = TrialPlan(tune=("learning_rate=3e-3,1e-3", "warmup-steps=20,40"))
    assert [tuple(one.values()) for one in plan.grid()] == [(1e-3, 20), (1e-3, 40), (3e-3, 20), (3e-3, 40)]
    tuned = with_setting(Plan(weight_decay=0.3), plan.grid()[1])
    assert (tuned.learning_rate, tuned.warmup, tuned.weight_decay) == (1e-3, 40, 0.3)
    assert TrialPlan().grid() == () and with_setting(Plan(learning_rate=1.0), {}).learning_rate == 1.0


@pytest.mark.parametrize(
    "tune", ["rate=1", "learning_rate", "learning_rate=", "learning_rate=a", "learning_rate=0", "learning_rate=inf",
             "learning_rate=-1", "warmup_steps=2.5"],
)  # fmt: skip
def test_what_cannot_be_tried_is_refused(tune):
    with pytest.raises(UsageError, match="--tune"):
        TrialPlan(tune=(tune,))


def test_a_setting_is_named_once_and_the_seed_is_none_of_the_trials():
    with pytest.raises(UsageError, match="twice"):
        TrialPlan(tune=("learning_rate=1", "learning_rate=2"))
    with pytest.raises(UsageError, match="--tune-text"):
        TrialPlan(tune_text="other.txt")
    with pytest.raises(UsageError, match="seeds"):
        TrialPlan(seeds=1001, tune=TUNE)
    with pytest.raises(UsageError, match="leaves no seed for the search") as refused:
        TrialPlan(training=Plan(seed=2**32 - 1000), tune=TUNE)
    assert TrialPlan(training=Plan(seed=int(refused.value.hint.split()[-1])), tune=TUNE).tuning_seed == 2**32 - 1
    plan = TrialPlan(seeds=1000, training=Plan(seed=5), tune=TUNE)
    assert plan.tuning_seed not in range(5, 5 + plan.seeds)


def test_the_best_is_chosen_and_an_edge_is_said():
    grid = TrialPlan(tune=("learning_rate=1,2,4", "warmup_steps=8")).grid()
    middle = choose(
        grid, [Tried(1, 8, 2.0, seconds=3), Tried(2, 8, 1.5, seconds=4), Tried(4, 8, None, reason="not finite")]
    )
    assert [one.chosen for one in middle] == [False, True, False] and middle[1].edge == ()
    edge = choose(grid, [Tried(1, 8, 2.0), Tried(2, 8, 1.5), Tried(4, 8, 1.4)])
    assert edge[2].chosen and edge[2].edge == ("learning rate",), "one value alone has no edge"
    masked = choose(grid, [Tried(1, 8, None, 3.0), Tried(2, 8, None, 4.0), Tried(4, 8, None, float("nan"))])
    assert masked[0].chosen
    none = choose(grid, [Tried(rate, 8, None, reason="broke") for rate in (1, 2, 4)])
    lines = tuning_lines({"control": middle, "a": edge, "b": none})
    assert lines[0] == "control: learning rate 2, 8 steps of warm-up of 3 settings (1.5000 bits per byte), 7 s in all"
    assert "on the edge of what was tried (learning rate)" in lines[1] and "no setting" in lines[2]
    arm = SimpleNamespace(spec=ArmSpec("a", "dispersion"), tuning=edge)
    plan = TrialPlan(tune=("learning_rate=1,2,4", "warmup_steps=8"))
    again = Again("condense trial m --tune learning_rate=1,2,4 --tune=warmup_steps=8 -o out")
    found = tuning_findings(plan, [arm], 100, again)
    assert found[0].next == "condense trial m -o wider/ --tune learning_rate=1,2,4,8 --tune warmup_steps=8"
    assert not tuning_findings(plan, [replace_tuning(arm, middle)], 100, again)


@pytest.mark.parametrize(("steps", "wider"), [(100, "20,40,80"), (60, "20,40,59"), (41, "20,40")])
def test_no_warm_up_is_advised_that_is_as_long_as_the_training(steps, wider):
    plan = TrialPlan(tune=("warmup_steps=20,40",))
    arm = SimpleNamespace(
        spec=ArmSpec("a", "dispersion"), tuning=choose(plan.grid(), [Tried(None, 20, 2.0), Tried(None, 40, 1.5)])
    )
    found = tuning_findings(plan, [arm], steps, Again("condense trial m --tune warmup_steps=20,40 -o out"))
    assert found[0].next == f"condense trial m -o wider/ --tune warmup_steps={wider}"


def replace_tuning(arm, tuning):
    return SimpleNamespace(spec=arm.spec, tuning=tuning)


def test_no_document_is_both_chosen_on_and_measured_or_trained_on():
    documents = [Document(str(number), f"text {number}") for number in range(6)]
    parts = Split(documents[:1], documents[1:])
    kept, chosen = halved(parts)
    assert {d.name for d in kept.validation} | {d.name for d in chosen} == set("12345")
    assert not {d.name for d in kept.validation} & {d.name for d in chosen}
    with pytest.raises(UsageError, match="one document"):
        halved(replace(parts, validation=documents[:1]))
    other = [Document("a", " text 0 "), Document("b", "text 3"), Document("c", "new"), Document("d", "new")]
    assert [document.name for document in apart(other, parts, "--tune-text")] == ["c"]
    with pytest.raises(UsageError, match="--tune-text holds no document"):
        apart(other[:2], parts, "--tune-text")


@pytest.mark.slow
def test_a_trial_tunes_every_arm_and_trains_with_what_it_chose(tiny, tmp_path, monkeypatch):
    """Resumed, it repeats nothing; with a wider grid it tries only what is new, and trains anew what that changes."""
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())][:40]
    training = Plan(max_steps=3, max_length=32, per_device_train_batch_size=2, num_texts=4, learning_rate=1e-3)
    plan = TrialPlan(parse_arms("dispersion=3", ()), 1, training, tune=("learning_rate=1e-6,1e-2",), curve_points=0)
    told, notes = [], []
    watch = Watch(on_run=lambda *said: told.append(said[:2]), on_note=notes.append)
    out = tmp_path / "out"
    made = trial(tiny("llama"), texts, out, plan, device="cpu", watch=watch, random_init=True)
    assert told[1:5] == [(f"{arm} (learning_rate={rate})", 1000) for arm in ("control", "dispersion=3")
                         for rate in ("1e-06", "0.01")]  # fmt: skip
    for arm in made.arms:
        best = next(one for one in arm.tuning if one.chosen)
        assert best.learning_rate == 0.01 and best.edge == ("learning rate",) and best.seconds > 0
        assert best.bits_per_byte == min(one.bits_per_byte for one in arm.tuning)
        assert max(arm.runs[0].curve.learning_rate) == pytest.approx(0.01)
    assert sum("chosen for" in note for note in notes) == 2 and made.timing["tuning_seconds"] > 0
    assert Trial.from_json(out / "trial.json") == made
    assert "Settings tried" in made.to_html(plotlyjs="none") and "Settings tried" in made.to_markdown()
    told.clear()
    again = trial(tiny("llama"), texts, out, plan, device="cpu", watch=watch, random_init=True, resume=True)
    assert told == [] and [arm.tuning for arm in again.arms] == [arm.tuning for arm in made.arms]
    wider = replace(plan, tune=("learning_rate=1e-6,1e-2,3e-2",))
    trial(tiny("llama"), texts, out, wider, device="cpu", watch=watch, random_init=True, resume=True)
    assert [said for said in told if said[1] == 1000] == [
        (f"{arm} (learning_rate=0.03)", 1000) for arm in ("control", "dispersion=3")
    ]
    trial(tiny("llama"), texts, out, replace(plan, tune=()), device="cpu", force=True, random_init=True)
    assert not (out / "tuning").exists(), "a search that is not resumed is cleared"
