"""The documentation as a site: built strictly, opened from its folder in a browser, searched, with nothing fetched."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.test_report_page import ARGUMENTS, CHROMIUM

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> Iterator[Path]:
    yield from (page for page in sorted(site.glob("*.html")) if page.name != "404.html")


def test_every_page_is_there_and_links_resolve(site: Path) -> None:
    names = {page.stem for page in pages(site)}
    assert names >= {page.stem for page in (ROOT / "docs").glob("*.md")}
    links = 0
    for page in pages(site):
        article = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.S)
        assert article is not None, page
        for target in re.findall(r'<a [^>]*href="?([^" >]+)', article[0]):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), (page.name, target)
            assert not anchor or f'id="{anchor}"' in file.read_text(encoding="utf-8"), (page.name, target)
    assert links > 200


def test_nothing_is_fetched_and_the_search_works_from_a_folder(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        tab = browser.new_page()
        fetched: list[str] = []
        tab.on("request", lambda request: fetched.append(request.url))
        for page in pages(site):
            tab.goto(page.as_uri())
        tab.goto((site / "index.html").as_uri())
        tab.locator("input.md-search__input").fill("rogue dimensions")
        found = tab.locator(".md-search-result__item")
        found.first.wait_for(timeout=20_000)
        assert "rogue" in found.first.inner_text().lower()
        browser.close()
    outside = [url for url in fetched if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert fetched and not outside
