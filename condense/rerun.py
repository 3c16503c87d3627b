"""The command that was run, with other options: what a finding's `next` prints. Standard library only."""

from __future__ import annotations

import shlex


class Again:
    """A command line once more, with other values for some options."""

    def __init__(self, command: str) -> None:
        """Take the command apart; what belongs to one run only is left out."""
        words = shlex.split(command)
        self.words = [word for word in words if word not in ("--resume", "--force", "--dry-run", "--no-control")]

    def value(self, key: str) -> str:
        """The value of an option in the command; "" if it is not there."""
        flag = f"--{key.replace('_', '-')}"
        for index, word in enumerate(self.words):
            name, equals, given = word.partition("=")
            if name == flag:
                return given if equals else next(iter(self.words[index + 1 : index + 2]), "")
        return ""

    def __call__(self, **changes: str) -> str:
        """The command with `--key value` for each change, in place of the value it had."""
        words = list(self.words)
        for key, value in changes.items():
            flag = f"--{key.replace('_', '-')}"
            names = (flag, flag.replace("-", "_").replace("__", "--", 1), *(("-o",) if key == "output" else ()))
            index = next((i for i, word in enumerate(words) if word.partition("=")[0] in names), None)
            if index is None:
                words += [flag, value]
            elif "=" in words[index]:
                words[index] = f"{flag}={value}"
            else:
                words[index + 1 : index + 2] = [value]
        return shlex.join(words)
