"""Disperser in a plain loop: which states, which tokens, which scale, and nothing left behind."""

import copy
import functools
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from condense.dispersion import losses as dispersion
from condense.dispersion import variants
from condense.dispersion.disperser import Disperser, DispersionConfig, chosen_blocks
from condense.dispersion.tokens import find_documents, read_documents
from condense.errors import RunError, UnavailableError
from tests.dispersion.ddp_gradients import SPECIAL, collate, distance, gradients, llama, packed, rows


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=100, n_positions=64, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, **SPECIAL))  # fmt: skip


def bert() -> nn.Module:
    return BertForMaskedLM(BertConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64, **SPECIAL))  # fmt: skip


def opt() -> nn.Module:
    """Its head calls the decoder past the model that is the stack's root."""
    return OPTForCausalLM(OPTConfig(
        vocab_size=100, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, dropout=0.0,
        word_embed_proj_dim=16, max_position_embeddings=64, **SPECIAL))  # fmt: skip


def bart() -> nn.Module:
    return BartForConditionalGeneration(BartConfig(
        vocab_size=100, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, dropout=0.0,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        decoder_start_token_id=2, **SPECIAL))  # fmt: skip


def t5() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(
        vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, **SPECIAL))  # fmt: skip


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three rows of 9, 5 and 7 tokens, padded; a BOS first and an EOS inside."""
    made = collate(rows((9, 5, 7)))
    made["input_ids"][0, 4] = SPECIAL["eos_token_id"]
    return made


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def block_states(model: nn.Module, blocks: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """The states of blocks by hooks of the test's own."""
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    model(**batch)
    for handle in handles:
        handle.remove()
    return states


def by_hand(states: list[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """Mean over sites and rows of the angular loss, one row at a time."""
    values = []
    for site in states:
        for row in range(len(ids)):
            first = int(mask[row].nonzero()[0])
            keep = [
                i for i in range(ids.shape[1])
                if mask[row, i] and i > first and int(ids[row, i]) not in SPECIAL.values()
            ]  # fmt: skip
            unit = site[row, keep] / site[row, keep].norm(dim=-1, keepdim=True)
            cosine = (unit @ unit.T)[~torch.eye(len(keep), dtype=torch.bool)]
            bounded = cosine + (cosine.clamp(-0.9, 0.9) - cosine).detach()
            values.append(torch.exp(-torch.acos(bounded) / math.pi).mean().log())
    return torch.stack(values).mean()


# --- the two-line loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make,blocks", [
    (gpt2, lambda m: m.transformer.h), (llama, lambda m: m.model.layers), (bert, lambda m: m.bert.encoder.layer),
    (opt, lambda m: m.model.decoder.layers),
])  # fmt: skip
def test_the_two_line_loop(make: Callable[[], nn.Module], blocks: Any, batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = make().train()
    before = hooks(model)
    with Disperser(model, coefficient=0.1) as disperser:
        loss = model(**batch).loss + disperser.penalty(batch["attention_mask"])
    assert hooks(model) == before == 0
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    states = block_states(model, blocks(model), batch)
    value = by_hand(states, batch["input_ids"], batch["attention_mask"])
    (model(**batch).loss + 0.1 * value).backward()
    # Where the head shares the embedding this includes the tied weight.
    assert float(disperser.value) == pytest.approx(float(value.detach()), abs=1e-6)
    assert distance(found, gradients(model)) < 2e-6


def test_penalty_needs_no_arguments(batch: dict[str, Tensor]) -> None:
    model = llama()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with Disperser(model) as disperser:
        model(**batch)
        quiet = disperser.penalty(step=0).detach()
        model(ids, mask)
        positional = disperser.penalty(step=0).detach()
        model(**batch)
        explicit = disperser.penalty(mask, input_ids=ids, step=0).detach()
        model(**batch)
        everything = disperser.penalty(torch.ones_like(mask), step=0).detach()
    assert quiet == explicit == positional == everything  # the last because pads are special tokens too
    with Disperser(model, special_ids=()) as disperser:
        model(**batch)
        assert disperser.penalty(torch.ones_like(mask)).detach() != quiet


def test_readings(batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model, coefficient=0.5) as disperser:
        assert math.isnan(disperser.value)
        model(**batch)
        penalty = disperser.penalty()
    assert float(penalty.detach()) == pytest.approx(0.5 * float(disperser.value))
    states = block_states(model, model.model.layers, batch)
    valid = read_documents(batch, torch.tensor(list(SPECIAL.values()))).valid
    cosines = [float(dispersion.mean_cosine(site, valid).detach()) for site in states]
    assert float(disperser.mean_cosine) == pytest.approx(sum(cosines) / 3, abs=1e-6)
    assert not disperser.value.requires_grad and not disperser.mean_cosine.requires_grad


def test_training_on_the_penalty_alone_opens_the_cone(batch: dict[str, Tensor]) -> None:
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.05
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    cosines = []
    with Disperser(model) as disperser:
        for _ in range(25):
            model(**batch)
            optimizer.zero_grad()
            disperser.penalty().backward()
            optimizer.step()
            cosines.append(float(disperser.mean_cosine))
    assert cosines[0] > 0.5 and cosines[-1] < cosines[0] - 0.3


@pytest.mark.parametrize("loss", list(dispersion.LOSSES))
def test_every_loss_can_be_chosen(loss: str, batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model, loss=loss, layers="last") as disperser:
        model(**batch)
        disperser.penalty().backward()
    (states,) = block_states(model, model.model.layers[-1:], batch)
    valid = read_documents(batch, torch.tensor(list(SPECIAL.values()))).valid
    assert float(disperser.value) == pytest.approx(float(dispersion.LOSSES[loss](states, valid).detach()), abs=1e-6)


def test_constants_reach_the_loss(batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model, constants={"tau": 0.2}) as disperser:
        model(**batch)
        disperser.penalty()
    valid = read_documents(batch, torch.tensor(list(SPECIAL.values()))).valid
    values = [dispersion.angular(s, valid, tau=0.2) for s in block_states(model, model.model.layers, batch)]
    assert float(disperser.value) == pytest.approx(float(torch.stack(values).mean().detach()), abs=1e-6)


# --- where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers,blocks,numbers", [
    ("all", 4, [1, 2, 3, 4]), ("late", 4, [3, 4]), ("late", 5, [3, 4, 5]), ("early", 5, [1, 2]), ("last", 5, [5]),
    ("3,1,-1", 5, [1, 3, 5]), ([2, -1], 2, [2]), ("late", 1, [1]),
])  # fmt: skip
def test_layers(layers: Any, blocks: int, numbers: list[int]) -> None:
    assert chosen_blocks(layers, blocks) == numbers


@pytest.mark.parametrize("layers,blocks", [("early", 1), ("4", 3), ("-4", 3), ([7], 3)])
def test_layers_that_the_stack_does_not_have(layers: Any, blocks: int) -> None:
    with pytest.raises(ValueError, match="does not have"):
        chosen_blocks(layers, blocks)


def test_the_states_are_taken_before_the_final_norm(batch: dict[str, Tensor]) -> None:
    """Rescaling the final norm by coordinate must not satisfy the loss; with --paper-sites it may."""
    model, other = llama(), llama()
    with torch.no_grad():
        other.model.norm.weight *= torch.linspace(0.1, 3, 24)
    values = {}
    for paper in (False, True):
        for name, one in (("as is", model), ("rescaled", other)):
            with Disperser(one, layers="last", paper_sites=paper) as disperser:
                one(**batch)
                disperser.penalty()
            values[paper, name] = float(disperser.value)
    assert values[False, "as is"] == values[False, "rescaled"]
    assert abs(values[True, "as is"] - values[True, "rescaled"]) > 1e-3


@pytest.mark.parametrize("make", [llama, opt])
def test_paper_sites_are_hidden_states_one_to_last(make: Callable[[], nn.Module], batch: dict[str, Tensor]) -> None:
    model = make()
    with Disperser(model, paper_sites=True) as disperser:
        states = model(**batch, output_hidden_states=True).hidden_states[1:]
        disperser.penalty()
    valid = read_documents(batch, torch.tensor(list(SPECIAL.values()))).valid
    values = torch.stack([dispersion.angular(site, valid) for site in states])
    assert float(disperser.value) == pytest.approx(float(values.mean().detach()), abs=1e-6)


@pytest.mark.parametrize("make", [bart, t5])
def test_both_stacks_of_an_encoder_decoder(make: Callable[[], nn.Module], batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = make()
    labels = collate(rows((6, 8, 4), seed=3))["labels"]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    with Disperser(model) as disperser:
        model(**inputs)
        disperser.penalty(batch["attention_mask"]).backward()
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    decoder = shifted.new_ones(shifted.shape)
    blocks = [part for name, part in model.named_modules() if name.split(".")[-2:-1] in (["layers"], ["block"])]
    states = block_states(model, blocks, inputs)
    towers = [(states[:2], batch["input_ids"], batch["attention_mask"]), (states[2:], shifted, decoder)]
    total = sum(len(part) * by_hand(part, ids, mask) for part, ids, mask in towers) / len(states)
    assert float(disperser.value) == pytest.approx(float(total.detach()), abs=1e-6)
    assert hooks(model) == 0


def test_a_block_that_is_called_many_times(batch: dict[str, Tensor]) -> None:
    """ALBERT calls one shared block L times."""
    torch.manual_seed(0)
    model = AlbertModel(AlbertConfig(
        vocab_size=100, embedding_size=16, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **SPECIAL))  # fmt: skip
    with Disperser(model) as disperser:
        states = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[1:]
        disperser.penalty().backward()
    value = by_hand(list(states), batch["input_ids"], batch["attention_mask"])
    assert float(disperser.value) == pytest.approx(float(value.detach()), abs=1e-6)


@pytest.mark.parametrize("bare", [False, True])
def test_inside_peft(bare: bool, batch: dict[str, Tensor]) -> None:
    import peft

    model = llama()
    inner = model.model if bare else model
    with Disperser(model) as disperser:
        model(**batch)
        disperser.penalty()
    plain = disperser.value
    wrapped = peft.get_peft_model(inner, peft.LoraConfig(target_modules=["q_proj"], r=2))
    with Disperser(wrapped) as disperser:
        wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        disperser.penalty().backward()
    assert float(disperser.value) == pytest.approx(float(plain), abs=1e-6)
    assert all("lora" in name for name in gradients(wrapped)) and hooks(wrapped) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, batch: dict[str, Tensor]) -> None:
    found = []
    for checkpointed in (False, True):
        model = llama()
        if checkpointed:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
            model.train()
        with Disperser(model, 5.0) as disperser:
            (model(**batch).loss + disperser.penalty()).backward()
            with pytest.raises(RunError, match="without a new forward"):  # the recomputation is not a pass
                disperser.penalty()
        found.append(gradients(model))
    assert distance(found[1], found[0]) < 2e-6


# --- which tokens -----------------------------------------------------------------------------------------


def valid(ids: Any, mask: Any = None, positions: Any = None) -> list[list[int]]:
    ids = torch.tensor(ids)
    inputs = {"input_ids": ids, "attention_mask": None if mask is None else torch.tensor(mask),
              "position_ids": None if positions is None else torch.tensor(positions)}  # fmt: skip
    return read_documents(inputs, torch.tensor([0, 1, 2])).valid.int().tolist()


def test_pads_specials_and_the_first_token_are_left_out() -> None:
    assert valid([[1, 5, 6, 2, 7, 0]], [[1, 1, 1, 1, 1, 0]]) == [[0, 1, 1, 0, 1, 0]]
    assert valid([[0, 0, 5, 6, 2, 7]], [[0, 0, 1, 1, 1, 1]]) == [[0, 0, 0, 1, 0, 1]]  # padded on the left
    assert valid([[5, 6, 7]]) == [[0, 1, 1]]
    assert valid([[0, 0, 0], [3, 4, 5]], [[0, 0, 0], [1, 1, 1]]) == [[0, 0, 0], [0, 1, 1]]


def test_documents_begin_where_position_ids_restart() -> None:
    ids, positions = [[5, 6, 7, 8, 9, 5, 6, 9]], [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert valid(ids, positions=positions) == [[0, 1, 1, 0, 1, 0, 0, 0]]
    documents = read_documents({"input_ids": torch.tensor(ids), "position_ids": torch.tensor(positions)},
                               torch.tensor([0]))  # fmt: skip
    assert documents.document.tolist() == [[0, 0, 0, 1, 1, 2, 3, 4]]
    assert documents.position.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert int(documents.sequences) == 1
    # one row of position ids for all rows, positions that start late (RoBERTa), and padding on the left
    assert valid([[5, 6, 7], [5, 6, 7]], positions=[[0, 1, 0]]) == [[0, 1, 0], [0, 1, 0]]
    assert valid([[5, 6, 7]], positions=[[2, 3, 4]]) == [[0, 1, 1]]
    assert valid([[0, 0, 5, 6, 7]], [[0, 0, 1, 1, 1]], [[1, 1, 0, 1, 2]]) == [[0, 0, 0, 1, 1]]


def test_packed_documents_are_sequences_of_their_own() -> None:
    made = rows((9, 5, 7, 2))
    model = llama()
    apart, together = {}, {}
    for name, batch, results in (("rows", collate(made), apart), ("packed", packed(made), together)):
        with Disperser(model, 5.0) as disperser:
            model(**batch, use_cache=False)
            model.zero_grad()
            disperser.penalty().backward()
            results[name] = (float(disperser.value), gradients(model))
            assert disperser.sequences(batch) == 3
    (one, first), (two, second) = apart["rows"], together["packed"]
    assert one == pytest.approx(two, abs=1e-6) and distance(second, first) < 5e-6
    ignoring = {name: value for name, value in packed(made).items() if name != "position_ids"}
    with Disperser(model) as disperser:
        model(**packed(made), use_cache=False)
        mixed = torch.arange(23)[None]
        disperser.penalty(position_ids=mixed)
        assert abs(float(disperser.value) - one) > 1e-4 and disperser.sequences(ignoring) == 1


def test_pads_that_are_documents_of_one_token() -> None:
    """TRL pads a flattened row with position id 0: each pad is a document, and none may count."""
    batch = packed(rows((9, 5)))
    padded = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 6), value=50),
        "position_ids": nn.functional.pad(batch["position_ids"], (0, 6)),
    }
    model = llama()
    values = []
    for inputs in (batch, padded):
        with Disperser(model) as disperser:
            model(**inputs, use_cache=False)
            disperser.penalty()
            values.append(float(disperser.value))
            assert disperser.sequences(inputs) == 2
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_padding_does_not_change_the_value(batch: dict[str, Tensor]) -> None:
    model = llama()
    found = []
    for pad in ((0, 0), (0, 5), (4, 0)):
        padded = {name: nn.functional.pad(value, pad) for name, value in batch.items() if name != "labels"}
        padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with Disperser(model, max_tokens=4) as disperser:
            model(**padded)
            disperser.penalty()
        found.append(float(disperser.value))
    assert found[1:] == pytest.approx(found[:1] * 2, abs=1e-6)


def test_nothing_to_disperse_is_a_connected_zero() -> None:
    model = llama()
    batch = collate(rows((2, 2)))
    with Disperser(model) as disperser:
        model(**batch)
        penalty = disperser.penalty()
    assert float(penalty.detach()) == 0 and disperser.sequences(batch) == 0
    penalty.backward()
    assert all(bool((grad == 0).all()) for grad in gradients(model).values())


def test_a_mask_of_another_shape_is_refused(batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model) as disperser:
        model(**batch)
        with pytest.raises(ValueError, match=r"attention_mask must be \(3, 9\)"):
            disperser.penalty(batch["attention_mask"][:, :5])
        square = torch.zeros(3, 1, 9, 9)
        model(input_ids=batch["input_ids"], attention_mask=square)
        with pytest.raises(ValueError, match="marks the padding"):
            disperser.penalty()


# --- max_tokens -------------------------------------------------------------------------------------------


def chosen(monkeypatch: pytest.MonkeyPatch, model: nn.Module, batches: list[dict[str, Tensor]], **options: Any) -> Any:
    """For each penalty the positions used at each site: states that carry (row, position) tell."""
    seen: list[list[tuple[int, int]]] = []

    def tell(rows_: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append([tuple(map(int, token)) for token in rows_[mask][:, :2].tolist()])
        return rows_.sum() * 0

    def mark(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        size = output.shape
        marks = torch.zeros_like(output)
        marks[..., 0] = torch.arange(size[0])[:, None]
        marks[..., 1] = torch.arange(size[1])
        return marks + 0 * output

    monkeypatch.setitem(variants.PENALTIES, "angular", tell)
    handles = [block.register_forward_hook(mark) for block in model.model.layers]
    calls = []
    with Disperser(model, **options) as disperser:
        for index, batch in enumerate(batches):
            model(**batch)
            disperser.penalty(step=options.get("step", 0) if "step" not in batch else index)
            calls.append(list(seen))
            seen.clear()
    [handle.remove() for handle in handles]
    return calls


def test_one_permutation_for_all_sites_rows_and_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 12 keeps the same positions whatever it is batched with, and shorter rows those of them they have."""
    long, short = rows((12, 12, 12)), rows((30, 8))
    for row in (*long, *short):
        row["input_ids"] = [token if token > 2 else 3 for token in row["input_ids"]]
    calls = chosen(monkeypatch, llama(), [collate(long), collate([long[0], *short])], max_tokens=5)
    first, second = calls
    assert first[0] == first[1] == first[2] and second[0] == second[1] == second[2]
    of = [{r: sorted(p for row, p in call[0] if row == r) for r in range(3)} for call in calls]
    assert of[0][0] == of[0][1] == of[0][2] == of[1][0] and len(of[0][0]) == 5
    assert 0 not in of[0][0]  # the first token of a row
    assert {p for p in of[1][1] if p < 12} <= set(of[1][0]) and len(of[1][2]) == 5
    assert {p for p in of[1][0] if p < 8} <= set(of[1][2])


def test_every_step_has_another_permutation(batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model, max_tokens=3) as disperser:

        def value(step: int | None = None) -> float:
            model(**batch)
            disperser.penalty(step=step)
            return float(disperser.value)

        counted, named = [value() for _ in range(4)], [value(step) for step in range(4)]
    assert counted == named and len(set(counted)) > 1
    with Disperser(model, max_tokens=3, seed=7) as disperser:
        assert [value(step) for step in range(4)] != named


def test_zero_takes_all_tokens(batch: dict[str, Tensor]) -> None:
    model = llama()
    values = []
    for most in (0, 256, 9):
        with Disperser(model, max_tokens=most) as disperser:
            model(**batch)
            disperser.penalty()
            values.append(float(disperser.value))
    assert values[0] == values[1] == values[2]


# --- when -------------------------------------------------------------------------------------------------


def test_a_penalty_is_consumed_once(batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model) as disperser:
        with pytest.raises(RunError, match="without a new forward"):
            disperser.penalty()
        model(**batch)
        disperser.penalty()
        with pytest.raises(RunError, match="without a new forward"):
            disperser.penalty()
    model(**batch)
    with pytest.raises(RunError, match="not attached"):
        disperser.penalty()


def test_what_is_hooked_is_said(batch: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    disperser = Disperser(llama(), 0.3, layers="late")
    assert repr(disperser) == "Disperser(angular x 0.3 on 2 of 3 blocks at model.layers; not attached)"
    with caplog.at_level("INFO", logger="condense"):
        disperser.attach()
    assert "2 of 3 blocks at model.layers; attached" in caplog.text


def test_the_cause_is_named_where_nothing_was_collected(batch: dict[str, Tensor]) -> None:
    model = llama()
    never = Disperser(model)
    model(**batch)
    with pytest.raises(RunError, match="not attached") as caught:
        never.penalty()
    assert "attach()" in str(caught.value.hint)
    with Disperser(model) as disperser:
        with torch.no_grad():
            model(**batch)
        with pytest.raises(RunError, match="not under gradients"):
            disperser.penalty()
        states = model.model.embed_tokens(batch["input_ids"])
        turns = model.model.rotary_emb(states, torch.arange(states.shape[1])[None])
        model.model.layers[0](states, position_embeddings=turns)
        with pytest.raises(RunError, match="none of the modules around them was called"):
            disperser.penalty()
    with Disperser(model) as disperser:
        llama()(**batch)  # another copy than the one that is hooked
        with pytest.raises(RunError, match="without a new forward pass of the hooked model"):
            disperser.penalty()


def test_blocks_that_run_without_gradients_inside_a_pass_are_called_reentrant(batch: dict[str, Tensor]) -> None:
    model = llama()
    call = torch.nn.Module.__call__

    class Reentrant(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, states: Tensor, **options: Any) -> Any:
            return torch.utils.checkpoint.checkpoint(
                functools.partial(call, self.block, **options), states, use_reentrant=True
            )

    with Disperser(model):
        for index, block in enumerate(model.model.layers):
            model.model.layers[index] = Reentrant(block)
        with pytest.raises(RunError, match="without gradients inside") as caught:
            model(**batch)
    assert "use_reentrant=False" in str(caught.value.hint)


def test_blocks_that_are_called_too_often_are_called_looped(batch: dict[str, Tensor]) -> None:
    model = llama()
    with Disperser(model):
        model.model.layers.extend(list(model.model.layers))
        model.config.num_hidden_layers = 6
        with pytest.raises(RunError, match="6 of 3 blocks") as caught:
            model(**batch, use_cache=False)
    assert "looped" in str(caught.value.hint)


def test_layers_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        Disperser(llama(), layers="0,1")


def test_passes_without_gradients_do_not_disturb(batch: dict[str, Tensor]) -> None:
    model, other = llama(), collate(rows((4, 4)))
    with Disperser(model) as disperser:
        model(**batch)
        with torch.no_grad():
            model(**other)
        with torch.inference_mode():
            model(**other)
        after = disperser.penalty(step=0).detach()
        with torch.no_grad():
            model(**batch)
        with pytest.raises(RunError, match="under gradients"):
            disperser.penalty()
        model(**other)
        model(**batch)  # of two passes with gradients the later one counts
        assert disperser.penalty(step=0).detach() == after


def test_layerdrop_is_an_error_not_a_smaller_penalty(batch: dict[str, Tensor]) -> None:
    model = opt()
    model.model.decoder.layerdrop = 1.0
    with Disperser(model), pytest.raises(RunError, match="0 of 2 blocks of the decoder") as error:
        model(**batch)
    assert "layerdrop" in error.value.hint
    assert hooks(model) == 0


def test_an_exception_removes_the_hooks(batch: dict[str, Tensor]) -> None:
    model = llama()
    with pytest.raises(KeyError), Disperser(model):
        raise KeyError("inside")
    assert hooks(model) == 0
    with Disperser(model) as disperser:
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, 4), 10**6))
        model.model(**{k: v for k, v in batch.items() if k != "labels"})  # by another door than the failed one
        disperser.penalty().backward()
    assert hooks(model) == 0


def test_attach_and_detach_by_hand(batch: dict[str, Tensor]) -> None:
    model = llama()
    disperser = Disperser(model)
    assert hooks(model) == 0
    assert disperser.attach().attach() is disperser and disperser.attached
    count = hooks(model)
    model(**batch)
    disperser.penalty()
    disperser.detach()
    disperser.detach()
    assert count == 3 + 2 * 2 and hooks(model) == 0 and not disperser.attached


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_states_are_refused_by_name(poison: float, batch: dict[str, Tensor]) -> None:
    model = llama()

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        spoiled = output.clone()
        spoiled[0, 2, 3] = poison
        return spoiled

    model.model.layers[1].register_forward_hook(spoil)
    with Disperser(model) as disperser:
        model(**batch)
        with pytest.raises(RunError, match="non-finite states at block 2 of the decoder"):
            disperser.penalty()
    assert float(torch.isfinite(disperser.value)) == 0  # still unread


def test_what_padding_holds_does_not_matter(batch: dict[str, Tensor]) -> None:
    model = llama()

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.where(batch["attention_mask"][..., None].bool(), output, math.nan)

    model.model.layers[2].register_forward_hook(spoil)
    with Disperser(model) as disperser:
        model(**batch)
        assert bool(torch.isfinite(disperser.penalty()))


@pytest.mark.parametrize("wrong,words", [
    ({"coefficient": math.inf}, "coefficient"), ({"coefficient": math.nan}, "coefficient"),
    ({"loss": "entropy"}, "loss"),
    ({"max_tokens": 1}, "max_tokens"), ({"layers": "deep"}, "layers"), ({"layers": "0"}, "layers"),
    ({"layers": []}, "layers"), ({"constants": {"margin": 1.0}}, "margin"),
    ({"loss": "mean_cosine", "constants": {"tau": 1.0}}, "none at all"),
])  # fmt: skip
def test_arguments_out_of_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DispersionConfig(**wrong)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UnavailableError):
        Disperser(nn.Linear(2, 2))


def test_the_defaults_have_one_home() -> None:
    assert Disperser(llama()).config == DispersionConfig()


def test_find_documents_on_gaps() -> None:
    """A hole in the mask does not part a document."""
    attended = torch.tensor([[1, 1, 0, 1, 1]]).bool()
    found = find_documents(attended, None, torch.tensor([[0, 1, 0, 2, 3]]), torch.tensor([0]))
    assert found.valid.tolist() == [[False, True, False, True, True]] and int(found.sequences) == 1


# --- forward passes that end early, and copies ------------------------------------------------------------


def failing_once(part: nn.Module, error: BaseException) -> None:
    """The next call of a module raises."""

    def fail(*given: Any) -> None:
        hook.remove()
        raise error

    hook = part.register_forward_pre_hook(fail)


def test_the_pass_after_an_interrupted_one_is_collected(batch: dict[str, Tensor]) -> None:
    """No hook is called where Ctrl-C ends a forward pass; the next said that blocks are shared or looped."""
    model = gpt2()
    with Disperser(model) as disperser:
        failing_once(model.lm_head, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            model(**batch)
        model(**batch)
        assert torch.isfinite(disperser.penalty())


def test_the_pass_after_one_that_raised_is_collected(batch: dict[str, Tensor]) -> None:
    """At the output of a backbone that is called itself there is none to keep after an error."""
    model = gpt2().transformer
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with Disperser(model, paper_sites=True) as disperser, warnings.catch_warnings():
        warnings.simplefilter("error")
        failing_once(model.h[1], RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs)
        model(**inputs)
        assert torch.isfinite(disperser.penalty())


def test_a_copied_or_saved_model_brings_no_disperser_along(batch: dict[str, Tensor]) -> None:
    """Whenever it is copied: a snapshot for an average of weights is taken in the middle of a step."""
    model = gpt2()
    with Disperser(model) as disperser:
        model(**batch)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        expected = disperser.penalty()
        copies.append(pickle.loads(pickle.dumps(model)))
        for one in copies:
            one(**batch)
            (copied,) = {hook.func.__self__ for hook in one.transformer.h[0]._forward_hooks.values()}
            assert not copied.attached and not copied._done and copied is not disperser
            with pytest.raises(RunError, match="a copy of an attached Disperser"):
                copied.attach()
            with Disperser(one) as own:
                one(**batch)
                assert torch.equal(own.penalty(), expected)
        model(**batch)
        assert torch.equal(disperser.penalty(step=0), expected), "the original is still hooked"
