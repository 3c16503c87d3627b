"""Documents to windows of token ids: the input of a measurement, and its hashes.

A window is exactly S contiguous token ids of one document, the special tokens that the tokenizer adds by default
included. It keeps the number of its document, which is the unit of inference. With enough documents each gives its
beginning; with fewer, further windows are assigned round robin and spread evenly over each document (docs/metrics.md).
Text that spells a special token is text, never a control token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from condense.errors import UnavailableError, UsageError
from condense.records.diagnosis import CorpusInfo
from condense.records.options import MeasureOptions, TextOptions
from condense.texts.documents import PROBE_VERSION, Document, label, probe, read
from condense.texts.formats import WHOLE_CHARACTERS
from condense.texts.tokens import SAMPLE, Cutter, Piece, Window, added_specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 512
TokenIds = Sequence[int] | Sequence[Sequence[int]] | Tensor | Any


@dataclass(frozen=True)
class Windows:
    """N texts of S token ids, ready to be measured.

    ids (N, S) int64; special (N, S) bool, the tokens the tokenizer added; `predicted_bytes` the UTF-8
    bytes of the source span of the predicted tokens of each text (None without offsets); `passages` that span
    itself, behind what of the text the model is given before it (empty where a BOS is given). `info.documents`
    numbers the document of each window; `told` is False where no word of the text may be in the record.
    """

    ids: Tensor
    special: Tensor
    predicted_bytes: tuple[int | None, ...]
    mask_token_id: int | None
    info: CorpusInfo
    passages: tuple[tuple[str, str], ...] = ()
    told: bool = True

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.ids)


def windows(
    tokenizer: PreTrainedTokenizerBase | TokenIds | None,
    text: str | Path | Iterable[str] | Iterable[Document] | TokenIds | None = None,
    *,
    num_texts: int = MeasureOptions.num_texts,
    max_length: int | None = None,
    positions: int | None = None,
    seed: int = MeasureOptions.seed,
    text_column: str = TextOptions.text_column,
    source: str | None = None,
    special_ids: Iterable[int] = (),
) -> Windows:
    """Cut documents into windows of token ids.

    text: a path, documents or strings in memory, or None for the probe text; max_length S (default
    min(512, positions)); positions: the longest input the model takes. UsageError for a length that the
    model or the documents cannot give, UnavailableError for text that cannot be read.

    Token ids may be given in place of both: `windows(ids)` or `windows(None, ids)` with one row of whole numbers (a
    list, a tensor, an array or memory map such as nanoGPT's `val.bin`), or one per document. `special_ids` count as
    special tokens. Bits per byte are null then: the text is not known.
    """
    if num_texts < 1:
        raise UsageError(f"--num-texts {num_texts} asks for no text", "use 8 or more")
    length = _checked_length(max_length, positions)
    rows = _rows_of_ids(text) or _rows_of_ids(tokenizer)
    if rows is not None:
        return _windows_of_ids(rows, num_texts, length, max_length is None, source, frozenset(special_ids), seed)
    if tokenizer is None:
        raise ValueError("windows() needs a tokenizer, or token ids in place of text")
    sample, documents = _first_text(documents_of(text, text_column, stream=True))
    before, after = added_specials(tokenizer, sample)
    if (content := length - len(before) - len(after)) < 2:
        raise UsageError(f"--max-length {length} leaves no tokens for text", "use at least 8 tokens")
    reading = _Reading(Cutter(tokenizer, content, bool(before)))
    reading.read(documents, num_texts)
    if not reading.kept:
        raise _too_short(reading, length, length - content)
    cut = list(_shared_out(reading.kept, num_texts))
    ids = torch.tensor([[*before, *window.ids, *after] for _, _, window in cut], dtype=torch.int64)
    special = _added_mask(ids, len(before), len(after))
    info = CorpusInfo(
        source=source or _source_label(text),
        sha256=reading.digest.hexdigest(),
        windows_sha256=_ids_sha256(ids),
        texts=len(ids),
        skipped=reading.skipped,
        tokens=ids.numel(),
        length=length,
        seed=seed,
        windows=tuple(f"{reading.kept[index].document.name}#{number}" for index, number, _ in cut),
        requested=num_texts,
        version=PROBE_VERSION if text is None else None,
        documents=tuple(index for index, _, _ in cut),
        dropped=reading.repeated,
        bos=bool(before),
        notes=tuple(_window_notes(reading)),
    )
    passages = [window.passage for _, _, window in cut]
    return _with_passages(ids, special, getattr(tokenizer, "mask_token_id", None), info, passages)


def _added_mask(ids: Tensor, before: int, after: int) -> Tensor:
    """Which tokens of windows (N, S) the tokenizer added at their two ends, bool."""
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, :before] = True
    special[:, ids.shape[1] - after :] = True
    return special


def _with_passages(
    ids: Tensor, special: Tensor, mask_token_id: int | None, info: CorpusInfo, passages: list[tuple[str, str] | None]
) -> Windows:
    """Windows with the bytes of their passages; those without offsets into the text have none."""
    sizes = tuple(
        None if passage is None else len(passage[1].encode("utf-8", errors="replace")) for passage in passages
    )
    known = tuple(passage for passage in passages if passage is not None)
    return Windows(ids, special, sizes, mask_token_id, info, passages=known)


def _windows_of_ids(
    rows: Sequence[Any],
    num_texts: int,
    length: int,
    shorter: bool,
    source: str | None,
    special: frozenset[int],
    seed: int,
) -> Windows:
    """Windows of token ids (one sequence per document): as many of each document as are needed, spread evenly."""
    if shorter:
        length = min(length, max(len(row) for row in rows))
    long_enough = [number for number, row in enumerate(rows) if len(row) >= length][:num_texts]
    if not long_enough or length < 4:
        longest = max(len(row) for row in rows)
        raise UsageError(
            f"no document is long enough: the longest has {longest} token ids, --max-length is {length}",
            f"lower --max-length to {longest} or less, or give longer documents",
        )
    counts = dict.fromkeys(long_enough, 1)
    left, room = num_texts - len(counts), {number: len(rows[number]) // length - 1 for number in counts}
    while left and any(room.values()):
        for number in counts:
            if left and room[number]:
                counts[number], room[number], left = counts[number] + 1, room[number] - 1, left - 1
    cut = {number: even_starts(len(rows[number]) - length, count) for number, count in counts.items()}
    starts = [(d, j, own[j]) for j in range(max(counts.values())) for d, own in cut.items() if j < len(own)]
    ids = torch.stack([torch.as_tensor(_plain_ids(rows[d][at : at + length])) for d, _, at in starts]).to(torch.int64)
    digest = _ids_sha256(ids)
    info = CorpusInfo(
        source=source or "token ids in memory",
        sha256=digest,
        windows_sha256=digest,
        texts=len(ids),
        skipped=sum(len(row) < length for row in rows),
        tokens=ids.numel(),
        length=length,
        seed=seed,
        windows=tuple(f"ids:{d}#{j}" for d, j, _ in starts),
        requested=num_texts,
        documents=tuple(long_enough.index(d) for d, _, _ in starts),
    )
    marked = torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int64))
    return Windows(ids, marked, (None,) * len(ids), None, info)


def _rows_of_ids(given: Any) -> Sequence[Any] | None:
    """The documents in what may be token ids: rows of whole numbers; None for anything else."""
    if hasattr(given, "dtype") and hasattr(given, "ndim"):
        kind = str(given.dtype).removeprefix("torch.")
        if not kind.startswith(("int", "uint")):
            raise ValueError(f"token ids are whole numbers, got {kind}")
        return [given] if given.ndim == 1 else list(given)
    if not isinstance(given, list | tuple) or not given:
        return None
    if all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        return [given]
    if any(isinstance(item, str | Document) for item in given):
        return None
    rows = [_rows_of_ids(item) for item in given]
    return [row for part in rows if part is not None for row in part] if all(rows) else None


def _plain_ids(ids: Any) -> Any:
    """Ids that torch takes: numpy's unsigned types are widened, a memory map is read."""
    return ids.astype("int64") if hasattr(ids, "astype") else ids


def _checked_length(asked: int | None, positions: int | None) -> int:
    if asked is None:
        return min(MAX_LENGTH, positions or MAX_LENGTH)
    if positions is not None and asked > positions:
        raise UsageError(f"--max-length {asked} is beyond the model's {positions} positions", "use a shorter one")
    return asked


def documents_of(text: Any, column: str, *, stream: bool = False) -> Iterator[Document]:
    """Documents of a path, of strings or documents in memory, or of the probe text for None; `stream`: see `read`."""
    if text is None:
        yield from probe()
    elif isinstance(text, str | Path):
        yield from read(text, column, stream=stream)
    else:
        for number, item in enumerate(text):
            yield item if isinstance(item, Document) else Document(f"text:{number}", item)


def _source_label(text: Any) -> str:
    if text is None:
        return f"condense probe {PROBE_VERSION}"
    return label(text) if isinstance(text, str | Path) else "documents in memory"


def _first_text(documents: Iterator[Document]) -> tuple[str, Iterator[Document]]:
    """The beginning of the first document that is not blank, and all documents."""
    read: list[Document] = []
    for document in documents:
        read.append(document)
        sample = document.body[:SAMPLE]
        if sample.strip():
            return sample, chain(read, documents)
    return "", iter(read)


def _too_short(reading: _Reading, length: int, specials: int) -> UsageError:
    fits = reading.longest_tokens + specials
    return UsageError(
        f"no document is long enough: the longest ({reading.longest}) gives {fits} tokens, --max-length is {length}",
        f"lower --max-length to {fits} or less, or give longer documents" if fits >= 8 else "give longer documents",
    )


def _window_notes(reading: _Reading) -> Iterator[str]:
    large = sum(len(kept.document.body) > WHOLE_CHARACTERS for kept in reading.kept)
    if large and any(kept.count > 1 for kept in reading.kept):
        yield f"{large} of the documents above 4 MB: windows spread by characters, from the next line break on"
    replaced = sum("\ufffd" in kept.document.text for kept in reading.kept)
    if replaced:
        yield f"{replaced} of the documents hold U+FFFD, as for bytes that are not UTF-8"


# --- which windows of which documents ------------------------------------------------------------------------


class _Kept:
    """A document long enough for a window; `count` is how many it is to give."""

    def __init__(self, cutter: Cutter, document: Document, beginning: Piece) -> None:
        self.cutter, self.document, self.count = cutter, document, 1
        self._first = cutter.window(beginning, 0)
        ends = beginning.ends
        self._width = len(beginning.text) if ends is None else ends[cutter.content - 1]  # characters of a window
        self._all = beginning if len(beginning.text) == len(document.body) else None

    def capacity(self) -> int:
        """How many windows fit into the document without overlap."""
        if len(self.document.body) > WHOLE_CHARACTERS:
            return max(1, len(self.document.body) // (2 * self._width))
        if self._all is None:
            self._all = self.cutter.tokens(self.document.text)
        return max(1, len(self._all.ids) // self.cutter.content)

    def windows(self) -> list[Window]:
        """`count` windows, evenly spread from the beginning of the document to its end."""
        if self.count == 1:
            return [self._first]
        if self._all is None:
            return [self._first, *self._by_characters()]
        starts = even_starts(len(self._all.ids) - self.cutter.content, self.count)
        return [self.cutter.window(self._all, start) for start in starts]

    def _by_characters(self) -> Iterator[Window]:
        """The windows after the first, each from the next line break on; only what a window needs is tokenised.

        Where a start leaves too little text before the end of the document it is moved back.
        """
        text, width, free = self.document.body, self._width, self._width
        for planned in even_starts(len(text) - width, self.count)[1:]:
            line_break = text[planned : planned + width].find("\n")
            starts = [planned + line_break + 1 if line_break >= 0 else planned]
            starts += [planned - width * quarter // 4 for quarter in range(5)]
            for start in starts:
                piece = self.cutter.tokens_from(text, max(start, free))
                if len(piece.ids) >= self.cutter.content:
                    yield self.cutter.window(piece, 0)
                    taken = len(piece.text) if piece.ends is None else piece.ends[self.cutter.content - 1]
                    free = max(start, free) + taken
                    break


class _Reading:
    """The documents read: those long enough, how many were too short or repeated, the hash of all."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.kept: list[_Kept] = []
        self.skipped = self.repeated = self.longest_tokens = 0
        self.longest = "none"
        self.digest = hashlib.sha256()

    def read(self, documents: Iterator[Document], wanted: int) -> None:
        """Read documents until `wanted` different ones are long enough."""
        known: set[bytes] = set()
        for document in documents:
            fingerprint = self._add_to_hash(document)
            beginning = self.cutter.tokens_from(document.body, 0)
            if len(beginning.ids) < self.cutter.content:
                self.skipped += 1
                if self.longest == "none" or len(beginning.ids) > self.longest_tokens:
                    self.longest, self.longest_tokens = document.name, len(beginning.ids)
                continue
            if fingerprint in known:
                self.repeated += 1
                continue
            known.add(fingerprint)
            self.kept.append(_Kept(self.cutter, document, beginning))
            if len(self.kept) == wanted:
                return

    def _add_to_hash(self, document: Document) -> bytes:
        """Add a document to the hash of all; its own hash, without white space around it."""
        if document.long is None:
            data = document.text.encode("utf-8", errors="replace")
            self.digest.update(len(data).to_bytes(8, "big") + data)
            return hashlib.sha256(data.strip()).digest()
        own = hashlib.sha256()
        self.digest.update(document.long.encoded_size.to_bytes(8, "big"))
        for piece in document.long.encoded():
            self.digest.update(piece)
            own.update(piece)
        return own.digest()


def _shared_out(kept: list[_Kept], wanted: int) -> Iterator[tuple[int, int, Window]]:
    """Yield (document, number, window): all documents' first windows, then their second ones.

    Windows beyond one per document are assigned to the documents one after another, as far as they fit without
    overlap.
    """
    left = wanted - len(kept)
    room = [document.capacity() - 1 for document in kept] if left else []
    while left and any(room):
        for index, document in enumerate(kept):
            if left and room[index]:
                document.count, room[index], left = document.count + 1, room[index] - 1, left - 1
    cut = [document.windows() for document in kept]
    for number in range(max(map(len, cut))):
        for index, of_document in enumerate(cut):
            if number < len(of_document):
                yield index, number, of_document[number]


def even_starts(last: int, count: int) -> list[int]:
    """`count` whole numbers spread evenly from 0 to `last`: round(j · last / (count − 1)); 0 alone for one."""
    return [round(number * last / (count - 1)) for number in range(count)] if count > 1 else [0]


def _ids_sha256(ids: Tensor) -> str:
    shape = f"{tuple(ids.shape)}".encode()
    return hashlib.sha256(shape + ids.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def check_ids(ids: Tensor, rows: int) -> None:
    """UnavailableError for token ids that the embedding has no row for, naming the largest."""
    largest = int(ids.max())
    if largest >= rows:
        raise UnavailableError(
            f"token id {largest} is beyond the embedding's {rows} rows",
            "tokenizer and model do not belong together: pass --tokenizer",
        )


def without_names(windows: Windows) -> Windows:
    """The same windows with numbers for names and no source path; which of them share a document stays."""
    return replace(windows, info=windows.info.without_names(), told=False)
