"""What is refused before anything is loaded: damaged, unsafe and lying checkpoint folders."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from condense.errors import UnavailableError
from condense.files import sha256_of_files
from condense.models.folder import check_weights, has_tokenizer, is_path, open_folder, read_config, safetensors_header

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def with_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(folder: Path, message: str, **options: Any) -> UnavailableError:
    with pytest.raises(UnavailableError, match=message) as caught:
        check_weights(open_folder(folder), **options)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    return caught.value


def sharded(folder: Path, names: tuple[str, str] = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")) -> Path:  # fmt: skip  # noqa: E501
    """Split the weights of a folder into two shards with an index."""
    weights = load_file(folder / "model.safetensors")
    keys = sorted(weights)
    halves = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    for name, half in zip(names, halves, strict=True):
        save_file({key: weights[key] for key in half}, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: n for n, half in zip(names, halves, strict=True) for k in half}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


# --- sound folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "albert", "bart", "t5"])
def test_sound_folders_pass(tiny: Callable[[str], Path], name: str) -> None:
    folder = open_folder(tiny(name))
    check_weights(folder)
    assert folder.has_tokenizer and not folder.contrastive and not folder.is_pickle
    assert [file.name for file in folder.weights] == ["model.safetensors"]


def test_shards_pass(copy_of: Callable[[str], Path]) -> None:
    folder = open_folder(sharded(copy_of("gpt2")))
    check_weights(folder)
    assert len(folder.weights) == 2


def test_sentence_transformers_layout_is_seen(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("bert")
    (path / "modules.json").write_text("[]")
    assert open_folder(path).contrastive


@pytest.mark.parametrize(
    ("name", "local"),
    [("gpt2", False), ("org/model", False), ("./gpt2", True), ("../x", True), ("/abs/x", True), ("~/x", True),
     ("a/b/c", True), ("model.gguf", True), ("x/model.gguf", True), ("dir/", True), ("model.safetensors", True)],
)  # fmt: skip
def test_paths_and_hub_ids(name: str, local: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_path(name) == local
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert is_path("org/model")


# --- what is missing --------------------------------------------------------------------------------


def test_missing_path_and_file(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such file or directory"):
        open_folder(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match="not a checkpoint folder"):
        open_folder(tmp_path / "file")
    with pytest.raises(UnavailableError, match=r"no config\.json"):
        open_folder(tmp_path)


def test_no_weights(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights")


def test_tokenizer_config_alone_is_no_tokenizer(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    assert has_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").exists() and not has_tokenizer(folder)


def test_a_missing_shard(copy_of: Callable[[str], Path]) -> None:
    folder = sharded(copy_of("gpt2"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "shard model-00002-of-00002.safetensors is missing")


# --- damaged files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -5000])
def test_truncated_safetensors(copy_of: Callable[[str], Path], keep: int) -> None:
    folder = copy_of("gpt2")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "truncated or not safetensors")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": 1} ',
        struct.pack("<Q", 15) + b'{"a": {"b": 1}}',
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        b"PK\x03\x04 a zip, as torch.save writes",
        *(
            struct.pack("<Q", len(header)) + header + b"\0" * 4
            for header in (
                b'{"wpe.weight": {"dtype": "F32", "data_offsets": [0, 4]}}',
                b'{"wpe.weight": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
                b'{"wpe.weight": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}}',
                b'{"wpe.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
                b'{"wpe.weight": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}}',
            )
        ),
    ],
)
def test_headers_that_are_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UnavailableError, match="truncated or not safetensors"):
        safetensors_header(file)


def test_header_names_shapes(tiny: Callable[[str], Path]) -> None:
    header = safetensors_header(tiny("gpt2") / "model.safetensors")
    assert header["transformer.wte.weight"]["shape"] == [480, 32] and "__metadata__" not in header


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_lfs_pointers(copy_of: Callable[[str], Path], name: str) -> None:
    folder = copy_of("gpt2")
    (folder / name).write_text(POINTER)
    assert "git lfs pull" in refused(folder, f"{name} is a Git LFS pointer").hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_a_config_that_is_not_json(copy_of: Callable[[str], Path], content: bytes) -> None:
    folder = copy_of("gpt2")
    (folder / "config.json").write_bytes(content)
    refused(folder, "is not JSON")


def test_a_config_that_is_no_object(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    (folder / "config.json").write_text("[1]")
    refused(folder, "not a JSON object")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}'])
def test_a_damaged_index(copy_of: Callable[[str], Path], content: str) -> None:
    folder = sharded(copy_of("gpt2"))
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "is not a shard index")


# --- unsafe files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", 5])
def test_shards_outside_the_folder(copy_of: Callable[[str], Path], name: Any) -> None:
    folder = sharded(copy_of("gpt2"))
    (folder / "sub").mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(folder, "names a shard outside the folder")


def test_pickles_are_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gpt2")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    check_weights(open_folder(folder))  # beside safetensors it is not looked at
    assert not open_folder(folder).is_pickle
    (folder / "model.safetensors").unlink()
    assert "--allow-pickle" in refused(folder, "pickled weights only").hint
    check_weights(open_folder(folder), allow_pickle=True)
    assert open_folder(folder).is_pickle
    (folder / "pytorch_model.bin").write_text(POINTER)
    refused(folder, "Git LFS pointer", allow_pickle=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel:fn"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"experts_implementation": "evil/kernel"},
        {"text_config": {"_attn_implementation": "evil/kernel"}},
        {"layers": [{"_attn_implementation": "evil/kernel"}]},
        {"_attn_implementation": {"text_config": "evil/kernel"}},
        {"attn_implementation": {"": "evil/kernel"}},
        {"attn_implementation": ["evil/kernel"]},
    ],
)
def test_remote_kernels_are_refused(copy_of: Callable[[str], Path], changes: dict[str, Any]) -> None:
    refused(with_config(copy_of("gpt2"), **changes), "remote kernel")


def test_ordinary_implementations_pass(copy_of: Callable[[str], Path]) -> None:
    changes = {"_attn_implementation": "sdpa", "experts_implementation": None, "name_or_path": "org/name"}
    check_weights(open_folder(with_config(copy_of("gpt2"), **changes)))


# --- config against weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("layers", [1, 2, 4, 40])
def test_depth_must_agree(copy_of: Callable[[str], Path], name: str, layers: int) -> None:
    key = "n_layer" if name == "gpt2" else "num_hidden_layers"
    refused(with_config(copy_of(name), **{key: layers}), f"config.json says {layers} layers, the weights hold 3")


@pytest.mark.parametrize(("key", "layers"), [("encoder_layers", 1), ("encoder_layers", 3), ("decoder_layers", 2)])
def test_depth_must_agree_in_each_stack(copy_of: Callable[[str], Path], key: str, layers: int) -> None:
    refused(with_config(copy_of("bart"), **{key: layers}), "layers, the weights hold")


@pytest.mark.parametrize("layers", [-1, 0, 10**9])
def test_impossible_depths(copy_of: Callable[[str], Path], layers: int) -> None:
    refused(with_config(copy_of("llama"), num_hidden_layers=layers), "layers")


def test_a_shared_block_may_be_deep(copy_of: Callable[[str], Path]) -> None:
    check_weights(open_folder(with_config(copy_of("albert"), num_hidden_layers=12)))


def test_nested_text_config_counts(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    config = {"model_type": "x", "text_config": {"num_hidden_layers": 5}, "vision_config": {"num_hidden_layers": 9}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensor = torch.zeros(2)
    names = [f"model.layers.{i}.w" for i in range(5)] + [f"vision_tower.layers.{i}.w" for i in range(9)]
    save_file({name: tensor.clone() for name in names}, tmp_path / "model.safetensors")
    check_weights(open_folder(tmp_path))
    config["text_config"] = {"num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "says 6 layers, the weights hold 5")


# --- hashes -----------------------------------------------------------------------------------------


def test_sha256_of_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one" * 2_000_000)
    b.write_bytes(b"two")
    one, two = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (a, b))
    assert sha256_of_files((a,)) == one
    both = hashlib.sha256("".join(sorted([one, two])).encode()).hexdigest()
    assert sha256_of_files((a, b)) == sha256_of_files((b, a)) == both


def test_reading_a_config_gives_it_back(tiny: Callable[[str], Path]) -> None:
    assert read_config(tiny("gpt2"))["model_type"] == "gpt2"
