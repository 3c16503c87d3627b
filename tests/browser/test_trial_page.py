"""The report of a trial in a real browser: offline, light and dark, printed, on a phone, read aloud, and attacked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from condense.records.trial import Trial
from condense.report.trial.page import trial_page
from tests.browser import test_report_page as report_page
from tests.browser.test_report_page import EVIL, Opened, axe_violations
from tests.report.trial_records import ARMS, trial, with_learning

browser = report_page.browser
CHARTS = 9
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(trial_page(trial(tasks=True)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_a_request_an_error_or_an_axe_violation(browser: Any, report: Path, scheme: str) -> None:
    with Opened(browser, report, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as opened:
        assert opened.page.locator(".js-plotly-plot").count() == CHARTS
        assert opened.page.locator(".modebar-btn").count() == 0
        assert opened.page.locator("#chart-tradeoff .errorbar").count() == 7
        assert axe_violations(opened.page) == []
        assert opened.trouble == []


def test_the_curves_of_the_arms_open_alike(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(trial_page(with_learning(trial(blocks=6, rows=ARMS[:3]))), encoding="utf-8")
    with Opened(browser, path, color_scheme="dark", viewport={"width": 1280, "height": 900}) as opened:
        assert opened.page.locator("#learning .js-plotly-plot").count() == 2
        assert opened.page.locator("#learning .still svg.sketch").count() == 4, "the others are drawings"
        assert axe_violations(opened.page) == []
        assert opened.trouble == []


def test_the_table_comes_first_and_needs_no_scrolling(browser: Any, report: Path) -> None:
    with Opened(browser, report, viewport={"width": 1280, "height": 900}) as opened:
        table = opened.page.locator("main table").first
        assert table.get_attribute("class") == "trial"
        assert table.bounding_box()["y"] < 500
        region = opened.page.locator("#verdict .scroll")
        assert region.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_on_a_phone_the_rows_are_cards_that_are_still_a_table(browser: Any, report: Path) -> None:
    with Opened(browser, report, viewport={"width": 390, "height": 844}) as opened:
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = "[...document.querySelectorAll('.trial td, .forest td')].filter(c => c.scrollWidth > c.clientWidth + 1)"
        assert page.evaluate(f"{wide}.map(c => c.textContent)") == []
        assert page.get_by_role("row", name=re.compile("^larger-vocab")).first.is_visible()
        assert page.get_by_role("columnheader", name="verdict").count() == 1
        assert axe_violations(page) == []
        assert opened.trouble == []


def test_prints_from_a_dark_screen_with_every_pair_open(browser: Any, report: Path) -> None:
    with Opened(browser, report, color_scheme="dark") as opened:
        opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.page.locator("details:not([open])").count() == 0
        opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert opened.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        assert opened.trouble == []


@pytest.mark.parametrize("table", ["table-seeds", "table-sites"])
def test_the_long_tables_are_reached_and_sorted_by_key(browser: Any, tmp_path: Path, table: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(trial_page(trial(), plotlyjs="none"), encoding="utf-8")
    with Opened(browser, path, wait="svg.sketch") as opened:
        head = opened.page.locator(f"#{table} thead tr:last-child th").nth(2)
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        read = "r => Number(r.children[2].dataset.sort ?? r.children[2].textContent)"
        values = opened.page.evaluate(f"[...document.querySelectorAll('#{table} tbody tr')].map({read})")
        known = [value for value in values if value == value]
        assert known == sorted(known, reverse=True)
        assert len(known) >= 21


def test_hostile_names_stay_text_and_drawings_do_without_scripts(browser: Any, tmp_path: Path) -> None:
    from tests.report.test_trial_pages import hostile

    text = trial_page(hostile(), plotlyjs="none")
    assert "<script>alert" not in text
    assert "\x1b" not in text
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with Opened(browser, path, wait="svg.sketch", java_script_enabled=False) as opened:
        assert opened.page.locator("svg.sketch").count() == CHARTS
        assert opened.page.locator("h1").inner_text().startswith(EVIL.replace("\x1b", "\\x1b"))
        assert opened.trouble == []


def test_a_hostile_name_stays_text_in_the_charts(browser: Any, tmp_path: Path) -> None:
    from tests.report.test_trial_pages import hostile

    path = tmp_path / "report.html"
    path.write_text(trial_page(hostile()), encoding="utf-8")
    with Opened(browser, path) as opened:
        assert opened.page.locator(".js-plotly-plot").count() == CHARTS
        assert opened.trouble == []


# --- the text alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [30, 48, 80])
def test_sizes_and_bytes(blocks: int) -> None:
    record = trial(blocks=blocks, steps=2000, tasks=True)
    assert len(trial_page(with_learning(record)).encode()) <= 2_300_000, "with the curves of eight arms too"
    inline, none = trial_page(record), trial_page(record, plotlyjs="none")
    assert len(inline.encode()) <= 2_300_000
    assert len(none.encode()) < 260_000
    assert trial_page(Trial.from_json(record.to_json())) == inline


def test_headings_and_ids_are_in_order() -> None:
    text = trial_page(trial(tasks=True), plotlyjs="none")
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[:2] == [1, 2]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', text))
    assert targets <= set(ids)


def test_says_the_numbers_with_a_real_minus_and_commands_as_they_are() -> None:
    text = trial_page(trial(), plotlyjs="none")
    table = text.split('class="trial"')[1].split("</table>")[0]
    assert "<b>−0.046</b>" in table
    assert "−0.051 to −0.041" in table
    assert "--coefficient 1 -o o/" in text


def test_two_seeds_are_not_ranked() -> None:
    text = trial_page(trial(seeds=2), plotlyjs="none")
    assert "Nothing is ranked: 2 training seeds: below 3 nothing is ranked." in text
    assert "place 1" not in text
    assert "SD 0.003" in text


def test_one_seed_has_no_spread() -> None:
    text = trial_page(trial(seeds=1), plotlyjs="none")
    table = text.split('class="trial"')[1].split("</table>")[0]
    assert "<small>one seed</small>" in table
    assert "SD 0" not in table


def test_an_unknown_kind_of_plotly_is_refused() -> None:
    with pytest.raises(ValueError, match="plotlyjs"):
        trial_page(trial(), plotlyjs="other")  # type: ignore[arg-type]


def test_no_model_library_is_loaded() -> None:
    code = (
        "import sys; from tests.report.trial_records import trial; trial().to_html(); "
        "sys.exit(', '.join({'torch', 'transformers', 'pandas', 'sklearn', 'numpy', 'scipy'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
