"""Tokenizers of a folder or a `.gguf` file, opened without drawing at random or reading elsewhere.

A `.gguf` holds no tokenizer.json: the tokenizer is built from its keys by the rules of llama.cpp, most of which
transformers follows.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condense.errors import UnavailableError, first_line
from condense.models import folder as inspection
from condense.models.checks import reported
from condense.models.gguf import Gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG = "tokenizer_config.json"
SPECIAL_KEYS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
# Of llama.cpp: the ids of special tokens in files that name none, by tokenizer.ggml.model.
_SPECIAL = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}
# Pre-tokenizers of llama.cpp that split text as GPT-2's does, and those that split digits off first.
_AS_GPT2 = (
    "default gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais "
    "trillion granite-docling roberta-bpe"
).split()
_SINGLE_DIGITS = "smollm starcoder refact command-r codeshell exaone minerva-7b".split()
# Those that look up whole words in the vocabulary before they merge, and those that begin with a BOS.
_WHOLE_WORDS = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken".split()
_WITH_BOS = (*_WHOLE_WORDS, "chameleon")


def load_tokenizer(
    path: Path, config: Any = None, *, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Open the tokenizer of a folder, with notes on what was switched off in it.

    config: the model's as it is honoured; without it the class is that of tokenizer_config.json alone.

    UnavailableError if there is none, or for one that is damaged or draws tokens at random.
    """
    from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    if not inspection.has_tokenizer(path) and not trust_remote_code:
        raise UnavailableError(f"no tokenizer in {path}", "pass --tokenizer with a hub id or a folder")
    _check_config(path)
    with reported(f"the tokenizer in {path}"), silent_panics():
        if (
            path / inspection.COPY
        ).exists():  # as it was saved: the class that its model type has would split text anew
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path),
                config=config or PreTrainedConfig(),  # or config.json would be read again, and not by our rules
                trust_remote_code=trust_remote_code,
                local_files_only=True,
            )
        notes = _without_dropout(tokenizer)
        tokenizer("a b", add_special_tokens=False)  # a normaliser that crashes does so here
    return tokenizer, notes


def _check_config(path: Path) -> None:
    """UnavailableError where tokenizer_config.json names another file to read, or asks for sampling."""
    if not (path / _CONFIG).exists():
        return
    config = inspection.read_config(path, _CONFIG)
    versions = config.get("fast_tokenizer_files") or []
    outside = not isinstance(versions, list) or any(Path(str(name)).name != name for name in versions)
    for key, wrong in (("gguf_file", config.get("gguf_file")), ("fast_tokenizer_files", outside)):
        if wrong:
            raise UnavailableError(f"{_CONFIG} in {path} names other files to read ({key})", "remove that key")
    sampling = config.get("sp_model_kwargs")
    if isinstance(sampling, dict) and sampling.get("enable_sampling"):
        raise UnavailableError(
            f"the tokenizer in {path} draws its tokens at random (sp_model_kwargs: enable_sampling)",
            "remove that key: every run would measure other tokens",
        )


def _without_dropout(tokenizer: Any) -> tuple[str, ...]:
    """Switch off BPE dropout (Provilkov et al. 2020, arXiv:1910.13267); return what a reader should know of it."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    dropout = getattr(model, "dropout", None)
    if not dropout:
        return ()
    model.dropout = None
    return (f"the tokenizer's BPE dropout of {dropout:g} is switched off: it draws other tokens in every run",)


@contextlib.contextmanager
def silent_panics() -> Iterator[None]:
    """Discard what Rust writes of a panic straight to file descriptor 2; the exception has the same message."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed by the parent process
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --- of a .gguf file --------------------------------------------------------------------------------


def special_token(model: Gguf, token: str) -> int | None:
    """The id of `bos`, `eos`, `unk` or `pad` in a file: what it states, else llama.cpp's default for its tokenizer."""
    stated = model.metadata.get(f"tokenizer.ggml.{SPECIAL_KEYS[token]}")
    if stated is None:
        stated = _SPECIAL.get(str(model.metadata.get("tokenizer.ggml.model")), {}).get(token)
    rows = model.tensors["token_embd.weight"].shape[0]
    return stated if isinstance(stated, int) and 0 <= stated < rows else None


def save_tokenizer_of(model: Gguf, folder: Path) -> str | None:
    """Save a file's tokenizer in a folder; return the reason for none where the rule of splitting text is unknown."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    file = model.parts[0]
    kind, split = model.metadata.get("tokenizer.ggml.model"), model.metadata.get("tokenizer.ggml.pre", "default")
    if kind is None:
        return f"{file.name} holds no tokenizer"
    if kind == "gpt2" and split not in (*GGUF_PRE_TOKENIZER_SPLITS, *_AS_GPT2, *_SINGLE_DIGITS):
        return f"{file.name} splits text by a rule that is not known here ({split})"
    try:
        architecture, content, config = get_gguf_tokenizer(str(file))
        backend, _ = convert_gguf_tokenizer(architecture, content)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"the tokenizer in {file.name} cannot be read: {first_line(error)}"
    tokens = content["tokens"]
    for token in SPECIAL_KEYS:
        index = special_token(model, token)
        config[f"{token}_token"] = tokens[index] if index is not None and index < len(tokens) else None
    config.setdefault("add_bos_token", kind == "llama" or split in _WITH_BOS)
    config.setdefault("add_eos_token", kind == "t5")
    _split_as_llama_cpp(backend, str(kind), str(split), content.get("add_prefix_space") is not False)
    length = model.metadata.get(f"{architecture}.context_length")
    more = {"model_max_length": length} if length else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, **config, **more).save_pretrained(str(folder))
    return None


def _split_as_llama_cpp(backend: Any, kind: str, split: str, prefixed: bool) -> None:
    """What transformers leaves out of the rules by which llama.cpp splits text."""
    from tokenizers import pre_tokenizers

    if kind == "gpt2" and split in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if kind == "gpt2" and split in _WHOLE_WORDS:
        backend.model.ignore_merges = True
    if not prefixed and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
