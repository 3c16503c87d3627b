"""The failures a user can do something about.

Each child carries the exit code of the command line and each message says what happened; `hint`
says what to do. Anything else that is raised is a bug and keeps its traceback under `--debug`.

    CondenseError          4   the run failed (also: out of memory, disk full, internal)
    ├── UsageError         2   the request cannot be carried out as it was put
    ├── UnavailableError   3   model or data missing, gated, offline, unsafe, corrupt or unsupported
    └── RunError           4   non-finite states, out of memory, disk full
"""

import errno
import os


class CondenseError(Exception):
    """A failure the user can act on: what happened, and in `hint` what to do about it."""

    exit_code = 4
    shared = False
    """True if every process of a run raises it, so that only the first needs to report it."""

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the message (what happened) and the hint (what to do), each one line."""
        super().__init__(message)
        self.hint = hint


class UsageError(CondenseError):
    """The request cannot be carried out as it was put: options, lengths, output places."""

    exit_code = 2


class UnavailableError(CondenseError):
    """A model or a text is missing, gated, offline, unsafe, corrupt or unsupported."""

    exit_code = 3


class RunError(CondenseError):
    """The run itself failed: non-finite states, out of memory, disk full."""

    exit_code = 4


def is_out_of_memory(error: BaseException) -> bool:
    """True for what Python, torch and the allocators below it raise when memory runs out."""
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    if isinstance(error, MemoryError) or "(os error 12)" in text:  # as Rust extensions report it
        return True
    if isinstance(error, ImportError):
        return "failed to map segment" in text or "cannot allocate memory" in text  # a library that was not loaded
    return isinstance(error, RuntimeError) and any(part in text for part in said)


def system_failure(error: BaseException) -> CondenseError | None:
    """What a user reads where the machine is at fault, or a name that no file system takes; None for other failures."""
    number = error.errno if isinstance(error, OSError) else None
    if is_out_of_memory(error) or number == errno.ENOMEM:
        return RunError("out of memory", "lower --batch-size or --max-length, or use --dtype bfloat16 or --device cpu")
    said = str(error).lower()
    if isinstance(error, RuntimeError) and "can't start new thread" in said:
        return RunError("the system lets no more threads start", "free memory, or raise the limit (ulimit -u)")
    if number in (errno.ENOSPC, errno.EDQUOT) or "no space left on device" in said or "disk quota exceeded" in said:
        return RunError(f"disk full{_of_file(error)}", "free some space and run again")
    if number in (errno.EIO, errno.EMFILE, errno.ENFILE):
        return RunError(f"the system failed{_of_file(error)}: {os.strerror(number or 0)}", "run again")
    if number in (errno.EACCES, errno.EPERM):
        return UnavailableError(f"no permission{_of_file(error)}: {os.strerror(number or 0)}", "look at its owner")
    if number == errno.EFBIG or "(os error 27)" in said:
        return RunError(f"a file grew beyond what is allowed{_of_file(error)}", "raise the limit (ulimit -f)")
    if number == errno.ENOENT and not getattr(error, "filename", None) and _has_no_folder():
        return UsageError("the working directory is gone", "change into a folder that is there")
    if number in (errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError(f"no file can have this name{_of_file(error)}: {os.strerror(number or 0)}", "give another")
    return None


def _has_no_folder() -> bool:
    """Whether the working directory was removed."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _of_file(error: BaseException) -> str:
    name = str(getattr(error, "filename", None) or "")
    return f" ({name[:80]}{'…' if len(name) > 80 else ''})" if name else ""


def is_panic(error: BaseException) -> bool:
    """True for the panic of a Rust extension (tokenizers, safetensors), which is no `Exception`."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, short enough for a terminal."""
    if isinstance(error, KeyError):  # its message is the bare key
        return f"nothing is known of {error}"[:240]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:240]


def as_condense_error(error: BaseException) -> CondenseError:
    """What a user reads of any failure: itself, or what is known of it in one line, with its exit code."""
    if isinstance(error, CondenseError):
        return error
    failure = system_failure(error)
    if failure is not None:
        return failure
    if is_panic(error):
        return UnavailableError(
            f"a library crashed on the model's files: {first_line(error)}", "the tokenizer or the weights are damaged"
        )
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("condense"):
        return UnavailableError(
            f"this needs the package {error.name.partition('.')[0]}, which is not installed",
            "condense doctor names all that is missing",
        )
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return CondenseError(
        f"internal error ({type(error).__name__}): {line}",
        "run again with --debug for the traceback, and please report it",
    )
