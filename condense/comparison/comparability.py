"""Whether runs were measured under equal settings; otherwise numbers differ for other reasons than the models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condense.errors import UsageError
from condense.records.diagnosis import CorpusInfo, Diagnosis


def refuse_incomparable(runs: Mapping[str, Diagnosis]) -> None:
    """UsageError that names the first run that differs from the reference, and every setting in which it does."""
    reference, *others = runs
    for name in others:
        differing = differing_settings(runs[reference], runs[name])
        if differing:
            raise UsageError(
                f"{name} cannot be compared with {reference}: {'; '.join(differing)}",
                "measure both with the same settings, or pass --force to see them side by side with that caveat",
            )


@dataclass(frozen=True)
class Conditions:
    """The settings a run will be measured with: all that decides whether it can be compared."""

    protocol: Mapping[str, Any]
    corpus: CorpusInfo


def differing_settings(
    new: Diagnosis | Conditions, old: Diagnosis | Conditions, keys: Collection[str] | None = None
) -> tuple[str, ...]:
    """The settings that change numbers and are not the same, `max_length is 512 against 256`; () if comparable.

    Comparable: equal `protocol.hash`, the same documents, and the same definitions of `keys` (None: of all numbers
    that both have). Neither the model nor its tokenizer counts; with other token ids (`windows_sha256`) the runs are
    comparable, but not text by text.
    """
    differing = []
    if new.protocol.get("hash") != old.protocol.get("hash"):
        both = dict.fromkeys([*new.protocol, *old.protocol])
        names = [name for name in both if name not in ("hash", "keys", "versions")]
        pairs = [(name, new.protocol.get(name), old.protocol.get(name)) for name in names]
        differing = [f"{name} is {mine} against {theirs}" for name, mine, theirs in pairs if mine != theirs]
        differing = differing or ["the protocol's hash differs"]
    return (*differing, *_differing_definitions(new, old, keys), *_differing_texts(new, old))


def _differing_definitions(
    new: Diagnosis | Conditions, old: Diagnosis | Conditions, keys: Collection[str] | None
) -> list[str]:
    """Numbers that both runs have under definitions of different versions; a number that one lacks is not listed."""
    mine, theirs = new.protocol.get("versions", {}), old.protocol.get("versions", {})
    return [
        f"the definition of {key} has version {mine[key]} against {theirs[key]}"
        for key in mine
        if key in theirs and mine[key] != theirs[key] and (keys is None or key in keys)
    ]


def _differing_texts(new: Diagnosis | Conditions, old: Diagnosis | Conditions) -> list[str]:
    """What differs in the texts.

    Documents are read until enough of them are long enough, which tokenizers decide differently, so that the hash of
    what was read may differ although the source is the same: the probe text is identified by its version.
    """
    mine, theirs = new.corpus, old.corpus
    same_windows = mine.windows_sha256 == theirs.windows_sha256
    if not same_windows and mine.requested != theirs.requested:
        return [f"number of texts is {mine.requested} against {theirs.requested}"]
    probe = not same_windows and mine.version is not None and mine.version == theirs.version
    if mine.sha256 == theirs.sha256 or probe:
        return []
    if mine.source != theirs.source:
        return [f"the text is {mine.source} against {theirs.source}"]
    counts = f" ({mine.texts} against {theirs.texts} texts)" if mine.texts != theirs.texts else ""
    return [f"other documents of {mine.source}{counts}"]


def circumstances(new: Diagnosis, old: Diagnosis) -> tuple[str, ...]:
    """Settings that allow a comparison but may change its last digits: device, attention kernel, torch."""
    names = ("device", "attention", "torch", "transformers")
    pairs = [(name, new.environment.get(name), old.environment.get(name)) for name in names]
    return tuple(f"{name} is {mine} against {theirs}" for name, mine, theirs in pairs if mine != theirs)


def caveats(runs: Mapping[str, Diagnosis]) -> list[str]:
    """Caveats on the differences from the first of the runs."""
    reference, *others = runs
    first = runs[reference]
    made = [
        f"{name} was not measured as {reference} was ({'; '.join(differing)}): the comparison was forced, and its "
        "differences are not only those of the models"
        for name in others
        if (differing := differing_settings(first, runs[name]))
    ]
    unpaired = [name for name in others if runs[name].corpus.windows_sha256 != first.corpus.windows_sha256]
    if unpaired:
        made.append(
            f"{_first_names(unpaired)}: not the same token windows as {reference} (another tokenizer cuts the text "
            "otherwise), so the intervals are unpaired and wider, a token is not the same thing, and loss and "
            "perplexity are not compared; bits per byte are"
        )
    made += _model_caveats(runs, reference, others)
    from condense.intervals import coverage_note  # with numpy, which the atlas of a report does not need

    notes = {name: coverage_note(runs[name].corpus.documents) for name in (reference, *others)}
    for note in dict.fromkeys(note for note in notes.values() if note):
        named = [name for name, own in notes.items() if own == note]
        made.append(f"{_first_names(named)}: {note}")
    versions = sorted({run.condense for run in runs.values()})
    if len(versions) > 1:
        made.append(f"measured with different versions of condense ({', '.join(versions)})")
    return made


def _model_caveats(runs: Mapping[str, Diagnosis], reference: str, others: Sequence[str]) -> list[str]:
    """What differs in the models themselves."""
    first, made = runs[reference], []
    deeper = [name for name in others if runs[name].model.blocks != first.model.blocks]
    wider = [name for name in others if runs[name].model.hidden_size != first.model.hidden_size]
    if deeper:
        made.append(f"{_first_names(deeper)}: another number of blocks, so nothing is compared block by block")
    if wider:
        made.append(
            f"{_first_names(wider)}: another width, so effective ranks are read as a share of their own Gaussian null"
        )
    objectives = {name: runs[name].model.objective for name in (reference, *others)}
    if len(set(objectives.values())) > 1:
        listing = ", ".join(f"{name} {objective}" for name, objective in objectives.items())
        made.append(f"the models are trained to predict different things ({listing}): their quality is not compared")
    stacked = [name for name in (reference, *others) if runs[name].stacks]
    if stacked:
        made.append(f"{_first_names(stacked)}: only the decoder is compared; the encoder is in the diagnosis")
    return made


def _first_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
