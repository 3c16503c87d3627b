"""Any module in place of a transformers model: its blocks detected or named, its forward pass read through hooks.

What the module tree does not show (final norm, head, whether it is causal) is detected in one forward pass over
the first tokens. Nothing is decided by size: where several lists of modules could be the blocks, they are listed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from condense.errors import UnavailableError, first_line

DEPTH_NAMES = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
_CONFIG_NAMES = ("config", "cfg", "args", "hparams", "params", "model_args", "hps")
_MOST_LISTED = 8


@dataclass(frozen=True)
class Blocks:
    """A list of modules that could be the blocks, and its path in the module tree."""

    path: str
    modules: tuple[nn.Module, ...]

    def __str__(self) -> str:
        """For example `transformer.h (12 x Block)`."""
        kinds = sorted({type(module).__name__ for module in self.modules})
        return f"{self.path or 'the model itself'} ({len(self.modules)} x {'/'.join(kinds)})"


def adapt(
    module: nn.Module,
    blocks: str | Sequence[str | nn.Module] | None = None,
    *,
    embedding: str | nn.Module | None = None,
    final_norm: str | nn.Module | None = None,
    head: str | nn.Module | None = None,
    input: str | None = None,  # noqa: A002  the name users look for
) -> Adapted:
    """Name the parts of a module of any class, for `Disperser`, `analyze`, `compare` and the monitor.

    blocks: path of the list of blocks (`"transformer.h"`), or the blocks themselves as paths or modules; embedding,
    final_norm, head: paths or modules; input: the argument of `forward` that takes token ids (B, S). What is left
    out is found: the blocks by the depth that a config or attribute names (n_layer, n_layers, num_layers), the rest
    in the first forward pass. ValueError for a path that does not exist; UnavailableError where no list of modules or
    several could be the blocks (the candidates are listed by path).
    """
    inner = bare(module)
    chosen = find_blocks(inner) if blocks is None else _named_blocks(inner, blocks)
    parts = {"embedding": embedding, "final_norm": final_norm, "head": head}
    return Adapted(
        module, chosen, {name: _submodule(inner, part) for name, part in parts.items() if part is not None}, input
    )


def bare(module: nn.Module) -> nn.Module:
    """The module inside compiled and data-parallel wrappers."""
    inner: Any = module
    while True:
        if isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif type(inner).__module__.startswith("torch.nn.parallel") and isinstance(inner.module, nn.Module):
            inner = inner.module
        else:
            bare_module: nn.Module = inner
            return bare_module


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a transformers model, which names its own parts."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def find_blocks(module: nn.Module) -> Blocks:
    """The one list of modules that can be the blocks. UnavailableError, with the candidates, where it is not one."""
    candidates, depths = candidate_blocks(module), named_depths(module)
    fitting = [candidate for candidate in candidates if len(candidate.modules) in depths] if depths else candidates
    if len(fitting) == 1:
        return fitting[0]
    name = type(module).__name__
    listed = ", ".join(str(candidate) for candidate in candidates[:_MOST_LISTED]) or "none"
    more = f" and {len(candidates) - _MOST_LISTED} more" if len(candidates) > _MOST_LISTED else ""
    if len(fitting) > 1:
        of_depth = f" (depth {', '.join(map(str, sorted(depths)))})" if depths else ""
        what = f"several lists of modules could be the blocks of {name}{of_depth}: {listed}{more}"
    elif candidates:
        what = f"no list of {' or '.join(map(str, sorted(depths)))} blocks found in {name}; it has {listed}{more}"
    else:
        raise UnavailableError(
            f"no list of {f'{min(depths)} ' if depths else ''}blocks found in {name}",
            'name them: condense.adapt(model, blocks="path.to.blocks"), a path or a list of paths',
        )
    example = (fitting or candidates)[0].path
    raise UnavailableError(what, f'name them: condense.adapt(model, blocks="{example}")')


def candidate_blocks(module: nn.Module) -> list[Blocks]:
    """Every list of modules in the tree that is not inside another one's entries, by path."""
    candidates: list[Blocks] = []
    inside: set[int] = set()
    for path, part in module.named_modules():
        if id(part) in inside or not isinstance(part, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            continue
        for modules in _block_lists_in(part):
            candidates.append(Blocks(path, modules))
            inside.update(id(below) for entry in modules for below in entry.modules())
    return candidates


def _block_lists_in(part: nn.Module) -> list[tuple[nn.Module, ...]]:
    """The entries of a list; of a Sequential or a dictionary those of one class that have parts of their own."""
    children = tuple(part.children())
    if isinstance(part, nn.ModuleList):
        return [children] if children else []
    by_class: dict[type, list[nn.Module]] = {}
    for child in children:
        if any(True for _ in child.children()) and not isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            by_class.setdefault(type(child), []).append(child)
    return [tuple(own) for own in by_class.values()]


def named_depths(module: nn.Module) -> set[int]:
    """The numbers of blocks that the module, its configs or those of its direct parts name."""
    holders: list[Any] = [module, *module.children()]
    holders += [getattr(part, name, None) for part in (module, *module.children()) for name in _CONFIG_NAMES]
    values = [_value_of(holder, name) for holder in holders for name in DEPTH_NAMES]
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0}


def _value_of(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _submodule(module: nn.Module, part: str | nn.Module) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    try:
        return module.get_submodule(part)
    except AttributeError:
        children = ", ".join(name for name, _ in module.named_children())
        raise ValueError(f"{type(module).__name__} has no module {part!r}; at its top are {children}") from None


def _named_blocks(module: nn.Module, blocks: str | Sequence[str | nn.Module]) -> Blocks:
    if not isinstance(blocks, str):
        modules = tuple(_submodule(module, block) for block in blocks)
        path = blocks[0].rpartition(".")[0] if blocks and isinstance(blocks[0], str) else "the modules given"
    else:
        part, path = _submodule(module, blocks), blocks
        groups = _block_lists_in(part)
        if len(groups) > 1:
            listed = ", ".join(str(Blocks(path, group)) for group in groups)
            raise ValueError(f"{blocks!r} holds several kinds of modules: {listed}; give the blocks as a list of paths")
        modules = groups[0] if groups else tuple(part.children())
    if not modules:
        raise ValueError(f"blocks={blocks!r} names no block")
    return Blocks(path, modules)


# --- the adapted module -------------------------------------------------------


@dataclass
class _Parts:
    """The parts of a module detected in a forward pass, and why there is no score if there is none."""

    embedding: nn.Module | None = None
    final_norm: nn.Module | None = None
    head: nn.Module | None = None
    causal: bool = False
    width: int = 0
    missing: str | None = None
    known: bool = field(default=False)


class Adapted(nn.Module):
    """A module with its blocks named, called as a transformers model is: ids in, states and logits out.

    `module` is the one given; `forward(input_ids=(B, S))` returns `last_hidden_state` (B, S, d), after the final norm
    where there is one, and `logits` (B, S, V) or None. Made by `condense.adapt`.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Blocks,
        parts: Mapping[str, nn.Module] | None = None,
        argument: str | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.blocks = blocks
        self.argument = argument
        self.config = SimpleNamespace(name_or_path="", is_encoder_decoder=False)
        self._given = dict(parts or {})
        self._parts = _Parts(**self._given)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        """What is hooked, in a line."""
        return f"Adapted({type(bare(self.module)).__name__}: {len(self.blocks.modules)} blocks at {self.blocks.path})"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def head_missing(self) -> str | None:
        """Why there is no next-token score; None where there is one, or before `probe`."""
        return self._parts.missing

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream; 0 before `probe`."""
        return self._parts.width

    @property
    def final_norm(self) -> nn.Module | None:
        """The module whose output is the `output` site."""
        return self._parts.final_norm

    def get_input_embeddings(self) -> nn.Module | None:
        """The embedding of token ids, if it was named or detected."""
        return self._parts.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, if it was named or detected."""
        return self._parts.head

    def call(self, ids: Tensor) -> Any:
        """The module's own forward pass on ids (B, S)."""
        try:
            return self.module(ids) if self.argument is None else self.module(**{self.argument: ids})
        except IndexError as error:
            name = type(bare(self.module)).__name__
            raise UnavailableError(
                f"{name} fails in its forward pass ({first_line(error)}); the largest token id is {int(ids.max())}",
                "are these the ids of its own tokenizer, and is the text within its longest input?",
            ) from error

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Run the module; see the class."""
        states: list[Tensor] = []
        source = self._parts.final_norm or self.blocks.modules[-1]
        hook = source.register_forward_hook(lambda module, args, output: states.append(stream_of(output)))
        try:
            output = self.call(input_ids)
        finally:
            hook.remove()
        last = states[-1]
        logits = logits_of(output, input_ids, whole=True)
        if logits is None and self._parts.head is not None and self._parts.missing is None:
            logits = self._parts.head(last)
        return SimpleNamespace(last_hidden_state=last, logits=logits)

    @torch.inference_mode()
    def probe(self, ids: Tensor) -> None:
        """Detect the parts of the module, and whether it is causal, in forward passes over ids (1, S >= 2)."""
        if self._parts.known:
            return
        modes = [(part, part.training) for part in self.modules()]
        self.eval()
        try:
            self._detect_parts(ids)
        finally:
            for part, training in modes:
                part.training = training

    def _detect_parts(self, ids: Tensor) -> None:
        with _recorded_calls(bare(self.module), self.blocks) as calls:
            output = self.call(ids)
        parts = self._parts
        last = max((i for i, call in enumerate(calls) if call.is_block), default=-1)
        if last < 0:
            raise UnavailableError(f"none of {self.blocks} was called in a forward pass", "name other blocks")
        states = calls[last].output
        parts.width = int(states.shape[-1])
        after = [call for call in calls[last + 1 :] if not call.is_block]
        like = [call for call in after if call.output is not None and call.output.shape == states.shape]
        norms = [call.module for call in like if "norm" in type(call.module).__name__.lower()]
        parts.final_norm = parts.final_norm or (norms[0] if norms else None)
        embeddings = [
            call.module for call in calls[: last + 1] if isinstance(call.module, nn.Embedding) and call.reads(ids)
        ]
        parts.embedding = parts.embedding or (embeddings[0] if embeddings else None)
        rows = getattr(parts.embedding, "num_embeddings", 0)
        heads = [c.module for c in after if isinstance(c.module, nn.Linear) and c.module.out_features >= max(rows, 2)]
        parts.head = parts.head or (heads[-1] if heads else None)
        parts.known = True
        parts.causal = self._is_causal_on(ids)
        parts.missing = self._why_no_score(ids, output)

    def _is_causal_on(self, ids: Tensor) -> bool:
        others = ids[ids != ids[0, -1]]
        if len(others) == 0:
            return True  # one token, repeated: not detectable
        changed = ids.clone()
        changed[:, -1] = others[0]
        before, after = (self(input_ids=both).last_hidden_state[:, :-1].float() for both in (ids, changed))
        return bool((before - after).abs().max() <= 1e-4 * (before.abs().max() + 1e-12))

    def _why_no_score(self, ids: Tensor, output: Any) -> str | None:
        if not self._parts.causal:
            return "the module is not causal: a state changes with the tokens after it"
        if logits_of(output, ids, whole=True) is not None:
            return None
        if self._parts.head is None:
            return "no head was found that maps states to logits (name it: condense.adapt(..., head=...))"
        some = logits_of(output, ids, whole=False)
        if some is None:
            return None
        expected = self._parts.head(self(input_ids=ids).last_hidden_state)[:, -some.shape[1] :]
        if expected.shape == some.shape and torch.allclose(expected.float(), some.float(), rtol=1e-3, atol=1e-4):
            return None
        return "the module changes its head's logits and returns only the last of them"


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    is_block: bool
    given: Any
    output: Any

    def reads(self, ids: Tensor) -> bool:
        """Whether the call was given these very ids."""
        return isinstance(self.given, Tensor) and self.given.shape == ids.shape and bool((self.given == ids).all())


@contextlib.contextmanager
def _recorded_calls(module: nn.Module, blocks: Blocks) -> Iterator[list[_Call]]:
    """The calls of blocks and of the leaves outside of them, in order, while the module runs."""
    calls: list[_Call] = []
    own = {id(block) for block in blocks.modules}
    inside = {id(part) for block in blocks.modules for part in block.modules()} - own

    def note(part: nn.Module, args: Any, output: Any) -> None:
        states = stream_of(output) if isinstance(output, Tensor | tuple | list | dict) or is_dataclass(output) else None
        calls.append(_Call(part, id(part) in own, args[0] if args else None, states))

    watched = [
        part
        for part in module.modules()
        if id(part) in own or (id(part) not in inside and not any(True for _ in part.children()))
    ]
    norms = [part for part in module.modules() if "norm" in type(part).__name__.lower() and id(part) not in inside]
    with contextlib.ExitStack() as hooks:
        for part in dict.fromkeys([*watched, *norms]):
            hooks.callback(part.register_forward_hook(note).remove)
        yield calls


def stream_of(output: Any) -> Any:
    """The residual stream in what a block returns: a tensor, or the first of a tuple, mapping or dataclass."""
    if isinstance(output, Tensor):
        return output
    values = (
        output.values() if isinstance(output, Mapping) else vars(output).values() if is_dataclass(output) else output
    )
    return next((value for value in values if isinstance(value, Tensor) and value.ndim == 3), None)


def logits_of(output: Any, ids: Tensor, *, whole: bool) -> Tensor | None:
    """Logits (B, S, V) in what a model returns; without `whole` also those of the last positions alone."""
    named = getattr(output, "logits", None)
    if isinstance(output, Tensor) or isinstance(named, Tensor):
        values: list[Any] = [output if isinstance(output, Tensor) else named]
    elif isinstance(output, Mapping):
        values = list(output.values())
    elif isinstance(output, tuple | list):
        values = list(output)
    else:
        values = []
    batch, length = ids.shape
    for value in values:
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and value.shape[0] == batch:
            if value.shape[1] == length if whole else value.shape[1] <= length:
                return value if value.shape[-1] > int(ids.max()) else None
    return None
