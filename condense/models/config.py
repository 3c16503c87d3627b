"""What a config.json may decide: the shape and the arithmetic of a model, never which files are loaded.

Numbers and switches are honoured. A text is honoured under a key that the class of the model's type declares or reads
itself, and only if it is no path or id; other texts are left out before transformers sees them. Keys that name weights,
backbones or files to load raise UnavailableError; attention and kernels are chosen here.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from condense.errors import UnavailableError
from condense.models.folder import IMPLEMENTATION, Folder, entries_of, safetensors_header, texts_in

ATTENTION = re.compile(r"_?attn_implementation(_internal|_autoset)?")
# Texts that transformers reads for every class, or that only describe.
_COMMON = set(
    "architectures dtype torch_dtype model_type id2label label2id problem_type quantization_config rope_scaling "
    "rope_parameters tokenizer_class transformers_version".split()
)
_LABELS = {"id2label", "label2id", "architectures", "quantization_config", "transformers_version"}
_PLACE = re.compile(r"[\w.-]+/[\w./-]+|[~/.].*|.*://.*|.*\\.*|.*\.(bin|pt|pth|safetensors|gguf|json|py|so)")
_AS_READ = re.compile(r"kwargs\.(?:pop|get|setdefault)\(\s*[\"'](\w+)[\"']|[\"'](\w+)[\"'] in kwargs")


@dataclass(frozen=True)
class Honoured:
    """A config as it will be used: transformers' own, and notes on what was left out."""

    config: Any
    notes: tuple[str, ...] = ()


def build(folder: Folder, *, trust_remote_code: bool = False, device: str = "cpu") -> Honoured:
    """The config of a checkpoint folder, its class chosen by `model_type`, else by `architectures`.

    UnavailableError for a type that is not known, for code of its own that is not trusted, and for keys that name
    something to load.
    """
    kind = _class_of(folder.config)
    attention, notes = _attention(folder.config, device)
    if kind is None:
        config = _of_its_own_code(folder, trust_remote_code)
    else:
        config = kind.from_dict(honoured(folder.config, kind))
    if attention is not None:
        config._attn_implementation = attention
    config.return_dict = True
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return Honoured(config, notes)


def code_of(folder: Folder, names: tuple[str, ...]) -> str | None:
    """The first reference in `auto_map` under one of the names; UnavailableError if it is in another repository."""
    listed = folder.config.get("auto_map")
    entry = next((listed[name] for name in names if listed.get(name)), None) if isinstance(listed, dict) else None
    reference = entry[0] if isinstance(entry, list) and entry else entry
    if isinstance(reference, str) and "--" in reference:
        raise UnavailableError(
            f"the code of {folder.path.name} is in another repository ({reference})",
            "copy it into the folder, read it, and take the repository's name out of auto_map",
        )
    return reference if isinstance(reference, str) else None


def honoured(config: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The part of a config.json that the class `kind` is given: see the module's docstring."""
    known, parts = _COMMON | _declared(kind), getattr(kind, "sub_configs", None) or {}
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if IMPLEMENTATION.fullmatch(key) or key in ("auto_map", "_name_or_path", "name_or_path"):
            continue
        texts = texts_in(value)
        if isinstance(value, Mapping) and key in parts:
            inner = _part_class(parts[key], value)
            kept[key] = honoured(value, inner) if inner is not None else value
        elif key in ("dtype", "torch_dtype"):
            kept[key] = _dtype_of_key(key, value)
        elif not texts:
            kept[key] = value
        elif key in known:
            device = next((text for text in texts if key not in _LABELS and _PLACE.fullmatch(text)), None)
            if device is not None:
                raise UnavailableError(
                    f"config.json names something else to load ({key} = {device})", "remove that key"
                )
            kept[key] = value
    return kept


def _dtype_of_key(key: str, value: Any) -> Any:
    """A type of weights as transformers reads it; None for "auto". UnavailableError for any other value."""
    import torch

    name = str(value).removeprefix("torch.")
    if not isinstance(value, str) or name == "auto":
        return None if value == "auto" else value
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise UnavailableError(f"config.json names a type that torch does not have ({key} = {value})", "correct it")
    return name


def _part_class(kind: Any, values: Mapping[str, Any]) -> Any:
    """The class of a part's config: its own, or (AutoConfig) that of the model type in its values."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if isinstance(kind, type) and issubclass(kind, PreTrainedConfig):
        return kind
    named = values.get("model_type")
    return CONFIG_MAPPING[named] if named in CONFIG_MAPPING else None


@functools.cache
def _declared(kind: type) -> frozenset[str]:
    """The keys that a config class declares, or reads from what it is given beside them."""
    fields = set(getattr(kind, "__dataclass_fields__", ())) | set(inspect.signature(kind).parameters)
    names = getattr(kind, "attribute_map", {})
    read: set[str] = set()
    for parent in kind.__mro__[:-1]:
        if parent.__name__ != "PreTrainedConfig":
            try:
                source = inspect.getsource(parent)
            except (OSError, TypeError):
                continue
            read |= {first or second for first, second in _AS_READ.findall(source)}
    return frozenset(fields | set(names) | set(names.values()) | read)


def _class_of(config: Mapping[str, Any]) -> Any:
    import transformers

    named = config.get("model_type")
    if named in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[named]
    if named or config.get("auto_map"):  # code of its own decides what the weights mean
        return None
    for name in config.get("architectures") or ():
        kind = getattr(getattr(transformers, str(name), None), "config_class", None)
        if kind is not None:
            return kind
    return None


def _of_its_own_code(folder: Folder, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if not folder.config.get("auto_map"):
        named = folder.config.get("model_type")
        what = f"is of model type {named!r}, which transformers does not know" if named else "names no model_type"
        raise UnavailableError(f"{folder.path.name} {what} (config.json)", "a newer transformers may know it")
    if not trust_remote_code:
        raise UnavailableError(
            f"{folder.path.name} needs code of its own (auto_map)", "read that code, then pass --trust-remote-code"
        )
    code_of(folder, ("AutoConfig",))
    return AutoConfig.from_pretrained(str(folder.path), trust_remote_code=True, local_files_only=True)


def _attention(config: Mapping[str, Any], device: str) -> tuple[str | None, tuple[str, ...]]:
    """The attention to use, None for transformers' own choice, and a note where another was asked for."""
    attention = next(
        (name for key, value in entries_of(config) if ATTENTION.fullmatch(key) for name in texts_in(value)), None
    )
    if attention is None or attention == "sdpa":  # the default wherever a class has it
        return None, ()
    if attention == "eager":
        return attention, ()
    if device.startswith("cuda") and _is_installed(attention):
        return attention, ()
    return None, (
        f"config.json asks for the attention implementation {attention}, which is not to be had here: sdpa is used",
    )


def _is_installed(name: str) -> bool:
    from transformers import utils

    check = getattr(utils, f"is_{name.replace('flash_attention_', 'flash_attn_')}_available", None)
    return name == "flex_attention" or (check is not None and bool(check()))


def weights_dtype(folder: Folder) -> str | None:
    """The type of most of a checkpoint's weights, for configs that name none; None for pickles and random weights."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    sizes: dict[str, int] = {}
    for file in () if folder.is_pickle else folder.weights:
        for entry in safetensors_header(file).values():
            if entry.get("dtype") in names:
                sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + prod(entry["shape"])
    return names[max(sizes, key=lambda name: sizes[name])] if sizes else None
