"""Checkpoints of other kinds are named, with what gets a first number from them; what is told to do works."""

import contextlib
import io
import os
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import condense
from condense.errors import UnavailableError
from condense.models.recognise import recognise, unwrapped_names
from tests.models.test_bad_input import condense as command
from tests.models.test_gguf import CASES, written

Copy = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def refused(model: Path | str, **options: Any) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        condense.load(model, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return caught.value


def lines_of(hint: str) -> str:
    """The Python in a hint."""
    head, *lines = hint.splitlines()
    assert head == "in Python:" and 4 <= len(lines) <= 6
    return "\n".join(line.removeprefix("    ") for line in lines)


def run_lines(hint: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> str:
    """What the Python in a hint prints when it is run in a folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(lines_of(hint), dict(names))  # our own lines
    return out.getvalue()


def some_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


# --- by content, and what is told to do is done ------------------------------------------------------

NANOGPT = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GPTConfig:
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 32
    vocab_size: int = 64
    block_size: int = 64


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.mlp(self.ln(x).cumsum(1)))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            h=nn.ModuleList([Block(config.n_embd) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets=None):
        x = self.transformer.wte(idx)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x)), None
"""


def test_nanogpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.py").write_text(NANOGPT)
    space: dict[str, Any] = {"__name__": "nano"}
    monkeypatch.setitem(sys.modules, "nano", type(os)("nano"))
    exec(NANOGPT, space)
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 64, "block_size": 64}
    torch.manual_seed(0)
    model = space["GPT"](space["GPTConfig"](**settings))
    weights = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    out = tmp_path / "out"
    out.mkdir()
    torch.save({"model": weights, "model_args": settings, "iter_num": 3}, out / "ckpt.pt")
    (tmp_path / "data/DATASET").mkdir(parents=True)
    np.random.default_rng(0).integers(0, 64, 20_000, dtype=np.uint16).tofile(tmp_path / "data/DATASET/val.bin")
    error = refused(out)
    assert str(error) == f"{out} is an output folder of nanoGPT (ckpt.pt), not a Hugging Face checkpoint"
    result = command("analyze", out / "ckpt.pt")
    assert result.exit_code == 3 and result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert first == f"condense: {out / 'ckpt.pt'} is a checkpoint of nanoGPT, not a Hugging Face checkpoint"
    assert rest[0] == "  in Python:" and "GPT(GPTConfig(**ckpt['model_args']))" in rest[3] and len(rest) == 6
    monkeypatch.delitem(sys.modules, "model", raising=False)
    level, number = run_lines(error.hint, tmp_path, monkeypatch).split()
    ids = np.memmap(tmp_path / "data/DATASET/val.bin", np.uint16, "r")
    expected = condense.analyze(model.eval(), condense.windows(ids, positions=64))
    assert float(number) == pytest.approx(expected.deep["mean_cosine"].value, abs=1e-6) and level


def test_lightning_and_plain_state_dicts(tiny: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = condense.load(tiny("gpt2"), device="cpu")
    module, tokenizer, state = opened.model, opened.tokenizer, opened.model.state_dict()
    content = {"pytorch-lightning_version": "2.5", "state_dict": {f"model.{k}": v for k, v in state.items()}}
    torch.save(content, tmp_path / "last.ckpt")
    torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, tmp_path / "weights.pth")
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "alone.safetensors")
    for name, what in (
        ("last.ckpt", "a checkpoint of Lightning"),
        ("weights.pth", "a file of torch.save"),
        ("alone.safetensors", "the weights alone, without a config.json"),
    ):
        error = refused(tmp_path / name)
        assert str(error) == f"{tmp_path / name} is {what}, not a Hugging Face checkpoint"
        if name == "weights.pth":
            continue  # both prefixes: the lines take off one of each, in the usual order
        level, number = run_lines(error.hint, tmp_path, monkeypatch, module=module, tokenizer=tokenizer).split()
        assert level and -1 <= float(number) <= 1


def test_a_distributed_checkpoint_of_torch(tiny: Copy, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    state = load_file(tiny("gpt2") / "model.safetensors")
    save({"model": state}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    error = refused(tmp_path / "dcp")
    assert "is a distributed checkpoint of torch (DCP)" in str(error)
    assert f"format_utils dcp_to_torch {tmp_path / 'dcp'} OUT.pt" in error.hint
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "OUT.pt")
    assert "is a file of torch.save" in str(refused(tmp_path / "OUT.pt"))


@pytest.mark.parametrize("named", ["folder", "shards"])
def test_a_sharded_checkpoint_of_fsdp(tiny: Copy, tmp_path: Path, named: str) -> None:
    from accelerate.utils import merge_fsdp_weights
    from torch.distributed.checkpoint import save

    state = load_file(tiny("qwen3") / "model.safetensors")
    shards = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"
    save({"model": state}, checkpoint_id=shards, no_dist=True)
    error = refused(shards.parent if named == "folder" else shards)
    assert "is a sharded checkpoint of FSDP" in str(error) and error.hint.startswith("accelerate merge-weights ")
    merge_fsdp_weights(str(shards), str(tmp_path / "OUT"), safe_serialization=True)
    for file in tiny("qwen3").iterdir():
        if file.suffix == ".json":
            shutil.copy(file, tmp_path / "OUT")
    merged, own = (condense.load(folder, device="cpu").model for folder in (tmp_path / "OUT", tiny("qwen3")))
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), own.parameters(), strict=True))


def test_wrappers_are_taken_off_a_state_dict(tiny: Copy, copy_of: Copy) -> None:
    """Of torch.compile, data parallelism, both; numbers as without."""
    plain = condense.load(tiny("llama"), device="cpu").model
    for prefix in ("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."):
        assert dict(unwrapped_names([f"{prefix}a.b", f"{prefix}c"])) == {f"{prefix}a.b": "a.b", f"{prefix}c": "c"}
    assert dict(unwrapped_names(["module.a", "b"])) == {"module.a": "module.a", "b": "b"}
    assert dict(unwrapped_names([])) == {}
    folder = copy_of("llama")
    file = folder / "model.safetensors"
    save_file({f"_orig_mod.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    found = condense.load(folder, device="cpu").model
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), plain.parameters(), strict=True))


def test_gguf_by_its_first_bytes(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    """Upper case, a blob of a cache without a suffix, a folder of files."""
    file = tmp_path / "files" / "model.gguf"
    file.parent.mkdir()
    written(CASES["llama"], file, tokenizers["bytes"])
    error = refused(file.parent)
    assert "is a folder of 1 .gguf file" in str(error) and error.hint == f"name one: condense analyze {file}"
    for name in ("MODEL.GGUF", "sha256-0123abcd"):
        shutil.copy(file, tmp_path / name)
        assert condense.load(tmp_path / name, device="cpu").info.source_format.startswith("gguf")


# --- by name ----------------------------------------------------------------------------------------

NAMED = {
    "litgpt": (("lit_model.pth", "model_config.yaml"), "a checkpoint folder of litgpt", "GPT(Config.from_file("),
    "nanochat": (
        ("model_000650.pt", "meta_000650.json", "model_000100.pt", "meta_000100.json"),
        "a checkpoint folder of nanochat (step 650)",
        ", 650, torch.device('cpu'), 'eval')",
    ),
    "meta": (("consolidated.00.pth", "params.json"), "Meta's own format", "convert_llama_weights_to_hf.py --input_dir"),
    "mistral": (("consolidated.safetensors", "params.json"), "Mistral's own format", "convert_mistral_weights_to_hf"),
    "deepspeed": (
        ("zero_to_fp32.py", "latest", "global_step7/mp_rank_00_model_states.pt"),
        "a checkpoint of DeepSpeed",
        "python -m deepspeed.utils.zero_to_fp32 ",
    ),
    "deepspeed without its script": (("latest", "global_step7/mp_rank_00_model_states.pt"), "of DeepSpeed", "OUT"),
    "megatron": (("latest_checkpointed_iteration.txt", "iter_0000001/x"), "a checkpoint of Megatron-LM", "export"),
    "models--org--name": (
        ("snapshots/abc/config.json", "refs/main"),
        "the hub cache's folder of a model",
        "condense analyze org/name --offline",
    ),
    "hub": (
        ("models--a--b/snapshots/x/config.json", "models--c/refs/main"),
        "a cache of the hub",
        "condense analyze a/b --offline (and 1 others)",
    ),
    "huggingface": (("hub/models--a--b/snapshots/x/config.json", "token"), "a cache of the hub", "analyze a/b"),
    "run": (
        ("checkpoint-5/config.json", "checkpoint-40/config.json"),
        "a folder of 2 checkpoints",
        "condense compare ",
    ),
    "nested": (("merged/adapter_config.json",), "a folder with a checkpoint in it (merged)", "condense analyze "),
    "flax": (("flax_model.msgpack",), "a folder with a Flax checkpoint", "safetensors"),
    "onnx": (("model.onnx",), "a folder with an ONNX graph", "exported from"),
}


@pytest.mark.parametrize("name", NAMED)
def test_other_folders_are_named(name: str, tmp_path: Path) -> None:
    files, what, hint = NAMED[name]
    folder = some_files(tmp_path / name.replace(" ", "-"), *files)
    error = refused(folder)
    assert what in str(error) and hint in error.hint
    if error.hint.startswith("in Python:"):
        compile(lines_of(error.hint), name, "exec")


def test_a_config_beside_other_weights_is_no_help(tmp_path: Path, copy_of: Copy) -> None:
    folder = some_files(copy_of("llama"), "consolidated.00.pth")
    (folder / "model.safetensors").unlink()
    assert "Meta's own format" in str(refused(folder))
    assert "give the folder" in refused(copy_of("gpt2") / "model.safetensors").hint


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    """Not even one that bears the name of a checkpoint."""

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "old.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("ckpt.pt", "x.ckpt", "lit_model.pth", "consolidated.00.pth", "any.bin"):
        torch.save({"model": Payload()}, tmp_path / name)
    for file in (*tmp_path.iterdir(), tmp_path):
        refused(file)
        refused(file, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04", b"\x80\x02", b"text\n"])
def test_what_is_nothing_known_stays_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert recognise(tmp_path / "file") is None
    assert "is not a checkpoint folder or a .gguf file" in str(refused(tmp_path / "file"))
    (tmp_path / "folder").mkdir()
    assert "no config.json" in str(refused(tmp_path / "folder"))


def test_a_hint_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    folder = some_files(tmp_path / "a folder; with 'marks'", "model.gguf", "x.gguf")
    *_, named = shlex.split(refused(folder).hint)
    assert named == str(folder / "model.gguf")


def test_nothing_is_waited_for_and_no_damaged_archive_crashes(tmp_path: Path) -> None:
    """A folder with a pipe named ckpt.pt was waited for without end; half an archive was an internal error."""
    os.mkfifo(tmp_path / "ckpt.pt")
    assert recognise(tmp_path) is None
    damaged = tmp_path / "model.pt"
    damaged.write_bytes(b"PK\x05\x06" + b"\xff" * 16 + b"\0\0")
    assert recognise(damaged) is None


def test_a_name_of_a_cached_model_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "models--a--b; touch c" / "snapshots").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "models--a--b; touch c"):
        found = recognise(path)
        assert found is not None and "condense analyze 'a/b; touch c' --offline" in found.hint
