"""Members and pairs that several processes share: each measured once, and all processes end with the same."""

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from condense.comparison import measuring, pair
from condense.comparison.measuring import measured_members, same_by_name
from condense.comparison.members import Candidate
from condense.diagnosis.distributed import Ranks
from condense.errors import UnavailableError
from condense.records.diagnosis import Diagnosis
from condense.records.options import CompareOptions
from tests.diagnosis.test_distributed import agree, alone, torchrun


class Thread(Ranks):
    """A process that is a thread here: what is shared goes through a list."""

    meeting: threading.Barrier
    shared: list[Any]

    def all_of(self, value: Any) -> list[Any]:
        self.shared[self.rank] = value
        self.meeting.wait(10)
        values = list(self.shared)
        self.meeting.wait(10)
        return values

    def told(self, value: Any, group: Any = None) -> Any:
        return self.all_of(value)[0]


def in_threads(work: Callable[[Ranks], Any], size: int = 2) -> list[Any]:
    results: list[Any] = [None] * size
    meeting, shared = threading.Barrier(size), [None] * size

    def run(rank: int) -> None:
        ranks = Thread(rank, size)
        object.__setattr__(ranks, "meeting", meeting)
        object.__setattr__(ranks, "shared", shared)
        results[rank] = work(ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


@dataclass
class Measuring:
    """What one process has to measure with."""

    run: Diagnosis
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    asked: list[CompareOptions] = field(default_factory=list)

    def __call__(self, candidate: Candidate, settings: CompareOptions, place: tuple[int, int]) -> Diagnosis:
        self.done.append(candidate.name)
        self.asked.append(settings)
        if candidate.name == "c":
            raise UnavailableError("c is damaged")
        return replace(self.run, model=replace(self.run.model, id=candidate.name))

    def settled(self, candidate: Candidate, settings: CompareOptions) -> CompareOptions:
        return replace(settings, num_texts=7, max_length=33, seed=settings.seed or 0)

    def skip(self, candidate: Candidate) -> None:
        self.skipped.append(candidate.name)

    def open(self, candidate: Candidate, settings: CompareOptions) -> Any:
        raise AssertionError("not opened")

    def counting(self, title: str) -> Any:
        return nullcontext(lambda done, total: None)


@pytest.fixture
def candidates(diagnosed: Callable[[str], Diagnosis]) -> list[Candidate]:
    """Models a to e, of which one has a diagnosis and one is not there."""
    saved = Candidate("saved", "saved.json", diagnosis=diagnosed("llama"))
    missing = Candidate("missing", "missing", error=UnavailableError("no such model"))
    return [Candidate("a", "a"), saved, *(Candidate(name, name) for name in "bcd"), missing, Candidate("e", "e")]


def test_every_member_is_measured_by_one_process(
    candidates: list[Candidate], diagnosed: Callable[[str], Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_give_back", lambda: None)
    measures = [Measuring(diagnosed("llama")) for _ in range(2)]
    notes: list[list[str]] = [[], []]

    def work(ranks: Ranks) -> Any:
        measure, note = measures[ranks.rank], notes[ranks.rank].append
        return measured_members(candidates, measure, CompareOptions(), note, ranks)

    first, second = in_threads(work)
    assert [measure.done for measure in measures] == [["a", "c", "e"], ["b", "d"]]
    assert [measure.skipped for measure in measures] == [["b", "d"], ["a", "c", "e"]]
    assert {(asked.num_texts, asked.max_length) for measure in measures for asked in measure.asked} == {(7, 33)}
    assert first == second and notes[0] == notes[1]
    measured, failures = first
    assert [candidate.name for candidate, _ in measured] == ["a", "saved", "b", "d", "e"]
    assert [run.model.id for candidate, run in measured if candidate.diagnosis is None] == ["a", "b", "d", "e"]
    assert [(failure.name, failure.exit_code) for failure in failures] == [("c", 3), ("missing", 3)]


def test_every_pair_is_read_by_one_process(diagnosed: Callable[[str], Diagnosis], monkeypatch: Any) -> None:
    run = diagnosed("llama")
    measured = [(Candidate(name, name), run) for name in "abcd"]
    read: list[str] = []

    def beside(first: Candidate, others: Any, *more: Any) -> dict[str, str]:
        read.extend(other.name for other in others)
        return {other.name: f"{other.name} was damaged meanwhile" for other in others}

    monkeypatch.setattr(pair, "read_beside", beside)
    notes: list[list[str]] = [[], []]
    first, second = in_threads(
        lambda ranks: same_by_name(measured, Measuring(run), CompareOptions(), notes[ranks.rank].append, ranks)
    )
    assert sorted(read) == ["b", "c", "d"]
    assert {name: same.reason for name, same in first.items()} == {n: f"{n} was damaged meanwhile" for n in "bcd"}
    assert first.keys() == second.keys() and sorted(notes[0]) == sorted(notes[1]) and len(notes[0]) == 3


@pytest.mark.slow
def test_two_processes_compare_as_one_does(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The same terminal and record; each member is measured once, and kept by the process that did."""
    run = ["compare", str(tiny("llama")), str(tiny("gpt2")), str(tiny("qwen2")), "--num-texts", "4", "--no-cache"]
    single = alone(*run, "--device", "cpu", "-o", str(tmp_path / "one"))
    assert single.exit_code == 0, single.stderr
    done = torchrun(*run, "--device", "cpu", "-o", str(tmp_path / "two"), "--expect-world", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == single.stdout and done.stderr.count("wrote") == 4
    assert "1 of 3: llama" in done.stderr and "2 of 3" not in done.stderr
    agree(tmp_path / "one" / "comparison.json", tmp_path / "two" / "comparison.json")
    files = [sorted(file.name for file in (tmp_path / name / "members").iterdir()) for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 3
    assert json.loads((tmp_path / "two" / "members" / files[1][0]).read_text())["environment"]["world_size"] == 1
