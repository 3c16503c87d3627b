"""JSON, delimited text, Parquet and Arrow to records, piece by piece, each with its number.

A row that cannot be read correctly raises an error naming its line. Where the format allows it only the columns that
are needed are read, so that an odd value in another column does not matter.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, BinaryIO, NoReturn, TextIO

from condense.errors import UnavailableError, UsageError, system_failure
from condense.texts.fields import CHAT_COLUMNS, missing, needed

Record = tuple[int, Any]
_PIECE = 1 << 20
_ROWS = 256


def reason_of(error: BaseException) -> str:
    """The first line of an exception's message."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0][:200]


# --- JSON ----------------------------------------------------------------------------------------------------


def json_records(stream: TextIO, name: str, head: str, *, lines: bool) -> Iterator[Record]:
    """The records of JSON Lines, numbered by line, or of JSON: an array's elements, or values one after another.

    `lines`: the suffix is that of JSON Lines. JSON Lines under the suffix of JSON, and JSON under the suffix of
    JSON Lines, are read by their content. UnavailableError naming the line that is not JSON.
    """
    if not lines and head.lstrip()[:1] == "{":
        return _by_row(_json_records(stream, name, head, lines=False))
    return _json_records(stream, name, head, lines=lines)


def _json_records(stream: TextIO, name: str, head: str, *, lines: bool) -> Iterator[Record]:
    line, _, rest = head.lstrip().partition("\n")
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        is_cut = not rest and len(line) > _PIECE // 8  # a first line longer than what was read of the file
        return _Values(stream, name).records() if line[:1] == "[" or not is_cut else _lines(stream, name)
    is_record = rest.lstrip()[:1] == "["  # one array per line: its error names that
    if isinstance(first, list) and not is_record and (not lines or all(isinstance(i, dict | str) for i in first)):
        return _Values(stream, name).records()
    return _lines(stream, name)


def _by_row(records: Iterator[Record]) -> Iterator[Record]:
    """The same records; those of a table whose only object keeps it by column, as pandas does with orient="list"."""
    first, second = next(records, None), next(records, None)
    if first is not None and second is None and isinstance(table := first[1], dict) and _is_by_column(table):
        yield from enumerate((dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)), 1)
        return
    yield from (record for record in (first, second) if record is not None)
    yield from records


def _is_by_column(table: dict[str, Any]) -> bool:
    columns = list(table.values())
    plain = all(isinstance(column, list) and not any(isinstance(cell, dict) for cell in column) for column in columns)
    return plain and len(columns) > 1 and len({len(column) for column in columns}) == 1


def _lines(stream: TextIO, name: str) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                raise UnavailableError(f"{name}, line {number}, is not JSON") from None
            except (ValueError, RecursionError) as error:
                raise UnavailableError(f"{name}, line {number}, cannot be read: {reason_of(error)}") from None
            yield number, record


class _Values:
    """JSON values read one after another from a stream of which only a piece is in memory."""

    _BLANK = re.compile(r"\s*")
    _NEAR_THE_END = 64

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def records(self) -> Iterator[Record]:
        """The elements of an array, or the values that follow each other, numbered from 1."""
        number = 0
        if self._next_character() != "[":
            while self._next_character():
                number += 1
                yield number, self._parse_value()
            return
        self._at += 1
        separator = "" if self._next_character() == "]" else ","
        while separator == ",":
            number += 1
            yield number, self._parse_value()
            separator = self._next_character()
            self._at += separator == ","
        if separator not in ("", "]") or self._next_character() != "]":
            self._fail(self._at)
        self._at += 1
        if self._next_character():
            self._fail(self._at)

    def _next_character(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            blank = self._BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def _parse_value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except RecursionError:
                self._fail(self._at)
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - self._NEAR_THE_END or error.msg.startswith("Unterminated string")
                if self._ended or not is_cut:
                    self._fail(error.pos)
            except ValueError:  # a number of thousands of digits
                self._fail(self._at)
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            self._read_more()

    def _read_more(self) -> None:
        """Drop the text already parsed, and read as much again as is still in use."""
        self._line += self._text.count("\n", 0, self._at)
        piece = self._stream.read(max(_PIECE, len(self._text) - self._at))
        self._text, self._at, self._ended = self._text[self._at :] + piece, 0, not piece

    def _fail(self, position: int) -> NoReturn:
        line = self._line + self._text.count("\n", 0, position)
        raise UnavailableError(f"{self._name}, line {line}, is not JSON")


# --- delimited text ------------------------------------------------------------------------------------------

_DELIMITERS = ",;\t|"
_MOST_IN_A_CELL = 1 << 27
_NUMBER = re.compile(r"\s*[-+]?[\d.,:/ \-]*\d[\d.,:/TZ \-]*\s*")
_QUOTING = 'quote cells with "…" and write a quote in them twice, or give JSON Lines'


def is_header(head: str, column: str) -> bool:
    """Whether a text begins with a line of several short fields, the column among them."""
    headers = (_header_fields(head, delimiter) for delimiter in _DELIMITERS)
    return any(len(names) > 1 and column in names and max(map(len, names)) <= 64 for names in headers)


def delimited_rows(stream: TextIO, name: str, head: str, column: str) -> Iterator[Record]:
    """The rows of a table in text as objects, the delimiter found by the header; numbered as in a spreadsheet.

    UsageError for a column that is missing or occurs twice. UnavailableError, naming the line, for quotes that do
    not close, for more fields than the header has, and for a cell that contains other rows.
    """
    table = _Table.of(name, head, column)
    csv.field_size_limit(_MOST_IN_A_CELL)
    for _ in range(table.skipped):
        stream.readline()
    reader = csv.reader(stream, delimiter=table.delimiter, skipinitialspace=table.spaced, strict=True)
    number, line = 0, 1
    while True:
        line = table.skipped + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise table.broken(line, error) from None
        if row is None:
            return
        number += bool(row)
        if row and number > 1:
            table.check(row, line)
            yield number, dict(zip_longest(table.header, row))


def _header_fields(head: str, delimiter: str) -> list[str]:
    """The fields of the first line."""
    try:
        row = next(csv.reader(io.StringIO(head.lstrip("\r\n")[:100_000], newline=""), delimiter=delimiter), [])
    except csv.Error:
        row = []
    return [field.strip() for field in row]


@dataclass
class _Table:
    """The shape of a delimited file, and statistics of its rows so far."""

    name: str
    delimiter: str
    header: list[str]
    spaced: bool
    skipped: int
    index: int | None  # of the text column
    numeric: set[int] = field(default_factory=set)  # columns that held a number or a date in every row

    @classmethod
    def of(cls, name: str, head: str, column: str) -> _Table:
        told_by_file = re.match(r'"?sep=(.)"?\r?\n', head, re.IGNORECASE)  # Excel writes and obeys it
        body = head[told_by_file.end() :] if told_by_file else head
        delimiters = told_by_file[1] if told_by_file else _possible_delimiters(name, body, column)
        headers = {delimiter: _header_fields(body, delimiter) for delimiter in delimiters}
        with_column = [delimiter for delimiter in delimiters if column in headers[delimiter]]

        def rank(delimiter: str) -> tuple[int, int]:
            return len(CHAT_COLUMNS.intersection(headers[delimiter])), len(headers[delimiter])

        delimiter = max(with_column or delimiters, key=rank)
        header = headers[delimiter]
        if not with_column and not CHAT_COLUMNS.intersection(header):
            raise missing(column, header, f"{name}, read with the delimiter {delimiter!r}")
        if header.count(column) > 1:
            raise UsageError(f"{name} has {header.count(column)} columns called {column!r}", "rename all but one")
        index = header.index(column) if column in header else None
        spaced = f"{delimiter} " in body.lstrip("\r\n").partition("\n")[0]
        numeric = set(range(len(header))) - {index}
        return cls(name, delimiter, header, spaced, int(told_by_file is not None), index, numeric)

    def check(self, row: list[str], line: int) -> None:
        """UnavailableError for a row with another number of fields than the header, or that contains other rows."""
        width = len(self.header)
        while len(row) > width and not row[-1]:
            row.pop()
        if len(row) > width:
            raise UnavailableError(
                f"{self.name}, line {line}: {len(row)} fields where the header has {width} (delimiter "
                f"{self.delimiter!r})",
                _QUOTING,
            )
        if len(row) < width and not self._looks_like_a_row(row):
            raise UnavailableError(
                f"{self.name}, line {line}: {len(row)} field where the header has {width}: a line break in a cell "
                "without quotes?",
                _QUOTING,
            )
        if len(row) == width:
            self.numeric = {column for column in self.numeric if _NUMBER.fullmatch(row[column])}
        if self.index is not None and self.index < len(row) and width > 1 and self._has_swallowed(row[self.index]):
            raise UnavailableError(
                f"{self.name}, line {line}: a quote that opens here closes lines later, over what looks like rows",
                _QUOTING,
            )

    def _looks_like_a_row(self, cells: list[str]) -> bool:
        """Whether this row has numbers in the columns in which every row so far had them."""
        return all(_NUMBER.fullmatch(cells[column]) for column in self.numeric if column < len(cells))

    def _has_swallowed(self, cell: str) -> bool:
        """Whether each line inside a cell looks like another row, which a pair of stray quotes would hide."""
        rows = [line.split(self.delimiter) for line in cell.splitlines()[1:] if line.strip()]
        separable = self.delimiter == "\t" or any(column < (self.index or 0) for column in self.numeric)
        return separable and bool(rows) and all(len(r) > (self.index or 0) and self._looks_like_a_row(r) for r in rows)

    def broken(self, line: int, error: csv.Error) -> UnavailableError:
        """The error for a row that csv cannot parse."""
        text = str(error)
        if "end of data" in text or "field limit" in text:
            text = "a quote that opens here does not close"
        elif "expected after" in text:
            text = "text stands behind a quote that closes a cell: a quote inside a cell that is not written twice?"
        return UnavailableError(f"{self.name}, line {line}: {text}", _QUOTING)


def _possible_delimiters(name: str, body: str, column: str) -> str:
    """Characters that may divide the fields; one next to the column's name in the header is included."""
    line = body.lstrip("\r\n").partition("\n")[0]
    beside = re.findall(rf'([^\w"\s])"?{re.escape(column)}(?!\w)|(?<!\w){re.escape(column)}"?([^\w"\s])', line)
    usual = _DELIMITERS if ".csv" in name.lower() else "\t,;|"
    return "".join(dict.fromkeys([*usual, *(char for pair in beside for char in pair if char)]))


# --- Parquet and Arrow ---------------------------------------------------------------------------------------


def load_pyarrow(what: str) -> Any:
    """The package pyarrow; UnavailableError naming the kind of file that needs it."""
    try:
        import pyarrow
    except ImportError:
        raise UnavailableError(f"{what} needs the package pyarrow", "pip install '.[data]'") from None
    return pyarrow


def parquet_rows(file: BinaryIO, name: str, column: str) -> Iterator[Record]:
    """The rows of a Parquet file with the columns that are needed, numbered from 0."""
    pyarrow = load_pyarrow(f"reading {name}")
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(file, buffer_size=_PIECE, pre_buffer=False)
        columns = needed(column, table.schema_arrow.names, name)
        yield from _numbered_rows(table.iter_batches(_ROWS, columns=columns, use_threads=False))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise system_failure(error) or UnavailableError(
            f"{name} is not a readable parquet file: {reason_of(error)}"
        ) from None


def arrow_rows(file: BinaryIO, name: str, column: str) -> Iterator[Record]:
    """The rows of an Arrow file or stream with the columns that are needed, numbered from 0."""
    pyarrow = load_pyarrow(f"reading {name}")
    from pyarrow import ipc

    try:
        file.seek(0)
        is_file = file.read(8) == b"ARROW1\0\0"
        file.seek(0)
        reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
        columns = needed(column, reader.schema.names, name)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        yield from _numbered_rows(batch.select(columns) for batch in batches)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise system_failure(error) or UnavailableError(
            f"{name} is not a readable arrow file: {reason_of(error)}"
        ) from None


def _numbered_rows(batches: Iterator[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for record in batch.slice(start, _ROWS).to_pylist():
                yield number, record
                number += 1
