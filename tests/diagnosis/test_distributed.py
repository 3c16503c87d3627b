"""Texts spread over processes give what one process gives; a failure of one is heard by all."""

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from typer.testing import CliRunner, Result

from condense.cli.app import app
from condense.diagnosis import distributed as ranks
from condense.diagnosis.distributed import ALONE, Ranks, device_of, expect, ranks_of
from condense.diagnosis.forward import TextReading
from condense.errors import RunError, UnavailableError, UsageError
from condense.models.checkpoint import load
from tests.diagnosis.test_resume import arguments_for, lasting, measure

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]


def torchrun(*arguments: str, processes: int = 2, **more: str) -> subprocess.CompletedProcess[str]:
    """`condense ...` under torchrun, on the loopback only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--nproc_per_node", str(processes), "--master_addr", "127.0.0.1", "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore", **more}
    return subprocess.run(
        [*TORCHRUN, *where, "-m", "condense", *arguments],
        capture_output=True, text=True, timeout=280, env=environment,
    )  # fmt: skip


def alone(*arguments: str) -> Result:
    """`condense ...` in this process."""
    return CliRunner(env={"RANK": None, "WORLD_SIZE": None}).invoke(app, list(arguments))


def numbers(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from numbers(value, f"{path}.{key}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from numbers(value, f"{path}[{index}]")
    else:
        yield path, data


def agree(one: Path, two: Path) -> None:
    """Equal to 1e-12 but for the time, the command and the number of processes."""
    first, second = (dict(numbers(json.loads(path.read_text()))) for path in (one, two))
    assert set(first) == set(second)
    for path, value in first.items():
        if any(part in path for part in (".created", ".timing", ".command", ".world_size")):
            continue
        if isinstance(value, float):
            assert second[path] == pytest.approx(value, rel=1e-12, abs=1e-12), path
        else:
            assert second[path] == value, path


@pytest.mark.parametrize(
    ("name", "more"),
    [("gpt2", ()), pytest.param("bart", ("--batch-size", "2", "--random-twin"), marks=pytest.mark.slow)],
)
def test_two_processes_give_what_one_gives(
    tiny: Callable[[str], Path], tmp_path: Path, name: str, more: tuple[str, ...]
) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    # seven texts: the second process has one fewer
    run = arguments_for(tiny(name), *more, "--num-texts", "7")
    single = alone(*run, "--json", str(one))
    assert single.exit_code == 0, single.stderr
    done = torchrun(*run, "--json", str(two), "--expect-world", "2", "--refresh")
    assert done.returncode == 0, done.stderr
    assert "2 processes measure together" in done.stderr
    assert done.stdout == single.stdout and done.stderr.count("wrote") == 1
    assert json.loads(two.read_text())["environment"]["world_size"] == 2
    agree(one, two)


def test_two_processes_use_what_one_kept(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The first of them looks; the other follows and measures nothing."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    run = arguments_for(tiny("gpt2"))
    single = alone(*run, "--json", str(one))
    done = torchrun(*run, "--json", str(two))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("used the diagnosis measured on") == 1 and done.stdout == single.stdout
    first, second = (json.loads(path.read_text()) for path in (one, two))
    assert second["created"] == first["created"] and second["environment"]["world_size"] == 1


def test_another_number_of_processes_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = alone(*arguments_for(tiny("gpt2"), "--json", str(out), "--expect-world", "2"))
    assert done.exit_code == 2 and not out.exists()
    assert "1 processes run, --expect-world is 2" in done.stderr and "torchrun" in done.stderr
    assert done.stdout == ""


def test_a_failure_of_all_is_said_once(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    done = torchrun(*arguments_for(tiny("gpt2"), "--expect-world", "3"))
    assert done.returncode != 0
    assert done.stderr.count("2 processes run, --expect-world is 3") == 1


# --- the parts --------------------------------------------------------------------------------------


def test_texts_are_dealt_out_in_turn() -> None:
    assert [Ranks(r, 3).texts(7) for r in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert ALONE.texts(3) == [0, 1, 2] and ALONE.is_first and not Ranks(1, 2).is_first


def test_the_launcher_is_read_from_the_environment() -> None:
    assert ranks_of({}) == ALONE
    assert ranks_of({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    assert ranks_of({"WORLD_SIZE": "4", "RANK": "3"}) == Ranks(3, 4)
    for wrong in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "two"}, {"RANK": "-1"}):
        with pytest.raises(UsageError, match="torchrun|RANK"):
            ranks_of(wrong)


def test_expected_world() -> None:
    expect(Ranks(0, 2), 2)
    expect(ALONE, None)
    with pytest.raises(UsageError, match="2 processes run, --expect-world is 4") as caught:
        expect(Ranks(1, 2), 4)
    assert caught.value.exit_code == 2 and caught.value.shared


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto", here) == device_of("cuda", here) == "cuda:1"
    assert device_of("cpu", here) == "cpu" and device_of("cuda:0", here) == "cuda:0"
    assert device_of("auto", {}) == "auto"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of("auto", here) == "auto"


def heard(parts: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[TextReading]:
    """What rank 0 of two gathers when the other one sends `parts`, round by round."""
    sent = iter(parts)

    def exchange(into: list[Any], own: Any) -> None:
        into[0], into[1] = own, next(sent)

    monkeypatch.setattr("torch.distributed.all_gather_object", exchange)
    return Ranks(0, 2).gathered((TextReading(index) for index in (0, 2, 4)), 5)


def test_readings_come_in_the_order_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [ranks.encode(TextReading(1)), ranks.encode(TextReading(3)), b""]
    assert [reading.index for reading in heard(others, monkeypatch)] == [0, 1, 2, 3, 4]


def test_a_failure_of_one_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    with pytest.raises(RunError, match="text 3") as caught:
        for reading in heard([ranks.encode(TextReading(1)), RunError("text 3 is odd", "look")], monkeypatch):
            found.append(reading.index)
    assert found == [0, 1] and caught.value.shared and caught.value.hint == "look"


@pytest.mark.parametrize("error", [UnavailableError("no", "do"), ZeroDivisionError("x")])
def test_own_failures_are_sent_to_the_others(error: Exception) -> None:
    def failing() -> Iterator[TextReading]:
        yield TextReading(1)
        raise error

    readings = failing()
    assert isinstance(Ranks(1, 2)._encode_next(readings), bytes)
    sent = Ranks(1, 2)._encode_next(readings)
    assert isinstance(sent, UnavailableError if isinstance(error, UnavailableError) else RunError)
    assert isinstance(sent, RunError) is ("rank 1" in str(sent))


def test_a_lost_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(into: list[Any], own: Any) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    monkeypatch.setattr("torch.distributed.all_gather_object", gone)
    with pytest.raises(RunError, match="another process of this run is gone"):
        list(Ranks(0, 2).gathered(iter([TextReading(0)]), 2))


def test_device_map_auto_gives_the_same(tiny: Callable[[str], Path], opened: Callable[[str], Any]) -> None:
    spread = load(tiny("llama"), device_map="auto")
    assert lasting(measure(spread)) == lasting(measure(opened("llama")))


def test_weights_that_are_offloaded_give_the_same(opened: Callable[[str], Any]) -> None:
    """No weight is where the model is until its module runs: the hooks reduce where the layer lives."""
    checkpoint = opened("llama")
    spread = copy.deepcopy(checkpoint.model)
    cpu_offload(spread, execution_device=torch.device("cpu"))
    assert next(spread.parameters()).device.type == "meta"
    expected, found = (json.loads(lasting(measure(c))) for c in (checkpoint, replace(checkpoint, model=spread)))
    del expected["environment"], found["environment"]
    for (path, a), (_, b) in zip(numbers(expected), numbers(found), strict=True):
        assert a == (pytest.approx(b, rel=1e-5, abs=1e-6) if isinstance(a, float) else b), path
