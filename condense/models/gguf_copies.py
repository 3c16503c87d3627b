"""The dequantised copies of `.gguf` files in the cache.

A copy is an ordinary float32 checkpoint, made once (see `dequantise`), kept under the sha256 of the file, checked by
the sha256 of each of its own files whenever it is used, made again where it is damaged, and pruned by age and size.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condense.errors import UnavailableError
from condense.files import cache_folder, cache_root, prune, sha256_of_files, umask, write_text
from condense.models.folder import COPY
from condense.models.gguf import Gguf

FOLDER = "gguf"
_VERSION = "2"
_KEPT_DAYS, _KEPT_BYTES = 60, 100e9
_LOGGER = logging.getLogger("condense")


@dataclass(frozen=True)
class Copy:
    """A dequantised checkpoint in the cache: its path, its source file, its size in bytes."""

    path: str
    source: str
    size: int


def converted(model: Gguf) -> Path:
    """The folder with the dequantised checkpoint and tokenizer of a file, converted on the first call.

    UnavailableError for an architecture, a key or a tensor that is not read, or missing packages.
    """
    target = copy_of(model.parts)
    if _is_complete_copy(target):
        with contextlib.suppress(OSError):
            os.utime(target)  # pruning removes copies unused for long
        return target
    if target.exists():
        _LOGGER.warning("the converted copy of %s in %s is damaged: it is made again", model.parts[0].name, target)
    _convert(model, target)
    return target


def _convert(model: Gguf, target: Path) -> None:
    from condense.models.dequantise import dequantise

    prune(cache_folder(FOLDER), days=_KEPT_DAYS, most_bytes=_KEPT_BYTES)
    work = Path(tempfile.mkdtemp(prefix=".converting-", suffix=".tmp", dir=target.parent))
    try:
        lacking = dequantise(model, work)
        names = sorted(path.name for path in work.iterdir())
        hashes = {name: sha256_of_files([work / name]) for name in names}
        content = {"source": model.parts[0].name, "files": hashes, "no_tokenizer": lacking}
        write_text(work / COPY, json.dumps(content, indent=1))
        _open_to_others(work)
        if not _is_complete_copy(target):  # another process may have written it first
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.suppress(OSError):
                work.replace(target)
        if not _is_complete_copy(target):
            raise UnavailableError(f"the converted copy {target} cannot be written", "remove it, or set CONDENSE_CACHE")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def copy_of(parts: tuple[Path, ...]) -> Path:
    """Where the copy of a file is, or would be."""
    return cache_root() / FOLDER / f"{sha256_of_files(parts)}-{_VERSION}"


def already_converted(model: Gguf) -> Path | None:
    """The folder that `converted` would give at once, or None where it would have to convert."""
    target = copy_of(model.parts)
    return target if _is_complete_copy(target) else None


def copies() -> tuple[Copy, ...]:
    """The copies in the cache, the largest first."""
    root = cache_root() / FOLDER
    listing = []
    for path in root.iterdir() if root.is_dir() else ():
        manifest = _manifest(path)
        if manifest is not None:
            size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            listing.append(Copy(str(path), str(manifest.get("source")), size))
    return tuple(sorted(listing, key=lambda copy: -copy.size))


def no_tokenizer(path: Path) -> str | None:
    """Why a copy has no tokenizer, if it has none."""
    manifest = _manifest(path) or {}
    reason = manifest.get("no_tokenizer")
    return reason if isinstance(reason, str) else None


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((path / COPY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def _is_complete_copy(path: Path) -> bool:
    """Whether a copy holds exactly the files that were written, byte for byte."""
    manifest = _manifest(path)
    if manifest is None:
        return False
    hashes = manifest["files"]
    try:
        return {file.name for file in path.iterdir()} == {*hashes, COPY} and all(
            sha256_of_files([path / name]) == expected for name, expected in hashes.items()
        )
    except OSError:
        return False


def _open_to_others(folder: Path) -> None:
    """Set the modes of a folder and its files by the umask: a cache may be shared."""
    mask = umask()
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
