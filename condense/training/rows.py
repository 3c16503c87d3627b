"""Training text: documents to rows of token ids, with validation documents set apart.

Causal models: documents + EOS packed to rows of S tokens; position ids restart with every document, and
so does attention in models that honour that (checked, not assumed); where a model would look across the
border, rows hold one document each and are padded. Masked models: one chunk of one document per row.
Conversations use the tokenizer's chat template, and only the last answer counts in the loss; one that cannot
be used is dropped and counted. A row without any label never reaches the loss.
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
from condense.models.layers import embedding_rows
from condense.texts.documents import Document, probe
from condense.texts.tokens import added_specials
from condense.texts.windows import Windows, windows

IGNORED = -100
VALIDATION_SHARE = 0.1
BY_DOCUMENT = 20
LEAST_IN_A_ROW = 8
MEASURED_LENGTHS = (512, 256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Split:
    """Training and validation documents, disjoint, and the hashes of both."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    dropped: int = 0
    """Documents left out because they repeat another one or a passage of the probe text."""
    empty: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the split, in words."""
        reasons = ((self.dropped, "as repeats of another one or of the probe text"), (self.empty, "without text"))
        return tuple(f"{_counted(count, 'document')} left out {why}" for count, why in reasons if count)

    @property
    def train_sha256(self) -> str:
        """Hash of the training documents in order."""
        return _digest(self.train)

    @property
    def validation_sha256(self) -> str:
        """Hash of the validation documents in order."""
        return _digest(self.validation)


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of S token ids with labels, and position ids (packed) or an attention mask (padded).

    `notes` says in words what of the text is in none of them.
    """

    def __init__(self, rows: list[dict[str, Tensor]], length: int, packed: bool, notes: tuple[str, ...] = ()) -> None:
        """Keep the rows that have a label, or whose labels are drawn later."""
        self.rows = [row for row in rows if "labels" not in row or bool((row["labels"] != IGNORED).any())]
        self.length, self.packed = length, packed
        bare = len(rows) - len(self.rows)
        self.notes = (
            (*notes, f"{_counted(bare, 'row')} left out without any token that counts in the loss") if bare else notes
        )

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

    A conversation has no tail: of fewer than 20 documents 10 % of the conversations, at least one where there are
    several, are set apart. Repeated documents and those of the probe text are dropped, so that train, validation and
    probe are disjoint. UnavailableError if nothing is left to train on.
    """
    known = {passage.text.strip() for passage in probe()}
    unique, dropped, empty = [], 0, 0
    for document in documents:
        text = document.text.strip()
        if not text or text in known:
            dropped += bool(text)
            empty += not text
            continue
        known.add(text)
        unique.append(document)
    if not unique:
        seen = f": {empty} of the documents are empty, {dropped} repeat the probe text" if empty or dropped else ""
        raise UnavailableError(f"there is no text to train on{seen}", "give other text with --text or --dataset")
    order = list(range(len(unique)))
    random.Random(seed).shuffle(order)
    if len(unique) >= BY_DOCUMENT:
        held = set(order[: max(1, round(VALIDATION_SHARE * len(unique)))])
        train = [unique[i] for i in order if i not in held]
        return Split(tuple(train), tuple(unique[i] for i in sorted(held)), dropped, empty)
    chats = [unique[i] for i in order if unique[i].messages is not None]
    apart = chats[: max(1, round(VALIDATION_SHARE * len(chats)))] if len(chats) > 1 else []
    pairs = [_tail(unique[i]) for i in order if unique[i].messages is None]
    train = [*(head for head, _ in pairs), *chats[len(apart) :]]
    return Split(tuple(train), (*(tail for _, tail in pairs if tail.text.strip()), *apart), dropped, empty)


def _tail(document: Document) -> tuple[Document, Document]:
    """A document without its last tenth, and that tenth, cut at white space."""
    text = document.text
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
    sequences = _Sequences(tokenizer, documents)
    for tokens, wanted in sequences:
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
    return Rows(rows, length, packed=True, notes=sequences.notes())


def padded_rows(tokenizer: Any, documents: Iterable[Document], length: int, *, masked: bool = False) -> Rows:
    """One chunk of one document per row, padded on the right; `masked`: with the tokenizer's specials, no labels."""
    sequences = _Sequences(tokenizer, documents, whole=not masked)
    before, after = sequences.specials if masked else ([], [])
    room = length - len(before) - len(after)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    rows, short = [], 0
    for tokens, wanted in sequences:
        for start in range(0, len(tokens), room):
            chunk = [*before, *tokens[start : start + room], *after]
            if len(chunk) < LEAST_IN_A_ROW:
                short += 1
                continue
            fill = length - len(chunk)
            mask = [1] * len(chunk) + [0] * fill
            labels = [IGNORED, *wanted[start + 1 : start + room]] + [IGNORED] * (fill + len(before) + len(after))
            rows.append(_row(chunk + [pad] * fill, labels[:length], attention_mask=mask))
    if masked:
        rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    notes = sequences.notes()
    if short:
        notes += (f"{_counted(short, 'piece')} of fewer than {LEAST_IN_A_ROW} tokens left out",)
    return Rows(rows, length, packed=False, notes=notes)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _row(ids: list[int], labels: list[int], **more: list[int]) -> dict[str, Tensor]:
    named = {"input_ids": ids, "labels": labels, **more}
    return {key: torch.tensor(value, dtype=torch.int64) for key, value in named.items()}


class _UnusableError(Exception):
    """A conversation that cannot be trained on, and why."""


class _Sequences:
    """Token ids and labels of each document; `whole`: with the tokenizer's own beginning and an EOS.

    Conversations that cannot be used are dropped and counted. UsageError, naming the first, if none can.
    """

    def __init__(self, tokenizer: Any, documents: Iterable[Document], whole: bool = True) -> None:
        self._tokenizer, self._documents, self._whole = tokenizer, list(documents), whole
        sample = next((document.text for document in self._documents if document.text.strip()), "")
        self.specials = added_specials(tokenizer, sample)
        self._dropped: dict[str, list[str]] = {}  # reason -> names

    def __iter__(self) -> Iterator[tuple[list[int], list[int]]]:
        used = 0
        before = self.specials[0] if self._whole else []
        end = self._tokenizer.eos_token_id
        after = [end] if self._whole and end is not None else []
        for document in self._documents:
            if document.messages is not None and self._whole:
                try:
                    ids, labels = _conversation(self._tokenizer, document)
                except _UnusableError as error:
                    self._dropped.setdefault(str(error), []).append(document.name)
                    continue
                used += 1
                yield ids, labels
            elif ids := _token_ids(self._tokenizer, document.text):
                used += 1
                yield [*before, *ids, *after], [*before, *ids, *after]
        if not used and self._dropped:
            reason, names = next(iter(self._dropped.items()))
            raise UsageError(
                f"no conversation can be trained on: {names[0]} {reason}", "give conversations that end with an answer"
            )

    def notes(self) -> tuple[str, ...]:
        """How many conversations were dropped, by reason, each with the first one's name."""
        return tuple(
            f"{_counted(len(names), 'conversation')} left out: {names[0]} {reason}"
            for reason, names in self._dropped.items()
        )


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def _conversation(tokenizer: Any, document: Document) -> tuple[list[int], list[int]]:
    """A conversation in the tokenizer's template; only its last turn, the answer, counts in the loss."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{document.name} is a conversation and the tokenizer has no chat template",
            "give plain text, or a column of it with --text-column",
        )
    messages = document.messages or ()
    if not messages:
        raise _UnusableError("has no turn")
    if messages[-1][0] != "assistant":
        raise _UnusableError(f"ends with the {messages[-1][0]}, not with an answer")
    if not all(said.strip() for _, said in messages):
        raise _UnusableError("has a turn without text")
    if len(messages) == 1:
        raise _UnusableError("has an answer and nothing before it")
    turns = [{"role": role, "content": content} for role, content in messages]
    full, prompt = _rendered(tokenizer, turns), _rendered(tokenizer, turns[:-1], add_generation_prompt=True)
    shared = next(
        (i for i, (a, b) in enumerate(zip(full, prompt, strict=False)) if a != b), min(len(full), len(prompt))
    )
    if shared == len(full):
        raise _UnusableError("has no token of its answer in the chat template")
    return full, [IGNORED] * shared + full[shared:]


def _rendered(tokenizer: Any, turns: list[dict[str, str]], **options: bool) -> list[int]:
    """Token ids of turns in the template, which is code that came with the tokenizer and may raise anything."""
    try:
        return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **options))
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
        raise _UnusableError(f"is refused by the chat template (roles {roles}): {said}") from None


@torch.inference_mode()
def keeps_documents_apart(model: Any) -> bool:
    """True if a document's logits do not change when another one stands before it in the same row.

    Position ids that restart are honoured by most decoders in transformers 5 and ignored by some.
    """
    generator = torch.Generator().manual_seed(0)
    size = min(embedding_rows(model), 1000)
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
