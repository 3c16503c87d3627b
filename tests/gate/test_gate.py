"""The gate: the grammar of assertions, and what numbers and words come to, against intervals set by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from condense.comparison import differences as effects
from condense.comparison.comparability import differing_settings
from condense.errors import UsageError
from condense.gate.assertions import Bound, Target, default_gate, parse_inline, parse_tables, parse_target
from condense.gate.readings import Names
from condense.gate.run import Policy, evaluate, own_baseline
from condense.intervals import NO_DOCUMENTS, ONE_DOCUMENT, ONE_WINDOW, over_documents
from condense.metrics import METRICS, POOLED, POOLINGS, QUALITY
from condense.records.base import Estimate
from condense.records.treatment import Treatment
from condense.report.gate.text import bound_words, conclusion, expected
from tests.moved import in_documents, moved


@pytest.fixture(scope="module")
def run(diagnosed):
    return diagnosed("llama")


def with_deep(run, value, low, high, key="mean_cosine"):
    return replace(run, deep={**run.deep, key: replace(run.deep[key], value=value, low=low, high=high)})


def only(run, text, baseline=None, **more):
    """The single result of one inline assertion."""
    (result,) = evaluate(run, [parse_inline(text)], baseline, **more).results
    return result


# --- the grammar ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("deep.mean_cosine", Target("deep", "mean_cosine")),
        ("output.effective_rank", Target("output", "effective_rank")),
        ("embedding.mean_cosine", Target("embedding", "mean_cosine")),
        ("block.12.mean_cosine", Target("block", "mean_cosine", 12)),
        ("block.-1.mean-cosine", Target("block", "mean_cosine", -1)),
        ("any_block.mean_cosine", Target("any-block", "mean_cosine")),
        ("deep.effective_rank.null_ratio", Target("deep", "effective_rank.null_ratio")),
        ("encoder.deep.mean_cosine", Target("deep", "mean_cosine", stack="encoder")),
        ("decoder.block.2.entropy_rank", Target("block", "entropy_rank", 2, "decoder")),
        ("quality.loss", Target("quality", "loss")),
        ("bits_per_byte", Target("quality", "bits_per_byte")),
        ("verdict.level", Target("verdict", "level")),
        ("encoder.verdict.cone", Target("verdict", "cone", stack="encoder")),
    ],
)
def test_targets(text, target):
    assert parse_target(text) == target
    assert parse_target(target.name) == target


def test_every_metric_has_a_target():
    for key in METRICS:
        assert parse_target(f"deep.{key}").metric == key
    for key in QUALITY:
        assert parse_target(key) == parse_target(f"quality.{key}")
    for pooling in POOLINGS:
        for key in POOLED:
            assert parse_target(f"pooled.{pooling}.{key}") == Target("pooled", f"{pooling}.{key}")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("deep.mean_cosin", "unknown metric 'mean_cosin'", "did you mean mean_cosine?"),
        ("deeep.mean_cosine", "unknown scope 'deeep'", "did you mean deep?"),
        ("bits_per_bite", "unknown scope 'bits-per-bite'", "did you mean bits_per_byte?"),
        ("encodr.deep.mean_cosine", "unknown scope 'encodr'", "did you mean encoder?"),
        ("quality.los", "unknown metric 'los'", "did you mean loss?"),
        ("verdict.levl", "unknown metric 'levl'", "did you mean level?"),
        ("encoder.verdict.id", "unknown metric 'id'", "metrics of verdict"),
        ("mean_cosine", "many places", "deep.mean_cosine"),
        ("block.mean_cosine", "block wants a number", "block.12"),
        ("block.0.mean_cosine", "block wants a number", "count from 1"),
        ("encoder.quality.loss", "whole model's", "leave the stack out"),
        ("encoder.pooled.mean.cosine", "whole model's", "leave the stack out"),
        ("pooled.mean.cosin", "unknown metric 'mean.cosin'", "did you mean mean.cosine?"),
        ("pooled.max.cosine", "unknown metric 'max.cosine'", "did you mean mean.cosine?"),
        ("deep.mean.effective_rank.null_ratio", "unknown metric", "did you mean effective_rank.null_ratio?"),
        ("encoder", "unknown scope ''", "scopes: deep"),
        ("", "unknown scope ''", "scopes"),
    ],
)
def test_unknown_targets_name_the_nearest(text, said, hint):
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert said in str(caught.value) and hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "bound", "level"),
    [
        ("deep.mean_cosine <= 0.8", Bound("max", 0.8), "error"),
        ("deep.mean_cosine<0.8", Bound("max", 0.8, strict=True), "error"),
        ("warn: output.effective_rank >= 12", Bound("min", 12.0), "warn"),
        ("deep.mean_cosine > -0.1", Bound("min", -0.1, strict=True), "error"),
        ("deep.mean_cosine <= baseline", Bound("max_increase", 0.0), "error"),
        ("deep.mean_cosine <= baseline + 0.02", Bound("max_increase", 0.02), "error"),
        ("deep.mean_cosine < baseline - 0.02", Bound("max_increase", -0.02, strict=True), "error"),
        ("bits_per_byte <= baseline + 1 %", Bound("max_increase", 1.0, percent=True), "error"),
        ("deep.effective_rank >= baseline - 5%", Bound("max_decrease", 5.0, percent=True), "error"),
        ("deep.effective_rank >= baseline + 1", Bound("max_decrease", -1.0), "error"),
        ("verdict.level <= watch", Bound("max", words=("watch",)), "error"),
        ("verdict.rank >= 'reduced'", Bound("min", words=("reduced",)), "error"),
        ("verdict.id != condensed-further", Bound("not", words=("condensed-further",)), "error"),
        ("error: verdict.attribution != rogue dimensions", Bound("not", words=("rogue dimensions",)), "error"),
    ],
)
def test_inline(text, bound, level):
    assertion = parse_inline(text)
    assert assertion.bound == bound and assertion.level == level


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deep.mean_cosine", "cannot read"),
        ("deep.mean_cosine <=", "cannot read"),
        ("deep.mean_cosine <= high", "not a number"),
        ("deep.mean_cosine <= nan", "not finite"),
        ("deep.mean_cosine <= 1e999", "not finite"),
        ("deep.mean_cosine <= 5 %", "nothing to be a share of"),
        ("deep.mean_cosine == 0.5", "never exactly"),
        ("deep.effective_rank.null_ratio >= baseline", "of the rank itself"),
        ("verdict.level <= wacth", "unknown word 'wacth'"),
        ("verdict.level < watch", "does not fit a word"),
        ("verdict.id <= dispersed", "max does not fit"),
        ("verdict.cone <= baseline", "unknown word 'baseline'"),
        ("loud: deep.mean_cosine <= 1", "level 'loud'"),
    ],
)
def test_inline_mistakes(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_inline(text)
    assert caught.value.hint


def test_tables():
    found_ = parse_tables(
        {
            "deep.mean_cosine": {"max": 0.8, "max_increase": "2 %"},
            "bits_per_byte": {"level": "warn", "max_increase": 0.01},
            "verdict.id": {"not": ["condensed-further", "inconclusive"]},
            "verdict.level": "off",
            "loss": {"level": "off", "max": 1},
        }
    )
    assert [(a.target.name, bound_words(a), a.level) for a in found_] == [
        ("deep.mean_cosine", "<= 0.8", "error"),
        ("deep.mean_cosine", "increase <= 2 %", "error"),
        ("quality.bits_per_byte", "increase <= 0.01", "warn"),
        ("verdict.id", "is not condensed-further or inconclusive", "error"),
    ]


@pytest.mark.parametrize(
    ("table", "said", "hint"),
    [
        ({"deep.mean_cosine": {"maxi": 1}}, "unknown key 'maxi'", "did you mean max?"),
        ({"deep.mean_cosine": {}}, "has no bound", "max"),
        ({"deep.mean_cosine": {"level": "warn"}}, "has no bound", "max_increase"),
        ({"deep.mean_cosine": {"level": "eror", "max": 1}}, "level is 'eror'", "off, warn or error"),
        ({"deep.mean_cosine": 0.8}, "is 0.8", "table"),
        ({"deep.mean_cosine": {"max": True}}, "True is not a number", "0.02"),
        ({"deep.mean_cosine": {"max": [1]}}, "not a number", "0.02"),
        ({"deep.mean_cosine": {"is": "0.5"}}, "never exactly", "max"),
        ({"verdict.level": {"max": 0.5}}, "max = 0.5", "words: ok"),
        ({"verdict.level": {"max": ["ok", "watch"]}}, "max =", "words: ok"),
        ({"verdict.level": {"max_increase": "ok"}}, "does not fit", "max, min"),
        ({"deep.mean_cosin": "off"}, "unknown metric", "mean_cosine"),
    ],
)
def test_table_mistakes(table, said, hint):
    with pytest.raises(UsageError) as caught:
        parse_tables(table)
    assert said in str(caught.value) and hint in caught.value.hint


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "text", "outcome"),
    [
        ((0.5, 0.4, 0.6), "deep.mean_cosine <= 0.7", "pass"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine <= 0.3", "fail"),
        ((0.5, 0.4, 0.6), "warn: deep.mean_cosine <= 0.3", "warn"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine <= 0.55", "inconclusive"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine <= 0.45", "inconclusive"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine >= 0.7", "fail"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine >= 0.3", "pass"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine >= 0.5", "inconclusive"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine <= 0.6", "pass"),
        ((0.5, 0.4, 0.6), "deep.mean_cosine < 0.6", "inconclusive"),
        ((0.5, 0.5, 0.5), "deep.mean_cosine < 0.5", "fail"),
        ((0.5, None, None), "deep.mean_cosine <= 0.9", "inconclusive"),
        ((0.5, None, None), "deep.mean_cosine <= 0.1", "inconclusive"),
    ],
)
def test_an_interval_against_a_bound(run, interval, text, outcome):
    assert only(with_deep(run, *interval), text).outcome == outcome


def test_what_has_no_interval_decides_nothing(run):
    one = with_deep(in_documents(run, (0,)), 0.5, None, None)
    result = only(one, "deep.mean_cosine <= 1")
    assert result.outcome == "inconclusive" and result.reason.startswith(ONE_WINDOW)
    old = with_deep(in_documents(run, ()), 0.5, None, None)
    for text, base in (("deep.mean_cosine <= 1", None), ("deep.mean_cosine <= baseline + 1", old)):
        result = only(old, text, base)
        assert result.outcome == "not-run" and result.reason == NO_DOCUMENTS


def test_one_document_decides_and_says_so(run):
    one = in_documents(run, (0,) * 8)
    gate = evaluate(one, [parse_inline("deep.mean_cosine <= 1")])
    assert gate.results[0].outcome == "pass" and gate.notes == (f"intervals: {ONE_DOCUMENT}",)
    assert evaluate(run, [parse_inline("deep.mean_cosine <= 1")]).notes == ()


def test_changes_are_paired_over_documents(run):
    worse = moved(run, 0.05, noise=0.01)
    result = only(worse, "deep.mean_cosine <= baseline + 0.02", run)
    expected_ = effects.difference(worse, run, "baseline").deep["mean_cosine"]
    assert result.outcome == "fail"
    assert (result.found.value, result.found.low, result.found.high) == (expected_.value, expected_.low, expected_.high)
    assert result.found.reference == run.deep["mean_cosine"].value
    assert only(worse, "deep.mean_cosine <= baseline + 0.5", run).outcome == "pass"
    assert only(worse, "deep.mean_cosine >= baseline - 0.01", run).outcome == "pass"
    assert only(worse, f"deep.mean_cosine <= baseline + {expected_.value}", run).outcome == "inconclusive"
    assert only(run, "deep.mean_cosine < baseline", run).outcome == "fail", "no change is not less"


def test_blocks_that_are_judged_side_by_side_share_the_level(run):
    """A bound that the 95 % interval of the worst block keeps, and the one at .05/blocks does not."""
    blocks = [s for s in run.sites if s.site == "block"]
    spreads = {s.index: over_documents(s.metrics["mean_cosine"].per_text, run.corpus.documents) for s in blocks}
    worst = max(spreads, key=lambda index: spreads[index].bounds(0.05 / len(blocks))[1])
    plain, shared = spreads[worst].bounds()[1], spreads[worst].bounds(0.05 / len(blocks))[1]
    limit = (plain + shared) / 2
    assert only(run, f"block.{worst}.mean_cosine <= {limit}").outcome == "pass"
    result = only(run, f"any-block.mean_cosine <= {limit}")
    assert result.outcome == "inconclusive" and result.found.high == pytest.approx(shared)
    new = moved(run, 0.05, noise=0.02)
    change = only(new, f"any-block.mean_cosine <= baseline + {0.05}", run).found
    single = only(new, f"block.{change.where.split()[-1]}.mean_cosine <= baseline + {0.05}", run).found
    assert change.high - change.value > 1.2 * (single.high - single.value)


@pytest.mark.parametrize("documents", [4, 8])
def test_the_gate_errs_in_one_of_twenty_at_most(run, documents):
    """Two draws of one model: a change that is not there fails, or a block of three does, in at most 7 % of gates."""
    rng, failed = np.random.default_rng(documents), {"deep": 0, "any-block": 0}
    index = np.repeat(np.arange(documents), 32 // documents)
    base = replace(run, corpus=replace(run.corpus, texts=32, documents=tuple(index.tolist())))
    for _ in range(200):

        def drawn():
            noise = 0.28**0.5 * rng.normal(size=documents)[index] + 0.72**0.5 * rng.normal(size=32)
            of = Estimate(float(0.5 + 0.02 * noise.mean()), per_text=tuple(0.5 + 0.02 * noise))
            return of

        sites = [s for s in run.sites if s.site == "block"]
        pair = []
        for _ in range(2):
            made = tuple(replace(s, metrics={"mean_cosine": drawn()}) for s in sites)
            pair.append(replace(base, sites=made, deep={**run.deep, "mean_cosine": drawn()}))
        for scope in failed:
            failed[scope] += only(pair[0], f"{scope}.mean_cosine <= baseline", pair[1], force=True).outcome == "fail"
    assert all(count <= 14 for count in failed.values()), failed


def test_percent_is_of_the_baseline(run):
    base = run.deep["effective_rank"].value
    lower = moved(run, -0.03 * base, keys=["effective_rank"])
    result = only(lower, "deep.effective_rank >= baseline - 2 %", run)
    assert result.outcome == "fail" and result.limit == pytest.approx(-0.02 * base)
    assert only(lower, "deep.effective_rank >= baseline - 4 %", run).outcome == "pass"
    assert f"decrease <= 2 % ({0.02 * base:.2f})" == expected(result)
    zero = replace(run, deep={**run.deep, "effective_rank": replace(run.deep["effective_rank"], value=0.0)})
    assert "share of it" in only(lower, "deep.effective_rank >= baseline - 2 %", zero).reason


def test_any_block_is_its_worst(run):
    values = {s.index: s.metrics["mean_cosine"] for s in run.sites if s.site == "block"}
    worst = max(values, key=lambda index: values[index].value)
    result = only(run, "any-block.mean_cosine <= 1")
    assert result.outcome == "pass" and result.found.where == f"block {worst}"
    assert only(run, "any-block.mean_cosine <= -0.9").outcome == "fail"
    last = only(run, "block.-1.mean_cosine <= 1").found
    assert last == only(run, f"block.{max(values)}.mean_cosine <= 1").found
    sites = tuple(
        replace(s, metrics=moved(run, 0.3).sites[i].metrics) if s.site == "block" and s.index == 2 else s
        for i, s in enumerate(run.sites)
    )
    change = only(replace(run, sites=sites), "any-block.mean_cosine <= baseline + 0.1", run)
    assert change.outcome == "fail" and change.found.where == "block 2"
    assert change.found.value == pytest.approx(0.3)


@pytest.mark.parametrize("key", ["loss", "perplexity", "bits_per_byte"])
def test_quality_changes(run, key):
    same = only(run, f"quality.{key} <= baseline + 1 %", run)
    assert same.outcome == "pass" and (same.found.value, same.found.low, same.found.high) == (0, 0, 0)
    loss = run.quality.loss
    losses = tuple(v * 1.5 for v in loss.per_text)
    mean = float(np.mean(losses))
    bits = run.quality.bits_per_byte
    worse = replace(
        run.quality,
        loss=replace(loss, value=mean, per_text=losses),
        perplexity=Estimate(float(np.exp(mean)), per_text=tuple(np.exp(losses).tolist())),
        bits_per_byte=replace(bits, value=bits.value * 1.5, per_text=tuple(v * 1.5 for v in bits.per_text)),
    )
    result = only(replace(run, quality=worse), f"quality.{key} <= baseline + 1 %", run)
    assert result.outcome == "fail" and result.found.low <= result.found.value <= result.found.high


def test_null_ratio_is_the_rank_over_its_null(run):
    rank = run.deep["effective_rank"]
    found_ = only(run, "deep.effective_rank.null_ratio >= 0").found
    assert found_.value == rank.null_ratio and found_.low == pytest.approx(rank.low / rank.null)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("deep.mean_cosine <= baseline", "no baseline"),
        ("verdict.id == dispersed", "only a treatment"),
        ("deep.cosine_std.null_ratio >= 0", None),
    ],
)
def test_what_cannot_run_says_why(run, text, reason):
    if reason is None:
        with pytest.raises(UsageError):
            parse_inline(text)
        return
    result = only(run, text)
    assert result.outcome == "not-run" and reason in result.reason


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("encoder.deep.mean_cosine <= 1", "no encoder stack", "docs/ci.md"),
        ("encoder.verdict.level <= ok", "no encoder stack", "docs/ci.md"),
        ("block.9.mean_cosine <= 1", "the model has 3 blocks", "block.1 to block.3"),
        ("block.-9.mean_cosine <= baseline", "the model has 3 blocks", "block.-1 to block.-3"),
        ("warn: block.4.mean_cosine <= 1", "the model has 3 blocks", "block.1 to block.3"),
    ],
)
def test_a_target_that_the_model_cannot_have_is_a_usage_error(run, text, said, hint):
    for policy in (Policy(), Policy(informational=True), Policy(not_run="ignore")):
        with pytest.raises(UsageError, match=said) as caught:
            evaluate(run, [parse_inline(text)], run, policy=policy)
        assert hint in caught.value.hint


def test_masked_models_are_gated_on_their_loss(diagnosed):
    bert = diagnosed("bert")
    result = only(bert, "bits_per_byte <= 1")
    assert result.outcome == "not-run" and "masked" in result.reason
    names = [r.assertion.target.name for r in evaluate(bert, None, bert).results]
    assert sorted(names) == ["deep.mean_cosine", "quality.loss"]


def test_two_stacks(diagnosed):
    t5 = diagnosed("t5")
    encoder = only(t5, "encoder.deep.mean_cosine <= 1").found
    assert encoder.value == t5.stacks["encoder"].deep["mean_cosine"].value
    assert only(t5, "decoder.deep.mean_cosine <= 1").found.value == t5.deep["mean_cosine"].value
    change = only(moved(t5, 0.1), "encoder.block.1.mean_cosine <= baseline + 0.05", t5)
    assert change.outcome == "fail" and change.found.where == "encoder block 1"
    shifted = only(moved(t5, 0.1), "encoder.deep.mean_cosine <= baseline + 0.5", t5).found
    assert shifted.low == pytest.approx(0.1)


# --- words ------------------------------------------------------------------------------------------


def judged(run, **fields):
    frequencies = {axis: {word: 1.0} for axis, word in fields.items()}
    return replace(run, verdict=replace(run.verdict, borderline=(), frequencies=frequencies, **fields))


def test_words_have_an_order(run):
    condensed = judged(run, level="condensed", cone="high", rank="reduced")
    assert only(condensed, "verdict.level <= watch").outcome == "fail"
    assert only(condensed, "warn: verdict.level <= watch").outcome == "warn"
    assert only(condensed, "verdict.level <= condensed").outcome == "pass"
    assert only(condensed, "verdict.rank >= reduced").outcome == "pass"
    assert only(condensed, "verdict.rank >= intact").outcome == "fail"
    assert only(condensed, "verdict.cone == high").outcome == "pass"
    assert only(condensed, "verdict.cone != high").outcome == "fail"
    unknown = replace(run, verdict=replace(run.verdict, level="undefined", reason="too few kinds of token"))
    result = only(unknown, "verdict.level <= ok")
    assert result.outcome == "inconclusive" and "too few kinds of token" in result.reason


@pytest.mark.parametrize(
    ("severe", "outcome"),
    [(0.0, "pass"), (0.05, "pass"), (0.06, "inconclusive"), (0.94, "inconclusive"), (0.95, "fail")],
)
def test_a_word_is_as_sure_as_its_resamples(run, severe, outcome):
    """cone <= high: high or severe by resamples of the documents, beside some where the word is undefined."""
    verdict = replace(
        run.verdict,
        cone="severe" if severe > 0.5 else "high",
        frequencies={"cone": {"severe": severe, "high": 1 - severe}, "rank": {"intact": 0.9, "undefined": 0.1}},
    )
    edge = replace(run, verdict=verdict)
    cone = only(edge, "verdict.cone <= high")
    assert cone.outcome == outcome
    if outcome == "inconclusive":
        assert f"{100 * (1 - severe):.0f} % of the resamples" in cone.reason and set(cone.words) == {"severe", "high"}
    assert only(edge, "verdict.rank >= low").outcome == "inconclusive", "an undefined word keeps to no bound"
    assert only(edge, "verdict.level <= ok").outcome == "inconclusive", "no frequencies of it were kept"


# --- defaults, policy, order ------------------------------------------------------------------------


def test_the_default_gate(run):
    assert [(a.target.name, bound_words(a), a.level) for a in default_gate(True)] == [
        ("deep.mean_cosine", "increase <= 0.02", "error"),
        ("quality.bits_per_byte", "increase <= 1 %", "error"),
    ]
    severe = evaluate(judged(run, level="severe", cone="severe"))
    assert [r.outcome for r in severe.results] == ["warn"] and not severe.failed
    assert evaluate(moved(run, 0.1), None, run).failed
    assert not evaluate(run, None, run).failed


def test_worst_first_and_the_policies(run):
    texts = [
        "deep.mean_cosine <= 1",
        "verdict.id == dispersed",
        "warn: deep.mean_cosine <= -0.9",
        "deep.mean_cosine <= 0.45",
    ]
    asked = [parse_inline(text) for text in texts]
    straddling = with_deep(run, 0.5, 0.4, 0.6)
    gate = evaluate(straddling, asked)
    assert [r.outcome for r in gate.results] == ["warn", "inconclusive", "not-run", "pass"]
    assert not gate.failed and conclusion(gate) == "passed with warnings"
    assert evaluate(straddling, asked, policy=Policy(inconclusive="fail")).failed
    strict = evaluate(straddling, asked, policy=Policy(strict=True))
    assert sum(strict.blocks(r) for r in strict.results) == 3 and "--strict" in conclusion(strict)
    failing = [*asked, parse_inline("deep.mean_cosine <= 0")]
    assert evaluate(straddling, failing).results[0].outcome == "fail"
    told = evaluate(straddling, failing, policy=Policy(informational=True, strict=True))
    assert not told.failed and told.count("fail") == 1 and "informational" in conclusion(told)
    soft = evaluate(straddling, [parse_inline("warn: deep.mean_cosine <= 0.45")], policy=Policy(inconclusive="fail"))
    assert not soft.failed, "a warning that is open is no more than a warning"


OPEN, ABSENT, PASS, FAIL = (
    "deep.mean_cosine <= 0.45", "deep.mean_cosine <= baseline", "deep.mean_cosine <= 1", "deep.mean_cosine <= 0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "policy", "code", "outcome"),
    [
        ([OPEN], Policy(), 5, "undecided"),
        ([ABSENT], Policy(), 5, "undecided"),
        ([OPEN, ABSENT], Policy(), 5, "undecided"),
        ([OPEN, f"warn: {PASS}"], Policy(), 5, "undecided"),
        ([OPEN, f"warn: {FAIL}"], Policy(), 5, "undecided"),
        ([OPEN, PASS], Policy(), 0, "passed with warnings"),
        ([ABSENT, PASS], Policy(), 0, "passed with warnings"),
        ([OPEN, FAIL], Policy(), 1, "failed"),
        ([OPEN], Policy(informational=True), 0, "passed with warnings"),
        (
            [OPEN, FAIL],
            Policy(informational=True, strict=True, inconclusive="fail", not_run="fail"),
            0,
            "passed with warnings",
        ),
        ([OPEN], Policy(inconclusive="fail"), 1, "failed"),
        ([ABSENT], Policy(inconclusive="fail"), 5, "undecided"),
        ([ABSENT], Policy(not_run="fail"), 1, "failed"),
        ([ABSENT, PASS], Policy(not_run="fail"), 1, "failed"),
        ([OPEN], Policy(not_run="fail"), 5, "undecided"),
        ([OPEN], Policy(strict=True), 1, "failed"),
        ([ABSENT], Policy(strict=True, not_run="ignore"), 1, "failed"),
        ([ABSENT], Policy(not_run="ignore"), 0, "passed"),
        ([ABSENT, PASS], Policy(not_run="ignore"), 0, "passed"),
        ([ABSENT, OPEN], Policy(not_run="ignore"), 5, "undecided"),
        ([f"warn: {OPEN}"], Policy(not_run="fail", inconclusive="fail"), 0, "passed with warnings"),
        ([f"warn: {FAIL}"], Policy(), 0, "passed with warnings"),
        ([], Policy(), 0, "passed"),
    ],
)
def test_the_precedence_of_exit_codes(run, texts, policy, code, outcome):
    gate = evaluate(with_deep(run, 0.5, 0.4, 0.6), [parse_inline(text) for text in texts], policy=policy)
    assert (gate.exit_code, gate.outcome) == (code, outcome)
    assert gate.undecided == (code == 5) and gate.failed == (code == 1)
    nothing = any("nothing here can fail" in note for note in gate.notes)
    assert nothing == (not any(result.assertion.level == "error" for result in gate.results))


# --- comparability ----------------------------------------------------------------------------------


def test_unlike_runs_are_refused_by_name(run):
    other = replace(
        run,
        protocol={**run.protocol, "hash": "0", "max_length": 999, "versions": {"mean_cosine": 7, "later": 1}},
        corpus=replace(run.corpus, sha256="0" * 64, source="notes.md"),
    )
    with pytest.raises(UsageError) as caught:
        evaluate(run, None, other)
    for part in ("max_length is 64 against 999", "mean_cosine has version 2 against 7", "against notes.md"):
        assert part in str(caught.value)
    forced = evaluate(run, None, other, force=True)
    assert "by force" in forced.notes[0]
    assert differing_settings(run, run) == ()
    fewer = replace(run, corpus=replace(run.corpus, sha256="0" * 64, texts=4))
    assert "8 against 4 texts" in differing_settings(run, fewer)[0]


def test_other_windows_are_compared_unpaired(run):
    other = replace(run, corpus=replace(run.corpus, windows_sha256="0" * 64))
    gate = evaluate(moved(run, 0.01, noise=0.01), None, other)
    assert any("unpaired" in note for note in gate.notes)
    assert any("same weights" in note for note in gate.notes)
    elsewhere = replace(run, environment={**run.environment, "device": "cuda:0"})
    assert any("device is cpu against cuda:0" in note for note in evaluate(run, None, elsewhere).notes)


# --- treatments -------------------------------------------------------------------------------------


def treatment_of(before, treated, verdict_id):
    """A treatment as far as the gate reads it."""
    finding = SimpleNamespace(next="condense treat tiny --coefficient 0.03")
    arms = {"before": SimpleNamespace(validation=before), "treated": SimpleNamespace(validation=treated)}
    made = object.__new__(Treatment)
    fields = {"arms": arms, "verdict": SimpleNamespace(id=verdict_id, covers="", findings=(finding,)), "command": ""}
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def test_a_treatment_is_gated_on_its_treated_arm_and_its_verdict(run):
    worse = moved(run, 0.1)
    gate = evaluate(treatment_of(run, worse, "condensed-further"))
    assert [(r.assertion.target.name, r.outcome) for r in gate.results] == [
        ("verdict.id", "fail"), ("deep.mean_cosine", "fail"), ("quality.bits_per_byte", "pass"),
    ]  # fmt: skip
    assert gate.subject is worse and "before" in gate.baseline
    assert gate.results[0].next == "condense treat tiny --coefficient 0.03"
    assert not evaluate(treatment_of(worse, run, "dispersed")).failed


def test_an_inconclusive_treatment_decides_only_what_names_it(run):
    treatment = treatment_of(run, run, "inconclusive")
    assert only(treatment, "verdict.id != condensed-further").outcome == "inconclusive"
    assert only(treatment, "verdict.id == dispersed").outcome == "inconclusive"
    assert only(treatment, "verdict.id != inconclusive").outcome == "fail"
    alone = only(treatment_of(run, run, "no-control"), "verdict.id == dispersed")
    assert alone.outcome == "inconclusive" and "no control arm" in alone.reason


def test_random_weights_are_no_baseline(run):
    random = replace(run, model=replace(run.model, source_format="random"))
    assert own_baseline(treatment_of(random, run, "dispersed")) is None
    assert own_baseline(treatment_of(run, run, "dispersed")) is run and own_baseline(run) is None


# --- advice -----------------------------------------------------------------------------------------


def test_every_miss_has_a_next_command(run):
    names = Names("new run.json", "base.json")
    changed = only(moved(run, 0.1), "deep.mean_cosine <= baseline", run, names=names)
    assert changed.next == "condense compare base.json 'new run.json'"
    assert only(run, "deep.mean_cosine <= baseline").next == "condense check run.json --baseline BASELINE.json"
    open_ = only(with_deep(run, 0.5, 0.4, 0.6), "deep.mean_cosine <= 0.5")
    assert open_.next == "condense analyze tiny --num-texts 32 --output again/"
    text = "deep.mean_cosine <= baseline"
    both = only(
        moved(run, 0.0, noise=0.01), text, replace(run, command="condense analyze old -o x --seed 3"), names=names
    )
    assert both.outcome == "inconclusive" and both.next == (
        "condense analyze old -o x --seed 3 --num-texts 32 --json again.json && "
        "condense analyze tiny --num-texts 32 --output again/ --baseline again.json"
    )
    assert only(run, "bits_per_byte <= 0").next == "condense report run.json"
    condensed = judged(run, level="condensed")
    assert only(condensed, "deep.mean_cosine <= -0.9").next == run.verdict.findings[0].next


def test_what_is_asked_twice_is_told_once(run):
    assert len(evaluate(run, [parse_inline("deep.mean_cosine <= 1")] * 2).results) == 1


# --- one window, and numbers of every kind --------------------------------------------------------------


def test_one_window_makes_no_word_certain(opened):
    """Nothing can be drawn again from one window: its words are not stable in 100 % of the resamples."""
    from condense.diagnosis.run import analyze
    from condense.texts.windows import windows

    checkpoint = opened("llama")
    texts = windows(checkpoint.tokenizer, num_texts=1, max_length=64, positions=checkpoint.positions)
    one = analyze(checkpoint, texts, spectral_tokens=32)
    assert one.verdict.frequencies == {} and one.verdict.borderline == ()
    found = only(one, f"verdict.cone == {one.verdict.cone}")
    assert found.outcome == "inconclusive" and "how stable" in found.reason
    assert only(one, "deep.mean_cosine <= 1").outcome == "inconclusive"


@pytest.mark.parametrize(
    "target", ["deep.cross_text_cosine", "any-block.cross_text_cosine", "output.cross_text_cosine"]
)
def test_the_cross_text_cosine_can_be_gated(run, target):
    """Its interval is a jackknife, also for a change and for all blocks side by side."""
    assert only(run, f"{target} <= 1.1").outcome == "pass"
    assert only(run, f"{target} <= -0.9").outcome == "fail"
    assert only(run, f"{target} <= baseline + 0.01", run).outcome == "pass"


def test_the_pooled_view_can_be_gated(opened):
    from condense.diagnosis.run import analyze
    from condense.texts.windows import windows

    checkpoint = opened("bert")
    texts = windows(checkpoint.tokenizer, num_texts=8, max_length=32, positions=128)
    run = analyze(checkpoint, texts, spectral_tokens=16)
    own = run.pooled["mean"]["cosine"]
    result = only(run, f"pooled.mean.cosine <= {own.high + 0.01}")
    assert result.outcome == "pass" and result.found.value == own.value
    assert only(run, f"pooled.mean.cosine <= {own.low - 0.01}").outcome == "fail"
    assert only(run, "pooled.cls.effective_rank.null_ratio <= 2").outcome == "pass"
    missing = only(run, "pooled.mean.halves_found >= 0.9")
    assert missing.outcome == "not-run" and "--halves" in missing.reason
    higher = replace(own, value=own.value + 0.1, deleted=tuple(v + 0.1 for v in own.deleted))
    other = replace(run, pooled={**run.pooled, "mean": {**run.pooled["mean"], "cosine": higher}})
    change = only(other, "pooled.mean.cosine <= baseline + 0.05", run)
    assert change.outcome == "fail" and change.found.value == pytest.approx(0.1)
    assert change.found.low == pytest.approx(0.1)  # without each document by the same
    older = replace(run, pooled={})
    assert "did not have it" in only(older, "pooled.mean.cosine <= 1").reason
    assert only(run, "pooled.mean.cosine <= baseline + 0.05", older).outcome == "not-run"


def test_a_share_of_the_null_lies_within_its_own_interval(run):
    """The nulls of windows differ where a text repeats itself, so the mean of ratios is no ratio of means."""
    of = replace(run.deep["effective_rank"], value=20.0, low=20.0, high=20.0, null=40.0, null_ratio=0.52)
    found = only(replace(run, deep={**run.deep, "effective_rank": of}), "deep.effective_rank.null_ratio >= 0.51")
    assert found.outcome == "pass" and found.found.low == found.found.high == 0.52


# --- how often a gate is wrong, by simulation ------------------------------------------------------------


def test_a_gate_is_seldom_wrong_on_the_edge(run):
    """The truth is on the bound, windows of a document are alike: it fails, and passes, in few of the draws."""
    documents = tuple(np.repeat(np.arange(8), 4).tolist())
    base = in_documents(replace(run, corpus=replace(run.corpus, texts=32)), documents)
    rng = np.random.default_rng(0)
    ends = {"absolute": [0, 0], "change": [0, 0], "any-block": [0, 0]}

    def estimate(values):
        spread = over_documents(values, documents)
        return Estimate(spread.value, *spread.bounds(), tuple(values))

    def drawn():
        return 0.6 + 0.03 * (0.28**0.5 * rng.normal(size=8)[list(documents)] + 0.72**0.5 * rng.normal(size=32))

    def measured(columns):
        """The run with these values per window as its blocks' mean cosine, the last of them as the deep one."""
        blocks, left = [], list(columns)
        for site in base.sites:
            metrics = {**site.metrics, "mean_cosine": estimate(left.pop(0))} if site.site == "block" else site.metrics
            blocks.append(replace(site, metrics=metrics))
        return replace(base, sites=tuple(blocks), deep={**base.deep, "mean_cosine": estimate(columns[-1])})

    depth = sum(site.site == "block" for site in base.sites)
    for _ in range(300):
        before = [drawn() for _ in range(depth)]
        after = [values + 0.02 + 0.01 * rng.normal(size=32) for values in before]
        old, new = measured(before), measured(after)
        for name, text, baseline in (
            ("absolute", "deep.mean_cosine <= 0.62", None),
            ("change", "deep.mean_cosine <= baseline + 0.02", old),
            ("any-block", "any-block.mean_cosine <= baseline + 0.02", old),
        ):
            outcome = only(new, text, baseline).outcome
            ends[name] = [ends[name][0] + (outcome == "fail"), ends[name][1] + (outcome == "pass")]
    assert max(share for pair in ends.values() for share in pair) / 300 <= 0.06, ends
