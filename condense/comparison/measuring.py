"""From candidates to diagnoses, and from pairs of models to readings side by side: alone, or shared by processes.

Models are measured one at a time; the memory of each is freed before the next is opened. Under `torchrun` each process
takes every so many of them, and all end with the same.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from condense.comparison.differences import same_windows
from condense.comparison.members import Candidate
from condense.comparison.same import Reading, not_compared, same_of, shape_of
from condense.errors import CondenseError, as_condense_error, is_panic
from condense.records.comparison import Failure, Same
from condense.records.diagnosis import CorpusInfo, Diagnosis
from condense.records.options import CompareOptions, MeasureOptions, ModelOptions

if TYPE_CHECKING:
    from condense.diagnosis.distributed import Ranks
    from condense.models.checkpoint import Checkpoint
    from condense.texts.windows import Windows

PROBE_TOKENS = 64  # for the forward pass that detects the parts of a module in memory
OnNote = Callable[[str], None]


def completed(settings: CompareOptions, known: Sequence[Diagnosis]) -> CompareOptions:
    """The settings, with unset ones taken from the first diagnosis."""
    return completed_by(settings, known[0].corpus) if known else settings


def completed_by(settings: CompareOptions, corpus: CorpusInfo) -> CompareOptions:
    """The settings, with unset ones taken from the text of one model."""
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


@runtime_checkable
class Sharing(Opener, Protocol):
    """An `Opener` of which every process of a distributed run has one."""

    def settled(self, candidate: Candidate, settings: CompareOptions) -> CompareOptions:
        """The settings, with unset ones taken from the windows that are cut for a candidate."""

    def skip(self, candidate: Candidate) -> None:
        """Another process measures this candidate."""


def measured_members(
    candidates: Sequence[Candidate],
    measure: Measure,
    settings: CompareOptions,
    on_note: OnNote | None,
    ranks: Ranks | None = None,
) -> tuple[list[tuple[Candidate, Diagnosis]], list[Failure]]:
    """The diagnoses in order, and what failed; the length of the first that is measured holds for all.

    ranks: the processes that share the members; then it is the length of the first whose text can be cut.
    """
    shared: Mapping[int, Diagnosis | CondenseError] = {}
    if ranks is not None and ranks.size > 1 and isinstance(measure, Sharing):
        shared = _shared(candidates, measure, settings, ranks)
    measured: list[tuple[Candidate, Diagnosis]] = []
    failures: list[Failure] = []
    last: CondenseError | None = None
    for number, candidate in enumerate(candidates, 1):
        try:
            if candidate.error is not None:
                raise candidate.error
            done = shared.get(number)
            if isinstance(done, CondenseError):
                raise done
            diagnosis = candidate.diagnosis or done or measure(candidate, settings, (number, len(candidates)))
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


def _shared(
    candidates: Sequence[Candidate], measure: Sharing, settings: CompareOptions, ranks: Ranks
) -> dict[int, Diagnosis | CondenseError]:
    """What every process measured of its share, or why it could not, by the candidates' numbers from 1."""
    todo = [(n, one) for n, one in enumerate(candidates, 1) if one.error is None and one.diagnosis is None]
    settings = ranks.told(_settled([one for _, one in todo], measure, settings) if ranks.is_first else None)
    own: dict[int, Diagnosis | CondenseError] = {}
    for turn, (number, candidate) in enumerate(todo):
        if turn % ranks.size != ranks.rank:
            measure.skip(candidate)
            continue
        try:
            own[number] = measure(candidate, settings, (number, len(candidates)))
        except BaseException as failure:
            if not isinstance(failure, Exception) and not is_panic(failure):
                raise
            error = own[number] = as_condense_error(failure)
            error.__cause__ = error.__context__ = error.__traceback__ = None
        _give_back()
    return {number: done for part in ranks.all_of(own) for number, done in part.items()}


def _settled(candidates: Sequence[Candidate], measure: Sharing, settings: CompareOptions) -> CompareOptions:
    """The settings, with unset ones taken from the first candidate whose text can be cut."""
    if None in (settings.num_texts, settings.max_length, settings.seed):
        for candidate in candidates:
            with contextlib.suppress(Exception):  # it is told when the candidate is measured
                return measure.settled(candidate, settings)
    return settings


def _give_back() -> None:
    """Free the memory of models that are no longer referenced."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def same_by_name(
    measured: Sequence[tuple[Candidate, Diagnosis]],
    measuring: Measure,
    settings: CompareOptions,
    on_note: OnNote | None,
    ranks: Ranks | None = None,
) -> dict[str, Same]:
    """The token-by-token comparison of each opened model with the first, if that one was opened too.

    ranks: the processes that share the pairs.
    """
    (reference, first), *rest = measured
    if reference.diagnosis is not None or not isinstance(measuring, Opener):
        return {}
    others = [(candidate, own) for candidate, own in rest if candidate.diagnosis is None]
    readable = [candidate for candidate, own in others if same_windows(own, first) or shape_of(own) == shape_of(first)]
    readings: Mapping[str, Reading | str] = {}
    if readable:
        readings = _read_pairs(reference, readable, measuring, completed(settings, [first]), on_note, ranks)
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


def _read_pairs(
    reference: Candidate,
    others: Sequence[Candidate],
    opener: Opener,
    settings: CompareOptions,
    on_note: OnNote | None,
    ranks: Ranks | None,
) -> Mapping[str, Reading | str]:
    """Each of the others beside the reference, by name, or why it could not be read."""
    from condense.comparison.pair import read_beside

    if ranks is None or ranks.size == 1:
        return read_beside(reference, others, opener, settings, on_note, _give_back)
    own = others[ranks.rank :: ranks.size]
    read = read_beside(reference, own, opener, settings, None, _give_back) if own else {}
    readings = {name: reading for part in ranks.all_of(read) for name, reading in part.items()}
    for name, reading in readings.items():
        if on_note is not None and isinstance(reading, str):
            on_note(f"{name} is not compared token by token: {reading}")
    return readings


class MeasuredHere:
    """Measure a candidate from its name, or as it is in memory, as `load`, `windows` and `analyze` do by default."""

    def __init__(self, text: str | Path | None, options: ModelOptions, given: Windows | None = None) -> None:
        self._text, self._options, self._given = text, options, given

    def __call__(self, candidate: Candidate, settings: CompareOptions, position: tuple[int, int]) -> Diagnosis:
        """The diagnosis of a candidate."""
        from condense.diagnosis.run import analyze

        checkpoint, windows = self.open(candidate, settings)
        return analyze(checkpoint, windows(), seed=settings.seed or 0)

    def counting(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show nothing."""
        return contextlib.nullcontext(lambda done, total: None)

    def settled(self, candidate: Candidate, settings: CompareOptions) -> CompareOptions:
        """The settings, with unset ones taken from the windows that are cut for a candidate."""
        return completed_by(settings, self.open(candidate, settings)[1]().info)

    def skip(self, candidate: Candidate) -> None:
        """Keep nothing."""

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
