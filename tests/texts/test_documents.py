"""Every format a text comes in, and everything that can be wrong with it; the probe."""

import io
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex

from condense.errors import UnavailableError, UsageError
from condense.texts.documents import Document, probe, read

GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def texts(path: Path | str, column: str = "text") -> list[str]:
    return [document.text for document in read(path, column)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT", "noending", "a.log"])
def test_a_whole_file_is_one_document(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, "one\r\n\ntwo\n")
    assert list(read(path)) == [Document(name, "one\r\n\ntwo\n")]


def test_jsonl_of_objects_and_of_strings(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "one", "n": 1}\n\n"two"\r\n{"text": null}\n{"text": 5}')
    assert [(d.name, d.text) for d in read(path)] == [
        ("a.jsonl:1", "one"), ("a.jsonl:3", "two"), ("a.jsonl:4", ""), ("a.jsonl:5", "5"),
    ]  # fmt: skip


def test_a_line_separator_inside_a_jsonl_string_ends_no_record(tmp_path: Path) -> None:
    odd = "one\u2028two\u2029three\x85four\x0bfive"
    path = written(tmp_path, "a.jsonl", json.dumps({"text": odd}, ensure_ascii=False) + "\n" + json.dumps("b") + "\n")
    assert texts(path) == [odd, "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [('["a", {"text": "b"}]', ["a", "b"]), ('{"text": "one"}', ["one"]), ('"alone"', ["alone"])],
)
def test_json(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert texts(written(tmp_path, "a.json", content)) == expected


def test_csv_with_quotes_and_newlines_inside(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'id,text\n1,"one\ntwo, ""three"""\n2,four\n3\n')
    assert texts(path) == ['one\ntwo, "three"', "four", ""]
    assert texts(path, "id") == ["1", "2", "3"]


def test_csv_of_long_cells(tmp_path: Path) -> None:
    cell = "word " * 60_000
    assert texts(written(tmp_path, "a.csv", f'text\n"{cell}"\n')) == [cell]


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two\u2028", None], "n": [1, 2, 3]}), path)
    assert texts(path) == ["one", "two\u2028", ""]
    assert texts(path, "n") == ["1", "2", "3"]
    with pytest.raises(UsageError, match="found: text, n"):
        texts(path, "body")
    with pytest.raises(UnavailableError, match="parquet"):
        texts(written(tmp_path, "b.parquet", b"PAR1 no"))


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    written(tmp_path, "b.txt", "two")
    written(tmp_path, "a.md", "one")
    written(tmp_path, "sub/c.jsonl", '"three"\n"four"\n')
    written(tmp_path, "picture.png", b"\x89PNG\r\n\x1a\n\0\0")
    assert texts(tmp_path) == ["one", "two", "three", "four"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüße".encode())))
    assert [(d.name, d.text) for d in read("-")] == [("standard input", "grüße")]


def test_reading_is_lazy(tmp_path: Path) -> None:
    written(tmp_path, "a.txt", "one")
    written(tmp_path, "b.txt", b"\0\0")
    documents = read(tmp_path)
    assert next(documents).text == "one"
    with pytest.raises(UnavailableError, match=r"b\.txt is not text"):
        next(documents)


# --- encodings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "body"), [("a.txt", "one"), ("a.jsonl", '{"text": "one"}'), ("a.json", '["one"]'),
                                            ("a.csv", "text\none\n")])  # fmt: skip
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, body: str) -> None:
    assert texts(written(tmp_path, name, b"\xef\xbb\xbf" + body.encode())) == ["one"]


def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"caf\xe9 and " + b"words " * 40)
    assert texts(path)[0].startswith("caf\ufffd and words")


def test_a_character_on_the_edge_of_the_first_block(tmp_path: Path) -> None:
    text = "a" * 4095 + "é" * 20
    assert texts(written(tmp_path, "a.txt", text)) == [text]


@pytest.mark.parametrize("content", [b"MZ\0\0\1", bytes(range(128, 256)) * 4, "utf-16 text".encode("utf-16")])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_binary_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UnavailableError, match="is not text") as caught:
        texts(written(tmp_path, name, content))
    assert caught.value.exit_code == 3 and caught.value.hint


# --- what is missing or wrong -----------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such text"):
        texts(tmp_path / "none.txt")
    with pytest.raises(UnavailableError, match=r"no .*\.jsonl.* file in"):
        texts(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UnavailableError, match=f"{name} is empty"):
        texts(written(tmp_path, name, content))


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="empty"):
        texts(written(tmp_path, "a.json", "[]"))
    with pytest.raises(UnavailableError, match="empty"):
        texts(written(tmp_path, "a.csv", "text\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"body": "x", "title": "y"}\n'),
        ("a.json", '[{"body": "x", "title": "y"}]'),
        ("a.csv", "body,title\nx,y\n"),
    ],
)
def test_a_missing_column_names_those_there_are(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UsageError, match=r"'text'.*body, title") as caught:
        texts(path)
    assert "--text-column" in caught.value.hint and caught.value.exit_code == 2
    assert texts(path, "body") == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "line 2"),
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", "[1]\n", "list records"),
        ("a.json", "[1, 2]", "int records"),
        ("a.json", "[" * 100_000, "is not JSON"),
    ],
)
def test_broken_records(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UnavailableError, match=message) as caught:
        texts(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_null_byte_deep_in_a_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"text\n" + b"word\n" * 2000 + b"nul\0\n")
    assert texts(path)[-1] == "nul\0"


# --- the probe --------------------------------------------------------------------------------------


def test_probe_is_eight_registers_of_four() -> None:
    documents = probe()
    assert len(documents) == 32 and len({d.name for d in documents}) == 32 and len({d.text for d in documents}) == 32
    registers = Counter(document.name.rpartition("-")[0] for document in documents)
    assert len(registers) == 8 and set(registers.values()) == {4}


def test_probe_repeats_no_paragraph() -> None:
    paragraphs = [p.strip() for d in probe() for p in d.text.split("\n\n") if len(p.strip()) > 40]
    assert len(paragraphs) > 100
    assert [p for p, count in Counter(paragraphs).items() if count > 1] == []


@pytest.mark.parametrize("document", probe(), ids=lambda document: document.name)
def test_probe_documents_are_long_enough_for_any_tokenizer(document: Document) -> None:
    """A pre-tokenizer's words are the fewest tokens that a byte-pair vocabulary can give."""
    assert len(GPT2_WORDS.findall(document.text)) >= 700
    assert document.text == document.text.strip() and "\ufffd" not in document.text and "<|" not in document.text
