"""The values that flow: what `analyze` returns, what is saved, what every page is drawn from.

Frozen and standard library only, so that `report`, `check` and `compare` never load a model library.
The field names are the JSON keys (see docs/metrics.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from condense.errors import UnavailableError
from condense.records.serial import decode, dumps, encode, other_schema

if TYPE_CHECKING:
    import pandas


PlotlyJs = Literal["inline", "cdn", "none"]


class Saved:
    """A run as it is saved: `SCHEMA` names its kind and version; the same record gives the same bytes.

    The children are frozen dataclasses with a field `schema`.
    """

    SCHEMA: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as saved."""
        values: dict[str, Any] = encode(self)
        return values

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the JSON text and write it to `path` when one is given."""
        return saved(dumps(self), path)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a run of this kind from a file, JSON text or parsed JSON; UnavailableError if it is not one."""
        data = parsed(source)
        if data.get("schema") != cls.SCHEMA:
            raise other_schema(data.get("schema"), cls.SCHEMA)
        try:
            run: Self = decode(cls, data)
        except ValueError as error:
            raise UnavailableError(f"not a valid {cls.SCHEMA}: {error}") from None
        return run

    def to_frame(self) -> pandas.DataFrame:
        """The run's table as a data frame; see `rows`."""
        import pandas

        return pandas.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The run's table as plain rows, which is what its CSV holds."""
        raise NotImplementedError

    def to_html(self, path: str | Path | None = None, *, plotlyjs: PlotlyJs = "inline") -> str:
        """Return the report as one HTML page and write it to `path` when one is given."""
        from condense import report

        return saved(report.to_html(self, plotlyjs=plotlyjs), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown and write it to `path` when one is given."""
        from condense import report

        return saved(report.to_markdown(self), path)


@dataclass(frozen=True)
class Estimate:
    """A number over texts: mean (or composite) with a 95 % interval; None with a reason if undefined.

    `per_text` keeps the value of every text in window order, so that two saved runs can be compared
    pair by pair. `null` is the value for Gaussian rows of the same shape, `null_ratio` = value / null. `deleted` keeps,
    for a number that is pooled over documents, its value without each document in turn.
    """

    value: float | None
    low: float | None = field(default_factory=lambda: None)
    high: float | None = field(default_factory=lambda: None)
    per_text: tuple[float | None, ...] | None = None
    null: float | None = None
    null_ratio: float | None = None
    reason: str | None = None
    deleted: tuple[float | None, ...] | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves 0 out; False where there is no interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Finding:
    """One thing that was seen: the numbers, why it matters, the exact next command, a source."""

    id: str
    severity: Literal["severe", "warning", "info", "good"]
    title: str
    seen: str
    why: str
    next: str
    source: str


class Again:
    """A command line once more, with other values for some options: what a finding's `next` prints."""

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

    def without(self, key: str) -> Again:
        """The command without an option, however often it is there."""
        flag, made, skip = f"--{key.replace('_', '-')}", Again(""), False
        for word in self.words:
            if not skip and word.partition("=")[0] != flag:
                made.words.append(word)
            skip = not skip and word == flag
        return made

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


def saved(text: str, path: str | Path | None) -> str:
    """Return the text, after writing it to `path` when one is given."""
    from condense.files import write_text

    if path is not None:
        write_text(Path(path), text)
    return text


def parsed(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parsed JSON of a file, of JSON text, or as it is; UnavailableError if it is neither."""
    from condense.records.serial import loads, read_json

    if isinstance(source, Mapping):
        return source
    if isinstance(source, str) and source.lstrip().startswith("{"):
        data: dict[str, Any] = loads(source)
        return data
    return read_json(Path(source))
