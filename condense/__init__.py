"""condense: the truth about how condensed a language model's token states are, and a treatment.

Public names load their rooms on first use, so that `import condense` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from condense.version import __version__

if TYPE_CHECKING:
    from condense import dispersion as dispersion
    from condense import geometry as geometry
    from condense.arm_names import parse_arms as parse_arms
    from condense.checkpoint import Checkpoint as Checkpoint
    from condense.checkpoint import load as load
    from condense.comparison import compare as compare
    from condense.comparisons import Comparison as Comparison
    from condense.corpus import Windows as Windows
    from condense.corpus import windows as windows
    from condense.diagnosis import analyze as analyze
    from condense.disperser import Disperser as Disperser
    from condense.disperser import DispersionConfig as DispersionConfig
    from condense.errors import CondenseError as CondenseError
    from condense.evaluation import evaluate as evaluate
    from condense.evaluation import task_effects as task_effects
    from condense.experiment import trial as trial
    from condense.outcomes import Plan as Plan
    from condense.outcomes import Treatment as Treatment
    from condense.records import Diagnosis as Diagnosis
    from condense.trainer import CondensationMonitor as CondensationMonitor
    from condense.trainer import DispersionMixin as DispersionMixin
    from condense.trainer import DispersionTrainer as DispersionTrainer
    from condense.treatment import treat as treat
    from condense.trials import Trial as Trial
    from condense.trials import TrialPlan as TrialPlan

_ROOMS = {
    "Checkpoint": "checkpoint",
    "Comparison": "comparisons",
    "CondensationMonitor": "trainer",
    "CondenseError": "errors",
    "Diagnosis": "records",
    "Disperser": "disperser",
    "DispersionConfig": "disperser",
    "DispersionMixin": "trainer",
    "DispersionTrainer": "trainer",
    "Plan": "outcomes",
    "Treatment": "outcomes",
    "Trial": "trials",
    "TrialPlan": "trials",
    "Windows": "corpus",
    "analyze": "diagnosis",
    "evaluate": "evaluation",
    "compare": "comparison",
    "load": "checkpoint",
    "parse_arms": "arm_names",
    "task_effects": "evaluation",
    "treat": "treatment",
    "trial": "experiment",
    "windows": "corpus",
}
_MODULES = ("dispersion", "geometry")

__all__ = ["__version__", *_MODULES, *_ROOMS]


def __getattr__(name: str) -> Any:
    """Import a public name's room when it is first asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"condense.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'condense' has no attribute {name!r}")
    return getattr(importlib.import_module(f"condense.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted(__all__)
