"""Were two runs measured alike? Numbers of unlike runs differ for reasons that have nothing to do with the models."""

from __future__ import annotations

from typing import Any

from condense.records import Diagnosis


def differing_settings(new: Diagnosis, old: Diagnosis) -> tuple[str, ...]:
    """The settings that change numbers and are not the same, `max_length is 512 against 256`; () if comparable.

    Comparable: equal `protocol.hash` and equal `corpus.sha256` (the documents). Neither the model nor its tokenizer
    counts; with other token ids (`windows_sha256`) the runs are comparable, but not text by text.
    """
    found = []
    if new.protocol.get("hash") != old.protocol.get("hash"):
        names = dict.fromkeys([*new.protocol, *old.protocol])
        pairs = [(name, new.protocol.get(name), old.protocol.get(name)) for name in names if name != "hash"]
        found = [_said(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]
        found = found or ["the protocol's hash differs"]
    if new.corpus.sha256 != old.corpus.sha256:
        found.append(_texts(new, old))
    return tuple(found)


def _texts(new: Diagnosis, old: Diagnosis) -> str:
    mine, theirs = new.corpus, old.corpus
    if mine.source != theirs.source:
        return f"the text is {mine.source} against {theirs.source}"
    counts = f" ({mine.texts} against {theirs.texts} texts)" if mine.texts != theirs.texts else ""
    return f"other documents of {mine.source}{counts}"


def _said(name: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        odd = sorted(set(map(str, mine)) ^ set(map(str, theirs)))
        return f"{name} differ in {', '.join(odd)}"
    return f"{name} is {mine} against {theirs}"


def circumstances(new: Diagnosis, old: Diagnosis) -> tuple[str, ...]:
    """What does not forbid a comparison but may move its last digits: device, attention kernel, torch."""
    names = ("device", "attention", "torch", "transformers")
    pairs = [(name, new.environment.get(name), old.environment.get(name)) for name in names]
    return tuple(f"{name} is {mine} against {theirs}" for name, mine, theirs in pairs if mine != theirs)
