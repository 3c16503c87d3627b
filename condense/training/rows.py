"""Training text: documents to rows of token ids, with validation documents set apart.

Causal models: documents + EOS packed to rows of S tokens; position ids restart with every document, and
so does attention in models that honour that (checked, not assumed); where a model would look across the
border, rows hold one document each and are padded. Masked models: one chunk of one document per row.
Conversations use the tokenizer's chat template, and only the last answer counts in the loss; one that cannot
be used is dropped and counted. Control tokens that a turn spells are text. A row without any label never reaches the
loss. Memory does not grow with the text: what is more than 64 MB is kept in a temporary file, and no more is tokenised
than the run can train on.
"""

from __future__ import annotations

import functools
import hashlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from condense.errors import UnavailableError, UsageError
from condense.models.layers import embedding_rows
from condense.texts.documents import Document, Kept, probe
from condense.texts.formats import WHOLE_CHARACTERS
from condense.texts.tokens import added_specials
from condense.texts.windows import Windows, windows
from condense.training.chats import IGNORED, UnusableError, conversation, token_ids

VALIDATION_SHARE = 0.1
BY_DOCUMENT = 20
LEAST_IN_A_ROW = 8
MEASURED_LENGTHS = (512, 256, 128, 64, 32, 16)
_PIECE = 1 << 20


@dataclass(frozen=True)
class Split:
    """Training and validation documents, disjoint, and the hashes of both."""

    train: Sequence[Document]
    validation: Sequence[Document]
    dropped: int = 0
    """Documents left out because they repeat another one or a passage of the probe text."""
    empty: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the split, in words."""
        reasons = ((self.dropped, "as repeats of another one or of the probe text"), (self.empty, "without text"))
        return tuple(f"{_counted(count, 'document')} left out {why}" for count, why in reasons if count)

    @functools.cached_property
    def train_sha256(self) -> str:
        """Hash of the training documents in order."""
        return _digest(self.train)

    @functools.cached_property
    def validation_sha256(self) -> str:
        """Hash of the validation documents in order."""
        return _digest(self.validation)


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of S token ids with labels, and position ids (packed) or an attention mask (padded).

    `notes` says in words what of the text is in none of them; `most`: how many tokens were asked for at most.
    """

    def __init__(
        self,
        rows: list[dict[str, Tensor]],
        length: int,
        packed: bool,
        notes: tuple[str, ...] = (),
        most: int | None = None,
    ) -> None:
        """Keep the rows that have a label, or whose labels are drawn later."""
        self.most = most
        self.rows = [row for row in rows if "labels" not in row or bool((row["labels"] != IGNORED).any())]
        self.length, self.packed = length, packed
        bare = len(rows) - len(self.rows)
        self.notes = (
            (*notes, f"{_counted(bare, 'row')} left out without any token that counts in the loss") if bare else notes
        )

    def __getstate__(self) -> dict[str, Any]:
        """Rows as one array for each of their parts, which processes can share."""
        rows = {key: torch.stack([row[key] for row in self.rows]).numpy() for key in self.rows[0]} if self.rows else {}
        return {**vars(self), "rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Views of the shared arrays; nothing writes into a row."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of arrays that cannot be written
            shared = {key: torch.from_numpy(value) for key, value in state["rows"].items()}
        count = min((len(value) for value in shared.values()), default=0)
        vars(self).update(state, rows=[{key: value[i] for key, value in shared.items()} for i in range(count)])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row, int64."""
        return {key: value.long() for key, value in self.rows[index].items()}


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
    known = {fingerprint(passage.text.strip()) for passage in probe()}
    unique, dropped, empty = Kept(), 0, 0
    for document in documents:
        text = document.text.strip()
        mark = fingerprint(text)
        if not text or mark in known:
            dropped += bool(text)
            empty += not text
            continue
        known.add(mark)
        unique.append(document)
    if not len(unique):
        seen = f": {empty} of the documents are empty, {dropped} repeat the probe text" if empty or dropped else ""
        raise UnavailableError(f"there is no text to train on{seen}", "give other text with --text or --dataset")
    order = list(range(len(unique)))
    random.Random(seed).shuffle(order)
    if len(unique) >= BY_DOCUMENT:
        held = set(order[: max(1, round(VALIDATION_SHARE * len(unique)))])
        train = unique.chosen(i for i in order if i not in held)
        return Split(train, unique.chosen(sorted(held)), dropped, empty)
    chats = [unique[i] for i in order if unique[i].messages is not None]
    apart = chats[: max(1, round(VALIDATION_SHARE * len(chats)))] if len(chats) > 1 else []
    pairs = [_tail(unique[i]) for i in order if unique[i].messages is None]
    heads = (*(head for head, _ in pairs), *chats[len(apart) :])
    return Split(heads, (*(tail for _, tail in pairs if tail.text.strip()), *apart), dropped, empty)


def fingerprint(text: str) -> bytes:
    """By which a text is known again, without its white space around it."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:16]


def _tail(document: Document) -> tuple[Document, Document]:
    """A document without its last tenth, and that tenth, cut at white space."""
    text = document.text
    cut = int(len(text) * (1 - VALIDATION_SHARE))
    while cut < len(text) and not text[cut].isspace():
        cut += 1
    return Document(document.name, text[:cut]), Document(f"{document.name} (tail)", text[cut:].lstrip())


def validation_windows(tokenizer: Any, documents: Sequence[Document], count: int, longest: int) -> Windows:
    """Windows of the validation documents, as long as leaves at least 8 of them: `longest` tokens or fewer."""
    best: Windows | None = None
    for length in (longest, *(length for length in MEASURED_LENGTHS if length < longest)):
        try:
            found = windows(tokenizer, documents, num_texts=count, max_length=length, source="validation text")
        except UsageError:
            continue
        if best is None or len(found) > len(best):
            best = found
        if len(found) >= min(8, count):
            return found
    if best is None:
        shortest = min(longest, MEASURED_LENGTHS[-1])
        raise UsageError(f"the validation text has no window of {shortest} tokens", "give more or longer documents")
    return best


def packed_rows(tokenizer: Any, documents: Iterable[Document], length: int, *, most: int | None = None) -> Rows:
    """Documents + EOS cut into full rows of `length`; the last, unfinished row is left out.

    most: no more is tokenised than rows of so many tokens need.
    """
    rows: list[dict[str, Tensor]] = []
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    sequences = _Sequences(tokenizer, documents, lambda: most is not None and len(rows) * length >= most)
    for tokens, wanted in sequences:
        start = 0
        while start < len(tokens):
            take = min(length - len(ids), len(tokens) - start)
            ids += tokens[start : start + take]
            labels += [IGNORED, *wanted[start + 1 : start + take]]
            positions += range(take)
            start += take
            if len(ids) == length:
                rows.append(_row_of(ids, labels, position_ids=positions))
                ids, labels, positions = [], [], []
    return Rows(rows, length, packed=True, notes=sequences.notes(), most=most)


def padded_rows(
    tokenizer: Any, documents: Iterable[Document], length: int, *, masked: bool = False, most: int | None = None
) -> Rows:
    """One chunk of one document per row, padded on the right; `masked`: with the tokenizer's specials, no labels.

    most: as for `packed_rows`.
    """
    rows: list[dict[str, Tensor]] = []
    sequences = _Sequences(
        tokenizer, documents, lambda: most is not None and len(rows) * length >= most, whole=not masked
    )
    before, after = sequences.specials if masked else ([], [])
    room = length - len(before) - len(after)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    short = 0
    for tokens, wanted in sequences:
        for start in range(0, len(tokens), room):
            chunk = [*before, *tokens[start : start + room], *after]
            if len(chunk) < LEAST_IN_A_ROW:
                short += 1
                continue
            fill = length - len(chunk)
            mask = [1] * len(chunk) + [0] * fill
            labels = [IGNORED, *wanted[start + 1 : start + room]] + [IGNORED] * (fill + len(before) + len(after))
            rows.append(_row_of(chunk + [pad] * fill, labels[:length], attention_mask=mask))
    if masked:
        rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    notes = sequences.notes()
    if short:
        notes += (f"{_counted(short, 'piece')} of fewer than {LEAST_IN_A_ROW} tokens left out",)
    return Rows(rows, length, packed=False, notes=notes, most=most)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _row_of(ids: list[int], labels: list[int], **more: list[int]) -> dict[str, Tensor]:
    named = {"input_ids": ids, "labels": labels, **more}
    return {key: torch.tensor(value, dtype=torch.int32) for key, value in named.items()}


class _Sequences:
    """Token ids and labels of each document; `whole`: with the tokenizer's own beginning and an EOS.

    Conversations that cannot be used are dropped and counted. UsageError, naming the first, if none can. Ends where
    there is `enough`, and says how many documents were not looked at.
    """

    def __init__(
        self, tokenizer: Any, documents: Iterable[Document], enough: Callable[[], bool], whole: bool = True
    ) -> None:
        self._tokenizer, self._enough, self._whole = tokenizer, enough, whole
        self._documents = documents if isinstance(documents, Sequence) else list(documents)
        sample = next((document.text for document in self._documents if document.text.strip()), "")
        self.specials = added_specials(tokenizer, sample)
        self._dropped: dict[str, list[str]] = {}  # reason -> names
        self._spelled: list[str] = []
        self._unused = 0

    def __iter__(self) -> Iterator[tuple[list[int], list[int]]]:
        used = 0
        before = self.specials[0] if self._whole else []
        end = self._tokenizer.eos_token_id
        after = [end] if self._whole and end is not None else []
        for begun, document in enumerate(self._documents):
            if self._enough():
                self._unused = len(self._documents) - begun
                break
            if document.messages is not None and self._whole:
                try:
                    ids, labels = conversation(self._tokenizer, document, self._spelled)
                except UnusableError as error:
                    self._dropped.setdefault(str(error), []).append(document.name)
                    continue
                used += 1
                yield ids, labels
                continue
            pieces = _pieces(document.text)
            for number, piece in enumerate(pieces, 1):
                if number > 1 and self._enough():
                    break
                if ids := token_ids(self._tokenizer, piece):
                    used += 1
                    ids = [*(before if number == 1 else ()), *ids, *(after if number == len(pieces) else ())]
                    yield ids, ids
        if not used and self._dropped:
            reason, names = next(iter(self._dropped.items()))
            raise UsageError(
                f"no conversation can be trained on: {names[0]} {reason}", "give conversations that end with an answer"
            )

    def notes(self) -> tuple[str, ...]:
        """How many conversations were dropped, by reason, each with the first one's name; and what else to know."""
        notes = [
            f"{_counted(len(names), 'conversation')} left out: {names[0]} {reason}"
            for reason, names in self._dropped.items()
        ]
        if self._spelled:
            count = _counted(len(set(self._spelled)), "conversation")
            notes.append(f"{count} with a control token spelled in a turn, read as text: {self._spelled[0]}")
        if self._unused:
            total = len(self._documents)
            notes.append(f"{total - self._unused} of {total} training documents fill all the rows that the run can use")
        return tuple(notes)


def _pieces(text: str) -> list[str]:
    """A text of more than 4 MB in pieces that end at a line break, so that its tokens are never all in memory."""
    if len(text) <= WHOLE_CHARACTERS:
        return [text]
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + _PIECE, start + 2 * _PIECE) + 1 or start + _PIECE
        pieces.append(text[start:end])
        start = end
    return pieces


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
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    finally:
        model.train(was_training)
    scale = float(alone.abs().max()) + 1e-12
    return bool((both[:, 12:] - alone).abs().max() <= 1e-3 * scale)
