"""Every adapter that PEFT can load: the numbers of the unmerged model to 1e-5, or a refusal by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import condense
from condense.diagnosis import estimate
from condense.errors import UnavailableError
from condense.models import adapters, hub, hub_files
from condense.texts.documents import probe
from condense.training.loop import save_model
from tests.conftest import write_checkpoint
from tests.models.test_architectures import CASES, config_of
from tests.models.test_bad_input import condense as command

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ATTENTION = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(4, 64)[None]
Copy = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tiny: Copy, tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Any]) -> Copy:
    """Folders of the base models: the tiny ones, `tied` (a Llama with tied embeddings), and some of the zoo."""
    root = tmp_path_factory.mktemp("bases")

    def folder(name: str) -> Path:
        if (
            name in CASES
            and not (root / name).exists()
            and name not in ("llama", "gpt2", "qwen2", "bert", "t5", "bart")
        ):
            write_checkpoint(root / name, config_of(CASES[name]), tokenizers[CASES[name].tokenizer])
        if name == "tied" and not (root / name).exists():
            config = transformers.LlamaConfig.from_pretrained(tiny("llama"), tie_word_embeddings=True)
            write_checkpoint(root / name, config, tokenizers["bos"])
        return root / name if (root / name).exists() else tiny(name)

    return folder


@dataclass(frozen=True)
class Adapter:
    """An adapter by its config, on a base; `rows` is the vocabulary that the base was resized to first."""

    config: str = "LoraConfig"
    options: dict[str, Any] = field(default_factory=dict)
    base: str = "llama"
    rows: int | None = None
    model: str = ""  # the class that it was trained on, if it is not the base's own


def trained(adapter: Adapter, base: Path, folder: Path) -> Any:
    """Save an adapter whose every weight was moved, as training would; return the class of its model."""
    kind = getattr(transformers, adapter.model or json.loads((base / "config.json").read_text())["architectures"][0])
    model = kind.from_pretrained(base, dtype=torch.float32).eval()
    if adapter.rows:
        model.resize_token_embeddings(adapter.rows, mean_resizing=False)
    options = adapter.options
    if adapter.config == "LoraConfig":
        options = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **options}
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, getattr(peft, adapter.config)(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder)
    return kind


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    output = model(input_ids=IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}))
    return output.logits if "logits" in output else output.last_hidden_state


def unmerged(adapter: Adapter, kind: Any, base: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the base gives, and what PEFT gives with the adapter beside the weights."""
    model = kind.from_pretrained(base, dtype=torch.float32).eval()
    plain = outputs(model)
    if adapter.rows:
        model.resize_token_embeddings(adapter.rows, mean_resizing=False)
    return plain, outputs(peft.PeftModel.from_pretrained(model, str(folder)).eval())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def lora(base: str = "llama", rows: int | None = None, **options: Any) -> Adapter:
    return Adapter("LoraConfig", options, base, rows)


def tuner(config: str, base: str = "llama", **options: Any) -> Adapter:
    return Adapter(config, {"target_modules": ATTENTION, **options}, base)


TOKENS = list(range(480, 490))
SAME = {
    # LoRA in its variants
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "patterns": lora(rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"layers.0.self_attn.v_proj": 32}),
    "bias": lora("qwen2", bias="all"),
    "lora-bias": lora("qwen2", lora_bias=True),
    "all-linear": lora(target_modules="all-linear"),
    "regular-expression": lora(target_modules=r".*\.1\.self_attn\.(q|k)_proj"),
    "some-layers": lora(layers_to_transform=[0, 2], layers_pattern="layers"),
    "pissa": lora(init_lora_weights="pissa"),
    "replicated-layers": lora(layer_replication=[[0, 2], [1, 3]]),
    "experts": lora("mixtral", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "conv1d": lora("gpt2", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "conv1d-dora": lora("gpt2", target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True),
    # weights that stand in two places
    "embedding": lora(target_modules=["embed_tokens", "q_proj"]),
    "tied-embedding": lora("tied", target_modules=["embed_tokens", "q_proj"]),
    "tied-embedding-dora": lora("tied", target_modules=["embed_tokens"], use_dora=True),
    "tied-head": lora("tied", target_modules=["lm_head", "q_proj"]),
    "tied-both": lora("tied", target_modules=["embed_tokens", "lm_head"]),
    "tied-both-stay-tied": lora("tied", target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "tied-gpt2": lora("gpt2", target_modules=["wte", "wpe"]),
    "tied-gpt2-head": lora("gpt2", target_modules=["lm_head"]),
    "tied-bert-embedding": lora("bert", target_modules=["word_embeddings"]),
    "tied-bert-decoder": lora("bert", target_modules=["decoder"]),
    "tied-t5": lora("t5", target_modules=["shared", "q"]),
    "tied-bart": lora("bart", target_modules=["shared", "q_proj"]),
    "tied-gemma3": lora("gemma3", target_modules=["embed_tokens", "q_proj"]),
    "tied-vision": lora("gemma3-vision", target_modules=["embed_tokens", "q_proj"]),
    "saved-norm": lora(modules_to_save=["norm"]),
    "saved-head": lora(modules_to_save=["lm_head"]),
    "saved-tied-head": lora("tied", modules_to_save=["lm_head"]),
    "saved-tied-embedding": lora("tied", modules_to_save=["embed_tokens"]),
    "saved-tied-both": lora("tied", modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "tokens": lora(trainable_token_indices=[5, 6, 40]),
    "tokens-of-a-tied-model": lora("tied", trainable_token_indices=[5, 6, 40]),
    "tokens-of-both-ends": lora(trainable_token_indices={"embed_tokens": [5], "lm_head": [7]}),
    # tokens that the base lacks, or has too many of
    "new-tokens-saved": lora(rows=496, modules_to_save=["embed_tokens", "lm_head"]),
    "new-tokens-beside-lora": lora(rows=496),
    "new-tokens-tied": lora("tied", rows=496),
    "new-tokens-in-lora": lora("tied", rows=496, target_modules=["embed_tokens", "q_proj"]),
    "new-tokens-in-both": lora(rows=496, target_modules=["embed_tokens", "lm_head"]),
    "new-tokens-alone": lora("tied", rows=490, trainable_token_indices=TOKENS),
    "new-tokens-some": lora("tied", rows=490, trainable_token_indices=TOKENS[:5]),
    "fewer-tokens": lora("tied", rows=470),
    # LoRA's relatives
    "adalora": tuner("AdaLoraConfig", total_step=10, init_r=6, target_r=3),
    "boft": tuner("BOFTConfig", target_modules=["q_proj"], boft_block_size=4, boft_n_butterfly_factor=2),
    "c3a": tuner("C3AConfig", block_size=16),
    "delora": tuner("DeloraConfig"),
    "fourierft": tuner("FourierFTConfig", n_frequency=10),
    "hra": tuner("HRAConfig"),
    "ia3": tuner("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ia3-conv1d": tuner("IA3Config", "gpt2", target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"],
                        fan_in_fan_out=True),
    "layer-norms": tuner("LNTuningConfig", target_modules=["input_layernorm"]),
    "loha": tuner("LoHaConfig", r=4, rank_pattern={"q_proj": 2}),
    "lokr": tuner("LoKrConfig", r=4, decompose_both=True, decompose_factor=4),
    "miss": tuner("MissConfig", r=8),
    "oft": tuner("OFTConfig", r=4, oft_block_size=0),
    "trainable-tokens": Adapter("TrainableTokensConfig", {"target_modules": ["embed_tokens"], "token_indices": [5, 9]}),
    "trainable-new-tokens": Adapter(
        "TrainableTokensConfig", {"target_modules": ["embed_tokens"], "token_indices": [480, 481]}, "tied", 482
    ),
    "vblora": tuner("VBLoRAConfig", num_vectors=16, vector_length=16, topk=2),
    "vera": tuner("VeraConfig", r=4),
    "vera-without-projections": tuner("VeraConfig", r=4, save_projection=False),
    "vera-conv1d": tuner("VeraConfig", "gpt2", target_modules=["c_attn"], r=4, fan_in_fan_out=True),
    # other classes of models
    "encoder": lora("bert", target_modules=["query", "value"]),
    "shared-block": lora("albert", target_modules=["query"]),
    "encoder-decoder": lora("t5", target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"),
    "state-space": lora("mamba", target_modules=["in_proj", "x_proj"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_merged_adapter_gives_the_numbers_of_the_unmerged_model(name: str, bases: Copy, tmp_path: Path) -> None:
    adapter = SAME[name]
    base, folder = bases(adapter.base), tmp_path / "adapter"
    kind = trained(adapter, base, folder)
    plain, expected = unmerged(adapter, kind, base, folder)
    assert plain.shape != expected.shape or distance(plain, expected) > 1e-4, "the premise: the adapter does something"
    found = condense.load(folder, device="cpu")
    assert distance(outputs(found.model), expected) < 1e-5
    assert found.info.source_format == "adapter" and found.head_missing is None
    assert all(parameter.requires_grad for parameter in found.model.parameters())
    found.model.save_pretrained(tmp_path / "saved")  # what treat keeps is what was measured, tied or not
    again = kind.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    assert distance(outputs(again), outputs(found.model)) < 1e-6


SIZES = {
    "psoft": {"r": 4},
    "osf": {"effective_rank": 4},
    "randlora": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "waveft": {"n_frequency": 64},
}
OTHER_KINDS = {
    "adamss": "AdamssConfig",
    "beft": "BeftConfig",
    "deft": "DeftConfig",
    "frod": "FrodConfig",
    "glora": "GloraConfig",
    "gralora": "GraloraConfig",
    "hira": "HiraConfig",
    "osf": "OSFConfig",
    "peanut": "PeanutConfig",
    "psoft": "PsoftConfig",
    "pvera": "PveraConfig",
    "randlora": "RandLoraConfig",
    "road": "RoadConfig",
    "shira": "ShiraConfig",
    "supertuning": "SupertuningConfig",
    "tinylora": "TinyLoraConfig",
    "unilora": "UniLoraConfig",
    "waveft": "WaveFTConfig",
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_every_other_kind_is_the_unmerged_model_or_refused_by_name(name: str, bases: Copy, tmp_path: Path) -> None:
    """On all tokens there are, not on those alone that the check itself tries."""
    config = next((one for one in dir(peft) if one.lower() == OTHER_KINDS[name].lower()), None)
    assert config is not None, "the premise: PEFT has this kind"
    adapter, folder = tuner(config, **SIZES.get(name, {})), tmp_path / "adapter"
    kind = trained(adapter, bases("llama"), folder)
    try:
        found = condense.load(folder, device="cpu")
    except UnavailableError as refusal:
        assert "adapter of type " in str(refusal)
        return
    model = kind.from_pretrained(bases("llama"), dtype=torch.float32).eval()
    model = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    ids = torch.randperm(480, generator=torch.Generator().manual_seed(3)).view(4, 120)
    with torch.no_grad():
        assert distance(found.model(input_ids=ids).logits, model(input_ids=ids).logits) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_merged_and_checked_in_float32(dtype: str, bases: Copy, tmp_path: Path) -> None:
    """The weights are those of the float32 merge, rounded once; what from_pretrained keeps in float32 stays so."""
    trained(lora(), bases("llama"), tmp_path / "adapter")
    full = condense.load(tmp_path / "adapter", device="cpu").model
    half = condense.load(tmp_path / "adapter", device="cpu", dtype=dtype).model
    wanted = getattr(torch, dtype)
    assert half.dtype == wanted and half.config.dtype == wanted
    for (name, a), (_, b) in zip(full.named_parameters(), half.named_parameters(), strict=True):
        assert torch.equal(a.to(wanted), b), name
    plain = condense.load(bases("llama"), device="cpu", dtype=dtype).model
    buffers = {name: buffer.dtype for name, buffer in plain.named_buffers()}
    assert {name: buffer.dtype for name, buffer in half.named_buffers()} == buffers
    twin = condense.load(bases("llama"), device="cpu", dtype=dtype, random_init=True).model
    assert {name: buffer.dtype for name, buffer in twin.named_buffers()} == buffers and twin.dtype == wanted


def test_an_adapter_is_trained_and_what_comes_out_is_measured(bases: Copy, tmp_path: Path) -> None:
    """`treat ADAPTER` trains the merged model; OUT is a checkpoint of its own, with the adapter's id in its card."""
    trained(lora("tied", target_modules=["embed_tokens", "q_proj"]), bases("tied"), tmp_path / "adapter")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(document.text for document in probe()[:4]) + " And something more than the probe.")
    options = ["--text", text, "--max-steps", "2", "--max-length", "64", "--num-texts", "8", "--device", "cpu"]
    result = command("treat", tmp_path / "adapter", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    source = condense.load(tmp_path / "adapter", device="cpu").model.state_dict()
    found = condense.load(tmp_path / "out", device="cpu")
    moved = [name for name, value in found.model.state_dict().items() if not torch.equal(value, source[name])]
    assert found.info.source_format == "safetensors" and moved
    assert "base_model: " in (tmp_path / "out" / "README.md").read_text()
    windows = condense.windows(found.tokenizer, num_texts=2, max_length=24)
    assert condense.analyze(found, windows, spectral_tokens=8).quality.loss.value is not None


def test_an_adapter_is_saved_without_asking_the_hub(
    bases: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT would look up the base's config there, to see whether its vocabulary was resized."""
    opened = condense.load(bases("llama"), device="cpu")
    model = peft.get_peft_model(opened.model, peft.LoraConfig(target_modules=ATTENTION))
    model.peft_config["default"].base_model_name_or_path = "org/base"
    asked: list[str] = []
    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", lambda *_, **__: asked.append("hub"))
    save_model(model, opened, tmp_path / "model", merge=False, adapter=tmp_path / "adapter")
    assert asked == [] and (tmp_path / "adapter" / "adapter_model.safetensors").exists()


REFUSED = {
    "prompt": (Adapter("PromptTuningConfig", {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}), "PROMPT_TUNING"),
    "prefix": (Adapter("PrefixTuningConfig", {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}), "PREFIX_TUNING"),
    "p-tuning": (Adapter("PromptEncoderConfig", {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}), "P_TUNING"),
    "llama-adapter": (
        Adapter("AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM"}),
        "ADAPTION_PROMPT",
    ),
    "poly": (tuner("PolyConfig"), "POLY"),
    "activated": (lora(alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM"), "with alora_invocation_tokens"),
    "bias-where-there-is-none": (lora(lora_bias=True), "LORA cannot be merged into the weights: Impossible"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(name: str, bases: Copy, tmp_path: Path) -> None:
    adapter, line = REFUSED[name]
    trained(adapter, bases(adapter.base), tmp_path / "adapter")
    with pytest.raises(UnavailableError, match=line) as caught:
        condense.load(tmp_path / "adapter", device="cpu")
    assert caught.value.hint and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "XLORA", "adapters": {"0": "org/adapter"}},
        {"peft_type": "SHADOW", "shadow_model": "org/model"},
        {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "evil.bin"},
        {"peft_type": "TELEPATHY"},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"corda_config": {"cache_file": "evil.bin"}},
        {"eva_config": {"rho": 2.0}},
        {"lora_ga_config": {"cache_file": "evil.bin"}},
        {"arrow_config": {"top_k": 3}},
    ],
)
def test_what_would_load_something_else_is_refused_unread(
    changes: dict[str, Any], bases: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    trained(lora(), bases("llama"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "nobody/no-such-base"  # not even asked for
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", None)
    with pytest.raises(UnavailableError, match="cannot be merged into the weights"):
        condense.load(folder, device="cpu")


def test_merging_that_changes_the_numbers_is_refused(
    bases: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a version of PEFT does wrong, or a kind that nobody tried."""
    trained(lora("tied", target_modules=["embed_tokens"]), bases("tied"), tmp_path / "adapter")
    monkeypatch.setattr(adapters, "_untie", lambda model: [])
    with pytest.raises(UnavailableError, match=r"type LORA gives other numbers when it is merged .*\(by \d"):
        condense.load(tmp_path / "adapter", device="cpu")


def test_adapters_that_do_not_fit_say_where(bases: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    trained(lora(), bases("llama"), folder)
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    settings, weights = json.loads(config.read_text()), load_file(file)
    config.write_text(json.dumps({**settings, "r": 8}))
    line = r"does not fit its base: model.layers.0.self_attn.\S+lora_A.default.weight is \[4, 32\], not \[8, 32\]"
    with pytest.raises(UnavailableError, match=line) as caught:
        condense.load(folder, device="cpu")
    assert "\n" not in str(caught.value) and "base_model_name_or_path" in caught.value.hint
    config.write_text(json.dumps({**settings, "peft_type": None}))
    with pytest.raises(UnavailableError, match="names no kind of adapter"):
        condense.load(folder, device="cpu")
    config.write_text(json.dumps(settings))
    save_file({name: (value * 10).to(torch.int8) for name, value in weights.items()}, file)
    with pytest.raises(UnavailableError, match=r"lora_A.weight of the adapter is of type I8"):
        condense.load(folder, device="cpu")


def test_new_tokens_without_weights_are_refused(bases: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    trained(lora(rows=496), bases("llama"), folder)
    weights = load_file(folder / "adapter_model.safetensors")
    head = next(key for key in weights if "lm_head" in key)
    del weights[head]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match="adds 16 tokens to its base and does not hold all their weights"):
        condense.load(folder, device="cpu")
    weights[head] = torch.zeros(500, 32)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match=r"embeddings have \[496, 500\] rows"):
        condense.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("model", "task", "reason"),
    [
        ("LlamaForSequenceClassification", "SEQ_CLS", "a head of its own (SEQ_CLS)"),
        ("LlamaModel", "FEATURE_EXTRACTION", "on the model without its head"),
    ],
)
def test_an_adapter_for_another_head_has_geometry_and_no_quality(
    model: str, task: str, reason: str, bases: Copy, tmp_path: Path
) -> None:
    adapter = Adapter(options={"task_type": task}, model=model)
    kind = trained(adapter, bases("llama"), tmp_path / "adapter")
    found = condense.load(tmp_path / "adapter", device="cpu")
    trunk = kind.from_pretrained(bases("llama"), dtype=torch.float32).eval()
    trunk = peft.PeftModel.from_pretrained(trunk, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = trunk(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        assert distance(found.model.model(input_ids=IDS).last_hidden_state, expected) < 1e-5
    windows = condense.windows(found.tokenizer, num_texts=2, max_length=24)
    quality = condense.analyze(found, windows, spectral_tokens=8).quality
    assert quality.loss.value is None and reason in str(quality.loss.reason)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_virtual_tokens_in_memory_are_refused_as_in_a_folder(
    kind: str, opened: Callable[[str], Any], tiny: Copy
) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(tiny("llama"))
    wrapped = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4))
    windows = condense.windows(opened("llama").tokenizer, num_texts=1, max_length=24)
    for given in (wrapped, torch.nn.DataParallel(wrapped)):
        with pytest.raises(UnavailableError, match="cannot be merged into the weights"):
            condense.analyze(given, windows)


def test_lora_in_memory_is_measured(opened: Callable[[str], Any], tiny: Copy, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=ATTENTION, init_lora_weights=False)).eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(tiny("llama"))
    wrapped.save_pretrained(tmp_path / "adapter")
    windows = condense.windows(opened("llama").tokenizer, num_texts=2, max_length=24)
    live = condense.analyze(wrapped, windows, spectral_tokens=8)
    read = condense.analyze(condense.load(tmp_path / "adapter", device="cpu"), windows, spectral_tokens=8)
    assert live.deep["mean_cosine"].value == pytest.approx(read.deep["mean_cosine"].value, abs=1e-5)
    assert live.quality.loss.value == pytest.approx(read.quality.loss.value, abs=1e-5)


def test_a_revision_is_the_adapters_and_its_base_has_its_own(
    bases: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(lora(), bases("llama"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    asked: list[str | None] = []

    def fetch(repo: str, options: condense.ModelOptions, selection: Any = None) -> hub.Fetched:
        asked.append(options.revision)
        return hub.Fetched(bases("llama"), "c0ffee")

    def cached(repo: str, revision: str | None, *more: Any, **options: Any) -> hub.Fetched:
        asked.append(revision)
        return hub.Fetched(bases("llama"), "c0ffee")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub_files, "cached", cached)
    for own in ("v2", None):
        settings = {**json.loads(file.read_text()), "base_model_name_or_path": "org/base", "revision": own}
        file.write_text(json.dumps(settings))
        condense.load(tmp_path / "adapter", device="cpu", revision="of-the-adapter")
        estimate.find(str(tmp_path / "adapter"), condense.ModelOptions(revision="of-the-adapter", offline=True))
    assert asked == ["v2", "v2", None, None]


def test_an_adapter_with_its_base_beside_it(bases: Copy, tmp_path: Path) -> None:
    shutil.copytree(bases("llama"), tmp_path / "adapter" / "base")
    trained(lora(), bases("llama"), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    assert condense.load(tmp_path / "adapter", device="cpu").info.source_format == "adapter"
