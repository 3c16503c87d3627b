"""The dispersion penalty in anyone's training loop: hooks that collect states, a mask, one scalar to add.

    with Disperser(model, coefficient=0.1) as disperser:
        loss = model(**batch).loss + disperser.penalty(batch["attention_mask"])

The states are read by forward hooks on the blocks, so it does not matter what the model returns (a fused head
returns no hidden states), nor whether it is wrapped for LoRA, data parallelism or activation checkpointing.
Only passes with gradients are collected; the last one before `penalty()` counts. Torch only.

Where the micro-batches of one optimizer step, or the ranks, hold different numbers of sequences, the mean of
their penalties is not the penalty of the whole: `sequences` gives the weights, `condense.dispersion.trainer`
applies them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypedDict

import torch
from torch import Tensor, nn

from condense.dispersion.config import DispersionConfig, chosen_blocks
from condense.dispersion.losses import mean_cosine
from condense.dispersion.tokens import (
    GIVEN,
    choose,
    from_candidates,
    ids_among,
    next_tokens,
    overriding,
    parameters_of,
    read_documents,
    special_tokens,
)
from condense.dispersion.variants import PENALTIES
from condense.errors import RunError, UnavailableError
from condense.models.adapt import stream_of
from condense.models.layers import Site, Stack, find_stacks, path_of

_LOG = logging.getLogger(__name__)


class _Pass(TypedDict):
    """One forward pass through one stack: from where its outermost module is called until that returns.

    Modules and sites are numbers here, and the pass is a plain dictionary, so that torch.compile can trace the hooks.
    """

    opener: int  # which of the containers was called first
    calls: int  # blocks that ran with gradients
    silent: int  # blocks that ran without, inside a pass with gradients
    inputs: dict[int, dict[str, Any]]  # what each container was given
    states: dict[int, Tensor]  # by block number; 0 is the output


class Disperser:
    """The penalty on narrow cones, coefficient x mean over the sites of L_disp, ready to add to a loss.

    A context manager; `attach` and `detach` do the same by hand. After `penalty()`: `value` is the raw mean of
    L_disp, `mean_cosine` the mean cosine of the same tokens, both averaged over sites, detached scalars (NaN
    before). The arguments are those of `DispersionConfig`. ValueError for an argument out of range,
    UnavailableError where the model has no list of blocks.

    Source of the loss and the placement: Liu et al., 2026, arXiv 2602.00217.
    """

    def __init__(
        self,
        model: nn.Module,
        coefficient: float = DispersionConfig.coefficient,
        *,
        loss: str = DispersionConfig.loss,
        layers: str | Sequence[int] = DispersionConfig.layers,
        paper_sites: bool = DispersionConfig.paper_sites,
        max_tokens: int = DispersionConfig.max_tokens,
        seed: int = DispersionConfig.seed,
        special_ids: Sequence[int] | None = DispersionConfig.special_ids,
        constants: Mapping[str, float] | None = DispersionConfig.constants,
        schedule: str = DispersionConfig.schedule,
        steps: int | None = DispersionConfig.steps,
    ) -> None:
        self.config = DispersionConfig(
            coefficient, loss, layers, paper_sites, max_tokens, seed, special_ids, constants, schedule, steps
        )
        self.model = model
        self.value = self.mean_cosine = torch.tensor(torch.nan)
        self._takes = inspect.signature(PENALTIES[loss]).parameters.keys() & {"step", "labels"}
        self._loss: Callable[..., Tensor] = functools.partial(PENALTIES[loss], **(constants or {}))
        self._stacks = find_stacks(model)
        self._sites = {stack.name: _sites_of(stack, self.config) for stack in self._stacks}
        self._wanted = {name: frozenset(map(_number_of_site, sites)) for name, sites in self._sites.items()}
        self._blocks = {stack.name: stack.blocks for stack in self._stacks}
        self._special = special_tokens(model, special_ids)
        self._hooks = contextlib.ExitStack()
        self._attached = self._copied = False
        self._step = 0
        self._forget()
        self._seen = {"stray": 0, "without gradients": 0}

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return self._attached

    def attach(self) -> Self:
        """Put the hooks on the model; a second call changes nothing."""
        if self._attached:
            return self
        if self._copied:
            raise RunError("a copy of an attached Disperser cannot be attached", "make a new one for the copied model")
        with contextlib.ExitStack() as hooks:
            for stack in self._stacks:
                for index, module in enumerate(self._containers(stack)):
                    enter = functools.partial(self._enter, stack.name, index, parameters_of(module))
                    output = stack.called is None and (module is not self.model or module is stack.root)
                    leave = functools.partial(self._leave, stack.name, index, output)
                    hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
                for module in stack.modules:
                    hooks.callback(module.register_forward_hook(functools.partial(self._block, stack.name)).remove)
                if stack.final is not None:
                    hooks.callback(stack.final.register_forward_hook(functools.partial(self._norm, stack.name)).remove)
            hooks.callback(_forget_compiled, self.model)
            self._hooks = hooks.pop_all()
        _forget_compiled(self.model)
        self._attached = True
        _LOG.info("%r", self)
        return self

    def detach(self) -> None:
        """Take the hooks off and let go of the collected states."""
        self._attached = False
        self._hooks.close()
        self._forget()

    def _forget(self) -> None:
        self._open: dict[str, _Pass] = {}
        self._done: dict[str, _Pass] = {}
        self._unchecked: tuple[Callable[[], Tensor], list[Site]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks and states: those that a copied or pickled model brings along do nothing."""
        fresh = {"_attached": False, "_copied": self._attached or self._copied, "_hooks": contextlib.ExitStack()}
        return vars(self) | fresh | {"_open": {}, "_done": {}, "_unchecked": None}

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        """What is hooked: loss, coefficient, and how many blocks at which module path."""
        hooked = [
            f"{len(self._sites[stack.name])} of {stack.blocks} blocks at {path_of(self.model, stack)}"
            for stack in self._stacks
        ]
        state = "attached" if self._attached else "not attached"
        return f"Disperser({self.config.loss} x {self.config.coefficient:g} on {', '.join(hooked)}; {state})"

    def penalty(
        self,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        step: int | None = None,
    ) -> Tensor:
        """Coefficient x mean over sites of L_disp on the states of the last forward pass; a scalar with a graph.

        All arguments are (B, S) and default to what the forward pass was given; an encoder-decoder's decoder
        always uses that. Left out are padding, special tokens and the first token of each row; where position
        ids restart within a row, each document is a sequence of its own. `step`, the number of the optimizer step from
        0 on, seeds the choice of at most max_tokens positions; without it each call counts as one. A coefficient that
        falls needs it, for with accumulation or after a resume calls are not steps. Where the schedule is through, the
        hooks are taken off, 0 is returned, and `value` and `mean_cosine` are NaN.

        RunError without a new forward pass under gradients, or if states are not finite (the site is named); on a
        GPU that is found by the next call, or by `check`, so that no step waits for the device.
        ValueError for an argument that is not (B, S), or under a schedule without `step`. Sequences of fewer than two
        tokens do not count; 0 if none do.
        """
        if step is None and self.config.schedule != "constant":
            raise ValueError(f"under the schedule {self.config.schedule}: penalty(step=NUMBER OF THE OPTIMIZER STEP)")
        step, self._step = (self._step if step is None else step), self._step + 1
        if self.config.has_ended(step):
            self.detach()
            self.value = self.mean_cosine = torch.tensor(torch.nan)
            return next(self.model.parameters()).new_zeros(())
        passes, self._done = self._done, {}
        if len(passes) < len(self._stacks):
            raise self._nothing_collected()
        self._seen = dict.fromkeys(self._seen, 0)
        explicit = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        values, cosines, sites = [], [], []
        weighs = bool(self.config.coefficient)  # else the loss is read and nothing more
        for stack in self._stacks:
            inputs, states = passes[stack.name]["inputs"], passes[stack.name]["states"]
            known = [inputs[index] for index in sorted(inputs)]
            given = {name: [one[name] for one in known] for name in GIVEN}
            like = next(iter(states.values()))
            if self.config.special_ids and input_ids is None and not any(ids is not None for ids in given["input_ids"]):
                raise RunError(
                    "special_ids were given, but the forward pass shows no token ids",
                    "pass them: penalty(input_ids=...)",
                )
            candidates = overriding(given, explicit, like.shape[:2])
            documents = from_candidates(candidates, like, self._special)
            explicit = {}
            choice = choose(documents, self.config.max_tokens, self.config.seed, step)
            more: dict[str, Any] = {"step": step} if "step" in self._takes else {}
            if "labels" in self._takes:
                more["labels"] = next_tokens(candidates, like, documents).flatten()[choice.tokens]
            for site in self._sites[stack.name]:
                rows, mask = choice.of(states.pop(_number_of_site(site)))
                with torch.set_grad_enabled(weighs and torch.is_grad_enabled()):
                    values.append(self._loss(rows, mask, **more))
                cosines.append(mean_cosine(rows.detach(), mask))
                sites.append(site)
        return self._total(values, cosines, sites, self.config.coefficient_at(step))

    def _total(self, values: list[Tensor], cosines: list[Tensor], sites: list[Site], coefficient: float) -> Tensor:
        device = values[0].device
        total = torch.stack([value.to(device) for value in values])
        self.check()
        self._unchecked = (_on_its_way(torch.isfinite(total.detach())), sites)
        if device.type == "cpu":
            self.check()
        self.value = total.detach().mean()
        self.mean_cosine = torch.stack([cosine.to(device) for cosine in cosines]).mean()
        return total.mean() * coefficient

    def check(self) -> None:
        """RunError if states of the last `penalty()` were not finite; nothing where that was looked at already."""
        if self._unchecked is None:
            return
        (finite, sites), self._unchecked = self._unchecked, None
        wrong = [site for site, good in zip(sites, finite().tolist(), strict=True) if not good]
        if wrong:
            raise RunError(
                f"non-finite states at {wrong[0].name} {wrong[0].index} of the {wrong[0].stack}",
                "lower the learning rate, or compute in bfloat16 or float32 instead of float16",
            )

    def sequences(self, inputs: Mapping[str, Any]) -> int:
        """How many sequences `penalty` averages over for these inputs of the model. ValueError without input_ids."""
        return int(read_documents(inputs, self._special).sequences)

    # The hooks. Not `layers.watching`, which trusts that the stack's root is called: here anything may be called,
    # and some models (OPT) and wrappers (PEFT) go past the root. The outermost container that is called counts.

    def _containers(self, stack: Stack) -> list[nn.Module]:
        """The modules around the blocks that may be called, best informed about the tokens first."""
        outer = [self.model] if len(self._stacks) == 1 else []
        called = [] if stack.called is None else [stack.called]
        return list(dict.fromkeys([stack.root, *called, *outer, _owner(stack)]))

    def _enter(self, stack: str, index: int, parameters: tuple[str, ...], module: Any, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled() or not self._attached:
            return
        passing = self._open.get(stack)
        if passing is None or passing["opener"] == index:  # the latter was interrupted: no hook is called then
            passing = {"opener": index, "calls": 0, "silent": 0, "inputs": {}, "states": {}}
            self._open[stack] = passing
        named = {**dict(zip(parameters, args, strict=False)), **kwargs}
        given = {name: named.get(name) for name in GIVEN}
        if given["input_ids"] is None:
            given["input_ids"] = ids_among(named)
        passing["inputs"][index] = given

    def _norm(self, stack: str, module: Any, args: Any, output: Any) -> None:
        passing = self._open.get(stack)
        if passing is not None and torch.is_grad_enabled():
            self._keep(stack, passing, 0, output)

    def _block(self, stack: str, module: Any, args: Any, output: Any) -> None:
        # No pass is open while blocks are recomputed in the backward pass, nor in a pass without gradients.
        passing = self._open.get(stack)
        if passing is None:
            self._seen["stray" if torch.is_grad_enabled() else "without gradients"] += 1
        elif not torch.is_grad_enabled():
            passing["silent"] += 1
        else:
            passing["calls"] += 1
            self._keep(stack, passing, passing["calls"], output)

    def _leave(self, stack: str, index: int, has_output: bool, module: Any, args: Any, output: Any) -> None:
        passing = self._open.get(stack)
        if passing is None:
            return
        if output is not None and (has_output or hasattr(output, "last_hidden_state")):
            self._keep(stack, passing, 0, getattr(output, "last_hidden_state", output))
        if passing["opener"] != index:
            return
        del self._open[stack]
        if output is None:
            return  # the forward pass raised
        if passing["calls"] != self._blocks[stack]:
            raise _miscounted(stack, passing, self._blocks[stack])
        if len(passing["states"]) != len(self._wanted[stack]):
            raise RunError(f"the {stack} gave no last_hidden_state", "leave paper_sites out")
        self._done[stack] = passing

    def _keep(self, stack: str, passing: _Pass, number: int, output: Any) -> None:
        if number not in self._wanted[stack]:
            return
        states = stream_of(output)
        if not isinstance(states, Tensor) or states.ndim != 3:
            raise UnavailableError(
                f"{f'block {number}' if number else 'the output'} of the {stack} does not return one "
                "(batch, tokens, width) stream",
                "models with several residual streams are not supported",
            )
        passing["states"][number] = states

    def _nothing_collected(self) -> RunError:
        """Why there is nothing to take the penalty of, as far as the hooks saw it."""
        if not self._attached:
            return RunError(
                "penalty() of a Disperser that is not attached",
                "call disperser.attach() once, or use it as a context manager around the training loop",
            )
        if self._seen["stray"]:
            return RunError(
                "penalty(): blocks of the hooked model ran, but none of the modules around them was called",
                f"give Disperser the module that your loop calls, not a part of it or another wrapper ({self!r})",
            )
        if self._seen["without gradients"]:
            return RunError(
                "penalty(): the last forward pass was not under gradients",
                "call the model under torch.enable_grad(), not under no_grad() or inference_mode()",
            )
        return RunError(
            "penalty() without a new forward pass of the hooked model",
            f"call this very module once before each penalty(); a copy of it has no hooks ({self!r})",
        )


def _on_its_way(values: Tensor) -> Callable[[], Tensor]:
    """Values on their way to the CPU, and what waits until they are there; the work behind them is not waited for."""
    if values.device.type != "cuda":
        return lambda: values
    there = values.to("cpu", non_blocking=True)
    arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(values.device))

    def read() -> Tensor:
        arrived.synchronize()
        return there

    return read


def _owner(stack: Stack) -> nn.Module:
    """The module whose list the blocks are: the innermost one that a forward pass has to call."""
    for module in stack.root.modules():
        for part in module.children():
            if isinstance(part, nn.ModuleList) and any(block is stack.modules[0] for block in part):
                return module
    return stack.root


def _sites_of(stack: Stack, config: DispersionConfig) -> tuple[Site, ...]:
    numbers = chosen_blocks(config.layers, stack.blocks)
    normed = config.paper_sites and numbers[-1] == stack.blocks
    sites = tuple(Site("block", stack.name, number, stack.blocks) for number in numbers[: -1 if normed else None])
    return (*sites, Site("output", stack.name, stack.blocks, stack.blocks)) if normed else sites


def _number_of_site(site: Site) -> int:
    """A site as the hooks know it: the number of the block, 0 for the output."""
    return site.index if site.name == "block" else 0


def _miscounted(stack: str, passing: _Pass, blocks: int) -> RunError:
    """The error of a forward pass that called another number of blocks than the stack has."""
    calls, silent = passing["calls"], passing["silent"]
    if calls == 0 and silent:
        return RunError(
            f"the blocks of the {stack} ran without gradients inside a forward pass with gradients",
            "reentrant activation checkpointing hides the states: use checkpoint(..., use_reentrant=False)",
        )
    hint = "set layerdrop to 0; with activation checkpointing, use transformers 5.23 or newer"
    if calls > blocks:
        hint = "blocks that are shared or looped are called more often than there are modules: not supported here"
    return RunError(f"{calls} of {blocks} blocks of the {stack} were called in a forward pass", hint)


def _forget_compiled(model: nn.Module) -> None:
    """Make a compiled model trace its hooks anew: what was compiled before does not look at them again."""
    compiled = (hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in model.modules())
    if any(compiled):
        torch.compiler.reset()
