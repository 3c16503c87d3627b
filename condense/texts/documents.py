"""Files, folders, standard input and datasets to documents, in file order.

A document is one record of a jsonl, json, csv, tsv, parquet or arrow column, or one whole txt or md file. Text comes
from outside: it is read as text, never interpreted.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from condense.errors import CondenseError, UnavailableError, UsageError, system_failure
from condense.files import expanded, is_special
from condense.texts import formats
from condense.texts.fields import Document, document_of, needed, shown
from condense.texts.formats import Source, kind_by_name
from condense.texts.tables import reason_of

__all__ = ["PROBE_VERSION", "Document", "Kept", "dataset", "label", "probe", "read"]

PROBE_VERSION = "1"
SPLITS = ("test", "validation", "train")
"""Which split of a dataset is read where none is named: the first of these that there is."""
_ROWS_AT_ONCE = 256
_NO_CORPUS = ("readme", "license", "licence", "copying", "notice", "citation")
_INFO_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")


def probe() -> list[Document]:
    """The 32 passages that ship with condense: 8 registers × 4, written for it, public domain."""
    text = resources.files("condense").joinpath("data/probe.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [Document(record["id"], record["text"]) for record in records]


def label(source: str | Path) -> str:
    """How a source of text is named in a record."""
    return "standard input" if str(source) == "-" else shown(str(source))


def read(
    source: str | Path, column: str = "text", *, split: str | None = None, stream: bool = False
) -> Iterator[Document]:
    """Documents of a file, of a folder's files in name order, of a saved dataset, or of standard input (`-`).

    split: of a dataset folder (`save_to_disk`). stream: a file that is one document above 4 MB is left on disk, and
    read in slices (`Document.long`).

    UnavailableError for a missing, empty, binary or unsupported file; UsageError for an unknown column or a cell
    that is not text.
    """
    if not str(source).strip():
        raise UsageError("the text is named by an empty string", "give a file, a folder or - for standard input")
    if str(source) == "-":
        try:
            opened = Source.of("standard input", _standard_input())
        except OSError as error:
            raise _unreadable_error("standard input", error) from None
        yield from formats.documents(opened, column, stream=stream)
        return
    path = expanded(source)
    mode = _read_mode(path)
    if stat.S_ISDIR(mode):
        if is_saved_dataset(path):
            yield from _saved_dataset(path, column, split)
            return
        for file in _text_files(path):
            name = shown(file.relative_to(path).as_posix())
            yield from formats.documents(_open_source(file, name), column, stream=stream)
        return
    if is_special(path):
        raise UnavailableError(
            f"{label(path)} is a pipe or a device, not a file", "feed it to standard input: --text -"
        )
    yield from formats.documents(_open_source(path, shown(path.name)), column, stream=stream)


def _read_mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as error:
        raise _unreadable_error(_short_name(path), error) from None
    if path.is_symlink():
        raise UnavailableError(f"{_short_name(path)} is a link to {shown(str(path.readlink()))}, which is not there")
    raise UnavailableError(f"no such text: {_short_name(path)}", "give a file, a folder or - for standard input")


def _short_name(path: Path) -> str:
    name = label(path)
    return name if len(name) <= 200 else f"{name[:200]}… ({len(name)} characters)"


def _standard_input() -> BinaryIO:
    """A reader of standard input whose closing leaves standard input open; UnavailableError where it is closed."""
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (AttributeError, ValueError):  # none, or one that is no file
        buffer = getattr(sys.stdin, "buffer", None)
        if buffer is None or sys.stdin.closed:
            raise UnavailableError("standard input is closed", "pipe text into condense, or give a file") from None
        return io.BytesIO(buffer.read())
    except OSError as error:
        raise _unreadable_error("standard input", error) from None


def _open_source(path: Path, name: str) -> Source:
    try:
        return Source.of(name, path.open("rb"))
    except OSError as error:
        raise _unreadable_error(_short_name(path), error) from None


def _unreadable_error(name: str, error: OSError) -> CondenseError:
    return system_failure(error) or UnavailableError(f"cannot read {name}: {reason_of(error)}")


# --- folders -------------------------------------------------------------------------------------------------


def _text_files(folder: Path) -> list[Path]:
    """The files of text in a folder, in name order: not hidden, not a README, a licence or a dataset's description.

    Links are followed, a folder once. UnavailableError where there is none, and for a folder or a link that cannot
    be read.
    """
    text_files, others = [], []
    for path in sorted(_walk(folder)):
        if _is_corpus(path):
            text_files.append(path)
        else:
            others.append(path.relative_to(folder).as_posix())
    if not text_files:
        seen = f" (not read: {', '.join(map(shown, others[:4]))}{' …' * (len(others) > 4)})" if others else ""
        raise UnavailableError(
            f"no {', '.join(formats.KINDS)} file in {label(folder)}{seen}",
            "READMEs, licences and hidden files are no corpus: name such a file itself to read it",
        )
    return text_files


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise _unreadable_error(shown(str(error.filename)), error) from None

    visited: set[tuple[int, int]] = set()
    for path, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        state = Path(path).stat()
        if (state.st_dev, state.st_ino) in visited:
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(path) / name for name in files if not name.startswith("."))


def _is_corpus(path: Path) -> bool:
    name = path.name.lower()
    kind = kind_by_name(name)
    if kind is None or name in _INFO_FILES or (kind == "text" and name.split(".")[0] in _NO_CORPUS):
        return False
    if name.startswith("cache-") and name.endswith(".arrow"):  # what datasets keeps beside a dataset
        return False
    return path.is_symlink() or path.is_file()


# --- datasets ------------------------------------------------------------------------------------------------


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of datasets."""
    is_single = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return is_single or (folder / "dataset_dict.json").is_file()


def _saved_dataset(folder: Path, column: str, split: str | None) -> Iterator[Document]:
    """Documents of a folder that `save_to_disk` wrote."""
    datasets = _datasets()
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder raises what pyarrow, json or the file system do
        if (failure := system_failure(error)) is not None:
            raise failure from None
        raise UnavailableError(f"{label(folder)} is not a readable saved dataset: {reason_of(error)}") from None
    name = label(folder.name)
    if isinstance(saved, dict):
        chosen = _chosen_split(list(saved), split, name)
        saved, name = saved[chosen], f"{name}/{chosen}"
    elif split is not None and split != str(saved.split):
        raise UsageError(f"{name} has no split {split!r}: it is a single one", "leave --split out")
    yield from _dataset_documents(saved, name, column)


def dataset(name: str, config: str | None, split: str | None, column: str) -> Iterator[Document]:
    """Documents of a dataset by id: the split asked for, else test, validation or train.

    UnavailableError where `datasets` is missing or the dataset cannot be reached.
    """
    if not name.strip():
        raise UsageError("the dataset is named by an empty string", "give --dataset ID")
    datasets = _datasets()
    try:
        chosen = split or _chosen_split(datasets.get_dataset_split_names(name, config), None, name)
        rows = datasets.load_dataset(name, config, split=chosen)
    except Exception as error:  # the hub client raises many kinds; all but these mean that the data is not available
        if (failure := system_failure(error)) is not None:
            raise failure from None
        raise UnavailableError(f"dataset {name} cannot be loaded: {reason_of(error)}") from None
    yield from _dataset_documents(rows, f"{name}/{chosen}", column)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UnavailableError("reading a dataset needs the package datasets", "pip install '.[data]'") from None
    return datasets


def _chosen_split(splits: Sequence[str], asked: str | None, name: str) -> str:
    if asked is not None and asked not in splits:
        raise UsageError(f"{name} has no split {asked!r} (found: {', '.join(splits)})", "name one with --split")
    return asked or next((split for split in SPLITS if split in splits), splits[0])


def _dataset_documents(rows: Any, name: str, column: str) -> Iterator[Document]:
    """The documents of a dataset's rows: only the columns that are needed, as they are stored.

    `datasets` itself would open the files and addresses that a column of images or sounds names.
    """
    stored = rows.select_columns(needed(column, rows.column_names, name)).with_format("arrow")
    records = (record for table in stored.iter(_ROWS_AT_ONCE) for record in table.to_pylist())
    for number, record in enumerate(records):
        yield document_of(f"{name}:{number}", record, column)


# --- many documents ------------------------------------------------------------------------------------------

_IN_MEMORY = 1 << 26


class Kept(Sequence[Document]):
    """Documents in the order they came in, or in another: in memory, or beyond 64 MB of text in a temporary file."""

    def __init__(self) -> None:
        """Begin empty."""
        self._held: list[Document] = []
        self._characters = 0
        self._file: BinaryIO | None = None
        self._ends = array("q", [0])

    def __reduce__(self) -> tuple[Any, ...]:
        """All the documents, for another process; a long text goes into a temporary file of its own there."""
        return _kept, (tuple(self),)

    def append(self, document: Document) -> None:
        """Add one."""
        if self._file is None:
            self._held.append(document)
            self._characters += len(document.text)
            if self._characters <= _IN_MEMORY:
                return
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  open as long as this object
            weakref.finalize(self, self._file.close)
            for held in self._held:
                self._append_to_file(held)
            self._held = []
        else:
            self._append_to_file(document)

    def _append_to_file(self, document: Document) -> None:
        assert self._file is not None
        data = json.dumps([document.name, document.text, document.messages, document.untrainable]).encode()
        self._file.seek(self._ends[-1])
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._held) if self._file is None else len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        """A document by its number."""
        if self._file is None:
            return self._held[index]
        start, end = self._ends[index], self._ends[index + 1]
        self._file.seek(start)
        name, text, turns, untrainable = json.loads(self._file.read(end - start))
        messages = None if turns is None else tuple((role, content) for role, content in turns)
        return Document(name, text, messages, untrainable=untrainable)

    def chosen(self, indices: Iterable[int]) -> Sequence[Document]:
        """Some of the documents, in this order, read when they are asked for."""
        return tuple(self._held[i] for i in indices) if self._file is None else _Chosen(self, array("q", indices))


def _kept(documents: Iterable[Document]) -> Kept:
    kept = Kept()
    for document in documents:
        kept.append(document)
    return kept


@dataclass(frozen=True)
class _Chosen(Sequence[Document]):
    kept: Kept
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.kept[self.indices[index]]
