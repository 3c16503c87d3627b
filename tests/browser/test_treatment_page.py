"""The report of a treatment in a real browser: offline, light and dark, printed, read aloud, and attacked."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condense.comparison.verdict import cone_word
from condense.metrics import METRICS
from condense.records.base import Estimate, Finding
from condense.records.diagnosis import Diagnosis, Quality
from condense.records.plans import Plan  # fmt: skip
from condense.records.tasks import TaskEffect, TaskScore
from condense.records.treatment import (  # fmt: skip
    Arm,
    Curve,
    Effect,
    Outcome,
    Overhead,
    Schedule,
    SiteEffect,
    Treatment,
    Word,
)
from condense.report.treatment.page import treatment_page
from tests.browser import test_report_page as report_page
from tests.browser.test_report_page import EVIL, Opened, axe_violations

browser = report_page.browser
READY = report_page.READY
CHARTS = 11
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


# --- a treatment out of nothing ---------------------------------------------------------------------------


def shifted(of: Estimate, factor: float) -> Estimate:
    ends = [None if v is None else v * factor for v in (of.value, of.low, of.high)]
    return replace(of, value=ends[0], low=ends[1], high=ends[2])


def arm(name: str, model: str, blocks: int, factor: float, steps: int) -> Arm:
    made = report_page.diagnosis(model if name == "before" else f"{model} ({name})", blocks, twin=False)
    sites = tuple(replace(s, metrics={k: shifted(e, factor) for k, e in s.metrics.items()}) for s in made.sites)
    bits = report_page.estimate(1.05 if name == "before" else 0.95 + 0.01 * factor)
    made = replace(
        made, sites=sites, deep={k: shifted(e, factor) for k, e in made.deep.items()},
        quality=replace(made.quality, bits_per_byte=bits),
    )  # fmt: skip
    cloud = tuple((round(0.4 * factor * math.cos(7 * i), 4), round(0.2 * math.sin(5 * i) - 0.1, 4)) for i in range(384))
    if name == "before":
        return Arm(made, made, cloud=cloud)
    treated = name == "treated"
    at = range(1, steps + 1)
    curve = Curve(
        tuple(at), tuple(3.2 - 0.4 * i / steps + 0.03 * math.sin(i) for i in at),
        tuple(-0.4 - 0.01 * math.cos(i) if treated else 0.0 for i in at),
        tuple(None if i == 3 else 0.5 + 0.1 * factor * math.cos(i / 9) for i in at),
        tuple(1.2 + 0.4 * math.sin(3 * i) for i in at), tuple(5e-5 for _ in at),
    )  # fmt: skip
    return Arm(made, made, curve, 61.5, 40_960, 0.05 if treated else None, cloud)


def change(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def effect(run: Diagnosis, size: float, half: float, against: str) -> Effect:
    values = {key: change(size, half) for key in METRICS} | {"cross_text_cosine": Estimate(size)}
    values["mean_cosine_without_top_dimensions"] = change(0.1 * size, half)
    sites = tuple(
        SiteEffect(
            s.site, s.stack, s.index, {k: change((e.value or 0) * (0.2 + s.depth), half) for k, e in values.items()}
        )
        for s in run.sites
    )
    bits = change(0.006, 0.001)
    words = {
        key: Word(cone_word(values[key], (values[key].low, values[key].high), 0.01), key, 0.01)
        for key in ("mean_cosine", "mean_cosine_without_top_dimensions")
    }
    words["quality"] = Word("worse", "bits_per_byte", 0.0048, bits.low, bits.high)
    covers = "this pair of runs; other seeds not covered; 5 documents"
    return Effect(against, True, values, {"loss": change(0.02, 0.004), "bits_per_byte": bits}, sites, words, covers)


def finding(name: str, severity: Any, model: str) -> Finding:
    seen = "deep mean cosine -0.076 [-0.080, -0.072]; two tokens of <b>a text</b> & another"
    return Finding(
        name, severity, f"The {name} of {model}", seen, "it matters", f"condense treat '{model}' -o b/", "A 2024"
    )


def treatment(
    model: str = "org/tiny", *, blocks: int = 12, steps: int = 60, verdict: Any = "dispersed-at-a-cost",
    size: float = -0.076, half: float = 0.004, control: bool = True,
) -> Treatment:  # fmt: skip
    factors = {"before": 1.0, "control": 1.02, "treated": 0.85}
    arms = {name: arm(name, model, blocks, f, steps) for name, f in factors.items() if control or name != "control"}
    against = "control" if control else "before"
    made = effect(arms["treated"].validation, size, half, against)
    outcome = Outcome(
        verdict, "worse" if control else "not measured", "three dimensions rescaled",
        (finding("main thing", "warning", model), finding("what-opened", "info", model)),
    )  # fmt: skip
    return Treatment(
        "condense.treatment/1", "0.1.0", "2026-01-02T03:04:05+00:00", f"condense treat '{model}' -o out/", model, "out",
        Plan(coefficient=3.0, control=control),
        Schedule(800, 1024, steps, 1024, 61_440, 1, 1, True, 53, 6, "a" * 64, "b" * 64, 10**9, 320.0, 2 * 10**9),
        arms, made, made,
        Overhead(1.023, 1.08, {"control": 1.31, "treated": 1.34}, {"control": 10**9, "treated": 1_080_000_000}, 3),
        outcome, {"total_seconds": 500.0}, f"block {round(0.75 * blocks)}", (0.31, 0.09),
    )  # fmt: skip


def masked() -> Treatment:
    """A masked model: its bits per byte are not defined, in any arm."""
    none = Estimate(None, reason="a masked model has none")
    made = treatment()

    def without(run: Diagnosis) -> Diagnosis:
        return replace(run, quality=Quality(run.quality.loss, run.quality.perplexity, none, label="pseudo-loss"))

    arms = {k: replace(a, validation=without(a.validation), probe=without(a.probe)) for k, a in made.arms.items()}
    words = {**made.effect.words, "quality": Word("worse", "loss", 0.016)}
    bare = replace(made.effect, quality={**made.effect.quality, "bits_per_byte": none}, words=words)
    return replace(made, arms=arms, effect=bare, probe_effect=bare)


def with_tasks(made: Treatment, task: str = "arc_easy", metric: str = "acc_norm") -> Treatment:
    """The same with two tasks: one clear difference, one without an interval."""
    arms = {}
    for rank, (name, of) in enumerate(made.arms.items()):
        accuracy = TaskScore(task, metric, 0.41 - 0.02 * rank, 0.022, 500, harness="lm_eval 0.4.13")
        f1 = TaskScore("boolq_f1", "f1", 0.3, None, 500, harness="lm_eval 0.4.13")
        arms[name] = replace(of, tasks=(accuracy, f1))
    effects = (
        TaskEffect(task, metric, 0.37, 0.39, Estimate(-0.02, -0.031, -0.009), True, 500),
        TaskEffect("boolq_f1", "f1", 0.3, 0.3, Estimate(0.0, reason="no standard error"), False, 500),
    )
    plan = replace(made.plan, eval_tasks=(task, "boolq_f1"), eval_limit=500)
    return replace(made, plan=plan, arms=arms, task_effects=effects)


# --- the browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(treatment_page(treatment()), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_a_request_an_error_or_an_axe_violation(browser: Any, report: Path, scheme: str) -> None:
    with Opened(browser, report, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as opened:
        assert opened.page.locator(".js-plotly-plot").count() == CHARTS
        assert opened.page.locator(".modebar-btn").count() == 0
        assert axe_violations(opened.page) == []
        assert opened.trouble == []


def test_fits_a_phone_and_a_unit_of_the_cloud_is_equally_long_on_both_axes(browser: Any, report: Path) -> None:
    length = "([id, axis]) => (a => Math.abs(a.l2p(1) - a.l2p(0)))(document.getElementById(id)._fullLayout[axis])"
    with Opened(browser, report, viewport={"width": 390, "height": 844}) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
        places = [[f"chart-cloud-{rank}", axis] for rank in range(3) for axis in ("xaxis", "yaxis")]
        lengths = [opened.page.evaluate(length, place) for place in places]
        assert lengths == pytest.approx([lengths[0]] * 6, rel=1e-3)
        assert opened.trouble == []


def test_downstream_tasks_have_their_table(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(treatment_page(with_tasks(treatment(), EVIL, EVIL), plotlyjs="none"), encoding="utf-8")
    with Opened(browser, path, wait="svg.sketch", viewport={"width": 390, "height": 844}) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert axe_violations(opened.page) == []
        rows = opened.page.locator("table.tasks tbody tr")
        assert [cell.strip() for cell in rows.nth(0).locator("td").nth(2).inner_text().split("\n")] == [
            "0.410", "±0.022"
        ]  # fmt: skip
        assert rows.nth(0).locator("b").inner_text() == "−0.020"
        assert "−0.031\u00a0to −0.009" in rows.nth(0).inner_text()
        assert "no standard error" in rows.nth(1).inner_text() and rows.nth(1).locator("b").count() == 0
        assert "the first 500 samples" in opened.page.locator("#tasks").inner_text()
        assert opened.trouble == []
    assert 'id="tasks"' not in treatment_page(treatment(), plotlyjs="none")


def test_prints_from_a_dark_screen(browser: Any, report: Path) -> None:
    with Opened(browser, report, color_scheme="dark") as opened:
        assert opened.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        assert opened.trouble == []


def test_the_layer_table_is_reached_and_sorted_by_key(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(treatment_page(treatment(), plotlyjs="none"), encoding="utf-8")
    with Opened(browser, path, wait="svg.sketch") as opened:
        head = opened.page.locator("#table-0 thead tr:last-child th").nth(4)
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        cells = "[...document.querySelectorAll('#table-0 tbody tr')].map(r => Number(r.children[4].dataset.sort))"
        values = opened.page.evaluate(cells)
        assert values == sorted(values, reverse=True)
        assert min(values) < 0


def test_hostile_names_stay_text_and_drawings_do_without_scripts(browser: Any, tmp_path: Path) -> None:
    text = treatment_page(replace(treatment(EVIL), cloud_site=EVIL, output=EVIL), plotlyjs="none")
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "<b>a text</b>" not in text
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with Opened(browser, path, wait="svg.sketch", java_script_enabled=False) as opened:
        assert opened.page.locator("svg.sketch").count() == CHARTS
        assert opened.page.locator("table.arms").count() == 2
        assert opened.page.locator("h1").inner_text() == "evil[/foo]<script>alert(1)</script>\\x1b[31m"
        assert opened.trouble == []


# --- the text alone -------------------------------------------------------------------------------------


def test_sizes_and_bytes_of_thirty_blocks() -> None:
    record = treatment(blocks=30, steps=2000)
    inline, none = treatment_page(record), treatment_page(record, plotlyjs="none")
    assert len(inline.encode()) <= 2_300_000
    assert len(none.encode()) < 200_000
    assert treatment_page(Treatment.from_json(record.to_json())) == inline
    assert [int(level) for level in re.findall(r"<h([1-6])", none)][:3] == [1, 2, 3]
    ids = re.findall(r' id="([^"]+)"', none)
    assert len(ids) == len(set(ids))


def test_says_the_numbers_with_a_real_minus_and_commands_as_they_are() -> None:
    text = treatment_page(treatment(), plotlyjs="none")
    assert "−0.076 [−0.080, −0.072]" in text
    assert "95\u202f% interval −0.080 to −0.072" in text
    assert "not shown to be held" not in text.split('id="arms"')[0]  # its whole interval is above the tolerance
    assert "-o b/" in text


@pytest.mark.parametrize(
    ("verdict", "size", "half", "word", "head"),
    [
        ("dispersed", -0.076, 0.004, "more spread", "Dispersed"),
        ("too-small-to-count", -0.001, 0.002, "smaller than what counts", "Too small to count"),
        ("inconclusive", -0.01, 0.03, "inconclusive", "Inconclusive"),
        ("condensed-further", 0.05, 0.01, "more condensed", "Condensed further"),
    ],
)
def test_every_verdict_has_its_word(verdict: str, size: float, half: float, word: str, head: str) -> None:
    text = treatment_page(treatment(verdict=verdict, size=size, half=half), plotlyjs="none")
    assert f'<p class="word">{word}</p>' in text
    assert f"<strong>{head}</strong>" in text


def test_without_control_nothing_is_the_loss() -> None:
    text = treatment_page(treatment(verdict="no-control", control=False), plotlyjs="none")
    assert "treated − before" in text
    assert "treated − control" not in text
    assert "What the loss did" not in text
    assert "without a control arm" in text


def test_a_masked_model_is_judged_by_its_loss() -> None:
    text = treatment_page(masked(), plotlyjs="none")
    assert "+0.0200</b> nats per token" in text
    assert "bits per byte, 95 %" not in text


def test_nothing_logged_nothing_measured() -> None:
    made = treatment(control=False)
    bare = {name: replace(a, curve=Curve(), cloud=()) for name, a in made.arms.items()}
    text = treatment_page(
        replace(made, arms=bare, overhead=Overhead(None, None, reason="no memory reading"), cloud_variance=()),
        plotlyjs="none",
    )
    assert "No step was logged." in text
    assert "No memory reading." in text
    assert "Token cloud" not in text


def test_an_unknown_kind_of_plotly_is_refused() -> None:
    with pytest.raises(ValueError, match="plotlyjs"):
        treatment_page(treatment(), plotlyjs="other")  # type: ignore[arg-type]


def test_no_model_library_is_loaded() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/browser'); "
        "from test_treatment_page import treatment, treatment_page; treatment_page(treatment()); "
        "sys.exit(', '.join({'torch', 'transformers', 'pandas', 'sklearn', 'numpy'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
