"""Where condense keeps what it can make again: converted GGUFs, journals, saved diagnoses."""

from __future__ import annotations

import os
from pathlib import Path

from condense.errors import UsageError


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
