"""Where condense keeps what it can make again, and how a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from condense.errors import RunError, UsageError


def cache_root() -> Path:
    """`$CONDENSE_CACHE`, else `$XDG_CACHE_HOME/condense`, else `~/.cache/condense`."""
    named = os.environ.get("CONDENSE_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "condense"


def cache_folder(name: str) -> Path:
    """A folder in the cache, made on first use; UsageError where it cannot be written."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write the cache {folder}: {error.strerror or error}", "set CONDENSE_CACHE to another place"
        ) from None
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside it first, flushed, then renamed over it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "choose another place") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise _write_error(path, error) from None
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _write_error(path: Path, error: OSError) -> Exception:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"disk full while writing {path}", "free some space and run again")
    return UsageError(f"cannot write {path}: {error.strerror or error}", "choose another place")
