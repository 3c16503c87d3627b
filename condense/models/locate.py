"""Where a checkpoint is and what it is, before its weights are read: enough to cut text, and to know it again.

Its hash is taken of the bytes each time, never of a name or a date: a model that was trained again in the
same place is another model.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condense.errors import UnavailableError, UsageError
from condense.files import expanded, joined_sha256, sha256, sha256_of_files
from condense.models import folder as inspection
from condense.models import gguf, gguf_copies, hub
from condense.models.checks import check_quantisation, reported
from condense.models.folder import Folder
from condense.models.hub_files import Selection
from condense.models.tokenizer import load_tokenizer
from condense.records.options import ModelOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What configs call the longest input, the names of models whose code is their own among them.
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
    "context_length",
    "block_size",
    "max_target_positions",
    "max_source_positions",
)
# Their positions count from pad + 1.
_OFFSET_POSITIONS = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


@dataclass(frozen=True)
class Located:
    """A checkpoint that was found and looked into, its weights hashed but not read.

    folder: where MODEL is; base: where the weights are (another folder for an adapter); config: transformers' own;
    weights_sha256: of the files, the adapter's with its base's, None for random weights; files: those it is of;
    stamps: their sizes and times when they were hashed; device and dtype: what `auto` stands for here.
    """

    name: str
    folder: Folder
    base: Folder
    options: ModelOptions
    source_format: str
    revision: str | None
    config: Any
    tokenizer: PreTrainedTokenizerBase
    positions: int | None
    device: str
    dtype: str
    weights_sha256: str | None
    files: tuple[Path, ...]
    stamps: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter, where MODEL is one."""
        return self.folder.path if self.folder is not self.base else None

    def has_changed(self) -> bool:
        """True if a file of the weights was written since it was hashed."""
        return _stamps(self.files) != self.stamps


def locate(model: str | Path, options: ModelOptions) -> Located:
    """Find MODEL, check its files and open its config and tokenizer.

    UnavailableError for what is missing, unsafe, damaged or unsupported; UsageError for options that
    do not go together.
    """
    name = str(model)
    folder, source, revision = _place(name, options)
    has_adapter = (folder.path / "adapter_config.json").exists()
    if has_adapter and folder.weights:
        raise UnavailableError(
            f"{folder.path} holds both a model's weights and an adapter", "move one of them to a folder of its own"
        )
    base = _base_folder(folder, options) if has_adapter else folder
    own = (folder.path / "adapter_model.safetensors",) if has_adapter else ()
    weights = () if options.random_init else base.origin or base.weights
    hashes = hub.checked_sha256((*weights, *own), options)
    if not options.random_init:
        inspection.check_weights(base, allow_pickle=options.allow_pickle)
    with reported(name):
        config = _config(base, options)
        dtype = dtype_of(config, options)
    place = _named_tokenizer(options) if options.tokenizer else _tokenizer_folder(folder, base, name)
    tokenizer, notes = load_tokenizer(place, trust_remote_code=options.trust_remote_code)
    files = tuple(file for file in (*weights, *own) if file.exists())  # an adapter without one is refused later
    stamps = _stamps(files)
    digest = joined_sha256([hashes.get(file) or sha256_of_files((file,)) for file in weights]) if weights else None
    if own and own[0].exists() and digest:
        digest = adapter_sha256(folder.path, digest)
    return Located(
        name, folder, base, options, "adapter" if has_adapter else source, revision, config, tokenizer,
        positions_of(config), device_of(options), str(dtype).removeprefix("torch."), digest, files, stamps, notes,
    )  # fmt: skip


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, ...], ...]:
    found = []
    for file in files:
        try:
            state = file.stat()
        except OSError:
            return ()
        found.append((state.st_size, state.st_mtime_ns, state.st_ino))
    return tuple(found)


def _place(name: str, options: ModelOptions) -> tuple[Folder, str, str | None]:
    """The folder that holds MODEL, the format it came in, and its resolved revision."""
    if not inspection.is_path(name):
        fetched = hub.fetch(name, options)
        return _opened(fetched.path), "safetensors", fetched.revision
    path = expanded(name)
    if path.is_file() and path.suffix == ".gguf":
        with reported(name):
            model = gguf.read(path)
            copy = replace(_opened(gguf_copies.converted(model)), origin=model.parts)
            return copy, f"gguf ({gguf.quantisation(model)})", None
    folder = _opened(path)
    return folder, "pickle" if folder.is_pickle else "safetensors", None


def _opened(path: Path) -> Folder:
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        return Folder(path, {}, (), inspection.has_tokenizer(path), contrastive=False)
    return inspection.open_folder(path)


def _base_folder(adapter: Folder, options: ModelOptions) -> Folder:
    base = inspection.check_adapter(adapter.path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnavailableError(f"{adapter.path}/adapter_config.json names no base model")
    with contextlib.suppress(UsageError):
        relative = adapter.path / base
        if not Path(base).is_absolute() and relative.exists():
            base = str(relative)
    folder = _place(base, options)[0]
    if not folder.config:
        raise UnavailableError(f"the base of {adapter.path.name}, {base}, is an adapter itself", "merge that one first")
    return folder


def _named_tokenizer(options: ModelOptions) -> Path:
    """The folder of --tokenizer, fetched or converted where it has to be."""
    name = str(options.tokenizer)
    if not inspection.is_path(name):
        return hub.fetch(name, options, Selection(weights=False)).path
    path = expanded(name)
    if path.suffix == ".gguf":
        path = gguf_copies.converted(gguf.read(path))
        if reason := gguf_copies.no_tokenizer(path):
            raise UnavailableError(reason, "pass --tokenizer with a hub id or a folder")
    if not path.exists():
        raise UnavailableError(f"no such file or directory: {path}")
    return path


def _tokenizer_folder(folder: Folder, base: Folder, name: str) -> Path:
    for place in (folder, base):
        if place.has_tokenizer:
            return place.path
    reason = gguf_copies.no_tokenizer(base.path) if base.origin else None
    raise UnavailableError(reason or f"no tokenizer in {name}", "pass --tokenizer with a hub id or a folder")


def _config(folder: Folder, options: ModelOptions) -> Any:
    from transformers import AutoConfig

    check_quantisation(folder)
    if folder.config.get("auto_map") and not options.trust_remote_code:
        known = _known(folder.config.get("model_type"))
        if not known:
            raise UnavailableError(
                f"{folder.path.name} needs code of its own (auto_map)", "read that code, then pass --trust-remote-code"
            )
    config = AutoConfig.from_pretrained(
        str(folder.path), trust_remote_code=options.trust_remote_code, local_files_only=True
    )
    config.return_dict = True
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def positions_of(config: Any) -> int | None:
    """The longest input that a config allows, or None where it names no limit."""
    text = config.get_text_config()
    for key in _POSITIONS:
        value = getattr(text, key, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            if getattr(text, "model_type", None) not in _OFFSET_POSITIONS:
                return value
            pad = getattr(text, "pad_token_id", None)
            return value - ((pad if isinstance(pad, int) else 1) + 1)
    return None


def dtype_of(config: Any, options: ModelOptions) -> torch.dtype:
    """The type of the forward pass that was asked for; UsageError for an unknown one."""
    if options.dtype == "auto":
        named = getattr(config, "dtype", None) or torch.float32
        return getattr(torch, named) if isinstance(named, str) else named
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}", f"use auto, {', '.join(DTYPES)}")
    return DTYPES[options.dtype]


def device_of(options: ModelOptions) -> str:
    """The device that was asked for, by its name; that this machine has it shows when a model is moved there."""
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return str(torch.device(options.device))


def adapter_sha256(adapter: Path, base: str | None) -> str:
    """The hash of an adapter and its base's."""
    own = sha256_of_files((adapter / "adapter_model.safetensors",))
    return sha256(f"{own}{base}")
