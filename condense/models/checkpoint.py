"""Open a checkpoint: hub id, folder, adapter, .gguf or a config with random weights.

The only file that loads through transformers. No code from a checkpoint runs unless asked
(`trust_remote_code`), no pickle is read unless asked (`allow_pickle`), and a model whose weights are
missing, mismatched, truncated or not finite is refused, never measured silently.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condense.errors import UnavailableError, UsageError, first_line
from condense.files import sha256
from condense.models.adapt import Adapted, adapt, bare, is_transformers
from condense.models.adapters import head_of, merged
from condense.models.checks import built_from, check_loaded, first_misfit, reported
from condense.models.folder import Folder
from condense.models.layers import find_stacks, refuse_unmeasurable_adapter, unwrapped
from condense.models.locate import Located, adapter_sha256, dtype_of, locate
from condense.records.diagnosis import ModelInfo, Objective
from condense.records.options import ModelOptions, takes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    base = located.base
    with reported(located.name):
        model, head_missing, notes = _build(located)
        if located.adapter:
            head_missing = head_missing or head_of(located.adapter, model)
            model = merged(model, located.adapter, len(located.tokenizer))
    model = _placed(model, located)
    model.name_or_path = model.config.name_or_path = located.name  # what cards name: never a folder of the cache
    info = _info(model, located, (*notes, *located.notes))
    if located.has_changed():  # or the hash would be of other bytes than the numbers
        raise UnavailableError(
            f"the weights of {located.name} changed while they were read", "wait until they are saved, and run again"
        )
    return Checkpoint(
        model, located.tokenizer, info, located.positions, head_missing,
        source_dtype=str(base.config.get("dtype") or base.config.get("torch_dtype") or "float32"),
        use_cache=bool(base.config.get("use_cache", True)),
    )  # fmt: skip


def random_twin(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The same architecture with random weights, as training would start it; same tokenizer."""
    config = checkpoint.model.config
    with reported(checkpoint.info.id):
        model = _random(type(checkpoint.model), config, seed)
    model = model.to(device=checkpoint.model.device, dtype=checkpoint.model.dtype).eval()
    info = replace(checkpoint.info, source_format="random", weights_sha256=_random_sha256(config, seed), revision=None)
    return replace(checkpoint, model=model, info=info)


def _model_class(config: Any, options: ModelOptions) -> Any:
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


def _build(located: Located) -> tuple[PreTrainedModel, str | None, tuple[str, ...]]:
    """The model in eval mode; why its head is missing, if it is; notes for the reader."""
    config, folder, options = located.config, located.base, located.options
    kind = _model_class(config, options)
    if options.random_init:
        return _random(kind, config, options.seed).to(dtype_of(config, options)).eval(), None, ("random weights",)
    model, problems = _from_pretrained(kind, folder, config, options)
    reason = check_loaded(model, problems, folder)
    if kind.__name__ == "AutoModel":
        reason = "config.json names no class with a head that transformers has (architectures)"
    return model, reason, ()


def _from_pretrained(kind: Any, folder: Folder, config: Any, options: ModelOptions) -> tuple[Any, dict[str, Any]]:
    more: dict[str, Any] = {"device_map": options.device_map} if options.device_map else {}
    try:
        model, problems = kind.from_pretrained(
            str(folder.path), config=config, dtype=dtype_of(config, options), output_loading_info=True,
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


def _placed(model: Any, located: Located) -> Any:
    if located.options.device_map:
        return model
    try:
        return model.to(located.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use device {located.device!r}: {first_line(error)}", "use --device cpu") from None


def _info(model: Any, located: Located, notes: tuple[str, ...]) -> ModelInfo:
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
    if model.get_output_embeddings() is None:
        return "none"
    return "masked" if "MaskedLM" in name or name.endswith("ForPreTraining") else "causal"


def _random_sha256(config: Any, seed: int) -> str:
    apart = ("_name_or_path", "transformers_version")
    values = {key: value for key, value in config.to_dict().items() if key not in apart}
    text = json.dumps(values, sort_keys=True, default=str)
    return sha256(f"random {seed} {text}")
