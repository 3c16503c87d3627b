"""The model card of a treated checkpoint: its table is the report's."""

from __future__ import annotations

import json

from condense.records.treatment import Treatment
from condense.report.escape import for_code, for_markdown
from condense.report.treatment.markdown import arms_table, tasks_lines, verdict_lines


def model_card(treatment: Treatment) -> str:
    """README.md of the treated model: base model, data hashes, arms, numbers, how to reproduce."""
    schedule = treatment.schedule
    lines = [
        "---",
        f"base_model: {json.dumps(treatment.model)}",
        "library_name: transformers",
        "tags: [condense, dispersion-loss]",
        "---",
        "",
        f"# {for_markdown(treatment.model)}, treated with dispersion loss",
        "",
        *verdict_lines(treatment),
        "## Before, control, treated",
        "",
        *arms_table(treatment),
        "",
        "All arms were measured on the saved and reloaded files. The control arm had the same data order, seed and "
        "steps, without the loss. Intervals cover texts, not training seeds. Geometry is not quality.",
        "",
        *tasks_lines(treatment),
        "## How it was made",
        "",
        f"- loss: {treatment.plan.loss}, coefficient {treatment.plan.coefficient:g}, "
        f"layers {for_markdown(treatment.plan.layers)}",
        f"- training: {schedule.steps} steps of {schedule.tokens_per_step} tokens, learning rate "
        f"{treatment.plan.learning_rate:g}, seed {treatment.plan.seed}",
        f"- training text sha256: `{schedule.train_sha256}` ({schedule.train_documents} documents)",
        f"- validation text sha256: `{schedule.validation_sha256}` ({schedule.validation_documents} documents)",
        f"- base weights sha256: `{for_code(treatment.arms['before'].validation.model.weights_sha256 or 'not known')}`",
        f"- condense {for_markdown(treatment.condense)}",
        "",
        "```",
        for_code(treatment.command) or "condense.treat(...) from Python",
        "```",
        "",
        "The whole report is in `report.html`, its data in `condense.json`.",
    ]
    return "\n".join(lines) + "\n"
