"""Kills while a folder is published: `python -m tests.folder_kills PLACE HOW FOLDER EVERY` prints how many there were.

A program of its own, because it forks for every call of the system, and a process with torch in it is slow to fork.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from condense import folders
from condense.folders import MARK, Mark, describe, names_in, publish, read_mark, stage, write_mark


def killed_before(number: int, action: Callable[[], object], first: tuple[Any, str] | None = None) -> bool:
    """Run an action in a child that is killed before its nth call of the system; False if it ended before that.

    first: (module, name) of the function that counting begins with; at once by default.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame: Any, event: str, called: Any) -> None:
            nonlocal calls
            module = getattr(called, "__module__", None) or type(getattr(called, "__self__", None)).__module__
            if event == "c_call" and module in ("posix", "_io", "fcntl", "_ctypes"):
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        def counted(*given: Any) -> Any:
            sys.setprofile(count)
            return begun(*given)

        begun, code = getattr(*first) if first else action, 1
        try:
            if first:
                setattr(*first, counted)
                action()
            else:
                counted()
            sys.setprofile(None)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the action failed"
    return os.WIFSIGNALED(status)


NEW = {"model.safetensors": "new weights", "config.json": "{}", "adapter/adapter.safetensors": "new adapter"}
OLD = {"model.safetensors": "old weights", "old/tokenizer.json": "gone with it"}
REPORTS = {"README.md": "the new card"}


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def put(work: Path, target: Path) -> None:
    """What the end of a run does, from the start of it: it may have been begun before."""
    mark = Mark("treatment", "the new run", describe(work / "model"))
    stage(work / "final", mark, {name: work / "model" / name for name in NEW}, REPORTS)
    publish(work / "final", target)


def holds(target: Path, fingerprint: str) -> bool:
    mark = read_mark(target)
    return mark is not None and mark.fingerprint == fingerprint and mark.is_whole(target)


def own(target: Path) -> None:
    written(target, OLD)
    write_mark(target, Mark("treatment", "the old run", describe(target)))


def own_and_foreign(target: Path) -> None:
    own(target)
    written(target, {"thesis.txt": "mine", "old/notes.txt": "mine"})


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda target: None,
    "empty": lambda target: target.mkdir(),
    "own": own,
    "foreign": lambda target: written(target, {"thesis.txt": "mine"}),
    "both": own_and_foreign,
}


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in names_in(folder)} if folder.exists() else {}


def unfinished(name: str) -> bool:
    """Whether a file is one that is being written beside its place."""
    return name.rpartition("/")[2].startswith(".") and name.endswith(".tmp")


def kill(number: int, place: str, atomic: bool, folder: Path) -> bool:
    """Kill before the nth call, look, and do it again as a resumed run does; False where there are fewer calls."""
    work, target = folder / "out.work", folder / "out"
    written(work / "model", NEW)
    PLACES[place](target)
    foreign = {name: text for name, text in contents(target).items() if text == "mine"}
    killed = killed_before(number, lambda: put(work, target))
    left = contents(target)
    assert foreign.items() <= left.items()
    if atomic:
        assert holds(target, "the new run") or (holds(target, "the old run") if place == "own" else not left), number
    mark = read_mark(target) or Mark("")
    for name in left:  # half way every file is known to be condense's, or is the user's
        assert name in foreign or name == MARK or mark.owns(target, name) or unfinished(name), (number, name)
    put(work, target)
    assert holds(target, "the new run"), number
    assert contents(target).keys() == {*NEW, *REPORTS, MARK, *foreign}, (number, contents(target).keys())
    assert foreign.items() <= contents(target).items()
    assert contents(work) == {f"model/{name}": text for name, text in NEW.items()}, number
    return killed


def main(place: str, how: str, folder: str, every: str) -> None:
    os.fsync = os.fstat  # type: ignore[assignment]  # a kill takes nothing from the system, and flushing takes minutes
    if how == "one-by-one":
        folders._exchange = folders._replace_empty = lambda *given: False
    atomic = how == "at-once" and place in ("missing", "empty", "own")
    number, kills, killed = 1, 0, True
    while killed:
        killed = kill(number, place, atomic, Path(folder) / str(number))
        shutil.rmtree(Path(folder) / str(number))
        number, kills = number + int(every), kills + killed
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
