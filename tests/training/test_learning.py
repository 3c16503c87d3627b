"""Scoring a model on its way: the same numbers as a measurement, and nothing changed by it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from condense.diagnosis.run import analyze
from condense.errors import RunError
from condense.texts.windows import windows
from condense.training import learning
from condense.training.learning import Clock, Evaluation, WindowScore, default_points, evaluated_steps


def test_a_model_in_training_is_scored_as_it_would_be_measured(opened):
    checkpoint = opened("llama")
    texts = windows(checkpoint.tokenizer, num_texts=4, max_length=32)
    quality = analyze(checkpoint, texts).quality
    expected = [loss * tokens for loss, tokens in zip(quality.loss.per_text, quality.predicted_tokens, strict=True)]
    model, state = checkpoint.model, torch.get_rng_state()
    model.train()
    try:
        assert WindowScore(checkpoint, texts)(model) == pytest.approx(expected, rel=1e-5)
        assert WindowScore(checkpoint, texts, by_passage=True)(model) == pytest.approx(expected, rel=1e-5)
        assert model.training and torch.equal(state, torch.get_rng_state())
    finally:
        model.eval()


def test_a_loss_that_is_not_finite_ends_the_run(opened, monkeypatch):
    """Else it would end in a record that cannot be written."""
    checkpoint = opened("llama")
    texts = windows(checkpoint.tokenizer, num_texts=2, max_length=32, source="validation text")
    monkeypatch.setattr(learning, "score_passage", lambda *given: (float("nan"), 1))
    with pytest.raises(RunError, match="non-finite loss on validation text"):
        WindowScore(checkpoint, texts, by_passage=True)(checkpoint.model)
    assert not checkpoint.model.training


def test_the_points_are_evenly_apart_and_few_where_they_would_cost_much():
    assert evaluated_steps(400, 16) == {25 * number for number in range(1, 16)}
    assert evaluated_steps(3, 16) == {1, 2} and not evaluated_steps(9, 1) and not evaluated_steps(9, 0)
    assert default_points(819_200, 4096) == 16 and default_points(30_720, 8192) == 0
    assert 4 <= default_points(100_000, 8192) < 16


def test_the_clock_leaves_out_what_is_not_training(monkeypatch):
    """Evaluations, saving and what is done while it is stopped; a resumed run goes on from what was kept."""
    now = [0.0]
    monkeypatch.setattr(Clock, "_now", lambda self: now[0])

    def score(model):
        now[0] += 100
        return [1.0, 2.0]

    state, control = SimpleNamespace(log_history=[], global_step=1), SimpleNamespace(should_save=True)
    clock = Clock(torch.device("cpu"), Evaluation(score, frozenset({1})))
    clock.on_train_begin(None, state, control)
    now[0] += 3
    with clock.stopped():
        now[0] += 50
    clock.on_step_end(None, state, control, model=None)
    now[0] += 7  # writing the checkpoint
    clock.on_save(None, state, control)
    now[0] += 2
    clock.on_train_end(None, state, control)
    scores = clock.scores(state.log_history)
    assert (scores.step, scores.seconds, scores.nats, scores.total_seconds) == ((1,), (3.0,), ((1.0, 2.0),), 5.0)
    again = Clock(torch.device("cpu"))
    again.on_train_begin(None, state, control)
    now[0] += 4
    again.on_train_end(None, state, control)
    assert replace(again.scores(state.log_history), total_seconds=None) == replace(scores, total_seconds=None)
    assert again.scores([]).total_seconds == 7.0
