"""Tokenizers: the same tokens in every run, from the folder that was named and no other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import condense
from condense.errors import UnavailableError
from tests.conftest import write_checkpoint
from tests.models.test_bad_input import analyze, assert_went_on

Copy = Callable[[str], Path]
TEXT = "The quick brown fox jumps over the lazy dog, again and again and again."


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file.parent


def test_bpe_dropout_is_switched_off_and_told(copy_of: Copy, opened: Callable[[str], Any], tmp_path: Path) -> None:
    folder = edit(copy_of("llama") / "tokenizer.json", lambda content: content["model"].update(dropout=0.5))
    found = condense.load(folder, device="cpu")
    expected = opened("llama").tokenizer(TEXT)["input_ids"]
    assert all(found.tokenizer(TEXT)["input_ids"] == expected for _ in range(5))
    assert found.info.notes == (
        "the tokenizer's BPE dropout of 0.5 is switched off: it draws other tokens in every run",
    )
    hashes = set()
    for number in range(2):
        assert_went_on(analyze(folder, "--json", f"{number}.json", "--no-cache"))
        record = json.loads(Path(f"{number}.json").read_text())
        hashes.add((record["corpus"]["windows_sha256"], record["deep"]["mean_cosine"]["value"]))
        assert "dropout of 0.5" in record["model"]["notes"][0]
    assert len(hashes) == 1


def test_unigrams_are_not_sampled(copy_of: Copy) -> None:
    letters = [[letter, -2.0] for letter in "▁abcdefghijklmnopqrstuvwxyzTG,."]
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *letters, ["▁the", -3.0], ["th", -2.5], ["he", -2.5]]

    def unigram(content: dict[str, Any]) -> None:
        content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "alpha": 0.1, "nbest_size": -1}
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        content |= {"decoder": None, "post_processor": None}

    folder = edit(copy_of("gpt2") / "tokenizer.json", unigram)
    found = condense.load(folder, device="cpu")
    ids = [tuple(found.tokenizer("the thin heather")["input_ids"]) for _ in range(20)]
    assert len(set(ids)) == 1 and len(ids[0]) > 5


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sp_model_kwargs": {"enable_sampling": True, "alpha": 0.1}}, "draws its tokens at random"),
        ({"gguf_file": "/elsewhere/model.gguf"}, r"names other files to read \(gguf_file\)"),
        ({"gguf_file": "other.gguf"}, r"names other files to read \(gguf_file\)"),
        ({"fast_tokenizer_files": ["../tokenizer.json"]}, r"names other files to read \(fast_tokenizer_files\)"),
        ({"fast_tokenizer_files": "x"}, r"names other files to read \(fast_tokenizer_files\)"),
    ],
)
def test_a_config_that_draws_or_reads_elsewhere_is_refused(copy_of: Copy, changes: dict[str, Any], line: str) -> None:
    folder = edit(copy_of("llama") / "tokenizer_config.json", lambda content: content.update(changes))
    with pytest.raises(UnavailableError, match=line) as caught:
        condense.load(folder, device="cpu")
    assert caught.value.hint


@pytest.mark.parametrize(
    "key", ["tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "name_or_path"]
)
def test_paths_that_others_left_are_not_read(copy_of: Copy, opened: Callable[[str], Any], key: str) -> None:
    """Saved by older versions of transformers, with the author's own folders in them."""
    folder = edit(
        copy_of("llama") / "tokenizer_config.json", lambda content: content.update({key: "/home/somebody/x.json"})
    )
    found = condense.load(folder, device="cpu").tokenizer
    assert found(TEXT)["input_ids"] == opened("llama").tokenizer(TEXT)["input_ids"]


def test_bytes_need_no_vocabulary(tmp_path: Path) -> None:
    """ByT5's tokenizer is its config alone."""
    config = transformers.LlamaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.2, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder = write_checkpoint(tmp_path / "bytes", config, transformers.ByT5Tokenizer())
    names = {file.name for file in folder.iterdir()}
    assert "tokenizer_config.json" in names and not names & {"tokenizer.json", "vocab.json", "spiece.model"}
    found = condense.load(folder, device="cpu")
    windows = condense.windows(found.tokenizer, num_texts=2, max_length=64)
    diagnosis = condense.analyze(found, windows, spectral_tokens=16)
    assert diagnosis.deep["mean_cosine"].value is not None and diagnosis.quality.loss.value > 0
