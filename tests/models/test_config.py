"""What a config.json may decide: nothing about where weights, code or kernels come from; and the hub stays closed."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import condense
from condense.errors import UnavailableError
from condense.models import hub
from condense.models.config import honoured
from tests.conftest import tiny_config, write_checkpoint
from tests.models.test_bad_input import analyze, assert_went_on
from tests.models.test_bad_input import condense as command
from tests.models.test_folder import with_config

Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(folder: Path, line: str, **options: Any) -> UnavailableError:
    with pytest.raises(UnavailableError, match=line) as caught:
        condense.load(folder, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return caught.value


def other_weights(folder: Path, name: str) -> Path:
    weights = {key: value * 2 for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / name, {"format": "pt"})
    return folder


# --- weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "other.safetensors"},
        {"transformers_weights": "adapter_model.bin"},
        {"transformers_weights": "../other/model.safetensors"},
        {"text_config": {"transformers_weights": "other.safetensors"}},
        {"backbone": "evil/repo"},
        {"use_pretrained_backbone": True},
        {"vision_config": {"backbone": "resnet50", "use_pretrained_backbone": True}},
        {"configuration_files": ["config.4.0.0.json"]},
        {"fusion_config": {"a": 1}},
        {"gguf_file": "other.gguf"},
        {"weights_url": "https://evil.example/w"},
    ],
)
def test_a_config_that_names_something_to_load_is_refused(copy_of: Copy, changes: dict[str, Any]) -> None:
    folder = other_weights(with_config(copy_of("llama"), **changes), "other.safetensors")
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    assert refused(folder, r"config.json names something else to load \(").hint == "remove that key"


@pytest.mark.parametrize("value", ["evil/repo", "../other", "/etc/passwd", "~/x", "https://evil.example/x", "x.bin"])
def test_a_place_under_any_key_is_refused(copy_of: Copy, value: str) -> None:
    refused(with_config(copy_of("llama"), hidden_act=value), r"names something else to load \(hidden_act = ")


def test_texts_that_the_class_does_not_read_are_left_out(copy_of: Copy, opened: Callable[[str], Any]) -> None:
    changes = {"license": "evil/repo", "my_kernel": "evil/kernel", "unsloth_version": "2024.9", "base": ["org/model"]}
    found = condense.load(with_config(copy_of("llama"), **changes), device="cpu")
    assert not any(hasattr(found.model.config, key) for key in changes)
    assert torch.equal(found.model.lm_head.weight, opened("llama").model.lm_head.weight)


def test_what_a_class_declares_or_reads_is_kept() -> None:
    """Among them keys that only older configs have, which the class turns into its own."""
    config = {
        "model_type": "nemotron_h", "hybrid_override_pattern": "M-*", "mlp_hidden_act": "relu2", "hidden_size": 32,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "architectures": ["A"], "license": "x",
    }  # fmt: skip
    kept = honoured(config, transformers.NemotronHConfig)
    assert {"hybrid_override_pattern", "mlp_hidden_act", "hidden_size", "rope_scaling"} <= kept.keys()
    assert "license" not in kept
    labels = honoured({"id2label": {"0": "a/b"}, "label2id": {"a/b": 0}}, transformers.BertConfig)
    assert labels == {"id2label": {"0": "a/b"}, "label2id": {"a/b": 0}}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert", "albert", "bart", "t5"])
def test_a_plain_config_loses_nothing(name: str) -> None:
    config = tiny_config(name)
    raw = json.loads(config.to_json_string(use_diff=False))
    again = type(config).from_dict(honoured(raw, type(config)))
    assert again.to_dict() == type(config).from_dict(raw).to_dict()


def test_files_that_a_loader_prefers_are_not_read(copy_of: Copy, opened: Callable[[str], Any]) -> None:
    """Parts of a distributed checkpoint, an adapter's pickle, another variant: none of them was hashed."""
    folder = copy_of("llama")
    for name in ("shard-00001-model-00001-of-00001.safetensors", "model.fp16.safetensors", "head.safetensors"):
        other_weights(folder, name)
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    found = condense.load(folder, device="cpu")
    assert torch.equal(found.model.lm_head.weight, opened("llama").model.lm_head.weight)
    assert found.info.weights_sha256 == opened("llama").info.weights_sha256
    refused(folder, "holds parts of a distributed checkpoint too", device_map="cpu")


def test_what_was_hashed_is_compared_where_the_loader_opens_files(copy_of: Copy, opened: Callable[[str], Any]) -> None:
    found = condense.load(copy_of("gpt2"), device="cpu", device_map="cpu")
    assert torch.equal(found.model.transformer.wte.weight, opened("gpt2").model.transformer.wte.weight)
    from condense.models.checks import check_same
    from condense.models.folder import open_folder

    folder = copy_of("llama")
    model = condense.load(folder, device="cpu").model
    check_same(model, open_folder(folder))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(UnavailableError, match=r"layers.1.mlp.up_proj.weight of llama is not what model.safetensors"):
        check_same(model, open_folder(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
@pytest.mark.parametrize("key", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_integers_and_packed_types_are_no_weights(copy_of: Copy, dtype: torch.dtype, key: str) -> None:
    folder = copy_of("llama")
    weights = load_file(folder / "model.safetensors")
    weights[key] = weights[key].to(dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"{key} in llama is of type .*, and config.json names no quantisation")


# --- code -------------------------------------------------------------------------------------------


def test_code_in_another_repository_is_refused(copy_of: Copy) -> None:
    own = {"AutoConfig": "evil/repo--own.Config", "AutoModelForCausalLM": "own.Model"}
    refused(
        with_config(copy_of("gpt2"), model_type="brand-new", auto_map=own),
        r"the code of gpt2 is in another repository \(evil/repo--own.Config\)", trust_remote_code=True,
    )  # fmt: skip


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM

class Settings(LlamaConfig):
    model_type = "brand-new"

class Thing(LlamaForCausalLM):
    config_class = Settings
"""


@pytest.mark.parametrize("head", ["AutoModelForCausalLM", "AutoModel"])
def test_auto_map_decides_whatever_the_classes_are_called(
    copy_of: Copy, opened: Callable[[str], Any], head: str
) -> None:
    changes = {"model_type": "brand-new", "architectures": ["Thing"]}
    folder = with_config(copy_of("llama"), **changes, auto_map={"AutoConfig": "own.Settings", head: "own.Thing"})
    (folder / "own.py").write_text(OWN)
    assert "--trust-remote-code" in refused(folder, "needs code of its own").hint
    found = condense.load(folder, device="cpu", trust_remote_code=True)
    assert found.info.architecture == "Thing" and found.info.objective == "causal"
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, opened("llama").model(ids).logits)


@pytest.mark.parametrize("kind", ["dict", "dataclass", "tuple"])
def test_blocks_may_return_a_dict_or_a_dataclass(kind: str, opened: Callable[[str], Any]) -> None:
    from dataclasses import make_dataclass

    from condense.models.layers import find_stacks, run, watching

    model = opened("llama").model
    record = make_dataclass("Output", ["aux", "hidden_states"])
    made = {
        "dict": lambda s: {"aux": 1, "hidden_states": s},
        "dataclass": lambda s: record(1, s),
        "tuple": lambda s: (s,),
    }
    (stack,), ids = find_stacks(model), torch.arange(1, 20)[None]
    plain: list[Any] = []
    with watching(stack, lambda site, states: plain.append(states)):
        run(model, (stack,), ids)
    seen: list[Any] = []
    wrapped = [
        module.register_forward_hook(lambda m, a, out: made[kind](out), prepend=True) for module in stack.modules
    ]
    handles = [
        following.register_forward_pre_hook(lambda m, args: (args[0]["hidden_states"], *args[1:]) if kind == "dict"
                                            else (args[0].hidden_states, *args[1:]) if kind == "dataclass"
                                            else (args[0][0], *args[1:]), prepend=True)
        for following in (*stack.modules[1:], model.model.norm)
    ]  # fmt: skip
    try:
        with watching(stack, lambda site, states: seen.append(states)):
            run(model, (stack,), ids)
    finally:
        for handle in (*wrapped, *handles):
            handle.remove()
    assert len(seen) == len(plain) and all(torch.equal(a, b) for a, b in zip(seen, plain, strict=True))


# --- attention, types -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention", "telepathy"])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
def test_attention_that_is_not_to_be_had_falls_back_with_a_note(
    copy_of: Copy, opened: Callable[[str], Any], name: str, key: str
) -> None:
    found = condense.load(with_config(copy_of("llama"), **{key: name}), device="cpu")
    assert found.info.notes == (
        f"config.json asks for the attention implementation {name}, which is not to be had here: sdpa is used",
    )
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, opened("llama").model(ids).logits)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_that_is_there_is_used(copy_of: Copy, name: str) -> None:
    found = condense.load(with_config(copy_of("llama"), _attn_implementation=name), device="cpu")
    assert found.model.config._attn_implementation == name and found.info.notes == ()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_is_that_of_the_weights_where_the_config_names_none(
    dtype: str, tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    folder = write_checkpoint(tmp_path / "m", tiny_config("llama"), tokenizers["bos"])
    weights = load_file(folder / "model.safetensors")
    cast = {key: value if "norm" in key else value.to(getattr(torch, dtype)) for key, value in weights.items()}
    save_file(cast, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    found = condense.load(folder, device="cpu", dtype="auto")
    assert found.info.dtype == dtype == found.source_dtype  # the last is what treat saves in
    assert condense.load(folder, device="cpu").info.dtype == "float32"
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    assert condense.load(folder, device="cpu", dtype="auto").info.dtype == "float16"


# --- the hub ----------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Online as far as anybody knows, with every connection and name lookup counted and refused."""
    import huggingface_hub

    tried: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


HOSTILE: list[dict[str, Any]] = [
    {},
    {"_name_or_path": "evil/repo", "name_or_path": "evil/repo"},
    {"backbone": "evil/repo", "use_pretrained_backbone": True},
    {"transformers_weights": "evil/repo"},
    {"_attn_implementation": "evil/kernel"},
    {"_attn_implementation": "flash_attention_2"},
    {"model_type": "dpt", "architectures": ["DPTForDepthEstimation"], "backbone": "evil/repo"},
    {"model_type": "brand-new", "auto_map": {"AutoConfig": "evil/repo--a.B", "AutoModel": "evil/repo--a.C"}},
    {"tokenizer_class": "EvilTokenizer"},
    {"quantization_config": {"quant_method": "gptq", "bits": 4, "tokenizer": "evil/repo", "dataset": "evil/data"}},
    {"text_config": {"model_type": "llama", "_name_or_path": "evil/repo"}},
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("trusted", [False, True])
def test_a_local_model_never_asks_the_hub(copy_of: Copy, guarded: list[Any], number: int, trusted: bool) -> None:
    folder = with_config(copy_of("llama"), **HOSTILE[number])
    more = ["--trust-remote-code"] if trusted else []
    analyze(folder, *more, "--no-cache", HF_TOKEN="hf_" + "a" * 20)
    assert guarded == []


def test_a_local_adapter_asks_for_its_base_alone(copy_of: Copy, guarded: list[Any]) -> None:
    folder = copy_of("llama")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    result = analyze(folder)
    assert result.exit_code == 3 and "org/base" in result.stderr and guarded  # it did ask, for that
    guarded.clear()
    result = analyze(folder, "--offline")
    assert result.exit_code == 3 and "org/base is not in the local cache" in result.stderr and guarded == []


def test_the_hub_is_open_for_what_is_named_and_for_nothing_else(guarded: list[Any]) -> None:
    from huggingface_hub import constants

    with hub.closed():
        assert constants.HF_HUB_OFFLINE and not hub.is_offline()
        with hub.opened():
            assert not constants.HF_HUB_OFFLINE
            with hub.closed():
                assert constants.HF_HUB_OFFLINE and not hub.is_offline()
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with hub.closed(offline=True), hub.opened():
        assert constants.HF_HUB_OFFLINE and hub.is_offline()
    with pytest.raises(KeyError), hub.closed():
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    assert command("analyze", "org/nobody").exit_code == 3 and guarded


def test_a_note_is_shown(copy_of: Copy) -> None:
    folder = with_config(copy_of("llama"), _attn_implementation="flash_attention_2")
    result = analyze(folder, "-o", "out")
    assert_went_on(result)
    for text in (result.stdout, Path("out/report.md").read_text(), Path("out/report.html").read_text()):
        assert "flash_attention_2, which is not to be had here" in " ".join(text.split()).replace("\\_", "_")


# --- numbers and types ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(copy_of: Copy, value: float) -> None:
    """JSON has no such number, Python reads it, and a norm with an infinite epsilon is silent about it."""
    refused(with_config(copy_of("llama"), rms_norm_eps=value), r"a number that is not finite \(rms_norm_eps = ")


def test_the_open_end_of_a_range_is_a_number(copy_of: Copy, opened: Callable[[str], Any]) -> None:
    found = condense.load(with_config(copy_of("llama"), time_step_limit=[0.0, float("inf")]), device="cpu")
    assert found.info.parameters == opened("llama").info.parameters


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "auto"}, "float32"),
        ({"dtype": None, "torch_dtype": "torch.float16"}, "float16"),
    ],
)
def test_a_type_may_be_spelled_in_several_ways(copy_of: Copy, changes: dict[str, Any], stored: str) -> None:
    assert condense.load(with_config(copy_of("llama"), **changes), device="cpu").source_dtype == stored


def test_a_type_that_is_none_is_refused(copy_of: Copy) -> None:
    refused(with_config(copy_of("llama"), dtype="bf17"), r"a type that torch does not have \(dtype = bf17\)")
    refused(with_config(copy_of("qwen2"), dtype="Tensor"), "a type that torch does not have")


def test_a_byte_order_mark_before_a_config_is_no_damage(copy_of: Copy) -> None:
    file = copy_of("llama") / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert condense.load(file.parent, device="cpu").info.blocks == 3
