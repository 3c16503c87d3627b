"""Open a checkpoint: hub id, folder, adapter, .gguf or a config with random weights.

The only file that loads through transformers. No code from a checkpoint runs unless asked
(`trust_remote_code`), no pickle is read unless asked (`allow_pickle`), and a model whose weights are
missing, mismatched, truncated or not finite is refused, never measured silently.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condense import gguf, hub, inspection
from condense.capture import find_stacks
from condense.errors import CondenseError, RunError, UnavailableError, UsageError
from condense.inspection import Folder, safetensors_header
from condense.records import ModelInfo, Objective
from condense.soundness import built_from, check_loaded, check_quantisation, first_misfit, refuse_not_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer and what is known of where they come from.

    `head_missing` says why there is no language-modelling head to score with, or is None; `source_dtype` and
    `use_cache` are what the checkpoint itself says, for saving it again.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    positions: int | None
    head_missing: str | None = None
    source_dtype: str = "float32"
    use_cache: bool = True


@dataclass(frozen=True)
class Options:
    """How to open a checkpoint; the same for the model, its tokenizer and a base model."""

    revision: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    device_map: str | None = None
    tokenizer: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    token: str | None = None
    offline: bool = False
    random_init: bool = False
    seed: int = 0


def load(model: str | Path, **options: Any) -> Checkpoint:
    """Open MODEL for measuring: eval mode, float32 unless asked otherwise. See `Options` for the keywords.

    UnavailableError for what is missing, unsafe, damaged or unsupported; UsageError for options that
    do not go together.
    """
    chosen = Options(**options)
    name = str(model)
    folder, info_format, revision = _locate(name, chosen)
    adapter = folder.path if (folder.path / "adapter_config.json").exists() else None
    if adapter and folder.weights:
        raise UnavailableError(
            f"{folder.path} holds both a model's weights and an adapter", "move one of them to a folder of its own"
        )
    base = _base_folder(folder, chosen) if adapter else folder
    if not chosen.random_init:
        inspection.check_weights(base, allow_pickle=chosen.allow_pickle)
    with _reported(name):
        loaded, head_missing, notes = _build(base, chosen)
        if adapter:
            loaded = _merged(loaded, adapter)
    tokenizer = load_tokenizer(chosen.tokenizer or _tokenizer_folder(folder, base, name), chosen)
    loaded = _placed(loaded, chosen)
    info = _info(name, loaded, base, chosen, info_format, revision, notes)
    if adapter:
        info = replace(info, source_format="adapter", weights_sha256=_adapter_sha256(adapter, info.weights_sha256))
    return Checkpoint(
        loaded, tokenizer, info, _positions(loaded.config), head_missing,
        source_dtype=str(base.config.get("dtype") or base.config.get("torch_dtype") or "float32"),
        use_cache=bool(base.config.get("use_cache", True)),
    )  # fmt: skip


def random_twin(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The same architecture with random weights, as training would start it; same tokenizer."""
    config = checkpoint.model.config
    with _reported(checkpoint.info.id):
        model = _random(type(checkpoint.model), config, seed)
    model = model.to(device=checkpoint.model.device, dtype=checkpoint.model.dtype).eval()
    info = replace(checkpoint.info, source_format="random", weights_sha256=_random_sha256(config, seed), revision=None)
    return replace(checkpoint, model=model, info=info)


def load_tokenizer(place: str | Path, options: Options) -> PreTrainedTokenizerBase:
    """Open a tokenizer from a folder or hub id; UnavailableError if there is none."""
    from transformers import AutoTokenizer

    local = Path(place).expanduser()
    if inspection.is_path(str(place)):
        if local.suffix == ".gguf":
            local = gguf.converted(local, options.trust_remote_code)
        if not local.exists():
            raise UnavailableError(f"no such file or directory: {local}")
        if not inspection.has_tokenizer(local) and not options.trust_remote_code:
            raise UnavailableError(f"no tokenizer in {local}", "pass --tokenizer with a hub id or a folder")
        place = local
    else:
        place = hub.fetch(str(place), options.revision, options.token, options.offline, tokenizer_only=True).path
    try:
        return AutoTokenizer.from_pretrained(
            str(place), trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizer files come from outside: any failure means they are unusable
        raise UnavailableError(f"the tokenizer in {place} cannot be loaded: {first_line(error)}") from error


def _locate(name: str, options: Options) -> tuple[Folder, str, str | None]:
    """The folder that holds MODEL, the format it came in, and its resolved revision."""
    if not inspection.is_path(name):
        fetched = hub.fetch(
            name, options.revision, options.token, options.offline,
            allow_pickle=options.allow_pickle, code=options.trust_remote_code, weights=not options.random_init,
        )  # fmt: skip
        return _opened(fetched.path), "safetensors", fetched.revision
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        with _reported(name):
            kind = gguf.quantisation(path)
            return _opened(gguf.converted(path)), f"gguf ({kind})", None
    folder = _opened(path)
    return folder, "pickle" if folder.is_pickle else "safetensors", None


def _opened(path: Path) -> Folder:
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        return Folder(path, {}, (), inspection.has_tokenizer(path), contrastive=False)
    return inspection.open_folder(path)


def _base_folder(adapter: Folder, options: Options) -> Folder:
    base = inspection.read_config(adapter.path, "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnavailableError(f"{adapter.path}/adapter_config.json names no base model")
    with contextlib.suppress(UsageError):
        relative = adapter.path / base
        if not Path(base).is_absolute() and relative.exists():
            base = str(relative)
    return _locate(base, options)[0]


def _tokenizer_folder(folder: Folder, base: Folder, name: str) -> Path:
    for place in (folder, base):
        if place.has_tokenizer:
            return place.path
    raise UnavailableError(f"no tokenizer in {name}", "pass --tokenizer with a hub id or a folder")


def _config(folder: Folder, options: Options) -> Any:
    from transformers import AutoConfig

    check_quantisation(folder)
    if folder.config.get("auto_map") and not options.trust_remote_code:
        known = _known(folder.config.get("model_type"))
        if not known:
            raise UnavailableError(
                f"{folder.path.name} needs code of its own (auto_map)", "read that code, then pass --trust-remote-code"
            )
    config = AutoConfig.from_pretrained(
        str(folder.path), trust_remote_code=options.trust_remote_code, local_files_only=True
    )
    config.return_dict = True
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _model_class(config: Any, options: Options) -> Any:
    """The class that config.architectures names, if transformers has it; else the base model's."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        if options.trust_remote_code and "CausalLM" in name:
            return transformers.AutoModelForCausalLM
        if options.trust_remote_code and "MaskedLM" in name:
            return transformers.AutoModelForMaskedLM
    return transformers.AutoModel


def _build(folder: Folder, options: Options) -> tuple[PreTrainedModel, str | None, tuple[str, ...]]:
    """The model in eval mode; why its head is missing, if it is; notes for the reader."""
    config = _config(folder, options)
    kind = _model_class(config, options)
    if options.random_init:
        return _random(kind, config, options.seed).to(_dtype(config, options)).eval(), None, ("random weights",)
    model, problems = _from_pretrained(kind, folder, config, options)
    reason = check_loaded(model, problems, folder)
    if kind.__name__ == "AutoModel":
        reason = "config.json names no class with a head that transformers has (architectures)"
    return model, reason, ()


def _from_pretrained(kind: Any, folder: Folder, config: Any, options: Options) -> tuple[Any, dict[str, Any]]:
    more: dict[str, Any] = {"device_map": options.device_map} if options.device_map else {}
    try:
        model, problems = kind.from_pretrained(
            str(folder.path), config=config, dtype=_dtype(config, options), output_loading_info=True,
            use_safetensors=not folder.is_pickle, trust_remote_code=options.trust_remote_code,
            local_files_only=True, **more,
        )  # fmt: skip
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UnavailableError(
            f"the weights have other shapes than config.json says{first_misfit(kind, config, folder)}",
            "config and weights do not belong together",
        ) from error
    return model.eval(), {key: sorted(problems.get(key, ())) for key in ("missing_keys", "unexpected_keys")}


def _random(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built_from(kind, config).float().eval()


def _merged(model: Any, adapter: Path) -> Any:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise UnavailableError("an adapter needs the package peft", "pip install '.[peft]'") from None
    file = adapter / "adapter_model.safetensors"
    if not file.exists():
        raise UnavailableError(f"no {file.name} in {adapter}", "ask its author for safetensors")
    own = set(safetensors_header(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft warns of (keys that do not fit) is refused below
        wrapped = PeftModel.from_pretrained(model, str(adapter))
    if not hasattr(wrapped, "merge_and_unload"):
        kind = getattr(wrapped.active_peft_config.peft_type, "value", "this kind")
        raise UnavailableError(
            f"an adapter of type {kind} cannot be merged into the weights", "LoRA and its relatives can be measured"
        )
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    astray = sorted((expected - own) | {name for name in own - expected if "lora_" in name})
    if astray:  # peft only warns, and the base would be measured in the adapter's name
        raise UnavailableError(
            f"{len(astray)} weights of the adapter do not fit its base, first {astray[0]}",
            "is the base the one that it was trained on? (base_model_name_or_path in adapter_config.json)",
        )
    merged = wrapped.merge_and_unload().eval()
    refuse_not_finite(merged)
    return merged


def _dtype(config: Any, options: Options) -> torch.dtype:
    if options.dtype == "auto":
        named = getattr(config, "dtype", None) or torch.float32
        return getattr(torch, named) if isinstance(named, str) else named
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}", f"use auto, {', '.join(DTYPES)}")
    return DTYPES[options.dtype]


def _placed(model: Any, options: Options) -> Any:
    if options.device_map:
        return model
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use device {device!r}: {first_line(error)}", "use --device cpu") from None


def _info(
    name: str, model: Any, folder: Folder, options: Options, source: str, revision: str | None, notes: tuple[str, ...]
) -> ModelInfo:
    text = model.config.get_text_config()
    random = options.random_init
    return ModelInfo(
        id=name,
        revision=revision,
        weights_sha256=_random_sha256(model.config, options.seed)
        if random
        else inspection.sha256(_origin(name, folder)),
        architecture=type(model).__name__,
        objective=objective(model),
        parameters=sum(p.numel() for p in model.parameters()),
        hidden_size=int(getattr(text, "hidden_size", 0) or getattr(text, "d_model", 0)),
        blocks=sum(stack.blocks for stack in find_stacks(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        source_format="random" if random else source,
        vocabulary_size=int(getattr(text, "vocab_size", 0)) or None,
        contrastive=folder.contrastive,
        notes=notes,
    )


def _origin(name: str, folder: Folder) -> tuple[Path, ...]:
    return (Path(name).expanduser(),) if name.endswith(".gguf") else folder.weights


def objective(model: Any) -> Objective:
    """What the model was trained to predict, from its class: causal, masked, seq2seq or none."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        return "seq2seq"
    if model.get_output_embeddings() is None:
        return "none"
    return "masked" if "MaskedLM" in name or name.endswith("ForPreTraining") else "causal"


def _positions(config: Any) -> int | None:
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            # RoBERTa-like models count positions from pad + 1
            offset = text.pad_token_id + 1 if text.model_type in _OFFSET_POSITIONS else 0
            return value - offset
    return None


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl")


def _random_sha256(config: Any, seed: int) -> str:
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(f"random {seed} {text}".encode()).hexdigest()


def _adapter_sha256(adapter: Path, base: str | None) -> str:
    own = inspection.sha256((adapter / "adapter_model.safetensors",))
    return hashlib.sha256(f"{own}{base}".encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, short enough for a terminal."""
    if isinstance(error, KeyError):  # its message is the bare key
        return f"nothing is known of {error}"[:240]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:240]


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Whatever a loading library raises about files from outside becomes one line."""
    try:
        yield
    except CondenseError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise RunError(f"out of memory while loading {name}", "use --dtype bfloat16 or a smaller model") from None
    except ImportError as error:
        raise UnavailableError(
            f"{name} needs a package that is missing: {first_line(error)}",
            "install it, or use a checkpoint that does not need it (if quantised: the one it was made from)",
        ) from error
    except Exception as error:  # loaders raise dozens of kinds; --debug shows the cause
        if "weights_only" in str(error):  # its advice is to switch the protection off
            raise UnavailableError(
                f"the pickled weights of {name} cannot be loaded: damaged, or not only tensors; none of it was run",
                "ask its author for safetensors",
            ) from error
        raise UnavailableError(f"{name} cannot be loaded: {first_line(error)}") from error
