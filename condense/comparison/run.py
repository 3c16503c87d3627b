"""compare(): models, checkpoints or saved runs → one record, each against the first.

Saved runs need neither torch nor a model. Models are measured one at a time; the memory of each is freed before the
next is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condense.comparison import overlay as overlay_findings
from condense.comparison import trajectory as run_findings
from condense.comparison import verdict as model_findings
from condense.comparison.comparability import caveats, refuse_incomparable
from condense.comparison.differences import effect_of
from condense.comparison.measuring import Measure, MeasuredHere, OnNote, completed, measured_members, same_by_name
from condense.comparison.members import (
    candidates_of,
    in_evaluation_mode,
    notes_of,
    run_of,
    without_names,
)
from condense.comparison.overlay import Layout, laid_over
from condense.comparison.same import with_same
from condense.comparison.trajectory import peak_of, scale_of
from condense.records.base import Estimate
from condense.records.comparison import COMPARISON_SCHEMA, CURVES, Comparison, Failure, Kind, Member, Same, Trajectory
from condense.records.diagnosis import Diagnosis, Histogram, Quality, SiteReading
from condense.records.options import CompareOptions, ModelOptions, takes
from condense.records.treatment import Effect, Word
from condense.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from condense.diagnosis.distributed import Ranks
    from condense.models.checkpoint import Checkpoint
    from condense.texts.windows import Windows

BINS = 100


@takes(ModelOptions)
def compare(
    *runs: str | Path | Diagnosis | Checkpoint | nn.Module,
    revisions: Sequence[str] = (),
    as_models: bool = False,
    text: str | Path | None = None,
    windows: Windows | None = None,
    settings: CompareOptions | None = None,
    force: bool = False,
    command: str = "",
    measure: Measure | None = None,
    on_note: OnNote | None = None,
    no_text: bool = False,
    ranks: Ranks | None = None,
    options: ModelOptions | None = None,
    **fields: Any,
) -> Comparison:
    """Put models side by side, each against the first, paired by text where the windows are the same.

    runs: saved runs (.json), models (hub id, folder, adapter, .gguf), or folders of checkpoints, which are training
    runs over their steps, each against the first at equal steps; or what is in memory: diagnoses, checkpoints of
    `load`, modules of any class. revisions: of hub ids. as_models: take a folder that holds a model and checkpoints as
    the model. text, settings: how models without a diagnosis are measured (the probe text; as the saved runs were);
    windows: the tokens that models in memory are measured on, which a module without a tokenizer needs. options: how
    models are opened, as for `load`, as an object or as keywords.
    force: compare although protocol or corpus differ, with that caveat. measure: your own way from a candidate to
    its diagnosis; on_note(line) is called for members that failed; no_text: keep names of documents and paths of
    texts of saved runs out of the record; ranks: the processes inside `distributed.together` that share the members,
    each of which has to call this and gets the same.

    Members that were opened here and read the same tokens as the first, or are of its shape, are also read beside it
    token by token (`Member.same`), if `measure` is an `Opener`; not the checkpoints of a run.

    A member that cannot be measured is left out and named in `failures`; with fewer than two left its error is
    raised. UsageError for runs that cannot be compared, naming the settings that differ.
    """
    candidates = candidates_of(runs, revisions, as_models=as_models)
    notes = notes_of(candidates)
    if on_note is not None:
        for note in notes:
            on_note(note)
    if windows is None and measure is None:
        for candidate in candidates:
            if candidate.live is not None and getattr(candidate.live, "tokenizer", None) is None:
                raise ValueError(f"{candidate.name} has no tokenizer: give windows=condense.windows(ids)")
    if no_text:
        candidates = [without_names(candidate) for candidate in candidates]
    known = [candidate.diagnosis for candidate in candidates if candidate.diagnosis is not None]
    if not force and len(known) > 1:  # before any work
        refuse_incomparable({c.name: c.diagnosis for c in candidates if c.diagnosis is not None})
    wanted = completed(settings or CompareOptions(), known)
    measuring = measure or MeasuredHere(text, ModelOptions.of(options, fields), windows)
    with in_evaluation_mode(candidates):
        measured, failures = measured_members(candidates, measuring, wanted, on_note, ranks)
        diagnoses = {candidate.name: diagnosis for candidate, diagnosis in measured}
        if not force:
            refuse_incomparable(diagnoses)
        layout = laid_over(candidates, [candidate for candidate, _ in measured], failures)
        run = run_of(candidates) if layout is None and (len(candidates) > 2 or len(runs) == 1) else None
        one_by_one = run is None and layout is None
        same = same_by_name(measured, measuring, wanted, on_note, ranks) if one_by_one else {}
    return assembled(
        diagnoses,
        steps={c.name: c.step for c, _ in measured},
        places={c.name: c.place for c, _ in measured},
        run=run,
        layout=layout,
        command=command,
        failures=failures,
        same=same,
        notes=notes,
    )


def assembled(
    runs: Mapping[str, Diagnosis],
    *,
    steps: Mapping[str, int | None],
    places: Mapping[str, str],
    run: str | None = None,
    layout: Layout | None = None,
    command: str = "",
    failures: Sequence[Failure] = (),
    same: Mapping[str, Same] | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """The record of diagnoses by name, the first of which is the reference.

    run: the training run that all are steps of; layout: the several runs that they are steps of, and which is compared
    to which; same: of members that were read token by token beside the reference; notes: what was left out.
    """
    reference, *others = runs
    first, against = runs[reference], dict.fromkeys(others, reference) if layout is None else layout.against
    effects = {
        name: _effect_against(runs[name], runs[other], other, len(against), layout is not None)
        for name, other in against.items()
    }
    stepped = run is not None or layout is not None
    members = tuple(
        replace(
            _member(name, diagnosis, places[name], steps[name] if stepped else None, effects.get(name)),
            same=(same or {}).get(name),
            run=layout.run_of[name] if layout else None,
        )
        for name, diagnosis in runs.items()
    )
    trajectory = None
    if run is not None:
        marks = [step or 0 for step in steps.values()]
        trajectory = Trajectory(run, scale_of(marks), peak_of(runs, marks))
    kind: Kind = "overlay" if layout else "trajectory" if trajectory else "pair" if len(members) == 2 else "family"
    if layout is not None:
        findings = overlay_findings.findings(members, layout.overlay)
    elif trajectory is not None:
        findings = run_findings.findings(members, trajectory)
    else:
        findings = with_same(kind, members, model_findings.findings(kind, members))
    failed = (f"{failure.name} could not be measured: {failure.reason}" for failure in failures)
    return Comparison(
        schema=COMPARISON_SCHEMA,
        condense=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        kind=kind,
        protocol=first.protocol,
        members=members,
        findings=findings,
        caveats=(*(layout.caveats if layout else ()), *notes, *caveats(runs), *failed),
        failures=tuple(failures),
        trajectory=trajectory,
        environment=first.environment,
        overlay=layout.overlay if layout else None,
    )


# --- from arguments to diagnoses ---------------------------------------------------------------------------


# --- from diagnoses to members -----------------------------------------------------------------------------


def _member(name: str, run: Diagnosis, source: str, step: int | None, effect: Effect | None) -> Member:
    return Member(
        name=name,
        source=source,
        model=run.model,
        corpus=replace(run.corpus, windows=()),
        protocol_hash=str(run.protocol.get("hash", "")),
        condense=run.condense,
        sites=tuple(_site(site) for site in run.sites if site.stack == run.sites[-1].stack),
        deep={key: _without_samples(estimate) for key, estimate in run.deep.items()},
        trend=run.trend,
        paper=run.paper,
        quality=Quality(
            _without_samples(run.quality.loss),
            _without_samples(run.quality.perplexity),
            _without_samples(run.quality.bits_per_byte),
            label=run.quality.label,
        ),
        verdict=run.verdict,
        step=step,
        difference=effect,
    )


def _site(site: SiteReading) -> SiteReading:
    counts = site.histogram.counts
    width = max(1, len(counts) // BINS)
    merged = tuple(sum(counts[start : start + width]) for start in range(0, len(counts), width))
    kept = {key: _without_samples(site.metrics[key]) for key in CURVES if key in site.metrics}
    return replace(site, metrics=kept, top_dimensions=(), histogram=Histogram(merged))


def _without_samples(estimate: Estimate) -> Estimate:
    return replace(estimate, per_text=None, deleted=None)


def _effect_against(run: Diagnosis, first: Diagnosis, reference: str, compared: int, trained: bool) -> Effect:
    """A member − the reference, without what cannot be a difference: see `caveats`.

    compared: how many differences are judged, over which .05 is divided for a word; trained: of two training runs.
    """
    effect = effect_of({0: run}, {0: first}, reference, compared=compared, site_keys=CURVES, trained=trained)
    deep = {key: _without_samples(estimate) for key, estimate in effect.deep.items()}
    quality = {key: _without_samples(estimate) for key, estimate in effect.quality.items()}
    words = dict(effect.words)
    if run.model.hidden_size != first.model.hidden_size:
        for key in ("effective_rank", "entropy_rank", "effective_rank_with_sink"):
            deep[key] = Estimate(None, reason="the widths differ: read the share of the Gaussian null")
    if not effect.paired:
        quality["loss"] = Estimate(None, reason="the windows differ: read bits per byte")
    if run.model.objective != first.model.objective:
        quality = {key: Estimate(None, reason="trained to predict different things") for key in quality}
    if quality[words["quality"].key].value is None:
        words["quality"] = Word("not measured", words["quality"].key)
    sites = effect.sites if run.model.blocks == first.model.blocks else ()
    stack = run.sites[-1].stack
    own = tuple(site for site in sites if site.stack == stack)
    return replace(effect, deep=deep, quality=quality, words=words, sites=own)
