"""The failures a user can do something about.

Each child carries the exit code of the command line and each message says what happened; `hint`
says what to do. Anything else that is raised is a bug and keeps its traceback under `--debug`.

    CondenseError          4   the run failed (also: out of memory, disk full, internal)
    ├── UsageError         2   the request cannot be carried out as it was put
    ├── UnavailableError   3   model or data missing, gated, offline, unsafe, corrupt or unsupported
    └── RunError           4   non-finite states, out of memory, disk full
"""


class CondenseError(Exception):
    """A failure the user can act on: what happened, and in `hint` what to do about it."""

    exit_code = 4
    shared = False
    """True if every process of a run raises it, so that the first can speak for all."""

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
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(part in text for part in said))
