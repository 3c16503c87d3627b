"""`.gguf` files: dequantised the supported way, once, into a cache keyed by the file's sha256.

transformers parses a GGUF in 13–19 s and its result cannot be saved as it stands; the cached folder is
an ordinary float32 checkpoint that loads in under a second.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from condense import inspection
from condense.cache import cache_folder
from condense.errors import UnavailableError

_VERSION = "1"
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
          12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
          32: "BF16"}  # fmt: skip


def quantisation(file: Path) -> str:
    """Name of the file's quantisation (`Q4_1`, …) from its own metadata, or `unknown`."""
    return _TYPES.get(_metadata(file).get("general.file_type", -1), "unknown quantisation")


def converted(file: Path, trust_remote_code: bool = False) -> Path:
    """Folder with the dequantised checkpoint and tokenizer, converted on the first call.

    UnavailableError for a corrupt file, an unsupported architecture or missing packages.
    """
    if not file.exists():
        raise UnavailableError(f"no such file or directory: {file}")
    metadata = _metadata(file)
    digest = inspection.sha256((file,))
    target = cache_folder("gguf") / f"{digest}-{_VERSION}"
    if (target / "complete").exists():
        return target
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert(file, work, metadata)
        (work / "complete").write_text(f"{file.name}\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _metadata(file: Path) -> dict[str, Any]:
    try:
        from transformers.integrations.gguf.reader import read_gguf_metadata
    except ImportError as error:
        raise UnavailableError(f"cannot read .gguf files: {error}", "pip install '.[gguf]'") from None
    try:
        return dict(read_gguf_metadata(str(file))[0])
    except (struct.error, ValueError, OverflowError, MemoryError, UnicodeDecodeError, OSError, EOFError):
        raise UnavailableError(f"{file.name} is truncated or not GGUF", "fetch the file again") from None


def _convert(file: Path, work: Path, metadata: dict[str, Any]) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UnavailableError("a .gguf checkpoint needs the package gguf", "pip install '.[gguf]'") from None
    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # the reader draws a progress bar that cannot be switched off
        _dequantise(file, work, place, metadata)


def _dequantise(file: Path, work: Path, place: dict[str, Any], metadata: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), trust_remote_code=False, **place)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), dtype=torch.float32, trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True), **place,
        )  # fmt: skip
    except Exception as error:  # the reader raises many kinds; all mean that this file cannot be used
        kind = metadata.get("general.architecture", "unknown")
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnavailableError(f"{file.name} (architecture {kind}) cannot be converted: {line}") from error
    model.save_pretrained(str(work))
    tokenizer.save_pretrained(str(work))
