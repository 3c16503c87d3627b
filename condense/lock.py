"""The lock of a run's folder: one run at a time, known by its process and host."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from condense.errors import UsageError

LOCK = ".condense.lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is missing, for this process; one that was made and stays empty is removed again.

    UsageError, with the process that holds it, while another run does. The lock of a dead process is taken over; that
    of another host never is, because nothing here shows whether it lives.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        handle = _acquire(folder / LOCK)
    except OSError as error:
        raise UsageError(f"cannot lock {folder}: {error.strerror or error}", "choose another --output") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(handle)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def refuse_in_use(folder: Path) -> None:
    """UsageError while another run holds a folder; it is neither made nor held."""
    if os.path.lexists(folder / LOCK):
        with locked(folder):
            pass


def forget_lost(folder: Path) -> None:
    """Remove the lock of a process on another host, of which it is known that it is dead."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        if json.loads((folder / LOCK).read_text(encoding="utf-8"))["host"] != socket.gethostname():
            (folder / LOCK).unlink()


def _acquire(path: Path) -> int:
    """The open lock file with this process in it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            kernel, holder, patience = _lock_in_kernel(handle), _holder(path, handle), 100
            while kernel is False and holder is None and patience:  # it is about to say who it is
                time.sleep(0.01)
                holder, patience = _holder(path, handle), patience - 1
            if kernel is False or (holder and (holder["host"] != socket.gethostname() or kernel is None)):
                _refuse_if_held(path, holder, kernel)
            if _is_file_of(path, handle):
                text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": _start_of(os.getpid())})
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{text}\n".encode(), 0)
                os.fsync(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # another run removed the file when it ended: try again with the new one


def _lock_in_kernel(handle: int) -> bool | None:
    """Lock a file for as long as this process lives: whether it worked, None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _holder(path: Path, handle: int) -> dict[str, Any] | None:
    """The process that a lock file names; UsageError for a file that is no lock of condense."""
    text = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip("\0\n ")
    if not text:
        return None
    try:
        data = json.loads(text)
        return {"pid": int(data["pid"]), "host": str(data["host"]), "start": float(data["start"])}
    except (ArithmeticError, ValueError, LookupError, TypeError, RecursionError):
        raise UsageError(f"{path} was not written by condense", "move it away, or choose another --output") from None


def _refuse_if_held(path: Path, holder: dict[str, Any] | None, kernel: bool | None) -> None:
    """UsageError if a run holds the lock, or may hold it on another host."""
    if holder is None:
        raise UsageError(f"{path.parent} is in use by another run", "wait for it, or choose another --output")
    pid, host = holder["pid"], holder["host"]
    if host != socket.gethostname():
        hint = f"if it is dead, remove {path}"
        raise UsageError(f"{path.parent} is in use by process {pid} on {host}, another host", hint)
    if kernel is False or _start_of(pid) == holder["start"]:
        raise UsageError(f"{path.parent} is in use by process {pid}", "wait for it, or choose another --output")


def _start_of(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; None if there is no such process."""
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time()), 2)
    except (psutil.Error, ValueError, OverflowError):  # also of a number that no process can have
        return None


def _is_file_of(path: Path, handle: int) -> bool:
    """Whether a path still leads to the file that is open."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(handle))
    except OSError:
        return False
