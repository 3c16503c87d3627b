"""What is shown on a terminal of 60, 80 or 100 columns, and in a log: whole numbers, whole paths, whole commands."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from condense.cli.app import app
from condense.records.monitor import MonitorRun
from condense.report.comparison.text import show_comparison
from condense.report.diagnosis.text import show_diagnosis
from condense.report.gate.text import show_gate
from condense.report.monitor import show_monitor
from condense.report.treatment.text import show_treatment
from condense.report.trial.text import show_trial
from tests.browser.test_comparison_page import family, overlay, pair
from tests.browser.test_report_page import diagnosis
from tests.browser.test_treatment_page import treatment, with_tasks
from tests.report.test_monitor_report import line, written
from tests.report.trial_records import trial

SAVED = Path(__file__).parents[1] / "saved"
Shown = Callable[[Any, Console], None]
PATH = "/builds/team-of-models/a-project-with-a-name/checkpoints/2026-11-27/run-0001/checkpoint-000012000"


def printed(show: Shown, record: Any, width: int, *, terminal: bool = True) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=terminal, color_system=None, highlight=False, emoji=False, markup=False
    )
    show(record, console)
    return stream.getvalue()


def monitored(folder: Path) -> MonitorRun:
    return MonitorRun.from_lines(written(folder / "run.jsonl", line(0, 0.2), line(10, 0.45), line(20, 0.5)))


def records(folder: Path) -> dict[str, tuple[Shown, Any, list[str]]]:
    """For each kind what shows it, a record, and words that must be whole at any width."""
    return {
        "diagnosis": (show_diagnosis, diagnosis(encoder=True), ["embedding", "block 12", "output", "0.45"]),
        "treatment": (show_treatment, with_tasks(treatment()), ["-0.0760", "treated − control"]),
        "pair": (show_comparison, pair(), ["org/tinier", "0.396", "-0.054"]),
        "family": (show_comparison, family(), ["0.252", "-0.198"]),
        "overlay": (show_comparison, overlay(), ["0.585", "-0.009 ±0.000*"]),
        "overlay of four": (show_comparison, overlay(4), ["run-3", "0.585"]),
        "trial": (show_trial, trial(tasks=True), ["control", "larger-vocab", "+0.019", "-0.046"]),
        "monitor": (show_monitor, monitored(folder), ["0.450", "30.0"]),
    }


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize(
    "kind", ["diagnosis", "treatment", "pair", "family", "overlay", "overlay of four", "trial", "monitor"]
)
def test_a_table_leaves_out_columns_and_cuts_no_number(tmp_path: Path, kind: str, width: int) -> None:
    show, record, words = records(tmp_path)[kind]
    text = printed(show, record, width)
    tables = [row for row in text.splitlines() if not row.startswith(("│", "next: ", "╭", "╰"))]
    assert all(word in text for word in words), [word for word in words if word not in text]
    assert not re.search(r"\d…| [+-]…|\d\.…", "\n".join(tables)), "no number is cut"
    assert max(map(len, tables)) <= width
    narrow = width == 60 and kind != "monitor"
    if not kind.startswith("overlay"):  # whose table is wider than 80 columns
        assert ("no room in" in text) == narrow, "and what is left out is named"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_is_one_line(terminal: bool) -> None:
    run = diagnosis(PATH)
    text = printed(show_diagnosis, run, 80, terminal=terminal)
    assert f"next: condense analyze '{PATH}'" in text.splitlines()
    assert PATH in text.splitlines(), "and the model's path too"


def test_a_log_breaks_no_path_inside_a_frame_either() -> None:
    run = diagnosis()
    first, *others = run.verdict.findings
    told = replace(run.verdict, findings=(replace(first, seen=f"it lies in {PATH}"), *others))
    text = printed(show_diagnosis, replace(run, verdict=told), 80, terminal=False)
    assert any(PATH in row and row.startswith("│") and row.endswith("│") for row in text.splitlines())
    assert len({len(row) for row in text.splitlines() if row.startswith(("│", "╭", "╰"))}) == 1


def test_a_gate_in_a_log_breaks_no_line(tmp_path: Path) -> None:
    folder = tmp_path / ("a-folder-of-a-workspace-" * 4)
    folder.mkdir()
    run = folder / "diagnosis.json"
    run.write_bytes((SAVED / "diagnosis-metrics-2.json").read_bytes())
    done = CliRunner().invoke(
        app,
        ["check", str(run), "--baseline", str(run), "--assert", "deep.mean_cosine <= -0.9", "--assert", "loss < 99"],
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"check {run} against {run}"
    assert any(row.startswith("  next ") for row in lines) and "  where     mean of blocks 2 to 3" in lines
    failed = lines.index("✖ FAIL deep.mean_cosine")
    assert all(row.startswith("  ") for row in lines[failed + 1 : failed + 5]), "a line each, however long"


def test_a_gate_on_a_narrow_terminal_hangs_what_is_broken() -> None:
    from condense.gate.assertions import parse_inline
    from condense.gate.run import evaluate

    gate = evaluate(diagnosis(), [parse_inline("deep.mean_cosine <= 0.1")])
    shown = printed(show_gate, gate, 40).splitlines()
    at = shown.index("✖ FAIL deep.mean_cosine")
    assert shown[at + 2].startswith("  found     0.4500 [0.4365, 0.4635]")
    assert all(len(row) <= 40 for row in shown[at : at + 4])
