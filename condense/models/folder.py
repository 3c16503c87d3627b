"""What is in a checkpoint folder, before anything is loaded or built. Standard library only.

Checkpoints are untrusted: names are checked, headers are read instead of tensors, and a config that
does not fit the weights raises UnavailableError here, within milliseconds.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from condense.errors import UnavailableError
from condense.files import is_special
from condense.models.recognise import recognise

PICKLE_HINT = "ask its author for safetensors, or pass --allow-pickle if you trust it"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip
COPY = "condense-copy.json"  # what is in a dequantised copy of a .gguf that was made here
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
IMPLEMENTATION = re.compile(r"\w*implementation\w*")
# Keys that send a loader to other files, folders or repositories, whatever the class.
_ELSEWHERE = re.compile(
    r"transformers_weights|configuration_files|gguf_file|fusion_config|distributed_config|extra_files|"
    r"backbone|(use_)?pretrained_backbone|use_pretrained|pretrained|weights_(path|file|url)"
)
FLOATS = ("F64", "F32", "F16", "BF16")
_WEIGHT = re.compile(r".*(^|[._])q?weight(_packed|_scale)?|.*\.bias")
_MASK = re.compile(r".*\b(attn|attention)\.(masked_)?bias")  # a buffer that older releases of GPT-2 saved
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)\.")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_STACK_DEPTH_KEYS = {
    "encoder": ("encoder_layers", "num_encoder_layers", *_DEPTH_KEYS),
    "decoder": ("decoder_layers", "num_decoder_layers", *_DEPTH_KEYS),
}
_MAX_DEPTH = 2000  # beyond every published model; building more costs minutes before anything can be checked
_OTHER_TOWER = re.compile("vision|visual|image|audio")
_PREDICTION_LAYER = re.compile(r"^(.*\.\d+\.)(?:eh_proj|enorm|hnorm)\.")
_MAX_HEADER = 100 * 2**20
# Kinds of adapters whose merged weights are the adapted model. Others feed virtual tokens, choose between adapters at
# run time, or have a second model loaded by the name in their config.
_MERGEABLE = frozenset(
    "ADALORA ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR LORA "
    "MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA "
    "WAVEFT".split()
)
# Options with which PEFT imports a module, reads another file or waits for a token before it acts.
_OUTSIDE = (
    "megatron_config",
    "arrow_config",
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "alora_invocation_tokens",
)


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder on disk: its config and the files its weights are in; `origin`: those it was made of."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    has_tokenizer: bool
    contrastive: bool
    origin: tuple[Path, ...] = ()

    @property
    def is_pickle(self) -> bool:
        """True if the weights can only be read by unpickling."""
        return bool(self.weights) and self.weights[0].suffix != ".safetensors"


_PATHS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", "/")


def is_path(name: str) -> bool:
    """True if MODEL is a path on disk rather than a hub id."""
    looks = name.startswith((".", "/", "~")) or name.lower().endswith(_PATHS)
    return looks or name.count("/") > 1 or _exists(Path(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False


def open_folder(path: Path) -> Folder:
    """Read the config and find the weights; UnavailableError for what is missing, unsafe or damaged."""
    if not path.exists():
        raise UnavailableError(f"no such file or directory: {path}", "give a hub id, a folder or a .gguf file")
    if not path.is_dir() or not (path / "config.json").exists():
        if (other := recognise(path)) is not None:
            raise other.error(path)
    if not path.is_dir():
        raise UnavailableError(f"{path} is not a checkpoint folder or a .gguf file")
    refuse_special(path)
    config = read_config(path)
    return Folder(path, config, _weight_files(path), has_tokenizer(path), (path / "modules.json").exists())


def refuse_special(path: Path) -> None:
    """UnavailableError for a folder with a pipe, a socket or a device in it: a loader would wait for it for ever."""
    for file in path.iterdir():
        if is_special(file):
            raise UnavailableError(f"{file.name} in {path} is a pipe or a device, not a file")


def has_tokenizer(path: Path) -> bool:
    """True if a tokenizer's own files (not only its config) are in the folder; UnavailableError for git pointers."""
    if path.is_dir():
        refuse_special(path)
    files = [path / name for name in _TOKENIZER_FILES if (path / name).exists()]
    for file in files:
        refuse_pointer(file)
    return bool(files) or _needs_no_vocabulary(path)


def _needs_no_vocabulary(path: Path) -> bool:
    """Whether a folder's tokenizer reads bytes or code points as they are, and so has no files but its config."""
    return any(config.get("tokenizer_class") in _WITHOUT_VOCABULARY for config in _tokenizer_configs(path))


def names_own_tokenizer(path: Path) -> bool:
    """Whether a folder's tokenizer is code of its own, whatever its files are called."""
    maps = [config.get("auto_map") for config in _tokenizer_configs(path)]
    return any(isinstance(own, dict) and bool(own.get("AutoTokenizer")) for own in maps)


def _tokenizer_configs(path: Path) -> Iterator[dict[str, Any]]:
    for name in ("tokenizer_config.json", "config.json"):
        try:
            content = json.loads((path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """Parse and check config.json; UnavailableError for code to fetch and for impossible sizes."""
    file = path / name
    if not file.exists():
        raise UnavailableError(f"no {name} in {path}", "is it a Hugging Face checkpoint folder?")
    refuse_pointer(file)
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError):
        raise UnavailableError(f"{file} is not JSON", "the file is damaged: fetch it again") from None
    if not isinstance(config, dict):
        raise UnavailableError(f"{file} is not a JSON object")
    for key, value in entries_of(config):
        if name == "config.json" and _ELSEWHERE.fullmatch(key) and value not in (None, False, "", [], {}):
            raise UnavailableError(f"{name} names something else to load ({key} = {value})", "remove that key")
        if IMPLEMENTATION.fullmatch(key) and any("/" in text for text in texts_in(value)):  # may be set per part
            raise UnavailableError(
                f"{name} asks for a remote kernel ({key} = {value})", "remove that key; condense runs no foreign code"
            )
        if isinstance(value, float) and not math.isfinite(value):  # the upper end of a range in a list may be infinite
            raise UnavailableError(f"{name} holds a number that is not finite ({key} = {value})", "it is damaged")
        if isinstance(value, int) and _is_impossible(key, value):
            raise UnavailableError(f"{name} asks for {value} layers ({key})", "the config is damaged")
    return config


def check_adapter(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json; UnavailableError for a kind of adapter or an option that cannot be merged."""
    config = read_config(folder, "adapter_config.json")
    kind = config.get("peft_type")
    reason = next((f"with {key}" for key in _OUTSIDE if config.get(key)), None)
    if kind is not None and kind not in _MERGEABLE:
        reason = f"of type {kind}"
    if reason:
        raise UnavailableError(
            f"an adapter {reason} cannot be merged into the weights", "LoRA and its relatives can be measured"
        )
    return config


def _is_impossible(key: str, depth: int) -> bool:
    every = {key for keys in _STACK_DEPTH_KEYS.values() for key in keys}
    return (key in _DEPTH_KEYS and depth < 1) or (key in every and not 0 <= depth <= _MAX_DEPTH)


def texts_in(value: Any) -> list[str]:
    """All texts in a value of a config, however deep."""
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def entries_of(config: Any) -> Iterator[tuple[str, Any]]:
    """All keys of a config with their values, those of its parts among them."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield str(key), value
            yield from entries_of(value)
    elif isinstance(config, list):
        for value in config:
            yield from entries_of(value)


def _weight_files(path: Path) -> tuple[Path, ...]:
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return (path / "model.safetensors",)
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, UnicodeDecodeError, RecursionError):
            raise UnavailableError(f"{index} is not a shard index", "the file is damaged: fetch it again") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or name in ("", "..", "."):
                raise UnavailableError(f"{index.name} names a shard outside the folder: {name}")
            if not (path / name).exists():
                raise UnavailableError(f"shard {name} is missing in {path}", "the download is incomplete")
        return tuple(path / name for name in names)
    whole = path / "pytorch_model.bin"
    return (whole,) if whole.exists() else tuple(sorted(path.glob("pytorch_model-*.bin")))


def check_weights(folder: Folder, *, allow_pickle: bool = False) -> None:
    """Read the headers of the weights: complete files, and as many layers as the config says."""
    if not folder.weights:
        if (other := recognise(folder.path)) is not None:
            raise other.error(folder.path)
        raise UnavailableError(f"no weights in {folder.path}", "expected model.safetensors or its shards")
    if folder.is_pickle:
        if not allow_pickle:
            raise UnavailableError(f"{folder.path} has pickled weights only ({folder.weights[0].name})", PICKLE_HINT)
        for file in folder.weights:
            refuse_pointer(file)
        return
    headers = [entry for file in folder.weights for entry in safetensors_header(file).items()]
    _check_types(folder, headers)
    _check_depth_of_weights([name for name, _ in headers], folder.config)


def _check_types(folder: Folder, headers: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Integers and packed types stand for weights only by a rule that `quantization_config` names."""
    if any(key == "quantization_config" and value for key, value in entries_of(folder.config)):
        return
    for name, entry in headers:
        if entry.get("dtype") not in FLOATS and _WEIGHT.fullmatch(name) and not _MASK.fullmatch(name):
            refuse_type(name, entry, folder)


def refuse_type(name: str, entry: dict[str, Any], folder: Folder) -> NoReturn:
    """UnavailableError for a weight of a type that is no number by itself."""
    raise UnavailableError(
        f"{name} in {folder.path.name} is of type {entry.get('dtype')}, and config.json names no quantisation",
        "use the checkpoint that it was made from, or a .gguf of it",
    )


def safetensors_header(file: Path) -> dict[str, Any]:
    """Names, types and shapes of the tensors of a safetensors file, from its header alone."""
    refuse_pointer(file)
    broken = UnavailableError(f"{file.name} is truncated or not safetensors", "fetch the file again")
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER:
                raise broken
            header = json.loads(stream.read(size))
        tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
        ends = [entry["data_offsets"][1] for entry in tensors.values()]
        if not all(isinstance(entry["dtype"], str) and _are_sizes(entry["shape"]) for entry in tensors.values()):
            raise broken
        if not _are_sizes(ends):
            raise broken
    except (OSError, struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise broken from None
    if file.stat().st_size < 8 + size + max(ends, default=0):
        raise broken
    return tensors


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def refuse_pointer(file: Path) -> None:
    """UnavailableError, with the command to run, for a git-lfs pointer in place of the file."""
    try:
        with file.open("rb") as stream:
            head = stream.read(24)
    except OSError as error:
        raise UnavailableError(f"cannot read {file}: {error.strerror or error}") from None
    if head.startswith(b"version https://git-lfs"):
        raise UnavailableError(f"{file.name} is a Git LFS pointer, not the file itself", "run: git lfs pull")


def _check_depth_of_weights(names: list[str], config: dict[str, Any]) -> None:
    """The number of blocks named in the weights must be the config's, in every stack."""
    held_depths = _depths_in_weights(without_prediction_layers(names))
    if config.get("num_hidden_groups"):  # one block is called many times: its number is not the depth
        return
    for stack, config_depths in _depths_in_config(config).items():
        depths = [depth for prefix, depth in held_depths.items() if stack in ("", _stack_of(prefix))]
        if config_depths and depths and not config_depths & set(depths):
            which = f" {stack}" if stack else ""
            raise UnavailableError(
                f"config.json says {min(config_depths)}{which} layers, the weights hold {max(depths)}",
                "config and weights do not belong together; a truncated or half-random model is not measured",
            )


def _depths_in_config(config: dict[str, Any]) -> dict[str, set[int]]:
    """Per stack ("" where there is one) the depths that the config may mean."""

    def values(table: dict[str, Any], keys: tuple[str, ...]) -> list[int]:
        return [table[key] for key in keys if isinstance(table.get(key), int)]

    if config.get("is_encoder_decoder"):
        own = {stack: inner if isinstance(inner := config.get(stack), dict) else config for stack in _STACK_DEPTH_KEYS}
        return {stack: set(values(own[stack], keys)[:1]) for stack, keys in _STACK_DEPTH_KEYS.items()}
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    return {"": set(values(text, _DEPTH_KEYS)[:1]) | set(values(text, ("decoder_layers",)))}


def _depths_in_weights(names: Iterable[str]) -> dict[str, int]:
    """For every list of blocks that is named in the weights (by its prefix), how many it holds."""
    depths: dict[str, int] = {}
    for name in names:
        match = _BLOCK.search(name)
        if match and not _OTHER_TOWER.search(name):
            prefix = name[: match.start(1)]
            depths[prefix] = max(depths.get(prefix, 0), int(match.group(1)) + 1)
    return depths


def _stack_of(prefix: str) -> str:
    return next((part for part in prefix.split(".") if part in _STACK_DEPTH_KEYS), "")


def without_prediction_layers(names: Iterable[str]) -> list[str]:
    """Names of weights without the extra layers that predict further tokens (DeepSeek-V3, GLM-4.5).

    They come after the blocks in the same list, and transformers does not build them.
    """
    listed = list(names)
    extra = tuple({match.group(1) for name in listed if (match := _PREDICTION_LAYER.match(name))})
    return [name for name in listed if not extra or not name.startswith(extra)]
