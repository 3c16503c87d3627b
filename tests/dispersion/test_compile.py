"""The penalty under torch.compile: every usual order, equal to the plain run."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from condense import Disperser
from tests.dispersion.ddp_gradients import llama

IDS = torch.randint(3, 64, (2, 2, 12), generator=torch.Generator().manual_seed(0))
Build = Callable[[nn.Module, str], tuple[Any, Disperser]]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler itself warns of changes with every release
        yield
    torch.compiler.reset()


def gradients(call: Any, disperser: Disperser) -> list[Tensor]:
    """Of two steps with the penalty, one after the other."""
    taken = []
    for ids in IDS:
        disperser.model.zero_grad()
        (call(input_ids=ids, labels=ids).loss + disperser.penalty()).backward()
        taken += [p.grad.clone() for p in disperser.model.parameters() if p.grad is not None]
    return taken


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert len(ours) == len(theirs)
    return max(float((a - b).norm() / (b.norm() + 1e-12)) for a, b in zip(ours, theirs, strict=True))


def compile_then_disperser(model: nn.Module, backend: str) -> tuple[Any, Disperser]:
    compiled = torch.compile(model, backend=backend)
    return compiled, Disperser(compiled, 1.0).attach()


def disperser_then_compile(model: nn.Module, backend: str) -> tuple[Any, Disperser]:
    disperser = Disperser(model, 1.0).attach()
    return torch.compile(model, backend=backend), disperser


def whole_graph(model: nn.Module, backend: str) -> tuple[Any, Disperser]:
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    return compiled, Disperser(compiled, 1.0).attach()


def whole_graph_after(model: nn.Module, backend: str) -> tuple[Any, Disperser]:
    disperser = Disperser(model, 1.0).attach()
    return torch.compile(model, backend=backend, fullgraph=True), disperser


def run_before(model: nn.Module, backend: str) -> tuple[Any, Disperser]:
    compiled = torch.compile(model, backend=backend)
    compiled(input_ids=IDS[0], labels=IDS[0]).loss.backward()
    return compiled, Disperser(compiled, 1.0).attach()


def in_place(model: nn.Module, backend: str) -> tuple[Any, Disperser]:
    model.compile(backend=backend)
    return model, Disperser(model, 1.0).attach()


def per_block(model: Any, backend: str) -> tuple[Any, Disperser]:
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(block, backend=backend)
    return model, Disperser(model, 1.0).attach()


def per_block_in_place(model: Any, backend: str) -> tuple[Any, Disperser]:
    for block in model.model.layers:
        block.compile(backend=backend)
    return model, Disperser(model, 1.0).attach()


ORDERS = [
    compile_then_disperser,
    disperser_then_compile,
    whole_graph,
    whole_graph_after,
    run_before,
    in_place,
    per_block,
    per_block_in_place,
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return llama()


@pytest.fixture(scope="module")
def plain(model: nn.Module) -> list[Tensor]:
    own = copy.deepcopy(model)
    return gradients(own, Disperser(own, 1.0).attach())


@pytest.mark.parametrize("build", ORDERS, ids=lambda order: order.__name__)
@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("aot_eager", marks=pytest.mark.slow), pytest.param("inductor", marks=pytest.mark.slow)],
)
def test_a_compiled_run_is_the_plain_one(backend: str, build: Build, model: nn.Module, plain: list[Tensor]) -> None:
    call, disperser = build(copy.deepcopy(model), backend)
    assert distance(gradients(call, disperser), plain) < 1e-6
    assert disperser.mean_cosine.isfinite()


@pytest.fixture
def alone(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("inside", [True, False], ids=["DDP(compile)", "compile(DDP)"])
def test_data_parallel_and_compiled(
    inside: bool, backend: str, alone: None, model: nn.Module, plain: list[Tensor]
) -> None:
    own = copy.deepcopy(model)
    call: Any = (
        DistributedDataParallel(torch.compile(own, backend=backend))
        if inside
        else torch.compile(DistributedDataParallel(own), backend=backend)
    )
    assert distance(gradients(call, Disperser(call, 1.0).attach()), plain) < 1e-6


def test_hooks_that_are_off_leave_no_trace(model: nn.Module) -> None:
    call, disperser = disperser_then_compile(copy.deepcopy(model), "eager")
    gradients(call, disperser)
    disperser.detach()
    call(input_ids=IDS[0], labels=IDS[0]).loss.backward()
    assert not disperser._open and not disperser._done
