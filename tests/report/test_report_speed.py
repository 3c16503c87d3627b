"""What keeps `condense report` quick: it loads its own kind of page only. `make bench` times it (row commands)."""

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condense.report import html


@pytest.fixture(scope="module")
def large(diagnosed: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 blocks and 32 texts, as of SmolLM2, made of a tiny one."""
    run = diagnosed("llama")
    first, *_, output = run.sites
    blocks = [replace(run.sites[1], index=i, depth=i / 30) for i in range(1, 31)]

    def longer(data: Any) -> Any:
        """Four times as many values per text, everywhere."""
        if isinstance(data, dict):
            return {
                key: value * 4 if key in ("per_text", "documents") and isinstance(value, list) else longer(value)
                for key, value in data.items()
            }
        return [longer(item) for item in data] if isinstance(data, list) else data

    made = replace(
        run, sites=(first, *blocks, output),
        paper=replace(run.paper, mean_cosine=tuple(i / 40 for i in range(31))),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("large") / "run.json"
    path.write_text(json.dumps(longer(json.loads(made.to_json()))))
    assert len(json.loads(path.read_text())["sites"]) == 32
    return path


def test_a_report_loads_the_pages_of_its_own_kind(large: Path) -> None:
    code = (
        "import sys\nfrom condense.cli.app import app\n"
        f"try:\n    app(['report', {str(large)!r}])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*(name for name in sys.modules if name.startswith('condense.report.') or name == 'numpy'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = done.stdout.splitlines()[-1].split()
    assert "condense.report.diagnosis.text" in loaded and "condense.report.tables" in loaded
    assert "numpy" not in loaded, "a tenth of the time of a report"
    assert not any("treatment" in name or "html" in name for name in loaded), loaded


def test_a_script_in_the_cache_is_only_used_where_it_is_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes code of the page: whatever else lies in the cache is made anew."""
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    source, kept = b"alert(1);" * 100, tmp_path / "cache" / "pages" / "plotly.txt"
    right = html._gzipped(source)
    assert gzip.decompress(base64.b64decode(right)) == source and kept.read_text() == right
    with monkeypatch.context() as patch:
        patch.setattr(gzip, "compress", lambda *given, **more: pytest.fail("it was compressed again"))
        assert html._gzipped(source) == right
    evil = base64.b64encode(gzip.compress(b"evil();")).decode()
    more = base64.b64encode(gzip.compress(source) + b"more").decode()
    for wrong in (evil, more, right[:-8], "not base64 \xff", ""):
        kept.write_text(wrong, encoding="latin-1")
        assert html._gzipped(source) == right and kept.read_text() == right
    kept.unlink()
    kept.mkdir()
    assert html._gzipped(source) == right
    monkeypatch.setenv("CONDENSE_CACHE", "/dev/null/nowhere")
    assert html._gzipped(source) == right
