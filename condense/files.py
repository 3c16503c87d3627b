"""Where condense keeps what it can make again, how a file is written whole or not at all, and its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from condense.errors import RunError, UsageError


def size_in_words(size: float | None) -> str:
    """A number of bytes with three digits: `1.24 GB`, `38.2 MB`, `7 kB`; "unknown" for None."""
    if size is None:
        return "unknown"
    rounded = float(f"{size:.3g}")  # first, or 999.9 MB would be 1e+03 MB
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if rounded >= unit:
            return f"{rounded / unit:.3g} {name}"
    return f"{rounded / 1e3:.3g} kB"


def expanded(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder; UsageError where there is none (no HOME, no entry in passwd)."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such home folder", "give the whole path") from None


def is_special(path: Path) -> bool:
    """Whether something is neither a file nor a folder but a pipe, a socket or a device: reading it may never end.

    What a shell hands over as a file (`<(command)`) is read as one.
    """
    if str(path).startswith(("/dev/fd/", "/proc/self/fd/")):
        return False
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def json_or_none(path: Path) -> Any:
    """What a JSON file holds; None for one that is missing, no file, unreadable, damaged or nested too deeply."""
    if is_special(path):
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def cache_root() -> Path:
    """`$CONDENSE_CACHE`, else `$XDG_CACHE_HOME/condense`, else `~/.cache/condense`.

    A process without a home folder (a container under an arbitrary user) gets a folder of its own where temporary
    files go.
    """
    named = os.environ.get("CONDENSE_CACHE")
    if named:
        return expanded(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "condense"
    try:
        return Path.home() / ".cache" / "condense"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"condense-{os.getuid()}"


def cache_folder(name: str) -> Path:
    """A folder in the cache, made on first use; UsageError where it cannot be written."""
    root = cache_root()
    folder = root / name
    try:
        if root.parent == Path(tempfile.gettempdir()):
            root.mkdir(mode=0o700, exist_ok=True)
            if root.is_symlink() or root.stat().st_uid != os.getuid():  # the name can be guessed, by others too
                raise UsageError(f"the cache {root} belongs to somebody else", "set CONDENSE_CACHE to another place")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write the cache {folder}: {error.strerror or error}", "set CONDENSE_CACHE to another place"
        ) from None
    return folder


def prune(folder: Path, *, days: float, most_bytes: float = float("inf")) -> None:
    """Remove what was not used for `days` from a folder of the cache, then the longest unused beyond `most_bytes`.

    Entries are files or folders, their age is that of their modification time. Half-written files (`*.tmp`) of
    processes that were killed go after an hour. What cannot be removed stays.
    """
    now, entries = time.time(), []
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            age = now - entry.stat().st_mtime
            if age > (3600 if entry.suffix == ".tmp" else days * 86400):
                _remove(entry)
                continue
            for leftover in entry.glob("*.tmp"):
                if now - leftover.stat().st_mtime > 3600:
                    leftover.unlink()
            entries.append((age, _size(entry), entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries, reverse=True):
        if total <= most_bytes:
            return
        with contextlib.suppress(OSError):
            _remove(entry)
        total -= size


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in ([entry] if entry.is_file() else entry.rglob("*")))


def sha256(data: bytes | str) -> str:
    """The sha256 of bytes, or of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_of_files(files: Iterable[Path]) -> str:
    """The sha256 of a file's bytes; of several (shards), that of their sorted hashes joined."""
    hashes = []
    for file in files:
        with file.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return joined_sha256(hashes)


def joined_sha256(hashes: Sequence[str]) -> str:
    """The hash of a file as it is; of several (shards), the sha256 of their sorted hashes joined."""
    return hashes[0] if len(hashes) == 1 else sha256("".join(sorted(hashes)))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside it first, flushed, then renamed over it.

    A link stays one: what it points to is written.
    """
    path = Path(os.path.realpath(path))
    if is_special(path):
        raise UsageError(f"{path} is a pipe or a device, which would be replaced", "choose another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:30]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "choose another place") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~umask())
        Path(temporary).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise _write_error(path, error) from None
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def umask() -> int:
    """The permissions that this process takes from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def flush(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk, so that a power failure does not take what was said to be there."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:  # some file systems cannot flush a folder
            if not path.is_dir():
                raise
        finally:
            os.close(handle)


def _write_error(path: Path, error: OSError) -> Exception:
    import errno

    if error.errno == errno.EFBIG:
        return RunError(f"{path} grew beyond what is allowed", "raise the limit (ulimit -f)")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"disk full while writing {path}", "free some space and run again")
    return UsageError(f"cannot write {path}: {error.strerror or error}", "choose another place")
