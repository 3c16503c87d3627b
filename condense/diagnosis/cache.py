"""Finished diagnoses in the cache, under a key of everything that can change a byte of them.

The key is made without building the model: the hash of its weights (of the bytes, each time), its configs, the
windows, the protocol, and the code, packages and processor that would measure. A cached diagnosis equals the one
that would be measured; `created`, `timing` and `environment` stay those of the measurement.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from condense.diagnosis.distributed import ALONE, Ranks, together
from condense.diagnosis.run import default_batch_size, protocol
from condense.diagnosis.verdict import BANDS, Bands
from condense.errors import CondenseError
from condense.files import cache_folder, cache_root, prune, sha256, write_text
from condense.geometry import SPECTRAL_TOKENS
from condense.models.locate import Located
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import Windows
from condense.version import __version__

FOLDER = "diagnoses"
_KEPT_DAYS = 90
_KEPT_BYTES = 256 * 2**20
_HEAD = "condense diagnosis "
# packages whose code decides a diagnosis, beside the single files at the top
_MEASURING = ("geometry", "records", "texts", "models", "diagnosis")
# What computes the numbers, and what transformers uses in place of its own layers where it is installed.
_PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "accelerate",
    "peft",
    "kernels",
    "flash-attn",
    "flash-linear-attention",
    "causal-conv1d",
    "mamba-ssm",
    "apex",
    "bitsandbytes",
)


@dataclass(frozen=True)
class Wanted:
    """The inputs of a diagnosis: the model, the windows, and the arguments that `analyze` would be given."""

    located: Located
    windows: Windows
    batch_size: int | None = None
    seed: int = 0
    twin: bool = False
    halves: bool = False
    lens: bool = False
    spectral_tokens: int = SPECTRAL_TOKENS
    bands: Bands = BANDS


def recall(wanted: Wanted, *, command: str = "", ranks: Ranks = ALONE) -> Diagnosis | None:
    """The cached diagnosis of the same model, text and settings, with `command` set in it; None if there is none.

    In a distributed run every process has to call this: the first reads the cache, and all get its result.
    """
    with together(ranks):
        path = _cache_file(wanted, ranks.size) if ranks.is_first else None
        kept: Diagnosis | None = ranks.told(None if path is None else _read_diagnosis(path))
    if kept is None:
        return None
    twin = None if kept.twin is None else replace(kept.twin, command=command)
    return replace(kept, command=command, twin=twin)


def keep(wanted: Wanted, diagnosis: Diagnosis, *, ranks: Ranks = ALONE) -> None:
    """Keep a diagnosis that was just measured of `wanted`, in place of an older one.

    Never raises because of the cache: where it cannot be written, nothing is kept. Nothing is kept either for
    weights that were written since they were hashed, or for code that came with the checkpoint.
    """
    path = _cache_file(wanted, ranks.size)
    if path is None or not ranks.is_first or wanted.located.has_changed():
        return
    with contextlib.suppress(CondenseError, OSError, UnicodeError):  # a file may have a name that is no text
        text = diagnosis.to_json()
        prune(cache_folder(FOLDER), days=_KEPT_DAYS, most_bytes=_KEPT_BYTES)
        write_text(path, f"{_HEAD}{sha256(text)}\n{text}")


def _cache_file(wanted: Wanted, processes: int) -> Path | None:
    key = _key(wanted, processes)
    return None if key is None else cache_root() / FOLDER / f"{sha256(key)}.txt"


def _read_diagnosis(path: Path) -> Diagnosis | None:
    """The diagnosis in a file of the cache, or None where it is missing or incomplete."""
    try:
        head, _, text = path.read_text(encoding="utf-8").partition("\n")
        if head != f"{_HEAD}{sha256(text)}":
            return None
        diagnosis = Diagnosis.from_json(text)
    except (OSError, ValueError, CondenseError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # pruning removes files unused for long
    return diagnosis


def _key(wanted: Wanted, processes: int) -> bytes | None:
    """Everything that can change a byte of the diagnosis, as JSON; None where a part of it cannot be hashed.

    Names are in it because the record contains them: a copy under another name is measured again. Code that ships
    with a checkpoint may be fetched from elsewhere and is not hashed, so such a model has no key.
    """
    located, windows = wanted.located, wanted.windows
    options = located.options
    if options.trust_remote_code:
        return None
    batch = wanted.batch_size or default_batch_size(torch.device(located.device).type)
    key = {
        "condense": [__version__, _code()],
        "model": [located.name, located.revision, located.source_format, located.base.contrastive],
        "weights": located.weights_sha256 or f"random {options.seed}",
        "configs": [located.base.config, _adapter_config(located)],
        "corpus": asdict(windows.info),
        "windows": [windows.special.tolist(), windows.predicted_bytes, windows.mask_token_id],
        "protocol": protocol(windows, located.dtype, wanted.spectral_tokens, wanted.seed)["hash"],
        "bands": asdict(wanted.bands),
        "twin": wanted.twin,
        "halves": wanted.halves,
        "lens": wanted.lens,
        "batch": f"{batch} of {processes}" if batch > 1 else "1",  # one at a time, ranks change no bit
        "device": [located.device, options.device_map, *_arithmetic(located.device)],
        "packages": _versions(),
    }
    return json.dumps(key, sort_keys=True, default=str).encode()


def _adapter_config(located: Located) -> str | None:
    """The adapter's own config as read from its file: it holds the scale, which the weights do not."""
    if located.adapter is None:
        return None
    return (located.adapter / "adapter_config.json").read_text(encoding="utf-8")


def _arithmetic(device: str) -> list[Any]:
    """What decides the last bit of a sum: the processor, its instructions, the number of threads, the precision."""
    parts: list[Any] = [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    parts.append(torch.get_float32_matmul_precision())
    if torch.device(device).type == "cuda":
        parts += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return parts


def _versions() -> Mapping[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _code() -> str:
    """The hash of the modules that measure and judge: the version does not change between two releases."""
    root = Path(__file__).parents[1]
    files = sorted([*root.glob("*.py"), *(file for name in _MEASURING for file in (root / name).rglob("*.py"))])
    return sha256(b"".join(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() for file in files))
