"""A verdict is decided once: a changed field of a saved run is what page, Markdown, terminal and JSON then say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from condense.metrics import METRICS, Metric
from condense.records.base import Estimate, Saved
from condense.records.comparison import Comparison
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Treatment
from condense.records.trial import Trial
from condense.report.comparison.text import show_comparison
from condense.report.diagnosis.text import show_diagnosis
from condense.report.treatment.text import show_treatment
from condense.report.trial.text import show_trial
from tests.browser import test_comparison_page as comparison_page
from tests.browser import test_report_page as report_page
from tests.browser import test_treatment_page as treatment_page
from tests.report.trial_records import trial

Surfaces = dict[str, str]
SHOW: dict[type[Saved], Callable[[Any, Console], None]] = {
    Diagnosis: show_diagnosis,
    Treatment: show_treatment,
    Trial: show_trial,
    Comparison: show_comparison,
}
MADE: dict[str, Callable[[], Saved]] = {
    "diagnosis": report_page.diagnosis,
    "treatment": treatment_page.treatment,
    "trial": trial,
    "comparison": comparison_page.pair,
}


def surfaces(record: Saved, width: int = 150) -> Surfaces:
    """Everything that is shown of a saved run, in one case and with plain spaces."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    SHOW[type(record)](record, console)
    shown = {"page": record.to_html(plotlyjs="none"), "Markdown": record.to_markdown(), "JSON": record.to_json()}
    shown["terminal"] = console.file.getvalue()  # type: ignore[attr-defined]
    return {name: " ".join(text.replace("\u202f", " ").lower().split()) for name, text in shown.items()}


def changed(record: Saved, path: tuple[str | int, ...], value: object, folder: Path) -> Saved:
    """The run saved with one field changed, and read again."""
    data = json.loads(record.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    file = folder / "run.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return type(record).from_json(file)


CHANGES: list[tuple[str, tuple[str | int, ...], object, dict[str, str]]] = [
    ("diagnosis", ("verdict", "level"), "severe", {"page": "<strong>severe</strong>", "": "severe"}),
    ("diagnosis", ("verdict", "cone"), "high", {"page": '<p class="word">high</p>', "Markdown": "cone: high",
                                               "terminal": "cone high", "JSON": '"cone":"high"'}),
    ("diagnosis", ("verdict", "rank"), "reduced", {"page": '<p class="word">reduced</p>', "Markdown": "rank: reduced",
                                                   "terminal": "rank reduced", "JSON": '"rank":"reduced"'}),
    ("diagnosis", ("verdict", "attribution"), "common direction", {"": "common direction"}),
    ("treatment", ("verdict", "id"), "condensed-further", {"page": "<strong>condensed further</strong>",
                                                           "": "condensed-further"}),
    ("treatment", ("verdict", "quality"), "improved", {"page": '<p class="word">improved</p>',
                                                       "Markdown": "quality improved", "terminal": "quality improved",
                                                       "JSON": '"quality":"improved"'}),
    ("treatment", ("verdict", "opened"), "cone opened", {"page": '<p class="word">cone opened</p>',
                                                         "": "cone opened"}),
    ("trial", ("arms", 2, "verdict"), "condensed-further", {"page": "<b>condensed further</b> <small>quality held",
                                                            "Markdown": "**condensed further**; quality held",
                                                            "terminal": "condensed further",
                                                            "JSON": '"verdict":"condensed-further"'}),
    ("trial", ("arms", 2, "quality"), "improved", {"": "quality improved", "JSON": '"quality":"improved"'}),
    ("trial", ("doses", 0, "recommended"), 0.1, {"": "recommended coefficient: 0.1",
                                                 "JSON": '"recommended":0.1'}),
    ("trial", ("unranked",), "no seed agrees", {"": "no seed agrees"}),
    ("comparison", ("findings", 0, "title"), "nothing can be said", {"": "nothing can be said"}),
    ("comparison", ("members", 1, "difference", "words", "mean_cosine", "word"), "inconclusive",
     {"page": '<p class="word">inconclusive</p>', "": "inconclusive"}),
    ("comparison", ("members", 1, "difference", "words", "quality", "word"), "worse",
     {"": "worse"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value", "said"), CHANGES, ids=lambda of: str(of)[:40])
def test_a_changed_verdict_is_what_every_surface_says(
    kind: str, path: tuple[str | int, ...], value: object, said: dict[str, str], tmp_path: Path
) -> None:
    record = MADE[kind]()
    before, after = surfaces(record), surfaces(changed(record, path, value, tmp_path))
    for name, text in after.items():
        words = said.get(name, said.get("", ""))
        assert words and text.count(words) > before[name].count(words), f"{name} does not say {words!r}"


@pytest.mark.parametrize(
    ("key", "field", "value", "said"),
    [
        ("mean_cosine", "least", 0.07, "tinted: within ±0.07, too small to count"),
        ("quality", "least", 0.0432, "tinted: held, up to 0.0432"),
        ("quality", "key", "loss", "nats per token"),
    ],
)
def test_the_page_draws_the_limits_that_were_judged_by(
    key: str, field: str, value: object, said: str, tmp_path: Path
) -> None:
    """Of two runs: the limits and the number of quality are those of the record, not today's defaults."""
    record = comparison_page.pair()
    after = changed(record, ("members", 1, "difference", "words", key, field), value, tmp_path)
    card = surfaces(after)["page"].partition('id="findings"')[0]
    assert said in card and said not in surfaces(record)["page"].partition('id="findings"')[0]


# --- a metric is shown from the table of metrics alone --------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_metric_of_the_table_is_in_the_tables(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    key, title = "new_number", "number of a new kind"
    metric = Metric(key, title, "share", 0, 1, "low", "What it means.", "x", "Nobody 2026", digits=5, level=level)  # type: ignore[arg-type]
    monkeypatch.setitem(METRICS, key, metric)
    found = surfaces(report_page.diagnosis(twin=False), width=240)
    value = "0.40000"  # the fixture has a number for every key of the table
    assert value in found["page"] and title in found["page"]
    assert (value in found["Markdown"] and title in found["Markdown"]) == (level < 3)
    assert (value in found["terminal"] and title in found["terminal"]) == (level < 3)
    treated = surfaces(treatment_page.treatment(), width=240)
    assert all((title in treated[name]) == (level < 3 or name == "page") for name in ("page", "Markdown", "terminal"))
    assert (title in surfaces(comparison_page.pair())["Markdown"]) == (level < 3)


# --- what the file says of itself ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MADE))
def test_every_file_names_its_writer(kind: str) -> None:
    record = MADE[kind]()
    assert record.to_markdown().startswith("<!-- condense 0.1.0 -->\n# ")
    assert '<meta name="generator" content="condense 0.1.0">' in record.to_html(plotlyjs="none")[:1000]
    assert record.to_markdown().endswith("\n") and not record.to_markdown().endswith("\n\n")


def test_an_undefined_number_is_a_dash_everywhere() -> None:
    from condense.report.text import difference, estimate, interval, number, signed

    none = Estimate(None, reason="one text")
    assert (number(None), signed(None), difference(none), interval(none)) == ("–", "–", "–", "")
    assert estimate(none) == "not defined (one text)"
    assert difference(Estimate(-0.02, -0.03, -0.01), 2) == "-0.02 [-0.03, -0.01]"
    assert interval(Estimate(1.0, 0.5, 1.5), 1, signs=True) == "+0.5 to +1.5"


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("kind", list(MADE))
def test_the_terminal_keeps_its_width_and_cuts_nothing(kind: str, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    record = MADE[kind]()
    SHOW[type(record)](record, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("… and", "")


def test_a_treatment_is_green_only_where_its_main_finding_is_good() -> None:
    """ "Dispersed" beside "three dimensions rescaled", or with quality not shown to be held, is no success."""
    from condense.report.treatment.page import answer
    from condense.report.treatment.text import model_card

    def shown(severity: Any) -> tuple[str, str]:
        made = treatment_page.treatment(verdict="dispersed")
        findings = (replace(made.verdict.findings[0], severity=severity), *made.verdict.findings[1:])
        made = replace(made, verdict=replace(made.verdict, findings=findings))
        console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
        show_treatment(made, console)
        return answer(made).level, console.file.getvalue()  # type: ignore[attr-defined]

    (level, told), (plain, dull) = shown("good"), shown("info")
    assert (level, plain) == ("ok", "none")
    assert "\x1b[32m" in told.split("cost of the loss")[1] and "\x1b[32m" not in dull.split("cost of the loss")[1]
    without, with_control = treatment_page.treatment(control=False), treatment_page.treatment()
    assert "No control arm was trained" in model_card(without) and "The control arm had" not in model_card(without)
    assert "The control arm had the same data order" in model_card(with_control)
