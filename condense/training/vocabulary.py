"""A larger vocabulary, learned from the training text by continuing a tokenizer's own BPE merges.

Appended merges come after all old ones, so the new encoding of a text is its old encoding with some neighbours
joined, and a new token's rows can start as the mean of the rows that it replaces.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condense.errors import UnavailableError
from condense.records.plans import MAX_GROWTH, MIN_FREQUENCY
from condense.texts.documents import Document
from condense.training.bpe import Merge, continue_merges

_CHECKED = 500_000
_AT_ONCE = 64  # documents encoded at a time, so that the tokens of a large text are never all in memory


@dataclass(frozen=True)
class Enlarged:
    """A model and its tokenizer with `added` new tokens, and in words what was done."""

    model: Any
    tokenizer: Any
    added: int
    details: tuple[str, ...]


def enlarge_vocabulary(model: Any, tokenizer: Any, documents: Iterable[Document]) -> Enlarged:
    """The model, changed in place, and a new tokenizer, with the tokens that its merges, continued, would add.

    The pair of neighbouring tokens that is most frequent inside the words of the documents becomes a token, again
    and again, while it occurs `MIN_FREQUENCY` times and at most `MAX_GROWTH` of the vocabulary is added. Words are
    those of the tokenizer; where it has none (SentencePiece), they begin at white space. Special and other added
    tokens, byte-fallback tokens and the unknown token are never merged and keep their ids, as all old tokens do.
    New ids follow the largest old one; embedding rows that a padded model has beyond it are used first.

    A new row, of the embeddings and of the head, is the mean of the rows of the original tokens that it stands
    for; a tied head stays tied; no other row changes. UnavailableError, with the reason, where the tokenizer is not
    a BPE that can be continued, where nothing is frequent enough, or where the result does not survive saving.
    """
    texts = [document.text for document in documents]
    data = _bpe(tokenizer)
    before = _core(data)
    words, tokens = _count_words(before, texts, _borders(data))
    vocabulary = before.get_vocab(with_added_tokens=True)
    size = len(vocabulary)
    merges = continue_merges(
        words, {index: token for token, index in vocabulary.items()}, vocabulary,
        limit=int(MAX_GROWTH * size), min_frequency=MIN_FREQUENCY, allowed=_one_word,
    )  # fmt: skip
    if not merges:
        raise UnavailableError(
            f"no two neighbouring tokens occur {MIN_FREQUENCY} times inside words: no token to add",
            "train on more text, or leave larger-vocab out",
        )
    first = max(vocabulary.values()) + 1
    larger = _with_merges(data, vocabulary, merges, first)
    made = copy.deepcopy(tokenizer)
    made._tokenizer = _backend(tokenizer, larger)
    after = _core(larger)
    _check_specials(tokenizer, before, after)
    _check_saving(made, after, texts)
    padded = _grow(model, merges, first)
    fewer = sum(len(encoding.ids) for encoding in _encoded(after, texts))
    details = (
        f"{len(merges):,} tokens added ({len(merges) / size:.1%} of {size:,}), "
        f"learned from {sum(words.values()):,} words in {len(texts):,} document{'s' * (len(texts) != 1)}; "
        f"the training text takes {1 - fewer / tokens:.1%} fewer tokens ({tokens:,} before, {fewer:,} after)",
        f"merges with frequency ≥ {MIN_FREQUENCY}, at most {MAX_GROWTH:.0%} of the vocabulary; "
        "new rows start as the mean of the rows of the pieces that they replace",
        *((f"{padded:,} of the new tokens use rows that the model already had beyond its vocabulary",) * bool(padded)),
    )
    return Enlarged(model, made, len(merges), details)


# --- the tokenizer ----------------------------------------------------------------------------------


def _bpe(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's own JSON; UnavailableError if it is not a BPE whose merges can be continued."""
    name = type(tokenizer).__name__
    hint = "leave larger-vocab out for this model"
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise UnavailableError(f"{name} is a slow tokenizer: its merges are out of reach", hint)
    data: dict[str, Any] = json.loads(core.to_str())
    model = data["model"]
    if model.get("type") != "BPE":
        raise UnavailableError(f"{name} is {model.get('type')}, not BPE: it has no merges to continue", hint)
    if not model.get("merges"):
        raise UnavailableError(f"{name} is a BPE without merges: there is nothing to continue", hint)
    if model.get("continuing_subword_prefix"):
        raise UnavailableError(f"{name} marks the inside of words ({model['continuing_subword_prefix']})", hint)
    if model.get("dropout"):
        raise UnavailableError(f"{name} drops merges at random (BPE-dropout): it has no one encoding", hint)
    return data


def _core(data: dict[str, Any]) -> Any:
    """A `tokenizers.Tokenizer` that reads special tokens in a text as text, as training here does."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(json.dumps(data))
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True
    return core


def _backend(tokenizer: Any, data: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(data))
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    return backend


@dataclass(frozen=True)
class _Borders:
    """Where words end besides where the tokenizer says so: at tokens never merged, and at marks of a blank."""

    fixed: frozenset[int]
    marks: str


def _borders(data: dict[str, Any]) -> _Borders:
    model, core = data["model"], _core(data)
    fixed = {int(token["id"]) for token in data["added_tokens"]}
    names = [model["unk_token"]] if model.get("unk_token") else []
    # A joined pair of byte tokens would be decoded as the text "<0xE2><0x80>".
    names += [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []
    fixed |= {model["vocab"][name] for name in names if name in model["vocab"]}
    undivided = len(set(core.encode("a b", add_special_tokens=False).word_ids)) == 1
    return _Borders(frozenset(fixed), "▁Ġ" if undivided else "▁")


def _one_word(token: str) -> bool:
    """Whether a text is inside one word: ▁ only in front, no no white space (byte-level tokens have neither)."""
    return "▁" not in token[1:] and not any(letter.isspace() for letter in token)


def _encoded(core: Any, texts: list[str]) -> Iterator[Any]:
    for start in range(0, len(texts), _AT_ONCE):
        yield from core.encode_batch(texts[start : start + _AT_ONCE], add_special_tokens=False)


def _count_words(core: Any, texts: list[str], borders: _Borders) -> tuple[Counter[tuple[int, ...]], int]:
    """How often each word occurs, as ids, and the number of tokens of the whole text."""
    words: Counter[tuple[int, ...]] = Counter()
    tokens = 0
    for encoding in _encoded(core, texts):
        tokens += len(encoding.ids)
        words.update(_words(encoding, borders))
    return words, tokens


def _words(encoding: Any, borders: _Borders) -> Iterator[tuple[int, ...]]:
    word: list[int] = []
    last = None
    for index, token, word_id in zip(encoding.ids, encoding.tokens, encoding.word_ids, strict=True):
        fixed = index in borders.fixed
        if word and (fixed or word_id != last or token[:1] in borders.marks):
            yield tuple(word)
            word = []
        if not fixed:
            word.append(index)
        last = word_id
    if word:
        yield tuple(word)


def _with_merges(
    data: dict[str, Any], vocabulary: dict[str, int], merges: tuple[Merge, ...], first: int
) -> dict[str, Any]:
    """The tokenizer's JSON with the new tokens and, after all old ones, the new merges.

    Added tokens enter the vocabulary of the model too: those outside of it (Llama 3) are numbered anew on loading,
    after however many tokens the model has.
    """
    larger = copy.deepcopy(data)
    model = larger["model"]
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    model["vocab"] |= {merge.token: first + number for number, merge in enumerate(merges)}
    model["merges"] += [[merge.left, merge.right] for merge in merges]
    return larger


def _check_saving(made: Any, after: Any, texts: list[str]) -> None:
    """UnavailableError unless the tokenizer, saved and opened again, encodes as it should.

    transformers builds some tokenizers anew from vocabulary and merges; that this gives the same is checked here,
    on the first `_CHECKED` characters of the text and on the special tokens, as text and as themselves.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        opened = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    same = opened.get_vocab() == made.get_vocab() == after.get_vocab(with_added_tokens=True)
    same = same and opened.added_tokens_encoder == made.added_tokens_encoder
    specials = " ".join(made.added_tokens_encoder)
    same = same and opened(specials)["input_ids"] == made(specials)["input_ids"]
    for text in [specials, *_beginning(texts)] if same else ():
        wanted = after.encode(text, add_special_tokens=False).ids
        for each in (made, opened):
            ids = each(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            same = same and ids == wanted
    if not same:
        raise UnavailableError(
            f"{type(made).__name__} does not encode the same after it is saved and opened again",
            "leave larger-vocab out for this model",
        )


def _beginning(texts: list[str]) -> Iterator[str]:
    left = _CHECKED
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def _check_specials(tokenizer: Any, before: Any, after: Any) -> None:
    """UnavailableError if text that spells a special token would now become one.

    It could where a tokenizer looks for whole words in its vocabulary first (`ignore_merges`), now that it holds
    the special tokens as well.
    """
    special = set(tokenizer.all_special_ids)
    for token in tokenizer.added_tokens_encoder:
        old, new = (set(core.encode(token, add_special_tokens=False).ids) for core in (before, after))
        if (new - old) & special:
            raise UnavailableError(
                f"text that spells {token} would become the special token", "leave larger-vocab out for this model"
            )


# --- the model --------------------------------------------------------------------------------------


@torch.no_grad()
def _grow(model: Any, merges: tuple[Merge, ...], first: int) -> int:
    """Write the rows of the new tokens; how many of them the model had rows for already."""
    rows = len(model.get_input_embeddings().weight)
    largest = max(piece for merge in merges for piece in merge.pieces)
    if largest >= rows:
        raise UnavailableError(f"the tokenizer has token {largest}, the model only {rows} embeddings")
    if first + len(merges) > rows:
        model.resize_token_embeddings(first + len(merges), mean_resizing=False)
    for matrix in _matrices(model):
        if rows < first:  # rows of old tokens that the model never had
            matrix[rows:first] = matrix[:rows].float().mean(0).to(matrix.dtype)
        for number, merge in enumerate(merges):
            matrix[first + number] = matrix[list(merge.pieces)].float().mean(0).to(matrix.dtype)
    return max(0, min(rows - first, len(merges)))


def _matrices(model: Any) -> list[Tensor]:
    """What has one row for each token: the embeddings, and the head and its bias where they are others."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return list({id(matrix): matrix for matrix in found if matrix is not None}.values())
