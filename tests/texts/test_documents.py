"""Every format a text comes in, and everything that can be wrong with it; the probe."""

import errno
import gzip
import io
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import regex

from condense.errors import CondenseError, RunError, UnavailableError, UsageError
from condense.texts.documents import Document, dataset, label, probe, read

GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


READ = "from condense.texts.documents import read; print([d.text for d in read('-')])"


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
    path = written(tmp_path, "a.jsonl", '{"text": "one", "n": 1}\n\n"two"\r\n{"text": null}\n{"text": "5"}')
    named = [("a.jsonl:1", "one"), ("a.jsonl:3", "two"), ("a.jsonl:4", ""), ("a.jsonl:5", "5")]
    assert [(d.name, d.text) for d in read(path)] == named


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
    with pytest.raises(UsageError, match=r"a\.parquet:0: column 'n' holds a value of type int"):
        texts(path, "n")
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


def test_what_is_no_corpus_is_left_out_of_a_folder(tmp_path: Path) -> None:
    lines = '{"text": "one"}\n'
    kept = {
        "data/train.jsonl": lines,
        "notes.md": "notes",
        "data/license.jsonl": lines,
        "z.txt.gz": gzip.compress(b"z"),
    }
    left_out = [
        "README.md",
        "README.zh.md",
        "readme.txt",
        "LICENSE",
        "LICENSE.txt",
        "COPYING.md",
        "dataset_infos.json",
        "data/dataset_info.json",
        "data/state.json",
        ".gitattributes",
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        ".cache/huggingface/x.json",
        "data/.hidden.txt",
        "data/cache-12.arrow",
        "script.py",
    ]
    for name, content in {**kept, **dict.fromkeys(left_out, "{not json")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path, name, content)
    assert [document.name for document in read(tmp_path)] == [
        "data/license.jsonl:1",
        "data/train.jsonl:1",
        "notes.md",
        "z.txt.gz",
    ]
    assert texts(tmp_path / "README.md") == ["{not json"]


def test_a_folder_of_nothing_but_a_readme_says_so(tmp_path: Path) -> None:
    written(tmp_path, "README.md", "about")
    with pytest.raises(UnavailableError, match=r"not read: README\.md") as caught:
        texts(tmp_path)
    assert "name such a file itself" in caught.value.hint


def test_links_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    written(elsewhere, "b.txt", "two")
    written(tmp_path / "data", "a.txt", "one")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "linked").symlink_to(elsewhere)
    (tmp_path / "data" / "blob.jsonl").symlink_to(written(elsewhere, "0a1b2c", '"three"'))
    assert texts(tmp_path / "data") == ["one", "three", "two"]
    (tmp_path / "data" / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(UnavailableError, match=r"gone\.txt"):
        texts(tmp_path / "data")
    with pytest.raises(UnavailableError, match=r"is a link to .*nothing, which is not there"):
        texts(tmp_path / "data" / "gone.txt")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    written(tmp_path, "a.txt", "one")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UnavailableError, match=r"no permission \(.*closed\)"):
        texts(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(str(tmp_path)) + b"/d\xe9"
    os.mkdir(folder)
    with open(folder + b"/caf\xe9.txt", "w") as file:
        file.write("one")
    (inside,) = read(os.fsdecode(folder))
    assert inside == Document("caf\\xe9.txt", "one")
    assert label(os.fsdecode(folder)).endswith("d\\xe9")
    assert [d.name for d in read(os.fsdecode(folder + b"/caf\xe9.txt"))] == ["caf\\xe9.txt"]


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("x" * 5000, 2, "no file can have this name"),
        ("a/" * 3000, 2, "no file can have this name"),
        ("a\0b", 3, "no such text"),
        ("/dev/zero", 3, "is a pipe or a device"),
        ("/dev/urandom", 3, "is a pipe or a device"),
        ("pyproject.toml/x", 3, "no such text"),
    ],
)
def test_sources_that_are_no_file(source: str, code: int, words: str) -> None:
    with pytest.raises(CondenseError, match=words) as caught:
        texts(source)
    assert caught.value.exit_code == code and len(str(caught.value)) < 400


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_no_folder(source: str) -> None:
    with pytest.raises(UsageError, match="empty string"):
        texts(source)
    with pytest.raises(UsageError, match="empty string"):
        list(dataset(source, None, None, "text"))


def test_a_pipe_with_a_name_is_refused_and_one_of_the_shell_is_read(tmp_path: Path) -> None:
    """Nobody may ever write into the one; what cannot be sought in is kept until it is read."""
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UnavailableError, match="is a pipe or a device") as caught:
        texts(tmp_path / "a.jsonl")
    assert "--text -" in caught.value.hint
    code = "import sys; " + READ.replace("'-'", "sys.argv[1]")
    line = f'{shlex.quote(sys.executable)} -c {shlex.quote(code)} <(printf \'["one", "two"]\')'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['one', 'two']", done.stderr


# --- standard input ---------------------------------------------------------------------------------


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüße".encode())))
    assert [(d.name, d.text) for d in read("-")] == [("standard input", "grüße")]


def test_records_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    records = b'{"text": "one"}\n{"text": "two"}\n'
    for data in (records, gzip.compress(records), b"id,text\n1,one\n2,two\n", b'[{"text": "one"}, {"text": "two"}]'):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert texts("-") == ["one", "two"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"body": "one"}\n')))
    with pytest.raises(UsageError, match=r"no column 'text' in standard input:1 \(found: body\)"):
        texts("-")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ('printf \'{"text": "one"}\' | {python} -c "{code}"', "['one']"),
        ("printf 'id,text\\n1,one\\n' | gzip | {python} -c \"{code}\"", "['one']"),
        ('{python} -c "{code}" <&-', "standard input is closed"),
        ('{python} -c "{code}" </dev/null', "standard input is empty"),
    ],
)
def test_real_standard_input(command: str, told: str) -> None:
    line = command.replace("{python}", shlex.quote(sys.executable)).replace("{code}", READ)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert told in done.stdout + done.stderr and "ResourceWarning" not in done.stderr


# --- datasets ---------------------------------------------------------------------------------------


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2], "when": [None, None]})
    one.save_to_disk(str(tmp_path / "one"))
    assert [(d.name, d.text) for d in read(tmp_path / "one")] == [("one:0", "a"), ("one:1", "b")]
    with pytest.raises(UsageError, match="one:0: column 'n' holds a value of type int"):
        texts(tmp_path / "one", "n")
    with pytest.raises(UsageError, match=r"no column 'body' in one \(found: text, n, when\)"):
        texts(tmp_path / "one", "body")
    turns = [[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]]
    both = datasets.DatasetDict(
        {"train": one, "test": datasets.Dataset.from_dict({"conversations": turns, "score": [1]})}
    )
    both.save_to_disk(str(tmp_path / "both"))
    (chat,) = read(tmp_path / "both")
    assert chat == Document("both/test:0", "hi\nyo", (("user", "hi"), ("assistant", "yo")))
    assert [d.text for d in read(tmp_path / "both", split="train")] == ["a", "b"]
    with pytest.raises(UsageError, match=r"no split 'dev' \(found: train, test\)"):
        list(read(tmp_path / "both", split="dev"))
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"torn")
    with pytest.raises(UnavailableError, match="not a readable saved dataset"):
        texts(tmp_path / "one")


def test_reading_is_lazy(tmp_path: Path) -> None:
    written(tmp_path, "a.txt", "one")
    written(tmp_path, "b.txt", b"\0\0")
    documents = read(tmp_path)
    assert next(documents).text == "one"
    with pytest.raises(UnavailableError, match=r"b\.txt is not text"):
        next(documents)


# --- encodings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body"),
    [("a.txt", "one"), ("a.jsonl", '{"text": "one"}'), ("a.json", '["one"]'), ("a.csv", "text\none\n")],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, body: str) -> None:
    assert texts(written(tmp_path, name, b"\xef\xbb\xbf" + body.encode())) == ["one"]


def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"caf\xe9 and " + b"words " * 40)
    assert texts(path)[0].startswith("caf\ufffd and words")


def test_a_character_on_the_edge_of_the_first_block(tmp_path: Path) -> None:
    text = "a" * 4095 + "é" * 20
    assert texts(written(tmp_path, "a.txt", text)) == [text]


@pytest.mark.parametrize("content", [b"MZ\0\0\1", bytes(range(128, 256)) * 4, b"MZ\0\0\1" + bytes(range(256)) * 9])
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


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_memory_is_too_small_for_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is exit 4, as everywhere, not 3."""
    pyarrow = pytest.importorskip("pyarrow")

    def fail(*arguments: object, **options: object) -> None:
        raise pyarrow.lib.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fail)
    monkeypatch.setattr("pyarrow.ipc.open_file", fail)
    with pytest.raises(RunError, match="out of memory"):
        texts(written(tmp_path, name, b"PAR1 " if name == "a.parquet" else b"ARROW1\0\0"))


def test_nothing_that_a_dataset_names_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images by address or path were fetched from there by `datasets`, whoever had named them."""
    datasets = pytest.importorskip("datasets")

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("what a dataset names was opened")

    image = {"bytes": None, "path": "http://127.0.0.1:9/x.png"}
    features = datasets.Features({"text": datasets.Image()})
    rows = datasets.Dataset.from_dict({"text": [image]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: rows)
    monkeypatch.setattr(datasets.Image, "decode_example", fail)
    with pytest.raises(UsageError, match=r"column 'text' holds an object \(bytes, path\), not text"):
        list(dataset("org/x", None, "train", "text"))
