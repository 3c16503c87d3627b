"""Estimate of a run's downloads, time and peak memory from headers alone; no model is built, no file is written.

The estimate of memory adds up what the run holds at once: the libraries, the weights, one block's
activations, a block of logits, the pairs of one text and the Gram matrices of all its sites.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from condense.errors import UnavailableError
from condense.files import expanded
from condense.models import folder as inspection
from condense.models import gguf, gguf_copies, hub, hub_files
from condense.records.options import ModelOptions

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_NAMES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_LIBRARIES = 240e6  # what a run loads beyond torch and transformers: tokenizer, model classes, scipy, pages
_CONVERSION = 1.8  # a GGUF's float32 weights while it is converted: all tensors are held, then loaded
_OPENING = 6.0  # seconds until the model's weights are read
_DISK = 1e9  # bytes of weights per second, hashed, read and checked
_EFFICIENCY = 0.55  # of a plain matrix product, that a forward pass with everything around it reaches on a CPU
_TWINS = 3  # random initialisations of --random-twin, one after another
_METRICS = 1.3  # all of analyze over the forward pass, see `make bench`


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that determine the cost of a run; `stored` is the bytes of its weights on disk."""

    name: str
    parameters: int
    stored: int
    width: int
    inner: int
    blocks: int
    vocabulary: int
    positions: int | None
    stored_dtype: str


@dataclass(frozen=True)
class Source:
    """A located model: its sizes, what would be downloaded, where the copy of a .gguf would be made."""

    shape: Shape
    downloads: tuple[tuple[str, int], ...] = ()
    copy: Path | None = None


@dataclass(frozen=True)
class Load:
    """The work of a run: texts × tokens, texts per batch, the type, the number of processes, and whether on a CPU."""

    texts: int
    length: int
    batch: int
    dtype: str
    spectral: int = 256
    twin: bool = False
    processes: int = 1
    halves: bool = False
    lens: bool = False
    on_cpu: bool = True


def find(model: str, options: ModelOptions) -> Source:
    """Sizes of MODEL from its config and headers. UnavailableError as `load` would raise it for these files."""
    if inspection.is_path(model):
        return _local(expanded(model), options)
    selection, commit = hub_files.Selection.of(options), options.revision
    if not hub.is_offline(options.offline):
        try:
            listing = hub.list_files(model, options, selection)
            if listing.missing:
                config = hub.remote_config(model, listing.revision, options.token)
                size = sum(size for name, size in listing.files if name.endswith(hub_files.WEIGHTS))
                return Source(shape(config, model, stored=size), listing.missing)
            commit = listing.revision
        except hub.HubOutageError:
            with contextlib.suppress(UnavailableError):
                return _local(hub_files.cached(model, commit, selection).path, options, name=model)
            raise
    return _local(hub_files.cached(model, commit, selection).path, options, name=model)


def _local(path: Path, options: ModelOptions, name: str | None = None) -> Source:
    name = name or path.name
    if path.is_file() and gguf.is_gguf(path):
        model = gguf.read(path)
        folder = gguf_copies.already_converted(model)
        if folder is None:
            return Source(_gguf_shape(model, name), copy=gguf_copies.copy_of(model.parts))
        path = folder
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        config = inspection.check_adapter(path)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if not isinstance(base, str) or not base:
            raise UnavailableError(f"{path}/adapter_config.json names no base model")
        beside = path / base
        base_path = str(beside) if not Path(base).is_absolute() and beside.exists() else base
        own = revision if isinstance(revision, str) else None  # --revision is the adapter's
        return find(base_path, replace(options, revision=own, token=None, trust_remote_code=False))
    opened = inspection.open_folder(path)
    if options.random_init:
        return Source(shape(opened.config, name))
    inspection.check_weights(opened, allow_pickle=options.allow_pickle)
    if opened.is_pickle:
        return Source(shape(opened.config, name, stored=sum(file.stat().st_size for file in opened.weights)))
    headers = [entry for file in opened.weights for entry in inspection.safetensors_header(file).values()]
    return Source(shape(opened.config, name, headers=headers))


def shape(
    config: Mapping[str, Any], name: str, *, headers: list[dict[str, Any]] | None = None, stored: int = 0
) -> Shape:
    """Sizes from a config.json, with the tensors of the safetensors headers or the bytes on disk where known."""
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, Mapping) else dict(config)
    width = _first_positive(text, "hidden_size", "n_embd", "d_model") or 0
    blocks = _first_positive(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers") or 0
    if config.get("is_encoder_decoder"):
        blocks += _first_positive(text, "decoder_layers", "num_decoder_layers", "num_layers") or 0
    ff = _first_positive(text, "intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim") or 4 * width
    vocabulary = _first_positive(text, "vocab_size") or 0
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "float32")
    if headers is not None:
        parameters = sum(math.prod(entry["shape"]) for entry in headers)
        stored = sum(math.prod(entry["shape"]) * BYTES.get(entry["dtype"], 1) for entry in headers)
        dtype = {8: "float64", 4: "float32"}.get(round(stored / max(parameters, 1)), dtype)
    elif stored:
        parameters = stored // _NAMES.get(dtype, 4)
    else:
        parameters = blocks * (4 * width**2 + 3 * width * ff) + vocabulary * width
    positions = _first_positive(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return Shape(name, parameters, stored, width, ff, blocks, vocabulary, positions, dtype)


def _gguf_shape(model: gguf.Gguf, name: str) -> Shape:
    def number(key: str) -> int:
        value = model.metadata.get(f"{model.architecture}.{key}", 0)
        return int(value) if isinstance(value, int | float) else 0

    config = {
        "hidden_size": number("embedding_length"), "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"), "max_position_embeddings": number("context_length"),
        "vocab_size": next((t.shape[0] for t in model.tensors.values() if t.name == "token_embd.weight"), 0),
    }  # fmt: skip
    return shape(config, name, headers=[{"shape": t.shape, "dtype": "F32"} for t in model.tensors.values()])


def _first_positive(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((value for key in keys if isinstance(value := config.get(key), int) and value > 0), None)


def peak_bytes(source: Source, load: Load, *, libraries: float) -> float:
    """Largest memory of a process of the run: resident bytes on a CPU, where `libraries` is what they take.

    Weights of another type than asked for are counted twice: as mapped from disk and as converted.
    """
    shape, size = source.shape, _NAMES.get(_dtype_of_load(source.shape, load), 4)
    weights = float(shape.parameters * size * (2 if load.twin else 1))
    if _dtype_of_load(shape, load) != shape.stored_dtype:
        weights += shape.stored
    if source.copy:
        weights = max(weights, _CONVERSION * 4 * shape.parameters)
    return libraries + _LIBRARIES + weights + _working(shape, load, size)


def _dtype_of_load(shape: Shape, load: Load) -> str:
    return shape.stored_dtype if load.dtype == "auto" else load.dtype


def _working(shape: Shape, load: Load, size: int) -> float:
    """Peak memory of the measurement itself, in bytes: of the CPU, or of the device that the model is on."""
    tokens = load.batch * load.length
    block = tokens * (8 * shape.width + 4 * shape.inner) * size
    logits = 3 * min(load.length, 512) * 4096 * 4
    if not load.on_cpu:  # measured on the host; the states of all sites as the hooks keep them, and packed to be sent
        return max(block, logits) + block / 2 + 2 * tokens * shape.width * size * (shape.blocks + 2)
    spectral = min(load.spectral, load.length) + 1
    pairs = 4 * load.length**2 / 2 * 4 + 6 * load.length * shape.width * 4
    grams = 8 * spectral**2 * (load.batch * (shape.blocks + 2) + 12)
    return max(block, logits, pairs) + block / 2 + grams


def seconds(source: Source, load: Load, rate: float) -> float:
    """Wall time of the run, from the speed of a plain matrix product on the device in operations per second."""
    shape = source.shape
    # each parameter multiplies each token once, the embedding too (as the head); attention adds two products per pair
    per_text = 2 * shape.parameters * load.length + 4 * shape.blocks * shape.width * load.length**2
    rounds = math.ceil(load.texts / load.processes) * (1 + (_TWINS if load.twin else 0) + load.halves)
    opening = _OPENING + shape.parameters * 4 / _DISK + (15 + shape.parameters / 2e7 if source.copy else 0)
    lens = 2 * shape.vocabulary * shape.width * load.length * (shape.blocks + 1) * min(8, load.texts) * load.lens
    return opening + (rounds * per_text * _METRICS + lens) / (rate * _EFFICIENCY)


def matmul_rate(shape: Shape, load: Load, device: str) -> float:
    """Operations per second of a matrix product of the model's own sizes on a device; takes a moment."""
    import torch

    kind = getattr(torch, _dtype_of_load(shape, load), torch.float32)
    left = torch.ones(max(load.batch * load.length, 1), max(shape.width, 1), dtype=kind, device=device)
    right = torch.ones(max(shape.width, 1), max(shape.inner, 1), dtype=kind, device=device)
    operations, best = 2 * left.shape[0] * left.shape[1] * right.shape[1], math.inf
    for _ in range(8):
        start = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - start)
    return operations / best


def resident_bytes() -> float:
    """What this process holds in memory now: with torch and transformers imported, what a run starts from."""
    import psutil

    return float(psutil.Process().memory_info().rss)
