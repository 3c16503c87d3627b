"""What was measured of a text, kept on disk until the run is done, so that a long one can go on after a fall.

One small file per text. A record is complete or ignored: its checksum comes first. Numbers are kept to the
last bit and texts are added in their order, so that a resumed run gives the bytes of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condense.diagnosis.forward import TextReading
from condense.diagnosis.quality import Score
from condense.errors import CondenseError
from condense.files import cache_folder
from condense.geometry import BINS, Measurement

_MAGIC = b"condense journal 1\n"
_KEPT_DAYS = 14
_LENGTH = struct.Struct("<I")


def encode(reading: TextReading) -> bytes:
    """A reading as bytes that `decode` gives back exactly; its Gram matrices must be settled."""
    head: dict[str, Any] = {
        "index": reading.index,
        "score": None if reading.score is None else [reading.score.nats, reading.score.tokens],
        "sites": [[m.values, m.paper, m.count, len(m.unit_sum)] for m in reading.sites],
    }
    text = json.dumps(head, separators=(",", ":")).encode()  # exact: Python writes floats so; NaN stays NaN
    arrays = [part for m in reading.sites for part in (m.unit_sum, m.contributions, m.histogram)]
    return b"".join([_LENGTH.pack(len(text)), text, *(_bytes(part) for part in arrays)])


def decode(data: bytes) -> TextReading:
    """The reading that `encode` wrote."""
    (size,) = _LENGTH.unpack_from(data)
    at = _LENGTH.size + size
    head = json.loads(data[_LENGTH.size : at])
    reading = TextReading(head["index"])
    if head["score"] is not None:
        reading.score = Score(*head["score"])
    for values, paper, count, width in head["sites"]:
        ends = [at + 8 * width, at + 16 * width, at + 16 * width + 8 * BINS]
        total, parts = _tensor(data, "<f8", at, ends[0]), _tensor(data, "<f8", ends[0], ends[1])
        reading.sites.append(Measurement(values, paper, count, total, parts, _tensor(data, "<i8", ends[1], ends[2])))
        at = ends[2]
    return reading


def _bytes(tensor: Tensor) -> bytes:
    kind = "<i8" if tensor.dtype == torch.int64 else "<f8"
    return bytes(tensor.numpy().astype(kind, copy=False).tobytes())


def _tensor(data: bytes, kind: str, start: int, end: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(data[start:end], kind).copy())


class Journal:
    """The readings of one run that were finished, in a folder named by everything that changes their bits."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        """Open the journal of a key, making its folder; UsageError where the cache cannot be written."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        root = cache_folder("journal")
        _prune(root)
        self.folder = root / name
        self._writing = True
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)

    def read(self, index: int) -> TextReading | None:
        """The reading of a text, or None where there is no complete record of it."""
        try:
            data = self._place(index).read_bytes()
        except OSError:
            return None
        head, payload = data[: len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
        if head != _MAGIC + hashlib.sha256(payload).digest():
            return None
        reading = decode(payload)
        return reading if reading.index == index else None

    def write(self, reading: TextReading) -> None:
        """Keep a reading. A journal is a help, never a reason to fail: on a full disk it stops."""
        if not self._writing:
            return
        payload = encode(reading)
        place = self._place(reading.index)
        temporary = place.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
            temporary.replace(place)
        except OSError:
            self._writing = False
            with contextlib.suppress(OSError):
                temporary.unlink()

    def known(self, total: int) -> set[int]:
        """Which of the texts 0..total−1 have a complete record."""
        return {index for index in range(total) if self._place(index).exists() and self.read(index) is not None}

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, index: int) -> Path:
        return self.folder / f"{index:08d}.bin"


def _prune(root: Path) -> None:
    """Remove the journals that nobody came back for, and half-written records of processes that were killed."""
    oldest = time.time() - _KEPT_DAYS * 86400
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
            for leftover in folder.glob("*.tmp"):
                if leftover.stat().st_mtime < time.time() - 3600:
                    leftover.unlink()


def open_journal(key: Mapping[str, Any]) -> Journal | None:
    """The journal of a run; None where a part of its key is unknown, or the cache cannot be written."""
    if any(value is None for value in key.values()):
        return None
    try:
        return Journal(key)
    except CondenseError:
        return None


def resumed(
    journal: Journal | None,
    known: set[int],
    indices: Sequence[int],
    batch_size: int,
    measure: Callable[[list[int]], Iterator[TextReading]],
) -> Iterator[TextReading]:
    """Readings of `indices` in order: from the journal where a whole batch is known, else measured and kept.

    Batches are those of an uninterrupted run, for the last bit of a text can depend on its neighbours.
    """
    if journal is None:
        yield from measure(list(indices))
        return
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for complete, group in groupby(batches, key=known.issuperset):
        texts = [index for batch in group for index in batch]
        if not complete:
            for reading in measure(texts):
                journal.write(reading)
                yield reading
            continue
        for index in texts:
            reading_or_none = journal.read(index)
            if reading_or_none is None:  # it was there a moment ago: someone else finished this run
                yield from measure([index])
            else:
                yield reading_or_none
