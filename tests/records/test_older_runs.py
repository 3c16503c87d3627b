"""Runs that condense 0.1.0 wrote, before windows had documents: read, with today's words, and without intervals.

The files in tests/saved were written by that version on tiny models; they are never made again.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from condense import intervals
from condense.gate.assertions import parse_inline
from condense.gate.run import evaluate
from condense.records.base import Saved
from condense.records.comparison import Comparison
from condense.records.treatment import NO_DOCUMENTS, Treatment
from condense.records.trial import Trial

SAVED = Path(__file__).parents[1] / "saved"
KINDS: dict[str, type[Saved]] = {"treatment": Treatment, "trial": Trial, "comparison": Comparison}


def bounds(data: Any, path: str = "") -> list[str]:
    """Where a saved estimate still has an interval."""
    if isinstance(data, dict):
        found = [path] if "value" in data and data.get("low") is not None else []
        return found + [place for key, value in data.items() for place in bounds(value, f"{path}.{key}")]
    return [place for item in data for place in bounds(item, f"{path}[]")] if isinstance(data, list) else []


@pytest.mark.parametrize("name", KINDS)
def test_an_older_run_is_read_and_reported_without_intervals(name: str) -> None:
    file = SAVED / f"{name}-0.1.0.json"
    assert bounds(json.loads(file.read_text())), "it had intervals when it was written"
    run = KINDS[name].from_json(file)
    left = [place for place in bounds(run.to_dict()) if ".validation" not in place and ".probe." not in place]
    assert [place for place in left if "time_ratio" not in place] == []
    assert KINDS[name].from_json(run.to_json()) == run, "what is read is written and read again"
    assert "0.1.0" in run.to_markdown() or run.to_markdown()
    assert run.to_html(plotlyjs="none")


def test_earlier_words_are_those_of_today() -> None:
    treatment = Treatment.from_json(SAVED / "treatment-0.1.0.json")
    assert json.loads((SAVED / "treatment-0.1.0.json").read_text())["verdict"]["id"] == "no-measurable-effect"
    assert (treatment.verdict.id, treatment.verdict.covers) == ("too-small-to-count", NO_DOCUMENTS)
    assert treatment.verdict.quality in ("held", "not shown to be held")
    trial = Trial.from_json(SAVED / "trial-0.1.0.json")
    assert [arm.verdict for arm in trial.arms] == [None, "too-small-to-count"]
    assert trial.doses[0].points[0].verdict == "too-small-to-count"


def test_a_gate_on_an_older_run_is_not_run() -> None:
    treatment = Treatment.from_json(SAVED / "treatment-0.1.0.json")
    (result,) = evaluate(treatment, [parse_inline("verdict.id != condensed-further")]).results
    assert (result.outcome, result.reason) == ("not-run", NO_DOCUMENTS) and NO_DOCUMENTS == intervals.NO_DOCUMENTS


@pytest.mark.parametrize("broken", [{"verdict": 3}, {"arms": 3}, {"effect": None}, {"arms": {"treated": []}}])
def test_a_broken_run_is_refused_in_one_line(broken: dict[str, Any]) -> None:
    from condense.errors import UnavailableError

    data = json.loads((SAVED / "treatment-0.1.0.json").read_text())
    with pytest.raises(UnavailableError, match="not a valid condense.treatment/1"):
        Treatment.from_json({**data, **broken})


def test_the_shipped_trial_is_read_and_no_value_lies_outside_its_interval() -> None:
    """docs/examples/smollm2-trial once had a probe effect outside its own interval."""
    file = Path(__file__).parents[2] / "docs" / "examples" / "smollm2-trial" / "trial.json"
    trial = Trial.from_json(file)
    for arm in trial.arms[1:]:
        for effect in (arm.effect, arm.probe_effect):
            assert effect is not None
            for metrics in (effect.metrics, *(seed.metrics for seed in effect.by_seed)):
                for key, change in metrics.items():
                    inside = change.low is None or change.value is None or change.high is None
                    assert inside or change.low <= change.value <= change.high, (arm.spec.name, key)
        assert arm.effect is not None and arm.effect.metrics["bits_per_byte"].low is not None
    assert file.with_name("report.md").read_text(encoding="utf-8") == trial.to_markdown()
