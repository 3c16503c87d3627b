"""The sites of a model, and hooks on them; used by measuring and by treating. Torch only.

Sites in depth order: `embedding` (what block 1 receives), `block` 1..L (the residual stream as block l
leaves it, before any final norm), `output` (the model's `last_hidden_state`). They are found from the
module tree and the config, without a list of model families, and `self_check` compares them with
`output_hidden_states` once before anything is measured. In transformers 5 the last of these is the
*normed* state for nearly every decoder, which is why block L has to be hooked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condense.errors import CondenseError, UnavailableError, first_line, is_out_of_memory
from condense.models.adapt import Adapted, adapt, bare, is_transformers, stream_of
from condense.models.custom import blocks_of, flat, input_embeddings, is_custom
from condense.records.diagnosis import Site as SiteName

PROBE_TOKENS = 64
OVERFLOW = "float16 overflows in many models: use --dtype float32 or bfloat16; else the weights are damaged"
_DEPTHS = {
    "encoder": ("encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers"),
}


@dataclass(frozen=True)
class Site:
    """A point in a stack at which states are read: its name, index l and the number of blocks L."""

    name: SiteName
    stack: str
    index: int
    blocks: int

    @property
    def label(self) -> str:
        """Short name of the site: `embedding`, `block 7`, `output`."""
        return f"block {self.index}" if self.name == "block" else self.name

    @property
    def depth(self) -> float:
        """Depth l/L: 0 at the embedding, 1 at the last block and the output."""
        return self.index / self.blocks if self.name != "output" else 1.0


@dataclass(frozen=True)
class Stack:
    """One tower of blocks: `root` returns `last_hidden_state`; `modules` fire `blocks` times per forward.

    A model that calls one shared block L times (ALBERT) has fewer modules than blocks. A module that is no
    transformers model has an `Adapted` as its root, which calls it.
    """

    name: str
    root: nn.Module
    modules: tuple[nn.Module, ...]
    blocks: int
    called: nn.Module | None = None  # what a loop calls, where that is not `root`: the module inside an `Adapted`
    final: nn.Module | None = None  # the final norm of such a module, if it is known

    def sites(self) -> list[Site]:
        """All sites of this stack in depth order."""
        inner = [Site("block", self.name, i, self.blocks) for i in range(1, self.blocks + 1)]
        first = Site("embedding", self.name, 0, self.blocks)
        return [first, *inner, Site("output", self.name, self.blocks, self.blocks)]


Receive = Callable[[Site, Tensor], None]


def find_stacks(model: nn.Module) -> tuple[Stack, ...]:
    """Find the tower(s) of blocks of a model: one, or encoder and decoder.

    UnavailableError if no list of blocks fits the config, or if several could be the blocks of a module that is no
    transformers model (`condense.adapt` names them).
    """
    model = unwrapped(model)
    if not is_transformers(model):
        adapted = model if isinstance(model, Adapted) else adapt(model)
        blocks = adapted.blocks.modules
        return (Stack("decoder", adapted, blocks, len(blocks), bare(adapted.module), adapted.final_norm),)
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        encoder, decoder = _part_from_getter(model, "get_encoder"), _part_from_getter(model, "get_decoder")
        if encoder is not None and decoder is not None:
            return (_stack("encoder", encoder, config), _stack("decoder", decoder, config))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    root = _part_from_getter(model, "get_decoder") if text is not config else None
    if root is None:
        root = getattr(model, "base_model", model)
    name = "decoder" if _is_causal_class(model, text) else "encoder"
    with forward_pass(model):
        whole = flat(model)
    if whole is not None:
        blocks = whole.blocks.modules
        return (Stack(name, whole, blocks, len(blocks), model, whole.final_norm),)
    return (_stack(name, root, text),)


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT, data-parallel or compiled wrappers."""
    *_, inner = wrappings(model)
    return inner


def wrappings(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it is given, what it wraps, what that wraps, to the transformers model itself."""
    inner: Any = model
    yield inner
    for _ in range(4):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module) and not hasattr(inner, "config"):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        else:
            return
        yield inner


def path_of(model: nn.Module, stack: Stack) -> str:
    """The path of the module that holds a stack's blocks, such as `model.layers`; "the model itself" at the top."""
    outer = stack.called or unwrapped(model)
    paths = [name for name, module in outer.named_modules() if module is stack.modules[0]]
    return (paths[0].rpartition(".")[0] if paths else "") or "the model itself"


def _part_from_getter(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        part = getattr(model, getter)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return part if isinstance(part, nn.Module) and part is not model else None


def _is_causal_class(model: nn.Module, config: Any) -> bool:
    if getattr(config, "is_decoder", False):
        return True
    named = [type(model).__name__, *(getattr(config, "architectures", None) or ())]
    if any("MaskedLM" in name or "ForPreTraining" in name for name in named):
        return False
    causal = getattr(model, "is_causal", None)
    if isinstance(causal, bool):
        return causal
    flags = {m.is_causal for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)}
    return flags != {False}


def _stack(name: str, root: nn.Module, config: Any) -> Stack:
    depths = [v for key in _DEPTHS[name] if isinstance(v := getattr(config, key, None), int) and v > 0]
    lists = [part for part in root.modules() if isinstance(part, nn.ModuleList) and len(part) > 0]
    nested = {id(inner) for part in lists for inner in part.modules() if inner is not part}
    outermost = [part for part in lists if id(part) not in nested]
    depths = depths or [max((len(part) for part in outermost), default=0)]
    exact = [(depth, part) for depth in depths for part in outermost if len(part) == depth]
    shared = [(depth, part) for depth in depths[:1] for part in outermost if depth % len(part) == 0]
    fitting = [(depth, part) for depth, part in exact or shared if depth == (exact or shared)[0][0]]
    if is_custom(root) and len(fitting) != 1:
        blocks = blocks_of(root).modules
        return Stack(name, root, blocks, len(blocks))
    if not fitting:
        raise UnavailableError(
            f"no list of {depths[0]} blocks found in {type(root).__name__}",
            "condense measures models whose blocks return one (batch, tokens, width) residual stream",
        )
    depth, chosen = max(fitting, key=lambda fit: sum(p.numel() for p in fit[1].parameters()))
    return Stack(name, root, tuple(chosen), depth)


@contextlib.contextmanager
def watching(stack: Stack, receive: Receive) -> Iterator[None]:
    """Call `receive(site, states)` at every site while the model runs; states (B, S, d) as the model has them.

    Nothing is kept: reduce inside `receive`. Raises UnavailableError from within the forward pass where
    a block does not return one (B, S, d) stream, or where fewer blocks than expected were called.
    """
    count = 0

    def start(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal count
        count = 0

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if count == 0:
            states = args[0] if args else kwargs.get("hidden_states", stream_of(kwargs))
            receive(Site("embedding", stack.name, 0, stack.blocks), _stream(states, stack, 0))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal count
        count += 1
        states = _states_of(output)
        receive(Site("block", stack.name, count, stack.blocks), _stream(states, stack, count))

    def finish(module: nn.Module, args: Any, output: Any) -> None:
        if count > stack.blocks and count % len(stack.modules) == 0:
            raise UnavailableError(
                f"{type(bare(stack.called or stack.root)).__name__} is a looped model: its {len(stack.modules)} blocks "
                f"are called {count} times in a forward pass",
                "condense measures models that call each block once, or as often as their config says (ALBERT)",
            )
        if count != stack.blocks:
            raise UnavailableError(
                f"{count} of {stack.blocks} blocks of the {stack.name} were called in a forward pass",
                "is the config true to the weights, and layerdrop off?",
            )
        states = _stream(last_state(output), stack, stack.blocks)
        receive(Site("output", stack.name, stack.blocks, stack.blocks), states)

    with contextlib.ExitStack() as hooks:
        hooks.callback(stack.root.register_forward_pre_hook(start, with_kwargs=True).remove)
        hooks.callback(stack.root.register_forward_hook(finish).remove)
        for module in stack.modules:
            hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield


def last_state(output: Any) -> Any:
    """The last hidden state (B, S, d) in what a stack returns."""
    last = getattr(output, "last_hidden_state", None)
    return last if last is not None else _states_of(output)


def _states_of(output: Any) -> Any:
    """The hidden states in what a block returns: a tensor, the first of a tuple, a dict or a dataclass."""
    if isinstance(output, tuple | list):
        return output[0]
    if isinstance(output, Tensor):
        return output
    values = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    named = (values.get(key) for key in ("hidden_states", "last_hidden_state"))
    return next((value for value in (*named, *values.values()) if isinstance(value, Tensor)), output)


def _stream(states: Any, stack: Stack, index: int) -> Tensor:
    if isinstance(states, Tensor) and states.ndim == 3 and states.is_floating_point():
        return states
    shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    raise UnavailableError(
        f"block {index} of {type(stack.root).__name__} returns {shape}, not one (batch, tokens, width) stream",
        "models with several residual streams (AltUp, hyper-connections) are not supported",
    )


def run(model: nn.Module, stacks: tuple[Stack, ...], ids: Tensor, **options: Any) -> Any:
    """One forward pass of the stacks alone (no LM head) over ids (B, S); returns the model's output.

    An encoder–decoder model reads the ids on both sides, shifted right in the decoder.
    """
    with forward_pass(model):
        if len(stacks) == 1:
            return stacks[0].root(input_ids=ids, **options)
        inner = unwrapped(model)
        return getattr(inner, "base_model", inner)(
            input_ids=ids, decoder_input_ids=shifted(ids, getattr(inner, "config", None)), **options
        )


@contextlib.contextmanager
def forward_pass(model: nn.Module) -> Iterator[None]:
    """What a checkpoint's own code raises while it runs becomes UnavailableError; running out of memory does not.

    The traceback's frames decide: an error raised in condense below the pass (in a hook) is a bug, and is not changed.
    """
    try:
        yield
    except CondenseError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or _raised_by_us(error):
            raise
        raise UnavailableError(
            f"{type(unwrapped(model)).__name__} fails in its forward pass: {first_line(error)[:160]}",
            "config, weights and tokenizer do not belong together, or the architecture is not supported",
        ) from error


def _raised_by_us(error: Exception) -> bool:
    package = str(Path(__file__).parents[1])
    frame = error.__traceback__
    files = []
    while frame is not None:
        files.append(frame.tb_frame.f_code.co_filename)
        frame = frame.tb_next
    calls = [index for index, file in enumerate(files) if file == adapt.__code__.co_filename]  # called by the module
    below = max(calls, default=1) + 1  # without one: the first is this file's, the second the caller's
    return (bool(calls) and below == len(files)) or any(file.startswith(package) for file in files[below:])


def raised_inside(error: BaseException, model: nn.Module) -> bool:
    """Whether an error was raised while a model ran, and not by condense below it (in a hook)."""
    package, inside = str(Path(__file__).parents[1]), False
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.startswith(package):
            inside = False
        inside = inside or frame.tb_frame.f_locals.get("self") is model
        frame = frame.tb_next
    return inside


def specials_of(stack: Stack, stacks: tuple[Stack, ...], special: Tensor) -> Tensor:
    """Which positions of a stack hold special tokens: in a decoder that reads shifted ids they are shifted too."""
    if len(stacks) == 1 or stack.name != "decoder":
        return special
    return torch.cat([torch.ones_like(special[:, :1]), special[:, :-1]], dim=1)


def shifted(ids: Tensor, config: Any) -> Tensor:
    """Decoder inputs of an encoder–decoder model: ids moved right behind the start token."""
    start = next(
        (
            token
            for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
            if isinstance(token := getattr(config, key, None), int)
        ),
        0,
    )
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)


def input_device(model: Any) -> torch.device:
    """Where token ids go: the device of the embeddings, also where a model is spread or its weights offloaded."""
    embeddings = input_embeddings(model)
    device: torch.device = next((embeddings or model).parameters()).device
    if device.type != "meta":
        return device
    hook = getattr(embeddings, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device. The host does not wait for what a CUDA device has to do before."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def embedding_rows(model: Any) -> int:
    """Number of token ids that the model has an embedding for; UnavailableError where it reads none."""
    if isinstance(model, Adapted) and model.get_input_embeddings() is None:
        return torch.iinfo(torch.int64).max  # no embedding was detected, so its number of rows is unknown
    try:
        embeddings: Any = input_embeddings(model)
        return int(embeddings.num_embeddings)
    except (AttributeError, TypeError) as error:
        raise UnavailableError(
            f"{type(model).__name__} does not read token ids, or does not say with which module",
            "condense measures language models",
        ) from error
