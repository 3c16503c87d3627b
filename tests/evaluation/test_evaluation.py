"""Downstream tasks through lm_eval, offline on tasks of our own, against log-likelihoods computed here."""

import json
import math
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from condense.errors import RunError, UnavailableError, UsageError
from condense.evaluation.harness import find_tasks, open_tasks
from condense.evaluation.run import evaluate, task_effects, task_effects_over_seeds
from condense.records.base import Estimate
from condense.records.serial import decode, encode
from condense.records.tasks import TaskEffect, TaskScore

TASKS = Path(__file__).parents[1] / "tasks"
pytest.importorskip("lm_eval", reason="pip install 'condense-lm[eval]'")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """The datasets' own cache of this session."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def documents(name: str) -> list[dict]:
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def log_likelihood(opened, context: str, continuation: str) -> tuple[float, bool]:
    """Log-probability of the continuation after the context, and whether greedy decoding would write it."""
    tokenizer = opened.tokenizer
    whole = tokenizer(context + continuation)["input_ids"]
    if not context:
        whole = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id, *whole]
    skipped = len(tokenizer(context)["input_ids"]) if context else 1
    with torch.no_grad():
        logs = opened.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    wanted = torch.tensor(whole[skipped:])
    given = logs[skipped - 1 : -1]
    return float(given.gather(1, wanted[:, None]).sum()), bool((given.argmax(-1) == wanted).all())


def by_metric(scores) -> dict[tuple[str, str], TaskScore]:
    return {(score.task, score.metric): score for score in scores}


@pytest.fixture(scope="module")
def scored(opened) -> tuple[TaskScore, ...]:
    return evaluate(opened("gpt2"), ["small_facts", "small_text", "small_last_word"], include_path=TASKS)


# --- against our own arithmetic -----------------------------------------------------------------------


def test_multiple_choice_is_the_choice_of_highest_likelihood(scored, opened):
    rows = documents("small_facts")
    right, right_normed = [], []
    for row in rows:
        logs = [log_likelihood(opened("gpt2"), row["question"], f" {choice}")[0] for choice in row["choices"]]
        right.append(float(np.argmax(logs) == row["answer"]))
        normed = [value / len(choice) for value, choice in zip(logs, row["choices"], strict=True)]
        right_normed.append(float(np.argmax(normed) == row["answer"]))
    found = by_metric(scored)
    for metric, own in (("acc", right), ("acc_norm", right_normed)):
        score = found["small_facts", metric]
        assert score.per_sample == tuple(own) and 0 < sum(own) < len(own)
        assert score.value == pytest.approx(np.mean(own))
        assert score.stderr == pytest.approx(np.std(own, ddof=1) / len(own) ** 0.5)
        assert (score.samples, score.higher_is_better, score.shots) == (40, True, 0)


def test_texts_are_scored_by_byte_and_by_word(scored, opened):
    rows = [row["text"] for row in documents("small_text")]
    nats = np.array([-log_likelihood(opened("gpt2"), "", text)[0] for text in rows])
    sizes = np.array([len(text.encode()) for text in rows])
    words = np.array([len(text.split()) for text in rows])
    bits, perplexity = (by_metric(scored)["small_text", key] for key in ("bits_per_byte", "word_perplexity"))
    assert bits.value == pytest.approx(nats.sum() / sizes.sum() / math.log(2), rel=1e-5)
    assert bits.per_sample == pytest.approx(tuple(nats / sizes / math.log(2)), rel=1e-5)
    assert bits.weights == tuple(sizes) and bits.scale == "mean" and not bits.higher_is_better
    assert perplexity.value == pytest.approx(math.exp(nats.sum() / words.sum()), rel=1e-3)
    assert perplexity.scale == "exp" and perplexity.weights == tuple(words)
    assert bits.stderr is None and perplexity.stderr is None, "the harness gives none"


def test_the_last_word_and_its_greedy_match(scored, opened):
    pairs = [log_likelihood(opened("gpt2"), row["start"], f" {row['word']}") for row in documents("small_last_word")]
    perplexity, accuracy = (by_metric(scored)["small_last_word", key] for key in ("perplexity", "acc"))
    assert perplexity.per_sample == pytest.approx(tuple(-value for value, _ in pairs), rel=1e-5)
    assert perplexity.value == pytest.approx(math.exp(-np.mean([value for value, _ in pairs])), rel=1e-3)
    assert perplexity.stderr > 0 and perplexity.scale == "exp"
    assert accuracy.per_sample == tuple(float(greedy) for _, greedy in pairs)


def test_a_group_is_one_score_over_all_samples(scored, opened):
    (group,) = evaluate(opened("gpt2"), ["small_group"], include_path=TASKS)
    members = [by_metric(scored)[name, "acc"] for name in ("small_facts", "small_last_word")]
    assert (group.task, group.metric, group.samples) == ("small_group", "acc", 50)
    assert group.per_sample == members[0].per_sample + members[1].per_sample
    assert group.value == pytest.approx(np.mean(group.per_sample)) and group.stderr > 0


# --- what a caller can rely on -------------------------------------------------------------------------


def test_tasks_opened_once_serve_several_models_and_leave_no_trace(opened, scored, capfd):
    checkpoint, second = opened("gpt2"), opened("llama")
    capfd.readouterr()
    tasks = open_tasks(find_tasks(["small_facts", "small_text", "small_last_word"], TASKS))
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    padding, seen = checkpoint.tokenizer.pad_token, []
    other = evaluate(second, tasks)
    again = evaluate(checkpoint, tasks, batch_size=3, on_request=lambda done, total: seen.append((done, total)))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert checkpoint.tokenizer.pad_token == padding
    assert seen[-1] == (136, 136), "40 × 3 choices, 6 texts, 10 words"
    assert [score.value for score in other] != [score.value for score in again]
    for one, two in zip(scored, again, strict=True):
        assert one.value == pytest.approx(two.value, rel=1e-4) and one.samples_sha256 == two.samples_sha256
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_limit_takes_the_first_samples(scored, opened):
    found = by_metric(evaluate(opened("gpt2"), ["small_facts"], include_path=TASKS, limit=7))["small_facts", "acc"]
    whole = by_metric(scored)["small_facts", "acc"]
    assert found.samples == 7 and found.per_sample == whole.per_sample[:7]
    assert found.samples_sha256 != whole.samples_sha256
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(opened("gpt2"), ["small_facts"], include_path=TASKS, limit=0)


def test_no_names_no_work(monkeypatch, opened):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert evaluate(opened("gpt2"), []) == ()


def test_scores_survive_json(scored):
    for score in scored:
        assert decode(TaskScore, json.loads(json.dumps(encode(score), allow_nan=False))) == score


# --- differences ---------------------------------------------------------------------------------------


def score(values, **more) -> TaskScore:
    given = {"stderr": float(np.std(values, ddof=1) / len(values) ** 0.5), "samples_sha256": "same", **more}
    return TaskScore("t", "acc", float(np.mean(values)), samples=len(values), per_sample=tuple(values), **given)


def t_half(variance, freedom, alpha=0.05):
    return scipy.stats.t.ppf(1 - alpha / 2, freedom) * variance**0.5


def test_a_paired_difference_is_by_sample():
    new, old = score([1, 1, 1, 0, 1, 0, 1, 1.0]), score([1, 0, 1, 0, 1, 0, 0, 1.0])
    (effect,) = task_effects([new], [old])
    change = np.array(new.per_sample) - np.array(old.per_sample)
    half = t_half(change.var(ddof=1) / 8, 7)
    assert effect.paired and effect.difference.value == pytest.approx(0.25) and effect.samples == 8
    assert [effect.difference.low, effect.difference.high] == pytest.approx([0.25 - half, 0.25 + half])
    (unpaired,) = task_effects([new], [replace(old, samples_sha256="other")])
    a, b = new.stderr**2, old.stderr**2
    half = t_half(a + b, (a + b) ** 2 / (a**2 / 7 + b**2 / 7))
    assert not unpaired.paired
    assert [unpaired.difference.low, unpaired.difference.high] == pytest.approx([0.25 - half, 0.25 + half], rel=1e-6)
    assert unpaired.difference.high - unpaired.difference.low > effect.difference.high - effect.difference.low


def test_perplexities_are_compared_on_their_own_scale():
    weights, rng = (4.0, 9.0, 2.0, 5.0), np.random.default_rng(0)
    x, y = rng.uniform(2, 3, 4), rng.uniform(2, 3, 4)

    def made(nats) -> TaskScore:
        value = math.exp(np.average(nats, weights=weights))
        return TaskScore("t", "ppl", value, None, 4, False, tuple(nats), weights, "exp", "same")

    (effect,) = task_effects([made(x)], [made(y)])
    share = np.array(weights) / sum(weights)
    errors = [math.exp(share @ v) * share * (v - share @ v) for v in (x, y)]
    half = t_half(4 / 3 * ((errors[0] - errors[1]) ** 2).sum(), 3)
    assert effect.paired and not effect.higher_is_better
    assert effect.difference.value == pytest.approx(made(x).value - made(y).value)
    assert effect.difference.high - effect.difference.value == pytest.approx(half)


def test_seeds_and_samples_both_widen_a_difference_of_scores():
    rng = np.random.default_rng(1)
    new = [score((rng.uniform(size=50) < 0.6 + 0.05 * n).astype(float)) for n in range(3)]
    old = [score((rng.uniform(size=50) < 0.5).astype(float)) for _ in range(3)]
    (effect,) = task_effects_over_seeds([[s] for s in new], [[s] for s in old])
    table = np.array([np.subtract(a.per_sample, b.per_sample) for a, b in zip(new, old, strict=True)])
    seeds, samples = table.mean(axis=1).var(ddof=1) / 3, table.mean(axis=0).var(ddof=1) / 50
    half = (t_half(seeds, 2) ** 2 + t_half(samples, 49) ** 2) ** 0.5
    assert effect.seeds == 3 and effect.difference.value == pytest.approx(table.mean())
    assert effect.difference.high - effect.difference.value == pytest.approx(half)
    assert effect.shown > half / 2 and task_effects(new[:1], old[:1])[0].shown is None
    with pytest.raises(ValueError, match="same seeds"):
        task_effects_over_seeds([new], [old, old])


def test_what_cannot_be_compared_says_why():
    plain = TaskScore("t", "f1", 0.5, None, 9)
    (effect,) = task_effects([plain], [replace(plain, value=0.4)])
    assert not effect.paired and effect.difference == Estimate(pytest.approx(0.1), reason="no standard error")
    (undefined,) = task_effects([plain], [replace(plain, value=None)])
    assert undefined.difference.value is None and undefined.difference.reason
    assert task_effects([plain], [replace(plain, task="other")]) == ()
    assert decode(TaskEffect, json.loads(json.dumps(encode(effect)))) == effect


def test_a_model_against_itself_differs_in_nothing(scored):
    for effect in task_effects(scored, scored):
        assert effect.paired and (effect.difference.value, effect.difference.low, effect.difference.high) == (0, 0, 0)


# --- refusals ------------------------------------------------------------------------------------------


def test_an_unknown_task_names_the_nearest(opened):
    with pytest.raises(UnavailableError, match="no task 'smal_facts'") as caught:
        find_tasks(["smal_facts"], TASKS)
    assert "small_facts" in caught.value.hint
    with pytest.raises(UnavailableError, match="no such folder"):
        find_tasks(["small_facts"], TASKS / "nowhere")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UnavailableError, match="lm_eval") as caught:
        find_tasks(["small_facts"], TASKS)
    assert "pip install 'condense-lm[eval]'" in caught.value.hint


def test_a_dataset_that_cannot_be_reached(tmp_path):
    text = (TASKS / "small_facts.yaml").read_text(encoding="utf-8")
    far = text[: text.index("dataset_path")] + "dataset_path: nobody/nothing\n" + text[text.index("output_type") :]
    (tmp_path / "far.yaml").write_text(far)
    with pytest.raises(UnavailableError, match="dataset that cannot be reached.*nobody/nothing"):
        open_tasks(find_tasks(["small_facts"], tmp_path))


@pytest.mark.slow
def test_task_files_that_do_not_work(tmp_path, opened):
    for path in TASKS.iterdir():
        shutil.copy(path, tmp_path)
    plain = (tmp_path / "small_facts.yaml").read_text(encoding="utf-8")
    (tmp_path / "small_facts.yaml").write_text(plain.replace("test_split: test", "test_split: absent"))
    with pytest.raises(UnavailableError, match="small_facts cannot be used"):
        open_tasks(find_tasks(["small_facts"], tmp_path))
    (tmp_path / "small_facts.yaml").write_text(plain + "unsafe_code: true\n")
    with pytest.raises(UnavailableError, match="runs code that the model writes"):
        open_tasks(find_tasks(["small_facts"], tmp_path))
    (tmp_path / "small_facts.yaml").write_text(plain + "broken: [\n")
    with pytest.raises(UnavailableError) as caught:
        find_tasks(["small_facts"], tmp_path)
    assert "valid YAML" in caught.value.hint
    (tmp_path / "small_last_word.jsonl").write_text(json.dumps({"start": "too long:", "word": "cone " * 200}))
    with pytest.raises(RunError, match="lm_eval failed on small_last_word: AssertionError"):
        evaluate(opened("gpt2"), ["small_last_word"], include_path=tmp_path)


def test_a_task_named_twice_and_models_that_score_no_text(opened):
    with pytest.raises(UsageError, match="named more than once"):
        open_tasks(find_tasks(["small_group", "small_facts"], TASKS))
    with pytest.raises(UsageError, match="predicts no next token"):
        evaluate(opened("bert"), ["small_facts"], include_path=TASKS)
