"""A training run that a monitor watched, drawn from its file on every surface, and again while it grows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from condense.cli import report as command
from condense.cli.app import app
from condense.records.monitor import MonitorRun
from tests.test_architecture import loaded_by

EVIL = "evil[/foo]<script>alert(1)</script>\x1b[31m"
HEAD = {
    "schema": "condense.monitor/1", "condense": "0.1.0", "model": "LlamaForCausalLM", "blocks": 3, "path": "layers",
    "texts": 2, "tokens": 64, "keys": ["mean_cosine", "effective_rank"],
}  # fmt: skip


def line(step: int, cosine: float, loss: float | None = 3.0, name: str = "loss") -> dict[str, Any]:
    alarms = [f"deep mean cosine 0.200 at the first step, {cosine:.3f} now"] if cosine >= 0.4 else []
    deep = {"mean_cosine": cosine, "effective_rank": 50 - 40 * cosine}
    blocks = {"mean_cosine": [cosine / 2, cosine, None]}
    return {"step": step, "deep": deep, "blocks": blocks, "beside": {name: loss}, "measured": 2, "errors": 1,
            "seconds": 0.1, "alarms": alarms}  # fmt: skip


def written(file: Path, *lines: dict[str, Any], **head: Any) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in (HEAD | head, *lines)), encoding="utf-8")
    return file


def show(*words: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_every_surface_says_the_alarm_and_its_step(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", line(0, 0.2), line(10, 0.45), line(20, 0.5, None))
    shown = show(path)
    assert shown.exit_code == 0, shown.output
    names = {kind: tmp_path / f"out.{kind}" for kind in ("html", "md", "csv")}
    done = show(path, *(word for kind, file in names.items() for word in (f"--{kind}", file)))
    assert done.exit_code == 0, done.output
    html, markdown, csv = (names[kind].read_text(encoding="utf-8") for kind in ("html", "md", "csv"))
    for text in (shown.output, html, markdown):
        flat = " ".join(text.split())
        assert "1 alarm, the first at step 10" in flat and "0.450 now" in flat and "1 error while measuring" in flat
    assert html.count('class="js') == 0 and 'id="chart-map"' in html and "<strong>Alarm</strong>" in html
    assert markdown.startswith("<!-- condense 0.1.0 -->\n# ") and "| 20 | 0.500 |" in markdown
    assert csv.splitlines()[0].startswith("step,deep.mean_cosine")


def test_a_run_that_keeps_still_has_no_alarm(tmp_path: Path) -> None:
    quiet = MonitorRun.from_lines(written(tmp_path / "quiet.jsonl", line(0, 0.2), line(10, 0.21)))
    assert "<strong>No alarm</strong>" in quiet.to_html(plotlyjs="none")
    assert "No alarm in 2 measurements, up to step 10" in quiet.to_markdown()
    empty = MonitorRun.from_lines(written(tmp_path / "empty.jsonl"))
    assert "No step was measured yet." in empty.to_html(plotlyjs="none")
    assert "Nothing was measured yet" in empty.to_markdown()
    assert show(tmp_path / "empty.jsonl").exit_code == 0


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", line(0, 0.2, name=EVIL), line(9, 0.5, name=EVIL), model=EVIL, path=EVIL)
    run = MonitorRun.from_lines(path)
    html, markdown, screen = run.to_html(plotlyjs="none"), run.to_markdown(), show(path).output
    assert "<script>alert" not in html and "<script>" not in re.sub(r"`[^`]*`", "", markdown)
    assert all("\x1b[31m" not in text for text in (html, markdown, screen))
    assert "[/foo]" in screen  # shown as it is, not taken for markup
    assert run.to_html(plotlyjs="none") == html


def test_watch_draws_again_when_the_run_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, page = written(tmp_path / "run.jsonl", line(0, 0.2)), tmp_path / "page.html"
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 2:
            raise KeyboardInterrupt
        if len(looks) == 1:
            written(path, line(0, 0.2), line(10, 0.6))

    monkeypatch.setattr(command.time, "sleep", wait)
    done = show(path, "--html", page, "--watch")
    assert done.exit_code == 130 and done.output.count(f"wrote {page}") == 2, done.output
    assert "the first at step 10" in page.read_text(encoding="utf-8")
    saved = tmp_path / "other.json"
    saved.write_text('{"schema": "condense.other/1"}')
    assert show(saved, "--watch").exit_code == 3


def test_what_is_no_monitors_file_is_refused_in_a_line(tmp_path: Path) -> None:
    broken = written(tmp_path / "broken.jsonl", {"step": 1})
    assert show(broken).exit_code == 3 and "Traceback" not in show(broken).output
    assert show(tmp_path / "nothing.jsonl").exit_code == 3


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", line(0, 0.2), line(10, 0.5))
    words = ["report", str(path), "--html", str(tmp_path / "o.html")]
    call = f"try:\n    app({words!r})\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_by(f"from condense.cli.app import app\n{call}") == []
