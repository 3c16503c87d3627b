"""A record to a document: its text column, or the conversation it holds.

A cell that is not text is never turned into its Python or JSON spelling: lists of strings are joined by line breaks,
parts of text are joined, bytes are decoded, and anything else is refused with its file, record and type.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condense.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from condense.texts.formats import LongText

Turns = tuple[tuple[str, str], ...]

CONVERSATIONS = ("messages", "conversations", "conversation", "contents", "dialog", "dialogue", "chat", "turns")
"""Columns that hold a list of turns: OpenAI, ShareGPT, Gemini and their like."""
QUESTIONS = ("instruction", "prompt", "question", "query", "input", "inputs")
CONTEXTS = ("input", "context")
ANSWERS = ("output", "completion", "response", "answer", "chosen", "targets")
SYSTEMS = ("system", "system_prompt", "systemInstruction", "system_instruction")
CHAT_COLUMNS = frozenset((*CONVERSATIONS, *QUESTIONS, *CONTEXTS, *ANSWERS, *SYSTEMS, "history"))
_SPEAKERS = ("role", "from", "speaker", "author")
_CONTENT_KEYS = ("content", "value", "text", "parts")
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "claude": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = (None, "text", "input_text", "output_text")


@dataclass(frozen=True)
class Document:
    """One text, named by its origin (`probe/encyclopaedic-1`, `notes.txt`, `a.jsonl:17`).

    A chat record keeps its `messages` (role, content); its text is their contents, a line each. A file that is read
    in pieces is `long`, and `text` is empty. `untrainable`: why it must not be trained on, or empty.
    """

    name: str
    text: str
    messages: Turns | None = None
    long: LongText | None = None
    untrainable: str = ""

    def __post_init__(self) -> None:
        """Half of a surrogate pair, which no UTF-8 can hold, becomes a question mark; in a name an escape."""
        if not self.text.isascii():
            object.__setattr__(self, "text", self.text.encode("utf-8", errors="replace").decode("utf-8"))
        object.__setattr__(self, "name", shown(self.name))

    @property
    def body(self) -> str | LongText:
        """The text, or the object that reads it in slices."""
        return self.text if self.long is None else self.long


def shown(name: str) -> str:
    """A name that can be written to a file: bytes of a path that are not UTF-8 are written as escapes."""
    if name.isascii():
        return name
    return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")


def document_of(name: str, record: Any, column: str) -> Document:
    """A record (an object, or a string that is its own text) as a document.

    UsageError for a column that is missing or holds anything but text, UnavailableError for a record that
    is neither object nor string.
    """
    if isinstance(record, str):
        return Document(name, record)
    if not isinstance(record, Mapping):
        raise UnavailableError(f"{name} holds {type(record).__name__} records, not objects with a text column")
    value = record.get(column)
    reasons: list[str] = []
    turns = _column_turns(name, column, value, reasons)
    if turns is None and (value is None or (isinstance(value, str) and not value.strip())):
        turns = _conversation(name, record, reasons)
    if turns is not None:
        text = "\n".join(content for _, content in turns if content)
        return Document(name, text, turns, untrainable=next(filter(None, reasons), ""))
    if column not in record:
        raise missing(column, record, name)
    return Document(name, cell_text(value, name, column))


def missing(column: str, columns: Iterable[Any], where: str) -> UsageError:
    """The error for a missing column, naming those present."""
    known = ", ".join(" ".join(str(name).split())[:60] for name, _ in zip(columns, range(8), strict=False))
    what = f"no column {column!r} in {where} (found: {known or 'none'})"
    if isinstance(columns, Mapping):
        for key, value in columns.items():
            if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
                path = shlex.quote(f".[{json.dumps(str(key), ensure_ascii=False)}][]")
                file = shlex.quote(where.rpartition(":")[0])
                return UsageError(what, f"are its records under {key!r}? take them out: jq -c {path} {file}")
    return UsageError(what, "name it with --text-column")


def needed(column: str, columns: Sequence[str], where: str) -> list[str]:
    """The columns of a table that have to be read: the text column, and those that a conversation may be in."""
    wanted = CHAT_COLUMNS if column not in columns else {column, *CONVERSATIONS}
    chosen = [name for name in dict.fromkeys(columns) if name in wanted]
    if not chosen:
        raise missing(column, columns, where)
    return chosen


def cell_text(value: Any, where: str, column: str) -> str:
    """The text of a cell; none for null. UsageError naming record, column and type for what is not text."""
    if value is None:
        return ""
    text = _text_of_value(value)
    if text is None:
        raise _not_text(value, where, column)
    return text


def _text_of_value(value: Any) -> str | None:
    """A string, bytes in UTF-8, a part of text, or a list of these joined by line breaks; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
    if isinstance(value, Mapping):
        keys = {key for key, item in value.items() if item is not None}  # a table has null in columns of other parts
        is_part = value.get("type") in _TEXT_PARTS and keys <= {"type", "text", "cache_control", "annotations"}
        return _text_of_value(value["text"]) if is_part and isinstance(value.get("text"), str | bytes) else None
    if isinstance(value, list):
        texts = [_text_of_value(item) for item in value if item is not None]
        parts = [text for text in texts if text is not None]
        return "\n".join(parts) if len(parts) == len(texts) else None
    return None


def _not_text(value: Any, where: str, column: str) -> UsageError:
    return UsageError(
        f"{where}: column {column!r} holds {_kind_of_value(value)}, not text",
        "name a column of text with --text-column, or take such records out",
    )


def _kind_of_value(value: Any) -> str:
    """What a cell holds, in words, down to the first item of a list that is not text."""
    if isinstance(value, Mapping):
        kind = value.get("type")
        if isinstance(kind, str) and kind not in _TEXT_PARTS:
            return f"a part of type {kind!r}"
        return f"an object ({', '.join(map(str, list(value)[:6]))})"
    if isinstance(value, list):
        wrong = next((item for item in value if item is not None and _text_of_value(item) is None), None)
        return f"a list with {_kind_of_value(wrong)}"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes that are not UTF-8"
    return f"a value of type {type(value).__name__}"


# --- conversations -------------------------------------------------------------------------------------------


def _column_turns(name: str, column: str, value: Any, reasons: list[str]) -> Turns | None:
    """The turns in the column that was asked for; None where it holds something else."""
    if isinstance(value, str) and (column in CONVERSATIONS or _SPELLED_TURNS.match(value)):
        spelled, value = value, _unspelled(value)
        if value is None and _SPELLED_TURNS.match(spelled) and (column in CONVERSATIONS or _NUMPY.search(spelled)):
            raise UsageError(
                f"{name}: column {column!r} holds turns in a spelling that cannot be read: NumPy's, or cut off",
                "write the table as JSON Lines or Parquet, which keep lists as lists",
            )
    value = _by_turn(value)
    spoken = isinstance(value, list | tuple) and any(_is_turn(item) for item in value)
    return tuple(_turns(name, column, value, reasons)) if spoken else None


_SPELLED_TURNS = re.compile(r"\s*\[\s*\{\s*['\"](role|from|speaker|content|value)['\"]\s*:")
_NUMPY = re.compile(r"[\w'\"\]}]\}\s+\{['\"]")  # an array of objects as text: no commas between them


def _unspelled(value: str) -> Any:
    """The list that a cell's text encodes, in JSON or, as pandas writes it into CSV, in Python; None if it does not."""
    if value.lstrip()[:1] != "[":
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _by_turn(value: Any) -> Any:
    """Turns stored by column ({role: [...], content: [...]}), as `datasets` does, one by one."""
    if isinstance(value, Mapping) and any(isinstance(value.get(key), list) for key in _SPEAKERS):
        columns = {key: item for key, item in value.items() if isinstance(item, list)}
        if len({len(item) for item in columns.values()}) == 1:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return value


def _is_turn(item: Any) -> bool:
    return isinstance(item, Mapping) and any(key in item for key in _SPEAKERS)


def _conversation(name: str, record: Mapping[Any, Any], reasons: list[str]) -> Turns | None:
    """The conversation that a record holds: a list of turns, or a question and its answer."""
    for column in CONVERSATIONS:
        value = _by_turn(record.get(column))
        if isinstance(value, str) and (turns := _column_turns(name, column, value, reasons)) is not None:
            return (*_system(name, record), *turns)
        if isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
            return (*_system(name, record), *_turns(name, column, value, reasons))
    return _question_and_answer(name, record, reasons)


def _system(name: str, record: Mapping[Any, Any]) -> Turns:
    for column in SYSTEMS:
        value = record.get(column)
        if isinstance(value, Mapping):  # Gemini's
            value = value.get("parts")
        if isinstance(value, str | list) and (content := cell_text(value, name, column)).strip():
            return (("system", content),)
    return ()


def _untrainable(turn: Mapping[Any, Any]) -> str:
    """Why a turn cannot be trained on as it is meant: it has reasoning of its own, which no turn here keeps."""
    reasoning = next((key for key in _REASONING if isinstance(turn.get(key), str) and turn[key].strip()), None)
    return f"has {reasoning}, which is not read" if reasoning else ""


def _turns(name: str, column: str, value: Iterable[Any], reasons: list[str]) -> Iterator[tuple[str, str]]:
    """Role and content of each turn; to `reasons` goes why the conversation cannot be trained on, or nothing."""
    turn: Mapping[Any, Any] = {}
    role = ""
    for number, turn in enumerate(value, 1):
        where = f"{name}: turn {number} of {column!r}"
        if not isinstance(turn, Mapping):
            raise UsageError(f"{where} is {_kind_of_value(turn)}, not an object with a role and a content")
        speaker = next((turn[key] for key in _SPEAKERS if turn.get(key) is not None), None)
        if not isinstance(speaker, str):
            raise UsageError(f"{where} has no role (found: {', '.join(map(str, list(turn)[:8]))})")
        key_of_content = next((key for key in _CONTENT_KEYS if turn.get(key) is not None), None)
        key_of_content = key_of_content or next((key for key in _CONTENT_KEYS if key in turn), None)
        if key_of_content is None and not turn.get("tool_calls") and not turn.get("function_call"):
            raise UsageError(f"{where} has no content (found: {', '.join(map(str, list(turn)[:8]))})")
        content = "" if key_of_content is None else cell_text(turn[key_of_content], where, key_of_content)
        reasons.append(_untrainable(turn))
        role = _ROLES.get(speaker.lower(), speaker.lower())
        yield role, content
    if role == "assistant" and (turn.get("weight") == 0 or turn.get("train") is False):
        reasons.append("has an answer that is not to be trained on (weight 0)")


def _question_and_answer(name: str, record: Mapping[Any, Any], reasons: list[str]) -> Turns | None:
    """A question with its answer (Alpaca, Dolly, prompt and completion): texts, or both lists of turns."""
    question_key = next((key for key in QUESTIONS if record.get(key) is not None), None)
    answer_key = next((key for key in ANSWERS if record.get(key) is not None), None)
    if question_key is None or answer_key is None:
        return None
    if isinstance(record[answer_key], list) and all(map(_is_turn, record[answer_key])):
        before = record[question_key] if isinstance(record[question_key], list) else []
        if record[answer_key][: len(before)] == before:  # the answer repeats its prompt, as in preference data
            before = []
        return (
            *_turns(name, question_key, before, reasons),
            *_turns(name, answer_key, record[answer_key], reasons),
        )
    question = cell_text(record[question_key], name, question_key)
    if question_key == "instruction":
        context = next((key for key in CONTEXTS if record.get(key)), None)
        question += f"\n\n{cell_text(record[context], name, context)}" if context else ""
    answer = cell_text(record[answer_key], name, answer_key)
    return (*_system(name, record), *_history(name, record), ("user", question), ("assistant", answer))


def _history(name: str, record: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for pair in record.get("history") or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UsageError(f"{name}: 'history' holds {_kind_of_value(pair)}, not pairs of a question and an answer")
        for role, value in zip(("user", "assistant"), pair, strict=True):
            yield role, cell_text(value, name, "history")
