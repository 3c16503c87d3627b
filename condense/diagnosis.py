"""analyze(): model x windows -> Diagnosis, streaming.

The straight line: capture finds the sites, measuring reads each text inside the hooks, tally sums up,
verdict reads the numbers. Nothing here knows a formula.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from condense import geometry, tally
from condense.capture import Stack, find_stacks, self_check
from condense.checkpoint import Checkpoint, objective, random_twin
from condense.corpus import Windows, check_ids
from condense.intervals import CONFIDENCE, RESAMPLES
from condense.measuring import read_texts
from condense.metrics import METRICS
from condense.quality import MASK_RATE, make_scorer, summarise
from condense.records import DIAGNOSIS_SCHEMA, Diagnosis, Estimate, ModelInfo, StackSummary
from condense.verdict import BANDS, Bands, Facts, judge
from condense.version import __version__

OnText = Callable[[int, int], None]


def analyze(
    checkpoint: Checkpoint | torch.nn.Module,
    windows: Windows,
    *,
    batch_size: int | None = None,
    spectral_tokens: int = geometry.SPECTRAL_TOKENS,
    seed: int = 0,
    twin: bool = False,
    bands: Bands = BANDS,
    command: str = "",
    on_text: OnText | None = None,
) -> Diagnosis:
    """Measure a model's token states at every site and say what they look like, and why.

    checkpoint: from `load`, or a transformers model in memory; windows: from `condense.windows`.
    batch_size: texts per forward pass (None chooses); twin: measure the same architecture with random
    weights too; on_text(done, total) is called after each text. RunError for non-finite states,
    UnavailableError for an architecture without one (B, S, d) residual stream or ids beyond the embedding.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = _in_memory(checkpoint)
    model = checkpoint.model
    was_training = model.training
    model.eval()
    settings = _Settings(batch_size, spectral_tokens, seed, bands, command)
    try:
        reference = _measure(random_twin(checkpoint, seed), windows, settings, None, on_text) if twin else None
        return _measure(checkpoint, windows, settings, reference, on_text)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Settings:
    """What a measurement is told, besides the model and the windows."""

    batch_size: int | None
    spectral_tokens: int
    seed: int
    bands: Bands
    command: str


def _measure(
    checkpoint: Checkpoint, windows: Windows, settings: _Settings, twin: Diagnosis | None, on_text: OnText | None
) -> Diagnosis:
    model, seed, started = checkpoint.model, settings.seed, time.perf_counter()
    check_ids(windows.ids, model.get_input_embeddings().num_embeddings)
    stacks = find_stacks(model)
    self_check(model, stacks, windows.ids[:1].to(model.device))
    scorer = make_scorer(model, stacks, checkpoint.info.objective, windows, seed, checkpoint.head_missing)
    tallies = [tally.SiteTally(site) for stack in stacks for site in stack.sites()]
    scores = []
    for reading in read_texts(
        model, stacks, windows, scorer,
        indices=list(range(len(windows))), batch_size=settings.batch_size or default_batch_size(model),
        spectral_tokens=settings.spectral_tokens, seed=seed,
    ):  # fmt: skip
        for place, measured in zip(tallies, reading.sites, strict=True):
            place.add(measured, settings.spectral_tokens)
        if reading.score is not None:
            scores.append(reading.score)
        if on_text is not None:
            on_text(reading.index + 1, len(windows))
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
        protocol=protocol(windows, checkpoint.info, settings.spectral_tokens, seed),
        environment=environment(model),
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


def _summary(
    stack: Stack, tallies: list[tally.SiteTally], info: ModelInfo, settings: _Settings, twin: Diagnosis | None
) -> StackSummary:
    own = [place for place in tallies if place.site.stack == stack.name]
    deep, trend = tally.deep(own, settings.seed), tally.trend(own)
    inner = [place.reading() for place in own if place.site.name != "output"]
    facts = Facts(
        model=info.id, parameters=info.parameters, contrastive=info.contrastive, objective=info.objective,
        texts=len(own[0].paper), stack=stack.name, deep=deep, trend=trend, labels=[r.label for r in inner],
        curves={key: [r.metrics[key].value for r in inner] for key in METRICS},
        top_dimensions=[top.dimension for top in inner[-1].top_dimensions],
        twin=_deep_of(twin, stack.name),
    )  # fmt: skip
    return StackSummary(deep, trend, tally.paper(own), judge(facts, settings.bands))


def _deep_of(twin: Diagnosis | None, stack: str) -> Mapping[str, Estimate] | None:
    if twin is None:
        return None
    return twin.stacks[stack].deep if stack in twin.stacks else twin.deep


def default_batch_size(model: Any) -> int:
    """Texts per forward pass: 1 on a CPU, where larger batches only cost memory; 8 elsewhere."""
    return 1 if model.device.type == "cpu" else 8


def protocol(windows: Windows, info: ModelInfo, spectral_tokens: int, seed: int) -> dict[str, Any]:
    """Every setting that changes numbers, and their hash; neither the model nor its tokenizer."""
    settings: dict[str, Any] = {
        "metrics": "condense.metrics/1",
        "max_length": windows.info.length,
        "dtype": info.dtype,
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


def environment(model: Any) -> dict[str, Any]:
    """Versions and device of this run."""
    import transformers

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(model.device),
        "attention": str(getattr(model.config, "_attn_implementation", "") or "default"),
        "threads": torch.get_num_threads(),
        "world_size": 1,
    }


def _in_memory(model: Any) -> Checkpoint:
    info = ModelInfo(
        id=getattr(model.config, "name_or_path", "") or type(model).__name__,
        architecture=type(model).__name__,
        objective=objective(model),
        parameters=sum(p.numel() for p in model.parameters()),
        hidden_size=int(getattr(model.config.get_text_config(), "hidden_size", 0)),
        blocks=sum(stack.blocks for stack in find_stacks(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        source_format="in memory",
    )
    return Checkpoint(model, None, info, None)
