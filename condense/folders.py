"""The folder that a run writes: whether it may, and whether it has the room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from condense.errors import RunError, UsageError


def work_folder(target: Path) -> Path:
    """Where a run lives until it succeeds: `OUT.work` beside OUT."""
    return target.with_name(f"{target.name}.work")


def prepare(target: Path, *, resume: bool, force: bool) -> Path:
    """Check OUT and OUT.work before any work and return OUT.work, not made yet. UsageError if either is in the way."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder", "choose another --output")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UsageError(f"{target} is not empty", "choose another --output, or pass --force to replace it")
    work = work_folder(target)
    parent = next(place for place in work.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write {target}: {parent} is not writable", "choose another --output")
    if resume and not work.is_dir():
        raise UsageError(f"there is nothing to resume: {work} does not exist", "run without --resume")
    if work.exists() and not resume:
        if not force:
            raise UsageError(
                f"{work} is left from an interrupted run", "pass --resume to go on, or --force to start anew"
            )
    return work


def refuse_small_disk(work: Path, needed: int) -> None:
    """Refuse a run whose files would not fit beside its output, before it trains: RunError.

    work: the run's folder, there or not; what a resumed run has written already counts as part of `needed` bytes.
    """
    written = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    place = next(place for place in (work, *work.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free >= needed - written:
        return
    raise RunError(
        f"not enough disk in {place.absolute()}: {_bytes(needed - written)} needed, {_bytes(free)} free",
        "free some space, or choose an --output on another disk",
    )


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
