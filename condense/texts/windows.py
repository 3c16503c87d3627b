"""Documents to windows of token ids: what is measured, and the hashes that say so.

A window is exactly S contiguous token ids of one document, the special tokens that the tokenizer adds
by default included. First windows of the documents in file order; if there are fewer long-enough
documents than asked for, the next non-overlapping windows follow, round robin. Text that spells a
special token is text, never a control token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from condense.errors import UnavailableError, UsageError
from condense.records.diagnosis import CorpusInfo
from condense.texts.documents import PROBE_VERSION, Document, probe, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_TEXTS = 32
MAX_LENGTH = 512
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Windows:
    """N texts of S token ids, ready to be measured.

    ids (N, S) int64; special (N, S) bool, the tokens the tokenizer added; `predicted_bytes` the UTF-8
    bytes of the source span of the predicted tokens of each text (None without offsets); `passages` that span
    itself, behind what of the text the model is given before it (empty where a BOS is given).
    """

    ids: Tensor
    special: Tensor
    predicted_bytes: tuple[int | None, ...]
    mask_token_id: int | None
    info: CorpusInfo
    passages: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.ids)


@dataclass(frozen=True)
class _Tokens:
    """A document's token ids and where each ends in the text (None for a tokenizer without offsets)."""

    document: Document
    ids: list[int]
    ends: list[int] | None


def windows(
    tokenizer: PreTrainedTokenizerBase,
    text: str | Path | Iterable[str] | Iterable[Document] | None = None,
    *,
    num_texts: int = NUM_TEXTS,
    max_length: int | None = None,
    positions: int | None = None,
    seed: int = 0,
    text_column: str = "text",
    source: str | None = None,
) -> Windows:
    """Cut documents into windows of token ids.

    text: a path, documents or strings in memory, or None for the probe text; max_length S (default
    min(512, positions)); positions: the longest input the model takes. UsageError for a length that the
    model or the documents cannot give, UnavailableError for text that cannot be read.
    """
    if num_texts < 1:
        raise UsageError(f"--num-texts {num_texts} asks for no text", "use 8 or more")
    length = _length(max_length, positions)
    before, after = added_specials(tokenizer)
    content = length - len(before) - len(after)
    if content < 2:
        raise UsageError(f"--max-length {length} leaves no room for text", "use at least 8 tokens")
    digest = hashlib.sha256()
    kept, skipped, longest = _long_enough(tokenizer, documents_of(text, text_column), num_texts, content, digest)
    if not kept:
        name, size = longest
        fits = size + len(before) + len(after)
        raise UsageError(
            f"no document is long enough: the longest ({name}) gives {fits} tokens, --max-length is {length}",
            f"lower --max-length to {max(8, fits)} or less, or give longer documents",
        )
    rows = list(_round_robin(kept, content, num_texts))
    ids = torch.tensor([[*before, *t.ids[a : a + content], *after] for t, _, a in rows], dtype=torch.int64)
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, : len(before)] = True
    special[:, length - len(after) :] = True
    info = CorpusInfo(
        source=source or _label(text),
        sha256=digest.hexdigest(),
        windows_sha256=_ids_sha256(ids),
        texts=len(ids),
        skipped=skipped,
        tokens=ids.numel(),
        length=length,
        seed=seed,
        windows=tuple(f"{t.document.name}#{k}" for t, k, _ in rows),
        requested=num_texts,
        version=PROBE_VERSION if text is None else None,
    )
    passages = [_passage(t, a, a + content, bool(before)) for t, _, a in rows]
    spans = tuple(None if p is None else len(p[1].encode("utf-8", errors="replace")) for p in passages)
    return Windows(
        ids, special, spans, getattr(tokenizer, "mask_token_id", None), info,
        passages=tuple(p for p in passages if p is not None),
    )  # fmt: skip


def _length(asked: int | None, positions: int | None) -> int:
    if asked is None:
        return min(MAX_LENGTH, positions or MAX_LENGTH)
    if positions is not None and asked > positions:
        raise UsageError(f"--max-length {asked} is beyond the model's {positions} positions", "use a shorter one")
    return asked


def documents_of(text: Any, column: str) -> Iterator[Document]:
    """Documents of a path, of strings or documents in memory, or of the probe text for None."""
    if text is None:
        yield from probe()
    elif isinstance(text, str | Path):
        yield from read(text, column)
    else:
        for number, item in enumerate(text):
            yield item if isinstance(item, Document) else Document(f"text:{number}", item)


def _label(text: Any) -> str:
    if text is None:
        return f"condense probe {PROBE_VERSION}"
    if str(text) == "-":
        return "standard input"
    return str(text) if isinstance(text, str | Path) else "documents in memory"


def added_specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts before and after a text by default."""
    bare = tokenizer("a b", add_special_tokens=False)["input_ids"]
    full = tokenizer("a b")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def _long_enough(
    tokenizer: Any, documents: Iterator[Document], wanted: int, content: int, digest: Any
) -> tuple[list[_Tokens], int, tuple[str, int]]:
    """Read documents until `wanted` are long enough; count the shorter ones and the longest of them."""
    kept: list[_Tokens] = []
    skipped, longest = 0, ("none", 0)
    for document in documents:
        data = document.text.encode("utf-8", errors="replace")
        digest.update(len(data).to_bytes(8, "big") + data)
        tokens = _tokenize(tokenizer, document, wanted * content)
        if len(tokens.ids) >= content:
            kept.append(tokens)
        else:
            skipped += 1
            longest = max(longest, (document.name, len(tokens.ids)), key=lambda known: known[1])
        if len(kept) == wanted:
            break
    return kept, skipped, longest


def _tokenize(tokenizer: Any, document: Document, needed: int) -> _Tokens:
    """Token ids of a document, or of a beginning of it that surely holds `needed` of them.

    A long file is not tokenised to its end for the sake of its first windows; the last tokens of such a
    beginning are dropped, because the cut may have changed them.
    """
    text = document.text.encode("utf-8", errors="replace").decode("utf-8")
    size = max(4096, needed * _CHARACTERS_PER_TOKEN)
    while True:
        part = text[:size]
        coded = tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, verbose=False,
            return_attention_mask=False, return_offsets_mapping=bool(tokenizer.is_fast),
        )  # fmt: skip
        ids, offsets = list(coded["input_ids"]), coded.get("offset_mapping")
        ends = [int(end) for _, end in offsets] if offsets is not None else None
        if len(part) == len(text):
            return _Tokens(document, ids, ends)
        if len(ids) - 64 >= needed:
            return _Tokens(document, ids[:-64], ends[:-64] if ends else None)
        size *= 2


def _round_robin(kept: list[_Tokens], content: int, wanted: int) -> Iterator[tuple[_Tokens, int, int]]:
    """Yield (document, number, start) of the windows: all documents' first ones, then their second ones."""
    count, number = 0, 0
    while count < wanted:
        start = number * content
        fitting = [tokens for tokens in kept if len(tokens.ids) >= start + content]
        if not fitting:
            return
        for tokens in fitting[: wanted - count]:
            yield tokens, number, start
        count += len(fitting)
        number += 1


def _passage(tokens: _Tokens, start: int, end: int, has_prefix: bool) -> tuple[str, str] | None:
    """What stands before the first predicted token in the window, and the text from there to the last one's end."""
    if tokens.ends is None:
        return None
    first = start if has_prefix else start + 1
    text, ends = tokens.document.text, tokens.ends
    opening = ends[start - 1] if start > 0 else 0
    begin = ends[first - 1] if first > 0 else 0
    return text[opening:begin], text[begin : ends[end - 1]]


def _ids_sha256(ids: Tensor) -> str:
    shape = f"{tuple(ids.shape)}".encode()
    return hashlib.sha256(shape + ids.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def check_ids(ids: Tensor, rows: int) -> None:
    """Refuse token ids that the embedding has no row for; UnavailableError names the largest."""
    largest = int(ids.max())
    if largest >= rows:
        raise UnavailableError(
            f"token id {largest} is beyond the embedding's {rows} rows",
            "tokenizer and model do not belong together: pass --tokenizer",
        )


def without_names(windows: Windows) -> Windows:
    """The same windows with numbers for names and no source path: nothing of the corpus is told."""
    names = tuple(f"text {number}" for number in range(len(windows)))
    return replace(windows, info=replace(windows.info, windows=names, source="not told"))
