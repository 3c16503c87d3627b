"""Modules that are no transformers models: blocks found or refused, measured and dispersed as what they are."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import condense
from condense.errors import CondenseError, UnavailableError, UsageError
from condense.models.adapt import find_blocks
from condense.models.layers import find_stacks

VOCABULARY, WIDTH, DEPTH = 61, 16, 4


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, causal: bool = True) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn(self.ln_1(x)).chunk(3, -1)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        return x + self.mlp(self.ln_2(x))


@dataclass
class Config:
    n_layer: int = DEPTH
    block_size: int = 64


class NanoGPT(nn.Module):
    """As nanoGPT: forward(idx, targets), a ModuleDict that is never called, logits of the last position alone."""

    def __init__(self, config: Config | None = None, **more: nn.Module) -> None:
        super().__init__()
        if config is not None:
            self.config = config
        depth = config.n_layer if config else DEPTH
        parts = {"wte": nn.Embedding(VOCABULARY, WIDTH), "wpe": nn.Embedding(64, WIDTH), "drop": nn.Dropout(0.1)}
        self.transformer = nn.ModuleDict(
            {**parts, "h": nn.ModuleList(Block() for _ in range(depth)), "ln_f": nn.LayerNorm(WIDTH)}
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        part: Any = self.transformer
        x = part.drop(part.wte(idx) + part.wpe(torch.arange(idx.shape[1])))
        for block in part.h:
            x = block(x)
        x = part.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, functional.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))


class Titan(nn.Module):
    """As torchtitan: blocks in a ModuleDict, `tokens`, the whole of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.n_layers = DEPTH
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleDict({str(i): Block() for i in range(DEPTH)})
        self.norm, self.output = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            x = layer(x)
        return self.output(self.norm(x))


class Softcapped(Titan):
    """As nanochat: a norm that is a function, logits that the module changes behind its head."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            x = layer(x)
        return 5 * torch.tanh(self.output(functional.rms_norm(x, (WIDTH,))) / 5)


class Kept(nn.Module):
    """Blocks that return dictionaries, called with keywords by a module of another kind of wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Titan()

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(tokens=tokens)}


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH),
        *(Block() for _ in range(DEPTH)),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, VOCABULARY),
    )


def seeded(build: Any, *arguments: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return build(*arguments, **more)


MODELS = {
    "nanoGPT": lambda: NanoGPT(Config()),
    "nanoGPT without config": NanoGPT,
    "torchtitan": Titan,
    "softcapped": Softcapped,
    "wrapped": Kept,
    "Sequential": sequential,
}
PATHS = {
    "nanoGPT": "transformer.h",
    "nanoGPT without config": "transformer.h",
    "torchtitan": "layers",
    "softcapped": "layers",
    "wrapped": "inner.layers",
    "Sequential": "",
}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (6, 40), generator=torch.Generator().manual_seed(1))


def by_hand(model: nn.Module, ids: Tensor) -> tuple[list[float], float]:
    """Mean cosine after each block without position 0, and the next-token loss, in plain code."""
    states: list[list[Tensor]] = [[] for _ in range(DEPTH)]
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    hooks = [
        block.register_forward_hook(lambda module, args, output, at=at: states[at].append(output))
        for at, block in enumerate(blocks)
    ]
    model.eval()
    losses = []
    with torch.no_grad():
        for row in ids:
            if isinstance(model, NanoGPT):
                logits = model(row[None], row[None])[0]
            else:
                output = model(row[None])
                logits = output["logits"] if isinstance(output, dict) else output
            losses.append(float(functional.cross_entropy(logits[0, :-1], row[1:])))
    for hook in hooks:
        hook.remove()
    cosines = []
    for own in states:
        values = []
        for x in own:
            unit = functional.normalize(x[0, 1:].double(), dim=-1)
            gram = unit @ unit.T
            values.append(float((gram.sum() - gram.trace()) / (len(unit) * (len(unit) - 1))))
        cosines.append(sum(values) / len(values))
    return cosines, sum(losses) / len(losses)


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_module_is_measured(name: str, ids: Tensor) -> None:
    model = seeded(MODELS[name])
    assert find_blocks(model).path == PATHS[name]
    model.train()
    run = condense.analyze(model, condense.windows(ids))
    assert model.training and len(run.sites) == DEPTH + 2
    cosines, loss = by_hand(model, ids)
    measured = [site.metrics["mean_cosine"].value for site in run.sites if site.site == "block"]
    assert measured == pytest.approx(cosines, abs=1e-6)
    assert run.quality.loss.value == pytest.approx(loss, abs=1e-5)
    assert run.quality.bits_per_byte.value is None
    assert run.model.architecture == type(model).__name__ and run.model.hidden_size == WIDTH
    assert run.model.objective == "causal" and run.model.blocks == DEPTH


@pytest.mark.parametrize("name", MODELS)
def test_the_penalty_works_on_a_plain_module(name: str, ids: Tensor) -> None:
    model = seeded(MODELS[name]).eval()
    with condense.Disperser(model, 1.0, max_tokens=0) as disperser:
        model(ids)
        penalty = disperser.penalty()
    cosines, _ = by_hand(model, ids)
    assert float(disperser.mean_cosine) == pytest.approx(sum(cosines) / DEPTH, abs=1e-6)
    penalty.backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert f"{DEPTH} of {DEPTH} blocks" in repr(disperser)


def test_a_module_that_is_not_causal_has_no_score(ids: Tensor) -> None:
    model = seeded(Titan)
    for block in model.layers.values():
        block.causal = False
    run = condense.analyze(model, condense.windows(ids))
    assert run.quality.loss.value is None and "not causal" in str(run.quality.loss.reason)


AMBIGUOUS = {
    "8 prediction heads of 8 blocks": lambda: NanoGPT(
        Config(8), heads=nn.ModuleList(nn.Linear(WIDTH, VOCABULARY) for _ in range(8))
    ),
    "2L norms": lambda: NanoGPT(None, norms=nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * DEPTH))),
    "value embeddings": lambda: NanoGPT(
        Config(), values=nn.ModuleList(nn.Embedding(VOCABULARY, WIDTH) for _ in range(DEPTH))
    ),
    "large experts": lambda: NanoGPT(None, experts=nn.ModuleList(nn.Linear(WIDTH, 4096) for _ in range(3))),
    "two towers": lambda: NanoGPT(Config(), second=NanoGPT(Config())),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_ambiguous_is_refused_with_its_candidates(name: str, ids: Tensor) -> None:
    model = seeded(AMBIGUOUS[name])
    for refuse in (
        lambda: find_stacks(model),
        lambda: condense.Disperser(model),
        lambda: condense.analyze(model, condense.windows(ids)),
    ):
        with pytest.raises(UnavailableError) as caught:
            refuse()
        assert "transformer.h" in str(caught.value) and "condense.adapt" in caught.value.hint


def test_named_blocks_settle_it(ids: Tensor) -> None:
    model = seeded(AMBIGUOUS["value embeddings"])
    adapted = condense.adapt(model, blocks="transformer.h", final_norm="transformer.ln_f", head="lm_head", input="idx")
    run = condense.analyze(adapted, condense.windows(ids))
    cosines, loss = by_hand(model, ids)
    assert [s.metrics["mean_cosine"].value for s in run.sites if s.site == "block"] == pytest.approx(cosines, abs=1e-6)
    assert run.quality.loss.value == pytest.approx(loss, abs=1e-5)
    assert run.model.architecture == "NanoGPT"
    with condense.Disperser(adapted, 1.0, paper_sites=True) as disperser:
        model(ids)
        assert disperser.penalty().isfinite()
    assert "4 of 4 blocks at transformer.h" in repr(disperser)


def test_names_that_do_not_exist(ids: Tensor) -> None:
    model = seeded(NanoGPT)
    with pytest.raises(ValueError, match="no module 'transformer.hh'"):
        condense.adapt(model, blocks="transformer.hh")
    with pytest.raises(ValueError, match="no module 'ln_g'"):
        condense.adapt(model, final_norm="ln_g")
    with pytest.raises(ValueError, match="names no block"):
        condense.adapt(model, blocks=[])
    with pytest.raises(CondenseError, match="no list of blocks"):
        condense.adapt(nn.Linear(3, 3))


def test_blocks_may_be_given_one_by_one(ids: Tensor) -> None:
    model = seeded(sequential)
    adapted = condense.adapt(model, blocks=["1", "2", model[3]])
    assert len(find_stacks(adapted)[0].modules) == 3


def test_wrong_depth_is_named() -> None:
    model = seeded(NanoGPT, Config())
    model.config.n_layer = 7
    with pytest.raises(UnavailableError, match=r"no list of 7 blocks.*transformer.h \(4 x Block\)"):
        find_stacks(model)


# --- special tokens and token ids -------------------------------------------------------------------


def test_special_ids_work_whatever_the_argument_is_called(ids: Tensor) -> None:
    model, special = seeded(NanoGPT).eval(), int(ids[0, 5])
    values = []
    for call in (lambda: model(ids), lambda: model(idx=ids), lambda: model(targets=ids, idx=ids)):
        with condense.Disperser(model, 1.0, special_ids=[special], max_tokens=0) as disperser:
            call()
            values.append(float(disperser.penalty().detach()))
    assert len(set(values)) == 1
    with condense.Disperser(model, 1.0, max_tokens=0) as disperser:
        model(ids)
        assert float(disperser.penalty().detach()) != values[0]


def test_special_ids_without_ids_say_so() -> None:
    blocks = nn.Sequential(*(Block() for _ in range(3)))
    with condense.Disperser(nn.ModuleDict({"h": nn.ModuleList(blocks)}) and blocks, 1.0, special_ids=[3]) as disperser:
        blocks(torch.randn(2, 9, WIDTH))
        with pytest.raises(condense.errors.RunError, match="special_ids") as caught:
            disperser.penalty()
    assert "input_ids" in caught.value.hint


@pytest.mark.parametrize("kind", ["memmap", "array", "tensor", "list", "named"])
def test_windows_of_token_ids(kind: str, tmp_path: Path) -> None:
    stream = np.arange(1000, dtype=np.uint16) % VOCABULARY
    stream.tofile(tmp_path / "val.bin")
    given: Any = {
        "memmap": lambda: np.memmap(tmp_path / "val.bin", dtype=np.uint16, mode="r"),
        "array": lambda: stream,
        "tensor": lambda: torch.tensor(stream.astype("int64")),
        "list": lambda: stream.tolist(),
        "named": lambda: stream,
    }[kind]()
    cut = (
        condense.windows(None, given, num_texts=4, max_length=50)
        if kind == "named"
        else condense.windows(given, num_texts=4, max_length=50)
    )
    starts = [round(j * 950 / 3) for j in range(4)]
    assert cut.ids.tolist() == [(stream[at : at + 50]).tolist() for at in starts]
    assert cut.info.documents == (0, 0, 0, 0) and cut.info.texts == 4


def test_every_row_of_ids_is_a_document() -> None:
    cut = condense.windows([[1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 6, 7, 8], [9]], max_length=4, num_texts=3, special_ids=[5])
    assert cut.info.documents == (0, 1, 0) and cut.info.skipped == 1
    assert cut.ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [6, 7, 8, 9]]
    assert cut.special.tolist()[1] == [True, False, False, False]


def test_ids_that_cannot_be_used() -> None:
    with pytest.raises(UsageError, match="longest has 3"):
        condense.windows([1, 2, 3], max_length=8)
    with pytest.raises(ValueError, match="whole numbers"):
        condense.windows(np.zeros(10))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        condense.windows(None, ["a text"])
    model = seeded(NanoGPT)
    with pytest.raises(UnavailableError, match="largest token id is 99"):
        condense.analyze(model, condense.windows([[1, 2, 3, 4, 99]] * 2, max_length=5))
    run = condense.analyze(model, condense.windows([[1, 2, 3, 4, 9]] * 2, max_length=5))
    assert math.isfinite(run.quality.loss.value or math.nan)
