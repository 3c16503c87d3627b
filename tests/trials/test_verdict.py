"""What a trial says: the dose by its rule, nothing ranked below three seeds, advice where it applies."""

from dataclasses import replace

import pytest

from condense.records.base import Estimate
from condense.records.diagnosis import ModelInfo, Quality
from condense.records.plans import ArmSpec, Plan, TrialPlan
from condense.records.trial import ArmEffect, ArmResult, ArmRun, Rank
from condense.trials.verdict import arm_verdict, dose_responses, trial_findings, unranked

MODEL = ModelInfo("tiny", "LlamaForCausalLM", "causal", 1000, 32, 3, "float32", "safetensors")
QUALITY = Quality(Estimate(2.0), Estimate(7.4), Estimate(1.0, 0.9, 1.1))
PLAN = TrialPlan((ArmSpec("control", "control"),), 3)


def effect(cosine, bits=(0.0, -0.001, 0.001), without=None):
    metrics = {
        "mean_cosine": Estimate(*cosine), "bits_per_byte": Estimate(*bits), "loss": Estimate(*bits),
        "mean_cosine_without_top_dimensions": Estimate(*(without or cosine)),
    }  # fmt: skip
    return ArmEffect(metrics, (), {})


FALL, SMALL, UNCLEAR, RISE = (-0.1, -0.12, -0.08), (-0.001, -0.002, 0.0), (-0.01, -0.05, 0.03), (0.1, 0.05, 0.15)
COSTLY = (0.02, 0.01, 0.03)


def arm(name, of, coefficient=None, remedy="dispersion", **more):
    verdict, held, opened = arm_verdict(of, QUALITY, Plan(), 16)
    spec = ArmSpec(name, remedy, "angular" if remedy == "dispersion" else None, "all", coefficient)
    return ArmResult(spec, "done", name, "d", "s", effect=of, verdict=verdict, quality_held=held, opened=opened, **more)


@pytest.mark.parametrize(
    ("of", "texts", "expected"),
    [
        (effect(FALL), 16, "dispersed"),
        (effect(FALL, COSTLY), 16, "dispersed-at-a-cost"),
        (effect(SMALL), 16, "no-measurable-effect"),
        (effect(UNCLEAR), 16, "inconclusive"),
        (effect(RISE), 16, "condensed-further"),
        (effect(FALL), 7, "inconclusive"),
    ],
)
def test_the_verdict_of_an_arm_is_that_of_a_treatment(of, texts, expected):
    assert arm_verdict(of, QUALITY, Plan(), texts)[0] == expected


def test_the_dose_is_the_largest_effect_whose_quality_is_held():
    larger = (-0.3, -0.32, -0.28)
    group = [
        arm("d=1", effect(larger, COSTLY), 1.0),
        arm("d=0.1", effect(FALL), 0.1),
        arm("d=0.03", effect((-0.05, -0.06, -0.04)), 0.03),
    ]
    (dose,) = dose_responses(group)
    assert [point.coefficient for point in dose.points] == [0.03, 0.1, 1.0]
    assert dose.recommended == 0.1 and "-0.1000" in dose.reason and "held" in dose.reason


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([effect(SMALL), effect(SMALL)], "no measurable effect"),
        ([effect(SMALL), effect(FALL, COSTLY)], "cost quality"),
        ([effect(UNCLEAR), effect(SMALL)], "do not decide"),
        ([effect(RISE), effect(SMALL)], "narrowed"),
    ],
)
def test_no_dose_is_recommended_without_a_reason_to(effects, words):
    (dose,) = dose_responses([arm(f"d={n}", of, float(n + 1)) for n, of in enumerate(effects)])
    assert dose.recommended is None and words in dose.reason


def test_each_loss_and_place_has_a_curve_of_its_own():
    late = arm("dispersion@late=1", effect(FALL), 1.0)
    late = replace(late, spec=replace(late.spec, layers="late"))
    doses = dose_responses(
        [arm("dispersion=1", effect(FALL), 1.0), late, arm("cosreg=1", effect(SMALL), 1.0, "cosreg")]
    )
    assert len(doses) == 3 and {len(dose.points) for dose in doses} == {1}


@pytest.mark.parametrize(
    ("seeds", "texts", "arms", "word"),
    [(2, 16, 3, "2 seeds"), (1, 16, 3, "1 seed:"), (3, 7, 3, "7 texts"), (3, 16, 1, "one arm")],
)
def test_nothing_is_ranked_on_too_little(seeds, texts, arms, word):
    assert word in unranked(seeds, texts, arms)
    assert unranked(3, 8, 2) is None


def found(arms, model=MODEL, reason=None, command="condense trial m --text t -o out --seeds 3"):
    return {f.id: f for f in trial_findings(PLAN, model, arms, dose_responses(arms), reason, command)}


def test_the_first_finding_names_what_helped():
    arms = [arm("d=0.1", effect(FALL), 0.1), arm("d=1", effect(FALL, COSTLY), 1.0)]
    first = found(arms)["trial"]
    assert first.title == "d=0.1 spread the representation and held quality" and "-0.1000" in first.seen
    assert "What opened: d=0.1: cone opened." in first.why
    assert "at a cost" in found(arms[1:])["trial"].title
    assert found([arm("d=0.1", effect(SMALL), 0.1)])["trial"].title.startswith("No arm")


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
    run = ArmRun(0, {}, QUALITY, {}, QUALITY, (), penalty_to_ce=2.0)
    heavy = arm("d=9", effect(FALL), 9.0, runs=(run,), ranks={"mean_cosine": Rank(1), "bits_per_byte": Rank(1, ("b",))})
    other = arm("b", effect(SMALL), 1.0, ranks={"mean_cosine": Rank(2), "bits_per_byte": Rank(1, ("d=9",))})
    notes = found([heavy, other, broken])
    assert notes["arm-failed"].seen == "seed 0: boom" and notes["arm-failed"].next.endswith("--resume")
    assert "large beside cross-entropy" in notes["penalty-ratio"].title
    assert notes["ranking"].seen == "most spread first: d=9, then b; fewest bits per byte first: d=9 = b"
    assert "not-ranked" in found([heavy], reason="2 seeds: …")
