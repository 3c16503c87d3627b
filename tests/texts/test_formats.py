"""Every format and encoding that text is kept in: the right text, or a refusal that says where it went wrong."""

import bz2
import errno
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condense.errors import CondenseError, UnavailableError, UsageError
from condense.texts.documents import probe, read
from condense.texts.formats import WHOLE_CHARACTERS

LINES = '{"text": "one"}\n{"text": "two"}\n'
UMLAUTS = "grüße aus Zürich und schöne Größe " * 20


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., list[str]]:
    """Write a file and read it: the texts of its documents."""

    def written_and_read(name: str, content: str | bytes, column: str = "text") -> list[str]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [document.text for document in read(path, column)]

    return written_and_read


def refusal(call: Callable[..., Any], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(CondenseError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.exit_code, f"{caught.value} | {caught.value.hint}"


# --- JSON -------------------------------------------------------------------------------------------

JSON_LINES_NAMES = [
    "a.jsonl",
    "a.ndjson",
    "a.jsonlines",
    "A.JSONL",
    "a.json",
    "a.log",
    "noending",
    "a.dat",
    "a.jsonl.txt2",
]


@pytest.mark.parametrize("name", JSON_LINES_NAMES)
@pytest.mark.parametrize("content", [LINES, "\n\n" + LINES, LINES.replace("\n", "\r\n"), LINES.rstrip()])
def test_json_lines_under_every_name(texts: Callable[..., list[str]], name: str, content: str) -> None:
    assert texts(name, content) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize(
    "content",
    [
        '[{"text":"one"},{"text":"two"}]',
        '[\n  {"text": "one"}\n ,\n  {"text": "two"}\n]\n',
        '{\n  "text": "one"\n}\n{\n  "text": "two"\n}\n',
        ' [ "one" , "two" ] ',
    ],
)
def test_json_arrays_and_values_that_span_lines(texts: Callable[..., list[str]], name: str, content: str) -> None:
    assert texts(name, content) == ["one", "two"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_table_kept_by_column_is_no_single_document(texts: Callable[..., list[str]], indent: int | None) -> None:
    """pandas: to_json(orient="list"). Of records, one a line, a list in the text column stays one text."""
    table = {"text": ["one", "two"], "n": [1, 2]}
    assert texts("a.json", json.dumps(table, indent=indent)) == ["one", "two"]
    assert texts("a.jsonl", json.dumps(table)) == ["one\ntwo"]
    assert texts("b.json", json.dumps(table) + "\n" + json.dumps(table)) == ["one\ntwo", "one\ntwo"]


def test_records_inside_an_object_are_pointed_to(texts: Callable[..., list[str]]) -> None:
    code, line = refusal(texts, "squad.json", json.dumps({"version": 1, "data": [{"text": "one"}]}))
    assert code == 2 and "found: version, data" in line and """jq -c '.["data"][]' squad.json""" in line


def test_lines_that_are_arrays_are_no_broken_json(texts: Callable[..., list[str]]) -> None:
    assert refusal(texts, "a.jsonl", '["one", "two"]\n["three"]\n') == (
        3,
        "a.jsonl:1 holds list records, not objects with a text column | ",
    )
    code, line = refusal(texts, "b.jsonl", LINES + '{"text": "three", "n": ' + "9" * 5000 + "}")
    assert code == 3 and line.startswith("b.jsonl, line 3, cannot be read: Exceeds the limit")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.rtf", b"{\\rtf1\\ansi Hello}", "Rich Text"),
        ("a.txt", b"{\\rtf1\\ansi Hello}", "Rich Text"),
        ("a.html", b"\n<!DOCTYPE html><p>Hello", "markup (HTML or XML)"),
        ("dump.xml", b"<?xml version='1.0'?><mediawiki><text>Hello", "markup (HTML or XML)"),
        ("a.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<i8'", "condense.windows(numpy.load(FILE))"),
        ("a.tar", b"a.txt".ljust(257, b"\0") + b"ustar\0" + b"00" + b"\0" * 500, "tar archive"),
        ("a.tar.gz", gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar  \0" + b"\0" * 500, mtime=0), "tar archive"),
    ],
)
def test_markup_and_archives_are_no_text(
    texts: Callable[..., list[str]], name: str, content: bytes, words: str
) -> None:
    code, line = refusal(texts, name, content)
    assert code == 3 and words in line


def test_markup_under_the_name_of_text_is_what_is_meant(texts: Callable[..., list[str]]) -> None:
    assert texts("page.txt", "<!doctype html><p>Hello") == ["<!doctype html><p>Hello"]


def test_json_longer_than_a_piece(texts: Callable[..., list[str]]) -> None:
    """Elements, strings and numbers that fall on the edge of what is read at a time."""
    records = [{"n": number, "text": f"{number} " + 'x\\"é🙂' * (number % 977)} for number in range(4000)]
    content = json.dumps(records)
    assert len(content) > 3 * (1 << 20)
    assert texts("a.json", content) == [record["text"] for record in records]
    indented = json.dumps(records[:300], indent=1, ensure_ascii=False)
    assert texts("b.json", indented) == [record["text"] for record in records[:300]]
    long = [{"text": "y" * 3_000_000}, {"text": "z"}]
    assert (
        texts("c.json", json.dumps(long))
        == texts("d.jsonl", "\n".join(map(json.dumps, long)))
        == ["y" * 3_000_000, "z"]
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"text":"one"} {"text":"two"}]', 1),
        ('[{"text":"one"},]', 1),
        ('[{"text":"one"}\n', 2),
        ('[{"text":"one"}]\n{', 2),
        ('{\n"text": "one"\n}\n{\n"text": oops\n}\n', 5),
        ('[\n"one",\n"two\n"]', 3),
        ("[" + "9" * 5000 + "]", 1),
    ],
)
def test_json_that_is_broken_names_the_line(texts: Callable[..., list[str]], content: str, line: int) -> None:
    code, message = refusal(texts, "a.json", content)
    assert code == 3 and f"a.json, line {line}, is not JSON" in message


# --- delimited text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,text\n1,Hello\n2,zwei; drei\n"),
        ("a.csv", "id;text\n1;Hello\n2;zwei; drei\n".replace("zwei;", '"zwei;').replace("drei", 'drei"')),
        ("a.csv", "id|text\n1|Hello\n2|zwei; drei\n"),
        ("a.csv", "id\ttext\n1\tHello\n2\tzwei; drei\n"),
        ("a.tsv", "id\ttext\n1\tHello\n2\tzwei; drei\n"),
        ("a.tab", "id\ttext\r\n1\tHello\r\n2\tzwei; drei\r\n"),
        ("a.psv", "id|text\n1|Hello\n2|zwei; drei\n"),
        ("a.csv", "id^text\n1^Hello\n2^zwei; drei\n"),
        ("a.csv", "id\x01text\n1\x01Hello\n2\x01zwei; drei\n"),
        ("a.csv", "id~text~n\n1~Hello~4\n2~zwei; drei~5\n"),
        ("a.csv", 'sep=;\r\nid;text\r\n1;Hello\r\n2;"zwei; drei"\r\n'),
        ("a.csv", 'id, text\n1, Hello\n2, "zwei; drei"\n'),
        ("a.csv", '"id","text"\n"1","Hello"\n"2","zwei; drei"\n'),
        ("a.csv", "id,text\r1,Hello\r2,zwei; drei\r"),
        ("a.csv", "\n\nid,text\n\n1,Hello\n\n2,zwei; drei\n\n"),
        ("a.csv", "id,text\n1,Hello,\n2,zwei; drei,,\n"),
        ("a.csv", "text\nHello\nzwei; drei\n"),
        ("a.dat", "id,text\n1,Hello\n2,zwei; drei\n"),
        ("noending", "id\ttext\n1\tHello\n2\tzwei; drei\n"),
    ],
)
def test_delimiters(texts: Callable[..., list[str]], name: str, content: str) -> None:
    assert texts(name, content) == ["Hello", "zwei; drei"]


def test_prose_that_begins_with_the_columns_name_is_prose(texts: Callable[..., list[str]]) -> None:
    for prose in ("The text, as it was,\nwas fine\n", "text\nand more\n", "a text, b\n"):
        assert texts("a.dat", prose) == [prose]


def test_quoted_cells_hold_anything(texts: Callable[..., list[str]]) -> None:
    cells = [
        'a "q" b',
        "multi\nline",
        "with, comma",
        "1, 2, 3\nfour, five",
        "poem,\nwith,\ncommas,\n",
        "tab\there",
        "a;b|c",
    ]
    for delimiter in ",;\t|":
        rows = [f'{number}{delimiter}"' + cell.replace('"', '""') + '"' for number, cell in enumerate(cells)]
        assert texts("a.csv", "\n".join([f"id{delimiter}text", *rows])) == cells


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.csv", 'id,text\n1,"first\n2,second\n3,third\n', 2, "does not close"),
        ("a.csv", 'id,text\n0,zero\n1,"first\n2,second\n3,"third"\n', 3, "behind a quote"),
        ("a.csv", 'id,text\n0,zero\n1,"first\n2,second\n3,third"\n4,x\n', 3, "looks like rows"),
        ("a.csv", 'id,text,mark\n1,"first,a\n2,second",b\n4,x,c\n', 2, "looks like rows"),
        ("a.tsv", 'id\ttext\nx\t"Hello\ny\tfoo\nz\tbye"\n', 2, "looks like rows"),
        ("a.tsv", 'id\ttext\n1\t"Hello" she said\n', 2, "behind a quote"),
        ("a.csv", 'id,text\n1,"He said \\"hi\\" to"\n', 2, "behind a quote"),
        ("a.csv", "id,text\n1,fine\n2,Hello, world\n", 3, "3 fields where the header has 2"),
        ("a.csv", "id;text\n1;fine\n2;Hello; world\n", 3, "delimiter ';'"),
        ("a.csv", "text\nfine\nHello, world\n", 3, "2 fields where the header has 1"),
        ("a.csv", "id,text\n1,hello\nworld\n2,x\n", 3, "line break in a cell"),
        ("a.csv", 'sep=;\nid;text\n1;"open\n', 3, "does not close"),
        ("a.csv", "id,text\n1,'a, b'\n", 2, "3 fields"),
    ],
)
def test_rows_are_never_swallowed(
    texts: Callable[..., list[str]], name: str, content: str, line: int, words: str
) -> None:
    code, message = refusal(texts, name, content)
    assert code == 3 and f"{name}, line {line}:" in message and words in message


def test_a_header_without_the_column_names_the_delimiter(texts: Callable[..., list[str]]) -> None:
    code, message = refusal(texts, "a.csv", "one;two\nthree;four\n")
    assert code == 2 and "delimiter ';'" in message and "found: one, two" in message
    code, message = refusal(texts, "a.csv", '"te\nxt",n\na,1\n')
    assert code == 2 and "found: te xt, n" in message
    assert "found: none" in refusal(texts, "a.jsonl", "{}\n")[1]
    code, message = refusal(texts, "a.csv", "text,text\na,b\n")
    assert code == 2 and "2 columns called 'text'" in message


# --- encodings and compression ----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "noending"])
def test_encodings(texts: Callable[..., list[str]], name: str, encoding: str) -> None:
    contents = {"a.txt": UMLAUTS, "a.csv": f"id,text\n1,{UMLAUTS}\n", "noending": UMLAUTS}
    content = contents.get(name, json.dumps({"text": UMLAUTS}, ensure_ascii=False))
    assert texts(name, content.encode(encoding)) == [UMLAUTS]


def test_a_mark_of_gb18030(texts: Callable[..., list[str]]) -> None:
    assert texts("a.txt", ("\ufeff中文 text").encode("gb18030")) == ["中文 text"]


@pytest.mark.parametrize(
    ("encoding", "text", "named"),
    [
        ("cp1252", UMLAUTS, "cp1252"),
        ("latin-1", UMLAUTS, "cp1252"),
        ("cp1252", "It’s a fine day, he said, and “left”. " * 30, "cp1252"),
        ("cp1251", "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 30, "cp1251"),
        ("gbk", "我能吞下玻璃而不伤身体。" * 40, "gb18030"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_another_encoding_is_refused_by_name(
    texts: Callable[..., list[str]], name: str, encoding: str, text: str, named: str
) -> None:
    pytest.importorskip("charset_normalizer")
    code, message = refusal(texts, name, f"id,text\n1,{text}\n".encode(encoding))
    assert code == 3 and f"perhaps in {named}" in message and f"iconv -f {named}" in message


def test_few_invalid_bytes_are_replaced(texts: Callable[..., list[str]]) -> None:
    assert texts("a.txt", b"caf\xe9 and " + b"words " * 40)[0].startswith("caf\ufffd and")
    assert texts("a.txt", "é".encode() * 5000 + b"\xff\xfe")[0] == "é" * 5000 + "\ufffd\ufffd"
    assert texts("b.txt", "\ufffd" * 50)[0] == "\ufffd" * 50  # written so


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.bz2", "a.ndjson.xz", "a.jsonl", "noending"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files(texts: Callable[..., list[str]], name: str, compress: Callable[[bytes], bytes]) -> None:
    assert texts(name, compress(LINES.encode())) == ["one", "two"]
    assert texts("a.csv.gz", compress("id;text\n1;größe\n".encode("utf-16"))) == ["größe"]


def test_a_full_disk_under_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pipe gives beyond 64 MB is kept on disk."""
    from condense.texts import formats

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(formats.shutil, "copyfileobj", fail)
        code, message = refusal(list, read("-"))
    assert code == 4 and "disk full" in message


def test_zstandard(texts: Callable[..., list[str]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(LINES.encode())
    data = sink.getvalue().to_pybytes()
    assert texts("a.jsonl.zst", data) == ["one", "two"]
    assert refusal(texts, "a.jsonl.zst", data[:-4])[0] == 3


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_compressed_file_is_refused(
    texts: Callable[..., list[str]], compress: Callable[[bytes], bytes]
) -> None:
    data = compress(LINES.encode() * 1000)
    assert refusal(texts, "a.jsonl.gz", data[:-10])[0] == 3
    wrong = bytearray(data)
    wrong[-20:-4] = b"\x55" * 16
    assert "a.jsonl.gz" in refusal(texts, "a.jsonl.gz", bytes(wrong))[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", b"PK\x03\x04....", "Excel"),
        ("a.docx", b"PK\x03\x04....", "Word"),
        ("a.csv", b"PK\x03\x04....", "zip"),
        ("a.pdf", b"%PDF-1.4 ...", "PDF"),
        ("a.db", b"SQLite format 3\0....", "SQLite"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        ("a.txt", b"abc\0def", "binary"),
        ("a.txt", b"\0" * 5000, "binary"),
        ("a.arrow", b"xx", "not a readable arrow file"),
    ],
)
def test_what_is_no_text_is_named(texts: Callable[..., list[str]], name: str, content: bytes, words: str) -> None:
    code, message = refusal(texts, name, content)
    assert code == 3 and name in message and words in message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "noending"])
def test_a_byte_order_mark_alone_is_empty(texts: Callable[..., list[str]], name: str) -> None:
    for content in (b"\xef\xbb\xbf", b"\xff\xfe", " \n".encode("utf-16")):
        assert refusal(texts, name, content) == (3, f"{name} is empty | ")


# --- Parquet and Arrow ------------------------------------------------------------------------------


def test_parquet_cells(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cases = {
        "lists of strings": (pa.array([["a", "b"], ["c", None], None]), ["a\nb", "c", ""]),
        "bytes": (pa.array([b"abc", "grün".encode()]), ["abc", "grün"]),
        "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        "large strings": (pa.array(["a"], pa.large_string()), ["a"]),
        "string views": (pa.array(["a"], pa.string_view()), ["a"]),
        "lists of parts": (pa.array([[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]]), ["a\nb"]),
    }
    for name, (array, expected) in cases.items():
        parquet.write_table(pa.table({"text": array, "n": range(len(array))}), tmp_path / "a.parquet")
        assert [document.text for document in read(tmp_path / "a.parquet")] == expected, name
    refused = {
        "a value of type int": pa.array([1, 2]),
        "an object (en, de)": pa.array([{"en": "a", "de": "b"}]),
        "a list with a value of type tuple": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
        "bytes that are not UTF-8": pa.array([b"\xff\xfe\0x"]),
        "a value of type datetime": pa.array([1], pa.timestamp("s")),
        "a value of type Decimal": pa.array([1], pa.decimal128(5)),
        "true or false": pa.array([True]),
        "a list with a value of type float": pa.array([[0.5]]),
    }
    for words, array in refused.items():
        parquet.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
        code, message = refusal(list, read(tmp_path / "a.parquet"))
        assert code == 2 and f"a.parquet:0: column 'text' holds {words}" in message


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    """A date that Python cannot hold, in a column nobody asked for, does not matter."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    dates = pa.array([2**62, -(2**62)], pa.timestamp("us"))
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2
    with pytest.raises((ValueError, OverflowError)):
        dates.to_pylist()
    for columns, expected in (
        ({"text": ["one", "two"], "when": dates}, ["one", "two"]),
        ({"when": dates, "messages": turns}, ["a\nb", "a\nb"]),
        ({"when": dates, "prompt": ["q", "q"], "completion": ["a", "a"]}, ["q\na", "q\na"]),
    ):
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        with (
            pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
            pa.ipc.new_stream(file, pa.table(columns).schema) as out,
        ):
            out.write_table(pa.table(columns))
        with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_file(file, pa.table(columns).schema) as out:
            out.write_table(pa.table(columns))
        for name in ("a.parquet", "a.arrow", "b.arrow"):
            assert [document.text for document in read(tmp_path / name)] == expected
    parquet.write_table(pa.table({"a.b": ["dotted"], "a": ["plain"]}), tmp_path / "a.parquet")
    assert [document.text for document in read(tmp_path / "a.parquet", "a.b")] == ["dotted"]
    assert [document.text for document in read(tmp_path / "a.parquet", "a")] == ["plain"]


def test_a_table_is_known_by_its_content(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    feather = pytest.importorskip("pyarrow.feather")
    parquet.write_table(pa.table({"text": ["one"]}), tmp_path / "a.bin")
    feather.write_feather(pa.table({"text": ["two"]}), tmp_path / "b.bin", compression="lz4")
    assert [document.text for name in ("a.bin", "b.bin") for document in read(tmp_path / name)] == ["one", "two"]


# --- large files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("utf-8", bytes), ("utf-16", bytes), ("utf-16-be", bytes), ("gb18030", bytes), ("utf-8", gzip.compress)],
)
def test_a_long_text_gives_the_slices_of_the_whole(
    tmp_path: Path, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    text = "".join(f"{number} é🙂日本\r\n" for number in range(WHOLE_CHARACTERS // 10))
    path = tmp_path / "a.txt"
    data = ("\ufeff" if encoding == "gb18030" else "") + text
    path.write_bytes(
        compress(data.encode(encoding) if encoding != "utf-16-be" else b"\xfe\xff" + data.encode(encoding))
    )
    (document,) = read(path, stream=True)
    body = document.body
    assert document.text == "" and len(body) == len(text) > WHOLE_CHARACTERS
    for start, stop in ((0, 10), (5, 5), (1 << 20, (1 << 20) + 99), (len(text) - 7, len(text) + 9), (100, 3_000_000)):
        assert body[start:stop] == text[start:stop]
    assert document.long is not None and b"".join(document.long.encoded()) == text.encode()
    assert document.long.encoded_size == len(text.encode())
    assert next(read(path)).text == text


def test_a_long_file_gives_the_windows_of_its_text(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    from condense.texts.windows import windows

    text = "\n".join(f"{number} {document.text}" for number in range(45) for document in probe())
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert len(text) > WHOLE_CHARACTERS
    for kind in ("bos", "words"):
        made = [windows(tokenizers[kind], of, num_texts=7, max_length=64) for of in (path, [text])]
        assert made[0].ids.tolist() == made[1].ids.tolist() and made[0].passages == made[1].passages
        assert made[0].info.sha256 == made[1].info.sha256 and made[0].info.notes == made[1].info.notes
        assert len(made[0]) == 7 and made[0].info.documents == (0,) * 7


PEAK = """
import json, resource, sys
from transformers import AutoTokenizer
from condense.texts.windows import windows
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
windows(tokenizer, num_texts=8, max_length=64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in sys.argv[2:]:
    made = windows(tokenizer, source, num_texts=8, max_length=64)
    print(json.dumps([source, len(made), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def write_large(folder: Path, size: int) -> list[Path]:
    """The probe passages again and again, numbered, as every format of text."""
    texts = [document.text for document in probe()]
    rows: dict[str, Callable[[str], str]] = {
        "a.jsonl": lambda text: json.dumps({"text": text}) + "\n",
        "a.json": lambda text: json.dumps({"text": text}) + ",",
        "a.csv": lambda text: '1,"' + text.replace('"', '""') + '"\n',
        "a.txt": lambda text: text + "\n",
    }
    for name, row in rows.items():
        block = "".join(row(f"@ {text}") for text in texts)
        with (folder / name).open("w", encoding="utf-8") as file:
            file.write({"a.json": "[", "a.csv": "id,text\n"}.get(name, ""))
            for number in range(size // len(block.encode()) + 1):
                file.write(block.replace("@", str(number)))
            file.write({"a.json": '"end"]'}.get(name, ""))
    return [folder / name for name in rows]


@pytest.mark.parametrize("megabytes", [60, pytest.param(700, marks=pytest.mark.slow)])
def test_large_files_take_flat_memory(tmp_path: Path, tokenizers: dict[str, Any], megabytes: int) -> None:
    """Standard input beyond 64 MB is kept on disk too."""
    tokenizers["bos"].save_pretrained(tmp_path / "tokenizer")
    paths = write_large(tmp_path, megabytes * 1_000_000)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "tokenizer"), *map(str, paths), "-"]
    with paths[-1].open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [source for source, _, _ in told] == command[4:] and {count for _, count, _ in told} == {8}
    assert max(kilobytes for _, _, kilobytes in told[:-1]) < 50_000, told
    assert told[-1][2] < 50_000 + 70_000, told


def test_json_whose_first_line_is_long(texts: Callable[..., list[str]]) -> None:
    long = json.dumps({"text": "x" * (3 << 20)})
    assert [len(text) for text in texts("a.jsonl", f"{long}\n{LINES}")] == [3 << 20, 3, 3]


@pytest.mark.parametrize(
    ("name", "error"), [("a.jsonl", UsageError), ("a.csv", UsageError), ("a.txt", UnavailableError)]
)
def test_errors_close_their_files(tmp_path: Path, name: str, error: type[Exception]) -> None:
    (tmp_path / name).write_bytes(b'{"body": "x"}' if name != "a.txt" else b"\0")
    with pytest.raises(error):
        list(read(tmp_path / name))
