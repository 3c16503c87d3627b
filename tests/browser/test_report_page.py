"""The HTML report in a real browser: offline, light and dark, printed, read aloud, and attacked."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condense.metrics import MATRIX, METRICS
from condense.records.base import Estimate, Finding  # fmt: skip
from condense.records.diagnosis import (  # fmt: skip
    MATRICES,
    CorpusInfo,
    Diagnosis,
    Histogram,
    Kendall,
    MatrixReading,
    ModelInfo,
    Paper,
    Quality,
    SiteReading,
    Spearman,
    StackSummary,
    TopDimension,
    Trend,
    Verdict,
)
from condense.report.diagnosis.page import diagnosis_page

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
EVIL = "evil[/foo]<script>alert(1)</script>\x1b[31m"
READY = "html[data-charts=ready]"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


# --- a diagnosis out of nothing ---------------------------------------------------------------------------


def estimate(value: float, *, null: float | None = None) -> Estimate:
    return Estimate(value, value * 0.97, value * 1.03, null=null, null_ratio=None if null is None else value / null)


def site(kind: Any, index: int, blocks: int, stack: str) -> SiteReading:
    depth = index / blocks
    cosine = 0.1 + 0.6 * depth
    metrics = {key: estimate(0.4 + 0.3 * math.sin(3 * depth)) for key in METRICS}
    metrics |= {
        "mean_cosine": estimate(cosine), "mean_cosine_without_top_dimensions": estimate(0.3 * cosine),
        "effective_rank": estimate(100 - 30 * depth, null=120.0), "entropy_rank": estimate(30 - 20 * depth, null=110.0),
        "effective_rank_with_sink": estimate(90 - 60 * depth), "median_norm": estimate(3 + 200 * depth),
        "total_variance": estimate(0.01 + 50 * depth), "sink_ratio": estimate(2 + 300 * depth),
        "cross_text_cosine": Estimate(cosine * 0.9),
    }  # fmt: skip
    counts = tuple(max(0, round(1000 * math.exp(-(((k - 100) / 100 - cosine) ** 2) / 0.02))) for k in range(200))
    top = tuple(TopDimension(7 * k + index % 2, cosine / (k + 2), 1 / (k + 2)) for k in range(3))
    return SiteReading(kind, stack, index, depth, metrics, top, Histogram(counts))


def sites(blocks: int, stack: str = "decoder") -> tuple[SiteReading, ...]:
    inner = (site("block", i, blocks, stack) for i in range(1, blocks + 1))
    return (site("embedding", 0, blocks, stack), *inner, site("output", blocks, blocks, stack))


def verdict(model: str) -> Verdict:
    words = "two tokens of <b>a text</b> & another"
    severities: Any = (("main", "warning"), ("second", "severe"), ("third", "info"), ("fourth", "good"))
    findings = tuple(
        Finding(
            name,
            severity,
            f"The {name} finding of {model}",
            words,
            "it matters",
            f"condense analyze '{model}'",
            "A 2024",
        )
        for name, severity in severities
    )
    bands = {
        "cone_moderate": 0.35, "cone_high": 0.6, "cone_severe": 0.8, "rank_low": 0.25, "rank_reduced": 0.5,
    }  # fmt: skip
    frequencies = {
        "cone": {"moderate": 0.62, "high": 0.38}, "rank": {"intact": 1.0}, "attribution": {"rogue dimensions": 1.0},
    }  # fmt: skip
    return Verdict(
        "watch", "moderate", "intact", "rogue dimensions", ("cone",), bands, findings, frequencies, twin="more"
    )


def diagnosis(model: str = "org/tiny", blocks: int = 12, twin: bool = True, encoder: bool = False) -> Diagnosis:
    own = sites(blocks)
    deep = dict(own[blocks // 2 + 1].metrics)
    trend = Trend(Spearman(0.9, 1e-6), Kendall(None, None))
    paper = Paper(tuple(0.1 + 0.01 * i for i in range(blocks + 1)), Spearman(0.9, 1e-6), Kendall(0.8, 1e-5))
    made = Diagnosis(
        "condense.diagnosis/1", "0.1.0", "2026-01-02T03:04:05+00:00", f"condense analyze '{model}'",
        ModelInfo(model, "LlamaForCausalLM", "causal", 1234567, 64, blocks, "float32", "safetensors", None, "a" * 64),
        CorpusInfo(
            "probe", "b" * 64, "c" * 64, 16, 0, 2048, 128, 0, tuple(f"text-{i}#0" for i in range(16)), 16,
            documents=tuple(range(16)),
        ),
        {"hash": "d" * 64, "dtype": "float32", "keys": list(METRICS)}, {"python": "3.11", "device": "cpu"},
        {"measure_seconds": 1.5},
        Quality(estimate(3.2), estimate(24.5), Estimate(None, reason="the tokenizer has no offsets")),
        own, deep, trend, paper, verdict(model),
    )  # fmt: skip
    if encoder:
        summary = StackSummary(deep, trend, paper, verdict(model))
        made = replace(made, sites=(*sites(blocks, "encoder"), *own), stacks={"encoder": summary})
    return replace(made, twin=made) if twin else made


# --- the browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        message = f"{CHROMIUM} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Opened:
    """A page from disk with the network cut, and everything that went wrong on it."""

    def __init__(self, browser: Any, path: Path, wait: str = READY, **context: Any) -> None:
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.trouble.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self._request(request.url, path))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(wait, state="attached", timeout=90_000)

    def _request(self, url: str, path: Path) -> None:
        if url != path.as_uri() and not url.startswith("data:"):
            self.trouble.append(f"request: {url}")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(diagnosis_page(diagnosis()), encoding="utf-8")
    return path


def axe_violations(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    return [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:120]}" for v in Axe().run(page).response["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_a_request_an_error_or_an_axe_violation(browser: Any, report: Path, scheme: str) -> None:
    with Opened(browser, report, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as opened:
        assert opened.page.locator(".js-plotly-plot").count() == 8  # tokens were not counted in this record
        assert opened.page.locator(".modebar-btn").count() == 0
        assert axe_violations(opened.page) == []
        assert opened.trouble == []


def test_fits_a_phone(browser: Any, report: Path) -> None:
    with Opened(browser, report, viewport={"width": 390, "height": 844}) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_change_of_scheme_redraws_the_charts(browser: Any, report: Path) -> None:
    colour = "getComputedStyle(document.querySelector('#chart-0-cosine .xtick text')).fill"
    with Opened(browser, report, color_scheme="light") as opened:
        light = opened.page.evaluate(colour)
        opened.page.emulate_media(color_scheme="dark")
        opened.page.wait_for_timeout(300)
        dark = opened.page.evaluate(colour)
        assert light != dark
        assert sum(map(int, re.findall(r"\d+", dark)[:3])) > sum(map(int, re.findall(r"\d+", light)[:3]))


def test_prints_light_from_a_dark_screen_with_everything_open(browser: Any, report: Path) -> None:
    colour = "getComputedStyle(document.querySelector('#chart-0-cosine .xtick text')).fill"
    with Opened(browser, report, color_scheme="dark") as opened:
        page = opened.page
        screen = page.evaluate(colour)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(colour) != screen
        assert page.locator("details:not([open])").count() == 0
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(colour) == screen
        assert page.locator("details:not([open])").count() > 0
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        assert opened.trouble == []


def test_a_heading_sorts_the_table_by_click_and_by_key(browser: Any, report: Path) -> None:
    with Opened(browser, report) as opened:
        head = opened.page.locator("#table-0 thead tr:last-child th").nth(1)
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        cells = "[...document.querySelectorAll('#table-0 tbody tr')].map(r => Number(r.children[1].dataset.sort))"
        values = opened.page.evaluate(cells)
        assert values == sorted(values, reverse=True)
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert opened.page.evaluate(cells) == sorted(values)
        assert opened.page.locator("#table-0 [aria-sort]").count() == 1


def test_a_hostile_name_stays_text(browser: Any, tmp_path: Path) -> None:
    text = diagnosis_page(diagnosis(EVIL))
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "<b>a text</b>" not in text
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with Opened(browser, path) as opened:
        assert opened.trouble == []
        assert opened.page.locator("h1").inner_text() == "evil[/foo]<script>alert(1)</script>\\x1b[31m"


def test_two_stacks_and_no_scripts(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(diagnosis_page(diagnosis(encoder=True), plotlyjs="none"), encoding="utf-8")
    with Opened(browser, path, wait="svg.sketch", java_script_enabled=False) as opened:
        assert opened.page.locator("svg.sketch").count() == 16
        assert opened.page.locator("table.layers").count() == 2
        assert opened.page.locator("h2", has_text="Over depth: the encoder").count() == 1
        assert opened.trouble == []


# --- the text alone -------------------------------------------------------------------------------------


def test_sizes_bytes_and_words() -> None:
    record = diagnosis()
    inline, none = diagnosis_page(record), diagnosis_page(record, plotlyjs="none")
    assert len(inline.encode()) <= 2_300_000
    assert len(none.encode()) < 200_000
    assert diagnosis_page(record) == inline
    assert "the tokenizer has no offsets" in none.lower()
    assert "convention" in none
    assert [int(level) for level in re.findall(r"<h([1-6])", none)][:3] == [1, 2, 3]


def test_a_deep_model_stays_small() -> None:
    record = diagnosis(blocks=80)
    spectrum = tuple(1.2345678901234567 * 0.9**rank for rank in range(48))
    numbers = {key.partition(".")[2]: Estimate(0.1234567) for key in MATRIX}
    matrix = MatrixReading(50_000, 4096, False, numbers, 1, 2, 3, spectrum, spectrum)
    record = replace(record, matrices=dict.fromkeys(MATRICES, matrix))
    assert len(diagnosis_page(record).encode()) <= 2_300_000


def test_cdn_names_its_hash() -> None:
    text = diagnosis_page(diagnosis(), plotlyjs="cdn")
    assert re.search(r'src="https://cdn\.plot\.ly/plotly-[\d.]+\.min\.js" integrity="sha256-[^"]+" crossorigin', text)
    assert "script-src &#39;unsafe-inline&#39; https://cdn.plot.ly" in text
    with pytest.raises(ValueError, match="plotlyjs"):
        diagnosis_page(diagnosis(), plotlyjs="other")  # type: ignore[arg-type]


def test_undefined_numbers_are_dashes() -> None:
    record = diagnosis(twin=False)
    empty = tuple(
        replace(s, metrics={key: Estimate(None, reason="one token") for key in METRICS}, top_dimensions=(),
                histogram=Histogram((0,) * 200))
        for s in record.sites
    )  # fmt: skip
    none = Estimate(None, reason="no head")
    bare = replace(
        record, sites=empty, deep={}, quality=Quality(none, none, none),
        paper=Paper((), Spearman(None, None), Kendall(None, None)),
        verdict=Verdict("undefined", "undefined", "undefined", "undefined", (), {}, ()),
    )  # fmt: skip
    text = diagnosis_page(bare)
    assert "No verdict" in text
    assert "No head." in text


def test_no_model_library_is_loaded() -> None:
    code = (
        "import sys; from tests.browser.test_report_page import diagnosis, diagnosis_page; "
        "diagnosis_page(diagnosis()); "
        "sys.exit(', '.join({'torch', 'transformers', 'pandas', 'sklearn', 'numpy'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
