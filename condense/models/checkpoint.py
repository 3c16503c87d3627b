"""Open a checkpoint: hub id, folder, adapter, .gguf or a config with random weights.

The only file that loads through transformers. No code from a checkpoint runs unless asked
(`trust_remote_code`), no pickle is read unless asked (`allow_pickle`), and a model whose weights are
missing, mismatched, truncated or not finite raises UnavailableError.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condense.errors import UnavailableError, UsageError, first_line
from condense.files import sha256
from condense.models import hub
from condense.models.adapt import Adapted, adapt, bare, is_transformers
from condense.models.adapters import head_of, merged, refuse_unmeasurable_adapter
from condense.models.checks import built_from, check_loaded, check_same, first_misfit, reported
from condense.models.config import code_of
from condense.models.custom import output_head
from condense.models.folder import Folder
from condense.models.layers import find_stacks, unwrapped
from condense.models.locate import DTYPES, Located, adapter_sha256, locate
from condense.models.recognise import unwrapped_names
from condense.records.diagnosis import ModelInfo, Objective
from condense.records.options import ModelOptions, takes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer and their provenance.

    `head_missing`: the reason why there is no language-modelling head to score with, or None; `source_dtype` and
    `use_cache` are the checkpoint's own values, for saving it again.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    positions: int | None
    head_missing: str | None = None
    source_dtype: str = "float32"
    use_cache: bool = True


@takes(ModelOptions)
def load(model: str | Path, options: ModelOptions | None = None, **fields: Any) -> Checkpoint:
    """Open MODEL for measuring: eval mode, float32 unless asked otherwise.

    options: how, as `condense.ModelOptions`; its fields can be given as keywords instead, or on top of it.
    UnavailableError for what is missing, unsafe, damaged or unsupported; UsageError for options that
    do not go together.
    """
    return read(locate(model, ModelOptions.of(options, fields)))


def read(located: Located) -> Checkpoint:
    """Read the weights of a checkpoint that `locate` found; errors as those of `load`."""
    with hub.closed(), reported(located.name):
        model, head_missing, notes = _build(located)
        if located.adapter:
            head_missing = head_missing or head_of(located.adapter, model)
            model = in_dtype(merged(model, located.adapter, len(located.tokenizer)), DTYPES[located.dtype])
    model = _move_to_device(model, located)
    model.name_or_path = model.config.name_or_path = located.name  # what cards name: never a folder of the cache
    info = _model_info(model, located, (*notes, *located.notes))
    if located.has_changed():  # else the hash would be of other bytes than those measured
        raise UnavailableError(
            f"the weights of {located.name} changed while they were read", "wait until they are saved, and run again"
        )
    return Checkpoint(
        model, located.tokenizer, info, located.positions, head_missing, source_dtype=located.source_dtype,
        use_cache=bool(located.base.config.get("use_cache", True)),
    )  # fmt: skip


def random_twin(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The same architecture with random weights, as training would start it; same tokenizer."""
    config = checkpoint.model.config
    with reported(checkpoint.info.id):
        model = _random(type(checkpoint.model), config, seed)
    model = in_dtype(model, checkpoint.model.dtype).to(checkpoint.model.device).eval()
    info = replace(checkpoint.info, source_format="random", weights_sha256=_random_sha256(config, seed), revision=None)
    info = replace(info, weights_bytes=None)
    return replace(checkpoint, model=model, info=info)


_HEADS = (
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForPreTraining",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForSequenceClassification",
)


def _model_class(located: Located) -> Any:
    """The class that `auto_map` names, if the config is of the folder's own code (then it is trusted).

    Else the class that config.architectures names, if transformers has it; the base model's class where neither does.
    """
    import transformers

    own = not type(located.config).__module__.startswith("transformers.models.")
    head = next((name for name in _HEADS if own and code_of(located.base, (name,)) is not None), None)
    if head is not None:
        reference = str(code_of(located.base, (head,)))
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        kind = get_class_from_dynamic_module(reference, str(located.base.path), local_files_only=True)
        if not issubclass(kind, transformers.PreTrainedModel):
            raise UnavailableError(f"{reference} (auto_map) is no PreTrainedModel", "load it yourself: condense.adapt")
        kind.register_for_auto_class(head)  # so that its code is saved with it
        return kind
    for name in located.config.architectures or ():
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            # a base class; making one changes what transformers keeps for all
            if getattr(named, "forward", None) is torch.nn.Module.forward:
                raise UnavailableError(f"{name} (architectures) is a base class, no model", "name the model's class")
            return named
    if own:
        raise UnavailableError(f"auto_map of {located.base.path.name} names no class of a model", "it needs AutoModel")
    return transformers.AutoModel


def _build(located: Located) -> tuple[PreTrainedModel, str | None, tuple[str, ...]]:
    """The model in eval mode; why its head is missing, if it is; notes for the reader."""
    config, folder, options = located.config, located.base, located.options
    dtype = torch.float32 if located.adapter else DTYPES[located.dtype]  # in half precision merging would round
    kind = _model_class(located)
    if options.random_init:
        return in_dtype(_random(kind, config, options.seed), dtype), None, ("random weights",)
    if not hasattr(kind, "_load_pretrained_model"):  # AutoModel: the class of the config's type
        kind = kind._model_mapping[type(config)]
        reason = "config.json names no class with a head that transformers has (architectures)"
    else:
        reason = None
    model, problems = _from_pretrained(kind, folder, config, dtype, options.device_map)
    return model, check_loaded(model, problems, folder) or reason, ()


def _from_pretrained(
    kind: Any, folder: Folder, config: Any, dtype: torch.dtype, device_map: str | None
) -> tuple[Any, dict[str, Any]]:
    """The model with the weights of the files that were hashed, and of no other."""
    try:
        if device_map or getattr(config, "quantization_config", None):
            model, problems = _from_folder(kind, folder, config, dtype, device_map)
        else:
            with contextlib.ExitStack() as files:
                model, problems = kind.from_pretrained(
                    None, config=config, state_dict=_all_weights(folder, files), dtype=dtype, output_loading_info=True
                )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UnavailableError(
            f"the weights have other shapes than config.json says{first_misfit(kind, config, folder)}",
            "config and weights do not belong together",
        ) from error
    _add_generation_config(model, folder)
    return model.eval(), {key: sorted(problems.get(key, ())) for key in ("missing_keys", "unexpected_keys")}


def _all_weights(folder: Folder, files: contextlib.ExitStack) -> dict[str, Any]:
    """All tensors of a folder's weights by name; those of safetensors are read when they are used."""
    from safetensors import safe_open

    weights: dict[str, Any] = {}
    for file in folder.weights:
        if folder.is_pickle:
            weights |= torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        else:
            handle = files.enter_context(safe_open(str(file), framework="pt"))
            weights |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  not a mapping
    return {own: weights[name] for name, own in unwrapped_names(list(weights))}


def _from_folder(
    kind: Any, folder: Folder, config: Any, dtype: torch.dtype, device_map: str | None
) -> tuple[Any, dict[str, Any]]:
    """For models that the loader distributes or unpacks: it reads the folder; plain weights are compared then."""
    parts = sorted(file.name for file in folder.path.glob("shard-*.safetensors"))
    if parts:  # which the loader would prefer to the files that were hashed
        raise UnavailableError(
            f"{folder.path.name} holds parts of a distributed checkpoint too ({parts[0]})", "move them elsewhere"
        )
    more: dict[str, Any] = {"device_map": device_map} if device_map else {}
    loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
        str(folder.path), config=config, dtype=dtype, output_loading_info=True, use_safetensors=not folder.is_pickle,
        local_files_only=True, **more,
    )  # fmt: skip
    if not getattr(config, "quantization_config", None) and not folder.is_pickle:
        check_same(loaded[0], folder)
    return loaded


def _add_generation_config(model: Any, folder: Folder) -> None:
    """Load the checkpoint's sampling settings, for saving it again; a damaged file is ignored, no number needs it."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder.path / "generation_config.json").exists():
        with contextlib.suppress(Exception):
            model.generation_config = GenerationConfig.from_pretrained(str(folder.path), local_files_only=True)


def _random(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built_from(kind, config).float().eval()


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in a type, as `from_pretrained` would read them: some classes keep a few in float32.

    Buffers, such as the frequencies of rotary positions, stay as they are.
    """
    names = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        names |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and names.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def _move_to_device(model: Any, located: Located) -> Any:
    if located.options.device_map:
        return model
    try:
        return model.to(located.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use device {located.device!r}: {first_line(error)}", "use --device cpu") from None


def _model_info(model: Any, located: Located, notes: tuple[str, ...]) -> ModelInfo:
    text = model.config.get_text_config()
    digest, source = located.weights_sha256, located.source_format
    if located.options.random_init:
        digest = _random_sha256(model.config, located.options.seed)
        if located.adapter:
            digest = adapter_sha256(located.adapter, digest)
        else:
            source = "random"
    return ModelInfo(
        id=located.name,
        revision=located.revision,
        weights_sha256=digest,
        architecture=type(model).__name__,
        objective=objective(model),
        parameters=sum(p.numel() for p in model.parameters()),
        hidden_size=int(getattr(text, "hidden_size", 0) or getattr(text, "d_model", 0)),
        blocks=sum(stack.blocks for stack in find_stacks(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        source_format=source,
        vocabulary_size=int(getattr(text, "vocab_size", 0)) or None,
        contrastive=located.base.contrastive,
        notes=notes,
        weights_bytes=None if located.options.random_init else located.weights_bytes,
    )


def checkpoint_of(model: torch.nn.Module, ids: torch.Tensor) -> Checkpoint:
    """A module of any class in memory as a checkpoint without a tokenizer; ids (1, S) show which part does what.

    A transformers model is taken as it is; any other is adapted (see `condense.adapt` for the errors).
    """
    refuse_unmeasurable_adapter(model)
    if is_transformers(unwrapped(model)):
        transformer: Any = model if hasattr(model, "config") else unwrapped(model)
        return Checkpoint(transformer, None, _module_info(transformer, objective(transformer)), None)
    adapted: Any = model if isinstance(model, Adapted) else adapt(model)
    adapted.probe(ids.to(adapted.device))
    info = _module_info(adapted, "causal" if adapted.head_missing is None else "none")
    inner = type(bare(adapted.module)).__name__
    info = replace(info, id=inner, architecture=inner, hidden_size=adapted.hidden_size)
    return Checkpoint(adapted, None, info, None, adapted.head_missing)


def _module_info(model: Any, trained_for: Objective) -> ModelInfo:
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return ModelInfo(
        id=getattr(model.config, "name_or_path", "") or type(model).__name__,
        architecture=type(model).__name__,
        objective=trained_for,
        parameters=sum(p.numel() for p in model.parameters()),
        hidden_size=int(getattr(text, "hidden_size", 0)),
        blocks=sum(stack.blocks for stack in find_stacks(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        source_format="in memory",
    )


def objective(model: Any) -> Objective:
    """What the model was trained to predict, from its class: causal, masked, seq2seq or none."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        return "seq2seq"
    if output_head(model) is None:
        return "none"
    return "masked" if "MaskedLM" in name or name.endswith("ForPreTraining") else "causal"


def _random_sha256(config: Any, seed: int) -> str:
    apart = ("_name_or_path", "transformers_version")
    values = {key: value for key, value in config.to_dict().items() if key not in apart}
    text = json.dumps(values, sort_keys=True, default=str)
    return sha256(f"random {seed} {text}")
