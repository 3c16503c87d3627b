"""What blocks do to the states they receive: update ratio, cosine of input and output, and the finding."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from condense import geometry
from condense.diagnosis.blocks import idle_finding
from condense.diagnosis.run import analyze
from condense.metrics import UPDATES
from condense.models.checkpoint import checkpoint_of, load
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import windows


def updates(x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor) -> tuple[float, ...]:
    return tuple(geometry.block_updates(x, y)[:, keep].nanmean(1).tolist())


def pair(n: int, d: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
    return x, x + 0.3 * scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e25])
def test_the_fast_way_is_the_functions(scale: float) -> None:
    x, y = pair(40, 16, scale)
    keep = torch.arange(40) > 3
    ratio, cosine = updates(x.float(), y.float(), keep)
    a, b = x[keep].numpy(), y[keep].numpy()
    lengths = np.linalg.norm(a / scale, axis=1), np.linalg.norm(b / scale, axis=1)
    assert ratio == pytest.approx((np.linalg.norm((b - a) / scale, axis=1) / lengths[0]).mean(), rel=1e-5)
    expected = ((a / scale * b / scale).sum(1) / lengths[0] / lengths[1]).mean()
    assert cosine == pytest.approx(expected, abs=1e-5)
    assert geometry.update_ratio(x[keep], y[keep]).item() == pytest.approx(ratio, rel=1e-5)
    assert geometry.update_cosine(x[keep], y[keep]).item() == pytest.approx(cosine, abs=1e-5)


def test_hazards() -> None:
    x, y = pair(6, 4)
    keep = torch.ones(6, dtype=torch.bool)
    x[0] = 0.0  # no direction in what the block receives
    assert updates(x, y, keep)[0] == pytest.approx(geometry.update_ratio(x[1:], y[1:]).item())
    assert updates(x, x, keep) == (0.0, 1.0)
    assert all(math.isnan(value) for value in updates(x, y, ~keep))
    gone = updates(y, torch.zeros_like(y), keep)
    assert gone == (pytest.approx(1.0), 0.0)
    tiny = updates(y.float(), (y * (1 + 1e-4)).float(), keep)  # no cancellation in a small update
    assert tiny[0] == pytest.approx(1e-4, rel=1e-2) and tiny[1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_they_are_those_of_the_hidden_states(
    diagnosed: Callable[[str], Diagnosis], opened: Callable[[str], Any], name: str
) -> None:
    """From transformers' own hidden states, where these are not normed: all blocks but the last."""
    run, checkpoint = diagnosed(name), opened(name)
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=64, positions=checkpoint.positions)
    with torch.no_grad():
        if name == "t5":
            hidden = checkpoint.model.encoder(texts.ids, output_hidden_states=True).hidden_states
        else:
            hidden = checkpoint.model(texts.ids, output_hidden_states=True).hidden_states
    keep = ~texts.special
    keep[:, 0] = False
    sites = [site for site in run.sites if site.stack == run.sites[0].stack]
    for before, after, site in zip(hidden[:-2], hidden[1:-1], sites[1:], strict=False):
        x, y = before.double().numpy(), after.double().numpy()
        for key in UPDATES:
            values = []
            for row, kept in enumerate(keep.numpy()):
                a, b = x[row][kept], y[row][kept]
                one, two = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
                per = np.linalg.norm(b - a, axis=1) / one if key == "update_ratio" else (a * b).sum(1) / one / two
                values.append(per.mean())
            of = site.metrics[key]
            assert of.per_text == pytest.approx(values, rel=2e-5, abs=2e-6), (site.label, key)
            assert of.value == pytest.approx(np.mean(values), rel=2e-5) and of.low is not None
    for site in run.sites:
        if site.site != "block":
            assert site.metrics["update_ratio"].value is None and "block" in (site.metrics["update_ratio"].reason or "")
    deep = [site.metrics["update_ratio"].value for site in run.sites if site.site == "block"][-2:]
    if name != "t5":
        assert run.deep["update_ratio"].value == pytest.approx(np.mean([value or 0 for value in deep]))


def test_batches_give_the_same(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    texts = windows(checkpoint.tokenizer, num_texts=4, max_length=32)
    alone, together = (analyze(checkpoint, texts, batch_size=size) for size in (1, 4))
    for one, two in zip(alone.sites, together.sites, strict=True):
        for key in UPDATES:
            assert one.metrics[key].per_text == pytest.approx(two.metrics[key].per_text, nan_ok=True, abs=1e-5)


def test_blocks_that_change_almost_nothing_are_a_finding(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(tiny("llama"))
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.001)
            layer.mlp.down_proj.weight.mul_(0.001)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(tmp_path)
    checkpoint = load(tmp_path, device="cpu")
    texts = windows(checkpoint.tokenizer, num_texts=4, max_length=32)
    run = analyze(checkpoint, texts)
    found = next(finding for finding in run.verdict.findings if finding.id == "idle-blocks")
    assert "2 of 2 blocks" in found.title and run.deep["update_ratio"].value < 0.05
    assert (run.deep["update_cosine"].value or 0) > 0.999
    whole = analyze(load(tiny("llama"), device="cpu"), replace(texts))
    assert not any(finding.id == "idle-blocks" for finding in whole.verdict.findings)


def test_a_block_that_receives_nothing_is_not_called_none(tiny: Callable[[str], Path]) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(tiny("gpt2"))
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.zero_()
    ids = torch.arange(64).reshape(4, 16)
    texts = windows(ids)
    first = analyze(checkpoint_of(model, ids), texts).sites[1].metrics["update_ratio"]
    assert first.value is None and "all that it receives is zero" in (first.reason or "")


def test_only_blocks_that_are_idle_are_named() -> None:
    labels = ["embedding", *(f"block {n}" for n in range(1, 9)), "output"]
    ratios = [None, 1.0, 1.0, 1.0, 1.0, 0.01, 0.9, 0.02, 0.03, None]
    facts: Any = SimpleNamespace(labels=labels, curves={"update_ratio": ratios}, command=lambda *_: "")
    finding = idle_finding(facts)
    assert finding is not None and finding.seen.startswith("block 5, block 7, block 8 write 0.010 to 0.030")
    facts.curves["update_ratio"][6] = 0.04
    again = idle_finding(facts)
    assert again is not None and again.seen.startswith("block 5 to block 8 write 0.010 to 0.040")
