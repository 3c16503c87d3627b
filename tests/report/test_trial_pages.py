"""The pages of a trial on Markdown, terminal and CSV: what they say, that they fit, and that nothing gets through."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console
from typer.testing import CliRunner

from condense.cli.app import app
from condense.records import trial as seeds
from condense.records.base import Estimate
from condense.records.diagnosis import Quality
from condense.records.plans import ArmSpec
from condense.records.treatment import Curve
from condense.records.trial import ArmResult, Rank, StepCost, Trial
from condense.report.escape import for_markdown
from condense.report.svg import sketch
from condense.report.tables import rows_csv
from condense.report.text import breakable
from condense.report.trial.figures import (
    depth_figures,
    dose_figures,
    looks,
    strips,
    through_zero,
    tradeoff,
    training_figures,
)
from condense.report.trial.learning import learning_figures
from condense.report.trial.tables import rankings, rows
from condense.report.trial.text import in_a_line, show_trial, show_trial_plan
from condense.training.remedies import while_on
from tests.report.trial_records import ARMS, NOT_MEASURED, trial, with_learning
from tests.test_architecture import loaded_by

ROOT = Path(__file__).parents[2]
ESC = "\x1b"
EVIL = f"evil[/foo]<script>alert(1)</script>{ESC}[31m`|=cmd"


def terminal(record: Trial, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    show_trial(record, console)
    text: str = console.file.getvalue()
    return text


def planned(record: Trial, costs: dict[str, StepCost], seconds: float | None, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    show_trial_plan(record.plan, record.schedule, costs, seconds, console)
    text: str = console.file.getvalue()
    return text


def with_arm(record: Trial, name: str, **changes: object) -> Trial:
    """The same trial with one arm changed."""
    arms = tuple(replace(arm, **changes) if arm.spec.name == name else arm for arm in record.arms)
    return replace(record, arms=arms)


def hostile() -> Trial:
    """A trial whose every free text is an attack."""
    made = trial(EVIL, tasks=True)
    arms = []
    for arm in made.arms:
        spec = replace(arm.spec, name=f"{arm.spec.name}{EVIL}", layers=EVIL if arm.spec.layers else None)
        scores = tuple(replace(score, task=EVIL, metric=EVIL) for score in arm.task_effects)
        runs = tuple(replace(run, folder=EVIL, weights_sha256=EVIL) for run in arm.runs)
        effect = arm.effect and replace(arm.effect, unpaired=EVIL)
        arms.append(
            replace(arm, spec=spec, title=EVIL, definition=EVIL, source=EVIL, reason=EVIL, details=(EVIL,),
                    cost=replace(arm.cost, reason=EVIL), task_effects=scores, runs=runs, effect=effect)
        )  # fmt: skip
    pairs = tuple(replace(pair, first=EVIL, second=EVIL) for pair in made.pairs)
    doses = tuple(replace(dose, title=EVIL, reason=EVIL) for dose in made.doses)
    return replace(
        made,
        plan=replace(
            made.plan, arms=tuple(arm.spec for arm in arms), training=replace(made.plan.training, eval_tasks=(EVIL,))
        ),
        arms=tuple(arms), pairs=pairs, doses=doses, output=EVIL, command=EVIL,
        environment={EVIL: EVIL}, validation=replace(made.validation, source=EVIL),
    )  # fmt: skip


# --- Markdown -------------------------------------------------------------------------------------------


def markdown_row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_begins_with_the_table_of_the_issue():
    text = trial().to_markdown()
    head = [line for line in text.splitlines() if line.startswith("|")][0]
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "arm", "parameters added", "time per step ÷ control", "peak memory ÷ control",
        "deep mean cosine (Δ vs control, 95 % CI)", "effective rank (Δ)", "bits per byte (Δ)", "verdict",
    ]  # fmt: skip
    assert text.index("| arm |") < text.index("## ")
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in text.split("\n\n")[2].splitlines() if line[:1] == "|"}
    assert widths == {10}
    row = markdown_row(text, "dispersion=1")
    assert row[1] == "0" and row[2].startswith("× 1.033") and row[3] == "× 1.02"
    assert row[4].startswith("**-0.046** [-0.051 to -0.041]") and "place 1, tied" in row[4] and "SD 0.003" in row[4]
    assert row[7].startswith("**Dispersed**; quality held")


def test_markdown_control_is_absolute_and_failed_arms_say_why():
    text = trial().to_markdown()
    control = markdown_row(text, "control")
    assert control[1:4] == ["0, of 135 M", "1.31 s per step (median of 5 rounds)", "2.4 GB"]
    assert control[4] == "0.571 (SD 0.003)" and control[7] == "reference"
    assert markdown_row(text, "before")[4] == "0.570 [0.552 to 0.588]"
    failed = markdown_row(text, "active-forgetting")
    assert failed[1:7] == ["–"] * 6 and "non-finite at step 21" in failed[7]
    assert "†" in markdown_row(text, "larger-vocab")[5] and "†" not in markdown_row(text, "larger-vocab")[6]
    assert "† larger-vocab: its tokenizer cuts" in text


def test_markdown_ranks_only_from_three_seeds_on():
    ranked, unranked = trial().to_markdown(), trial(seeds=2).to_markdown()
    assert "**Ranked by deep mean cosine**" in ranked and "Nothing is ranked" not in ranked
    assert "Nothing is ranked: 2 training seeds: below 3 nothing is ranked." in unranked
    assert "place 1" not in unranked and "Ranked by" not in unranked
    assert "not ranked: active-forgetting (failed)" in ranked


def test_markdown_holds_doses_definitions_and_every_seed():
    text = trial(tasks=True).to_markdown()
    assert "Recommended coefficient: 1 (the largest measurable effect whose quality is held; it fell in part" in text
    assert "| dispersion=0.1 | 0.1 | -0.004 [-0.009, +0.001] | +0.0002" in text
    assert "Source: Merity et al. 2018" in text
    assert sum(line.startswith("| noisy-embedding |") for line in text.splitlines()) == 4  # the table and three seeds
    assert "| piqa | acc | dispersion=1 | 0.630 | 0.622 | +0.008 [-0.004, +0.020] | by sample |" in text


def test_no_coefficient_may_be_recommended():
    made = trial()
    dose = replace(made.doses[0], recommended=None, reason="quality is not held by any")
    made = replace(made, doses=(dose,))
    assert "Recommended coefficient: none (quality is not held by any)" in made.to_markdown()
    assert "Recommended coefficient: none" in terminal(made, 160)
    assert "Recommended coefficient: none" in made.to_html(plotlyjs="none")


# --- terminal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120, 160])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_terminal_keeps_its_width_and_cuts_no_number(width, seeds):
    made = trial(seeds=seeds)
    text = terminal(made, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in rows(made):
        for of in row.measures:
            assert of.text in text and of.interval in text
    flat = " ".join(text.split())
    assert "active-forgetting failed: the loss became non-finite" in flat
    assert ("nothing is ranked: 1 training seed" in flat) == (seeds == 1)
    assert ("ranked by deep mean cosine" in flat) == (seeds == 3)
    assert ("one seed" in flat) == (seeds == 1)
    assert "next: condense treat 'org/tiny-135M'" in flat


@pytest.mark.parametrize("width", [80, 120])
def test_the_plan_names_every_arm_its_runs_and_its_cost(width):
    made = trial()
    costs = {arm.spec.name: arm.cost for arm in made.arms}
    text = planned(made, costs, 4210.0, width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "9 arms × 3 seeds (0 to 2) = 27 runs" in flat and "60 steps of 1,024 tokens (61,440 tokens)" in flat
    assert "estimate: 70 min in all, 2.6 GB memory, 1 GB disk" in flat
    for spec in made.plan.arms:
        assert spec.name in text
    assert "× 1.12" in text and "coefficient 0.3" in flat


def test_the_plan_before_anything_was_measured():
    made = trial(seeds=1, tasks=True)
    flat = " ".join(planned(made, {}, None).split())
    assert "1 seed (0) = 9 runs" in flat and "unknown time in all, 2 GB memory" in flat
    assert "× 1." not in flat and "tasks: piqa, wiki" in flat
    kept = replace(made, plan=replace(made.plan, keep_models=True))
    assert "the models of all runs are kept" in " ".join(planned(kept, {}, None).split())


def test_an_arm_in_a_line():
    plan = trial().plan
    assert in_a_line(ArmSpec("d", "dispersion"), plan) == "angular loss on all layers"
    assert in_a_line(ArmSpec("d", "dispersion", "orthogonal", "3,7", 0.1), plan) == (
        "orthogonal loss on layers 3,7, coefficient 0.1"
    )
    assert in_a_line(ArmSpec("cosreg=2", "cosreg", coefficient=2.0), plan).endswith(", coefficient 2")
    falling = ArmSpec("d", "dispersion", coefficient=1.0, schedule="linear:0.25")
    assert in_a_line(falling, plan) == "angular loss on all layers, coefficient 1, falling to 0 (linear:0.25)"
    whole = replace(plan, training=replace(plan.training, coefficient_schedule="cosine"))
    assert in_a_line(ArmSpec("d", "dispersion"), whole) == "angular loss on all layers, falling to 0 (cosine)"
    assert in_a_line(ArmSpec("n", "noisy-embedding"), whole).endswith("(NEFTune)")
    kept = ArmSpec("d", "dispersion", coefficient=1.0, schedule="constant")
    assert in_a_line(kept, whole) == "angular loss on all layers, coefficient 1", "its own word comes first"


def test_a_schedule_of_the_whole_trial_is_in_the_words_of_every_arm_that_follows_it():
    made = trial()
    falls = replace(made.plan.training, coefficient_schedule="linear:0.25")
    made = replace(made, plan=replace(made.plan, training=falls))
    lines, page = made.to_markdown().split("## The arms")[1].splitlines(), made.to_html(plotlyjs="none")
    for arm in made.arms:
        (line,) = [line for line in lines if line.startswith(f"- **{for_markdown(arm.spec.name)}**")]
        assert ("falling to 0 (linear:0.25)" in line) is (arm.spec.remedy == "dispersion"), arm.spec.name
    assert "coefficient 0.1, falling to 0 (linear:0.25)" in "".join(lines)
    assert "0.1, falling to 0 (linear:0.25)" in page
    assert "falling" not in trial().to_markdown()


# --- ranks ----------------------------------------------------------------------------------------------


def test_a_tie_across_places_is_told():
    made = trial()
    ties = {"dispersion=1": (1, ("cosreg=1",)), "cosreg=1": (2, ("dispersion=1",))}
    arms = tuple(
        replace(a, ranks={"mean_cosine": Rank(*ties[a.spec.name])} if a.spec.name in ties else {}) for a in made.arms
    )
    made = replace(made, arms=arms)
    (ranking,) = rankings(made)
    assert ranking.places == ((1, (("dispersion=1", ("cosreg=1",)),)), (2, (("cosreg=1", ("dispersion=1",)),)))
    assert ("active-forgetting", "failed") in ranking.without and "control" not in dict(ranking.without)
    assert "cosreg=1 (tied with dispersion=1)" in terminal(made)
    assert "cosreg=1 (tied with dispersion=1)" in made.to_html(plotlyjs="none")


def test_an_arm_with_fewer_seeds_says_so():
    made = trial()
    one = next(arm for arm in made.arms if arm.spec.name == "noisy-embedding")
    made = with_arm(
        made, "noisy-embedding", status="partial", reason="seed 2 ran out of memory", runs=one.runs[:2], ranks={}
    )
    (row,) = [row for row in rows(made) if row.name == "noisy-embedding"]
    assert row.reason == "2 of 3 seeds: seed 2 ran out of memory" and row.measures
    assert ("noisy-embedding", "2 seeds, fewer than 5") in rankings(made)[0].without
    for text in (made.to_markdown(), terminal(made, 160), made.to_html(plotlyjs="none")):
        assert "2 of 3 seeds: seed 2 ran out of memory" in text


# --- means over seeds -----------------------------------------------------------------------------------


def test_means_and_spreads_over_seeds():
    arm = trial(steps=5).arms[1]
    values = [run.deep["mean_cosine"].value for run in arm.runs]
    assert seeds.mean(arm, "mean_cosine") == pytest.approx(sum(values) / 3)
    squares = sum((value - sum(values) / 3) ** 2 for value in values)
    assert seeds.spread(arm, "mean_cosine") == pytest.approx((squares / 2) ** 0.5)
    third = [run.sites[3].mean_cosine for run in arm.runs]
    assert seeds.depth(arm.runs)[3].mean_cosine == pytest.approx(sum(third) / 3)
    logged = [run.curve.ce_loss[2] for run in arm.runs]
    assert seeds.curve(arm).step == (1, 2, 3, 4, 5)
    assert seeds.curve(arm).ce_loss[2] == pytest.approx(sum(logged) / 3)
    assert seeds.tolerated(trial()) == pytest.approx(0.005 * seeds.mean(trial().control, "bits_per_byte"))


def test_an_arm_whose_loss_is_gone_shows_the_last_cosine_it_read():
    made = trial()
    read = made.arms[1].runs[0].curve
    short = (0.8, 0.7, 0.6, *[None] * (len(read.step) - 3))
    runs = tuple(replace(run, curve=replace(read, mean_cosine=short)) for run in made.arms[1].runs)
    arms = (made.arms[0], replace(made.arms[1], runs=runs), *made.arms[2:])
    ce, cosine = training_figures(replace(made, arms=arms))
    name = made.arms[1].spec.name
    assert f"{name} 0.600 (last read at step 3)" in cosine.takeaway and "–" not in cosine.takeaway
    assert "last read" not in ce.takeaway and cosine.takeaway.startswith(f"At step {read.step[-1]},")


def test_a_mean_is_undefined_where_a_seed_is():
    arm = trial().arms[1]
    bare = replace(arm.runs[0], deep={**arm.runs[0].deep, "mean_cosine": NOT_MEASURED})
    broken = replace(arm, runs=(bare, *arm.runs[1:]))
    assert seeds.mean(broken, "mean_cosine") is None and seeds.spread(broken, "mean_cosine") is None
    assert seeds.mean(broken, "effective_rank") is not None
    assert seeds.mean(replace(arm, runs=()), "mean_cosine") is None
    assert seeds.spread(replace(arm, runs=arm.runs[:1]), "mean_cosine") is None


def test_curves_keep_the_steps_that_every_seed_logged():
    arm = trial(steps=6).arms[0]
    short = replace(arm.runs[0], curve=Curve(step=(2, 4), ce_loss=(3.0, 2.0), mean_cosine=(None, 0.5)))
    found = seeds.curve(replace(arm, runs=(short, arm.runs[1])))
    assert found.step == (2, 4) and found.mean_cosine[0] is None
    assert found.ce_loss[1] == pytest.approx((2.0 + arm.runs[1].curve.ce_loss[3]) / 2)
    assert seeds.curve(replace(arm, runs=())) == Curve()


# --- what is not there ----------------------------------------------------------------------------------


def masked() -> Trial:
    """A trial of a masked model: no bits per byte anywhere."""
    none, made = Estimate(None, reason="a masked model has none"), trial()

    def without(arm: ArmResult) -> ArmResult:
        bare = [replace(r, quality=Quality(r.quality.loss, r.quality.perplexity, none)) for r in arm.runs]
        effect = arm.effect and replace(
            arm.effect, metrics={**arm.effect.metrics, "bits_per_byte": none, "loss": Estimate(0.0123, 0.01, 0.02)}
        )
        return replace(arm, runs=tuple(bare), effect=effect)

    return replace(made, arms=tuple(map(without, made.arms)))


def test_a_masked_model_is_read_by_its_loss():
    made = masked()
    assert "loss, nats per token (Δ)" in made.to_markdown()
    assert "+0.0123" in terminal(made) and "+0.0123" in made.to_html(plotlyjs="none")
    assert strips(made)[1].title == "loss, nats per token"


def test_nothing_measured_at_all():
    made = trial(steps=3)
    none = Estimate(None, reason="the text is one token")
    arms = []
    for arm in made.arms:
        effect = arm.effect and replace(
            arm.effect, metrics=dict.fromkeys(arm.effect.metrics, none), by_seed=(), spread={}, sites=()
        )
        runs = tuple(replace(run, deep={}, sites=(), curve=Curve()) for run in arm.runs)
        arms.append(replace(arm, effect=effect, runs=runs, cost=StepCost(reason="not timed"), ranks={}, verdict=None))
    bare = replace(
        made, arms=tuple(arms), before=replace(made.before, deep={}, sites=()), doses=(), pairs=(), findings=()
    )
    html = bare.to_html(plotlyjs="none")
    assert "The text is one token" in html or "the text is one token" in html
    assert "No step was logged." in html and "not timed" in html
    assert "Every arm against the same control" in html
    assert depth_figures(bare) == [] and tradeoff(bare) is None and strips(bare) == []
    assert "the text is one token" in " ".join(terminal(bare, 160).split())
    assert Trial.from_json(bare.to_json()) == bare


def test_a_trial_whose_every_arm_failed():
    failed = {"status": "failed", "reason": "disk full", "effect": None, "runs": (), "verdict": None, "ranks": {}}
    made = trial()
    made = replace(made, arms=tuple(replace(arm, **failed) for arm in made.arms), pairs=(), doses=())
    html = made.to_html(plotlyjs="none")
    assert html.count("<b>Failed</b>") == 8 and "0 of 3 seeds: disk full" in html
    assert "No arm was measured well enough to be ranked." in html
    assert "disk full" in made.to_markdown() and "disk full" in terminal(made)
    assert [row["status"] for row in made.rows()] == ["failed"] * 9


def test_one_dose_makes_no_curve():
    made = trial()
    dose = replace(made.doses[0], points=made.doses[0].points[:1])
    assert dose_figures(made, dose, 0) == []
    assert "One coefficient alone makes no curve" in replace(made, doses=(dose,)).to_html(plotlyjs="none")


# --- how arms are drawn ---------------------------------------------------------------------------------


def test_twenty_arms_are_told_apart_without_colour():
    many = tuple((f"dispersion={i}", "dispersion", "angular", "all", float(i), *ARMS[1][5:]) for i in range(20))
    named = looks(trial(rows=many))
    assert len({(look.dash, look.symbol) for name, look in named.items() if name != "control"}) == 20


def test_the_points_of_effect_against_cost_carry_both_intervals():
    figure = tradeoff(trial())
    assert figure is not None
    drawn = [series for series in figure.chart.series if series.barred]
    assert len(drawn) == 7
    one = next(series for series in drawn if series.name == "dispersion=1")
    (at,) = [i for i, value in enumerate(one.values) if value is not None]
    assert figure.chart.axis.at[at] == pytest.approx(0.0021)
    assert (one.left[at], one.right[at]) == pytest.approx((0.0013, 0.0029))
    assert "dispersion=1 and dispersion:mean_cosine@late=0.3 (quality held)" in figure.takeaway
    svg = sketch(figure.chart)
    assert svg.count('stroke-width="1.5"') == 7 and ">tolerance<" in svg


def test_effect_against_cost_says_of_each_arm_what_became_of_quality():
    """An arm whose quality is not shown to be held is not among those that held it, nor is a few seeds' arm."""
    made = trial()
    unshown = {"dispersion=1": "not shown to be held"}
    arms = tuple(replace(arm, quality=unshown.get(arm.spec.name, arm.quality)) for arm in made.arms)
    words = tradeoff(replace(made, arms=arms)).takeaway
    assert "dispersion=1 (quality not shown to be held)" in words and "late=0.3 (quality held)" in words
    few = tuple(replace(arm, verdict_reason="2 seeds: a word on an arm needs 3") for arm in made.arms)
    words = tradeoff(replace(made, arms=few)).takeaway
    assert words.endswith("No arm has a word: 2 seeds: a word on an arm needs 3.") and "Measurably" not in words


def test_a_strip_puts_value_interval_and_seeds_on_one_scale():
    cosine, quality = strips(trial())
    row = next(row for row in cosine.rows if row.look.words == "dispersion=1")
    assert row.low < row.at < row.high < cosine.zone[0] < cosine.zero < cosine.zone[1]
    assert len(row.dots) == 3
    failed = next(row for row in cosine.rows if row.look.words == "active-forgetting")
    assert failed.at is None and failed.note == "failed"
    assert quality.zone[0] == 0.0 < quality.zero < quality.zone[1]
    places = [place for of in (cosine, quality) for row in of.rows for place, _ in row.dots]
    assert 0 <= min(places) and max(places) <= 100


def test_names_break_after_a_colon_and_an_at():
    name = "dispersion:mean_cosine@late=0.3"
    assert breakable(name) == ["dispersion:", "mean_cosine@", "late=0.3"]
    assert breakable("control") == ["control"] and breakable("") == []


# --- files ----------------------------------------------------------------------------------------------


def test_csv_has_a_row_per_arm_and_seed_and_one_for_a_failure():
    table = list(csv.DictReader(io.StringIO(rows_csv(trial().rows()))))
    assert len(table) == 3 * 8 + 1
    one = next(row for row in table if row["arm"] == "dispersion=1" and row["seed"] == "2")
    assert float(one["mean_cosine_effect_low"]) < float(one["mean_cosine_effect"]) < 0
    failed = next(row for row in table if row["arm"] == "active-forgetting")
    assert failed["status"] == "failed" and failed["seed"] == "" and "non-finite" in failed["reason"]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_trial_fits_its_schema_and_comes_back(seeds):
    made = trial(seeds=seeds, tasks=True)
    schema = json.loads((ROOT / "condense" / "data" / "trial.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    checker.validate(json.loads(made.to_json()))
    assert not checker.is_valid({**json.loads(made.to_json()), "schema": "condense.trial/2"})
    assert Trial.from_json(made.to_json()) == made


def test_report_shows_a_saved_trial_and_writes_its_files(tmp_path):
    path = tmp_path / "trial.json"
    trial().to_json(path)
    shown = CliRunner().invoke(app, ["report", str(path)])
    assert shown.exit_code == 0 and "embedding-dropout" in shown.output
    names = {kind: tmp_path / f"out.{kind}" for kind in ("html", "md", "csv")}
    asked = [word for kind, file in names.items() for word in (f"--{kind}", str(file))]
    for _ in range(2):  # the second time over its own files
        done = CliRunner().invoke(app, ["report", str(path), *asked])
        assert done.exit_code == 0, done.output
    assert names["md"].read_text(encoding="utf-8") == trial().to_markdown()
    assert names["html"].read_text(encoding="utf-8") == trial().to_html()


def test_report_of_a_trial_loads_nothing_heavy(tmp_path):
    path = tmp_path / "trial.json"
    trial().to_json(path)
    words = ["report", str(path), "--html", str(tmp_path / "o.html"), "--csv", str(tmp_path / "o.csv")]
    call = f"try:\n    app({words!r})\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_by(f"from condense.cli.app import app\n{call}") == []


# --- what came from outside -----------------------------------------------------------------------------


def test_hostile_texts_stay_text_on_every_surface():
    made = hostile()
    html, markdown, screen = made.to_html(plotlyjs="none"), made.to_markdown(), terminal(made, 200)
    plan = planned(made, {arm.spec.name: arm.cost for arm in made.arms}, 10.0, 200)
    table = rows_csv(made.rows())
    for text in (html, markdown, screen, plan, table):
        assert ESC not in text
        assert "evil" in text
    assert "<script>alert" not in html
    prose = re.sub(r"(?<!\\)`[^`]*`", "", markdown)
    assert "evil[/foo]" not in prose and "<script>" not in prose
    rows_ = [line for line in markdown.splitlines() if line.startswith("| control")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in rows_} == {10, 7}
    assert "[/foo]" in screen and "[/foo]" in plan  # shown as it is, not taken for markup


def test_a_formula_in_csv_is_text():
    made = trial()
    arm = made.arms[1]
    made = replace(made, arms=(made.arms[0], replace(arm, spec=replace(arm.spec, name="=cmd|' /C calc'!A0"))))
    assert "\n'=cmd" in rows_csv(made.rows())


# --- how the arms learned ------------------------------------------------------------------------------


def test_the_curves_of_every_arm_are_drawn_over_tokens_and_seconds() -> None:
    made = with_learning(trial())
    drawn = {figure.chart.id: figure.chart for figure in learning_figures(made, looks(made))}
    assert list(drawn) == [
        "chart-learning-tokens", "chart-changes-tokens", "chart-learning-seconds", "chart-changes-seconds",
        "chart-learning-next", "chart-changes-next",
    ]  # fmt: skip
    measured = [arm.spec.name for arm in made.arms if arm.learning]
    assert [one.name for one in reversed(drawn["chart-learning-tokens"].series)] == measured
    assert all(one.low is not None for one in drawn["chart-learning-tokens"].series), "a band over seeds"
    assert drawn["chart-changes-tokens"].zone and drawn["chart-changes-next"].zone is None
    page = made.to_html(plotlyjs="none")
    assert "the sign turns at about step 212" in page and "Settings tried" in page and len(page) < 1_500_000
    text = made.to_markdown()
    assert "better in the first quarter, worse at the end, and the sign turns at about step 212" in text
    assert all(took in page and took in text for took in ("60 s", "61 s")), "how long each setting was trained"
    assert "121 s in all" in text
    assert "× 0.80 tokens" in text and "on the edge of what was tried (learning rate)" in text
    assert trial().to_html(plotlyjs="none").count("How fast each arm learns") == 0, "a trial without curves has none"


def test_the_cost_of_an_arm_whose_loss_ends_early_says_so() -> None:
    made = trial()
    falling = replace(
        made, plan=replace(made.plan, training=replace(made.plan.training, coefficient_schedule="linear:0.25"))
    )
    said = "while the loss is on, 25"
    console = Console(file=io.StringIO(), width=160)
    show_trial(falling, console)
    for text in (falling.to_html(plotlyjs="none"), falling.to_markdown(), console.file.getvalue()):
        assert said in " ".join(text.split())
    assert said not in made.to_markdown() and not while_on("linear") and not while_on("constant")


def test_names_in_the_curves_are_text() -> None:
    made = with_learning(trial())
    evil = replace(made.arms[1], spec=replace(made.arms[1].spec, name=EVIL))
    page = replace(made, arms=(made.arms[0], evil)).to_html(plotlyjs="none")
    assert "<script>alert(1)" not in page


def test_negative_doses_are_drawn_through_the_control() -> None:
    made = trial()
    points = made.doses[0].points
    below = replace(points[0], coefficient=-1.0, effect=Estimate(0.05, 0.04, 0.06), quality=Estimate(0.01, 0.0, 0.02))
    dose = replace(made.doses[0], points=(below, *points))
    assert [point.coefficient for point in through_zero(dose.points)] == [-1.0, 0.0, 0.1, 1.0]
    assert [point.coefficient for point in through_zero(points)] == [0.1, 1.0]
    effects, costs = dose_figures(made, dose, 0)
    assert effects.chart.axis.labels == ("-1", "0", "0.1", "1") and effects.chart.series[0].values[1] == 0
    assert "The means fall all the way through 0" in effects.takeaway
    assert "do not go one way through 0" in costs.takeaway and "0: " not in costs.takeaway.split("-1: ")[0]
    signed = replace(made, doses=(dose,))
    text = signed.to_markdown()
    through = (
        "deep mean cosine: the means fall all the way through 0; bits per byte: the means do not go one way through 0"
    )
    assert through in text.replace("Deep mean", "deep mean")
    table = [line for line in text.split("## Dose and response")[1].splitlines() if line.startswith("|")][2:6]
    assert [row.split("|")[2].strip() for row in table] == ["-1", "0", "0.1", "1"] and "reference" in table[1]
    assert through in " ".join(terminal(signed, 200).split())
    for one_sided in (points, (below,)):
        assert "through 0" not in replace(made, doses=(replace(dose, points=one_sided),)).to_markdown()
