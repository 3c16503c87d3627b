"""The readings of a run's texts, kept on disk until the run ends, so that a long run can resume after a crash.

One small file per text. A record is complete or ignored: its checksum comes first. Numbers are kept to the
last bit and texts are added in their order, so that a resumed run gives the bytes of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from condense.diagnosis.forward import TextReading
from condense.diagnosis.quality import Score
from condense.errors import CondenseError
from condense.files import cache_folder, prune, sha256
from condense.geometry import Measurement

_MAGIC = b"condense journal 3\n"
_KEPT_DAYS = 14
_HEAD = "head"
_VECTORS = ("pooled", "halves")


def encode(reading: TextReading) -> bytes:
    """A reading in the safetensors format, which `decode` gives back exactly; its spectra must be settled.

    Tensors of a measurement are tensors of the file; the rest is JSON, as bytes, in one more.
    """
    tensors = {
        f"{number}.{name}": value.contiguous()
        for number, site in enumerate(reading.sites)
        for name, value in vars(site).items()
        if isinstance(value, Tensor)
    }
    tensors |= {name: value for name in _VECTORS if (value := getattr(reading, name)) is not None}
    sites = [{k: v for k, v in vars(site).items() if not isinstance(v, Tensor)} for site in reading.sites]
    score = None if reading.score is None else vars(reading.score)
    head = json.dumps({"index": reading.index, "score": score, "sites": sites})  # floats exactly; NaN stays NaN
    data: bytes = save({_HEAD: torch.frombuffer(bytearray(head.encode()), dtype=torch.uint8), **tensors})
    return data


def decode(data: bytes) -> TextReading:
    """The reading that `encode` wrote."""
    tensors = load(data)
    head = json.loads(tensors.pop(_HEAD).numpy().tobytes())
    vectors = {name: tensors.pop(name, None) for name in _VECTORS}
    sites: list[dict[str, Any]] = head["sites"]
    for name, tensor in tensors.items():
        number, _, field = name.partition(".")
        sites[int(number)][field] = tensor
    score = None if head["score"] is None else Score(**head["score"])
    return TextReading(head["index"], [Measurement(**site) for site in sites], score, **vectors)


class Journal:
    """The finished readings of one run, in a folder named by a hash of everything that changes their bits."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        """Open the journal of a key, making its folder; UsageError where the cache cannot be written."""
        root = cache_folder("journal")
        self.folder = root / sha256(json.dumps(key, sort_keys=True))
        self._writing = True
        with contextlib.suppress(OSError):
            prune(root, days=_KEPT_DAYS)
            self.folder.mkdir(exist_ok=True)

    def read(self, index: int) -> TextReading | None:
        """The reading of a text, or None where there is no complete record of it."""
        try:
            data = self._record_file(index).read_bytes()
        except OSError:
            return None
        head, payload = data[: len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
        if head != _MAGIC + hashlib.sha256(payload).digest():
            return None
        reading = decode(payload)
        return reading if reading.index == index else None

    def write(self, reading: TextReading) -> None:
        """Write a reading. A full disk raises nothing: no further readings are kept then."""
        if not self._writing:
            return
        payload = encode(reading)
        path = self._record_file(reading.index)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
            temporary.replace(path)
        except OSError:
            self._writing = False
            with contextlib.suppress(OSError):
                temporary.unlink()

    def known(self, total: int) -> set[int]:
        """Which of the texts 0..total−1 have a complete record."""
        return {index for index in range(total) if self._record_file(index).exists() and self.read(index) is not None}

    def remove(self) -> None:
        """Delete the readings of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record_file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.bin"


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
            if reading_or_none is None:  # deleted since it was listed: another process finished this run
                yield from measure([index])
            else:
                yield reading_or_none
