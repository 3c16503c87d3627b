"""A conversation to token ids and labels, in the chat template of a tokenizer.

Templates are code that came with the tokenizer and may raise anything; what a turn spells of the template's control
tokens is text. A conversation that cannot be used is refused with the reason.
"""

from __future__ import annotations

import re
from typing import Any

from condense.errors import UsageError
from condense.texts.documents import Document

IGNORED = -100
"""The label of a token that does not count in the loss."""


class UnusableError(Exception):
    """A conversation that cannot be trained on, and why."""


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without those that the tokenizer adds; control tokens that it spells are text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def conversation(tokenizer: Any, document: Document, spelled: list[str]) -> tuple[list[int], list[int]]:
    """A conversation in the tokenizer's template; only its last turn, the answer, counts in the loss.

    Its name goes to `spelled` if a turn spells a control token.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{document.name} is a conversation and the tokenizer has no chat template",
            "give plain text, or a column of it with --text-column",
        )
    messages = document.messages or ()
    if document.untrainable:
        raise UnusableError(document.untrainable)
    if not messages:
        raise UnusableError("has no turn")
    if messages[-1][0] != "assistant":
        raise UnusableError(f"ends with the {messages[-1][0]}, not with an answer")
    if not all(said.strip() for _, said in messages):
        raise UnusableError("has a turn without text")
    if len(messages) == 1:
        raise UnusableError("has an answer and nothing before it")
    turns = [{"role": role, "content": content} for role, content in messages]
    control = _control_tokens(tokenizer)
    if control is not None and not any(control.search(said) for _, said in messages):
        control = None
    full = _rendered(tokenizer, turns, control)
    prompt = _rendered(tokenizer, turns[:-1], control, add_generation_prompt=True)
    shared = next(
        (i for i, (a, b) in enumerate(zip(full, prompt, strict=False)) if a != b), min(len(full), len(prompt))
    )
    if shared == len(full):
        raise UnusableError("has no token of its answer in the chat template")
    if control is not None:
        spelled.append(document.name)
    return full, [IGNORED] * shared + full[shared:]


def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """What matches the spelling of any special token of a tokenizer, the longest first; None if it has none."""
    added = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]
    names = sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def _rendered(
    tokenizer: Any, turns: list[dict[str, str]], control: re.Pattern[str] | None, **options: bool
) -> list[int]:
    """Token ids of turns in the template, which is code that came with the tokenizer and may raise anything.

    control: matches the control tokens that a turn spells; they become text, as everywhere else.
    """
    try:
        if control is None:
            return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **options))
        spelled = [match[0] for turn in turns for match in control.finditer(turn["content"])]
        hidden = [{**turn, "content": control.sub(_OPEN + _CLOSE, turn["content"])} for turn in turns]
        text = str(tokenizer.apply_chat_template(hidden, tokenize=False, **options))
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
        raise UnusableError(f"is refused by the chat template (roles {roles}): {said}") from None
    if text.count(_OPEN + _CLOSE) != len(spelled):
        raise UnusableError(
            f"spells a control token, {spelled[0]}, in a turn that the chat template does not show whole"
        )
    bare = text.replace(_OPEN + _CLOSE, "")
    if _in_parts(tokenizer, bare, control, []) != list(tokenizer(bare, add_special_tokens=False)["input_ids"]):
        raise UnusableError(f"spells a control token, {spelled[0]}, as the template's own do")
    return _in_parts(tokenizer, text, control, spelled)


_OPEN, _CLOSE = "\ue07b", "\ue07d"
"""Two characters of private use, in the place of a control token that a turn spells."""


def _in_parts(tokenizer: Any, text: str, control: re.Pattern[str], spelled: list[str]) -> list[int]:
    """Token ids of a rendered text: its control tokens as such, and what turns spell of them put back as text."""
    ids: list[int] = []
    left, start = iter(spelled), 0
    for match in (*control.finditer(text), None):
        part = text[start : match.start() if match else len(text)]
        part = re.sub(_OPEN + _CLOSE, lambda _: next(left), part)
        ids += token_ids(tokenizer, part) if part else []
        if match:
            ids.append(int(tokenizer.convert_tokens_to_ids(match[0])))
            start = match.end()
    return ids
