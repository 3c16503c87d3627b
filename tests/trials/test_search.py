"""`--coefficient auto`: which dose is tried next, which is taken, what is written of it; a search that is killed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from condense.errors import RunError, UsageError
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.records.plans import CONTROL, SEARCH_DOSES, ArmSpec, Plan, coefficient_of
from condense.records.treatment import AnyWord, DoseSearch, Overhead, Treatment, TriedDose
from condense.report.treatment.figures import training_figures
from condense.report.treatment.search import search_figures, search_table
from condense.report.treatment.text import model_card, show_plan, show_treatment, treatment_markdown
from condense.treatment.run import treat
from condense.trials import search
from condense.trials.arm_run import Watch
from condense.trials.estimate import _seconds_per_step
from condense.trials.search import _point, _short_plan, chosen_dose, next_tried, search_words
from tests.browser.test_treatment_page import treatment
from tests.moved import moved
from tests.treatment.test_output import PLAN, TEXTS, StoppedError


def tried(
    coefficient: float,
    effect: float = -0.05,
    word: AnyWord = "more spread",
    quality: AnyWord = "held",
    ratio: float | None = 0.05,
) -> TriedDose:
    change = Estimate(effect, effect - 0.01, effect + 0.01)
    return TriedDose(coefficient, change, Estimate(0.001, -0.001, 0.003), word, quality, ratio)


def course(answer: Callable[[float], TriedDose]) -> list[TriedDose]:
    """All that a search tries where every coefficient is answered so."""
    points: list[TriedDose] = []
    while (coefficient := next_tried(points)) is not None:
        points.append(answer(coefficient))
    return points


def within(limit: float) -> Callable[[float], TriedDose]:
    """Quality is held up to a coefficient and worse above, the effect grows with it."""
    return lambda c: tried(c, -c / 10, quality="held" if c <= limit else "worse", ratio=0.1 * c)


@pytest.mark.parametrize(
    ("limit", "doses_tried", "chosen"),
    [
        (0.4, [0.1, 0.3, 0.9, 0.5], 0.3),  # up by three, then once between what held and what did not
        (0.05, [0.1, 0.03, 0.05], 0.05),  # down by three, then between
        (0.0, [0.1, 0.03, 0.01, 0.003, 0.001], None),
        (1e9, [0.1, 0.3, 0.9, 3.0, 9.0], 9.0),  # SEARCH_DOSES in all
    ],
)
def test_a_search_goes_up_to_the_largest_dose_that_holds(
    limit: float, doses_tried: list[float], chosen: float | None
) -> None:
    points = course(within(limit))
    assert [point.coefficient for point in points] == doses_tried and len(points) <= SEARCH_DOSES
    assert chosen_dose(points)[0] == chosen


def test_a_negligible_penalty_is_raised_at_once_and_one_that_competes_is_not() -> None:
    points = course(
        lambda c: tried(c, -0.001 * c, "smaller than what counts" if c < 20 else "more spread", ratio=c / 1e3)
    )
    assert [point.coefficient for point in points][:2] == [0.1, 10.0]  # the penalty was 1e-4 of cross-entropy
    heavy = course(lambda c: tried(c, ratio=0.6))
    assert [point.coefficient for point in heavy] == [0.1]


@pytest.mark.parametrize(
    ("points", "part"),
    [
        ([tried(0.1, word="smaller than what counts", effect=-0.001)], "smaller than what counts"),
        ([tried(0.1, quality="not shown to be held")], "not shown to hold quality"),
        ([tried(0.1, word="inconclusive", quality="worse")], "quality is not shown to be held"),
        ([tried(0.1, word="more condensed", effect=0.1)], "quality is not shown to be held"),
        ([tried(0.1, word="inconclusive", effect=-0.02)], "no measurable fall"),
    ],
)
def test_without_a_measurable_effect_that_holds_none_is_chosen(points: list[TriedDose], part: str) -> None:
    chosen, reason = chosen_dose(points)
    assert chosen is None and part in reason


def test_the_largest_effect_is_taken_not_the_largest_dose() -> None:
    assert chosen_dose([tried(0.1, -0.06), tried(0.3, -0.09), tried(0.9, -0.07)])[0] == 0.3


def test_what_is_tolerated_is_in_proportion_to_the_steps(diagnosed: Callable[[str], Diagnosis]) -> None:
    """A fifth of the steps may cost a fifth of the tolerance, and needs a fifth of the effect."""
    from types import SimpleNamespace

    run = diagnosed("llama")
    base = run.quality.bits_per_byte.value or 0.0
    other = moved(run, -0.004, noise=1e-5, bits=0.003 * base)

    def as_run(one: Diagnosis) -> Any:
        return SimpleNamespace(validation=one, record=SimpleNamespace(penalty_to_ce=0.1))

    words = [_point(1.0, as_run(other), as_run(run), Plan(), share) for share in (0.2, 1.0)]
    assert [(point.word, point.quality_word) for point in words] == [
        ("more spread", "worse"),
        ("smaller than what counts", "held"),
    ]


# --- the option -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "short"), [(40, 8), (0.2, 0.2), (2, 0), (100, 20)])
def test_a_short_run_warms_up_for_the_same_share(warmup: float, short: float) -> None:
    schedule = SimpleNamespace(steps=200, batch_size=1, accumulation=1, row_length=32)
    job: Any = SimpleNamespace(texts=SimpleNamespace(schedule=schedule))
    plan = _short_plan(job, Plan(coefficient=None, warmup=warmup))
    assert (plan.max_steps, plan.warmup) == (40, short)


def test_the_loss_is_estimated_for_the_steps_that_have_it() -> None:
    timed = {"control": CONTROL, "treated": ArmSpec("treated", "dispersion", coefficient=1.0)}
    for schedule, seconds in (("constant", 3.0), ("linear", 3.0), ("linear:0.25", 1.5), ("cosine:0.5", 2.0)):
        plan = SimpleNamespace(training=Plan(coefficient_schedule=schedule))
        asked = SimpleNamespace(timed=timed, plan=plan)
        overhead = SimpleNamespace(seconds_per_step={"control": 1.0, "treated": 3.0})
        job: Any = SimpleNamespace(asked=asked, overhead=overhead)
        assert _seconds_per_step(job) == {"control": 1.0, "treated": seconds}


def test_auto_or_a_number() -> None:
    assert coefficient_of("auto") is None and coefficient_of("0.3") == 0.3
    with pytest.raises(UsageError, match="--coefficient is 'large'"):
        coefficient_of("large")
    plan = Plan(coefficient=None)
    assert plan.first_coefficient == 0.1
    assert [plan.search_steps(steps) for steps in (4, 30, 50, 1000)] == [4, 10, 10, 200]
    assert Plan(coefficient=0.3).search_steps(1000) == 0


def printed(show: Callable[[Console], None], width: int = 80) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width, force_terminal=True, color_system=None, markup=False))
    return stream.getvalue()


def test_the_plan_says_what_the_search_costs() -> None:
    schedule = treatment().schedule
    plan, cost = Plan(coefficient=None), Overhead(1.0, 1.0, {"control": 1.0, "treated": 2.0})
    text = " ".join(printed(lambda console: show_plan(plan, schedule, cost, console)).split())
    steps = plan.search_steps(schedule.steps)
    seconds = 6 * steps * schedule.accumulation * 2.0
    assert f"a control and up to 5 coefficients from 0.1 on, {steps} steps each" in text
    assert f"up to {seconds / 60:.0f} min of training" in text or f"up to {seconds / 3600:.1f} h of training" in text
    assert "without one nothing is trained" in text and "at a searched coefficient" in text


# --- what is written --------------------------------------------------------------------------------------


def searched(*points: TriedDose, chosen: float | None = 0.3) -> DoseSearch:
    return DoseSearch(
        10,
        10_240,
        12,
        "a" * 64,
        "b" * 64,
        points,
        chosen,
        "the reason",
        "bits_per_byte",
        0.002,
        0.0009,
        0.01,
        0.2,
        61.5,
    )


def test_a_search_is_in_every_report() -> None:
    search = searched(tried(0.1), tried(0.3, -0.09), tried(0.9, -0.2, quality="worse"))
    made = replace(treatment(), search=search)
    assert Treatment.from_json(made.to_json()).search == search
    older = {key: value for key, value in json.loads(made.to_json()).items() if key != "search"}
    assert Treatment.from_json(older).search is None
    markdown = treatment_markdown(made)
    assert "## The search of the coefficient" in markdown and "| 0.3 (taken) | -0.090 [-0.100, -0.080]" in markdown
    assert "part of the training text" in markdown and "0.3 was taken, the reason" in markdown
    assert "(chosen of 0.1, 0.3, 0.9 by runs of 10 steps on part of the training text)" in model_card(made)
    page = made.to_html(plotlyjs="none")
    assert "How the coefficient was chosen" in page and "chart-search-effect" in page and "chart-search-cost" in page
    for width in (60, 80, 120):
        text = printed(lambda console: show_treatment(made, console), width)
        assert "0.3 (taken)" in text and "mean cosine − control" in text
    assert "The search" not in treatment_markdown(treatment())


def test_the_schedule_of_the_coefficient_is_in_every_report() -> None:
    made = treatment()
    falling = replace(made, plan=replace(made.plan, coefficient=0.3, coefficient_schedule="linear:0.25"))
    on = "while the loss is on, 25"
    said = "coefficient 0.3, falling to 0 (linear:0.25)"
    plan, cost = falling.plan, Overhead(1.0, 1.0, {})
    surfaces = {
        "plan": printed(lambda console: show_plan(plan, made.schedule, cost, console)),
        "terminal": printed(lambda console: show_treatment(falling, console)),
        "card": model_card(falling),
        "markdown": treatment_markdown(falling),
        "page": falling.to_html(plotlyjs="none"),
    }
    for name, text in surfaces.items():
        assert said in " ".join(text.split()), name
        assert (on in " ".join(text.split())) is (name != "card"), name
    assert "falling" not in model_card(made) + treatment_markdown(made)
    read = made.arms["treated"].curve
    short = replace(read, mean_cosine=(*read.mean_cosine[:2], *[None] * (len(read.step) - 2)))
    off = replace(made, arms={**made.arms, "treated": replace(made.arms["treated"], curve=short)})
    said = {figure.title: figure.takeaway for figure in training_figures(off)}
    assert f"(last read at step {read.step[1]})" in said["Mean cosine, live"]
    assert "last read" not in said["Cross-entropy"] + str([one.takeaway for one in training_figures(made)])
    searching = replace(plan, coefficient=None)
    text = printed(lambda console: show_plan(searching, made.schedule, cost, console))
    assert "at a searched coefficient, falling to 0 (linear:0.25); learning rate" in " ".join(text.split())


def test_a_dose_that_failed_is_a_row_with_its_reason() -> None:
    missing = Estimate(None, reason="the loss is not finite")
    failed = TriedDose(30.0, missing, missing, "inconclusive", "not measured")
    search = searched(tried(0.1), failed, chosen=0.1)
    assert next_tried([tried(10.0), failed]) is not None and chosen_dose([tried(10.0), failed])[0] == 10.0
    assert any("the loss is not finite" in str(cells) for _, cells in search_table(search).rows)
    assert search_figures(search) == [] and "30: failed (the loss is not finite)" in search_words(search)


# --- a real one -------------------------------------------------------------------------------------------


class Seen:
    """What a treatment went through, by its watch; stops before a run of this name."""

    def __init__(self, stop: str = "") -> None:
        self.runs: list[str] = []
        self.notes: list[str] = []
        self.stop = stop

    def watch(self) -> Watch:
        def on_run(name: str, seed: int, done: int, total: int) -> None:
            if name == self.stop:
                raise StoppedError
            self.runs.append(name)

        return Watch(on_run=on_run, on_note=self.notes.append)


SHORT = replace(PLAN, coefficient=None, max_steps=12, learning_rate=1e-3, num_texts=8)
filtered = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@filtered
@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_and_then_trains(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SEARCH_DOSES", 2)
    seen, out = Seen(stop="search: coefficient 0.3"), tmp_path / "out"
    plan = replace(SHORT, quality_tolerance=0.5, min_effect=1e-4)
    with pytest.raises(StoppedError):
        treat(tiny("llama"), TEXTS, out, plan, device="cpu", watch=seen.watch())
    assert seen.runs == ["search: control", "search: coefficient 0.1"] and not out.exists()
    stopped = Seen(stop="treated")
    with pytest.raises(StoppedError):
        treat(tiny("llama"), TEXTS, out, plan, device="cpu", resume=True, watch=stopped.watch())
    assert stopped.runs == ["search: coefficient 0.3", "before", "control"]
    last = Seen()
    made = treat(tiny("llama"), TEXTS, out, plan, device="cpu", resume=True, watch=last.watch())
    assert last.runs == ["treated"] and made is not None and made.search is not None
    assert [point.coefficient for point in made.search.points] == [0.1, 0.3]
    assert made.plan.coefficient == made.search.chosen in (0.1, 0.3)
    assert made.search.validation_sha256 != made.schedule.validation_sha256
    assert Treatment.from_json(out / "condense.json").search == made.search
    assert not (tmp_path / "out.work").exists() and "searched" not in (out / "README.md").read_text()
    again = treat(tiny("llama"), TEXTS, out, plan, device="cpu", resume=True)
    assert again == Treatment.from_json(out / "condense.json")


@filtered
@pytest.mark.slow
def test_without_a_dose_nothing_is_trained_and_the_next_step_is_said(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SEARCH_DOSES", 1)
    seen, out = Seen(), tmp_path / "out"
    plan = replace(SHORT, quality_tolerance=0.5, min_effect=10.0)
    with pytest.raises(RunError) as failure:
        treat(tiny("llama"), TEXTS, out, plan, device="cpu", watch=seen.watch())
    assert failure.value.exit_code == 4 and "none is trained" in str(failure.value) and "0.1:" in str(failure.value)
    assert "--coefficient 0.1 --force" in failure.value.hint
    assert seen.runs == ["search: control", "search: coefficient 0.1"] and not out.exists()
    made = treat(tiny("llama"), TEXTS, out, replace(plan, coefficient=0.1), device="cpu", force=True)
    assert made is not None and made.search is None


def chosen_of(words: Mapping[float, AnyWord]) -> float | None:
    return chosen_dose([tried(c, -c, quality=word) for c, word in words.items()])[0]


def test_quality_that_is_not_shown_to_be_held_is_not_held() -> None:
    assert chosen_of({0.1: "held", 0.3: "not shown to be held", 0.9: "worse"}) == 0.1
    assert chosen_of({0.1: "held", 0.3: "improved"}) == 0.3
