"""condense: measures how condensed a language model's token states are, and treats it.

Public names load their modules on first use, so that `import condense` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from condense.version import __version__

if TYPE_CHECKING:
    from condense import dispersion as dispersion
    from condense import geometry as geometry
    from condense.comparison.run import compare as compare
    from condense.diagnosis.run import analyze as analyze
    from condense.dispersion.callback import CondensationMonitor as CondensationMonitor
    from condense.dispersion.config import DispersionConfig as DispersionConfig
    from condense.dispersion.disperser import Disperser as Disperser
    from condense.dispersion.monitor import Monitor as Monitor
    from condense.dispersion.trainer import DispersionMixin as DispersionMixin
    from condense.dispersion.trainer import DispersionTrainer as DispersionTrainer
    from condense.errors import CondenseError as CondenseError
    from condense.evaluation.run import evaluate as evaluate
    from condense.evaluation.run import task_effects as task_effects
    from condense.models.adapt import adapt as adapt
    from condense.models.checkpoint import Checkpoint as Checkpoint
    from condense.models.checkpoint import load as load
    from condense.records.comparison import Comparison as Comparison
    from condense.records.diagnosis import Diagnosis as Diagnosis
    from condense.records.jobs import JobOptions as JobOptions
    from condense.records.monitor import MonitorRun as MonitorRun
    from condense.records.options import ModelOptions as ModelOptions
    from condense.records.plans import Plan as Plan
    from condense.records.plans import TrialPlan as TrialPlan
    from condense.records.treatment import Treatment as Treatment
    from condense.records.trial import Trial as Trial
    from condense.texts.windows import Windows as Windows
    from condense.texts.windows import windows as windows
    from condense.training.arm_names import parse_arms as parse_arms
    from condense.treatment.run import treat as treat
    from condense.trials.run import trial as trial

_HOMES = {
    "Checkpoint": "models.checkpoint",
    "Comparison": "records.comparison",
    "CondensationMonitor": "dispersion.callback",
    "CondenseError": "errors",
    "Diagnosis": "records.diagnosis",
    "Disperser": "dispersion.disperser",
    "DispersionConfig": "dispersion.config",
    "DispersionMixin": "dispersion.trainer",
    "DispersionTrainer": "dispersion.trainer",
    "JobOptions": "records.jobs",
    "ModelOptions": "records.options",
    "Monitor": "dispersion.monitor",
    "MonitorRun": "records.monitor",
    "Plan": "records.plans",
    "Treatment": "records.treatment",
    "Trial": "records.trial",
    "TrialPlan": "records.plans",
    "Windows": "texts.windows",
    "adapt": "models.adapt",
    "analyze": "diagnosis.run",
    "evaluate": "evaluation.run",
    "compare": "comparison.run",
    "load": "models.checkpoint",
    "parse_arms": "training.arm_names",
    "task_effects": "evaluation.run",
    "treat": "treatment.run",
    "trial": "trials.run",
    "windows": "texts.windows",
}
_MODULES = ("dispersion", "geometry")

__all__ = ["__version__", *_MODULES, *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"condense.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'condense' has no attribute {name!r}")
    return getattr(importlib.import_module(f"condense.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted(__all__)
