"""The logit lens, against transformers' own hidden states, head and norm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from condense.diagnosis.lens import MOST_WINDOWS
from condense.diagnosis.run import analyze
from condense.gate.assertions import parse_inline
from condense.gate.run import evaluate
from condense.metrics import LENS
from condense.records.diagnosis import Diagnosis
from condense.texts.windows import windows
from tests.models.test_bad_input import condense


def seen(checkpoint: Any, count: int = 10) -> tuple[Diagnosis, Any]:
    texts = windows(checkpoint.tokenizer, num_texts=count, max_length=32, positions=checkpoint.positions)
    return analyze(checkpoint, texts, lens=True), texts


@pytest.mark.parametrize(("name", "norm"), [("llama", "model.norm"), ("gpt2", "transformer.ln_f")])
def test_the_lens_is_the_head_on_the_normed_states(opened: Callable[[str], Any], name: str, norm: str) -> None:
    checkpoint = opened(name)
    run, texts = seen(checkpoint)
    model = checkpoint.model
    with torch.no_grad():
        output = model(texts.ids, output_hidden_states=True)
        hidden = [*output.hidden_states[:-1]]  # all but the normed last one
        logits = [model.lm_head(model.get_submodule(norm)(state)).double().numpy()[:, :-1] for state in hidden]
    final = log_softmax(output.logits.double().numpy()[:, :-1], axis=-1)
    counted = ~texts.special[:, 1:].numpy()
    chosen = [index for index, value in enumerate(run.sites[0].metrics["lens.kl"].per_text or ()) if value is not None]
    assert len(chosen) == MOST_WINDOWS and chosen[0] == 0 and chosen[-1] == 9
    targets = texts.ids[:, 1:].numpy()
    for site, other in zip(run.sites[:-2], logits, strict=True):
        lens = log_softmax(other, axis=-1)
        kl, loss = (np.exp(final) * (final - lens)).sum(-1), -np.take_along_axis(lens, targets[..., None], -1)[..., 0]
        for key, values in (("lens.kl", kl), ("lens.cross_entropy", loss)):
            expected = [values[index][counted[index]].mean() for index in chosen]
            of = site.metrics[key]
            assert [v for v in of.per_text or () if v is not None] == pytest.approx(expected, rel=1e-4), site.label
            assert of.value == pytest.approx(np.mean(expected), rel=1e-4) and of.low is not None
    last, own = run.sites[-2].metrics, run.quality.loss.per_text or ()
    assert last["lens.kl"].value == pytest.approx(0.0, abs=1e-6)
    assert last["lens.cross_entropy"].value == pytest.approx(np.mean([own[index] for index in chosen]), rel=1e-5)
    assert run.sites[-1].metrics["lens.kl"].value is None and run.sites[-1].metrics["lens.kl"].reason
    blocks = [site.metrics["lens.kl"].value for site in run.sites if site.site == "block"]
    assert run.deep["lens.kl"].value == pytest.approx(np.mean(blocks[len(blocks) // 2 :]), rel=1e-9)


@pytest.mark.parametrize(("name", "reason"), [("bert", "masked"), ("t5", "encoder–decoder")])
def test_models_without_a_next_token_say_why(opened: Callable[[str], Any], name: str, reason: str) -> None:
    run, _ = seen(opened(name), 2)
    assert all(set(LENS) <= set(site.metrics) for site in run.sites)
    assert "no logit lens" in (run.deep["lens.kl"].reason or "")


def test_it_is_off_unless_asked_for(diagnosed: Callable[[str], Diagnosis]) -> None:
    run = diagnosed("llama")
    assert not any(key in site.metrics for key in LENS for site in run.sites)
    gate = evaluate(run, (parse_inline("block.2.lens.kl <= 5"),))
    assert gate.results[0].outcome == "not-run" and "--lens" in gate.results[0].reason


def test_the_command(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base = ["analyze", tiny("gpt2"), "--num-texts", "3", "--max-length", "32", "--device", "cpu"]
    condense(*base)  # kept without a lens: not what is asked for next
    result = condense(*base, "--lens", "-o", tmp_path / "out", "--assert", "block.-1.lens.kl <= 0.1")
    assert result.exit_code == 0, result.output
    assert "logit lens, nats per token" in " ".join(result.stdout.split())
    run = Diagnosis.from_json(tmp_path / "out" / "diagnosis.json")
    assert run.sites[1].metrics["lens.kl"].value is not None and "lens.kl" in run.rows()[1]
    assert "Where does the prediction form?" in (tmp_path / "out" / "report.html").read_text()
    again = condense(*base, "--lens", "-o", tmp_path / "out", "--force")
    assert again.exit_code == 0 and "used the diagnosis measured" in again.stderr
