"""Checks of a loaded model: a truncated, half-random or damaged one raises UnavailableError.

Loaders only warn where config, weights and quantisation do not match.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from condense.errors import (
    CondenseError,
    RunError,
    UnavailableError,
    first_line,
    is_out_of_memory,
    is_panic,
    system_failure,
)
from condense.models import folder as inspection
from condense.models.adapt import is_transformers
from condense.models.custom import is_custom, logits, output_head
from condense.models.folder import Folder
from condense.models.layers import (
    OVERFLOW,
    PROBE_TOKENS,
    Stack,
    find_stacks,
    forward_pass,
    run,
    unwrapped,
    watching,
)

_OLD_BUFFERS = (".attn.bias", ".masked_bias", ".attention.bias", ".inv_freq", ".position_ids")
_IGNORED_HEADS = ("pooler", "cls.seq_relationship", "discriminator_predictions")


def check_loaded(model: Any, problems: dict[str, list[str]], folder: Folder) -> str | None:
    """UnavailableError for missing, unexpected or non-finite weights; return why the head is missing, if only that is.

    problems: `missing_keys` and `unexpected_keys` as the loader reports them. UnavailableError names the first.
    """
    core = _core_missing(model, problems["missing_keys"])
    if core:
        raise UnavailableError(
            f"{len(core)} weights are missing in {folder.path.name}, first {core[0]}",
            "a half-random model is not measured: fetch the checkpoint again, or pass --random-init",
        )
    _refuse_unexpected(model, problems["unexpected_keys"], folder)
    _refuse_integers(model, folder)
    refuse_not_finite(model)
    missing = [key for key in problems["missing_keys"] if not any(part in key for part in _IGNORED_HEADS)]
    return f"the checkpoint holds no weights for its head ({missing[0]})" if missing else None


def check_quantisation(folder: Folder) -> None:
    """A quantisation that transformers does not know would be skipped, and packed integers taken for weights."""
    inner = folder.config.get("text_config")
    tables = [folder.config, inner if isinstance(inner, dict) else {}]
    for asked in (table.get("quantization_config") for table in tables):
        if asked is None:
            continue
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

        method = asked.get("quant_method") if isinstance(asked, dict) else asked
        if not isinstance(method, str) or method not in {"bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING}:
            raise UnavailableError(
                f"{folder.path.name} is quantised by a method that is not known ({method!r})",
                "use the checkpoint it was made from, or a .gguf of it",
            )


def check_same(model: Any, folder: Folder) -> None:
    """UnavailableError where a weight is not that of the file that was hashed, cast to the model's type.

    Weights that are offloaded, or that the loader renamed or joined, are not compared.
    """
    from safetensors import safe_open

    loaded = model.state_dict()
    for file in folder.weights:
        with safe_open(str(file), framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a mapping
                own = loaded.get(name)
                if own is None or own.device.type == "meta" or list(own.shape) != weights.get_slice(name).get_shape():
                    continue
                if not torch.equal(weights.get_tensor(name).to(own.dtype), own.cpu()):
                    raise UnavailableError(
                        f"{name} of {folder.path.name} is not what {file.name} holds", "was the folder written to?"
                    )


def first_misfit(kind: Any, config: Any, folder: Folder) -> str:
    """Name and shapes of the first weight that does not fit, from the headers and a model without storage."""
    with torch.device("meta"):
        built = {name: list(tensor.shape) for name, tensor in built_from(kind, config).state_dict().items()}
    files = () if folder.is_pickle else folder.weights
    headers = [pair for file in files for pair in inspection.safetensors_header(file).items()]
    for name, entry in headers:
        if name in built and entry.get("shape") != built[name]:
            return f": {name} is {entry.get('shape')}, not {built[name]}"
    return ""


def built_from(kind: Any, config: Any) -> Any:
    """A model of a class (or AutoModel) from its config alone, with random weights."""
    build = getattr(kind, "_from_config", None) or kind.from_config  # a model class, or AutoModel
    return build(config)


def _refuse_integers(model: Any, folder: Folder) -> None:
    """UnavailableError for a weight that the file holds as an integer without a rule for its value."""
    if folder.is_pickle or getattr(model.config, "quantization_config", None):
        return
    weights = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    weights |= {name.removeprefix(f"{model.base_model_prefix}.") for name in weights}
    for file in folder.weights:
        for name, entry in inspection.safetensors_header(file).items():
            if name in weights and entry.get("dtype") not in inspection.FLOATS:
                inspection.refuse_type(name, entry, folder)


def _core_missing(model: Any, missing: list[str]) -> list[str]:
    """Missing weights of the stacks themselves: everything but heads and poolers."""
    prefix = f"{model.base_model_prefix}."
    has_head = model.base_model is not model
    inner = [key for key in missing if not any(part in key for part in _IGNORED_HEADS)]
    return [key for key in inner if key.startswith(prefix) or not has_head or _in_blocks(model, key)]


def _in_blocks(model: Any, key: str) -> bool:
    return any(key.startswith(f"{name}.") for name in _block_names(model))


def _block_names(model: Any) -> list[str]:
    owned = {id(module) for stack in find_stacks(model) for module in stack.modules}
    return [name for name, module in model.named_modules() if id(module) in owned]


def _refuse_unexpected(model: Any, unexpected: list[str], folder: Folder) -> None:
    """UnavailableError for weights inside the block list that the model does not have: then the config is wrong.

    Extra prediction layers and the buffers that older releases saved beside the weights are allowed.
    """
    unexpected = [key for key in inspection.without_prediction_layers(unexpected) if not key.endswith(_OLD_BUFFERS)]
    lists = {name.rpartition(".")[0] for name in _block_names(model)}
    bare = {name.removeprefix(f"{model.base_model_prefix}.") for name in lists}
    inside = [key for key in unexpected if any(key.startswith(f"{name}.") for name in lists | bare)]
    if inside:
        raise UnavailableError(
            f"{len(inside)} weights of {folder.path.name} have no place in the model, first {inside[0]}",
            "config and weights do not belong together; a truncated model is not measured",
        )


def refuse_not_finite(model: Any) -> None:
    """UnavailableError naming the first parameter that holds NaN or inf."""
    for name, tensor in model.named_parameters():
        if tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise UnavailableError(f"weights of {name} are not finite", "the checkpoint is damaged or diverged")


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Whatever a loading library raises about files from outside becomes one line."""
    try:
        yield
    except CondenseError:
        raise
    except BaseException as error:
        refusal = _as_refusal(error, name)
        if refusal is None:
            raise
        raise refusal from error


def _as_refusal(error: BaseException, name: str) -> CondenseError | None:
    """The error for a failure while NAME was loaded; None for an interruption."""
    if is_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
        return RunError(f"out of memory while loading {name}", "use --dtype bfloat16 or a smaller model")
    failure = system_failure(error)
    if failure is not None:
        return failure
    if is_panic(error):
        return UnavailableError(f"{name} cannot be loaded: a library crashed on its files ({first_line(error)})")
    if isinstance(error, ImportError):
        return UnavailableError(
            f"{name} needs a package that is missing: {first_line(error)}",
            "install it, or use a checkpoint that does not need it (if quantised: the one it was made from)",
        )
    if not isinstance(error, Exception):
        return None
    if "weights_only" in str(error):  # its advice is to disable the check
        return UnavailableError(
            f"the pickled weights of {name} cannot be loaded: damaged, or not only tensors; none of it was run",
            "ask its author for safetensors",
        )
    return UnavailableError(f"{name} cannot be loaded: {first_line(error)}")


# --- checks of the sites --------------------------------------------------------------------


@torch.inference_mode()
def self_check(model: nn.Module, stacks: tuple[Stack, ...], ids: Tensor) -> None:
    """Compare the hooked sites with `output_hidden_states` on the first tokens of ids (1, S).

    Every hidden state that the model itself reports must be one of our sites, in order, and its last
    one our `output` or block L. UnavailableError if not: then other states than the sites' would be measured.
    """
    seen: dict[str, list[Tensor]] = {stack.name: [] for stack in stacks}
    with contextlib.ExitStack() as hooks:
        for stack in stacks:
            hooks.enter_context(watching(stack, lambda site, states: seen[site.stack].append(states.clone())))
        output = _run_with_hidden_states(model, stacks, ids[:1, :PROBE_TOKENS])
    for stack in stacks:
        states = seen[stack.name]
        _check_finite(stack, states)
        key = "hidden_states" if len(stacks) == 1 else f"{stack.name}_hidden_states"
        theirs = getattr(output, key, None)
        if stack.called is not None:  # a module of any class need not report hidden states
            theirs = _reported_states(stack.called, ids[:1, :PROBE_TOKENS])
            if not theirs:
                continue
        if not theirs and is_custom(unwrapped(model)) and _gives_its_logits(model, ids[:1, :PROBE_TOKENS], states[-1]):
            continue
        _compare_states(stack, states, theirs)


def _run_with_hidden_states(model: nn.Module, stacks: tuple[Stack, ...], ids: Tensor) -> Any:
    """A forward pass that asks for hidden states; a custom class may not accept the argument."""
    try:
        return run(model, stacks, ids, output_hidden_states=True)
    except UnavailableError as error:
        cause = error.__cause__
        if isinstance(cause, TypeError) and "output_hidden_states" in str(cause) and is_custom(unwrapped(model)):
            return run(model, stacks, ids)
        if not isinstance(cause, AttributeError | NotImplementedError | TypeError | ValueError):
            raise
        raise UnavailableError(
            f"{type(model).__name__} does not run on token ids alone: {first_line(cause)[:160]}",
            "this architecture is not supported; nothing was measured",
        ) from cause


def _reported_states(model: nn.Module, ids: Tensor) -> Any:
    """The hidden states that a model with its head and blocks in one module reports itself, if it does."""
    if not is_transformers(model):
        return None
    try:
        return getattr(model(input_ids=ids, output_hidden_states=True), "hidden_states", None)
    except (TypeError, ValueError):
        return None


def _gives_its_logits(model: nn.Module, ids: Tensor, last: Tensor) -> bool:
    """Whether a model's logits are its head's of the state that was found: then it is the last one."""
    head = output_head(unwrapped(model))
    with forward_pass(model):
        expected = logits(model(input_ids=ids), ids)
    if head is None or expected is None:
        return False
    scale = float(expected.float().abs().max()) + 1e-30
    return bool((head(last).float() - expected.float()).abs().max() <= 1e-4 * scale)


def _check_finite(stack: Stack, states: list[Tensor]) -> None:
    for site, state in zip(stack.sites(), states, strict=False):
        if not bool(torch.isfinite(state).all()):
            raise RunError(f"text 0 at {site.label} ({stack.name}): states are not finite", OVERFLOW)


def _compare_states(stack: Stack, ours: list[Tensor], theirs: Any) -> None:
    name = type(stack.root).__name__
    if not theirs:
        raise UnavailableError(f"{name} reports no hidden states to check the sites against")
    *inner, last = theirs
    candidates = iter(ours[:-1])
    for index, state in enumerate(inner):
        if not any(_is_same_state(state, mine) for mine in candidates):
            raise UnavailableError(
                f"hidden state {index} of {name} is none of the sites that were found",
                "this architecture is not supported; nothing was measured",
            )
    if not (_is_same_state(last, ours[-1]) or _is_same_state(last, ours[-2])):
        raise UnavailableError(
            f"the last hidden state of {name} is neither its output nor its last block",
            "this architecture is not supported; nothing was measured",
        )


def _is_same_state(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = float(b.abs().max()) + 1e-30
    return bool((a.to(b.device) - b).abs().max() <= 1e-5 * scale)
