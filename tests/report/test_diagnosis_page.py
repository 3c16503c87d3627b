"""Tokens and sinks on the page and in Markdown: what the record holds of them, escaped, and nothing it does not."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from condense.intervals import coverage_note
from condense.records.base import Finding
from condense.records.diagnosis import SinkAnatomy, TokenCounts
from condense.report.depth import stack_views
from condense.report.diagnosis.figures import left_out_figures
from condense.report.diagnosis.text import diagnosis_markdown, left_out_rows, show_diagnosis
from condense.report.plotly import plotly_figure
from condense.report.text import FEW_DOCUMENTS, subject

SINKS = SinkAnatomy(
    "decoder",
    6,
    2.0,
    5,
    (0, 3),
    ("<script>alert(1)</script>", "a|b", "-1"),
    (7, 11),
    150.4,
    "block 2",
    "block 1",
    "block 3",
)


@pytest.fixture(scope="module")
def run(diagnosed):
    made = diagnosed("llama")
    stack = made.main_stack
    return replace(made, sinks=(replace(SINKS, stack=stack),), tokens=TokenCounts((30, 40) * 4, (0.1, 0.05) * 4))


def test_the_rows_say_where_sinks_stand_and_how_much_text_repeats(run):
    rows = dict(left_out_rows(run, stack_views(run)[0]))
    assert rows["windows with a sink"] == "6 of 8 (75 %)" and rows["sinks in such a window"] == "2 in the median"
    assert rows["positions, most common first"] == "0, 3" and rows["coordinates that carry them"] == "7, 11"
    assert rows["half of the windows have one"] == "from block 1 on, until before block 3"
    assert rows["the longest state of all windows"] == "× 150 the median, at block 2"
    assert rows["left out beside position 0 and special tokens"] == "5 positions"
    assert rows["distinct tokens of a window"] == "30 to 40, 35 in the median"
    assert rows["pairs of positions with the same token"] == "5.0 to 10.0 %, 7.5 % in the mean"


def test_they_stand_on_the_page_and_in_markdown_and_are_escaped(run):
    page, text = run.to_html(plotlyjs="none"), diagnosis_markdown(run)
    for told in (page, text):
        assert "Tokens and sinks" in told and "until before block 3" in told and "<script>alert(1)" not in told
        assert "&#39;-1&#39;" in told or "'-1'" in told, "a token is no number to be typeset"
    assert "a\\|b" in text and "'a|b'" not in text
    assert len(run.to_html().encode()) <= 2_300_000


def test_the_figure_shades_the_blocks_between_step_up_and_step_down(run):
    view = stack_views(run)[0]
    sinks, kinds = left_out_figures(view, "chart-0")
    labels = sinks.chart.axis.labels
    assert (labels[sinks.chart.shade.first], labels[sinks.chart.shade.last]) == ("block 1", "block 2")
    layout = plotly_figure(sinks.chart)["layout"]
    assert {note["y"] for note in layout["annotations"] if note["text"] == "massive"} == {2.0}, "an exponent"
    assert {shape["y0"] for shape in layout["shapes"]} >= {20.0, 100.0}
    assert kinds.chart.bars[0].values == [30, 40] * 4 and kinds.takeaway.startswith("30 to 40 kinds")
    to_the_end = replace(view, sinks=replace(SINKS, down=None))
    shade = left_out_figures(to_the_end, "c")[0].chart.shade
    assert labels[shade.last] == view.blocks[-1].label


def test_no_sinks_and_an_older_run_are_told_apart(run):
    none, older = replace(run, sinks=()), replace(run, sinks=(), tokens=None)
    assert dict(left_out_rows(none, stack_views(none)[0]))["windows with a sink"] == "none of 8"
    assert left_out_rows(older, stack_views(older)[0]) == [] and "Tokens and sinks" not in diagnosis_markdown(older)
    (figure,) = left_out_figures(stack_views(older)[0], "c")
    assert "was not kept" in figure.takeaway
    assert "no window has a sink" in left_out_figures(stack_views(none)[0], "c")[0].takeaway
    untold = replace(run, sinks=(replace(run.sinks[0], tokens=()),))
    assert "tokens, most common first" not in dict(left_out_rows(untold, stack_views(untold)[0]))


def test_many_windows_are_drawn_as_means_of_neighbours(run):
    many = replace(run, tokens=TokenCounts(tuple(range(100, 200)), (0.0,) * 100))
    chart = left_out_figures(stack_views(many)[0], "c")[1].chart
    assert chart.bars[0].name == "distinct tokens, mean of 3 windows" and chart.bars[0].values[:2] == [101.0, 104.0]
    assert chart.axis.labels[1] == "from window 4 on, mean" and len(chart.bars[0].values) == len(chart.axis.ticks) == 34


def test_both_stacks_have_their_sinks(diagnosed):
    made = diagnosed("t5")
    encoder = replace(SINKS, stack="encoder")
    run = replace(made, sinks=(encoder,))
    by_stack = {view.name: dict(left_out_rows(run, view)) for view in stack_views(run)}
    assert by_stack["encoder"]["windows with a sink"].startswith("6 of")
    assert by_stack["decoder"]["windows with a sink"].startswith("none of")
    assert "## Tokens and sinks: the encoder" in diagnosis_markdown(run)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_documents_are_said_beside_the_interval(run, count):
    """What the interval is over stands in the head of every output, in the words of the gate and of compare."""
    few = replace(run, corpus=replace(run.corpus, documents=tuple(index % count for index in range(8))))
    note = coverage_note(few.corpus.documents)
    assert FEW_DOCUMENTS.get(count, "") == note
    for told in (subject(few), diagnosis_markdown(few), few.to_html(plotlyjs="none")):
        assert (f"intervals: {note}" in told) == bool(note)
    assert "intervals:" not in subject(replace(few, corpus=replace(few.corpus, documents=())))


def test_the_share_of_a_borderline_word_stands_once_on_the_terminal(run):
    frequencies = {"cone": {"low": 0.73, "moderate": 0.27}}
    finding = Finding("borderline", "info", "With other documents", "cone: low in 73 %", "why", "", "s")
    verdict = replace(run.verdict, borderline=("cone",), frequencies=frequencies, findings=(finding,))
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    show_diagnosis(replace(run, verdict=verdict), console)
    told = console.file.getvalue()
    assert "borderline: cone (low in 73 %, moderate in 27 %)" in told and "resampled documents give" not in told
