"""Adapters: which kinds can be merged into their base, merging them, and the check that nothing was changed by it.

A merged adapter gives the numbers of the unmerged model or raises UnavailableError: both are run on the same tokens, so
that an untested kind, option or version of PEFT cannot give another model's numbers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condense.errors import UnavailableError, first_line, is_out_of_memory
from condense.models.checks import refuse_not_finite
from condense.models.folder import FLOATS, check_adapter, safetensors_header
from condense.models.layers import embedding_rows, forward_pass, input_device, wrappings

WEIGHTS = "adapter_model.safetensors"
# Under which names an adapter keeps embeddings whole, behind that of their module.
_WHOLE = ("weight", "base_layer.weight", "token_adapter.base_layer.weight")
_SIZE = r".*?Size\(\[(.*?)\]\)"
_MISFIT = re.compile(rf"size mismatch for (?:base_model\.model\.)?(\S+): {_SIZE}{_SIZE}", re.DOTALL)
_ANOTHER_BASE = "is the base the one that it was trained on? (base_model_name_or_path in adapter_config.json)"
_PROBES, _PROBE_TOKENS = 4, 48
_TOLERANCE = 5e-6  # half of the documented 1e-5, since other tokens may differ by more than those tried


def head_of(folder: Path, model: Any) -> str | None:
    """Why the base's language-modelling head is not the adapter's, if it is not."""
    kind = check_adapter(folder).get("task_type")
    if kind in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        return f"the adapter was trained with a head of its own ({kind})"
    if _adapted_part(model, _adapter_header(folder)) is not model:
        return "the adapter was trained on the model without its head"
    return None


def merged(model: Any, folder: Path, vocabulary: int) -> Any:
    """The model (float32) with the adapter in its weights, ready to be trained; the model given is used up.

    vocabulary: the number of tokens of the adapter's tokenizer, for adapters with tokens that their base lacks.
    UnavailableError where PEFT is missing, the adapter does not fit, or merging changes what the model computes.
    """
    config, header = check_adapter(folder), _adapter_header(folder)
    if config.get("peft_type") is None:
        raise UnavailableError(f"adapter_config.json in {folder} names no kind of adapter (peft_type)")
    _resize(model, config, header, vocabulary)
    ids, part = _probe_ids(model, config), _adapted_part(model, header)
    wrapped = _wrap_in_adapter(part, folder)
    _refuse_astray(wrapped, set(header))
    expected = _outputs(wrapped, ids)
    ties = _untie(wrapped)
    was_tied = [(part, part.tie_word_embeddings) for part in _tying_configs(model)]  # peft changes them as it merges
    kind = getattr(wrapped.active_peft_config.peft_type, "value", "this kind")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = wrapped.merge_and_unload().eval()
    except Exception as error:  # every tuner raises another error for what it cannot merge
        if is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"this adapter of type {kind} cannot be merged into the weights: {first_line(error)}",
            "LoRA and its relatives can be measured",
        ) from error
    if _tie_again(result, ties):
        for part, tied in was_tied:
            part.tie_word_embeddings = tied
    refuse_not_finite(result)
    _refuse_changed(expected, _outputs(result, ids), kind)
    whole = result if part is model else model
    return whole.requires_grad_(True)  # peft returns frozen weights


def merged_after_training(model: Any, keep: Path | None = None) -> Any:
    """A model that was just trained with adapters (PEFT's wrapper), with them in its weights; they are used up.

    keep: a folder to write the adapters to as they are, before they are merged.
    """
    if keep is not None:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        trained = any(hasattr(end, "base_layer") for end in ends)  # then the adapter has to hold their weights
        # "auto" asks the hub for the base's config, to see whether its vocabulary was resized: it never is here
        model.save_pretrained(str(keep), save_embedding_layers=trained)
    return model.merge_and_unload()


def _adapter_header(folder: Path) -> dict[str, Any]:
    file = folder / WEIGHTS
    if not file.exists():
        raise UnavailableError(f"no {file.name} in {folder}", "ask its author for safetensors")
    header = safetensors_header(file)
    for name, entry in header.items():
        if entry.get("dtype") not in FLOATS and name.endswith("weight"):
            raise UnavailableError(
                f"{name} of the adapter is of type {entry.get('dtype')}", "ask its author for floating point"
            )
    return header


def _adapted_part(model: Any, header: Mapping[str, Any]) -> Any:
    """What the adapter was made for: the model, or the model without its head, by the names of its weights."""
    first = {key.removeprefix("base_model.model.").partition(".")[0] for key in header}
    children = dict(model.named_children())
    inner = model.base_model
    return inner if first.isdisjoint(children) and not first.isdisjoint(dict(inner.named_children())) else model


def _wrap_in_adapter(model: Any, folder: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise UnavailableError("an adapter needs the package peft", "pip install 'condense-lm[peft]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys that do not fit: peft only warns, the check below raises
        try:
            return PeftModel.from_pretrained(model, str(folder), local_files_only=True).eval()
        except RuntimeError as error:
            if (misfit := _MISFIT.search(str(error))) is None:
                raise
            raise UnavailableError(
                f"the adapter does not fit its base: {misfit[1]} is [{misfit[2]}], not [{misfit[3]}]", _ANOTHER_BASE
            ) from error


def _refuse_astray(wrapped: Any, own: set[str]) -> None:
    """UnavailableError for weights that PEFT would only warn of: the base would be measured instead of the adapter."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        known = set(get_peft_model_state_dict(wrapped, save_embedding_layers=True)) | set(wrapped.state_dict())
    prefix = getattr(wrapped.base_model, "prefix", "lora_")
    # What is left is a head that the base does not have: `head_of` reports it.
    astray = sorted((expected - own) | {name for name in own - known if prefix in name})
    if astray:
        raise UnavailableError(
            f"{len(astray)} weights of the adapter do not fit its base, first {astray[0]}",
            _ANOTHER_BASE,
        )


def refuse_unmeasurable_adapter(model: nn.Module) -> None:
    """UnavailableError for an adapter that acts outside of the model it wraps: measuring that one would leave it out.

    Virtual tokens (prompt, prefix and P-tuning), a router of adapters (X-LoRA), one that waits for a token (aLoRA).
    """
    for part in wrappings(model):
        config = getattr(part, "active_peft_config", None)
        kind = getattr(getattr(config, "peft_type", None), "value", "this kind")
        outside = kind in ("XLORA", "POLY", "SHADOW") or getattr(config, "alora_invocation_tokens", None)
        if getattr(config, "is_prompt_learning", False) or outside:
            raise UnavailableError(
                f"an adapter of type {kind} cannot be merged into the weights", "LoRA and its relatives can be measured"
            )


# --- tokens that the base lacks ---------------------------------------------------------------------


def _resize(model: Any, config: Mapping[str, Any], header: Mapping[str, Any], vocabulary: int) -> None:
    """Give the base the rows that the adapter was trained with; UnavailableError where new ones would be random."""
    rows, whole = _vocabulary_sizes(model, header)
    tokens = _token_indices(config)
    old = embedding_rows(model)
    if not rows and tokens and max(tokens) >= old:
        rows = {max(vocabulary, max(tokens) + 1)}
    if len(rows) > 1:
        raise UnavailableError(f"the adapter's embeddings have {sorted(rows)} rows", "the files do not belong together")
    if not rows or (new := rows.pop()) == old:
        return
    tied = _is_tied(model)
    covered = set(range(old, new)) <= set(tokens) or whole >= ({"input"} if tied else {"input", "output"})
    if new > old and not covered:
        raise UnavailableError(
            f"the adapter adds {new - old} tokens to its base and does not hold all their weights",
            "save it with save_embedding_layers=True, or merge it where it was trained",
        )
    model.resize_token_embeddings(new, mean_resizing=False)


def _vocabulary_sizes(model: Any, header: Mapping[str, Any]) -> tuple[set[int], set[str]]:
    """The vocabulary sizes in the adapter's weights, and which of the embeddings it holds whole."""
    ends = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    names = {end: name for name, module in model.named_modules() for end, own in ends.items() if module is own}
    rows, whole = set(), set()
    for end, name in names.items():
        for key, axis in (*((key, 0) for key in _WHOLE), ("lora_embedding_A", 1), ("lora_B.weight", 0)):
            entry = header.get(f"base_model.model.{name}.{key}")
            if entry is not None:
                rows.add(int(entry["shape"][axis]))
                whole |= {end} if key in _WHOLE else set()
    return rows, whole


def _token_indices(config: Mapping[str, Any]) -> list[int]:
    asked = config.get("trainable_token_indices") or config.get("token_indices") or []
    listed = [index for each in asked.values() for index in each] if isinstance(asked, dict) else list(asked)
    return [index for index in listed if isinstance(index, int)]


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


# --- shared weights --------------------------------------------------------------------------


def _shared_parameters(root: nn.Module) -> Iterator[list[tuple[nn.Module, str]]]:
    """For every parameter shared by several modules, these modules and its name in each."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    yield from (shared for shared in owners.values() if len(shared) > 1)


def _untie(wrapped: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Give every module a weight of its own, so that merging into one does not change the other."""
    ties = list(_shared_parameters(wrapped))
    for owners in ties:
        for module, name in owners[1:]:
            parameter: nn.Parameter = getattr(module, name)
            setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    return ties


def _tie_again(result: Any, ties: list[list[tuple[nn.Module, str]]]) -> bool:
    """Tie what was tied if all of it is still equal; else leave all untied and set this in the config."""
    remaining = {id(module) for module in result.modules()}
    equal = True
    for owners in ties:
        tied = [getattr(module, name) for module, name in owners if id(module) in remaining]
        equal = equal and len(tied) == len(owners) and all(torch.equal(tied[0], other) for other in tied[1:])
    if equal:
        for (first, name), *others in ties:
            for module, other in others:
                setattr(module, other, getattr(first, name))
        return True
    result.all_tied_weights_keys = {}
    for part in _tying_configs(result):
        part.tie_word_embeddings = False
    return False


def _tying_configs(model: Any) -> list[Any]:
    """The configs with the switch that ties embeddings: the model's, and that of its text part."""
    parts = {id(part): part for part in (model.config, model.config.get_text_config())}
    return [part for part in parts.values() if hasattr(part, "tie_word_embeddings")]


# --- the same numbers -------------------------------------------------------------------------------


def _probe_ids(model: Any, config: Mapping[str, Any]) -> Tensor:
    """Token ids (N, S) to try both models on: random ones, the last rows, and those that the adapter trains."""
    rows, generator = embedding_rows(model), torch.Generator().manual_seed(0)
    chosen = torch.randint(0, rows, (_PROBES, _PROBE_TOKENS), generator=generator)
    wanted = [*range(max(0, rows - 8), rows), *(index for index in _token_indices(config)[:8] if index < rows)]
    chosen[0, : len(wanted)] = torch.tensor(wanted)
    return chosen.to(input_device(model))


@torch.inference_mode()
def _outputs(model: Any, ids: Tensor) -> Tensor:
    more = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    with forward_pass(model):
        output = model(input_ids=ids, **more)
    for key in ("logits", "prediction_logits", "last_hidden_state"):
        if isinstance(states := getattr(output, key, None), Tensor):
            return states
    raise UnavailableError(f"{type(model).__name__} gives no output that a merged adapter could be checked against")


def _refuse_changed(expected: Tensor, merged: Tensor, kind: str) -> None:
    scale = float(expected.float().abs().max()) + 1e-30
    off = float((merged.to(expected.device).float() - expected.float()).abs().max()) / scale
    if not off <= _TOLERANCE:
        raise UnavailableError(
            f"this adapter of type {kind} gives other numbers when it is merged into the weights (by {off:.1e})",
            "merge it where it was trained, and measure what that gives",
        )
