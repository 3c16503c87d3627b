"""Tiny lossless .gguf files of real checkpoints, as llama.cpp's converter writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

Arrays = dict[str, np.ndarray[Any, Any]]


def tensors_of(model: Any, kind: str) -> Arrays:
    """The tensors of a model under llama.cpp's names and in its layout."""
    names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(names[kind], model.config.num_hidden_layers)
    tied = getattr(model.config, "tie_word_embeddings", False)
    made: Arrays = {}
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        value = tensor.detach().float().numpy()
        if name.endswith("experts.gate_up_proj"):
            block = name.split(".")[2]
            half = value.shape[1] // 2
            made[f"blk.{block}.ffn_gate_exps.weight"], made[f"blk.{block}.ffn_up_exps.weight"] = (
                value[:, :half],
                value[:, half:],
            )
            continue
        if name.endswith("experts.down_proj"):
            made[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = value
            continue
        stem, _, end = name.replace(".dt_bias", ".dt_proj.bias").rpartition(".")
        stem, end = (stem, f".{end}") if end in ("weight", "bias") else (name, "")
        own = known.get_name(stem) or known.get_name(stem.removeprefix(f"{model.base_model_prefix}."))
        assert own is not None, name
        made[own + end] = np.ascontiguousarray(_layout(kind, own + end, value, model.config))
    return made


def _layout(kind: str, name: str, value: Any, config: Any) -> Any:
    if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if kind in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return value + 1
    if kind == "gpt2" and name.endswith(("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")):
        return value.T
    if kind == "bloom" and "attn_qkv" in name:
        split = value.reshape(config.n_head, 3, -1, *value.shape[1:])
        return np.concatenate([split[:, part].reshape(-1, *value.shape[1:]) for part in range(3)])
    if kind == "mamba":
        if name.endswith("ssm_conv1d.weight"):
            return value.squeeze(1)
        if name.endswith("ssm_a"):
            return -np.exp(value)
    if kind.startswith("qwen35"):
        return _qwen35(name, value, config)
    if kind == "lfm2" and name.endswith("shortconv.conv.weight"):
        return value.squeeze(1)
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return value[0]
    return value


def _qwen35(name: str, value: Any, config: Any) -> Any:
    """Norms but that of the states + 1, decays negative, value heads tiled instead of grouped by their key heads."""
    keys, width = config.linear_num_key_heads, config.linear_value_head_dim
    each, first = config.linear_num_value_heads // keys, 2 * keys * config.linear_key_head_dim

    def tiled(rows: Any, size: int) -> Any:
        return rows.reshape(keys, each, size, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    if name.endswith("norm.weight") and "ssm_norm" not in name:
        return value + 1
    if name.endswith("ssm_a"):
        return tiled(-np.exp(value), 1)
    if "ssm_dt" in name or "ssm_alpha" in name or "ssm_beta" in name:
        return tiled(value, 1)
    if "attn_gate" in name:
        return tiled(value, width)
    if "attn_qkv" in name:
        return np.concatenate([value[:first], tiled(value[first:], width)])
    if "ssm_conv1d" in name:
        return np.concatenate([value[:first, 0], tiled(value[first:, 0], width)])
    if "ssm_out" in name:
        return tiled(value.T, width).T
    return value


def keys_of(model: Any, kind: str, context: int = 128) -> dict[str, Any]:
    """The keys that describe a model of most architectures."""
    config = model.config
    heads = config.num_attention_heads if kind != "mamba" else 0
    keys: dict[str, Any] = {
        "context_length": context,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": heads,
    }
    if kind not in ("gpt2", "bloom", "mamba"):
        keys["rope.freq_base"] = float(config.rope_parameters.get("rope_theta", 10_000.0)) if kind != "gemma3" else 1e6
    if heads and kind not in ("gpt2",):
        keys["attention.head_count_kv"] = getattr(config, "num_key_value_heads", None) or heads
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"):
        if hasattr(config, name):
            rms = name == "rms_norm_eps" or kind in ("mamba", "lfm2")
            keys[f"attention.layer_norm_{'rms_' if rms else ''}epsilon"] = float(getattr(config, name))
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    keys["feed_forward_length"] = 0 if kind == "mamba" else width
    return keys


def write_gguf(
    file: Path,
    kind: str,
    tensors: Mapping[str, Any],
    keys: Mapping[str, Any],
    tokenizer: Any = None,
    *,
    quantise: Callable[[str, Any], Any] | None = None,
    more: Callable[[Any], None] | None = None,
    split: tuple[int, int, int] | None = None,
) -> Path:
    """Write a file. keys: without the architecture's prefix; quantise(name, values) -> a ggml type or None (F32).

    split: (number, parts, tensors in all) for a part of a split file; more(writer) adds keys of its own.
    """
    writer = gguf.GGUFWriter(str(file), kind)
    if quantise is None:
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if split is None or split[0] == 0:
        for key, value in keys.items():
            add_key(writer, f"{kind}.{key}", value)
        if tokenizer is not None:
            add_byte_tokenizer(writer, tokenizer)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    if more is not None:
        more(writer)
    for name, value in tensors.items():
        ggml = quantise(name, value) if quantise else None
        if ggml is None:
            writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
        elif isinstance(ggml, tuple):  # raw bytes of a type
            writer.add_tensor(name, ggml[1], raw_dtype=ggml[0])
        else:
            writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(value, dtype=np.float32), ggml), raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_key(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_byte_tokenizer(writer: Any, tokenizer: Any, **more: Any) -> None:
    """A byte-level BPE as llama.cpp keeps it (model gpt2), with its special tokens."""
    import json

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    for name in ("bos", "eos"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
    if tokenizer.bos_token_id is not None:
        writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(ids).logits
    return output
