"""A diagnosis as Markdown and on the terminal: the verdict first, then a row per site."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from condense.comparison.atlas import standing
from condense.metrics import METRICS, POOLED
from condense.records.diagnosis import Diagnosis, SiteReading, Verdict
from condense.report.console import bar, new_table, say, show_panel, show_table, speaks_unicode
from condense.report.depth import StackView, stack_views
from condense.report.diagnosis.matrices import CAUTION, matrix_lines, matrix_table
from condense.report.escape import for_code, for_markdown
from condense.report.tables import Column, Table, markdown_rows, markdown_table, shown, value_cell
from condense.report.text import (
    LEVELS,
    NOTHING,
    TWIN_WORDS,
    WITHOUT_TOP,
    estimate,
    folded,
    listed,
    markdown_findings,
    markdown_head,
    number,
    percent,
    plural,
    quality_lines,
    sentence,
    subject,
    times,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from condense.models.sick import Sick
    from condense.records.diagnosis import Diagnosis, SiteReading, Verdict


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    """The report as Markdown, fit for a README, a model card or a CI summary."""
    lines = [*markdown_head(diagnosis.condense, diagnosis.model.id), for_markdown(subject(diagnosis)), ""]
    if not diagnosis.sites:
        lines += [*markdown_findings(diagnosis.verdict.findings), *_matrices(diagnosis)]
        return "\n".join([*lines, *folded("Provenance", _provenance(diagnosis))])
    lines += _verdict(diagnosis.verdict)
    place = standing(diagnosis)
    lines += [f"The model is {for_markdown(place.words)} (`condense atlas`).", ""] if place else []
    for name, stack in diagnosis.stacks.items():
        lines += [f"## {for_markdown(name)} stack", "", *_verdict(stack.verdict)]
    for view in stack_views(diagnosis):
        facts = left_out_rows(diagnosis, view)
        title = f"Tokens and sinks: the {view.name}" if diagnosis.stacks else "Tokens and sinks"
        cells = [(what, for_markdown(how)) for what, how in facts]
        lines += [f"## {for_markdown(title)}", "", *markdown_rows(("", ""), cells), ""] if facts else []
    lines += ["## Quality on the same windows", ""]
    lines += [f"- {for_markdown(line)}" for line in quality_lines(diagnosis)]
    lines += ["", *folded("Layer table", markdown_table(layer_table(diagnosis.sites)))]
    pooled = pooled_table(diagnosis)
    lines += (
        folded("One vector per text", [*markdown_table(pooled), "", for_markdown(pooled.note)]) if pooled.rows else []
    )
    lines += folded("Embedding and unembedding", _matrices(diagnosis)) if diagnosis.matrices else []
    return "\n".join([*lines, *folded("Provenance", _provenance(diagnosis))])


def _matrices(diagnosis: Diagnosis) -> list[str]:
    return [*markdown_table(matrix_table(diagnosis)), "", for_markdown(CAUTION), ""]


def _verdict(verdict: Verdict) -> list[str]:
    words = [f"**{LEVELS[verdict.level]}**", f"cone: {verdict.cone}", f"rank: {verdict.rank}"]
    words.append(f"attribution: {for_markdown(verdict.attribution)}")
    words += [f"borderline: {for_markdown(listed(verdict.borderline))}"] if verdict.borderline else []
    words += [for_markdown(verdict.reason)] if verdict.reason else []
    words += [TWIN_WORDS[verdict.twin]] if verdict.twin else []
    note = "The bands are a convention (no validated threshold is published); geometry is not quality."
    shares = [f"- {axis}: {for_markdown(verdict.share(axis))}" for axis in verdict.frequencies if verdict.share(axis)]
    drawn = ["How often resampled documents give each word:", "", *shares, ""] if shares else []
    beyond = [for_markdown(verdict.not_covered), ""] if verdict.not_covered else []
    return [" · ".join(words), "", *beyond, *drawn, *markdown_findings(verdict.findings), note, ""]


def left_out_rows(diagnosis: Diagnosis, view: StackView) -> list[tuple[str, str]]:
    """What is known of a stack's sinks and of the windows' tokens, as (what, how much); () where nothing is."""
    sinks, tokens, windows = view.sinks, view.tokens, diagnosis.corpus.texts
    rows = []
    if sinks is not None:
        end = f"until before {sinks.down}" if sinks.down else "to the last block"
        rows += [
            ("windows with a sink", f"{sinks.windows} of {windows} ({percent(sinks.windows / max(1, windows))})"),
            ("sinks in such a window", f"{sinks.per_window:g} in the median"),
            ("positions, most common first", ", ".join(map(str, sinks.positions))),
            *([("tokens, most common first", ", ".join(map(repr, sinks.tokens)))] if sinks.tokens else []),
            ("coordinates that carry them", ", ".join(map(str, sinks.channels))),
            ("half of the windows have one", f"from {sinks.up} on, {end}"),
            ("the longest state of all windows", f"{times(sinks.ratio, 0)} the median, at {sinks.at}"),
            ("left out beside position 0 and special tokens", plural(sinks.dropped, "position")),
        ]
    elif tokens is not None:
        rows.append(("windows with a sink", f"none of {windows}"))
    if tokens is not None and tokens.distinct:
        few, many = min(tokens.distinct), max(tokens.distinct)
        rows.append(
            ("distinct tokens of a window", f"{few} to {many}, {statistics.median(tokens.distinct):g} in the median")
        )
        low, high = min(tokens.same_pairs), max(tokens.same_pairs)
        same = f"{100 * low:.1f} to {100 * high:.1f} %, {100 * statistics.fmean(tokens.same_pairs):.1f} % in the mean"
        rows.append(("pairs of positions with the same token", same))
    return rows


def layer_table(sites: Sequence[SiteReading]) -> Table:
    """One row per site with the metrics that are shown where there is room."""
    metrics, several = shown(2), len({site.stack for site in sites}) > 1
    rows = tuple(
        (
            f"{site.stack} {site.label}" if several else site.label,
            tuple(
                value_cell(site.metrics.get(m.key, NOTHING), m.digits, bounds=m.key == "mean_cosine") for m in metrics
            ),
        )
        for site in sites
    )
    return Table(tuple(Column(metric.title) for metric in metrics), rows)


POOLING_WORDS = {"mean": "mean of the tokens", "last": "last token", "cls": "CLS"}


def pooled_table(diagnosis: Diagnosis) -> Table:
    """One row per vector that a text has, one column per number that was measured; why there is none in the note."""
    view = {
        words: {key: diagnosis.pooled[name].get(key, NOTHING) for key in POOLED}
        for name, words in POOLING_WORDS.items()
        if name in diagnosis.pooled
    }
    known = {words: numbers for words, numbers in view.items() if any(of.value is not None for of in numbers.values())}
    keys = [key for key in POOLED if any(numbers[key].value is not None for numbers in known.values())]
    rows = []
    for words, numbers in known.items():
        cells = [value_cell(numbers[key], POOLED[key].digits, bounds=True) for key in keys]
        if keys[-1] == "halves_found":
            cells[-1] = replace(cells[-1], notes=(f"chance {number(numbers['halves_found'].null, 2)}",))
        rows.append((words, tuple(cells)))
    said = ["With 95 % intervals; cosine: between texts of different documents."]
    if known and "halves_found" not in keys:
        said.append("Whether the halves of a text find each other is measured with --halves.")
    for words in (words for words in view if words not in known):
        said.append(sentence(f"No vector of the {words}: {view[words]['effective_rank'].reason or 'undefined'}"))
    columns = (Column(POOLED[key].head, full=f"{POOLED[key].title} (95 % interval)") for key in keys)
    return Table(tuple(columns), tuple(rows), "At the output", " ".join(said), first="vector")


def lens_lines(diagnosis: Diagnosis) -> list[str]:
    """The logit lens in a line: where the prediction forms; nothing where it was not asked for."""
    known = [site for site in diagnosis.sites if site.metrics.get("lens.kl", NOTHING).value is not None]
    if not known:
        reason = diagnosis.deep.get("lens.kl", NOTHING).reason
        return [reason] if reason and reason.startswith("no logit lens") else []
    places = {site.label: site for site in (known[0], known[len(known) // 2], known[-1])}
    parts = [
        f"{number(site.metrics['lens.cross_entropy'].value, 2)} (KL {number(site.metrics['lens.kl'].value, 2)}) at "
        f"{site.label}"
        for site in places.values()
    ]
    return [f"logit lens, nats per token: {', '.join(parts)}"]


def pooled_lines(diagnosis: Diagnosis) -> list[str]:
    """The pooled view on the terminal: a line for each vector that a text has."""
    lines = []
    for name, words in POOLING_WORDS.items():
        numbers = diagnosis.pooled.get(name, {})
        cosine, rank, found = (numbers.get(key, NOTHING) for key in ("cosine", "effective_rank", "halves_found"))
        if cosine.value is None and rank.value is None:
            continue
        line = f"one vector per text ({words}): cosine {estimate(cosine, 2)} between texts"
        line += f", effective rank {number(rank.value, 0)} ({percent(rank.null_ratio)})"
        if found.value is not None:
            line += f", halves found {estimate(found, 2)} (chance {number(found.null, 2)})"
        lines.append(line)
    return lines


def _provenance(diagnosis: Diagnosis) -> list[str]:
    model, corpus = diagnosis.model, diagnosis.corpus
    facts = {
        "weights sha256": model.weights_sha256 or "not known",
        "revision": model.revision or "none",
        "corpus sha256": corpus.sha256,
        "windows sha256": corpus.windows_sha256,
        "protocol": str(diagnosis.protocol.get("hash", "")),
        "condense": diagnosis.condense,
        "deep mean cosine": estimate(diagnosis.deep.get("mean_cosine", NOTHING)),
    }
    return markdown_rows(("", ""), ((key, f"`{for_code(value)}`") for key, value in facts.items()))


# --- on the terminal -------------------------------------------------------------------------------------


_COLOURS = {"severe": "red", "condensed": "red", "watch": "magenta", "ok": "green", "undefined": ""}
_HEADS = ("site", "mean cosine", "±", "no top 3", "eff. rank", "variance", "sink ×")
_SHOWN = ("mean_cosine", WITHOUT_TOP, "effective_rank", "relative_variance", "sink_ratio")
_BAR, _FIXED = 16, 58
"""The bar takes what is left of the width: the other columns take this many cells."""


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis: what was measured, the layer table, quality, the verdict and the next command."""
    say(console, diagnosis.model.id, style="bold")
    say(console, subject(diagnosis), "")
    if not diagnosis.sites:
        show_panel(console, "Weights only", "", diagnosis.verdict.findings)
        return
    stacks = list(dict.fromkeys(site.stack for site in diagnosis.sites))
    for name in stacks:
        if len(stacks) > 1:
            say(console, f"{name} stack", style="bold")
        show_table(console, _site_rows([site for site in diagnosis.sites if site.stack == name], console))
    say(console, "0 is spread, 1 is one direction; % is of what random directions of the same shape have.", "")
    say(console, *quality_lines(diagnosis), *pooled_lines(diagnosis), *matrix_lines(diagnosis), *lens_lines(diagnosis))
    if diagnosis.twin is not None:
        say(console, _twin_lines(diagnosis, diagnosis.twin))
    place = standing(diagnosis)
    if place is not None:
        say(console, sentence(f"{place.words} (condense atlas)"))
    say(console, "")
    for name, stack in diagnosis.stacks.items():
        _show_verdict(console, stack.verdict, f"{name}: ")
    _show_verdict(console, diagnosis.verdict, f"{stacks[-1]}: " if len(stacks) > 1 else "")
    if diagnosis.verdict.not_covered:
        say(console, diagnosis.verdict.not_covered)


_LESSON = {
    "mean_cosine": "mean cosine",
    WITHOUT_TOP: "without top 3",
    "cross_text_cosine": "between texts",
    "effective_rank": "effective rank",
    "effective_rank_with_sink": "rank, sink kept",
    "sink_ratio": "sink ratio",
}


def show_lesson(diagnosis: Diagnosis, sick: Sick, count: str, console: Console) -> None:
    """Print what a model with a known fault looks like: its numbers over depth, the main finding, what gives it away.

    count: which of how many this is.
    """
    say(console, f"{count} · {sick.name}", style="bold")
    say(console, sentence(f"Built in: {sick.fault}"))
    sites = [site for site in diagnosis.sites if site.site != "output"]
    table = new_table(console, ("", *("embedding" if site.site == "embedding" else str(site.index) for site in sites)))
    for key, name in _LESSON.items():
        digits = 2 if METRICS[key].unit == "cosine" else 0
        table.add_row(name, *(number(site.metrics.get(key, NOTHING).value, digits) for site in sites))
    show_table(console, table)
    verdict = diagnosis.verdict
    axes = f"cone {verdict.cone} · rank {verdict.rank} · {verdict.attribution}"
    show_panel(console, LEVELS[verdict.level], _COLOURS[verdict.level], verdict.findings[:1], facts=axes)
    if verdict.attribution == sick.attribution:
        say(console, f"Right: {verdict.attribution}. {sick.lesson}", "")
    else:
        say(console, f"Wrong: {verdict.attribution} instead of {sick.attribution}.", "", style="bold")


def _site_rows(sites: Sequence[SiteReading], console: Console) -> RichTable:
    """The layer table; further metrics follow as far as the width allows."""
    plain, labels = not speaks_unicode(console), max((len(site.label) for site in sites), default=0)
    left = console.width - _FIXED - labels
    more = []
    for metric in shown(2):
        if metric.key not in _SHOWN and left - _BAR >= len(metric.title) + 2:
            more.append(metric)
            left -= len(metric.title) + 2
    table = new_table(console, (*_HEADS, *(metric.title for metric in more)), left=2)
    for site in sites:
        mean, without, rank, variance, sink = (site.metrics.get(key, NOTHING) for key in _SHOWN)
        half = None if mean.low is None or mean.high is None else (mean.high - mean.low) / 2
        table.add_row(
            site.label,
            f"{number(mean.value, 2)} {bar(mean.value, plain, max(4, min(_BAR, left)))}",
            number(half, 2),
            number(without.value, 2),
            f"{number(rank.value, 0)} {percent(rank.null_ratio):>5}",
            number(variance.value, 2),
            number(sink.value, 0),
            *(number(site.metrics.get(metric.key, NOTHING).value, metric.digits) for metric in more),
            end_section=site.site == "embedding" or (site.site == "block" and site.depth == 1.0),
        )
    return table


def _twin_lines(diagnosis: Diagnosis, twin: Diagnosis) -> str:
    own, other = ([run.deep.get(key, NOTHING).value for key in _SHOWN] for run in (diagnosis, twin))
    return (
        f"random twin (same config, random weights): deep mean cosine {number(other[0], 2)} against "
        f"{number(own[0], 2)} here; effective rank {number(other[2], 0)} against {number(own[2], 0)}"
        + (f"; {TWIN_WORDS[diagnosis.verdict.twin]}" if diagnosis.verdict.twin else "")
    )


def _show_verdict(console: Console, verdict: Verdict, head: str = "") -> None:
    colour = _COLOURS[verdict.level]
    axes = f"cone {verdict.cone} · rank {verdict.rank} · {verdict.attribution}"
    if not verdict.findings:
        say(console, f"{LEVELS[verdict.level]}: {verdict.reason or axes}")
        return
    shares = {axis: verdict.share(axis) for axis in verdict.borderline}
    drawn = "; ".join(f"{axis} ({share})" if share else axis for axis, share in shares.items())
    show_panel(
        console,
        LEVELS[verdict.level],
        colour,
        verdict.findings,
        head=head,
        facts=axes + (f" · borderline: {drawn}" if drawn else ""),
        notes=("The bands are a convention: no validated threshold is published.",),
    )
