"""`.gguf` files: dequantised the supported way, once, into a cache keyed by the file's sha256.

transformers parses a GGUF in 13–19 s and its result cannot be saved as it stands; the cached folder is
an ordinary float32 checkpoint that loads in under a second.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from condense.errors import UnavailableError, system_failure
from condense.files import cache_folder, cache_root, sha256_of_files
from condense.models import folder as inspection

_VERSION = "1"
_BLOCK = re.compile(r"blk\.(\d+)\.")
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
          12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
          32: "BF16"}  # fmt: skip


def quantisation(file: Path) -> str:
    """Name of the file's quantisation (`Q4_1`, …) from its own metadata, or `unknown`."""
    return _TYPES.get(read_metadata(file).get("general.file_type", -1), "unknown quantisation")


def converted(file: Path, trust_remote_code: bool = False) -> Path:
    """Folder with the dequantised checkpoint and tokenizer, converted on the first call.

    UnavailableError for a corrupt file, an unsupported architecture or missing packages.
    """
    if not file.exists():
        raise UnavailableError(f"no such file or directory: {file}")
    metadata = read_metadata(file)
    target = _target(file)
    if (target / "complete").exists():
        return target
    cache_folder("gguf")
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert(file, work, metadata)
        (work / "complete").write_text(f"{file.name}\n", encoding="utf-8")
        if not (target / "complete").exists():  # another process may have been quicker
            shutil.rmtree(target, ignore_errors=True)
            work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _target(file: Path) -> Path:
    return cache_root() / "gguf" / f"{sha256_of_files((file,))}-{_VERSION}"


def already_converted(file: Path) -> Path | None:
    """The folder that `converted` would give at once, or None where it would have to convert."""
    target = _target(file)
    return target if (target / "complete").exists() else None


def read_metadata(file: Path) -> dict[str, Any]:
    """The file's own key-value pairs; UnavailableError where it is not a whole GGUF."""
    try:
        from transformers.integrations.gguf.reader import read_gguf_metadata
    except ImportError as error:
        raise UnavailableError(f"cannot read .gguf files: {error}", "pip install 'condense-lm[gguf]'") from None
    inspection.refuse_pointer(file)
    try:
        metadata, names = read_gguf_metadata(str(file))
        whole = _is_whole(file)
    except (struct.error, ValueError, OverflowError, MemoryError, UnicodeDecodeError, OSError, EOFError):
        whole = False
    if not whole:
        raise UnavailableError(f"{file.name} is truncated or not GGUF", "fetch the file again")
    _check_depth(file, metadata, names)
    return dict(metadata)


def _is_whole(file: Path) -> bool:
    """False if the tensors that the header lists end behind the end of the file."""
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        header = GgufHeader.from_file(str(file))
    except (ValueError, TypeError, ArithmeticError):  # a type of tensor that the reader has no size for
        return True
    ends = [header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors]
    return file.stat().st_size >= max(ends, default=0)


def _check_depth(file: Path, metadata: dict[str, Any], names: Iterable[str]) -> None:
    """The number of blocks that the file says it has must be the number it holds: both are built from."""
    asked = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    found = {int(match.group(1)) for name in names if (match := _BLOCK.match(name))}
    if isinstance(asked, int) and found and asked != max(found) + 1:
        raise UnavailableError(
            f"{file.name} says {asked} blocks, it holds {max(found) + 1}", "the file is damaged: fetch it again"
        )


def _convert(file: Path, work: Path, metadata: dict[str, Any]) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UnavailableError("a .gguf checkpoint needs the package gguf", "pip install 'condense-lm[gguf]'") from None
    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # the reader draws a progress bar that cannot be switched off
        _dequantise(file, work, place, metadata)


def _dequantise(file: Path, work: Path, place: dict[str, Any], metadata: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), trust_remote_code=False, **place)
        model, problems = AutoModelForCausalLM.from_pretrained(
            str(file.parent), dtype=torch.float32, trust_remote_code=False, output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True), **place,
        )  # fmt: skip
    except Exception as error:  # the reader raises many kinds; all but these mean that this file cannot be used
        if (failure := system_failure(error)) is not None:
            raise failure from error
        kind = metadata.get("general.architecture", "unknown")
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnavailableError(f"{file.name} (architecture {kind}) cannot be converted: {line}") from error
    missing = sorted(problems["missing_keys"])
    if missing:
        raise UnavailableError(
            f"{len(missing)} weights are missing in {file.name}, first {missing[0]}",
            "a half-random model is not measured: fetch the file again",
        )
    model.save_pretrained(str(work))
    tokenizer.save_pretrained(str(work))
