"""The whole analysis on tiny checkpoints of several architectures, against numbers taken by another way."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from condense import geometry
from condense.diagnosis.forward import kept_positions, spectral_positions
from condense.diagnosis.run import analyze, environment, protocol
from condense.diagnosis.twin import initialisations
from condense.diagnosis.verdict import Bands
from condense.errors import RunError, UnavailableError
from condense.intervals import jackknife, over_documents, ratio_over_documents
from condense.metrics import LENS, MATRIX, METRICS, PER_TEXT, POOLED, QUALITY, VERSIONS
from condense.models.checkpoint import checkpoint_of, load, random_twin
from condense.models.layers import shifted
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import Windows, windows, without_names
from tests.conftest import build, tiny_config, write_checkpoint

ALL = ("gpt2", "llama", "qwen2", "qwen3", "bert", "albert", "bart", "t5")
ONE_STACK = ALL[:6]


def made(checkpoint: Any, count: int = 4, length: int = 48) -> Windows:
    return windows(checkpoint.tokenizer, num_texts=count, max_length=length)


def plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as JSON without what differs from run to run."""
    values = json.loads(diagnosis.to_json())
    for place in (values, values.get("twin") or {}):
        for key in ("created", "timing"):
            place.pop(key, None)
    return values


@torch.no_grad()
def hidden(model: Any, row: Tensor) -> list[Tensor]:
    """Hidden states of one text as transformers reports them."""
    output = model.base_model(input_ids=row[None], output_hidden_states=True)
    return [states[0] for states in output.hidden_states]


# --- the whole run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_is_diagnosed(diagnosed: Callable[[str], Diagnosis], name: str) -> None:
    diagnosis = diagnosed(name)
    stacks = {"bart": ["encoder"] * 4 + ["decoder"] * 5, "t5": ["encoder"] * 4 + ["decoder"] * 5}
    towers = ["encoder" if name in ("bert", "albert") else "decoder"] * 5
    assert [site.stack for site in diagnosis.sites] == stacks.get(name, towers)
    assert [site.site for site in diagnosis.sites][-5:] == ["embedding", "block", "block", "block", "output"]
    assert set(diagnosis.stacks) == ({"encoder"} if name in stacks else set())
    for site in diagnosis.sites:
        assert set(site.metrics) == set(METRICS)
        assert len(site.top_dimensions) == 3 and sum(site.histogram.counts) > 0
        for key in PER_TEXT:
            assert len(site.metrics[key].per_text or ()) == 8, key
    assert set(diagnosis.deep) == set(METRICS)
    assert diagnosis.verdict.level in ("severe", "condensed", "watch", "ok") and diagnosis.verdict.findings
    assert diagnosis.model.blocks == (5 if name in stacks else 3) and diagnosis.model.hidden_size == 32
    assert diagnosis.corpus.texts == 8 and diagnosis.corpus.length == 64


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_the_json_fits_its_schema(diagnosed: Callable[[str], Diagnosis], name: str) -> None:
    schema = Path(__file__).parents[2] / "condense" / "data" / "diagnosis.schema.json"
    if not schema.exists():
        pytest.skip("no JSON Schema in the package yet")
    jsonschema.validate(json.loads(diagnosed(name).to_json()), json.loads(schema.read_text()))


@pytest.mark.parametrize("name", ONE_STACK)
def test_numbers_are_geometry_on_the_models_hidden_states(
    opened: Callable[[str], Any], diagnosed: Callable[[str], Diagnosis], name: str
) -> None:
    """hidden_states 0..L−1 are our sites 0..L−1 and its last one is our output."""
    checkpoint, diagnosis = opened(name), diagnosed(name)
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=64)
    keep = kept_positions(texts.special)
    places = [*diagnosis.sites[:3], diagnosis.sites[4]]
    curve = np.zeros((8, 4))
    for index, row in enumerate(texts.ids):
        chosen = spectral_positions(keep[index], 32, 0, index)
        for where, states in enumerate(hidden(checkpoint.model, row)):
            metrics = places[where].metrics
            rows = states[keep[index]]
            for key in ("mean_cosine", "cosine_std", "cosine_q50", "relative_variance", "median_norm",
                        "mean_cosine_without_top_dimensions"):  # fmt: skip
                expected = float(getattr(geometry, key)(rows))
                assert metrics[key].per_text[index] == pytest.approx(expected, rel=1e-4, abs=1e-6), (key, where)
            for key in ("effective_rank", "entropy_rank"):
                expected = float(getattr(geometry, key)(states[chosen]))
                assert metrics[key].per_text[index] == pytest.approx(expected, rel=1e-4), (key, where)
            assert metrics["mean_cosine_with_sink"].per_text[index] == pytest.approx(
                float(geometry.mean_cosine(states)), rel=1e-4, abs=1e-6
            )
            assert metrics["sink_ratio"].per_text[index] == pytest.approx(
                float(geometry.sink_ratio(rows, states)), rel=1e-4
            )
            n = len(states)
            unit = states / states.norm(dim=1, keepdim=True)
            curve[index, where] = float(unit.sum(0).square().sum()) / n**2
    assert diagnosis.paper.mean_cosine == pytest.approx(curve.mean(0).tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_cross_text_cosine_is_pooled(
    opened: Callable[[str], Any], diagnosed: Callable[[str], Diagnosis], name: str
) -> None:
    checkpoint, diagnosis = opened(name), diagnosed(name)
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=64)
    keep = kept_positions(texts.special)
    clouds = [hidden(checkpoint.model, row)[2][keep[i]] for i, row in enumerate(texts.ids)]
    expected = float(geometry.cross_text_cosine(clouds))
    assert diagnosis.sites[2].metrics["cross_text_cosine"].value == pytest.approx(expected, rel=1e-4)
    pairs = sum(len(cloud) * (len(cloud) - 1) // 2 for cloud in clouds)
    assert sum(diagnosis.sites[2].histogram.counts) == pairs


def test_position_0_and_specials_are_kept_out(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("bert")
    keep = kept_positions(made(checkpoint).special)
    assert not keep[:, 0].any() and not keep[:, -1].any() and bool(keep[:, 1:-1].all())
    keep = kept_positions(made(opened("gpt2")).special)
    assert not keep[:, 0].any() and bool(keep[:, 1:].all())


def test_the_decoder_of_two_stacks_leaves_out_its_own_specials(
    opened: Callable[[str], Any], diagnosed: Callable[[str], Diagnosis]
) -> None:
    """BART's decoder reads start, [CLS], text …: both are special, the last text token is not."""
    checkpoint, diagnosis = opened("bart"), diagnosed("bart")
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=64)
    ids = texts.ids[:1]
    inputs = shifted(ids, checkpoint.model.config)
    with torch.no_grad():
        output = checkpoint.model(input_ids=ids, decoder_input_ids=inputs, output_hidden_states=True)
    assert not texts.special[0, 1] and texts.special[0, 63] and inputs[0, 1] == ids[0, 0]
    decoder = output.decoder_hidden_states[1][0]
    place = diagnosis.sites[5]
    assert (place.stack, place.label) == ("decoder", "block 1")
    expected = float(geometry.mean_cosine(decoder[2:]))
    assert place.metrics["mean_cosine"].per_text[0] == pytest.approx(expected, rel=1e-4)
    encoder = output.encoder_hidden_states[1][0]
    expected = float(geometry.mean_cosine(encoder[1:-1]))
    assert diagnosis.sites[1].metrics["mean_cosine"].per_text[0] == pytest.approx(expected, rel=1e-4)


def test_spectral_positions_are_drawn_once_per_text() -> None:
    keep = torch.ones(100, dtype=torch.bool)
    keep[[0, 50]] = False
    chosen = spectral_positions(keep, 30, 0, 4)
    assert len(chosen) == 30 and bool(keep[chosen].all()) and chosen.tolist() == sorted(set(chosen.tolist()))
    torch.manual_seed(5)
    assert torch.equal(chosen, spectral_positions(keep, 30, 0, 4))
    assert not torch.equal(chosen, spectral_positions(keep, 30, 0, 5))
    assert not torch.equal(chosen, spectral_positions(keep, 30, 1, 4))
    assert len(spectral_positions(keep, 300, 0, 4)) == 98


# --- depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_deep_is_the_mean_over_the_deepest_half(tokenizers: dict[str, Any], blocks: int) -> None:
    """Linear: mean over windows of the mean over blocks, so that differences of deep are the deep of differences."""
    config = tiny_config("gpt2")
    config.n_layer = blocks
    model = build(config)
    diagnosis = analyze(model, windows(tokenizers["bytes"], num_texts=5, max_length=48), spectral_tokens=16)
    inner = [site for site in diagnosis.sites if site.site == "block" and site.index > blocks // 2]
    assert [site.index for site in inner] == list(range(blocks // 2 + 1, blocks + 1))
    for key, estimate in diagnosis.deep.items():
        if key in PER_TEXT:
            rows = [[site.metrics[key].per_text[t] for site in inner] for t in range(5)]  # type: ignore[index]
            means = [None if None in row else float(np.mean(row)) for row in rows]
            assert estimate.per_text == tuple(None if v is None else pytest.approx(v) for v in means), key
            known = [v for v in means if v is not None]
            assert estimate.value == (pytest.approx(np.mean(known)) if known else None), key
        else:
            assert estimate.value == pytest.approx(np.mean([site.metrics[key].value for site in inner])), key
        assert estimate.low is None or estimate.low <= estimate.value <= estimate.high, key
    ratios = [site.metrics["effective_rank"].null_ratio for site in inner]
    assert diagnosis.deep["effective_rank"].null_ratio == pytest.approx(np.mean(ratios))
    assert diagnosis.deep["effective_rank"].null == geometry.gaussian_null("effective_rank", 16, 32)


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_intervals_are_over_documents(diagnosed: Callable[[str], Diagnosis], name: str) -> None:
    diagnosis = diagnosed(name)
    documents = diagnosis.corpus.documents
    assert len(documents) == 8
    for table in (diagnosis.deep, *(site.metrics for site in diagnosis.sites)):
        for key in PER_TEXT:
            estimate, metric = table[key], METRICS[key]
            spread = over_documents(estimate.per_text or (), documents)
            assert estimate.value == (None if spread.value is None else pytest.approx(spread.value)), key
            assert (estimate.low, estimate.high) == pytest.approx(spread.clipped(metric.low, metric.high)), key


def test_the_dimension_of_a_run_is_the_ratio_of_the_mean_moments(
    opened: Callable[[str], Any], diagnosed: Callable[[str], Diagnosis]
) -> None:
    checkpoint, diagnosis = opened("gpt2"), diagnosed("gpt2")
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=64)
    keep = kept_positions(texts.special)
    moments = []
    for index, row in enumerate(texts.ids):
        states = hidden(checkpoint.model, row)[2]
        found = geometry.measure(states, keep[index], spectral_positions(keep[index], 32, 0, index)).settled().extra
        moments.append((found["dimension_numerator"], found["dimension_denominator"]))
    above, below = np.array(moments).T
    estimate = diagnosis.sites[2].metrics["dimension"]
    assert estimate.value == pytest.approx(above.mean() / below.mean(), rel=1e-6)
    bounds = ratio_over_documents(above, below, texts.info.documents).bounds()
    assert (estimate.low, estimate.high) == pytest.approx(bounds, rel=1e-6)
    share = diagnosis.sites[2].metrics["dimension_share"]
    assert (share.value, share.low) == pytest.approx((estimate.value / 32, estimate.low / 32))  # type: ignore[operator]


def test_the_cross_text_cosine_is_over_documents(opened: Callable[[str], Any]) -> None:
    """Windows of one document are one cloud, and leaving out one document at a time gives the interval."""
    checkpoint = opened("gpt2")
    texts = made(checkpoint, 6)
    numbers = (0, 1, 0, 2, 1, 0)
    texts = replace(texts, info=replace(texts.info, documents=numbers))
    estimate = analyze(checkpoint, texts, spectral_tokens=16).sites[2].metrics["cross_text_cosine"]
    rows = [hidden(checkpoint.model, row)[2][1:] for row in texts.ids]
    clouds = [torch.cat([x for x, n in zip(rows, numbers, strict=True) if n == g]) for g in range(3)]
    assert estimate.value == pytest.approx(float(geometry.cross_text_cosine(clouds)), rel=1e-4)
    deleted = [float(geometry.cross_text_cosine([c for g, c in enumerate(clouds) if g != left])) for left in range(3)]
    bounds = jackknife(estimate.value, deleted, numbers).clipped(-1, 1)
    assert (estimate.low, estimate.high) == pytest.approx(bounds, rel=1e-3)


def test_what_windows_do_not_say_of_their_documents_is_not_made_up(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    texts = made(checkpoint, 4)
    unknown = analyze(checkpoint, replace(texts, info=replace(texts.info, documents=())), spectral_tokens=16)
    known = analyze(checkpoint, texts, spectral_tokens=16)
    for key, estimate in unknown.deep.items():
        assert estimate.value == pytest.approx(known.deep[key].value) and estimate.low is None, key
        assert estimate.value is None or "not run" in (estimate.reason or "")
    assert unknown.verdict.frequencies == {} and unknown.verdict.cone == known.verdict.cone
    assert unknown.quality.loss.low is None and unknown.quality.bits_per_byte.value is not None


def test_the_record_counts_tokens(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("bert")
    texts = made(checkpoint, 4)
    tokens = analyze(checkpoint, texts, spectral_tokens=16).tokens
    assert tokens is not None
    for index, row in enumerate(texts.ids):
        ids = row[1:-1].tolist()  # [CLS] … [SEP]
        same = [a == b for i, a in enumerate(ids) for b in ids[i + 1 :]]
        assert tokens.distinct[index] == len(set(ids))
        assert tokens.same_pairs[index] == pytest.approx(sum(same) / len(same))


def test_a_sink_inside_the_text_is_left_out_and_described(tokenizers: dict[str, Any]) -> None:
    """One token's embedding is made huge: it is a sink at every site wherever it stands, and nothing else changes."""
    model, tokenizer = build(tiny_config("gpt2")), tokenizers["bytes"]
    texts = windows(tokenizer, num_texts=8, max_length=64)
    tokens, counts = torch.unique(texts.ids[:, 1:], return_counts=True)
    token = int(tokens[counts.argmax()])
    with torch.no_grad():
        model.transformer.wte.weight[token] *= 400
    checkpoint = replace(checkpoint_of(model, texts.ids[:1]), tokenizer=tokenizer)
    diagnosis = analyze(checkpoint, texts, spectral_tokens=32)
    (sinks,) = diagnosis.sinks
    holders = (texts.ids == token).any(1)
    assert sinks.windows == int(holders.sum()) and sinks.up == "embedding" and sinks.down is None
    assert sinks.dropped == int((texts.ids[:, 1:] == token).sum())
    assert sinks.tokens == (tokenizer.decode([token]),)
    inside = texts.ids[0] == token
    keep = kept_positions(texts.special)[0] & ~inside
    rows = model.transformer.wte.weight[texts.ids[0]] + model.transformer.wpe.weight[:64]
    value = diagnosis.sites[0].metrics["mean_cosine"].per_text
    assert value is not None and value[0] == pytest.approx(float(geometry.mean_cosine(rows[keep])), rel=1e-4)
    assert "attention-sink" in [finding.id for finding in diagnosis.verdict.findings]
    untold = analyze(checkpoint, without_names(texts), spectral_tokens=32)
    assert untold.sinks[0].tokens == () and untold.sinks[0].positions == sinks.positions


def test_trend_and_published_trend(diagnosed: Callable[[str], Diagnosis]) -> None:
    diagnosis = diagnosed("llama")
    curve = [site.metrics["mean_cosine"].value for site in diagnosis.sites[:4]]  # embedding..block L, no output
    rho, tau = scipy.stats.spearmanr(range(4), curve), scipy.stats.kendalltau(range(4), curve)
    assert diagnosis.trend.spearman.rho == pytest.approx(rho.statistic)
    assert diagnosis.trend.spearman.p == pytest.approx(rho.pvalue, abs=1e-12)
    assert diagnosis.trend.kendall.tau == pytest.approx(tau.statistic)
    published = diagnosis.paper
    assert len(published.mean_cosine) == 4
    assert published.spearman.rho == pytest.approx(scipy.stats.spearmanr(range(4), published.mean_cosine).statistic)


def test_random_weights_score_a_rising_trend(diagnosed: Callable[[str], Diagnosis]) -> None:
    """Why a trend is never a severity."""
    for name in ("gpt2", "llama", "qwen2", "qwen3"):
        diagnosis = diagnosed(name)
        assert diagnosis.trend.spearman.rho == pytest.approx(1)
        assert diagnosis.verdict.cone in ("low", "moderate")


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_two_stacks_have_two_summaries(diagnosed: Callable[[str], Diagnosis], name: str) -> None:
    diagnosis = diagnosed(name)
    encoder = diagnosis.stacks["encoder"]
    deep = [s.metrics["mean_cosine"].value for s in diagnosis.sites if s.stack == "encoder" and s.label == "block 2"]
    assert encoder.deep["mean_cosine"].value == pytest.approx(deep[0])
    assert diagnosis.deep["mean_cosine"].value != encoder.deep["mean_cosine"].value
    assert len(encoder.paper.mean_cosine) == 3 and len(diagnosis.paper.mean_cosine) == 4
    assert encoder.verdict.findings


def test_sites_within_a_null_and_a_ratio(diagnosed: Callable[[str], Diagnosis]) -> None:
    for site in diagnosed("gpt2").sites:
        for key in ("effective_rank", "entropy_rank"):
            estimate = site.metrics[key]
            assert estimate.null == geometry.gaussian_null(key, 32, 32)  # type: ignore[arg-type]
            assert estimate.null_ratio == pytest.approx(estimate.value / estimate.null)  # type: ignore[operator]


# --- the same again ---------------------------------------------------------------------------------


def test_batches_agree(opened: Callable[[str], Any]) -> None:
    for name in ("gpt2", "llama", "bert", "bart"):
        checkpoint = opened(name)
        texts = made(checkpoint, 6)
        one = analyze(checkpoint, texts, batch_size=1, spectral_tokens=24)
        four = analyze(checkpoint, texts, batch_size=4, spectral_tokens=24)
        for a, b in zip(one.sites, four.sites, strict=True):
            for key in METRICS:
                x, y = a.metrics[key].value, b.metrics[key].value
                same = x is None if y is None else x == pytest.approx(y, rel=1e-4, abs=1e-5)
                assert same, (name, a.label, key, x, y)
        if name != "bart":
            assert one.quality.loss.per_text == pytest.approx(four.quality.loss.per_text, rel=1e-5)
        assert one.protocol == four.protocol and one.corpus == four.corpus


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_the_same_inputs_give_the_same_json(opened: Callable[[str], Any], name: str) -> None:
    checkpoint = opened(name)
    first = analyze(checkpoint, made(checkpoint), spectral_tokens=24, twin=True)
    torch.manual_seed(1)
    second = analyze(checkpoint, made(checkpoint), spectral_tokens=24, twin=True)
    assert json.dumps(plain(first)) == json.dumps(plain(second))
    other = analyze(checkpoint, made(checkpoint), spectral_tokens=24, seed=1)
    assert other.protocol["hash"] != first.protocol["hash"]


def test_the_callers_random_state_is_left_alone(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("bert")
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    analyze(checkpoint, made(checkpoint), spectral_tokens=16, twin=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


def test_protocol_hash_covers_settings_and_not_the_model(opened: Callable[[str], Any]) -> None:
    gpt2, llama = opened("gpt2"), opened("llama")
    base = protocol(made(gpt2), gpt2.info.dtype, 24, 0)
    assert base["hash"] == protocol(made(llama), llama.info.dtype, 24, 0)["hash"]
    assert base["metrics"] == "condense.metrics/2" and set(base["versions"]) == {
        *METRICS,
        *QUALITY,
        *(metric.key for metric in POOLED.values()),
        *MATRIX,
        *LENS,
    }
    changed = [
        protocol(made(gpt2, length=32), gpt2.info.dtype, 24, 0),
        protocol(made(gpt2), "bfloat16", 24, 0),
        protocol(made(gpt2), gpt2.info.dtype, 25, 0),
        protocol(made(gpt2), gpt2.info.dtype, 24, 1),
    ]
    assert len({base["hash"], *(p["hash"] for p in changed)}) == 5


def test_a_new_number_keeps_the_hash(opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2 = opened("gpt2")
    base = protocol(made(gpt2), gpt2.info.dtype, 24, 0)
    monkeypatch.setitem(VERSIONS, "something_new", 1)
    later = protocol(made(gpt2), gpt2.info.dtype, 24, 0)
    assert later["hash"] == base["hash"] and later["versions"]["something_new"] == 1


def test_environment_names_versions(opened: Callable[[str], Any]) -> None:
    found = environment(opened("gpt2").model)
    assert found["torch"] == torch.__version__ and found["device"] == "cpu"


def test_progress_is_told_text_by_text(opened: Callable[[str], Any]) -> None:
    told: list[tuple[int, int]] = []
    analyze(opened("gpt2"), made(opened("gpt2")), spectral_tokens=8, on_text=lambda *at: told.append(at))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# --- twin, memory, modes ----------------------------------------------------------------------------


def test_the_twin_is_the_same_config_with_random_weights(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    diagnosis = analyze(checkpoint, made(checkpoint), spectral_tokens=16, twin=True)
    twin = diagnosis.twin
    assert twin is not None and twin.twin is None
    assert twin.model.source_format == "random" and twin.model.architecture == diagnosis.model.architecture
    assert twin.model.weights_sha256 != diagnosis.model.weights_sha256
    assert twin.corpus == diagnosis.corpus and len(twin.sites) == len(diagnosis.sites)
    assert twin.deep["mean_cosine"].value != diagnosis.deep["mean_cosine"].value
    assert any(finding.id == "random-twin" for finding in diagnosis.verdict.findings)
    assert diagnosis.verdict.twin in ("more", "less", "not distinguishable")
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis
    own, other = checkpoint.model.state_dict(), random_twin(checkpoint).model.state_dict()
    assert own.keys() == other.keys() and not torch.equal(
        own["transformer.wte.weight"], other["transformer.wte.weight"]
    )
    assert random_twin(checkpoint, 1).info.weights_sha256 != random_twin(checkpoint, 2).info.weights_sha256


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_twin_is_the_mean_of_three_initialisations(opened: Callable[[str], Any], name: str) -> None:
    checkpoint = opened(name)
    texts = made(checkpoint)
    diagnosis = analyze(checkpoint, texts, spectral_tokens=16, twin=True)
    singles = [analyze(twin, texts, spectral_tokens=16) for twin in initialisations(checkpoint, 0)]
    twin = diagnosis.twin
    assert twin is not None and len(singles) == 3 and "mean of 3 random initialisations" in twin.model.notes
    for key in METRICS:
        values = [single.deep[key].value for single in singles]
        if None not in values:
            assert twin.deep[key].value == pytest.approx(np.mean(values)), key  # type: ignore[arg-type]
        for number, site in enumerate(twin.sites):
            values = [single.sites[number].metrics[key].value for single in singles]
            if None not in values:
                assert site.metrics[key].value == pytest.approx(np.mean(values)), key  # type: ignore[arg-type]
    curves = [single.paper.mean_cosine for single in singles]
    assert twin.paper.mean_cosine == pytest.approx(np.mean(curves, axis=0))
    assert len({tuple(curve) for curve in curves}) == 3
    means = [single.deep["mean_cosine"].value for single in singles]
    (finding,) = [f for f in diagnosis.verdict.findings if f.id == "random-twin"]
    assert f"{np.mean(means):.2f} with random weights (3 initialisations" in finding.seen  # type: ignore[arg-type]


def test_a_model_that_is_one_of_the_initialisations_is_not_its_own_twin(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    first, second, _ = (twin.info.weights_sha256 for twin in initialisations(checkpoint, 0))
    own = next(initialisations(checkpoint, 0))
    assert own.info.weights_sha256 == first
    others = [twin.info.weights_sha256 for twin in initialisations(own, 0)]
    assert first not in others and second in others and len(set(others)) == 3


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_a_model_in_memory(opened: Callable[[str], Any], name: str) -> None:
    checkpoint = opened(name)
    texts = made(checkpoint)
    loaded, bare = analyze(checkpoint, texts, spectral_tokens=16), analyze(checkpoint.model, texts, spectral_tokens=16)
    assert bare.sites == loaded.sites and bare.deep == loaded.deep and bare.quality == loaded.quality
    assert bare.model.source_format == "in memory" and bare.model.weights_sha256 is None
    assert Diagnosis.from_json(bare.to_json()) == bare


def test_a_model_in_memory_has_a_twin(tokenizers: dict[str, Any]) -> None:
    model = build(tiny_config("gpt2"))
    diagnosis = analyze(model, windows(tokenizers["bytes"], num_texts=2, max_length=16), spectral_tokens=8, twin=True)
    assert diagnosis.twin is not None


def test_training_mode_is_put_back(tokenizers: dict[str, Any]) -> None:
    model = build(tiny_config("gpt2")).train()
    model.transformer.drop.eval()
    before = {name: module.training for name, module in model.named_modules()}
    texts = windows(tokenizers["bytes"], num_texts=2, max_length=16)
    first = analyze(model, texts, spectral_tokens=8)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert analyze(model.eval(), texts, spectral_tokens=8).sites == first.sites  # dropout was off
    assert not model.training


def test_training_mode_is_put_back_after_a_failure(tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny_config("gpt2")).train()
    texts = windows(tokenizers["bytes"], num_texts=2, max_length=16)

    def stop(*at: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(model, texts, spectral_tokens=8, on_text=stop)
    assert model.training
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not any(hook.__module__.startswith("condense") for hook in hooks)


def test_measuring_leaves_no_gradients(tokenizers: dict[str, Any]) -> None:
    model = build(tiny_config("gpt2"))
    analyze(model, windows(tokenizers["bytes"], num_texts=2, max_length=16), spectral_tokens=8)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()  # still an ordinary model


# --- failures ---------------------------------------------------------------------------------------


def test_float16_overflow_is_a_failed_run(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    import transformers

    model = build(tiny_config("gpt2"))
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight.mul_(1e3)  # the weights fit into float16, their product does not
            block.mlp.c_proj.weight.mul_(1e3)
    model.save_pretrained(tmp_path)
    tokenizers["bytes"].save_pretrained(tmp_path)
    assert isinstance(model, transformers.GPT2LMHeadModel)
    wide = load(tmp_path, device="cpu")
    texts = made(wide, 2, 16)
    assert math.isfinite(analyze(wide, texts, spectral_tokens=8).deep["mean_cosine"].value or math.nan)
    narrow = load(tmp_path, device="cpu", dtype="float16")
    with pytest.raises(RunError, match="not finite") as caught:
        analyze(narrow, texts, spectral_tokens=8)
    assert caught.value.exit_code == 4 and "float32" in caught.value.hint


def test_the_first_text_diverges(tokenizers: dict[str, Any]) -> None:
    """The self-check meets it before anything is measured, and says the same."""
    model = build(tiny_config("gpt2"))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[0] = float("inf")
    texts = windows(tokenizers["bytes"], num_texts=3, max_length=16)
    with pytest.raises(RunError, match="text 0 at block 2 .*not finite") as caught:
        analyze(model, texts, spectral_tokens=8)
    assert caught.value.exit_code == 4


def test_states_that_diverge_name_the_text_and_the_site(tokenizers: dict[str, Any]) -> None:
    model = build(tiny_config("gpt2"))
    texts = windows(tokenizers["bytes"], num_texts=3, max_length=16)
    common = set(texts.ids[0].tolist()) | set(texts.ids[1].tolist())
    rare = next(token for token in texts.ids[2, 1:].tolist() if token not in common)
    with torch.no_grad():
        model.transformer.wte.weight[rare] = float("nan")
    with pytest.raises(RunError, match=r"text 2 at embedding .*1 of 16 states are not finite"):
        analyze(model, texts, spectral_tokens=8)


def test_ids_beyond_the_embedding(opened: Callable[[str], Any], tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    config = tiny_config("gpt2")
    config.vocab_size = 300
    folder = write_checkpoint(tmp_path, config, tokenizers["bytes"])
    checkpoint = load(folder, device="cpu")
    with pytest.raises(UnavailableError, match="300 rows") as caught:
        analyze(checkpoint, made(checkpoint), spectral_tokens=8)
    assert caught.value.exit_code == 3


def test_bands_of_the_caller_are_used(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    low = Bands(cone_moderate=0.01, cone_high=0.02, cone_severe=0.03)
    assert analyze(checkpoint, made(checkpoint), spectral_tokens=8, bands=low).verdict.cone == "severe"


@pytest.mark.parametrize("count", [1, 2])
def test_few_texts(opened: Callable[[str], Any], count: int) -> None:
    checkpoint = opened("gpt2")
    diagnosis = analyze(checkpoint, made(checkpoint, count), spectral_tokens=8)
    metrics = diagnosis.sites[1].metrics
    assert (metrics["mean_cosine"].low is None) == (count == 1)
    assert (metrics["cross_text_cosine"].value is None) == (count == 1)
    assert metrics["cross_text_cosine"].reason and metrics["cross_text_cosine"].low is None
    assert any(finding.id == "few-documents" for finding in diagnosis.verdict.findings)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_the_shortest_windows(opened: Callable[[str], Any]) -> None:
    for name in ("gpt2", "bert"):
        checkpoint = opened(name)
        shortest = analyze(checkpoint, made(checkpoint, 8, 8 if name == "bert" else 3), spectral_tokens=8)
        assert shortest.deep["mean_cosine"].value is not None
        assert Diagnosis.from_json(shortest.to_json()) == shortest


def test_bfloat16(opened: Callable[[str], Any], tiny: Callable[[str], Path]) -> None:
    full = opened("llama")
    half = load(tiny("llama"), device="cpu", dtype="bfloat16")
    a, b = (analyze(c, made(full), spectral_tokens=24) for c in (full, half))
    assert b.model.dtype == "bfloat16" and a.model.dtype == "float32"
    for x, y in zip(a.sites, b.sites, strict=True):
        assert y.metrics["mean_cosine"].value == pytest.approx(x.metrics["mean_cosine"].value, abs=0.01)
    assert b.quality.loss.value == pytest.approx(a.quality.loss.value, rel=0.02)
