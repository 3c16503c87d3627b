"""Bad input through the real command: the exit code of the contract, one or two lines, nothing written over."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from condense.cli.app import app
from condense.cli.console import MANNER
from condense.errors import CondenseError, RunError, UnavailableError
from condense.models.checkpoint import load as condense_load
from tests.conftest import VOCABULARY, byte_tokenizer, tiny_config, write_checkpoint

ESC = "\x1b"
NEVER_IN_TEXT = ("<|endoftext|>", "<s>", "</s>", "<pad>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FAST = ["--num-texts", "2", "--max-length", "32", "--device", "cpu"]
SENTENCE = "The quick brown fox jumps over the lazy dog while rain falls on the old stone bridge. "

Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings file of this repository, a cache of each test's own, manners as at the start of a run."""
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "cwd"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    MANNER.quiet = MANNER.debug = False


def condense(*arguments: object, stdin: bytes | None = None, **environment: str) -> Result:
    """Run the command as the console script does, but in this process."""
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments], input=stdin)


def analyze(model: object, *more: object, **options: Any) -> Result:
    return condense("analyze", model, *FAST, *more, **options)


PHASES = {"loading", "reading text", "timing a step", "measuring"}


def lines_of(result: Result) -> list[str]:
    """What stands on stderr, without the phases that a log begins with."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return list(dropwhile(lambda line: line in PHASES, lines))


def assert_refused(result: Result, code: int, *parts: str) -> None:
    """The exit code, one or two lines that hold all parts, no result, no traceback, no control characters."""
    assert result.exit_code == code, (result.exit_code, result.output)
    lines = lines_of(result)
    assert 1 <= len(lines) <= 2, lines
    assert lines[0].startswith("condense: ")
    assert len(lines[0]) < 600
    for part in parts:
        assert part in "\n".join(lines), (part, lines)
    assert "Traceback" not in result.output
    assert "internal error" not in result.output
    assert result.stdout == ""
    assert not any(ord(character) < 32 and character != "\n" for character in result.output)


def assert_went_on(result: Result) -> None:
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    assert "mean cosine" in result.stdout


def edit_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- where the model should be ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no-such-folder", "no/such/model", "no-such.gguf"])
def test_missing_path(name: str) -> None:
    assert_refused(analyze(name), 3, "no such file or directory")


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135", "smollm2"])
def test_typo_of_a_hub_id_offline(name: str) -> None:
    assert_refused(analyze(name, "--offline"), 3, f"{name} is not in the local cache", "check the spelling")


@pytest.mark.parametrize("name", ["a b", "", "<script>", "-", "x" * 300])
def test_what_is_no_name_at_all(name: str) -> None:
    result = analyze(name)
    assert result.exit_code == 3, result.output
    assert len(lines_of(result)) <= 2 and "Traceback" not in result.output


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert_refused(analyze(write(tmp_path / "weights.pt", b"\0" * 64)), 3, "not a checkpoint folder or a .gguf file")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert_refused(analyze(tmp_path), 3, "no config.json in")


def test_no_weights(copy_of: Copy) -> None:
    folder = copy_of("llama")
    (folder / "model.safetensors").unlink()
    assert_refused(analyze(folder), 3, "no weights in", "model.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", "\0\1", "", "[" * 100_000, "null"])
def test_config_that_is_not_an_object(copy_of: Copy, text: str) -> None:
    folder = copy_of("llama")
    write(folder / "config.json", text)
    assert_refused(analyze(folder), 3, "config.json is not")


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "no-such-type"}, {"hidden_size": "wide"}, {"num_attention_heads": 7},
     {"num_hidden_layers": "3"}, {"hidden_act": "no-such"}, {"rope_parameters": {"rope_type": "zzz"}},
     {"vocab_size": 10**9}, {"architectures": ["BertForMaskedLM"]}, {"architectures": ["PreTrainedModel"]},
     {"intermediate_size": -4}, {"vocab_size": -1}],
    ids=str,
)  # fmt: skip
def test_config_that_asks_for_nonsense(copy_of: Copy, changes: dict[str, Any]) -> None:
    assert_refused(analyze(edit_config(copy_of("llama"), **changes)), 3)


@pytest.mark.parametrize("name", ["PreTrainedModel", "LlamaPreTrainedModel"])
def test_a_base_class_is_no_model(copy_of: Copy, name: str) -> None:
    """Making one left a value on the class by which the next model of the process failed."""
    assert_refused(analyze(edit_config(copy_of("llama"), architectures=[name])), 3, f"{name} (architectures) is a base")


@pytest.mark.parametrize("changes", [{"model_type": None}, {"experts_implementation": "bogus"}], ids=str)
def test_what_a_config_need_not_say_changes_nothing(tiny: Copy, copy_of: Copy, changes: dict[str, Any]) -> None:
    """`architectures` names the class; a key that the class does not declare is not honoured."""
    plain, other = tiny("llama"), edit_config(copy_of("llama"), **changes)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        one, two = (condense_load(folder, device="cpu").model(ids).logits for folder in (plain, other))
    assert torch.equal(one, two)


# --- texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.txt", "empty.md", "empty.jsonl", "empty.json", "empty.csv", "blank.txt"])
def test_empty_file(tiny: Copy, tmp_path: Path, name: str) -> None:
    text = write(tmp_path / name, b" \n\n" if name == "blank.txt" else b"")
    assert_refused(analyze(tiny("llama"), "--text", text), 3, f"{name} is empty")


@pytest.mark.parametrize("name", ["picture.txt", "picture.jsonl", "picture.csv", "picture"])
def test_binary_file_as_text(tiny: Copy, tmp_path: Path, name: str) -> None:
    text = write(tmp_path / name, bytes(range(256)) * 64)
    assert_refused(analyze(tiny("llama"), "--text", text), 3, f"{name} is not text (binary data)")


def test_binary_standard_input(tiny: Copy) -> None:
    assert_refused(analyze(tiny("llama"), "--text", "-", stdin=bytes(range(256)) * 9), 3, "standard input is not text")


def test_missing_text(tiny: Copy) -> None:
    assert_refused(analyze(tiny("llama"), "--text", "no/such.txt"), 3, "no such text: no/such.txt")


def test_a_folder_without_texts(tiny: Copy, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    assert_refused(analyze(tiny("llama"), "--text", tmp_path / "texts"), 3, "no .txt")


@pytest.mark.parametrize(
    ("name", "data", "code", "line"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', 3, "a.jsonl, line 2, is not JSON"),
        ("a.json", b"{", 3, "a.json, line 1, is not JSON"),
        ("a.json", b"[" * 100_000, 3, "a.json, line 1, is not JSON"),
        ("a.jsonl", b"[1, 2]\n", 3, "not objects with a text column"),
        ("a.jsonl", b'{"body": "one"}\n', 2, "no column 'text' in a.jsonl:1 (found: body)"),
        ("a.csv", b"body,id\none,1\n", 2, "no column 'text' in a.csv, read with the delimiter ',' (found: body, id)"),
        ("a.parquet", b"PAR1" + b"\0" * 64, 3, "not a readable parquet file"),
    ],
)
def test_damaged_tables(tiny: Copy, tmp_path: Path, name: str, data: bytes, code: int, line: str) -> None:
    assert_refused(analyze(tiny("llama"), "--text", write(tmp_path / name, data)), code, line)


def test_documents_too_short(tiny: Copy, tmp_path: Path) -> None:
    text = write(tmp_path / "short.txt", "Only a few words.")
    result = analyze(tiny("llama"), "--text", text)
    assert_refused(result, 2, "no document is long enough", "short.txt", "--max-length is 32", "lower --max-length")


def test_invalid_utf8_goes_on(tiny: Copy, tmp_path: Path) -> None:
    text = write(tmp_path / "latin1.txt", ("Café, naïve façade. " + SENTENCE * 20).encode("latin-1"))
    assert_went_on(analyze(tiny("llama"), "--text", text))


def test_text_that_spells_special_tokens_is_text(tiny: Copy, tmp_path: Path) -> None:
    from condense.models.checkpoint import load
    from condense.texts.windows import windows

    text = write(tmp_path / "specials.txt", "".join(f"{token} {SENTENCE}" for token in NEVER_IN_TEXT) * 6)
    for model in ("gpt2", "llama", "bert"):
        checkpoint = load(tiny(model), device="cpu")
        ids = windows(checkpoint.tokenizer, text, num_texts=4, max_length=32)
        controls = torch.isin(ids.ids, torch.tensor(checkpoint.tokenizer.all_special_ids))
        unknown = ids.ids == (checkpoint.tokenizer.unk_token_id or -1)
        assert torch.equal(controls & ~unknown, ids.special & controls)
    assert_went_on(analyze(tiny("llama"), "--text", text))


def test_token_ids_beyond_the_embedding(tiny: Copy, tmp_path: Path) -> None:
    byte_tokenizer(size=VOCABULARY + 200).save_pretrained(tmp_path / "larger")
    result = analyze(tiny("llama"), "--tokenizer", tmp_path / "larger")
    assert_refused(result, 3, f"is beyond the embedding's {VOCABULARY} rows", "--tokenizer")


def test_length_beyond_the_positions(tiny: Copy) -> None:
    result = condense("analyze", tiny("gpt2"), "--max-length", 4096)
    assert_refused(result, 2, "--max-length 4096 is beyond the model's 128 positions")


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_no_tokenizer(copy_of: Copy, name: str) -> None:
    folder = copy_of(name)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert_refused(analyze(folder), 3, "no tokenizer in", "--tokenizer")


def test_damaged_tokenizer(copy_of: Copy) -> None:
    folder = copy_of("llama")
    write(folder / "tokenizer.json", "{")
    assert_refused(analyze(folder), 3, "the tokenizer in", "cannot be loaded")


# --- damaged weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, 0.5])
def test_truncated_safetensors(copy_of: Copy, keep: float) -> None:
    folder = copy_of("llama")
    data = (folder / "model.safetensors").read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    write(folder / "model.safetensors", data[:size])
    assert_refused(analyze(folder), 3, "model.safetensors is truncated or not safetensors")


@pytest.mark.parametrize(
    "header",
    [b"\xff" * 8, struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{",
     struct.pack("<Q", 11) + b'{"a": null}', struct.pack("<Q", 10) + b'{"a": [1]}'],
)  # fmt: skip
def test_headers_that_lie(copy_of: Copy, header: bytes) -> None:
    folder = copy_of("llama")
    write(folder / "model.safetensors", header)
    assert_refused(analyze(folder), 3, "model.safetensors is truncated or not safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_lfs_pointer(copy_of: Copy, name: str) -> None:
    folder = copy_of("llama")
    write(folder / name, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert_refused(analyze(folder), 3, f"{name} is a Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copy_of: Copy, bad: float) -> None:
    folder = edit_weights(copy_of("llama"), lambda weights: weights["model.layers.1.mlp.up_proj.weight"][0].fill_(bad))
    assert_refused(analyze(folder), 3, "weights of model.layers.1.mlp.up_proj.weight are not finite")


def test_float16_overflow(copy_of: Copy) -> None:
    def grow(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"].mul_(1e4)
        weights["model.layers.1.mlp.up_proj.weight"].mul_(1e4)

    folder = edit_weights(copy_of("llama"), grow)
    assert_refused(analyze(folder, "--dtype", "float16"), 4, "not finite", "--dtype float32")
    assert_went_on(analyze(folder))


@pytest.mark.parametrize(
    ("layers", "line"),
    [(4, "says 4 layers, the weights hold 3"), (2, "says 2 layers, the weights hold 3"), (-1, "asks for -1 layers"),
     (0, "asks for 0 layers"), (20_000, "20000 layers")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_layers_that_are_not_in_the_weights(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch, name: str, layers: int, line: str
) -> None:
    """Refused from the headers: nothing is built, so it takes no time."""
    import transformers

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", never)
    folder = edit_config(copy_of(name), **{"n_layer" if name == "gpt2" else "num_hidden_layers": layers})
    start = time.perf_counter()
    assert_refused(analyze(folder), 3, line)
    assert time.perf_counter() - start < 5


def test_layers_of_random_weights_are_bounded(copy_of: Copy) -> None:
    folder = edit_config(copy_of("llama"), num_hidden_layers=20_000)
    assert_refused(analyze(folder, "--random-init"), 3, "asks for 20000 layers")


@pytest.mark.parametrize(
    ("shard", "line"),
    [("../other.safetensors", "outside the folder"), ("/etc/passwd", "outside the folder"), ("..", "outside"),
     ("a/b.safetensors", "outside the folder"), ("gone.safetensors", "shard gone.safetensors is missing"),
     (7, "outside"), ("", "outside")],
)  # fmt: skip
def test_shards(copy_of: Copy, shard: Any, line: str) -> None:
    folder = copy_of("llama")
    shutil.move(folder / "model.safetensors", folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    write(folder / "model.safetensors.index.json", json.dumps(index))
    assert_refused(analyze(folder), 3, line)


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {}}', b"\xff\xfe"])
def test_damaged_shard_index(copy_of: Copy, index: bytes) -> None:
    folder = copy_of("llama")
    (folder / "model.safetensors").unlink()
    write(folder / "model.safetensors.index.json", index)
    assert_refused(analyze(folder), 3)


# --- code in checkpoints ----------------------------------------------------------------------------


class Payload:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.place}",))


def pickled(folder: Path) -> Path:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_pickle_only_checkpoint(copy_of: Copy) -> None:
    folder = pickled(copy_of("llama"))
    assert_refused(analyze(folder), 3, "has pickled weights only (pytorch_model.bin)", "--allow-pickle")
    allowed = analyze(folder, "--allow-pickle")
    assert_went_on(allowed)
    assert "from pickle" in allowed.stdout


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("allowed", [False, True])
def test_malicious_pickle(copy_of: Copy, tmp_path: Path, writer: str, allowed: bool) -> None:
    folder, mark = copy_of("llama"), tmp_path / "payload-ran"
    (folder / "model.safetensors").unlink()
    hostile = {"model.norm.weight": Payload(mark)}
    if writer == "torch":
        torch.save(hostile, folder / "pytorch_model.bin")
    else:
        write(folder / "pytorch_model.bin", pickle.dumps(hostile))
    result = analyze(folder, *(["--allow-pickle"] if allowed else []))
    assert_refused(result, 3)
    assert not mark.exists()
    assert "weights_only" not in result.output  # never the advice to switch the protection off


def test_truncated_pickle(copy_of: Copy) -> None:
    folder = pickled(copy_of("llama"))
    data = (folder / "pytorch_model.bin").read_bytes()
    write(folder / "pytorch_model.bin", data[: len(data) // 2])
    assert_refused(analyze(folder, "--allow-pickle"), 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"experts_implementation": "somebody/kernel:layer"},
        {"text_config": {"_attn_implementation": "somebody/kernel"}},
        {"a": [{"b": {"_experts_implementation": "somebody/kernel"}}]},
        {"attn_implementation": {"": "somebody/kernel", "vision_config": "sdpa"}},
        {"kernels_implementation": ["sdpa", "somebody/kernel"]},
    ],
    ids=str,
)
def test_remote_kernel(copy_of: Copy, changes: dict[str, Any]) -> None:
    result = analyze(edit_config(copy_of("llama"), **changes))
    assert_refused(result, 3, "asks for a remote kernel", "somebody/kernel")


@pytest.mark.parametrize("native", [False, True])
def test_remote_code(copy_of: Copy, tmp_path: Path, native: bool) -> None:
    """Code of an unknown model type is refused; a native type is loaded without running the code."""
    folder, mark = copy_of("llama"), tmp_path / "code-ran"
    write(folder / "modeling_theirs.py", f"open({str(mark)!r}, 'w').close()\n")
    own = {"auto_map": {"AutoConfig": "modeling_theirs.C", "AutoModelForCausalLM": "modeling_theirs.M"}}
    result = analyze(edit_config(folder, **own, **({} if native else {"model_type": "theirs"})))
    if native:
        assert_went_on(result)
    else:
        assert_refused(result, 3, "needs code of its own (auto_map)", "--trust-remote-code")
    assert not mark.exists()


def test_remote_code_of_a_tokenizer(copy_of: Copy, tmp_path: Path) -> None:
    folder, mark = copy_of("llama"), tmp_path / "code-ran"
    write(folder / "tokenization_theirs.py", f"open({str(mark)!r}, 'w').close()\n")
    file = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["tokenization_theirs.T", None]}, "tokenizer_class": "TheirTokenizer"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    result = analyze(folder)
    assert result.exit_code in (0, 3), result.output
    assert len(lines_of(result)) <= 2 or result.exit_code == 0
    assert not mark.exists()


# --- .gguf ------------------------------------------------------------------------------------------


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


ARCHITECTURE = gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("llama")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"PK\x03\x04" + b"\0" * 60,
        gguf_header(2**60, 1) + ARCHITECTURE,
        gguf_header(0, 2**60) + ARCHITECTURE,
        gguf_header(0, 1) + gguf_string("a") + struct.pack("<IIQ", 9, 0, 2**60),
        gguf_header(0, 1) + gguf_string("a") + struct.pack("<IIQ", 9, 8, 5_000_000),
        gguf_header(0, 1) + struct.pack("<Q", 2**62),
        gguf_header(0, 1) + gguf_string("a") + struct.pack("<I", 77),
    ],
    ids=["empty", "magic-only", "zip", "tensors", "pairs", "array", "strings", "name", "type"],
)
def test_corrupt_gguf(tmp_path: Path, data: bytes) -> None:
    start = time.perf_counter()
    assert_refused(analyze(write(tmp_path / "model.gguf", data)), 3, "model.gguf is truncated or not GGUF")
    assert time.perf_counter() - start < 10


def test_a_whole_gguf_that_is_not_read(tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", gguf_header(0, 0))
    assert_refused(analyze(file), 3, "model.gguf names no architecture")
    assert_refused(analyze(write(file, gguf_header(0, 0, version=99))), 3, "model.gguf is of GGUF version 99")


def test_gguf_lfs_pointer(tmp_path: Path) -> None:
    pointer = write(tmp_path / "model.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert_refused(analyze(pointer), 3, "model.gguf is a Git LFS pointer", "git lfs pull")


def test_gguf_of_an_unknown_architecture(tmp_path: Path) -> None:
    other = gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("zzz")
    file = write(tmp_path / "model.gguf", gguf_header(0, 1) + other)
    assert_refused(analyze(file), 3, "architecture zzz")


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Any]) -> Callable[..., Path]:
    """Write a tiny Llama as float32 GGUF; `blocks` is what its metadata says, `without` leaves tensors out."""
    import gguf
    import transformers

    from tests.conftest import build

    config = tiny_config("llama")
    config.tie_word_embeddings = False
    model = build(config, cls=transformers.LlamaForCausalLM)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    core = json.loads(tokenizers["bos"].backend_tokenizer.to_str())
    vocabulary = sorted(core["model"]["vocab"], key=core["model"]["vocab"].get)

    def write_gguf(file: Path, blocks: int = config.num_hidden_layers, without: str = "") -> Path:
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_block_count(blocks)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(0)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(vocabulary)
        writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
        writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in vocabulary])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        for name, tensor in model.state_dict().items():
            stem, _, suffix = name.rpartition(".")
            if not without or without not in name:
                writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.detach().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write_gguf


def test_a_sound_gguf(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    result = analyze(tiny_gguf(tmp_path / "model.gguf"))
    assert_went_on(result)
    assert "gguf (F32)" in result.stdout


@pytest.mark.parametrize("blocks", [2, 4, 20_000])
def test_gguf_blocks_that_are_not_in_the_file(tiny_gguf: Callable[..., Path], tmp_path: Path, blocks: int) -> None:
    start = time.perf_counter()
    result = analyze(tiny_gguf(tmp_path / "model.gguf", blocks=blocks))
    assert_refused(result, 3, f"says {blocks} blocks", "holds 3")
    assert time.perf_counter() - start < 10


def test_gguf_with_a_tensor_missing(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    result = analyze(tiny_gguf(tmp_path / "model.gguf", without="layers.1.mlp.up_proj"))
    assert_refused(result, 3, "model.gguf", "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("keep", [0.3, 0.98])
def test_truncated_gguf(tiny_gguf: Callable[..., Path], tmp_path: Path, keep: float) -> None:
    data = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    result = analyze(write(tmp_path / "model.gguf", data[: int(keep * len(data))]))
    assert_refused(result, 3, "model.gguf is truncated or not GGUF")


# --- where results go -------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--json", "--html", "--md", "--csv", "-o"])
def test_unwritable_output(tiny: Copy, tmp_path: Path, flag: str) -> None:
    file = write(tmp_path / "file", "not a folder")
    assert_refused(analyze(tiny("llama"), flag, file / "out"), 2, "cannot write")
    assert file.read_text() == "not a folder"


@pytest.mark.parametrize("flag", ["--json", "-o"])
def test_output_where_the_system_refuses(tiny: Copy, flag: str) -> None:
    assert_refused(analyze(tiny("llama"), flag, "/proc/condense/out"), 2, "cannot write")


def test_output_folder_that_is_a_file(tiny: Copy, tmp_path: Path) -> None:
    file = write(tmp_path / "file", "mine")
    assert_refused(analyze(tiny("llama"), "-o", file), 2, "is a file, not a folder")
    assert file.read_text() == "mine"


def test_output_folder_that_is_not_empty(tiny: Copy, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = write(tmp_path / "out" / "diagnosis.json", "mine")
    assert_refused(analyze(tiny("llama"), "-o", tmp_path / "out"), 2, "is not empty", "--force")
    assert mine.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["diagnosis.json"]


@pytest.mark.parametrize("flag", ["--json", "--md", "--csv", "--html"])
def test_somebody_elses_file(tiny: Copy, tmp_path: Path, flag: str) -> None:
    theirs = write(tmp_path / "theirs", '{"schema": "something else"}')
    assert_refused(analyze(tiny("llama"), flag, theirs), 2, "exists and was not written by condense", "move it away")
    assert theirs.read_text() == '{"schema": "something else"}'


def test_our_own_file_is_replaced(tiny: Copy, tmp_path: Path) -> None:
    for _ in range(2):
        assert_went_on(analyze(tiny("llama"), "--json", tmp_path / "run.json"))
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == "condense.diagnosis/1"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full(tiny: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full) if call == "fsync" else monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "out"
    out.mkdir()
    result = analyze(tiny("llama"), "--json", out / "run.json")
    assert result.exit_code == 4, result.output
    assert "condense: disk full while writing" in result.stderr
    assert len(lines_of(result)) <= 2
    assert list(out.iterdir()) == []  # neither half a file nor a temporary one


def test_disk_full_for_real(tiny: Copy, tmp_path: Path) -> None:
    """A file system of 16 kB, in a mount namespace of its own, or mounted here where one is root."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        result = analyze(tiny("llama"), "--json", place / "run.json")
        assert result.exit_code == 4, result.output
        assert "condense: disk full while writing" in result.stderr
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)


# --- names that would do something ------------------------------------------------------------------

EVIL = f"evil[/foo]<script>alert(1)</script>{ESC}[31m`|=cmd"


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Any]) -> tuple[Result, Path]:
    root = tmp_path_factory.mktemp("evil")
    model = write_checkpoint(root / EVIL, tiny_config("llama"), tokenizers["bos"])
    texts = root / EVIL / "texts"
    texts.mkdir()
    for number in range(2):
        write(texts / f"=1+{number}<img src=x>{ESC}[2J[bold]\u202etxt.md", SENTENCE * 20)
    out = root / "out"
    files = ["--json", out / "run.json", "--md", out / "run.md", "--csv", out / "run.csv"]
    return analyze(model, "--text", texts, *files), out


def test_evil_names_on_the_terminal(evil_run: tuple[Result, Path]) -> None:
    result, _ = evil_run
    assert_went_on(result)
    assert ESC not in result.output and "\u202e" not in result.output
    assert "[/foo]" in result.stdout.replace("\n", "")  # shown as it is, not taken for markup


def test_evil_names_in_files(evil_run: tuple[Result, Path]) -> None:
    _, out = evil_run
    markdown, table = (out / "run.md").read_text(), (out / "run.csv").read_text()
    outside_code = re.sub(r"`[^`\n]*`", "", markdown)  # in a code span nothing is markup, and a command stays exact
    assert "`" not in outside_code.replace("\\`", "")
    for text in (outside_code, table):
        assert ESC not in text and "<script" not in text and "<img" not in text and "\u202e" not in text
    assert "&lt;script&gt;" in markdown
    for line in table.splitlines():
        assert not any(cell[:1] in ("=", "+", "@") for cell in line.split(","))
    raw = (out / "run.json").read_text()
    assert ESC not in raw  # JSON spells it
    record = json.loads(raw)
    assert record["model"]["id"].endswith(EVIL)


def test_evil_names_in_the_report(evil_run: tuple[Result, Path]) -> None:
    pytest.importorskip("condense.report.html")
    _, out = evil_run
    result = condense("report", out / "run.json", "--html", out / "run.html", "--plotlyjs", "none")
    assert result.exit_code == 0, result.output
    page = (out / "run.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and ESC not in page
    assert "&lt;script&gt;alert(1)" in page


def test_evil_names_in_refusals(tmp_path: Path) -> None:
    result = analyze(tmp_path / EVIL)
    assert_refused(result, 3, "no such file or directory", "[/foo]", "\\x1b[31m")
    assert_refused(analyze(f"a{ESC}]0;title\x07/b"), 3)


@pytest.mark.parametrize("key", ["architectures", "model_type", "attn_implementation", "quantization_config"])
def test_evil_values_in_a_config(copy_of: Copy, key: str) -> None:
    value: Any = f"{EVIL}\n\n\nTraceback"
    folder = edit_config(copy_of("llama"), **{key: [value] if key == "architectures" else value})
    result = analyze(folder)
    assert result.exit_code in (0, 3), result.output
    assert ESC not in result.output and (result.exit_code == 0 or len(lines_of(result)) <= 2)


def test_a_token_is_never_written_down(tiny: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_abcdefghijklmnop"
    for form in (["--token", secret], [f"--token={secret}"]):
        out = tmp_path / f"out{len(form)}"
        arguments = ["analyze", str(tiny("llama")), *FAST, *form, "-o", str(out)]
        monkeypatch.setattr(sys, "argv", ["condense", *arguments])
        result = condense(*arguments)
        assert_went_on(result)
        assert secret not in result.output
        for file in out.iterdir():
            assert secret not in file.read_text(), file.name
        assert "condense analyze" in json.loads((out / "diagnosis.json").read_text())["command"]


# --- the hub ----------------------------------------------------------------------------------------


def http_error(kind: type[Exception], status: int) -> Exception:
    import httpx2 as httpx

    request = httpx.Request("GET", "https://huggingface.co/api/models/a/b")
    return kind(f"{status} Client Error.\nRequest ID: x", response=httpx.Response(status, request=request))


def hub_failures() -> dict[str, tuple[Exception, str, str]]:
    import httpx2 as httpx
    from huggingface_hub import errors

    bare = http_error(errors.HfHubHTTPError, 401)
    wrapped = errors.LocalEntryNotFoundError("Cannot find the requested files in the disk cache")
    wrapped.__cause__ = http_error(errors.GatedRepoError, 403)
    return {
        "gated": (http_error(errors.GatedRepoError, 403), "a/b is gated", "accept its terms"),
        "gated-inside": (wrapped, "a/b is gated", "HF_TOKEN"),
        "missing": (http_error(errors.RepositoryNotFoundError, 404), "not on the hub, or it is private", "HF_TOKEN"),
        "revision": (http_error(errors.RevisionNotFoundError, 404), "has no such revision", "branches"),
        "disabled": (http_error(errors.DisabledRepoError, 403), "disabled", ""),
        "unauthorised": (bare, "401", "HF_TOKEN"),
        "offline": (errors.OfflineModeIsEnabled("offline"), "is not in the local cache", "--offline"),
        "not-cached": (errors.LocalEntryNotFoundError("no"), "is not in the local cache", "spelling"),
        "no-network": (httpx.ConnectError("Name or service not known"), "cannot reach the hub", "try again"),
        "timeout": (httpx.ReadTimeout("timed out"), "cannot reach the hub", "try again"),
        "name": (errors.HFValidationError("Repo id must be"), "neither a file, a folder nor a hub id", ""),
    }


@pytest.mark.parametrize("name", list(hub_failures()))
def test_failures_of_the_hub_are_told_apart(name: str) -> None:
    from condense.models.hub import explain

    error, line, hint = hub_failures()[name]
    told = explain(error, "a/b")
    assert isinstance(told, UnavailableError)
    assert line in str(told) and hint in told.hint
    assert "\n" not in str(told)


@pytest.mark.parametrize("name", ["gated", "missing", "no-network"])
def test_failures_of_the_hub_through_the_command(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import huggingface_hub

    def fails(*args: Any, **kwargs: Any) -> None:
        raise hub_failures()[name][0]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    assert_refused(analyze("a/b"), 3, hub_failures()[name][1])


def test_dataset_offline(tiny: Copy) -> None:
    pytest.importorskip("datasets")
    result = analyze(tiny("llama"), "--dataset", "nobody/no-such-dataset")
    assert_refused(result, 3, "dataset nobody/no-such-dataset cannot be loaded")


# --- options and settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["0", "-3", "many", "2.5", ""])
def test_bad_batch_size(tiny: Copy, size: str) -> None:
    assert_refused(analyze(tiny("llama"), f"--batch-size={size}"), 2, "--batch-size is", "auto")


def test_text_and_dataset(tiny: Copy, tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", SENTENCE * 20)
    result = analyze(tiny("llama"), "--text", text, "--dataset", "a/b")
    assert_refused(result, 2, "--text and --dataset are both given")


@pytest.mark.parametrize(
    "arguments",
    [["--max-lenght", "64"], ["--dtype", "float99"], ["--num-texts", "0"], ["--max-length", "x"], ["--seed", "-1"]],
)
def test_options_that_do_not_exist(arguments: list[str]) -> None:
    result = condense("analyze", "model", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert arguments[0] in result.stderr


def test_unknown_device(tiny: Copy) -> None:
    result = condense("analyze", tiny("llama"), "--device", "quantum:3")
    assert_refused(result, 2, "cannot use device 'quantum:3'", "--device cpu")


def test_missing_run() -> None:
    assert_refused(condense("report", "no-such.json"), 3, "no such run file")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": "condense.diagnosis/1"}', '{"schema": "other/9"}'])
def test_damaged_run(tmp_path: Path, text: str) -> None:
    assert_refused(condense("report", write(tmp_path / "run.json", text)), 3)


def test_unknown_key_in_a_settings_file(tiny: Copy) -> None:
    write(Path("condense.toml"), "[analyze]\nmax_lenght = 64\n")
    assert_refused(analyze(tiny("llama")), 2, "unknown key 'max_lenght' in [analyze]", "did you mean max_length?")


@pytest.mark.parametrize("key", ["trust_remote_code", "trust-remote-code", "allow_pickle", "token"])
def test_dangerous_keys_are_refused_in_a_settings_file(tiny: Copy, key: str) -> None:
    write(Path("condense.toml"), f"[analyze]\n{key} = true\n")
    assert_refused(analyze(tiny("llama")), 2, "only taken as a flag")


@pytest.mark.parametrize("text", ["[analyze", "analyze = 3", "\0"])
def test_damaged_settings(tiny: Copy, text: str) -> None:
    write(Path("condense.toml"), text)
    assert_refused(analyze(tiny("llama")), 2)


def test_named_settings_that_are_missing(tiny: Copy) -> None:
    assert_refused(condense("--config", "no.toml", "analyze", tiny("llama")), 2, "no such settings file: no.toml")


def length_of(result: Result, file: Path) -> int:
    assert result.exit_code == 0, result.output
    return int(json.loads(file.read_text())["corpus"]["length"])


def test_precedence_of_settings(tiny: Copy, tmp_path: Path) -> None:
    """Default < file < environment < flag."""
    out = tmp_path / "run.json"
    base = ["analyze", tiny("llama"), "--num-texts", 2, "--device", "cpu", "--json", out]
    assert length_of(condense(*base), out) == 128  # the default: the model's positions
    write(Path("pyproject.toml"), "[tool.condense.analyze]\nmax_length = 20\n")
    assert length_of(condense(*base), out) == 20
    write(Path("condense.toml"), "[analyze]\nmax_length = 24\n")
    assert length_of(condense(*base), out) == 24
    assert length_of(condense(*base, CONDENSE_ANALYZE__MAX_LENGTH="28"), out) == 28
    assert length_of(condense(*base, "--max-length", 32, CONDENSE_ANALYZE__MAX_LENGTH="28"), out) == 32
    assert length_of(condense(*base, "--max_length", 36), out) == 36  # as transformers spells it


def test_bad_values_from_the_environment(tiny: Copy) -> None:
    result = condense("analyze", tiny("llama"), CONDENSE_ANALYZE__MAX_LENGTH="long")
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert_refused(analyze(tiny("llama"), CONDENSE_ANALYZE__MAX_LENGHT="64"), 2, "did you mean max_length?")


# --- interruptions and bugs -------------------------------------------------------------------------


def subprocess_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def test_sigint(tiny: Copy, tmp_path: Path) -> None:
    """While it reads its text from a pipe: 130, one line, nothing written."""
    command = [
        sys.executable,
        "-m",
        "condense",
        "analyze",
        str(tiny("llama")),
        "--text",
        "-",
        "-o",
        str(tmp_path / "o"),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=subprocess_environment()
    )
    assert process.stdin is not None
    process.stdin.write(SENTENCE.encode() * 20_000)  # more than a pipe holds: written once it is being read
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.decode().strip() == "interrupted"
    assert output == b"" and not (tmp_path / "o").exists()


def test_closed_pipe(tiny: Copy) -> None:
    """`condense analyze … | head -1` ends quietly."""
    command = [sys.executable, "-m", "condense", "--quiet", "analyze", str(tiny("llama")), *FAST]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=subprocess_environment())
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 141), errors
    assert "Traceback" not in errors and "Exception" not in errors


def test_a_bug_is_one_line_and_debug_shows_it(tiny: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug\nof ours")

    monkeypatch.setattr("condense.models.checkpoint.read", broken)
    result = analyze(tiny("llama"))
    assert result.exit_code == 4
    assert "internal error (KeyError)" in result.stderr and "Traceback" not in result.output
    assert len(lines_of(result)) == 2
    result = condense("--debug", "analyze", tiny("llama"))
    assert result.exit_code == 4 and "Traceback" in result.stderr


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory"]
)
def test_out_of_memory(tiny: Copy, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def exhausted(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("condense.diagnosis.run.read_texts", exhausted)
    assert_refused(analyze(tiny("llama")), 4, "out of memory", "--batch-size")


def test_every_failure_has_its_exit_code() -> None:
    codes = {kind.__name__: kind.exit_code for kind in (CondenseError, *CondenseError.__subclasses__())}
    assert codes == {"CondenseError": 4, "UsageError": 2, "UnavailableError": 3, "RunError": 4}
    assert RunError("what", "then").hint == "then"
