"""Time in turn, memory in a process of its own."""

import contextlib
import sys

import pytest
import torch

from condense.dispersion.config import DispersionConfig
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan
from condense.training import costs
from condense.training.costs import Pass, Spent, interleaved, overhead_of, peak_bytes, time_ratio
from condense.training.interventions import Intervention, Regulariser
from condense.training.remedies import REMEDIES

CONTROL = ArmSpec("control", "control")


@pytest.fixture
def batch():
    ids = torch.arange(64).view(2, 32) % 100
    return {"input_ids": ids, "labels": ids.clone()}


def test_arms_take_turns_and_the_model_is_left_as_it_was(opened, batch, monkeypatch):
    model, order = opened("llama").model, []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = costs.forward_backward

    def noted(model, inputs, intervention):
        order.append("treated" if intervention.dispersion.coefficient else "control")
        plain(model, inputs, intervention)

    monkeypatch.setattr(costs, "forward_backward", noted)
    arms = {"control": Intervention(), "treated": Intervention(DispersionConfig(1.0))}
    told = []
    spent = interleaved({n: Pass(model, batch, a) for n, a in arms.items()}, 3, lambda d, t: told.append((d, t)))
    assert order == ["control", "treated", "treated", "control"] * 2, "each round begins with another arm"
    assert all(len(of.seconds) == 3 and min(of.seconds) > 0 for of in spent.values())
    assert told == [(n, 8) for n in range(1, 9)]
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", REMEDIES)
def test_a_timed_pass_keeps_the_weights_whatever_the_remedy(name, opened, batch):
    model = opened("gpt2").model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [dict(module._forward_hooks) for module in model.modules()]  # transformers leaves some of its own
    interleaved({name: Pass(model, batch, REMEDIES[name].acts(ArmSpec(name, name), Plan()))}, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks


def test_the_ratio_is_taken_round_by_round():
    ratio = time_ratio(Spent((), (2.0, 6.0, 4.0), ()), Spent((), (1.0, 2.0, 4.0), ()))
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 1.0, 3.0)


def test_a_slow_regulariser_shows(opened, batch):
    import time

    model, until = opened("llama").model, [0.0]

    def slow(model):
        while time.process_time() < until[0]:
            pass
        return next(model.parameters()).sum()

    def begin(model):
        until[0] = time.process_time() + 0.3
        return contextlib.nullcontext()

    arms = {"control": Intervention(), "slow": Intervention(hooks=begin, regulariser=Regulariser(0.0, slow))}
    spent = interleaved({n: Pass(model, batch, a) for n, a in arms.items()}, 2)
    assert min(spent["slow"].work) >= 0.3 > max(spent["control"].work)
    assert time_ratio(spent["slow"], spent["control"]).low > 1


def test_on_a_cpu_waiting_is_no_work(opened, batch):
    """What another process takes of the machine is not the arm's."""
    import time

    def waiting(model):
        time.sleep(0.5)
        return contextlib.nullcontext()

    spent = interleaved({"control": Pass(opened("llama").model, batch, Intervention(hooks=waiting))}, 2)["control"]
    assert min(spent.seconds) > 0.5 > max(spent.work)


def test_the_cost_of_a_treatment_is_measured_so_too(opened, batch):
    model = opened("llama").model
    acts = {"control": Intervention(), "treated": Intervention(DispersionConfig(0.1))}
    overhead = overhead_of(interleaved({name: Pass(model, batch, act) for name, act in acts.items()}))
    assert overhead.time_ratio > 0 and overhead.memory_ratio > 0 and overhead.rounds == 3
    assert overhead.time_range[0] <= overhead.time_ratio <= overhead.time_range[1], "the noise over rounds"


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(tiny, batch):
    """A vocabulary larger by 200,000 rows of 32: weights, gradients and two moments of them, of input and head."""
    added = 200_000
    larger = ArmSpec("larger-vocab", "larger-vocab")
    found = peak_bytes(
        str(tiny("llama")), ModelOptions(device="cpu"), Plan(), [(CONTROL, 0, batch), (larger, added, batch)]
    )
    assert all(isinstance(peak, int) for peak in found.values()), found
    least = 2 * added * 32 * 4 * 3.5
    assert found["larger-vocab"] - found["control"] > least
    assert 5e7 < found["control"] < 2e9


def test_an_arm_that_cannot_be_measured_has_a_reason(tmp_path, batch):
    found = peak_bytes(str(tmp_path / "none"), ModelOptions(device="cpu"), Plan(), [(CONTROL, 0, batch)])
    assert "no such file" in found["control"]


def test_the_measuring_process_runs_no_code_of_the_working_directory(tiny, batch, tmp_path, monkeypatch):
    """`-m` puts the working directory first on the path: a repository's own torch.py would be run."""
    for name in ("torch", "transformers", "json", "condense"):
        (tmp_path / f"{name}.py").write_text('open("PWNED", "w").write("x")\nraise SystemExit\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [part for part in sys.path if part])
    found = peak_bytes(str(tiny("llama")), ModelOptions(device="cpu"), Plan(), [(CONTROL, 0, batch)])
    assert isinstance(found["control"], int), found
    assert not (tmp_path / "PWNED").exists()
