"""Records: text and nothing but text; conversations as people have them."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condense.errors import CondenseError, UsageError
from condense.texts.documents import Document, read
from condense.texts.fields import document_of, shown

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
PAIR = (("user", "hi"), ("assistant", "yo"))
SYSTEM = ("system", "S")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("one", "one"),
        (None, ""),
        ("", ""),
        (["a", "b"], "a\nb"),
        ([], ""),
        (["a", None, "b"], "a\nb"),
        ([["a", "b"], ["c"]], "a\nb\nc"),
        (b"gr\xc3\xbcn", "grün"),
        (b"\xef\xbb\xbfmark", "mark"),
        ([b"a", "b"], "a\nb"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "input_text", "text": "a"}, "b"], "a\nb"),
        ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, "a"),
    ],
)
def test_cells_of_text(value: Any, text: str) -> None:
    assert document_of("a:1", {"text": value}, "text") == Document("a:1", text)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (5, "a value of type int"),
        (0.5, "a value of type float"),
        (float("nan"), "a value of type float"),
        (True, "true or false"),
        ({"en": "a", "de": "b"}, "an object (en, de)"),
        ({"0": "a", "1": "b"}, "an object (0, 1)"),
        ([1, 2], "a list with a value of type int"),
        (["a", {"b": "c"}], "a list with an object (b)"),
        ([["a", 1]], "a list with a list with a value of type int"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "a list with a part of type 'image_url'"),
        (b"\xff\xfe\x00", "bytes that are not UTF-8"),
    ],
)
def test_anything_else_is_refused_with_record_and_type(value: Any, kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        document_of("a.jsonl:7", {"text": value}, "text")
    assert str(caught.value) == f"a.jsonl:7: column 'text' holds {kind}, not text"
    assert caught.value.exit_code == 2 and "--text-column" in caught.value.hint


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def share(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


SHARED = share(("human", "hi"), ("gpt", "yo"))
TASK = (("user", "Do\n\nthis"), ("assistant", "yo"))
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
GEMINI = [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "yo"}]}]
MIXED = [say("user", [{**part("hi"), "image_url": None}]), {**say("assistant", [part("yo")]), "value": None}]
CONVERSATIONS: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = {
    "openai": ({"messages": [say("system", "S"), USER, ASSISTANT]}, (SYSTEM, *PAIR)),
    "parts": ({"messages": [say("user", [part("h"), part("i")]), ASSISTANT]}, (("user", "h\ni"), ("assistant", "yo"))),
    "parts as a table gives them": ({"messages": MIXED}, PAIR),
    "a null turn": ({"messages": [USER, CALL]}, (("user", "hi"), ("assistant", ""))),
    "sharegpt": ({"conversations": SHARED}, PAIR),
    "sharegpt with system": ({"system": "S", "conversations": SHARED}, (SYSTEM, *PAIR)),
    "one conversation": ({"conversation": [USER, ASSISTANT]}, PAIR),
    "gemini": ({"contents": GEMINI}, PAIR),
    "capital roles": ({"messages": [say("User", "hi"), say("Assistant", "yo")]}, PAIR),
    "in a string": ({"messages": json.dumps([USER, ASSISTANT])}, PAIR),
    "alpaca": ({"instruction": "Do", "input": "this", "output": "yo"}, TASK),
    "alpaca without input": ({"instruction": "hi", "input": "", "output": "yo"}, PAIR),
    "alpaca without the key": ({"instruction": "hi", "output": "yo"}, PAIR),
    "alpaca with history": (
        {"instruction": "hi", "input": "", "output": "yo", "system": "S", "history": [["q", "a"]]},
        (SYSTEM, ("user", "q"), ("assistant", "a"), *PAIR),
    ),
    "dolly": ({"instruction": "Do", "context": "this", "response": "yo", "category": "x"}, TASK),
    "orca": ({"id": "1", "system_prompt": "S", "question": "hi", "response": "yo"}, (SYSTEM, *PAIR)),
    "prompt and completion": ({"prompt": "hi", "completion": "yo"}, PAIR),
    "lists of prompt and completion": ({"prompt": [USER], "completion": [ASSISTANT]}, PAIR),
    "preference": ({"prompt": "hi", "chosen": "yo", "rejected": "no"}, PAIR),
    "preference with its prompt in it": ({"prompt": [USER], "chosen": [USER, ASSISTANT], "rejected": [USER]}, PAIR),
    "preference as turns": ({"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER]}, PAIR),
    "question and answer": ({"question": "hi", "answer": "yo"}, PAIR),
    "input and output": ({"input": "hi", "output": "yo"}, PAIR),
    "by column, as datasets gives it": ({"messages": {"role": ["user", "assistant"], "content": ["hi", "yo"]}}, PAIR),
    "other names of a model": ({"conversations": share(("human", "hi"), ("AI", "yo"))}, PAIR),
    "gemini with system": ({"contents": GEMINI, "systemInstruction": {"parts": [{"text": "S"}]}}, (SYSTEM, *PAIR)),
    "blank text beside it": ({"text": " ", "messages": [USER, ASSISTANT]}, PAIR),
    "spelled in Python, as pandas writes it": ({"messages": str([USER, ASSISTANT])}, PAIR),
    "null text": ({"text": None, "messages": [USER, ASSISTANT]}, PAIR),
    "no turn": ({"messages": []}, ()),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name: str, tmp_path: Path) -> None:
    record, turns = CONVERSATIONS[name]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (document,) = read(path)
    assert document.messages == turns and document.text == "\n".join(said for _, said in turns if said)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if name != "parts":  # text and lists of parts, which no table can hold in one column
        parquet.write_table(pa.Table.from_pylist([{**record, "n": 5}]), tmp_path / "a.parquet")
        assert next(read(tmp_path / "a.parquet")).messages == turns


@pytest.mark.parametrize("column", ["messages", "conversations", "dialogue_of_mine"])
@pytest.mark.parametrize("encode", [lambda turns: turns, json.dumps, str])
def test_a_column_of_turns_is_never_measured_as_its_spelling(
    tmp_path: Path, column: str, encode: Callable[[Any], Any]
) -> None:
    if encode is json.dumps and column == "dialogue_of_mine":
        return  # a string in a column of any name is that string
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({column: encode([USER, ASSISTANT])}) + "\n")
    (document,) = read(path, column)
    assert document.messages == PAIR and document.text == "hi\nyo"


@pytest.mark.parametrize("given", ["messages", "text"])
@pytest.mark.parametrize("spelled", ["[{USER}\n {ASSISTANT}]", "[{USER} {ASSISTANT}]", "[{USER}, {'role': 'assis"])
def test_turns_in_a_spelling_that_cannot_be_read_are_refused(tmp_path: Path, spelled: str, given: str) -> None:
    """A table read from Parquet and written as CSV has NumPy's spelling; --text-column messages trained on it."""
    cell = spelled.replace("{USER}", str(USER)).replace("{ASSISTANT}", str(ASSISTANT))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "messages"], ["1", cell]])
    with pytest.raises(UsageError, match="a.csv:2: column 'messages' holds turns in a spelling that cannot be read"):
        list(read(tmp_path / "a.csv", given))


def test_a_key_in_a_command_that_is_advised_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a'; touch b; '": [{"text": "hi"}]}))
    with pytest.raises(UsageError) as caught:
        list(read(tmp_path / "a.json"))
    assert shlex.split(caught.value.hint.partition("jq -c ")[2]) == [""".["a'; touch b; '"][]""", "a.json"]


def test_a_table_of_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,input,output\nDo,this,yo\nhi,,yo\n")
    assert [document.messages for document in read(tmp_path / "a.csv")] == [
        (("user", "Do\n\nthis"), ("assistant", "yo")),
        PAIR,
    ]
    cell = json.dumps([USER, ASSISTANT]).replace('"', '""')
    (tmp_path / "b.csv").write_text(f'id,messages\n1,"{cell}"\n')
    assert next(read(tmp_path / "b.csv")).messages == next(read(tmp_path / "b.csv", "messages")).messages == PAIR


def test_text_that_is_there_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "plain", "messages": [USER, ASSISTANT], "prompt": "p", "completion": "c"}))
    assert next(read(path)) == Document("a.jsonl:1", "plain")
    assert next(read(path, "completion")) == Document("a.jsonl:1", "c")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [{"content": "hi"}]}, "turn 1 of 'messages' has no role (found: content)"),
        ({"messages": [USER, {"role": 1, "content": "x"}]}, "turn 2 of 'messages' has no role"),
        ({"messages": [USER, {"role": "assistant"}]}, "turn 2 of 'messages' has no content (found: role)"),
        ({"conversations": [{"from": "human", "value": 5}]}, "turn 1 of 'conversations': column 'value' holds a value"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1"}]}]}, "a part of type 'tool_use'"),
        ({"prompt": "q", "completion": 7}, "column 'completion' holds a value of type int"),
        ({"instruction": ["a", 1], "output": "x"}, "column 'instruction' holds a list with a value of type int"),
        ({"instruction": "a", "output": "x", "history": "none"}, "'history' holds"),
        ({"conversations": ["hi", "yo"]}, "no column 'text' in a.jsonl:1 (found: conversations)"),
        ({"question": "q", "answers": {"text": ["x"]}}, "no column 'text' in a.jsonl:1 (found: question, answers)"),
    ],
)
def test_a_conversation_that_cannot_be_read_names_the_record(
    record: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(CondenseError) as caught:
        list(read(path))
    assert caught.value.exit_code == 2 and "a.jsonl:1" in str(caught.value) and words in str(caught.value)


def test_names_can_always_be_written() -> None:
    assert shown("grün.txt") == "grün.txt" and shown("caf\udce9.txt") == "caf\\xe9.txt"
    assert Document("caf\udce9", "half \ud800 pair").name == "caf\\xe9"
    assert Document("a", "half \ud800 pair").text == "half ? pair"
