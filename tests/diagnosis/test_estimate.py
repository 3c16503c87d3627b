"""A dry run tells sizes, downloads, time and memory from headers, and does nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from condense.cli.app import app
from condense.cli.measure import _load
from condense.diagnosis import estimate
from condense.diagnosis.estimate import Load, Source, find, peak_bytes, seconds
from condense.errors import UnavailableError
from condense.models import gguf, gguf_copies, hub
from condense.models.hub import Listing
from condense.records.options import MeasureOptions, ModelOptions
from tests.conftest import CAUSAL
from tests.models.gguf_files import write_gguf

CONFIG = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256,
    "max_position_embeddings": 131072, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["analyze", *arguments, "--dry-run"])


@pytest.mark.parametrize("name", [*CAUSAL, "bert", "albert", "bart", "t5"])
def test_sizes_are_those_of_the_model(tiny: Callable[[str], Path], opened: Callable[[str], Any], name: str) -> None:
    shape, info = find(str(tiny(name)), ModelOptions()).shape, opened(name).info
    assert shape.parameters == pytest.approx(info.parameters, rel=0.02)
    assert (shape.width, shape.blocks, shape.vocabulary) == (info.hidden_size, info.blocks, 480)
    assert shape.stored_dtype == "float32" and shape.stored == 4 * shape.parameters


def test_the_command_tells_and_does_nothing(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(str(tiny("gpt2")), "-o", str(out), "--num-texts", "5", "--max-length", "64", "--batch-size", "3")
    assert done.exit_code == 0, done.output
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == ["model", "texts", "where", "downloads", "time", "memory", "writes"]
    assert lines["texts"].startswith("5 × 64 tokens") and lines["where"] == "cpu, 3 at a time"
    assert lines["downloads"] == "nothing" and "diagnosis.json" in lines["writes"]
    assert not out.exists()


def test_nothing_is_loaded(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("a dry run loads nothing")

    monkeypatch.setattr("condense.models.locate.locate", never)
    monkeypatch.setattr("condense.models.checkpoint.read", never)
    assert run(str(tiny("gpt2"))).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/no/such/model"], 3, "no such file"),
        (["MODEL", "--text", "/no/such/text"], 3, "no such text"),
        (["MODEL", "--max-length", "4096"], 2, "beyond the model's 128 positions"),
        (["MODEL", "--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_what_would_fail_fails_now(tiny: Callable[[str], Path], arguments: list[str], code: int, said: str) -> None:
    done = run(*[str(tiny("gpt2")) if word == "MODEL" else word for word in arguments])
    assert done.exit_code == code and said in done.stderr.replace("\n", " ")


def test_a_damaged_checkpoint_is_refused(copy_of: Callable[[str], Path]) -> None:
    file = copy_of("gpt2") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert run(str(file.parent)).exit_code == 3


def test_an_adapter_is_as_large_as_its_base(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("gpt2"), tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../base"}))
    assert (
        find(str(adapter), ModelOptions()).shape.parameters == find(str(tiny("gpt2")), ModelOptions()).shape.parameters
    )
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UnavailableError, match="no base model"):
        find(str(adapter), ModelOptions())


def test_a_hub_model_tells_what_it_would_download(monkeypatch: pytest.MonkeyPatch) -> None:
    files = (("config.json", 700), ("model.safetensors", 2_471_645_608), ("tokenizer.json", 9_000_000))
    monkeypatch.setattr(hub, "list_files", lambda *args: Listing(files, files[1:], "abc"))
    monkeypatch.setattr(hub, "remote_config", lambda *args: CONFIG)
    monkeypatch.setattr(hub, "is_offline", lambda offline: False)
    source = find("meta-llama/Llama-3.2-1B", ModelOptions())
    assert source.downloads == files[1:]
    assert source.shape.parameters == pytest.approx(1.236e9, rel=0.01)
    done = run("meta-llama/Llama-3.2-1B")
    assert done.exit_code == 0, done.output
    assert "downloads    2.48 GB: model.safetensors 2.47 GB, tokenizer.json 9 MB" in done.stdout


def test_a_hub_model_that_is_not_here_offline() -> None:
    done = run("nobody/nothing", "--offline")
    assert done.exit_code == 3 and "not in the local cache" in done.stderr.replace("\n", " ")


def test_a_gguf_that_would_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    keys = {"embedding_length": 576, "feed_forward_length": 1536, "block_count": 2, "context_length": 2048}
    tensors = {"token_embd.weight": np.zeros((49152, 576)), "blk.0.a": np.zeros(4), "blk.1.a": np.zeros(4)}
    file = write_gguf(tmp_path / "a.gguf", "llama", tensors, keys)
    source = find(str(file), ModelOptions())
    shape = source.shape
    assert shape.parameters == 49152 * 576 + 8 and shape.stored_dtype == "float32"
    assert (shape.width, shape.inner, shape.blocks, shape.vocabulary, shape.positions) == (576, 1536, 2, 49152, 2048)
    assert source.copy is not None and source.copy.parent == tmp_path / "cache" / "gguf"
    converting = peak_bytes(source, Load(32, 512, 1, "float32"), libraries=0)
    assert converting > peak_bytes(Source(source.shape), Load(32, 512, 1, "float32"), libraries=0)
    done = run(str(file))
    assert done.exit_code == 0 and "converted once: 113 MB in" in done.stdout
    assert gguf_copies.already_converted(gguf.read(file)) is None


def test_memory_grows_with_what_it_should() -> None:
    source = Source(estimate.shape(CONFIG, "x", stored=2_471_645_608))
    base = peak_bytes(source, Load(32, 512, 1, "bfloat16"), libraries=0)
    assert base == pytest.approx(2.47e9 + 0.3e9, rel=0.15)
    assert peak_bytes(source, Load(3200, 512, 1, "bfloat16"), libraries=0) == base  # flat in texts
    assert peak_bytes(source, Load(32, 512, 1, "auto"), libraries=0) == base
    for more in (Load(32, 512, 8, "bfloat16"), Load(32, 2048, 1, "bfloat16"), Load(32, 512, 1, "float32"),
                 Load(32, 512, 1, "bfloat16", twin=True)):  # fmt: skip
        assert peak_bytes(source, more, libraries=0) > base + 1e7


def test_on_a_gpu_the_states_of_all_sites_of_a_batch_are_counted() -> None:
    """Twice: as the hooks keep them, and packed to be sent. What they are measured with is the host's memory."""
    shape = estimate.shape(CONFIG, "x", stored=2_471_645_608)
    load = Load(32, 512, 8, "bfloat16", on_cpu=False)
    deep, flat = (peak_bytes(Source(replace(shape, blocks=count)), load, libraries=0) for count in (shape.blocks, 0))
    assert deep - flat == 2 * 8 * 512 * shape.width * 2 * shape.blocks
    assert peak_bytes(Source(shape), replace(load, spectral=4), libraries=0) == deep
    options, measure = ModelOptions(dtype="bfloat16"), MeasureOptions()
    assert [_load(options, measure, shape, device, 1).on_cpu for device in ("cpu", "cuda:1")] == [True, False]


def test_time_grows_with_what_it_should() -> None:
    source = Source(estimate.shape(CONFIG, "x", stored=2_471_645_608))
    base = seconds(source, Load(32, 512, 1, "bfloat16"), 1e11)
    assert base == pytest.approx(32 * 2 * 1.24e9 * 512 / 1e11 / 0.55 * 1.3, rel=0.15)
    assert seconds(source, Load(64, 512, 1, "bfloat16"), 1e11) > 1.8 * base
    assert seconds(source, Load(32, 512, 1, "bfloat16", processes=2), 1e11) < 0.6 * base
    assert seconds(source, Load(32, 512, 1, "bfloat16", twin=True), 1e11) > 1.8 * base
