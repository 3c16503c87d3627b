"""When an arm is ahead of the control and how soon: signs, words, equal time, and no word from noise."""

import json
import pydoc_data.topics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from condense.errors import UsageError
from condense.records.base import Again, Estimate
from condense.records.learning import Beyond, Scores, crossing, crossing_words, timing_sentence
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan, TrialPlan
from condense.records.serial import decode
from condense.records.trial import ArmResult
from condense.report.trial.learning import learning_lines
from condense.texts.documents import Document
from condense.training import prepare
from condense.training.arm_names import parse_arms
from condense.training.loop import InterruptedRunError, Trained
from condense.training.rows import Rows, Split
from condense.trials import arm_run, learning, runs
from condense.trials.arm_run import ArmRunInput, Watch
from condense.trials.folder import Run
from condense.trials.learning import curve_of, learning_findings, learning_of, run_curve
from condense.trials.run import trial

WINDOWS, BYTES = 12, 100
DOCUMENTS = tuple(number // 2 for number in range(WINDOWS))
STEPS = tuple(range(25, 401, 25))
LEAST = 0.01


def run_of(values, seconds=None, noise=None):
    """A run with these bits per byte at each of the steps; noise: (K, N) on top."""
    table = np.asarray(values)[:, None] * BYTES + (0 if noise is None else noise * BYTES)
    table = np.broadcast_to(table, (len(values), WINDOWS))
    times = list(seconds or (step / 100 for step in STEPS))
    scores = Scores(STEPS[:-1], tuple(times[:-1]), tuple(map(tuple, table[:-1] * np.log(2))), times[-1], "processor")
    quality = SimpleNamespace(
        bits_per_byte=Estimate(float(values[-1]), per_text=tuple(table[-1] / BYTES)), predicted_bytes=(BYTES,) * WINDOWS
    )
    diagnosis = SimpleNamespace(quality=quality, corpus=SimpleNamespace(documents=DOCUMENTS))
    return Run(None, diagnosis, None, SimpleNamespace(scores=scores), (), None)


def arms(change, seeds=5, spread=0.002, seconds=None, seed=0):
    """An arm and its control: a falling curve, the arm's change on top, noise of seeds and windows."""
    draw = np.random.default_rng(seed)
    falling = 2 + 3 / np.arange(1, len(STEPS) + 1)
    both = ({}, {})
    for number in range(seeds):
        windows = draw.normal(0, 0.2, (1, WINDOWS))
        off = draw.normal(0, spread)
        own = windows + draw.normal(0, 0.002, (len(STEPS), WINDOWS))
        both[1][number] = run_of(falling, noise=windows)
        both[0][number] = run_of(falling + np.asarray(change) + off, seconds, own)
    return both


def arm_of(made):
    return ArmResult(ArmSpec("slow", "dispersion"), "done", "", "", "", learning=made)


def learned(change, compared=1, **more):
    arm, control = arms(change, **more)
    curves = ({seed: run_curve(run, STEPS[-1]) for seed, run in runs.items()} for runs in (arm, control))
    return learning_of(*curves, 1000, LEAST, compared)


def test_a_control_that_does_not_improve_has_no_time_to_its_end():
    """On a next text that it knows already: its first value, at 0 tokens and 0 seconds, is as good as its last."""
    at = (0, 200, 400)

    def curves(values):
        each = [np.tile(row, (WINDOWS, 1)).T for row in values]
        return {
            seed: learning.RunCurve(at, np.array([0.0, 1.0, 2.0]), of, np.full(WINDOWS, BYTES), DOCUMENTS, "processor")
            for seed, of in enumerate(each)
        }

    made = learning_of(
        curves([[100.0, 102.0, 101.0 + 0.1 * s] for s in range(3)]), curves([[100.0, 103.0, 101.0]] * 3), 1000, LEAST, 1
    )
    assert made.reach.reached == 3 and made.reach.tokens.value == 0
    assert made.reach.token_ratio.value is None and made.reach.token_ratio.reason == "the control does not improve"


def test_a_gain_that_turns_into_a_loss_is_called_so_with_the_step():
    change = np.interp(STEPS, (25, 100, 300, 400), (-0.06, -0.06, 0.02, 0.04))
    made = learned(change)
    assert made.timing == "the sign turns" and made.turn == pytest.approx(250, abs=15)
    said = timing_sentence("angular", made)
    assert said.startswith("angular: better in the first quarter") and "worse at the end" in said
    assert "turns at about step 2" in said
    assert [value.value for value in made.changes] == pytest.approx(list(change), abs=0.01)
    (finding,) = learning_findings([arm_of(made)], 400, Again("condense trial m --max-steps 400 -o o"))
    assert finding.id == "early-effect" and finding.severity == "warning" and "--max-steps 800" in finding.next
    assert made.looks[0].first == 25 and made.looks[0].last == 100 and made.looks[-1].first == 400


def test_a_mean_that_crosses_0_is_described_where_no_word_says_that_the_sign_turns():
    """Three seeds, too wide for a word: -0.07 [-0.12, -0.02] early, above 0 at the end, was told as "no effect"."""
    change = np.interp(STEPS, (25, 100, 300, 400), (-0.06, -0.06, 0.02, 0.02))
    made = learned(change, spread=0.0)
    early, end = Estimate(-0.07, -0.12, -0.02), Estimate(0.02, -0.02, 0.06)
    looks = [replace(look, word="not shown to be held") for look in made.looks]
    looks = (replace(looks[0], change=early), *looks[1:-1], replace(looks[-1], change=end))
    open_ = replace(made, timing="none", turn=None, looks=looks)
    said = "the mean crosses 0 between steps 250 and 275, from better to worse, which is not shown"
    assert crossing_words(open_) == said
    arm = replace(arm_of(open_), runs=(None,) * 5)
    assert learning_lines(SimpleNamespace(arms=[arm], other=None)) == [
        f"slow: no effect is shown, neither early nor at the end; {said}"
    ]
    wide = replace(looks[0], change=Estimate(-0.07, -0.15, 0.01))
    inner = [replace(look, change=wide.change) for look in looks[1:-1]]
    assert not crossing_words(replace(open_, looks=(wide, *inner, looks[-1]))), "no early interval excludes 0"
    assert not crossing_words(replace(open_, looks=(looks[0], *inner, replace(looks[-1], change=early)))), (
        "the same sign"
    )
    assert not crossing_words(made), "it is shown to turn"
    assert not crossing_words(replace(open_, timing=None)), "fewer than three seeds"
    assert not crossing_words(replace(open_, looks=())), "nothing was measured"
    back = [replace(one, value=-(one.value or 0.0), low=None, high=None) for one in made.changes]
    ends = [Estimate(0.07, 0.02, 0.12), *[look.change for look in looks[1:-1]], Estimate(-0.02, -0.06, 0.02)]
    turned = tuple(replace(look, change=one) for look, one in zip(looks, ends, strict=True))
    assert "from worse to better" in crossing_words(replace(open_, looks=turned, changes=tuple(back)))


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ((-0.06, -0.04), "early and final"),
        ((-0.06, 0.0), "early only"),
        ((0.0, -0.04), "final only"),
        ((0.0, 0.0), "none"),
    ],
)
def test_early_and_final_effects_have_their_words(ends, word):
    made = learned(np.interp(STEPS, (100, 390, 400), (ends[0], ends[0], ends[1])))
    assert made.timing == word and made.turn is None


def test_where_the_seeds_disagree_nothing_is_shown():
    """The signs of the means turn, but neither is measurable: that is no turn."""
    made = learned(np.interp(STEPS, (25, 100, 300, 400), (-0.06, -0.06, 0.02, 0.04)), spread=0.2, seeds=3)
    assert made.turn is None and made.timing in ("none", "final only", "early, the end is open")
    few = learned(np.full(len(STEPS), -0.2), seeds=2)
    assert few.timing is None and {look.word for look in few.looks} == {None} and not timing_sentence("a", few)


def test_an_arm_of_twice_the_time_is_read_at_half_its_steps():
    gain = np.full(len(STEPS), -0.05)
    made = learned(gain, spread=0.0, seconds=[step / 50 for step in STEPS])
    assert made.changes[-1].value == pytest.approx(-0.05, abs=0.005)
    falling = dict(zip(STEPS, 2 + 3 / np.arange(1, 17), strict=True))
    assert made.timed[-1].value == pytest.approx(falling[200] - 0.05 - falling[400], abs=0.005)
    assert made.timed[0].value is None and "first evaluation" in made.timed[0].reason
    assert made.second_ratio.value == pytest.approx(2) and made.timed_word == "worse"
    arm = arm_of(made)
    assert "after equal time that is gone" in learning_lines(SimpleNamespace(arms=(arm,)))[0]
    assert [finding.id for finding in learning_findings([arm], 400, Again("condense trial m -o o"))] == ["equal-time"]


def test_a_gain_that_may_be_there_after_equal_time_is_not_called_gone():
    """Quality that is held is not shown to be worse: a gain that counts may still be in the interval."""
    made = learned(np.full(len(STEPS), -0.05))
    end = Estimate(-0.02, low=-0.05, high=0.005)
    open_, closed = (
        arm_of(replace(made, timed=(*made.timed[:-1], replace(end, low=low)), timed_word="held"))
        for low in (-0.05, -0.004)
    )
    for arm, words in ((open_, "not shown"), (closed, "gone")):
        assert f"after equal time that is {words}" in learning_lines(SimpleNamespace(arms=(arm,)))[0]
        (finding,) = learning_findings([arm], 400, Again("condense trial m -o o"))
        assert words in finding.title


def test_tokens_and_seconds_to_the_controls_end():
    made = learned(np.full(len(STEPS), -0.05), spread=0.0)
    falling = 2 + 3 / np.arange(1, 17) - 0.05
    expected = crossing(STEPS, list(falling), 2 + 3 / 16)
    assert made.reach.reached == 5 and made.reach.tokens.value == pytest.approx(1000 * expected, rel=0.02)
    assert made.reach.token_ratio.value == pytest.approx(expected / 400, rel=0.02)
    behind = learned(np.full(len(STEPS), 0.2)).reach
    assert behind.reached == 0 and behind.token_ratio.value is None and "0 of 5" in behind.token_ratio.reason
    assert crossing((10, 20), (3.0, 2.0), 2.5) == 15 and crossing((10, 20), (3.0, 2.0), 3.5) == 10
    assert crossing((10, 20), (3.0, 2.0), 1.0) is None


def noise_words(trials, seeds, count, draw):
    """The words of `count` arms that differ from the control by the noise of each seed alone, trial by trial."""
    falling, far = 2 + 3 / np.arange(1, len(STEPS) + 1), np.sqrt(np.arange(1, len(STEPS) + 1))
    for _ in range(trials):
        windows = [draw.normal(0, 0.2, (1, WINDOWS)) for _ in range(seeds)]

        def arm(windows=windows):
            made = {}
            for seed in range(seeds):
                walk = 0.02 * draw.normal(0, 1, len(STEPS)).cumsum() / far  # two times the smallest effect, over time
                own = windows[seed] + draw.normal(0, 0.005, (len(STEPS), WINDOWS))
                made[seed] = run_curve(run_of(falling + walk, noise=own), STEPS[-1])
            return made

        control = arm()
        yield [learning_of(arm(), control, 1000, LEAST, count).timing for _ in range(count)]


def test_noise_alone_gives_hardly_any_arm_a_word():
    """One arm under three seeds, two words: early and final."""
    words = [word for (word,) in noise_words(50, 3, 1, np.random.default_rng(3))]
    assert sum(word != "none" for word in words) <= 7 and "the sign turns" not in words


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_noise_gives_an_early_or_a_final_word_in_at_most_seven_percent_of_trials(seeds):
    trials = list(noise_words(300, seeds, 4, np.random.default_rng(11)))
    for word in ("early", "final"):
        assert sum(any(word in one for one in words) for words in trials) <= 21, word


def test_runs_of_an_earlier_version_have_no_curve():
    old = decode(Trained, {"curve": {}, "seconds": 1.0, "penalty_to_ce": None, "details": []})
    run = Run(None, run_of([2.0] * len(STEPS)).validation, None, old, (), None)
    assert (
        curve_of(run, 400, 1000).step == () and run_curve(run, 400) is None and learning_of({}, {}, 1000, LEAST) is None
    )


def test_tasks_are_measured_before_the_model_learns_the_next_text(monkeypatch, tmp_path):
    """The next text is trained in place: tasks after it would be those of another model."""
    order, weights = [], SimpleNamespace(info=None, trained=False)

    def learn(run, current, texts, watch):
        current.trained = True

    def evaluate(current, tasks, **more):
        order.append(("tasks", current.trained))
        return ()

    monkeypatch.setattr(arm_run, "_measure_beyond", learn)
    monkeypatch.setattr(arm_run, "evaluate", evaluate)
    monkeypatch.setattr(arm_run, "analyze", lambda *given, **more: SimpleNamespace(to_json=lambda path: None))
    monkeypatch.setattr(arm_run, "replace", lambda value, **changes: value)
    run = ArmRunInput(ArmSpec("control", "control"), 0, Plan(), "m", ModelOptions(), tmp_path, "", "title")
    texts = SimpleNamespace(validation=None, probe=None)
    arm_run.measure(run, weights, texts, SimpleNamespace(names=("piqa",)), Watch())
    assert order == [("tasks", False)] and weights.trained


def test_what_was_trained_otherwise_on_the_next_text_is_not_compared():
    """A resumed trial with other --then-steps, or whose control was given another rate by --tune."""
    windows = SimpleNamespace(
        predicted_bytes=(BYTES,) * 4, info=SimpleNamespace(windows_sha256="w", documents=(0, 0, 1, 1))
    )
    then = SimpleNamespace(windows=windows, schedule=SimpleNamespace(steps=6))
    runs_ = SimpleNamespace(texts=SimpleNamespace(then=then), schedule=SimpleNamespace(tokens_per_step=10))

    def made(last=6, settings=(1e-3, 0.2), shift=0.0):
        nats = tuple((70.0 - step + shift,) * 4 for step in (0, 3, last))
        scores = Scores((0, 3, last), (0.0, 1.0, 2.0), nats, 2.0, "processor")
        return {0: SimpleNamespace(beyond=Beyond(None, scores, "w", settings))}

    def compared(arm):
        return learning._then(arm, made(), runs_, 0.005, 1)

    alike = compared(made(shift=1.0))
    assert alike.changes[-1].value == pytest.approx(1 / np.log(2) / BYTES)
    assert compared(made(last=12)) is None and compared(made(settings=(3e-3, 0.2))) is None
    assert compared(made(settings=())) is not None, "a run of an earlier version"


@pytest.mark.slow
def test_final_models_are_scored_on_another_domain_and_learn_the_next_text(tiny, tmp_path, monkeypatch):
    """The difference on the other text is that of the kept nats; the next text is learnt from the saved models."""
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    other, then = tmp_path / "other.jsonl", tmp_path / "then.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[38:48]), encoding="utf-8")
    then.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[48:]), encoding="utf-8")
    training = Plan(max_steps=3, max_length=32, per_device_train_batch_size=2, num_texts=4, learning_rate=1e-2)
    plan = TrialPlan(
        parse_arms("dispersion=3,larger-vocab", ()),
        1,
        training,
        other_text=str(other),
        then_text=str(then),
        then_steps=6,
    )
    out = tmp_path / "out"

    def stopped(*given, folder, **more):
        (folder / "checkpoint-1").mkdir(parents=True)
        raise InterruptedRunError(130)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(arm_run, "train", stopped)
        trial(tiny("llama"), texts[:40], out, plan, device="cpu")
    assert not list(out.glob("arms/*/seed-0/runs/then")) and list(out.glob("arms/*/seed-0/trained.json"))
    made = trial(tiny("llama"), texts[:40], out, plan, device="cpu", resume=True)
    arm, control = made.arms[1], made.control
    kept = [
        json.loads((out / one.runs[0].folder / "beyond.json").read_text(encoding="utf-8")) for one in (arm, control)
    ]
    assert len(kept[0]["other"]["nats"]) == made.other.texts == 4 and made.other.documents == (0, 1, 2, 3)
    ratio = arm.other.change.value / (arm.other.own.value - control.other.own.value)
    assert ratio == pytest.approx(1) and arm.other.word is None, "one seed has no word"
    assert sum(kept[0]["other"]["nats"]) != sum(kept[1]["other"]["nats"])
    assert arm.then.step[0] == 0 and arm.then.step[-1] == 6 and control.then.own[-1].value < control.then.own[0].value
    assert made.arms[2].then is not None and made.then_tokens == 6 * 64
    assert "On text of another domain" in made.to_markdown() and "next text" in made.to_html(plotlyjs="none")
    assert not list(out.glob("arms/*/seed-0/runs/then"))
    again = trial(tiny("llama"), texts[:40], out, plan, device="cpu", resume=True)
    assert again.arms == made.arms
    without = trial(tiny("llama"), texts[:40], out, replace(plan, other_text=None, then_text=None, then_steps=None),
                    device="cpu", resume=True)  # fmt: skip
    assert without.arms[1].other is None and without.arms[1].runs == made.arms[1].runs, "nothing is trained again"


@pytest.mark.parametrize("flag", ["--other-text", "--then-text"])
def test_texts_without_bytes_are_refused_before_anything_is_trained(flag, monkeypatch):
    """A tokenizer without offsets: the difference in bits per byte would be no number, at the end of all runs."""
    documents = [Document(str(number), f"text {number}") for number in range(4)]
    windows = SimpleNamespace(predicted_bytes=(None, None))
    monkeypatch.setattr(prepare, "documents_of", lambda *given: documents)
    monkeypatch.setattr(prepare, "held_out", lambda *given: SimpleNamespace(windows=windows))
    monkeypatch.setattr(prepare, "replace", lambda value, **changes: value)
    rows, schedule = SimpleNamespace(length=8, notes=()), SimpleNamespace(steps=4, tokens_per_step=8)
    made = SimpleNamespace(masked=False, parts=Split([], []), rows=rows, schedule=schedule, validation=None)
    monkeypatch.setattr(prepare, "training_rows", lambda *given: Rows([], 8, True))
    more = TrialPlan(**{flag[2:].replace("-", "_"): "a.txt"})
    with pytest.raises(UsageError, match=f"{flag} needs bits per byte, and the tokenizer gives no offsets"):
        prepare.with_texts(made, None, "text", Plan(), more)


def test_texts_that_a_trial_cannot_take_are_refused():
    with pytest.raises(UsageError, match="--then-steps"):
        TrialPlan(then_steps=8)
    with pytest.raises(UsageError, match="masked"):
        prepare.with_texts(SimpleNamespace(masked=True), None, "text", Plan(), TrialPlan(other_text="other.txt"))
