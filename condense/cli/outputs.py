"""The files a command writes: checked before any work, written whole, never over somebody else's file."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from condense.errors import UnavailableError, UsageError, first_line
from condense.files import is_special, write_text
from condense.records.base import PlotlyJs, Saved
from condense.records.options import OutputOptions

NAMES = {"json": "diagnosis.json", "html": "report.html", "md": "report.md", "csv": "layers.csv"}
_OURS = (
    b'{"schema":"condense.',
    b'content="condense',
    b"site,stack,index,depth",
    b"arm,corpus,site,stack",
    b"arm,seed,status,",
    b"arm,status,reason",
    b"member,step,model",
    b"# condense",
    b'<testsuites name="condense"',
)


@dataclass(frozen=True)
class Outputs:
    """Where a run is to be written, by kind."""

    json: Path | None = None
    html: Path | None = None
    md: Path | None = None
    csv: Path | None = None
    plotlyjs: PlotlyJs = "inline"

    def paths(self) -> list[Path]:
        """All files that will be written."""
        return [path for path in (self.json, self.html, self.md, self.csv) if path is not None]

    def write(self, run: Saved) -> list[Path]:
        """Write what was asked for of a run and return the files."""
        from condense.report.tables import rows_csv

        if self.json:
            run.to_json(self.json)
        if self.csv:
            write_text(self.csv, rows_csv(run.rows()))
        if self.md:
            run.to_markdown(self.md)
        if self.html:
            run.to_html(self.html, plotlyjs=self.plotlyjs)
        return self.paths()


def plan_outputs(files: OutputOptions, names: Mapping[str, str] = NAMES) -> Outputs:
    """Join -o DIR and the single files; UsageError if one cannot be written or is not ours to replace.

    names: what the files of DIR are called, by kind.
    """
    folder = files.output
    chosen = {kind: getattr(files, kind) or (folder / name if folder else None) for kind, name in names.items()}
    if folder is not None:
        check_folder(folder, force=files.force)
    for path in chosen.values():
        if path is not None:
            check_file(path, force=files.force)
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


def check_file(path: Path, *, force: bool) -> None:
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
    if there and not force and not _is_ours(path):
        raise UsageError(f"{path} exists and was not written by condense", "choose another name, or pass --force")


def _target(link: Path) -> Path:
    """What a link points to in the end; UsageError for a circle and for a folder that is not there."""
    target = Path(os.path.realpath(link))
    if target.is_symlink():
        raise UsageError(f"{link} is a link that leads in a circle", "choose another place")
    if not target.parent.is_dir():
        raise UsageError(f"{link} is a link to {target}, whose folder is not there", "choose another place")
    return target


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return not head or any(mark in head for mark in _OURS)
