"""A command in a pseudo-terminal, and what a person would see on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import pyte

CTRL_C = b"\x03"


class Terminal:
    """A process whose stdin, stdout and stderr are a terminal of its own, and that terminal's screen.

    raw: all bytes that it wrote; frames: the screen after every piece of output, as lines without trailing spaces.
    """

    def __init__(
        self, words: Sequence[str], *, columns: int = 80, lines: int = 24, cwd: Path | None = None, **env: str
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw, self.frames = b"", list[list[str]]()
        self._master, slave = pty.openpty()
        self._size(columns, lines)
        cleared = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**cleared, "TERM": "xterm-256color", **env},
            preexec_fn=lambda: _take_terminal(),
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def shown(self) -> list[str]:
        """The lines of the screen without trailing spaces and empty lines at the end."""
        return _stripped(self.screen.display)

    def until(self, seen: Callable[[list[str]], bool] | str, seconds: float = 60.0) -> list[str]:
        """Read until the screen shows this; AssertionError with the screen where it does not in time."""
        wanted = seen if callable(seen) else lambda lines: any(seen in line for line in lines)
        end = time.monotonic() + seconds
        while not wanted(self.shown):
            assert time.monotonic() < end and self._read(), "\n".join(self.shown)
        return self.shown

    def finish(self, seconds: float = 60.0) -> int:
        """Read until the process has ended; its exit code."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, "\n".join(self.shown)
        return self.process.wait(10)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Make the window another size."""
        self._size(columns, lines)
        self.screen.resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> bool:
        """Take what the process has written; False once it has closed the terminal."""
        ready, _, _ = select.select([self._master], [], [], 1.0)
        if not ready:
            return True
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(self._master, 65536)
        self.raw += data
        self._stream.feed(data)
        self.frames.append(self.shown)
        return bool(data)


def _take_terminal() -> None:
    """In the child: a session of its own with this terminal, so that Ctrl-C is a signal to it alone."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _stripped(lines: Sequence[str]) -> list[str]:
    kept = [line.rstrip() for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    return kept
