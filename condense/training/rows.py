"""Training text: documents to rows of token ids, with validation documents set apart.

Causal models: documents + EOS packed to rows of S tokens; position ids restart with every document, and
so does attention in models that honour that (checked, not assumed); where a model would look across the
border, rows hold one document each and are padded. Masked models: one chunk of one document per row.
Chat records use the tokenizer's template, with the prompt masked from the loss.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from condense.errors import UnavailableError, UsageError
from condense.texts.documents import Document, probe
from condense.texts.tokens import added_specials
from condense.texts.windows import Windows, windows

IGNORED = -100
VALIDATION_SHARE = 0.1
BY_DOCUMENT = 20
MEASURED_LENGTHS = (512, 256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Split:
    """Training and validation documents, disjoint, and the hashes of both."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    dropped: int = 0

    @property
    def train_sha256(self) -> str:
        """Hash of the training documents in order."""
        return _digest(self.train)

    @property
    def validation_sha256(self) -> str:
        """Hash of the validation documents in order."""
        return _digest(self.validation)


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of S token ids with labels, and position ids (packed) or an attention mask (padded)."""

    def __init__(self, rows: list[dict[str, Tensor]], length: int, packed: bool) -> None:
        """Keep the rows."""
        self.rows, self.length, self.packed = rows, length, packed

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row."""
        return self.rows[index]


def _digest(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        data = document.text.encode("utf-8", errors="replace")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def split(documents: Iterable[Document], seed: int) -> Split:
    """Set 10 % of the documents apart, or with fewer than 20 the tail of each.

    Repeated documents and those of the probe text are dropped, so that train, validation and probe are
    disjoint. UnavailableError if nothing is left to train on.
    """
    known = {passage.text.strip() for passage in probe()}
    unique, dropped = [], 0
    for document in documents:
        text = document.text.strip()
        if not text or text in known:
            dropped += bool(text)
            continue
        known.add(text)
        unique.append(document)
    if not unique:
        raise UnavailableError("there is no text to train on", "name it with --text or --dataset")
    order = list(range(len(unique)))
    random.Random(seed).shuffle(order)
    if len(unique) >= BY_DOCUMENT:
        held = set(order[: max(1, round(VALIDATION_SHARE * len(unique)))])
        train = [unique[i] for i in order if i not in held]
        return Split(tuple(train), tuple(unique[i] for i in sorted(held)), dropped)
    pairs = [_tail(unique[i]) for i in order]
    return Split(tuple(a for a, _ in pairs), tuple(b for _, b in pairs if b.text.strip()), dropped)


def _tail(document: Document) -> tuple[Document, Document]:
    """A document without its last tenth, and that tenth, cut at white space."""
    text = document.text
    if document.messages is not None:
        return document, Document(f"{document.name} (tail)", "")
    cut = int(len(text) * (1 - VALIDATION_SHARE))
    while cut < len(text) and not text[cut].isspace():
        cut += 1
    return Document(document.name, text[:cut]), Document(f"{document.name} (tail)", text[cut:].lstrip())


def validation_windows(tokenizer: Any, documents: tuple[Document, ...], count: int, positions: int | None) -> Windows:
    """Windows of the validation documents, as long as leaves at least 8 of them, at most 512 tokens."""
    best: Windows | None = None
    for length in MEASURED_LENGTHS:
        if positions is not None and length > positions:
            continue
        try:
            found = windows(tokenizer, documents, num_texts=count, max_length=length, source="validation text")
        except UsageError:
            continue
        if best is None or len(found) > len(best):
            best = found
        if len(found) >= min(8, count):
            return found
    if best is None:
        raise UsageError("the validation text has no window of 16 tokens", "give more or longer documents")
    return best


def packed_rows(tokenizer: Any, documents: Iterable[Document], length: int) -> Rows:
    """Documents + EOS cut into full rows of `length`; the last, unfinished row is left out."""
    rows: list[dict[str, Tensor]] = []
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for tokens, wanted in _sequences(tokenizer, documents):
        start = 0
        while start < len(tokens):
            take = min(length - len(ids), len(tokens) - start)
            ids += tokens[start : start + take]
            labels += [IGNORED, *wanted[start + 1 : start + take]]
            positions += range(take)
            start += take
            if len(ids) == length:
                rows.append(_row(ids, labels, position_ids=positions))
                ids, labels, positions = [], [], []
    return Rows(rows, length, packed=True)


def padded_rows(tokenizer: Any, documents: Iterable[Document], length: int, *, masked: bool = False) -> Rows:
    """One chunk of one document per row, padded on the right; `masked`: with the tokenizer's specials, no labels."""
    documents = list(documents)
    before, after = added_specials(tokenizer, _sample(documents)) if masked else ([], [])
    room = length - len(before) - len(after)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    rows = []
    for tokens, wanted in _sequences(tokenizer, documents, whole=not masked):
        for start in range(0, len(tokens), room):
            chunk = [*before, *tokens[start : start + room], *after]
            if len(chunk) < 8:
                continue
            fill = length - len(chunk)
            mask = [1] * len(chunk) + [0] * fill
            labels = [IGNORED, *wanted[start + 1 : start + room]] + [IGNORED] * (fill + len(before) + len(after))
            rows.append(_row(chunk + [pad] * fill, labels[:length], attention_mask=mask))
    if masked:
        rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    return Rows(rows, length, packed=False)


def _row(ids: list[int], labels: list[int], **more: list[int]) -> dict[str, Tensor]:
    named = {"input_ids": ids, "labels": labels, **more}
    return {key: torch.tensor(value, dtype=torch.int64) for key, value in named.items()}


def _sequences(
    tokenizer: Any, documents: Iterable[Document], whole: bool = True
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of each document; `whole`: with the tokenizer's own beginning and an EOS."""
    documents = list(documents)
    before = added_specials(tokenizer, _sample(documents))[0] if whole else []
    end = [tokenizer.eos_token_id] if whole and tokenizer.eos_token_id is not None else []
    for document in documents:
        if document.messages is not None and whole:
            yield _chat(tokenizer, document)
            continue
        ids = list(
            tokenizer(document.text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )
        if ids:
            yield [*before, *ids, *end], [*before, *ids, *end]


def _sample(documents: Iterable[Document]) -> str:
    return next((document.text for document in documents if document.text.strip()), "")


def _chat(tokenizer: Any, document: Document) -> tuple[list[int], list[int]]:
    """A chat in the tokenizer's template; only the last turn counts in the loss."""
    turns = [{"role": role, "content": content} for role, content in document.messages or ()]
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{document.name} is a chat and the tokenizer has no chat template", "give plain text in a text column"
        )
    full = list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
    prompt = list(
        tokenizer.apply_chat_template(turns[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
    )
    shared = next(
        (i for i, (a, b) in enumerate(zip(full, prompt, strict=False)) if a != b), min(len(full), len(prompt))
    )
    return full, [IGNORED] * shared + full[shared:]


@torch.inference_mode()
def keeps_documents_apart(model: Any) -> bool:
    """True if a document's logits do not change when another one stands before it in the same row.

    Position ids that restart are honoured by most decoders in transformers 5 and ignored by some.
    """
    generator = torch.Generator().manual_seed(0)
    size = min(int(model.get_input_embeddings().num_embeddings), 1000)
    first, second = (torch.randint(0, size, (1, n), generator=generator).to(model.device) for n in (12, 9))
    positions = torch.cat([torch.arange(12), torch.arange(9)]).unsqueeze(0).to(model.device)
    was_training = model.training
    model.eval()
    try:
        both = model(input_ids=torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
        alone = model(input_ids=second, use_cache=False).logits
    except (TypeError, RuntimeError, ValueError):
        return False
    finally:
        model.train(was_training)
    scale = float(alone.abs().max()) + 1e-12
    return bool((both[:, 12:] - alone).abs().max() <= 1e-3 * scale)
