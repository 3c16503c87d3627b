"""Opening checkpoints: what is found in them, and the one line for everything that is wrong with them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from condense import files as cache
from condense.errors import CondenseError, UnavailableError, UsageError
from condense.models.checkpoint import load
from condense.models.locate import positions_of
from condense.models.tokenizer import load_tokenizer
from tests.conftest import build, tiny_config, write_checkpoint
from tests.models.test_folder import POINTER, sharded, with_config

Copy = Callable[[str], Path]
Weights = dict[str, torch.Tensor]


def change(folder: Path, edit: Callable[[Weights], Any]) -> Path:
    """Edit the weights of a folder."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def refused(
    model: str | Path, message: str, kind: type[CondenseError] = UnavailableError, **options: Any
) -> CondenseError:
    with pytest.raises(kind, match=message) as caught:
        load(model, device="cpu", **options)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    return caught.value


# --- what is found ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "bert", "albert", "bart", "t5"])
def test_loaded_weights_are_those_written(opened: Callable[[str], Any], tiny: Callable[[str], Path], name: str) -> None:
    found = opened(name)
    model, info = found.model, found.info
    assert not model.training and found.head_missing is None and model.dtype == torch.float32
    twin = build(tiny_config(name)).state_dict()
    own = model.state_dict()
    assert own.keys() == twin.keys() and all(torch.equal(own[key], twin[key]) for key in own)
    assert info.architecture == type(model).__name__ and info.id == str(tiny(name)) and info.revision is None
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.dtype == "float32" and info.source_format == "safetensors" and info.vocabulary_size == 480
    assert len(info.weights_sha256) == 64 and getattr(model.config, "use_cache", False) is False
    assert found.positions == (None if name == "t5" else 128)


def test_path_forms(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("gpt2")
    monkeypatch.chdir(folder.parent)
    for name in (folder, str(folder), "gpt2", "./gpt2", "gpt2/"):
        assert load(name, device="cpu").info.id == str(name)


def test_sharded_weights(copy_of: Copy, opened: Callable[[str], Any]) -> None:
    found = load(sharded(copy_of("gpt2")), device="cpu")
    assert torch.equal(found.model.transformer.wte.weight, opened("gpt2").model.transformer.wte.weight)
    assert found.info.weights_sha256 != opened("gpt2").info.weights_sha256


def test_float32_is_the_default_for_a_half_precision_checkpoint(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    build(tiny_config("llama")).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizers["bos"].save_pretrained(tmp_path)
    assert "bfloat16" in (tmp_path / "config.json").read_text()
    assert load(tmp_path, device="cpu").model.dtype == torch.float32
    assert load(tmp_path, device="cpu", dtype="auto").info.dtype == "bfloat16"
    assert load(tmp_path, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_pickled_weights_if_asked(copy_of: Copy, opened: Callable[[str], Any]) -> None:
    folder = copy_of("gpt2")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "--allow-pickle" in refused(folder, "pickled weights only").hint
    found = load(folder, device="cpu", allow_pickle=True)
    assert found.info.source_format == "pickle"
    assert torch.equal(found.model.transformer.wte.weight, opened("gpt2").model.transformer.wte.weight)


def test_a_malicious_pickle_runs_nothing(copy_of: Copy, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        """Runs a command when it is unpickled."""

        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    folder = copy_of("gpt2")
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, folder / "pytorch_model.bin")
    refused(folder, "pickled weights only")
    refused(folder, "cannot be loaded", allow_pickle=True)  # even then only tensors are read
    assert not marker.exists()


def test_random_init(copy_of: Copy) -> None:
    folder = copy_of("gpt2")
    (folder / "model.safetensors").unlink()
    state = torch.get_rng_state()
    one, same, other = (load(folder, device="cpu", random_init=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [found.model.transformer.wte.weight for found in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert one.info.source_format == "random" and one.info.weights_sha256 == same.info.weights_sha256
    assert one.info.weights_sha256 != other.info.weights_sha256 and not one.model.training


def test_adapters_are_merged(copy_of: Copy, tmp_path: Path, opened: Callable[[str], Any]) -> None:
    import peft

    base = copy_of("gpt2")
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    adapted = peft.get_peft_model(load(base, device="cpu").model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    found = load(tmp_path / "adapter", device="cpu")
    expected = adapted.merge_and_unload().transformer.h[0].attn.c_attn.weight
    torch.testing.assert_close(found.model.transformer.h[0].attn.c_attn.weight, expected)
    assert not torch.equal(found.model.transformer.h[0].attn.c_attn.weight,
                           opened("gpt2").model.transformer.h[0].attn.c_attn.weight)  # fmt: skip
    assert found.info.source_format == "adapter" and found.info.architecture == "GPT2LMHeadModel"
    assert found.info.weights_sha256 != load(base, device="cpu").info.weights_sha256
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    refused(tmp_path / "adapter", r"no adapter_model\.safetensors")


def test_an_adapter_without_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "names no base model")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/no/such/base"}')
    refused(tmp_path, "no such file or directory: /no/such/base")


def test_a_tokenizer_of_ones_own(copy_of: Copy, tiny: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    found = load(folder, device="cpu", tokenizer=str(tiny("gpt2")))
    assert found.tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0


def test_offset_positions() -> None:
    import transformers

    config = transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    assert positions_of(config) == 512
    assert positions_of(tiny_config("bert")) == 128 and positions_of(tiny_config("t5")) is None


# --- what is not there ------------------------------------------------------------------------------


def test_missing_path() -> None:
    refused("./no/such/folder", "no such file or directory")
    refused("no-such.gguf", "no such file or directory")


def test_hub_names_offline() -> None:
    assert "spelling" in refused("no-such-org/no-such-model", "not in the local cache").hint
    refused("gpt-2-typo", "not in the local cache")
    refused("two words!", "neither a file, a folder nor a hub id")


def test_no_tokenizer(copy_of: Copy) -> None:
    folder = copy_of("gpt2")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "--tokenizer" in refused(folder, "no tokenizer in").hint
    with pytest.raises(UnavailableError, match="no tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(UnavailableError, match="no such file"):
        load(folder, device="cpu", tokenizer="./nowhere")


@pytest.mark.parametrize("content", [POINTER, "{", "", '{"version": "1.0", "model": {"type": "Telepathy"}}'])
def test_a_broken_tokenizer(copy_of: Copy, content: str) -> None:
    folder = copy_of("gpt2")
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "tokenizer")


# --- damaged and lying checkpoints ------------------------------------------------------------------


def test_truncated_weights(copy_of: Copy) -> None:
    folder = copy_of("gpt2")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "truncated")


def test_lfs_pointer(copy_of: Copy) -> None:
    folder = copy_of("gpt2")
    (folder / "model.safetensors").write_text(POINTER)
    refused(folder, "Git LFS pointer")


@pytest.mark.parametrize(
    ("name", "deleted"),
    [
        ("gpt2", "transformer.wte.weight"),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
        ("gpt2", "transformer.ln_f.weight"),
        ("llama", "model.layers.2.self_attn.q_proj.weight"),
        ("llama", "model.norm.weight"),
        ("bert", "bert.encoder.layer.0.output.LayerNorm.weight"),
        ("bert", "bert.embeddings.position_embeddings.weight"),
    ],
)
def test_a_half_random_model_is_refused(copy_of: Copy, name: str, deleted: str) -> None:
    error = refused(change(copy_of(name), lambda w: w.pop(deleted)), "1 weights are missing")
    assert deleted in str(error) and "--random-init" in error.hint


def test_a_missing_head_is_a_reason_and_no_refusal(copy_of: Copy) -> None:
    found = load(change(copy_of("llama"), lambda w: w.pop("lm_head.weight")), device="cpu")
    assert "lm_head.weight" in str(found.head_missing)


def test_unexpected_weights_in_the_blocks_are_refused(copy_of: Copy) -> None:
    def add(weights: Weights) -> None:
        weights["transformer.h.1.mlp.gate.weight"] = torch.zeros(4, 4)

    error = refused(change(copy_of("gpt2"), add), "1 weights .* have no place in the model")
    assert "transformer.h.1.mlp.gate.weight" in str(error)


def test_unexpected_weights_elsewhere_are_no_lie(copy_of: Copy) -> None:
    def add(weights: Weights) -> None:
        weights["score.weight"] = torch.zeros(4, 4)

    assert load(change(copy_of("gpt2"), add), device="cpu").head_missing is None


def test_another_shape_is_refused(copy_of: Copy) -> None:
    def narrow(weights: Weights) -> None:
        weights["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(32, 100)

    refused(change(copy_of("gpt2"), narrow), "shape")
    refused(with_config(copy_of("llama"), hidden_size=64), "shape")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(copy_of: Copy, bad: float) -> None:
    def poison(weights: Weights) -> None:
        weights["transformer.h.2.ln_1.bias"][5] = bad

    refused(change(copy_of("gpt2"), poison), r"transformer\.h\.2\.ln_1\.bias are not finite")


@pytest.mark.parametrize("layers", [-1, 1, 2, 4])
def test_another_depth_is_refused(copy_of: Copy, layers: int) -> None:
    refused(with_config(copy_of("gpt2"), n_layer=layers), "layers")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_head": 5},
        {"n_embd": "wide"},
        {"activation_function": "telepathy"},
        {"model_type": "nothing-known"},
        {"vocab_size": -4},
    ],
)
def test_nonsense_in_the_config_is_one_line(copy_of: Copy, changes: dict[str, Any]) -> None:
    refused(with_config(copy_of("gpt2"), **changes), ".")


def test_an_unknown_quantisation_is_refused(copy_of: Copy) -> None:
    refused(with_config(copy_of("gpt2"), quantization_config={"quant_method": "telepathy", "bits": 2}), "quantis")


# --- foreign code -----------------------------------------------------------------------------------


def test_code_of_its_own_is_refused(copy_of: Copy, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    folder = with_config(copy_of("gpt2"), model_type="brand-new", auto_map=own)
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    assert "--trust-remote-code" in refused(folder, "needs code of its own").hint
    assert not marker.exists()


def test_code_beside_a_known_type_is_not_run(copy_of: Copy, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = with_config(copy_of("gpt2"), auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "own.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert load(folder, device="cpu").info.architecture == "GPT2LMHeadModel"
    assert not marker.exists()


def test_a_remote_kernel_is_refused(copy_of: Copy) -> None:
    refused(with_config(copy_of("gpt2"), _attn_implementation="evil/kernel"), "remote kernel")


# --- options ----------------------------------------------------------------------------------------


def test_options_that_do_not_fit(tiny: Callable[[str], Path]) -> None:
    refused(tiny("gpt2"), "unknown dtype", UsageError, dtype="float8")
    with pytest.raises(UsageError, match="device"):
        load(tiny("gpt2"), device="cuda:7")


def test_an_unknown_device(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="abacus"):
        load(tiny("gpt2"), device="abacus")


# --- gguf and cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"not a gguf at all" * 10, POINTER.encode()]
)
def test_a_corrupt_gguf(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    refused(file, r"model\.gguf")
    assert not list((cache.cache_root() / "gguf").glob("*")) if (cache.cache_root() / "gguf").exists() else True


def test_cache_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "mine"))
    assert cache.cache_root() == tmp_path / "mine" and cache.cache_folder("gguf").is_dir()
    monkeypatch.delenv("CONDENSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "condense"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / ".cache" / "condense"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot write the cache"):
        cache.cache_folder("gguf")


def test_written_checkpoints_are_real_folders(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "x", tiny_config("gpt2"), tokenizers["bytes"])
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
