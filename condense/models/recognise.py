"""Recognises files and folders that are not Hugging Face checkpoints, with a hint for each. Standard library.

By names, and by the directory of a zip archive: no pickle is opened.
"""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from condense.errors import UnavailableError

_FULL_WEIGHTS = (
    (".onnx", "an ONNX graph", "give the checkpoint that it was exported from"),
    (".h5", "a TensorFlow or Keras file", "give the checkpoint in safetensors"),
    (".msgpack", "a Flax checkpoint", "give the checkpoint in safetensors"),
    (".nemo", "a NeMo archive", "export it to a Hugging Face folder with NeMo's converter"),
    (".mlx", "an MLX file", "give the checkpoint in safetensors"),
)
_ATTRIBUTE = "model"
_PRINT = "print(run.verdict.level, run.deep['mean_cosine'].value)"
_CACHED = re.compile(r"models--(.+)")
_META = re.compile(r"consolidated\.\d+\.pth")
_NANOCHAT = re.compile(r"model_(\d+)\.pt")


@dataclass(frozen=True)
class Other:
    """The kind of a file or folder, and the command or the lines of Python that measure it."""

    what: str
    hint: str

    def error(self, path: Path) -> UnavailableError:
        """The error raised in place of reading it as a Hugging Face checkpoint."""
        return UnavailableError(f"{path} is {self.what}, not a Hugging Face checkpoint", self.hint)


def recognise(path: Path) -> Other | None:
    """What a file, or a folder without a config.json or without weights, is; None where it is not recognised."""
    try:
        if path.is_dir():
            names = {inner.name for inner in path.iterdir()}
            return next((known for kind in _FOLDERS if (known := kind(path, names)) is not None), None)
        return _file(path) if path.is_file() else None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # a damaged file is not recognised
        return None


def python(*lines: str) -> str:
    """A hint of several lines of Python."""
    return "in Python:" + "".join(f"\n    {line}" for line in lines)


# --- files ----------------------------------------------------------------------------------------------


def _file(path: Path) -> Other | None:
    name = path.name
    if name == "lit_model.pth":
        return _litgpt(path.parent, {inner.name for inner in path.parent.iterdir()} | {"model_config.yaml"})
    if _META.fullmatch(name):
        return _meta(path.parent, {name})
    if _NANOCHAT.fullmatch(name):
        return _nanochat(path.parent, {name, name.replace("model_", "meta_").replace(".pt", ".json")})
    if path.suffix == ".safetensors":
        if (path.parent / "config.json").exists():
            return Other("the weights alone", f"give the folder: {shlex.quote(str(path.parent))}")
        return Other("the weights alone, without a config.json", _state_dict("load_file", path))
    for suffix, what, hint in _FULL_WEIGHTS:
        if name.endswith(suffix):
            return Other(what, hint)
    if not _is_torch_file(path):
        return None
    if name == "ckpt.pt":
        return Other("a checkpoint of nanoGPT", _nanogpt(path))
    if path.suffix == ".ckpt":
        return Other(
            "a checkpoint of Lightning",
            python(
                f"import condense, torch  # and your module, with its list of blocks in module.{_ATTRIBUTE}",
                f"state = torch.load({str(path)!r}, map_location='cpu', weights_only=True)['state_dict']",
                f"module.load_state_dict({{k.removeprefix('{_ATTRIBUTE}.'): v for k, v in state.items()}})",
                f"run = condense.analyze(module, condense.windows(tokenizer, max_length=128)); {_PRINT}",
            ),
        )
    return Other("a file of torch.save", _state_dict("torch.load", path))


def _state_dict(reader: str, path: Path) -> str:
    load = f"load_file({str(path)!r})"
    if reader == "torch.load":
        load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=True)"
    return python(
        "import condense, torch; from safetensors.torch import load_file  # and the module that the weights are of",
        f"state = {load}",
        "module.load_state_dict({k.removeprefix('_orig_mod.').removeprefix('module.'): v for k, v in state.items()})",
        f"run = condense.analyze(module, condense.windows(tokenizer, max_length=128)); {_PRINT}  # or windows(ids)",
    )


def _is_torch_file(path: Path) -> bool:
    """Whether torch.save wrote a file: a zip archive with a data.pkl, or, before torch 1.6, a bare pickle."""
    if not path.is_file():  # a pipe or a device, which may never end
        return False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    with path.open("rb") as stream:
        return path.suffix in (".pt", ".pth", ".bin", ".ckpt") and stream.read(2) == b"\x80\x02"


def _nanogpt(path: Path) -> str:
    return python(
        "import condense, numpy, torch; from model import GPT, GPTConfig  # nanoGPT's model.py",
        f"ckpt = torch.load({str(path)!r}, map_location='cpu', weights_only=True)",
        "model, ids = GPT(GPTConfig(**ckpt['model_args'])), numpy.memmap('data/DATASET/val.bin', numpy.uint16, 'r')",
        "model.load_state_dict({k.removeprefix('_orig_mod.'): v for k, v in ckpt['model'].items()})",
        f"run = condense.analyze(model, condense.windows(ids, positions=model.config.block_size)); {_PRINT}",
    )


# --- folders --------------------------------------------------------------------------------------------


def _nanogpt_folder(path: Path, names: set[str]) -> Other | None:
    if "ckpt.pt" not in names or not _is_torch_file(path / "ckpt.pt"):
        return None
    return Other("an output folder of nanoGPT (ckpt.pt)", _nanogpt(path / "ckpt.pt"))


def _nanochat(path: Path, names: set[str]) -> Other | None:
    steps = [match[1] for name in names if (match := _NANOCHAT.fullmatch(name)) and f"meta_{match[1]}.json" in names]
    if not steps:
        return None
    step = max(steps)
    return Other(
        f"a checkpoint folder of nanochat (step {int(step)})",
        python(
            "import condense, torch; from nanochat.checkpoint_manager import build_model",
            f"model, tokenizer, _ = build_model({str(path)!r}, {int(step)}, torch.device('cpu'), 'eval')",
            "ids = tokenizer.encode(open('TEXT.txt').read())",
            "run = condense.analyze(model, condense.windows(ids))",
            _PRINT,
        ),
    )


def _litgpt(path: Path, names: set[str]) -> Other | None:
    if not {"lit_model.pth", "model_config.yaml"} <= names:
        return None
    return Other(
        "a checkpoint folder of litgpt",
        python(
            "import condense, torch; from litgpt import GPT, Config; from transformers import AutoTokenizer",
            f"model = GPT(Config.from_file({str(path / 'model_config.yaml')!r}))",
            f"state = torch.load({str(path / 'lit_model.pth')!r}, map_location='cpu', weights_only=True)",
            "model.load_state_dict(state.get('model', state))",
            f"tokenizer, most = AutoTokenizer.from_pretrained({str(path)!r}), model.config.block_size",
            f"run = condense.analyze(model, condense.windows(tokenizer, positions=most)); {_PRINT}",
        ),
    )


def _meta(path: Path, names: set[str]) -> Other | None:
    quoted = shlex.quote(str(path))
    if any(_META.fullmatch(name) for name in names):
        return Other(
            "a checkpoint in Meta's own format (consolidated.*.pth)",
            "convert it with convert_llama_weights_to_hf.py of transformers' repository: "
            f"python convert_llama_weights_to_hf.py --input_dir {quoted} --output_dir OUT && condense analyze OUT",
        )
    if "consolidated.safetensors" in names or {"consolidated-00001-of-00001.safetensors", "params.json"} <= names:
        return Other(
            "a checkpoint in Mistral's own format (consolidated.safetensors)",
            "convert it with convert_mistral_weights_to_hf.py of transformers' repository: "
            f"python convert_mistral_weights_to_hf.py --input_dir {quoted} --output_dir OUT && condense analyze OUT",
        )
    return None


def _deepspeed(path: Path, names: set[str]) -> Other | None:
    steps = [name for name in names if re.fullmatch(r"global_step\d+", name)]
    inside = any(name.endswith(("model_states.pt", "optim_states.pt")) for name in names)
    if "zero_to_fp32.py" not in names and not (steps and "latest" in names) and not inside:
        return None
    root = path.parent if inside and not steps else path
    return Other(
        "a checkpoint of DeepSpeed",
        f"python -m deepspeed.utils.zero_to_fp32 {shlex.quote(str(root))} OUT --safe_serialization, "
        "then put config.json and the tokenizer into OUT: condense analyze OUT",
    )


def _fsdp(path: Path, names: set[str]) -> Other | None:
    own = path.name if path.name.startswith("pytorch_model_fsdp") and ".metadata" in names else None
    inner = next((name for name in sorted(names) if name.startswith("pytorch_model_fsdp")), None)
    if own is None and (inner is None or not (path / inner / ".metadata").exists()):
        return None
    shards = shlex.quote(str(path if own else path / str(inner)))
    return Other(
        "a sharded checkpoint of FSDP",
        f"accelerate merge-weights {shards} OUT, then put config.json and the tokenizer into OUT: condense analyze OUT",
    )


def _distributed(path: Path, names: set[str]) -> Other | None:
    if ".metadata" not in names or not any(name.endswith(".distcp") for name in names):
        return None
    quoted = shlex.quote(str(path))
    return Other(
        "a distributed checkpoint of torch (DCP)",
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {quoted} OUT.pt && condense analyze OUT.pt "
        "(which says how to go on)",
    )


def _lightning(path: Path, names: set[str]) -> Other | None:
    files = sorted(name for name in names if name.endswith(".ckpt") and (path / name).is_file())
    return _file(path / files[-1]) if files else None


def _megatron(path: Path, names: set[str]) -> Other | None:
    if "latest_checkpointed_iteration.txt" not in names:
        return None
    return Other(
        "a checkpoint of Megatron-LM",
        "export it to a Hugging Face folder with tools/checkpoint/convert.py of Megatron-LM",
    )


def _cached_model(path: Path, names: set[str]) -> Other | None:
    match = _CACHED.fullmatch(path.name)
    if match is None or "snapshots" not in names:
        return None
    return Other(
        "the hub cache's folder of a model",
        f"name the model: condense analyze {shlex.quote(match[1].replace('--', '/'))} --offline",
    )


def _cache(path: Path, names: set[str]) -> Other | None:
    models = sorted(match[1].replace("--", "/") for name in names if (match := _CACHED.fullmatch(name)))
    if not models:
        hub = path / "hub"
        return _cache(hub, {inner.name for inner in hub.iterdir()}) if "hub" in names and hub.is_dir() else None
    more = f" (and {len(models) - 1} others)" if len(models) > 1 else ""
    return Other("a cache of the hub", f"name a model in it: condense analyze {shlex.quote(models[0])} --offline{more}")


def _gguf_files(path: Path, names: set[str]) -> Other | None:
    files = sorted(name for name in names if name.lower().endswith(".gguf"))
    if not files:
        return None
    return Other(
        f"a folder of {len(files)} .gguf file{'s' * (len(files) != 1)}",
        f"name one: condense analyze {shlex.quote(str(path / files[0]))}",
    )


def _trainer(path: Path, names: set[str]) -> Other | None:
    """A run of the Trainer, or any folder with a checkpoint one level below."""
    inner = [name for name in names if any((path / name / file).is_file() for file in _CONFIGS)]
    if not inner:
        return None
    steps = sorted((int(match[1]), name) for name in inner if (match := re.fullmatch(r"checkpoint-(\d+)", name)))
    chosen = steps[-1][1] if steps else sorted(inner)[0]
    command = f"condense analyze {shlex.quote(str(path / chosen))}"
    if len(steps) > 1:
        return Other(
            f"a folder of {len(steps)} checkpoints", f"condense compare {shlex.quote(str(path))}, or {command}"
        )
    return Other(f"a folder with a checkpoint in it ({chosen})", command)


_CONFIGS = ("config.json", "adapter_config.json")


def _exports(path: Path, names: set[str]) -> Other | None:
    for suffix, what, hint in _FULL_WEIGHTS:
        if any(name.endswith(suffix) for name in names):
            return Other(f"a folder with {what}", hint)
    return None


_FOLDERS: tuple[Callable[[Path, set[str]], Other | None], ...] = (
    _cached_model,
    _cache,
    _litgpt,
    _nanochat,
    _nanogpt_folder,
    _meta,
    _fsdp,
    _deepspeed,
    _distributed,
    _megatron,
    _lightning,
    _gguf_files,
    _trainer,
    _exports,
)


def unwrapped_names(names: list[str]) -> Iterator[tuple[str, str]]:
    """Each name of a state dict with the one it has without what torch.compile and data parallelism put before all."""
    prefix = ""
    while names and (own := next((p for p in _WRAPPERS if all(n[len(prefix) :].startswith(p) for n in names)), None)):
        prefix += own
    yield from ((name, name[len(prefix) :]) for name in names)


_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")
