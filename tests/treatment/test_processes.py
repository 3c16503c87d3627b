"""Training over several processes: a step has the rows and the gradient of one process, and the first one leads."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from condense.records.plans import Plan
from condense.texts.documents import Document
from condense.treatment.run import treat

PLAN = Plan(
    coefficient=2.0,
    max_steps=3,
    max_length=32,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=5e-3,
    num_texts=8,
    warmup=0.0,
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def texts() -> list[Document]:
    words = "the cone of a small model opens when its tokens are pushed apart while it learns to read and write".split()
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(24):
        order = torch.randint(0, len(words), (40,), generator=generator)
        made.append(Document(f"d{index}", " ".join(words[i] for i in order) + f" {index}"))
    return made


def in_processes(work: Callable[[], Any], size: int = 2) -> list[Any]:
    """What each of several forked processes returns, or the exception that it raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(size)]

    def run(rank: int) -> None:
        import faulthandler

        faulthandler.dump_traceback_later(15, file=open(f"/tmp/proc/trace{rank}", "w"))
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        try:
            result = work()
        except BaseException as error:
            result = error
            traceback.print_exc()
        pipes[rank][1].send(result)
        pipes[rank][1].close()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    results = [pipe.recv() if pipe.poll(25) else None for pipe, _ in pipes]
    for process in processes:
        process.join(20)
        process.kill()
    return results


def test_two_processes_train_what_one_does(tiny: Any, texts: list[Document], tmp_path: Path) -> None:
    one = treat(tiny("llama"), texts, tmp_path / "one", replace(PLAN, gradient_accumulation_steps=4), device="cpu")
    first, second = in_processes(lambda: treat(tiny("llama"), texts, tmp_path / "two", PLAN, device="cpu"))
    print(first, second)
    assert first == second
    for name in ("control", "treated"):
        a, b = one.arms[name].curve, first.arms[name].curve
        print(a, b)
