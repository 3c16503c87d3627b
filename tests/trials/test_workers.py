"""Runs of a trial in workers of Ray: the same numbers, a worker that dies, a signal; and how much there is room for."""

import json
import os
import pickle
import pydoc_data.topics
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from condense.cli.app import app
from condense.errors import RunError, UnavailableError, UsageError
from condense.lock import LOCK, forget_lost, locked
from condense.records.jobs import JobOptions
from condense.records.options import ModelOptions
from condense.records.plans import Plan, TrialPlan
from condense.records.trial import ArmRun, Trial
from condense.texts import documents
from condense.texts.documents import Document, Kept
from condense.training.arm_names import parse_arms
from condense.training.loop import InterruptedRunError
from condense.training.rows import Rows
from condense.trials import pool, ray_session, runs
from condense.trials.arm_run import Watch
from condense.trials.folder import failure
from condense.trials.ray_session import Room, connected, fitted, refuse_without_ray, room_for, seconds_of
from condense.trials.run import trial
from condense.version import __version__

TEXTS = [text for _, text in sorted(pydoc_data.topics.topics.items())][:40]
# workers tell how far they are once a second: a run lasts long enough to be met in training, on a fast machine too
TRAINING = Plan(
    max_steps=400, max_length=64, per_device_train_batch_size=4, learning_rate=1e-3, num_texts=8, save_steps=20
)
TWO = JobOptions(jobs=2)
CPU = ModelOptions(device="cpu")


# --- how much there is room for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "room"),
    [
        (JobOptions(jobs=4), Room(4, 2, 0.0)),
        (JobOptions(ray="local"), Room(8, 1, 0.0)),
        (JobOptions(ray="local", cpus_per_run=3), Room(2, 3, 0.0)),
        (JobOptions(jobs=3, cpus_per_run=4), Room(3, 4, 0.0, ("3 runs of 4 threads at once share 8 cores",))),
        (JobOptions(jobs=4, gpus_per_run=0.5), Room(4, 2, 0.5)),
        (JobOptions(ray="local", gpus_per_run=1), Room(2, 1, 1)),
        (JobOptions(jobs=40, cpus_per_run=1, gpus_per_run=0.3), Room(6, 1, 0.3)),
    ],
)
def test_a_machine_of_8_cores_and_2_gpus(jobs: JobOptions, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert room_for(jobs, CPU, 40) == room
    assert room_for(jobs, CPU, 1).jobs == 1, "never more workers than runs"


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--gpus-per-run is 4, and this machine has 2"):
        room_for(JobOptions(jobs=2, gpus_per_run=4), CPU, 4)


def test_what_does_not_fit_in_memory_is_fewer_runs_a_note_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "memory_of_machine", lambda: (24 * 10**9, 18 * 10**9))
    four = Room(4, 1, 0.0)
    assert fitted(four, JobOptions(jobs=4), 4 * 10**9) == four
    lowered = fitted(four, JobOptions(ray="local"), 5 * 10**9)
    assert lowered.jobs == 3 and "more do not fit in 18 GB" in lowered.notes[0]
    warned = fitted(four, JobOptions(jobs=4), 5 * 10**9)
    assert warned.jobs == 4 and "20 GB of memory, and 18 GB are free: --jobs 3 fits" in warned.notes[0]
    with pytest.raises(UsageError, match="28 GB of memory, and this machine has 24 GB") as refused:
        fitted(four, JobOptions(jobs=4), 7 * 10**9)
    assert "--jobs 2" in refused.value.hint
    assert fitted(four, JobOptions(ray="host:1"), 7 * 10**9) == four, "a cluster's memory is not this machine's"


def test_time_is_shared_out() -> None:
    assert seconds_of([3.0, 1.0, 1.0, 1.0], 2) == 3.0 and seconds_of([1.0] * 5, 2) == 3.0
    assert seconds_of([1.0, 2.0], 1) == 3.0 and seconds_of([], 4) == 0.0


# --- what is asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus_per_run": 1.0}, "--gpus-per-run is for runs in workers"),
        ({"jobs": 1, "cpus_per_run": 2}, "--cpus-per-run is for runs in workers"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"jobs": 2, "cpus_per_run": 0}, "--cpus-per-run is 0"),
        ({"jobs": 2, "gpus_per_run": 1.5}, "--gpus-per-run is 1.5"),
        ({"jobs": 2, "gpus_per_run": -1.0}, "--gpus-per-run is -1"),
        ({"jobs": 2, "gpus_per_run": float("nan")}, "--gpus-per-run is nan"),
        ({"ray": ""}, "--ray is empty"),
    ],
)
def test_options_that_mean_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        JobOptions(**fields)


@pytest.mark.parametrize(("device", "gpus"), [("cuda:1", None), ("cuda", 0.0)])
def test_a_device_that_no_worker_has_is_refused(device: str, gpus: float | None) -> None:
    with pytest.raises(UsageError, match=f"--device {device}"):
        refuse_without_ray(JobOptions(jobs=2, gpus_per_run=gpus), ModelOptions(device=device))


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (("--ray", "m"), "local"),
        (("m", "--ray"), "local"),
        (("m", "--ray", "--jobs", "2"), "local"),
        (("--ray", "auto", "m"), "auto"),
        (("m", "--ray", "10.0.0.1:6379"), "10.0.0.1:6379"),
        (("--ray=head:1", "m"), "head:1"),
        (("--ray", "ray://head:10001", "m"), "ray://head:10001"),
    ],
)
def test_ray_takes_an_address_or_stands_alone(
    words: tuple[str, ...], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "condense.trials.run.trial", lambda model, *given, jobs, **more: seen.update(m=model, jobs=jobs)
    )
    done = CliRunner().invoke(app, ["--quiet", "trial", *words, "-o", "out", "--text", __file__])
    assert done.exit_code == 0, done.output
    assert seen["m"] == "m" and seen["jobs"].ray == address


def test_without_ray_the_extra_is_named(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = ray_session.importlib.util.find_spec
    monkeypatch.setattr(ray_session.importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    out = tmp_path / "out"
    words = [
        "--quiet",
        "trial",
        str(tiny("llama")),
        "-o",
        str(out),
        "--text",
        __file__,
        "--jobs",
        "2",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3 and "condense-lm[ray]" in done.output and not out.exists()


def test_a_dry_run_shares_out_time_and_tells_the_memory_of_a_run(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    out, words = (
        tmp_path / "out",
        ("--arms", "dispersion=3", "--max-steps", "9", "--max-length", "64", "--num-texts", "8"),
    )
    done = CliRunner().invoke(
        app,
        ["trial", str(tiny("llama")), "-o", str(out), "--text", str(tmp_path / "train.jsonl"), *words]
        + ["--num-texts", "8", "--device", "cpu", "--jobs", "2", "--cpus-per-run", "1", "--dry-run"],
    )
    assert done.exit_code == 0 and not out.exists(), done.output
    assert "memory and 1 thread a run, 2 runs at once" in " ".join(done.output.split())


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no-such-host.invalid:{}"])
def test_a_cluster_that_does_not_answer_is_told_before_anything_is_loaded(address: str) -> None:
    with socket.socket() as taken:  # bound, so that nobody else is there, and not listening
        taken.bind(("127.0.0.1", 0))
        named = address.format(taken.getsockname()[1])
        with pytest.raises(UnavailableError, match=f"no Ray cluster at {named}") as refused:
            trial("none", TEXTS, "none", TrialPlan(), jobs=JobOptions(ray=named))
    assert "ray start --head" in refused.value.hint and not Path("none").exists()


# --- what workers get, and what they leave ---------------------------------------------------------------


def test_rows_and_documents_arrive_in_a_worker_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(
        [{"input_ids": torch.arange(4, dtype=torch.int32) + i, "labels": torch.ones(4)} for i in range(3)], 4, True
    )
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(rows, protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(buffer.raw()) for buffer in buffers]
    again = pickle.loads(data, buffers=frozen)
    assert len(frozen) == 2, "one shared array for each part of the rows"
    assert len(again) == 3 and again.length == 4 and again.packed and again.notes == rows.notes
    assert all(torch.equal(again[i][key], rows[i][key]) for i in range(3) for key in rows[0])
    assert len(pickle.loads(pickle.dumps(Rows([], 4, False)))) == 0
    monkeypatch.setattr(documents, "_IN_MEMORY", 10)
    kept = Kept()
    for number in range(5):
        kept.append(Document(f"d{number}", "text " * number))
    copy, chosen = pickle.loads(pickle.dumps((kept, kept.chosen([3, 1]))))
    assert list(copy) == list(kept) and [document.name for document in chosen] == ["d3", "d1"]


def test_a_worker_that_sees_another_folder_or_version_refuses(tmp_path: Path) -> None:
    shared = tmp_path / "arms" / "fingerprint.json"
    site = pool._Site(__version__, str(tmp_path), shared, "{}", 1)
    assert "is not there on" in (pool._refusal(site) or ("",))[0]
    shared.parent.mkdir()
    shared.write_text("{}", encoding="utf-8")
    assert pool._refusal(site) is None
    assert "is installed on" in (pool._refusal(replace(site, version="0.0.1")) or ("",))[0]


def test_the_lock_of_a_dead_node_is_forgotten_and_no_other(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "a-node-that-died", "start": 0}), encoding="utf-8")
    with pytest.raises(UsageError, match="another host"), locked(tmp_path):
        pass
    forget_lost(tmp_path)
    with locked(tmp_path):
        forget_lost(tmp_path)
        assert (tmp_path / LOCK).exists()
    forget_lost(tmp_path / "missing")


def test_a_run_that_a_worker_still_holds_is_not_touched(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The process of the trial was killed, and its worker lives for a moment."""
    run = tmp_path / "out" / "arms" / "control" / "seed-0"
    plan = TrialPlan(parse_arms("control", ()), 1, replace(TRAINING, max_steps=1))
    with locked(run):
        (run / "begun.json").write_text("{}", encoding="utf-8")
        (tmp_path / "out" / ".condense.json").write_text(
            json.dumps({"schema": "condense.folder/1", "kind": "trial", "files": {}}), encoding="utf-8"
        )
        with pytest.raises(UsageError, match=rf"{run} is in use by process {os.getpid()}"):
            trial(tiny("llama"), TEXTS, tmp_path / "out", plan, device="cpu", force=True)
        assert (run / "begun.json").exists()


# --- a local Ray of two workers --------------------------------------------------------------------------

in_ray = pytest.mark.filterwarnings("default")  # Ray's own warnings are not condense's


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    """A local Ray of two workers for all tests: a trial uses what its process is connected to."""
    with connected(TWO, Room(2, 1, 0.0)):
        yield


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> TrialPlan:
    monkeypatch.setattr(runs, "step_costs", lambda *given, **more: {})
    return TrialPlan(parse_arms("dispersion=3", ()), 1, TRAINING)


@pytest.fixture(scope="module")
def alone(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The trial in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "step_costs", lambda *given, **more: {})
        plan = TrialPlan(parse_arms("dispersion=3", ()), 1, TRAINING)
        made = trial(tiny("llama"), TEXTS, tmp_path_factory.mktemp("alone") / "out", plan, device="cpu")
    assert made is not None
    return made


def numbers(made: Trial | None) -> list[Any]:
    """All that was measured: of the model as it came, of every run, and the effects."""
    assert made is not None

    def timeless(run: ArmRun) -> ArmRun:
        return replace(run, seconds=0.0, learning=replace(run.learning, seconds=()))

    arms = [[(timeless(run), arm.effect) for run in arm.runs] for arm in made.arms]
    return [made.before, [arm.status for arm in made.arms], arms]


def in_training(states: Any, arm: str) -> bool:
    return any(state.arm == arm and state.phase == "training" and state.done >= 6 for state in states)


@pytest.mark.slow
@in_ray
@pytest.mark.usefixtures("workers")
def test_a_worker_is_killed_and_the_numbers_are_those_of_one_process(
    tiny: Callable[[str], Path], alone: Trial, plan: TrialPlan, tmp_path: Path
) -> None:
    out, killed, notes, seen = tmp_path / "out", [], [], set()

    def watch(states: Any, done: int, total: int) -> None:
        seen.update(state.arm for state in states)
        if not killed and in_training(states, "dispersion=3"):
            killed.append(json.loads((out / "arms/dispersion=3/seed-0" / LOCK).read_text(encoding="utf-8"))["pid"])
            os.kill(killed[0], signal.SIGKILL)

    watched = Watch(on_workers=watch, on_note=notes.append)
    made = trial(tiny("llama"), TEXTS, out, plan, device="cpu", jobs=TWO, watch=watched)
    assert killed and notes == ["dispersion=3, seed 0: its worker died; it is begun again, 1 of 3 times"]
    assert seen == {"control", "dispersion=3"}
    assert numbers(made) == numbers(alone), "bit for bit"
    assert made is not None and (made.schedule.jobs, made.schedule.threads) == (2, 1)
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert LOCK not in left and "progress.json" not in left
    assert Trial.from_json(out / "trial.json") == made


@pytest.mark.slow
@in_ray
@pytest.mark.usefixtures("workers")
def test_a_run_that_fails_is_not_begun_again_and_the_others_go_on(
    tiny: Callable[[str], Path], plan: TrialPlan, tmp_path: Path
) -> None:
    notes: list[str] = []
    plan = replace(plan, arms=parse_arms("dispersion=1e38,larger-vocab", ()), training=replace(TRAINING, max_steps=2))
    made = trial(
        tiny("llama"), TEXTS, tmp_path / "out", plan, device="cpu", jobs=TWO, watch=Watch(on_note=notes.append)
    )
    assert made is not None and [arm.status for arm in made.arms] == ["done", "failed", "done"]
    reason = failure(tmp_path / "out/arms/dispersion=1e+38/seed-0")
    assert reason and "non-finite gradient norm" in reason
    assert notes == [f"dispersion=1e+38, seed 0: {reason}; going on with the others"], "once"


@pytest.mark.slow
@in_ray
@pytest.mark.usefixtures("workers")
def test_after_a_signal_the_workers_have_saved_and_the_trial_resumes(
    tiny: Callable[[str], Path], alone: Trial, plan: TrialPlan, tmp_path: Path
) -> None:
    out, sent = tmp_path / "out", []

    def watch(states: Any, done: int, total: int) -> None:
        if not sent and in_training(states, "dispersion=3"):
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    unsaved = replace(plan, training=replace(TRAINING, save_steps=None))
    with pytest.raises(InterruptedRunError) as stopped:
        trial(tiny("llama"), TEXTS, out, unsaved, device="cpu", jobs=TWO, watch=Watch(on_workers=watch))
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert list(out.glob("arms/dispersion=3/seed-0/checkpoint-*")) and not list(out.rglob(LOCK))
    again = trial(tiny("llama"), TEXTS, out, unsaved, device="cpu", resume=True)
    theirs, mine = ([run.weights_sha256 for arm in made.arms for run in arm.runs] for made in (alone, again) if made)
    assert mine == theirs, "resumed without workers, to the weights of one process"


class Silent:
    """A Ray whose workers die at once."""

    def __init__(self) -> None:
        self.asked = 0

    def put(self, value: Any) -> Any:
        return value

    def remote(self, *given: Any) -> Any:
        self.asked += len(given) > 1
        return self if len(given) == 1 else object()

    def options(self, **more: Any) -> Any:
        return self

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return refs[:1], refs[1:]

    def get(self, ref: Any) -> Any:
        from ray.exceptions import WorkerCrashedError

        raise WorkerCrashedError


@pytest.mark.slow
@in_ray
def test_a_run_that_is_lost_four_times_has_failed(
    tiny: Callable[[str], Path], plan: TrialPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    lost = Silent()

    def run_all(inputs: Any, texts: Any, shared: Any, jobs: Any, room: Any, watch: Any) -> None:
        site = pool._Site(__version__, "", shared, "", 1)
        pool._Runs(lost, inputs, texts, site, jobs, room, watch, []).finish()

    monkeypatch.setattr(runs, "run_all", run_all)
    with pytest.raises(RunError, match="the control arm failed under every seed: its worker died, for the 4th time"):
        trial(tiny("llama"), TEXTS, tmp_path / "out", plan, device="cpu", jobs=TWO, watch=Watch(on_note=notes.append))
    assert lost.asked == 8, "two runs, each begun four times"
    of_control = [note for note in notes if note.startswith("control")]
    assert len(of_control) == 4 and "3 of 3 times" in of_control[2] and "going on with the others" in of_control[3]


@pytest.mark.slow
@in_ray
@pytest.mark.usefixtures("workers")
def test_a_stranger_cannot_use_the_local_ray() -> None:
    """It listens on the network; what comes without its secret is turned away."""
    import grpc
    import ray
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc as services

    address = ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        services.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
