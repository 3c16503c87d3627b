"""Training over several processes: a step has the rows and the weights of one process, and the first one leads."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from condense.cli.app import app
from condense.cli.console import MANNER, Terminated, explain
from condense.cli.measure import together_if
from condense.diagnosis import distributed
from condense.diagnosis.distributed import Ranks, failing_together, have_all_failed, is_alone
from condense.errors import CondenseError, RunError, UnavailableError, UsageError
from condense.records.options import ModelOptions
from condense.records.plans import Plan
from condense.records.treatment import Treatment
from condense.training.arm_trainer import StepBatches, filled, skeleton_of
from condense.training.loop import InterruptedRunError
from condense.training.rows import Rows
from condense.treatment import processes
from condense.treatment.processes import Team, sharding
from condense.treatment.run import CONTROL
from condense.trials.arm_run import ArmRunInput, ArmTraining
from tests.diagnosis.test_distributed import TORCHRUN

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


# --- the rows of a step -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "per_step", "batch", "size"), [(23, 8, 2, 2), (23, 5, 1, 2), (9, 7, 1, 4), (6, 4, 3, 3)]
)
def test_the_rows_of_a_step_do_not_depend_on_the_processes(rows: int, per_step: int, batch: int, size: int) -> None:
    """Every row of a step once on one of the processes, which all take as many micro-batches, none above the batch."""
    alone = StepBatches(rows, per_step, per_step, Ranks(), 5, spare=True)
    several = [StepBatches(rows, per_step, batch, Ranks(rank, size), 5, spare=True) for rank in range(size)]
    for epoch in (0, 1):
        for batches in (alone, *several):
            batches.set_epoch(epoch)
        steps, turns = list(alone), [list(batches) for batches in several]
        assert sorted(row for step in steps for row in step) == list(range(epoch * rows, (epoch + 1) * rows))
        assert {len(own) for own in turns} == {len(several[0])} == {len(batches) for batches in several}
        start = 0
        for step in steps:
            count = -(-len(step) // (batch * size))
            chosen = [own[start : start + count] for own in turns]
            start += count
            assert all(1 <= len(micro) <= batch for own in chosen for micro in own)
            assert sorted(row for own in chosen for micro in own for row in micro if row >= 0) == sorted(step)


def test_the_order_is_that_of_trainer(tmp_path: Path) -> None:
    """What Trainer takes in one process, pass for pass, so that a run can be resumed with other processes."""
    from accelerate.data_loader import SeedableRandomSampler

    theirs = SeedableRandomSampler(range(11), data_seed=4)
    ours = StepBatches(11, 4, 4, Ranks(), 4, spare=True)
    for epoch in (0, 1, 2):
        theirs.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert [row - 11 * epoch for step in ours for row in step] == list(theirs)


def test_without_a_spare_row_one_of_the_step_is_taken_again() -> None:
    """Where the loss of a row without labels would be no number."""
    second = list(StepBatches(3, 3, 1, Ranks(1, 2), 0, spare=False))
    assert all(len(micro) == 1 and 0 <= micro[0] < 3 for micro in second)


def test_a_skeleton_takes_gathered_weights(opened: Callable[[str], Any]) -> None:
    model = opened("gpt2").model  # its head is tied to its embeddings
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    whole = filled(skeleton_of(model), weights)
    assert whole.lm_head.weight is whole.transformer.wte.weight
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    with pytest.raises(RunError, match="were not gathered"):
        filled(skeleton_of(model), {})


# --- who leads and who follows --------------------------------------------------------------------------------


class Wire(Ranks):
    """The first process as the second one hears it: what is said is kept, and heard in that order."""

    said: list[Any]

    def told(self, value: Any, group: Any = None) -> Any:
        if self.is_first:
            self.said.append(value)
            return value
        return self.said.pop(0)


def wired(monkeypatch: pytest.MonkeyPatch) -> tuple[Team, Team]:
    monkeypatch.setattr("torch.distributed.new_group", lambda **more: None)
    said: list[Any] = []
    teams = []
    for rank in (0, 1):
        wire = Wire(rank, 2)
        object.__setattr__(wire, "said", said)
        teams.append(Team(wire))
    return teams[0], teams[1]


def test_the_others_get_the_result_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = wired(monkeypatch)
    assert first.lead(lambda: "done") == second.follow(ModelOptions()) == "done"


@pytest.mark.parametrize(
    "error",
    [UnavailableError("no model", "give one"), KeyboardInterrupt(), Terminated(), InterruptedRunError(143)],
)
def test_the_others_end_with_the_error_of_the_first_and_keep_quiet(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    first, second = wired(monkeypatch)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as own:
        first.lead(fail)
    with pytest.raises(type(error)) as heard:
        second.follow(ModelOptions())
    if isinstance(error, CondenseError):
        assert heard.value.shared and not own.value.shared and heard.value.exit_code == 3
    if isinstance(error, InterruptedRunError):
        assert heard.value.code == 143


class Store(dict[str, str]):
    """The store of a process group."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def set(self, key: str, value: str) -> None:
        self[key] = value


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(Store, "get", dict.__getitem__)
    monkeypatch.setattr(distributed, "_store", lambda: made)
    monkeypatch.setattr(distributed, "_LISTENING", 0.1)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    return made


def failing(rank: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> CondenseError:
    monkeypatch.setattr(distributed, "joined", lambda: Ranks(rank, 2))
    with pytest.raises(CondenseError) as caught, failing_together("run"):
        raise error
    return caught.value


LOST = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


def test_the_failure_of_one_is_told_by_it_and_shared_by_the_other(store: Store, monkeypatch: Any) -> None:
    own = failing(1, UnavailableError("disk", "free"), monkeypatch)
    assert is_alone("run", Ranks(1, 2)) and not is_alone("run", Ranks(0, 2)) and not is_alone("other", Ranks(1, 2))
    other = failing(0, LOST, monkeypatch)
    assert not own.shared and other.shared
    assert (str(other), other.hint, other.exit_code) == ("disk", "free", 3)


def test_the_failure_of_all_is_told_by_the_first_and_nobody_is_lost(store: Store, monkeypatch: Any) -> None:
    first, second = (failing(rank, RunError("not finite"), monkeypatch) for rank in (0, 1))
    assert not first.shared and second.shared and second.exit_code == 4
    assert have_all_failed("run", Ranks(0, 2)) and not is_alone("run", Ranks(0, 2))


def test_a_comparison_that_fails_in_all_is_told_by_the_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchrun … condense compare nothing-there` said so once for every process."""
    monkeypatch.setattr(distributed, "together", lambda ranks: contextlib.nullcontext())
    told = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "joined", lambda rank=rank: Ranks(rank, 2))
        with pytest.raises(CondenseError) as caught, together_if(Ranks(rank, 2)):
            raise UnavailableError("no such file", "give one")
        told.append((caught.value.shared, caught.value.exit_code))
    assert told == [(False, 3), (True, 3)]


def test_a_process_that_keeps_quiet_lets_the_first_speak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun ends the first as soon as another has exited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    error = UnavailableError("no such file", "give one")
    error.shared = True
    for rank, lines in ((0, 2), (1, 0)):
        monkeypatch.setattr(MANNER, "rank", rank)
        assert explain(error) == 3 and capsys.readouterr().err.count("\n") == lines
    assert len(waited) == 1 and waited[0] >= 0.5


def test_ctrl_c_in_all_stays_that(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It became a failure of exit code 4 in all but the first."""
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "joined", lambda rank=rank: Ranks(rank, 2))
        with pytest.raises(KeyboardInterrupt), failing_together("run"):
            raise KeyboardInterrupt


def test_a_process_that_is_lost_without_a_word_is_said(store: Store, monkeypatch: Any) -> None:
    assert str(failing(0, LOST, monkeypatch)) == "another process of this run is gone"


def training(folder: str) -> ArmTraining:
    run = ArmRunInput(CONTROL, 0, Plan(), "m", ModelOptions(token="secret"), Path(folder), "f", "m")
    return ArmTraining(run, Rows([], 8, packed=True), None, False)  # type: ignore[arg-type]


def test_after_a_failure_of_all_the_next_run_is_trained_and_after_that_of_one_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dose that diverges ends no search; a process that failed alone is never waited for."""
    first, second = wired(monkeypatch)
    trained: list[str] = []

    def train(task: ArmTraining, options: ModelOptions) -> None:
        trained.append(str(task.run.folder))
        assert task.run.options.token is None
        if str(task.run.folder) == "diverges":
            failing(0, RunError("not finite"), monkeypatch)
            raise RunError("not finite")

    monkeypatch.setattr(distributed, "joined", lambda: Ranks(1, 2))
    monkeypatch.setattr(processes, "_train", train)
    monkeypatch.setattr(processes, "failing_together", lambda name: failing_together("run"))
    monkeypatch.setattr(processes, "have_all_failed", lambda name, ranks: have_all_failed("run", ranks))

    def work() -> str:
        first.tell(training("diverges"))
        first.tell(training("next"))
        return "done"

    assert first.lead(work) == second.follow(ModelOptions()) == "done" and trained == ["diverges", "next"]
    store[f"{distributed._FAILURE}next/0"] = json.dumps(["out of memory", "", 4])
    with pytest.raises(RunError, match="the others are gone"):
        first.tell(training("third"))


def test_sharding_needs_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert sharding(Plan(fsdp=True), Ranks(0, 2)).fsdp and not sharding(Plan(), Ranks(0, 2)).fsdp
    with pytest.raises(UsageError, match="1 process runs"):
        sharding(Plan(fsdp=True), Ranks())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding(Plan(), Ranks(0, 2)).fsdp and os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UsageError, match="FSDP 1"):
        sharding(Plan(), Ranks(0, 2))


# --- from end to end, under torchrun -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`treat` of a tiny model without an output: steps of 5 rows, which 2 processes cannot halve."""
    words = "the cone of a small model opens when its tokens are pushed apart while it learns to read and write".split()
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("texts")
    for index in range(30):
        order = torch.randint(0, len(words), (260,), generator=generator)
        (folder / f"d{index}.txt").write_text(" ".join(words[i] for i in order) + f" {index}")
    options = "--coefficient 2 --max-steps 8 --max-length 64 --learning-rate 5e-3 --num-texts 8 --warmup 0 --device cpu"
    return ["treat", str(tiny("llama")), "--text", str(folder), *options.split()]


def under_torchrun(*arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", str(processes), "-m", "condense", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alone(*arguments: str) -> Result:
    return CliRunner(env={"RANK": None, "WORLD_SIZE": None}).invoke(app, list(arguments))


def agree(one: Path, two: Path) -> Treatment:
    """The curves agree to 1e-5, the weights to 1e-4 of an Adam run, the schedules but for the processes."""
    first, second = (Treatment.from_json(out / "condense.json") for out in (one, two))
    for name in ("control", "treated"):
        for key in ("ce_loss", "penalty", "gradient_norm", "learning_rate"):
            mine, theirs = (getattr(run.arms[name].curve, key) for run in (first, second))
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5), (name, key)
    mine, theirs = (load_file(out / "model.safetensors") for out in (one, two))
    assert mine.keys() == theirs.keys()
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-4
    same = {"processes": 0, "batch_size": 0, "accumulation": 0, "seconds": 0, "memory_bytes": 0, "disk_bytes": 0}
    assert replace(first.schedule, **same) == replace(second.schedule, **same)
    return second


@pytest.mark.slow
def test_two_processes_treat_as_one_does(arguments: list[str], tmp_path: Path) -> None:
    """Replicated and sharded: the curves and the weights of one process, and one process alone speaks."""
    one = tmp_path / "one"
    run = alone(*arguments, "-o", str(one))
    assert run.exit_code == 0, run.stderr
    for name, more in (("ddp", ()), ("fsdp", ("--fsdp", "--save-steps", "3", "--seeds", "1"))):
        out = tmp_path / name
        process = under_torchrun(*arguments, *more, "--expect-world", "2", "-o", str(out))
        shown, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        treatment = agree(one, out)
        assert treatment.schedule.processes == 2 and treatment.plan.fsdp is (name == "fsdp")
        assert errors.count("2 processes train together") == errors.count("wrote ") == shown.count("next: ") == 1
        assert "on each of 2 processes" in errors
        assert not out.with_name(f"{name}.work").exists()


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed_by_one(arguments: list[str], tmp_path: Path) -> None:
    """Ctrl-C at torchrun: all stop after one step with a checkpoint; the batch stays that of two processes."""
    more = ["--max-steps", "60", "--save-steps", "4", "--batch-size", "2", "--gradient-accumulation-steps"]
    out, straight = tmp_path / "out", tmp_path / "straight"
    process = under_torchrun(*arguments, *more, "2", "-o", str(out))
    work = tmp_path / "out.work"
    while process.poll() is None and not list(work.glob("control/seed-0/checkpoint-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert errors.count("interrupted; what was done is in") == 1, errors
    assert "condense: " not in errors and not out.exists()
    assert list(work.glob("control/seed-0/checkpoint-*/condense_complete.json"))
    resumed = alone(*arguments, *more, "2", "-o", str(out), "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert alone(*arguments, *more, "4", "-o", str(straight)).exit_code == 0
    treatment = agree(straight, out)
    assert treatment.schedule.tokens_per_step == 8 * 64 and treatment.schedule.processes == 1


@pytest.mark.slow
def test_what_fails_is_said_once(arguments: list[str], tmp_path: Path) -> None:
    """A failure of the first before training, one of all in training: one line, and the exit code of the failure."""
    out = str(tmp_path / "out")
    for more, line, code in (
        (("--text", str(tmp_path / "nothing")), "condense: no such text", 3),
        (("--learning-rate", "1e30", "--max-grad-norm", "1e30"), "condense: the gradient of", 4),
    ):
        process = under_torchrun(*arguments, *more, "-o", out)
        _, errors = process.communicate(timeout=100)
        assert process.returncode != 0
        assert errors.count("condense: ") == errors.count(line) == 1, errors
        assert f"exitcode  : {code} " in errors
    refused = CliRunner(env={"RANK": "0", "WORLD_SIZE": "2"}).invoke(app, ["trial", *arguments[1:4], "-o", out])
    assert refused.exit_code == 2 and "--jobs N" in refused.stderr
