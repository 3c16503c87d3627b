"""The search of `--tune`: every arm, the control too, tries the same settings on a seed and a text of its own.

A search run is a run like others (folder, resume, failures), trained for the same steps, and measured on the tuning
text alone: its quality decides, and nothing else of it is kept but what the record says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from condense.files import sha256
from condense.records.base import Again, Finding
from condense.records.diagnosis import Diagnosis
from condense.records.learning import Tried
from condense.records.plans import ArmSpec, Plan, TrialPlan, with_setting
from condense.records.trial import ArmResult
from condense.training.arm_names import slug
from condense.training.prepare import Prepared
from condense.trials.arm_run import ArmRunInput
from condense.trials.folder import MEASURED, failure, is_done, read_step

Setting = Mapping[str, float]
TUNING = "tuning"
"""The folder of the search, beside that of the arms."""


@dataclass(frozen=True)
class Search:
    """What is tried: the plan, the folder of its runs, what makes a run of an arm under a seed, and the texts."""

    plan: TrialPlan
    folder: Path
    run_of: Callable[[ArmSpec, int], ArmRunInput]
    texts: Prepared

    @property
    def prepared(self) -> Prepared:
        """The texts as a search run is to see them: the tuning text is what it is measured on."""
        if self.texts.tuning is None:
            raise ValueError("nothing is searched without a tuning text")
        parts = replace(self.texts.parts, validation=self.texts.tuning.documents)
        return replace(self.texts, parts=parts, validation=self.texts.tuning.windows)

    def run(self, spec: ArmSpec, setting: Setting) -> ArmRunInput:
        """The input of one run of the search."""
        plan, plain = self.plan, self.run_of(spec, self.plan.tuning_seed)
        written = json.dumps(sorted(setting.items()))
        windows = self.prepared.validation.info.windows_sha256
        name = "_".join(f"{key}={value:g}" for key, value in setting.items())
        return replace(
            plain,
            training=with_setting(plan.training, setting),
            folder=self.folder / f"{slug(spec)}+{name}" / f"seed-{plan.tuning_seed}",
            fingerprint=sha256(f"{plain.fingerprint} {written} {windows}"),
            title=f"{plain.title}, {name}",
            keep=False,
            points=0,
            searched=True,
        )

    def todo(self, resume: bool) -> list[ArmRunInput]:
        """The runs that are not finished."""
        runs = [self.run(spec, setting) for spec in self.plan.arms for setting in self.plan.grid()]
        return [run for run in runs if not (resume and is_done(run.folder, run.fingerprint))]

    def tried(self, spec: ArmSpec) -> tuple[Tried, ...]:
        """What each setting of an arm came to, the chosen one marked."""
        grid = self.plan.grid()
        return choose(grid, [self._read(spec, setting) for setting in grid])

    def _read(self, spec: ArmSpec, setting: Setting) -> Tried:
        run = self.run(spec, setting)
        made = Tried(setting.get("learning_rate"), setting.get("warmup_steps"), None)
        if not is_done(run.folder, run.fingerprint):
            return replace(made, reason=failure(run.folder) or "it was not run")
        quality = Diagnosis.from_json(run.folder / "validation.json").quality
        step = read_step(run.folder, MEASURED, run.fingerprint)
        seconds = step.trained.seconds if step and step.trained else 0.0
        return replace(made, bits_per_byte=quality.bits_per_byte.value, loss=quality.loss.value, seconds=seconds)


def choose(grid: Sequence[Setting], tried: Sequence[Tried]) -> tuple[Tried, ...]:
    """Mark the setting with the fewest bits per byte (of a masked model the smallest loss), the first of equals."""
    scores = [one.loss if one.bits_per_byte is None else one.bits_per_byte for one in tried]
    known = [(score, number) for number, score in enumerate(scores) if score is not None and score == score]
    if not known:
        return tuple(tried)
    best = min(known)[1]
    edge = tuple(
        name.replace("_", " ")
        for name, value in grid[best].items()
        if len({setting[name] for setting in grid}) > 1
        and value in (min(setting[name] for setting in grid), max(setting[name] for setting in grid))
    )
    return tuple(replace(one, chosen=True, edge=edge) if number == best else one for number, one in enumerate(tried))


def chosen_setting(grid: Sequence[Setting], tried: Sequence[Tried]) -> Setting | None:
    """The setting that `choose` marked; None where none could be trained."""
    return next((setting for setting, one in zip(grid, tried, strict=True) if one.chosen), None)


def tuned_plan(plan: Plan, setting: Setting | None) -> Plan:
    """The plan of an arm's runs: with what the search chose."""
    return plan if setting is None else with_setting(plan, setting)


def tuned_fingerprint(fingerprint: str, setting: Setting | None) -> str:
    """The fingerprint of an arm's runs, which another choice of the search changes."""
    return fingerprint if setting is None else sha256(f"{fingerprint} {json.dumps(sorted(setting.items()))}")


def tuning_findings(plan: TrialPlan, arms: Sequence[ArmResult], steps: int, again: Again) -> list[Finding]:
    """Where the best setting of an arm is the smallest or the largest that was tried: a better one may lie outside.

    steps: those of training, which a warm-up has to be shorter than.
    """
    edges = [(arm.spec.name, one) for arm in arms for one in arm.tuning if one.chosen and one.edge]
    if not edges:
        return []
    wider = [_widened(name, [setting[name] for setting in plan.grid()], edges, steps) for name in plan.grid()[0]]
    return [
        Finding(
            "tuning-edge",
            "warning",
            "The best setting stands on the edge of what was tried",
            "; ".join(f"{name}: {one.words}" for name, one in edges),
            "A better one may lie outside. An arm that is not tuned as well as the others is compared unfairly.",
            again.without("tune")(output="wider/") + "".join(f" --tune {values}" for values in wider),
            "this run",
        )
    ]


def _widened(name: str, values: Sequence[float], edges: Sequence[tuple[str, Tried]], steps: int) -> str:
    """The values of one setting with another one beyond each edge that was chosen."""
    known = sorted(set(values))
    chosen = {getattr(one, name) for _, one in edges if name.replace("_", " ") in one.edge}
    below = [known[0] / 2] if known[0] in chosen else []
    above = [known[-1] * 2] if known[-1] in chosen else []
    numbers = [*below, *known, *above]
    if name == "warmup_steps":
        numbers = [min(max(1, round(number)), steps - 1) for number in numbers]
    return f"{name}={','.join(f'{number:g}' for number in dict.fromkeys(numbers))}"
