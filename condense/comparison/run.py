"""compare(): models, checkpoints or saved runs → one record, each against the first.

Saved runs need neither torch nor a model. Models are measured one at a time; the memory of each is freed before the
next is opened.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from condense.comparison import overlay as overlay_findings
from condense.comparison import trajectory as run_findings
from condense.comparison import verdict as model_findings
from condense.comparison.comparability import caveats, refuse_incomparable
from condense.comparison.differences import effect_of, same_windows
from condense.comparison.members import (
    Candidate,
    candidates_of,
    in_evaluation_mode,
    notes_of,
    run_of,
    without_names,
)
from condense.comparison.overlay import Layout, laid_over
from condense.comparison.same import Reading, not_compared, same_of, shape_of, with_same
from condense.comparison.trajectory import peak_of, scale_of
from condense.errors import CondenseError, as_condense_error, is_panic
from condense.records.base import Estimate
from condense.records.comparison import COMPARISON_SCHEMA, CURVES, Comparison, Failure, Kind, Member, Same, Trajectory
from condense.records.diagnosis import Diagnosis, Histogram, Quality, SiteReading
from condense.records.options import CompareOptions, MeasureOptions, ModelOptions, takes
from condense.records.treatment import Effect, Word
from condense.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from condense.models.checkpoint import Checkpoint
    from condense.texts.windows import Windows

BINS = 100
PROBE_TOKENS = 64  # for the forward pass that detects the parts of a module in memory
OnNote = Callable[[str], None]


def completed(settings: CompareOptions, known: Sequence[Diagnosis]) -> CompareOptions:
    """The settings, with unset ones taken from the first diagnosis."""
    if not known:
        return settings
    corpus = known[0].corpus
    return replace(
        settings,
        num_texts=corpus.requested or corpus.texts if settings.num_texts is None else settings.num_texts,
        max_length=corpus.length if settings.max_length is None else settings.max_length,
        seed=corpus.seed if settings.seed is None else settings.seed,
    )


Measure = Callable[[Candidate, CompareOptions, tuple[int, int]], Diagnosis]
"""From a candidate to its diagnosis: with which settings, and which of how many it is."""


@runtime_checkable
class Opener(Protocol):
    """A `Measure` that can open a candidate again, so that two are read side by side on the same tokens."""

    def __call__(self, candidate: Candidate, settings: CompareOptions, position: tuple[int, int], /) -> Diagnosis:
        """The diagnosis of a candidate."""

    def open(self, candidate: Candidate, settings: CompareOptions) -> tuple[Checkpoint, Callable[[], Windows]]:
        """The model, and how to cut its windows."""

    def counting(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Progress over windows: on_text(done, total)."""


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
    texts of saved runs out of the record.

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
    measuring = measure or _Measuring(text, ModelOptions.of(options, fields), windows)
    with in_evaluation_mode(candidates):
        measured, failures = _measured(candidates, measuring, wanted, on_note)
        diagnoses = {candidate.name: diagnosis for candidate, diagnosis in measured}
        if not force:
            refuse_incomparable(diagnoses)
        layout = laid_over(candidates, [candidate for candidate, _ in measured], failures)
        run = run_of(candidates) if layout is None and (len(candidates) > 2 or len(runs) == 1) else None
        one_by_one = run is None and layout is None
        same = _same_by_name(measured, measuring, wanted, on_note) if one_by_one else {}
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


def _measured(
    candidates: Sequence[Candidate], measure: Measure, settings: CompareOptions, on_note: OnNote | None
) -> tuple[list[tuple[Candidate, Diagnosis]], list[Failure]]:
    """The diagnoses in order, and what failed; the length of the first that is measured holds for all."""
    measured: list[tuple[Candidate, Diagnosis]] = []
    failures: list[Failure] = []
    last: CondenseError | None = None
    for number, candidate in enumerate(candidates, 1):
        try:
            if candidate.error is not None:
                raise candidate.error
            diagnosis = candidate.diagnosis or measure(candidate, settings, (number, len(candidates)))
            measured.append((candidate, diagnosis))
            settings = completed(settings, [diagnosis])
        except BaseException as failure:  # one bad member never ends the others
            if not isinstance(failure, Exception) and not is_panic(failure):
                raise
            error = last = as_condense_error(failure)
            failures.append(Failure(candidate.name, str(error), error.exit_code))
            if on_note is not None:
                on_note(f"{candidate.name} is left out: {error}")
        if candidate.diagnosis is None:
            _give_back()
    if last is not None and len(measured) < 2:
        raise last
    return measured, failures


def _give_back() -> None:
    """Free the memory of models that are no longer referenced."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _same_by_name(
    measured: Sequence[tuple[Candidate, Diagnosis]],
    measuring: Measure,
    settings: CompareOptions,
    on_note: OnNote | None,
) -> dict[str, Same]:
    """The token-by-token comparison of each opened model with the first, if that one was opened too."""
    (reference, first), *rest = measured
    if reference.diagnosis is not None or not isinstance(measuring, Opener):
        return {}
    others = [(candidate, own) for candidate, own in rest if candidate.diagnosis is None]
    readable = [candidate for candidate, own in others if same_windows(own, first) or shape_of(own) == shape_of(first)]
    readings: dict[str, Reading | str] = {}
    if readable:
        from condense.comparison.pair import read_beside

        wanted = completed(settings, [first])
        readings = read_beside(reference, readable, measuring, wanted, on_note, _give_back)
    made = {}
    for candidate, own in others:
        reading = readings.get(candidate.name, "another tokenizer cuts the text into other tokens")
        if isinstance(reading, str):
            made[candidate.name] = not_compared(reference.name, reading)
            continue
        tolerance = settings.quality_tolerance
        made[candidate.name] = same_of(
            reading, first, own, reference.name, tolerance=tolerance, compared=len(measured) - 1
        )
    return made


class _Measuring:
    """Measure a candidate from its name, or as it is in memory, as `load`, `windows` and `analyze` do by default."""

    def __init__(self, text: str | Path | None, options: ModelOptions, given: Windows | None = None) -> None:
        self._text, self._options, self._given = text, options, given

    def __call__(self, candidate: Candidate, settings: CompareOptions, place: tuple[int, int]) -> Diagnosis:
        from condense.diagnosis.run import analyze

        checkpoint, windows = self.open(candidate, settings)
        return analyze(checkpoint, windows(), seed=settings.seed or 0)

    def counting(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show nothing."""
        return contextlib.nullcontext(lambda done, total: None)

    def open(self, candidate: Candidate, settings: CompareOptions) -> tuple[Checkpoint, Callable[[], Windows]]:
        """The model, and how to cut its windows."""
        from condense.texts.windows import windows

        checkpoint = self._checkpoint(candidate)
        given = self._given
        if candidate.live is not None and given is not None:
            return checkpoint, lambda: given
        cut = functools.partial(
            windows,
            checkpoint.tokenizer,
            self._text,
            num_texts=settings.num_texts or MeasureOptions.num_texts,
            max_length=settings.max_length,
            positions=checkpoint.positions,
            seed=settings.seed or 0,
        )
        return checkpoint, cut

    def _checkpoint(self, candidate: Candidate) -> Checkpoint:
        from condense.models.checkpoint import Checkpoint, checkpoint_of, load

        if isinstance(candidate.live, Checkpoint):
            return candidate.live
        if candidate.live is not None:
            assert self._given is not None  # otherwise an error was raised before any work
            return checkpoint_of(candidate.live, self._given.ids[:1, :PROBE_TOKENS])
        return load(
            candidate.place,
            self._options,
            revision=candidate.revision or self._options.revision,
            tokenizer=self._options.tokenizer or candidate.tokenizer,
        )


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
