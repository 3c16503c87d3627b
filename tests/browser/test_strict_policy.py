"""Every kind of page under the content policy that Jenkins sends by default: no script, no style, no image in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from condense.records.monitor import MonitorRun
from condense.report.comparison.page import comparison_page
from condense.report.diagnosis.page import diagnosis_page
from condense.report.treatment.page import treatment_page
from condense.report.trial.page import trial_page
from tests.browser import test_report_page as report_page
from tests.browser.test_comparison_page import family, pair
from tests.browser.test_treatment_page import treatment
from tests.report.test_monitor_report import line, written
from tests.report.trial_records import trial

browser = report_page.browser
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
POLICY = "sandbox; default-src 'none'; img-src 'self'; style-src 'self'"


def watched(folder: Path) -> str:
    steps = (line(0, 0.2), line(10, 0.45), line(20, 0.5))
    return MonitorRun.from_lines(written(folder / "run.jsonl", *steps)).to_html()


PAGES: dict[str, Callable[[Path], str]] = {
    "diagnosis": lambda folder: diagnosis_page(report_page.diagnosis(encoder=True)),
    "treatment": lambda folder: treatment_page(treatment()),
    "pair": lambda folder: comparison_page(pair()),
    "family": lambda folder: comparison_page(family()),
    "trial": lambda folder: trial_page(trial(tasks=True)),
    "monitor": watched,
}


class Server(ThreadingHTTPServer):
    """Serves one page under the policy."""

    page = b""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Content-Length", str(len(self.server.page)))
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def sizes(page: Any, selector: str) -> set[tuple[float, float]]:
    """Width and height of what is shown of a selector."""
    boxes = page.locator(selector).evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).filter(b => b.width).map(b => [b.width, b.height])"
    )
    return {(round(width), round(height)) for width, height in boxes}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_without_its_styles_is_still_readable(browser: Any, server: Server, tmp_path: Path, kind: str) -> None:
    server.page = PAGES[kind](tmp_path).encode()
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/report.html")
    assert page.evaluate("getComputedStyle(document.body).margin") == "8px", "no style of the page holds"
    assert page.locator("html.js").count() == 0, "no script ran"

    assert sizes(page, "svg.icon") <= {(20, 20)}
    assert sizes(page, "svg:not(.icon, .sketch)") <= {(34, 12), (18, 14), (112, 11)}, "legends, no mark of a strip"
    drawn = page.locator("svg.sketch")
    assert drawn.count() >= 4
    assert all(width <= 1000 and height <= 620 for width, height in sizes(page, "svg.sketch"))
    assert page.locator("img, image").count() == 0, "an image would not be shown"

    looks = "e => [getComputedStyle(e).fill, getComputedStyle(e).stroke]"
    shapes = page.locator("svg.sketch :is(path, line, polygon, circle)").evaluate_all(f"all => all.map({looks})")
    assert shapes and not [pair for pair in shapes if pair == ["rgb(0, 0, 0)", "none"]], "nothing is black by default"
    texts = page.locator("svg.sketch text").evaluate_all("all => all.map(e => getComputedStyle(e).fontSize)")
    assert set(texts) == {"12px"}

    edges = page.locator("td, th").evaluate_all("all => all.map(c => getComputedStyle(c).borderTopStyle)")
    assert set(edges) == {"inset"}
    glued = page.locator("td small, th small, td span, li span + span").evaluate_all(
        "all => all.filter(e => e.textContent && e.getClientRects().length)"
        ".filter(e => /\\S$/.test(e.previousSibling?.textContent ?? '')).map(e => e.parentNode.textContent)"
    )
    assert glued == [], "a number does not run into its interval"
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_icon_is_seen_on_either_ground(browser: Any, server: Server, tmp_path: Path, scheme: str) -> None:
    server.page = PAGES["diagnosis"](tmp_path).encode()
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/report.html")
    fill, stroke = page.locator("svg.icon-good path").first.evaluate(
        "e => [getComputedStyle(e.previousSibling).fill, getComputedStyle(e).stroke]"
    )
    assert fill != stroke and "none" not in (fill, stroke)
    ground = page.locator("svg.sketch > rect").first.evaluate("e => getComputedStyle(e).fill")
    assert ground == "rgb(252, 251, 248)", "a drawing brings its own light paper"
    context.close()
