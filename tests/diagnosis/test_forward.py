"""A measured forward pass that is sent from a device: nothing waits within it, and the numbers are those of a CPU.

There is no GPU here: operations are looked at as they are dispatched, on the meta device too, and what is decided by
the device of the states is switched, so that CPU tensors are packed, sent, received and measured as a GPU's are.
"""

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from condense import analyze, geometry, load, windows
from condense.diagnosis import forward, transfer
from condense.diagnosis.forward import Site, TextReading, read_texts
from condense.diagnosis.quality import Scorer, make_scorer
from condense.diagnosis.resume import encode
from condense.diagnosis.transfer import Transfer
from condense.diagnosis.workers import Workers
from condense.errors import RunError, UnavailableError
from condense.models import layers
from condense.models.checkpoint import checkpoint_of
from condense.models.layers import find_stacks
from condense.records.diagnosis import NO_CORPUS
from condense.texts.windows import Windows
from tests.conftest import VOCABULARY
from tests.waiting import CONFIG, NoWaiting

TEXTS = 5


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass is treated as one on a device."""
    monkeypatch.setattr(forward, "_is_measured_at_once", lambda states: False)


def read(checkpoint: Any, cut: Windows, **more: Any) -> Iterator[TextReading]:
    stacks = find_stacks(checkpoint.model)
    scorer = make_scorer(checkpoint.model, stacks, checkpoint.info.objective, cut, 0, None)
    options = {"indices": list(range(len(cut))), "batch_size": 2, "spectral_tokens": 16, "seed": 0, **more}
    return read_texts(checkpoint.model, stacks, cut, scorer, **options)


def texts_of(checkpoint: Any) -> Windows:
    return windows(checkpoint.tokenizer, num_texts=TEXTS, max_length=32, positions=checkpoint.positions)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, sending: None) -> list[Any]:
    """What happens to the batches, in order: a batch is launched, sent (to so many devices), waited for, measured."""
    seen: list[Any] = []
    launch, measure_site = forward._BatchReader.launch, forward._BatchReader._measure_site

    class Sent(Transfer):
        def __init__(self, tensors: Any) -> None:
            super().__init__(tensors)
            seen.append(("sent", len(self._copies)))

        def wait(self) -> list[Tensor]:
            seen.append("waited")
            return super().wait()

    def launching(self: Any, batch: list[int], before: Any = None) -> Any:
        seen.append(("launched", *batch))
        return launch(self, batch, before)

    def measuring(self: Any, site: Site, index: int, *more: Any) -> Any:
        if site.name == "embedding":
            seen.append(("measured", index))
        return measure_site(self, site, index, *more)

    monkeypatch.setattr(forward, "Transfer", Sent)
    monkeypatch.setattr(forward._BatchReader, "launch", launching)
    monkeypatch.setattr(forward._BatchReader, "_measure_site", measuring)
    return seen


# --- nothing waits ------------------------------------------------------------------------------------


def launched(device: str, kind: str) -> Any:
    """A batch of two texts of a tiny model on a device, launched; head, whole model or masked: how it is scored."""
    with torch.device(device):
        small = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
        masked = kind == "masked"
        model: Any = BertForMaskedLM(BertConfig(**small)) if masked else LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.eval()
    scorer = Scorer(model, "masked" if masked else "causal", model.lm_head if kind == "head" else None, 1, 0)
    cut = Windows(torch.arange(16).reshape(2, 8), torch.zeros(2, 8, dtype=torch.bool), (None, None), 1, NO_CORPUS)
    with Workers() as workers, torch.inference_mode():
        reader = forward._BatchReader(model, find_stacks(model), cut, scorer, workers, 8, 0, halves=True)
        with NoWaiting("meta") if device == "meta" else contextlib.nullcontext():
            return reader.launch([0, 1])


@pytest.mark.parametrize("kind", ["head", "whole model", "masked"])
def test_nothing_in_a_launch_waits_for_the_device(kind: str, sending: None) -> None:
    """Passes, losses, halves, and packing what is sent; meta has no values that could be waited for."""
    texts = launched("meta", kind)
    assert [site.name for site in texts.sites] == ["embedding", *["block"] * 3, "output"] and not texts.states
    assert len(texts.losses) == 2 and texts.halves[0].shape == (4, 4, 32)
    assert all(tensor.device.type == "meta" for tensor in (*texts.losses, *texts.halves))
    assert texts.losses[0].shape == ((1,) if kind == "masked" else (7,))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_hook_waits_for_the_device(device: str, sending: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the head in the last of them."""
    real = layers.watching

    def watching(stack: Any, receive: Callable[[Site, Tensor], None]) -> Any:
        def watched(site: Site, states: Tensor) -> None:
            with NoWaiting():
                receive(site, states)

        return real(stack, watched)

    monkeypatch.setattr(forward, "watching", watching)
    assert len(launched(device, "head").sites) == 5


# --- the same numbers ---------------------------------------------------------------------------------


def mixture() -> Any:
    """A model with experts, whose checkpoint is in memory."""
    torch.manual_seed(0)
    sizes = {**CONFIG, "vocab_size": VOCABULARY, "num_local_experts": 4, "num_experts_per_tok": 2}
    return checkpoint_of(MixtralForCausalLM(MixtralConfig(**sizes)).eval(), torch.ones(1, 8, dtype=torch.long))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "albert", "t5", "bart", "mixture"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_states_that_are_sent_give_the_same_bits(
    opened: Callable[[str], Any], name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, cut = mixture() if name == "mixture" else opened(name), texts_of(opened("gpt2"))
    at_once = [encode(reading) for reading in read(checkpoint, cut, batch_size=batch_size, halves=True)]
    monkeypatch.setattr(forward, "_is_measured_at_once", lambda states: False)
    assert [encode(reading) for reading in read(checkpoint, cut, batch_size=batch_size, halves=True)] == at_once


def test_and_so_does_the_whole_analysis(opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that `analyze` can add to it."""

    def numbers() -> tuple[Any, ...]:
        made = analyze(opened("llama"), cut, batch_size=2, halves=True, twin=True, lens=True)
        assert made.twin is not None and made.pooled and made.matrices
        return (
            made.sites,
            made.quality,
            made.pooled,
            made.sinks,
            made.matrices,
            made.deep,
            made.verdict,
            made.twin.sites,
        )

    cut = windows(opened("llama").tokenizer, num_texts=3, max_length=16)
    at_once = numbers()
    monkeypatch.setattr(forward, "_is_measured_at_once", lambda states: False)
    assert numbers() == at_once


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_model_that_is_partly_on_the_cpu_keeps_the_order_of_its_sites(
    opened: Callable[[str], Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a device map: what follows the first site on a device is sent, wherever it is."""
    expected = [encode(reading) for reading in read(opened(name), texts_of(opened(name)))]
    seen: list[Tensor] = []

    def alternating(states: Tensor) -> bool:
        seen.append(states)
        return len(seen) % 3 != 0

    monkeypatch.setattr(forward, "_is_measured_at_once", alternating)
    assert [encode(reading) for reading in read(opened(name), texts_of(opened(name)))] == expected


def test_what_a_block_writes_over_is_sent_as_it_was(opened: Callable[[str], Any], sending: None) -> None:
    def doubling(module: Any, given: tuple[Tensor, ...]) -> None:
        given[0].mul_(2)

    checkpoint, cut = copy.deepcopy(opened("llama")), texts_of(opened("llama"))
    expected, (stack,) = list[Tensor](), find_stacks(checkpoint.model)
    with torch.inference_mode(), Workers() as workers:
        stack.modules[1].register_forward_pre_hook(doubling)
        with layers.watching(stack, lambda site, states: expected.append(states.clone())):
            layers.run(checkpoint.model, (stack,), cut.ids[:2])
        scorer = Scorer(checkpoint.model, "causal", None, None, 0, "not scored")
        texts = forward._BatchReader(checkpoint.model, (stack,), cut, scorer, workers, 16, 0).launch([0, 1])
        assert texts.transfer is not None
        sent = texts.transfer.wait()
    assert len(sent) == len(expected) == 5 and all(map(torch.equal, sent, expected))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_short_floats_are_sent_as_they_are(kind: torch.dtype, events: list[Any], tiny: Callable[[str], Path]) -> None:
    """And widened on the host: beside the float32 losses each is at a place where its type may be."""
    checkpoint = load(tiny("llama"), device="cpu", dtype=str(kind).removeprefix("torch."))
    cut, stacks = texts_of(checkpoint), find_stacks(checkpoint.model)
    scorer = make_scorer(checkpoint.model, stacks, "causal", cut, 0, None)
    with Workers() as workers, torch.inference_mode():
        reader = forward._BatchReader(checkpoint.model, stacks, cut, scorer, workers, 16, 0)
        texts = reader.launch([0, 1])
        assert texts.transfer is not None
        ((packed, _),) = texts.transfer._copies.values()
        assert packed.dtype == torch.uint8 and packed.numel() == 5 * 2 * 32 * 32 * 2 + 2 * 31 * 4
        reader.finish(texts)
    assert all(states.dtype == kind for states in texts.states) and texts.losses[0].dtype == torch.float32


# --- one transfer a batch, while the next one runs ----------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
@pytest.mark.parametrize("halves", [False, True])
def test_a_batch_is_sent_at_once_and_measured_while_the_next_one_runs(
    opened: Callable[[str], Any], name: str, halves: bool, events: list[Any]
) -> None:
    """One copy, whatever there is to send; nothing is waited for before the next batch was launched."""
    readings = list(read(opened(name), texts_of(opened(name)), halves=halves))
    assert [reading.index for reading in readings] == list(range(TEXTS))
    order = [event for event in events if event == "waited" or event[0] != "measured"]
    assert order == [
        ("launched", 0, 1), ("sent", 1), ("launched", 2, 3), ("sent", 1), "waited", ("launched", 4), ("sent", 1),
        "waited", "waited",
    ]  # fmt: skip
    for first, launched in ((0, ("launched", 2, 3)), (2, ("launched", 4))):
        assert events.index(("measured", first)) > events.index(launched)


def test_two_batches_are_in_memory_at_most(opened: Callable[[str], Any], events: list[Any]) -> None:
    """When a batch is launched nothing is left of the one before the last."""
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real = forward._BatchReader.launch

    def launch(self: Any, batch: list[int], before: Any = None) -> Any:
        gc.collect()
        alive.append(sum(ref() is not None for ref in kept))
        texts = real(self, batch, before)
        kept.append(weakref.ref(texts))
        return texts

    with mock.patch.object(forward._BatchReader, "launch", launch):
        for _ in read(opened("gpt2"), texts_of(opened("gpt2")), batch_size=1):
            pass
    assert alive == [0, 1, 1, 1, 1]


def test_on_a_cpu_no_second_batch_is_launched_before_the_first_was_read(
    opened: Callable[[str], Any], events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_is_measured_at_once", lambda states: True)
    for reading in read(opened("gpt2"), texts_of(opened("gpt2"))):
        batches = [event for event in events if event[0] == "launched"]
        assert len(batches) == 1 + reading.index // 2
    assert ("sent", 1) not in events and "waited" not in events


class Stream:
    """A CUDA stream that notes what it is asked for."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def wait_stream(self, other: str) -> None:
        self.log.append(f"wait for {other}")

    def record_event(self) -> "Stream":
        self.log.append("event")
        return self

    def synchronize(self) -> None:
        self.log.append("synchronize")


def test_on_cuda_the_copy_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins after the pass, into page-locked memory; its source is kept until its end; `wait` waits for that."""
    log: list[str] = []

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        log.append("in its stream")
        yield
        log.append("out of it")

    def empty(*args: Any, pin_memory: bool = False, **more: Any) -> Tensor:
        log.append("pinned" if pin_memory else "pageable")
        return torch.empty(*args, **more)

    streams = SimpleNamespace(
        Stream=lambda device: Stream(log), current_stream=lambda device: "the pass", stream=inside
    )
    names = {"cat": torch.cat, "uint8": torch.uint8, "split": torch.split, "device": torch.device, "empty": empty}
    monkeypatch.setattr(transfer, "torch", SimpleNamespace(**names, cuda=streams))
    monkeypatch.setattr(transfer, "_has_streams", lambda device: True)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: log.append("kept"))
    given = [torch.randn(3, 4), torch.randn(2, 5, 3).bfloat16(), torch.arange(7), torch.zeros(0), torch.tensor(True)]
    sent = Transfer(given)
    assert log == ["wait for the pass", "pinned", "in its stream", "out of it", "kept", "event"]
    sent.fetch()
    assert log[-1] == "event", "nothing waits for it before"
    for got, tensor in zip(sent.wait(), given, strict=True):
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)
    assert log[-1] == "synchronize"


def test_with_one_queue_the_copy_is_taken_before_the_next_pass(
    opened: Callable[[str], Any], events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on MPS: a copy that is queued behind the next pass would wait for that."""
    real, fetch = forward.run, Transfer.fetch

    def run(*args: Any) -> Any:
        events.append("pass")
        return real(*args)

    def fetched(self: Transfer) -> None:
        events.append("fetched")
        fetch(self)

    monkeypatch.setattr(forward, "run", run)
    monkeypatch.setattr(Transfer, "fetch", fetched)
    list(read(opened("gpt2"), texts_of(opened("gpt2"))))
    order = [event for event in events if event in ("pass", "fetched", "waited")]
    assert order[:5] == ["pass", "fetched", "pass", "waited", "fetched"]


# --- failures between two batches ---------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, when: Callable[[Tensor, int], bool]) -> list[int]:
    """Have a pass over ids (B, S) fail; the sizes of all passes."""
    real, sizes = forward.run, list[int]()

    def run(model: Any, stacks: Any, ids: Tensor, **more: Any) -> Any:
        sizes.append(len(ids))
        if when(ids, len(sizes)):
            raise error
        return real(model, stacks, ids, **more)

    monkeypatch.setattr(forward, "run", run)
    return sizes


def bits(opened: Callable[[str], Any], **more: Any) -> list[bytes]:
    return [encode(reading) for reading in read(opened("gpt2"), texts_of(opened("gpt2")), **more)]


def test_memory_for_one_batch_but_not_for_two(
    opened: Callable[[str], Any], events: list[Any], monkeypatch: Any
) -> None:
    """The batch that waits is read; the next one is launched alone, and so are all after it, without being halved."""
    expected = bits(opened)
    events.clear()
    sizes = failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), lambda ids, number: number == 2)
    notes: list[str] = []
    assert bits(opened, on_note=notes.append) == expected
    assert sizes == [2, 2, 2, 1] and notes == []
    assert [event for event in events if event[0] == "launched"] == [
        ("launched", 0, 1), ("launched", 2, 3), ("launched", 2, 3), ("launched", 4),
    ]  # fmt: skip
    last = events.index(("launched", 4))
    assert events.index(("measured", 2)) < last, "it was not beside another"


def test_a_batch_that_fails_alone_too_is_halved(opened: Callable[[str], Any], sending: None, monkeypatch: Any) -> None:
    expected = bits(opened, batch_size=1)
    sizes = failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), lambda ids, n: n > 1 and len(ids) > 1)
    notes: list[str] = []
    got = bits(opened, on_note=notes.append)
    assert got[2:] == expected[2:] and sizes == [2, 2, 2, 1, 1, 1]
    assert [note.split(";")[0] for note in notes] == ["out of memory with 2 texts at once"]


def test_memory_that_runs_out_while_a_batch_is_measured(
    opened: Callable[[str], Any], sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is launched again alone, and halved where it fails again; none is read twice and none is left out."""
    expected, real, calls = bits(opened, batch_size=1), geometry.measure, list[int]()

    def scarce(*args: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 12):
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(geometry, "measure", scarce)
    notes: list[str] = []
    got = list(read(opened("gpt2"), texts_of(opened("gpt2")), on_note=notes.append))
    assert [encode(reading) for reading in got] == expected
    assert [note.split(";")[0] for note in notes] == ["out of memory with 2 texts at once"]


def test_no_memory_for_a_single_text_while_another_waits(
    opened: Callable[[str], Any], sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), lambda ids, number: number > 1)
    read_so_far = []
    with pytest.raises(RunError, match="out of memory on a single text of 32 tokens"):
        for reading in read(opened("gpt2"), texts_of(opened("gpt2")), batch_size=1):
            read_so_far.append(reading.index)  # noqa: PERF401
    assert read_so_far == [0]


def test_a_launch_that_fails_does_not_lose_the_batch_before_it(
    opened: Callable[[str], Any], sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, UnavailableError("no stream"), lambda ids, number: number > 1)
    read_so_far = []
    with pytest.raises(UnavailableError, match="no stream"):
        for reading in read(opened("gpt2"), texts_of(opened("gpt2"))):
            read_so_far.append(reading.index)  # noqa: PERF401
    assert read_so_far == [0, 1]


def test_states_that_are_not_finite_name_their_text_and_site(
    opened: Callable[[str], Any], sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though another batch was launched meanwhile."""
    real, passes = forward.watching, list[int]()

    def watching(stack: Any, receive: Callable[[Site, Tensor], None]) -> Any:
        passes.append(1)
        second = len(passes) == 2

        def damaging(site: Site, states: Tensor) -> None:
            damaged = second and site.label == "block 2"
            receive(site, states.index_fill(0, torch.tensor([1]), torch.nan) if damaged else states)

        return real(stack, damaging)

    monkeypatch.setattr(forward, "watching", watching)
    read_so_far = []
    with pytest.raises(RunError, match=r"text 3 at block 2 \(decoder\)"):
        for reading in read(opened("gpt2"), texts_of(opened("gpt2"))):
            read_so_far.append(reading.index)  # noqa: PERF401
    assert read_so_far == [0, 1] and len(passes) == 3


def test_an_interrupt_between_two_batches(
    opened: Callable[[str], Any], sending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run at once; the journal has what was read, and the run that resumes ends with the same numbers."""
    cut, threads = texts_of(opened("gpt2")), torch.get_num_threads()
    expected = analyze(opened("gpt2"), cut, batch_size=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        failing(patch, KeyboardInterrupt(), lambda ids, number: number == 3)
        analyze(opened("gpt2"), cut, batch_size=2, journal=True)
    notes: list[str] = []
    again = analyze(opened("gpt2"), cut, batch_size=2, journal=True, on_note=notes.append)
    assert notes == [f"resuming: 2 of {TEXTS} texts were measured before"]
    assert again.sites == expected.sites and again.quality == expected.quality
    assert torch.get_num_threads() == threads
