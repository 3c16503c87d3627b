"""A file to its documents: compression, encodings, and the kind of file by its content.

Files come from outside. Each is read piece by piece, as the kind in its name, or by its content where the name has
none; one that cannot be read correctly raises an error naming its line, record, delimiter or encoding.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import shutil
import tempfile
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from condense.errors import UnavailableError, system_failure
from condense.texts import tables
from condense.texts.fields import Document, document_of

Kind = Literal["text", "lines", "json", "table", "parquet", "arrow"]
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".jsonlines": "lines",
    ".json": "json",
    ".csv": "table",
    ".tsv": "table",
    ".tab": "table",
    ".psv": "table",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
WHOLE_CHARACTERS = 4_000_000
"""4 MB: a longer text is not tokenised whole, and a longer file of text is not read into memory."""
HEAD = 1 << 20
_PIECE = 1 << 20
_FOREIGN = {
    b"PK\x03\x04": ("a zip archive, or an Excel or Word file", "unpack it; save a sheet as CSV in UTF-8"),
    b"%PDF-": ("a PDF file", "take its text out first: pdftotext FILE.pdf"),
    b"SQLite format 3\0": ("a SQLite database", "export its table as CSV or JSON"),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "save it as CSV or as plain text in UTF-8"),
    b"version https://git-lfs": ("a Git LFS pointer; the file itself is elsewhere", "git lfs pull"),
    b"\x89HDF": ("an HDF5 file", "export its text as JSON Lines or Parquet"),
    b"7z\xbc\xaf": ("a 7-Zip archive", "unpack it"),
    b"{\\rtf": ("a Rich Text file", "save it as plain text in UTF-8"),
    b"\x93NUMPY": ("a NumPy array", "token ids are measured in Python: condense.windows(numpy.load(FILE))"),
}
_MARKUP = re.compile(r"\s*(<!doctype html|<html[\s>]|<\?xml[\s?])", re.IGNORECASE)


def kind_by_name(name: str) -> Kind | None:
    """The kind of file by its name, without the suffix of a compression; None for an unknown suffix."""
    stem = name.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    return KINDS.get(Path(stem).suffix)


@dataclass
class Source:
    """An open file: its name in messages, its unpacked content, and the resources to close in the end."""

    name: str
    file: BinaryIO
    opened: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def of(cls, name: str, raw: BinaryIO) -> Source:
        """The content of an open file, unpacked where it is compressed, kept beside where it cannot be sought in."""
        source = cls(name, raw)
        source.opened.callback(raw.close)
        with ExitStack() as on_error:
            on_error.callback(source.opened.close)
            source._unpack()
            on_error.pop_all()
        return source

    def _unpack(self) -> None:
        if not self.file.seekable():
            self._use_file(_buffered(self.file))
        head = self.file.read(10)
        self.file.seek(0)
        if head.startswith(b"\x1f\x8b"):
            self._use_file(gzip.GzipFile(fileobj=self.file, mode="rb"))
        elif head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
            self._use_file(bz2.BZ2File(self.file))
        elif head.startswith(b"\xfd7zXZ\0"):
            self._use_file(lzma.LZMAFile(self.file))
        elif head.startswith(b"\x28\xb5\x2f\xfd"):
            pyarrow = tables.load_pyarrow(f"{self.name}: unpacking zstd")
            self._use_file(_buffered(pyarrow.CompressedInputStream(pyarrow.PythonFile(self.file), "zstd")))

    def _use_file(self, file: Any) -> None:
        self.file = cast(BinaryIO, file)
        self.opened.callback(file.close)


def _buffered(stream: Any) -> Any:
    """The content of a pipe, in memory or, beyond 64 MB, in a temporary file."""
    with ExitStack() as on_error:
        file = on_error.enter_context(tempfile.SpooledTemporaryFile(max_size=1 << 26))
        shutil.copyfileobj(stream, file, _PIECE)
        file.seek(0)
        on_error.pop_all()  # closed with the source
    return file


def documents(source: Source, column: str, *, stream: bool) -> Iterator[Document]:
    """The documents of an open file, which is closed then. `stream`: a long text stays in its file, read in slices.

    UnavailableError for what is empty, damaged, binary or not of the kind in its name; UsageError for a column that
    is missing or does not hold text.
    """
    with source.opened:
        try:
            yield from _documents_of(source, column, stream)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            raise system_failure(error) or UnavailableError(
                f"cannot read {source.name}: {tables.reason_of(error)}", "is the file damaged or cut off?"
            ) from None


def _documents_of(source: Source, column: str, stream: bool) -> Iterator[Document]:
    name, head, kind = source.name, source.file.read(HEAD), kind_by_name(source.name)
    for magic, (what, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise UnavailableError(f"{name} is not text: it is {what}", hint)
    if head[257:262] == b"ustar":
        raise UnavailableError(f"{name} is not text: it is a tar archive", "unpack it")
    if head.startswith(b"PAR1") or kind == "parquet":
        records = tables.parquet_rows(source.file, name, column)
    elif head.startswith(b"ARROW1\0\0") or kind == "arrow":
        records = tables.arrow_rows(source.file, name, column)
    else:
        text = Text(name, source.file, head)
        if kind is None and _MARKUP.match(text.head):
            raise UnavailableError(
                f"{name} is markup (HTML or XML), whose tags would be measured",
                "take its text out first, or rename it to .txt if the markup itself is meant",
            )
        kind = kind or _sniffed(text.head, column)
        if kind == "text":
            yield _whole_document(text, source, stream)
            return
        if kind == "table":
            stream_of_rows = source.opened.enter_context(text.stream(""))
            records = tables.delimited_rows(stream_of_rows, name, text.head, column)
        else:
            stream_of_lines = source.opened.enter_context(text.stream("\n"))
            records = tables.json_records(stream_of_lines, name, text.head, lines=kind == "lines")
    number = None
    for number, record in records:
        yield document_of(f"{name}:{number}", record, column)
    if number is None:
        raise UnavailableError(f"{name} is empty: it has no record")


def _sniffed(head: str, column: str) -> Kind:
    """The kind of a text without a known suffix: JSON, a table with the column in its header, or text."""
    string = r'"(\\.|[^"\\])*"\s*'
    if re.match(rf"\s*((\[\s*)?\{{\s*({string}:|\}}\s*$)|\[\s*{string}[,\]])", head):
        return "lines"
    return "table" if tables.is_header(head, column) else "text"


def _whole_document(text: Text, source: Source, stream: bool) -> Document:
    """A file that is one document."""
    reader = text.stream("")
    beginning = reader.read(WHOLE_CHARACTERS + 1) if stream else reader.read()
    reader.detach()
    if stream and len(beginning) > WHOLE_CHARACTERS:
        long = LongText(text, source.opened.pop_all())
        if long.is_blank:
            raise UnavailableError(f"{source.name} is empty")
        return Document(source.name, "", long=long)
    if not beginning.strip():
        raise UnavailableError(f"{source.name} is empty")
    return Document(source.name, beginning)


# --- encodings -----------------------------------------------------------------------------------------------

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)


class Text:
    """A file of characters: its encoding, the length of its byte-order mark, its first megabyte decoded."""

    def __init__(self, name: str, file: BinaryIO, head: bytes) -> None:
        """Find the encoding by the beginning of the file; UnavailableError for binary data and other encodings."""
        self.file = file
        self.encoding, self.mark = encoding_of(name, head, len(head) < HEAD)
        self.head = self.decoder().decode(head[self.mark :])
        if not self.head.strip() and len(head) < HEAD:
            raise UnavailableError(f"{name} is empty")

    def decoder(self) -> codecs.IncrementalDecoder:
        """A decoder of the encoding; invalid bytes become U+FFFD."""
        return codecs.getincrementaldecoder(self.encoding)("replace")

    def stream(self, newline: str) -> io.TextIOWrapper:
        """The characters from the start; lines end at `newline` only, or at any line end for "", untranslated."""
        self.file.seek(self.mark)
        return io.TextIOWrapper(self.file, self.encoding, errors="replace", newline=newline)


def encoding_of(name: str, head: bytes, whole: bool) -> tuple[str, int]:
    """The encoding of a text by its beginning, and the length of its byte-order mark; `whole`: nothing follows.

    UTF-8 with a few invalid bytes is UTF-8 (they become U+FFFD). UTF-16 needs no mark where every other byte is 0.
    UnavailableError for binary data, and for another encoding, naming a guess.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    if b"\0" in head[:4096]:
        for encoding, zeros, letters in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
            if len(zeros) > 3 and zeros.count(0) > 0.7 * len(zeros) and letters.count(0) == 0:
                return encoding, 0
        raise _binary(name)
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head, whole)
    invalid = text.count("\ufffd") - head.count("\ufffd".encode())
    if invalid <= max(1, len(text) // 500):
        return "utf-8", 0
    guess = _guess_encoding(head)
    if guess is None:
        raise _binary(name)
    raise UnavailableError(
        f"{name} is not text in UTF-8, perhaps in {guess}", f"convert it: iconv -f {guess} -t UTF-8 OLD > NEW"
    )


def _binary(name: str) -> UnavailableError:
    return UnavailableError(
        f"{name} is not text (binary data)", "give a txt, md, jsonl, json, csv, tsv, parquet or arrow file"
    )


def _guess_encoding(head: bytes) -> str | None:
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return "another encoding"
    best = from_bytes(head[:50_000]).best()
    if best is None:
        return None
    name = str(best.encoding)
    is_old = name.startswith(("cp4", "cp7", "cp8", "mac"))  # few letters beyond ASCII tell Windows from DOS badly
    if "cp1252" in best.could_be_from_charset or is_old:
        name = "cp1252"
    return name.replace("_", "-").replace("utf-16-", "UTF-16")  # as iconv spells it


class LongText:
    """A text too long to hold, in slices by characters: `len(text)`, `text[a:b]`. One pass, then flat memory."""

    def __init__(self, text: Text, opened: ExitStack) -> None:
        """Count the characters; every megabyte the offset in the file is stored. The object owns the open file."""
        weakref.finalize(self, opened.close)
        self._text = text
        self._starts, self._offsets, self._length = [0], [text.mark], 0
        self.is_blank, self.encoded_size = True, 0
        self._last = (0, "")
        for piece, offset in self._pieces_from(text.mark):
            self._length += len(piece)
            self._starts.append(self._length)
            self._offsets.append(offset)
            self.encoded_size += len(piece.encode("utf-8", errors="replace"))
            self.is_blank = self.is_blank and not piece.strip()

    def _pieces_from(self, offset: int) -> Iterator[tuple[str, int]]:
        """The text from a byte on, piece by piece, each with the byte that follows it."""
        decoder = self._text.decoder()
        self._text.file.seek(offset)
        while chunk := self._text.file.read(_PIECE):
            offset += len(chunk)
            yield decoder.decode(chunk), offset - len(decoder.getstate()[0])
        yield decoder.decode(b"", True), offset

    def __len__(self) -> int:
        """Characters."""
        return self._length

    def __getitem__(self, span: slice) -> str:
        """The characters from `span.start` up to `span.stop`."""
        start, stop, _ = span.indices(self._length)
        position, text = self._last
        if not position <= start <= stop <= position + len(text):
            known = bisect_right(self._starts, start) - 1
            position, text = self._starts[known], ""
            for piece, _ in self._pieces_from(self._offsets[known]):
                text += piece
                if position + len(text) >= stop:
                    break
            self._last = position, text  # what follows is often near; going back in a compressed file is slow
        return text[start - position : stop - position]

    def encoded(self) -> Iterator[bytes]:
        """The whole text in UTF-8, piece by piece."""
        for piece, _ in self._pieces_from(self._text.mark):
            yield piece.encode("utf-8", errors="replace")
