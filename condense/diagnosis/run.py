"""analyze(): model x windows -> Diagnosis, streaming.

The order of steps: the sites are located, each text is read inside hooks (or taken from a run that crashed, or from
another process), `summary` sums up, `findings` judges. This module computes no metric.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis.distributed import ALONE, Ranks, together
from condense.diagnosis.findings import judge
from condense.diagnosis.forward import OnNote, TextReading, ids_of, kept_positions, read_texts, token_counts
from condense.diagnosis.lens import with_lens
from condense.diagnosis.matrices import matrices_of, matrix_finding
from condense.diagnosis.pooled import pooled_view
from condense.diagnosis.quality import MASK_RATE, Scorer, counting_loss, make_scorer, summarise
from condense.diagnosis.resume import Journal, open_journal, resumed
from condense.diagnosis.sinks import sink_anatomy
from condense.diagnosis.summary import DepthSummary, SiteTally, paper, trend
from condense.diagnosis.twin import compare_with_twins, initialisations, mean_of
from condense.diagnosis.verdict import BANDS, Bands, Facts, Text
from condense.intervals import CONFIDENCE, RESAMPLES
from condense.metrics import METRICS, VERSIONS
from condense.models.checkpoint import Checkpoint, checkpoint_of
from condense.models.checks import self_check
from condense.models.layers import (
    PROBE_TOKENS,
    Stack,
    embedding_rows,
    find_stacks,
    input_device,
    specials_of,
)
from condense.records.base import Estimate
from condense.records.diagnosis import (
    DIAGNOSIS_SCHEMA,
    NO_CORPUS,
    WEIGHTS_ONLY,
    Diagnosis,
    Kendall,
    Paper,
    Quality,
    SinkAnatomy,
    Spearman,
    StackSummary,
    TokenCounts,
    Trend,
    Verdict,
)
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
    halves: bool = MeasureOptions.halves,
    lens: bool = MeasureOptions.lens,
    bands: Bands = BANDS,
    command: str = "",
    on_text: OnText | None = None,
    on_note: OnNote | None = None,
    journal: bool = False,
    ranks: Ranks = ALONE,
) -> Diagnosis:
    """Measure a model's token states at every site, with a verdict on their geometry and its cause.

    checkpoint: from `load`, or a transformers model in memory; windows: from `condense.windows`.
    batch_size: texts per forward pass (None chooses; halved where memory runs out); twin: measure the same
    architecture with random weights too, three times; halves: embed the halves of each text apart too; lens: read
    every block through the model's head too; on_text(done, total) is called after each text, on_note(line) for what a
    user should know. journal: keep readings in the cache until the run is done, and resume from there after a
    crash; ranks: the processes that share the texts, each of which has to call this. RunError for non-finite states or
    too little memory, UnavailableError for an architecture without one (B, S, d) stream or ids beyond the embedding.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint_of(checkpoint, windows.ids[:1, :PROBE_TOKENS])
    model = checkpoint.model
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    journals: list[Journal] = []
    settings = _Settings(
        batch_size,
        spectral_tokens,
        seed,
        bands,
        command,
        on_text,
        on_note,
        journals if journal else None,
        ranks,
        halves,
    )
    try:
        with together(ranks):
            twins = []
            for other in initialisations(checkpoint, seed) if twin else ():
                twins.append(_measure_checkpoint(other, windows, replace(settings, halves=False), []))
                del other  # freed before the next is built
            diagnosis = _measure_checkpoint(checkpoint, windows, settings, twins)
        if lens and ranks.is_first:
            diagnosis = with_lens(diagnosis, checkpoint, windows, seed)
    finally:
        for module, training in modes:
            module.training = training
    for finished in journals:
        finished.remove()
    return replace(diagnosis, matrices=matrices_of(checkpoint))


def analyze_weights(checkpoint: Checkpoint, command: str = "") -> Diagnosis:
    """The diagnosis of a checkpoint without running it: `matrices`, and neither corpus nor sites nor a verdict."""
    nothing, readings = Estimate(None, reason=WEIGHTS_ONLY), matrices_of(checkpoint)
    trend = Trend(Spearman(None, None), Kendall(None, None))
    findings = (matrix_finding(checkpoint.info.id, readings),)
    return Diagnosis(
        schema=DIAGNOSIS_SCHEMA,
        condense=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=checkpoint.info,
        corpus=NO_CORPUS,
        protocol={"hash": "weights only", "dtype": checkpoint.info.dtype, "versions": VERSIONS},
        environment=environment(checkpoint.model),
        timing={},
        quality=Quality(nothing, nothing, nothing, label="not measured"),
        sites=(),
        deep=dict.fromkeys(METRICS, nothing),
        trend=trend,
        paper=Paper((), trend.spearman, trend.kendall),
        verdict=Verdict(
            "undefined", "undefined", "undefined", "undefined", (), asdict(BANDS), findings, reason=WEIGHTS_ONLY
        ),
        matrices=readings,
    )


@dataclass(frozen=True)
class _Settings:
    """The settings of a measurement, besides the model and the windows; `journals` collects those it opens."""

    batch_size: int | None
    spectral_tokens: int
    seed: int
    bands: Bands
    command: str
    on_text: OnText | None
    on_note: OnNote | None
    journals: list[Journal] | None
    ranks: Ranks
    halves: bool = False


def _measure_checkpoint(
    checkpoint: Checkpoint, windows: Windows, settings: _Settings, twins: list[Diagnosis]
) -> Diagnosis:
    model, seed, started = checkpoint.model, settings.seed, time.perf_counter()
    check_ids(windows.ids, embedding_rows(model))
    stacks = find_stacks(model)
    self_check(model, stacks, windows.ids[:1].to(input_device(model)))
    scorer = make_scorer(model, stacks, checkpoint.info.objective, windows, seed, checkpoint.head_missing)
    tallies = [SiteTally(site, windows.info.documents) for stack in stacks for site in stack.sites()]
    scores, vectors, halves = [], list[Tensor | None](), list[Tensor | None]()
    own = _own_readings(checkpoint, stacks, windows, scorer, settings)
    for reading in settings.ranks.gathered(own, len(windows)):
        for tally, measurement in zip(tallies, reading.sites, strict=True):
            tally.add(measurement)
        vectors.append(reading.pooled)
        halves.append(reading.halves)
        if reading.score is not None:
            scores.append(reading.score)
        if settings.on_text is not None:
            settings.on_text(reading.index + 1, len(windows))
    judging = _Judging(checkpoint, stacks, windows, settings, summarise(scorer, scores, windows), twins)
    summaries = {stack.name: judging.summary(stack, tallies) for stack in stacks}
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
        quality=judging.quality,
        sites=tuple(tally.reading() for tally in tallies),
        deep=main.deep,
        trend=main.trend,
        paper=main.paper,
        verdict=main.verdict,
        stacks=summaries,
        twin=mean_of(twins) if twins else None,
        tokens=judging.tokens,
        sinks=tuple(judging.sinks),
        pooled=pooled_view(vectors, halves, windows.info.documents),
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
            checkpoint.model,
            stacks,
            windows,
            scorer,
            indices=indices,
            batch_size=size,
            spectral_tokens=settings.spectral_tokens,
            seed=settings.seed,
            halves=settings.halves,
            on_note=settings.on_note,
        )

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
        "halves": str(settings.halves),
        "batch": f"{batch_size} of {settings.ranks.size}" if batch_size > 1 else "1",
        **{key: around[key] for key in ("torch", "transformers", "device", "attention", "threads")},
    }


class _Judging:
    """The verdict on each stack: the numbers of its sites, the texts, the quality and the twins, as facts."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stacks: tuple[Stack, ...],
        windows: Windows,
        settings: _Settings,
        quality: Quality,
        twins: list[Diagnosis],
    ) -> None:
        """From the model, the windows, and what was measured beside the states."""
        self.checkpoint, self.stacks, self.windows, self.settings = checkpoint, stacks, windows, settings
        self.quality, self.twins = quality, twins
        self.tokens = TokenCounts(*token_counts(windows.ids, kept_positions(windows.special)))
        self.sinks: list[SinkAnatomy] = []

    def summary(self, stack: Stack, tallies: list[SiteTally]) -> StackSummary:
        """Depth summary and verdict of one stack."""
        own = [tally for tally in tallies if tally.site.stack == stack.name]
        info, documents = self.checkpoint.info, self.windows.info.documents
        depth = DepthSummary(own, documents, self.settings.seed)
        sinks = self._sinks_of(stack, own)
        self.sinks += [sinks] if sinks else []
        key = "mean_cosine_distinct" if depth.repeats_itself else "mean_cosine"
        beside = [twin.deep_of(stack.name)[key] for twin in self.twins]
        facts = Facts(
            model=info.id,
            parameters=info.parameters,
            contrastive=info.contrastive,
            objective=info.objective,
            text=self._text_facts(),
            inputs=depth.inputs(),
            draws=depth.draws(),
            repeats=depth.repeats_itself,
            deep=depth.estimates,
            trend=trend(own),
            labels=[tally.site.label for tally in own],
            curves={key: [tally.estimates[key].value for tally in own] for key in METRICS},
            top_dimensions=depth.dimensions(),
            sinks=sinks,
            quality=self.quality,
            twin=compare_with_twins(depth.estimates[key], beside, documents) if beside else None,
        )
        return StackSummary(facts.deep, facts.trend, paper(own), judge(facts, self.settings.bands))

    def _text_facts(self) -> Text:
        windows, tokenizer = self.windows, self.checkpoint.tokenizer
        vocabulary = self.checkpoint.info.vocabulary_size or embedding_rows(self.checkpoint.model)
        if tokenizer is not None:
            vocabulary = min(vocabulary, len(tokenizer)) - len(set(tokenizer.all_special_ids))
        return Text(
            windows=len(windows),
            documents=len(set(windows.info.documents)),
            length=windows.info.length,
            distinct=float(statistics.median(self.tokens.distinct)),
            same_pairs=statistics.fmean(self.tokens.same_pairs),
            vocabulary=vocabulary,
            counting_loss=counting_loss(windows.ids[~windows.special].tolist(), vocabulary),
        )

    def _sinks_of(self, stack: Stack, own: list[SiteTally]) -> SinkAnatomy | None:
        windows, tokenizer = self.windows, self.checkpoint.tokenizer
        ids = ids_of(stack, self.stacks, windows.ids)

        def name(window: int, position: int) -> str:
            token = int(ids[window, position])
            return str(token) if tokenizer is None or token < 0 else str(tokenizer.decode([token]))

        keep = kept_positions(specials_of(stack, self.stacks, windows.special))
        return sink_anatomy(own, keep, name if windows.told else None)


def default_batch_size(device: str) -> int:
    """Texts per forward pass: 1 on a CPU, where larger batches only cost memory; 8 elsewhere."""
    return 1 if device == "cpu" else 8


def protocol(windows: Windows, dtype: str, spectral_tokens: int, seed: int) -> dict[str, Any]:
    """Every setting that changes numbers, and their hash; neither the model nor its tokenizer.

    `versions`: the version of each number's definition; it is not in the hash, so that a new number keeps it.
    """
    settings: dict[str, Any] = {
        "metrics": "condense.metrics/2",
        "max_length": windows.info.length,
        "dtype": dtype,
        "spectral_tokens": spectral_tokens,
        "seed": seed,
        "excluded": "position 0, special tokens and sinks",
        "sink_factor": geometry.SINK_FACTOR,
        "mask_rate": MASK_RATE,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {"hash": digest, **settings, "versions": VERSIONS}


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
