"""From the header of a `.gguf` file to a checkpoint folder: every key and every tensor is used, or an error names it.

The maps of names and the changes of layout are those of transformers and of the package gguf. What they leave out
(biases, rope scaling, llama.cpp's defaults) is added here; what is still left is an error: it would be another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condense.errors import UnavailableError, first_line, system_failure
from condense.models.gguf import Gguf, Tensor
from condense.models.tokenizer import save_tokenizer_of, special_token

_ORIGINAL = "use the checkpoint that it was made from"
# Architectures by llama.cpp's names whose conversion is tested to give the numbers of the checkpoint it came from.
_MODEL_TYPES = {kind: kind for kind in "llama qwen2 qwen3 gemma2 phi3 stablelm starcoder2 gpt2 bloom falcon".split()}
_MODEL_TYPES |= {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}
_MODEL_TYPES |= {"nemotron": "nemotron", "mamba": "mamba"}
_READ_BY_TRANSFORMERS = ("lfm2", "qwen35", "qwen35moe")  # keys, tensors and layout, all of them
# What transformers does not map: keys (behind the architecture's name) and the config's attributes.
_MORE_KEYS = {
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma3": {"final_logit_softcapping": "final_logit_softcapping"},
    "qwen2moe": {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    "qwen3": {"attention.key_length": "head_dim"},
    "qwen3moe": {"expert_feed_forward_length": "moe_intermediate_size"},
    "phi3": {"attention.sliding_window": "sliding_window"},
    "stablelm": {"rope.freq_base": "rope_theta"},
    "starcoder2": {"rope.freq_base": "rope_theta"},
    "gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"},
    "falcon": {"attention.layer_norm_epsilon": "layer_norm_epsilon", "feed_forward_length": "ffn_hidden_size"},
    "nemotron": {"attention.layer_norm_epsilon": "norm_eps"},
    "bloom": {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
}
# Keys that change no number: descriptions, or values that the shapes of the tensors give too.
_DESCRIPTIVE = set(
    "vocab_size tensor_data_layout rope.scaling.finetuned attention.value_length attention.key_length "
    "rope.dimension_count feed_forward_length context_length attention.head_count attention.head_count_kv".split()
)
_WITHOUT_ROPE = ("gpt2", "bloom", "mamba")


def dequantise(model: Gguf, folder: Path) -> str | None:
    """Write a model as an ordinary float32 checkpoint; return why it has no tokenizer, if it has none.

    UnavailableError naming the architecture, the key or the tensor that cannot be used.
    """
    name, kind = model.parts[0].name, model.architecture
    if kind in _READ_BY_TRANSFORMERS:
        _save_as_read(model, folder)
        return save_tokenizer_of(model, folder)
    if kind not in _MODEL_TYPES:
        raise UnavailableError(f"{name} is of architecture {kind}, whose conversion is not verified", _ORIGINAL)
    config = _config(model)
    network = _network_without_weights(config)
    names = _tensor_names(network, model)
    state, unused = _state_by_name(model, config, names)
    if unused:
        raise UnavailableError(
            f"{len(unused)} tensors of {name} (architecture {kind}) have no place in the model, first {unused[0]}",
            f"a model without them is another model: {_ORIGINAL}",
        )
    _add_absent_biases(network, state)
    _save_checkpoint(network, config, state, folder, name)
    return save_tokenizer_of(model, folder)


# --- config -----------------------------------------------------------------------------------------


def _config(model: Gguf) -> Any:
    """The config from a file's keys and tensors; UnavailableError for a key that would be left out."""
    from transformers import AutoConfig
    from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING

    kind = model.architecture
    model_type = _MODEL_TYPES[kind]
    mapped = GGUF_CONFIG_MAPPING.get(kind) or GGUF_CONFIG_MAPPING[model_type]
    names = {key: own for key, own in mapped.items() if own not in (None, -1)} | _MORE_KEYS.get(kind, {})
    own = {key.removeprefix(f"{kind}."): value for key, value in model.metadata.items() if key.startswith(f"{kind}.")}
    values = {names[key]: value for key, value in own.items() if key in names}
    values |= GGUF_CONFIG_DEFAULTS_MAPPING.get(model_type, {})
    _shape_settings(model, own, values)
    used = {*names, *_DESCRIPTIVE, *_rope(model, own, values), *_architecture_settings(model, own, values)}
    _refuse_unused(model, {key: value for key, value in own.items() if key not in used})
    for token in ("bos", "eos", "pad"):
        values[f"{token}_token_id"] = special_token(model, token)
    values.pop("unk_token_id", None)
    return AutoConfig.for_model(model_type, **values, dtype=torch.float32)


def _shape_settings(model: Gguf, own: Mapping[str, Any], values: dict[str, Any]) -> None:
    """The shape by the tensors and llama.cpp's defaults, where transformers would take its own defaults."""
    values["vocab_size"] = model.tensors["token_embd.weight"].shape[0]
    values["tie_word_embeddings"] = "output.weight" not in model.tensors
    heads, groups = own.get("attention.head_count"), own.get("attention.head_count_kv")
    if isinstance(heads, list) or isinstance(groups, list):
        raise UnavailableError(f"{model.parts[0].name} has another number of heads in every block", _ORIGINAL)
    if not heads:
        return
    values.setdefault("num_key_value_heads", groups or heads)
    width = own.get("attention.key_length") or own["embedding_length"] // heads
    if own.get("attention.value_length", width) != width:
        raise UnavailableError(f"{model.parts[0].name} has keys and values of different widths", _ORIGINAL)
    values["head_dim"] = width


def _rope(model: Gguf, own: Mapping[str, Any], values: dict[str, Any]) -> set[str]:
    """The rotary position embeddings: base, share of the head, scaling; returns the keys that were used."""
    theta = values.pop("rope_theta", 10_000.0)  # llama.cpp's default
    if model.architecture in _WITHOUT_ROPE:
        return set()
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
    width = values.get("head_dim")
    turned = own.get("rope.dimension_count", width)
    if width and turned != width:
        rope["partial_rotary_factor"] = turned / width
    kind = own.get(
        "rope.scaling.type", "linear" if "rope.scaling.factor" in own or "rope.scale_linear" in own else "none"
    )
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear"))
    original = own.get("rope.scaling.original_context_length")
    if kind == "linear" and factor not in (None, 0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
        if (scale := own.get("rope.scaling.attn_factor", 1.0)) != 1.0:
            rope["attention_factor"] = scale * (0.1 * np.log(factor) + 1)
    elif kind not in ("none", "linear", "longrope"):
        raise UnavailableError(f"{model.parts[0].name} scales its positions by {kind!r}", _ORIGINAL)
    rope |= _rope_factors(model, own, values, original)
    values["rope_parameters"] = rope
    return {f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "attn_factor")} | {
        "rope.scale_linear",
        "rope.freq_base",
    }


def _rope_factors(model: Gguf, own: Mapping[str, Any], values: dict[str, Any], original: int | None) -> dict[str, Any]:
    """Frequencies divided one by one: `rope_freqs` (Llama 3.1 and later), `rope_factors_*` (Phi 3)."""
    longest = int(own.get("context_length", 0))
    if "rope_freqs.weight" in model.tensors:
        factors = _float32_values(model.tensors["rope_freqs.weight"])
        if np.allclose(factors, 1):
            return {}
        llama = {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": original or 8192}  # fmt: skip
        theta = float(own.get("rope.freq_base", 10_000.0))
        if np.allclose(factors, _llama3_factors(llama, theta, 2 * len(factors)), rtol=1e-5):
            return llama
        both = factors.tolist()
        return {"rope_type": "longrope", "long_factor": both, "short_factor": both, "attention_factor": 1.0,
                "original_max_position_embeddings": longest}  # fmt: skip
    if "rope_factors_long.weight" in model.tensors:
        original = original or longest
        values["original_max_position_embeddings"] = original
        return {
            "rope_type": "longrope",
            "long_factor": _float32_values(model.tensors["rope_factors_long.weight"]).tolist(),
            "short_factor": _float32_values(model.tensors["rope_factors_short.weight"]).tolist(),
            "attention_factor": float(own.get("rope.scaling.attn_factor", 1.0)),
            "original_max_position_embeddings": original,
        }
    return {}


def _llama3_factors(parameters: Mapping[str, Any], theta: float, width: int) -> Any:
    """Factors by which llama.cpp's converter divides the frequencies of Llama 3.1: (width / 2,)."""
    lengths = 2 * np.pi * theta ** (np.arange(0, width, 2) / width)
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(lengths < original / high, 1.0, np.where(lengths > original / low, factor, between))


def _architecture_settings(model: Gguf, own: Mapping[str, Any], values: dict[str, Any]) -> set[str]:
    """What one architecture keeps in tensors, or llama.cpp in its code; returns the keys that were used."""
    kind, tensors = model.architecture, model.tensors

    def has(end: str) -> bool:
        return f"blk.0.{end}" in tensors

    values["attention_bias"] = any(has(f"attn_{part}.bias") for part in ("q", "k", "v", "qkv", "output"))
    values["mlp_bias"] = any(has(f"ffn_{part}.bias") for part in ("up", "down", "gate"))
    if kind in ("gemma2", "gemma3"):
        largest = {"gemma2": 46, "gemma3": 62}[kind] == own["block_count"]  # the 27B models, by llama.cpp's own rule
        width = own["embedding_length"] // own["attention.head_count"] if largest else values["head_dim"]
        values["query_pre_attn_scalar"] = width
    if kind == "gemma3":
        local = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa", 10_000.0))}
        values["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": local}
        return {"rope.freq_base_swa"}
    if kind == "stablelm":
        values |= {"use_qkv_bias": has("attn_q.bias"), "use_parallel_residual": not has("ffn_norm.weight")}
        return {"use_parallel_residual"}
    if kind == "starcoder2":
        values["use_bias"] = has("attn_q.bias")
    if kind == "falcon":
        if own.get("attention.head_count_kv") != 1 or has("attn_norm_2.weight"):
            raise UnavailableError(f"{model.parts[0].name} is a Falcon with several heads of keys", _ORIGINAL)
        values |= {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "alibi": False}
        values["bias"] = values.pop("attention_bias")
        del values["head_dim"]
    if kind == "mamba":
        values["expand"] = own["ssm.inner_size"] // own["embedding_length"]
    return set()


def _refuse_unused(model: Gguf, left: Mapping[str, Any]) -> None:
    """UnavailableError for unused keys, unless their value means that the feature is absent."""
    meant = {key: value for key, value in left.items() if value not in (0, False, "", "none", [], None)}
    if left.get("attention.causal", True) is False:
        meant["attention.causal"] = False
    if meant:
        key, value = next(iter(meant.items()))
        raise UnavailableError(
            f"{model.parts[0].name} says {model.architecture}.{key} = {value}, which is not used here",
            f"a model without it is another model: {_ORIGINAL}",
        )


class _TrackedKeys(dict[str, Any]):
    """A mapping that records which keys were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _save_as_read(model: Gguf, folder: Path) -> None:
    """Convert an architecture that transformers reads whole; UnavailableError for keys that it does not read."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.integrations.gguf import get_gguf_config

    (file, *others), kind = model.parts, model.architecture
    if others:
        raise UnavailableError(
            f"{file.name} is split, and {kind} is read from one file only", "llama-gguf-split --merge FIRST OUT"
        )
    rows = model.tensors["token_embd.weight"].shape[0]
    metadata = _TrackedKeys({"tokenizer.ggml.tokens": rows, **model.metadata})
    values = get_gguf_config(metadata, tuple(model.tensors)) | {"vocab_size": rows}
    own = {key: value for key, value in model.metadata.items() if key.startswith(f"{kind}.")}
    left = {key.removeprefix(f"{kind}."): value for key, value in own.items() if key not in metadata.asked}
    _refuse_unused(model, {key: value for key, value in left.items() if key not in _DESCRIPTIVE})
    network, problems = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        config=AutoConfig.for_model(**values),
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        local_files_only=True,
    )
    astray = sorted({*problems["missing_keys"], *problems["unexpected_keys"]})
    if astray:
        raise UnavailableError(
            f"{len(astray)} weights of {file.name} (architecture {kind}) do not fit its keys, first {astray[0]}",
            _ORIGINAL,
        )
    network.save_pretrained(str(folder))


# --- tensors ----------------------------------------------------------------------------------------


def _network_without_weights(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _processor(model: Gguf, config: Any) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    values = {**config.to_dict(), "n_head": config.num_attention_heads} if model.architecture != "mamba" else {}
    return TENSOR_PROCESSORS.get(model.architecture, TensorProcessor)(config=values)


def _tensor_names(network: Any, model: Gguf) -> dict[str, str]:
    """From the names of a file's tensors to those of the model's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    name_map = get_tensor_name_map(kinds[model.architecture], network.config.num_hidden_layers)
    processor = _processor(model, network.config)
    names: dict[str, str] = {}
    for name in network.state_dict():
        stem, dot, end = name.rpartition(".")
        stem, suffix = (stem, f"{dot}{end}") if end in ("weight", "bias") else (name, "")
        own = name_map.get_name(stem) or name_map.get_name(stem.removeprefix(f"{network.base_model_prefix}."))
        if own is None:
            processor.perform_fallback_tensor_mapping(names, suffix, "", name)
        else:
            names[f"{own}{suffix}"] = name
    return names


def _float32_values(tensor: Tensor) -> Any:
    """A tensor's values in float32, in torch's order of dimensions."""
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quant_shape_to_byte_shape

    kind = GGMLQuantizationType(tensor.kind)
    raw = np.memmap(tensor.file, mode="r", dtype=np.uint8, offset=tensor.start, shape=(tensor.size,))
    try:
        return dequantize(raw.reshape(quant_shape_to_byte_shape(tensor.shape, kind)), kind)
    except NotImplementedError:
        raise UnavailableError(
            f"{tensor.name} in {tensor.file.name} is of type {kind.name}, which the package gguf cannot dequantise",
            "pip install --upgrade gguf, or use another quantisation",
        ) from None


def _state_by_name(model: Gguf, config: Any, names: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The model's weights by their names, and the file's tensors that are none of them."""
    processor = _processor(model, config)
    state: dict[str, Any] = {}
    unused = []
    for tensor in _weight_tensors(model):
        try:
            done = processor.process(
                weights=_float32_values(tensor),
                name=tensor.name,
                tensor_key_mapping=names,
                parsed_parameters={"tensors": state},
            )
        except KeyError:  # experts in a model that has none
            unused.append(tensor.name)
            continue
        if done.name is None:
            continue
        if done.name not in names:
            unused.append(tensor.name)
        else:
            state[names[done.name]] = torch.from_numpy(np.array(done.weights, dtype=np.float32))
    return state, unused


def _weight_tensors(model: Gguf) -> Iterator[Tensor]:
    for name, tensor in model.tensors.items():
        if name not in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):  # in the config
            yield tensor


def _add_absent_biases(network: Any, state: dict[str, Any]) -> None:
    """Zeros for a bias that no block of the file has: llama.cpp adds those present, the model's class needs all."""
    kinds = {re.sub(r"\.\d+\.", ".N.", name) for name in state}
    for name, tensor in network.state_dict().items():
        if name.endswith(".bias") and name not in state and re.sub(r"\.\d+\.", ".N.", name) not in kinds:
            module = network.get_submodule(name.removesuffix(".bias"))
            if isinstance(module, torch.nn.Linear):
                state[name] = torch.zeros(tensor.shape)


def _save_checkpoint(network: Any, config: Any, state: dict[str, Any], folder: Path, name: str) -> None:
    try:
        model, problems = type(network).from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:
        if (failure := system_failure(error)) is not None:
            raise failure from error
        raise UnavailableError(f"{name} cannot be converted: {first_line(error)}", "the file is damaged") from error
    missing = sorted(problems["missing_keys"])
    if missing:
        raise UnavailableError(
            f"{len(missing)} weights are missing in {name}, first {missing[0]}",
            "a half-random model is not measured: fetch the file again",
        )
    model.save_pretrained(str(folder))
