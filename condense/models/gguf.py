"""The headers of `.gguf` files: keys, tensors, and the parts of a split one.

Standard library only, but for the sizes of the quantised types, which the package gguf knows. Files are untrusted:
lengths beyond the end of the file raise UnavailableError.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from condense.errors import UnavailableError, system_failure
from condense.models import folder as inspection

_BLOCK = re.compile(r"blk\.(\d+)\.")
_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
_VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FETCH = "fetch the file again"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its shape in torch's order, its ggml type, and the offset and size of its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    file: Path
    start: int
    size: int


@dataclass(frozen=True)
class Gguf:
    """The headers of all parts of a model. metadata: of the first part; arrays of strings as their length."""

    parts: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def read(file: Path) -> Gguf:
    """Read the headers of a file and of its other parts; UnavailableError where the model is incomplete."""
    if not file.exists():
        raise UnavailableError(f"no such file or directory: {file}")
    parts = parts_of(file)
    headers = [_read_header(part) for part in parts]
    metadata = headers[0][0]
    _refuse_other_kinds(file, metadata)
    tensors = {tensor.name: tensor for _, own in headers for tensor in own}
    expected = metadata.get("split.tensors.count")
    if len(parts) > 1 and isinstance(expected, int) and expected != len(tensors):
        raise UnavailableError(
            f"the {len(parts)} parts of {file.name} hold {len(tensors)} tensors, not {expected}",
            "fetch all of them again",
        )
    _check_block_count(file, metadata, tensors)
    return Gguf(parts, metadata, tensors)


def is_gguf(file: Path) -> bool:
    """Whether a file is GGUF, by its name or, as in a cache of blobs, by its first bytes."""
    if file.suffix.lower() == ".gguf" or not file.is_file():
        return file.suffix.lower() == ".gguf"
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def parts_of(file: Path) -> tuple[Path, ...]:
    """All parts of a split file, from any of them, in order; the file alone if it is not split.

    UnavailableError naming the first part that is missing.
    """
    match = _PART.match(file.name)
    if match is None:
        metadata, _ = _read_header(file)
        if isinstance(count := metadata.get("split.count"), int) and count > 1:
            raise UnavailableError(
                f"{file.name} is a part of {count}, and its name does not tell which",
                "give it back its name (NAME-00001-of-0000N.gguf), or merge all: llama-gguf-split --merge FIRST OUT",
            )
        return (file,)
    name, count = match[1], int(match[3])
    parts = tuple(file.with_name(f"{name}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))
    for part in parts:
        if not part.exists():
            raise UnavailableError(f"{part.name}, another part of {file.name}, is missing", "fetch all parts")
    return parts


def quantisation(model: Gguf) -> str:
    """Name of the quantisation (`Q4_K_M`, `IQ2_XXS`): the file's own, or the type of most of its weights."""
    from gguf.constants import GGMLQuantizationType, LlamaFileType

    stated = model.metadata.get("general.file_type")
    with contextlib.suppress(ValueError):
        if stated != LlamaFileType.GUESSED:
            return str(LlamaFileType(stated).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: dict[int, int] = {}
    for tensor in model.tensors.values():
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + prod(tensor.shape)
    return str(GGMLQuantizationType(max(sizes, key=lambda kind: sizes[kind])).name) if sizes else "empty"


# --- headers ----------------------------------------------------------------------------------------


class _HeaderReader:
    """The bytes of a header, one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.position)
        self.position += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        size = self.number("Q")
        raw = self.data[self.position : self.position + size]
        if len(raw) != size:
            raise ValueError("a text ends behind the file")
        self.position += size
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _VALUES:
            return self.number(_VALUES[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > len(self.data):
            raise ValueError("an array that is longer than the file")
        if inner in _VALUES:
            values = struct.unpack_from(f"<{count}{_VALUES[inner]}", self.data, self.position)
            self.position += struct.calcsize(f"<{count}{_VALUES[inner]}")
            return list(values)
        for _ in range(count):
            if inner == _STRING:  # a vocabulary: only its length is used
                (size,) = struct.unpack_from("<Q", self.data, self.position)
                self.position += 8 + size
            else:
                self.value(inner)
        return count


def _read_header(file: Path) -> tuple[dict[str, Any], list[Tensor]]:
    inspection.refuse_pointer(file)
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse_header(file, _HeaderReader(data))
    except (struct.error, ValueError, OverflowError, RecursionError, OSError) as error:
        if (failure := system_failure(error)) is not None:
            raise failure from error
        raise UnavailableError(f"{file.name} is truncated or not GGUF", _FETCH) from None


def _parse_header(file: Path, reader: _HeaderReader) -> tuple[dict[str, Any], list[Tensor]]:
    if reader.number("4s") != b"GGUF":
        raise ValueError("another kind of file")
    version = reader.number("I")
    if version not in (2, 3):
        what = "is big-endian" if version in (2 << 24, 3 << 24) else f"is of GGUF version {version}"
        raise UnavailableError(
            f"{file.name} {what}: not read here", "convert it: python -m gguf.scripts.gguf_convert_endian"
        )
    tensors, pairs = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(pairs):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    entries = [_tensor_entry(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    begin = -(-reader.position // alignment) * alignment
    sizes = _sizes()
    tensors_read = []
    for name, shape, kind, offset in entries:
        if kind not in sizes:
            raise UnavailableError(
                f"{name} in {file.name} is of a type that the package gguf does not know ({kind})",
                "pip install --upgrade gguf, or quantise it anew",
            )
        block, size = sizes[kind]
        if shape and shape[-1] % block:
            raise ValueError("a row that is no whole number of blocks")
        tensors_read.append(Tensor(name, shape, kind, file, begin + offset, prod(shape) // block * size))
    if max((tensor.start + tensor.size for tensor in tensors_read), default=0) > len(reader.data):
        raise ValueError("a tensor ends behind the file")
    return metadata, tensors_read


def _tensor_entry(reader: _HeaderReader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text()
    shape = tuple(reader.number("Q") for _ in range(min(reader.number("I"), 8)))
    return name, shape[::-1], reader.number("I"), reader.number("Q")


def _sizes() -> dict[int, tuple[int, int]]:
    """Weights and bytes of a block of every ggml type."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise UnavailableError(f"cannot read .gguf files: {error}", "pip install 'condense-lm[gguf]'") from None
    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def _refuse_other_kinds(file: Path, metadata: Mapping[str, Any]) -> None:
    architecture, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if kind != "model" or architecture in ("clip", "mmproj"):
        what = "a projector of images" if architecture == "clip" else f"of type {kind}"
        raise UnavailableError(f"{file.name} is {what}, not a language model", "give the .gguf of the model itself")
    if architecture is None:
        raise UnavailableError(f"{file.name} names no architecture (general.architecture)", "give a .gguf of a model")


def _check_block_count(file: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """UnavailableError where the stated number of blocks is not the number of blocks among the tensors."""
    stated = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    numbers = {int(match.group(1)) for name in tensors if (match := _BLOCK.match(name))}
    if isinstance(stated, int) and numbers and stated != max(numbers) + 1:
        raise UnavailableError(
            f"{file.name} says {stated} blocks, it holds {max(numbers) + 1}", "the file is damaged: fetch it again"
        )
