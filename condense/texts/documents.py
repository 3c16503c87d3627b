"""Files, folders, standard input and datasets to documents, in file order. Standard library first.

A document is one record of a jsonl/json/csv/parquet column, or one whole txt/md file. Text comes from
outside: it is read as UTF-8 with replacement, never interpreted.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from condense.errors import UnavailableError, UsageError, system_failure
from condense.files import expanded, is_special

PROBE_VERSION = "1"
_HEAD = 4096


@dataclass(frozen=True)
class Document:
    """One text with a name that says where it came from (`probe/encyclopaedic-1`, `notes.txt`, `a.jsonl:17`).

    A chat record keeps its `messages` (role, content); its text is their contents, a line each.
    """

    name: str
    text: str
    messages: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        """Half of a surrogate pair, which no UTF-8 can hold, becomes a question mark; a name may have one too."""
        object.__setattr__(self, "name", encodable(self.name))
        object.__setattr__(self, "text", encodable(self.text))


def encodable(text: str) -> str:
    """Text that UTF-8 can hold: half of a surrogate pair, as a file name of other bytes has it, as a question mark."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")


def probe() -> list[Document]:
    """The 32 passages that ship with condense: 8 registers × 4, written for it, public domain."""
    text = resources.files("condense").joinpath("data/probe.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [Document(record["id"], record["text"]) for record in records]


def read(source: str | Path, column: str = "text") -> Iterator[Document]:
    """Documents of a file, of a folder's files in name order, or of standard input (`-`).

    UnavailableError for a missing, empty, binary or unsupported file; UsageError for an unknown column.
    """
    if str(source) == "-":
        if sys.stdin is None:
            raise UnavailableError("standard input is closed", "give a file or a folder, or feed it a text")
        yield from _whole("standard input", sys.stdin.buffer.read())
        return
    path = expanded(source)
    if path.is_dir():
        next(path.iterdir(), None)  # raises where it cannot be read: rglob would find nothing in it
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in _READERS)
        if not files:
            raise UnavailableError(f"no {', '.join(_READERS)} file in {path}")
    elif is_special(path):
        raise UnavailableError(f"{path} is a pipe or a device, not a file", "feed it to standard input: --text -")
    elif path.exists():
        files = [path]
    else:
        raise UnavailableError(f"no such text: {path}", "give a file, a folder or - for standard input")
    for file in files:
        yield from _READERS.get(file.suffix.lower(), _plain)(file, column)


def dataset(name: str, config: str | None, split: str | None, column: str) -> Iterator[Document]:
    """Documents of a dataset by id: the split asked for, else test, validation or train.

    UnavailableError where `datasets` is missing or the dataset cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise UnavailableError(
            "reading a dataset needs the package datasets", "pip install 'condense-lm[data]'"
        ) from None
    try:
        splits = datasets.get_dataset_split_names(name, config)
        chosen = split or next((s for s in ("test", "validation", "train") if s in splits), splits[0])
        rows = datasets.load_dataset(name, config, split=chosen)
    except Exception as error:  # the hub client raises many kinds; all but these mean that the data is not to be had
        if (failure := system_failure(error)) is not None:
            raise failure from None
        raise UnavailableError(f"dataset {name} cannot be loaded: {_line(error)}") from None
    for index, row in enumerate(rows):
        yield _document(f"{name}/{chosen}:{index}", row, column, name)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _plain(path: Path, column: str) -> Iterator[Document]:
    return _whole(path.name, _bytes(path))


def _whole(name: str, data: bytes) -> Iterator[Document]:
    text = _decoded(name, data)
    if not text.strip():
        raise UnavailableError(f"{name} is empty")
    yield Document(name, text)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror or error}") from None


def _decoded(name: str, data: bytes) -> str:
    """UTF-8 with replacement; bytes that are plainly not text are refused."""
    head = data[:_HEAD]
    wrong = head.decode("utf-8", errors="replace").count("�")
    if b"\0" in head or wrong > max(8, len(head) // 10):
        raise UnavailableError(f"{name} is not text (binary data)", "give a txt, md, jsonl, json, csv or parquet file")
    return data.decode("utf-8-sig", errors="replace")


def _document(name: str, record: Any, column: str, where: str) -> Document:
    """A record as a document; one without the text column may be a chat (messages, or prompt and completion)."""
    if isinstance(record, dict) and column not in record:
        messages = _messages(record)
        if messages:
            return Document(name, "\n".join(content for _, content in messages), messages)
    return Document(name, _cell(record, column, where))


def _messages(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    turns = record.get("messages")
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        return tuple((str(turn.get("role", "user")), str(turn.get("content") or "")) for turn in turns)
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        return (("user", record["prompt"]), ("assistant", record["completion"]))
    return ()


def _cell(record: Any, column: str, where: str) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise UnavailableError(f"{where} holds {type(record).__name__} records, not objects with a text column")
    if column not in record:
        found = ", ".join(map(str, list(record)[:8]))
        raise UsageError(f"no column {column!r} in {where} (found: {found})", "name it with --text-column")
    value = record[column]
    return value if isinstance(value, str) else ("" if value is None else str(value))


def _some(name: str, records: Iterable[tuple[int, Any]], column: str) -> Iterator[Document]:
    empty = True
    for number, record in records:
        empty = False
        yield _document(f"{name}:{number}", record, column, name)
    if empty:
        raise UnavailableError(f"{name} is empty")


def _jsonl(path: Path, column: str) -> Iterator[Document]:
    def records() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(_decoded(path.name, _bytes(path)).split("\n"), 1):
            if line.strip():
                yield number, _loads(line, f"{path.name}, line {number},")

    return _some(path.name, records(), column)


def _json(path: Path, column: str) -> Iterator[Document]:
    text = _decoded(path.name, _bytes(path))
    if not text.strip():
        raise UnavailableError(f"{path.name} is empty")
    records = _loads(text, path.name)
    return _some(path.name, enumerate(records if isinstance(records, list) else [records], 1), column)


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnavailableError(f"{where} is not JSON") from None


def _csv(path: Path, column: str) -> Iterator[Document]:
    csv.field_size_limit(2**31 - 1)
    text = _decoded(path.name, _bytes(path))
    if not text.strip():
        raise UnavailableError(f"{path.name} is empty")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return _some(path.name, enumerate(rows, 2), column)


def _parquet(path: Path, column: str) -> Iterator[Document]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UnavailableError("reading parquet needs the package pyarrow", "pip install 'condense-lm[data]'") from None
    try:
        file = parquet.ParquetFile(path)
        rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
        yield from _some(path.name, enumerate(rows), column)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{path.name} is not a readable parquet file: {_line(error)}") from None


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _plain, ".md": _plain, ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet,
}  # fmt: skip
