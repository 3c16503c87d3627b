"""A run that falls goes on where it was and ends with the same bytes; memory that runs out halves the batch."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from condense import geometry
from condense.diagnosis import forward as measuring
from condense.diagnosis.forward import TextReading
from condense.diagnosis.resume import Journal, decode, encode, open_journal, resumed
from condense.diagnosis.run import analyze
from condense.errors import RunError, is_out_of_memory
from condense.files import cache_root
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import Windows, windows

TEXTS, LENGTH = 6, 48


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


def texts_of(checkpoint: Any) -> Windows:
    return windows(checkpoint.tokenizer, num_texts=TEXTS, max_length=LENGTH, positions=checkpoint.positions)


def measure(checkpoint: Any, **more: Any) -> Diagnosis:
    return analyze(checkpoint, texts_of(checkpoint), spectral_tokens=16, **more)


def lasting(diagnosis: Diagnosis) -> str:
    """The JSON without what differs between two runs of the same thing."""
    data = diagnosis.to_dict()
    for part in (data, data.get("twin") or {}):
        part.pop("created", None)
        part.pop("timing", None)
    return json.dumps(data, sort_keys=True)


def records() -> list[Path]:
    return sorted((cache_root() / "journal").glob("*/*.bin"))


class FellError(Exception):
    """The run falls here."""


def falling(after: int) -> Callable[[int, int], None]:
    def on_text(done: int, total: int) -> None:
        if done == after:
            raise FellError

    return on_text


# --- records ----------------------------------------------------------------------------------------


def readings(checkpoint: Any) -> list[TextReading]:
    found: list[TextReading] = []
    original = TextReading.__init__

    def keep(self: TextReading, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        found.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextReading, "__init__", keep)
        measure(checkpoint)
    return found


def same(a: TextReading, b: TextReading) -> bool:
    tensors = ("unit_sum", "contributions", "histogram", "sinks", "repeats", "shared")
    return (
        (a.index, a.score) == (b.index, b.score)
        and all(repr(x.values) == repr(y.values) for x, y in zip(a.sites, b.sites, strict=True))
        and all((repr(x.extra), x.count) == (repr(y.extra), y.count) for x, y in zip(a.sites, b.sites, strict=True))
        and all(
            torch.equal(getattr(x, k), getattr(y, k)) for x, y in zip(a.sites, b.sites, strict=True) for k in tensors
        )
    )


def test_a_record_gives_the_reading_back_exactly(opened: Callable[[str], Any]) -> None:
    for reading in readings(opened("gpt2"))[:2]:
        reading.sites[0].values["top_dimension_share"] = float("nan")
        again = decode(encode(reading))
        assert same(again, reading) and all(site.spectra is None for site in again.sites)
        assert again.sites[0].histogram.dtype == torch.int64 and again.sites[0].unit_sum.dtype == torch.float64


def test_a_torn_or_foreign_record_is_ignored(opened: Callable[[str], Any]) -> None:
    reading = readings(opened("gpt2"))[0]
    book = Journal({"weights": "a"})
    book.write(reading)
    (file,) = records()
    whole = file.read_bytes()
    assert book.read(0) is not None and book.known(3) == {0}
    for bad in (whole[:-1], whole[:40], b"", whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], b"x" * len(whole)):
        file.write_bytes(bad)
        assert book.read(0) is None and book.known(3) == set()
    file.write_bytes(whole)
    file.rename(file.with_name("00000001.bin"))
    assert book.read(1) is None  # it is the record of another text


def test_a_full_disk_stops_the_journal_and_not_the_run(
    opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lasting(measure(opened("gpt2")))

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert lasting(measure(opened("gpt2"), journal=True)) == expected
    assert records() == []


def test_no_key_no_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert open_journal({"weights": None, "windows": "b"}) is None
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "file"))
    assert open_journal({"weights": "a"}) is None


def test_old_journals_are_forgotten() -> None:
    old, new = Journal({"a": "1"}), Journal({"a": "2"})
    long_ago = time.time() - 30 * 86400
    os.utime(old.folder, (long_ago, long_ago))
    Journal({"a": "3"})
    assert not old.folder.exists() and new.folder.exists()


def test_batches_are_those_of_an_uninterrupted_run() -> None:
    asked: list[list[int]] = []

    def read(indices: list[int]) -> Iterator[TextReading]:
        asked.append(indices)
        return (TextReading(index) for index in indices)

    book = Journal({"a": "1"})
    for index in (0, 1, 2, 4, 5):
        book.write(TextReading(index))
    got = [r.index for r in resumed(book, book.known(9), range(9), 2, read)]
    assert got == list(range(9))
    assert asked == [[2, 3], [6, 7, 8]]  # text 2 is read again with its neighbour


# --- runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_a_run_that_fell_ends_with_the_same_bytes(opened: Callable[[str], Any], name: str, batch: int | None) -> None:
    checkpoint, notes, seen = opened(name), [], []
    expected = lasting(measure(checkpoint, batch_size=batch))
    with pytest.raises(FellError):
        measure(checkpoint, batch_size=batch, journal=True, on_text=falling(4))
    assert len(records()) == 4
    resumed_run = measure(
        checkpoint, batch_size=batch, journal=True, on_note=notes.append, on_text=lambda *a: seen.append(a)
    )
    assert lasting(resumed_run) == expected
    assert notes == [f"resuming: 4 of {TEXTS} texts were measured before"]
    assert seen == [(k + 1, TEXTS) for k in range(TEXTS)]
    assert not list((cache_root() / "journal").iterdir())


def test_only_what_is_missing_is_measured_again(opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FellError):
        measure(opened("gpt2"), journal=True, on_text=falling(4))
    read: list[int] = []
    original = measuring._BatchReader.launch

    def counting(self: Any, batch: list[int], before: Any) -> Any:
        read.extend(batch)
        return original(self, batch, before)

    monkeypatch.setattr(measuring._BatchReader, "launch", counting)
    measure(opened("gpt2"), journal=True)
    assert read == [4, 5]


def test_a_damaged_record_is_measured_again(opened: Callable[[str], Any]) -> None:
    expected = lasting(measure(opened("gpt2")))
    with pytest.raises(FellError):
        measure(opened("gpt2"), journal=True, on_text=falling(5))
    records()[1].write_bytes(b"torn")
    notes: list[str] = []
    assert lasting(measure(opened("gpt2"), journal=True, on_note=notes.append)) == expected
    assert notes == [f"resuming: 4 of {TEXTS} texts were measured before"]


def test_the_twin_resumes_too(opened: Callable[[str], Any]) -> None:
    expected = lasting(measure(opened("gpt2"), twin=True))
    fell = falling(2)
    calls: list[int] = []

    def second(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) > TEXTS:
            fell(done, total)

    with pytest.raises(FellError):
        measure(opened("gpt2"), twin=True, journal=True, on_text=second)
    assert len(records()) == TEXTS + 2
    assert lasting(measure(opened("gpt2"), twin=True, journal=True)) == expected


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}])
def test_other_settings_have_another_journal(opened: Callable[[str], Any], change: dict[str, Any]) -> None:
    with pytest.raises(FellError):
        measure(opened("gpt2"), journal=True, on_text=falling(3))
    notes: list[str] = []
    measure(opened("gpt2"), journal=True, on_note=notes.append, **change)
    assert notes == [] and len(records()) == 3


def test_a_model_in_memory_keeps_no_journal(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    with pytest.raises(FellError):
        analyze(checkpoint.model, texts_of(checkpoint), journal=True, on_text=falling(3))
    assert records() == []


# --- processes that are killed ----------------------------------------------------------------------


KILLED = """
    import os, signal, sys
    import condense.diagnosis.run as diagnosis
    from condense.cli.app import app
    original, calls = diagnosis.analyze, []
    def analyze(*args, on_text=None, **more):
        def fall(done, total):
            if done == int(sys.argv[1]):
                os.kill(os.getpid(), int(sys.argv[2]))
            on_text(done, total)
        return original(*args, on_text=fall, **more)
    diagnosis.analyze = analyze
    app(sys.argv[3:], standalone_mode=True)
"""


def command(after: int, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), str(after), str(number), *arguments],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def arguments_for(folder: Path, *more: str) -> tuple[str, ...]:
    return ("analyze", str(folder), "--num-texts", str(TEXTS), "--max-length", str(LENGTH), "--device", "cpu", *more)


@pytest.mark.slow
def test_a_killed_run_resumes_and_leaves_no_bit_behind(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    assert command(99, 9, *arguments_for(tiny("gpt2"), "--json", str(whole), "--no-cache")).returncode == 0
    killed = command(4, signal.SIGKILL, *arguments_for(tiny("gpt2"), "--json", str(again)))
    assert killed.returncode == -signal.SIGKILL and not again.exists() and len(records()) == 4
    resumed_run = command(99, 9, *arguments_for(tiny("gpt2"), "--json", str(again)))
    assert resumed_run.returncode == 0, resumed_run.stderr
    assert f"resuming: 4 of {TEXTS} texts were measured before" in resumed_run.stderr
    kept = [json.loads(path.read_text()) for path in (whole, again)]
    for data in kept:
        del data["created"], data["timing"], data["command"]
    assert json.dumps(kept[0]) == json.dumps(kept[1])


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_leave_nothing_torn(
    tiny: Callable[[str], Path], tmp_path: Path, number: int, code: int, said: str
) -> None:
    done = command(3, number, *arguments_for(tiny("gpt2"), "-o", str(tmp_path / "out"), "--no-cache"))
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and records() == []
    assert not list(tmp_path.rglob("*.tmp"))


# --- out of memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 17179869184 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    ],
)
def test_out_of_memory_halves_the_batch(
    opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = lasting(measure(opened("gpt2")))
    sizes: list[int] = []
    original = measuring.run

    def small(model: Any, stacks: Any, ids: Any, **more: Any) -> Any:
        sizes.append(len(ids))
        if len(ids) > 1:
            raise error
        return original(model, stacks, ids, **more)

    monkeypatch.setattr(measuring, "run", small)
    notes: list[str] = []
    assert lasting(measure(opened("gpt2"), batch_size=4, on_note=notes.append)) == expected
    assert sizes == [4, 2, *[1] * TEXTS]
    assert [note.split(";")[0] for note in notes] == [
        "out of memory with 4 texts at once",
        "out of memory with 2 texts at once",
    ]


def test_memory_that_runs_out_within_a_hook(opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = geometry.measure, []

    def scarce(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise MemoryError
        return original(*args)

    expected = lasting(measure(opened("gpt2"), batch_size=1))
    monkeypatch.setattr(geometry, "measure", scarce)
    assert lasting(measure(opened("gpt2"), batch_size=2)) == expected


def test_no_memory_for_one_text_advises_the_flags(
    opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(measuring, "run", never)
    threads = torch.get_num_threads()
    with pytest.raises(RunError, match="out of memory on a single text of 48 tokens") as caught:
        measure(opened("gpt2"), batch_size=3)
    for flag in ("--batch-size", "--max-length", "--dtype", "--device"):
        assert flag in caught.value.hint
    assert torch.get_num_threads() == threads


def test_other_failures_are_not_memory() -> None:
    for error in (RuntimeError("size mismatch"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)


def test_threads_are_put_back(opened: Callable[[str], Any]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(FellError):
            measure(opened("gpt2"), on_text=falling(2))
        assert torch.get_num_threads() == 2
        measure(opened("gpt2"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
