"""What training would stumble over after minutes of measuring, refused before anything is trained or removed."""

from __future__ import annotations

from pathlib import Path

from condense.dispersion.config import chosen_blocks
from condense.errors import UsageError, first_line
from condense.models.checkpoint import Checkpoint
from condense.models.layers import find_stacks
from condense.records.options import MAX_SEED
from condense.records.plans import Plan, TrialPlan, with_setting
from condense.training.loop import arguments, warmup_steps
from condense.training.prepare import Prepared
from condense.training.remedies import remedy_of
from condense.training.trackers import refuse_trackers


def refuse_settings(asked: TrialPlan, opened: Checkpoint, texts: Prepared) -> None:
    """Refuse settings that do not go together, with each other or with the model.

    UsageError for blocks that the model does not have, a warm-up that leaves no step at the peak rate, more seeds than
    there are, an optimizer, a learning-rate schedule or a tracker that Trainer does not know; UnavailableError for a
    tracker that is not installed.
    """
    plan = asked.training
    for spec in asked.arms:
        try:
            config = remedy_of(spec).acts(spec, plan).dispersion
            for stack in find_stacks(opened.model):
                chosen_blocks(config.layers, stack.blocks)
        except ValueError as error:
            raise UsageError(first_line(error), f"see --layers, and {spec.name}@LAYERS of an arm") from None
    for tried in [with_setting(plan, setting) for setting in asked.grid()] or [plan]:
        _refuse_warmup(tried, texts.schedule.steps, "training", "--max-steps")
        if texts.then is not None:
            _refuse_warmup(tried, texts.then.schedule.steps, "training on the next text", "--then-steps")
    if plan.seed + plan.seeds - 1 > MAX_SEED:
        raise UsageError(f"--seed {plan.seed} leaves no room for {plan.seeds} seeds", f"the last one is {MAX_SEED}")
    arguments(plan, texts.schedule, Path("runs"), next(opened.model.parameters()).device)
    refuse_trackers(plan.report_to)


def _refuse_warmup(plan: Plan, steps: int, what: str, option: str) -> None:
    """UsageError where the learning rate would not reach its peak before the end."""
    warmup = warmup_steps(plan, steps)
    if warmup >= steps:
        raise UsageError(
            f"a warm-up of {warmup} steps leaves none of the {steps} steps of {what} at the learning rate",
            f"lower the warm-up (--warmup, --tune warmup_steps), or give a larger {option}",
        )
