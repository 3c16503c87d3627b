"""What a trial says: words from three seeds on, the dose by its rule, advice that follows what was seen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from condense.comparison.verdict import WITHOUT_TOP, cone_word, quality_word
from condense.records.base import Again, Estimate
from condense.records.diagnosis import ModelInfo, Quality
from condense.records.learning import Learning, Look
from condense.records.plans import ArmSpec, Plan, TrialPlan
from condense.records.treatment import Curve, Power, Word
from condense.records.trial import ArmEffect, ArmResult, ArmRun, Pair, Rank, SeedEffect
from condense.report.trial.tables import recommendation
from condense.training.arm_names import parse_arms
from condense.training.remedies import REMEDIES, definition_of, dose_in_words
from condense.trials.doses import control_moved, deciding_change, dose_responses, longer_training, next_dose
from condense.trials.scope import placebo_findings, scope_findings
from condense.trials.verdict import arm_verdict, power_before, trial_findings, unranked

MODEL = ModelInfo("tiny", "LlamaForCausalLM", "causal", 1000, 32, 3, "float32", "safetensors")
QUALITY = Quality(Estimate(2.0), Estimate(7.4), Estimate(1.0, 0.9, 1.1))
PLAN = TrialPlan((ArmSpec("control", "control"),), 3)
BEFORE = ArmRun(0, {}, QUALITY, {}, QUALITY, ())


def effect(cosine, bits=(0.0, -0.001, 0.001), without=None, seeds=3):
    metrics = {
        "mean_cosine": Estimate(*cosine),
        WITHOUT_TOP: Estimate(*(without or cosine)),
        "bits_per_byte": Estimate(*bits),
        "loss": Estimate(*bits),
    }
    words = {
        key: Word(cone_word(metrics[key], (metrics[key].low, metrics[key].high), 0.01), key, 0.01)
        for key in ("mean_cosine", WITHOUT_TOP)
    }
    words["quality"] = Word(quality_word(metrics["bits_per_byte"], bits[1:], 0.005), "bits_per_byte", 0.005)
    by_seed = tuple(SeedEffect(number, metrics) for number in range(seeds))
    return ArmEffect(metrics, by_seed, {}, words=words, covers=f"{seeds} seeds; 4 documents")


FALL, SMALL, UNCLEAR, RISE = (-0.1, -0.12, -0.08), (-0.001, -0.002, 0.0), (-0.01, -0.05, 0.03), (0.1, 0.05, 0.15)
COSTLY, BETTER, WIDE = (0.02, 0.01, 0.03), (-0.02, -0.03, -0.01), (0.004, -0.01, 0.02)


def arm(name, of, coefficient=None, remedy="dispersion", ratio=None, **more):
    verdict, reason, quality, opened = arm_verdict(of)
    spec = ArmSpec(name, remedy, "angular" if remedy == "dispersion" else None, "all", coefficient)
    run = ArmRun(0, {}, QUALITY, {}, QUALITY, (), penalty_to_ce=ratio, curve=Curve(step=(10, 30)))
    given = {"runs": (run,), **more}
    return ArmResult(
        spec, "done", name, "d", "s", effect=of, verdict=verdict, verdict_reason=reason, quality=quality,
        opened=opened, **given,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("of", "expected", "quality"),
    [
        (effect(FALL), "dispersed", "held"),
        (effect(FALL, BETTER), "dispersed", "improved"),
        (effect(FALL, WIDE), "dispersed", "not shown to be held"),
        (effect(FALL, COSTLY), "dispersed-at-a-cost", "worse"),
        (effect(SMALL), "too-small-to-count", "held"),
        (effect(UNCLEAR), "inconclusive", "held"),
        (effect(RISE), "condensed-further", "held"),
    ],
)
def test_the_verdict_of_an_arm(of, expected, quality):
    found, reason, word, _ = arm_verdict(of)
    assert (found, word, reason) == (expected, quality, "")


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_an_arm_has_no_verdict(seeds):
    found, reason, quality, opened = arm_verdict(effect(FALL, seeds=seeds))
    assert quality is None and opened is None
    assert found == "inconclusive" and reason == f"{seeds} seed{'s' * (seeds > 1)}: a word on an arm needs 3"


def test_the_dose_is_the_largest_effect_whose_quality_is_held():
    larger = (-0.3, -0.32, -0.28)
    group = [
        arm("d=1", effect(larger, COSTLY), 1.0),
        arm("d=0.3", effect((-0.2, -0.22, -0.18), WIDE), 0.3),
        arm("d=0.1", effect(FALL), 0.1),
        arm("d=0.03", effect((-0.05, -0.06, -0.04)), 0.03),
    ]
    (dose,) = dose_responses(group)
    assert [point.coefficient for point in dose.points] == [0.03, 0.1, 0.3, 1.0]
    assert dose.recommended == 0.1 and "-0.1000" in dose.reason and "held" in dose.reason
    better = dose_responses([arm("d=0.1", effect(FALL, BETTER), 0.1)])[0]
    assert "improved" in better.reason and "held" not in better.reason


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([effect(SMALL), effect(SMALL)], "smaller than what counts"),
        ([effect(SMALL), effect(FALL, COSTLY)], "cost quality"),
        ([effect(SMALL), effect(FALL, WIDE)], "not shown to be held"),
        ([effect(UNCLEAR), effect(SMALL)], "decide nothing"),
        ([effect(RISE), effect(SMALL)], "narrowed"),
        ([effect(FALL, seeds=2)], "2 seeds"),
    ],
)
def test_no_dose_is_recommended_without_a_reason_to(effects, words):
    (dose,) = dose_responses([arm(f"d={n}", of, float(n + 1)) for n, of in enumerate(effects)])
    assert dose.recommended is None and words in dose.reason


def test_no_placebo_and_no_negative_coefficient_is_recommended():
    """They are trained to compare with, however well they do."""
    negative = [arm("dispersion=-1", effect(FALL, BETTER), -1.0), arm("dispersion=1", effect(SMALL), 1.0, ratio=0.3)]
    (dose,) = dose_responses(negative)
    assert dose.recommended is None and dose.reason.startswith("at 1 the effect is smaller")
    assert found(negative)["dose"].next.endswith("--max-steps 300"), "by the pace of the positive dose alone"
    (alone,) = dose_responses(negative[:1])
    assert alone.recommended is None and alone.reason == "no coefficient above 0 was tried"
    assert "--arms dispersion=0.1" in found(negative[:1])["dose"].next
    for remedy in (name for name in REMEDIES if name.startswith("placebo-")):
        placebo = arm(f"{remedy}=1", effect(FALL, BETTER), 1.0, remedy)
        (dose,) = dose_responses([placebo])
        assert dose.recommended is None and dose.reason == "a placebo is there to compare with"
        notes = found([placebo])
        assert "dose" not in notes and notes["trial"].severity == "info", "nothing good, nothing to use"
    best = arm("dispersion=1", effect(FALL, BETTER), 1.0)
    assert dose_responses([best, *negative[:1]])[0].recommended == 1.0 and found([best])["trial"].severity == "good"


def test_each_loss_and_place_has_a_curve_of_its_own():
    late = arm("dispersion@late=1", effect(FALL), 1.0)
    late = replace(late, spec=replace(late.spec, layers="late"))
    doses = dose_responses(
        [arm("dispersion=1", effect(FALL), 1.0), late, arm("cosreg=1", effect(SMALL), 1.0, "cosreg")]
    )
    assert len(doses) == 3 and {len(dose.points) for dose in doses} == {1}


@pytest.mark.parametrize(("seeds", "arms", "word"), [(4, 3, "4 seeds"), (1, 3, "1 seed:"), (5, 1, "one arm")])
def test_nothing_is_ranked_on_too_little(seeds, arms, word):
    assert word in unranked(seeds, arms)
    assert unranked(5, 2) is None


# --- advice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coefficient", "ratio", "dose"),
    [
        (0.1, 0.01, 1.0),
        (0.1, 1e-9, 10.0),
        (1.0, 0.049, 2.0),
        (1.0, 0.05, None),
        (3.0, 0.98, None),
        (0.1, None, None),
        (0.0, None, Plan.coefficient),
    ],
)
def test_a_coefficient_is_raised_to_a_tenth_of_cross_entropy_and_no_further(coefficient, ratio, dose):
    assert next_dose(coefficient, ratio) == (None if dose is None else pytest.approx(dose))


def test_advice_on_doses_comes_to_an_end():
    """However often it is followed: the penalty grows with the coefficient, so the second advice is another one."""
    coefficient, ratio, seen = 1e-4, 1e-5, []
    while (dose := next_dose(coefficient, ratio)) is not None:
        coefficient, ratio = dose, ratio * dose / coefficient
        seen.append(dose)
    assert len(seen) <= 3 and 0.05 <= ratio <= 0.2


def test_training_is_lengthened_or_sharpened_by_how_far_the_control_moved():
    again = Again("condense treat m --text t --learning-rate 1e-5 --max-steps 30")
    assert "--max-steps 120" in longer_training(Plan(), 30, True, again)
    assert "--learning-rate 0.0002" in longer_training(Plan(learning_rate=5e-5), 30, False, again)
    searched = Again("condense trial m --tune learning_rate=1e-5,2e-5 --max-steps 30")
    assert "--tune" not in longer_training(Plan(learning_rate=5e-5), 30, False, searched), "it would override the rate"
    assert "--tune learning_rate=1e-5,2e-5" in longer_training(Plan(), 30, True, searched)
    still, moved = (replace(QUALITY, bits_per_byte=Estimate(v)) for v in (1.002, 0.9))
    assert control_moved(QUALITY, still, 0.005) is False and control_moved(QUALITY, moved, 0.005) is True
    assert control_moved(Quality(*[Estimate(None)] * 3), still, 0.005) is None


def found(arms, model=MODEL, reason=None, command="condense trial m --text t -o out --seeds 3"):
    findings = trial_findings(PLAN, model, BEFORE, arms, dose_responses(arms), reason, command)
    for finding in findings:
        assert finding.title and finding.seen and finding.why and finding.source
        assert finding.next.startswith("condense ") and "--coefficients 0 " not in finding.next + " "
    return {f.id: f for f in findings}


@pytest.mark.parametrize(
    ("arms", "option"),
    [
        ([("d=0.1", SMALL, (0, -1e-3, 1e-3), 0.1, 0.01)], "--arms d=1"),
        ([("d=0.1", SMALL, (0, -1e-3, 1e-3), 0.1, 0.5)], "--max-steps"),
        ([("d=0", SMALL, (0, -1e-3, 1e-3), 0.0, None)], "--arms d=0.1"),
        ([("d=1", FALL, (0, -1e-3, 1e-3), 1.0, 0.1)], "--arms d=3"),
        ([("d=1", FALL, (0, -1e-3, 1e-3), 1.0, 0.6)], "--text other.txt"),
        ([("d=1", FALL, COSTLY, 1.0, 0.3)], "--arms d=0.33"),
        ([("d=0.1", SMALL, (0, -1e-3, 1e-3), 0.1, 0.1), ("d=1", FALL, COSTLY, 1.0, 0.3)], "--arms d=0.32"),
        ([("d=0.1", FALL, (0, -1e-3, 1e-3), 0.1, 0.1), ("d=1", FALL, COSTLY, 1.0, 0.3)], "--arms d=0.32"),
        ([("d=0.6", FALL, (0, -1e-3, 1e-3), 0.6, 0.1), ("d=1", FALL, COSTLY, 1.0, 0.3)], "--text other.txt"),
        ([("d=1", UNCLEAR, (0, -1e-3, 1e-3), 1.0, 0.3)], "--seeds 6"),
    ],
)
def test_the_next_dose_follows_the_curve(arms, option):
    made = [arm(name, effect(cosine, bits), c, ratio=ratio) for name, cosine, bits, c, ratio in arms]
    assert (
        option
        in found(made, command="condense trial m --text t -o out --seeds 3 --arms d=7,b --coefficients 7")["dose"].next
    )


def test_other_doses_are_asked_for_where_the_arms_have_coefficients_of_their_own():
    """`--coefficients` beside `dispersion=1` changes nothing: the shipped trial once advised that."""
    dose = arm("dispersion@late+linear:0.5=1", effect(FALL, (0, -1e-3, 1e-3)), 1.0, ratio=0.1)
    advised = found([dose], command="condense trial m -o out --arms control,dispersion@late+linear:0.5=1")["dose"].next
    arms = Again(advised).value("arms")
    assert [spec.coefficient for spec in parse_arms(arms)] == [None, 3.0] and "--coefficients" not in advised


def test_more_text_is_advised_where_seeds_do_not_help():
    limited = Power("mean_cosine", 3, 0.05, 0.01, 0.02, 3.0, 0.05, 0.01, None, "more validation text, not more seeds")
    open_ = arm("d=1", replace(effect(UNCLEAR), power={"mean_cosine": limited}), 1.0, ratio=0.2)
    notes = found([open_])
    assert "--num-texts 128" in notes["dose"].next and "--num-texts 128" in notes["power"].next
    assert "more validation text, not more seeds" in notes["power"].seen and "0.05" in notes["power"].seen
    enough = Power("mean_cosine", 3, 0.05, 0.01, 0.001, 3.0, 0.04, 0.01, 12)
    notes = found([arm("d=1", replace(effect(UNCLEAR), power={"mean_cosine": enough}), 1.0)])
    assert "--seeds 12" in notes["power"].next and "it takes 12 seeds" in notes["power"].seen
    assert "power" not in found([arm("d=1", effect(UNCLEAR), 1.0)])


def test_power_before_a_trial():
    (public,) = power_before(3, 1)
    assert "by it 3 seeds can show 0.0011 bits per byte" in public and "not known yet" in public
    assert power_before(1, 1) == ["one seed covers no other seed; a claim needs at least 3"]
    spread = Power("mean_cosine", 3, 0.05, 0.01, 0.001, 3.0, 0.04, 0.01, 12)
    few, many = (power_before(n, 1, [("d=1", {"mean_cosine": spread})])[0] for n in (3, 20))
    assert "by the earlier run, 3 seeds can show deep mean cosine" in few and few != many
    assert "it takes" in many and "(d=1, which varies most)" in many


def decided(cosine, bits=(0, -1e-3, 1e-3), coefficient=1.0, ratio=0.3, seeds=3, before=None, power=None, **more):
    made = arm("d=1", replace(effect(cosine, bits, seeds=seeds), power=power or {}), coefficient, ratio=ratio, **more)
    control = arm("control", effect(SMALL), remedy="control")
    control = replace(control, effect=None, runs=(replace(control.runs[0], quality=before or control.runs[0].quality),))
    return found([control, made])["dose"]


def test_without_a_recommendation_the_one_change_that_would_decide_is_named():
    """By what was measured: seeds, a schedule, the coefficient, the rate, the steps, the text."""
    few = decided(FALL, seeds=2)
    assert "none; more seeds would decide" in few.title and "2 seeds" in few.why
    higher = decided(SMALL, ratio=0.001)
    assert "a higher coefficient would decide" in higher.title and "1.0e-03 of cross-entropy" in higher.why
    lower = decided(FALL, COSTLY)
    assert "a lower coefficient would decide" in lower.title and "costs quality" in lower.why
    still = decided(SMALL)
    assert "a higher learning rate would decide" in still.title and "--learning-rate" in still.next
    assert "less than the 0.5% that counts" in still.why
    trained = decided(SMALL, before=replace(QUALITY, bits_per_byte=Estimate(0.8)))
    assert "more steps would decide" in trained.title and "at that pace 0.01 takes 300" in trained.why
    assert "--max-steps 300" in trained.next, "the effect was 0.001 in 30 steps"
    spread = Power("mean_cosine", 3, 0.05, 0.01, 0.001, 3.0, 0.04, 0.01, 12)
    seeds = decided(UNCLEAR, power={"mean_cosine": spread})
    assert "12 seeds would decide" in seeds.title and "--seeds 12" in seeds.next and "there were 3" in seeds.why
    text = decided(UNCLEAR, power={"mean_cosine": replace(spread, seeds_needed=None, reason="more text")})
    assert "more validation text would decide" in text.title and "--num-texts 128" in text.next
    looks = [Look("first quarter", 5, 10, Estimate(-0.05), "improved"), Look("end", 40, 40, Estimate(0.02), "worse")]
    learned = Learning((40,), (40,), (1.0,), (1.0,), (Estimate(1.0),), 3, looks=tuple(looks), timing="the sign turns")
    falls = decided(FALL, COSTLY, learning=learned)
    assert "a coefficient that falls to 0 would decide" in falls.title and "+linear:0.25=1" in falls.next
    assert "better in the first quarter" in falls.why
    lossy = arm("d=1", effect(FALL, COSTLY), 1.0, learning=learned)
    (dose,), falling = dose_responses([lossy]), Plan(coefficient_schedule="linear")
    change = deciding_change(dose, [lossy], falling, 30, None, Again("condense trial m -o o"))
    assert change.what == "a lower coefficient", "it falls already"
    held = replace(lossy, spec=replace(lossy.spec, name="dispersion+constant=1", schedule="constant"))
    change = deciding_change(dose, [held], falling, 30, None, Again("condense trial m -o o"))
    assert "--arms dispersion+linear:0.25=1" in change.command, "an arm that stays where the others fall"


SPECS = [spec for remedy in REMEDIES for spec in parse_arms(remedy)[1:] if spec.coefficient is not None]
SPECS += parse_arms("dispersion@late=1,dispersion+linear=1,dispersion:robust@3+-1=1,dispersion=-1,simreg@all=1")[1:]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(("cosine", "bits", "ratio"), [(SMALL, WIDE, 1e-5), (FALL, COSTLY, 0.9), (FALL, BETTER, 0.1)])
@pytest.mark.parametrize("lost", [False, True])
def test_every_command_that_is_advised_is_accepted(spec, cosine, bits, ratio, lost):
    """The arms that it names: "cosreg+linear:0.25=1" was advised where an early gain of cosreg was lost."""
    looks = [Look("first quarter", 5, 10, Estimate(-0.05), "improved"), Look("end", 40, 40, Estimate(0.02), "worse")]
    learned = Learning((40,), (40,), (1.0,), (1.0,), (Estimate(1.0),), 3, looks=tuple(looks), timing="the sign turns")
    made = arm(
        spec.name, effect(cosine, bits), spec.coefficient, spec.remedy, ratio, learning=learned if lost else None
    )
    command = f"condense trial m -o out --arms {spec.name} --coefficients 1,2"
    doses = dose_responses([replace(made, spec=spec)])
    for finding in trial_findings(PLAN, MODEL, BEFORE, [replace(made, spec=spec)], doses, None, command):
        advised = Again(finding.next)
        if advised.value("arms") != spec.name:
            assert len(parse_arms(advised.value("arms"))) > 1 and not advised.value("coefficients")


def test_arms_of_another_schedule_are_another_curve():
    falling = arm("dispersion+linear:0.25=1", effect(FALL), 1.0)
    falling = replace(falling, spec=replace(falling.spec, schedule="linear:0.25"))
    doses = dose_responses([arm("dispersion=1", effect(FALL), 1.0), falling])
    assert [len(dose.points) for dose in doses] == [1, 1] and "falling to 0 (linear:0.25)" in doses[1].title


def test_arms_are_told_and_grouped_by_the_schedule_that_they_follow():
    made = [arm("dispersion=1", effect(FALL), 1.0), arm("cosreg=1", effect(FALL), 1.0, "cosreg")]
    held = arm("dispersion+constant=2", effect(FALL), 2.0)
    held = replace(held, spec=replace(held.spec, schedule="constant"))
    titles = [dose.title for dose in dose_responses([*made, held], "linear:0.25")]
    assert titles == [
        "dispersion, angular loss, on all layers, falling to 0 (linear:0.25)",
        "cosreg, on all layers",
        "dispersion, angular loss, on all layers",
    ]
    assert [len(dose.points) for dose in dose_responses([made[0], held])] == [2], "constant either way"
    mixed = replace(held, spec=replace(held.spec, schedule="linear"))
    assert [len(dose.points) for dose in dose_responses([made[0], mixed], "linear:1.0")] == [2], "written in two ways"
    assert dose_in_words(0.0, "linear") == "coefficient 0" and dose_in_words(None, "constant") == ""
    for name in (name for name, remedy in REMEDIES.items() if "schedule" in remedy.takes):
        (own,) = parse_arms(f"{name}+cosine:0.5")[1:]
        assert "falls to 0 (cosine:0.5)" in definition_of(own, "linear")
        assert "falls to 0 (linear)" in definition_of(replace(own, schedule=None), "linear")
        assert "falls" not in definition_of(replace(own, schedule="constant"), "linear")
    assert "falls" not in definition_of(made[1].spec, "linear"), "cosreg takes none"


# --- findings ------------------------------------------------------------------------------------------


def test_the_first_finding_names_what_helped():
    arms = [arm("d=0.1", effect(FALL), 0.1), arm("d=1", effect(FALL, COSTLY), 1.0)]
    first = found(arms)["trial"]
    assert first.title.startswith("d=0.1 spread the representation and held quality; d=1 spread the representation, at")
    assert "-0.1000" in first.seen and "counts from 0.01" in first.seen and "tolerance 0.5%" in first.seen
    assert "What opened: d=0.1: cone opened" in first.why and first.severity == "good"
    assert found(arms[1:])["trial"].severity == "warning"
    improved = found([arm("d=0.1", effect(FALL, BETTER), 0.1)])["trial"]
    assert "improved quality" in improved.title and "held" not in improved.title
    unshown = found([arm("d=0.1", effect(FALL, WIDE), 0.1)])["trial"]
    assert "not shown to be held" in unshown.title and unshown.severity == "info"
    small = found([arm("d=0.1", effect(SMALL), 0.1)])["trial"]
    assert small.title == "No arm changed the deep mean cosine by what counts"
    assert "not shown" not in small.title and found([arm("a", effect(RISE), 1.0)])["trial"].severity == "warning"


def test_three_dimensions_rescaled_are_no_good_news():
    rescaled = arm("d=1", effect(FALL, without=SMALL), 1.0)
    assert rescaled.opened == "three dimensions rescaled" and found([rescaled])["trial"].severity != "good"
    title = found([rescaled, arm("d=3", effect(FALL, COSTLY), 3.0), arm("d=2", effect(FALL), 2.0)])["trial"].title
    assert "d=1 spread the representation by rescaling three dimensions and held quality" in title
    assert "d=2 spread the representation and held quality" in title
    assert "d=3 spread the representation, at a cost in language modelling" in title


def test_few_seeds_are_said_in_the_headline():
    one = replace(effect(FALL, seeds=1), covers="this pair of runs; other seeds not covered; 4 documents")
    title = found([arm("d=1", one, 1.0)], reason="1 seed: a rank needs 5")["trial"].title
    assert title.startswith("No word on any arm: 1 seed") and "this pair of runs; other seeds not covered" in title


def test_the_headline_names_arms_whose_quality_changed_without_the_cone():
    """An arm that did nothing to the cone and lost quality is not told as "no arm changed"."""
    lost = found([arm("e", effect(SMALL, COSTLY), None, "embedding-dropout")])["trial"]
    assert lost.title == "No arm changed the deep mean cosine by what counts; e predicts the texts worse"
    assert lost.severity == "warning"
    both = found([arm("d=1", effect(FALL), 1.0), arm("e", effect(SMALL, COSTLY)), arm("f", effect(SMALL, COSTLY))])
    assert both["trial"].title.endswith("; e and f predict the texts worse") and both["trial"].severity == "good"
    better = found([arm("e", effect(UNCLEAR, BETTER))])["trial"]
    assert better.title == "No arm is shown to spread the representation; e predicts the texts better"


def test_what_is_decided_asks_for_no_more_seeds():
    spread = Power("mean_cosine", 3, 0.05, 0.01, 0.001, 3.0, 0.04, 0.01, 12)

    def advice(cosine):
        return found([arm("d=1", replace(effect(cosine), power={"mean_cosine": spread}), 1.0)])["power"].next

    assert "--seeds 12" in advice(UNCLEAR) and "--seeds 12" not in advice(SMALL)


def test_a_dose_that_rescaled_three_dimensions_is_no_good_news():
    rescaled = replace(arm("d=1", effect(FALL), 1.0), opened="three dimensions rescaled")
    dose = found([rescaled])["dose"]
    assert dose.severity == "info" and "by three dimensions being rescaled, not by the cone opening" in dose.seen
    assert found([arm("d=1", effect(FALL), 1.0)])["dose"].severity == "good"


@pytest.mark.parametrize(
    ("opened", "words"),
    [
        ("three dimensions rescaled", "by three dimensions being rescaled, not by the cone opening)"),
        ("both", "in part by three dimensions being rescaled)"),
        ("not clear", "whether the cone opened or three dimensions were rescaled is not clear)"),
        ("cone opened", "held (+0.0000 [-0.0010, +0.0010]))"),
    ],
)
def test_what_fell_stands_beside_the_recommended_coefficient(opened, words):
    arms = [replace(arm("d=1", effect(FALL), 1.0), opened=opened), arm("d=3", effect(RISE), 3.0)]
    (dose,) = dose_responses(arms)
    said = recommendation(SimpleNamespace(arms=arms), dose)
    assert said.startswith("Recommended coefficient: 1 (") and said.endswith(words)
    none = replace(dose, recommended=None)
    assert "dimensions" not in recommendation(SimpleNamespace(arms=arms), none)


def test_advice_comes_with_this_runs_numbers():
    arms = [arm("d=0.1", effect(FALL), 0.1)]
    large = replace(MODEL, parameters=2_000_000_000, contrastive=True)
    notes = found(arms, large)
    assert "2.0 billion" in notes["large-model"].seen and "-0.1000" in notes["large-model"].seen
    assert "-0.1000" in notes["contrastive"].seen
    assert not {"large-model", "contrastive", "larger-vocab"} & set(found(arms))
    forgetting = arm("active-forgetting", effect(SMALL, (1.0, 0.9, 1.1)), None, "active-forgetting")
    assert "+1.0000" in found([forgetting])["active-forgetting"].seen


def test_failures_ratios_and_ties_are_told():
    broken = ArmResult(ArmSpec("cosreg=1", "cosreg", coefficient=1.0), "failed", "c", "d", "s", reason="seed 0: boom")
    ranks = {"mean_cosine": Rank(1), "bits_per_byte": Rank(1, ("b",))}
    heavy = arm("d=9", effect(FALL, COSTLY), 9.0, ratio=2.0, ranks=ranks)
    other = arm("b", effect(SMALL), 1.0, ranks={"mean_cosine": Rank(2), "bits_per_byte": Rank(1, ("d=9",))})
    notes = found([heavy, other, broken])
    assert notes["arm-failed"].seen == "seed 0: boom" and notes["arm-failed"].next.endswith("--resume")
    assert (
        "large beside cross-entropy" in notes["penalty-ratio"].title and "--arms d=0.5" in notes["penalty-ratio"].next
    )
    assert notes["ranking"].seen == "most spread first: d=9, then b; fewest bits per byte first: d=9 = b"
    assert "not-ranked" in found([heavy], reason="2 seeds: …")


def test_a_gain_from_random_weights_is_not_said_to_last():
    drawn = replace(MODEL, source_format="random")
    arms = [arm("dispersion=1", effect(FALL, BETTER), 1.0), arm("dispersion=3", effect(FALL, COSTLY), 3.0)]
    command = "condense trial tiny --random-init --text t.txt -o trial/ --max-steps 30"

    def warnings(model, arms):
        given = trial_findings(PLAN, model, BEFORE, arms, (), None, command)
        return [finding for finding in given if finding.id == "early-gain"]

    (found,) = warnings(drawn, arms)
    assert "30 steps" in found.title and found.seen.startswith("dispersion=1:") and "--max-steps 120" in found.next
    assert not warnings(MODEL, arms), "trained weights"
    assert not warnings(drawn, arms[1:]) and not warnings(drawn, [arm("n", effect(FALL, BETTER), remedy="cosreg")])


AGAIN = Again("condense trial tiny --text t.txt -o trial/ --seeds 3")


def pair(first, second, value, p, clear=False):
    bits = Estimate(value, value - 0.01, value + 0.02)
    return Pair(
        first,
        second,
        {"mean_cosine": Estimate(0.0), "bits_per_byte": bits},
        {"bits_per_byte": clear},
        {"bits_per_byte": p},
    )


def test_a_placebo_that_helps_as_well_is_said():
    arms = [
        arm("dispersion=1", effect(FALL, BETTER), 1.0),
        arm("dispersion:decorrelation=0.3", effect(FALL, BETTER), 0.3),
        arm("dispersion=-1", effect(RISE, COSTLY), -1.0),
        arm("placebo-shuffled=1", effect(FALL, BETTER), 1.0, remedy="placebo-shuffled"),
        arm("placebo-norm=1", effect(SMALL), 1.0, remedy="placebo-norm"),
    ]
    pairs = [
        pair("dispersion=1", "placebo-shuffled=1", -0.02, 0.23),
        pair("placebo-shuffled=1", "dispersion:decorrelation=0.3", 0.06, 0.02, True),
        pair("dispersion=-1", "placebo-shuffled=1", 0.3, 0.001, True),
        pair("dispersion=1", "placebo-norm=1", -0.03, 0.2),
    ]
    same, held, better = placebo_findings(arms, pairs, AGAIN)
    assert same.severity == "warning" and same.title.startswith("placebo-shuffled=1, a placebo, helps too")
    assert "-0.0200 [-0.0300, +0.0000], p = 0.23" in same.seen and "an arm needs 5 seeds" in same.seen
    assert held.title == "dispersion=1 improved quality, and is not shown to be better than placebo-norm=1, a placebo"
    assert (
        better.severity == "info"
        and better.title == "dispersion:decorrelation=0.3 is better than placebo-shuffled=1, a placebo"
    )
    assert "-0.0600 [-0.0800, -0.0500], p = 0.02" in better.seen, "turned round"
    worse = [pair("dispersion=1", "placebo-shuffled=1", 0.06, 0.001, True)]
    assert [one.severity for one in placebo_findings(arms, worse, AGAIN)] == ["warning"], "clearly worse is not better"
    assert not placebo_findings([arms[0], replace(arms[3], quality=None)], pairs, AGAIN), "below three seeds"
    assert not placebo_findings(arms[:2], pairs, AGAIN) and not placebo_findings(arms, [], AGAIN)


def test_a_loss_that_did_not_help_does_not_help_too():
    """It was said of a loss that cost quality, beside a placebo that improved it."""
    placebo = arm("placebo-shuffled=1", effect(FALL, BETTER), 1.0, remedy="placebo-shuffled")
    for of in (effect(FALL, COSTLY), effect(FALL), effect(FALL, WIDE)):
        pairs = [pair("dispersion=1", "placebo-shuffled=1", 0.04, 0.001, True)]
        (finding,) = placebo_findings([arm("dispersion=1", of, 1.0), placebo], pairs, AGAIN)
        assert finding.title == "placebo-shuffled=1, a placebo, improved quality, and dispersion=1 did not"
    neither = replace(placebo, quality="held")
    assert not placebo_findings([arm("dispersion=1", effect(FALL), 1.0), neither], pairs, AGAIN)


def test_a_small_p_alone_is_not_better_than_a_placebo():
    """As for a rank: a difference that counts, over five seeds."""
    arms = [
        arm("dispersion=1", effect(FALL, BETTER), 1.0),
        arm("placebo-norm=0.1", effect(SMALL, BETTER), 0.1, "placebo-norm"),
    ]
    (finding,) = placebo_findings(arms, [pair("dispersion=1", "placebo-norm=0.1", -0.00001, 0.04)], AGAIN)
    assert finding.severity == "warning" and "not shown to be better" in finding.title
    assert "size" not in finding.why, "the coefficients differ"


def test_a_dose_that_is_strong_enough_asks_for_no_stronger_one():
    """0.1 spread the representation; what is open is its quality, which a higher dose does not help."""
    arms = [arm("d=0.1", effect(FALL, WIDE), 0.1), arm("d=1", effect(FALL, COSTLY), 1.0)]
    finding = found(arms)["dose"]
    assert "coefficient" not in finding.title.partition(";")[2] and "--arms d=" not in finding.next
    assert "not enough" not in finding.why and "--seeds" in finding.next


def test_seeds_that_are_told_are_those_of_the_arms_that_are_told_of():
    good, alone = arm("d=0.1", effect(FALL, seeds=5), 0.1), arm("e", effect(SMALL, seeds=1), None, "embedding-dropout")
    assert "over 5 seeds" in found([good, alone])["trial"].why
    assert "over 3 to 5 seeds" in found([good, arm("d=1", effect(FALL), 1.0)])["trial"].why
    small = arm("d=0.1", effect(SMALL, seeds=5), 0.1)
    why = found([small, arm("e", effect(UNCLEAR, seeds=2), None, "embedding-dropout")])["trial"].why
    assert why == "e: 2 seeds: a word on an arm needs 3."
    known = Power("mean_cosine", 5, 0.05, 0.01, 0.001, 3.0, 0.04, 0.01, 12)
    powered = arm("d=0.1", replace(effect(SMALL, seeds=5), power={"mean_cosine": known}), 0.1)
    assert found([powered])["power"].title == "What 5 seeds could have shown", "the plan has 3"


def test_two_seeds_are_promised_no_word():
    spread = Power("mean_cosine", 2, 0.05, 1e-6, 1e-5, 7.0, 1e-4, 0.01, 2)
    (line,) = power_before(2, 1, [("d=1", {"mean_cosine": spread})])
    assert "it takes 3 seeds" in line and line.endswith("below 3 no arm gets a word")
    of = replace(effect(SMALL, seeds=2), power={"mean_cosine": spread})
    assert found([arm("d=1", of, 1.0)])["power"].seen.endswith("below 3 seeds no arm gets a word")


def test_advice_is_for_more_seeds_and_more_steps_than_there_were():
    plan = TrialPlan(PLAN.arms, 3, replace(PLAN.training, seeds=3))
    few = arm("d=0.1", effect(FALL, seeds=2), 0.1)
    command = "condense trial tiny --text t.txt -o trial/"  # three seeds by default, one of which failed
    notes = {one.id: one for one in trial_findings(plan, MODEL, BEFORE, [few], dose_responses([few]), None, command)}
    assert "--seeds 4" in notes["dose"].next
    long = Curve(step=(10, 5000))
    later = arm("active-forgetting", effect(SMALL), None, "active-forgetting")
    later = replace(later, runs=(replace(later.runs[0], curve=long),))
    larger = replace(later, spec=ArmSpec("larger-vocab", "larger-vocab"))
    assert "--max-steps 20000" in found([later])["active-forgetting"].next
    assert "--max-steps 50000" in found([larger])["larger-vocab"].next


@pytest.mark.parametrize(
    ("tune", "missing", "wider"),
    [
        ((), "learning rate and warm-up were", "learning_rate=0.0005,0.001,0.002 --tune warmup_steps=6,12,24"),
        (("learning_rate=1,2",), "warm-up was", "learning_rate=1,2 --tune warmup_steps=6,12,24"),
        (("learning_rate=1,2", "warmup_steps=9"), "warm-up was", "learning_rate=1,2 --tune warmup_steps=9,18,29"),
        (("learning_rate=1,2", "warmup_steps=5,10"), None, None),
    ],
)
def test_a_gain_over_a_control_that_was_not_tuned_is_said(tune, missing, wider):
    drawn = replace(MODEL, source_format="random")
    plan = TrialPlan(arms=PLAN.arms, tune=tune, training=Plan(learning_rate=1e-3, warmup=0.2))
    placebo = arm("placebo-shuffled=1", effect(FALL, BETTER), 1.0, remedy="placebo-shuffled")

    def warnings(model, arms):
        given = scope_findings(plan, model, arms, 30, AGAIN)
        return [finding for finding in given if finding.id == "untuned-control"]

    found = warnings(drawn, [placebo])
    assert not warnings(MODEL, [placebo]) and not warnings(drawn, [arm("d=1", effect(FALL, COSTLY))])
    if missing is None:
        assert not found
    else:
        assert (
            missing in found[0].title
            and found[0].next == f"condense trial tiny --text t.txt -o tuned/ --seeds 3 --tune {wider}"
        )
