"""The folder of a run: its lock, its mark, and how a finished one is put in its place whatever kills it on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from condense import folders, lock
from condense.errors import RunError, UsageError
from condense.files import size_in_words, write_text
from condense.folders import (
    MARK,
    Mark,
    clear,
    describe,
    described,
    is_same,
    names_in,
    publish,
    read_mark,
    refuse_foreign,
    refuse_source,
    resolved,
    stage,
    write_mark,
)
from condense.lock import LOCK, locked
from condense.records.plans import TrialPlan
from condense.treatment.run import CONTROL, treat
from condense.trials.run import trial
from tests.folder_kills import PLACES


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "unknown"),
        (0, "0 kB"),
        (999, "0.999 kB"),
        (20_700, "20.7 kB"),
        (999_600, "1 MB"),
        (38_240_000, "38.2 MB"),
        (999_700_000, "1 GB"),
        (1_236_000_000, "1.24 GB"),
        (538e9, "538 GB"),
    ],
)
def test_a_size_has_three_digits(size: float | None, words: str) -> None:
    assert size_in_words(size) == words


# --- publishing ----------------------------------------------------------------------------------------


HOW = pytest.mark.parametrize("how", ["at-once", "one-by-one"])


def kills(place: str, how: str, folder: Path, every: int) -> int:
    """How many kills were survived, one before every so many calls of the system."""
    command = [sys.executable, "-W", "error", "-m", "tests.folder_kills", place, how, str(folder), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@HOW
@pytest.mark.parametrize("place", ["missing", "own", "both"])
def test_a_kill_leaves_the_old_or_the_new_folder(place: str, how: str, tmp_path: Path) -> None:
    assert kills(place, how, tmp_path, 19) > 10


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_folder(place: str, how: str, tmp_path: Path) -> None:
    assert kills(place, how, tmp_path, 1) > 200


def staged(folder: Path, text: str = "weights") -> Path:
    """A staged folder of one file."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "w").write_text(text)
    stage(folder / "final", Mark("treatment", "f", describe(folder / "model")), {"w": folder / "model" / "w"}, {})
    return folder / "final"


def test_a_damaged_file_is_never_published(tmp_path: Path) -> None:
    final, target = staged(tmp_path / "out.work"), tmp_path / "out"
    (final / "w").write_bytes(b"\0" * 7)
    with pytest.raises(RunError, match="w is not what was saved"):
        publish(final, target)
    assert not target.exists()


def test_a_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    final, target = staged(tmp_path / "out.work"), tmp_path / "out"
    target.mkdir()
    (target / "w").write_text("mine")
    with pytest.raises(UsageError, match="w was not written by condense"):
        publish(final, target)
    assert (target / "w").read_text() == "mine" and (final / "w").read_text() == "weights"


def test_another_file_system_is_copied_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT may be a mount point: no rename leads there, so the folder is filled, mark last."""
    plain = Path.replace

    def replace(self: Path, other: Path) -> Path:
        if "final" in self.parts and "out" in other.parts:
            raise OSError(18, "Invalid cross-device link")
        return plain(self, other)

    final, target = staged(tmp_path / "out.work"), tmp_path / "out"
    target.mkdir()
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(folders, "_replace_empty", lambda *given: False)
    publish(final, target)
    assert (target / "w").read_text() == "weights" and set(names_in(target)) == {"w", MARK}
    mark = read_mark(target)
    assert mark is not None and mark.is_whole(target) and not final.exists()


# --- marks ---------------------------------------------------------------------------------------------


def test_only_files_that_are_as_they_were_made_are_removed(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), ("deep/c", "3"), ("mine", "4"), ("deep/mine", "5")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write_mark(tmp_path, Mark("treatment", "f", describe(tmp_path, ["a", "b", "deep/c"])))
    (tmp_path / "b").write_text("changed")
    clear(tmp_path)
    assert {name: (tmp_path / name).read_text() for name in names_in(tmp_path)} == {
        "b": "changed", "mine": "4", "deep/mine": "5",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../thesis", "/etc/passwd", "a/../../thesis", "..\\thesis", ""])
def test_a_mark_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    thesis, folder = tmp_path / "thesis", tmp_path / "out"
    thesis.write_text("mine")
    folder.mkdir()
    file = {"size": 4, "sha256": describe(tmp_path, ["thesis"])["thesis"].sha256}
    values = {"schema": "condense.folder/1", "kind": "treatment", "files": {name: file}}
    (folder / MARK).write_text(json.dumps(values))
    assert read_mark(folder) is None
    clear(folder)
    assert thesis.read_text() == "mine"


def test_a_text_is_described_as_it_is_written(tmp_path: Path) -> None:
    """A file name that is not UTF-8, in the command that is recorded, ended a treatment after its training."""
    text = "condense treat --text caf\udce9.txt"
    write_text(tmp_path / "w", text)
    assert is_same(tmp_path / "w", described({"w": text})["w"])


def test_a_link_is_not_the_file_it_points_to(tmp_path: Path) -> None:
    thesis, folder = tmp_path / "thesis", tmp_path / "out"
    thesis.write_text("mine")
    folder.mkdir()
    (folder / "w").symlink_to(thesis)
    write_mark(folder, Mark("treatment", "f", described({"w": "mine"})))
    assert not (read_mark(folder) or Mark("")).owns(folder, "w")
    clear(folder)
    assert thesis.read_text() == "mine" and (folder / "w").is_symlink()


HUGE = '{"schema": "condense.folder/1", "kind": "trial", "files": {"a": {"size": 1e999, "sha256": "b"}}}'


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"schema": "condense.folder/1"}', "\0" * 40, "[" * 9999, HUGE]
)
def test_a_mark_that_cannot_be_read_owns_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(text)
    assert read_mark(tmp_path) is None
    with pytest.raises(UsageError, match="was not written by condense"):
        refuse_foreign(tmp_path, [])


def test_a_folder_that_is_a_link_is_not_published_into(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.mkdir()
    (out / "runs").symlink_to(mine)
    with pytest.raises(UsageError, match="runs was not written by condense"):
        refuse_foreign(out, ["runs/control-seed-0/events"])
    (tmp_path / "mark").write_text('{"schema": "condense.folder/1", "kind": "treatment"}')
    (out / MARK).symlink_to(tmp_path / "mark")
    assert read_mark(out) is None


def test_a_pipe_is_no_mark_and_no_file(tmp_path: Path) -> None:
    """Opening one would wait for ever."""
    os.mkfifo(tmp_path / MARK)
    os.mkfifo(tmp_path / "w")
    assert read_mark(tmp_path) is None
    assert not Mark("work", "", described({"w": ""})).owns(tmp_path, "w")


def test_a_model_that_would_be_replaced_is_refused(tmp_path: Path) -> None:
    out, run = tmp_path / "out", tmp_path / "out.work" / "control" / "model"
    for folder in (out / "mine", out / "adapter", run):
        folder.mkdir(parents=True)
    (out / "adapter" / "w").write_text("made")
    write_mark(out, Mark("treatment", "f", describe(out, ["adapter/w"])))
    for model in (out / "mine", tmp_path, "org/model"):
        refuse_source(model, out, tmp_path / "out.work")
    with pytest.raises(UsageError, match="out is the model itself"):
        refuse_source(out, out)
    for model in (out / "adapter", run):
        with pytest.raises(UsageError, match="is inside .*out or its runs, which are replaced"):
            refuse_source(model, out, tmp_path / "out.work")


def test_an_output_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(disk)
    assert resolved(tmp_path / "link") == resolved("~/disk") == resolved(".") == disk
    assert resolved("new/out") == disk / "new" / "out"
    (disk / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        resolved("file")
    with pytest.raises(UsageError, match="no folder of its own"):
        resolved("/")


# --- the lock ------------------------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from condense.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds out.work."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out.work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_a_dead_one_is_taken_over(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "out.work"
    for kernel in (lock._lock_in_kernel, lambda handle: None):  # where the file system has no locks too
        monkeypatch.setattr(lock, "_lock_in_kernel", kernel)
        with pytest.raises(UsageError, match=rf"out.work is in use by process {holder.pid}$"), locked(work):
            pytest.fail("two runs in one folder")
    left = (work / LOCK).read_bytes()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for kernel in (lock._lock_in_kernel, lambda handle: None):
        monkeypatch.setattr(lock, "_lock_in_kernel", kernel)
        (work / LOCK).write_bytes(left)
        with locked(work):
            assert json.loads((work / LOCK).read_text())["pid"] == os.getpid()
        assert not (work / LOCK).exists()


@pytest.mark.parametrize("pid", [os.getppid(), -5, 10**30])
def test_a_number_of_a_process_that_was_given_again_is_no_holder(pid: int, tmp_path: Path) -> None:
    holder = {"pid": pid, "host": socket.gethostname(), "start": 1.0}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with locked(tmp_path):
        pass
    assert tmp_path.exists() and not (tmp_path / LOCK).exists()


def test_a_lock_of_another_host_is_never_taken_over(tmp_path: Path) -> None:
    text = json.dumps({"pid": 1, "host": "another", "start": 1.0})
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(UsageError, match="in use by process 1 on another, another host") as refused, locked(tmp_path):
        pytest.fail("taken over")
    assert str(tmp_path / LOCK) in refused.value.hint and (tmp_path / LOCK).read_text() == text


@pytest.mark.parametrize("text", ["my own notes", "{}", "[]", "[" * 9999, '{"pid": 1e999, "host": "h", "start": 1}'])
def test_a_file_that_is_no_lock_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(UsageError, match="was not written by condense"), locked(tmp_path):
        pytest.fail("overwritten")
    assert (tmp_path / LOCK).read_text() == text


def test_a_treatment_and_a_trial_do_not_share_a_folder(tmp_path: Path) -> None:
    """One holds OUT.work and writes OUT at its end, the other holds OUT."""
    out = tmp_path / "out"
    with locked(out), pytest.raises(UsageError, match=f"out is in use by process {os.getpid()}"):
        treat(tmp_path, ["text"], out, device="cpu")
    with locked(tmp_path / "out.work"), pytest.raises(UsageError, match="out.work is in use by process"):
        trial(tmp_path, ["text"], out, TrialPlan((CONTROL,), 1), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_followed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "thesis")
    with pytest.raises(UsageError, match="cannot lock"), locked(tmp_path / "out"):
        pytest.fail("followed")
    assert (tmp_path / "thesis").read_text() == ""


def test_what_a_refused_run_made_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model"), locked(tmp_path / "deep" / "out.work"):
        raise ValueError("no model")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "deep" / "out.work"):
        (tmp_path / "deep" / "out.work" / "kept").write_text("x")
    assert names_in(tmp_path) == ["deep/out.work/kept"]


TURNS = """
import sys, time
from pathlib import Path
from condense.errors import UsageError
from condense.lock import locked
folder, done = Path(sys.argv[1]), 0
while done < 20:
    try:
        with locked(folder / "work"):
            (folder / "inside").mkdir()  # fails if another process is inside
            (folder / "inside").rmdir()
            done += 1
    except UsageError:
        time.sleep(0.001)
"""


def test_only_one_of_many_is_inside(tmp_path: Path) -> None:
    """The lock file is removed after every turn, so that the next one is another file."""
    many = [subprocess.Popen([sys.executable, "-c", TURNS, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in many] == [0] * 4
    assert names_in(tmp_path) == []
