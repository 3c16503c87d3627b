"""`.gguf` files: a lossless one gives its checkpoint's numbers to 1e-5, or is refused naming what was not used."""

import json
import logging
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf as ggml
import numpy as np
import pytest
import torch
import transformers as t

import condense
from condense import files
from condense.errors import UnavailableError
from condense.models import dequantise, gguf, gguf_copies
from tests.conftest import build
from tests.models.gguf_files import add_key, keys_of, logits, tensors_of, write_gguf
from tests.models.test_bad_input import condense as command

IDS = torch.arange(1, 100)[None]
SIZES = {
    "vocab_size": 480, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128, "initializer_range": 0.2, "num_key_value_heads": 2, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
HEADED = {**SIZES, "head_dim": 8}
WIDTHS = {"attention.key_length": 8, "attention.value_length": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
SMALL = {"vocab_size": 480, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
WINDOWED = {**WIDTHS, "attention.sliding_window": 16}
QWEN35 = (
    *HEADED, "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "layer_types", "rope_parameters",
)  # fmt: skip
GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}


@dataclass(frozen=True)
class Case:
    """A checkpoint by its config, llama.cpp's name of its architecture, and the keys beside the common ones."""

    kind: str
    config: Any
    keys: dict[str, Any] = field(default_factory=dict)


def rope(kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


def named(kind: str, name: str, keys: dict[str, Any] | None = None, **options: Any) -> Case:
    config = getattr(t, f"{name}Config")(**options)
    config.architectures = [f"{name.removesuffix('Text')}ForCausalLM"]
    return Case(kind, config, keys or {})


CASES = {
    "llama": named("llama", "Llama", **SIZES),
    "llama-tied": named("llama", "Llama", **SIZES, tie_word_embeddings=True),
    "llama-biases": named("llama", "Llama", **SIZES, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": named(
        "llama", "Llama", {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16},
        **SIZES, head_dim=16,
    ),
    "llama-linear": named(
        "llama", "Llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        **SIZES, **rope("linear", factor=4.0),
    ),
    "llama-old-linear": named("llama", "Llama", {"rope.scale_linear": 4.0}, **SIZES, **rope("linear", factor=4.0)),
    "llama-yarn": named(
        "llama", "Llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
        **SIZES, **rope("yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    "mistral": named("llama", "Mistral", **SIZES, sliding_window=None),
    "qwen2": named("qwen2", "Qwen2", **SIZES),
    "qwen3": named("qwen3", "Qwen3", {"attention.key_length": 16, "attention.value_length": 16}, **SIZES, head_dim=16),
    "qwen2-moe": named(
        "qwen2moe", "Qwen2Moe", {**EXPERT_KEYS, "expert_shared_feed_forward_length": 24},
        **SIZES, **EXPERTS, shared_expert_intermediate_size=24,
    ),
    "qwen3-moe": named("qwen3moe", "Qwen3Moe", {**EXPERT_KEYS, **WIDTHS}, **HEADED, **EXPERTS, norm_topk_prob=True),
    "gemma2": named(
        "gemma2", "Gemma2", {**WINDOWED, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        **HEADED, sliding_window=16, query_pre_attn_scalar=8, final_logit_softcapping=3.0, attn_logit_softcapping=5.0,
    ),
    "gemma3": named(
        "gemma3", "Gemma3Text", {**WINDOWED, "rope.freq_base": 1e6},
        **{**HEADED, "num_hidden_layers": 7}, sliding_window=16, query_pre_attn_scalar=8,
    ),
    "gemma3-linear": named(
        "gemma3", "Gemma3Text",
        {**WINDOWED, "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        **{**HEADED, "num_hidden_layers": 7}, sliding_window=16, query_pre_attn_scalar=8,
        rope_parameters={"full_attention": GLOBAL, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "phi3": named(
        "phi3", "Phi3", {"attention.sliding_window": 20, "rope.dimension_count": 4},
        **{**SIZES, "pad_token_id": 0}, sliding_window=20, **rope(partial_rotary_factor=0.5),
    ),
    "stablelm": named(
        "stablelm", "StableLm", {"rope.dimension_count": 4, "use_parallel_residual": False},
        **SIZES, use_qkv_bias=True, **rope(partial_rotary_factor=0.5),
    ),
    "stablelm-parallel": named(
        "stablelm", "StableLm", {"rope.dimension_count": 2, "use_parallel_residual": True},
        **SIZES, use_parallel_residual=True, **rope(partial_rotary_factor=0.25),
    ),
    "starcoder2": named("starcoder2", "Starcoder2", **SIZES),
    "gpt2": Case(
        "gpt2",
        t.GPT2Config(**SMALL, n_embd=32, n_layer=3, n_head=4, n_positions=128, n_inner=48,
                     architectures=["GPT2LMHeadModel"]),
    ),
    "bloom": named("bloom", "Bloom", **SMALL, hidden_size=32, n_layer=3, n_head=4),
    "falcon": named(
        "falcon", "Falcon", {"attention.head_count_kv": 1},
        **SMALL, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    ),
    "nemotron": named("nemotron", "Nemotron", {"rope.dimension_count": 4}, **SIZES, **rope(partial_rotary_factor=0.5)),
    "mamba": named(
        "mamba", "Mamba",
        {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 8, "ssm.time_step_rank": 2,
         "ssm.dt_b_c_rms": False},
        **SMALL, hidden_size=32, num_hidden_layers=3, state_size=8,
    ),
    "lfm2": named(
        "lfm2", "Lfm2",
        {"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": 1e-5},
        **SIZES, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention", "conv"], conv_L_cache=3,
        tie_word_embeddings=True,
    ),
    "qwen3.5": named(
        "qwen35", "Qwen3_5Text",
        {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 8,
         "rope.dimension_sections": [2, 1, 1, 0], "ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.group_count": 2,
         "ssm.time_step_rank": 4, "ssm.inner_size": 32, "full_attention_interval": 4},
        **{**SIZES, "head_dim": 16, "num_hidden_layers": 4}, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, linear_conv_kernel_dim=4, full_attention_interval=4,
        **rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True),
    ),
}  # fmt: skip
CASES["qwen3.5-moe"] = named(
    "qwen35moe",
    "Qwen3_5MoeText",
    {**CASES["qwen3.5"].keys, **EXPERT_KEYS, "expert_shared_feed_forward_length": 24},
    **{
        **{key: value for key, value in CASES["qwen3.5"].config.to_dict().items() if key in QWEN35},
        **EXPERTS,
        "shared_expert_intermediate_size": 24,
    },
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def written(case: Case, file: Path, tokenizer: Any = None, **options: Any) -> tuple[Any, Path]:
    """The checkpoint of a case, and the file that llama.cpp's converter would make of it."""
    model = build(case.config)
    values = torch.linspace(-1, 1, 999)
    exact = values[values.exp().log() == values]
    with torch.no_grad():  # norms are kept as w + 1, decays as -exp: without a loss only for some numbers
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_((parameter * 1024).round() / 1024)
            elif name.endswith("linear_attn.A_log"):
                parameter.copy_(exact[torch.arange(parameter.numel()) * 7])
    keys = {**keys_of(model, case.kind), **case.keys, **options.pop("keys", {})}
    drop = options.pop("drop", ())
    tensors = {name: value for name, value in tensors_of(model, case.kind).items() if not name.endswith(drop or "\0")}
    tensors |= options.pop("tensors", {})
    return model, write_gguf(file, case.kind, tensors, keys, tokenizer, **options)


def distance(model: Any, file: Path | str) -> float:
    expected, found = logits(model, IDS), logits(condense.load(file, device="cpu").model, IDS)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_lossless_file_gives_the_numbers_of_its_checkpoint(
    name: str, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    model, file = written(CASES[name], tmp_path / "m.gguf", tokenizers["bytes"])
    assert distance(model, file) < 1e-5
    found = condense.load(file, device="cpu")
    text = "Hello 123 wörld\n  x"
    assert found.tokenizer(text)["input_ids"] == tokenizers["bytes"](text)["input_ids"]
    assert found.info.source_format == "gguf (F32)" and found.info.id == str(file) == found.model.name_or_path


# --- rotary scaling and biases ----------------------------------------------------------------------

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_case(**changes: Any) -> tuple[Case, Any]:
    """A Llama with the rope scaling of 3.1, and the tensor that llama.cpp's converter keeps of it."""
    scaling = {**LLAMA3, "rope_theta": 500_000.0, **changes}
    sizes = {**SIZES, "max_position_embeddings": 16384, "head_dim": 32}
    config = t.LlamaConfig(
        **sizes, rope_parameters={"rope_type": "llama3", **scaling}, architectures=["LlamaForCausalLM"]
    )
    model = build(config)
    plain = 1 / 500_000.0 ** (torch.arange(0, 32, 2).float() / 32)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    widths = {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}
    return Case("llama", config, {**widths, "rope.freq_base": 500_000.0}), factors


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "llama3"), ({"factor": 32.0}, "llama3"), ({"low_freq_factor": 2.0, "high_freq_factor": 3.0}, "longrope")],
)
def test_rope_freqs_are_used(changes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """All of the rope scaling of Llama 3.1 and 3.2 files is in one tensor."""
    case, factors = llama3_case(**changes)
    assert factors.max() == pytest.approx(changes.get("factor", 8.0))
    model, file = written(
        case, tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors}, keys={"context_length": 16384}
    )
    copy = gguf_copies.converted(gguf.read(file))
    config = json.loads((copy / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == kind
    found = t.AutoModelForCausalLM.from_pretrained(copy).eval()
    expected = logits(model, IDS)
    assert float((logits(found, IDS) - expected).abs().max() / expected.abs().max()) < 1e-5
    _, plain = written(case, tmp_path / "plain.gguf", keys={"context_length": 16384})  # the premise: it matters
    other = t.AutoModelForCausalLM.from_pretrained(gguf_copies.converted(gguf.read(plain))).eval()
    assert float((logits(other, IDS) - expected).abs().max() / expected.abs().max()) > 1e-3


def test_long_and_short_factors_are_used(tmp_path: Path) -> None:
    short, long = [1.0, 1.5, 2.0, 4.0], [2.0, 3.0, 5.0, 8.0]
    scaling = {
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.19,
    }
    config = t.Phi3Config(
        **{**SIZES, "pad_token_id": 0}, original_max_position_embeddings=64, **rope("longrope", **scaling),
        architectures=["Phi3ForCausalLM"],
    )  # fmt: skip
    keys = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.19, "rope.dimension_count": 8}
    tensors = {"rope_factors_short.weight": np.array(short), "rope_factors_long.weight": np.array(long)}
    model, file = written(Case("phi3", config, keys), tmp_path / "m.gguf", tensors=tensors)
    found = t.AutoModelForCausalLM.from_pretrained(gguf_copies.converted(gguf.read(file))).eval()
    for ids in (IDS[:, :40], IDS):
        expected = logits(model, ids)
        assert float((logits(found, ids) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_biases_of_queries_alone(tmp_path: Path) -> None:
    """The class has a bias at the output too; a file without it has none there."""
    case = named("llama", "Llama", **SIZES, attention_bias=True)
    model, file = written(case, tmp_path / "m.gguf", drop=("attn_output.bias",))
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.bias.zero_()
    found = t.AutoModelForCausalLM.from_pretrained(gguf_copies.converted(gguf.read(file))).eval()
    torch.testing.assert_close(logits(found, IDS), logits(model, IDS))


def test_llama_cpps_defaults(tmp_path: Path) -> None:
    """Keys that a file leaves out have llama.cpp's defaults, not those of the class in transformers."""
    case = named("qwen3", "Qwen3", **{**SIZES, "num_key_value_heads": 4}, head_dim=8, **rope())
    model = build(case.config)
    keys = keys_of(model, "qwen3")
    for key in ("rope.freq_base", "attention.head_count_kv"):
        del keys[key]
    file = write_gguf(tmp_path / "m.gguf", "qwen3", tensors_of(model, "qwen3"), keys)
    found = t.AutoModelForCausalLM.from_pretrained(gguf_copies.converted(gguf.read(file))).eval()
    torch.testing.assert_close(logits(found, IDS), logits(model, IDS))


# --- what is not used is named ----------------------------------------------------------------------


def refused(file: Path, line: str) -> UnavailableError:
    with pytest.raises(UnavailableError, match=line) as caught:
        condense.load(file, device="cpu")
    assert "\n" not in str(caught.value) and caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("blk.1.attn_q_norm.weight", (8,)),
        ("blk.0.attn_sinks.weight", (4,)),
        ("output.bias", (480,)),
        ("token_types.weight", (2, 32)),
        ("blk.2.ffn_gate_inp.weight", (4, 32)),
    ],
)
def test_a_tensor_without_a_place_is_named(tensor: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    _, file = written(CASES["llama"], tmp_path / "m.gguf", tensors={tensor: np.ones(shape)})
    assert "m.gguf" in str(refused(file, rf"1 tensors .* have no place in the model, first {tensor}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8),
        ("logit_scale", 0.125),
        ("attention.scale", 0.1),
        ("attention.causal", False),
        ("attention.sliding_window", 64),
        ("attention.clamp_kqv", 8.0),
        ("attn_logit_softcapping", 30.0),
        ("rope.scaling.yarn_beta_fast", 64.0),
        ("embedding_scale", 12.0),
        ("pooling_type", 1),
    ],
)
def test_a_key_that_is_not_used_is_named(key: str, value: Any, tmp_path: Path) -> None:
    _, file = written(CASES["llama"], tmp_path / "m.gguf", keys={key: value})
    assert f"llama.{key} = " in str(refused(file, "which is not used here"))


def test_a_key_that_says_there_is_none_is_no_obstacle(tmp_path: Path) -> None:
    keys = {"expert_count": 0, "attention.sliding_window": 0, "pooling_type": 0, "rope.scaling.type": "none"}
    model, file = written(CASES["llama"], tmp_path / "m.gguf", keys=keys)
    copy = gguf_copies.converted(gguf.read(file))
    torch.testing.assert_close(logits(t.AutoModelForCausalLM.from_pretrained(copy).eval(), IDS), logits(model, IDS))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"rope.scaling.type": "su"}, "scales its positions by 'su'"),
        ({"attention.key_length": 8, "attention.value_length": 16}, "keys and values of different widths"),
        ({"attention.head_count": [4, 2, 4]}, "another number of heads in every block"),
        ({"block_count": 4}, "says 4 blocks, it holds 3"),
    ],
)
def test_what_the_class_cannot_do_is_named(keys: dict[str, Any], line: str, tmp_path: Path) -> None:
    refused(written(CASES["llama"], tmp_path / "m.gguf", keys=keys)[1], line)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    _, file = written(CASES["llama"], tmp_path / "m.gguf", drop=("blk.1.ffn_up.weight",))
    refused(file, r"1 weights are missing in m.gguf, first model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"general.type": "adapter"}, "is of type adapter, not a language model"),
        ({"general.type": "mmproj"}, "is of type mmproj"),
        ({"general.architecture": "clip"}, "is a projector of images"),
        ({"general.architecture": "whisper"}, "is of architecture whisper, whose conversion is not verified"),
    ],
)
def test_what_is_no_language_model_is_named(metadata: dict[str, str], line: str, tmp_path: Path) -> None:
    kind = metadata.get("general.architecture", "llama")

    def more(writer: Any) -> None:
        if "general.type" in metadata:
            add_key(writer, "general.type", metadata["general.type"])

    file = write_gguf(tmp_path / "m.gguf", kind, {"token_embd.weight": np.ones((4, 4))}, {}, more=more)
    refused(file, line)


def test_falcon_with_several_heads_of_keys(tmp_path: Path) -> None:
    _, file = written(CASES["falcon"], tmp_path / "m.gguf", keys={"attention.head_count_kv": 8})
    refused(file, "a Falcon with several heads of keys")


# --- types of weights -------------------------------------------------------------------------------

KINDS = {kind.name: kind for kind in ggml.GGMLQuantizationType}
NOT_READ = ("Q8_1", "Q8_K", "Q1_0", "I8", "I16", "I32", "I64", "F64")
READ = [name for name in KINDS if name not in NOT_READ]


def random_blocks(kind: Any, shape: tuple[int, ...]) -> Any:
    """Bytes of a quantised tensor whose values are finite."""
    raw = np.random.default_rng(0).integers(0, 64, ggml.quant_shape_to_byte_shape(shape, kind), dtype=np.uint8)
    return raw


@pytest.mark.parametrize("name", READ)
def test_every_type_is_read_and_named(name: str, tmp_path: Path) -> None:
    """Also the IQ types, whose file type was "unknown"."""
    kind, wide = KINDS[name], {**SIZES, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    case = named("llama", "Llama", **wide)
    raw = random_blocks(kind, (256, 256))

    def quantise(tensor: str, value: Any) -> Any:
        return (kind, raw) if tensor.endswith("ffn_down.weight") else None

    _, file = written(case, tmp_path / "m.gguf", quantise=quantise)
    model = gguf.read(file)
    held = model.tensors["blk.0.ffn_down.weight"]
    assert held.size == raw.nbytes and held.shape == (256, 256)
    expected = ggml.dequantize(raw, kind)
    copy = gguf_copies.converted(model)
    found = t.AutoModelForCausalLM.from_pretrained(copy)
    np.testing.assert_array_equal(found.model.layers[0].mlp.down_proj.weight.detach().numpy(), expected)


@pytest.mark.parametrize("kind", [f for f in ggml.LlamaFileType if f.name != "GUESSED"])
def test_file_types_have_their_names(kind: Any, tmp_path: Path) -> None:
    tensors = {"token_embd.weight": np.ones((4, 4))}
    file = write_gguf(tmp_path / "m.gguf", "llama", tensors, {}, quantise=lambda name, value: None,
                      more=lambda writer: writer.add_file_type(int(kind)))  # fmt: skip
    assert gguf.quantisation(gguf.read(file)) == kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")


@pytest.mark.parametrize("stated", [None, 999, 1024])
def test_a_file_type_that_is_not_stated_is_that_of_most_weights(stated: int | None, tmp_path: Path) -> None:
    tensors = {"token_embd.weight": np.ones((4, 32)), "norm.weight": np.ones(8)}
    file = write_gguf(
        tmp_path / "m.gguf", "llama", tensors, {},
        quantise=lambda name, value: KINDS["Q8_0"] if name == "token_embd.weight" else None,
        more=lambda writer: writer.add_file_type(stated) if stated is not None else None,
    )  # fmt: skip
    assert gguf.quantisation(gguf.read(file)) == "Q8_0"


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("lost", [1, 7])
def test_a_truncated_file_is_known_for_every_type(name: str, lost: int, tmp_path: Path) -> None:
    kind = KINDS[name]
    sizes = ggml.GGML_QUANT_SIZES[kind]
    raw = np.zeros((2, sizes[1] * 2), dtype=np.uint8)
    file = write_gguf(tmp_path / "m.gguf", "llama", {"a": raw}, {}, quantise=lambda key, value: (kind, value))
    size = gguf.read(file).tensors["a"].size + gguf.read(file).tensors["a"].start
    assert size <= file.stat().st_size
    os.truncate(file, size - lost)
    with pytest.raises(UnavailableError, match="m.gguf is truncated or not GGUF"):
        gguf.read(file)


def with_type(file: Path, tensor: str, kind: int) -> Path:
    """Give a tensor another ggml type in the header of a file."""
    data = bytearray(file.read_bytes())
    at = data.index(tensor.encode()) + len(tensor)
    (dimensions,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at + 4 + 8 * dimensions, kind)
    file.write_bytes(data)
    return file


def test_a_type_that_nobody_knows_is_no_damage(tmp_path: Path) -> None:
    _, file = written(CASES["llama"], tmp_path / "m.gguf")
    refused(with_type(file, "blk.0.ffn_up.weight", 36), r"blk.0.ffn_up.weight in m.gguf is of a type that .* \(36\)")


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path) -> None:
    wide = {**SIZES, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    kind = KINDS["Q1_0"]

    def quantise(tensor: str, value: Any) -> Any:
        return (kind, random_blocks(kind, (256, 256))) if tensor.endswith("ffn_down.weight") else None

    _, file = written(named("llama", "Llama", **wide), tmp_path / "m.gguf", quantise=quantise)
    refused(file, "blk.0.ffn_down.weight in m.gguf is of type Q1_0, which the package gguf cannot dequantise")


# --- headers ----------------------------------------------------------------------------------------


def test_another_byte_order_and_another_version_are_named(tmp_path: Path) -> None:
    _, file = written(CASES["llama"], tmp_path / "m.gguf")
    data = file.read_bytes()
    file.write_bytes(data[:4] + struct.pack(">I", 3) + data[8:])
    refused(file, "m.gguf is big-endian")
    file.write_bytes(data[:4] + struct.pack("<I", 1) + data[8:])
    refused(file, "m.gguf is of GGUF version 1")


def test_headers_that_lie_are_refused_at_once(tmp_path: Path) -> None:
    """Counts beyond the file, nested arrays, texts without an end: milliseconds, and no memory."""
    key = struct.pack("<Q", 1) + b"a"
    bodies = [
        struct.pack("<QQ", 2**60, 0),
        struct.pack("<QQ", 0, 2**60) + key,
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62) + b"a",
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 0, 2**40),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, 5_000_000),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
        struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 77),
        struct.pack("<QQ", 1, 0) + key + struct.pack("<I", 4_000_000_000),
    ]
    for body in bodies:
        file = tmp_path / "m.gguf"
        file.write_bytes(b"GGUF" + struct.pack("<I", 3) + body + b"\0" * 64)
        with pytest.raises(UnavailableError, match="m.gguf is truncated or not GGUF"):
            gguf.read(file)


@pytest.mark.parametrize("seed", range(40))
def test_mutated_headers_are_one_line(seed: int, tmp_path: Path) -> None:
    _, file = written(CASES["gpt2"], tmp_path / "m.gguf")
    data = bytearray(file.read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(4, 1500, 6):
        data[place] = generator.integers(0, 256)
    file.write_bytes(data)
    try:
        condense.load(file, device="cpu")
    except UnavailableError as error:
        assert "\n" not in str(error)


# --- split files ------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, tokenizers: dict[str, Any]) -> tuple[Any, list[Path]]:
    """A Llama in three parts, the first of which holds the keys and no tensor, as llama-gguf-split may write."""
    case = CASES["llama"]
    model = build(case.config)
    tensors = list(tensors_of(model, "llama").items())
    middle = len(tensors) // 2
    shares = [{}, dict(tensors[:middle]), dict(tensors[middle:])]
    names = [tmp_path / f"model-Q-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, (file, share) in enumerate(zip(names, shares, strict=True)):
        write_gguf(file, "llama", share, keys_of(model, "llama"), tokenizers["bytes"], split=(number, 3, len(tensors)))
    return model, names


def test_a_split_file_is_read_from_any_part(parts: tuple[Any, list[Path]]) -> None:
    model, names = parts
    hashes = set()
    for file in names:
        assert distance(model, file) < 1e-5
        found = condense.load(file, device="cpu")
        hashes.add(found.info.weights_sha256)
        assert found.info.source_format == "gguf (F32)" and len(found.tokenizer) == 480
    assert hashes == {files.sha256_of_files(names)} and len(gguf_copies.copies()) == 1


def test_a_missing_part_is_named(parts: tuple[Any, list[Path]], tmp_path: Path) -> None:
    _, names = parts
    names[2].unlink()
    for file in names[:2]:
        refused(file, "model-Q-00003-of-00003.gguf, another part of .*, is missing")
    shutil.copy(names[1], tmp_path / "renamed.gguf")
    assert "llama-gguf-split --merge" in refused(tmp_path / "renamed.gguf", "is a part of 3").hint
    shutil.copy(names[1], names[2])
    refused(names[0], "parts of .* hold 15 tensors, not 30")


# --- tokenizers -------------------------------------------------------------------------------------


def test_special_tokens_that_are_not_stated_are_llama_cpps(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    """By tokenizer.ggml.model: token 11 for gpt2, 1 and 2 for llama."""
    model = build(CASES["llama"].config)

    def more(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        content = json.loads(tokenizers["bytes"].backend_tokenizer.to_str())
        vocabulary = tokenizers["bytes"].get_vocab()
        writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])

    file = write_gguf(tmp_path / "m.gguf", "llama", tensors_of(model, "llama"), keys_of(model, "llama"), more=more)
    found = condense.load(file, device="cpu")
    assert found.tokenizer.bos_token_id == found.tokenizer.eos_token_id == 11
    assert found.model.config.bos_token_id == found.model.config.eos_token_id == 11
    assert found.tokenizer("a b")["input_ids"][0] != 11  # and no BOS in front


@pytest.mark.parametrize(
    ("split", "stated", "begins"),
    [("llama-bpe", None, True), ("tekken", None, True), ("gpt-2", None, False), ("llama-bpe", False, False),
     ("gpt-2", True, True)],
)  # fmt: skip
def test_whether_a_bos_comes_first(
    split: str, stated: bool | None, begins: bool, tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    model, tokenizer = build(CASES["llama"].config), tokenizers["bos"]

    def more(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = tokenizer.get_vocab()
        writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        if stated is not None:
            writer.add_add_bos_token(stated)

    file = write_gguf(tmp_path / "m.gguf", "llama", tensors_of(model, "llama"), keys_of(model, "llama"), more=more)
    ids = condense.load(file, device="cpu").tokenizer("abc")["input_ids"]
    assert (ids[0] == 0) is begins and ids[-1] != 1


def test_digits_stand_alone_where_llama_cpp_splits_them(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    """SmolLM's and StarCoder's rule, which transformers takes for GPT-2's."""
    from tokenizers import Tokenizer, pre_tokenizers

    expected = Tokenizer.from_str(tokenizers["bytes"].backend_tokenizer.to_str())
    expected.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = build(CASES["llama"].config)
    file = write_gguf(
        tmp_path / "m.gguf", "llama", tensors_of(model, "llama"), keys_of(model, "llama"), tokenizers["bytes"],
        more=lambda writer: writer.add_tokenizer_pre("smollm"),
    )  # fmt: skip
    found = condense.load(file, device="cpu").tokenizer
    for text in ("a 12 345", "1990", "x1y22"):
        assert found(text)["input_ids"] == expected.encode(text).ids


def test_a_rule_that_is_not_known_leaves_the_model_without_a_tokenizer(
    tmp_path: Path, tokenizers: dict[str, Any], tiny: Callable[[str], Path]
) -> None:
    model = build(CASES["llama"].config)
    file = write_gguf(
        tmp_path / "m.gguf", "llama", tensors_of(model, "llama"), keys_of(model, "llama"), tokenizers["bytes"],
        more=lambda writer: writer.add_tokenizer_pre("telepathy"),
    )  # fmt: skip
    assert "--tokenizer" in refused(file, r"splits text by a rule that is not known here \(telepathy\)").hint
    assert condense.load(file, device="cpu", tokenizer=str(tiny("gpt2"))).info.source_format == "gguf (F32)"
    _, bare = written(CASES["llama"], tmp_path / "bare.gguf")
    assert "--tokenizer" in refused(bare, "bare.gguf holds no tokenizer").hint


def sentencepiece() -> tuple[Any, list[str], list[float], list[int]]:
    """A small tokenizer as Llama 2's: pieces with ▁, bytes where nothing fits; and its content as a .gguf holds it."""
    from transformers import LlamaTokenizer

    words = ["▁the", "▁cat", "▁a", "▁t", "he", "at", "▁c", "▁th", "▁ca"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "t"), ("▁", "c"), ("▁c", "at"), ("▁", "a")]
    specials, raw = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    merged = list(dict.fromkeys([left + right for left, right in merges] + words))
    letters = list("▁abcdefghijklmnopqrstuvwxyz")
    tokens = [*specials, *raw, *merged, *letters]
    scores = [0.0] * (3 + 256) + [-float(rank) for rank in range(len(merged))] + [-1e6 - i for i in range(len(letters))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(letters))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    from transformers.tokenization_utils_base import generate_merges

    made = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=made, add_bos_token=True, add_eos_token=False)
    return tokenizer, tokens, scores, kinds


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_vocabulary(prefixed: bool, tmp_path: Path) -> None:
    tokenizer, tokens, scores, kinds = sentencepiece()
    config = t.LlamaConfig(**{**SIZES, "vocab_size": len(tokens)}, architectures=["LlamaForCausalLM"])
    model = build(config)

    def more(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        if not prefixed:
            writer.add_add_space_prefix(False)

    file = write_gguf(tmp_path / "m.gguf", "llama", tensors_of(model, "llama"), keys_of(model, "llama"), more=more)
    found = condense.load(file, device="cpu").tokenizer
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")  # llama.cpp's 1, 2 and 0
    for text in ("the cat", "a the  cat é"):
        ids = found(text)["input_ids"]
        assert ids[0] == 1 and ids[-1] != 2
        if prefixed:
            assert ids == tokenizer(text)["input_ids"]
        else:
            assert found.convert_ids_to_tokens(ids)[1] == text[0]


# --- copies -----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, tokenizers: dict[str, Any]) -> Path:
    return written(CASES["llama"], tmp_path / "tiny.gguf", tokenizers["bytes"])[1]


def weights_of(copy: Path) -> Path:
    return copy / "model.safetensors"


def test_a_copy_is_used_again_and_checked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = gguf_copies.converted(gguf.read(file))
    before = weights_of(copy).stat().st_mtime_ns
    assert gguf_copies.converted(gguf.read(file)) == copy and weights_of(copy).stat().st_mtime_ns == before
    (found,) = gguf_copies.copies()
    assert Path(found.path) == copy and found.source == "tiny.gguf" and found.size > weights_of(copy).stat().st_size


def zeroed(copy: Path) -> None:
    data = bytearray(weights_of(copy).read_bytes())
    data[-5000:] = bytes(5000)
    weights_of(copy).write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "zeroed pages": zeroed,
    "truncated": lambda copy: os.truncate(weights_of(copy), 1000),
    "a file is gone": lambda copy: (copy / "config.json").unlink(),
    "another config": lambda copy: (copy / "config.json").write_text("{}"),
    "a file more": lambda copy: (copy / "model.safetensors.index.json").write_text("{}"),
    "no manifest": lambda copy: (copy / "condense-copy.json").unlink(),
    "half a manifest": lambda copy: (copy / "condense-copy.json").write_text('{"files": '),
    "another manifest": lambda copy: (copy / "condense-copy.json").write_text('{"files": {"config.json": 5}}'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_copy_is_made_again(kind: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = gguf.read(file)
    copy = gguf_copies.converted(model)
    before = weights_of(copy).read_bytes()
    DAMAGE[kind](copy)
    assert gguf_copies.already_converted(model) is None
    with caplog.at_level(logging.WARNING, "condense"):
        assert gguf_copies.converted(model) == copy
    assert "is damaged: it is made again" in caplog.text
    assert weights_of(copy).read_bytes() == before and gguf_copies.already_converted(model) == copy


def test_a_copy_can_be_read_by_others(file: Path) -> None:
    old = os.umask(0o022)
    try:
        copy = gguf_copies.converted(gguf.read(file))
    finally:
        os.umask(old)
    assert copy.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in copy.iterdir()} == {0o644}


def test_leftovers_and_old_copies_are_removed(file: Path, tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    copy = gguf_copies.converted(gguf.read(file))
    left = copy.parent / ".converting-abc.tmp"
    left.mkdir()
    for path, days in ((left, 1), (copy, 61)):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - days * 86400))
    _, other = written(CASES["llama-tied"], tmp_path / "other.gguf", tokenizers["bytes"])
    kept = gguf_copies.converted(gguf.read(other))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert [found.source for found in gguf_copies.copies()] == ["other.gguf"]


def test_too_many_copies_are_pruned_by_size(
    file: Path, tmp_path: Path, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_copies, "_KEPT_BYTES", 10)
    first = gguf_copies.converted(gguf.read(file))
    _, other = written(CASES["llama-tied"], tmp_path / "other.gguf", tokenizers["bytes"])
    second = gguf_copies.converted(gguf.read(other))
    assert not first.exists() and second.exists()


def test_copies_are_shown(file: Path) -> None:
    planned = command("analyze", file, "--dry-run")
    size = files.size_in_words(4 * gguf.read(file).parameters)
    told = " ".join(planned.stdout.split())
    assert planned.exit_code == 0 and f"converted once: {size} in {files.cache_root() / 'gguf'}" in told
    copy = gguf_copies.converted(gguf.read(file))
    assert "converted once" not in command("analyze", file, "--dry-run").stdout
    shown = "".join(command("doctor").stdout.split())
    assert "converted.gguf" in shown and str(copy) in shown and "tiny.gguf" in shown
    record = files.cache_root().parent / "doctor.json"
    assert command("doctor", "--json", record).exit_code == 0
    assert json.loads(record.read_text())["copies"] == [
        {"path": str(copy), "source": "tiny.gguf", "size": gguf_copies.copies()[0].size}
    ]


def test_an_adapter_names_the_file_and_not_the_copy(file: Path, tmp_path: Path) -> None:
    import peft

    model = condense.load(file, device="cpu").model
    adapter = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(file)
    assert "cache" not in (tmp_path / "adapter" / "README.md").read_text()
    found = condense.load(tmp_path / "adapter", device="cpu")
    assert found.info.source_format == "adapter"
    assert condense.load(file, device="cpu").info.weights_sha256 == files.sha256_of_files([file])


def test_conversion_needs_the_package_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    assert "condense-lm[gguf]" in refused(file, "cannot read .gguf files").hint


def test_llama3_factors_are_those_of_transformers() -> None:
    _, factors = llama3_case()
    own = dequantise._llama3_factors(LLAMA3, 500_000.0, 32)
    np.testing.assert_allclose(own, factors, rtol=1e-5)
