"""A trial out of nothing: believable arms over several seeds. Fixture data for the pages, never results."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from condense.metrics import METRICS
from condense.records.base import Estimate, Finding
from condense.records.diagnosis import CorpusInfo, ModelInfo, Quality
from condense.records.learning import Learning, Look, Reach, Tried
from condense.records.plans import ArmSpec, Plan, TrialPlan
from condense.records.tasks import TaskEffect, TaskScore
from condense.records.treatment import Curve, Schedule, SiteEffect
from condense.records.trial import (
    ArmEffect,
    ArmResult,
    ArmRun,
    DosePoint,
    DoseResponse,
    Pair,
    Rank,
    SeedEffect,
    SitePoint,
    StepCost,
    Trial,
)

WITHOUT = "mean_cosine_without_top_dimensions"
NOT_MEASURED = Estimate(None, reason="not measured")
CONTROL = {"mean_cosine": 0.571, WITHOUT: 0.248, "effective_rank": 128.4, "bits_per_byte": 0.9534}
UNPAIRED = "its tokenizer cuts the validation text into other windows, so the texts are not paired"

# (name, remedy, loss, layers, coefficient, parameters added, time ÷ control, Δ cosine, Δ rank, Δ bits, verdict)
ARMS: tuple[tuple[Any, ...], ...] = (
    ("dispersion=0.1", "dispersion", "angular", "all", 0.1, 0, 1.031, -0.004, 0.4, 0.0002, "too-small-to-count"),
    ("dispersion=1", "dispersion", "angular", "all", 1.0, 0, 1.033, -0.046, 4.8, 0.0021, "dispersed"),
    ("dispersion:mean_cosine@late=0.3", "dispersion", "mean_cosine", "late", 0.3, 0, 1.008, -0.038, 3.1, 0.0009,
     "dispersed"),
    ("embedding-dropout", "embedding-dropout", None, None, None, 0, 1.012, -0.013, 1.2, 0.0071,
     "dispersed-at-a-cost"),
    ("larger-vocab", "larger-vocab", None, None, None, 2_654_208, 1.094, 0.019, -3.5, 0.0163, "condensed-further"),
    ("active-forgetting", "active-forgetting", None, None, None, 0, None, None, None, None, None),
    ("cosreg=1", "cosreg", None, None, 1.0, 0, 1.117, -0.002, 0.2, -0.0004, "too-small-to-count"),
    ("noisy-embedding", "noisy-embedding", None, None, None, 0, 1.006, -0.009, 0.9, 0.0011, "inconclusive"),
)  # fmt: skip
TEXTS = {
    "control": ("Control", "Cross-entropy only; same rows, order, steps and seed as every arm.", "convention"),
    "dispersion": ("Dispersion loss", "A loss on the angles between the token states of a text, added to "
                   "cross-entropy at every chosen block.", "Liu et al. 2026, arXiv:2602.00217"),
    "embedding-dropout": ("Embedding dropout", "Whole vocabulary rows dropped with p = 0.1, the rest × 1/(1 − p), in "
                          "training only.", "Merity et al. 2018, arXiv:1708.02182"),
    "larger-vocab": ("Larger vocabulary", "New tokens by continuing the tokenizer’s merges on the training text; each "
                     "new row is the mean of the pieces that it replaces.", "convention"),
    "active-forgetting": ("Active forgetting", "Input embeddings drawn anew every K steps, their moments zeroed.",
                          "Chen et al. 2023, arXiv:2307.01163"),
    "cosreg": ("Cosine regularisation", "Mean cosine of the rows of the output embedding matrix.",
               "Gao et al. 2019, arXiv:1907.12009"),
    "noisy-embedding": ("Noisy embeddings", "Embeddings + U(−1, 1) · α/√(L·d), α = 5, in training only.",
                        "Jain et al. 2024, arXiv:2310.05914"),
}  # fmt: skip


def wobble(name: str, seed: int, size: float) -> float:
    """A number near 0 that depends on arm and seed alone."""
    return size * math.sin(1.7 * seed + 0.37 * sum(map(ord, name)))


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def quality(bits: float) -> Quality:
    return Quality(estimate(2.94 * bits, 0.09), estimate(math.exp(2.94 * bits), 1.1), estimate(bits, 0.03))


def numbers(change: dict[str, float], jitter: float = 0.0) -> dict[str, Estimate]:
    """Deep metrics of a run that differs from the control by this much."""
    made = {key: estimate(0.4, 0.02) for key in METRICS}
    for key in ("mean_cosine", WITHOUT, "effective_rank"):
        size = 130 if key == "effective_rank" else 1
        made[key] = estimate(CONTROL[key] + change.get(key, 0.0) + size * jitter, size * 0.018)
    return made


def sites(change: float, blocks: int) -> tuple[SitePoint, ...]:
    def at(kind: str, index: int) -> SitePoint:
        depth = index / blocks
        cosine = 0.11 + 0.52 * depth + 0.08 * math.sin(5 * depth) + change * depth
        return SitePoint(kind, "decoder", index, cosine, 0.45 * cosine, 171 - 45 * depth - 90 * change * depth)

    return (at("embedding", 0), *(at("block", i) for i in range(1, blocks + 1)), at("output", blocks))


def run(name: str, seed: int, change: dict[str, float], blocks: int, steps: int, tasks: bool) -> ArmRun:
    """One arm under one seed."""
    jitter = wobble(name, seed, 0.003)
    bits = CONTROL["bits_per_byte"] + change.get("bits_per_byte", 0.0) + wobble(name, seed, 0.0006)
    at = range(1, steps + 1)
    disperses = name.startswith("dispersion")
    curve = Curve(
        tuple(at),
        tuple(3.1 - 0.35 * i / steps + 0.05 * math.sin(0.9 * i + seed) + change.get("bits_per_byte", 0) for i in at),
        tuple(-0.02 if disperses else 0.0 for _ in at),
        tuple(0.57 + change.get("mean_cosine", 0) * i / steps + 0.01 * math.cos(i / 7) for i in at),
        tuple(1.3 + 0.2 * math.sin(3 * i) for i in at),
        tuple(5e-5 for _ in at),
    )
    scored = (TaskScore("piqa", "acc", 0.62 + jitter, 0.021, 500), TaskScore("wiki", "word_ppl", 21.4, None, 60, False))
    return ArmRun(
        seed, numbers(change, jitter), quality(bits), numbers(change, jitter), quality(bits + 0.11),
        sites(change.get("mean_cosine", 0.0) + jitter, blocks), f"{seed:x}" * 64, curve, 64.0 + seed,
        61_440, 0.006 if disperses else None, f"arms/{name}/seed-{seed}", scored if tasks else (),
    )  # fmt: skip


def effect(name: str, change: dict[str, float], seeds: range, blocks: int) -> ArmEffect:
    halves = {"mean_cosine": 0.005, WITHOUT: 0.005, "effective_rank": 0.9, "bits_per_byte": 0.0008}

    def of(seed: int | None) -> dict[str, Estimate]:
        made = {key: estimate(-0.01, 0.02) for key in METRICS} | {"loss": estimate(0.003, 0.004)}
        for key, half in halves.items():
            by = 0.0 if seed is None else wobble(name, seed, 0.7 * half)
            made[key] = estimate(change.get(key, 0.0) + by, half * (1.0 if seed is None else 1.4))
        return made

    at = tuple(
        SiteEffect(
            site.site, site.stack, site.index,
            {"mean_cosine": estimate(change["mean_cosine"] * (0.2 + site.index / blocks), 0.005)},
        )
        for site in sites(0.0, blocks)
    )  # fmt: skip
    spread = {key: half * 0.6 if len(seeds) > 1 else None for key, half in halves.items()}
    return ArmEffect(
        of(None), tuple(SeedEffect(seed, of(seed)) for seed in seeds), spread, at,
        UNPAIRED if name == "larger-vocab" else "",
    )  # fmt: skip


def ranks(names: list[str]) -> dict[str, dict[str, Rank]]:
    """dispersion=1 and the late arm share the first place by cosine; by bits per byte all but two are a tie."""
    made: dict[str, dict[str, Rank]] = {name: {} for name in names}
    first = ("dispersion=1", "dispersion:mean_cosine@late=0.3")
    for name in names:
        others = tuple(other for other in names if other != name and (other in first) == (name in first))
        made[name]["mean_cosine"] = Rank(1 if name in first else 3, others)
        worse = name in ("embedding-dropout", "larger-vocab")
        same = tuple(o for o in names if o != name and (o in ("embedding-dropout", "larger-vocab")) == worse)
        made[name]["bits_per_byte"] = Rank(len(names) - 1 if worse else 1, same)
    return made


def arm(row: tuple[Any, ...], seeds: range, blocks: int, steps: int, tasks: bool) -> ArmResult:
    """One arm of the table above."""
    name, remedy, loss, layers, coefficient, added, time, cosine, rank, bits, verdict = row
    title, definition, source = TEXTS[remedy]
    spec = ArmSpec(name, remedy, loss, layers, coefficient)
    if cosine is None:
        reason = "the loss became non-finite at step 21 of 60, seed 0; the arm was given up"
        return ArmResult(spec, "failed", title, definition, source, reason, ("every K = 20 steps",), 134_515_008, 0)
    change = {"mean_cosine": cosine, WITHOUT: 0.2 * cosine, "effective_rank": rank, "bits_per_byte": bits}
    runs = tuple(run(name, seed, change, blocks, steps, tasks) for seed in seeds)
    cost = StepCost(1.31 * time, estimate(time, 0.004), round(2.4e9 * (1 + 0.7 * (time - 1))), 1 + 0.7 * (time - 1), 5)
    made = effect(name, change, seeds, blocks)
    details = ("4 608 new tokens, 9.4 % of the vocabulary",) if remedy == "larger-vocab" else ()
    scores = (
        TaskEffect("piqa", "acc", 0.63, 0.622, estimate(0.008, 0.012), True, 500),
        TaskEffect("wiki", "word_ppl", 21.2, 21.4, Estimate(-0.2), False, 60, False),
    )
    return ArmResult(
        spec, "done", title, definition, source, None, details, 134_515_008 + added, added, cost, runs, made, made,
        verdict, "", "worse" if verdict in ("dispersed-at-a-cost", "condensed-further") else "held",
        "neither" if verdict in ("too-small-to-count", "inconclusive") else "both", {}, scores if tasks else (),
    )  # fmt: skip


def control(seeds: range, blocks: int, steps: int, tasks: bool) -> ArmResult:
    title, definition, source = TEXTS["control"]
    cost = StepCost(1.31, Estimate(1.0), 2_400_000_000, 1.0, 5)
    runs = tuple(run("control", seed, {}, blocks, steps, tasks) for seed in seeds)
    return ArmResult(
        ArmSpec("control", "control"), "done", title, definition, source, parameters=134_515_008, parameters_added=0,
        cost=cost, runs=runs,
    )  # fmt: skip


def finding(name: str, severity: Any, title: str, model: str) -> Finding:
    seen = "dispersion=1: deep mean cosine -0.046 [-0.051, -0.041], bits per byte +0.0021 [+0.0013, +0.0029]"
    return Finding(name, severity, title, seen, "it matters", f"condense treat '{model}' --coefficient 1 -o o/", "A")


def pairs(arms: list[ArmResult]) -> tuple[Pair, ...]:
    made = []
    for place, one in enumerate(arms):
        for other in arms[place + 1 :]:
            a, b = one.effect, other.effect
            if a is None or b is None:
                continue
            keys, differences = ("mean_cosine", "bits_per_byte"), {}
            for key in keys:
                value = (a.metrics[key].value or 0) - (b.metrics[key].value or 0)
                differences[key] = estimate(value, 0.006 if key == "mean_cosine" else 0.001)
            clear = {k: (d.low or 0) > 0 or (d.high or 0) < 0 for k, d in differences.items()}
            made.append(Pair(one.spec.name, other.spec.name, differences, clear))
    return tuple(made)


def doses(arms: list[ArmResult], recommended: float | None = 1.0) -> tuple[DoseResponse, ...]:
    points = tuple(
        DosePoint(
            a.spec.name, a.spec.coefficient or 0.0, a.effect.metrics["mean_cosine"],
            a.effect.metrics["bits_per_byte"], a.verdict,
        )
        for a in arms
        if a.effect is not None and a.spec.loss == "angular"
    )  # fmt: skip
    reason = "the largest measurable effect whose quality is held" if recommended else "no coefficient has an effect"
    return (DoseResponse("dispersion, angular on all layers", "dispersion", points, recommended, reason),)


def trial(
    model: str = "org/tiny-135M", *, seeds: int = 3, blocks: int = 30, steps: int = 60, tasks: bool = False,
    rows: tuple[tuple[Any, ...], ...] = ARMS,
) -> Trial:  # fmt: skip
    """A trial of ten arms with `before`; below 3 seeds nothing is ranked."""
    range_ = range(seeds)
    made = [arm(row, range_, blocks, steps, tasks) for row in rows]
    if seeds >= 3:
        named = ranks([a.spec.name for a in made if a.effect is not None])
        made = [replace(a, ranks=named.get(a.spec.name, {})) for a in made]
    arms = (control(range_, blocks, steps, tasks), *made)
    training = Plan(
        max_steps=steps, max_length=1024, coefficient=0.1, eval_tasks=("piqa", "wiki") if tasks else ()
    )  # fmt: skip
    before = replace(run("before", 0, {"bits_per_byte": 0.041}, blocks, 0, tasks), curve=Curve(), seconds=0.0)
    corpus = CorpusInfo(
        "notes.jsonl",
        "b" * 64,
        "c" * 64,
        32,
        1,
        16_384,
        512,
        0,
        ("doc-1#0", "doc-2#0"),
        32,
        documents=tuple(i // 4 for i in range(32)),
    )
    return Trial(
        "condense.trial/1", "0.1.0", "2026-01-02T03:04:05+00:00",
        f"condense trial '{model}' --seeds {seeds} -o out/",
        ModelInfo(model, "LlamaForCausalLM", "causal", 134_515_008, 576, blocks, "float32", "safetensors", None,
                  "a" * 64, 49_152),
        "out", TrialPlan(tuple(a.spec for a in arms), seeds, training),
        Schedule(800, 1024, steps, 1024, 61_440, 1, 1, True, 53, 6, "a" * 64, "b" * 64, 10**9, 320.0, 2 * 10**9),
        {"python": "3.12", "torch": "2.13.0", "device": "cpu"}, corpus, replace(corpus, source="probe"), before, arms,
        pairs(made) if seeds >= 3 else (),
        None if seeds >= 3 else f"{seeds} training seed{'s' * (seeds != 1)}: below 3 nothing is ranked",
        doses(made),
        (finding("best", "good", "dispersion=1 opens the cone the most at quality held", model),
         finding("seeds", "info", "Differences between seeds are small beside the effect", model)),
        {"total_seconds": 2310.0}, {"hash": "d" * 64},
    )  # fmt: skip


def learning(change: float | None, points: int = 16, each: int = 4096) -> Learning:
    """A falling curve; an arm that is ahead by `change` early and as far behind at the end. None: the control."""
    steps = tuple(25 * number for number in range(1, points + 1))
    seconds = tuple(0.1 * step for step in steps)
    falling = [0.95 + 1.0 / number for number in range(1, points + 1)]
    tokens = tuple(each * step for step in steps)
    if change is None:
        return Learning(steps, tokens, seconds, seconds, tuple(estimate(v, 0.01) for v in falling), 3)
    turning = [change * (1 - 2 * number / points) for number in range(1, points + 1)]
    own = tuple(estimate(v + c, 0.01) for v, c in zip(falling, turning, strict=True))
    changes = tuple(estimate(c, 0.004) for c in turning)
    looks = (
        Look("first quarter", 25, 100, changes[0], "improved"),
        Look("second quarter", 125, 200, changes[points // 3], "not shown to be held"),
        Look("third quarter", 225, 300, changes[points // 2], "not shown to be held"),
        Look("end", 400, 400, changes[-1], "worse"),
    )
    reach = Reach(3, 3, estimate(9e5, 1e5), estimate(31.0, 2.0), estimate(0.8, 0.1), estimate(0.9, 0.1))
    return Learning(
        steps, tokens, seconds, tuple(1.03 * second for second in seconds), own, 3, changes, changes, looks,
        "the sign turns", 212.0, "worse", estimate(1.03, 0.01), reach, "processor",
    )  # fmt: skip


def with_learning(made: Trial) -> Trial:
    """The trial with the curve of every arm that was measured, and two settings tried for each."""
    tried = (Tried(1e-3, 40, 1.02, 2.0, 60.0), Tried(3e-3, 40, 0.98, 1.9, 61.0, chosen=True, edge=("learning rate",)))
    control = replace(made.arms[0], learning=learning(None), then=learning(None, 8), tuning=tried)
    arms = [
        arm if arm.effect is None else replace(arm, learning=learning(-0.02), then=learning(-0.01, 8), tuning=tried)
        for arm in made.arms[1:]
    ]
    plan = replace(made.plan, tune=("learning_rate=1e-3,3e-3", "warmup_steps=40"))
    return replace(made, arms=(control, *arms), plan=plan)
