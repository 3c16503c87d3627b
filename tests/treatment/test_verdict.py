"""What a treatment says: the id and quality by their rules, one seed in the headline, advice that follows the run."""

from dataclasses import replace

import pytest

from condense.comparison.differences import effect_of
from condense.comparison.verdict import WITHOUT_TOP, cone_word, quality_word
from condense.records.base import Estimate
from condense.records.plans import Plan
from condense.records.treatment import Arm, Effect, Overhead, Word
from condense.treatment.verdict import assess
from tests.moved import moved

ONE = "this pair of runs; other seeds not covered"


@pytest.fixture(scope="module")
def run(diagnosed):
    return diagnosed("llama")


def arms_of(run, *names, ratio=None, control=None):
    made = {name: Arm(run, run) for name in names or ("before", "control", "treated")}
    if control is not None:
        made["control"] = Arm(control, control)
    return {**made, "treated": replace(made["treated"], penalty_to_ce=ratio)}


def effect_with(run, cosine, bits_share, without=(0.0, 0.0, 0.0), against="control", seeds=1):
    base = run.quality.bits_per_byte.value
    bits = tuple(None if share is None else base * share for share in bits_share)
    none = Estimate(0.0, 0.0, 0.0)
    deep = {"mean_cosine": Estimate(*cosine), WITHOUT_TOP: Estimate(*without), "effective_rank": none}
    quality = {"bits_per_byte": Estimate(*bits), "loss": none}
    words = {k: Word(cone_word(deep[k], (deep[k].low, deep[k].high), 0.01), k, 0.01) for k in list(deep)[:2]}
    least = 0.005 * base
    words["quality"] = Word(quality_word(quality["bits_per_byte"], bits[1:], least), "bits_per_byte", least)
    covers = f"{ONE}; 8 documents" if seeds == 1 else f"{seeds} seeds; 8 documents"
    return Effect(against, True, deep, quality, (), words, covers, seeds)


FALL, STILL, WIDE, RISE = (-0.05, -0.06, -0.04), (0.0, -0.005, 0.005), (-0.02, -0.05, 0.01), (0.05, 0.04, 0.06)
HELD, COST, BETTER, UNSHOWN = (0, -0.001, 0.004), (0.01, 0.006, 0.014), (-0.01, -0.014, -0.006), (0.002, -0.01, 0.014)


@pytest.mark.parametrize(
    ("cosine", "bits", "expected", "quality", "title"),
    [
        (FALL, HELD, "dispersed", "held", "quality is held"),
        (FALL, BETTER, "dispersed", "improved", "quality improved"),
        (FALL, UNSHOWN, "dispersed", "not shown to be held", "quality is not shown to be held"),
        (FALL, COST, "dispersed-at-a-cost", "worse", "at a cost"),
        (STILL, HELD, "too-small-to-count", "held", "smaller than what counts"),
        (STILL, COST, "too-small-to-count", "worse", "quality got worse"),
        (STILL, BETTER, "too-small-to-count", "improved", "quality improved"),
        (WIDE, HELD, "inconclusive", "held", "Inconclusive"),
        (RISE, HELD, "condensed-further", "held", "more condensed than the control"),
    ],
)
def test_verdicts(run, cosine, bits, expected, quality, title):
    outcome = assess(Plan(), "model", arms_of(run), effect_with(run, cosine, bits, without=cosine))
    assert (outcome.id, outcome.quality) == (expected, quality)
    first = outcome.findings[0]
    assert first.id == expected and title in first.title and f"quality {quality}" in first.seen
    assert "counts from 0.01" in first.seen and "tolerance 0.5%" in first.seen
    for finding in outcome.findings:
        assert finding.title and finding.seen and finding.why and finding.source
        assert finding.next.startswith("condense ")


def test_one_seed_names_no_cause_and_says_so_in_the_headline(run):
    for cosine, bits in ((FALL, HELD), (FALL, COST), (STILL, HELD), (WIDE, HELD), (RISE, HELD)):
        outcome = assess(Plan(), "model", arms_of(run), effect_with(run, cosine, bits))
        assert ONE in outcome.findings[0].title and ONE in outcome.covers
        said = " ".join(f"{f.title} {f.seen} {f.why}" for f in outcome.findings)
        for cause in ("it is the loss", "loss's", "is the loss’s doing", "not just more training", "did nothing"):
            assert cause not in said
    assert "one-seed" in {finding.id for finding in outcome.findings}
    three = assess(Plan(), "model", arms_of(run), effect_with(run, FALL, HELD, FALL, seeds=3))
    assert "the loss's and not just more training's" in three.findings[0].why
    assert ONE not in three.findings[0].title and "over 3 seeds" in three.findings[0].title
    two = assess(Plan(), "model", arms_of(run), effect_with(run, FALL, HELD, FALL, seeds=2))
    assert "just more training" not in two.findings[0].why


@pytest.mark.parametrize(("cosine", "bits"), [(STILL, HELD), (FALL, COST), (RISE, HELD), (WIDE, UNSHOWN)])
def test_a_penalty_of_zero_is_no_division_by_it(run, cosine, bits):
    """A hinge is 0 on a model whose tokens are apart already: the report of the finished training crashed."""
    outcome = assess(Plan(), "model", arms_of(run, ratio=0.0), effect_with(run, cosine, bits))
    (finding,) = (finding for finding in outcome.findings if finding.id == "penalty-ratio")
    assert "negligible" in finding.title and finding.next.startswith("condense ")


def test_without_a_control_nothing_is_attributed(run):
    outcome = assess(
        Plan(), "model", arms_of(run, "before", "treated"), effect_with(run, FALL, HELD, against="before"),
        "condense treat model --text t --no-control",
    )  # fmt: skip
    first = outcome.findings[0]
    assert outcome.id == "no-control" and "No control arm" in first.title and "texts do not decide" not in first.title
    assert first.next == "condense treat model --text t --output with-control/"


def test_three_dimensions_rescaled_is_not_green(run):
    rescaled = assess(Plan(), "model", arms_of(run), effect_with(run, FALL, HELD, without=STILL))
    assert rescaled.opened == "three dimensions rescaled" and rescaled.findings[0].severity != "good"
    assert "three dimensions rescaled" in rescaled.findings[0].title
    opened = assess(Plan(), "model", arms_of(run), effect_with(run, FALL, HELD, without=FALL))
    assert opened.findings[0].severity == "good"


@pytest.mark.parametrize(
    ("ratio", "control_moves", "option", "why"),
    [
        (0.01, True, "--coefficient 1 ", "a larger coefficient has room"),
        (0.98, True, "--max-steps 40 ", "the limit is the number of steps, not the coefficient"),
        (0.98, False, "--learning-rate 0.0002 ", "the learning rate or the number of steps, not the coefficient"),
        (None, True, "--max-steps 40 ", "not known"),
    ],
)
def test_advice_after_a_small_effect(run, ratio, control_moves, option, why):
    control = moved(run, 0.0, bits=-0.3) if control_moves else run
    plan = Plan(max_steps=10)
    outcome = assess(plan, "m", arms_of(run, ratio=ratio, control=control), effect_with(run, STILL, HELD))
    assert option in outcome.findings[0].next + " " and why in outcome.findings[0].why, outcome.findings[0]
    assert "too small beside cross-entropy" not in outcome.findings[0].why


def test_coefficient_0_is_never_advised(run):
    for cosine, bits in ((STILL, HELD), (FALL, COST), (RISE, HELD), (WIDE, HELD), (FALL, HELD)):
        outcome = assess(Plan(coefficient=0.0), "m", arms_of(run), effect_with(run, cosine, bits))
        for finding in outcome.findings:
            assert "--coefficient 0 " not in finding.next + " "
        assert "--coefficient 0.1 " in outcome.findings[0].next + " "


def test_an_open_result_asks_for_what_is_missing(run):
    one = assess(Plan(), "m", arms_of(run), effect_with(run, WIDE, HELD))
    assert "--num-texts 128" in one.findings[0].next and "holds 0 and reaches beyond" in one.findings[0].why
    seeds = {n: moved(run, 0.02 * n - 0.02, noise=0.001, seed=n) for n in range(3)}
    effect = effect_of(seeds, dict.fromkeys(range(3), run), "control")
    several = assess(Plan(), "m", arms_of(run), effect)
    assert several.id == "inconclusive" and "--seeds" in several.findings[0].next
    assert "power" in {finding.id for finding in several.findings}


def test_a_faint_or_heavy_penalty_is_said(run):
    for ratio, bits, word, option in (
        (2e-4, HELD, "negligible", "--coefficient 10"),
        (2.0, COST, "large", "--coefficient 0.005"),
    ):
        outcome = assess(Plan(), "m", arms_of(run, ratio=ratio), effect_with(run, STILL, bits))
        found = {f.id: f for f in outcome.findings}
        assert word in found["penalty-ratio"].title and found["penalty-ratio"].next.endswith(
            f"{option} --output again/"
        )


def test_advice_on_the_penalty_does_not_contradict_the_result(run):
    """No lower coefficient where a heavy penalty left quality alone, no higher one where a faint one has an effect."""
    for ratio, cosine, bits in ((2.0, STILL, HELD), (0.98, STILL, BETTER), (2.0, FALL, HELD), (2e-5, FALL, HELD)):
        outcome = assess(Plan(), "m", arms_of(run, ratio=ratio), effect_with(run, cosine, bits))
        found = {f.id: f for f in outcome.findings}["penalty-ratio"]
        assert found.severity == "info" and "--coefficient" not in found.next
        assert found.next == outcome.findings[0].next, "the same advice"
    assert (
        "yet quality is held here"
        in assess(Plan(), "m", arms_of(run, ratio=2.0), effect_with(run, STILL, HELD)).findings[2].why
    )


def test_two_seeds_name_no_cause_for_a_rise_either(run):
    two, three = (assess(Plan(), "m", arms_of(run), effect_with(run, RISE, HELD, RISE, seeds=n)) for n in (2, 3))
    assert "narrowed the cone" in three.findings[0].why and "narrowed the cone" not in two.findings[0].why


def test_a_cone_that_narrowed_is_called_so(run):
    titles = [f.title for f in assess(Plan(), "m", arms_of(run), effect_with(run, RISE, HELD, RISE)).findings]
    assert "The cone narrowed, with and without the three strongest dimensions" in titles
    assert not any("Neither" in title for title in titles)


def test_enough_seeds_are_not_asked_for_again(run):
    seeds = {n: moved(run, -0.05, noise=0.001, seed=n) for n in range(3)}
    effect = effect_of(seeds, dict.fromkeys(range(3), run), "control")
    power = next(f for f in assess(Plan(), "m", arms_of(run), effect).findings if f.id == "power")
    assert "--seeds" not in power.next and "--text other.txt" in power.next
    assert "any difference" in power.seen, "bits per byte did not vary at all"


def test_advice_names_large_and_contrastive_models(run):
    big = replace(run, model=replace(run.model, parameters=2_000_000_000, contrastive=True))
    outcome = assess(Plan(), "model", arms_of(big), effect_with(big, STILL, HELD))
    assert {"large-model", "contrastive"} <= {finding.id for finding in outcome.findings}


def test_a_cost_within_its_noise_is_none(run):
    from condense.report.treatment.page import _time_words

    within, above = Overhead(1.05, 1.0, time_range=(0.97, 1.11)), Overhead(1.05, 1.0, time_range=(1.03, 1.08))
    assert "as much, within its noise (0.970 to 1.110)" in _time_words(within)
    assert "5 % longer (1.030 to 1.080)" in _time_words(above)
