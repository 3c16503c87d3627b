"""The files a command writes: checked before any work, written whole, never over somebody else's file."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from condense.errors import UnavailableError, UsageError, first_line
from condense.files import is_special, write_text
from condense.metrics import LENS, MATRIX, METRICS, POOLED, POOLINGS, QUALITY
from condense.records.base import PlotlyJs, Saved
from condense.records.diagnosis import MATRICES
from condense.records.options import OutputOptions

NAMES = {"json": "diagnosis.json", "html": "report.html", "md": "report.md", "csv": "layers.csv"}


@dataclass(frozen=True)
class Outputs:
    """Where a run is to be written, by kind: into the folder of --output, and to the single file that was named."""

    json: tuple[Path, ...] = ()
    html: tuple[Path, ...] = ()
    md: tuple[Path, ...] = ()
    csv: tuple[Path, ...] = ()
    plotlyjs: PlotlyJs = "inline"

    def paths(self) -> list[Path]:
        """All files that will be written."""
        return [*self.json, *self.html, *self.md, *self.csv]

    def write(self, run: Saved) -> list[Path]:
        """Write what was asked for of a run and return the files."""
        from condense.report.tables import rows_csv

        for path in self.json:
            run.to_json(path)
        for path in self.csv:
            write_text(path, rows_csv(run.rows()))
        for path in self.md:
            run.to_markdown(path)
        for path in self.html:
            run.to_html(path, plotlyjs=self.plotlyjs)
        return self.paths()


def plan_outputs(files: OutputOptions, names: Mapping[str, str] = NAMES) -> Outputs:
    """Join -o DIR and the single files, which are written beside those of DIR.

    UsageError if one cannot be written, is not ours to replace, or is to be of two kinds.
    names: what the files of DIR are called, by kind.
    """
    folder = files.output
    if folder is not None:
        check_folder(folder, force=files.force)
    chosen: dict[str, tuple[Path, ...]] = {}
    kinds: dict[str, str] = {}
    for kind, name in names.items():
        asked = [folder / name if folder else None, getattr(files, kind)]
        targets = {os.path.realpath(path): path for path in reversed(asked) if path is not None}
        for target, path in targets.items():
            if target in kinds:
                raise UsageError(f"{path} would be written as {kinds[target]} and as {kind}", "name another file")
            kinds[target] = kind
            check_file(path)
        chosen[kind] = tuple(reversed(targets.values()))
    return Outputs(**chosen, plotlyjs=files.plotlyjs)


@contextlib.contextmanager
def from_saved_run(path: Path) -> Iterator[None]:
    """A saved run that cannot be drawn holds what condense would not write: it comes from outside."""
    try:
        yield
    except (ArithmeticError, ValueError) as error:
        raise UnavailableError(
            f"{path} holds a value that cannot be shown: {first_line(error)}", "condense does not write such values"
        ) from error


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that is a file, or holds anything and was not forced; UsageError where it cannot be read."""
    if folder.is_symlink() and not _target(folder).exists():
        raise UsageError(f"{folder} is a link to {_target(folder)}, which is not there", "choose another --output")
    try:
        there, is_folder = folder.exists(), folder.is_dir()
        is_empty = not (is_folder and any(folder.iterdir()))
    except PermissionError as error:
        raise UsageError(f"cannot look into {folder}: {error.strerror}", "choose another --output") from None
    if there and not is_folder:
        raise UsageError(f"{folder} is a file, not a folder", "choose another --output")
    if not is_empty and not force:
        raise UsageError(f"{folder} is not empty", "choose another --output, or pass --force to write into it")


def check_file(path: Path) -> None:
    """Refuse a place that cannot be written, or a file that condense did not write; of a link, its target."""
    if path.is_symlink():
        path = _target(path)
    try:
        is_folder, there = path.is_dir(), path.exists()
        parent = next(folder for folder in path.absolute().parents if folder.exists())
    except PermissionError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose another place") from None
    if is_folder:
        raise UsageError(f"{path} is a folder", "give a file name")
    if is_special(path):
        raise UsageError(f"{path} is a pipe or a device, which would be replaced", "give a file name")
    try:
        if len(os.fsencode(path.name)) > os.pathconf(parent, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {parent} is not writable ({error.strerror or error})", "choose another place"
        ) from None
    if there and not is_written_by_condense(path):
        raise UsageError(f"{path} exists and was not written by condense", "choose another name, or move it away")


def _target(link: Path) -> Path:
    """What a link points to in the end; UsageError for a circle and for a folder that is not there."""
    target = Path(os.path.realpath(link))
    if target.is_symlink():
        raise UsageError(f"{link} is a link that leads in a circle", "choose another place")
    if not target.parent.is_dir():
        raise UsageError(f"{link} is a link to {target}, whose folder is not there", "choose another place")
    return target


# --- what condense wrote ---------------------------------------------------------------------------------

_MOST = 1 << 30  # bytes of a run that is looked into
_POOLED_COLUMNS = {f"pooled.{pooling}.{key}" for pooling in POOLINGS for key in POOLED}
_OF_A_MATRIX = ("tied", "rows", *(key.partition(".")[2] for key in MATRIX))
_MATRIX_COLUMNS = {f"{name}.{key}" for name in MATRICES for key in _OF_A_MATRIX}
_SAME_COLUMNS = {"same_word", "same_from_block", "same_from", "same_kl", "same_top1"}
_FIELDS = frozenset((*METRICS, *LENS, *QUALITY)) | _POOLED_COLUMNS | _MATRIX_COLUMNS | _SAME_COLUMNS
_NUMBER = re.compile(r"(.+?)(_(effect|difference))?(_low|_high|_null_ratio)?")
_LAYERS = ("site", "stack", "index", "depth")
# The first columns of each table of condense, and those that may follow beside its numbers.
_TRIAL = "quality parameters_added time_ratio memory_ratio seconds trained_tokens weights_sha256 reason"
_COMPARED = "hidden_size dtype trend_rho trend_tau paper_rho paper_tau level cone rank attribution against paired"
_TABLES: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    (_LAYERS, frozenset()),
    (("arm", "corpus", *_LAYERS), frozenset()),
    (("arm", "status", "reason"), frozenset()),
    (("arm", "seed", "status", "verdict"), frozenset(_TRIAL.split())),
    (
        ("member", "step", "model", "revision", "weights_sha256", "architecture", "parameters", "blocks"),
        frozenset(_COMPARED.split()),
    ),
)


def is_written_by_condense(path: Path) -> bool:
    """Whether a file is one that condense wrote, by what is in it; an empty file is nobody's and may be written.

    JSON by its schema, XML by its root, HTML by the generator in its head, Markdown by its first line, a model card by
    its front matter, CSV by its header row: each parsed, so that a mark elsewhere in a file says nothing.
    """
    try:
        if path.stat().st_size > _MOST:
            return False
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    first = text.partition("\n")[0]
    if text.startswith("{"):
        return _is_json(text)
    if text.startswith(("<?xml", "<testsuites")):
        return _is_xml(text)
    if text[:15].lower() == "<!doctype html>":
        return _Head(text).generator.startswith("condense ")
    if text.startswith("---\n"):
        keys = text[4:].partition("\n---\n")[0].splitlines()
        return any(re.fullmatch(r'generator: "condense [^"]*"', key) for key in keys)
    return not text or bool(re.fullmatch(r"<!-- condense [^<>]* -->", first)) or _is_table(first)


def _is_json(text: str) -> bool:
    try:
        schema = json.loads(text).get("schema")
    except (ValueError, RecursionError):
        return False
    return isinstance(schema, str) and re.fullmatch(r"condense\.[a-z]+/\d+", schema) is not None


def _is_xml(text: str) -> bool:
    """Whether the root is `testsuites` of condense; nothing behind it is read."""
    try:
        _, root = next(ElementTree.iterparse(io.StringIO(text), ("start",)))
    except (ElementTree.ParseError, StopIteration, ValueError):
        return False
    return bool(root.tag == "testsuites" and root.get("name") == "condense")


class _Head(HTMLParser):
    """The generator that the head of a page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.generator, self._inside = "", True
        self.feed(text[: 1 << 16])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Read a meta element of the head; whatever only stands in a body ends it."""
        values = dict(attrs)
        self._inside = self._inside and tag in ("html", "head", "meta", "title", "link", "style", "script", "base")
        if self._inside and tag == "meta" and values.get("name") == "generator" and not self.generator:
            self.generator = values.get("content") or ""

    def handle_endtag(self, tag: str) -> None:
        """The head ends where it is closed."""
        self._inside = self._inside and tag != "head"


def _is_table(line: str) -> bool:
    """Whether a line is the header row of one of condense's tables: every column of it is known."""
    header = tuple(next(csv.reader([line]), ()))
    for lead, others in _TABLES:
        if header[: len(lead)] == lead:
            return all(name in others or _is_number(name) for name in header[len(lead) :])
    monitored = [name for name in header if name.removeprefix("deep.") in _FIELDS]
    return bool(monitored) and header[0] == "step" and header[-1] == "seconds"


def _is_number(column: str) -> bool:
    """Whether a column is a number that condense measures, with what stands beside it."""
    matched = _NUMBER.fullmatch(column)
    return bool(matched and matched[1] in _FIELDS) or re.fullmatch(r"top_dimension_\d+(_share)?", column) is not None
