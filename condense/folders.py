"""The folder that a run writes: marked with what condense made in it, replaced whole, cleared of nothing else.

A folder of condense holds `.condense.json`: its kind, the fingerprint of the run, and each file that was made with its
size and sha256. A file counts as condense's own only while it still matches. Everything here is safe against a kill at
any point: what was begun is found half done and finished, or found whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from condense.errors import RunError, UsageError
from condense.files import expanded, flush, json_or_none, sha256, sha256_of_files, umask, write_text
from condense.lock import LOCK
from condense.version import __version__

MARK = ".condense.json"
SCHEMA = "condense.folder/1"
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2


@dataclass(frozen=True)
class File:
    """A file as it was when condense wrote it."""

    size: int
    sha256: str


Files = Mapping[str, File]


@dataclass(frozen=True)
class Mark:
    """What `.condense.json` says of its folder.

    kind         treatment, trial, or work (a run that is not finished).
    fingerprint  of the settings, model and text of the run.
    files        what condense made, by path below the folder.
    replaced     what stood there before; not empty only while files are being moved in.
    """

    kind: str
    fingerprint: str = ""
    files: Files = field(default_factory=dict)
    replaced: Files = field(default_factory=dict)

    def owns(self, folder: Path, name: str) -> bool:
        """Whether a file of the folder is what condense put there: now, or before what is being moved in."""
        return any(is_same(folder / name, files[name]) for files in (self.files, self.replaced) if name in files)

    def is_whole(self, folder: Path) -> bool:
        """Whether every file that condense made in the folder is there as it was made."""
        return not self.replaced and bool(self.files) and not changed(folder, self.files)


def read_mark(folder: Path) -> Mark | None:
    """What `.condense.json` of a folder says; None where there is none, or none that can be read."""
    data: Any = None if (folder / MARK).is_symlink() else json_or_none(folder / MARK)
    try:
        if data["schema"] != SCHEMA:
            return None
        files, replaced = (_files(data.get(key, {})) for key in ("files", "replaced"))
        return Mark(str(data["kind"]), str(data.get("fingerprint", "")), files, replaced)
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
        return None


def write_mark(folder: Path, mark: Mark) -> None:
    """Write `.condense.json` whole or not at all."""
    values = {"schema": SCHEMA, "condense": __version__, **asdict(mark)}
    write_text(folder / MARK, json.dumps({key: value for key, value in values.items() if value}, indent=1) + "\n")


def _files(data: Mapping[str, Any]) -> dict[str, File]:
    return {_inside(name): File(int(file["size"]), str(file["sha256"])) for name, file in data.items()}


def _inside(name: str) -> str:
    """A path below a folder; ValueError for one that leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name:
        raise ValueError(f"not a path below the folder: {name}")
    return name


def describe(folder: Path, names: Iterable[str] | None = None) -> dict[str, File]:
    """Size and sha256 of files below a folder, all of them by default."""
    chosen = names_in(folder) if names is None else names
    return {name: File((folder / name).stat().st_size, sha256_of_files([folder / name])) for name in sorted(chosen)}


def described(texts: Mapping[str, str]) -> dict[str, File]:
    """Size and sha256 of texts once `write_text` has written them."""
    written = {name: text.encode(errors="replace") for name, text in texts.items()}
    return {name: File(len(data), sha256(data)) for name, data in written.items()}


def names_in(folder: Path) -> list[str]:
    """All files below a folder by their paths in it; a symbolic link is a file, whatever it points to."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    ]


def is_same(path: Path, file: File) -> bool:
    """Whether a file is there as it was described; a symbolic link and a pipe are not."""
    try:
        status = path.lstat()
        return S_ISREG(status.st_mode) and status.st_size == file.size and sha256_of_files([path]) == file.sha256
    except OSError:
        return False


def changed(folder: Path, files: Files) -> list[str]:
    """The files that are missing from a folder or not as they were described."""
    return [name for name, file in files.items() if not is_same(folder / name, file)]


def resolved(output: str | Path) -> Path:
    """The folder that an output names: `~` and `.` resolved, a symbolic link replaced by what it points to."""
    target = expanded(output).absolute()
    try:
        target = target.resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot write {output}: {error}", "choose another --output") from None
    if not target.name:
        raise UsageError(f"cannot write {output}: it is no folder of its own", "choose another --output")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{output} is a file, not a folder", "choose another --output")
    parent = next(path for path in target.parents if path.exists())
    if not parent.is_dir():
        raise UsageError(f"cannot write {output}: {parent} is not a folder", "choose another --output")
    return target


def refuse_source(model: str | Path, target: Path, *folders: Path) -> None:
    """UsageError for a model that the run would replace or remove: OUT itself, what condense made in it, or a run."""
    source = expanded(model)
    if not source.exists():
        return
    source, mark = source.resolve(), read_mark(target) or Mark("")
    if source == target:
        raise UsageError(f"{target} is the model itself", "choose another --output")
    made = any((target / name).is_relative_to(source) for name in {**mark.files, **mark.replaced})
    if (made and source.is_relative_to(target)) or any(source.is_relative_to(folder) for folder in folders):
        raise UsageError(f"{source} is inside {target} or its runs, which are replaced", "choose another --output")


def try_out(folder: Path) -> None:
    """Write, flush, rename and remove a small file where a folder is or will be made.

    UsageError if that fails, RunError for a full disk. What a kill leaves of it reads as an unfinished mark.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        handle, name = tempfile.mkstemp(prefix=f".{MARK}.", suffix=".tmp", dir=existing)
        os.close(handle)
        file = Path(name)
        try:
            file.write_text("condense tries whether it can write here\n", encoding="utf-8")
            flush([file])
            file = file.replace(file.with_name(f".{MARK}.{os.getpid() % 10**8:08}.tmp"))
        finally:
            file.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"disk full: nothing can be written into {existing}", "free some space and run again"
            ) from None
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write into {existing}: {reason}", "choose another --output") from None


def work_folder(target: Path) -> Path:
    """Where a run lives until it succeeds: `OUT.work` beside OUT."""
    return target.with_name(f"{target.name}.work")


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but a lock of condense and a mark that was never finished."""
    unfinished = f".{MARK}.????????.tmp"
    return not folder.exists() or all(p.name.startswith(LOCK) or p.match(unfinished) for p in folder.iterdir())


def refuse_foreign(folder: Path, names: Collection[str]) -> None:
    """UsageError for a file of a folder that condense would overwrite and did not write, or that was changed since."""
    mark = read_mark(folder) or Mark("")
    if not mark.kind:
        names = (*names, MARK)
    foreign = [name for name in names if os.path.lexists(folder / name) and not mark.owns(folder, name)]
    parents = {parent for name in names for parent in PurePosixPath(name).parents}
    foreign += [str(parent) for parent in parents if str(parent) != "." and (folder / parent).is_symlink()]
    if foreign:
        raise UsageError(
            f"{folder / foreign[0]} was not written by condense, or was changed since",
            "move it away, or choose another --output",
        )


def stage(staged: Path, mark: Mark, linked: Mapping[str, Path], written: Mapping[str, str]) -> None:
    """Make a folder of files that lie elsewhere on the same file system, and of texts; its mark is written first.

    What another call left in the folder is removed.
    """
    clear(staged)
    staged.mkdir(parents=True, exist_ok=True)
    files = {**mark.files, **described(written)}
    write_mark(staged, replace(mark, files=files))
    for name, source in linked.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).unlink(missing_ok=True)  # half a copy
        try:
            os.link(source, staged / name)
        except OSError:  # a file system without links
            shutil.copyfile(source, staged / name)
        (staged / name).chmod(0o666 & ~umask())  # safetensors writes for the owner alone
    for name, text in written.items():
        write_text(staged / name, text)


def publish(staged: Path, target: Path) -> None:
    """Put a folder in the place of another: what condense made there goes, everything else there stays.

    By one rename where nothing stands there; by one exchange of the two folders where only condense's own files do, and
    the system can (Linux); else file by file with the mark last, which until then names the old and the new files. A
    kill at any point leaves the old or the new folder, or one that this function finishes when it is called again.
    The staged folder holds its mark. RunError if one of its files is not what the mark says, UsageError for a file in
    the way.
    """
    mark = read_mark(staged) or Mark("")
    damaged = changed(staged, mark.files)
    if damaged or not mark.files:
        raise RunError(f"{staged / (damaged or [MARK])[0]} is not what was saved", "run again with --resume")
    refuse_foreign(target, [*mark.files])
    flush([*(staged / name for name in mark.files), staged])
    old = read_mark(target)
    if not _replace_empty(staged, target) and not _exchange(staged, target, old):
        _move_in(staged, target, mark, old or Mark(mark.kind))
    remove_unfinished(target, mark.files)
    flush([target, target.parent])
    clear(staged)


def _replace_empty(staged: Path, target: Path) -> bool:
    """Rename the staged folder to a target that is missing or empty; False where it is neither or cannot be done."""
    if target.exists() and (any(target.iterdir()) or not _may_replace(staged, target)):
        return False
    try:
        staged.rename(target)
    except OSError:  # a mount point, or another file system
        return False
    return True


def _exchange(staged: Path, target: Path, old: Mark | None) -> bool:
    """Exchange the two folders in one step; False where the target holds anything else, or the system cannot."""
    if old is None or set(names_in(target)) - set(old.files) - {MARK} or not old.is_whole(target):
        return False
    if not _may_replace(staged, target):
        return False
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here = -100  # AT_FDCWD; both paths are absolute
    return int(exchange(here, os.fsencode(staged), here, os.fsencode(target), _EXCHANGE)) == 0


def _may_replace(staged: Path, target: Path) -> bool:
    """Whether another folder may stand in the place of one that is there, which takes over its permissions.

    Not of one with another owner or of another disk, and not of the working directory: its process, and the shell that
    started it, would be left in the folder that is removed.
    """
    ours, theirs = staged.stat(), target.stat()
    if (ours.st_uid, ours.st_gid, ours.st_dev) != (theirs.st_uid, theirs.st_gid, theirs.st_dev):
        return False
    with contextlib.suppress(OSError):  # the working directory may be gone
        if Path.cwd().is_relative_to(target):
            return False
    shutil.copymode(target, staged)
    return True


def _move_in(staged: Path, target: Path, mark: Mark, old: Mark) -> None:
    """Move the staged files in one by one, remove what condense made before, and write the mark last."""
    owned = [name for name in {**old.files, **old.replaced} if old.owns(target, name)]
    write_mark(target, replace(mark, replaced=describe(target, owned)))
    for name in mark.files:
        _move(staged / name, target / name)
    for name in owned:
        if name not in mark.files:
            (target / name).unlink()
            _remove_empty(target, name)
    flush([target])
    write_mark(target, mark)


def _move(source: Path, target: Path) -> None:
    """Rename a file, or copy it whole where the target is on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".{target.name}.condense.tmp")
        shutil.copyfile(source, copy)
        flush([copy])
        copy.replace(target)
        source.unlink()


def clear(folder: Path) -> None:
    """Remove what the mark of a folder says that condense made in it, the mark last, and the folder if that was all."""
    mark = read_mark(folder) or Mark("")
    remove_files(folder, mark)
    (folder / MARK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_files(folder: Path, mark: Mark) -> None:
    """Remove the files of a folder that are still as its mark says, and the folders in it that this leaves empty."""
    files = {**mark.replaced, **mark.files}
    remove_unfinished(folder, files)
    for name in files:
        if mark.owns(folder, _inside(name)):
            (folder / name).unlink()
            _remove_empty(folder, name)


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process left beside files of these names, which it was writing (`.NAME.xxxxxxxx.tmp`)."""
    for name in (*names, MARK):
        path = folder / name
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
            leftover.unlink()


def _remove_empty(folder: Path, name: str) -> None:
    """Remove the folders between a file that was removed and `folder` that are empty now."""
    with contextlib.suppress(OSError):
        for parent in list(PurePosixPath(name).parents)[:-1]:
            (folder / parent).rmdir()
