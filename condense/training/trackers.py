"""Trackers of training runs (--report-to): what a run is called there, and whether the tracker can be had."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from condense.errors import UnavailableError, UsageError, first_line


@dataclass(frozen=True)
class RunName:
    """What a tracker calls a run: the arm and seed, in the group of its treatment or trial."""

    run: str
    group: str

    def __str__(self) -> str:
        return f"{self.group} {self.run}"


@contextlib.contextmanager
def tracked(name: RunName | None) -> Iterator[None]:
    """Have W&B and MLflow group the runs that belong together, each arm as a run of its own.

    Variables of the environment that are set already stay, and so does a W&B run that was open before.
    """
    values = {"WANDB_RUN_GROUP": name.group, "MLFLOW_TAGS": json.dumps({"condense": name.group})} if name else {}
    new = {key: value for key, value in values.items() if key not in os.environ}
    outer = getattr(sys.modules.get("wandb"), "run", None)
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            os.environ.pop(key, None)
        wandb: Any = sys.modules.get("wandb")
        if outer is None and getattr(wandb, "run", None) is not None:  # Trainer would log the next arm into it
            wandb.finish()


def refuse_trackers(names: str) -> None:
    """UsageError for a tracker that Trainer does not know, UnavailableError for one that is not installed."""
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(names):
            tracker()
    except ValueError as error:
        raise UsageError(f"--report-to: {first_line(error)}", "name one of them, or none") from None
    except (RuntimeError, ImportError) as error:
        raise UnavailableError(f"--report-to {names}: {first_line(error)}", "install it") from None
