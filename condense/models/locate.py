"""Locates and identifies a checkpoint before its weights are read: enough to cut text, and for the cache's key.

Its hash is taken of the bytes each time, never of a name or a date: a model that was trained again in the
same folder is another model.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condense.errors import UnavailableError, UsageError
from condense.files import expanded, joined_sha256, sha256, sha256_of_files
from condense.models import folder as inspection
from condense.models import gguf, gguf_copies, hub
from condense.models.checks import check_quantisation, reported
from condense.models.config import Honoured, build, weights_dtype
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
# A learned table of positions in the weights; one of relative positions has no end, one of images is another's.
_POSITION_TABLE = re.compile(
    r"^(?!.*(?:rel|vision|visual|image|audio))(?:.*\.)?(?:wpe|pos\w*emb\w*|embed_pos\w*|pos|positions?)(?:\.weight)?$"
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
    """A located checkpoint, its weights hashed but not read.

    folder: where MODEL is; base: where the weights are (another folder for an adapter); config: transformers' own;
    weights_sha256: of the files, the adapter's with its base's, None for random weights; files: those it is of;
    stamps: their sizes and times when they were hashed; device and dtype: with `auto` resolved; source_dtype:
    that of the weights as they are stored; notes: what a reader of the report should know.
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
    source_dtype: str
    weights_sha256: str | None
    files: tuple[Path, ...]
    stamps: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter, where MODEL is one."""
        return self.folder.path if self.folder is not self.base else None

    @property
    def weights_bytes(self) -> int | None:
        """The size of the files of the weights when they were hashed; None where there are none."""
        return sum(size for size, *_ in self.stamps) or None

    def has_changed(self) -> bool:
        """True if a file of the weights was written since it was hashed."""
        return _stamps(self.files) != self.stamps


def locate(model: str | Path, options: ModelOptions) -> Located:
    """Find MODEL, check its files and open its config and tokenizer.

    What the user named is fetched, and an adapter's base; nothing that a file names is requested from the hub.
    UnavailableError for what is missing, unsafe, damaged or unsupported; UsageError for options that
    do not go together.
    """
    with hub.closed(options.offline):
        return _locate(str(model), options)


def _locate(name: str, options: ModelOptions) -> Located:
    folder, source, revision = _locate_folder(name, options)
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
    device = device_of(options)
    with reported(name):
        check_quantisation(base)
        honoured = build(base, trust_remote_code=options.trust_remote_code, device=device)
        source_dtype = stored_dtype(honoured.config, base)
        dtype = dtype_of(source_dtype, options)
        tokenizer, notes = _choose_tokenizer(folder, base, name, honoured, options)
    files = tuple(file for file in (*weights, *own) if file.exists())  # an adapter without one raises later
    stamps = _stamps(files)
    digest = joined_sha256([hashes.get(file) or sha256_of_files((file,)) for file in weights]) if weights else None
    if own and own[0].exists() and digest:
        digest = adapter_sha256(folder.path, digest)
    return Located(
        name=name,
        folder=folder,
        base=base,
        options=options,
        source_format="adapter" if has_adapter else source,
        revision=revision,
        config=honoured.config,
        tokenizer=tokenizer,
        positions=longest_input(honoured.config, base),
        device=device,
        dtype=dtype,
        source_dtype=source_dtype,
        weights_sha256=digest,
        files=files,
        stamps=stamps,
        notes=(*honoured.notes, *notes),
    )


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, ...], ...]:
    stamps = []
    for file in files:
        try:
            state = file.stat()
        except OSError:
            return ()
        stamps.append((state.st_size, state.st_mtime_ns, state.st_ino))
    return tuple(stamps)


def _locate_folder(name: str, options: ModelOptions) -> tuple[Folder, str, str | None]:
    """The folder that holds MODEL, the format it came in, and its resolved revision."""
    if not inspection.is_path(name):
        fetched = hub.fetch(name, options)
        return _open_folder(fetched.path), "safetensors", fetched.revision
    path = expanded(name)
    if path.is_file() and gguf.is_gguf(path):
        with reported(name):
            model = gguf.read(path)
            copy = replace(_open_folder(gguf_copies.converted(model)), origin=model.parts)
            return copy, f"gguf ({gguf.quantisation(model)})", None
    folder = _open_folder(path)
    return folder, "pickle" if folder.is_pickle else "safetensors", None


def _open_folder(path: Path) -> Folder:
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        return Folder(path, {}, (), inspection.has_tokenizer(path), contrastive=False)
    return inspection.open_folder(path)


def _base_folder(adapter: Folder, options: ModelOptions) -> Folder:
    config = inspection.check_adapter(adapter.path)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnavailableError(f"{adapter.path}/adapter_config.json names no base model")
    with contextlib.suppress(UsageError):
        relative = adapter.path / base
        if not Path(base).is_absolute() and relative.exists():
            base = str(relative)
    revision = config.get("revision")  # the base's own: --revision is the adapter's
    folder = _locate_folder(base, replace(options, revision=revision if isinstance(revision, str) else None))[0]
    if not folder.config:
        raise UnavailableError(f"the base of {adapter.path.name}, {base}, is an adapter itself", "merge that one first")
    return folder


def _choose_tokenizer(
    folder: Folder, base: Folder, name: str, honoured: Honoured, options: ModelOptions
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer that was named, else the folder's own, else its base's, with notes on it."""
    trust = options.trust_remote_code
    if not options.tokenizer:
        return load_tokenizer(
            _tokenizer_folder(folder, base, name, trusted=trust), honoured.config, trust_remote_code=trust
        )
    path = _named_tokenizer(options)
    config = None
    if (path / "config.json").exists():  # the class of a tokenizer is chosen by its own model's type
        config = build(inspection.open_folder(path), trust_remote_code=trust).config
    return load_tokenizer(path, config, trust_remote_code=trust)


def _named_tokenizer(options: ModelOptions) -> Path:
    """The folder of --tokenizer, fetched or converted where it has to be."""
    name = str(options.tokenizer)
    if not inspection.is_path(name):
        return hub.fetch(name, options, Selection(weights=False)).path
    path = expanded(name)
    if gguf.is_gguf(path):
        path = gguf_copies.converted(gguf.read(path))
        if reason := gguf_copies.no_tokenizer(path):
            raise UnavailableError(reason, "pass --tokenizer with a hub id or a folder")
    if not path.exists():
        raise UnavailableError(f"no such file or directory: {path}")
    return path


def _tokenizer_folder(folder: Folder, base: Folder, name: str, *, trusted: bool) -> Path:
    for each in (folder, base):
        if each.has_tokenizer or (trusted and inspection.names_own_tokenizer(each.path)):
            return each.path
    reason = gguf_copies.no_tokenizer(base.path) if base.origin else None
    raise UnavailableError(reason or f"no tokenizer in {name}", "pass --tokenizer with a hub id or a folder")


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


def longest_input(config: Any, folder: Folder) -> int | None:
    """The longest input that a config allows; where it names none, the rows of the weights' table of positions."""
    limit = positions_of(config)
    if limit is not None or folder.is_pickle or hasattr(config.get_text_config(), "patch_size"):  # patches of an image
        return limit
    tables = [
        entry["shape"][-2]
        for file in folder.weights
        for name, entry in inspection.safetensors_header(file).items()
        if _POSITION_TABLE.search(name) and len(entry["shape"]) in (2, 3)
    ]
    return min((rows for rows in tables if rows > 1), default=None)


def stored_dtype(config: Any, folder: Folder) -> str:
    """The type of a checkpoint's weights as its config names it; where it names none, that of most of them."""
    parts = (config, config.get_text_config())
    named = next((str(part.dtype).removeprefix("torch.") for part in parts if getattr(part, "dtype", None)), None)
    if named is None:
        named = weights_dtype(folder)
        config.dtype = getattr(torch, named) if named else None
    return named if named in DTYPES else "float32"


def dtype_of(stored: str, options: ModelOptions) -> str:
    """The type of the forward pass that was asked for, `stored` for auto; UsageError for an unknown one."""
    if options.dtype == "auto":
        return stored
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}", f"use auto, {', '.join(DTYPES)}")
    return options.dtype


def device_of(options: ModelOptions) -> str:
    """The device that was asked for, by its name; whether this machine has it is checked when a model is moved."""
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return str(torch.device(options.device))


def adapter_sha256(adapter: Path, base: str | None) -> str:
    """The hash of an adapter and its base's."""
    own = sha256_of_files((adapter / "adapter_model.safetensors",))
    return sha256(f"{own}{base}")
