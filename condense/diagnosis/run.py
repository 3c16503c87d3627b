"""analyze(): model x windows -> Diagnosis, streaming.

The straight line: capture finds the sites, measuring reads each text inside the hooks (or journal knows it
from a run that fell, or another of the ranks has read it), tally sums up, verdict reads the numbers.
Nothing here knows a formula.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from condense import geometry
from condense.diagnosis import summary as tally
from condense.diagnosis.distributed import ALONE, Ranks, together
from condense.diagnosis.forward import OnNote, TextReading, read_texts
from condense.diagnosis.quality import MASK_RATE, Scorer, make_scorer, summarise
from condense.diagnosis.resume import Journal, open_journal, resumed
from condense.diagnosis.verdict import BANDS, Bands, Facts, judge
from condense.intervals import CONFIDENCE, RESAMPLES
from condense.metrics import METRICS
from condense.models.checkpoint import Checkpoint, checkpoint_of, random_twin
from condense.models.layers import PROBE_TOKENS, Stack, embedding_rows, find_stacks, input_device, self_check
from condense.records.base import Estimate
from condense.records.diagnosis import DIAGNOSIS_SCHEMA, Diagnosis, ModelInfo, StackSummary
from condense.records.options import MeasureOptions
from condense.texts.windows import Windows, check_ids
from condense.version import __version__

OnText = Callable[[int, int], None]


def analyze(
    checkpoint: Checkpoint | torch.nn.Module,
    windows: Windows,
    *,
    batch_size: int | None = MeasureOptions.batch_size,
    spectral_tokens: int = geometry.SPECTRAL_TOKENS,
    seed: int = MeasureOptions.seed,
    twin: bool = MeasureOptions.random_twin,
    bands: Bands = BANDS,
    command: str = "",
    on_text: OnText | None = None,
    on_note: OnNote | None = None,
    journal: bool = False,
    ranks: Ranks = ALONE,
) -> Diagnosis:
    """Measure a model's token states at every site and say what they look like, and why.

    checkpoint: from `load`, or a transformers model in memory; windows: from `condense.windows`.
    batch_size: texts per forward pass (None chooses; halved where memory runs out); twin: measure the same
    architecture with random weights too; on_text(done, total) is called after each text, on_note(line) for
    what a user should know. journal: keep what is measured in the cache until all is done, and go on from
    there after a fall; ranks: the processes that share the texts, each of which has to call this.
    RunError for non-finite states or too little memory, UnavailableError for an architecture without one
    (B, S, d) residual stream or ids beyond the embedding.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint_of(checkpoint, windows.ids[:1, :PROBE_TOKENS])
    model = checkpoint.model
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    journals: list[Journal] = []
    settings = _Settings(
        batch_size, spectral_tokens, seed, bands, command, on_text, on_note, journals if journal else None, ranks
    )
    try:
        with together(ranks):
            reference = _measure(random_twin(checkpoint, seed), windows, settings, None) if twin else None
            diagnosis = _measure(checkpoint, windows, settings, reference)
    finally:
        for module, training in modes:
            module.training = training
    for finished in journals:
        finished.remove()
    return diagnosis


@dataclass(frozen=True)
class _Settings:
    """What a measurement is told, besides the model and the windows; `journals` collects those it opens."""

    batch_size: int | None
    spectral_tokens: int
    seed: int
    bands: Bands
    command: str
    on_text: OnText | None
    on_note: OnNote | None
    journals: list[Journal] | None
    ranks: Ranks


def _measure(checkpoint: Checkpoint, windows: Windows, settings: _Settings, twin: Diagnosis | None) -> Diagnosis:
    model, seed, started = checkpoint.model, settings.seed, time.perf_counter()
    check_ids(windows.ids, embedding_rows(model))
    stacks = find_stacks(model)
    self_check(model, stacks, windows.ids[:1].to(input_device(model)))
    scorer = make_scorer(model, stacks, checkpoint.info.objective, windows, seed, checkpoint.head_missing)
    tallies = [tally.SiteTally(site) for stack in stacks for site in stack.sites()]
    scores = []
    own = _own_readings(checkpoint, stacks, windows, scorer, settings)
    for reading in settings.ranks.gathered(own, len(windows)):
        for place, measured in zip(tallies, reading.sites, strict=True):
            place.add(measured, settings.spectral_tokens)
        if reading.score is not None:
            scores.append(reading.score)
        if settings.on_text is not None:
            settings.on_text(reading.index + 1, len(windows))
    summaries = {stack.name: _summary(stack, tallies, checkpoint.info, settings, twin) for stack in stacks}
    main = summaries.pop(stacks[-1].name)
    seconds = time.perf_counter() - started
    return Diagnosis(
        schema=DIAGNOSIS_SCHEMA,
        condense=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=settings.command,
        model=checkpoint.info,
        corpus=windows.info,
        protocol=protocol(windows, checkpoint.info.dtype, settings.spectral_tokens, seed),
        environment=environment(model, settings.ranks.size),
        timing={"measure_seconds": seconds, "seconds_per_text": seconds / max(1, len(windows))},
        quality=summarise(scorer, scores, windows),
        sites=tuple(place.reading() for place in tallies),
        deep=main.deep,
        trend=main.trend,
        paper=main.paper,
        verdict=main.verdict,
        stacks=summaries,
        twin=twin,
    )


def _own_readings(
    checkpoint: Checkpoint, stacks: tuple[Stack, ...], windows: Windows, scorer: Scorer, settings: _Settings
) -> Iterator[TextReading]:
    """Readings of this rank's texts in order: from the journal as far as there is one, else measured."""
    size = settings.batch_size or default_batch_size(checkpoint.model.device.type)
    journal, known = None, set[int]()
    if settings.journals is not None:
        journal = open_journal(_journal_key(checkpoint, windows, settings, size))
    if journal is not None and settings.journals is not None:
        settings.journals.append(journal)
        known = journal.known(len(windows))
        if known and settings.on_note is not None:
            settings.on_note(f"resuming: {len(known)} of {len(windows)} texts were measured before")

    def measure(indices: list[int]) -> Iterator[TextReading]:
        return read_texts(
            checkpoint.model, stacks, windows, scorer, indices=indices, batch_size=size,
            spectral_tokens=settings.spectral_tokens, seed=settings.seed, on_note=settings.on_note,
        )  # fmt: skip

    return resumed(journal, known, settings.ranks.texts(len(windows)), size, measure)


def _journal_key(checkpoint: Checkpoint, windows: Windows, settings: _Settings, batch_size: int) -> dict[str, Any]:
    """Everything that can change a bit of a reading. One text at a time, the number of ranks cannot."""
    info, around = checkpoint.info, environment(checkpoint.model)
    return {
        "condense": __version__,
        "weights": info.weights_sha256,
        "architecture": info.architecture,
        "windows": windows.info.windows_sha256,
        "protocol": protocol(windows, info.dtype, settings.spectral_tokens, settings.seed)["hash"],
        "batch": f"{batch_size} of {settings.ranks.size}" if batch_size > 1 else "1",
        **{key: around[key] for key in ("torch", "transformers", "device", "attention", "threads")},
    }


def _summary(
    stack: Stack, tallies: list[tally.SiteTally], info: ModelInfo, settings: _Settings, twin: Diagnosis | None
) -> StackSummary:
    own = [place for place in tallies if place.site.stack == stack.name]
    deep, trend = tally.deep(own, settings.seed), tally.trend(own)
    read = [place.reading() for place in own]
    facts = Facts(
        model=info.id, parameters=info.parameters, contrastive=info.contrastive, objective=info.objective,
        texts=len(own[0].paper), stack=stack.name, deep=deep, trend=trend, labels=[r.label for r in read],
        curves={key: [r.metrics[key].value for r in read] for key in METRICS},
        top_dimensions=tally.deep_dimensions(own),
        twin=_deep_of(twin, stack.name),
    )  # fmt: skip
    return StackSummary(deep, trend, tally.paper(own), judge(facts, settings.bands))


def _deep_of(twin: Diagnosis | None, stack: str) -> Mapping[str, Estimate] | None:
    if twin is None:
        return None
    return twin.stacks[stack].deep if stack in twin.stacks else twin.deep


def default_batch_size(device: str) -> int:
    """Texts per forward pass: 1 on a CPU, where larger batches only cost memory; 8 elsewhere."""
    return 1 if device == "cpu" else 8


def protocol(windows: Windows, dtype: str, spectral_tokens: int, seed: int) -> dict[str, Any]:
    """Every setting that changes numbers, and their hash; neither the model nor its tokenizer."""
    settings: dict[str, Any] = {
        "metrics": "condense.metrics/1",
        "max_length": windows.info.length,
        "dtype": dtype,
        "spectral_tokens": spectral_tokens,
        "seed": seed,
        "excluded": "position 0 and special tokens",
        "mask_rate": MASK_RATE,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "keys": sorted(METRICS),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {"hash": digest, **settings}


def environment(model: Any, world_size: int = 1) -> dict[str, Any]:
    """Versions, device and number of processes of this run."""
    import transformers

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(model.device),
        "attention": str(getattr(model.config, "_attn_implementation", "") or "default"),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
    }
