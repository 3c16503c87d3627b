"""The report of a comparison in a real browser: two, many, a run; offline, light and dark, on a phone, attacked."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condense.comparison.checkpoints import TrainingRun
from condense.comparison.members import Candidate, notes_of
from condense.comparison.overlay import laid_over
from condense.comparison.run import assembled, compare
from condense.records.base import Estimate
from condense.records.comparison import Comparison
from condense.records.diagnosis import Diagnosis, Kendall, Spearman, Trend
from condense.report.comparison.page import comparison_page
from condense.report.comparison.text import comparison_markdown, show_comparison
from tests.browser import test_report_page as report_page

browser = report_page.browser
Opened = report_page.Opened
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


# --- comparisons out of nothing ----------------------------------------------------------------------------


def run(name: str, rank: int, blocks: int = 12, size: int = 10**8, scale: float | None = None) -> Diagnosis:
    """A diagnosis whose numbers are those of the report page's, scaled, with a value for each of 16 texts."""
    scale = 1 - 0.04 * rank if scale is None else scale
    made = report_page.diagnosis(name, blocks=blocks, twin=False)

    def scaled(of: Estimate) -> Estimate:
        value = (of.value or 0.0) * scale
        per_text = tuple(value * (1 + 0.01 * ((7 * i + rank) % 5 - 2)) for i in range(16))
        return replace(of, value=value, low=value * 0.98, high=value * 1.02, per_text=per_text)

    sites = tuple(replace(s, metrics={k: scaled(e) for k, e in s.metrics.items()}) for s in made.sites)
    bits = scaled(Estimate(1.5))
    quality = replace(made.quality, loss=scaled(made.quality.loss), bits_per_byte=bits, predicted_bytes=(500,) * 16)
    return replace(
        made, sites=sites, deep=dict(sites[blocks // 2 + 1].metrics), quality=quality,
        trend=Trend(Spearman(0.9 - 0.1 * rank, 0.01), Kendall(0.8 - 0.1 * rank, 0.01)),
        model=replace(made.model, parameters=size, weights_sha256=f"{rank:064d}"),
    )  # fmt: skip


def pair(first: str = "org/tiny", other: str = "org/tinier") -> Comparison:
    return compare(run(first, 0), run(other, 3), command=f"condense compare '{first}' '{other}'")


def family(count: int = 12, blocks: int = 12, deeper: int = 0) -> Comparison:
    names = (f"org/a-model-of-the-family-{k}" for k in range(count))
    made = (run(name, k, blocks + deeper * k, int(1e8 * 1.7**k)) for k, name in enumerate(names))
    return compare(*made, command="condense compare a b c", force=True)


def trajectory(count: int = 8) -> Comparison:
    steps = [0, *(5 * 2**k for k in range(count - 1))]
    scales = [0.9, 1.3, 1.35, *(1.1 - 0.08 * k for k in range(count - 3))]
    made = (run(f"run/checkpoint-{step}", 0, scale=scale) for step, scale in zip(steps, scales, strict=True))
    return compare(*made, command="condense compare run/")


def overlay(count: int = 2, more: int = 0, blocks: int = 12) -> Comparison:
    """Runs of seven steps of which the last is the run's own; what lies in the folder besides is left out."""
    listed = []
    for number in range(count):
        of = TrainingRun(f"run-{number}", f"runs/run-{number}", ("checkpoint-best is left out: of no known step",))
        late = tuple(400 + 100 * n for n in range(more))
        for rank, step in enumerate((0, 10, 20, 40, 80, 160, *late, (100_000 if more else 320) * (number + 1))):
            scale = 1.3 - (0.1 + 0.02 * number) * min(rank, 7) - 0.001 * rank
            made = run(f"run-{number}/checkpoint-{step}", min(rank, 7), blocks, scale=scale)
            name = f"{of.name}/checkpoint-{step}"
            listed.append(Candidate(name, f"runs/{name}", step, diagnosis=made, run=of))
    return assembled(
        {c.name: c.diagnosis for c in listed if c.diagnosis is not None},
        steps={c.name: c.step for c in listed},
        places={c.name: c.place for c in listed},
        layout=laid_over(listed, listed, ()),
        command="condense compare run-0 run-1",
        notes=notes_of(listed),
    )


MADE: dict[str, Callable[[], Comparison]] = {
    "pair": pair, "family": family, "deeper": lambda: family(5, 8, 3), "trajectory": trajectory,
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("pages"), {}
    for name, make in MADE.items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(comparison_page(make()), encoding="utf-8")
    return made


# --- the browser ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", list(MADE))
def test_opens_without_a_request_an_error_or_an_axe_violation(
    browser: Any, pages: dict[str, Path], kind: str, scheme: str
) -> None:
    with Opened(browser, pages[kind], color_scheme=scheme, viewport={"width": 1280, "height": 900}) as opened:
        page = opened.page
        drawn = page.locator(".js-plotly-plot").count()
        assert drawn == page.evaluate("JSON.parse(document.getElementById('charts').textContent).length")
        assert drawn >= 4
        assert report_page.axe_violations(page) == []
        assert opened.trouble == []


@pytest.mark.parametrize("kind", list(MADE))
def test_fits_a_phone(browser: Any, pages: dict[str, Path], kind: str) -> None:
    with Opened(browser, pages[kind], viewport={"width": 390, "height": 844}) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_run_shows_its_peak_and_its_steps(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["trajectory"]) as opened:
        page = opened.page
        assert "peak" in page.locator("#chart-course-cone .annotation").first.text_content()
        ticks = page.locator("#chart-course-cone .xtick text").all_text_contents()
        assert [int(re.sub(r"\D", "", tick)) for tick in ticks][:3] == [0, 10, 20]
        assert page.locator("#table-members tbody tr").count() == 8
        assert page.locator("#size").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_runs_are_drawn_over_each_other_with_their_difference(browser: Any, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "overlay.html"
    path.write_text(comparison_page(overlay()), encoding="utf-8")
    with Opened(browser, path, color_scheme=scheme, viewport={"width": 390, "height": 844}) as opened:
        page = opened.page
        assert "run-1 is less condensed than run-0 from step 20 on" in page.locator("main").text_content()
        assert page.locator("#table-runs tbody tr").count() == 8
        traces = page.evaluate("document.getElementById('chart-runs-difference').data.map(t => [t.mode, t.x])")
        marks = [[round(x, 3) for x in at] for mode, at in traces if mode == "markers"]
        lines = [[round(x, 3) for x in at] for mode, at in traces if mode == "lines"]
        assert marks and marks[0] in lines and len(marks[0]) == 6, "marks stand at the steps that both have"
        assert page.locator("#chart-runs-cone").count() == page.locator("#chart-runs-quality-difference").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert report_page.axe_violations(page) == [] and opened.trouble == []


def test_members_are_sorted_by_a_click(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["family"]) as opened:
        opened.page.locator("#table-members thead tr:last-child th").nth(3).locator("button").click()
        cells = "[...document.querySelectorAll('#table-members tbody tr')].map(r => Number(r.children[3].dataset.sort))"
        values = opened.page.evaluate(cells)
        assert values == sorted(values, reverse=True) and len(values) == 12


def test_no_scripts(browser: Any, tmp_path: Path) -> None:
    for name, make in MADE.items():
        path = tmp_path / f"{name}.html"
        path.write_text(comparison_page(make(), plotlyjs="none"), encoding="utf-8")
        with Opened(browser, path, wait="svg.sketch", java_script_enabled=False) as opened:
            charts = opened.page.locator(".chart").count()
            assert opened.page.locator("svg.sketch").count() == charts >= 6
            assert opened.trouble == []


def test_a_hostile_name_stays_text(browser: Any, tmp_path: Path) -> None:
    made = pair(report_page.EVIL, f"b{report_page.EVIL}")
    text = comparison_page(made)
    assert "<script>alert" not in text and "\x1b" not in text and "<b>a text</b>" not in text
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with Opened(browser, path) as opened:
        assert opened.trouble == []
    markdown = comparison_markdown(made)
    assert "\x1b" not in markdown
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", markdown)  # code is shown as it stands


# --- the text alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MADE))
def test_same_bytes_headings_and_size(kind: str) -> None:
    made = MADE[kind]()
    text = comparison_page(made, plotlyjs="none")
    assert comparison_page(made, plotlyjs="none") == text
    assert [int(level) for level in re.findall(r"<h([1-6])", text)][:3] == [1, 2, 3]
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert all(b - a <= 1 for a, b in zip(levels[:-1], levels[1:], strict=True))
    assert len(re.findall(r' id="([^"]+)"', text)) == len(set(re.findall(r' id="([^"]+)"', text)))


@pytest.mark.parametrize(("count", "blocks"), [(12, 30), (12, 80), (60, 12)])
def test_many_stay_small(count: int, blocks: int) -> None:
    assert len(comparison_page(family(count, blocks)).encode()) <= 2_300_000


def test_many_runs_of_many_checkpoints_stay_small() -> None:
    made = overlay(2, 93, 4)
    text = comparison_page(made)
    assert len(made.members) == 200 and len(text.encode()) <= 2_300_000
    assert "Shown are 20 of the 101 steps" in text
    assert "steps; comparison.json has all" not in comparison_page(overlay(2, 13))


def test_many_checkpoints_are_thinned_but_all_listed() -> None:
    made = trajectory(20)
    text = comparison_page(made, plotlyjs="none")
    assert "Shown are 8 of the 20" in text
    table = text.partition('id="table-members"')[2].partition("</table>")[0]
    assert table.count("<tr>") >= 20
    assert made.trajectory is not None and made.trajectory.peak is not None
    assert f">step {made.trajectory.peak.step}<" in text.replace("\u202f", "")


def test_the_terminal_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    for make in MADE.values():
        made = make()
        show_comparison(
            made, Console(width=80, force_terminal=True, color_system=None, highlight=False, emoji=False, markup=False)
        )
        out = capsys.readouterr().out
        assert all(len(line) <= 80 for line in out.splitlines())
        table = out.partition("bits/byte")[2].partition("Δ to the first")[0]
        assert "…" not in table.replace("…-family", "").replace("org/a-…", "") or made.kind == "family"
        assert "+0.90" in out or made.kind == "trajectory"


def test_undefined_numbers_are_dashes() -> None:
    none = Estimate(None, reason="no head")

    def bare(made: Diagnosis) -> Diagnosis:
        empty = tuple(
            replace(s, metrics={k: Estimate(None, reason="one token") for k in s.metrics}) for s in made.sites
        )
        return replace(
            made, sites=empty, deep={k: Estimate(None, reason="one token") for k in made.deep},
            quality=replace(made.quality, loss=none, perplexity=none, bits_per_byte=none),
            trend=Trend(Spearman(None, None), Kendall(None, None)),
        )  # fmt: skip

    for count in (2, 3):
        made = compare(*(bare(run(f"m{k}", k)) for k in range(count)))
        assert "–" in comparison_page(made, plotlyjs="none")
        assert comparison_markdown(made)
    made = compare(*(bare(run(f"r/checkpoint-{k}", 0)) for k in range(3)))
    assert made.trajectory is not None and made.trajectory.peak is None
    assert comparison_page(made, plotlyjs="none")


def test_no_model_library_is_loaded() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/browser'); import test_comparison_page as t; "
        "t.comparison_page(t.trajectory()); t.comparison_page(t.family(3)); "
        "sys.exit(', '.join({'torch', 'transformers', 'pandas', 'sklearn'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
