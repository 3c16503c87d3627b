"""Every architecture from disk: sites against `output_hidden_states`, heads, towers, adapters, quantisation."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

import condense
from condense.errors import UnavailableError
from tests.conftest import POSITIONS, VOCABULARY, build, write_checkpoint

TEXTS, LENGTH = 4, 40
MAIN = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = {**MAIN, "intermediate_size": 48, "max_position_embeddings": POSITIONS, "initializer_range": 0.2}
GROUPED = {**WIDE, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
HEADED = {**GROUPED, "head_dim": 8}
SMALL = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
OPT = {**WIDE, "ffn_dim": 48, "init_std": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.2,
    "max_position_embeddings": POSITIONS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "decoder_start_token_id": 3, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "d_kv": 8, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One architecture: its class and config, and what follows the last block of each stack (a norm; None: nothing).

    `shifted`: its hidden states begin with block 1 (Mamba). `quality`: causal, masked, or the reason of the null.
    """

    model: str
    config: str
    options: dict[str, Any]
    norms: tuple[str | None, ...]
    tokenizer: str = "bytes"
    stacks: tuple[tuple[str, int], ...] = (("decoder", 3),)
    quality: str = "causal"
    shifted: bool = False
    parts: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)


ENCODER = {"tokenizer": "words", "stacks": (("encoder", 3),), "quality": "masked"}
TWO = {"stacks": (("encoder", 3), ("decoder", 2)), "quality": "without a source and a target"}
BERT = {**WIDE, "pad_token_id": 0}

CASES = {
    "gpt2": Case("GPT2LMHeadModel", "GPT2Config", {**SMALL, "n_positions": POSITIONS}, ("transformer.ln_f",)),
    "gpt-j": Case("GPTJForCausalLM", "GPTJConfig", {**SMALL, "n_positions": POSITIONS, "rotary_dim": 4},
                  ("transformer.ln_f",)),
    "llama": Case("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "eos_token_id": 1}, ("model.norm",), "bos"),
    "mistral": Case("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 16}, ("model.norm",), "bos"),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config", {**GROUPED, "tie_word_embeddings": True}, ("model.norm",)),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", HEADED, ("model.norm",)),
    "gemma2": Case("Gemma2ForCausalLM", "Gemma2Config", {**HEADED, "final_logit_softcapping": 3.0},
                   ("model.norm",), "bos"),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", {**HEADED, "sliding_window": 16}, ("model.norm",), "bos"),
    "phi3": Case("Phi3ForCausalLM", "Phi3Config", {**GROUPED, "pad_token_id": 0}, ("model.norm",)),
    "olmo2": Case("Olmo2ForCausalLM", "Olmo2Config", GROUPED, ("model.norm",)),
    "granite": Case("GraniteForCausalLM", "GraniteConfig", {**GROUPED, "logits_scaling": 4.0}, ("model.norm",)),
    "gpt-neox": Case("GPTNeoXForCausalLM", "GPTNeoXConfig", {**WIDE, "bos_token_id": 0, "eos_token_id": 0},
                     ("gpt_neox.final_layer_norm",)),
    "opt": Case("OPTForCausalLM", "OPTConfig", OPT, ("model.decoder.final_layer_norm",)),
    "opt-350m": Case("OPTForCausalLM", "OPTConfig",
                     {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, ("model.decoder.project_out",)),
    "bloom": Case("BloomForCausalLM", "BloomConfig",
                  {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2,
                   "bos_token_id": 0, "eos_token_id": 0}, ("transformer.ln_f",)),
    "falcon": Case("FalconForCausalLM", "FalconConfig", {**MAIN, "bos_token_id": 0, "eos_token_id": 0,
                                                         "initializer_range": 0.2}, ("transformer.ln_f",)),
    "mixtral": Case("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, ("model.norm",)),
    "qwen3-moe": Case("Qwen3MoeForCausalLM", "Qwen3MoeConfig",
                      {**HEADED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
                      ("model.norm",)),
    "mamba": Case("MambaForCausalLM", "MambaConfig",
                  {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8,
                   "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}, ("backbone.norm_f",),
                  shifted=True),
    "bert": Case("BertForMaskedLM", "BertConfig", BERT, (None,), **ENCODER),
    "roberta": Case("RobertaForMaskedLM", "RobertaConfig", {**BERT, "pad_token_id": 1}, (None,), **ENCODER),
    "modernbert": Case("ModernBertForMaskedLM", "ModernBertConfig",
                       {**BERT, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
                       ("model.final_norm",), **ENCODER),
    "albert": Case("AlbertForMaskedLM", "AlbertConfig",
                   {**BERT, "embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2}, (None,),
                   **{**ENCODER, "stacks": (("encoder", 4),)}),
    "distilbert": Case("DistilBertForMaskedLM", "DistilBertConfig",
                       {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48,
                        "max_position_embeddings": POSITIONS, "initializer_range": 0.2, "pad_token_id": 0}, (None,),
                       **ENCODER),
    "bert-classifier": Case("BertForSequenceClassification", "BertConfig", BERT, (None,), "words",
                            (("encoder", 3),), "no language-modelling head"),
    "llama-classifier": Case("LlamaForSequenceClassification", "LlamaConfig", {**GROUPED, "pad_token_id": 0},
                             ("model.norm",), "bos", quality="no language-modelling head"),
    "t5": Case("T5ForConditionalGeneration", "T5Config", T5, ("encoder.final_layer_norm", "decoder.final_layer_norm"),
               **TWO),
    "bart": Case("BartForConditionalGeneration", "BartConfig", BART, (None, None), "words", **TWO),
    "bart-decoder": Case("BartForCausalLM", "BartConfig", BART, (None,), "words", (("decoder", 2),)),
    "t5-encoder": Case("T5EncoderModel", "T5Config", T5, ("encoder.final_layer_norm",), stacks=(("encoder", 3),),
                       quality="no language-modelling head"),
    "gemma3-vision": Case("Gemma3ForConditionalGeneration", "Gemma3Config",
                          {"mm_tokens_per_image": 4, "image_token_index": 3, "text_config": HEADED,
                           "vision_config": VISION}, ("model.language_model.norm",), "bos"),
    "llava": Case("LlavaForConditionalGeneration", "LlavaConfig", {"image_token_index": 3},
                  ("model.language_model.norm",), "bos",
                  parts={"text_config": ("LlamaConfig", GROUPED), "vision_config": ("CLIPVisionConfig", VISION)}),
    "qwen2.5-vl": Case("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig",
                       {"text_config": {**GROUPED, "rope_parameters":
                                        {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
                        "vision_config": {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32,
                                          "out_hidden_size": 32}}, ("model.language_model.norm",)),
}  # fmt: skip


def config_of(case: Case) -> Any:
    parts = {key: getattr(transformers, kind)(**options) for key, (kind, options) in case.parts.items()}
    return getattr(transformers, case.config)(**case.options, **parts, architectures=[case.model])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Any]) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("zoo")

    def folder(name: str) -> Path:
        case = CASES[name]
        if not (root / name).exists():
            write_checkpoint(root / name, config_of(case), tokenizers[case.tokenizer])
        return root / name

    return folder


def measured(checkpoint: Any, texts: int = TEXTS) -> tuple[Any, Any]:
    windows = condense.windows(checkpoint.tokenizer, num_texts=texts, max_length=LENGTH, positions=checkpoint.positions)
    return windows, condense.analyze(checkpoint, windows, spectral_tokens=16)


# --- the reference: states from transformers itself, numbers from numpy ------------------------------


def reference_states(model: Any, case: Case, ids: torch.Tensor) -> dict[str, list[np.ndarray]]:
    """Per stack embedding, blocks and output of one text as `output_hidden_states` and the final norm have them."""
    raw: dict[str, Any] = {}
    hooks = [
        model.get_submodule(norm).register_forward_pre_hook(lambda _, args, norm=norm: raw.update({norm: args[0]}))
        for norm in case.norms
        if norm
    ]
    more = {}
    if len(case.stacks) == 2:
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        more = {"decoder_input_ids": torch.cat([start, ids[:, :-1]], dim=1)}
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True, **more)
    for hook in hooks:
        hook.remove()
    states = {}
    for (name, blocks), norm in zip(case.stacks, case.norms, strict=True):
        told = list(output[f"{name}_hidden_states" if len(case.stacks) == 2 else "hidden_states"])
        assert len(told) == blocks + 1
        if case.shifted:
            embedding, inner = model.get_input_embeddings()(ids), told[:-1]
            torch.testing.assert_close(raw[norm], inner[-1])
        else:
            embedding, inner = told[0], [*told[1:-1], raw[norm] if norm else told[-1]]
        if norm:  # the last one told is the normed one, and the norm changes it
            assert told[-1].shape != inner[-1].shape or not torch.allclose(told[-1], inner[-1], atol=1e-3)
        states[name] = [state[0].detach().double().numpy() for state in (embedding, *inner, told[-1])]
    return states


def ordinary(special: list[bool], stack: str, case: Case) -> list[int]:
    """Positions but the first and those of special tokens; a second stack reads the tokens one place later."""
    later = 1 if stack == "decoder" and len(case.stacks) == 2 else 0
    return [place for place in range(1, len(special)) if place - later > -1 and not special[place - later]]


def mean_cosine(states: np.ndarray) -> float:
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    cosines = units @ units.T
    return float(cosines[np.triu_indices(len(units), 1)].mean())


def reference_loss(model: Any, ids: torch.Tensor, special: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
    losses = functional.cross_entropy(logits, ids[1:], reduction="none")
    return float(losses[~special[1:]].mean())


@pytest.mark.parametrize("name", CASES)
def test_sites_and_quality(name: str, folder_of: Callable[[str], Path]) -> None:
    case = CASES[name]
    checkpoint = condense.load(folder_of(name), device="cpu")
    windows, diagnosis = measured(checkpoint)
    assert checkpoint.info.architecture == case.model
    assert type(checkpoint.model).__name__ == case.model
    assert checkpoint.info.blocks == sum(blocks for _, blocks in case.stacks)
    assert checkpoint.info.hidden_size == 32
    expected_sites = [
        (stack, site, index)
        for stack, blocks in case.stacks
        for site, index in [("embedding", 0), *(("block", i) for i in range(1, blocks + 1)), ("output", blocks)]
    ]
    assert [(site.stack, site.site, site.index) for site in diagnosis.sites] == expected_sites

    model = getattr(transformers, case.model).from_pretrained(folder_of(name), dtype=torch.float32).eval()
    for text in range(len(windows)):
        states = reference_states(model, case, windows.ids[text : text + 1])
        kept = {stack: ordinary(windows.special[text].tolist(), stack, case) for stack, _ in case.stacks}
        flat = [state[kept[stack]] for stack, _ in case.stacks for state in states[stack]]
        for site, state in zip(diagnosis.sites, flat, strict=True):
            spread = float(np.var(state, axis=0, ddof=1).mean())
            where = f"{name} {site.stack} {site.label}"
            assert site.metrics["mean_cosine"].per_text[text] == pytest.approx(mean_cosine(state), abs=2e-6), where
            assert site.metrics["total_variance"].per_text[text] == pytest.approx(spread, rel=1e-4), where
    check_quality(case, model, windows, diagnosis)
    check_stacks(case, diagnosis)


def check_quality(case: Case, model: Any, windows: Any, diagnosis: Any) -> None:
    quality = diagnosis.quality
    if case.quality == "causal":
        losses = [reference_loss(model, windows.ids[i], windows.special[i]) for i in range(len(windows))]
        assert list(quality.loss.per_text) == pytest.approx(losses, rel=1e-5)
        assert quality.bits_per_byte.value > 0
        assert quality.label == "next-token loss"
    elif case.quality == "masked":
        assert quality.loss.value > 0
        assert "15 %" in quality.label
        assert quality.bits_per_byte.value is None and quality.bits_per_byte.reason
    else:
        assert quality.loss.value is None and quality.perplexity.value is None and quality.bits_per_byte.value is None
        assert case.quality in quality.loss.reason


def check_stacks(case: Case, diagnosis: Any) -> None:
    assert diagnosis.verdict.level in ("ok", "watch", "condensed", "severe")
    assert len(diagnosis.paper.mean_cosine) == case.stacks[-1][1] + 1
    assert list(diagnosis.stacks) == [name for name, _ in case.stacks[:-1]]
    for name, blocks in case.stacks[:-1]:
        summary = diagnosis.stacks[name]
        assert summary.verdict.level in ("ok", "watch", "condensed", "severe")
        assert summary.verdict.findings
        assert summary.deep["mean_cosine"].value is not None
        assert len(summary.paper.mean_cosine) == blocks + 1


# --- heads, poolers, extra layers -------------------------------------------------------------------


@pytest.fixture
def altered(folder_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a zoo checkpoint with its weights or its config changed."""

    def change(name: str, weights: Callable[[dict[str, Any]], dict[str, Any]] | None = None, **config: Any) -> Path:
        folder = Path(shutil.copytree(folder_of(name), tmp_path / name))
        if weights:
            tensors = {
                key: value.contiguous() for key, value in weights(load_file(folder / "model.safetensors")).items()
            }
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, **config}))
        return folder

    return change


def without(*parts: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {key: value for key, value in weights.items() if not any(part in key for part in parts)}


def geometry_of(folder: Path) -> tuple[Any, list[tuple[float, ...]]]:
    _, diagnosis = measured(condense.load(folder, device="cpu"))
    return diagnosis, [site.metrics["mean_cosine"].per_text for site in diagnosis.sites]


def loss_of(folder: Path) -> float:
    return geometry_of(folder)[0].quality.loss.value


@pytest.mark.parametrize(
    ("name", "head", "first"),
    [
        ("bert", "cls.", "cls.predictions.bias"),
        ("llama", "lm_head", "lm_head.weight"),
        ("modernbert", "head", "decoder.bias"),
        ("roberta", "lm_head", "lm_head.bias"),
    ],
)
def test_a_head_without_weights_is_dropped(
    altered: Callable[..., Path], folder_of: Callable[[str], Path], name: str, head: str, first: str
) -> None:
    dropped = (head, "decoder.bias") if name == "modernbert" else (head,)
    diagnosis, cosines = geometry_of(altered(name, without(*dropped)))
    assert diagnosis.quality.loss.value is None and diagnosis.quality.bits_per_byte.value is None
    assert diagnosis.quality.loss.reason == f"the checkpoint holds no weights for its head ({first})"
    assert cosines == geometry_of(folder_of(name))[1]


def test_names_without_the_base_prefix(altered: Callable[..., Path], folder_of: Callable[[str], Path]) -> None:
    bare = altered("gpt2", lambda weights: {key.removeprefix("transformer."): v for key, v in weights.items()})
    assert loss_of(bare) == loss_of(folder_of("gpt2"))


@pytest.mark.parametrize("gone", [False, True])
def test_poolers_are_ignored(tmp_path: Path, tokenizers: dict[str, Any], gone: bool) -> None:
    config = transformers.BertConfig(**BERT, architectures=["BertModel"])
    folder = write_checkpoint(tmp_path / "bert", config, tokenizers["words"])
    if gone:
        kept = without("pooler")(load_file(folder / "model.safetensors"))
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    diagnosis, _ = geometry_of(folder)
    assert diagnosis.quality.loss.reason == "the model has no language-modelling head"
    assert diagnosis.deep["mean_cosine"].value is not None


@pytest.mark.parametrize("gone", [False, True])
def test_pretraining_classes(tmp_path: Path, tokenizers: dict[str, Any], gone: bool) -> None:
    config = transformers.BertConfig(**BERT, architectures=["BertForPreTraining"])
    folder = write_checkpoint(tmp_path / "bert", config, tokenizers["words"])
    if gone:  # next-sentence weights do not matter to the pseudo-loss
        kept = without("seq_relationship")(load_file(folder / "model.safetensors"))
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert loss_of(folder) > 0


def test_a_discriminator_has_no_language_modelling_head(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    config = transformers.ElectraConfig(**BERT, embedding_size=16, architectures=["ElectraForPreTraining"])
    diagnosis, _ = geometry_of(write_checkpoint(tmp_path / "electra", config, tokenizers["words"]))
    assert diagnosis.quality.loss.reason == "the model has no language-modelling head"


def test_a_class_that_is_not_known_leaves_the_base_model(altered: Callable[..., Path]) -> None:
    for architectures in (None, ["TheirOwnModel"]):
        diagnosis, _ = geometry_of(altered("llama", architectures=architectures))
        assert diagnosis.model.architecture == "LlamaModel"
        assert "names no class with a head" in diagnosis.quality.loss.reason
        shutil.rmtree(Path(diagnosis.model.id))


def one_layer_more(weights: dict[str, Any]) -> dict[str, Any]:
    last = {
        key.replace("layers.2.", "layers.3."): value.clone() for key, value in weights.items() if "layers.2." in key
    }
    return {**weights, **last}


def prediction_layer(weights: dict[str, Any]) -> dict[str, Any]:
    own = {"eh_proj": torch.zeros(32, 64), "enorm": torch.ones(32), "hnorm": torch.ones(32)}
    return {**one_layer_more(weights), **{f"model.layers.3.{key}.weight": value for key, value in own.items()}}


@pytest.mark.parametrize(
    "more",
    [
        lambda weights: {**weights, "mtp.fc.weight": torch.zeros(32, 64), "mtp.layers.0.norm.weight": torch.ones(32)},
        prediction_layer,
        lambda weights: {**weights, "model.rotary_emb.inv_freq": torch.zeros(4)},
    ],
    ids=["mtp", "layer-behind-the-last", "old-buffer"],
)  # fmt: skip
def test_extra_prediction_layers_are_ignored(
    altered: Callable[..., Path], folder_of: Callable[[str], Path], more: Callable[[Any], Any]
) -> None:
    assert loss_of(altered("qwen3", more, num_nextn_predict_layers=1)) == loss_of(folder_of("qwen3"))


def test_deepseek_v3_with_its_prediction_layer(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    config = transformers.DeepseekV3Config(
        **WIDE, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8, num_key_value_heads=4,
        first_k_dense_replace=1, bos_token_id=0, eos_token_id=0, architectures=["DeepseekV3ForCausalLM"],
    )  # fmt: skip
    folder = write_checkpoint(tmp_path / "deepseek", config, tokenizers["bytes"])
    plain = loss_of(folder)
    weights = prediction_layer(load_file(folder / "model.safetensors"))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert loss_of(folder) == plain


def test_one_ordinary_layer_more_is_a_lie(altered: Callable[..., Path]) -> None:
    with pytest.raises(UnavailableError, match="config.json says 3 layers, the weights hold 4"):
        condense.load(altered("qwen3", one_layer_more))


def test_old_gpt2_buffers_are_ignored(altered: Callable[..., Path], folder_of: Callable[[str], Path]) -> None:
    buffers = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    assert loss_of(altered("gpt2", lambda weights: {**weights, **buffers})) == loss_of(folder_of("gpt2"))


@pytest.mark.parametrize(
    ("name", "gone"),
    [("llama", "layers.1.mlp.up_proj"), ("llama", "model.norm"), ("bert", "embeddings.LayerNorm"),
     ("t5", "decoder.final_layer_norm"), ("gemma3-vision", "language_model.model.norm")],
)  # fmt: skip
def test_missing_weights_of_a_stack_are_refused(altered: Callable[..., Path], name: str, gone: str) -> None:
    with pytest.raises(UnavailableError, match="weights are missing in .*, first ") as caught:
        condense.load(altered(name, without(gone)))
    assert "half-random" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("t5", {"num_layers": 2}, "says 2 encoder layers, the weights hold 3"),
        ("t5", {"num_decoder_layers": 3}, "says 3 decoder layers, the weights hold 2"),
        ("bart", {"decoder_layers": 1}, "says 1 decoder layers, the weights hold 2"),
        ("albert", {"num_hidden_groups": 1}, "have no place in the model, first albert.encoder"),
        ("albert", {"num_hidden_groups": 4}, "weights are missing in albert"),
        ("albert", {"num_hidden_layers": 20_000}, "asks for 20000 layers"),
        ("t5", {"num_layers": 20_000}, "asks for 20000 layers"),
        ("bart", {"encoder_layers": -1}, "asks for -1 layers"),
    ],
)
def test_depths_of_two_stacks_and_shared_blocks(
    altered: Callable[..., Path], name: str, change: dict[str, int], line: str
) -> None:
    with pytest.raises(UnavailableError, match=line):
        condense.load(altered(name, **change))


def test_the_depth_of_a_text_tower(altered: Callable[..., Path], folder_of: Callable[[str], Path]) -> None:
    text = json.loads((folder_of("gemma3-vision") / "config.json").read_text())["text_config"]
    with pytest.raises(UnavailableError, match="says 2 layers, the weights hold 3"):  # 2 is the vision tower's depth
        condense.load(altered("gemma3-vision", text_config={**text, "num_hidden_layers": 2}))


def test_weights_of_other_shapes_are_named(altered: Callable[..., Path]) -> None:
    for change in ({"vocab_size": 10**9}, {"hidden_size": 10**9}, {"vocab_size": 10**9, "architectures": None}):
        folder = altered("llama", **change)
        with pytest.raises(UnavailableError, match=r"other shapes than config.json says(: \S+ is \[480, 32\]|$)"):
            condense.load(folder)
        shutil.rmtree(folder)


# --- refusals ---------------------------------------------------------------------------------------

GEMMA3N = {
    **HEADED, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "laurel_rank": 4, "altup_num_inputs": 4, "layer_types": ["full_attention"] * 3,
    "activation_sparsity_pattern": [0.0] * 3,
}  # fmt: skip
DEEPSEEK4 = {**MAIN, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
WHISPER = {**BART, "max_source_positions": 64, "max_target_positions": POSITIONS, "num_mel_bins": 8}
REFUSED = {
    "gemma3n": ("Gemma3nForCausalLM", "Gemma3nTextConfig", GEMMA3N, r"returns \(4, 1, 40, 32\), not one"),
    "deepseek-v4": ("DeepseekV4ForCausalLM", "DeepseekV4Config", DEEPSEEK4, r"returns \(1, 40, 4, 32\), not one"),
    "xlnet": ("XLNetLMHeadModel", "XLNetConfig",
              {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48}, "none of the sites"),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER, "does not run on token ids alone"),
    "vit": ("ViTModel", "ViTConfig", VISION, "does not read token ids"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_residual_stream_of_tokens_is_refused(
    name: str, tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    model, config, options, line = REFUSED[name]
    built = getattr(transformers, config)(**options, architectures=[model])
    folder = write_checkpoint(tmp_path / name, built, tokenizers["bytes"])
    with pytest.raises(UnavailableError, match=line) as caught:
        measured(condense.load(folder, device="cpu"))
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "missing: .*bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "missing: .*bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "missing: .*(optimum|gptqmodel)"),
        ({"quant_method": "awq", "bits": 4}, "missing: .*gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "missing: .*compressed-tensors"),
        ({"quant_method": "zzz"}, "method that is not known .'zzz'"),
        ({"bits": 4}, "method that is not known .None"),
        ("yes", "method that is not known .'yes'"),
    ],
)
def test_quantised_checkpoints_say_what_is_missing(altered: Callable[..., Path], asked: Any, line: str) -> None:
    with pytest.raises(UnavailableError, match=line) as caught:
        condense.load(altered("llama", quantization_config=asked))
    assert caught.value.hint


# --- adapters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter_of(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on the tiny Llama, as peft writes it, its B matrices random."""
    import peft

    folder = tmp_path_factory.mktemp("adapters") / "lora"
    base = transformers.LlamaForCausalLM.from_pretrained(folder_of("llama"))
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged(
    adapter_of: Path, altered: Callable[..., Path], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = condense.load(adapter_of, device="cpu")
    assert checkpoint.info.source_format == "adapter"
    assert type(checkpoint.model).__name__ == checkpoint.info.architecture == "LlamaForCausalLM"
    _, diagnosis = measured(checkpoint)
    lora = load_file(adapter_of / "adapter_model.safetensors")

    def merge(weights: dict[str, Any]) -> dict[str, Any]:
        for name in weights:
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{prefix}.lora_A.weight" in lora:
                weights[name] += 2.0 * lora[f"{prefix}.lora_B.weight"] @ lora[f"{prefix}.lora_A.weight"]
        return weights

    by_hand, cosines = geometry_of(altered("llama", merge))
    for site, expected in zip(diagnosis.sites, cosines, strict=True):
        assert site.metrics["mean_cosine"].per_text == pytest.approx(expected, abs=1e-5)
    assert diagnosis.quality.loss.value == pytest.approx(by_hand.quality.loss.value, abs=1e-5)
    base, plain = geometry_of(folder_of("llama"))
    assert max(abs(a - b) for a, b in zip(plain[-1], cosines[-1], strict=True)) > 1e-3
    hashes = {checkpoint.info.weights_sha256, base.model.weights_sha256, by_hand.model.weights_sha256}
    assert len(hashes) == 3 and None not in hashes


def renamed(adapter: Path, to: Path, base: Any) -> Path:
    folder = Path(shutil.copytree(adapter, to))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return folder


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("/no/such/base", "no such file or directory: /no/such/base"),
        ("nobody/no-such-base", "nobody/no-such-base is not in the local cache"),
        (None, "names no base model"),
    ],
)
def test_an_adapter_without_its_base(adapter_of: Path, tmp_path: Path, base: Any, line: str) -> None:
    with pytest.raises(UnavailableError, match=line):
        condense.load(renamed(adapter_of, tmp_path / "lora", base))


def test_an_adapter_beside_its_base(adapter_of: Path, altered: Callable[..., Path], tmp_path: Path) -> None:
    altered("llama")  # copied to tmp_path / "llama"
    checkpoint = condense.load(renamed(adapter_of, tmp_path / "lora", "../llama"), device="cpu")
    assert checkpoint.info.source_format == "adapter"


def test_an_adapter_of_another_model(adapter_of: Path, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(UnavailableError):
        condense.load(renamed(adapter_of, tmp_path / "lora", str(folder_of("gpt2"))))


def test_a_pickled_adapter_is_refused(adapter_of: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter_of, tmp_path / "lora"))
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(UnavailableError, match="no adapter_model.safetensors"):
        condense.load(folder)


def test_a_damaged_adapter_is_refused(adapter_of: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter_of, tmp_path / "lora"))
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnavailableError, match="adapter_model.safetensors is truncated or not safetensors"):
        condense.load(folder)


def test_an_adapter_that_is_not_finite_is_refused(adapter_of: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter_of, tmp_path / "lora"))
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match="not finite"):
        condense.load(folder)


def test_an_adapter_whose_weights_do_not_fit_is_refused(adapter_of: Path, tmp_path: Path) -> None:
    """The peft library only warns, and would measure the base in the adapter's name."""
    own = load_file(adapter_of / "adapter_model.safetensors")
    fewer = without("layers.0")(own)
    other = {key.replace("model.layers", "model.blocks"): value for key, value in own.items()}
    more = {**own, "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}
    for number, weights in enumerate((fewer, other, more)):
        folder = Path(shutil.copytree(adapter_of, tmp_path / f"lora{number}"))
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UnavailableError, match="weights of the adapter do not fit its base, first base_model"):
            condense.load(folder)


def test_prompt_tuning_cannot_be_merged(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    import peft

    base = transformers.LlamaForCausalLM.from_pretrained(folder_of("llama"))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UnavailableError, match="an adapter of type PROMPT_TUNING cannot be merged"):
        condense.load(tmp_path / "prompt")


def test_weights_beside_an_adapter_are_refused(adapter_of: Path, altered: Callable[..., Path]) -> None:
    folder = altered("llama")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter_of / name, folder)
    with pytest.raises(UnavailableError, match="holds both a model's weights and an adapter"):
        condense.load(folder)


def test_random_weights_of_a_config(folder_of: Callable[[str], Path]) -> None:
    first = condense.load(folder_of("qwen2"), device="cpu", random_init=True)
    again = condense.load(folder_of("qwen2"), device="cpu", random_init=True)
    assert first.info.source_format == "random"
    assert first.info.weights_sha256 == again.info.weights_sha256
    same = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_build_gives_random_norms() -> None:
    """The premise of these tests: with norms of ones the normed and the raw last state could look alike."""
    model = build(config_of(CASES["llama"]))
    assert float(model.model.norm.weight.detach().std()) > 0.1
