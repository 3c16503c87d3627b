"""A document to token ids: what the tokenizer adds around a text, and the tokens of a piece of it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condense.texts.formats import LongText

SAMPLE = 1000
"""Characters of a text on which its special tokens are found."""
_CHARACTERS_PER_TOKEN = 8
_CHANGED_BY_A_CUT = 64
"""Tokens at the end of a cut piece of text that the cut may have changed."""


def added_specials(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts before and after a text by default, found at the beginning of this text.

    So a vocabulary of characters, bytes or nucleotides, which may have no token for other text, shows them too.
    """
    sample = text.strip()[:SAMPLE] or "a b"
    bare = _ids_of_text(tokenizer, sample, add_special_tokens=False)
    full = _ids_of_text(tokenizer, sample)
    starts = [start for start in range(len(full) - len(bare) + 1) if full[start : start + len(bare)] == bare]
    openers = {getattr(tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")}
    if bare and starts:
        start = starts[-1] if full[0] in openers else starts[0]  # several where the text is one token repeated
        return full[:start], full[start + len(bare) :]
    return _by_mask(tokenizer, sample, openers)


def _by_mask(tokenizer: Any, sample: str, openers: set[int | None]) -> tuple[list[int], list[int]]:
    """As `added_specials`, by the tokenizer's own mask, where its other tokens change with the special ones."""
    coded = tokenizer(sample, split_special_tokens=True, verbose=False, return_special_tokens_mask=True)
    ids, mask = list(coded["input_ids"]), list(coded.get("special_tokens_mask") or ())
    if 0 in mask:
        return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]
    split = next((number for number, token in enumerate(ids) if token not in openers), len(ids))
    return (ids[:split], ids[split:]) if mask else ([], [])


def _ids_of_text(tokenizer: Any, text: str, **options: bool) -> list[int]:
    return list(tokenizer(text, split_special_tokens=True, verbose=False, **options)["input_ids"])


@dataclass(frozen=True)
class Window:
    """The token ids of one window without its special tokens, and its passage (None without offsets)."""

    ids: list[int]
    passage: tuple[str, str] | None


@dataclass(frozen=True)
class Piece:
    """A piece of a document, its token ids and where each ends in it (None for a tokenizer without offsets)."""

    text: str
    ids: Sequence[int]
    ends: Sequence[int] | None

    def first(self, count: int) -> Piece:
        """The same piece with its first `count` tokens only."""
        return Piece(self.text, self.ids[:count], None if self.ends is None else self.ends[:count])

    def passage(self, start: int, end: int, has_prefix: bool) -> tuple[str, str] | None:
        """The text before the first predicted token of a window, and the text from there to the last one's end."""
        if self.ends is None:
            return None
        first = start if has_prefix else start + 1
        opening = self.ends[start - 1] if start > 0 else 0
        begin = self.ends[first - 1] if first > 0 else 0
        return self.text[opening:begin], self.text[begin : self.ends[end - 1]]


@dataclass(frozen=True)
class Cutter:
    """How windows are cut: with which tokenizer, how many tokens each, and whether special tokens come before."""

    tokenizer: Any
    content: int
    has_prefix: bool

    def window(self, piece: Piece, start: int) -> Window:
        """The window whose first token is the piece's token `start`."""
        end = start + self.content
        return Window(list(piece.ids[start:end]), piece.passage(start, end, self.has_prefix))

    def tokens(self, text: str) -> Piece:
        """The tokens of a whole text; special tokens that it spells are read as text."""
        coded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
            return_attention_mask=False,
            return_offsets_mapping=bool(self.tokenizer.is_fast),
        )
        offsets = coded.get("offset_mapping")
        ends = None if offsets is None else array("l", (int(end) for _, end in offsets))
        return Piece(text, array("l", coded["input_ids"]), ends)

    def tokens_from(self, text: str | LongText, start: int) -> Piece:
        """The tokens from a character on, of as much text as surely holds one window, or of all that is left.

        The last tokens of a piece that ends before the text does are dropped, because the cut may have changed them.
        """
        size = max(4096, self.content * _CHARACTERS_PER_TOKEN)
        while True:
            part = text[start : start + size]
            piece = self.tokens(part)
            if start + len(part) == len(text):
                return piece
            if len(piece.ids) - _CHANGED_BY_A_CUT >= self.content:
                return piece.first(len(piece.ids) - _CHANGED_BY_A_CUT)
            size *= 2
